//! Does random things to a simulated pool and to the model of it.

use std::{collections::BTreeMap, path::PathBuf};

use tessera_engine::{
    EngineError, ErrorKind,
    api::DedupMode,
    disk::{DiskError, ExtentKind, Operation, Request},
    pool::simulation::Simulated,
};
use tessera_raid::{Level, device::sim::SimImage};

use super::{
    Rng,
    hazards::Mode,
    model::{Model, Step, write_steps, zero_steps},
    noise,
    world::{Scale, World, losses, volume},
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
    fn some_readable(&mut self) -> Option<(String, u64)> {
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

    pub(super) fn contents(&mut self, length: usize) -> Vec<u8> {
        let mut data = Vec::with_capacity(length + 4096);
        while data.len() < length {
            match self.rng.below(8) {
                0 => data.extend_from_slice(&[0; 4096]),
                1..3 => {
                    let mut chunk = noise(self.rng.next(), 64 + self.rng.below(1500) as usize);
                    chunk.resize(4096, 7);
                    data.extend(chunk);
                }
                3..5 => data.extend(noise(self.rng.below(12), 4096)),
                _ => data.extend(noise(self.rng.next(), 4096)),
            }
        }
        data.truncate(length);
        data
    }

    fn write_chunks(&mut self, chunks: u64) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let chunk = self.chunk_of(&name);
        let whole = size / chunk;
        if whole == 0 {
            return;
        }
        let chunks = chunks.min(whole);
        let offset = self.rng.below(whole - chunks + 1) * chunk;
        let data = self.contents((chunks * chunk) as usize);
        self.write(&name, offset, data);
    }

    fn write_bytes(&mut self) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let length = 1 + self.rng.below(size.min(14_000));
        let offset = self.rng.below(size - length + 1);
        let data = self.contents(length as usize);
        self.write(&name, offset, data);
    }

    fn write(&mut self, name: &str, offset: u64, data: Vec<u8>) {
        self.note(format!("write {name} {offset}+{}", data.len()));
        let steps = write_steps(name, offset, &data, self.chunk_of(name));
        self.request(
            name,
            Operation::Write {
                offset,
                data: &data,
            },
            steps,
        );
    }

    fn zero(&mut self, discard: bool) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let mut length = 1 + self.rng.below(size.min(100_000));
        let mut offset = self.rng.below(size - length + 1);
        if self.rng.chance(2) {
            offset = offset / 4096 * 4096;
            length = (length.div_ceil(4096) * 4096).min(size - offset);
        }
        self.note(format!("zero {name} {offset}+{length}, discard {discard}"));
        let steps = zero_steps(&name, offset, length, size, self.chunk_of(&name));
        let keep_allocated = self.rng.chance(2);
        let operation = if discard {
            Operation::Discard { offset, length }
        } else {
            Operation::WriteZeroes {
                offset,
                length,
                keep_allocated,
            }
        };
        self.request(&name, operation, steps);
    }

    fn request(&mut self, name: &str, operation: Operation<'_>, steps: Vec<Step>) {
        let discard = matches!(operation, Operation::Discard { .. });
        let disk = self.pool().disk(name).unwrap();
        let mut batch = [Request::new(operation)];
        disk.execute(&mut batch);
        let result = batch[0].result.clone();
        drop(disk);
        self.settle(result, discard, steps);
    }

    /// What the model learns from the answer to a request.
    pub(super) fn settle(
        &mut self,
        result: Result<(), DiskError>,
        discard: bool,
        steps: Vec<Step>,
    ) {
        match result {
            // Its odd ends may be skipped where there is little space.
            Ok(()) if discard => self.resolve(steps),
            Ok(()) => self.model.begin(steps),
            Err(_) if !self.world.sim.has_power() => {
                // Where something is unreadable a piece may have failed before
                // the cut while later ones took effect.
                if !self.unknown.is_empty() || self.silent_faults > 0 {
                    steps.iter().for_each(|step| self.is_unknown(step));
                }
                self.model.begin(steps);
            }
            Err(DiskError::NoSpace) => {
                self.met_no_space();
                self.resolve(steps);
            }
            // Each of its pieces by itself took effect or did not.
            Err(_) if self.excused("a request") => self.resolve(steps),
            Err(error) => panic!("a request failed: {error}; {:?}", self.pool().failure()),
        }
    }

    /// Finds out which pieces of a request that failed took effect.
    fn resolve(&mut self, steps: Vec<Step>) {
        for step in steps {
            let (name, offset, expected) = match &step {
                Step::Put {
                    name,
                    offset,
                    bytes,
                } => (name, *offset, bytes.clone()),
                Step::Zero {
                    name,
                    offset,
                    length,
                } => (name, *offset, vec![0; *length as usize]),
                other => unreachable!("not a request: {other:?}"),
            };
            let mut found = vec![0; expected.len()];
            let disk = self.pool().disk(name).unwrap();
            let mut batch = [Request::new(Operation::Read {
                offset,
                buffer: &mut found,
            })];
            disk.execute(&mut batch);
            let failed = batch[0].result.is_err();
            drop(disk);
            if failed && !self.world.sim.has_power() {
                // Not known: the model allows for it, or for not.
                self.model.begin(vec![step]);
                continue;
            }
            if failed && self.excused("looking") {
                self.is_unknown(&step);
                continue;
            }
            assert!(!failed, "a read failed");
            let old = &self.model.now[name][offset as usize..][..found.len()];
            if found == expected {
                self.model.begin(vec![step]);
            } else if self.unknown.is_empty() {
                let differs = |other: &[u8]| found.iter().zip(other).position(|(a, b)| a != b);
                assert!(
                    found == old,
                    "a failed request left something else behind in {name} at {offset}+{}: \
                     neither what was there (byte {:?}) nor what was to be (byte {:?})",
                    found.len(),
                    differs(old),
                    differs(&expected)
                );
            }
        }
    }

    /// Beyond the redundancy: whether a step took effect cannot be told.
    fn is_unknown(&mut self, step: &Step) {
        let (name, offset, length) = match step {
            Step::Put {
                name,
                offset,
                bytes,
            } => (name, *offset, bytes.len() as u64),
            Step::Zero {
                name,
                offset,
                length,
            } => (name, *offset, *length),
            other => unreachable!("not a request: {other:?}"),
        };
        let blocks = offset / 4096..(offset + length).div_ceil(4096);
        self.unknown
            .extend(blocks.map(|block| (name.clone(), block as usize)));
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

    fn read(&mut self) {
        let Some((name, size)) = self.some_readable() else {
            return;
        };
        let length = 1 + self.rng.below(size.min(70_000));
        let offset = self.rng.below(size - length + 1);
        self.note(format!("read {name} {offset}+{length}"));
        let mut buffer = vec![0xee; length as usize];
        let disk = self.pool().disk(&name).unwrap();
        let mut batch = [Request::new(Operation::Read {
            offset,
            buffer: &mut buffer,
        })];
        disk.execute(&mut batch);
        let result = batch[0].result.clone();
        drop(disk);
        self.compare(&name, offset, &buffer, result);
    }

    /// A read gives what was written, or fails where failing is allowed.
    pub(super) fn compare(
        &mut self,
        name: &str,
        offset: u64,
        buffer: &[u8],
        result: Result<(), DiskError>,
    ) {
        if result.is_err() {
            if self.world.sim.has_power() {
                assert!(self.mode == Mode::Beyond, "a read failed: {result:?}");
                self.counts.errors += 1;
            }
            return;
        }
        let expected = &self.model.now[name][offset as usize..][..buffer.len()];
        let first = offset as usize / 4096;
        for (number, (found, expected)) in blocks(offset, buffer)
            .zip(blocks(offset, expected))
            .enumerate()
        {
            assert!(
                found == expected || self.unknown.contains(&(name.to_owned(), first + number)),
                "read {name} {offset}+{} returned other bytes",
                buffer.len()
            );
        }
        self.counts.verified += buffer.len() as u64;
    }

    fn extents(&mut self) {
        let Some((name, size)) = self.some_readable() else {
            return;
        };
        let disk = self.pool().disk(&name).unwrap();
        match disk.extents(0, size, usize::MAX) {
            Ok(extents) => {
                let mut at = 0;
                for extent in extents {
                    let range = at as usize..(at + extent.length) as usize;
                    let data = &self.model.now[&name][range];
                    let zero = extent.kind != ExtentKind::Data;
                    assert!(
                        !zero || data.iter().all(|byte| *byte == 0) || !self.unknown.is_empty(),
                        "{name} has data at {at}"
                    );
                    at += extent.length;
                }
                assert_eq!(at, size, "the extents cover the volume");
            }
            Err(error) => assert!(
                !self.world.sim.has_power() || self.mode == Mode::Beyond,
                "extents failed: {error}"
            ),
        }
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
    fn management(&mut self, what: &str, result: Result<(), EngineError>) -> bool {
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

    fn create(&mut self) {
        let name = format!("v{}", self.volumes_made);
        self.volumes_made += 1;
        let size = (1 + self.rng.below(500)) * 512;
        self.note(format!("create {name} of {size}"));
        let mut spec = volume(&name, size);
        if self.mode != Mode::Plain {
            let most = self.world.stripe_bytes.min(64 << 10);
            let chunk = 4096 << self.rng.below(5);
            spec.chunk_bytes = if chunk > most { 4096 } else { chunk };
        }
        self.chunks
            .insert(name.clone(), u64::from(spec.chunk_bytes));
        spec.dedup = self.some_mode();
        let result = self.pool().create_volume(&spec).map(|_| ());
        self.changed_catalogue("create", result, vec![Step::Create { name, size }]);
    }

    pub(super) fn some_mode(&mut self) -> DedupMode {
        match self.rng.below(8) {
            0 => DedupMode::Off,
            1..4 => DedupMode::Post,
            _ => DedupMode::Inline,
        }
    }

    pub(super) fn changed_catalogue(
        &mut self,
        what: &str,
        result: Result<(), EngineError>,
        steps: Vec<Step>,
    ) {
        let no_power = !self.world.sim.has_power();
        if self.management(what, result) {
            self.model.begin(steps);
            self.model.all_durable();
        } else if no_power || self.failed || self.is_done(&steps) {
            self.model.begin(steps);
        }
    }

    /// Whether a change that met "no space" at its end was made.
    fn is_done(&self, steps: &[Step]) -> bool {
        let size = |name: &String| self.pool().disk(name).map(|disk| disk.size());
        match steps.last() {
            Some(Step::Create { name, .. }) => size(name).is_some(),
            Some(Step::Delete { name }) => size(name).is_none(),
            Some(Step::Rename { new, .. }) => size(new).is_some(),
            Some(Step::Resize { name, size: to }) => size(name) == Some(*to),
            Some(Step::Take { snapshot }) => size(snapshot).is_some(),
            Some(Step::Forget { snapshot }) => size(snapshot).is_none(),
            Some(Step::Clone { name, .. }) => size(name).is_some(),
            // It takes its place in the order before anything can fail for
            // lack of space.
            Some(Step::RollBack { .. }) => true,
            other => unreachable!("not a change of the catalogue: {other:?}"),
        }
    }

    fn manage(&mut self) {
        let Some((name, size)) = self.some_volume() else {
            return;
        };
        let count = self.volume_count();
        match self.rng.below(8) {
            0..3 if count < VOLUMES_MAX => self.create(),
            3 if count > 1 => {
                self.note(format!("delete {name}"));
                let result = self.pool().delete_volume_and_snapshots(&name);
                self.changed_catalogue("delete", result, vec![Step::Delete { name }]);
            }
            // What cannot be read is remembered by name.
            4 if self.mode != Mode::Beyond => {
                let new = format!("v{}", self.volumes_made);
                self.volumes_made += 1;
                self.note(format!("rename {name} to {new}"));
                let result = self.pool().rename_volume(&name, &new).map(|_| ());
                self.chunks.insert(new.clone(), self.chunk_of(&name));
                self.changed_catalogue("rename", result, vec![Step::Rename { old: name, new }]);
            }
            _ => {
                let to = (1 + self.rng.below(500)) * 512;
                self.note(format!("resize {name} from {size} to {to}"));
                let mut steps = Vec::new();
                let odd_end = size.min(to.next_multiple_of(self.chunk_of(&name)));
                if to < odd_end {
                    // The rest of the last chunk is cleared before the cut.
                    let length = odd_end - to;
                    steps.push(Step::Zero {
                        name: name.clone(),
                        offset: to,
                        length,
                    });
                }
                steps.push(Step::Resize {
                    name: name.clone(),
                    size: to,
                });
                let result = self.pool().resize_volume(&name, to, true).map(|_| ());
                self.changed_catalogue("resize", result, steps);
            }
        }
    }
}

/// The pieces of `bytes` that lie in different blocks of a volume.
pub fn blocks(offset: u64, bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let head = bytes.len().min((4096 - offset as usize % 4096) % 4096);
    let (head, rest) = bytes.split_at(head);
    (!head.is_empty())
        .then_some(head)
        .into_iter()
        .chain(rest.chunks(4096))
}
