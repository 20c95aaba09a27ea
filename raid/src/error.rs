//! The crate's one error: a small kind to match on, a sentence for the user
//! that names the object, and the operating system's error behind it.

use std::{fmt, io, sync::Arc};

/// What went wrong, for code that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The members that can be used do not hold all data.
    TooFewMembers,
    /// Members of more than one pool were given.
    DifferentPools,
    /// One file or device, or two copies of one member, were given twice.
    DuplicateMember,
    /// The file or device does not carry a superblock.
    NotAMember,
    /// A member to be created holds something already.
    AlreadyUsed,
    /// The format is newer than this program.
    NewerFormat,
    /// Another process has the member open.
    Locked,
    /// Two sides of a pool have each gone on without the other.
    Diverged,
    /// Every member given is behind what the witness remembers.
    Behind,
    /// Safe only if the user knows better: `force` is needed.
    NeedsForce,
    /// A member's file system is full. Nothing failed; try again later.
    NoSpace,
    /// The array was opened read-only.
    ReadOnly,
    /// Writes have stopped for good in this process; reads still try.
    Stopped,
    /// A device operation failed.
    Io,
    /// The redundancy left does not give the bytes back.
    Unrecoverable,
    /// The caller asked for something that cannot be.
    InvalidArgument,
    /// The witness file cannot be read or written.
    Witness,
    /// A device does not answer in time.
    Stalled,
    /// What was a target is none any more: it failed or was detached.
    TargetLost,
    /// The member holds the range, but it is not in use.
    NotInUse,
}

/// What went wrong, for people and for code.
///
/// Cloneable, because one failed device operation can be the outcome of
/// several requests.
#[derive(Debug, Clone)]
pub struct RaidError {
    kind: Kind,
    message: String,
    source: Option<Arc<io::Error>>,
}

impl RaidError {
    /// An error with a sentence that names its object.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the operating system's error.
    #[must_use]
    pub fn with_source(mut self, source: io::Error) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// A failed device operation.
    pub fn io(message: impl Into<String>, source: io::Error) -> Self {
        Self::new(Kind::Io, message).with_source(source)
    }

    /// What to match on.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

impl fmt::Display for RaidError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for RaidError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
