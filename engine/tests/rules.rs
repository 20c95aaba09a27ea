//! One test or more for each rule of the design that one engine on simulated
//! devices can break. R12, R17 and R19 are what `crash_points` cuts into.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{
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

fn world(level: Level) -> World {
    let (_, width) = SHAPES
        .into_iter()
        .find(|(shape, _)| *shape == level)
        .unwrap();
    World::create(level, width, SCALE, 3)
}

fn request(pool: &Simulated, name: &str, operation: Operation<'_>) -> Result<(), DiskError> {
    let mut batch = [Request::new(operation)];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result
}

fn write(pool: &Simulated, name: &str, offset: u64, data: &[u8]) {
    assert_eq!(
        request(pool, name, Operation::Write { offset, data }),
        Ok(())
    );
}

fn read(pool: &Simulated, name: &str, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    let result = request(
        pool,
        name,
        Operation::Read {
            offset,
            buffer: &mut buffer,
        },
    );
    assert_eq!(result, Ok(()));
    buffer
}

fn discard(pool: &Simulated, name: &str, offset: u64, length: u64) {
    assert_eq!(
        request(pool, name, Operation::Discard { offset, length }),
        Ok(())
    );
}

fn crash(world: &World, pool: Simulated, seed: u64) {
    drop(pool);
    world.sim.power_cut(seed);
    world.sim.power_on();
}

/// Where a member's ring has batches: position and number, of the epoch that
/// holds the newest write.
fn batches(world: &World, member: usize) -> Vec<(u64, u64)> {
    let ring = usize::try_from(SCALE.journal_bytes).unwrap();
    let bytes = world.sim.peek(&world.paths[member], JOURNAL_OFFSET, ring);
    let mut found = Vec::new();
    for (at, block) in (0u64..).step_by(4096).zip(bytes.chunks(4096)) {
        if block.starts_with(b"TSRBATCH") {
            found.push((at, u64::from_le_bytes(block[24..32].try_into().unwrap())));
        }
    }
    found
}

fn destroy(world: &World, member: usize, position: u64) {
    world.sim.poke(
        &world.paths[member],
        JOURNAL_OFFSET + position,
        &[0x5a; 4096],
    );
}

/// A pool whose journal under one epoch holds at least three batches, all
/// durable, the last of them empty.
fn confirmed(level: Level) -> (World, Vec<u8>) {
    let world = world(level);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    write(&pool, "a", 0, &noise(1, 4096));
    pool.flush().unwrap();
    let data = noise(2, 8192);
    write(&pool, "a", 8192, &data);
    pool.flush().unwrap();
    pool.timer_step().unwrap();
    crash(&world, pool, 1);
    (world, data)
}

#[test]
fn r8_a_hit_never_names_what_a_reused_segment_held() {
    let world = world(Level::Raid5);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    let old = noise(1, 256 << 10);
    let mut reused = 0;
    let mut seen = BTreeSet::new();
    for round in 0..12 {
        write(&pool, "a", 0, &old);
        write(&pool, "a", 512 << 10, &noise(100 + round, 256 << 10));
        pool.flush().unwrap();
        pool.index_step();
        assert!(read(&pool, "a", 0, old.len()) == old, "round {round}");
        for (segment, _, _) in pool.segments() {
            reused += u64::from(!seen.insert(segment));
        }
        discard(&pool, "a", 0, 1 << 20);
        while pool.reclaim().unwrap() {}
    }
    assert!(reused > 10, "segments were reused {reused} times");
}

#[test]
fn r9_generations_never_repeat_across_crashes() {
    let world = world(Level::Raid5);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    crash(&world, pool, 0);
    let generations = |pool: &Simulated| -> BTreeSet<u64> {
        pool.segments()
            .into_iter()
            .map(|(_, generation, _)| generation)
            .collect()
    };
    let mut lost: BTreeSet<u64> = BTreeSet::new();
    for round in 0..20 {
        let pool = world.open().unwrap();
        let at_open = generations(&pool);
        assert!(
            at_open.is_disjoint(&lost),
            "round {round}: {at_open:?} of {lost:?}"
        );
        // Never flushed: nothing durable names these segments.
        write(&pool, "a", 0, &noise(round, 200 << 10));
        while pool.writer_step().unwrap() {}
        let new: BTreeSet<u64> = generations(&pool).difference(&at_open).copied().collect();
        assert!(!new.is_empty() && new.is_disjoint(&lost), "round {round}");
        lost.extend(new);
        crash(&world, pool, round);
    }
}

