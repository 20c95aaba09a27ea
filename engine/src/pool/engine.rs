//! The shared state of an open pool, and the order of its locks.
//!
//! ```text
//!   work  >  reclaim  >  checkpoint  >  commit  >  state (the append lock)  >  volume
//!                                   \__ stripe writer's own lock
//! ```
//! A thread takes locks only downwards, and holds the append lock for memory
//! operations only. Nobody waits for a thread: whoever needs progress (a free
//! stripe buffer, journal space, a free segment) makes it by calling the same
//! step functions that the background threads call. So the simulator drives
//! the whole engine from one thread (R24), and there is no hold and wait (R23).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Mutex, RwLock};
use tessera_dedup::{
    ChunkReader, FingerprintIndex,
    segment::{Appender, SegmentTable, StripeGeometry, StripeWriter},
};
use tessera_raid::{
    Array, SegmentId,
    device::{AlignedBuf, BufferPool},
    sabotage::broken,
};

use super::{
    accounting::Accounting,
    checkpoint::CheckpointState,
    commit::CommitState,
    jobs::Work,
    reclaim::ReclaimState,
    signals::Signals,
    snapshots::{Named, Snapshot},
    volume::Volume,
};
use crate::{
    disk::FlushDone,
    epochs::Epochs,
    error::{EngineError, ErrorKind},
    jobs::{Clock, JobTable},
    journal::RecordBuffer,
    settings::Settings,
};

/// What the memory budget is divided into, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Budget {
    pub(crate) chunk_cache: usize,
    pub(crate) page_cache: usize,
    pub(crate) index: usize,
    pub(crate) read_buffers: usize,
    pub(crate) stripe_buffers: usize,
    pub(crate) map_buffers: usize,
    /// Layers beyond this ask for a checkpoint.
    pub(crate) layers: usize,
}

impl Budget {
    /// Divides `memory_bytes`; stripe buffers get at least what works.
    pub(crate) fn of(memory_bytes: u64, stripe_bytes: u32) -> Self {
        let memory = usize::try_from(memory_bytes).unwrap_or(usize::MAX);
        let stripe = stripe_bytes as usize;
        let part = |hundredths: usize| memory / 100 * hundredths;
        Self {
            chunk_cache: part(25),
            page_cache: part(20),
            index: part(25),
            read_buffers: part(8).max(4 << 20),
            stripe_buffers: part(8)
                .min(48 << 20)
                .max(STRIPES_MIN * stripe)
                .max(GROUP_BUFFER_BYTES_MIN),
            map_buffers: part(2).min(16 << 20).max(4 * stripe),
            layers: part(10),
        }
    }
}

/// With fewer stripe buffers a group of chunks could not be appended.
const STRIPES_MIN: usize = 16;
/// Small stripes and segments waste some of each: a group of 1 MiB takes up to
/// twice that. A pool that can never hold one group's buffers would be waited
/// for without end (R23).
const GROUP_BUFFER_BYTES_MIN: usize = 4 << 20;

/// What the append lock guards: the one order of all changes (R13).
#[derive(Debug)]
pub(crate) struct AppendState {
    /// The sequence of the newest change.
    pub(crate) sequence: u64,
    pub(crate) appender: Appender,
    /// Records of changes that no commit has taken yet.
    pub(crate) pending: RecordBuffer,
    /// During recovery nothing is journalled: the journal being replayed has it.
    pub(crate) replaying: bool,
    /// Chunks that a partial write is working on, with a count of changes.
    pub(crate) partial: HashMap<(u64, u64), PartialMark>,
    /// Upper bound of map pages that the active layers will need.
    pub(crate) active_pages: u64,
    /// The same of frozen layers; 0 when no checkpoint runs.
    pub(crate) frozen_pages: u64,
    pub(crate) next_volume_id: u64,
    /// Volumes deleted since the last freeze.
    pub(crate) deleted_volumes: Vec<u64>,
    /// Snapshots that no checkpoint has stored yet.
    pub(crate) new_snapshots: Vec<Arc<Snapshot>>,
    /// Snapshots deleted since the last freeze.
    pub(crate) deleted_snapshots: Vec<u64>,
    /// Summaries of segments that will not be continued, for the map stream.
    pub(crate) recovered: Vec<tessera_dedup::Summary>,
    /// New summaries of sealed segments, with hashes that their own lack.
    pub(crate) rehashed: Vec<tessera_dedup::Summary>,
    /// Counts changes that may have left chunks without a reference.
    pub(crate) overwrites: u64,
}

/// See [`AppendState::partial`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PartialMark {
    pub(crate) writers: u32,
    pub(crate) version: u64,
}

/// Every volume, by id and by name, and every snapshot.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    pub(crate) by_id: BTreeMap<u64, Arc<Volume>>,
    pub(crate) by_name: BTreeMap<String, Arc<Volume>>,
    pub(crate) snapshots: BTreeMap<u64, Arc<Snapshot>>,
    /// By the id of their volume; none is empty.
    pub(crate) snapshots_of: BTreeMap<u64, Named>,
}

