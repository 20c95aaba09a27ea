//! Whatever is interleaved of writes, snapshots, reclaim and deduplication, the
//! volumes and snapshots hold what a plain copy in memory holds, the offline
//! check finds nothing, and what is deleted gives its space back.
//!
//! Without crashes and faults, of which `crash_points.rs` and `faults.rs` have
//! enough: so that what fails is shrunk to a few actions.
#![allow(clippy::unwrap_used)]

mod common;

use std::ops::Range;

use common::{
    model::{State, Step, all_names, apply, read_all, volume_of, write_steps, zero_steps},
    noise,
    pools::{assert_holds, finish_jobs, problems, request},
    world::{Scale, World, volume},
};
use proptest::prelude::*;
use tessera_engine::{
    api::{Compression, DedupMode, VolumeChange},
    disk::Operation,
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const CHUNK: u64 = 4096;
const VOLUME_CHUNKS: u64 = 24;
const VOLUME_BYTES: u64 = VOLUME_CHUNKS * CHUNK;
/// Volumes and snapshots: all of them, each full, fit the pool.
const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 6;

#[derive(Debug, Clone)]
enum Action {
    /// Any bytes, of few patterns: most of it has been written before.
    Write {
        at: Place,
        pattern: u64,
    },
    Discard(Place),
    Zero(Place),
    Read(Place),
    Mode {
        volume: usize,
        dedup: DedupMode,
        compression: Compression,
    },
    Snapshot(usize),
    RollBack(usize),
    Clone(usize),
    Forget(usize),
    /// A volume with its snapshots.
    Delete(usize),
    StartReclaim,
    StartDedup,
    JobSteps(usize),
    Reclaim,
    IndexStep,
    Flush,
    Checkpoint,
    /// The process dies after a flush.
    Restart,
}

/// A range of a volume; volumes are chosen by their number among those there.
#[derive(Debug, Clone)]
struct Place {
    volume: usize,
    range: Range<u64>,
}

fn place() -> impl Strategy<Value = Place> {
    let whole = (0..VOLUME_CHUNKS, 1..12u64)
        .prop_map(|(first, count)| first * CHUNK..(first + count).min(VOLUME_CHUNKS) * CHUNK);
    let any = (0..VOLUME_BYTES, 1..3 * CHUNK)
        .prop_map(|(from, length)| from..(from + length).min(VOLUME_BYTES));
    (0..VOLUMES_MAX, prop_oneof![3 => whole, 1 => any])
        .prop_map(|(volume, range)| Place { volume, range })
}

fn action() -> impl Strategy<Value = Action> {
    let dedup = prop_oneof![
        Just(DedupMode::Inline),
        Just(DedupMode::Post),
        Just(DedupMode::Off)
    ];
    let compression = prop_oneof![Just(Compression::Lz4), Just(Compression::None)];
    prop_oneof![
        12 => (place(), 0..6u64).prop_map(|(at, pattern)| Action::Write { at, pattern }),
        2 => place().prop_map(Action::Discard),
        2 => place().prop_map(Action::Zero),
        4 => place().prop_map(Action::Read),
        3 => (0..VOLUMES_MAX, dedup, compression).prop_map(|(volume, dedup, compression)| {
            Action::Mode { volume, dedup, compression }
        }),
        4 => (0..VOLUMES_MAX).prop_map(Action::Snapshot),
        2 => (0..SNAPSHOTS_MAX).prop_map(Action::RollBack),
        2 => (0..SNAPSHOTS_MAX).prop_map(Action::Clone),
        3 => (0..SNAPSHOTS_MAX).prop_map(Action::Forget),
        1 => (0..VOLUMES_MAX).prop_map(Action::Delete),
        2 => Just(Action::StartReclaim),
        3 => Just(Action::StartDedup),
        10 => (1..8usize).prop_map(Action::JobSteps),
        1 => Just(Action::Reclaim),
        1 => Just(Action::IndexStep),
        2 => Just(Action::Flush),
        2 => Just(Action::Checkpoint),
        1 => Just(Action::Restart),
    ]
}

struct Both {
    world: World,
    pool: Simulated,
    plain: State,
    /// Of volumes and snapshots made so far, for their names.
    made: usize,
}

impl Both {
    fn new(level: Level, width: usize) -> Self {
        let world = World::create(level, width, Scale::TINY, 9);
        let pool = world.open().unwrap();
        let mut both = Self {
            world,
            pool,
            plain: State::new(),
            made: 0,
        };
        both.create();
        both
    }

    fn name(&mut self) -> String {
        self.made += 1;
        format!("n{}", self.made)
    }

    fn create(&mut self) {
        let name = self.name();
        self.pool
            .create_volume(&volume(&name, VOLUME_BYTES))
            .unwrap();
        let size = VOLUME_BYTES;
        apply(&mut self.plain, &Step::Create { name, size });
    }

    fn some(&self, number: usize, snapshot: bool) -> Option<String> {
        let names = self.plain.keys();
        let names: Vec<&String> = names
            .filter(|name| name.contains('@') == snapshot)
            .collect();
        let at = number.checked_rem(names.len())?;
        Some(names[at].clone())
    }

    fn count(&self, snapshots: bool) -> usize {
        let names = self.plain.keys();
        names.filter(|name| name.contains('@') == snapshots).count()
    }

    fn apply_all(&mut self, steps: Vec<Step>) {
        for step in steps {
            apply(&mut self.plain, &step);
        }
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Write { at, pattern } => {
                let Some(name) = self.some(at.volume, false) else {
                    return;
                };
                let length = usize::try_from(at.range.end - at.range.start).unwrap();
                // The same chunk at any place, and of half of them compressible.
                let chunk = match pattern % 2 {
                    0 => noise(*pattern, CHUNK as usize),
                    _ => vec![*pattern as u8; CHUNK as usize],
                };
                let data: Vec<u8> = chunk.iter().copied().cycle().take(length).collect();
                let offset = at.range.start;
                let write = Operation::Write {
                    offset,
                    data: &data,
                };
                assert_eq!(request(&self.pool, &name, write), Ok(()));
                self.apply_all(write_steps(&name, offset, &data, CHUNK));
            }
            Action::Discard(at) | Action::Zero(at) => {
                let Some(name) = self.some(at.volume, false) else {
                    return;
                };
                let (offset, length) = (at.range.start, at.range.end - at.range.start);
                let operation = match action {
                    Action::Discard(_) => Operation::Discard { offset, length },
                    _ => Operation::WriteZeroes {
                        offset,
                        length,
                        keep_allocated: true,
                    },
                };
                assert_eq!(request(&self.pool, &name, operation), Ok(()));
                self.apply_all(zero_steps(&name, offset, length, VOLUME_BYTES, CHUNK));
            }
            Action::Read(at) => {
                let Some(name) = self.some(at.volume, false) else {
                    return;
                };
                let range = at.range.start as usize..at.range.end as usize;
                let mut buffer = vec![0xa5; range.len()];
                let read = Operation::Read {
                    offset: at.range.start,
                    buffer: &mut buffer,
                };
                assert_eq!(request(&self.pool, &name, read), Ok(()));
                assert!(buffer == self.plain[&name][range], "{name}, {at:?}");
            }
            Action::Mode {
                volume,
                dedup,
                compression,
            } => {
                let Some(name) = self.some(*volume, false) else {
                    return;
                };
                let change = VolumeChange {
                    dedup: Some(*dedup),
                    compression: Some(*compression),
                    ..VolumeChange::default()
                };
                self.pool.set_volume(&name, &change).unwrap();
            }
            Action::Snapshot(_) if self.count(true) == SNAPSHOTS_MAX => {}
            Action::Snapshot(number) => {
                let Some(name) = self.some(*number, false) else {
                    return;
                };
                let own = self.name();
                self.pool.create_snapshot(&name, &own).unwrap();
                let snapshot = format!("{name}@{own}");
                self.apply_all(vec![Step::Take { snapshot }]);
            }
            Action::RollBack(number) => {
                let Some(snapshot) = self.some(*number, true) else {
                    return;
                };
                let (name, own) = snapshot.split_once('@').unwrap();
                self.pool.roll_back(name, own, false).unwrap();
                self.apply_all(vec![Step::RollBack { snapshot }]);
            }
            Action::Clone(_) if self.count(false) == VOLUMES_MAX => {}
            Action::Clone(number) => {
                let Some(snapshot) = self.some(*number, true) else {
                    return;
                };
                let name = self.name();
                let (of, own) = snapshot.split_once('@').unwrap();
                self.pool.clone_snapshot(of, own, &name).unwrap();
                self.apply_all(vec![Step::Clone { snapshot, name }]);
            }
            Action::Forget(number) => {
                let Some(snapshot) = self.some(*number, true) else {
                    return;
                };
                let (name, own) = snapshot.split_once('@').unwrap();
                self.pool.delete_snapshot(name, own).unwrap();
                self.apply_all(vec![Step::Forget { snapshot }]);
            }
            Action::Delete(number) => {
                let Some(name) = self.some(*number, false) else {
                    return;
                };
                self.pool.delete_volume_and_snapshots(&name).unwrap();
                self.plain.retain(|other, _| volume_of(other) != name);
                self.create();
            }
            // Refused while one is under way.
            Action::StartReclaim => drop(self.pool.reclaim_start()),
            Action::StartDedup => drop(self.pool.dedup_start()),
            Action::JobSteps(count) => {
                for _ in 0..*count {
                    self.pool.job_step().unwrap();
                }
            }
            Action::Reclaim => drop(self.pool.reclaim().unwrap()),
            Action::IndexStep => drop(self.pool.index_step()),
            Action::Flush => self.pool.flush().unwrap(),
            Action::Checkpoint => self.pool.checkpoint().unwrap(),
            Action::Restart => {
                self.pool.flush().unwrap();
                self.world.sim.kill_process();
                self.pool = self.world.open().unwrap();
                assert_holds(&self.pool, &self.plain, "after a restart");
            }
        }
    }

    /// What holds at the end of any run.
    fn finish(self) {
        let Self {
            world, pool, plain, ..
        } = self;
        assert_holds(&pool, &plain, "at the end");
        let job = pool.dedup_start().map(|_| finish_jobs(&pool));
        drop(job);
        assert_holds(&pool, &plain, "all duplicates merged");
        for name in pool.names() {
            pool.delete_volume_and_snapshots(&name).unwrap();
        }
        finish_jobs(&pool);
        drop(pool.reclaim_start());
        finish_jobs(&pool);
        pool.checkpoint().unwrap();
        let status = pool.status();
        assert_eq!((status.logical_bytes, status.unique_bytes), (0, 0));
        assert!(read_all(&pool, &all_names(&pool), "emptied").is_empty());
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new());
    }
}

