//! What there is to see and to change, behind the kernel's requests: names,
//! attributes, open files, and the gate that ends it all.
//!
//! Once the gate is closed, what runs has been finished and what comes gets
//! EIO: the pool can then be closed under files that are still open.

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsStr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{FileAttr, FileHandle, INodeNo, OpenAccMode, OpenFlags, ReplyData};
use parking_lot::{Mutex, RwLock};
use tessera_engine::api::VolumeInfo;

use crate::{
    attribute::{self, Defaults},
    combine::Combiner,
    entry::{Owner, SNAPSHOTS_NAME, VOLUMES_NAME},
    errno::{Errno, errno_of_management},
    file::{OpenFile, ReadPiece},
    inode::Inode,
    node::Node,
    volumes::{Volumes, is_snapshot},
};

/// How long a deletion waits for closes that are on their way.
const CLOSE_PATIENCE: Duration = Duration::from_secs(1);
/// Reads up to this length are worth waiting for together.
const COMBINED_BYTES_MAX: u32 = 64 << 10;
/// Reads of one batch: 64 times 64 KiB of buffer at most.
const COMBINED_MAX: usize = 64;
const O_TRUNC: i32 = 0o1000;
const O_EXCL: i32 = 0o200;

thread_local! {
    /// What a thread reads into; kept, so that reading allocates nothing.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// A read whose answer is still owed.
pub(crate) struct Read {
    pub(crate) file: Arc<OpenFile>,
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) reply: ReplyData,
}

/// What the file system and the owner of the mount share.
pub(crate) struct Shared {
    pub(crate) volumes: Arc<dyn Volumes>,
    pub(crate) owner: Owner,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    nodes: Mutex<HashMap<u64, Arc<Node>>>,
    defaults: Mutex<Defaults>,
    reads: Combiner<Read>,
    closed: RwLock<bool>,
}

impl Shared {
    /// `executors` threads at a time execute small reads.
    pub(crate) fn new(volumes: Arc<dyn Volumes>, owner: Owner, executors: usize) -> Self {
        Self {
            volumes,
            owner,
            open: RwLock::default(),
            next_handle: AtomicU64::new(1),
            nodes: Mutex::default(),
            defaults: Mutex::default(),
            reads: Combiner::new(executors, COMBINED_MAX),
            closed: RwLock::new(false),
        }
    }

    /// Waits for what is being executed; fails what comes later.
    pub(crate) fn close(&self) {
        let open: Vec<Arc<OpenFile>> = self.open.read().values().cloned().collect();
        let mut closed = self.closed.write();
        for file in open {
            if let Err(errno) = file.settle() {
                tracing::warn!(?errno, "a new volume stays longer than its file");
            }
        }
        *closed = true;
    }

    /// Files that programs have open.
    pub(crate) fn open_files(&self) -> usize {
        self.open.read().len()
    }

    fn node(&self, volume: u64) -> Arc<Node> {
        let mut nodes = self.nodes.lock();
        let entry = nodes.entry(volume);
        let modified = || match self.volumes.snapshot_by_id(volume) {
            Some((_, taken)) => taken,
            None => self.owner.mounted,
        };
        Arc::clone(entry.or_insert_with(|| Arc::new(Node::new(volume, modified()))))
    }

