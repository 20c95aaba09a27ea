//! The numbers of the NBD protocol, under the names its document gives them.

use tessera_engine::disk::{DiskError, MAX_TRANSFER_BYTES};

/// `NBDMAGIC`: the first eight bytes a server sends.
pub const INIT_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`: follows it, and starts every option.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts a compact request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a structured reply chunk.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;
/// Starts an extended request.
pub const EXTENDED_REQUEST_MAGIC: u32 = 0x21e4_1c71;
/// Starts an extended reply chunk.
pub const EXTENDED_REPLY_MAGIC: u32 = 0x6e8a_278c;

/// Handshake flag, both ways: fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag, both ways: no 124 zero bytes after `EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Options a client may send.
pub mod option {
    /// Choose an export and start, without a way to report an error.
    pub const EXPORT_NAME: u32 = 1;
    /// End the negotiation.
    pub const ABORT: u32 = 2;
    /// Name all exports.
    pub const LIST: u32 = 3;
    /// Switch to TLS.
    pub const STARTTLS: u32 = 5;
    /// Describe an export.
    pub const INFO: u32 = 6;
    /// Describe an export and start.
    pub const GO: u32 = 7;
    /// Use structured replies.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Name the metadata contexts of an export.
    pub const LIST_META_CONTEXT: u32 = 9;
    /// Choose metadata contexts for `BLOCK_STATUS`.
    pub const SET_META_CONTEXT: u32 = 10;
    /// Use 32-byte headers and 64-bit lengths.
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Types of replies to options.
pub mod option_reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// One export of a list.
    pub const SERVER: u32 = 2;
    /// One piece of information about an export.
    pub const INFO: u32 = 3;
    /// One metadata context.
    pub const META_CONTEXT: u32 = 4;
    const ERROR: u32 = 1 << 31;
    /// The option is unknown.
    pub const ERR_UNSUP: u32 = ERROR + 1;
    /// The option is malformed or out of place.
    pub const ERR_INVALID: u32 = ERROR + 3;
    /// Nothing else is possible before TLS.
    pub const ERR_TLS_REQD: u32 = ERROR + 5;
    /// There is no such export.
    pub const ERR_UNKNOWN: u32 = ERROR + 6;
    /// The server is shutting down.
    pub const ERR_SHUTDOWN: u32 = ERROR + 7;
    /// The option's payload is too long.
    pub const ERR_TOO_BIG: u32 = ERROR + 9;
    /// Extended headers are in force and cannot be given up.
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR + 10;
}

