//! Reclaim that moves: space comes back although every segment holds something
//! live, nothing else changes, and no crash meanwhile does harm.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    interpose::Interposed,
    model::{State, contents_of, read_all},
    noise,
    pools::{assert_holds, done, finish_jobs, problems, request, write},
    watch::Watcher,
    world::{SHAPES, Scale, World, volume},
};
use tessera_engine::{
    ErrorKind,
    api::{JobKind, JobState},
    disk::{DiskError, Operation},
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const CHUNK: u64 = 4096;

fn width(level: Level) -> usize {
    SHAPES.into_iter().find(|shape| shape.0 == level).unwrap().1
}

/// A volume of which every third chunk has been discarded and every fifth
/// written again, so that every segment holds live and dead chunks.
fn riddled(pool: &Simulated, name: &str, chunks: u64) -> State {
    pool.create_volume(&volume(name, chunks * CHUNK)).unwrap();
    let mut state = State::new();
    state.insert(name.to_owned(), vec![0; (chunks * CHUNK) as usize].into());
    for first in (0..chunks).step_by(8) {
        let count = (chunks - first).min(8);
        let bytes = (count * CHUNK) as usize;
        write(pool, &mut state, name, first * CHUNK, first + 1, bytes);
    }
    pool.checkpoint().unwrap();
    for chunk in 0..chunks {
        let (offset, length) = (chunk * CHUNK, CHUNK);
        if chunk % 3 == 0 {
            let discard = Operation::Discard { offset, length };
            assert_eq!(request(pool, name, discard), Ok(()));
            contents_of(&mut state, name)[offset as usize..][..CHUNK as usize].fill(0);
        } else if chunk % 5 == 0 {
            write(pool, &mut state, name, offset, chunk + 10_000, 4096);
        }
    }
    pool.flush().unwrap();
    state
}

/// What a new pool of the same kind has free when it holds just this.
fn free_when_fresh(level: Level, scale: Scale, state: &State) -> u64 {
    let world = World::create(level, width(level), scale, 12);
    let pool = world.open().unwrap();
    for (name, data) in state {
        pool.create_volume(&volume(name, data.len() as u64))
            .unwrap();
        for (chunk, data) in (0u64..).zip(data.chunks(CHUNK as usize)) {
            if data.iter().any(|byte| *byte != 0) {
                let offset = chunk * CHUNK;
                assert_eq!(
                    request(&pool, name, Operation::Write { offset, data }),
                    Ok(())
                );
            }
        }
    }
    pool.checkpoint().unwrap();
    pool.checkpoint().unwrap();
    pool.status().free_bytes
}

#[test]
fn space_comes_back_although_every_segment_holds_something_live() {
    for (level, width) in SHAPES {
        let scale = Scale {
            segments: 160,
            ..Scale::TINY
        };
        let world = World::create(level, width, scale, 11);
        let pool = world.open().unwrap();
        let state = riddled(&pool, "a", 1200);
        let before = pool.status().free_bytes;
        let job = pool.reclaim_start().unwrap();
        assert_eq!(job.kind, JobKind::Reclaim);
        let again = pool.reclaim_start().unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Busy);
        let job = done(&pool, job.id);
        assert!(job.bytes_done > 0, "{job:?}");
        let after = pool.status().free_bytes;
        let fresh = free_when_fresh(level, scale, &state);
        assert!(after > before, "{level}: {before} before, {after} after");
        let segment = u64::from(scale.segment_bytes);
        assert!(
            after + fresh / 33 + 2 * segment >= fresh,
            "{level}: {after} after, {fresh} in a fresh pool"
        );
        assert_holds(&pool, &state, "after moving");
        // At rest it stays so: another one finds nothing to do.
        let idle = pool.reclaim_start().unwrap();
        let idle = done(&pool, idle.id);
        assert_eq!(idle.bytes_done, 0, "{level}: {idle:?}");
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{level}");
        assert_holds(&world.open().unwrap(), &state, "after a restart");
    }
}