    fn volume(&self, ino: INodeNo) -> Result<VolumeInfo, Errno> {
        match Inode::from_number(ino) {
            Some(Inode::Volume(id)) => {
                let snapshot = || {
                    self.volumes
                        .snapshot_by_id(id)
                        .map(|(snapshot, _)| snapshot)
                };
                let found = self.volumes.by_id(id).or_else(snapshot);
                found.ok_or(Errno::ENOENT)
            }
            Some(Inode::Root | Inode::Volumes | Inode::Snapshots) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    /// A volume that may be changed.
    fn changeable(&self, ino: INodeNo) -> Result<VolumeInfo, Errno> {
        let volume = self.volume(ino)?;
        match is_snapshot(&volume) {
            true => Err(Errno::EROFS),
            false => Ok(volume),
        }
    }

    fn volume_attributes(&self, volume: &VolumeInfo) -> Result<FileAttr, Errno> {
        let node = self.node(volume.id);
        let size = node.length(volume.size_bytes);
        let attributes = self.owner.volume(volume, size, node.modified());
        attributes.ok_or(Errno::EOVERFLOW)
    }

    pub(crate) fn attributes(&self, ino: INodeNo) -> Result<FileAttr, Errno> {
        match Inode::from_number(ino) {
            Some(Inode::Root) => Ok(self.owner.directory(ino, 2)),
            Some(Inode::Volumes | Inode::Snapshots) => Ok(self.owner.directory(ino, 0)),
            _ => self.volume_attributes(&self.volume(ino)?),
        }
    }

    pub(crate) fn lookup(&self, parent: INodeNo, name: &OsStr) -> Result<FileAttr, Errno> {
        let name = name.to_str().ok_or(Errno::ENOENT)?;
        match Inode::from_number(parent) {
            Some(Inode::Root) if name == VOLUMES_NAME => {
                let ino = Inode::Volumes.number().expect("directories have numbers");
                self.attributes(ino)
            }
            Some(Inode::Root) if name == SNAPSHOTS_NAME => {
                let ino = Inode::Snapshots.number().expect("directories have numbers");
                self.attributes(ino)
            }
            Some(Inode::Volumes) => {
                let volume = self.volumes.find(name).ok_or(Errno::ENOENT)?;
                self.volume_attributes(&volume)
            }
            Some(Inode::Snapshots) => {
                let (snapshot, _) = self.volumes.snapshot(name).ok_or(Errno::ENOENT)?;
                self.volume_attributes(&snapshot)
            }
            Some(Inode::Volume(_)) => Err(Errno::ENOTDIR),
            _ => Err(Errno::ENOENT),
        }
    }

    pub(crate) fn open(&self, ino: INodeNo, flags: OpenFlags) -> Result<FileHandle, Errno> {
        if self.owner.read_only && flags.acc_mode() != OpenAccMode::O_RDONLY {
            return Err(Errno::EROFS);
        }
        let volume = match flags.acc_mode() {
            OpenAccMode::O_RDONLY => self.volume(ino)?,
            _ => self.changeable(ino)?,
        };
        let node = self.node(volume.id);
        // Of what may not shrink, the end is as fixed as a disk's, and O_TRUNC
        // means as little.
        if flags.0 & O_TRUNC != 0 && node.may_shrink(volume.allow_shrink) {
            let allowed = volume.allow_shrink;
            self.gated(|| node.truncate(self.volumes.as_ref(), volume.size_bytes, allowed, 0))?;
        }
        let disk = self.volumes.open(&volume.name).ok_or(Errno::ENOENT)?;
        // It may have been renamed in between, and another have got the name.
        let snapshot = |name| self.volumes.snapshot(name).map(|(snapshot, _)| snapshot);
        let now = match is_snapshot(&volume) {
            true => snapshot(&volume.name),
            false => self.volumes.find(&volume.name),
        };
        if now.is_none_or(|now| now.id != volume.id) {
            return Err(Errno::ESTALE);
        }
        let file = Arc::new(OpenFile::new(disk, node, Arc::clone(&self.volumes)));
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.open.write().insert(handle, file);
        Ok(FileHandle(handle))
    }

    pub(crate) fn create(
        &self,
        parent: INodeNo,
        name: &OsStr,
        flags: i32,
    ) -> Result<(FileAttr, FileHandle), Errno> {
        let name = self.name_in_volumes(parent, name)?;
        let spec = self.defaults.lock().spec(name);
        let made = self.gated(|| {
            let volume = self.volumes.create(&spec);
            volume.map_err(|error| errno_of_management(&error))
        });
        let ino = match made {
            Ok(volume) => {
                let node = Arc::new(Node::newborn(volume.id, SystemTime::now()));
                self.nodes.lock().insert(volume.id, node);
                Inode::Volume(volume.id).number().ok_or(Errno::EOVERFLOW)?
            }
            // Another process has made it since the kernel looked.
            Err(Errno::EEXIST) if flags & O_EXCL == 0 => {
                let volume = self.volumes.find(name).ok_or(Errno::ENOENT)?;
                Inode::Volume(volume.id).number().ok_or(Errno::EOVERFLOW)?
            }
            Err(errno) => return Err(errno),
        };
        let handle = self.open(ino, OpenFlags(flags))?;
        Ok((self.attributes(ino)?, handle))
    }

    pub(crate) fn unlink(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        let name = self.name_in_volumes(parent, name)?;
        let volume = self.volumes.find(name).ok_or(Errno::ENOENT)?;
        self.node(volume.id).wait_closed(CLOSE_PATIENCE);
        self.gated(|| {
            let deleted = self.volumes.delete(name);
            deleted.map_err(|error| errno_of_management(&error))
        })?;
        self.nodes.lock().remove(&volume.id);
        Ok(())
    }

    pub(crate) fn rename(
        &self,
        from: (INodeNo, &OsStr),
        to: (INodeNo, &OsStr),
    ) -> Result<(), Errno> {
        let old = self.name_in_volumes(from.0, from.1)?;
        let new = self.name_in_volumes(to.0, to.1)?;
        self.gated(|| {
            let renamed = self.volumes.rename(old, new);
            renamed.map_err(|error| errno_of_management(&error))
        })
    }

    /// The name of a file that is or could be in the directory `volumes`.
    fn name_in_volumes<'a>(&self, parent: INodeNo, name: &'a OsStr) -> Result<&'a str, Errno> {
        match Inode::from_number(parent) {
            Some(Inode::Volumes) => {}
            Some(Inode::Snapshots) => return Err(Errno::EROFS),
            _ => return Err(Errno::EPERM),
        }
        if self.owner.read_only {
            return Err(Errno::EROFS);
        }
        name.to_str().ok_or(Errno::EINVAL)
    }

