//! Snapshots, clones and rollbacks: what they hold, when, and what becomes of
//! their space (R11). Random interleavings with everything else are in `model`,
//! `faults` and `crash_points`.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::{Arc, mpsc};

use common::{
    Rng,
    interpose::Interposed,
    model::{State, all_names, read_all},
    noise,
    pools::{problems, request},
    world::{Scale, World, volume},
};
use tessera_engine::{
    ErrorKind,
    disk::{DiskError, Operation},
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 128 << 10,
    segments: 96,
    journal_bytes: 2 << 20,
};
const CHUNK: usize = 4096;

fn world() -> World {
    World::create(Level::Raid5, 3, SCALE, 21)
}

fn write(pool: &Simulated, name: &str, offset: u64, data: &[u8]) {
    let done = request(pool, name, Operation::Write { offset, data });
    assert_eq!(done, Ok(()), "{name} at {offset}: {:?}", pool.failure());
}

fn read(pool: &Simulated, name: &str, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0xee; length];
    let operation = Operation::Read {
        offset,
        buffer: &mut buffer,
    };
    assert_eq!(request(pool, name, operation), Ok(()), "{name}");
    buffer
}

fn everything(pool: &Simulated) -> State {
    read_all(pool, &all_names(pool), "everything")
}

fn crash(world: &World, pool: Simulated, seed: u64) -> Simulated {
    drop(pool);
    world.sim.power_cut(seed);
    world.sim.power_on();
    world.open().unwrap()
}

fn settle(pool: &Simulated) {
    while pool.reclaim().unwrap() {}
}

#[test]
fn r11_a_snapshot_holds_its_moment_live_in_replay_and_in_pages() {
    for checkpoints in 0..8 {
        let world = world();
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 256 << 10)).unwrap();
        let mut expected = State::new();
        let mut now = vec![0; 256 << 10];
        for round in 0_u64..3 {
            for at in [0, 7 * CHUNK, (round as usize + 10) * CHUNK] {
                let data = noise(10 * round + at as u64, 2 * CHUNK);
                write(&pool, "a", at as u64, &data);
                now[at..at + data.len()].copy_from_slice(&data);
            }
            if checkpoints >> round & 1 == 1 {
                pool.checkpoint().unwrap();
            }
            let (offset, length) = (round * 3 * 4096, 2 * 4096);
            request(&pool, "a", Operation::Discard { offset, length }).unwrap();
            now[offset as usize..][..length as usize].fill(0);
            let taken = pool.create_snapshot("a", &format!("s{round}")).unwrap();
            assert_eq!((taken.volume.as_str(), taken.size_bytes), ("a", 256 << 10));
            expected.insert(format!("a@s{round}"), now.clone().into());
        }
        write(&pool, "a", 0, &noise(99, 64 << 10));
        now[..64 << 10].copy_from_slice(&noise(99, 64 << 10));
        expected.insert("a".to_owned(), now.into());
        assert!(everything(&pool) == expected, "live, {checkpoints:b}");
        pool.flush().unwrap();
        let pool = crash(&world, pool, checkpoints);
        assert!(everything(&pool) == expected, "replayed, {checkpoints:b}");
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new());
        let pool = world.open().unwrap();
        assert!(everything(&pool) == expected, "in pages, {checkpoints:b}");
    }
}

#[test]
fn r11_what_was_answered_survives_without_a_flush() {
    let world = world();
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 10)).unwrap();
    write(&pool, "a", 0, &noise(1, CHUNK));
    pool.create_snapshot("a", "s").unwrap();
    let pool = crash(&world, pool, 1);
    assert!(read(&pool, "a@s", 0, CHUNK) == noise(1, CHUNK));
    pool.clone_snapshot("a", "s", "c").unwrap();
    let pool = crash(&world, pool, 2);
    assert!(read(&pool, "c", 0, CHUNK) == noise(1, CHUNK));
    write(&pool, "a", 0, &noise(2, CHUNK));
    pool.roll_back("a", "s", false).unwrap();
    let pool = crash(&world, pool, 3);
    assert!(read(&pool, "a", 0, CHUNK) == noise(1, CHUNK));
    pool.delete_snapshot("a", "s").unwrap();
    let pool = crash(&world, pool, 4);
    assert_eq!(all_names(&pool), ["a", "c"]);
}