#[test]
fn a_full_pool_moves_chunks_before_it_says_so() {
    let world = World::create(Level::Raid5, 3, Scale::TINY, 13);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", 64 << 20)).unwrap();
    // To the brim.
    let mut chunks = 0;
    loop {
        let data = noise(chunks, 4096);
        let operation = Operation::Write {
            offset: chunks * CHUNK,
            data: &data,
        };
        match request(&pool, "a", operation) {
            Ok(()) => chunks += 1,
            Err(DiskError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(chunks > 200);
    for chunk in (0..chunks).step_by(2) {
        let discard = Operation::Discard {
            offset: chunk * CHUNK,
            length: CHUNK,
        };
        assert_eq!(request(&pool, "a", discard), Ok(()));
    }
    let mut again = 0;
    for chunk in (0..chunks).step_by(2) {
        let data = noise(chunk + 100_000, 4096);
        let operation = Operation::Write {
            offset: chunk * CHUNK,
            data: &data,
        };
        match request(&pool, "a", operation) {
            Ok(()) => again += 1,
            Err(DiskError::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    assert!(again * 10 >= chunks / 2 * 8, "{again} of {}", chunks / 2);
    assert_eq!(pool.failure(), None);
}

#[test]
fn chunks_with_many_names_are_moved_once() {
    let world = World::create(Level::Raid1, 2, Scale::TINY, 14);
    let pool = world.open().unwrap();
    let mut state = riddled(&pool, "a", 160);
    pool.create_volume(&volume("b", 160 * CHUNK)).unwrap();
    let copy = state["a"].clone();
    let operation = Operation::Write {
        offset: 0,
        data: &copy,
    };
    assert_eq!(request(&pool, "b", operation), Ok(()));
    state.insert("b".to_owned(), copy);
    pool.checkpoint().unwrap();
    let unique = pool.status().unique_bytes;
    let job = pool.reclaim_start().unwrap();
    done(&pool, job.id);
    assert_eq!(
        pool.status().unique_bytes,
        unique,
        "nothing is stored twice"
    );
    assert_holds(&pool, &state, "after moving");
}

/// Writes between all device operations of a pass win over its remaps.
#[test]
fn a_write_during_the_moving_is_never_undone() {
    for after in 0..60 {
        let mut world = World::create(Level::Raid5, 3, Scale::TINY, 15);
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(interposed.clone());
        let pool = std::sync::Arc::new(world.open().unwrap());
        let mut state = riddled(&pool, "a", 120);
        let job = pool.reclaim_start().unwrap();
        let writer = std::sync::Arc::downgrade(&pool);
        interposed.plan_nth_read(after, move || {
            let pool = writer.upgrade().unwrap();
            for chunk in (1..120).step_by(4) {
                let data = noise(chunk + 50_000, 4096);
                let operation = Operation::Write {
                    offset: chunk * CHUNK,
                    data: &data,
                };
                assert_eq!(request(&pool, "a", operation), Ok(()));
            }
        });
        done(&pool, job.id);
        if !interposed.cancel() {
            for chunk in (1..120u64).step_by(4) {
                let at = (chunk * CHUNK) as usize;
                contents_of(&mut state, "a")[at..at + 4096]
                    .copy_from_slice(&noise(chunk + 50_000, 4096));
            }
        }
        assert_holds(&pool, &state, &format!("written before read {after}"));
    }
}

/// Snapshots, a clone, and changes after each.
fn with_snapshots(pool: &Simulated, chunks: u64) -> State {
    let mut state = riddled(pool, "a", chunks);
    let mut snapshots = State::new();
    for round in 0..3 {
        let name = format!("s{round}");
        pool.create_snapshot("a", &name).unwrap();
        snapshots.insert(format!("a@{name}"), state["a"].clone());
        for chunk in (round..chunks).step_by(7) {
            let discard = Operation::Discard {
                offset: chunk * CHUNK,
                length: CHUNK,
            };
            assert_eq!(request(pool, "a", discard), Ok(()));
            let at = (chunk * CHUNK) as usize;
            contents_of(&mut state, "a")[at..at + 4096].fill(0);
        }
    }
    pool.clone_snapshot("a", "s1", "b").unwrap();
    state.insert("b".to_owned(), snapshots["a@s1"].clone());
    // What only the first snapshot named is dead from here on.
    pool.delete_snapshot("a", "s0").unwrap();
    snapshots.remove("a@s0");
    pool.flush().unwrap();
    state.extend(snapshots);
    state
}

fn assert_all_hold(pool: &Simulated, state: &State, context: &str) {
    let mut names = pool.names();
    names.extend(pool.snapshot_names());
    assert!(
        read_all(pool, &names, context) == *state,
        "{context}: other data is read back"
    );
}

#[test]
fn snapshots_and_clones_move_along_and_share_what_they_shared() {
    let scale = Scale {
        segments: 100,
        ..Scale::TINY
    };
    let world = World::create(Level::Raid5, 3, scale, 18);
    let pool = world.open().unwrap();
    let state = with_snapshots(&pool, 300);
    pool.checkpoint().unwrap();
    let (stored, free) = (pool.status().stored_bytes, pool.status().free_bytes);
    let job = pool.reclaim_start().unwrap();
    assert!(done(&pool, job.id).bytes_done > 0);
    assert_eq!(pool.status().stored_bytes, stored, "nothing is there twice");
    assert!(pool.status().free_bytes > free);
    assert_all_hold(&pool, &state, "after moving");
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
    let pool = world.open().unwrap();
    assert_all_hold(&pool, &state, "after a restart");
    for name in ["s2", "s1"] {
        pool.delete_snapshot("a", name).unwrap();
    }
    let free = pool.status().free_bytes;
    let job = pool.reclaim_start().unwrap();
    done(&pool, job.id);
    assert!(pool.status().free_bytes > free);
}

/// A writer in need runs a pass of its own between the steps of the job. What
/// has been copied for snapshots is named by nobody yet.
#[test]
fn a_pass_between_the_steps_frees_no_copy() {
    let scale = Scale {
        segments: 100,
        ..Scale::TINY
    };
    let world = World::create(Level::Raid1, 2, scale, 19);
    let pool = world.open().unwrap();
    let state = with_snapshots(&pool, 300);
    // Only the snapshots have it from here on.
    let discard = Operation::Discard {
        offset: 0,
        length: 300 * CHUNK,
    };
    assert_eq!(request(&pool, "a", discard), Ok(()));
    pool.delete_volume("b").unwrap();
    let mut kept = state.clone();
    kept.remove("b");
    contents_of(&mut kept, "a").fill(0);
    let job = pool.reclaim_start().unwrap();
    while pool.job_step().unwrap() {
        pool.reclaim().unwrap();
        // New data takes what the pass has freed.
        let seed = pool.job(job.id).unwrap().checked + 70_000;
        write(&pool, &mut kept, "a", 0, seed, 4096);
        pool.checkpoint().unwrap();
    }
    assert!(pool.job(job.id).unwrap().bytes_done > 0);
    assert_all_hold(&pool, &kept, "after moving");
}

fn every_cut(level: Level) {
    let mut world = World::create(level, width(level), Scale::TINY, 16);
    let watcher = Watcher::new(&world.sim, &world.witness);
    world.watcher = Some(watcher.clone());
    let pool = world.open().unwrap();
    let state = with_snapshots(&pool, 120);
    pool.reclaim_start().unwrap();
    watcher.watched.lock().on = true;
    finish_jobs(&pool);
    watcher.watched.lock().on = false;
    let moved = pool.jobs()[0].bytes_done;
    assert!(moved > 0);
    drop(pool);
    world.watcher = None;
    let moments = std::mem::take(&mut watcher.watched.lock().moments);
    for (number, moment) in moments.iter().enumerate() {
        world.sim.restore(&moment.world);
        world.witness = moment.witness.fork(79);
        world.sim.power_cut(number as u64);
        world.sim.power_on();
        let context = format!("{level}, cut {number} at {}", moment.operation);
        let pool = world
            .open()
            .unwrap_or_else(|error| panic!("{context}: {error}: {error:?}"));
        assert_all_hold(&pool, &state, &context);
        finish_jobs(&pool);
        let ended = pool.jobs().iter().all(|job| job.state == JobState::Done);
        assert!(ended, "{context}: {:?}", pool.jobs());
        assert_all_hold(&pool, &state, &format!("{context}, and moved again"));
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{context}");
    }
    println!("{level}: {} cuts", moments.len());
    assert!(moments.len() > 30);
}

#[test]
fn no_cut_of_a_reclaim_loses_anything_on_a_single_member() {
    every_cut(Level::Single);
}

#[test]
fn no_cut_of_a_reclaim_loses_anything_on_raid1() {
    every_cut(Level::Raid1);
}

#[test]
fn no_cut_of_a_reclaim_loses_anything_on_raid5() {
    every_cut(Level::Raid5);
}

#[test]
fn no_cut_of_a_reclaim_loses_anything_on_raid6() {
    every_cut(Level::Raid6);
}

#[test]
fn a_reclaim_that_is_cancelled_or_paused_lets_its_segments_go() {
    let world = World::create(Level::Raid5, 3, Scale::TINY, 17);
    let pool = world.open().unwrap();
    let state = riddled(&pool, "a", 160);
    let job = pool.reclaim_start().unwrap();
    for _ in 0..3 {
        assert!(pool.job_step().unwrap());
    }
    pool.pause_job(job.id).unwrap();
    assert!(!pool.job_step().unwrap());
    assert_holds(&pool, &state, "paused");
    pool.resume_job(job.id).unwrap();
    for _ in 0..3 {
        assert!(pool.job_step().unwrap());
    }
    let moved = pool.cancel_job(job.id).unwrap().bytes_done;
    assert_holds(&pool, &state, "cancelled");
    // Hits land again on what was frozen. What had been moved is there twice,
    // and may be hit in either place.
    let before = pool.status().stored_bytes;
    pool.create_volume(&volume("b", 160 * CHUNK)).unwrap();
    let copy = state["a"].clone();
    assert_eq!(
        request(
            &pool,
            "b",
            Operation::Write {
                offset: 0,
                data: &copy
            }
        ),
        Ok(())
    );
    pool.checkpoint().unwrap();
    let after = pool.status().stored_bytes;
    assert!(after <= before + moved, "{before}, {after}, {moved} moved");
}
