//! Opening a pool: from members to an engine that serves.
//!
//! ```text
//!   superblocks (raid) -> engine record -> root page -> segment table -> catalogue
//!     -> clean:   go on where the streams ended
//!     -> unclean: replay the journal (recovery.rs), full checkpoint, serve
//! ```
//! Before anything else is written the superblocks say "unclean" and carry a
//! higher generation limit, so that an interrupted recovery never issues a
//! generation that a later one issues again (R1, R9).

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::{Mutex, RwLock};
use tessera_dedup::{
    ChunkReader, FingerprintIndex, Hit, IndexOptions, PlacedPage, ReaderOptions, Summary,
    SummaryId,
    segment::{
        Generations, SegmentRecord, SegmentState, SegmentTable, Stream, StripeGeometry, pipeline,
    },
};
use tessera_raid::{
    Array, SegmentId, SegmentRead,
    device::{AlignedBuf, BLOCK_BYTES, BufferPool},
    sabotage::broken,
};

use super::{
    CheckpointKind,
    checkpoint::{CheckpointState, GENERATIONS_AHEAD},
    commit::CommitState,
    engine::{AppendState, Budget, Engine, Volumes},
    pages::Pages,
    repair::Salvage,
    roots::Roots,
    snapshots::Snapshot,
    volume::Volume,
};
use crate::{
    catalogue::VolumeRecord,
    epochs::Epochs,
    error::{EngineError, ErrorKind},
    jobs::{Clock, JobRecord, JobTable},
    journal::{ChainPoint, Epoch, RecordBuffer, Ring},
    map::{self, PAGE_BYTES},
    root::{EngineRecord, RootPage, StreamEnd},
    snapshot::SnapshotRecord,
};

/// Where epochs come from: random in production, a seed in simulation.
pub type EpochSource = Arc<dyn Fn() -> [u8; 16] + Send + Sync>;

/// How the engine is opened over an array.
#[derive(Clone)]
pub struct EngineOptions {
    /// The budget for caches, index and buffers, in bytes.
    pub memory_bytes: u64,
    /// Where the fingerprint index lives; `None` keeps it in memory.
    pub index_directory: Option<PathBuf>,
    /// Source of journal epochs.
    pub epochs: EpochSource,
    /// Milliseconds since 1970, for what jobs record and the scrub schedule.
    /// A clock that stands at 0 schedules nothing.
    pub clock: Clock,
    /// Go on where a clean stop left the open segments. Off in tests that want
    /// every opening to look like the one after a crash.
    pub resume: bool,
    /// Background threads will drive the steps. Without, a flush commits in
    /// the caller's thread.
    pub threads: bool,
}

impl EngineOptions {
    /// With a memory budget, an index in memory, random epochs and no clock.
    pub fn new(memory_bytes: u64) -> Self {
        Self {
            memory_bytes,
            index_directory: None,
            epochs: Arc::new(|| *uuid::Uuid::new_v4().as_bytes()),
            clock: Arc::new(|| 0),
            resume: true,
            threads: false,
        }
    }
}

/// The engine record of a new pool.
pub(crate) fn new_record(epochs: &EpochSource) -> EngineRecord {
    EngineRecord {
        checkpoint: 0,
        sequence: 0,
        generation_limit: 1,
        journal: chain_start(epochs),
        root: None,
        streams: Default::default(),
    }
}

/// A new chain under a new epoch, at the start of the ring.
pub(crate) fn chain_start(epochs: &EpochSource) -> ChainPoint {
    ChainPoint {
        epoch: Epoch(epochs()),
        ..ChainPoint::default()
    }
}

impl Engine {
    /// Opens the engine over an array; recovers if the last stop was unclean.
    pub(crate) fn open(array: Array, options: &EngineOptions) -> Result<Arc<Self>, EngineError> {
        Self::open_salvaging(array, options, None)
    }

