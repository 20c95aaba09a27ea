//! Snapshots, clones and rollbacks (R11).
//!
//! Each is a few steps under the append lock: the volume's active layer is
//! rotated into its view, and views are copied. No map page is read or
//! written, so it takes as long for a terabyte as for nothing. What a snapshot
//! holds is what the sequence says at which its record stands in the journal:
//! live because no change can come between, and in replay because the same
//! functions run at the same place of the order.
//!
//! The checkpoint writes the record, and folds the layers into pages; until
//! then the journal has both. An operation answers after its commit.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use tessera_raid::sabotage::broken;

use super::{
    CheckpointKind,
    engine::{AppendState, Engine, Volumes},
    manage::{VOLUMES_MAX, invalid},
    view::View,
    volume::Volume,
};
use crate::{
    api::{SnapshotInfo, SpaceUse, VolumeInfo},
    catalogue::{VolumeRecord, check_name, check_name_of},
    error::{EngineError, ErrorKind},
    map::{Layer, Tree, TreeShape},
    snapshot::{SnapshotRecord, split_name},
};

/// Most snapshots of a pool: each takes about half a kilobyte of memory.
const SNAPSHOTS_MAX: usize = 1_000_000;

/// Snapshots taken, or deleted, since the last checkpoint, beyond which one is
/// taken first: readers pass through a layer for each, the snapshot table gets
/// a leaf for each at worst, and its pages come from a reserve (R22).
pub(crate) const UNFOLDED_MAX: usize = 64;

/// A snapshot of an open pool.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) id: u64,
    /// The volume it was taken of.
    pub(crate) volume: u64,
    pub(crate) name: String,
    pub(crate) taken_unix_ms: u64,
    pub(crate) sequence: u64,
    /// What it holds, to be read like a volume. Nothing writes to it, so its
    /// active layer is empty.
    pub(crate) disk: Arc<Volume>,
}

impl Snapshot {
    pub(crate) fn new(record: &SnapshotRecord) -> Self {
        let disk = Volume::new(&VolumeRecord {
            id: record.id,
            name: record.name.clone(),
            size_bytes: record.size_bytes,
            chunk_bytes: record.chunk_bytes,
            dedup: record.dedup,
            compression: record.compression,
            allow_shrink: false,
            tree: record.tree,
            stored_chunks: record.stored_chunks,
        });
        Self {
            id: record.id,
            volume: record.volume,
            name: record.name.clone(),
            taken_unix_ms: record.taken_unix_ms,
            sequence: record.sequence,
            disk: Arc::new(disk),
        }
    }

    /// The record as of now, with the checkpointed tree.
    pub(crate) fn record(&self) -> SnapshotRecord {
        let state = self.disk.state.read();
        SnapshotRecord {
            id: self.id,
            volume: self.volume,
            name: self.name.clone(),
            size_bytes: state.size_bytes,
            chunk_bytes: self.disk.chunk_bytes,
            dedup: state.dedup,
            compression: state.compression,
            taken_unix_ms: self.taken_unix_ms,
            sequence: self.sequence,
            tree: state.view.tree,
            stored_chunks: state.view.stored_chunks,
        }
    }

    pub(crate) fn view(&self) -> View {
        self.disk.state.read().view.clone()
    }

    fn info(&self, volume: &str, space: SpaceUse) -> SnapshotInfo {
        let state = self.disk.state.read();
        let chunk_bytes = u64::from(self.disk.chunk_bytes);
        SnapshotInfo {
            volume: volume.to_owned(),
            name: self.name.clone(),
            id: self.id,
            size_bytes: state.size_bytes,
            logical_bytes: state.view.stored_chunks * chunk_bytes,
            taken_unix_ms: self.taken_unix_ms,
            space,
        }
    }
}

impl Snapshot {
    /// As if it were a volume, and when it was taken.
    fn glance(&self, volume: &str) -> (VolumeInfo, u64) {
        let info = self.disk.record().info();
        let name = format!("{volume}@{}", self.name);
        (VolumeInfo { name, ..info }, self.taken_unix_ms)
    }
}

/// The snapshots of one volume, by name.
pub(crate) type Named = BTreeMap<String, Arc<Snapshot>>;

