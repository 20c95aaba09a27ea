//! A volume as a front end sees it.

use std::sync::{Arc, atomic::Ordering};

use tessera_dedup::Entry;

use super::{
    anticipation::Anticipation,
    engine::Engine,
    pages::Pages,
    read::ReadJob,
    snapshots::{Named, Snapshot},
    volume::Volume,
    write::{GROUP_BYTES, Outcome, PartialToken},
};
use crate::{
    disk::{
        ChangeExtent, Disk, DiskCatalog, DiskError, DiskInfo, Extent, ExtentKind, FlushDone,
        Operation, Request,
    },
    error::EngineError,
    map::{Run, RunKind},
    snapshot::split_name,
};

/// An open handle on a volume; the volume counts as in use while it lives.
pub(crate) struct VolumeDisk {
    engine: Arc<Engine>,
    volume: Arc<Volume>,
    /// What it is a disk of, if it is a snapshot: then it is read-only.
    snapshot: Option<Arc<Snapshot>>,
    /// Of this handle's user: a front end opens one for each client.
    anticipation: Anticipation,
}

impl VolumeDisk {
    pub(crate) fn new(
        engine: Arc<Engine>,
        volume: Arc<Volume>,
        snapshot: Option<Arc<Snapshot>>,
    ) -> Self {
        volume.users.fetch_add(1, Ordering::AcqRel);
        Self {
            engine,
            volume,
            snapshot,
            anticipation: Anticipation::default(),
        }
    }

    fn is_read_only(&self) -> bool {
        self.engine.read_only || self.snapshot.is_some()
    }

    /// The volume whose snapshots are meant by short names.
    fn origin(&self) -> u64 {
        let snapshot = self.snapshot.as_ref();
        snapshot.map_or(self.volume.id, |snapshot| snapshot.volume)
    }

    /// What it is called now: volumes can be renamed.
    fn name(&self) -> String {
        let own = self.volume.state.read().name.clone();
        match &self.snapshot {
            None => own,
            Some(snapshot) => {
                let volumes = self.engine.volumes.read();
                let of = volumes.by_id.get(&snapshot.volume);
                let of = of.map_or_else(String::new, |of| of.state.read().name.clone());
                format!("{of}@{own}")
            }
        }
    }
}

