//! Requests: finding them in a stream of bytes, and deciding what they ask for.

use super::constants::{
    EXTENDED_REQUEST_MAGIC, ErrorCode, HeaderStyle, MAX_PAYLOAD_BYTES, REQUEST_MAGIC, command,
    command_flag,
};
use super::contexts::ContextSet;
use super::cursor::Cursor;

/// Bytes of a compact request header.
pub const COMPACT_BYTES: usize = 28;
/// Bytes of an extended request header.
pub const EXTENDED_BYTES: usize = 32;
/// The longest `BLOCK_STATUS` payload looked at; a longer one cannot name
/// distinct contexts that exist.
pub const MAX_QUERY_BYTES: u64 = 8 + 4 * 64;

/// A request as it stands on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// The command.
    pub command: u16,
    /// The client's name for the request, returned in the reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range, or of the payload.
    pub length: u64,
}

/// What the start of a buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed {
    /// Part of a header.
    Incomplete,
    /// A header.
    Header(RequestHeader),
    /// Something else: the stream cannot be followed any further.
    BadMagic(u32),
}

/// Bytes of a request header.
pub fn header_bytes(style: HeaderStyle) -> usize {
    match style {
        HeaderStyle::Simple | HeaderStyle::Structured => COMPACT_BYTES,
        HeaderStyle::Extended => EXTENDED_BYTES,
    }
}

/// Reads the header at the start of `input`; its payload follows it.
pub fn parse(style: HeaderStyle, input: &[u8]) -> Parsed {
    let mut cursor = Cursor(input);
    let Some(magic) = cursor.u32() else {
        return Parsed::Incomplete;
    };
    let expected = match style {
        HeaderStyle::Simple | HeaderStyle::Structured => REQUEST_MAGIC,
        HeaderStyle::Extended => EXTENDED_REQUEST_MAGIC,
    };
    if magic != expected {
        return Parsed::BadMagic(magic);
    }
    let header = (|| {
        Some(RequestHeader {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: match style {
                HeaderStyle::Simple | HeaderStyle::Structured => u64::from(cursor.u32()?),
                HeaderStyle::Extended => cursor.u64()?,
            },
        })
    })();
    header.map_or(Parsed::Incomplete, Parsed::Header)
}

impl RequestHeader {
    /// Bytes of payload that follow the header, whatever comes of the request.
    ///
    /// With extended headers the flag `PAYLOAD_LEN` announces a payload, but
    /// QEMU (seen with 10.0) leaves it out of its writes and sends the payload
    /// all the same. So a write has a payload with or without the flag.
    pub fn payload_bytes(&self, style: HeaderStyle) -> u64 {
        let flagged = style == HeaderStyle::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        let carries = flagged || self.command == command::WRITE;
        if carries { self.length } else { 0 }
    }
}

/// What was agreed on, and what the export is right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// The headers in use.
    pub style: HeaderStyle,
    /// The contexts that were chosen for this export.
    pub contexts: ContextSet,
    /// Writes are refused.
    pub read_only: bool,
    /// The export's size in bytes.
    pub size: u64,
}

/// What a valid request asks for. Ranges lie within the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Read at most [`MAX_PAYLOAD_BYTES`].
    Read {
        /// Answer with one chunk.
        whole: bool,
    },
    /// Write the payload, at most [`MAX_PAYLOAD_BYTES`].
    Write {
        /// Durable before it is answered.
        fua: bool,
    },
    /// End the session after everything before it.
    Disconnect,
    /// Make everything answered so far durable.
    Flush,
    /// Forget the range.
    Trim {
        /// Durable before it is answered.
        fua: bool,
    },
    /// Zero the range.
    WriteZeroes {
        /// Durable before it is answered.
        fua: bool,
        /// Keep it allocated.
        keep_allocated: bool,
    },
    /// Bring the range into the cache.
    Cache,
    /// Tell what the range is made of.
    BlockStatus {
        /// One extent only.
        one: bool,
    },
    /// The same; range and contexts stand in the payload, see [`Terms::query`].
    BlockStatusQuery {
        /// One extent only.
        one: bool,
    },
}