/// Whatever a checkpoint is doing when a snapshot, a clone and a rollback come,
/// all hold what they must: then, after the next checkpoint, and after a crash.
#[test]
fn r11_snapshots_come_in_the_middle_of_a_checkpoint() {
    let mut moments = 0;
    for after in 0.. {
        let mut world = world();
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(Arc::clone(&interposed));
        let pool = Arc::new(world.open().unwrap());
        for name in ["a", "b"] {
            pool.create_volume(&volume(name, 256 << 10)).unwrap();
            write(&pool, name, 0, &noise(1, 40 << 10));
        }
        pool.checkpoint().unwrap();
        write(&pool, "a", 8 << 10, &noise(2, 20 << 10));
        pool.create_snapshot("a", "old").unwrap();
        write(&pool, "a", 16 << 10, &noise(3, 20 << 10));
        write(&pool, "b", 16 << 10, &noise(4, 20 << 10));
        let inside = Arc::clone(&pool);
        let (ended, end) = mpsc::channel();
        let thread = Arc::new(parking_lot::Mutex::new(None));
        let handle = Arc::clone(&thread);
        interposed.plan(after, move || {
            *handle.lock() = Some(std::thread::spawn(move || {
                inside.create_snapshot("a", "new").unwrap();
                inside.clone_snapshot("a", "old", "c").unwrap();
                write(&inside, "a", 0, &noise(5, CHUNK));
                write(&inside, "c", 0, &noise(6, CHUNK));
                inside.create_snapshot("b", "gone").unwrap();
                inside.delete_snapshot("b", "gone").unwrap();
                inside.create_snapshot("b", "kept").unwrap();
                write(&inside, "b", 0, &noise(7, CHUNK));
                inside.roll_back("b", "kept", false).unwrap();
                let _nobody_listens = ended.send(());
            }));
            // It gets no further than to the commit while one is under way.
            let _ = end.recv_timeout(std::time::Duration::from_millis(50));
        });
        pool.checkpoint().unwrap();
        let done = !interposed.cancel();
        let thread = thread.lock().take();
        let Some(thread) = thread else {
            assert!(!done);
            break;
        };
        thread.join().unwrap();
        moments += 1;
        let mut old = [noise(1, 40 << 10), vec![0; 216 << 10]].concat();
        let mut b = old.clone();
        old[8 << 10..28 << 10].copy_from_slice(&noise(2, 20 << 10));
        let mut new = old.clone();
        new[16 << 10..36 << 10].copy_from_slice(&noise(3, 20 << 10));
        b[16 << 10..36 << 10].copy_from_slice(&noise(4, 20 << 10));
        let with = |base: &Vec<u8>, seed| [&noise(seed, CHUNK), &base[CHUNK..]].concat();
        let expected: State = [
            ("a", with(&new, 5)),
            ("a@new", new.clone()),
            ("a@old", old.clone()),
            ("b", b.clone()),
            ("b@kept", b.clone()),
            ("c", with(&old, 6)),
        ]
        .into_iter()
        .map(|(name, data)| (name.to_owned(), data.into()))
        .collect();
        assert!(everything(&pool) == expected, "during {after}");
        let pool = Arc::into_inner(pool).unwrap();
        pool.flush().unwrap();
        if after % 2 == 0 {
            pool.checkpoint().unwrap();
            assert!(everything(&pool) == expected, "after {after}");
        }
        let pool = crash(&world, pool, after);
        assert!(everything(&pool) == expected, "crashed after {after}");
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{after}");
    }
    assert!(moments > 4, "{moments} moments");
}

/// A partial write has read what was there before a rollback: it must not put
/// that back.
#[test]
fn r13_a_partial_write_does_not_undo_a_rollback() {
    let mut world = world();
    let interposed = Interposed::new(world.sim.backend());
    world.interposed = Some(Arc::clone(&interposed));
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 10)).unwrap();
    write(&pool, "a", 0, &noise(1, CHUNK));
    pool.create_snapshot("a", "s").unwrap();
    write(&pool, "a", 0, &noise(2, CHUNK));
    pool.close().unwrap();
    drop(pool);
    // Opened anew, so that nothing is in memory and the write has to read.
    let pool = Arc::new(world.open().unwrap());
    let inside = Arc::clone(&pool);
    let again = Arc::clone(&interposed);
    // The first read is the page, the second the chunk.
    interposed.plan_read(move || {
        again.plan_read(move || drop(inside.roll_back("a", "s", true).unwrap()));
    });
    write(&pool, "a", 100, &noise(3, 50));
    assert!(!interposed.cancel(), "the write had to read");
    let mut expected = noise(1, CHUNK);
    expected[100..150].copy_from_slice(&noise(3, 50));
    assert!(read(&pool, "a", 0, CHUNK) == expected);
}

