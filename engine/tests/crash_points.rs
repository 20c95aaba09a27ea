//! Every short sequence of requests, with the power cut at every device
//! operation, with and without a lost member, at every level: what recovery
//! finds is what design section 7 promises, and is found again after a second
//! crash (R19).
//!
//! A sequence is cut in its last request and after it: where it could be cut
//! before is the same in the shorter sequence that it begins with.
//!
//! `TESSERA_LENGTH=3` goes through all sequences of three, `TESSERA_LARGE=1`
//! through those with a large write, which is 1 MiB then (else 56 KiB, more than
//! a segment), `TESSERA_ACTS=10` leaves out snapshots and what comes after them
//! in the alphabet. Those take long: `TESSERA_FROM` goes on with the sequence of that
//! number, `TESSERA_SHARD=1/4` takes the second of every four sequences, and
//! `TESSERA_SEQUENCE` does one. Their numbers are printed as they are done.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{
    chosen::Chosen,
    model::{Model, State, Step, all_names, apply, read_all, write_steps, zero_steps},
    noise,
    sequences::{ALL, Act, OF_DEDUP, OF_SNAPSHOTS, every_sequence},
    watch::{Moment, Watcher},
    world::{SHAPES, Scale, Snapshot, World, losses, volume},
};
use tessera_engine::{
    api::{DedupMode, VolumeChange},
    disk::{Operation, Request},
    pool::simulation::Simulated,
};
use tessera_raid::{Level, device::sim::Fault};

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 48 << 10,
    segments: 24,
    journal_bytes: 128 << 10,
};
/// For writes of 1 MiB.
const ROOMY: Scale = Scale {
    segments: 120,
    journal_bytes: 256 << 10,
    ..SCALE
};

fn is_large() -> bool {
    common::from_env("TESSERA_LARGE").is_some()
}

/// The acts that sequences are made of.
fn acts() -> &'static [Act] {
    let count = common::from_env("TESSERA_ACTS").map(|count| usize::try_from(count).unwrap());
    &ALL[..count.unwrap_or(ALL.len())]
}

fn volume_bytes() -> u64 {
    if is_large() { 1200 << 10 } else { 96 << 10 }
}

/// How often each moment is cut: what survives differs.
const SEEDS: u64 = 3;

/// The place in the array of the member that fails or is replaced in a sequence:
/// it holds data, parity and journal.
const FAILING: usize = 0;

/// Changes of the model, and what of them is durable.
struct History {
    base: State,
    steps: Vec<Step>,
    /// Everyone who had the place [`FAILING`], the last one last.
    failing: Vec<PathBuf>,
}

impl History {
    fn model_at(&self, moment: &Moment) -> Model {
        let mut base = self.base.clone();
        for step in &self.steps[..moment.durable] {
            apply(&mut base, step);
        }
        let mut model = Model {
            now: base.clone(),
            base,
            ..Model::default()
        };
        model.begin(self.steps[moment.durable..moment.begun].to_vec());
        model
    }
}

/// A pool with two volumes that hold something, closed clean or not.
fn prepared(level: Level, width: usize) -> (World, State) {
    let scale = if is_large() { ROOMY } else { SCALE };
    let world = World::create(level, width, scale, 5);
    let pool = world.open().unwrap();
    let mut state = State::new();
    for name in ["a", "b"] {
        pool.create_volume(&volume(name, volume_bytes())).unwrap();
        apply(
            &mut state,
            &Step::Create {
                name: name.to_owned(),
                size: volume_bytes(),
            },
        );
        let data = noise(1, 40 << 10);
        put(&pool, name, 8192, &data).unwrap();
        for step in write_steps(name, 8192, &data, 4096) {
            apply(&mut state, &step);
        }
    }
    pool.flush().unwrap();
    drop(pool);
    world.sim.kill_process();
    for number in 0..3 {
        world.add_device(&format!("new{number}"));
    }
    (world, state)
}

fn put(
    pool: &Simulated,
    name: &str,
    offset: u64,
    data: &[u8],
) -> Result<(), tessera_engine::disk::DiskError> {
    request(pool, name, Operation::Write { offset, data })
}