/// Information items about an export.
pub mod info {
    /// Size and transmission flags.
    pub const EXPORT: u16 = 0;
    /// The export's own name.
    pub const NAME: u16 = 1;
    /// One line for people.
    pub const DESCRIPTION: u16 = 2;
    /// Smallest, preferred and largest transfer.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Transmission flags of an export.
pub mod transmission_flag {
    /// Always set.
    pub const HAS_FLAGS: u16 = 1 << 0;
    /// Writes fail.
    pub const READ_ONLY: u16 = 1 << 1;
    /// `FLUSH` works.
    pub const SEND_FLUSH: u16 = 1 << 2;
    /// The command flag `FUA` works.
    pub const SEND_FUA: u16 = 1 << 3;
    /// `TRIM` works.
    pub const SEND_TRIM: u16 = 1 << 5;
    /// `WRITE_ZEROES` and `NO_HOLE` work.
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    /// The command flag `DF` works.
    pub const SEND_DF: u16 = 1 << 7;
    /// A flush on one connection covers all.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    /// `CACHE` works.
    pub const SEND_CACHE: u16 = 1 << 10;
    /// The command flag `FAST_ZERO` works.
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    /// `BLOCK_STATUS` takes a payload that chooses contexts.
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// Commands.
pub mod command {
    /// Read bytes.
    pub const READ: u16 = 0;
    /// Write bytes.
    pub const WRITE: u16 = 1;
    /// End the session.
    pub const DISC: u16 = 2;
    /// Make earlier writes durable.
    pub const FLUSH: u16 = 3;
    /// Forget a range.
    pub const TRIM: u16 = 4;
    /// Bring a range into the cache.
    pub const CACHE: u16 = 5;
    /// Zero a range.
    pub const WRITE_ZEROES: u16 = 6;
    /// Ask what a range is made of.
    pub const BLOCK_STATUS: u16 = 7;
}

/// Command flags.
pub mod command_flag {
    /// Durable before it is answered.
    pub const FUA: u16 = 1 << 0;
    /// Keep the range allocated.
    pub const NO_HOLE: u16 = 1 << 1;
    /// Answer a read in one piece.
    pub const DF: u16 = 1 << 2;
    /// One extent only.
    pub const REQ_ONE: u16 = 1 << 3;
    /// Zero quickly or not at all.
    pub const FAST_ZERO: u16 = 1 << 4;
    /// The header's length counts payload bytes.
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Structured and extended replies.
pub mod chunk {
    /// The last chunk of a reply.
    pub const FLAG_DONE: u16 = 1 << 0;
    /// Nothing but success.
    pub const NONE: u16 = 0;
    /// Bytes read.
    pub const OFFSET_DATA: u16 = 1;
    /// A range that reads as zeroes.
    pub const OFFSET_HOLE: u16 = 2;
    /// 32-bit extents.
    pub const BLOCK_STATUS: u16 = 5;
    /// 64-bit extents.
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// An error.
    pub const ERROR: u16 = (1 << 15) + 1;
    /// An error at an offset.
    pub const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// The metadata context that every export has.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its identifier on every connection.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// `base:allocation`: nothing is stored.
pub const STATE_HOLE: u32 = 1 << 0;
/// `base:allocation`: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// The longest string the protocol permits.
pub const MAX_STRING_BYTES: usize = 4096;
/// The longest option payload taken in (CVE-2017-15119); longer ones are
/// answered with `ERR_TOO_BIG` and skipped.
pub const MAX_OPTION_BYTES: usize = 64 << 10;
/// Options a client may send before it is dropped: enough to ask two questions
/// about each of hundreds of exports, too few to keep a server busy for ever.
pub const MAX_OPTIONS: u32 = 1024;
/// The longest payload of one request.
pub const MAX_PAYLOAD_BYTES: u64 = MAX_TRANSFER_BYTES as u64;
/// The longest refused payload that is read and thrown away; a client that
/// announces more is disconnected.
pub const MAX_DRAIN_BYTES: u64 = 2 * MAX_PAYLOAD_BYTES;
/// Most extents in one answer. The protocol allows 2^20; fewer bound the memory
/// of an answer to 1 MiB, and clients ask again from where it ends.
pub const MAX_EXTENTS: usize = 1 << 16;
/// The smallest request: any byte.
pub const MIN_BLOCK_BYTES: u32 = 1;
/// The preferred request size. Not the stripe: nbdcopy would raise its
/// granularity to it.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Which headers a connection uses after negotiation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderStyle {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, structured replies where they carry data.
    Structured,
    /// 32-byte headers both ways.
    Extended,
}

/// The errors a reply can carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The export is read-only.
    Perm,
    /// Bytes cannot be read or written.
    Io,
    /// The request makes no sense.
    Invalid,
    /// A write has no room, or lies past the end.
    NoSpace,
    /// Too large to answer in one piece.
    Overflow,
    /// Cannot be done quickly, as demanded.
    NotSupported,
    /// The server or the disk is going away.
    Shutdown,
}

impl ErrorCode {
    /// The number on the wire.
    pub fn wire(self) -> u32 {
        match self {
            Self::Perm => 1,
            Self::Io => 5,
            Self::Invalid => 22,
            Self::NoSpace => 28,
            Self::Overflow => 75,
            Self::NotSupported => 95,
            Self::Shutdown => 108,
        }
    }

    /// What a disk's error is called here. `writing` tells a write from the
    /// other commands: past the end a write meets `NoSpace`, the rest `Invalid`.
    pub fn from_disk(error: &DiskError, writing: bool) -> Self {
        match error {
            DiskError::OutOfRange { .. } if writing => Self::NoSpace,
            DiskError::OutOfRange { .. } => Self::Invalid,
            DiskError::ReadOnly => Self::Perm,
            DiskError::NoSpace => Self::NoSpace,
            DiskError::Io(_) => Self::Io,
            DiskError::NotFast => Self::NotSupported,
            DiskError::Gone => Self::Shutdown,
        }
    }
}
