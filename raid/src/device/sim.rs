//! Simulated devices: a volatile cache, power cuts and faults, from a seed.
//!
//! A [`SimWorld`] holds named devices in memory. What was written and not
//! synced is lost, kept or torn by a power cut, sector by sector; faults are
//! injected by name; every operation is counted, and the power can be cut at
//! any of them. The same seed and the same calls give the same bytes, errors
//! and [`SimWorld::trace_hash`] (R24), as long as one thread makes them.
//!
//! Within a batch a device does its syncs first and everything else in an
//! order drawn from the seed: nothing in the contract of [`Backend`] promises
//! more, so callers that hope for more are found out.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{Backend, DeviceFacts, DeviceHandle, Io, IoOp, OpenMode, Verdict};

mod device;
mod rng;
mod store;
#[cfg(test)]
mod tests;

use device::Device;
use rng::{Rng, mix};

/// Something wrong with a simulated device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Flips the bits of `mask` in one stored byte.
    BitRot {
        /// The byte.
        offset: u64,
        /// The bits to flip.
        mask: u8,
    },
    /// The next write lands at another offset and reports success.
    MisdirectNextWrite {
        /// Where it lands, block-aligned.
        target: u64,
    },
    /// The next write does nothing and reports success.
    LoseNextWrite,
    /// Reading any of these bytes fails with EIO until they are rewritten.
    ReadErrors {
        /// First byte, block-aligned.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Writing any of these bytes fails with EIO.
    WriteErrors {
        /// First byte, block-aligned.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// The next sync (or durable write) fails with EIO, and everything not
    /// yet durable is dropped.
    FailNextSync,
    /// Every operation fails with ENODEV, opening with `NotFound`, as when a
    /// disk is pulled. [`SimWorld::heal`] puts it back.
    Vanish,
    /// Operations get stuck. The verdict is asked about each `asks` times;
    /// when it says abandon, the operation times out and stays in flight
    /// until [`SimWorld::release_stalled`]; when it never does, the operation
    /// completes.
    Stall {
        /// How often the verdict is asked.
        asks: u32,
    },
    /// Writes to blocks without storage fail with ENOSPC after so many more
    /// blocks.
    NoSpace {
        /// Blocks that can still be allocated.
        blocks_left: u64,
    },
}

/// What a simulated device did since it was added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SimCounters {
    /// Read operations.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write operations, durable ones included.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Durable writes.
    pub durable_writes: u64,
    /// Syncs.
    pub syncs: u64,
    /// Discards.
    pub discards: u64,
    /// Preallocations.
    pub preallocations: u64,
}

/// Every device at a moment; restoring it closes every handle.
#[derive(Debug, Clone)]
pub struct SimSnapshot(Physical);

/// One device's contents at a moment, unflushed writes included.
#[derive(Debug, Clone)]
pub struct SimImage {
    size_bytes: u64,
    store: store::Store,
}

/// Named in-memory devices and everything that can happen to them. Clones
/// share one world.
#[derive(Clone)]
pub struct SimWorld {
    state: Arc<Mutex<State>>,
}

/// The [`Backend`] of a [`SimWorld`].
#[derive(Debug, Clone)]
pub struct SimBackend {
    world: SimWorld,
}

/// All that a snapshot takes along.
#[derive(Debug, Clone)]
struct Physical {
    devices: BTreeMap<PathBuf, Device>,
    /// Further names of devices.
    links: BTreeMap<PathBuf, PathBuf>,
    rng: Rng,
    power: bool,
    tear: bool,
    cut_at: Option<u64>,
    operations: u64,
    trace: u64,
}

struct State {
    world: Physical,
    /// Those handed out since a snapshot was restored, open or not.
    handles: BTreeMap<DeviceHandle, Handle>,
    next_handle: u32,
    next_device: u64,
}

struct Handle {
    path: PathBuf,
    writable: bool,
    open: bool,
    facts: DeviceFacts,
}

impl fmt::Debug for SimWorld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimWorld")
            .field("operations", &self.operations())
            .finish_non_exhaustive()
    }
}

