//! The array: members behind one layout, written in whole stripes.
//!
//! ```text
//!   write_stripes  journal_write  sync        read   read_alternatives
//!         \             |          |            \         /
//!          roster ------+----------+-------------+-------+     who takes part
//!             |  a failure
//!             v
//!          degrade -> superblocks -> witness -> recorded       R2, R3, R6
//! ```
//!
//! Invariants
//! - Nothing that skipped a member is acknowledged before the superblocks and
//!   the witness say so (R2, R3): every write ends in `Array::barrier`.
//! - The superblocks' sequence never advances before its last value is
//!   durable on every member in use (R1).
//! - No more failures are recorded than the layouts survive; beyond that
//!   writes stop and the superblocks are left alone (R4).
//! - Nothing is written while the superblocks say clean (R1).
//! - No lock is held during device I/O but the one that serializes repairs and
//!   the one that serializes membership orders, which nothing else takes (R6).
//! - Every whole stripe begun after an attach has returned goes to the target
//!   too; a target never counts for redundancy (`docs/members.md`).

mod alternatives;
mod attach;
mod check;
mod copies;
mod create;
mod failures;
mod journal;
mod limits;
mod open;
mod prepare;
mod read;
mod rebuild;
mod repair;
mod roster;
mod stall;
mod status;
mod stripe;
mod superblocks;
mod types;
mod verify;
mod write;