    pub(crate) fn truncate(&self, ino: INodeNo, size: u64) -> Result<(), Errno> {
        let volume = self.changeable(ino)?;
        let node = self.node(volume.id);
        let allowed = volume.allow_shrink;
        self.gated(|| node.truncate(self.volumes.as_ref(), volume.size_bytes, allowed, size))
    }

    pub(crate) fn set_modified(&self, ino: INodeNo, time: SystemTime) {
        if let Some(Inode::Volume(id)) = Inode::from_number(ino) {
            self.node(id).set_modified(time);
        }
    }

    pub(crate) fn attribute_names(&self, ino: INodeNo) -> Result<Vec<u8>, Errno> {
        match Inode::from_number(ino).ok_or(Errno::ENOENT)? {
            Inode::Root | Inode::Snapshots => Ok(Vec::new()),
            Inode::Volumes => Ok(attribute::names_of_directory()),
            Inode::Volume(_) => Ok(attribute::names_of_volume()),
        }
    }

    pub(crate) fn attribute(&self, ino: INodeNo, name: &OsStr) -> Result<String, Errno> {
        let (name, volumes) = (name.as_encoded_bytes(), self.volumes.as_ref());
        match Inode::from_number(ino).ok_or(Errno::ENOENT)? {
            Inode::Root | Inode::Snapshots => Err(Errno::ENODATA),
            Inode::Volumes => {
                let defaults = *self.defaults.lock();
                self.gated(|| attribute::of_directory(name, &defaults, volumes))
            }
            Inode::Volume(_) => {
                let volume = self.volume(ino)?;
                let node = self.node(volume.id);
                self.gated(|| attribute::of_volume(name, &volume, node.is_growing(), volumes))
            }
        }
    }

