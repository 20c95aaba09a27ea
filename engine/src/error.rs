//! The crate's one error.

use std::{error::Error, fmt};

use tessera_raid::{Kind, RaidError};

use crate::{
    disk::DiskError,
    map::{MapError, StoreErrorKind},
};

/// What went wrong, for code that decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The pool, volume or member does not exist.
    NotFound,
    /// Something of that name exists already.
    AlreadyExists,
    /// The caller asked for something that cannot be.
    InvalidArgument,
    /// Another process holds the pool, or clients use the volume.
    Busy,
    /// There is no room for more data.
    NoSpace,
    /// The pool was opened read-only.
    ReadOnly,
    /// The pool has stopped accepting writes.
    Failed,
    /// A device operation failed.
    Io,
    /// Something on the members does not verify.
    Damaged,
}

/// What went wrong, for people and for code.
#[derive(Debug)]
pub struct EngineError {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn Error + Send + Sync>>,
}

impl EngineError {
    /// An error with a sentence that names its object.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// Something on the members does not verify.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Damaged, message)
    }

    /// Adds what lies beneath.
    #[must_use]
    pub fn caused_by(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What a front end tells its client.
    pub fn to_disk_error(&self) -> DiskError {
        match self.kind {
            ErrorKind::NoSpace => DiskError::NoSpace,
            ErrorKind::ReadOnly => DiskError::ReadOnly,
            ErrorKind::NotFound => DiskError::Gone,
            _ => DiskError::Io(self.to_string()),
        }
    }
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for EngineError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn Error + 'static))
    }
}

impl From<RaidError> for EngineError {
    fn from(error: RaidError) -> Self {
        let kind = match error.kind() {
            Kind::Locked => ErrorKind::Busy,
            Kind::NoSpace => ErrorKind::NoSpace,
            Kind::ReadOnly => ErrorKind::ReadOnly,
            Kind::Stopped => ErrorKind::Failed,
            Kind::Io | Kind::Witness => ErrorKind::Io,
            Kind::Unrecoverable => ErrorKind::Damaged,
            Kind::AlreadyUsed => ErrorKind::AlreadyExists,
            _ => ErrorKind::InvalidArgument,
        };
        let message = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        Self {
            kind,
            message,
            source: None,
        }
    }
}

impl From<MapError> for EngineError {
    fn from(error: MapError) -> Self {
        let kind = match error.store_kind() {
            Some(StoreErrorKind::NoSpace) => ErrorKind::NoSpace,
            Some(StoreErrorKind::Stopped) => ErrorKind::Failed,
            Some(StoreErrorKind::Io) => ErrorKind::Io,
            Some(StoreErrorKind::Corrupt | StoreErrorKind::Freed) | None => ErrorKind::Damaged,
        };
        Self {
            kind,
            message: error.to_string(),
            source: Some(Box::new(error)),
        }
    }
}
