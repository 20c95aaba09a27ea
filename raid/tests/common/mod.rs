//! Simulated pools of tiny sizes, with a model of what they hold.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tessera_raid::{
    Array, CreateSpec, Level, MemberIndex, MemberState, MemoryWitness, OpenOptions, Placement,
    RaidError, SegmentRead, Sizes, SlotIndex, Source, StripeWrite,
    device::{
        AlignedBuf, Backend,
        sim::{SimSnapshot, SimWorld},
    },
};

pub const UNIT: u32 = 4096;
pub const STRIPES: u32 = 6;
pub const JOURNAL: u64 = 64 << 10;
/// Where slots start: superblocks and journal, rounded up.
pub const SLOTS_OFFSET: u64 = 1 << 20;
pub const SLOT_BYTES: u64 = (STRIPES * UNIT) as u64;
pub const SLOTS: u64 = 8;
pub const DEVICE_BYTES: u64 = SLOTS_OFFSET + SLOTS * SLOT_BYTES + (16 << 10);

/// Every level with its smallest and one larger width.
pub const SHAPES: [(Level, usize); 11] = [
    (Level::Single, 1),
    (Level::Raid0, 2),
    (Level::Raid0, 3),
    (Level::Raid1, 2),
    (Level::Raid1, 3),
    (Level::Raid5, 3),
    (Level::Raid5, 5),
    (Level::Raid6, 4),
    (Level::Raid6, 6),
    (Level::Raid10, 4),
    (Level::Raid10, 6),
];

/// A pool's devices and witness, which outlive its arrays.
#[derive(Clone)]
pub struct Pool {
    pub world: SimWorld,
    pub witness: MemoryWitness,
    pub level: Level,
    pub paths: Vec<PathBuf>,
}

pub fn spec(level: Level, paths: &[PathBuf]) -> CreateSpec {
    let data_units = match level {
        Level::Single | Level::Raid0 => paths.len(),
        Level::Raid1 => 1,
        Level::Raid5 => paths.len() - 1,
        Level::Raid6 => paths.len() - 2,
        Level::Raid10 => paths.len() / 2,
    };
    CreateSpec {
        level,
        stripe_unit_bytes: UNIT,
        members: paths.to_vec(),
        force: false,
        sizes: Sizes {
            segment_data_bytes_target: u32::try_from(data_units).unwrap() * UNIT * STRIPES,
            journal_bytes: Some(JOURNAL),
        },
        stall_limit: Duration::ZERO,
    }
}

pub fn options() -> OpenOptions {
    OpenOptions {
        read_only: false,
        force: false,
        lock_patience: Duration::ZERO,
        stall_limit: Duration::ZERO,
        read_errors_per_hour: u32::MAX,
        ..OpenOptions::default()
    }
}

pub fn read_only() -> OpenOptions {
    OpenOptions {
        read_only: true,
        ..options()
    }
}

impl Pool {
    /// Devices without a pool yet.
    pub fn devices(level: Level, width: usize, seed: u64) -> Self {
        let world = SimWorld::new(seed);
        let paths: Vec<_> = (0..width)
            .map(|n| PathBuf::from(format!("disk{n}")))
            .collect();
        for path in &paths {
            world.add_device(path, DEVICE_BYTES);
        }
        Self {
            world,
            witness: MemoryWitness::with_seed(seed),
            level,
            paths,
        }
    }

    /// A new pool, open, with the clean flag cleared.
    pub fn create(level: Level, width: usize, seed: u64) -> (Self, Array) {
        let pool = Self::devices(level, width, seed);
        pool.array_created().close();
        let array = pool.open().unwrap();
        array.commit(b"one", false).unwrap();
        (pool, array)
    }

    pub fn array_created(&self) -> Array {
        let spec = spec(self.level, &self.paths);
        Array::create(
            self.backend(),
            &spec,
            b"zero",
            Box::new(self.witness.clone()),
        )
        .unwrap()
    }

    pub fn backend(&self) -> Arc<dyn Backend> {
        self.world.backend()
    }

    pub fn open(&self) -> Result<Array, RaidError> {
        self.open_with(&self.paths, &options())
    }

    pub fn open_with(&self, paths: &[PathBuf], options: &OpenOptions) -> Result<Array, RaidError> {
        Array::open(
            self.backend(),
            paths,
            Box::new(self.witness.clone()),
            options,
        )
    }

    /// Opens what is there, with the clean flag cleared.
    pub fn open_unclean(&self) -> Array {
        let array = self.open().unwrap();
        array.commit(&array.engine_record(), false).unwrap();
        array
    }

    /// Adds a device that is nobody's yet.
    pub fn add_device(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = PathBuf::from(name);
        self.world.add_device(&path, size_bytes);
        path
    }

    /// Where the members are according to the witness.
    pub fn known_paths(&self) -> Vec<PathBuf> {
        let record = self.witness.record().unwrap();
        record
            .members
            .into_iter()
            .map(|member| member.path)
            .collect()
    }

    /// Opens as the pool's directory says.
    pub fn open_known(&self) -> Result<Array, RaidError> {
        self.open_with(&self.known_paths(), &options())
    }

    pub fn path(&self, member: usize) -> &Path {
        &self.paths[member]
    }

    pub fn snapshot(&self) -> (SimSnapshot, MemoryWitness) {
        (self.world.snapshot(), self.witness.fork(77))
    }

    /// Goes back; the witness is another one with the old contents.
    pub fn restore(&mut self, (world, witness): &(SimSnapshot, MemoryWitness)) {
        self.world.restore(world);
        self.witness = witness.fork(78);
    }

