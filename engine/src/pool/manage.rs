//! Management of volumes, and what the pool tells of itself. An operation
//! answers after its commit (R11).

use std::sync::{Arc, atomic::Ordering};

use tessera_dedup::{Entry, IndexState};
use tessera_raid::ArrayState;

use super::{
    CheckpointKind,
    engine::{AppendState, Engine},
    snapshots::Snapshot,
    volume::Volume,
};
use crate::{
    api::{
        JobInfo, JobKind, PoolState, PoolStatus, SegmentCounts, VolumeChange, VolumeInfo,
        VolumeSpec,
    },
    catalogue::{VolumeRecord, check_name, chunk_size_is_valid},
    disk::DiskError,
    error::{EngineError, ErrorKind},
    map::{Tree, TreeShape},
};

/// The largest volume, in bytes: NBD and POSIX count in signed 64 bits.
pub const VOLUME_BYTES_MAX: u64 = i64::MAX as u64;

/// Most volumes of a pool.
pub(crate) const VOLUMES_MAX: usize = 100_000;

pub(crate) fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::new(ErrorKind::InvalidArgument, message)
}

fn check_size(bytes: u64) -> Result<(), EngineError> {
    if bytes == 0 || bytes > VOLUME_BYTES_MAX {
        return Err(invalid("A volume has at least 1 byte and less than 8 EiB"));
    }
    Ok(())
}

impl Engine {
    pub(crate) fn check_writable(&self) -> Result<(), EngineError> {
        if self.read_only {
            return Err(EngineError::new(
                ErrorKind::ReadOnly,
                "The pool is open read-only",
            ));
        }
        self.check_usable()
    }

