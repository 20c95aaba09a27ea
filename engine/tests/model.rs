//! Long random runs of the whole engine on simulated devices (R24): crashes,
//! interrupted recoveries, lost and stale members, rot, at every level; what
//! is found afterwards must be what design section 7 promises.
//!
//! `TESSERA_SEED` and `TESSERA_LEVEL` replay one run, `TESSERA_SEEDS` runs
//! that many seeds of each level.
#![allow(clippy::unwrap_used)]

mod common;

use tessera_engine::disk::DiskError;
use tessera_raid::Level;

use common::{
    driver::{Counts, Run},
    from_env,
    model::{Model, State, Step, apply, write_steps},
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

/// A model of one volume, and what puts a byte into one of its chunks.
fn one_volume() -> (Model, impl Fn(u64) -> Vec<Step>) {
    let mut model = Model::default();
    let name = "v".to_owned();
    model.begin(vec![Step::Create { name, size: 65536 }]);
    model.all_durable();
    (model, |chunk| {
        write_steps("v", chunk * 4096, &[7; 4096], 4096)
    })
}

fn with(model: &Model, steps: &[Vec<Step>]) -> State {
    let mut state = model.base.clone();
    steps
        .iter()
        .flatten()
        .for_each(|step| apply(&mut state, step));
    state
}

#[test]
fn the_model_leaves_open_how_far_a_request_came_that_failed_with_the_power() {
    let (mut model, put) = one_volume();
    let before = put(0);
    let (first, second) = (put(2), put(3));
    let after = put(5);
    model.begin(before.clone());
    model.begin_failed([first.clone(), second.clone()].concat());
    model.begin(after.clone());
    let shown = |steps: &[&Vec<Step>]| {
        let steps: Vec<_> = steps.iter().map(|steps| (*steps).clone()).collect();
        model.allows(&with(&model, &steps))
    };
    assert!(shown(&[]));
    assert!(shown(&[&before]));
    assert!(shown(&[&before, &first]));
    assert!(shown(&[&before, &first, &second]));
    assert!(shown(&[&before, &after]));
    assert!(shown(&[&before, &first, &after]));
    assert!(shown(&[&before, &first, &second, &after]));
    // Its pieces come one after the other.
    assert!(!shown(&[&before, &second]));
    assert!(!shown(&[&before, &second, &after]));
    // What was acknowledged before comes before all of it.
    assert!(!shown(&[&first]));
    assert!(!shown(&[&after]));
    assert!(!shown(&[&first, &second, &after]));
}

/// In a batch a request met "no space", a later one was done, and then the
/// power failed: nobody could look any more.
#[test]
fn the_model_allows_for_a_request_that_failed_in_a_batch_before_the_power_did() {
    let mut run = Run::new(Level::Single, 1, 1);
    let (model, put) = one_volume();
    run.model = model;
    run.world.sim.power_cut(1);
    run.settle(Err(DiskError::NoSpace), false, put(0));
    run.settle(Ok(()), false, put(4));
    let found = with(&run.model, &[put(4)]);
    assert!(run.model.allows(&found));
    let both = with(&run.model, &[put(0), put(4)]);
    assert!(run.model.allows(&both));
    assert!(run.model.allows(&with(&run.model, &[])));
}