    pub(crate) fn set_attribute(
        &self,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
    ) -> Result<(), Errno> {
        let name = name.as_encoded_bytes();
        match Inode::from_number(ino).ok_or(Errno::ENOENT)? {
            Inode::Root | Inode::Snapshots => Err(Errno::EOPNOTSUPP),
            Inode::Volumes => self.defaults.lock().set(name, value),
            Inode::Volume(_) => {
                let id = self.changeable(ino)?.id;
                let volumes = self.volumes.as_ref();
                self.gated(|| attribute::set_of_volume(name, value, id, volumes))
            }
        }
    }

    pub(crate) fn file(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        let open = self.open.read();
        open.get(&handle.0).cloned().ok_or(Errno::EBADF)
    }

    /// An open file whose volume has been cut to the file's length, as far as
    /// it had grown ahead.
    pub(crate) fn settled(&self, handle: FileHandle) -> Result<Arc<OpenFile>, Errno> {
        let file = self.file(handle)?;
        self.gated(|| file.settle())?;
        Ok(file)
    }

    pub(crate) fn release(&self, handle: FileHandle) -> Option<Arc<OpenFile>> {
        self.open.write().remove(&handle.0)
    }

    /// Runs `action` unless the gate is closed.
    fn gated<T>(&self, action: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
        let closed = self.closed.read();
        if *closed {
            return Err(Errno::EIO);
        }
        action()
    }

    /// Runs `action` on an open file unless the gate is closed.
    pub(crate) fn with<T>(
        &self,
        handle: FileHandle,
        action: impl FnOnce(&OpenFile) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let file = self.file(handle)?;
        self.gated(|| action(&file))
    }

    /// Executes a read, alone or with others, and answers it.
    pub(crate) fn read(&self, read: Read) {
        if read.length > COMBINED_BYTES_MAX {
            return self.read_alone(read);
        }
        self.reads.submit(read, |mut batch| match batch.pop() {
            Some(read) if batch.is_empty() => self.read_alone(read),
            Some(read) => {
                batch.push(read);
                self.read_together(batch);
            }
            None => {}
        });
    }

    fn read_alone(&self, read: Read) {
        with_buffer(read.length as usize, |buffer| {
            match self.gated(|| read.file.read(read.offset, buffer)) {
                Ok(length) => read.reply.data(&buffer[..length]),
                Err(errno) => read.reply.error(errno),
            }
        });
    }

    fn read_together(&self, mut reads: Vec<Read>) {
        // By file, since a batch is for one disk.
        reads.sort_by_key(|read| Arc::as_ptr(&read.file));
        let total = reads.iter().map(|read| read.length as usize).sum();
        with_buffer(total, |mut buffer| {
            let mut pieces: Vec<ReadPiece<'_>> = Vec::with_capacity(reads.len());
            for read in &reads {
                let (own, rest) = buffer.split_at_mut(read.length as usize);
                buffer = rest;
                pieces.push(ReadPiece {
                    offset: read.offset,
                    buffer: own,
                    result: Err(Errno::EIO),
                });
            }
            // A closed gate leaves the error that is there already.
            let _closed = self.gated(|| {
                let mut rest = pieces.as_mut_slice();
                for same in reads.chunk_by(|a, b| Arc::ptr_eq(&a.file, &b.file)) {
                    let (own, after) = rest.split_at_mut(same.len());
                    same[0].file.read_many(own);
                    rest = after;
                }
                Ok(())
            });
            for (read, piece) in reads.into_iter().zip(pieces) {
                match piece.result {
                    Ok(length) => read.reply.data(&piece.buffer[..length]),
                    Err(errno) => read.reply.error(errno),
                }
            }
        });
    }
}

fn with_buffer(length: usize, action: impl FnOnce(&mut [u8])) {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        action(&mut buffer[..length]);
    });
}
