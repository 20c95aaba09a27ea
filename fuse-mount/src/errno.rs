//! What a failed disk operation is called by the kernel.

pub use fuser::Errno;
use tessera_engine::disk::DiskError;

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
}
