//! Replies: the bytes that answer a request in each header style.
//!
//! ```text
//! simple       magic error cookie [data]
//! structured   magic flags type cookie length payload
//! extended     magic flags type cookie offset length payload
//! ```
//!
//! A reply to a read carries data, so in the structured style it is a chunk; a
//! success without data is a simple reply even there, because clients read the
//! shorter header in one go. Errors are chunks with a sentence for people.

use tessera_engine::disk::{ChangeExtent, Extent, ExtentKind};

use super::constants::{
    EXTENDED_REPLY_MAGIC, ErrorCode, HeaderStyle, SIMPLE_REPLY_MAGIC, STATE_HOLE, STATE_ZERO,
    STRUCTURED_REPLY_MAGIC, chunk,
};
use super::contexts::STATE_CHANGED;
use super::cursor::{Fill, Put};

/// Bytes of a simple reply's header.
pub const SIMPLE_BYTES: usize = 16;
/// Bytes of a structured chunk's header.
pub const STRUCTURED_BYTES: usize = 20;
/// Bytes of an extended chunk's header.
pub const EXTENDED_BYTES: usize = 32;
/// The longest header in front of data.
pub const MAX_DATA_HEADER_BYTES: usize = EXTENDED_BYTES + 8;
/// The longest sentence put into an error chunk.
pub const MAX_MESSAGE_BYTES: usize = 256;

/// The request that is being answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addressee {
    /// Its cookie.
    pub cookie: u64,
    /// Its offset, which extended replies repeat.
    pub offset: u64,
}

/// Bytes in front of the data of a read.
pub fn data_header_bytes(style: HeaderStyle) -> usize {
    match style {
        HeaderStyle::Simple => SIMPLE_BYTES,
        HeaderStyle::Structured => STRUCTURED_BYTES + 8,
        HeaderStyle::Extended => EXTENDED_BYTES + 8,
    }
}

/// Bytes of a success without data.
pub fn success_bytes(style: HeaderStyle) -> usize {
    match style {
        HeaderStyle::Simple | HeaderStyle::Structured => SIMPLE_BYTES,
        HeaderStyle::Extended => EXTENDED_BYTES,
    }
}

fn put_simple(out: &mut impl Put, error: u32, cookie: u64) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// A chunk's header; `length` is at most 32 MiB and a few bytes.
fn put_chunk(
    out: &mut impl Put,
    style: HeaderStyle,
    to: Addressee,
    done: bool,
    kind: u16,
    length: usize,
) {
    let flags = if done { chunk::FLAG_DONE } else { 0 };
    let length = u32::try_from(length).expect("chunks are bounded by the largest transfer");
    match style {
        HeaderStyle::Extended => {
            out.put_u32(EXTENDED_REPLY_MAGIC);
            out.put_u16(flags);
            out.put_u16(kind);
            out.put_u64(to.cookie);
            out.put_u64(to.offset);
            out.put_u64(u64::from(length));
        }
        HeaderStyle::Simple | HeaderStyle::Structured => {
            out.put_u32(STRUCTURED_REPLY_MAGIC);
            out.put_u16(flags);
            out.put_u16(kind);
            out.put_u64(to.cookie);
            out.put_u32(length);
        }
    }
}

/// Writes the header that stands directly in front of `length` bytes of data
/// starting at `offset`. `out` has [`data_header_bytes`]; `done` marks the last
/// chunk, and is set only when the bytes are already there and cannot fail.
pub fn data_header(
    out: &mut [u8],
    style: HeaderStyle,
    to: Addressee,
    offset: u64,
    length: usize,
    done: bool,
) {
    let mut out = Fill::new(out);
    match style {
        HeaderStyle::Simple => put_simple(&mut out, 0, to.cookie),
        HeaderStyle::Structured | HeaderStyle::Extended => {
            put_chunk(&mut out, style, to, done, chunk::OFFSET_DATA, length + 8);
            out.put_u64(offset);
        }
    }
}