fn run(level: Level, width: usize, actions: &[Action]) {
    let mut both = Both::new(level, width);
    for action in actions {
        both.act(action);
    }
    both.finish();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        max_shrink_iters: 2000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_interleaving_equals_a_plain_copy_on_one_member(
        actions in prop::collection::vec(action(), 1..80),
    ) {
        run(Level::Single, 1, &actions);
    }

    #[test]
    fn any_interleaving_equals_a_plain_copy_on_raid5(
        actions in prop::collection::vec(action(), 1..80),
    ) {
        run(Level::Raid5, 3, &actions);
    }
}

/// Found by the properties above: in a pool this small each pass of the job
/// wrote as many pages as it freed, for ever.
#[test]
fn a_reclaim_ends_where_it_frees_no_more_than_it_writes() {
    let first = |pattern| Action::Write {
        at: Place {
            volume: 0,
            range: 0..CHUNK,
        },
        pattern,
    };
    let actions = [
        first(0),
        Action::Checkpoint,
        first(1),
        Action::Reclaim,
        Action::StartReclaim,
        Action::Snapshot(0),
        first(0),
        Action::JobSteps(1),
        Action::Forget(0),
        Action::Checkpoint,
        Action::StartReclaim,
    ];
    run(Level::Single, 1, &actions);
}