#[test]
fn space_comes_back_in_whatever_order_snapshots_are_deleted() {
    for seed in 0..6 {
        let mut rng = Rng::new(seed);
        let world = world();
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        write(&pool, "a", 0, &noise(1, 1 << 20));
        pool.checkpoint().unwrap();
        settle(&pool);
        let before = pool.status();
        let mut left = Vec::new();
        let mut expected = State::new();
        let mut now = noise(1, 1 << 20);
        for round in 0..5 {
            pool.create_snapshot("a", &format!("s{round}")).unwrap();
            expected.insert(format!("a@s{round}"), now.clone().into());
            left.push(round);
            let offset = rng.below(4) << 18;
            let data = noise(100 * seed + round + 2, 256 << 10);
            write(&pool, "a", offset, &data);
            now[offset as usize..][..data.len()].copy_from_slice(&data);
            if rng.chance(2) {
                pool.checkpoint().unwrap();
            }
        }
        expected.insert("a".to_owned(), now.into());
        settle(&pool);
        let held = pool.status();
        assert!(held.free_bytes + (3 << 18) < before.free_bytes, "{seed}");
        assert!(held.snapshot_bytes > 0, "{held:?}");
        while !left.is_empty() {
            let at = rng.below(left.len() as u64) as usize;
            let name = format!("s{}", left.remove(at));
            pool.delete_snapshot("a", &name).unwrap();
            expected.remove(&format!("a@{name}"));
            if rng.chance(2) {
                settle(&pool);
                assert!(everything(&pool) == expected, "{seed}");
            }
        }
        settle(&pool);
        assert!(everything(&pool) == expected, "{seed}");
        let after = pool.status();
        assert_eq!((after.snapshots, after.snapshot_bytes), (0, 0));
        // But for segments that live and dead chunks share.
        assert!(
            2 * (after.free_bytes - held.free_bytes) > before.free_bytes - held.free_bytes,
            "{seed}: {} free with snapshots, {} without, {} before",
            held.free_bytes,
            after.free_bytes,
            before.free_bytes
        );
        pool.close().unwrap();
    }
}

#[test]
fn r20_reclaim_sees_what_only_snapshots_and_clones_hold() {
    let world = world();
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    let data = noise(1, 512 << 10);
    write(&pool, "a", 0, &data);
    pool.create_snapshot("a", "s").unwrap();
    let (offset, length) = (0, 1 << 20);
    request(&pool, "a", Operation::Discard { offset, length }).unwrap();
    settle(&pool);
    write(&pool, "a", 0, &noise(2, 1 << 20));
    settle(&pool);
    assert!(read(&pool, "a@s", 0, data.len()) == data);
    pool.clone_snapshot("a", "s", "c").unwrap();
    pool.delete_volume_and_snapshots("a").unwrap();
    settle(&pool);
    pool.create_volume(&volume("b", 1 << 20)).unwrap();
    write(&pool, "b", 0, &noise(3, 1 << 20));
    settle(&pool);
    assert!(read(&pool, "c", 0, data.len()) == data);
}