    /// The same with what a repair found in place of what the superblocks lead
    /// to. Their record stays as it is until the checkpoint at the end.
    pub(crate) fn open_salvaging(
        array: Array,
        options: &EngineOptions,
        salvage: Option<&Salvage>,
    ) -> Result<Arc<Self>, EngineError> {
        let array = Arc::new(array);
        let kept = array.engine_record();
        let record = salvage
            .map(|salvage| salvage.record.clone())
            .or_else(|| EngineRecord::decode(&kept))
            .ok_or_else(|| {
                EngineError::damaged(
                    "The superblock's engine record cannot be understood: repair the pool",
                )
            })?;
        let read_only = array.read_only();
        let clean = array.was_clean() && salvage.is_none();

        let first_generation = record.generation_limit;
        let mut unclean = record.clone();
        if !broken("R9.high_water") {
            unclean.generation_limit = first_generation + GENERATIONS_AHEAD;
        }
        if clean {
            unclean.journal = chain_start(&options.epochs);
        }
        if !read_only && !broken("R1.clean_flag") {
            let bytes = match salvage {
                Some(_) => kept,
                None => unclean.encode(),
            };
            array.commit(&bytes, false)?;
        }
        let generations = Generations::new(first_generation, unclean.generation_limit);

        let table = Arc::new(SegmentTable::new(
            array.slot_count(),
            array.current_layout().id,
        ));
        let budget = Budget::of(options.memory_bytes, array.stripe_data_bytes());
        let (appender, writer, unwritten) = pipeline(&array, &table, generations);
        let reader = ChunkReader::new(
            Arc::clone(&array),
            Arc::clone(&table) as Arc<dyn tessera_dedup::SegmentDirectory>,
            unwritten,
            ReaderOptions {
                pool: array.uuid(),
                chunk_cache_bytes: budget.chunk_cache,
                page_cache_bytes: budget.page_cache,
                buffer_bytes: budget.read_buffers,
            },
        );
        let roots = match salvage {
            Some(salvage) => salvaged_roots(salvage, &table),
            None => load_roots(&array, &reader, &table, &record)?,
        };
        let next_volume_id = roots.page.next_volume_id;
        let volumes = match salvage {
            Some(salvage) => salvaged_volumes(salvage),
            None => load_volumes(&reader, &roots.page)?,
        };
        let jobs = match salvage {
            Some(_) => JobTable::load(BTreeMap::new(), roots.page.next_job_id),
            None => load_jobs(&reader, &roots.page)?,
        };
        let settings = roots.page.settings;
        let index = FingerprintIndex::open(
            IndexOptions {
                dir: options.index_directory.clone().filter(|_| !read_only),
                pool: array.uuid(),
                memory_bytes: budget.index,
                disk_bytes: settings.kept.index_disk_bytes,
                dropped: settings.index_dropped,
            },
            Arc::clone(&array),
        )
        .map_err(|error| {
            EngineError::new(ErrorKind::Io, "The fingerprint index cannot be opened")
                .caused_by(error)
        })?;
        let roots = Roots {
            volumes: Arc::new(
                volumes
                    .by_id
                    .values()
                    .map(|volume| (volume.id, volume.state.read().view.tree))
                    .collect(),
            ),
            snapshots: Arc::new(
                volumes
                    .snapshots
                    .values()
                    .map(|snapshot| (snapshot.id, snapshot.disk.state.read().view.tree))
                    .collect(),
            ),
            ..roots
        };
        // The table that a salvaged pool gets has none of them yet.
        let new_snapshots = match salvage {
            Some(_) => volumes.snapshots.values().cloned().collect(),
            None => Vec::new(),
        };
        let geometry = StripeGeometry {
            stripe_bytes: array.stripe_data_bytes(),
            segment_bytes: array.segment_data_bytes(),
        };
        let ring = Ring::new(Arc::clone(&array), unclean.journal);
        let engine = Arc::new(Self {
            geometry,
            table,
            index: Arc::new(index),
            reader,
            writer,
            stripe_buffers: BufferPool::new(budget.stripe_buffers),
            map_buffers: BufferPool::new(budget.map_buffers),
            volumes: RwLock::new(volumes),
            epochs: Epochs::default(),
            accounting: Mutex::default(),
            frees: Default::default(),
            space_is_low: Default::default(),
            reclaim: Mutex::default(),
            evacuating: Mutex::default(),
            unnamed_copies: Mutex::default(),
            unnamed_targets: Mutex::default(),
            work: Mutex::default(),
            hashed_segments: Mutex::default(),
            deduplicated_at: AtomicU64::new(u64::MAX),
            idle_run: Mutex::new(None),
            clients_busy: false.into(),
            settings: Mutex::new(settings),
            jobs: Mutex::new(jobs),
            clock: Arc::clone(&options.clock),
            checkpoint: Mutex::new(CheckpointState {
                roots: Arc::new(roots),
                record: unclean,
            }),
            commit: Mutex::new(CommitState::new(ring)),
            state: Mutex::new(AppendState {
                sequence: record.sequence,
                appender,
                pending: RecordBuffer::default(),
                replaying: false,
                partial: HashMap::new(),
                active_pages: 0,
                frozen_pages: 0,
                next_volume_id,
                deleted_volumes: Vec::new(),
                new_snapshots,
                deleted_snapshots: Vec::new(),
                overwrites: 0,
                recovered: Vec::new(),
                rehashed: Vec::new(),
            }),
            durable: record.sequence.into(),
            flushes: Mutex::default(),
            in_flight_bytes: 0.into(),
            layer_bytes: 0.into(),
            pending_bytes: 0.into(),
            failure: Mutex::default(),
            closed: false.into(),
            budget,
            signals: Default::default(),
            read_only,
            threads: options.threads,
            array,
        });
        if clean {
            engine.resume_streams(&record.streams, options.resume);
        } else {
            engine.recover(&record)?;
        }
        if !read_only && (!clean || !engine.state.lock().recovered.is_empty()) {
            // R19: what was readable once must not vanish in a second crash.
            let mut start = chain_start(&options.epochs);
            if broken("R19.epoch") {
                start.epoch = record.journal.epoch;
            }
            if !broken("R19.checkpoint") {
                engine.checkpoint_now(CheckpointKind::Recovery(start))?;
            }
        }
        engine.apply_limits(&settings);
        if !read_only {
            engine.reconcile_rebuilds();
        }
        engine.begin_index_rebuild();
        Ok(engine)
    }

