//! Who is behind which row at the moment: what every operation works with.
//!
//! ```text
//!   operation --pins--> Roster --rows--> OpenDevice (closed with its last roster)
//!                          ^
//!      a membership change publishes the next one
//! ```
//!
//! An operation takes the roster once and keeps it: rows never change under
//! it, and a device stays open while anybody may still use it. So a member
//! can be replaced under load.
//!
//! Invariants
//! - Failures are known by device, not by row: an operation with an older
//!   roster may meet a device that has another row by now, or none.
//! - A roster is published only after the superblocks that it follows from
//!   are durable and witnessed; but a device's failure counts at once.
//! - When [`Generations::wait_for_older`] returns, every operation that began
//!   with an older roster has ended.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::{Condvar, Mutex, RwLock};
use uuid::Uuid;

use super::limits::Counters;
use crate::{
    MemberIndex, MemberSet,
    device::{Backend, DeviceHandle, Io, IoOp},
    sabotage::broken,
    superblock::{PoolRecord, Standing},
};

/// A device that is open; dropping it closes it.
pub(super) struct OpenDevice {
    backend: Arc<dyn Backend>,
    pub(super) handle: DeviceHandle,
    pub(super) uuid: Uuid,
    /// Nothing is sent to it any more.
    failed: AtomicBool,
    /// The beginning of the latest-begun batch it has completed.
    pub(super) completed: AtomicU64,
    /// A probe is under way.
    pub(super) probing: AtomicBool,
    pub(super) counters: Arc<Counters>,
}

impl OpenDevice {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        handle: DeviceHandle,
        uuid: Uuid,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        Arc::new(Self {
            backend,
            handle,
            uuid,
            failed: AtomicBool::new(false),
            completed: AtomicU64::new(0),
            probing: AtomicBool::new(false),
            counters,
        })
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    pub(super) fn fail(&self, why: &str) {
        self.failed.store(true, Ordering::Release);
        *self.counters.reason.lock() = Some(why.to_owned());
    }
}

impl Drop for OpenDevice {
    fn drop(&mut self) {
        self.backend.close(self.handle);
    }
}

/// A row of the member table, and who is behind it.
#[derive(Clone)]
pub(super) struct Row {
    pub(super) uuid: Uuid,
    pub(super) path: PathBuf,
    pub(super) size_bytes: u64,
    /// `None` where nothing is sent to it.
    pub(super) device: Option<Arc<OpenDevice>>,
    /// It answered when the array was opened, or was added since.
    pub(super) present: bool,
    pub(super) counters: Arc<Counters>,
}

impl Row {
    /// A row that nobody has.
    fn vacant() -> Self {
        Self {
            uuid: Uuid::nil(),
            path: PathBuf::new(),
            size_bytes: 0,
            device: None,
            present: false,
            counters: Arc::default(),
        }
    }

    fn live(&self) -> Option<&Arc<OpenDevice>> {
        self.device.as_ref().filter(|device| !device.has_failed())
    }
}

/// All rows at one moment.
pub(super) struct Roster {
    pub(super) rows: Vec<Row>,
    /// Devices that no record names yet.
    incoming: Vec<Row>,
    /// The layouts' members.
    pub(super) all: MemberSet,
    in_sync: MemberSet,
    /// Targets, and the members they are for.
    targets: Vec<(MemberIndex, MemberIndex)>,
    /// The membership change it follows from.
    pub(super) change: Uuid,
    end: Arc<End>,
}

/// Tells when a roster is used no more.
#[derive(Default)]
struct End {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Drop for Roster {
    fn drop(&mut self) {
        *self.end.ended.lock() = true;
        self.end.changed.notify_all();
    }
}

impl Roster {
    /// The roster that follows from a record, with the rows that are known.
    pub(super) fn of(record: &PoolRecord, known: Vec<Row>) -> Self {
        let mut known = known;
        let mut take = |uuid: Uuid| {
            let place = known.iter().position(|row| row.uuid == uuid)?;
            Some(known.swap_remove(place))
        };
        let rows: Vec<Row> = record
            .members
            .iter()
            .map(|member| {
                if member.standing == Standing::Vacant {
                    return Row::vacant();
                }
                let mut row = take(member.uuid).unwrap_or_else(|| Row {
                    uuid: member.uuid,
                    ..Row::vacant()
                });
                row.size_bytes = member.size_bytes;
                let used = member.standing.is_written();
                row.device = row.device.filter(|device| used && !device.has_failed());
                row
            })
            .collect();
        let targets =
            record
                .indices()
                .filter_map(|index| match record.members[index.index()].standing {
                    Standing::Target(of) => Some((index, of)),
                    _ => None,
                });
        Self {
            targets: targets.collect(),
            in_sync: record.standing(|standing| standing == Standing::InSync),
            all: record.layout_members(),
            change: record.history.head(),
            rows,
            incoming: Vec::new(),
            end: Arc::default(),
        }
    }

