//! Long random runs of the whole engine on simulated devices (R24): crashes,
//! interrupted recoveries, lost and stale members, rot, at every level; what
//! is found afterwards must be what design section 7 promises.
//!
//! `TESSERA_SEED` and `TESSERA_LEVEL` replay one run, `TESSERA_SEEDS` runs
//! that many seeds of each level.
#![allow(clippy::unwrap_used)]

mod common;

use tessera_raid::Level;

use common::{
    driver::{Counts, Run},
    from_env,
    world::SHAPES,
};

const OPERATIONS: u64 = 300;

fn levels() -> impl Iterator<Item = (Level, usize)> {
    let wanted = std::env::var("TESSERA_LEVEL").ok();
    SHAPES.into_iter().filter(move |(level, _)| {
        wanted
            .as_deref()
            .is_none_or(|wanted| wanted == level.name())
    })
}

/// In a thread of its own, because compression adapts to what its thread has
/// seen: so a seed does the same alone and after others.
fn run_alone(level: Level, width: usize, seed: u64, operations: u64) -> Run {
    let run = std::thread::spawn(move || {
        let mut run = Run::new(level, width, seed);
        run.run(operations);
        run
    });
    run.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

#[test]
fn random_runs_keep_the_promise() {
    let seeds = match from_env("TESSERA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("TESSERA_SEEDS").unwrap_or(12),
    };
    let operations = from_env("TESSERA_OPERATIONS").unwrap_or(OPERATIONS);
    for (level, width) in levels() {
        let mut counts = Counts::default();
        let mut runs = 0;
        for seed in seeds.clone() {
            counts += run_alone(level, width, seed, operations).counts;
            runs += 1;
        }
        println!("{level}: {runs} runs, {counts:?}");
        assert!(counts.crashes > 0);
    }
}

#[test]
fn a_run_is_the_same_every_time() {
    for (level, width) in levels() {
        let once = run_alone(level, width, 4711, OPERATIONS);
        let again = run_alone(level, width, 4711, OPERATIONS);
        assert_eq!(once.log, again.log, "{level}");
        assert_eq!(
            once.world.sim.operations(),
            again.world.sim.operations(),
            "{level}"
        );
        assert_eq!(
            once.world.sim.trace_hash(),
            again.world.sim.trace_hash(),
            "{level}"
        );
        assert!(once.model.now == again.model.now, "{level}");
    }
}