/// An open pool.
pub(crate) struct Engine {
    pub(crate) array: Arc<Array>,
    pub(crate) geometry: StripeGeometry,
    pub(crate) table: Arc<SegmentTable>,
    pub(crate) index: Arc<FingerprintIndex>,
    pub(crate) reader: ChunkReader,
    pub(crate) writer: Arc<StripeWriter>,
    /// For chunks of clients.
    pub(crate) stripe_buffers: BufferPool,
    /// For pages of checkpoints.
    pub(crate) map_buffers: BufferPool,
    pub(crate) volumes: RwLock<Volumes>,
    pub(crate) epochs: Epochs,
    pub(crate) accounting: Mutex<Accounting>,
    /// Counts passes that freed segments.
    pub(crate) frees: AtomicU64,
    /// Space was low when somebody last looked, and the log says so.
    pub(crate) space_is_low: AtomicBool,
    pub(crate) reclaim: Mutex<ReclaimState>,
    /// Segments whose pages a checkpoint writes anew when it comes across them.
    pub(crate) evacuating: Mutex<Arc<BTreeSet<SegmentId>>>,
    /// Segments with copies that snapshots are to name: nobody names them yet,
    /// and they are live all the same.
    pub(crate) unnamed_copies: Mutex<BTreeSet<SegmentId>>,
    /// Segments with chunks that snapshots are to name in the place of their
    /// duplicates: live, whoever names them now.
    pub(crate) unnamed_targets: Mutex<BTreeSet<SegmentId>>,
    /// What the job under way remembers. Held for a step.
    pub(crate) work: Mutex<Work>,
    /// Sealed segments, with their generation, in which every chunk is known to
    /// have a hash or no name: a deduplication need not look into them.
    pub(crate) hashed_segments: Mutex<BTreeSet<(u32, u64)>>,
    /// The sequence when the last deduplication began by itself.
    pub(crate) deduplicated_at: AtomicU64,
    /// The deduplication that began because nothing was written.
    pub(crate) idle_run: Mutex<Option<super::schedule::IdleRun>>,
    /// Clients were served since somebody looked.
    pub(crate) clients_busy: AtomicBool,
    pub(crate) settings: Mutex<Settings>,
    pub(crate) jobs: Mutex<JobTable>,
    pub(crate) clock: Clock,
    pub(crate) checkpoint: Mutex<CheckpointState>,
    pub(crate) commit: Mutex<CommitState>,
    pub(crate) state: Mutex<AppendState>,
    /// Everything up to this sequence is durable.
    pub(crate) durable: AtomicU64,
    pub(crate) flushes: Mutex<Vec<FlushDone>>,
    /// Bytes admitted and not yet appended (R22).
    pub(crate) in_flight_bytes: AtomicU64,
    /// Estimated memory of all active layers.
    pub(crate) layer_bytes: AtomicU64,
    /// Bytes of records waiting for a commit.
    pub(crate) pending_bytes: AtomicU64,
    pub(crate) failure: Mutex<Option<String>>,
    pub(crate) closed: AtomicBool,
    pub(crate) budget: Budget,
    pub(crate) signals: Signals,
    pub(crate) read_only: bool,
    /// Background threads run; else flushes commit in the caller's thread.
    pub(crate) threads: bool,
}

impl Engine {
    /// The pool has been closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Fails once the pool has stopped.
    pub(crate) fn check_usable(&self) -> Result<(), EngineError> {
        if self.is_closed() {
            return Err(EngineError::new(ErrorKind::Failed, "The pool is closed"));
        }
        match &*self.failure.lock() {
            None => Ok(()),
            Some(reason) => Err(EngineError::new(
                ErrorKind::Failed,
                format!("The pool has stopped accepting writes: {reason}"),
            )),
        }
    }

    /// After a commit step failed nothing more may be written (the handle is
    /// poisoned): what reached the members is for recovery to find out.
    pub(crate) fn poison(&self, error: &EngineError) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            tracing::error!(%error, "The pool stops accepting writes");
            *failure = Some(error.to_string());
        }
    }

    /// Poisons the pool for every failure but a lack of space, which passes.
    pub(crate) fn poison_unless_full<T>(
        &self,
        result: Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        if let Err(error) = &result
            && error.kind() != ErrorKind::NoSpace
        {
            self.poison(error);
        }
        result
    }

    /// Stripe buffers for a client's chunks; helps the stripe writer along
    /// while there are too few.
    pub(crate) fn take_stripe_buffers(&self, count: usize) -> Result<Vec<AlignedBuf>, EngineError> {
        let lengths = vec![self.geometry.stripe_bytes as usize; count];
        assert!(
            lengths.iter().sum::<usize>() <= self.budget.stripe_buffers,
            "one group's stripe buffers fit their pool (R23)"
        );
        let mut held = Vec::new();
        loop {
            if broken("R23.all_at_once") {
                while held.len() < count
                    && let Some(one) = self.stripe_buffers.try_take_many(&lengths[..1])
                {
                    held.extend(one);
                }
                if held.len() == count {
                    return Ok(held);
                }
            } else if let Some(buffers) = self.stripe_buffers.try_take_many(&lengths) {
                return Ok(buffers);
            }
            if !self.writer.step()? {
                // Another thread holds buffers and will give them back.
                std::thread::yield_now();
            }
        }
    }

    pub(crate) fn volume_by_name(&self, name: &str) -> Result<Arc<Volume>, EngineError> {
        self.volumes.read().volume(name)
    }

    /// Moves what happened to segments into the journal's records.
    pub(crate) fn journal_segment_events(state: &mut AppendState) {
        use tessera_dedup::segment::SegmentEvent;
        for event in state.appender.take_events() {
            if state.replaying {
                continue;
            }
            match event {
                SegmentEvent::Opened(id, record) => state.pending.segment_opened(id, &record),
                SegmentEvent::Sealed(id, record) => state.pending.segment_sealed(id, &record),
            }
        }
    }
}
