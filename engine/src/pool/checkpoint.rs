//! Checkpoints: merging what the layers hold into new pages (R12).
//!
//! ```text
//!   1  freeze the layers at S, close the data stripe, make S durable
//!   2  every stripe with a location <= S is closed and synced by then; the
//!      summary so far of the open data segment goes into the map stream
//!   3  new pages, children first; catalogue; segment table; root; sync
//!   4  superblocks on every in-sync member, and sync
//!   5  trim the journal; release what the previous root alone needed
//! ```
//! A crash before step 4 leaves the previous root, whose pages nothing has
//! overwritten, and a journal that still has everything since. After step 4
//! the journal before S is not needed.

mod summaries;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use tessera_dedup::{
    EntryKind, Generation, Owner,
    segment::{SEGMENT_RECORD_BYTES, SegmentRecord, SegmentState, Stream, SummaryExtent, Ticket},
};
use tessera_raid::{Kind, MemberIndex, SegmentId, sabotage::broken};

use super::{
    engine::{AppendState, Engine},
    pages::{MapAppender, Pages},
    roots::Roots,
    snapshots::Snapshot,
    view::{Folds, View},
    volume::Volume,
};
use crate::{
    catalogue::{ROOT_TREE, VOLUME_RECORD_BYTES, VolumeRecord},
    error::{EngineError, ErrorKind},
    journal::{ChainPoint, Ring},
    map::{self, MergeStats},
    root::{EngineRecord, OVERLAY_MAX, RootPage, RootPointer, StreamEnd},
    settings::Settings,
    snapshot::{SNAPSHOT_RECORD_BYTES, SnapshotRecord},
};

/// Generations that may be issued until the next checkpoint raises the limit.
/// Odd, so that the low bits which entries carry differ from opening to opening.
pub(crate) const GENERATIONS_AHEAD: u64 = (1 << 20) + 37;

/// Why a checkpoint is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointKind {
    /// While serving.
    Normal,
    /// The last one before a clean stop.
    Clean,
    /// The end of recovery: under a new epoch, from which the journal goes on
    /// (R19).
    Recovery(ChainPoint),
}

/// A target that a checkpoint is to promote, and whether it did.
#[derive(Debug, Default)]
struct Promotion {
    target: Option<MemberIndex>,
    done: bool,
}

/// The checkpointer's state.
#[derive(Debug)]
pub(crate) struct CheckpointState {
    pub(crate) roots: Arc<Roots>,
    /// The engine record in the superblocks.
    pub(crate) record: EngineRecord,
}

/// What step 1 froze.
struct Frozen {
    sequence: u64,
    ticket: Ticket,
    volumes: Vec<(Arc<Volume>, VolumeRecord, View)>,
    deleted: Vec<u64>,
    snapshots: Vec<(Arc<Snapshot>, SnapshotRecord, View)>,
    deleted_snapshots: Vec<u64>,
    segments: Vec<(SegmentId, [u8; SEGMENT_RECORD_BYTES])>,
    /// Of the open data segment, and of segments that recovery gave up.
    summaries: Vec<tessera_dedup::Summary>,
    /// Of sealed segments, in the place of their own.
    rehashed: Vec<tessera_dedup::Summary>,
    next_volume_id: u64,
    settings: Settings,
    /// Rows of the job table that changed.
    jobs: BTreeMap<u64, Vec<u8>>,
    next_job_id: u64,
}

impl Frozen {
    fn views(&self) -> impl Iterator<Item = &View> {
        let of_volumes = self.volumes.iter().map(|(_, _, view)| view);
        of_volumes.chain(self.snapshots.iter().map(|(_, _, view)| view))
    }
}

/// What steps 2 to 4 have written.
struct Written {
    roots: Roots,
    record: EngineRecord,
    folds: Folds,
    /// Segments whose records are in the root page, and not in the table.
    overlay: Vec<SegmentId>,
    /// Where the new summaries of sealed segments are.
    rehashed: Vec<(SegmentId, Generation, SummaryExtent)>,
}