impl Drop for VolumeDisk {
    fn drop(&mut self) {
        self.volume.users.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Disk for VolumeDisk {
    fn info(&self) -> DiskInfo {
        let name = self.name();
        let what = match self.snapshot {
            None => "volume",
            Some(_) => "snapshot",
        };
        DiskInfo {
            description: format!("Tessera {what} {name}"),
            name,
            size: self.size(),
            read_only: self.is_read_only(),
            chunk_size: self.volume.chunk_bytes,
        }
    }

    fn size(&self) -> u64 {
        self.volume.state.read().size_bytes
    }

    fn execute(&self, batch: &mut [Request<'_>]) {
        // Looked at first: a line that all clients write would be fought over.
        let busy = &self.engine.clients_busy;
        if !busy.load(Ordering::Relaxed) {
            busy.store(true, Ordering::Relaxed);
        }
        let size = self.volume.state.read().size_bytes;
        let mut reads = Vec::new();
        let mut wrote = false;
        for request in batch {
            let Request { operation, result } = request;
            *result = self.check(operation, size);
            if result.is_err() {
                continue;
            }
            match operation {
                Operation::Read { offset, buffer } => {
                    reads.push(ReadJob {
                        offset: *offset,
                        buffer,
                        result,
                    });
                }
                Operation::Write { offset, data } => {
                    wrote = true;
                    *result = self.engine.write(&self.volume, *offset, data);
                }
                Operation::Discard { offset, length } => {
                    let zeroed = self
                        .engine
                        .zero(&self.volume, *offset, *length, Entry::HOLE);
                    *result = match zeroed {
                        // Forgetting is best effort for the odd ends of a range
                        // once the pool is full.
                        Err(DiskError::NoSpace) => Ok(()),
                        other => other,
                    };
                }
                Operation::WriteZeroes {
                    offset,
                    length,
                    keep_allocated,
                } => {
                    let entry = if *keep_allocated {
                        Entry::ZERO
                    } else {
                        Entry::HOLE
                    };
                    *result = self.engine.zero(&self.volume, *offset, *length, entry);
                }
                Operation::Prefetch { offset, length } => {
                    self.engine.prefetch(&self.volume, *offset, *length);
                }
            }
        }
        if wrote {
            self.anticipation.note_writes();
        }
        if !reads.is_empty() {
            let _guard = self.engine.epochs.enter();
            self.engine.read_jobs(&self.volume, &mut reads);
        }
    }

    fn flush(&self, done: FlushDone) {
        self.anticipation.note_flush();
        self.engine.queue_flush(done);
    }

    fn work_ahead(&self) {
        if self.anticipation.expects_flush() {
            self.engine.commit_ahead();
        }
    }

    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, DiskError> {
        let size = self.volume.state.read().size_bytes;
        in_range(offset, length, size)?;
        if length == 0 || max == 0 {
            return Ok(Vec::new());
        }
        let _guard = self.engine.epochs.enter();
        let chunk = u64::from(self.volume.chunk_bytes);
        let first = offset / chunk;
        let count = (offset + length).div_ceil(chunk) - first;
        let runs = self
            .volume
            .runs(&Pages(&self.engine.reader), first, count, max)
            .map_err(|error| error.to_disk_error())?;
        Ok(to_extents(&runs, chunk, offset, length))
    }

    fn snapshots(&self) -> Vec<String> {
        let volumes = self.engine.volumes.read();
        let named = volumes.snapshots_of.get(&self.origin());
        let mut all: Vec<&Arc<Snapshot>> = named.into_iter().flat_map(Named::values).collect();
        all.sort_unstable_by_key(|snapshot| snapshot.id);
        all.iter().map(|snapshot| snapshot.name.clone()).collect()
    }

    fn knows_snapshot(&self, snapshot: &str) -> bool {
        self.engine.snapshot_for(self.origin(), snapshot).is_some()
    }

    fn changed_since(
        &self,
        snapshot: &str,
        offset: u64,
        length: u64,
        max: usize,
    ) -> Result<Vec<ChangeExtent>, DiskError> {
        in_range(offset, length, self.size())?;
        if length == 0 || max == 0 {
            return Ok(Vec::new());
        }
        let range = (offset, length);
        self.engine
            .changed_since(&self.volume, self.origin(), snapshot, range, max)
    }
}

/// Cuts runs of chunks to a range of bytes.
fn to_extents(runs: &[Run], chunk: u64, offset: u64, length: u64) -> Vec<Extent> {
    let end = offset + length;
    let mut at = offset / chunk * chunk;
    let mut extents: Vec<Extent> = Vec::with_capacity(runs.len());
    for run in runs {
        let next = at + run.count * chunk;
        let length = next.min(end) - at.max(offset);
        let kind = match run.kind {
            RunKind::Stored => ExtentKind::Data,
            RunKind::Hole => ExtentKind::Hole,
            RunKind::Zero => ExtentKind::Zero,
        };
        extents.push(Extent { length, kind });
        at = next;
    }
    extents
}

fn in_range(offset: u64, length: u64, size: u64) -> Result<(), DiskError> {
    if offset.checked_add(length).is_some_and(|end| end <= size) {
        Ok(())
    } else {
        Err(DiskError::OutOfRange {
            offset,
            length,
            size,
        })
    }
}

impl VolumeDisk {
    fn check(&self, operation: &Operation<'_>, size: u64) -> Result<(), DiskError> {
        if self.volume.is_deleted() {
            return Err(DiskError::Gone);
        }
        let (offset, length, writes) = match operation {
            Operation::Read { offset, buffer } => (*offset, buffer.len() as u64, false),
            Operation::Write { offset, data } => (*offset, data.len() as u64, true),
            Operation::Discard { offset, length }
            | Operation::WriteZeroes { offset, length, .. } => (*offset, *length, true),
            Operation::Prefetch { offset, length } => (*offset, *length, false),
        };
        if writes && self.is_read_only() {
            return Err(DiskError::ReadOnly);
        }
        in_range(offset, length, size)
    }
}

impl Engine {
    /// Writes any byte range within the volume.
    pub(crate) fn write(&self, volume: &Volume, offset: u64, data: &[u8]) -> Result<(), DiskError> {
        let chunk = u64::from(volume.chunk_bytes);
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            let within = at % chunk;
            let length = if within == 0 && rest.len() as u64 >= chunk {
                let whole = rest.len() - rest.len() % chunk as usize;
                whole.min(GROUP_BYTES)
            } else {
                rest.len().min((chunk - within) as usize)
            };
            let (piece, after) = rest.split_at(length);
            let done = if within == 0 && (length as u64).is_multiple_of(chunk) {
                self.write_whole(volume, at / chunk, piece)
            } else {
                let patch = Patch {
                    from: within as usize,
                    bytes: Some(piece),
                    length,
                };
                self.write_partial(volume, at / chunk, &patch)
            };
            done.map_err(|error| error.to_disk_error())?;
            at += length as u64;
            rest = after;
        }
        Ok(())
    }

    fn write_whole(&self, volume: &Volume, first: u64, data: &[u8]) -> Result<(), EngineError> {
        let chunks = data.len() as u64 / u64::from(volume.chunk_bytes);
        let _admission = self.admit(data.len() as u64, chunks)?;
        let _guard = self.epochs.enter();
        self.write_chunks(volume, first, data, None).map(|_| ())
    }

    /// Reads a chunk, changes part of it and writes it back, atomically with
    /// respect to every other write of the chunk: it is tried again when one
    /// came between (see docs/adr/0002-optimistic-partial-writes.md).
    fn write_partial(
        &self,
        volume: &Volume,
        index: u64,
        patch: &Patch<'_>,
    ) -> Result<(), EngineError> {
        let _admission = self.admit(u64::from(volume.chunk_bytes), 1)?;
        let _guard = self.epochs.enter();
        let registration = Registration::new(self, (volume.id, index));
        let mut chunk = vec![0; volume.chunk_bytes as usize];
        loop {
            let token = registration.token();
            let mut result = Ok(());
            let offset = index * u64::from(volume.chunk_bytes);
            let job = ReadJob {
                offset,
                buffer: &mut chunk,
                result: &mut result,
            };
            self.read_jobs(volume, &mut [job]);
            if let Err(DiskError::Io(reason)) = result {
                return Err(EngineError::new(crate::error::ErrorKind::Io, reason));
            }
            let target = &mut chunk[patch.from..patch.from + patch.length];
            match patch.bytes {
                Some(bytes) => target.copy_from_slice(bytes),
                None => target.fill(0),
            }
            match self.write_chunks(volume, index, &chunk, Some(&token))? {
                Outcome::Done => return Ok(()),
                Outcome::Overtaken => {}
            }
        }
    }

    /// Makes a byte range read as zeroes: a map operation for whole chunks, a
    /// partial write at its odd ends.
    pub(crate) fn zero(
        &self,
        volume: &Volume,
        offset: u64,
        length: u64,
        entry: Entry,
    ) -> Result<(), DiskError> {
        if length == 0 {
            return Ok(());
        }
        let chunk = u64::from(volume.chunk_bytes);
        let size = volume.state.read().size_bytes;
        let end = offset + length;
        // The last chunk of the volume counts as whole up to the volume's end.
        let last_end = if end == size {
            end.next_multiple_of(chunk)
        } else {
            end
        };
        let first = offset.div_ceil(chunk);
        let beyond = last_end / chunk;
        let convert = |error: EngineError| error.to_disk_error();
        if first < beyond {
            self.fill_map(volume, first, beyond - first, entry)
                .map_err(convert)?;
        }
        let head_end = end.min(first * chunk);
        if offset < head_end {
            let length = (head_end - offset) as usize;
            let patch = Patch {
                from: (offset % chunk) as usize,
                bytes: None,
                length,
            };
            self.write_partial(volume, offset / chunk, &patch)
                .map_err(convert)?;
        }
        let tail = beyond * chunk;
        if tail >= first * chunk && tail < end {
            let patch = Patch {
                from: 0,
                bytes: None,
                length: (end - tail) as usize,
            };
            self.write_partial(volume, beyond, &patch)
                .map_err(convert)?;
        }
        Ok(())
    }

    /// Brings a range into the cache, as far as a quarter of the cache goes.
    fn prefetch(&self, volume: &Volume, offset: u64, length: u64) {
        let limit = self.budget.chunk_cache as u64 / 4;
        let end = offset + length.min(limit);
        let mut buffer = vec![0; 32 << 10];
        let mut at = offset;
        let _guard = self.epochs.enter();
        while at < end {
            let length = (end - at).min(buffer.len() as u64) as usize;
            let mut result = Ok(());
            let job = ReadJob {
                offset: at,
                buffer: &mut buffer[..length],
                result: &mut result,
            };
            self.read_jobs(volume, &mut [job]);
            at += length as u64;
        }
    }
}

/// What a partial write puts into a chunk; zeroes where there are no bytes.
struct Patch<'a> {
    from: usize,
    bytes: Option<&'a [u8]>,
    length: usize,
}

/// Announces a partial write of a chunk, so that other writers mark it.
struct Registration<'a> {
    engine: &'a Engine,
    key: (u64, u64),
}

