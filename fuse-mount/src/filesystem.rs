//! Answers the kernel: each call is looked up, executed and replied to in the
//! thread that received it.
//!
//! Flushes are the exception. The committer replies to them, so that a waiting
//! `fsync` holds no thread: there are only as many as cores.
//!
//! Once the gate is closed, what runs has been finished and what comes gets
//! EIO: the pool can then be closed under files that are still open.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsStr,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileAttr, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, PollEvents,
    PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite,
    ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use parking_lot::{Mutex, RwLock};
use tessera_engine::{api::VolumeInfo, disk::DiskError};

use crate::{
    entry::{self, Owner, VOLUMES_NAME},
    errno::{Errno, errno_of},
    file::{Modified, OpenFile},
    inode::Inode,
    volumes::Volumes,
};

/// How long the kernel may believe names and attributes. Volumes are changed
/// by other processes, through the control socket.
const BELIEVED_FOR: Duration = Duration::from_secs(1);
/// The longest read or write; the kernel's own limit without more settings.
const TRANSFER_BYTES: u32 = 1 << 20;
/// `statfs` counts in these.
const STATFS_BLOCK: u32 = 4096;
const NAME_BYTES_MAX: u32 = 128;
/// O_SYNC includes O_DSYNC on Linux.
const O_DSYNC: i32 = 0o10000;

thread_local! {
    /// What a thread reads into; kept, so that reading allocates nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What the file system and the owner of the mount share.
pub(crate) struct Shared {
    volumes: Arc<dyn Volumes>,
    owner: Owner,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    modified: Mutex<HashMap<u64, Arc<Modified>>>,
    closed: RwLock<bool>,
}

impl Shared {
    pub(crate) fn new(volumes: Arc<dyn Volumes>, owner: Owner) -> Self {
        Self {
            volumes,
            owner,
            open: RwLock::default(),
            next_handle: AtomicU64::new(1),
            modified: Mutex::default(),
            closed: RwLock::new(false),
        }
    }

    /// Waits for what is being executed; fails what comes later.
    pub(crate) fn close(&self) {
        *self.closed.write() = true;
    }

    /// Files that programs have open.
    pub(crate) fn open_files(&self) -> usize {
        self.open.read().len()
    }

    fn modified(&self, volume: u64) -> Arc<Modified> {
        let mut all = self.modified.lock();
        let entry = all.entry(volume);
        Arc::clone(entry.or_insert_with(|| Arc::new(Modified::new(self.owner.mounted))))
    }

    fn by_id(&self, id: u64) -> Option<VolumeInfo> {
        self.volumes.list().into_iter().find(|one| one.id == id)
    }

    fn volume_attributes(&self, volume: &VolumeInfo) -> Option<FileAttr> {
        let modified = self.modified(volume.id).time();
        self.owner.volume(volume, modified)
    }

    fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        let found = match Inode::from_number(ino) {
            Some(Inode::Root) => Some(self.owner.directory(ino, 1)),
            Some(Inode::Volumes) => Some(self.owner.directory(ino, 0)),
            Some(Inode::Volume(id)) => self.by_id(id).and_then(|one| self.volume_attributes(&one)),
            None => None,
        };
        found.ok_or(Errno::ENOENT)
    }

    fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match Inode::from_number(parent) {
            Some(Inode::Root) if name == VOLUMES_NAME => {
                let ino = Inode::Volumes.number().expect("directories have numbers");
                self.attributes(ino)
            }
            Some(Inode::Volumes) => {
                let volume = self.volumes.find(name).ok_or(Errno::ENOENT)?;
                self.volume_attributes(&volume).ok_or(Errno::ENOENT)
            }
            Some(Inode::Volume(_)) => Err(Errno::ENOTDIR),
            _ => Err(Errno::ENOENT),
        }
    }

    fn open(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        let Some(Inode::Volume(id)) = Inode::from_number(ino) else {
            return Err(Errno::EISDIR);
        };
        if self.owner.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return Err(Errno::EROFS);
        }
        let name = self.by_id(id).ok_or(Errno::ENOENT)?.name;
        let disk = self.volumes.open(&name).ok_or(Errno::ENOENT)?;
        // It may have been renamed in between, and another have got the name.
        if self.volumes.find(&name).is_none_or(|now| now.id != id) {
            return Err(Errno::ESTALE);
        }
        let file = Arc::new(OpenFile::new(disk, self.modified(id)));
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, file);
        Ok(FileHandle(handle))
    }

    fn file(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        let open = self.open.read();
        open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// Runs `action` on an open file unless the gate is closed.
    fn with<T>(
        &self,
        handle: FileHandle,
        action: impl FnOnce(&OpenFile) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let file = self.file(handle)?;
        let closed = self.closed.read();
        if *closed {
            return Err(Errno::EIO);
        }
        action(&file)
    }
}