impl Engine {
    /// Takes a checkpoint now.
    ///
    /// # Errors
    /// `NoSpace` leaves everything as it was, to be tried again; any other
    /// failure poisons the pool.
    pub(crate) fn checkpoint_now(&self, kind: CheckpointKind) -> Result<(), EngineError> {
        self.checkpoint_with(kind, &mut Promotion::default())
    }

    /// Takes a checkpoint whose superblock also puts a target in its member's
    /// place (R16). False when it is no target any more: then it is a
    /// checkpoint like any other.
    ///
    /// # Errors
    /// As for [`Self::checkpoint_now`].
    pub(crate) fn checkpoint_promoting(
        &self,
        kind: CheckpointKind,
        target: MemberIndex,
    ) -> Result<bool, EngineError> {
        let mut promotion = Promotion {
            target: Some(target),
            done: false,
        };
        self.checkpoint_with(kind, &mut promotion)?;
        Ok(promotion.done)
    }

    fn checkpoint_with(
        &self,
        kind: CheckpointKind,
        promotion: &mut Promotion,
    ) -> Result<(), EngineError> {
        let mut checkpoint = self.checkpoint.lock();
        self.check_usable()?;
        let result = self.run_checkpoint(&mut checkpoint, kind, promotion);
        self.poison_unless_full(result)
    }

    /// True when a checkpoint would have something to write.
    pub(crate) fn is_dirty(&self) -> bool {
        let recorded = self.checkpoint.lock().record.sequence;
        self.state.lock().sequence > recorded
            || self.table.wants_checkpoint()
            || self.jobs.lock().wants_checkpoint()
    }

    fn run_checkpoint(
        &self,
        checkpoint: &mut CheckpointState,
        kind: CheckpointKind,
        promotion: &mut Promotion,
    ) -> Result<(), EngineError> {
        let (frozen, journal) = self.freeze_durably(kind)?;
        let result = self.write_root(checkpoint, &frozen, journal, kind, promotion);
        match result {
            Ok(written) => {
                // Step 5.
                if !matches!(kind, CheckpointKind::Recovery(_)) {
                    let mut commit = self.commit.lock();
                    commit.ring.trim(written.record.journal.offset);
                }
                self.settle(&frozen, &written.folds);
                self.point_to_summaries(&written.rehashed);
                self.table.checkpoint_is_durable();
                self.table.mark_dirty(&written.overlay);
                for summary in frozen.summaries {
                    self.announce_sealed(summary);
                }
                let mut state = self.state.lock();
                state.frozen_pages = 0;
                state
                    .appender
                    .generations_mut()
                    .raise_limit(written.record.generation_limit);
                drop(state);
                checkpoint.roots = Arc::new(written.roots);
                checkpoint.record = written.record;
                Ok(())
            }
            Err(error) => {
                self.thaw(frozen);
                Err(error)
            }
        }
    }

    /// Puts the new pages in the place of folded layers, in every view that
    /// has any: also in those of snapshots and clones that were made meanwhile.
    fn settle(&self, frozen: &Frozen, folds: &Folds) {
        let mut dropped = Vec::new();
        // Under the append lock no view is copied.
        let state = self.state.lock();
        let volumes = self.volumes.read();
        for volume in volumes.by_id.values() {
            volume.state.write().view.settle(folds, &mut dropped);
        }
        // Those that have layers were stored by this checkpoint, or will be by
        // the next.
        let old = frozen.snapshots.iter().map(|(snapshot, _, _)| snapshot);
        for snapshot in old.chain(&state.new_snapshots) {
            snapshot.disk.state.write().view.settle(folds, &mut dropped);
        }
        drop(volumes);
        drop(state);
    }

