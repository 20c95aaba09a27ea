//! After any crash at any moment of a random run, a check finds no problem and
//! writes nothing: whatever a crash may leave is no damage.
//!
//! `TESSERA_SEED` replays one run, `TESSERA_SEEDS` runs that many at each level.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Rng, from_env, noise,
    world::{SHAPES, Scale, World, losses, volume},
};
use tessera_engine::{
    api::CheckReport,
    disk::{Operation, Request},
    pool::{CheckObserver, simulation},
};

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 48,
    journal_bytes: 256 << 10,
};
const VOLUME_BYTES: u64 = 512 << 10;
const CRASHES: u64 = 12;

struct Silent;

impl CheckObserver for Silent {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        assert!(done <= total, "{stage}: {done} of {total}");
    }
}

/// Whatever fails here fails for lack of power or space.
fn act(pool: &simulation::Simulated, rng: &mut Rng) {
    let name = if rng.chance(3) { "b" } else { "a" };
    let Some(disk) = pool.disk(name) else {
        let _no_power = pool.create_volume(&volume(name, VOLUME_BYTES));
        return;
    };
    let length = 4096 * (1 + rng.below(24));
    let offset = rng.below((VOLUME_BYTES - length) / 512) * 512;
    let bytes = noise(rng.below(40), usize::try_from(length).unwrap());
    if rng.chance(10) {
        drop(disk);
        return snapshots(pool, rng, name);
    }
    let operation = match rng.below(16) {
        0..8 => Operation::Write {
            offset: offset / 4096 * 4096,
            data: &bytes,
        },
        8 => Operation::Write {
            offset,
            data: &bytes[..3000],
        },
        9 => Operation::Discard { offset, length },
        10 => Operation::WriteZeroes {
            offset,
            length,
            keep_allocated: true,
        },
        11 => return drop(pool.checkpoint()),
        12 => return drop(pool.reclaim()),
        13 => return drop(pool.timer_step()),
        14 if rng.chance(4) => {
            drop(disk);
            return drop(pool.delete_volume_and_snapshots(name));
        }
        _ => return drop(pool.flush()),
    };
    disk.execute(&mut [Request::new(operation)]);
}

/// What a snapshot, a clone or a rollback leaves must pass the check as well.
fn snapshots(pool: &simulation::Simulated, rng: &mut Rng, name: &str) {
    let own = format!("s{}", rng.below(3));
    match rng.below(5) {
        0..2 => drop(pool.create_snapshot(name, &own)),
        2 => drop(pool.delete_snapshot(name, &own)),
        3 => drop(pool.roll_back(name, &own, false)),
        _ => drop(pool.clone_snapshot(name, &own, "c")),
    }
}

/// With `stop_was_cut` the power failed while superblocks that say "clean" were
/// written: a copy of them may be torn, which nobody can tell from rot until
/// the pool is opened again.
fn check(world: &World, stop_was_cut: bool) -> CheckReport {
    let array = world.array(true).unwrap();
    let writes = world.writes();
    let mut report = simulation::check(&array, true, &Silent);
    assert_eq!(world.writes(), writes, "a check writes nothing");
    report
        .problems
        .retain(|problem| !(stop_was_cut && problem.starts_with("Superblock ")));
    report
}

#[test]
fn what_a_crash_leaves_is_no_damage() {
    let seeds = match from_env("TESSERA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("TESSERA_SEEDS").unwrap_or(6),
    };
    let (mut batches, mut chunks, mut clean) = (0, 0, 0_u64);
    for (level, width) in SHAPES {
        for seed in seeds.clone() {
            let world = World::create(level, width, SCALE, seed);
            let mut rng = Rng::new(seed ^ 0xc4ec);
            let mut stop_was_cut = false;
            for crash in 0..CRASHES {
                let here = format!("{level}, TESSERA_SEED={seed}, crash {crash}");
                // Recovery may be cut short, too.
                world.sim.cut_after(1 + rng.below(400));
                if let Ok(pool) = world.open() {
                    stop_was_cut = false;
                    for _ in 0..40 {
                        act(&pool, &mut rng);
                    }
                    if rng.chance(4) {
                        stop_was_cut = pool.close().is_err();
                        clean += u64::from(!stop_was_cut);
                    }
                }
                world.sim.power_cut(seed ^ crash << 32);
                world.sim.power_on();
                let report = check(&world, stop_was_cut);
                assert_eq!(report.problems, Vec::<String>::new(), "{here}");
                batches += report.journal_batches_checked;
                chunks += report.chunks_checked;
                // Once, and for good.
                if losses(level) > 0 && crash == CRASHES / 2 && rng.chance(2) {
                    let member = usize::try_from(rng.below(width as u64)).unwrap();
                    world.sim.inject(
                        &world.paths[member],
                        tessera_raid::device::sim::Fault::Vanish,
                    );
                    let report = check(&world, stop_was_cut);
                    assert_eq!(
                        report.problems,
                        Vec::<String>::new(),
                        "{here}, without {member}"
                    );
                    assert!(
                        report.notes.iter().any(|note| note.contains("is missing")),
                        "{here}"
                    );
                }
            }
        }
    }
    // The checks had something to look at.
    assert!(
        batches > 0 && chunks > 0 && clean > 0,
        "{batches} {chunks} {clean}"
    );
}
