//! Answers the kernel: each call is looked up, executed and replied to in the
//! thread that received it.
//!
//! Two are exceptions. Flushes are replied to by the committer, so that a
//! waiting `fsync` holds no thread: there are only a few. Small reads are
//! gathered while others wait for the members ([`crate::combine`]).

use std::{
    ffi::OsStr,
    io,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};
use parking_lot::Mutex;
use tessera_engine::disk::DiskError;

use crate::{
    entry,
    errno::{Errno, errno_of},
    inode::Inode,
    shared::{Read, Shared},
};

/// How long the kernel may believe names and attributes: not at all, because
/// other processes change volumes, through the control socket. Asking costs
/// nothing on the data path.
const BELIEVED_FOR: Duration = Duration::ZERO;
/// The longest read or write; the kernel's own limit without more settings.
const TRANSFER_BYTES: u32 = 1 << 20;
/// `statfs` counts in these.
const STATFS_BLOCK: u32 = 4096;
/// Asynchronous requests that the kernel hands out at a time; its own default
/// of 12 would be the queue depth of every program together.
const BACKGROUND_MAX: u16 = 256;
const NAME_BYTES_MAX: u32 = 128;
/// O_SYNC includes O_DSYNC on Linux.
const O_DSYNC: i32 = 0o10000;

/// What is asked of `setattr` and cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Wanted {
    /// Whose a file is and who may use it follows from who mounts.
    fn changes(&self, now: &FileAttr) -> bool {
        self.mode
            .is_some_and(|mode| mode & 0o7777 != u32::from(now.perm))
            || self.uid.is_some_and(|uid| uid != now.uid)
            || self.gid.is_some_and(|gid| gid != now.gid)
    }
}

/// Called once, when no more requests will come.
pub(crate) type Ended = Box<dyn FnOnce() + Send>;

/// The file system as the kernel calls it.
pub(crate) struct TesseraFs {
    shared: Arc<Shared>,
    ended: Mutex<Option<Ended>>,
}

impl TesseraFs {
    pub(crate) fn new(shared: Arc<Shared>, ended: Ended) -> Self {
        Self {
            shared,
            ended: Mutex::new(Some(ended)),
        }
    }
}

fn answer(reply: ReplyEmpty) -> impl FnOnce(Result<(), DiskError>) + Send {
    |done| match done {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno_of(&error)),
    }
}