    /// After a clean stop: open segments go on at their next stripe.
    fn resume_streams(&self, ends: &[StreamEnd], resume: bool) {
        let mut state = self.state.lock();
        for (id, record) in self.table.live() {
            if record.state != SegmentState::Open {
                continue;
            }
            let stream = record.stream();
            let end = stream
                .map(|stream| ends[stream.index()])
                .filter(|end| end.segment == id && end.generation == record.generation && resume);
            let records = self
                .read_summary(id, &record)
                .map(|summary| summary.records);
            match (stream, end, records) {
                (Some(stream), Some(end), records) if !self.read_only => {
                    let records = records.unwrap_or_default();
                    if stream == Stream::Data {
                        self.remember_fresh(record.generation, &records);
                    }
                    let record = SegmentRecord {
                        closed_bytes: end.closed_bytes,
                        ..record
                    };
                    self.table
                        .update(id, |kept| kept.closed_bytes = end.closed_bytes);
                    state.appender.resume(stream, id, record, records);
                }
                _ => self.dead_end(&mut state, id, record.closed_bytes, None),
            }
        }
    }

    /// Closes the life of a segment that will not be continued: what it has is
    /// what it keeps; its summary goes into the map stream.
    pub(crate) fn dead_end(
        &self,
        state: &mut AppendState,
        id: SegmentId,
        closed_bytes: u32,
        summary: Option<Summary>,
    ) {
        self.table.update(id, |record| {
            record.state = SegmentState::Sealed;
            record.closed_bytes = closed_bytes;
            if let Some(summary) = &summary {
                record.chunks = u32::try_from(summary.records.len()).unwrap_or(u32::MAX);
                record.stored_bytes = summary.records.iter().map(|r| r.entry.stored).sum();
                record.logical_bytes = summary.records.iter().map(|r| u64::from(r.logical)).sum();
            }
        });
        state.recovered.extend(summary);
    }

