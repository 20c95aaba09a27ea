//! Where to mount: looked at before anything is done, cleared of what a killed
//! process left there.
//!
//! A server that is killed leaves its mount behind: every access fails with
//! ENOTCONN until somebody takes it away. The next start does, if it was ours:
//! the mount table says `tessera`, and the kernel says that nobody answers.

use std::{
    ffi::OsString,
    fs, io,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use rustix::{io::Errno, mount::UnmountFlags};
use thiserror::Error;

/// What our mounts are called in the mount table.
pub(crate) const SOURCE: &str = "tessera";
/// Dead mounts taken away at most, one on top of the other.
const DEAD_MAX: usize = 16;

/// Why a pool cannot be mounted or its mount not be ended.
#[derive(Debug, Error)]
pub enum MountError {
    /// There is nothing of that name.
    #[error("The mount point {} does not exist: make the directory first", .0.display())]
    Missing(PathBuf),
    /// It is something else.
    #[error("The mount point {} is not a directory", .0.display())]
    NotADirectory(PathBuf),
    /// A living mount of ours is there.
    #[error("The mount point {} is busy: a pool is mounted there already", .0.display())]
    Busy(PathBuf),
    /// The mount would hide files that the pool itself needs.
    #[error("The mount point {} would hide {}: use a directory beside it", mountpoint.display(), hidden.display())]
    Hides {
        /// Where to mount.
        mountpoint: PathBuf,
        /// What would disappear.
        hidden: PathBuf,
    },
    /// The system does not let us look.
    #[error("The mount point {} cannot be used: {reason}", path.display())]
    Unusable {
        /// Where to mount.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// The system does not mount.
    #[error("Nothing can be mounted on {}: {reason}", path.display())]
    Mount {
        /// Where to mount.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
    /// What is mounted cannot be taken away.
    #[error("The mount on {} cannot be ended: {reason}", path.display())]
    Unmount {
        /// Where it is.
        path: PathBuf,
        /// What the system says.
        reason: io::Error,
    },
}

/// A directory on which a pool can be mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mountpoint(PathBuf);

impl Mountpoint {
    /// Looks at `path`; takes away what a killed process of ours left there.
    ///
    /// # Errors
    /// It does not exist, is no directory, or a pool is mounted there.
    pub fn prepare(path: &Path) -> Result<Self, MountError> {
        let unusable = |reason: io::Error| match reason.kind() {
            io::ErrorKind::NotFound => MountError::Missing(path.to_owned()),
            io::ErrorKind::NotADirectory => MountError::NotADirectory(path.to_owned()),
            _ => MountError::Unusable {
                path: path.to_owned(),
                reason,
            },
        };
        let resolved = resolve(path).map_err(unusable)?;
        for _ in 0..DEAD_MAX {
            let table = fs::read("/proc/self/mountinfo").map_err(unusable)?;
            if !top_mount(&table, &resolved).is_some_and(|mount| mount.is_ours()) {
                break;
            }
            // Not a stat, which the kernel may answer from its cache.
            match rustix::fs::statfs(&resolved) {
                Err(Errno::NOTCONN) => detach(&resolved)?,
                _ => return Err(MountError::Busy(path.to_owned())),
            }
        }
        if fs::metadata(&resolved).map_err(unusable)?.is_dir() {
            Ok(Self(resolved))
        } else {
            Err(MountError::NotADirectory(path.to_owned()))
        }
    }

    /// Refuses if a mount here would hide `needed`.
    ///
    /// # Errors
    /// [`MountError::Hides`].
    pub fn refuse_to_hide(&self, needed: &Path) -> Result<(), MountError> {
        let real = needed.canonicalize().unwrap_or_else(|_| needed.to_owned());
        if real.starts_with(&self.0) {
            return Err(MountError::Hides {
                mountpoint: self.0.clone(),
                hidden: real,
            });
        }
        Ok(())
    }

    /// Its path, absolute and without symbolic links.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// `path` without symbolic links, even when what it names is a dead mount.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    match path.canonicalize() {
        Err(error) if error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()) => {
            let path = std::path::absolute(path)?;
            match (path.parent(), path.file_name()) {
                (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
                _ => Err(error),
            }
        }
        other => other,
    }
}

/// One mount among those that come and go at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountId(OsString);

impl MountId {
    /// The mount of ours that is seen at `path` now.
    pub(crate) fn seen_at(path: &Path) -> io::Result<Option<Self>> {
        let table = fs::read("/proc/self/mountinfo")?;
        let ours = top_mount(&table, path).filter(TableLine::is_ours);
        Ok(ours.map(|mount| Self(mount.id)))
    }
}

/// Takes the mount at `path` away; lazily if somebody is in it.
///
/// # Errors
/// What the system says.
pub(crate) fn unmount(path: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(path, UnmountFlags::empty()) {
        Ok(()) => Ok(()),
        Err(Errno::BUSY | Errno::PERM) => detach(path),
        Err(error) => Err(MountError::Unmount {
            path: path.to_owned(),
            reason: error.into(),
        }),
    }
}

/// Takes the mount at `path` away, even while somebody is in it.
///
/// # Errors
/// What the system says.
pub(crate) fn detach(path: &Path) -> Result<(), MountError> {
    let unmount = |reason| MountError::Unmount {
        path: path.to_owned(),
        reason,
    };
    match rustix::mount::unmount(path, UnmountFlags::DETACH) {
        Ok(()) => return Ok(()),
        // Only root may; for others there is a helper with that right.
        Err(Errno::PERM) => {}
        Err(error) => return Err(unmount(error.into())),
    }
    let helper = Command::new("fusermount3")
        .args(["-u", "-z", "-q", "--"])
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(unmount)?;
    if helper.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&helper.stderr).trim().to_owned();
    Err(unmount(io::Error::other(said)))
}

/// One line of the mount table, as far as it matters.
#[derive(Debug, PartialEq, Eq)]
struct TableLine {
    id: OsString,
    kind: OsString,
    source: OsString,
}

impl TableLine {
    fn is_ours(&self) -> bool {
        let kind = self.kind.as_bytes();
        (kind == b"fuse" || kind.starts_with(b"fuse.")) && self.source == SOURCE
    }
}

/// The mount that is seen at `path`: the last one listed there.
fn top_mount(table: &[u8], path: &Path) -> Option<TableLine> {
    let parse = |line: &[u8]| {
        let mut fields = line.split(|&byte| byte == b' ');
        let id = unescape(fields.next()?);
        // Parent, device and root, then where it is mounted.
        if unescape(fields.nth(3)?) != path.as_os_str() {
            return None;
        }
        // Options, any number of optional fields, a dash, type, source.
        fields.find(|field| *field == b"-")?;
        Some(TableLine {
            id,
            kind: unescape(fields.next()?),
            source: unescape(fields.next()?),
        })
    };
    table.rsplit(|&byte| byte == b'\n').find_map(parse)
}

/// The table writes spaces, tabs, line ends and backslashes as `\ooo`.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
        22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
        40 22 0:35 / /mnt/a rw,nosuid shared:9 master:2 - fuse.tessera tessera rw,user_id=0\n\
        41 22 0:36 / /mnt/b rw - fuse tessera rw\n\
        42 22 0:37 / /mnt/b rw - tmpfs tmpfs rw\n\
        43 22 0:38 / /mnt/with\\040space\\134 rw - fuse tessera rw\n\
        44 22 0:39 / /mnt/d rw - fuse.sshfs host: rw\n\
        garbage\n";

    fn ours(path: &str) -> Option<bool> {
        top_mount(TABLE, Path::new(path)).map(|mount| mount.is_ours())
    }

    #[test]
    fn the_mount_table_tells_our_mounts_from_others() {
        assert_eq!(ours("/mnt/a"), Some(true));
        assert_eq!(ours("/mnt/with space\\"), Some(true));
        assert_eq!(ours("/mnt/d"), Some(false));
        assert_eq!(ours("/"), Some(false));
        assert_eq!(ours("/mnt"), None);
        // What covers a mount counts, not what is covered.
        assert_eq!(ours("/mnt/b"), Some(false));
    }

    #[test]
    fn a_mount_point_is_an_existing_directory() {
        let scratch = tempfile::tempdir().unwrap();
        let missing = scratch.path().join("missing");
        assert!(matches!(
            Mountpoint::prepare(&missing),
            Err(MountError::Missing(path)) if path == missing
        ));
        let file = scratch.path().join("file");
        fs::write(&file, b"").unwrap();
        for path in [file.clone(), file.join("below")] {
            assert!(matches!(
                Mountpoint::prepare(&path),
                Err(MountError::NotADirectory(_))
            ));
        }
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(scratch.path(), &link).unwrap();
        let through = Mountpoint::prepare(&link).unwrap();
        assert_eq!(through.path(), scratch.path().canonicalize().unwrap());
    }

    #[test]
    fn a_mount_hides_nothing_that_the_pool_needs() {
        let scratch = tempfile::tempdir().unwrap();
        let pool = scratch.path().join("pool");
        let inside = pool.join("mnt");
        fs::create_dir_all(&inside).unwrap();
        for (path, allowed) in [
            (pool.as_path(), false),
            (scratch.path(), false),
            (&inside, true),
        ] {
            let mountpoint = Mountpoint::prepare(path).unwrap();
            assert_eq!(
                mountpoint.refuse_to_hide(&pool).is_ok(),
                allowed,
                "{path:?}"
            );
        }
    }
}
