//! What a failed operation is called by the kernel.

pub use fuser::Errno;
use tessera_engine::{EngineError, ErrorKind, disk::DiskError};

/// The error number of a disk's refusal or failure.
pub fn errno_of(error: &DiskError) -> Errno {
    match error {
        DiskError::OutOfRange { .. } => Errno::EINVAL,
        DiskError::ReadOnly => Errno::EROFS,
        DiskError::NoSpace => Errno::ENOSPC,
        DiskError::NotFast => Errno::EOPNOTSUPP,
        // What has gone away is not coming back under this handle.
        DiskError::Io(_) | DiskError::Gone => Errno::EIO,
    }
}

/// The error number of a management operation's refusal or failure.
pub fn errno_of_management(error: &EngineError) -> Errno {
    match error.kind() {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::AlreadyExists => Errno::EEXIST,
        ErrorKind::InvalidArgument => Errno::EINVAL,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::Failed | ErrorKind::Io | ErrorKind::Damaged => {
            tracing::warn!(%error, "a change through the mount failed");
            Errno::EIO
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disk_error_has_its_number() {
        let range = DiskError::OutOfRange {
            offset: 1,
            length: 2,
            size: 2,
        };
        for (error, errno) in [
            (range, Errno::EINVAL),
            (DiskError::ReadOnly, Errno::EROFS),
            (DiskError::NoSpace, Errno::ENOSPC),
            (DiskError::Io("rot".into()), Errno::EIO),
            (DiskError::NotFast, Errno::EOPNOTSUPP),
            (DiskError::Gone, Errno::EIO),
        ] {
            assert_eq!(errno_of(&error), errno, "{error}");
        }
    }

    #[test]
    fn refusals_of_management_keep_their_meaning() {
        for (kind, errno) in [
            (ErrorKind::NotFound, Errno::ENOENT),
            (ErrorKind::AlreadyExists, Errno::EEXIST),
            (ErrorKind::InvalidArgument, Errno::EINVAL),
            (ErrorKind::Busy, Errno::EBUSY),
            (ErrorKind::NoSpace, Errno::ENOSPC),
            (ErrorKind::ReadOnly, Errno::EROFS),
            (ErrorKind::Damaged, Errno::EIO),
        ] {
            let error = EngineError::new(kind, "It went wrong");
            assert_eq!(errno_of_management(&error), errno, "{kind:?}");
        }
    }
}