    fn remember_fresh(
        &self,
        generation: tessera_dedup::Generation,
        records: &[tessera_dedup::SummaryRecord],
    ) {
        for record in records {
            if let Some(fingerprint) = record.fingerprint {
                let hit = Hit {
                    entry: record.entry,
                    generation,
                    logical: record.logical,
                };
                self.index.fresh_insert(fingerprint, hit);
            }
        }
    }

    /// The summary a segment's record points to; `None` when there is none
    /// that verifies. Losing it loses deduplication, not data.
    pub(crate) fn read_summary(&self, id: SegmentId, record: &SegmentRecord) -> Option<Summary> {
        if record.summary.blocks == 0 {
            return None;
        }
        let holder = self.table.record(record.summary.segment)?;
        let length = usize::from(record.summary.blocks) * BLOCK_BYTES;
        let mut reads = [SegmentRead {
            placement: holder.placement(),
            offset: record.summary.offset,
            buffer: AlignedBuf::zeroed(length),
            outcome: Ok(()),
        }];
        self.array.read(&mut reads);
        let [read] = reads;
        read.outcome.ok()?;
        let expected = SummaryId {
            pool: self.array.uuid(),
            segment: id,
            generation: record.generation,
        };
        tessera_dedup::summary::decode_blocks(&read.buffer, &expected).ok()
    }

    /// Tells the index what is sealed; it reads in what it lacks.
    pub(super) fn begin_index_rebuild(&self) {
        if self.read_only {
            return;
        }
        let live = self.table.live();
        let mut sealed = live
            .iter()
            .filter(|(_, record)| {
                record.state == SegmentState::Sealed && record.stream() == Some(Stream::Data)
            })
            .map(|(id, record)| (*id, record.generation));
        self.index.rebuild_begin(&mut sealed);
    }
}

/// Reads the root page and fills the segment table from it.
pub(crate) fn load_roots(
    array: &Array,
    reader: &ChunkReader,
    table: &SegmentTable,
    record: &EngineRecord,
) -> Result<Roots, EngineError> {
    let Some(pointer) = &record.root else {
        let page = RootPage::empty(array.uuid());
        return Ok(Roots {
            page,
            pointer: None,
            volumes: Arc::default(),
            snapshots: Arc::default(),
        });
    };
    let placed = PlacedPage {
        entry: pointer.entry,
        generation: pointer.generation,
        placement: pointer.placement.clone(),
    };
    let bytes = reader
        .read_placed(&[placed])
        .pop()
        .expect("one answer")
        .map_err(|error| EngineError::damaged("The root page cannot be read").caused_by(error))?;
    let page = RootPage::decode(&bytes)
        .filter(|page| page.pool == array.uuid() && page.checkpoint == record.checkpoint)
        .ok_or_else(|| EngineError::damaged("The root page is not this pool's"))?;
    load_table(&page, reader, table)?;
    Ok(Roots {
        page,
        pointer: Some(pointer.clone()),
        volumes: Arc::default(),
        snapshots: Arc::default(),
    })
}

/// Roots whose tables the next checkpoint writes anew, and the segment table.
fn salvaged_roots(salvage: &Salvage, table: &SegmentTable) -> Roots {
    let mut roots = salvage.roots.clone();
    let empty = RootPage::empty(roots.page.pool);
    roots.page.catalogue = empty.catalogue;
    roots.page.segments = empty.segments;
    roots.page.jobs = empty.jobs;
    roots.page.snapshots = empty.snapshots;
    roots.page.overlay = Vec::new();
    for (id, record) in &salvage.segments {
        table.load(*id, *record);
    }
    let ids: Vec<SegmentId> = salvage.segments.iter().map(|(id, _)| *id).collect();
    table.mark_dirty(&ids);
    roots
}

fn salvaged_volumes(salvage: &Salvage) -> Volumes {
    let mut volumes = Volumes::default();
    for record in &salvage.volumes {
        let volume = Volume::new(record);
        let mut state = volume.state.write();
        state.record_changed = true;
        for (first, entries) in salvage.leaves.get(&record.id).into_iter().flatten() {
            state.active.set_run(*first, entries);
        }
        drop(state);
        volumes.insert(Arc::new(volume));
    }
    for record in &salvage.snapshots {
        volumes.insert_snapshot(Arc::new(Snapshot::new(record)));
    }
    volumes
}