impl<'a> Registration<'a> {
    fn new(engine: &'a Engine, key: (u64, u64)) -> Self {
        engine.state.lock().partial.entry(key).or_default().writers += 1;
        Self { engine, key }
    }

    fn token(&self) -> PartialToken {
        PartialToken {
            version: self.engine.state.lock().partial[&self.key].version,
        }
    }
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut state = self.engine.state.lock();
        let mark = state
            .partial
            .get_mut(&self.key)
            .expect("registered until dropped");
        mark.writers -= 1;
        if mark.writers == 0 {
            state.partial.remove(&self.key);
        }
    }
}

/// The disks of a pool.
pub(crate) struct PoolCatalog(pub(crate) Arc<Engine>);

impl DiskCatalog for PoolCatalog {
    fn names(&self) -> Vec<String> {
        self.0.volumes.read().by_name.keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        let engine = Arc::clone(&self.0);
        let volumes = self.0.volumes.read();
        // Under the lock: a snapshot is not deleted before it counts as in use.
        Some(match split_name(name) {
            Some((volume, snapshot)) => {
                let snapshot = volumes.snapshot(volume, snapshot).ok()?;
                let disk = Arc::clone(&snapshot.disk);
                Arc::new(VolumeDisk::new(engine, disk, Some(snapshot)))
            }
            None => Arc::new(VolumeDisk::new(engine, volumes.volume(name).ok()?, None)),
        })
    }
}