    fn known(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().chain(&self.incoming)
    }

    /// The members that data is read from and redundancy counts.
    pub(super) fn in_use(&self) -> MemberSet {
        let live = |index: &MemberIndex| self.rows[index.index()].live().is_some();
        self.in_sync.iter().filter(live).collect()
    }

    /// Everybody whom whole stripes go to: members in use, and targets.
    pub(super) fn written(&self) -> MemberSet {
        let targets = self.targets.iter().map(|(target, _)| *target);
        let live = |index: &MemberIndex| self.rows[index.index()].live().is_some();
        self.in_use().union(targets.filter(live).collect())
    }

    /// Everybody whom a write must reach, or be known to have missed.
    pub(super) fn expected(&self) -> MemberSet {
        let targets = self.targets.iter().map(|(target, _)| *target);
        self.all.union(targets.collect())
    }

    /// Those of `written` that hold what is `member`'s.
    pub(super) fn holders(
        &self,
        member: MemberIndex,
        written: MemberSet,
    ) -> impl Iterator<Item = MemberIndex> {
        let targets = self.targets.iter().filter(move |(_, of)| *of == member);
        std::iter::once(member)
            .chain(targets.map(|(target, _)| *target))
            .filter(move |holder| written.contains(*holder))
    }

    /// Whom a target is for.
    pub(super) fn target_of(&self, target: MemberIndex) -> Option<MemberIndex> {
        let mut targets = self.targets.iter();
        targets
            .find(|(index, _)| *index == target && self.live(target).is_some())
            .map(|(_, of)| *of)
    }

    /// The targets that are written to, and the members they are for.
    pub(super) fn live_targets(&self) -> impl Iterator<Item = (MemberIndex, MemberIndex)> {
        let live = |(target, _): &&(MemberIndex, MemberIndex)| self.live(*target).is_some();
        self.targets.iter().filter(live).copied()
    }

    /// The row's device, unless it has failed.
    pub(super) fn live(&self, index: MemberIndex) -> Option<&Arc<OpenDevice>> {
        self.rows.get(index.index()).and_then(Row::live)
    }

    /// The device of a row that was in use when the operation began.
    pub(super) fn device(&self, index: MemberIndex) -> &Arc<OpenDevice> {
        let device = self.rows[index.index()].device.as_ref();
        device.expect("a member in use has a device as long as its roster")
    }

    /// A device by its identity, unless it has failed.
    pub(super) fn live_by_uuid(&self, uuid: Uuid) -> Option<&Arc<OpenDevice>> {
        self.known()
            .filter_map(Row::live)
            .find(|device| device.uuid == uuid)
    }

    /// An operation on a member that was in use when the caller asked.
    pub(super) fn io(&self, member: MemberIndex, offset: u64, op: IoOp) -> Io {
        Io {
            device: self.device(member).handle,
            offset,
            op,
            outcome: None,
        }
    }

    /// Every device.
    pub(super) fn devices(&self) -> impl Iterator<Item = &Arc<OpenDevice>> {
        self.known().filter_map(|row| row.device.as_ref())
    }

    pub(super) fn by_handle(&self, handle: DeviceHandle) -> Option<&Arc<OpenDevice>> {
        self.devices().find(|device| device.handle == handle)
    }

    /// The row of an identity that is known, or the way to name it.
    pub(super) fn path_of(&self, uuid: Uuid) -> PathBuf {
        let row = self.known().find(|row| row.uuid == uuid);
        row.map(|row| row.path.clone()).unwrap_or_default()
    }

