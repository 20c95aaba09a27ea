//! What files and directories look like: attributes and listings.

use std::time::SystemTime;

use fuser::{FileAttr, FileType, INodeNo};
use tessera_engine::api::VolumeInfo;

use crate::{inode::Inode, volumes::is_snapshot};

/// The name of the directory with the volumes.
pub const VOLUMES_NAME: &str = "volumes";
/// The name of the directory with the snapshots.
pub const SNAPSHOTS_NAME: &str = "snapshots";
/// Whole chunks cost least, and most volumes have chunks of this size.
const BLOCK_BYTES: u32 = 4096;
/// `st_blocks` counts in these.
const SECTOR_BYTES: u64 = 512;

/// Whose files they are and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The time that everything has until it is written.
    pub mounted: SystemTime,
    /// Nothing can be written.
    pub read_only: bool,
}

impl Owner {
    /// The attributes of a directory that has `directories` others in it.
    pub fn directory(&self, ino: INodeNo, directories: u32) -> FileAttr {
        FileAttr {
            nlink: 2 + directories,
            ..self.attributes(ino, FileType::Directory, 0o755)
        }
    }

    /// The attributes of a volume's file of `size` bytes; `None` if it cannot
    /// have any.
    pub fn volume(&self, volume: &VolumeInfo, size: u64, modified: SystemTime) -> Option<FileAttr> {
        let ino = Inode::Volume(volume.id).number()?;
        let mode = match is_snapshot(volume) {
            true => 0o400,
            false => 0o600,
        };
        Some(FileAttr {
            size,
            blocks: blocks(size, volume.logical_bytes),
            mtime: modified,
            ctime: modified,
            blksize: volume.chunk_bytes,
            ..self.attributes(ino, FileType::RegularFile, mode)
        })
    }

    fn attributes(&self, ino: INodeNo, kind: FileType, mode: u16) -> FileAttr {
        FileAttr {
            ino,
            size: 0,
            blocks: 0,
            atime: self.mounted,
            mtime: self.mounted,
            ctime: self.mounted,
            crtime: self.mounted,
            kind,
            perm: if self.read_only { mode & !0o222 } else { mode },
            nlink: 1,
            uid: self.uid,
            gid: self.gid,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }
}

/// `st_blocks` of a volume. What is mapped is known as of the last checkpoint
/// only, and programs such as tar take a file without blocks for one without
/// data: so there is always a block, and never more than the size needs, which
/// leaves the truth to `SEEK_DATA`.
fn blocks(size_bytes: u64, mapped_bytes: u64) -> u64 {
    let whole = size_bytes.div_ceil(SECTOR_BYTES);
    (mapped_bytes / SECTOR_BYTES).max(1).min(whole)
}

/// One line of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryLine {
    /// The file.
    pub ino: INodeNo,
    /// Where the next listing goes on after this line.
    pub cookie: u64,
    /// What it is.
    pub kind: FileType,
    /// Its name.
    pub name: String,
}

/// The lines of a directory after `cookie`; `volumes` are its files. Cookies of volumes are made of
/// their ids, so that a listing in pieces neither skips nor repeats any while
/// others come and go.
pub fn list(directory: Inode, volumes: &[VolumeInfo], cookie: u64) -> Option<Vec<DirectoryLine>> {
    let line = |inode: Inode, cookie, name: &str| {
        let kind = match inode {
            Inode::Root | Inode::Volumes | Inode::Snapshots => FileType::Directory,
            Inode::Volume(_) => FileType::RegularFile,
        };
        inode.number().map(|ino| DirectoryLine {
            ino,
            cookie,
            kind,
            name: name.to_owned(),
        })
    };
    let mut lines = vec![line(directory, 1, "."), line(Inode::Root, 2, "..")];
    match directory {
        Inode::Root => {
            lines.push(line(Inode::Volumes, 3, VOLUMES_NAME));
            lines.push(line(Inode::Snapshots, 4, SNAPSHOTS_NAME));
        }
        Inode::Volumes | Inode::Snapshots => {
            let mut volumes: Vec<&VolumeInfo> = volumes.iter().collect();
            volumes.sort_by_key(|volume| volume.id);
            let line = |volume: &VolumeInfo| {
                let cookie = volume.id.checked_add(3)?;
                line(Inode::Volume(volume.id), cookie, &volume.name)
            };
            lines.extend(volumes.into_iter().map(line));
        }
        Inode::Volume(_) => return None,
    }
    let mut lines: Vec<DirectoryLine> = lines.into_iter().flatten().collect();
    lines.retain(|line| line.cookie > cookie);
    Some(lines)
}

