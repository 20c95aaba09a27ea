//! Why a management operation failed, in a form that crosses the control
//! socket unchanged: the same sentence whichever process met the failure.

use std::error::Error;

use serde::{Deserialize, Serialize};
use tessera_engine::{EngineError, ErrorKind};

/// What kind of failure it is, as the control socket names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// No such pool or volume.
    NotFound,
    /// The name is taken.
    AlreadyExists,
    /// The request makes no sense or would lose data without being told to.
    InvalidArgument,
    /// In use: the pool by another process, or the volume by a client.
    Busy,
    /// The pool has no room.
    NoSpace,
    /// The pool was opened read-only.
    ReadOnly,
    /// The pool has stopped writing.
    Failed,
    /// A device or the system failed.
    Io,
    /// What is stored is damaged.
    Damaged,
}

/// A failed management operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The kind.
    pub(crate) kind: Kind,
    /// One sentence without a final stop.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failure {}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let kind = match error.kind() {
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::AlreadyExists,
            ErrorKind::InvalidArgument => Kind::InvalidArgument,
            ErrorKind::Busy => Kind::Busy,
            ErrorKind::NoSpace => Kind::NoSpace,
            ErrorKind::ReadOnly => Kind::ReadOnly,
            ErrorKind::Failed => Kind::Failed,
            ErrorKind::Io => Kind::Io,
            ErrorKind::Damaged => Kind::Damaged,
        };
        Self {
            kind,
            message: sentence(&error),
        }
    }
}

/// An error and its sources, each said once.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Layered(&'static str, Option<Box<Layered>>);

    impl std::fmt::Display for Layered {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Layered {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as &dyn Error)
        }
    }

    #[test]
    fn every_cause_is_said_once() {
        let inner = Layered("no such file", None);
        let repeated = Layered("disk0.img: no such file", Some(Box::new(inner)));
        let outer = Layered("The pool cannot be opened", Some(Box::new(repeated)));
        assert_eq!(
            sentence(&outer),
            "The pool cannot be opened: disk0.img: no such file"
        );
    }
}
