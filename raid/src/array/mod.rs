//! The array: members behind one layout, written in whole stripes.
//!
//! ```text
//!   write_stripes  journal_write  sync        read   read_alternatives
//!         \             |          |            \         /
//!          in_use ------+----------+-------------+-------+     who takes part
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
//! - No lock is held during device I/O but the one that serializes repairs,
//!   which nothing else takes (R6).

mod alternatives;
mod check;
mod create;
mod journal;
mod open;
mod read;
mod repair;
mod stall;
mod stripe;
mod superblocks;
mod types;
mod write;

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Condvar, Mutex};
use uuid::Uuid;

use crate::{
    Column, Kind, LayoutId, Level, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, Backend, BufferPool, DeviceHandle, Io, IoOp},
    layout::{Layout, SegmentGeometry},
    sabotage::broken,
    superblock::{Geometry, PoolRecord, Standing},
    witness::Witness,
};
use stall::Progress;
use superblocks::Superblocks;
pub use types::{
    Alternative, ArrayState, ArrayStatus, CreateSpec, MemberState, MemberStatus, OpenOptions,
    SegmentRead, Sizes, StripeWrite,
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
    stall_limit: Duration,
    pool: Uuid,
    layouts: Vec<Layout>,
    current_layout: LayoutId,
    geometry: Geometry,
    slot_count: u32,
    members: Vec<Member>,
    all: MemberSet,
    /// The members that I/O goes to.
    in_use: AtomicU64,
    /// Of the others, those whose absence superblocks and witness know (R2).
    recorded: AtomicU64,
    /// The superblocks say clean, or are about to.
    clean: AtomicBool,
    was_clean: bool,
    stopped: AtomicBool,
    stop_reason: Mutex<Option<String>>,
    superblocks: Mutex<Superblocks>,
    superblocks_written: Condvar,
    progress: Arc<Progress>,
    scratch: BufferPool,
    /// Spreads reads over mirrors.
    rotor: AtomicU64,
    repairs: Mutex<()>,
}

/// A member of an open array.
struct Member {
    uuid: Uuid,
    path: std::path::PathBuf,
    /// `None` for one that is not used at all.
    device: Option<DeviceHandle>,
    /// It was there when the array was opened.
    present: bool,
    errors: AtomicU64,
    repaired: AtomicU64,
}

/// What is needed to put an [`Array`] together.
struct Parts {
    backend: Arc<dyn Backend>,
    witness: Box<dyn Witness>,
    read_only: bool,
    stall_limit: Duration,
    record: PoolRecord,
    in_use: MemberSet,
    members: Vec<Member>,
}

impl Array {
    fn assemble(parts: Parts) -> Self {
        let Parts {
            backend,
            witness,
            read_only,
            stall_limit,
            record,
            in_use,
            members,
        } = parts;
        let all: MemberSet = record.indices().collect();
        let slot_count = record.members.iter().map(|member| member.slot_count).min();
        let devices = members.iter().map(|member| member.device).collect();
        Self {
            progress: Arc::new(Progress::new(Arc::clone(&backend), devices)),
            backend,
            witness,
            read_only,
            stall_limit,
            pool: record.pool,
            layouts: record.layouts.clone(),
            current_layout: record.current_layout,
            geometry: record.geometry,
            slot_count: slot_count.unwrap_or(0),
            members,
            all,
            in_use: AtomicU64::new(in_use.0),
            recorded: AtomicU64::new(record.not_in_sync().0),
            clean: AtomicBool::new(record.clean),
            was_clean: record.clean,
            stopped: AtomicBool::new(false),
            stop_reason: Mutex::new(None),
            superblocks: Mutex::new(Superblocks::new(record)),
            superblocks_written: Condvar::new(),
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

    /// The array and its members.
    pub fn status(&self) -> ArrayStatus {
        let in_use = self.in_use();
        let stopped = self.stop_reason.lock().clone();
        let state = match (&stopped, in_use == self.all) {
            (Some(_), _) => ArrayState::Failed,
            (None, true) => ArrayState::Online,
            (None, false) => ArrayState::Degraded,
        };
        let members = self.all.iter().map(|index| {
            let member = self.member(index);
            MemberStatus {
                index,
                uuid: member.uuid,
                path: member.path.clone(),
                state: match (in_use.contains(index), member.present) {
                    (true, _) => MemberState::Online,
                    (false, true) => MemberState::Failed,
                    (false, false) => MemberState::Missing,
                },
                errors: member.errors.load(Ordering::Relaxed),
                repaired: member.repaired.load(Ordering::Relaxed),
            }
        });
        ArrayStatus {
            state,
            members: members.collect(),
            stopped,
        }
    }

    /// Fails a member; on `Ok` the degrade barrier is durable (R2).
    ///
    /// # Errors
    /// `TooFewMembers` where the array cannot do without it; nothing changes
    /// then (R4).
    pub fn fail_member(&self, member: MemberIndex, reason: &str) -> Result<(), RaidError> {
        if self.read_only {
            return Err(self.read_only_error());
        }
        if !self.all.contains(member) {
            return Err(RaidError::new(
                Kind::InvalidArgument,
                format!("The pool has no member {member}"),
            ));
        }
        self.check_dispensable(member)?;
        self.degrade(MemberSet::of(member), reason)
    }

    /// Closes the devices, as dropping does.
    pub fn close(self) {}

    /// The members that I/O goes to.
    fn in_use(&self) -> MemberSet {
        MemberSet(self.in_use.load(Ordering::Acquire))
    }

    fn member(&self, index: MemberIndex) -> &Member {
        &self.members[index.index()]
    }

    fn device(&self, index: MemberIndex) -> DeviceHandle {
        self.member(index).device.expect("a member in use is open")
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

    /// An operation on a member.
    fn io(&self, member: MemberIndex, offset: u64, op: IoOp) -> Io {
        Io {
            device: self.device(member),
            offset,
            op,
            outcome: None,
        }
    }

    /// Runs a batch whose n-th operation is for the n-th of `members`.
    fn run(&self, batch: &mut [Io], members: impl Iterator<Item = MemberIndex> + Clone) {
        if batch.is_empty() {
            return;
        }
        let verdict = stall::BatchVerdict::new(self, members.clone().collect());
        self.backend.run(batch, &verdict);
        let completed = batch.iter().zip(members).filter(|(io, _)| {
            !matches!(&io.outcome, Some(Err(error)) if error.kind() == io::ErrorKind::TimedOut)
        });
        self.progress
            .completed(verdict.tick(), completed.map(|(_, member)| member));
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

    fn count_error(&self, member: MemberIndex) {
        self.member(member).errors.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        for member in &self.members {
            if let Some(device) = member.device {
                self.backend.close(device);
            }
        }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("pool", &self.pool)
            .field("level", &self.level())
            .field("in_use", &self.in_use())
            .finish_non_exhaustive()
    }
}

/// What a failed operation says about its member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The file system under a sparse member is full: nobody's failure (R4).
    NoSpace,
    /// The member does not answer any more.
    Gone,
    /// This operation failed.
    Bad,
}

impl Fault {
    fn of(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace,
            // A file that has become too short has lost what it held.
            io::ErrorKind::TimedOut | io::ErrorKind::UnexpectedEof => Self::Gone,
            _ => match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO | libc::EBADF) => Self::Gone,
                _ => Self::Bad,
            },
        }
    }
}

/// The standing that a failure in use leads to.
const FAILED: Standing = Standing::Failed;