    /// Members for a message.
    pub(super) fn names(&self, members: MemberSet) -> String {
        let names: Vec<_> = members
            .iter()
            .map(|index| match self.rows.get(index.index()) {
                Some(row) => format!("member {index} ({})", row.path.display()),
                None => format!("member {index}"),
            })
            .collect();
        names.join(", ")
    }

    /// The same with a device that no record names yet.
    pub(super) fn with_incoming(&self, row: Row) -> Self {
        let mut next = self.copy();
        next.incoming.push(row);
        next
    }

    /// The same without what is incoming or behind a row with this identity.
    pub(super) fn without_device(&self, uuid: Uuid) -> Self {
        let mut next = self.copy();
        next.incoming.retain(|row| row.uuid != uuid);
        for row in next.rows.iter_mut().filter(|row| row.uuid == uuid) {
            row.device = None;
        }
        next
    }

    /// What follows from another record.
    pub(super) fn following(&self, record: &PoolRecord) -> Self {
        let mut next = Self::of(record, self.known().cloned().collect());
        let named = |row: &&Row| record.row_of(row.uuid).is_none();
        next.incoming = self.incoming.iter().filter(named).cloned().collect();
        next
    }

    fn copy(&self) -> Self {
        Self {
            rows: self.rows.clone(),
            incoming: self.incoming.clone(),
            all: self.all,
            in_sync: self.in_sync,
            targets: self.targets.clone(),
            change: self.change,
            end: Arc::default(),
        }
    }
}

/// The roster in force, and those before it that are still in use.
pub(super) struct Generations {
    current: RwLock<Arc<Roster>>,
    older: Mutex<Vec<Arc<End>>>,
}

impl Generations {
    pub(super) fn new(roster: Roster) -> Self {
        Self {
            current: RwLock::new(Arc::new(roster)),
            older: Mutex::new(Vec::new()),
        }
    }

    /// The roster in force, for one operation.
    pub(super) fn pin(&self) -> Arc<Roster> {
        Arc::clone(&self.current.read())
    }

    /// Puts another in force. One caller at a time.
    pub(super) fn publish(&self, next: Roster) {
        let mut older = self.older.lock();
        older.retain(|end| !*end.ended.lock());
        let before = std::mem::replace(&mut *self.current.write(), Arc::new(next));
        older.push(Arc::clone(&before.end));
        drop(older);
        drop(before);
    }

    /// Waits for every operation that began with a roster before the one in
    /// force. The caller has pinned none.
    pub(super) fn wait_for_older(&self) {
        if broken("R9.attach_waits") {
            return;
        }
        let older = std::mem::take(&mut *self.older.lock());
        for end in &older {
            let mut ended = end.ended.lock();
            while !*ended {
                end.changed.wait(&mut ended);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use crate::{
        Array, CreateSpec, Level, MemberIndex, MemoryWitness, Sizes, Source, device::sim::SimWorld,
    };

    #[test]
    fn an_attach_waits_for_every_operation_that_began_without_the_target() {
        let world = SimWorld::new(1);
        let members: Vec<PathBuf> = (0..2).map(|n| format!("disk{n}").into()).collect();
        for path in &members {
            world.add_device(path, 4 << 20);
        }
        let spec = CreateSpec {
            level: Level::Raid1,
            stripe_unit_bytes: 4096,
            members,
            force: false,
            sizes: Sizes {
                segment_data_bytes_target: 1 << 18,
                journal_bytes: Some(1 << 16),
            },
            stall_limit: std::time::Duration::ZERO,
        };
        let witness = Box::new(MemoryWitness::new());
        let array = Array::create(world.backend(), &spec, b"", witness).unwrap();
        for n in 0..8 {
            let path = PathBuf::from(format!("new{n}"));
            world.add_device(&path, 4 << 20);
            let operation = array.roster();
            std::thread::scope(|scope| {
                let source = Source::NewDevice { path, force: false };
                let array = &array;
                let attach = scope.spawn(move || {
                    let attached = array.attach(MemberIndex(0), &source);
                    attached.unwrap().target
                });
                while array.targets().is_empty() {
                    std::thread::yield_now();
                }
                for _ in 0..1000 {
                    std::thread::yield_now();
                    assert!(!attach.is_finished(), "it must wait");
                }
                drop(operation);
                let target = attach.join().unwrap();
                array.detach(target, "test").unwrap();
            });
        }
    }
}
