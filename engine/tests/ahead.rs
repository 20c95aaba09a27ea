//! Commits that are made before the flush which would ask for them.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{
    noise,
    world::{Scale, World, volume},
};
use tessera_engine::disk::{Disk, Operation, Request};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 96,
    journal_bytes: 1 << 20,
};

fn write(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) {
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
}

/// What a power cut right after a write leaves of it, when every write before
/// was flushed `flushes` times in a row and the front end then had a pause.
fn left_after(flushes: u64) -> bool {
    let world = World::create(Level::Raid5, 4, SCALE, 3);
    let data = noise(77, 4096);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    let disk = pool.disk("a").unwrap();
    for turn in 0..flushes {
        write(&disk, turn * 4096, &noise(turn, 4096));
        disk.work_ahead();
        disk.flush(Box::new(|result| assert_eq!(result, Ok(()))));
    }
    write(&disk, 512 << 10, &data);
    disk.work_ahead();
    drop((disk, pool));
    world.sim.power_cut(9);
    world.sim.power_on();
    let pool = world.open().unwrap();
    let mut buffer = vec![0; 4096];
    let mut batch = [Request::new(Operation::Read {
        offset: 512 << 10,
        buffer: &mut buffer,
    })];
    pool.disk("a").unwrap().execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
    drop(batch);
    buffer == data
}

#[test]
fn a_write_that_is_surely_flushed_next_is_durable_before_that() {
    assert!(left_after(10));
}

#[test]
fn without_the_habit_nothing_is_committed_ahead() {
    assert!(!left_after(0));
}