    /// Steps 1 and 2: on return S is durable and every location up to S lies
    /// in a closed and synced stripe.
    fn freeze_durably(&self, kind: CheckpointKind) -> Result<(Frozen, ChainPoint), EngineError> {
        let mut commit = self.commit.lock();
        let mut state = self.state.lock();
        // Closing first: then the batch carries no bytes (R12, step 2).
        if !broken("R12.close") {
            state.appender.close_stripe(Stream::Data);
        }
        let frozen = self.freeze(&mut state);
        let cut = self.cut(&mut commit, &mut state);
        drop(state);
        let journal = match kind {
            CheckpointKind::Recovery(start) => {
                if let Err(error) = self.writer.sync_up_to(frozen.ticket) {
                    self.thaw(frozen);
                    return Err(error.into());
                }
                self.hand_over_summaries();
                commit.ring = Ring::new(Arc::clone(&self.array), start);
                start
            }
            CheckpointKind::Normal | CheckpointKind::Clean => {
                if let Err(error) = self.complete(&mut commit, cut) {
                    self.thaw(frozen);
                    return Err(error);
                }
                let next = commit.ring.next();
                if broken("R12.trim") {
                    commit.ring.trim(next.offset);
                }
                next
            }
        };
        Ok((frozen, journal))
    }

    fn freeze(&self, state: &mut AppendState) -> Frozen {
        let mut volumes = Vec::new();
        let left_out = usize::from(broken("R11.all_at_once"));
        for volume in self.volumes.read().by_id.values().skip(left_out) {
            let mut inner = volume.state.write();
            if inner.is_dirty() {
                let view = inner.rotate().clone();
                inner.record_changed = false;
                volumes.push((Arc::clone(volume), volume.record_of(&inner), view));
            }
        }
        let of_snapshot = |snapshot: Arc<Snapshot>| {
            let (record, view) = (snapshot.record(), snapshot.view());
            (snapshot, record, view)
        };
        let snapshots = std::mem::take(&mut state.new_snapshots)
            .into_iter()
            .filter(|snapshot| !snapshot.disk.is_deleted())
            .map(of_snapshot)
            .collect();
        state.frozen_pages = std::mem::take(&mut state.active_pages);
        self.layer_bytes.store(0, Ordering::Relaxed);
        self.table.set_commit(self.array.commits() + 1);
        let settings = *self.settings.lock();
        let (jobs, next_job_id) = {
            let mut jobs = self.jobs.lock();
            (jobs.take_dirty(), jobs.next_id())
        };
        Frozen {
            sequence: state.sequence,
            ticket: state.appender.last_ticket(),
            volumes,
            deleted: std::mem::take(&mut state.deleted_volumes),
            snapshots,
            deleted_snapshots: std::mem::take(&mut state.deleted_snapshots),
            segments: self.table.take_dirty(),
            summaries: std::mem::take(&mut state.recovered)
                .into_iter()
                .chain(state.appender.partial_summary(Stream::Data))
                .collect(),
            rehashed: std::mem::take(&mut state.rehashed),
            next_volume_id: state.next_volume_id,
            settings,
            jobs,
            next_job_id,
        }
    }

    /// Puts everything back as if the checkpoint had not begun.
    fn thaw(&self, mut frozen: Frozen) {
        self.jobs.lock().give_back(frozen.jobs.keys().copied());
        let mut state = self.state.lock();
        for (snapshot, _, _) in frozen.snapshots.drain(..) {
            state.new_snapshots.push(snapshot);
        }
        let volumes: Vec<Arc<Volume>> = frozen.volumes.drain(..).map(|(of, _, _)| of).collect();
        for volume in volumes {
            volume.state.write().thaw();
        }
        state.deleted_volumes.extend_from_slice(&frozen.deleted);
        let deleted = &frozen.deleted_snapshots;
        state.deleted_snapshots.extend_from_slice(deleted);
        let gave_up = |summary: &&tessera_dedup::Summary| {
            self.table
                .record(summary.segment)
                .is_some_and(|r| r.state == SegmentState::Sealed)
        };
        state
            .recovered
            .extend(frozen.summaries.iter().filter(gave_up).cloned());
        state.rehashed.append(&mut frozen.rehashed);
        state.active_pages += std::mem::take(&mut state.frozen_pages);
        let mut segments: Vec<SegmentId> = frozen.segments.iter().map(|(id, _)| *id).collect();
        let of_map = |record: &SegmentRecord| record.stream() == Some(Stream::Map);
        segments.extend(
            self.table
                .live()
                .iter()
                .filter(|(_, r)| of_map(r))
                .map(|(id, _)| *id),
        );
        self.table.checkpoint_failed();
        self.table.mark_dirty(&segments);
    }