fn request(
    pool: &Simulated,
    name: &str,
    operation: Operation<'_>,
) -> Result<(), tessera_engine::disk::DiskError> {
    let mut batch = [Request::new(operation)];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result
}

/// Runs one sequence and returns its moments.
fn run(world: &mut World, base: &State, sequence: &[Act], cut: Cut) -> (History, Vec<Moment>) {
    let watcher = Watcher::new(&world.sim, &world.witness);
    world.watcher = Some(watcher.clone());
    // Recovery and the clean stop are cut with the shortest sequences only:
    // they do the same in all.
    let whole = sequence.len() == 1;
    watcher.watched.lock().on = whole;
    let pool = world.open().unwrap();
    let mut history = History {
        base: base.clone(),
        steps: Vec::new(),
        failing: vec![world.paths[FAILING].clone()],
    };
    let mut taken = Vec::new();
    for (number, what) in (0u64..).zip(sequence) {
        let last = number + 1 == sequence.len() as u64;
        watcher.watched.lock().on |= last || cut == Cut::Everywhere;
        let name = if number % 2 == 0 { "a" } else { "b" };
        let mut begin = |steps: Vec<Step>| {
            history.steps.extend(steps);
            watcher.watched.lock().begun = history.steps.len();
        };
        let all_durable = || {
            let mut watched = watcher.watched.lock();
            watched.durable = watched.begun;
        };
        match what {
            Act::Chunk => {
                let data = noise(100 + number, 4096);
                begin(write_steps(name, 12 << 10, &data, 4096));
                put(&pool, name, 12 << 10, &data).unwrap();
            }
            Act::Large => {
                // A part of it is there already.
                let new = if is_large() { 996 << 10 } else { 28 << 10 };
                let data = [noise(200 + number, new), noise(1, 28 << 10)].concat();
                begin(write_steps(name, 16 << 10, &data, 4096));
                put(&pool, name, 16 << 10, &data).unwrap();
            }
            Act::Partial => {
                let data = noise(300 + number, 6000);
                begin(write_steps(name, 9000, &data, 4096));
                put(&pool, name, 9000, &data).unwrap();
            }
            Act::Discard => {
                begin(zero_steps(name, 10_000, 20_000, volume_bytes(), 4096));
                request(
                    &pool,
                    name,
                    Operation::Discard {
                        offset: 10_000,
                        length: 20_000,
                    },
                )
                .unwrap();
            }
            Act::Zero => {
                begin(zero_steps(name, 12 << 10, 8192, volume_bytes(), 4096));
                let (offset, length) = (12 << 10, 8192);
                let zero = Operation::WriteZeroes {
                    offset,
                    length,
                    keep_allocated: true,
                };
                request(&pool, name, zero).unwrap();
            }
            Act::Flush => {
                pool.flush().unwrap();
                all_durable();
            }
            Act::Fua => {
                let data = noise(400 + number, 4096);
                begin(write_steps(name, 20 << 10, &data, 4096));
                put(&pool, name, 20 << 10, &data).unwrap();
                pool.flush().unwrap();
                all_durable();
            }
            Act::MemberFails => {
                let path = history.failing.last().unwrap();
                world.sim.inject(path, Fault::Vanish);
            }
            Act::MemberReplaced => {
                let index = u32::try_from(FAILING).unwrap();
                let path = PathBuf::from(format!("new{number}"));
                history.failing.push(path.clone());
                pool.replace_member(index, &path, false).unwrap();
                while pool.job_step().unwrap() {}
            }
            Act::Checkpoint => {
                pool.checkpoint().unwrap();
                all_durable();
            }
            Act::Reclaim => while pool.reclaim().unwrap() {},
            Act::Post => {
                for name in ["a", "b"] {
                    let change = VolumeChange {
                        dedup: Some(DedupMode::Post),
                        ..VolumeChange::default()
                    };
                    pool.set_volume(name, &change).unwrap();
                }
                all_durable();
            }
            Act::Dedup => {
                let job = pool.dedup_start().unwrap();
                while pool.job_step().unwrap() {}
                let job = pool.job(job.id).unwrap();
                let must_find = OF_DEDUP.contains(&sequence);
                assert!(
                    !must_find || job.repaired > 0,
                    "nothing was merged: {job:?}"
                );
                all_durable();
            }
            Act::Snapshot => {
                let own = format!("s{number}");
                let snapshot = format!("a@{own}");
                begin(vec![Step::Take { snapshot }]);
                pool.create_snapshot("a", &own).unwrap();
                taken.push(own);
                all_durable();
            }
            Act::RollBack => {
                let own = taken.last().unwrap();
                let snapshot = format!("a@{own}");
                begin(vec![Step::RollBack { snapshot }]);
                pool.roll_back("a", own, false).unwrap();
                all_durable();
            }
            Act::Clone => {
                let own = taken.last().unwrap();
                let snapshot = format!("a@{own}");
                let name = format!("c{number}");
                let step = Step::Clone {
                    snapshot,
                    name: name.clone(),
                };
                begin(vec![step]);
                pool.clone_snapshot("a", own, &name).unwrap();
                all_durable();
            }
            Act::Forget => {
                let own = taken.pop().unwrap();
                let snapshot = format!("a@{own}");
                begin(vec![Step::Forget { snapshot }]);
                pool.delete_snapshot("a", &own).unwrap();
                all_durable();
            }
        }
    }
    // Whatever the sequence leaves to be written is cut into as well.
    pool.flush().unwrap();
    {
        let mut watched = watcher.watched.lock();
        watched.durable = watched.begun;
    }
    if whole {
        pool.close().unwrap();
    }
    let mut watched = watcher.watched.lock();
    watched.on = false;
    let moments = std::mem::take(&mut watched.moments);
    drop(watched);
    drop(pool);
    world.watcher = None;
    (history, moments)
}