/// Attributes and their names are asked for twice: how long, then what.
fn answer_sized(reply: ReplyXattr, size: u32, value: &[u8]) {
    let length = u32::try_from(value.len()).expect("attributes are short");
    match size {
        0 => reply.size(length),
        room if room < length => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// Past the page cache, so that what the kernel acknowledges the pool has
/// taken; and side by side, since disks take writes in any order.
fn open_flags() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

impl Filesystem for TesseraFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Both are refused with the nearest value that is possible.
        if let Err(nearest) = config.set_max_write(TRANSFER_BYTES) {
            tracing::debug!(nearest, "the kernel wants another write size");
        }
        if let Err(nearest) = config.set_max_background(BACKGROUND_MAX) {
            tracing::debug!(nearest, "the kernel wants another queue length");
        }
        for (capability, without) in [
            // Linux 6.6; only private mappings otherwise.
            (
                InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
                "mounted files cannot be mapped shared",
            ),
            (
                InitFlags::FUSE_ASYNC_DIO,
                "direct I/O is executed one by one",
            ),
            // O_TRUNC is then ours to judge, not a truncation to zero.
            (InitFlags::FUSE_ATOMIC_O_TRUNC, "O_TRUNC is refused"),
            // Nothing here is ever set-user-id: the kernel need not ask for an
            // attribute about it before every write.
            (
                InitFlags::FUSE_HANDLE_KILLPRIV_V2,
                "every write asks for an attribute first",
            ),
            (
                InitFlags::FUSE_PARALLEL_DIROPS,
                "lookups are made one by one",
            ),
        ] {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!("on this kernel {without}");
            }
        }
        Ok(())
    }

    fn destroy(&mut self) {
        if let Some(ended) = self.ended.get_mut().take() {
            ended();
        }
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.shared.lookup(parent, name) {
            Ok(attributes) => reply.entry(&BELIEVED_FOR, &attributes, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.shared.attributes(ino) {
            Ok(attributes) => reply.attr(&BELIEVED_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let wanted = Wanted { mode, uid, gid };
        let set = || {
            if wanted.changes(&self.shared.attributes(ino)?) {
                return Err(Errno::EPERM);
            }
            if let Some(size) = size {
                self.shared.truncate(ino, size)?;
            }
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => self.shared.set_modified(ino, time),
                Some(TimeOrNow::Now) => self.shared.set_modified(ino, SystemTime::now()),
                None => {}
            }
            self.shared.attributes(ino)
        };
        match set() {
            Ok(attributes) => reply.attr(&BELIEVED_FOR, &attributes),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.shared.open(ino, flags) {
            Ok(handle) => reply.opened(handle, open_flags()),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.shared.file(fh) {
            Ok(file) => self.shared.read(Read {
                file,
                offset,
                length: size.min(TRANSFER_BYTES),
                reply,
            }),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = match self.shared.with(fh, |file| file.write(offset, data)) {
            Ok(written) => u32::try_from(written).expect("no longer than a request"),
            Err(errno) => return reply.error(errno),
        };
        // The kernel leaves O_SYNC to us on files that bypass its cache.
        if flags.0 & O_DSYNC == 0 {
            return reply.written(written);
        }
        match self.shared.file(fh) {
            Ok(file) => file.flush(Box::new(move |done| match done {
                Ok(()) => reply.written(written),
                Err(error) => reply.error(errno_of(&error)),
            })),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        match self.shared.settled(fh) {
            Ok(file) => file.flush_if_dirty(Box::new(answer(reply))),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.shared.settled(fh) {
            Ok(file) => file.flush(Box::new(answer(reply))),
            Err(errno) => reply.error(errno),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let file = self.shared.release(fh);
        match file {
            Some(file) => file.flush_if_dirty(Box::new(answer(reply))),
            None => reply.error(Errno::EBADF),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match self
            .shared
            .with(fh, |file| file.allocate(mode, offset, length))
        {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let found = self.shared.with(fh, |file| {
            let found = file.seek(offset, whence)?;
            i64::try_from(found).map_err(|_| Errno::EOVERFLOW)
        });
        match found {
            Ok(offset) => reply.offset(offset),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let lines = Inode::from_number(ino).and_then(|directory| {
            let files = match directory {
                Inode::Volumes => self.shared.volumes.list(),
                Inode::Snapshots => self.shared.volumes.snapshots(),
                Inode::Root | Inode::Volume(_) => Vec::new(),
            };
            entry::list(directory, &files, offset)
        });
        let Some(lines) = lines else {
            return reply.error(Errno::ENOTDIR);
        };
        for line in lines {
            if reply.add(line.ino, line.cookie, line.kind, &line.name) {
                break;
            }
        }
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let space = self.shared.volumes.space();
        let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK);
        let free = blocks(space.free);
        reply.statfs(
            blocks(space.capacity),
            free,
            free,
            space.volumes,
            0,
            STATFS_BLOCK,
            NAME_BYTES_MAX,
            STATFS_BLOCK,
        );
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.shared.create(parent, name, flags) {
            Ok((attributes, handle)) => reply.created(
                &BELIEVED_FOR,
                &attributes,
                Generation(0),
                handle,
                open_flags(),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.shared.unlink(parent, name) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        // A volume is never replaced by another, asked or not.
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        match self.shared.rename((parent, name), (new_parent, new_name)) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn setxattr(
        &self,
        _: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        match self.shared.set_attribute(ino, name, value) {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.shared.attribute(ino, name) {
            Ok(value) => answer_sized(reply, size, value.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.shared.attribute_names(ino) {
            Ok(names) => answer_sized(reply, size, &names),
            Err(errno) => reply.error(errno),
        }
    }

    fn removexattr(&self, _: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply.error(match self.shared.attribute(ino, name) {
            Ok(_) => Errno::EPERM,
            Err(errno) => errno,
        });
    }

    // What follows is not for a mount to do, and says so without a log line.

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    // ENOSYS makes the kernel stop asking.

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::Owner;

    #[test]
    fn only_what_would_stay_as_it_is_can_be_set() {
        let owner = Owner {
            uid: 5,
            gid: 6,
            mounted: SystemTime::UNIX_EPOCH,
            read_only: false,
        };
        let now = FileAttr {
            perm: 0o600,
            ..owner.directory(INodeNo::ROOT, 0)
        };
        let same = Wanted {
            mode: Some(0o100_600),
            uid: Some(5),
            gid: Some(6),
        };
        assert!(!same.changes(&now));
        for wanted in [
            Wanted {
                mode: Some(0o644),
                ..same
            },
            Wanted {
                uid: Some(0),
                ..same
            },
            Wanted {
                gid: Some(0),
                ..same
            },
        ] {
            assert!(wanted.changes(&now), "{wanted:?}");
        }
    }
}