impl Terms {
    /// Decides what a request asks for, or with which error it is refused. The
    /// payload, if any, has to be consumed either way.
    pub fn validate(&self, header: &RequestHeader) -> Result<Action, ErrorCode> {
        let has = |flag| header.flags & flag != 0;
        let extended = self.style == HeaderStyle::Extended;
        let allowed = command_flag::FUA
            | match header.command {
                command::READ if self.style != HeaderStyle::Simple => command_flag::DF,
                command::WRITE if extended => command_flag::PAYLOAD_LEN,
                command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
                command::BLOCK_STATUS if extended && !self.contexts.is_empty() => {
                    command_flag::REQ_ONE | command_flag::PAYLOAD_LEN
                }
                command::BLOCK_STATUS => command_flag::REQ_ONE,
                // A client that wants to leave is let go whatever else it says.
                command::DISC => return Ok(Action::Disconnect),
                _ => 0,
            };
        if header.flags & !allowed != 0 {
            return Err(ErrorCode::Invalid);
        }
        let fua = has(command_flag::FUA);
        match header.command {
            command::READ => {
                self.check_range(header.offset, header.length, ErrorCode::Invalid)?;
                if header.length > MAX_PAYLOAD_BYTES {
                    return Err(match self.style {
                        HeaderStyle::Simple => ErrorCode::Invalid,
                        HeaderStyle::Structured | HeaderStyle::Extended => ErrorCode::Overflow,
                    });
                }
                Ok(Action::Read {
                    whole: has(command_flag::DF),
                })
            }
            command::WRITE => {
                self.check_writable()?;
                if header.length > MAX_PAYLOAD_BYTES {
                    return Err(ErrorCode::Invalid);
                }
                self.check_range(header.offset, header.length, ErrorCode::NoSpace)?;
                Ok(Action::Write { fua })
            }
            command::FLUSH => {
                if header.offset != 0 || header.length != 0 {
                    return Err(ErrorCode::Invalid);
                }
                Ok(Action::Flush)
            }
            command::TRIM => {
                self.check_writable()?;
                self.check_range(header.offset, header.length, ErrorCode::Invalid)?;
                Ok(Action::Trim { fua })
            }
            command::CACHE => {
                self.check_range(header.offset, header.length, ErrorCode::Invalid)?;
                Ok(Action::Cache)
            }
            command::WRITE_ZEROES => {
                self.check_writable()?;
                self.check_range(header.offset, header.length, ErrorCode::Invalid)?;
                Ok(Action::WriteZeroes {
                    fua,
                    keep_allocated: has(command_flag::NO_HOLE),
                })
            }
            command::BLOCK_STATUS => {
                if self.contexts.is_empty() {
                    return Err(ErrorCode::Invalid);
                }
                let one = has(command_flag::REQ_ONE);
                if has(command_flag::PAYLOAD_LEN) {
                    if header.length > MAX_QUERY_BYTES {
                        return Err(ErrorCode::Invalid);
                    }
                    return Ok(Action::BlockStatusQuery { one });
                }
                self.check_status_range(header.offset, header.length)?;
                Ok(Action::BlockStatus { one })
            }
            _ => Err(ErrorCode::Invalid),
        }
    }

    /// Reads the payload of a [`Action::BlockStatusQuery`]: the length of the
    /// range asked about, and the contexts. Each may be named once and must be
    /// one that was chosen.
    pub fn query(&self, offset: u64, payload: &[u8]) -> Result<(u64, ContextSet), ErrorCode> {
        let mut cursor = Cursor(payload);
        let length = cursor.u64().ok_or(ErrorCode::Invalid)?;
        let mut asked = ContextSet::NONE;
        while !cursor.is_empty() {
            let id = cursor.u32().ok_or(ErrorCode::Invalid)?;
            if !self.contexts.has(id) || !asked.insert(id) {
                return Err(ErrorCode::Invalid);
            }
        }
        if asked.is_empty() {
            return Err(ErrorCode::Invalid);
        }
        self.check_status_range(offset, length)?;
        Ok((length, asked))
    }

    fn check_writable(&self) -> Result<(), ErrorCode> {
        if self.read_only {
            Err(ErrorCode::Perm)
        } else {
            Ok(())
        }
    }

    fn check_range(&self, offset: u64, length: u64, error: ErrorCode) -> Result<(), ErrorCode> {
        match offset.checked_add(length) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(error),
        }
    }

    /// An empty range has no extent to answer with.
    fn check_status_range(&self, offset: u64, length: u64) -> Result<(), ErrorCode> {
        if length == 0 {
            return Err(ErrorCode::Invalid);
        }
        self.check_range(offset, length, ErrorCode::Invalid)
    }
}

#[cfg(test)]
mod tests;