#[test]
fn r13_a_failed_request_leaves_the_map_and_later_requests_alone() {
    let world = world(Level::Raid1);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 10)).unwrap();
    let data = noise(1, 64 << 10);
    write(&pool, "a", 0, &data);
    let beyond = request(
        &pool,
        "a",
        Operation::Write {
            offset: 60 << 10,
            data: &[1; 8192],
        },
    );
    assert!(matches!(beyond, Err(DiskError::OutOfRange { .. })));
    assert!(read(&pool, "a", 0, data.len()) == data);
    pool.flush().unwrap();
    crash(&world, pool, 4);
    let pool = world.open().unwrap();
    assert!(read(&pool, "a", 0, data.len()) == data);
}

#[test]
fn r14_a_hit_on_a_journalled_chunk_survives_with_it() {
    for (level, _) in SHAPES {
        for checkpoint_between in [false, true] {
            let world = world(level);
            let pool = world.open().unwrap();
            pool.create_volume(&volume("a", 64 << 10)).unwrap();
            pool.create_volume(&volume("b", 64 << 10)).unwrap();
            let data = noise(7, 4096);
            write(&pool, "a", 0, &data);
            pool.flush().unwrap();
            if checkpoint_between {
                pool.checkpoint().unwrap();
            }
            // Names the first writer's chunk; its bytes are in an older batch.
            write(&pool, "b", 8192, &data);
            discard(&pool, "a", 0, 4096);
            pool.flush().unwrap();
            assert!(pool.status().unique_bytes <= 4096, "one copy is stored");
            crash(&world, pool, 5);
            let pool = world.open().unwrap();
            assert!(read(&pool, "b", 8192, 4096) == data, "{level}");
            assert!(read(&pool, "a", 0, 4096) == [0; 4096], "{level}");
        }
    }
}

#[test]
fn r15_confirmed_history_is_never_dropped() {
    for (level, width) in SHAPES {
        let (world, _) = confirmed(level);
        // The batch before the last one, from every member.
        let newest = (0..width)
            .flat_map(|member| batches(&world, member))
            .map(|b| b.1)
            .max();
        for member in 0..width {
            for (position, number) in batches(&world, member) {
                if Some(number + 1) == newest {
                    destroy(&world, member, position);
                }
            }
        }
        let writes = world.writes();
        let refused = world
            .open_read_only()
            .err()
            .unwrap_or_else(|| panic!("{level} opens"));
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{level}: {refused}");
        assert_eq!(world.writes(), writes);
        let refused = world
            .open()
            .err()
            .unwrap_or_else(|| panic!("{level} opens"));
        assert_eq!(refused.kind(), ErrorKind::Damaged, "{level}: {refused}");
        // And again: nothing that a refusal writes may change the answer.
        assert_eq!(
            world.open().err().unwrap().kind(),
            ErrorKind::Damaged,
            "{level}"
        );
    }
}

#[test]
fn r15_the_timer_confirms_the_newest_batch_and_never_a_confirmation() {
    for (level, width) in SHAPES {
        let world = world(level);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        write(&pool, "a", 0, &noise(1, 4096));
        pool.flush().unwrap();
        let newest = |world: &World| {
            let all = (0..width).flat_map(|member| batches(world, member));
            all.map(|batch| batch.1).max().unwrap()
        };
        let flushed = newest(&world);
        pool.timer_step().unwrap();
        assert_eq!(newest(&world), flushed + 1, "{level}");
        pool.timer_step().unwrap();
        assert_eq!(newest(&world), flushed + 1, "{level}");
    }
}

#[test]
fn r15_a_batch_with_one_good_copy_is_found() {
    for (level, width) in SHAPES {
        if matches!(level, Level::Single | Level::Raid0) {
            continue;
        }
        for victim in 0..width {
            let (world, data) = confirmed(level);
            for (position, _) in batches(&world, victim) {
                destroy(&world, victim, position);
            }
            let pool = world.open().unwrap();
            assert!(
                read(&pool, "a", 8192, 8192) == data,
                "{level} without ring {victim}"
            );
        }
    }
}

#[test]
fn r16_a_flush_leaves_as_many_copies_as_the_level_may_lose_and_one() {
    let expected = [1, 1, 2, 2, 3, 2];
    for ((level, width), copies) in SHAPES.into_iter().zip(expected) {
        let (world, _) = confirmed(level);
        let newest = (0..width)
            .flat_map(|m| batches(&world, m))
            .map(|b| b.1)
            .max()
            .unwrap();
        let holders =
            (0..width).filter(|member| batches(&world, *member).iter().any(|(_, n)| *n == newest));
        assert_eq!(holders.count(), copies, "{level}");
    }
}

#[test]
fn r16_copies_move_when_a_member_fails() {
    for (level, width) in SHAPES.into_iter().skip(2) {
        for victim in 0..width {
            let world = world(level);
            let pool = world.open().unwrap();
            pool.create_volume(&volume("a", 1 << 20)).unwrap();
            world.sim.inject(&world.paths[victim], Fault::Vanish);
            let data = noise(9, 12 << 10);
            write(&pool, "a", 0, &data);
            pool.flush().unwrap();
            crash(&world, pool, 6);
            // It comes back without what it missed (R1) and is not believed.
            world.sim.heal(&world.paths[victim]);
            let pool = world.open().unwrap();
            assert!(
                read(&pool, "a", 0, data.len()) == data,
                "{level} lost {victim}"
            );
        }
    }
}