impl Volumes {
    pub(crate) fn insert_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        let named = self.snapshots_of.entry(snapshot.volume).or_default();
        named.insert(snapshot.name.clone(), Arc::clone(&snapshot));
        self.snapshots.insert(snapshot.id, snapshot);
    }

    pub(crate) fn remove_snapshot(&mut self, id: u64) -> Option<Arc<Snapshot>> {
        let snapshot = self.snapshots.remove(&id)?;
        if let Some(named) = self.snapshots_of.get_mut(&snapshot.volume) {
            named.remove(&snapshot.name);
            if named.is_empty() {
                self.snapshots_of.remove(&snapshot.volume);
            }
        }
        Some(snapshot)
    }

    pub(crate) fn snapshot_of(&self, volume: u64, name: &str) -> Option<&Arc<Snapshot>> {
        self.snapshots_of.get(&volume)?.get(name)
    }

    /// Looks up `volume@name`.
    pub(crate) fn snapshot(&self, volume: &str, name: &str) -> Result<Arc<Snapshot>, EngineError> {
        let of = self.volume(volume)?;
        self.snapshot_of(of.id, name).cloned().ok_or_else(|| {
            let message = format!("There is no snapshot \"{volume}@{name}\"");
            EngineError::new(ErrorKind::NotFound, message)
        })
    }

    /// In full, by volume.
    pub(crate) fn snapshot_names(&self) -> Vec<String> {
        let mut names = Vec::with_capacity(self.snapshots.len());
        for (name, volume) in &self.by_name {
            let named = self.snapshots_of.get(&volume.id).into_iter().flatten();
            names.extend(named.map(|(snapshot, _)| format!("{name}@{snapshot}")));
        }
        names
    }

    pub(crate) fn volume(&self, name: &str) -> Result<Arc<Volume>, EngineError> {
        self.by_name.get(name).cloned().ok_or_else(|| {
            EngineError::new(ErrorKind::NotFound, format!("There is no volume {name:?}"))
        })
    }
}

/// The steps themselves, live and in replay. The caller holds the append lock
/// and has given the change its place in the order.
impl Engine {
    /// A snapshot that holds what the volume holds now.
    pub(crate) fn take(
        &self,
        state: &mut AppendState,
        volumes: &mut Volumes,
        volume: &Volume,
        record: &SnapshotRecord,
    ) -> Arc<Snapshot> {
        let view = {
            let mut inner = volume.state.write();
            let forgotten = match state.replaying {
                true => broken("R11.replay"),
                false => broken("R11.rotate"),
            };
            if forgotten {
                inner.view.clone()
            } else {
                inner.rotate().clone()
            }
        };
        let snapshot = Arc::new(Snapshot::new(record));
        snapshot.disk.state.write().view = view.for_owner(volume.id);
        state.next_volume_id = state.next_volume_id.max(record.id + 1);
        state.active_pages += super::space::pages_for(1);
        state.new_snapshots.push(Arc::clone(&snapshot));
        volumes.insert_snapshot(Arc::clone(&snapshot));
        snapshot
    }

    pub(crate) fn forget(&self, state: &mut AppendState, volumes: &mut Volumes, id: u64) {
        if let Some(snapshot) = volumes.remove_snapshot(id) {
            snapshot.disk.set_deleted();
            state.overwrites += 1;
            state.active_pages += super::space::pages_for(1);
            state.deleted_snapshots.push(id);
        }
    }

    /// The volume and all its snapshots.
    pub(crate) fn forget_volume(&self, state: &mut AppendState, volumes: &mut Volumes, id: u64) {
        let named = volumes.snapshots_of.get(&id);
        let snapshots: Vec<u64> = named
            .into_iter()
            .flat_map(|named| named.values().map(|snapshot| snapshot.id))
            .collect();
        for snapshot in snapshots {
            self.forget(state, volumes, snapshot);
        }
        if let Some(volume) = volumes.remove(id) {
            volume.set_deleted();
        }
        state.overwrites += 1;
        state.deleted_volumes.push(id);
    }

    /// Returns what the volume held, to be freed outside of locks.
    pub(crate) fn revert(
        &self,
        state: &mut AppendState,
        volume: &Volume,
        snapshot: &Snapshot,
    ) -> (Layer, View) {
        let size_bytes = snapshot.disk.state.read().size_bytes;
        let view = snapshot.view().for_owner(volume.id);
        // A partial write that has read what was there must read again (R13).
        if !broken("R13.rollback") {
            for ((id, _), mark) in &mut state.partial {
                if *id == volume.id {
                    mark.version += 1;
                }
            }
        }
        let mut inner = volume.state.write();
        let active = std::mem::take(&mut inner.active);
        let view = std::mem::replace(&mut inner.view, view);
        inner.size_bytes = size_bytes;
        inner.record_changed = true;
        drop(inner);
        state.overwrites += 1;
        (active, view)
    }

    /// A volume that holds what a snapshot does.
    pub(crate) fn branch(
        &self,
        state: &mut AppendState,
        volumes: &mut Volumes,
        record: &VolumeRecord,
        snapshot: &Snapshot,
    ) -> Arc<Volume> {
        let volume = Volume::new(record);
        {
            let mut inner = volume.state.write();
            inner.view = snapshot.view().for_owner(record.id);
            inner.record_changed = true;
        }
        state.next_volume_id = state.next_volume_id.max(record.id + 1);
        let volume = Arc::new(volume);
        volumes.insert(Arc::clone(&volume));
        volume
    }
}