#[test]
fn thousands_of_snapshots_are_kept_apart() {
    const COUNT: u64 = 2000;
    let world = World::create(
        Level::Single,
        1,
        Scale {
            segment_bytes: 1 << 20,
            segments: 64,
            ..SCALE
        },
        5,
    );
    let mut pool = world.open().unwrap();
    pool.create_volume(&volume("a", 4 << 20)).unwrap();
    let chunk = |number: u64| noise(number, CHUNK);
    let mut writes = Vec::new();
    for number in 0..COUNT {
        let at = number * 7 % 1024 * 4096;
        write(&pool, "a", at, &chunk(number));
        let before = world.writes();
        pool.create_snapshot("a", &format!("s{number}")).unwrap();
        writes.push(world.writes() - before);
        if number == COUNT / 2 {
            pool.flush().unwrap();
            pool = crash(&world, pool, 1);
        }
    }
    // Most take a commit; every 64th a checkpoint as well, whose cost does not
    // grow with the number of snapshots.
    let quarter = COUNT as usize / 4;
    let sum = |range: std::ops::Range<usize>| writes[range].iter().sum::<u64>();
    let (early, late) = (sum(0..quarter), sum(3 * quarter..4 * quarter));
    assert!(late < early * 3 / 2, "{early} writes, then {late}");
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    let list = pool.snapshots(Some("a")).unwrap();
    assert_eq!(list.len(), COUNT as usize);
    let ordered = |two: &[tessera_engine::api::SnapshotInfo]| two[0].id < two[1].id;
    assert!(list.windows(2).all(ordered), "in the order they were taken");
    for number in (0..COUNT).step_by(37) {
        let snapshot = format!("a@s{number}");
        for written in number.saturating_sub(3)..(number + 4).min(COUNT) {
            // 1024 chunks, so each was written at most twice.
            let at = written * 7 % 1024 * 4096;
            let older = written.checked_sub(1024);
            let expected = match written <= number {
                true => chunk(written),
                false => older.map_or(vec![0; CHUNK], chunk),
            };
            assert!(read(&pool, &snapshot, at, CHUNK) == expected, "{snapshot}");
        }
    }
    // In an order that is neither that of age nor of names.
    for number in (0..COUNT).map(|n| n * 1009 % COUNT) {
        if number % 500 != 0 {
            pool.delete_snapshot("a", &format!("s{number}")).unwrap();
        }
    }
    settle(&pool);
    assert_eq!(pool.snapshots(None).unwrap().len(), 4);
    assert!(read(&pool, "a@s1500", 0, CHUNK) == chunk(1024));
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn names_are_unique_and_ids_are_never_given_twice() {
    let world = world();
    let pool = world.open().unwrap();
    let volume_id = pool.create_volume(&volume("a", 1 << 20)).unwrap().id;
    let first = pool.create_snapshot("a", "s").unwrap();
    let kind = |error: tessera_engine::EngineError| error.kind();
    let again = pool.create_snapshot("a", "s").map_err(kind);
    assert_eq!(again, Err(ErrorKind::AlreadyExists));
    let taken = pool.clone_snapshot("a", "s", "a").map_err(kind);
    assert_eq!(taken, Err(ErrorKind::AlreadyExists));
    for bad in ["", "x@y", ".x", "x/y"] {
        let refused = pool.create_snapshot("a", bad).map_err(kind);
        assert_eq!(refused, Err(ErrorKind::InvalidArgument), "{bad:?}");
    }
    let missing = pool.create_snapshot("b", "s").map_err(kind);
    assert_eq!(missing, Err(ErrorKind::NotFound));
    pool.delete_snapshot("a", "s").unwrap();
    let missing = pool.delete_snapshot("a", "s").map_err(kind);
    assert_eq!(missing, Err(ErrorKind::NotFound));
    let pool = crash(&world, pool, 1);
    let second = pool.create_snapshot("a", "s").unwrap();
    assert!(volume_id < first.id && first.id < second.id);
    pool.rename_volume("a", "z").unwrap();
    assert_eq!(all_names(&pool), ["z", "z@s"]);
}

#[test]
fn a_snapshot_is_read_only_and_not_deleted_while_it_is_used() {
    let world = world();
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 1 << 20)).unwrap();
    pool.create_snapshot("a", "s").unwrap();
    let disk = pool.disk("a@s").unwrap();
    assert!(disk.info().read_only);
    assert_eq!(disk.info().name, "a@s");
    let data = &noise(1, CHUNK);
    let length = 4096;
    let keep_allocated = false;
    for operation in [
        Operation::Write { offset: 0, data },
        Operation::Discard { offset: 0, length },
        Operation::WriteZeroes {
            offset: 0,
            length,
            keep_allocated,
        },
    ] {
        let refused = request(&pool, "a@s", operation);
        assert_eq!(refused, Err(DiskError::ReadOnly));
    }
    let busy = pool.delete_snapshot("a", "s").unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    let busy = pool.delete_volume_and_snapshots("a").unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    drop(disk);
    let busy = pool.delete_volume("a").unwrap_err();
    assert_eq!(
        busy.to_string(),
        "Volume \"a\" has a snapshot (1 in all): delete it first, or use --snapshots to delete \
         it as well"
    );
    let used = pool.disk("a").unwrap();
    let busy = pool.roll_back("a", "s", false).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    pool.roll_back("a", "s", true).unwrap();
    drop(used);
    pool.delete_volume_and_snapshots("a").unwrap();
    assert!(all_names(&pool).is_empty());
}

#[test]
fn a_rollback_brings_the_size_back_and_keeps_other_snapshots() {
    let world = world();
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 10)).unwrap();
    write(&pool, "a", 0, &noise(1, 64 << 10));
    pool.create_snapshot("a", "small").unwrap();
    pool.resize_volume("a", 128 << 10, false).unwrap();
    write(&pool, "a", 64 << 10, &noise(2, 64 << 10));
    pool.create_snapshot("a", "large").unwrap();
    let back = pool.roll_back("a", "small", false).unwrap();
    assert_eq!(back.size_bytes, 64 << 10);
    let whole = [noise(1, 64 << 10), noise(2, 64 << 10)].concat();
    assert!(read(&pool, "a@large", 0, 128 << 10) == whole);
    pool.resize_volume("a", 128 << 10, false).unwrap();
    assert!(read(&pool, "a", 64 << 10, 64 << 10) == vec![0; 64 << 10]);
    pool.roll_back("a", "large", false).unwrap();
    assert!(read(&pool, "a", 0, 128 << 10) == whole);
}

