//! The fault simulator: one seed, one world in which devices fail in every way
//! they know, while power is cut and recoveries are cut again.
//!
//! Within the redundancy everything acknowledged and flushed reads back, and
//! nothing ever fails. Beyond it every answer is right or an error.
//!
//! `TESSERA_SEED` and `TESSERA_LEVEL` replay one run, `TESSERA_SEEDS` runs
//! that many seeds of each level from `TESSERA_FIRST` on.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Rng,
    driver::{Counts, Run},
    from_env,
    hazards::Mode,
    world::SHAPES,
};
use tessera_raid::Level;

const OPERATIONS: u64 = 250;

/// In a thread of its own, because compression adapts to what its thread has
/// seen: so a seed does the same alone and after others.
fn run_alone(level: Level, width: usize, seed: u64, mode: Mode) -> Run {
    let run = std::thread::spawn(move || {
        let mut run = Run::with(level, width, seed, mode, Rng::new(seed ^ 0xfa17));
        run.run(from_env("TESSERA_OPERATIONS").unwrap_or(OPERATIONS));
        run
    });
    run.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn every_level(mode: Mode) -> Counts {
    let wanted = std::env::var("TESSERA_LEVEL").ok();
    let first = from_env("TESSERA_FIRST").unwrap_or(0);
    let seeds = match from_env("TESSERA_SEED") {
        Some(seed) => seed..seed + 1,
        None => first..first + from_env("TESSERA_SEEDS").unwrap_or(8),
    };
    let mut all = Counts::default();
    for (level, width) in SHAPES {
        if wanted
            .as_deref()
            .is_some_and(|wanted| wanted != level.name())
        {
            continue;
        }
        let mut counts = Counts::default();
        let begun = std::time::Instant::now();
        for seed in seeds.clone() {
            counts += run_alone(level, width, seed, mode).counts;
        }
        let rate = (seeds.end - seeds.start) as f64 / begun.elapsed().as_secs_f64();
        println!("{level}: {mode:?}, {seeds:?}, {rate:.1} seeds a second, {counts:?}");
        all += counts;
    }
    all
}

#[test]
fn within_the_redundancy_no_fault_is_felt() {
    let counts = every_level(Mode::Within);
    assert_eq!(counts.errors, 0, "{counts:?}");
}

#[test]
fn beyond_the_redundancy_nothing_lies() {
    let counts = every_level(Mode::Beyond);
    let one_run = from_env("TESSERA_SEED").is_some();
    assert!(one_run || counts.errors > 0, "faults are felt: {counts:?}");
}

#[test]
fn a_run_with_faults_is_the_same_every_time() {
    for mode in [Mode::Within, Mode::Beyond] {
        for (level, width) in SHAPES {
            let once = run_alone(level, width, 4711, mode);
            let again = run_alone(level, width, 4711, mode);
            assert_eq!(once.log, again.log, "{level}");
            assert_eq!(
                once.world.sim.trace_hash(),
                again.world.sim.trace_hash(),
                "{level}"
            );
        }
    }
}
