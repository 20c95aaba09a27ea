//! Devices and witness, which outlive the engines opened over them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use tessera_engine::{
    EngineError,
    api::{Compression, DedupMode, VolumeSpec},
    pool::{EngineOptions, simulation::Simulated},
};
use tessera_raid::{
    Array, CreateSpec, Level, MemoryWitness, OpenOptions, Sizes,
    device::{
        Backend,
        sim::{SimSnapshot, SimWorld},
    },
};

use super::{
    Rng,
    interpose::Interposed,
    watch::{Tracer, Watcher},
};

pub const UNIT: u32 = 4096;

/// Every level with the width it is simulated in.
pub const SHAPES: [(Level, usize); 6] = [
    (Level::Single, 1),
    (Level::Raid0, 3),
    (Level::Raid1, 2),
    (Level::Raid5, 3),
    (Level::Raid6, 4),
    (Level::Raid10, 4),
];

/// How large things are.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    pub segment_bytes: u32,
    pub segments: u32,
    pub journal_bytes: u64,
    pub unit_bytes: u32,
}

impl Scale {
    pub const TINY: Scale = Scale {
        unit_bytes: UNIT,
        segment_bytes: 64 << 10,
        segments: 40,
        journal_bytes: 256 << 10,
    };

    /// For chunks of up to 64 KiB.
    pub const WIDE: Scale = Scale {
        unit_bytes: 16 * UNIT,
        segment_bytes: 768 << 10,
        segments: 32,
        journal_bytes: 2 << 20,
    };

    /// Between the two.
    pub const MIDDLE: Scale = Scale {
        unit_bytes: 4 * UNIT,
        segment_bytes: 192 << 10,
        segments: 40,
        journal_bytes: 512 << 10,
    };
}

pub struct World {
    pub sim: SimWorld,
    pub witness: MemoryWitness,
    pub level: Level,
    pub paths: Vec<PathBuf>,
    pub scale: Scale,
    pub device_bytes: u64,
    /// Data of one stripe: the largest chunk there may be.
    pub stripe_bytes: u32,
    /// Where segments lie on every member.
    pub slots_offset: u64,
    /// What a segment takes on a member.
    pub slot_bytes: u64,
    /// Stands before the devices, if set.
    pub watcher: Option<Arc<Watcher>>,
    /// Stands before the devices, if set and nobody watches.
    pub interposed: Option<Arc<Interposed>>,
    options: EngineOptions,
}

/// See [`World::snapshot`].
pub struct Snapshot(SimSnapshot, MemoryWitness);

fn data_units(level: Level, width: usize) -> u32 {
    let units = match level {
        Level::Single | Level::Raid1 => 1,
        Level::Raid0 => width,
        Level::Raid5 => width - 1,
        Level::Raid6 => width - 2,
        Level::Raid10 => width / 2,
    };
    u32::try_from(units).unwrap()
}

/// How many members may be lost, any of them.
pub fn losses(level: Level) -> usize {
    match level {
        Level::Single | Level::Raid0 => 0,
        Level::Raid1 | Level::Raid5 | Level::Raid10 => 1,
        Level::Raid6 => 2,
    }
}

