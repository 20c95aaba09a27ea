//! Post-process deduplication: what writes leave to it, and that it merges
//! what inline deduplication would have, whatever happens meanwhile.
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
    api::{
        Compression, DedupMode, DedupSchedule, JobInfo, JobKind, JobState, SettingsChange,
        VolumeChange,
    },
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
    state.insert(name.to_owned(), vec![0; (chunks * CHUNK) as usize].into());
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
        ..VolumeChange::default()
    };
    pool.set_volume("a", &change).unwrap();
    let missing = pool.set_volume("b", &change).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    for at in 0..4 {
        let place = at * 8 * 4096;
        contents_of(&mut state, "a")[place..place + 8 * 4096].copy_from_slice(&noise(1, 8 * 4096));
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

const ROOMY: Scale = Scale {
    segments: 120,
    ..Scale::TINY
};

fn width(level: Level) -> usize {
    SHAPES.into_iter().find(|shape| shape.0 == level).unwrap().1
}

fn dedup(pool: &Simulated) -> JobInfo {
    let job = pool.dedup_start().unwrap();
    assert_eq!(job.kind, JobKind::Dedup);
    let job = done(pool, job.id);
    assert_eq!((job.lost, job.found >= job.repaired), (0, true), "{job:?}");
    job
}

/// Chunks of which about half are there twice or more often, in runs and
/// single ones, and some zeroes.
fn repetitive(chunks: u64, seed: u64) -> Vec<u8> {
    let mut data = Vec::new();
    for chunk in 0..chunks {
        let what = match chunk % 16 {
            0..6 => chunk,
            6..12 => chunk - 6,
            12 => 1_000_000,
            13 => chunk / 64,
            14 => 2_000_000 + chunk % 3,
            _ => {
                data.extend([0; 4096]);
                continue;
            }
        };
        data.extend(noise(seed + what, 4096));
    }
    data
}

fn put(pool: &Simulated, state: &mut State, name: &str, offset: u64, data: &[u8]) {
    for (piece, at) in data.chunks(16 * 4096).zip((offset..).step_by(16 * 4096)) {
        let operation = Operation::Write {
            offset: at,
            data: piece,
        };
        assert_eq!(
            request(pool, name, operation),
            Ok(()),
            "{:?}",
            pool.failure()
        );
    }
    contents_of(state, name)[offset as usize..][..data.len()].copy_from_slice(data);
}

/// A new pool with the same data in a volume of this mode.
fn filled(dedup: DedupMode, chunks: u64) -> (World, Simulated, State) {
    let world = World::create(Level::Raid5, 3, ROOMY, 33);
    let pool = world.open().unwrap();
    make(&pool, "a", chunks, dedup);
    let mut state = held("a", chunks);
    put(&pool, &mut state, "a", 0, &repetitive(chunks, 500));
    pool.flush().unwrap();
    (world, pool, state)
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
fn the_job_finds_what_inline_deduplication_would_have() {
    let (_, inline, _) = filled(DedupMode::Inline, 400);
    let least = unique(&inline);
    let (world, pool, state) = filled(DedupMode::Post, 400);
    let before = unique(&pool);
    assert!(before > least * 3 / 2, "{before} and {least}");
    let job = dedup(&pool);
    assert_eq!(unique(&pool), least);
    assert_eq!(job.found, before - least, "{job:?}");
    assert_eq!((job.checked, job.repaired), (before, job.found), "{job:?}");
    assert_eq!(job.merged_bytes, job.found * CHUNK);
    assert_holds(&pool, &state, "merged");
    let free = pool.status().free_bytes;
    let gc = pool.reclaim_start().unwrap();
    done(&pool, gc.id);
    assert!(pool.status().free_bytes > free + (before - least) * CHUNK / 2);
    assert_holds(&pool, &state, "merged and reclaimed");
    assert_eq!(unique(&pool), least);
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
    assert_holds(&world.open().unwrap(), &state, "after a restart");
}

#[test]
fn a_second_run_hashes_nothing_again_also_after_a_restart() {
    let (world, pool, state) = filled(DedupMode::Post, 200);
    assert!(dedup(&pool).checked > 0);
    assert_eq!(dedup(&pool).checked, 0);
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    assert_eq!(dedup(&pool).checked, 0);
    assert_holds(&pool, &state, "after three runs");
}

#[test]
fn what_the_job_has_hashed_is_hit_by_inline_writes_and_after_a_restart() {
    let (world, pool, mut state) = filled(DedupMode::Post, 200);
    dedup(&pool);
    let least = unique(&pool);
    make(&pool, "b", 200, DedupMode::Inline);
    copy(&pool, &mut state, "a", "b");
    assert_eq!(unique(&pool), least, "at once");
    pool.close().unwrap();
    drop(pool);
    // The index was in memory: it is made again from the summaries.
    let pool = world.open().unwrap();
    while pool.index_step() {}
    make(&pool, "c", 200, DedupMode::Inline);
    copy(&pool, &mut state, "a", "c");
    assert_eq!(unique(&pool), least, "after a restart");
    assert_holds(&pool, &state, "three volumes");
}

#[test]
fn duplicates_of_inline_volumes_are_found_although_the_index_was_lost() {
    let (world, pool, mut state) = filled(DedupMode::Inline, 200);
    let least = unique(&pool);
    make(&pool, "b", 200, DedupMode::Post);
    copy(&pool, &mut state, "a", "b");
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    assert!(unique(&pool) > least);
    // Without a turn of the index: the job sees to it.
    let job = dedup(&pool);
    assert_eq!(unique(&pool), least, "{job:?}");
    assert_holds(&pool, &state, "merged");
}

#[test]
fn what_a_volume_of_mode_off_names_is_left_alone() {
    let (_, pool, mut state) = filled(DedupMode::Off, 100);
    make(&pool, "b", 100, DedupMode::Post);
    copy(&pool, &mut state, "a", "b");
    let off = {
        let (_, alone, _) = filled(DedupMode::Off, 100);
        unique(&alone)
    };
    pool.create_snapshot("a", "s").unwrap();
    state.insert("a@s".to_owned(), state["a"].clone());
    let job = dedup(&pool);
    let (_, inline, _) = filled(DedupMode::Inline, 100);
    assert_eq!(unique(&pool), off + unique(&inline), "{job:?}");
    assert_eq!(job.checked, off, "only the other one's chunks are hashed");
    assert_all_hold(&pool, &state, "off and post");
    // Its mode counts as it is now.
    let change = VolumeChange {
        dedup: Some(DedupMode::Post),
        ..VolumeChange::default()
    };
    pool.set_volume("a", &change).unwrap();
    dedup(&pool);
    assert_eq!(unique(&pool), unique(&inline));
    assert_all_hold(&pool, &state, "all post");
}

/// Snapshots, a clone, and duplicates in all of them.
fn with_snapshots(pool: &Simulated, chunks: u64) -> State {
    make(pool, "a", chunks, DedupMode::Post);
    let mut state = held("a", chunks);
    let mut snapshots = State::new();
    for round in 0..3u64 {
        let data = repetitive(chunks / 2, 500 + round % 2 * 30);
        put(pool, &mut state, "a", round * chunks / 6 * CHUNK, &data);
        let name = format!("s{round}");
        pool.create_snapshot("a", &name).unwrap();
        snapshots.insert(format!("a@{name}"), state["a"].clone());
    }
    pool.clone_snapshot("a", "s1", "b").unwrap();
    state.insert("b".to_owned(), snapshots["a@s1"].clone());
    pool.roll_back("a", "s0", false).unwrap();
    state.insert("a".to_owned(), snapshots["a@s0"].clone());
    pool.flush().unwrap();
    state.extend(snapshots);
    state
}

#[test]
fn snapshots_and_clones_are_merged_along() {
    let world = World::create(Level::Raid5, 3, ROOMY, 34);
    let pool = world.open().unwrap();
    let state = with_snapshots(&pool, 240);
    let distinct = {
        let chunks = state.values().flat_map(|data| data.chunks(4096));
        let chunks: std::collections::HashSet<&[u8]> = chunks.collect();
        chunks.len() as u64 - 1 // zeroes
    };
    let before = unique(&pool);
    let job = dedup(&pool);
    assert_all_hold(&pool, &state, "merged");
    assert!(before > distinct);
    assert_eq!(unique(&pool), distinct, "{job:?}");
    let gc = pool.reclaim_start().unwrap();
    done(&pool, gc.id);
    assert_all_hold(&pool, &state, "merged and reclaimed");
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
    assert_all_hold(&world.open().unwrap(), &state, "after a restart");
}

/// Writes between all device operations of a run win over its remaps.
#[test]
fn r21_a_write_during_the_job_is_never_undone() {
    let mut done_in_time = 0;
    for after in 0..200 {
        let mut world = World::create(Level::Raid5, 3, Scale::TINY, 35);
        let interposed = Interposed::new(world.sim.backend());
        world.interposed = Some(interposed.clone());
        let pool = std::sync::Arc::new(world.open().unwrap());
        make(&pool, "a", 100, DedupMode::Post);
        let mut state = held("a", 100);
        put(&pool, &mut state, "a", 0, &repetitive(100, 500));
        let job = pool.dedup_start().unwrap();
        let writer = std::sync::Arc::downgrade(&pool);
        let written: Vec<u64> = (0..100).step_by(3).collect();
        let chunks = written.clone();
        interposed.plan_nth_read(after, move || {
            let pool = writer.upgrade().unwrap();
            for chunk in chunks {
                let data = noise(chunk + 50_000, 4096);
                let offset = chunk * CHUNK;
                let operation = Operation::Write {
                    offset,
                    data: &data,
                };
                assert_eq!(request(&pool, "a", operation), Ok(()));
            }
        });
        done(&pool, job.id);
        let planned = interposed.cancel();
        if !planned {
            done_in_time += 1;
            for chunk in written {
                let at = (chunk * CHUNK) as usize;
                contents_of(&mut state, "a")[at..at + 4096]
                    .copy_from_slice(&noise(chunk + 50_000, 4096));
            }
        }
        assert_holds(&pool, &state, &format!("written before read {after}"));
        if planned {
            break;
        }
    }
    assert!(done_in_time > 10, "only {done_in_time} places");
}

/// Between any two steps everything is deleted that does not stay, the space is
/// given back and used again.
#[test]
fn r20_nothing_is_merged_into_what_has_been_freed() {
    for steps in 0..60 {
        let world = World::create(Level::Raid1, 2, ROOMY, 36);
        let pool = world.open().unwrap();
        make(&pool, "inline", 100, DedupMode::Inline);
        make(&pool, "b", 100, DedupMode::Post);
        let mut state = held("b", 100);
        state.extend(held("inline", 100));
        let data = repetitive(100, 500);
        put(&pool, &mut state, "inline", 0, &data);
        put(&pool, &mut state, "b", 0, &data);
        pool.create_snapshot("b", "s").unwrap();
        state.insert("b@s".to_owned(), state["b"].clone());
        let job = pool.dedup_start().unwrap();
        for _ in 0..steps {
            pool.job_step().unwrap();
        }
        let ended = pool.job(job.id).unwrap().state == JobState::Done;
        pool.delete_volume("inline").unwrap();
        state.remove("inline");
        while pool.reclaim().unwrap() {}
        make(&pool, "new", 200, DedupMode::Off);
        state.extend(held("new", 200));
        put(&pool, &mut state, "new", 0, &noise(77, 200 * 4096));
        pool.checkpoint().unwrap();
        finish_jobs(&pool);
        assert_all_hold(&pool, &state, &format!("freed after {steps} steps"));
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{steps} steps");
        if ended {
            assert!(steps > 8, "only {steps} steps");
            return;
        }
    }
    panic!("the job does not end");
}

fn every_cut(level: Level) {
    let mut world = World::create(level, width(level), Scale::TINY, 37);
    let watcher = Watcher::new(&world.sim, &world.witness);
    world.watcher = Some(watcher.clone());
    let pool = world.open().unwrap();
    let state = with_snapshots(&pool, 60);
    pool.dedup_start().unwrap();
    watcher.watched.lock().on = true;
    finish_jobs(&pool);
    watcher.watched.lock().on = false;
    assert!(pool.jobs()[0].repaired > 0);
    let least = unique(&pool);
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
        // The job may not have been durable yet.
        dedup(&pool);
        assert_eq!(unique(&pool), least, "{context}");
        assert_all_hold(&pool, &state, &format!("{context}, and merged again"));
        pool.close().unwrap();
        drop(pool);
        assert_eq!(problems(&world), Vec::<String>::new(), "{context}");
    }
    println!("{level}: {} cuts", moments.len());
    assert!(moments.len() > 20);
}

#[test]
fn no_cut_of_a_deduplication_loses_anything_on_a_single_member() {
    every_cut(Level::Single);
}

#[test]
fn no_cut_of_a_deduplication_loses_anything_on_raid5() {
    every_cut(Level::Raid5);
}

#[test]
fn a_deduplication_can_be_paused_resumed_and_cancelled() {
    let (_, pool, state) = filled(DedupMode::Post, 200);
    let job = pool.dedup_start().unwrap();
    assert_eq!(pool.dedup_start().unwrap_err().kind(), ErrorKind::Busy);
    for _ in 0..3 {
        assert!(pool.job_step().unwrap());
    }
    pool.pause_job(job.id).unwrap();
    assert!(!pool.job_step().unwrap());
    pool.resume_job(job.id).unwrap();
    for _ in 0..3 {
        assert!(pool.job_step().unwrap());
    }
    assert_eq!(pool.cancel_job(job.id).unwrap().state, JobState::Idle);
    assert_holds(&pool, &state, "cancelled");
    let (_, inline, _) = filled(DedupMode::Inline, 200);
    dedup(&pool);
    assert_eq!(unique(&pool), unique(&inline));
    assert_holds(&pool, &state, "and begun again");
}

#[test]
fn a_deduplication_starts_by_itself_when_the_schedule_says_so() {
    let (_, pool, _) = filled(DedupMode::Post, 100);
    let every = |schedule| {
        let change = SettingsChange {
            dedup_every: Some(schedule),
            ..SettingsChange::default()
        };
        assert_eq!(pool.set_settings(&change).unwrap().dedup_every, schedule);
    };
    let runs = |idle| {
        pool.maintenance_step(idle).unwrap();
        let jobs = pool.jobs();
        jobs.iter().filter(|job| job.kind == JobKind::Dedup).count()
    };
    assert_eq!(runs(true), 0, "off unless told");
    every(DedupSchedule::Idle);
    assert_eq!(runs(false), 0, "clients are at work");
    assert_eq!(runs(true), 1);
    assert_eq!(runs(true), 1, "one at a time");
    finish_jobs(&pool);
    assert_eq!(pool.jobs().last().unwrap().state, JobState::Done);
    assert_eq!(runs(true), 1, "nothing has been written since");
    let mut state = held("a", 100);
    write(&pool, &mut state, "a", 0, 9, 4096);
    assert_eq!(runs(true), 2);
    finish_jobs(&pool);
    // The clock stands still: an hour does not pass.
    every(DedupSchedule::Seconds(3600));
    write(&pool, &mut state, "a", 0, 10, 4096);
    assert_eq!(runs(true), 2);
    let change = VolumeChange {
        dedup: Some(DedupMode::Inline),
        ..VolumeChange::default()
    };
    pool.set_volume("a", &change).unwrap();
    every(DedupSchedule::Idle);
    assert_eq!(runs(true), 2, "no volume leaves anything to be done");
}

#[test]
fn a_deduplication_for_idle_times_waits_while_clients_write() {
    let (_, pool, mut state) = filled(DedupMode::Post, 400);
    let change = SettingsChange {
        dedup_every: Some(DedupSchedule::Idle),
        ..SettingsChange::default()
    };
    pool.set_settings(&change).unwrap();
    pool.maintenance_step(true).unwrap();
    let job = pool.jobs().last().unwrap().id;
    assert!(pool.job_step().unwrap());
    write(&pool, &mut state, "a", 0, 77, 4096);
    pool.maintenance_step(false).unwrap();
    assert!(!pool.job_step().unwrap(), "it waits");
    let waiting = pool.job(job).unwrap();
    assert_eq!(waiting.state, JobState::Running);
    assert_eq!(waiting.message, "Waits until nothing is written");
    // A moment without a write is not enough, and others have their turn.
    pool.maintenance_step(false).unwrap();
    assert!(!pool.job_step().unwrap());
    let scrub = pool.scrub_start().unwrap().id;
    finish_jobs(&pool);
    assert_eq!(pool.job(scrub).unwrap().state, JobState::Done);
    assert_eq!(pool.job(job).unwrap().state, JobState::Running);
    pool.maintenance_step(true).unwrap();
    assert_eq!(pool.job(job).unwrap().message, "");
    done(&pool, job);
    // Nobody holds one that was asked for.
    write(&pool, &mut state, "a", 0, 78, 4096);
    let asked = pool.dedup_start().unwrap().id;
    write(&pool, &mut state, "a", 4096, 79, 4096);
    pool.maintenance_step(false).unwrap();
    done(&pool, asked);
    assert_holds(&pool, &state, "in the end");
}