    /// Steps 2 (summary) to 4.
    fn write_root(
        &self,
        checkpoint: &CheckpointState,
        frozen: &Frozen,
        journal: ChainPoint,
        kind: CheckpointKind,
        promotion: &mut Promotion,
    ) -> Result<Written, EngineError> {
        let pages = Pages(&self.reader);
        let mut sink = MapAppender::new(self);
        let mut segments: BTreeMap<u64, Vec<u8>> = encoded(&frozen.segments);

        for summary in &frozen.summaries {
            self.write_partial_summary(&mut sink, summary, &mut segments)?;
        }
        let mut rehashed = Vec::new();
        for summary in &frozen.rehashed {
            rehashed.extend(self.write_new_summary(&mut sink, summary, &mut segments)?);
        }

        // Step 3: children first.
        let mut folds = Folds::of(frozen.views());
        let mut volumes = BTreeMap::clone(&checkpoint.roots.volumes);
        let mut catalogue_changes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (volume, record, view) in &frozen.volumes {
            let (tree, stored_chunks) = folds.fold(view, &pages, &mut sink)?;
            let record = VolumeRecord {
                tree,
                stored_chunks,
                ..record.clone()
            };
            catalogue_changes.insert(volume.id, record.encode().to_vec());
            volumes.insert(volume.id, tree);
        }
        for id in &frozen.deleted {
            catalogue_changes.insert(*id, vec![0; VOLUME_RECORD_BYTES]);
            volumes.remove(id);
        }
        let mut snapshots = Arc::clone(&checkpoint.roots.snapshots);
        let mut snapshot_changes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        for (snapshot, record, view) in &frozen.snapshots {
            let (tree, stored_chunks) = folds.fold(view, &pages, &mut sink)?;
            let record = SnapshotRecord {
                tree,
                stored_chunks,
                ..record.clone()
            };
            snapshot_changes.insert(snapshot.id, record.encode().to_vec());
            Arc::make_mut(&mut snapshots).insert(snapshot.id, tree);
        }
        for id in &frozen.deleted_snapshots {
            snapshot_changes.insert(*id, vec![0; SNAPSHOT_RECORD_BYTES]);
            Arc::make_mut(&mut snapshots).remove(id);
        }
        let old = &checkpoint.roots.page;
        let mut stats = MergeStats::default();
        let catalogue = map::merge_records(
            &old.catalogue,
            &catalogue_changes,
            &pages,
            &mut sink,
            &mut stats,
        )?;
        let jobs = map::merge_records(&old.jobs, &frozen.jobs, &pages, &mut sink, &mut stats)?;
        let snapshot_table = map::merge_records(
            &old.snapshots,
            &snapshot_changes,
            &pages,
            &mut sink,
            &mut stats,
        )?;
        if kind == CheckpointKind::Clean {
            let summary = self.state.lock().appender.partial_summary(Stream::Map);
            if let Some(summary) = summary {
                self.write_partial_summary(&mut sink, &summary, &mut segments)?;
            }
        }
        segments.extend(encoded(&self.table.take_dirty_of(Stream::Map)));
        let table = map::merge_records(&old.segments, &segments, &pages, &mut sink, &mut stats)?;
        // From here on only the root page is appended, so what the overlay
        // says of segments is complete (R12: the root's allocation state
        // includes every segment this checkpoint opened or wrote).
        sink.reserve_run(1)?;
        let overlay = self.overlay()?;
        let root = RootPage {
            pool: self.array.uuid(),
            checkpoint: checkpoint.record.checkpoint + 1,
            sequence: frozen.sequence,
            next_volume_id: frozen.next_volume_id,
            catalogue,
            segments: table,
            jobs,
            snapshots: snapshot_table,
            settings: frozen.settings,
            next_job_id: frozen.next_job_id,
            overlay,
        };
        let owner = Owner {
            tree: ROOT_TREE,
            index: root.checkpoint,
            level: 1,
        };
        let (entry, generation, record) = sink.append(EntryKind::Page, owner, &root.encode())?;
        let (ticket, streams, generation_limit) = {
            let mut state = self.state.lock();
            state.appender.close_stripe(Stream::Map);
            let limit = state.appender.generations_mut().next() + GENERATIONS_AHEAD;
            (state.appender.last_ticket(), stream_ends(&state), limit)
        };
        match broken("R12.pages") {
            true => self.writer.write_up_to(ticket)?,
            false => self.writer.sync_up_to(ticket)?,
        }
        self.hand_over_summaries();

        // Step 4.
        let pointer = RootPointer {
            entry,
            generation,
            placement: record.placement(),
        };
        let record = EngineRecord {
            checkpoint: root.checkpoint,
            sequence: frozen.sequence,
            generation_limit,
            journal,
            root: Some(pointer.clone()),
            streams,
        };
        if promotion.target.is_some() || !frozen.jobs.is_empty() {
            // What cursors say has been copied is on the targets.
            self.array.sync()?;
        }
        if !broken("R12.superblocks") {
            self.commit_record(&record.encode(), kind == CheckpointKind::Clean, promotion)?;
        }

        let overlay = root.overlay.iter().map(|(id, _)| *id).collect();
        let roots = Roots {
            page: root,
            pointer: Some(pointer),
            volumes: Arc::new(volumes),
            snapshots,
        };
        Ok(Written {
            roots,
            record,
            folds,
            overlay,
            rehashed,
        })
    }