#[cfg(test)]
mod tests {
    use tessera_engine::api::{Compression, DedupMode, SpaceUse};

    use super::*;

    fn volume(id: u64, name: &str) -> VolumeInfo {
        VolumeInfo {
            name: name.to_owned(),
            id,
            size_bytes: 1 << 20,
            logical_bytes: 8192,
            chunk_bytes: 4096,
            dedup: DedupMode::Inline,
            compression: Compression::Lz4,
            allow_shrink: false,
            space: SpaceUse::default(),
        }
    }

    fn names(directory: Inode, volumes: &[VolumeInfo], cookie: u64) -> Vec<String> {
        let lines = list(directory, volumes, cookie).expect("a directory");
        lines.into_iter().map(|line| line.name).collect()
    }

    #[test]
    fn directories_list_themselves_and_what_is_in_them() {
        let volumes = [volume(7, "b"), volume(3, "a")];
        let top = [".", "..", "volumes", "snapshots"];
        assert_eq!(names(Inode::Root, &volumes, 0), top);
        let snapshots = [volume(8, "a@y"), volume(4, "b@x")];
        let inside = [".", "..", "b@x", "a@y"];
        assert_eq!(names(Inode::Snapshots, &snapshots, 0), inside);
        assert_eq!(names(Inode::Volumes, &volumes, 0), [".", "..", "a", "b"]);
        assert_eq!(list(Inode::Volume(3), &volumes, 0), None);
    }

    #[test]
    fn a_listing_in_pieces_survives_changes_between_them() {
        let before = [volume(1, "x"), volume(2, "y"), volume(5, "z")];
        let lines = list(Inode::Volumes, &before, 0).expect("a directory");
        let after_y = lines[3].cookie;
        assert_eq!(lines[3].name, "y");
        // "x" and "y" are deleted, "z" renamed, "a" made.
        let after = [volume(5, "w"), volume(6, "a")];
        assert_eq!(names(Inode::Volumes, &after, after_y), ["w", "a"]);
    }

    #[test]
    fn a_file_never_looks_empty_nor_fuller_than_it_is() {
        assert_eq!(blocks(0, 0), 0);
        assert_eq!(blocks(100, 0), 1);
        assert_eq!(blocks(1 << 20, 0), 1);
        assert_eq!(blocks(1 << 20, 8192), 16);
        assert_eq!(blocks(1 << 20, 1 << 30), 2048);
    }

    #[test]
    fn a_volume_is_a_file_of_its_size_for_its_owner_alone() {
        let mut owner = Owner {
            uid: 5,
            gid: 6,
            mounted: SystemTime::UNIX_EPOCH,
            read_only: false,
        };
        let later = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(9);
        let attributes = owner
            .volume(&volume(3, "a"), 1 << 20, later)
            .expect("attributes");
        assert_eq!((attributes.size, attributes.perm), (1 << 20, 0o600));
        assert_eq!((attributes.uid, attributes.gid), (5, 6));
        assert_eq!(attributes.mtime, later);
        assert_eq!(owner.volume(&volume(u64::MAX, "a"), 1, later), None);
        let snapshot = owner.volume(&volume(4, "a@s"), 1 << 20, later);
        assert_eq!(snapshot.expect("attributes").perm, 0o400);
        owner.read_only = true;
        let attributes = owner
            .volume(&volume(3, "a"), 1 << 20, later)
            .expect("attributes");
        assert_eq!(attributes.perm, 0o400);
    }
}