impl World {
    /// An empty pool on new devices.
    pub fn create(level: Level, width: usize, scale: Scale, seed: u64) -> Self {
        let sim = SimWorld::new(seed);
        let units = data_units(level, width);
        let stripe = scale.unit_bytes * units;
        let segment_bytes = scale.segment_bytes.next_multiple_of(stripe);
        let slot_bytes = u64::from(segment_bytes / units);
        let slots_offset = (scale.journal_bytes + (16 << 10)).next_multiple_of(1 << 20);
        let device_bytes = slots_offset + u64::from(scale.segments) * slot_bytes + (16 << 10);
        let paths: Vec<_> = (0..width)
            .map(|n| PathBuf::from(format!("disk{n}")))
            .collect();
        for path in &paths {
            sim.add_device(path, device_bytes);
        }
        let epochs = Arc::new(parking_lot::Mutex::new(Rng::new(seed ^ 0xe60c)));
        let options = EngineOptions {
            epochs: Arc::new(move || {
                let mut rng = epochs.lock();
                let mut epoch = [0; 16];
                epoch[..8].copy_from_slice(&rng.next().to_le_bytes());
                epoch[8..].copy_from_slice(&rng.next().to_le_bytes());
                epoch
            }),
            // It stands still: nothing but the seed decides what happens.
            clock: Arc::new(|| 1_700_000_000_000),
            ..EngineOptions::new(16 << 20)
        };
        let witness = MemoryWitness::with_seed(seed);
        let world = Self {
            sim,
            witness,
            level,
            paths,
            scale,
            device_bytes,
            stripe_bytes: stripe,
            slots_offset,
            slot_bytes,
            watcher: None,
            interposed: None,
            options,
        };
        let spec = CreateSpec {
            level,
            stripe_unit_bytes: scale.unit_bytes,
            members: world.paths.clone(),
            force: false,
            sizes: Sizes {
                segment_data_bytes_target: segment_bytes,
                journal_bytes: Some(scale.journal_bytes),
            },
            stall_limit: Duration::ZERO,
        };
        let record = Simulated::new_record(&world.options);
        let witness = Box::new(world.witness.clone());
        Array::create(world.sim.backend(), &spec, &record, witness)
            .unwrap()
            .close();
        world
    }

    fn backend(&self) -> Arc<dyn Backend> {
        match &self.watcher {
            Some(watcher) => Arc::clone(watcher) as Arc<dyn Backend>,
            None if self.interposed.is_some() => {
                let interposed = self.interposed.as_ref().expect("just seen");
                Arc::clone(interposed) as Arc<dyn Backend>
            }
            None if super::from_env("TESSERA_TRACE").is_some() => {
                Arc::new(Tracer(self.sim.backend()))
            }
            None => self.sim.backend(),
        }
    }

    pub fn array(&self, read_only: bool) -> Result<Array, tessera_raid::RaidError> {
        let options = OpenOptions {
            read_only,
            force: false,
            lock_patience: Duration::ZERO,
            stall_limit: Duration::ZERO,
            read_errors_per_hour: u32::MAX,
            ..OpenOptions::default()
        };
        let witness = Box::new(self.witness.clone());
        // As a pool does: by what the witness says of spares and replacements.
        let mut paths: Vec<PathBuf> = match self.witness.record() {
            Some(record) => record.members.into_iter().map(|row| row.path).collect(),
            None => self.paths.clone(),
        };
        let mut known = std::collections::BTreeSet::new();
        paths.retain(|path| known.insert(path.clone()));
        Array::open(self.backend(), &paths, witness, &options)
    }

    /// A device that is none of the pool's yet.
    pub fn add_device(&self, name: &str) -> PathBuf {
        let path = PathBuf::from(name);
        self.sim.add_device(&path, self.device_bytes);
        path
    }

    /// Where a block of a segment's column lies on its member.
    pub fn slot_offset(&self, segment: u32) -> u64 {
        self.slots_offset + u64::from(segment) * self.slot_bytes
    }

    pub fn options(&self) -> &EngineOptions {
        &self.options
    }

    pub fn open(&self) -> Result<Simulated, EngineError> {
        Simulated::open(self.array(false)?, &self.options)
    }

    pub fn open_read_only(&self) -> Result<Simulated, EngineError> {
        Simulated::open(self.array(true)?, &self.options)
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.sim.snapshot(), self.witness.fork(77))
    }

    pub fn restore(&mut self, snapshot: &Snapshot) {
        self.sim.restore(&snapshot.0);
        self.witness = snapshot.1.fork(78);
    }

    /// Write operations of all devices so far.
    pub fn writes(&self) -> u64 {
        self.paths
            .iter()
            .map(|path| self.sim.counters(path).writes)
            .sum()
    }
}

pub fn volume(name: &str, size_bytes: u64) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        size_bytes,
        chunk_bytes: 4096,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
    }
}