/// Crashes at the moment, recovers, and looks. Every few moments, crashes in
/// the middle of that recovery first, or after it.
fn check(world: &mut World, history: &History, moment: &Moment, seed: u64, lost: Option<&Path>) {
    let context = format!("seed {seed}, lost {lost:?}, cut at {}", moment.operation);
    world.sim.restore(&moment.world);
    world.witness = moment.witness.fork(78);
    world.sim.power_cut(seed);
    world.sim.power_on();
    if seed.is_multiple_of(2) {
        // Who had failed is back, as it was: not to be believed (R1, R2).
        for path in &history.failing {
            world.sim.heal(path);
        }
    }
    if let Some(path) = lost {
        world.sim.inject(path, Fault::Vanish);
    }
    let mut model = history.model_at(moment);
    if seed.is_multiple_of(3) {
        world.sim.cut_after(1 + seed / 3 % 70);
        drop(world.open());
        world.sim.cut_after(0);
        world.sim.power_on();
    }
    let pool = world
        .open()
        .unwrap_or_else(|error| panic!("{context}: {error}: {error:?}"));
    model.recovered(read_all(&pool, &all_names(&pool), &context), &context);
    if seed.is_multiple_of(4) {
        drop(pool);
        world.sim.power_cut(seed);
        world.sim.power_on();
        let pool = world
            .open()
            .unwrap_or_else(|error| panic!("{context}, again: {error:?}"));
        model.recovered(read_all(&pool, &all_names(&pool), &context), &context);
    }
}

/// Where sequences are cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// In the last request and after it: the shorter sequences are done as well.
    AtTheEnd,
    Everywhere,
}

