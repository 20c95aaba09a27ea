//! R20: writes that find duplicates in segments that reclaim is about to free.
//!
//! A write is done in the middle of a reclaim pass, at each of its device
//! operations in turn; and a reclaim pass in the middle of a write that has
//! found its duplicate and not yet taken its sequence. Whatever the order, what
//! was written must be read back when the freed segments have been used again.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    collections::BTreeSet,
    sync::{Arc, mpsc},
};

use common::{
    interpose::Interposed,
    noise,
    world::{Scale, Snapshot, World, volume},
};
use tessera_engine::{
    disk::{Disk, DiskError, Operation, Request},
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 96,
    journal_bytes: 16 << 20,
};

/// A segment or so.
const DEAD_BYTES: usize = 56 << 10;

fn write(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) -> Result<(), DiskError> {
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    let [request] = batch;
    request.result
}

fn read(pool: &Simulated, name: &str, offset: u64, length: usize) -> Result<Vec<u8>, DiskError> {
    let mut buffer = vec![0xee; length];
    let mut batch = [Request::new(Operation::Read {
        offset,
        buffer: &mut buffer,
    })];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result.map(|()| buffer)
}

/// A pool in which segments full of `noise(1)` are sealed, known to the index,
/// and named by nothing.
fn prepared() -> (World, Snapshot) {
    let mut world = World::create(Level::Raid5, 3, SCALE, 11);
    world.interposed = Some(Interposed::new(world.sim.backend()));
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 8 << 20)).unwrap();
    pool.create_volume(&volume("b", 1 << 20)).unwrap();
    pool.close().unwrap();
    drop(pool);
    let snapshot = world.snapshot();
    (world, snapshot)
}

fn generations(pool: &Simulated) -> BTreeSet<u64> {
    let segments = pool.segments().into_iter();
    segments.map(|(_, generation, _)| generation).collect()
}

/// The generations of segments, most of which are dead afterwards.
fn leave_dead_segments(pool: &Simulated) -> BTreeSet<u64> {
    let disk = pool.disk("a").unwrap();
    write(&disk, 0, &noise(1, 3 * DEAD_BYTES)).unwrap();
    let dead = generations(pool);
    // The last of them is sealed by what comes after it.
    write(&disk, 1 << 20, &noise(2, 2 * DEAD_BYTES)).unwrap();
    pool.flush().unwrap();
    pool.checkpoint().unwrap();
    let mut batch = [Request::new(Operation::Discard {
        offset: 0,
        length: 512 << 10,
    })];
    disk.execute(&mut batch);
    batch[0].result.as_ref().unwrap();
    pool.flush().unwrap();
    dead
}

/// Frees what there is to be freed and writes over it.
fn use_freed_segments(pool: &Simulated) {
    let disk = pool.disk("a").unwrap();
    while pool.reclaim().unwrap() {}
    for round in 0..40 {
        let at = (2 << 20) + round * (64 << 10);
        write(&disk, at, &noise(100 + round, 64 << 10)).unwrap();
    }
    pool.flush().unwrap();
}

#[test]
fn r20_a_write_during_reclaim_keeps_its_duplicates() {
    let (mut world, start) = prepared();
    let mut kept = Vec::new();
    for after in 0.. {
        world.restore(&start);
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(Arc::clone(&interposed));
        let pool = world.open().unwrap();
        let dead = leave_dead_segments(&pool);
        let disk = pool.disk("b").unwrap();
        interposed.plan(after, move || {
            write(&disk, 0, &noise(1, DEAD_BYTES)).unwrap();
        });
        while pool.reclaim().unwrap() {}
        let done = !interposed.cancel();
        kept.push(generations(&pool).intersection(&dead).count());
        if !done {
            break;
        }
        use_freed_segments(&pool);
        let found = read(&pool, "b", 0, DEAD_BYTES);
        assert!(found == Ok(noise(1, DEAD_BYTES)), "during {after}");
        drop(pool);
        world.sim.kill_process();
        let pool = world.open().unwrap();
        let found = read(&pool, "b", 0, DEAD_BYTES);
        assert!(found == Ok(noise(1, DEAD_BYTES)), "after {after}");
    }
    // Some found their duplicates in time, and the segment lives on; some did
    // not, because it was frozen or free already, and stored them anew.
    let without = kept.pop().unwrap();
    assert!(kept.len() > 10, "{} moments", kept.len());
    assert!(
        kept.iter().any(|kept| *kept > without),
        "{kept:?}, {without}"
    );
    assert!(kept.contains(&without), "{kept:?}, {without}");
}

