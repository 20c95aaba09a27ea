//! Does random things to a simulated pool and to the model of it.

use std::{collections::BTreeMap, path::PathBuf};

use tessera_engine::{EngineError, ErrorKind, disk::DiskError, pool::simulation::Simulated};
use tessera_raid::{Level, device::sim::SimImage};

use super::{
    Rng,
    hazards::Mode,
    model::Model,
    world::{Scale, World, losses},
};

pub(super) const VOLUMES_MAX: usize = 4;

pub struct Run {
    pub world: World,
    pub model: Model,
    pub counts: Counts,
    pub(super) mode: Mode,
    pub(super) pool: Option<Simulated>,
    pub(super) rng: Rng,
    pub(super) seed: u64,
    /// The members that may be lost or rot, all at once.
    pub(super) doomed: Vec<PathBuf>,
    pub(super) vanished: Vec<bool>,
    /// What a doomed member held once.
    pub(super) images: Vec<Option<SimImage>>,
    /// A member has no space for new blocks.
    pub(super) short_of_space: bool,
    /// A request met "no space": discards may have skipped their odd ends.
    pub(super) was_full: bool,
    /// Beyond the redundancy: something failed, so the pool is to be opened
    /// anew before anything else.
    pub(super) failed: bool,
    /// Beyond the redundancy: nothing more can be had of this pool.
    pub ended: bool,
    /// Beyond the redundancy: one write of a session may go wrong unnoticed.
    pub(super) silent_faults: u32,
    /// Chunk sizes of volumes.
    pub(super) chunks: BTreeMap<String, u64>,
    /// Beyond the redundancy: blocks of volumes that could not be read.
    pub(super) unknown: std::collections::BTreeSet<(String, usize)>,
    /// Volumes and snapshots: each gets a name of its own.
    pub(super) volumes_made: u64,
    /// Devices added since the pool was made.
    pub(super) devices_made: u64,
    pub log: Vec<String>,
}

#[derive(Debug, Default, Clone, Copy)]
pub struct Counts {
    pub operations: u64,
    pub crashes: u64,
    pub cut_recoveries: u64,
    pub no_space: u64,
    /// Faults injected.
    pub faults: u64,
    /// Beyond the redundancy: errors that clients were told.
    pub errors: u64,
    /// Beyond the redundancy: pools that could not be opened any more.
    pub refused: u64,
    /// Bytes compared with the model.
    pub verified: u64,
    /// Members replaced or taken back.
    pub replaced: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.operations += other.operations;
        self.crashes += other.crashes;
        self.cut_recoveries += other.cut_recoveries;
        self.no_space += other.no_space;
        self.faults += other.faults;
        self.errors += other.errors;
        self.refused += other.refused;
        self.verified += other.verified;
        self.replaced += other.replaced;
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the last operations before the failure:");
            for line in self
                .log
                .iter()
                .rev()
                .take(if super::from_env("TESSERA_SEED").is_some() {
                    10_000
                } else {
                    60
                })
                .rev()
            {
                eprintln!("    {line}");
            }
            eprintln!(
                "--- replay: TESSERA_LEVEL={} TESSERA_SEED={} cargo test --release \
                 -p tessera-engine --test {}",
                self.world.level.name(),
                self.seed,
                self.mode.test()
            );
        }
    }
}

impl Run {
    pub fn new(level: Level, width: usize, seed: u64) -> Self {
        Self::with(level, width, seed, Mode::Plain, Rng::new(seed))
    }

    pub fn with(level: Level, width: usize, seed: u64, mode: Mode, mut rng: Rng) -> Self {
        let scale = match (mode, seed % 8) {
            (Mode::Plain, _) | (_, 0..5) => Scale::TINY,
            (_, 5..7) => Scale::MIDDLE,
            _ => Scale::WIDE,
        };
        let world = World::create(level, width, scale, seed);
        let mut doomed = world.paths.clone();
        while doomed.len() > losses(level) {
            let at = rng.below(doomed.len() as u64) as usize;
            doomed.remove(at);
        }
        let pool = Some(world.open().unwrap());
        Self {
            world,
            model: Model::default(),
            counts: Counts::default(),
            mode,
            pool,
            rng,
            seed,
            vanished: vec![false; doomed.len()],
            images: vec![None; doomed.len()],
            doomed,
            short_of_space: false,
            was_full: false,
            failed: false,
            ended: false,
            silent_faults: 0,
            chunks: BTreeMap::new(),
            unknown: Default::default(),
            volumes_made: 0,
            devices_made: 0,
            log: Vec::new(),
        }
    }

    pub(super) fn pool(&self) -> &Simulated {
        self.pool.as_ref().expect("open between operations")
    }

    pub(super) fn note(&mut self, text: String) {
        if super::from_env("TESSERA_TRACE").is_some() {
            eprintln!("{text}");
        }
        self.log
            .push(format!("[{}] {text}", self.world.sim.operations()));
    }