fn every_cut(level: Level, width: usize, sequences: &[Vec<Act>], cut: Cut) -> u64 {
    let (mut world, base) = prepared(level, width);
    let start: Snapshot = world.snapshot();
    let chosen = Chosen::from_env();
    let mut cases = 0;
    for (number, sequence) in sequences.iter().enumerate() {
        let fails = sequence.contains(&Act::MemberFails);
        if !chosen.has(number)
            || losses(level) == 0 && fails
            || is_large() && cut == Cut::AtTheEnd && !sequence.contains(&Act::Large)
        {
            continue;
        }
        world.restore(&start);
        let (history, moments) = run(&mut world, &base, sequence, cut);
        let _named = Named {
            level,
            sequence,
            number,
            cut,
        };
        // Everyone, and those who have come; with who failed, no more than the
        // level survives.
        let everyone = world.paths.iter().chain(&history.failing[1..]);
        let losable: Vec<&PathBuf> = match losses(level) {
            0 => Vec::new(),
            1 if fails => history.failing.iter().collect(),
            _ => everyone.collect(),
        };
        let paths: Vec<PathBuf> = losable.into_iter().cloned().collect();
        // The same for each sequence, whichever are done.
        let mut seed = number as u64 * 1_000_000;
        for moment in &moments {
            for _ in 0..SEEDS {
                seed += 1;
                check(&mut world, &history, moment, seed, None);
            }
            for lost in &paths {
                seed += 1;
                check(&mut world, &history, moment, seed, Some(lost));
            }
        }
        cases += seed - number as u64 * 1_000_000;
        if sequences.len() > 500 && number % 100 == 99 {
            eprintln!("{level}: up to sequence {number}: {cases} cases");
        }
    }
    cases
}

/// Says which case failed.
struct Named<'a> {
    level: Level,
    sequence: &'a [Act],
    number: usize,
    cut: Cut,
}

impl Drop for Named<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let test = match (self.cut, self.level) {
                (Cut::Everywhere, _) => "snapshots",
                (_, Level::Single) => "a_single_member",
                (_, other) => other.name(),
            };
            eprintln!(
                "--- level {}, requests {:?}; replay: {}TESSERA_ACTS={} \
                 TESSERA_LENGTH={} TESSERA_SEQUENCE={} cargo test --release -p tessera-engine --test crash_points {test}",
                self.level,
                self.sequence,
                if is_large() { "TESSERA_LARGE=1 " } else { "" },
                acts().len(),
                self.sequence.len(),
                self.number,
            );
        }
    }
}

fn no_cut_breaks_the_promise(wanted: Level) {
    let longest = common::from_env("TESSERA_LENGTH").unwrap_or(2);
    for (level, width) in SHAPES.into_iter().filter(|(level, _)| *level == wanted) {
        for length in 1..=usize::try_from(longest).unwrap() {
            let part = Chosen::is_part();
            if part && length < usize::try_from(longest).unwrap() {
                continue;
            }
            let cases = every_cut(level, width, &every_sequence(length, acts()), Cut::AtTheEnd);
            println!("{level}: sequences of {length}: {cases} cases");
            assert!(part || cases > 50, "{cases}");
        }
    }
}

/// On two levels: what snapshots add has nothing to do with members.
#[test]
fn no_cut_breaks_the_promise_of_snapshots() {
    let sequences = OF_SNAPSHOTS.map(<[Act]>::to_vec);
    for (level, width) in [(Level::Single, 1), (Level::Raid5, 3)] {
        let cases = every_cut(level, width, &sequences, Cut::Everywhere);
        println!("{level}: snapshots: {cases} cases");
        assert!(cases > 100);
    }
}

#[test]
fn no_cut_breaks_the_promise_of_post_process_deduplication() {
    let sequences = OF_DEDUP.map(<[Act]>::to_vec);
    for (level, width) in [(Level::Single, 1), (Level::Raid5, 3)] {
        let cases = every_cut(level, width, &sequences, Cut::Everywhere);
        println!("{level}: deduplication: {cases} cases");
        assert!(cases > 100);
    }
}

#[test]
fn no_cut_breaks_the_promise_of_a_single_member() {
    no_cut_breaks_the_promise(Level::Single);
}

#[test]
fn no_cut_breaks_the_promise_of_raid0() {
    no_cut_breaks_the_promise(Level::Raid0);
}

#[test]
fn no_cut_breaks_the_promise_of_raid1() {
    no_cut_breaks_the_promise(Level::Raid1);
}

#[test]
fn no_cut_breaks_the_promise_of_raid5() {
    no_cut_breaks_the_promise(Level::Raid5);
}

#[test]
fn no_cut_breaks_the_promise_of_raid6() {
    no_cut_breaks_the_promise(Level::Raid6);
}

#[test]
fn no_cut_breaks_the_promise_of_raid10() {
    no_cut_breaks_the_promise(Level::Raid10);
}
