//! Simulated devices: a volatile cache, power cuts and faults, from a seed.
use super::{Backend, DeviceFacts, DeviceHandle, Io, OpenMode, Verdict};
use std::{io, path::Path, sync::Arc};

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
    /// Every operation fails with ENODEV, opening with `NotFound`.
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
}

/// The whole world at a moment; restoring it closes every handle.
#[derive(Debug, Clone)]
pub struct SimSnapshot {}

/// One device's contents at a moment.
#[derive(Debug, Clone)]
pub struct SimImage {}

/// Named in-memory devices and everything that can happen to them.
#[derive(Debug, Clone)]
pub struct SimWorld {}

/// The [`Backend`] of a [`SimWorld`].
#[derive(Debug, Clone)]
pub struct SimBackend {}

impl SimWorld {
    /// An empty world; everything random in it comes from `seed`.
    pub fn new(_seed: u64) -> Self {
        todo!()
    }
    /// A backend over the world's devices.
    pub fn backend(&self) -> Arc<SimBackend> {
        todo!()
    }
    /// Adds an empty device that behaves like a regular sparse file.
    pub fn add_device(&self, _path: impl AsRef<Path>, _size_bytes: u64) {
        todo!()
    }
    /// Takes a device away for good.
    pub fn remove_device(&self, _path: impl AsRef<Path>) {
        todo!()
    }
    /// Makes something go wrong.
    pub fn inject(&self, _path: impl AsRef<Path>, _fault: Fault) {
        todo!()
    }
    /// Ends all lasting faults of a device; damaged contents stay damaged.
    pub fn heal(&self, _path: impl AsRef<Path>) {
        todo!()
    }
    /// Completes the stalled operations of a device, late (R5).
    pub fn release_stalled(&self, _path: impl AsRef<Path>) {
        todo!()
    }
    /// Cuts the power: each unflushed sector becomes old, new or torn, as
    /// `seed` decides. Every operation fails until [`SimWorld::power_on`],
    /// and handles opened before stay dead.
    pub fn power_cut(&self, _seed: u64) {
        todo!()
    }
    /// Ends a power cut.
    pub fn power_on(&self) {
        todo!()
    }
    /// Whether there is power.
    pub fn has_power(&self) -> bool {
        todo!()
    }
    /// Cuts the power during the `operations`-th operation from now, 1 being
    /// the next.
    pub fn cut_after(&self, _operations: u64) {
        todo!()
    }
    /// Operations that any device has begun.
    pub fn operations(&self) -> u64 {
        todo!()
    }
    /// Whether a power cut may tear a sector; it may unless told otherwise.
    pub fn tear_sectors(&self, _tear: bool) {
        todo!()
    }
    /// A hash of every operation and outcome so far (R24).
    pub fn trace_hash(&self) -> u64 {
        todo!()
    }
    /// What a device did.
    pub fn counters(&self, _path: impl AsRef<Path>) -> SimCounters {
        todo!()
    }
    /// The whole world, cheaply.
    pub fn snapshot(&self) -> SimSnapshot {
        todo!()
    }
    /// Makes the world what it was. All handles are closed.
    pub fn restore(&self, _snapshot: &SimSnapshot) {
        todo!()
    }
    /// A device's contents.
    pub fn image(&self, _path: impl AsRef<Path>) -> SimImage {
        todo!()
    }
    /// Gives a device earlier contents, as a stale copy would have.
    pub fn restore_image(&self, _path: impl AsRef<Path>, _image: &SimImage) {
        todo!()
    }
    /// Changes a device's size.
    pub fn resize(&self, _path: impl AsRef<Path>, _size_bytes: u64) {
        todo!()
    }
    /// What a read would return, without being one.
    pub fn peek(&self, _path: impl AsRef<Path>, _offset: u64, _length: usize) -> Vec<u8> {
        todo!()
    }
    /// Changes durable bytes behind everyone's back.
    pub fn poke(&self, _path: impl AsRef<Path>, _offset: u64, _bytes: &[u8]) {
        todo!()
    }
}

impl Backend for SimBackend {
    fn name(&self) -> &'static str {
        "simulated"
    }
    fn open(&self, _path: &Path, _mode: OpenMode) -> io::Result<DeviceHandle> {
        todo!()
    }
    fn create_file(&self, _path: &Path, _size_bytes: u64) -> io::Result<()> {
        todo!()
    }
    fn facts(&self, _device: DeviceHandle) -> DeviceFacts {
        todo!()
    }
    fn close(&self, _device: DeviceHandle) {
        todo!()
    }
    fn run(&self, _batch: &mut [Io], _verdict: &dyn Verdict) {
        todo!()
    }
}