    pub fn writes(&self) -> u64 {
        self.paths
            .iter()
            .map(|path| self.world.counters(path).writes)
            .sum()
    }
}

/// Bytes that are different everywhere and follow from the seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
    bytes
}

pub fn at(slot: u32) -> Placement {
    Placement::equal(tessera_raid::LayoutId(0), SlotIndex(slot))
}

pub fn stripe(array: &Array, slot: u32, stripe: u32, seed: u64) -> StripeWrite {
    let data = noise(seed, array.stripe_data_bytes() as usize);
    StripeWrite {
        placement: at(slot),
        stripe,
        data: Arc::new(AlignedBuf::copy_of(&data)),
    }
}

/// What segments hold.
#[derive(Default, Clone)]
pub struct Model {
    pub segments: BTreeMap<u32, Vec<u8>>,
}

impl Model {
    /// Fills a segment with noise, in two calls, not synced.
    pub fn fill(&mut self, array: &Array, slot: u32, seed: u64) -> Result<(), RaidError> {
        let stripes = array.stripes_per_segment();
        let writes: Vec<_> = (0..stripes)
            .map(|n| stripe(array, slot, n, seed * 1000 + u64::from(n)))
            .collect();
        let (one, two) = writes.split_at(stripes as usize / 2);
        array.write_stripes(one)?;
        array.write_stripes(two)?;
        let data = writes
            .iter()
            .flat_map(|write| write.data.iter().copied())
            .collect();
        self.segments.insert(slot, data);
        Ok(())
    }

    /// Reads everything in several sizes, in one batch, and compares.
    pub fn check(&self, array: &Array, context: &str) {
        let blocks = array.segment_data_bytes() / 4096;
        for length in [1, 3, blocks] {
            let mut reads = Vec::new();
            for slot in self.segments.keys() {
                for first in (0..blocks).step_by(length as usize) {
                    let length = length.min(blocks - first);
                    reads.push(read_of(*slot, first * 4096, length * 4096));
                }
            }
            array.read(&mut reads);
            let mut expected = self.segments.iter();
            let (mut slot, mut data) = expected.next().unwrap();
            for read in &reads {
                if read.placement != at(*slot) {
                    (slot, data) = expected.next().unwrap();
                }
                if let Err(error) = &read.outcome {
                    panic!("{context}: slot {slot} at {}: {error}", read.offset);
                }
                let range = read.offset as usize..read.offset as usize + read.buffer.len();
                assert!(
                    read.buffer[..] == data[range],
                    "{context}: slot {slot} at {}",
                    read.offset
                );
            }
        }
    }
}

pub fn read_of(slot: u32, offset: u32, length: u32) -> SegmentRead {
    SegmentRead {
        placement: at(slot),
        offset,
        buffer: AlignedBuf::zeroed(length as usize),
        outcome: Ok(()),
    }
}

pub fn read_one(array: &Array, slot: u32, offset: u32, length: u32) -> Result<Vec<u8>, RaidError> {
    let mut reads = [read_of(slot, offset, length)];
    array.read(&mut reads);
    let [read] = reads;
    read.outcome.map(|()| read.buffer.to_vec())
}

pub fn state_of(array: &Array, member: usize) -> MemberState {
    array.status().members[member].state
}

pub fn not_online(array: &Array) -> Vec<usize> {
    let status = array.status();
    let members = status
        .members
        .iter()
        .filter(|member| member.state != MemberState::Online);
    members.map(|member| member.index.index()).collect()
}

/// All sets of members without which the level still works, the empty one
/// included.
pub fn survivable(array: &Array) -> Vec<Vec<usize>> {
    let width = array.status().members.len();
    let sets = (0..1u64 << width).filter(|set| {
        array
            .current_layout()
            .survives(tessera_raid::MemberSet(*set))
    });
    sets.map(|set| (0..width).filter(|n| set >> n & 1 == 1).collect())
        .collect()
}

/// Every stripe of some slots onto a target, in two steps a slot; then
/// durable.
pub fn rebuild(array: &Array, target: MemberIndex, slots: &[u32]) -> Result<(), RaidError> {
    for slot in slots {
        let stripes = array.stripes_per_segment();
        array.rebuild_stripes(target, &at(*slot), 0..stripes / 2)?;
        array.rebuild_stripes(target, &at(*slot), stripes / 2..stripes)?;
    }
    array.sync()
}

pub fn new_device(path: &Path) -> Source {
    Source::NewDevice {
        path: path.to_owned(),
        force: false,
    }
}

/// Runs `act` from the present state with the power cut at its first
/// operation, its second, and so on; `check` sees each outcome with the power
/// on again. Returns after `act` ran to its end uncut.
pub fn cut_everywhere<T>(
    pool: &mut Pool,
    act: impl Fn(&Pool) -> T,
    mut check: impl FnMut(&Pool, T, String),
) {
    let before = pool.snapshot();
    for variant in 0..3 {
        for operation in 1.. {
            pool.restore(&before);
            pool.world.reseed(1000 * operation + variant);
            pool.world.cut_after(operation);
            let result = act(pool);
            let was_cut = !pool.world.has_power();
            pool.world.cut_after(0);
            if was_cut {
                pool.world.power_on();
            } else {
                pool.world.kill_process();
            }
            check(
                pool,
                result,
                format!("operation {operation}, variant {variant}"),
            );
            if !was_cut {
                assert!(operation > 1, "something must have been cut");
                break;
            }
        }
    }
}

pub fn index(member: usize) -> MemberIndex {
    MemberIndex(u8::try_from(member).unwrap())
}