    /// Step 4 itself.
    fn commit_record(
        &self,
        record: &[u8],
        clean: bool,
        promotion: &mut Promotion,
    ) -> Result<(), EngineError> {
        if let Some(target) = promotion.target {
            match self.array.commit_promoting(record, clean, target) {
                Ok(()) => {
                    promotion.done = true;
                    return Ok(());
                }
                Err(error) if error.kind() == Kind::TargetLost => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.array.commit(record, clean)?)
    }

    fn overlay(&self) -> Result<Vec<(SegmentId, SegmentRecord)>, EngineError> {
        let mut changed = self.table.take_dirty_of(Stream::Map);
        if broken("R12.overlay") {
            changed.clear();
        }
        if changed.len() > OVERLAY_MAX {
            let ids: Vec<SegmentId> = changed.iter().map(|(id, _)| *id).collect();
            self.table.mark_dirty(&ids);
            return Err(EngineError::new(
                ErrorKind::Failed,
                "The segment table needs more new segments than a root page can name",
            ));
        }
        let decoded = changed.iter().map(|(id, bytes)| {
            (
                *id,
                SegmentRecord::decode(bytes).expect("encoded by the table"),
            )
        });
        Ok(decoded.collect())
    }
}

fn encoded(records: &[(SegmentId, [u8; SEGMENT_RECORD_BYTES])]) -> BTreeMap<u64, Vec<u8>> {
    records
        .iter()
        .map(|(id, bytes)| (u64::from(id.0), bytes.to_vec()))
        .collect()
}

fn stream_ends(state: &AppendState) -> [StreamEnd; Stream::ALL.len()] {
    let mut ends = [StreamEnd::default(); Stream::ALL.len()];
    for position in state.appender.positions() {
        ends[position.stream.index()] = StreamEnd {
            segment: position.segment,
            generation: position.generation,
            closed_bytes: position.closed_bytes,
        };
    }
    ends
}