impl SimWorld {
    /// An empty world; everything random in it comes from `seed`.
    pub fn new(seed: u64) -> Self {
        let world = Physical {
            devices: BTreeMap::new(),
            links: BTreeMap::new(),
            rng: Rng::new(seed),
            power: true,
            tear: true,
            cut_at: None,
            operations: 0,
            trace: 0,
        };
        let state = State {
            world,
            handles: BTreeMap::new(),
            next_handle: 0,
            next_device: 1,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// A backend over the world's devices.
    pub fn backend(&self) -> Arc<SimBackend> {
        Arc::new(SimBackend {
            world: self.clone(),
        })
    }

    /// Adds an empty device that behaves like a regular sparse file.
    ///
    /// # Panics
    /// Where the name is taken.
    pub fn add_device(&self, path: impl AsRef<Path>, size_bytes: u64) {
        let added = self.state.lock().add(path.as_ref(), size_bytes);
        added.expect("each device has its own name");
    }

    /// Gives a device another name, as a link to a file would.
    pub fn link(&self, path: impl AsRef<Path>, existing: impl AsRef<Path>) {
        let (path, existing) = (path.as_ref().to_owned(), existing.as_ref().to_owned());
        self.state.lock().world.links.insert(path, existing);
    }

    /// Takes a device away for good.
    pub fn remove_device(&self, path: impl AsRef<Path>) {
        let mut state = self.state.lock();
        state.world.devices.remove(path.as_ref());
        for handle in state.handles.values_mut() {
            handle.open &= handle.path != path.as_ref();
        }
    }

    /// Reseeds everything random, to vary a run from a snapshot on.
    pub fn reseed(&self, seed: u64) {
        self.state.lock().world.rng = Rng::new(seed);
    }

    /// Makes something go wrong.
    pub fn inject(&self, path: impl AsRef<Path>, fault: Fault) {
        self.device(path, |device| device.inject(fault));
    }

    /// Ends all faults of a device that last; damaged contents stay damaged,
    /// stalled operations stay stalled.
    pub fn heal(&self, path: impl AsRef<Path>) {
        self.device(path, |device| device.faults = device::Faults::default());
    }

    /// Completes the abandoned operations of a device, late (R5).
    pub fn release_stalled(&self, path: impl AsRef<Path>) {
        self.device(path, Device::release);
    }

    /// Abandoned operations of a device that have not completed.
    pub fn stalled_operations(&self, path: impl AsRef<Path>) -> usize {
        self.device(path, |device| device.stalled.len())
    }

    /// Cuts the power: each unflushed sector becomes old, new or torn, as
    /// `seed` decides. Every operation fails until [`SimWorld::power_on`],
    /// and handles opened before stay dead.
    pub fn power_cut(&self, seed: u64) {
        self.state.lock().power_cut(seed);
    }

    /// Ends a power cut.
    pub fn power_on(&self) {
        self.state.lock().world.power = true;
    }

    /// Whether there is power.
    pub fn has_power(&self) -> bool {
        self.state.lock().world.power
    }

    /// The process dies: handles are dead and locks free, but devices and
    /// their caches know nothing of it. Abandoned operations still complete.
    pub fn kill_process(&self) {
        let mut state = self.state.lock();
        state.close_all();
        state.world.devices.values_mut().for_each(Device::release);
    }

    /// Cuts the power in the middle of the `operations`-th operation from
    /// now, 1 being the next. 0 takes the intention back.
    pub fn cut_after(&self, operations: u64) {
        let world = &mut self.state.lock().world;
        world.cut_at = (operations > 0).then_some(world.operations + operations);
    }

    /// Operations that any device has begun.
    pub fn operations(&self) -> u64 {
        self.state.lock().world.operations
    }

    /// Whether a power cut may tear a sector; it may unless told otherwise.
    pub fn tear_sectors(&self, tear: bool) {
        self.state.lock().world.tear = tear;
    }

    /// A hash of every operation and its outcome so far (R24).
    pub fn trace_hash(&self) -> u64 {
        self.state.lock().world.trace
    }

    /// What a device did since it was added.
    pub fn counters(&self, path: impl AsRef<Path>) -> SimCounters {
        self.device(path, |device| device.counters)
    }

    /// Blocks of a device that take up space.
    pub fn allocated_blocks(&self, path: impl AsRef<Path>) -> u64 {
        self.device(path, |device| device.store.allocated())
    }

    /// Blocks of a device that a power cut could take away.
    pub fn unflushed_blocks(&self, path: impl AsRef<Path>) -> u64 {
        self.device(path, |device| device.store.unflushed())
    }

    /// The whole world, cheaply: contents, faults, power, counters and seed.
    pub fn snapshot(&self) -> SimSnapshot {
        SimSnapshot(self.state.lock().world.clone())
    }

    /// Makes the world what it was. All handles are closed.
    pub fn restore(&self, snapshot: &SimSnapshot) {
        let mut state = self.state.lock();
        state.world = snapshot.0.clone();
        state.handles.clear();
    }

    /// A device's contents.
    pub fn image(&self, path: impl AsRef<Path>) -> SimImage {
        self.device(path, |device| SimImage {
            size_bytes: device.size_bytes,
            store: device.store.clone(),
        })
    }

    /// Gives a device earlier contents, as one that comes back stale has.
    pub fn restore_image(&self, path: impl AsRef<Path>, image: &SimImage) {
        self.device(path, |device| {
            device.size_bytes = image.size_bytes;
            device.store = image.store.clone();
        });
    }

    /// Changes a device's size.
    pub fn resize(&self, path: impl AsRef<Path>, size_bytes: u64) {
        self.device(path, |device| device.resize(size_bytes));
    }

    /// What a read would return, without being one; any alignment.
    pub fn peek(&self, path: impl AsRef<Path>, offset: u64, length: usize) -> Vec<u8> {
        self.device(path, |device| device.peek(offset, length))
    }

    /// Changes durable bytes behind everyone's back; any alignment.
    pub fn poke(&self, path: impl AsRef<Path>, offset: u64, bytes: &[u8]) {
        self.device(path, |device| device.poke(offset, bytes));
    }

    fn device<R>(&self, path: impl AsRef<Path>, act: impl FnOnce(&mut Device) -> R) -> R {
        let mut state = self.state.lock();
        let path = state.world.resolve(path.as_ref());
        let device = state.world.devices.get_mut(&path);
        act(device.unwrap_or_else(|| panic!("there is a device {}", path.display())))
    }
}

impl Physical {
    fn resolve(&self, path: &Path) -> PathBuf {
        self.links
            .get(path)
            .cloned()
            .unwrap_or_else(|| path.to_owned())
    }

    fn record(&mut self, word: u64) {
        self.trace = mix(self.trace.rotate_left(5) ^ word);
    }

    /// Records what an operation is, contents included.
    fn record_operation(&mut self, device: u64, offset: u64, op: &IoOp) {
        let extent = device::extent(offset, op);
        let kind = match op {
            IoOp::Read(_) => 1,
            IoOp::Write { durable: false, .. } => 2,
            IoOp::Write { durable: true, .. } => 3,
            IoOp::Sync => 4,
            IoOp::Discard { .. } => 5,
            IoOp::Preallocate { .. } => 6,
        };
        for word in [device, kind, extent.start, extent.end] {
            self.record(word);
        }
        if let IoOp::Write { data, .. } = op {
            for slice in data {
                self.record(crc32c::crc32c(slice.as_slice()).into());
            }
        }
    }

    /// Records how an operation ended, bytes read included.
    fn record_outcome(&mut self, op: &IoOp, outcome: &io::Result<()>) {
        match (op, outcome) {
            (IoOp::Read(buffer), Ok(())) => self.record(crc32c::crc32c(buffer).into()),
            (_, Ok(())) => self.record(0),
            (_, Err(error)) => {
                let errno = u64::try_from(error.raw_os_error().unwrap_or(0)).unwrap_or(0);
                self.record(1 << 32 | errno);
            }
        }
    }
}

impl State {
    fn add(&mut self, path: &Path, size_bytes: u64) -> io::Result<()> {
        if self.world.devices.contains_key(path) || self.world.links.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let device = Device::new(self.next_device, size_bytes);
        self.next_device += 1;
        self.world.devices.insert(path.to_owned(), device);
        Ok(())
    }

    fn close_all(&mut self) {
        self.handles
            .values_mut()
            .for_each(|handle| handle.open = false);
    }

    fn power_cut(&mut self, seed: u64) {
        self.world.record(seed);
        self.close_all();
        self.world.power = false;
        self.world.cut_at = None;
        let tear = self.world.tear;
        for device in self.world.devices.values_mut() {
            device.stalled.clear();
            device
                .store
                .power_cut(&mut Rng::new(mix(seed ^ mix(device.number))), tear);
        }
    }

    fn open(&mut self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        if !self.world.power {
            return Err(no_power());
        }
        let path = self.world.resolve(path);
        let device = self
            .world
            .devices
            .get(&path)
            .filter(|device| !device.faults.vanished);
        let device = device.ok_or(io::ErrorKind::NotFound)?;
        // A lock outlives its handle while operations are in flight (R5).
        let busy = !device.stalled.is_empty();
        let locked = self
            .handles
            .values()
            .any(|handle| handle.open && handle.path == path && (handle.writable || mode.writable));
        if locked || busy {
            let what = format!("{} is in use by another process", path.display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, what));
        }
        let facts = DeviceFacts {
            size_bytes: device.size_bytes,
            identity: (0, device.number),
            direct: true,
            regular_file: true,
        };
        let handle = Handle {
            path,
            writable: mode.writable,
            open: true,
            facts,
        };
        let device = DeviceHandle(self.next_handle);
        self.next_handle += 1;
        self.handles.insert(device, handle);
        Ok(device)
    }

    /// `None` for what was opened before a snapshot was restored.
    fn handle(&self, device: DeviceHandle) -> Option<&Handle> {
        self.handles.get(&device)
    }

    fn device_of(&self, device: DeviceHandle) -> Option<&Device> {
        self.world.devices.get(&self.handle(device)?.path)
    }

    /// Begins an operation; `Some` where that settles it.
    fn begin(&mut self, io: &Io) -> Option<io::Result<()>> {
        if !self.world.power {
            return Some(Err(no_power()));
        }
        let changes = !matches!(io.op, IoOp::Read(_) | IoOp::Sync);
        let handle = self.handle(io.device);
        let handle = handle.filter(|handle| handle.open && (!changes || handle.writable));
        let Some(path) = handle.map(|handle| handle.path.clone()) else {
            return Some(Err(io::Error::from_raw_os_error(libc::EBADF)));
        };
        let world = &mut self.world;
        let device = world.devices.get_mut(&path).expect("open devices exist");
        let number = device.number;
        device.count(io.offset, &io.op);
        world.operations += 1;
        world.record_operation(number, io.offset, &io.op);
        if world.cut_at == Some(world.operations) {
            let device = world.devices.get_mut(&path).expect("open devices exist");
            device.perform_interrupted(io.offset, &io.op);
            let seed = world.rng.next();
            self.power_cut(seed);
            return Some(Err(no_power()));
        }
        None
    }

    /// How often to ask before the operation gets through, if it is stuck.
    fn asks(&self, device: DeviceHandle) -> u32 {
        self.device_of(device)
            .and_then(|device| device.faults.stall_asks)
            .unwrap_or(0)
    }

    fn has_vanished(&self, device: DeviceHandle) -> bool {
        self.device_of(device)
            .is_none_or(|device| device.faults.vanished)
    }

    fn perform(&mut self, io: &mut Io) -> io::Result<()> {
        if !self.world.power {
            return Err(no_power());
        }
        let handle = self.handle(io.device).filter(|handle| handle.open);
        let path = handle.map(|handle| handle.path.clone());
        match path.and_then(|path| self.world.devices.get_mut(&path)) {
            Some(device) => device.perform(io.offset, &mut io.op),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    fn abandon(&mut self, io: &mut Io) -> io::Result<()> {
        let handle = self.handle(io.device).expect("it has begun");
        let path = handle.path.clone();
        if let Some(device) = self.world.devices.get_mut(&path) {
            device.stall(io.offset, &io.op);
        }
        io.op = super::file::without_buffers(&io.op);
        Err(super::file::timed_out(&path))
    }
}

fn no_power() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl Backend for SimBackend {
    fn name(&self) -> &'static str {
        "simulated"
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<DeviceHandle> {
        self.world.state.lock().open(path, mode)
    }

    fn create_file(&self, path: &Path, size_bytes: u64) -> io::Result<()> {
        let mut state = self.world.state.lock();
        if !state.world.power {
            return Err(no_power());
        }
        state.add(path, size_bytes)
    }

    fn facts(&self, device: DeviceHandle) -> DeviceFacts {
        let state = self.world.state.lock();
        let handle = state.handle(device).expect("of this world");
        handle.facts.clone()
    }

    fn close(&self, device: DeviceHandle) {
        if let Some(handle) = self.world.state.lock().handles.get_mut(&device) {
            handle.open = false;
        }
    }

    fn run(&self, batch: &mut [Io], verdict: &dyn Verdict) {
        let mut order: Vec<usize> = (0..batch.len()).collect();
        let mut devices: Vec<DeviceHandle> = batch.iter().map(|io| io.device).collect();
        devices.sort_unstable();
        devices.dedup();
        {
            let rng = &mut self.world.state.lock().world.rng;
            for last in (1..order.len()).rev() {
                order.swap(last, rng.index(last + 1));
            }
        }
        // Only what completed before the batch is covered by its syncs.
        order.sort_by_key(|position| !matches!(batch[*position].op, IoOp::Sync));
        let mut given_up: Option<Vec<DeviceHandle>> = None;
        for position in order {
            let io = &mut batch[position];
            let settled = self.world.state.lock().begin(io);
            let outcome = settled.unwrap_or_else(|| {
                let stuck = self.world.state.lock().asks(io.device) > 0;
                if stuck && given_up.is_none() {
                    given_up = Some(self.ask_in_rounds(&devices, verdict));
                }
                let given_up = given_up
                    .as_ref()
                    .is_some_and(|all| all.contains(&io.device));
                if stuck && given_up {
                    self.world.state.lock().abandon(io)
                } else {
                    self.world.state.lock().perform(io)
                }
            });
            let world = &mut self.world.state.lock().world;
            world.record_outcome(&io.op, &outcome);
            io.outcome = Some(outcome);
        }
    }
}

impl SimBackend {
    /// Asks about every stuck device of a batch in turn, round after round, as
    /// the other backends do: who is given up.
    fn ask_in_rounds(&self, devices: &[DeviceHandle], verdict: &dyn Verdict) -> Vec<DeviceHandle> {
        let stuck: Vec<(DeviceHandle, u32)> = {
            let state = self.world.state.lock();
            let asks = devices.iter().map(|device| (*device, state.asks(*device)));
            asks.filter(|(_, asks)| *asks > 0).collect()
        };
        for device in devices {
            // Whatever is asked of it has failed by the time of a question.
            if self.world.state.lock().has_vanished(*device) {
                verdict.failed(&Io {
                    device: *device,
                    offset: 0,
                    op: IoOp::Sync,
                    outcome: Some(Err(io::Error::from_raw_os_error(libc::ENODEV))),
                });
            }
        }
        let rounds = stuck.iter().map(|(_, asks)| *asks).max().unwrap_or(0);
        let mut given_up = Vec::new();
        for round in 1..=rounds {
            for (device, asks) in &stuck {
                // Not under the lock: a verdict may look at the world.
                if round <= *asks && !given_up.contains(device) && verdict.abandon(*device) {
                    given_up.push(*device);
                }
            }
        }
        given_up
    }
}
