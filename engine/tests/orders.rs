//! Orders and limits that only show under particular circumstances: an
//! interrupted recovery, a full file system below a member, an idle pool,
//! writers that compete for buffers.
#![allow(clippy::unwrap_used)]

mod common;

use std::{collections::BTreeSet, sync::Arc};

use common::{
    interpose::Interposed,
    noise,
    world::{SHAPES, Scale, World, volume},
};
use tessera_engine::{
    ErrorKind,
    disk::{DiskError, Operation, Request},
    pool::simulation::Simulated,
};
use tessera_raid::{Level, device::sim::Fault};

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 96,
    journal_bytes: 1 << 20,
};
const JOURNAL_OFFSET: u64 = 16 << 10;

fn request(pool: &Simulated, name: &str, operation: Operation<'_>) -> Result<(), DiskError> {
    let mut batch = [Request::new(operation)];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result
}

fn write(pool: &Simulated, offset: u64, data: &[u8]) {
    let done = request(pool, "a", Operation::Write { offset, data });
    assert_eq!(done, Ok(()));
}

fn read(pool: &Simulated, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    let operation = Operation::Read {
        offset,
        buffer: &mut buffer,
    };
    assert_eq!(request(pool, "a", operation), Ok(()));
    buffer
}

fn crash(world: &World, pool: Simulated, seed: u64) {
    drop(pool);
    world.sim.power_cut(seed);
    world.sim.power_on();
}

/// What an interrupted recovery has written in a generation, the next one must
/// not write in the same: the mark is raised before the first segment.
#[test]
fn r9_an_interrupted_recovery_does_not_give_its_generations_away() {
    let mut world = World::create(Level::Raid5, 3, SCALE, 3);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    write(&pool, 0, &noise(1, 100 << 10));
    pool.flush().unwrap();
    let generations = |pool: &Simulated| -> BTreeSet<u64> {
        let segments = pool.segments().into_iter();
        segments.map(|(_, generation, _)| generation).collect()
    };
    let before = generations(&pool);
    crash(&world, pool, 1);
    let start = world.snapshot();
    // What an uninterrupted one issues is what the interrupted ones have issued.
    let issued = generations(&world.open().unwrap());
    assert!(!issued.is_subset(&before));
    let allocated = |world: &World| -> u64 {
        let paths = world.paths.iter();
        paths.map(|path| world.sim.allocated_blocks(path)).sum()
    };
    let mut wrote = 0;
    for operations in 1..200 {
        world.restore(&start);
        let untouched = allocated(&world);
        world.sim.cut_after(operations);
        if world.open().is_ok() && world.sim.has_power() {
            break;
        }
        world.sim.power_on();
        if allocated(&world) == untouched {
            continue;
        }
        wrote += 1;
        let next = generations(&world.open().unwrap());
        // If the interrupted one was complete, what it issued is there; the next
        // one issued something as well, and that must be new.
        assert!(
            !next.is_subset(&issued),
            "cut after {operations}: {issued:?} are issued again in {next:?}"
        );
    }
    assert!(wrote > 0, "some recovery was interrupted after writing");
}

/// A checkpoint that meets a full file system is given up: what it would have
/// made superfluous stays in the journal, however often it is tried.
#[test]
fn r12_a_checkpoint_without_space_trims_nothing() {
    for (level, width) in SHAPES {
        let world = World::create(level, width, SCALE, 4);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 4 << 20)).unwrap();
        let data = noise(1, 400 << 10);
        write(&pool, 0, &data);
        pool.checkpoint().unwrap();
        let blocks_left = |blocks_left: u64| {
            for path in &world.paths {
                world.sim.inject(path, Fault::NoSpace { blocks_left });
            }
        };
        // Renaming needs no space but the journal's. Each time less of it than
        // makes a checkpoint due, and more than all of it in the end.
        let name = |number: u64| format!("n{number}");
        for number in 0..300 {
            let old = match number {
                0 => "a".to_owned(),
                _ => name(number - 1),
            };
            pool.rename_volume(&old, &name(number)).unwrap();
            if number % 100 == 99 {
                blocks_left(0);
                let full = pool.checkpoint().unwrap_err();
                assert_eq!(full.kind(), ErrorKind::NoSpace, "{level}");
                assert_eq!(pool.failure(), None, "{level}: lack of space passes");
                blocks_left(1 << 30);
            }
        }
        crash(&world, pool, 5);
        let pool = world.open().unwrap();
        assert_eq!(pool.names(), [name(299)], "{level}");
        pool.rename_volume(&name(299), "a").unwrap();
        assert!(read(&pool, 0, data.len()) == data, "{level}");
    }
}