    /// Random operations, then a check of everything after a last crash.
    pub fn run(&mut self, operations: u64) {
        for _ in 0..operations {
            if self.ended || self.rng.is_exhausted() {
                break;
            }
            self.counts.operations += 1;
            if self.mode != Mode::Plain && self.rng.chance(6) {
                self.hazard();
            }
            if self.mode != Mode::Plain && self.rng.chance(5) {
                self.upkeep();
            } else {
                self.any();
            }
            if !self.world.sim.has_power() {
                self.reopen_after_crash();
            } else if std::mem::take(&mut self.failed) {
                self.kill();
            }
        }
        if self.ended {
            return;
        }
        self.world.sim.power_cut(self.seed);
        self.reopen_after_crash();
        if !self.ended {
            self.close_and_reopen();
        }
    }

    /// An error that only a fault beyond the redundancy excuses.
    pub(super) fn excused(&mut self, what: &str) -> bool {
        if self.mode != Mode::Beyond {
            return false;
        }
        self.note(format!("{what} failed"));
        self.counts.errors += 1;
        self.failed = true;
        true
    }

    pub(super) fn chunk_of(&self, name: &str) -> u64 {
        self.chunks.get(name).copied().unwrap_or(4096)
    }

    fn any(&mut self) {
        match self.rng.below(100) {
            0..21 => self.write_chunks(1),
            21..24 => self.batch(),
            24..32 => {
                let chunks = 2 + self.rng.below(30);
                self.write_chunks(chunks);
            }
            32..42 => self.write_bytes(),
            42..47 => self.zero(false),
            47..52 => self.zero(true),
            52..58 => self.read(),
            58..70 => self.flush(),
            70..73 => self.durably("timer", |pool| pool.timer_step()),
            73..75 => self.quietly("writer", |pool| pool.writer_step().map(|_| ())),
            75..77 => self.quietly("index", |pool| {
                pool.index_step();
                Ok(())
            }),
            77..80 => self.durably("checkpoint", |pool| pool.checkpoint()),
            80..82 => self.quietly("reclaim", |pool| pool.reclaim().map(|_| ())),
            82..84 => self.quietly("maintain", |pool| pool.maintenance_step(true)),
            84..88 => self.manage(),
            88..91 => self.snapshots(),
            91 => self.lose_or_find(),
            92..93 => self.rot(),
            93..94 => self.kill(),
            94..95 => self.close_and_reopen(),
            95..97 => {
                let operations = 1 + self.rng.below(80);
                self.note(format!("power will be cut after {operations}"));
                self.world.sim.cut_after(operations);
            }
            _ => self.extents(),
        }
    }

    pub(super) fn volume_count(&self) -> usize {
        self.volume_names().count()
    }

    fn volume_names(&self) -> impl Iterator<Item = &String> {
        self.model.now.keys().filter(|name| !name.contains('@'))
    }

    pub(super) fn some_volume(&mut self) -> Option<(String, u64)> {
        let count = self.volume_count() as u64;
        if count == 0 {
            self.create();
            return None;
        }
        let at = self.rng.below(count) as usize;
        let name = self.volume_names().nth(at).unwrap().clone();
        let size = self.model.now[&name].len() as u64;
        Some((name, size))
    }

    /// A volume or a snapshot.
    pub(super) fn some_readable(&mut self) -> Option<(String, u64)> {
        let snapshot = match self.rng.chance(3) {
            true => self.some_snapshot(),
            false => None,
        };
        match snapshot {
            Some(name) => {
                let size = self.model.now[&name].len() as u64;
                Some((name, size))
            }
            None => self.some_volume(),
        }
    }

    pub(super) fn met_no_space(&mut self) {
        self.was_full = true;
        self.counts.no_space += 1;
        self.note("no space".to_owned());
        let stopped = self.pool().failure();
        if stopped.is_some() && self.excused("a full pool") {
            return;
        }
        assert_eq!(stopped, None, "a full pool must not stop");
    }

    fn flush(&mut self) {
        self.note("flush".to_owned());
        match self.pool().flush() {
            Ok(()) => self.model.all_durable(),
            Err(_) if !self.world.sim.has_power() => {}
            Err(DiskError::NoSpace) if self.short_of_space => {}
            Err(_) if self.excused("a flush") => {}
            Err(error) => panic!("a flush failed: {error}; {:?}", self.pool().failure()),
        }
    }

    fn durably(&mut self, what: &str, act: impl FnOnce(&Simulated) -> Result<(), EngineError>) {
        self.note(what.to_owned());
        let result = act(self.pool());
        if self.management(what, result) {
            self.model.all_durable();
        }
    }

    fn quietly(&mut self, what: &str, act: impl FnOnce(&Simulated) -> Result<(), EngineError>) {
        self.note(what.to_owned());
        let result = act(self.pool());
        self.management(what, result);
    }

    /// True when it was done; only a lack of power or space may prevent it.
    pub(super) fn management(&mut self, what: &str, result: Result<(), EngineError>) -> bool {
        match result {
            Ok(()) => return true,
            Err(_) if !self.world.sim.has_power() => {}
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                self.met_no_space();
            }
            Err(_) if self.excused(what) => {}
            Err(error) => panic!("{what} failed: {error}: {error:?}"),
        }
        false
    }
}