/// Management.
impl Engine {
    pub(crate) fn create_snapshot(
        &self,
        volume: &str,
        name: &str,
    ) -> Result<SnapshotInfo, EngineError> {
        self.check_writable()?;
        check_name_of("snapshot", name).map_err(invalid)?;
        self.fold_if_many()?;
        // A full pool must say so now, not at the checkpoint that stores it.
        drop(self.admit(0, 1)?);
        let taken_unix_ms = (self.clock)();
        let mut state = self.state.lock();
        self.check_usable()?;
        let mut volumes = self.volumes.write();
        let of = volumes.volume(volume)?;
        if volumes.snapshot_of(of.id, name).is_some() {
            let message = format!("There is already a snapshot \"{volume}@{name}\"");
            return Err(EngineError::new(ErrorKind::AlreadyExists, message));
        }
        if volumes.snapshots.len() >= SNAPSHOTS_MAX {
            let message = format!("A pool has at most {SNAPSHOTS_MAX} snapshots");
            return Err(invalid(message));
        }
        state.sequence += 1;
        let record = {
            let inner = of.state.read();
            SnapshotRecord {
                id: state.next_volume_id,
                volume: of.id,
                name: name.to_owned(),
                size_bytes: inner.size_bytes,
                chunk_bytes: of.chunk_bytes,
                dedup: inner.dedup,
                compression: inner.compression,
                taken_unix_ms,
                sequence: state.sequence,
                tree: Tree::empty(of.id, TreeShape::VOLUME),
                stored_chunks: 0,
            }
        };
        state.pending.snapshot_taken(&record);
        let snapshot = self.take(&mut state, &mut volumes, &of, &record);
        let many = 2 * state.new_snapshots.len() > UNFOLDED_MAX;
        drop(volumes);
        drop(state);
        if many {
            self.signals.maintenance.ring();
        }
        self.commit_management()?;
        Ok(snapshot.info(volume, SpaceUse::default()))
    }

    /// R11: an operation answers after its commit.
    fn commit_management(&self) -> Result<(), EngineError> {
        match broken("R11.commit") {
            true => Ok(()),
            false => self.commit_now(),
        }
    }

    /// Takes a checkpoint when the last one is many snapshots ago.
    fn fold_if_many(&self) -> Result<(), EngineError> {
        if self.unfolded() >= UNFOLDED_MAX {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        Ok(())
    }

    /// Snapshots taken or deleted since the last checkpoint.
    pub(crate) fn unfolded(&self) -> usize {
        let state = self.state.lock();
        state.new_snapshots.len() + state.deleted_snapshots.len()
    }

    pub(crate) fn delete_snapshot(&self, volume: &str, name: &str) -> Result<(), EngineError> {
        self.check_writable()?;
        self.fold_if_many()?;
        let mut state = self.state.lock();
        self.check_usable()?;
        let mut volumes = self.volumes.write();
        let snapshot = volumes.snapshot(volume, name)?;
        if snapshot.disk.users.load(Ordering::Acquire) > 0 {
            let message =
                format!("Snapshot \"{volume}@{name}\" is in use by a client: disconnect it first");
            return Err(EngineError::new(ErrorKind::Busy, message));
        }
        state.sequence += 1;
        state.pending.snapshot_deleted(snapshot.id);
        self.forget(&mut state, &mut volumes, snapshot.id);
        drop(volumes);
        drop(state);
        self.commit_management()?;
        self.signals.maintenance.ring();
        Ok(())
    }

    /// Deletes most of the snapshots of a volume that is to go, so that the
    /// rest go with it in one step that the reserve has pages for.
    pub(crate) fn delete_most_snapshots(&self, volume: &str) -> Result<(), EngineError> {
        loop {
            let names: Vec<String> = {
                let volumes = self.volumes.read();
                let of = volumes.volume(volume)?;
                let named = volumes.snapshots_of.get(&of.id);
                let all = named.map_or(0, BTreeMap::len);
                let names = named.into_iter().flat_map(|named| named.keys().cloned());
                names.take(all.saturating_sub(UNFOLDED_MAX / 2)).collect()
            };
            if names.is_empty() {
                return self.fold_if_many();
            }
            for name in names {
                self.delete_snapshot(volume, &name)?;
            }
        }
    }

    pub(crate) fn roll_back(
        &self,
        volume: &str,
        name: &str,
        force: bool,
    ) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        let mut state = self.state.lock();
        self.check_usable()?;
        let (of, snapshot) = {
            let volumes = self.volumes.read();
            (volumes.volume(volume)?, volumes.snapshot(volume, name)?)
        };
        if of.users.load(Ordering::Acquire) > 0 && !force {
            let message = format!(
                "Volume {volume:?} is in use by a client, whose file system would be \
                 damaged: disconnect it first, or use --force"
            );
            return Err(EngineError::new(ErrorKind::Busy, message));
        }
        state.sequence += 1;
        state.pending.rolled_back(of.id, snapshot.id);
        let dropped = self.revert(&mut state, &of, &snapshot);
        drop(state);
        drop(dropped);
        self.commit_management()?;
        self.signals.maintenance.ring();
        Ok(of.record().info())
    }