    pub(crate) fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        check_name(&spec.name).map_err(invalid)?;
        check_size(spec.size_bytes)?;
        if !chunk_size_is_valid(spec.chunk_bytes) {
            return Err(invalid("The chunk size is 4K, 8K, 16K, 32K or 64K"));
        }
        if spec.chunk_bytes > self.geometry.stripe_bytes {
            return Err(invalid(format!(
                "The chunk size is larger than the pool's stripe of {} bytes",
                self.geometry.stripe_bytes
            )));
        }
        // A full pool must say so now, not at the checkpoint that stores it.
        drop(self.admit(0, 1)?);
        let mut state = self.state.lock();
        let mut volumes = self.volumes.write();
        if volumes.by_name.contains_key(&spec.name) {
            return Err(EngineError::new(
                ErrorKind::AlreadyExists,
                format!("There is already a volume {:?}", spec.name),
            ));
        }
        if volumes.by_id.len() >= VOLUMES_MAX {
            return Err(invalid(format!("A pool has at most {VOLUMES_MAX} volumes")));
        }
        let id = state.next_volume_id;
        state.next_volume_id += 1;
        let volume = Arc::new(Volume::new(&VolumeRecord {
            id,
            name: spec.name.clone(),
            size_bytes: spec.size_bytes,
            chunk_bytes: spec.chunk_bytes,
            dedup: spec.dedup,
            compression: spec.compression,
            allow_shrink: false,
            tree: Tree::empty(id, TreeShape::VOLUME),
            stored_chunks: 0,
        }));
        self.put_record(&mut state, &volume);
        volumes.insert(Arc::clone(&volume));
        drop(volumes);
        drop(state);
        self.commit_now()?;
        Ok(volume.record().info())
    }

    /// Journals a volume's record as it is now.
    fn put_record(&self, state: &mut AppendState, volume: &Volume) {
        let mut inner = volume.state.write();
        inner.record_changed = true;
        state.sequence += 1;
        state.pending.volume_put(&volume.record_of(&inner));
    }

    pub(crate) fn resize_volume(
        &self,
        name: &str,
        size_bytes: u64,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        check_size(size_bytes)?;
        let volume = self.volume_by_name(name)?;
        let old = volume.state.read().size_bytes;
        if size_bytes < old && !force {
            return Err(invalid(format!(
                "Volume {name:?} has {old} bytes: making it smaller destroys data, use --force"
            )));
        }
        // The odd end first: should it fail, nothing has been cut off yet.
        let chunk = u64::from(volume.chunk_bytes);
        let odd_end = old.min(size_bytes.next_multiple_of(chunk));
        self.clear_range(&volume, size_bytes, odd_end)?;
        {
            // What lies beyond the new end must read as zeroes if the volume
            // grows again: no write may come between clearing and cutting.
            let mut state = self.state.lock();
            if size_bytes < old {
                let first = size_bytes.div_ceil(chunk);
                let count = old.div_ceil(chunk) - first;
                if count > 0 {
                    self.fill_locked(&mut state, &volume, first, count, Entry::HOLE)?;
                }
            }
            volume.state.write().size_bytes = size_bytes;
            self.put_record(&mut state, &volume);
        }
        // A write to the last chunk may have come before the cut.
        self.clear_range(&volume, size_bytes, odd_end)?;
        self.commit_now()?;
        Ok(volume.record().info())
    }

    fn clear_range(&self, volume: &Volume, from: u64, to: u64) -> Result<(), EngineError> {
        if from >= to {
            return Ok(());
        }
        self.zero(volume, from, to - from, Entry::HOLE)
            .map_err(|error| {
                // A lack of space passes; whoever decides by the kind must see it.
                let kind = match error {
                    DiskError::NoSpace => ErrorKind::NoSpace,
                    _ => ErrorKind::Io,
                };
                EngineError::new(
                    kind,
                    format!("The cut-off range cannot be cleared: {error}"),
                )
            })
    }

    pub(crate) fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        check_name(new).map_err(invalid)?;
        let mut state = self.state.lock();
        let mut volumes = self.volumes.write();
        if old != new && volumes.by_name.contains_key(new) {
            return Err(EngineError::new(
                ErrorKind::AlreadyExists,
                format!("There is already a volume {new:?}"),
            ));
        }
        let volume = volumes.by_name.get(old).cloned().ok_or_else(|| {
            EngineError::new(ErrorKind::NotFound, format!("There is no volume {old:?}"))
        })?;
        volumes.remove(volume.id);
        volume.state.write().name = new.to_owned();
        self.put_record(&mut state, &volume);
        volumes.insert(Arc::clone(&volume));
        drop(volumes);
        drop(state);
        self.commit_now()?;
        Ok(volume.record().info())
    }

    /// Changes how new writes are treated. Requests under way when it answers
    /// may still follow what was set before.
    pub(crate) fn set_volume(
        &self,
        name: &str,
        change: &VolumeChange,
    ) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        let volume = self.volume_by_name(name)?;
        {
            let mut state = self.state.lock();
            if volume.is_deleted() {
                let message = format!("There is no volume {name:?}");
                return Err(EngineError::new(ErrorKind::NotFound, message));
            }
            let mut inner = volume.state.write();
            inner.dedup = change.dedup.unwrap_or(inner.dedup);
            inner.compression = change.compression.unwrap_or(inner.compression);
            inner.allow_shrink = change.allow_shrink.unwrap_or(inner.allow_shrink);
            drop(inner);
            self.put_record(&mut state, &volume);
        }
        self.commit_now()?;
        Ok(volume.record().info())
    }

    /// Deletes a volume; one that has snapshots only with them.
    pub(crate) fn delete_volume(&self, name: &str, snapshots: bool) -> Result<(), EngineError> {
        self.check_writable()?;
        if snapshots {
            self.delete_most_snapshots(name)?;
        }
        let mut state = self.state.lock();
        let mut volumes = self.volumes.write();
        let volume = volumes.volume(name)?;
        let busy = |what: String| {
            let message = format!("{what} is in use by a client: disconnect it first");
            Err(EngineError::new(ErrorKind::Busy, message))
        };
        if volume.users.load(Ordering::Acquire) > 0 {
            return busy(format!("Volume {name:?}"));
        }
        if let Some(named) = volumes.snapshots_of.get(&volume.id) {
            let count = named.len();
            if !snapshots {
                let (have, them) = match count {
                    1 => ("a snapshot", "it"),
                    _ => ("snapshots", "them"),
                };
                let message = format!(
                    "Volume {name:?} has {have} ({count} in all): delete {them} first, or use \
                     --snapshots to delete {them} as well"
                );
                return Err(EngineError::new(ErrorKind::Busy, message));
            }
            let in_use =
                |snapshot: &&Arc<Snapshot>| snapshot.disk.users.load(Ordering::Acquire) > 0;
            if let Some(snapshot) = named.values().find(in_use) {
                return busy(format!("Snapshot \"{name}@{}\"", snapshot.name));
            }
        }
        state.sequence += 1;
        state.pending.volume_deleted(volume.id);
        self.forget_volume(&mut state, &mut volumes, volume.id);
        drop(volumes);
        drop(state);
        self.commit_now()?;
        self.signals.maintenance.ring();
        Ok(())
    }

    /// What is known of the volumes without taking a checkpoint for it.
    pub(crate) fn glance(&self) -> Vec<VolumeInfo> {
        self.volumes
            .read()
            .by_name
            .values()
            .map(|volume| volume.record().info())
            .collect()
    }

    pub(crate) fn glance_at(&self, name: &str) -> Option<VolumeInfo> {
        let volume = self.volume_by_name(name).ok()?;
        Some(volume.record().info())
    }

    pub(crate) fn glance_at_id(&self, id: u64) -> Option<VolumeInfo> {
        let volume = self.volumes.read().by_id.get(&id).cloned()?;
        Some(volume.record().info())
    }

    pub(crate) fn counted_at_id(&self, id: u64) -> Option<VolumeInfo> {
        self.refresh_counts();
        let snapshot = || Some(self.glance_snapshot_at_id(id)?.0);
        let info = self.glance_at_id(id).or_else(snapshot)?;
        let space = self.space_use(id).unwrap_or(info.space);
        Some(VolumeInfo { space, ..info })
    }

    /// All data the segments can hold, and what of it is still writable.
    pub(crate) fn space(&self) -> (u64, u64) {
        let capacity = u64::from(self.table.len()) * self.usable_segment_bytes();
        (capacity, self.available_bytes().unwrap_or(0))
    }

    pub(crate) fn volume_infos(&self) -> Vec<VolumeInfo> {
        self.refresh_counts();
        let account = self.account();
        let volumes = self.volumes.read();
        let infos = volumes.by_name.values().map(|volume| {
            let account = account.as_ref();
            let counted = account.and_then(|account| account.owners.get(&volume.id).copied());
            let info = volume.record().info();
            let space = counted.unwrap_or(info.space);
            VolumeInfo { space, ..info }
        });
        infos.collect()
    }

    pub(crate) fn volume_info(&self, name: &str) -> Result<VolumeInfo, EngineError> {
        self.refresh_counts();
        let volume = self.volume_by_name(name)?;
        let info = volume.record().info();
        let space = self.space_use(volume.id).unwrap_or(info.space);
        Ok(VolumeInfo { space, ..info })
    }

    /// Counts of mapped chunks are exact as of the newest checkpoint: take one.
    pub(crate) fn refresh_counts(&self) {
        if !self.read_only
            && self.check_usable().is_ok()
            && self.is_dirty()
            && let Err(error) = self.checkpoint_now(CheckpointKind::Normal)
        {
            tracing::warn!(%error, "Cannot take a checkpoint for exact counts");
        }
    }

    pub(crate) fn status(&self) -> PoolStatus {
        self.refresh_counts();
        let array = self.array.status();
        let failed = self.failure.lock().is_some();
        let counts = self.table.counts();
        let account = self.account();
        let (unique_bytes, stored_bytes) = match &account {
            Some(account) => (account.unique_bytes, account.stored_bytes),
            // Dead chunks included: better than nothing.
            None => (counts.logical_bytes, counts.stored_bytes),
        };
        let account = account.as_deref();
        let snapshots = self.volumes.read().snapshots.len() as u64;
        let volumes: Vec<VolumeInfo> = self
            .volumes
            .read()
            .by_id
            .values()
            .map(|volume| volume.record().info())
            .collect();
        let logical_bytes: u64 = volumes.iter().map(|volume| volume.logical_bytes).sum();
        let ratio = |above: u64, below: u64| {
            if above == 0 || below == 0 {
                1.0
            } else {
                above as f64 / below as f64
            }
        };
        let stopped = array.stopped.or_else(|| self.failure.lock().clone());
        let losses = match array.state {
            ArrayState::Failed => self.losses().ok(),
            ArrayState::Online | ArrayState::Degraded => None,
        };
        let jobs = self.jobs_of_interest();
        PoolStatus {
            uuid: self.array.uuid().to_string(),
            level: self.array.level().name().to_owned(),
            state: match array.state {
                _ if failed => PoolState::Failed,
                ArrayState::Online => PoolState::Online,
                ArrayState::Degraded => PoolState::Degraded,
                ArrayState::Failed => PoolState::Failed,
            },
            members: self.members(),
            stripe_unit_bytes: u64::from(self.array.current_layout().stripe_unit_bytes),
            capacity_bytes: u64::from(self.table.len()) * self.usable_segment_bytes(),
            free_bytes: self.available_bytes().unwrap_or(0),
            reclaimable_bytes: account.map(|account| account.reclaimable_bytes),
            logical_bytes,
            unique_bytes,
            stored_bytes,
            dedup_ratio: ratio(logical_bytes, unique_bytes),
            compression_ratio: ratio(unique_bytes, stored_bytes),
            io_engine: self.array.io_engine().to_owned(),
            served: false,
            volumes: volumes.len() as u64,
            snapshots,
            snapshot_bytes: account.map_or(0, |account| account.snapshot_bytes),
            counted_unix_ms: account.map(|account| account.taken_unix_ms),
            counted_exactly: account.is_some_and(|account| account.exact),
            warnings: self.warnings(),
            index_entries: self.index.entries(),
            index_state: match self.index.state() {
                IndexState::Ready => "ready".to_owned(),
                IndexState::Rebuilding { .. } => "rebuilding".to_owned(),
                IndexState::Dropped => "dropped".to_owned(),
            },
            index: self.index_info(),
            segments: SegmentCounts {
                free: u64::from(counts.free),
                open: u64::from(counts.open),
                sealed: u64::from(counts.sealed),
                releasing: u64::from(counts.releasing),
                segment_bytes: u64::from(self.geometry.segment_bytes),
            },
            sequence: self.array.sequence(),
            last_failure: array.last_failure,
            stopped,
            losses,
            jobs,
        }
    }

    /// Jobs under way, and the newest of each kind.
    fn jobs_of_interest(&self) -> Vec<JobInfo> {
        self.name_for_a_look();
        let jobs = self.jobs.lock();
        let newest = JobKind::ALL
            .into_iter()
            .filter_map(|kind| jobs.newest(kind).map(|record| record.id));
        let mut ids: Vec<u64> = newest.collect();
        let active = jobs.all().into_iter().filter(|record| record.is_active());
        ids.extend(active.map(|record| record.id));
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| jobs.info(id)).collect()
    }

    /// Flush, checkpoint, clean flag. Idempotent.
    pub(crate) fn shut_down(&self) -> Result<(), EngineError> {
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let result = if self.read_only {
            Ok(())
        } else {
            self.committer_step();
            self.commit_now()
                .and_then(|()| self.confirm())
                .and_then(|()| self.checkpoint_now(CheckpointKind::Clean))
        };
        self.closed.store(true, Ordering::Release);
        self.index.flush();
        result
    }
}