/// A member without space refuses new data for as long as that lasts, and
/// nothing else: it is nobody's failure (R4).
#[test]
fn r4_a_full_file_system_below_a_member_is_the_pools_lack_of_space() {
    for (level, width) in SHAPES {
        let world = World::create(level, width, SCALE, 4);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 4 << 20)).unwrap();
        let data = noise(1, 256 << 10);
        write(&pool, 0, &data);
        pool.flush().unwrap();
        while pool.writer_step().unwrap() {}
        world
            .sim
            .inject(&world.paths[0], Fault::NoSpace { blocks_left: 3 });
        let more = noise(2, 512 << 10);
        write(&pool, 1 << 20, &more);
        assert_eq!(pool.flush(), Err(DiskError::NoSpace), "{level}");
        assert_eq!(pool.failure(), None, "{level}");
        assert!(read(&pool, 0, data.len()) == data, "{level}");
        assert!(
            read(&pool, 1 << 20, more.len()) == more,
            "{level}: from memory"
        );
        let blocks_left = 1 << 30;
        world
            .sim
            .inject(&world.paths[0], Fault::NoSpace { blocks_left });
        pool.flush().unwrap();
        let online = format!("{:?}", pool.status().state);
        assert_eq!(online, "Online", "{level}: nobody was failed");
        crash(&world, pool, 6);
        let pool = world.open().unwrap();
        assert!(read(&pool, 1 << 20, more.len()) == more, "{level}");
    }
}

/// R5: requests go on when a member stops answering, and its late writes harm
/// nobody.
#[test]
fn r5_a_member_that_stalls_is_given_up_and_completes_late() {
    for (level, width) in SHAPES.into_iter().skip(2) {
        for victim in 0..width {
            let world = World::create(level, width, SCALE, 4);
            let pool = world.open().unwrap();
            pool.create_volume(&volume("a", 4 << 20)).unwrap();
            world
                .sim
                .inject(&world.paths[victim], Fault::Stall { asks: 50 });
            let data = noise(1, 256 << 10);
            write(&pool, 0, &data);
            pool.flush().unwrap();
            pool.checkpoint().unwrap();
            let state = format!("{:?}", pool.status().state);
            assert_eq!(state, "Degraded", "{level} without {victim}");
            // Segments are freed and used again before the late writes come.
            let other = noise(2, 256 << 10);
            write(&pool, 0, &other);
            pool.flush().unwrap();
            while pool.reclaim().unwrap() {}
            world.sim.heal(&world.paths[victim]);
            world.sim.release_stalled(&world.paths[victim]);
            assert!(read(&pool, 0, other.len()) == other, "{level}");
            crash(&world, pool, 7);
            let pool = world.open().unwrap();
            assert!(read(&pool, 0, other.len()) == other, "{level}");
        }
    }
}

/// R4: when all members stall together, everybody waits.
#[test]
fn r4_nobody_is_given_up_when_all_members_stall() {
    for (level, width) in SHAPES {
        let world = World::create(level, width, SCALE, 4);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 4 << 20)).unwrap();
        for path in &world.paths {
            world.sim.inject(path, Fault::Stall { asks: 1 });
        }
        let data = noise(1, 256 << 10);
        write(&pool, 0, &data);
        pool.flush().unwrap();
        pool.checkpoint().unwrap();
        let state = format!("{:?}", pool.status().state);
        assert_eq!(state, "Online", "{level}");
        assert!(read(&pool, 0, data.len()) == data, "{level}");
    }
}