/// Writes a success without data into `out`, which has [`success_bytes`].
pub fn success(out: &mut [u8], style: HeaderStyle, to: Addressee) {
    let mut out = Fill::new(out);
    match style {
        HeaderStyle::Simple | HeaderStyle::Structured => put_simple(&mut out, 0, to.cookie),
        HeaderStyle::Extended => put_chunk(&mut out, style, to, true, chunk::NONE, 0),
    }
}

/// Appends the success of an empty read: even that is a chunk where chunks are
/// in use.
pub fn empty_read(out: &mut Vec<u8>, style: HeaderStyle, to: Addressee) {
    match style {
        HeaderStyle::Simple => put_simple(out, 0, to.cookie),
        HeaderStyle::Structured | HeaderStyle::Extended => {
            put_chunk(out, style, to, true, chunk::NONE, 0);
        }
    }
}

/// Appends an error as the last chunk of a reply; `message` is cut at
/// [`MAX_MESSAGE_BYTES`] and left out of simple replies.
pub fn error(out: &mut Vec<u8>, style: HeaderStyle, to: Addressee, code: ErrorCode, message: &str) {
    match style {
        HeaderStyle::Simple => put_simple(out, code.wire(), to.cookie),
        HeaderStyle::Structured | HeaderStyle::Extended => {
            let message = shorten(message);
            let length = u16::try_from(message.len()).expect("cut to a few hundred bytes");
            put_chunk(out, style, to, true, chunk::ERROR, 6 + message.len());
            out.put_u32(code.wire());
            out.put_u16(length);
            out.put(message.as_bytes());
        }
    }
}

fn shorten(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// The `base:allocation` flags of a run.
pub fn allocation_flags(kind: ExtentKind) -> u32 {
    match kind {
        ExtentKind::Data => 0,
        ExtentKind::Hole => STATE_HOLE | STATE_ZERO,
        ExtentKind::Zero => STATE_ZERO,
    }
}

/// What a context says of a run: its bytes and its flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Bytes; at least one.
    pub length: u64,
    /// As the context defines them.
    pub flags: u32,
}

impl From<&Extent> for Run {
    fn from(extent: &Extent) -> Self {
        Self {
            length: extent.length,
            flags: allocation_flags(extent.kind),
        }
    }
}

impl From<&ChangeExtent> for Run {
    fn from(extent: &ChangeExtent) -> Self {
        Self {
            length: extent.length,
            flags: match extent.changed {
                true => STATE_CHANGED,
                false => 0,
            },
        }
    }
}

/// Appends the chunk of one context that answers a block status request; `last`
/// is that of the last context. Neighbours of the same kind become one extent.
/// `runs` is not empty, none of them is, and in compact styles their sum fits 32
/// bits because the request's did.
pub fn block_status(
    out: &mut Vec<u8>,
    style: HeaderStyle,
    to: Addressee,
    context: u32,
    runs: &[Run],
    last: bool,
) {
    let (kind, fixed, each) = match style {
        HeaderStyle::Extended => (chunk::BLOCK_STATUS_EXT, 8, 16),
        HeaderStyle::Simple | HeaderStyle::Structured => (chunk::BLOCK_STATUS, 4, 8),
    };
    let joined = || runs.chunk_by(|a, b| a.flags == b.flags);
    let count = joined().count();
    put_chunk(out, style, to, last, kind, fixed + each * count);
    out.put_u32(context);
    if style == HeaderStyle::Extended {
        out.put_u32(u32::try_from(count).expect("bounded by the most extents in one answer"));
    }
    for run in joined() {
        let length = run.iter().map(|run| run.length).sum::<u64>();
        let flags = run[0].flags;
        match style {
            HeaderStyle::Extended => {
                out.put_u64(length);
                out.put_u64(u64::from(flags));
            }
            HeaderStyle::Simple | HeaderStyle::Structured => {
                out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
                out.put_u32(flags);
            }
        }
    }
}

#[cfg(test)]
mod tests;