use std::{
    collections::VecDeque,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::{
    Column, Kind, LayoutId, Level, Placement, RaidError,
    device::{AlignedBuf, Backend, BufferPool, Io},
    layout::{Layout, SegmentGeometry},
    sabotage::broken,
    superblock::{Geometry, PoolRecord},
    witness::Witness,
};
use limits::LimitsInForce;
pub use limits::{Clock, Limits, ManualClock, SystemClock};
use roster::{Generations, Roster, Row};
use superblocks::Superblocks;
pub use types::{
    Alternative, ArrayState, ArrayStatus, Attached, CopyCounts, CopyPart, CopyReading, CreateSpec,
    MemberState, MemberStatus, OpenOptions, SegmentRead, Sizes, Source, StripeCheck, StripeState,
    StripeWrite, SuperblockScrub, Target, Unreadable,
};

/// Room for the engine's record in a superblock.
pub const ENGINE_RECORD_BYTES: usize = 1536;

/// Buffers for parity, merged reads and reconstruction that are kept for
/// reuse: enough for the writer's stripes and some readers. More are made and
/// freed as needed, so nobody waits here (R23).
const SCRATCH_BYTES: usize = 32 << 20;

/// An open array. All methods may be called from several threads at once.
///
/// The caller promises not to write to a segment's stripe twice at the same
/// time, and to free a placement only when nothing uses it (R9).
pub struct Array {
    backend: Arc<dyn Backend>,
    witness: Box<dyn Witness>,
    read_only: bool,
    limits: LimitsInForce,
    clock: Arc<dyn Clock>,
    pool: Uuid,
    layouts: Vec<Layout>,
    current_layout: LayoutId,
    geometry: Geometry,
    slot_count: u32,
    /// Who is behind which row.
    generations: Generations,
    /// Rows whose absence superblocks and witness know (R2).
    recorded: AtomicU64,
    /// The superblocks say clean, or are about to.
    clean: AtomicBool,
    was_clean: bool,
    stopped: AtomicBool,
    stop_reason: Mutex<Option<String>>,
    superblocks: Mutex<Superblocks>,
    superblocks_written: Condvar,
    /// Serializes those who add, attach, promote and remove.
    memberships: Mutex<()>,
    last_failure: Mutex<Option<String>>,
    /// Ranges that were reconstructed because reading them failed.
    unreadable: Mutex<VecDeque<Unreadable>>,
    /// Batches begun.
    ticks: AtomicU64,
    scratch: BufferPool,
    /// Spreads reads over mirrors.
    rotor: AtomicU64,
    repairs: Mutex<()>,
}

/// What is needed to put an [`Array`] together.
struct Parts {
    backend: Arc<dyn Backend>,
    witness: Box<dyn Witness>,
    read_only: bool,
    limits: Limits,
    clock: Arc<dyn Clock>,
    record: PoolRecord,
    rows: Vec<Row>,
}

impl Array {
    fn assemble(parts: Parts) -> Self {
        let Parts {
            backend,
            witness,
            read_only,
            limits,
            clock,
            record,
            rows,
        } = parts;
        Self {
            backend,
            witness,
            read_only,
            limits: LimitsInForce::new(limits),
            clock,
            pool: record.pool,
            layouts: record.layouts.clone(),
            current_layout: record.current_layout,
            geometry: record.geometry,
            slot_count: record.slot_count(),
            generations: Generations::new(Roster::of(&record, rows)),
            recorded: AtomicU64::new(record.not_in_sync().0),
            clean: AtomicBool::new(record.clean),
            was_clean: record.clean,
            stopped: AtomicBool::new(false),
            stop_reason: Mutex::new(None),
            superblocks: Mutex::new(Superblocks::new(record)),
            superblocks_written: Condvar::new(),
            memberships: Mutex::new(()),
            last_failure: Mutex::new(None),
            unreadable: Mutex::new(VecDeque::new()),
            ticks: AtomicU64::new(0),
            scratch: BufferPool::new(SCRATCH_BYTES),
            rotor: AtomicU64::new(0),
            repairs: Mutex::new(()),
        }
    }

    /// The pool.
    pub fn uuid(&self) -> Uuid {
        self.pool
    }

    /// The level of the current layout.
    pub fn level(&self) -> Level {
        self.current_layout().level
    }

    /// Whether the array was opened read-only.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// A layout by its id.
    pub fn layout(&self, id: LayoutId) -> Option<&Layout> {
        self.layouts.iter().find(|layout| layout.id == id)
    }

    /// The layout for new segments.
    pub fn current_layout(&self) -> &Layout {
        self.layout(self.current_layout)
            .expect("the record holds its current layout")
    }

    /// Data bytes in one stripe of the current layout.
    pub fn stripe_data_bytes(&self) -> u32 {
        self.current_layout().stripe_data_bytes()
    }

    /// Stripes in one segment of the current layout.
    pub fn stripes_per_segment(&self) -> u32 {
        self.segment_geometry(self.current_layout())
            .stripes_per_segment
    }

    /// Data bytes in one segment; below 2^24.
    pub fn segment_data_bytes(&self) -> u32 {
        self.segment_geometry(self.current_layout())
            .segment_data_bytes()
    }

    /// Segments the members can hold.
    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Data bytes the members can hold.
    pub fn data_capacity_bytes(&self) -> u64 {
        u64::from(self.slot_count) * u64::from(self.segment_data_bytes())
    }

    /// Which device implementation is in use.
    pub fn io_engine(&self) -> &'static str {
        self.backend.name()
    }

    /// What a member may do wrong before it is failed.
    pub fn limits(&self) -> Limits {
        self.limits.get()
    }

    /// Changes the limits, at once.
    pub fn set_limits(&self, limits: Limits) {
        self.limits.set(limits);
    }

    /// Closes the devices, as dropping does.
    pub fn close(self) {}

    /// Who is behind which row, for one operation.
    fn roster(&self) -> Arc<Roster> {
        self.generations.pin()
    }

    fn segment_geometry(&self, layout: &Layout) -> SegmentGeometry {
        let stripes = self.geometry.slot_bytes / u64::from(layout.stripe_unit_bytes);
        let stripes = u32::try_from(stripes).expect("a segment is below 16 MiB");
        SegmentGeometry::with_stripes(layout, stripes)
    }

    /// The layout of a placement that fits the members.
    fn layout_of(&self, placement: &Placement) -> Result<&Layout, RaidError> {
        let invalid = |what: String| RaidError::new(Kind::InvalidArgument, what);
        let layout = self
            .layout(placement.layout)
            .ok_or_else(|| invalid(format!("The pool has no layout {}", placement.layout)))?;
        if let crate::layout::Slots::PerMember(slots) = &placement.slots
            && slots.len() != layout.members.len()
        {
            return Err(invalid(
                "The placement has a wrong number of slots".to_owned(),
            ));
        }
        for column in layout.columns().iter() {
            let slot = placement.slot(column);
            if slot.0 >= self.slot_count {
                return Err(invalid(format!(
                    "Slot {slot} is beyond the {} that the members have",
                    self.slot_count
                )));
            }
        }
        Ok(layout)
    }

    /// Where a stripe's unit in `column` starts on its member.
    fn unit_offset(
        &self,
        layout: &Layout,
        placement: &Placement,
        column: Column,
        stripe: u32,
    ) -> u64 {
        self.geometry.slots_offset
            + u64::from(placement.slot(column).0) * self.geometry.slot_bytes
            + u64::from(stripe) * u64::from(layout.stripe_unit_bytes)
    }

    /// A buffer for a while, its contents arbitrary.
    fn scratch(&self, length: usize) -> AlignedBuf {
        self.scratch
            .try_take(length)
            .unwrap_or_else(|| AlignedBuf::zeroed(length))
    }

    /// Runs a batch on devices of `roster`.
    fn run(&self, roster: &Roster, batch: &mut [Io]) {
        if batch.is_empty() {
            return;
        }
        let verdict = stall::BatchVerdict::new(self, roster, batch);
        self.backend.run(batch, &verdict);
        for device in roster.devices() {
            let own = || batch.iter().filter(|io| io.device == device.handle);
            if own().next().is_some() && !own().any(failures::shows_failure) {
                device
                    .completed
                    .fetch_max(verdict.tick(), Ordering::Relaxed);
            }
        }
    }

    fn read_only_error(&self) -> RaidError {
        RaidError::new(
            Kind::ReadOnly,
            format!("Pool {} is open read-only", self.pool),
        )
    }

    /// Whether writing is possible at all.
    fn may_write(&self) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        self.check_stopped()?;
        // R1: whoever writes has first said that the state is unclean.
        assert!(
            !self.clean.load(Ordering::Acquire) || broken("R1.clean_flag"),
            "the clean flag is cleared before the first write"
        );
        Ok(())
    }

    fn check_stopped(&self) -> Result<(), RaidError> {
        if !self.stopped.load(Ordering::Acquire) {
            return Ok(());
        }
        let reason = self.stop_reason.lock().clone().unwrap_or_default();
        Err(RaidError::new(
            Kind::Stopped,
            format!("Writes have stopped: {reason}"),
        ))
    }

    /// Stops all writes of this process for good. The first reason stays.
    fn stop(&self, reason: String) -> RaidError {
        let mut stop_reason = self.stop_reason.lock();
        if stop_reason.is_none() {
            tracing::error!(pool = %self.pool, %reason, "writes have stopped");
            *stop_reason = Some(reason);
        }
        self.stopped.store(true, Ordering::Release);
        let reason = stop_reason.clone().unwrap_or_default();
        RaidError::new(Kind::Stopped, format!("Writes have stopped: {reason}"))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("pool", &self.pool)
            .field("level", &self.level())
            .field("in_use", &self.roster().in_use())
            .finish_non_exhaustive()
    }
}