/// Snapshots of a pool that is full can be deleted, and that gives it space.
#[test]
fn a_full_pool_gets_out_of_it_by_deleting_snapshots() {
    let world = world();
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 20)).unwrap();
    let mut at = 0;
    let mut taken = 0;
    'full: loop {
        for _ in 0..16 {
            let data = noise(at, 16 << 10);
            let place = at % (1 << 20);
            match request(
                &pool,
                "a",
                Operation::Write {
                    offset: place,
                    data: &data,
                },
            ) {
                Ok(()) => at += 16 << 10,
                Err(DiskError::NoSpace) => break 'full,
                Err(error) => panic!("{error}"),
            }
        }
        match pool.create_snapshot("a", &format!("s{taken}")) {
            Ok(_) => taken += 1,
            Err(error) if error.kind() == ErrorKind::NoSpace => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(taken > 8, "{taken} snapshots fit");
    for number in 0..taken {
        pool.delete_snapshot("a", &format!("s{number}")).unwrap();
    }
    write(&pool, "a", 0, &noise(1, 1 << 20));
    assert!(read(&pool, "a", 0, 1 << 20) == noise(1, 1 << 20));
    assert_eq!(pool.failure(), None);
}

#[test]
fn a_diff_names_every_byte_that_reads_differently() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let world = world();
        let pool = world.open().unwrap();
        pool.create_volume(&volume("a", 1 << 20)).unwrap();
        write(&pool, "a", 0, &noise(seed, 512 << 10));
        for round in 0..4 {
            pool.create_snapshot("a", &format!("s{round}")).unwrap();
            for _ in 0..1 + rng.below(4) {
                let length = 1 + rng.below(60_000);
                let offset = rng.below((1 << 20) - length);
                match rng.below(4) {
                    0 => drop(request(&pool, "a", Operation::Discard { offset, length })),
                    1 => pool.checkpoint().unwrap(),
                    _ => write(&pool, "a", offset, &noise(rng.next(), length as usize)),
                }
            }
            if rng.chance(4) {
                pool.roll_back("a", "s0", false).unwrap();
            }
        }
        pool.clone_snapshot("a", "s2", "c").unwrap();
        write(&pool, "c", 300_000, &noise(rng.next(), 9000));
        let contents = everything(&pool);
        for (old, before) in contents.iter().filter(|(name, _)| name.contains('@')) {
            for (new, after) in &contents {
                let (max, mut at, mut changed) = (1 + rng.below(5), 0, vec![false; 1 << 20]);
                while at < 1 << 20 {
                    let part = pool.snapshot_diff(old, new, at, max as usize).unwrap();
                    assert!(part.end > at && part.ranges.len() as u64 <= max);
                    for range in part.ranges {
                        let end = range.offset + range.length;
                        assert!(range.offset >= at && end <= part.end && range.length > 0);
                        changed[range.offset as usize..end as usize].fill(true);
                    }
                    at = part.end;
                }
                let differs = |at: &usize| before[*at] != after[*at];
                let missed = (0..1 << 20).filter(differs).find(|at| !changed[*at]);
                assert_eq!(missed, None, "{seed}: {old} to {new}");
                if old == new {
                    assert!(!changed.contains(&true), "{old} is as it is");
                }
                let (_, own) = old.split_once('@').unwrap();
                if !new.starts_with('a') {
                    continue;
                }
                // What a front end is told covers the same.
                let disk = pool.disk(new).unwrap();
                assert!(disk.knows_snapshot(own) && !disk.knows_snapshot("none"));
                let (mut at, mut told) = (1000, vec![false; 1 << 20]);
                while at < 1_000_000 {
                    let runs = disk.changed_since(own, at, 1_000_000 - at, 3).unwrap();
                    assert!(!runs.is_empty() && runs.len() <= 3);
                    for run in runs {
                        let end = at + run.length;
                        told[at as usize..end as usize].fill(run.changed);
                        at = end;
                    }
                }
                assert_eq!(at, 1_000_000);
                let missed = (1000..1_000_000).filter(differs).find(|at| !told[*at]);
                assert_eq!(missed, None, "{seed}: {new} since {own}");
            }
        }
    }
}