/// An idle pool comes to rest with a checkpoint, after which nothing is needed
/// from the journal.
#[test]
fn r13_every_change_counts_towards_the_checkpoint_of_an_idle_pool() {
    for (level, width) in SHAPES {
        let world = World::create(level, width, SCALE, 3);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        pool.checkpoint().unwrap();
        let data = noise(1, 100 << 10);
        write(&pool, 0, &data);
        pool.flush().unwrap();
        pool.maintenance_step(true).unwrap();
        let zeroes = vec![0; usize::try_from(SCALE.journal_bytes).unwrap()];
        for path in &world.paths {
            world.sim.poke(path, JOURNAL_OFFSET, &zeroes);
        }
        crash(&world, pool, 2);
        let pool = world.open().unwrap();
        assert!(read(&pool, 0, data.len()) == data, "{level}");
    }
}

/// R13: a write of a part of a chunk that another change of the chunk overtakes,
/// between its read and its map change, keeps what the other one did.
#[test]
fn r13_a_partial_write_keeps_what_another_did_meanwhile() {
    let mut world = World::create(Level::Raid5, 3, SCALE, 3);
    let old = noise(1, 4096);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    write(&pool, 0, &old);
    pool.close().unwrap();
    drop(pool);
    let start = world.snapshot();
    // What it is, doing it, and the chunk it leaves.
    type Other = (&'static str, fn(&Simulated), Vec<u8>);
    let others: [Other; 4] = [
        (
            "another part",
            |pool| write(pool, 2000, &noise(2, 100)),
            [&old[..2000], &noise(2, 100), &old[2100..]].concat(),
        ),
        (
            "all of it",
            |pool| write(pool, 0, &noise(2, 4096)),
            noise(2, 4096),
        ),
        (
            "a discard",
            |pool| {
                let (offset, length) = (0, 4096);
                let done = request(pool, "a", Operation::Discard { offset, length });
                assert_eq!(done, Ok(()));
            },
            vec![0; 4096],
        ),
        (
            "a range around it",
            |pool| write(pool, 0, &noise(3, 40 << 10)),
            noise(3, 40 << 10)[..4096].to_vec(),
        ),
    ];
    for (what, act, mut expected) in others {
        world.restore(&start);
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(Arc::clone(&interposed));
        // Nothing is in memory, so the partial write has to read.
        let pool = Arc::new(world.open().unwrap());
        let other = Arc::clone(&pool);
        interposed.plan_read(move || act(&other));
        write(&pool, 300, &noise(4, 50));
        assert!(!interposed.cancel(), "the write read its chunk");
        expected[300..350].copy_from_slice(&noise(4, 50));
        assert!(read(&pool, 0, 4096) == expected, "overtaken by {what}");
        pool.flush().unwrap();
        drop(pool);
        world.sim.kill_process();
        let pool = world.open().unwrap();
        assert!(read(&pool, 0, 4096) == expected, "{what}, after a crash");
        drop(pool);
        world.sim.kill_process();
    }
}

/// Each request takes all its buffers in one call: with one at a time, writers
/// that need half of them each would wait for each other without end.
#[test]
fn r23_writers_compete_for_few_buffers_and_all_get_on() {
    let roomy = Scale {
        segments: 800,
        journal_bytes: 4 << 20,
        ..SCALE
    };
    let world = World::create(Level::Raid5, 3, roomy, 3);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 8 << 20)).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..8 {
                    let data = noise(writer << 8 | round, 1 << 20);
                    write(pool, writer << 20, &data);
                }
            });
        }
    });
    for writer in 0..8u64 {
        assert!(read(&pool, writer << 20, 1 << 20) == noise(writer << 8 | 7, 1 << 20));
    }
}