/// What is asked of `setattr`, as far as it could matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wanted {
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
}

impl Wanted {
    /// Nothing changes here but times, which follow writes by themselves:
    /// sizes, names and modes are managed elsewhere.
    fn changes(&self, now: &FileAttr) -> bool {
        self.mode
            .is_some_and(|mode| mode & 0o7777 != u32::from(now.perm))
            || self.uid.is_some_and(|uid| uid != now.uid)
            || self.gid.is_some_and(|gid| gid != now.gid)
            || self.size.is_some_and(|size| size != now.size)
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

impl Filesystem for TesseraFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Both are refused with the nearest value that is possible.
        if let Err(nearest) = config.set_max_write(TRANSFER_BYTES) {
            tracing::debug!(nearest, "the kernel wants another write size");
        }
        // Shared mappings of files that bypass the page cache (Linux 6.6).
        if config
            .add_capabilities(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP)
            .is_err()
        {
            tracing::debug!("mounted files cannot be mapped shared on this kernel");
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
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let wanted = Wanted {
            mode,
            uid,
            gid,
            size,
        };
        match self.shared.attributes(ino) {
            Ok(now) if wanted.changes(&now) => reply.error(Errno::EPERM),
            Ok(now) => reply.attr(&BELIEVED_FOR, &now),
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.shared.open(ino, flags) {
            Ok(handle) => {
                let flags = FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES;
                reply.opened(handle, flags);
            }
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
        BUFFER.with_borrow_mut(|buffer| {
            let length = size.min(TRANSFER_BYTES) as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let buffer = &mut buffer[..length];
            match self.shared.with(fh, |file| file.read(offset, buffer)) {
                Ok(length) => reply.data(&buffer[..length]),
                Err(errno) => reply.error(errno),
            }
        });
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
        match self.shared.file(fh) {
            Ok(file) => file.flush_if_dirty(Box::new(answer(reply))),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, fh: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.shared.file(fh) {
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
        let file = self.shared.open.write().remove(&fh.0);
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
        let lines = Inode::from_number(ino)
            .and_then(|directory| entry::list(directory, &self.shared.volumes.list(), offset));
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

    // What follows is not for a mount to do, and says so without a log line.

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        reply.error(Errno::EPERM);
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
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

    fn rename(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EPERM);
    }

    // ENOSYS makes the kernel stop asking.

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        reply.error(Errno::ENOSYS);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
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

    #[test]
    fn only_what_would_stay_as_it_is_can_be_set() {
        let owner = Owner {
            uid: 5,
            gid: 6,
            mounted: SystemTime::UNIX_EPOCH,
            read_only: false,
        };
        let now = FileAttr {
            size: 100,
            perm: 0o600,
            ..owner.directory(INodeNo::ROOT, 0)
        };
        let same = Wanted {
            mode: Some(0o100_600),
            uid: Some(5),
            gid: Some(6),
            size: Some(100),
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
            Wanted {
                size: Some(0),
                ..same
            },
            Wanted {
                size: Some(101),
                ..same
            },
        ] {
            assert!(wanted.changes(&now), "{wanted:?}");
        }
    }
}