    pub(crate) fn clone_snapshot(
        &self,
        volume: &str,
        name: &str,
        new: &str,
    ) -> Result<VolumeInfo, EngineError> {
        self.check_writable()?;
        check_name(new).map_err(invalid)?;
        drop(self.admit(0, 1)?);
        let mut state = self.state.lock();
        self.check_usable()?;
        let mut volumes = self.volumes.write();
        let snapshot = volumes.snapshot(volume, name)?;
        if volumes.by_name.contains_key(new) {
            let message = format!("There is already a volume {new:?}");
            return Err(EngineError::new(ErrorKind::AlreadyExists, message));
        }
        if volumes.by_id.len() >= VOLUMES_MAX {
            return Err(invalid(format!("A pool has at most {VOLUMES_MAX} volumes")));
        }
        let id = state.next_volume_id;
        let record = {
            let inner = snapshot.disk.state.read();
            VolumeRecord {
                id,
                name: new.to_owned(),
                size_bytes: inner.size_bytes,
                chunk_bytes: snapshot.disk.chunk_bytes,
                dedup: inner.dedup,
                compression: inner.compression,
                allow_shrink: false,
                tree: Tree::empty(id, TreeShape::VOLUME),
                stored_chunks: 0,
            }
        };
        state.sequence += 1;
        state.pending.cloned(&record, snapshot.id);
        let cloned = self.branch(&mut state, &mut volumes, &record, &snapshot);
        drop(volumes);
        drop(state);
        self.commit_management()?;
        Ok(cloned.record().info())
    }

    pub(crate) fn glance_snapshots(&self) -> Vec<(VolumeInfo, u64)> {
        let volumes = self.volumes.read();
        let mut all = Vec::with_capacity(volumes.snapshots.len());
        for (name, volume) in &volumes.by_name {
            let named = volumes.snapshots_of.get(&volume.id);
            let snapshots = named.into_iter().flat_map(BTreeMap::values);
            all.extend(snapshots.map(|snapshot| snapshot.glance(name)));
        }
        all
    }

    pub(crate) fn glance_snapshot(&self, name: &str) -> Option<(VolumeInfo, u64)> {
        let (volume, own) = split_name(name)?;
        let snapshot = self.volumes.read().snapshot(volume, own).ok()?;
        Some(snapshot.glance(volume))
    }

    pub(crate) fn glance_snapshot_at_id(&self, id: u64) -> Option<(VolumeInfo, u64)> {
        let volumes = self.volumes.read();
        let snapshot = volumes.snapshots.get(&id)?;
        let volume = volumes.by_id.get(&snapshot.volume)?;
        let name = volume.state.read().name.clone();
        Some(snapshot.glance(&name))
    }

    /// Snapshots by volume and then in the order they were taken; of one
    /// volume, or of all.
    pub(crate) fn snapshot_infos(
        &self,
        volume: Option<&str>,
    ) -> Result<Vec<SnapshotInfo>, EngineError> {
        self.refresh_counts();
        let account = self.account();
        let volumes = self.volumes.read();
        let of: Vec<(&String, &Arc<Volume>)> = match volume {
            None => volumes.by_name.iter().collect(),
            Some(name) => {
                volumes.volume(name)?;
                volumes.by_name.get_key_value(name).into_iter().collect()
            }
        };
        let mut infos = Vec::new();
        for (name, volume) in of {
            let named = volumes.snapshots_of.get(&volume.id);
            let mut snapshots: Vec<&Arc<Snapshot>> =
                named.into_iter().flat_map(BTreeMap::values).collect();
            snapshots.sort_unstable_by_key(|snapshot| snapshot.id);
            infos.extend(snapshots.into_iter().map(|snapshot| {
                let account = account.as_ref();
                let space = account.and_then(|account| account.owners.get(&snapshot.id).copied());
                snapshot.info(name, space.unwrap_or_default())
            }));
        }
        Ok(infos)
    }
}
