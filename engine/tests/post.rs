//! Post-process deduplication: what writes leave to it, and that it merges
//! what inline deduplication would have, whatever happens meanwhile.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    model::State,
    noise,
    pools::{assert_holds, request, write},
    world::{Scale, World, volume},
};
use tessera_engine::{
    ErrorKind,
    api::{Compression, DedupMode, VolumeChange},
    disk::Operation,
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const CHUNK: u64 = 4096;

fn make(pool: &Simulated, name: &str, chunks: u64, dedup: DedupMode) {
    let mut spec = volume(name, chunks * CHUNK);
    spec.dedup = dedup;
    pool.create_volume(&spec).unwrap();
}

/// Writes the same data to a volume again.
fn copy(pool: &Simulated, state: &mut State, from: &str, to: &str) {
    let data = state[from].clone();
    let operation = Operation::Write {
        offset: 0,
        data: &data,
    };
    assert_eq!(request(pool, to, operation), Ok(()));
    state.insert(to.to_owned(), data);
}

fn held(name: &str, chunks: u64) -> State {
    let mut state = State::new();
    state.insert(name.to_owned(), vec![0; (chunks * CHUNK) as usize]);
    state
}

/// Distinct chunks that the pool holds.
fn unique(pool: &Simulated) -> u64 {
    pool.checkpoint().unwrap();
    pool.status().unique_bytes / CHUNK
}

#[test]
fn a_volume_changes_its_mode_under_its_clients_and_keeps_it_over_a_crash() {
    let world = World::create(Level::Raid1, 2, Scale::TINY, 31);
    let pool = world.open().unwrap();
    make(&pool, "a", 32, DedupMode::Inline);
    let mut state = held("a", 32);
    write(&pool, &mut state, "a", 0, 1, 8 * 4096);
    let set = |pool: &Simulated, dedup| {
        let change = VolumeChange {
            dedup: Some(dedup),
            ..VolumeChange::default()
        };
        pool.set_volume("a", &change).unwrap().dedup
    };
    // The same eight chunks again and again, under one disk that stays open.
    let disk = pool.disk("a").unwrap();
    let again = |at: u64| {
        let data = noise(1, 8 * 4096);
        let offset = 8 * at * CHUNK;
        let operation = Operation::Write {
            offset,
            data: &data,
        };
        let mut batch = [tessera_engine::disk::Request::new(operation)];
        disk.execute(&mut batch);
        assert_eq!(batch[0].result, Ok(()));
    };
    again(1);
    assert_eq!(unique(&pool), 8, "inline");
    assert_eq!(set(&pool, DedupMode::Post), DedupMode::Post);
    again(2);
    assert_eq!(unique(&pool), 16, "post looks nothing up");
    assert_eq!(set(&pool, DedupMode::Inline), DedupMode::Inline);
    again(3);
    assert_eq!(unique(&pool), 16, "inline again");
    let change = VolumeChange {
        dedup: Some(DedupMode::Off),
        compression: Some(Compression::None),
    };
    pool.set_volume("a", &change).unwrap();
    let missing = pool.set_volume("b", &change).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    for at in 0..4 {
        let place = at * 8 * 4096;
        state.get_mut("a").unwrap()[place..place + 8 * 4096].copy_from_slice(&noise(1, 8 * 4096));
    }
    drop(disk);
    drop(pool);
    // What was answered is durable, without a checkpoint.
    world.sim.power_cut(5);
    world.sim.power_on();
    let pool = world.open().unwrap();
    let info = &pool.volumes()[0];
    assert_eq!(info.dedup, DedupMode::Off);
    assert_eq!(info.compression, Compression::None);
    assert_holds(&pool, &state, "after a crash");
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    assert_eq!(pool.volumes()[0].dedup, DedupMode::Off);
}

#[test]
fn writes_of_a_post_volume_leave_the_index_alone() {
    let world = World::create(Level::Raid1, 2, Scale::TINY, 32);
    let pool = world.open().unwrap();
    make(&pool, "post", 32, DedupMode::Post);
    let mut state = held("post", 32);
    write(&pool, &mut state, "post", 0, 1, 32 * 4096);
    pool.checkpoint().unwrap();
    assert_eq!(pool.status().index_entries, 0);
    make(&pool, "inline", 32, DedupMode::Inline);
    copy(&pool, &mut state, "post", "inline");
    assert_eq!(unique(&pool), 64, "no hit lands on what is not hashed");
    assert_eq!(pool.status().index_entries, 32);
    assert_holds(&pool, &state, "both");
}