/// After a new start the index knows where chunks are, and the write reads what
/// proves it from the members: there it has found its duplicates and not yet
/// taken its sequence, and a pass that begins then has to wait for it.
#[test]
fn r20_reclaim_waits_for_writes_that_look_for_duplicates() {
    let (mut world, start) = prepared();
    world.restore(&start);
    let pool = world.open().unwrap();
    leave_dead_segments(&pool);
    pool.close().unwrap();
    drop(pool);
    let interposed = Interposed::new(world.sim.backend());
    world.interposed = Some(Arc::clone(&interposed));
    let pool = Arc::new(world.open().unwrap());
    // The database takes a batch that is not full only after some patience.
    for _ in 0..200 {
        pool.index_step();
    }
    let (ended, end) = mpsc::channel();
    let reclaiming = Arc::clone(&pool);
    let thread = Arc::new(parking_lot::Mutex::new(None));
    let handle = Arc::clone(&thread);
    interposed.plan_read(move || {
        *handle.lock() = Some(std::thread::spawn(move || {
            while reclaiming.reclaim().unwrap() {}
            let _nobody_listens = ended.send(());
        }));
        // Long enough for passes that do not wait; those that do are not held
        // up by this.
        let _ = end.recv_timeout(std::time::Duration::from_millis(500));
    });
    let disk = pool.disk("b").unwrap();
    write(&disk, 0, &noise(1, DEAD_BYTES)).unwrap();
    assert!(!interposed.cancel(), "the write read summaries");
    let thread = thread.lock().take().unwrap();
    thread.join().unwrap();
    use_freed_segments(&pool);
    let found = read(&pool, "b", 0, DEAD_BYTES);
    assert!(found == Ok(noise(1, DEAD_BYTES)), "{:?}", found.err());
}

/// Who needs space while freed segments still have readers waits for those
/// readers: it is not told that the pool is full. A read begins at each device
/// operation of the write that reclaims, and ends long after it if it can.
#[test]
fn r9_writers_wait_for_readers_of_the_space_they_need() {
    let (mut world, _) = prepared();
    let pool = world.open().unwrap();
    write(&pool.disk("b").unwrap(), 0, &noise(1, 4096)).unwrap();
    pool.close().unwrap();
    drop(pool);
    let start = world.snapshot();
    // One range again and again, until some write makes room for itself.
    let round = |pool: &Simulated, number: u64| {
        let disk = pool.disk("a").unwrap();
        write(&disk, 1 << 20, &noise(100 + number, 256 << 10))
    };
    let mut opened = || {
        world.restore(&start);
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(Arc::clone(&interposed));
        (Arc::new(world.open().unwrap()), interposed)
    };
    let (pool, interposed) = opened();
    let mut rounds = 0;
    let operations = loop {
        let (before, batches) = (generations(&pool), interposed.batches());
        round(&pool, rounds).unwrap();
        if !before.is_subset(&generations(&pool)) {
            break interposed.batches() - batches;
        }
        rounds += 1;
    };
    drop(pool);
    let mut readers = 0;
    for after in 0..operations {
        let (pool, interposed) = opened();
        for number in 0..rounds {
            round(&pool, number).unwrap();
        }
        let (ended, end) = mpsc::channel();
        let (reading, planner) = (Arc::clone(&pool), Arc::clone(&interposed));
        let reader = Arc::new(parking_lot::Mutex::new(None));
        let handle = Arc::clone(&reader);
        interposed.plan(after, move || {
            let (reached, reach) = mpsc::channel();
            planner.plan_read(move || {
                reached.send(()).unwrap();
                // Long enough for a refusal; who waits is not held up by this.
                let _ = end.recv_timeout(std::time::Duration::from_millis(50));
            });
            let thread = std::thread::spawn(move || read(&reading, "b", 0, 4096));
            reach.recv().unwrap();
            *handle.lock() = Some(thread);
        });
        let written = round(&pool, rounds);
        let _nobody_listens = ended.send(());
        assert_eq!(written, Ok(()), "a read began at operation {after}");
        if let Some(thread) = reader.lock().take() {
            let found = thread.join().unwrap();
            assert!(found == Ok(noise(1, 4096)), "at {after}");
            readers += 1;
        }
    }
    assert!(readers > 10, "{readers} of {operations}");
}
