//! What tests of members and scrubs do with a pool again and again.

use tessera_engine::{
    api::{CheckReport, JobInfo, JobState},
    disk::{DiskError, Operation, Request},
    pool::simulation::{Simulated, check},
};

use super::{
    model::{State, all_names, contents_of, read_all},
    noise,
    world::{World, volume},
};

pub fn request(pool: &Simulated, name: &str, operation: Operation<'_>) -> Result<(), DiskError> {
    let mut batch = [Request::new(operation)];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result
}

/// Writes noise and says what the volume holds then.
pub fn write(
    pool: &Simulated,
    state: &mut State,
    name: &str,
    offset: u64,
    seed: u64,
    bytes: usize,
) {
    let data = noise(seed, bytes);
    let operation = Operation::Write {
        offset,
        data: &data,
    };
    assert_eq!(
        request(pool, name, operation),
        Ok(()),
        "{:?}",
        pool.failure()
    );
    let at = usize::try_from(offset).unwrap();
    contents_of(state, name)[at..at + bytes].copy_from_slice(&data);
}

/// A volume of this size, half of it written.
pub fn filled(pool: &Simulated, name: &str, bytes: u64) -> State {
    pool.create_volume(&volume(name, bytes)).unwrap();
    let length = usize::try_from(bytes).unwrap();
    let mut state = State::new();
    state.insert(name.to_owned(), vec![0; length].into());
    write(pool, &mut state, name, 4096, 1, length / 2);
    pool.flush().unwrap();
    state
}

pub fn assert_holds(pool: &Simulated, state: &State, context: &str) {
    assert!(
        read_all(pool, &all_names(pool), context) == *state,
        "{context}: other data is read back"
    );
}

/// Steps jobs until there is none to step.
pub fn finish_jobs(pool: &Simulated) {
    for _ in 0..10_000 {
        if !pool.job_step().unwrap() {
            return;
        }
    }
    panic!("jobs do not end: {:?}", pool.jobs());
}

pub fn done(pool: &Simulated, id: u64) -> JobInfo {
    finish_jobs(pool);
    let job = pool.job(id).unwrap();
    assert_eq!(job.state, JobState::Done, "{job:?}");
    assert!((job.progress - 1.0).abs() < 1e-9);
    job
}

pub fn scrubbed(pool: &Simulated) -> JobInfo {
    let id = pool.scrub_start().unwrap().id;
    done(pool, id)
}

/// What a check of the stopped pool finds.
pub fn problems(world: &World) -> Vec<String> {
    stopped_check(world).problems
}

/// A check of the stopped pool, chunks included.
pub fn stopped_check(world: &World) -> CheckReport {
    struct Quiet;
    impl tessera_engine::pool::CheckObserver for Quiet {
        fn progress(&self, _: &str, _: u64, _: u64) {}
    }
    check(&world.array(true).unwrap(), true, &Quiet)
}