/// Fills a table from a root page's tree and overlay.
pub(crate) fn load_table(
    page: &RootPage,
    reader: &ChunkReader,
    table: &SegmentTable,
) -> Result<(), EngineError> {
    let load = |number: u64, record: SegmentRecord| {
        let id = u32::try_from(number).ok().map(SegmentId);
        if id.is_some_and(|id| table.load(id, record)) {
            Ok(())
        } else {
            Err(EngineError::damaged(format!(
                "Segment {number} does not exist on the members"
            )))
        }
    };
    map::for_each_record(&page.segments, &Pages(reader), |number, bytes| {
        let record = bytes
            .try_into()
            .ok()
            .and_then(SegmentRecord::decode)
            .ok_or_else(|| {
                EngineError::damaged(format!("The record of segment {number} is malformed"))
            })?;
        load(number, record)
    })?;
    for (id, record) in &page.overlay {
        load(u64::from(id.0), *record)?;
    }
    Ok(())
}

/// The volumes of a root page.
pub(crate) fn load_records(
    reader: &ChunkReader,
    page: &RootPage,
) -> Result<Vec<VolumeRecord>, EngineError> {
    let mut records = Vec::new();
    map::for_each_record(&page.catalogue, &Pages(reader), |id, bytes| {
        let record = bytes
            .try_into()
            .ok()
            .and_then(VolumeRecord::decode)
            .filter(|record| record.id == id)
            .ok_or_else(|| {
                EngineError::damaged(format!("The record of volume {id} is malformed"))
            })?;
        records.push(record);
        Ok::<(), EngineError>(())
    })?;
    Ok(records)
}

/// The snapshots of a root page.
pub(crate) fn load_snapshots(
    reader: &ChunkReader,
    page: &RootPage,
) -> Result<Vec<SnapshotRecord>, EngineError> {
    let mut records = Vec::new();
    map::for_each_record(&page.snapshots, &Pages(reader), |id, bytes| {
        let record = bytes
            .try_into()
            .ok()
            .and_then(SnapshotRecord::decode)
            .filter(|record| record.id == id)
            .ok_or_else(|| {
                EngineError::damaged(format!("The record of snapshot {id} is malformed"))
            })?;
        records.push(record);
        Ok::<(), EngineError>(())
    })?;
    Ok(records)
}

fn load_volumes(reader: &ChunkReader, page: &RootPage) -> Result<Volumes, EngineError> {
    let mut volumes = Volumes::default();
    for record in load_records(reader, page)? {
        volumes.insert(Arc::new(Volume::new(&record)));
    }
    for record in load_snapshots(reader, page)? {
        volumes.insert_snapshot(Arc::new(Snapshot::new(&record)));
    }
    Ok(volumes)
}

/// The job table of a root page. A row that cannot be understood is left out:
/// no data hangs on it.
fn load_jobs(reader: &ChunkReader, page: &RootPage) -> Result<JobTable, EngineError> {
    let mut rows = BTreeMap::new();
    map::for_each_record(&page.jobs, &Pages(reader), |row, bytes| {
        match JobRecord::decode(bytes) {
            Some(record) => {
                rows.insert(row, record);
            }
            None => tracing::warn!(row, "The record of a job is malformed"),
        }
        Ok::<(), EngineError>(())
    })?;
    Ok(JobTable::load(rows, page.next_job_id))
}

impl Volumes {
    pub(crate) fn insert(&mut self, volume: Arc<Volume>) {
        let name = volume.state.read().name.clone();
        self.by_name.insert(name, Arc::clone(&volume));
        self.by_id.insert(volume.id, volume);
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Arc<Volume>> {
        let volume = self.by_id.remove(&id)?;
        self.by_name.remove(&volume.state.read().name);
        Some(volume)
    }
}

/// A page is a block: what the map calls one and what raid calls the other.
const _: () = assert!(PAGE_BYTES == BLOCK_BYTES);