#[test]
fn r18_recovery_writes_nothing_into_segments_that_were_in_use() {
    for (level, width) in SHAPES {
        let world = world(level);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        write(&pool, "a", 0, &noise(1, 100 << 10));
        pool.flush().unwrap();
        pool.checkpoint().unwrap();
        // A stripe that is journalled, and some of it overwritten.
        write(&pool, "a", 50 << 10 >> 12 << 12, &noise(2, 4096));
        pool.flush().unwrap();
        write(&pool, "a", 0, &noise(3, 4096));
        pool.flush().unwrap();
        let in_use: Vec<u32> = pool
            .segments()
            .into_iter()
            .map(|(segment, ..)| segment)
            .collect();
        crash(&world, pool, 7);
        let slots = |world: &World| -> Vec<Vec<u8>> {
            let slot = |member: usize, segment: u32| {
                let offset = world.slots_offset + u64::from(segment) * world.slot_bytes;
                let length = usize::try_from(world.slot_bytes).unwrap();
                world.sim.peek(&world.paths[member], offset, length)
            };
            let both = (0..width).flat_map(|m| in_use.iter().map(move |s| (m, *s)));
            both.map(|(member, segment)| slot(member, segment))
                .collect()
        };
        let before = slots(&world);
        let pool = world.open().unwrap();
        assert!(slots(&world) == before, "{level}");
        assert!(read(&pool, "a", 0, 4096) == noise(3, 4096), "{level}");
    }
}

#[test]
fn r19_what_one_recovery_showed_the_next_shows_too() {
    let world = world(Level::Raid5);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    pool.flush().unwrap();
    write(&pool, "a", 0, &noise(1, 100 << 10));
    // Not flushed as a whole: what the first recovery finds is what counts.
    pool.timer_step().unwrap();
    write(&pool, "a", 0, &noise(2, 100 << 10));
    drop(pool);
    world.sim.kill_process();
    let pool = world.open().unwrap();
    let shown = read(&pool, "a", 0, 1 << 20);
    for seed in 0..8 {
        drop(world.open());
        world.sim.power_cut(seed);
        world.sim.power_on();
        let pool = world.open().unwrap();
        assert!(read(&pool, "a", 0, 1 << 20) == shown, "after crash {seed}");
    }
}

#[test]
fn r1_a_read_only_open_of_an_unclean_pool_replays_and_writes_nothing() {
    for (level, _) in SHAPES {
        let (world, data) = confirmed(level);
        let (writes, trace) = (world.writes(), world.sim.snapshot());
        let pool = world.open_read_only().unwrap();
        assert!(read(&pool, "a", 8192, 8192) == data, "{level}");
        let refused = request(
            &pool,
            "a",
            Operation::Write {
                offset: 0,
                data: &[1; 4096],
            },
        );
        assert_eq!(refused, Err(DiskError::ReadOnly));
        assert!(pool.create_volume(&volume("b", 4096)).is_err());
        pool.close().unwrap();
        drop(pool);
        assert_eq!(world.writes(), writes, "{level}");
        drop(trace);
    }
}

#[test]
fn a_clean_stop_needs_no_recovery_and_goes_on_in_the_same_segments() {
    for (level, _) in SHAPES {
        let world = world(level);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        drop(pool.close());
        drop(pool);
        let mut expected = vec![0; 1 << 20];
        let mut most = 0;
        for round in 0..60u64 {
            let pool = world.open().unwrap();
            let at = usize::try_from(round % 16).unwrap() * 4096;
            let data = noise(round, 4096);
            write(&pool, "a", at as u64, &data);
            expected[at..at + 4096].copy_from_slice(&data);
            assert!(
                read(&pool, "a", 0, 1 << 20) == expected,
                "{level} round {round}"
            );
            pool.close().unwrap();
            most = most.max(pool.segments().iter().filter(|(.., open)| *open).count());
        }
        assert!(most <= 2, "{level}: one open segment a stream, not {most}");
    }
}

#[test]
fn r23_one_request_over_many_small_segments_has_buffers_enough() {
    for (level, _) in SHAPES {
        let world = world(level);
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 2 << 20)).unwrap();
        for (round, length) in (0u64..).zip([1 << 20, 256 << 10, 300 << 10, 1 << 20]) {
            let mut data = noise(round, length);
            // Some of it packs well.
            data[..length / 4]
                .chunks_mut(8)
                .for_each(|eight| eight[1..].fill(3));
            write(&pool, "a", 4096 * round, &data);
            assert!(read(&pool, "a", 4096 * round, length) == data, "{level}");
        }
    }
}
