//! Members that fail, are replaced, come back, and spares that take over.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    model::State,
    pools::{assert_holds, done, filled, finish_jobs, problems, request, write},
    watch::Watcher,
    world::{SHAPES, Scale, World, losses},
};
use tessera_engine::{
    ErrorKind,
    api::{JobKind, JobState, MemberState, PoolState},
    disk::{DiskError, Operation},
    pool::simulation::Simulated,
};
use tessera_raid::{Level, device::sim::Fault};

const VOLUME_BYTES: u64 = 600 << 10;

fn redundant() -> impl Iterator<Item = (Level, usize)> {
    SHAPES.into_iter().filter(|(level, _)| losses(*level) > 0)
}

fn pool_of(level: Level, width: usize) -> (World, Simulated, State) {
    let world = World::create(level, width, Scale::TINY, 11);
    let pool = world.open().unwrap();
    let state = filled(&pool, "a", VOLUME_BYTES);
    pool.checkpoint().unwrap();
    (world, pool, state)
}

fn states(pool: &Simulated) -> Vec<MemberState> {
    pool.members().iter().map(|member| member.state).collect()
}

/// Every member but so many that the level must do without can be lost.
fn survives_any_loss(world: &World, pool: Simulated, state: &State, level: Level) {
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(world), Vec::<String>::new(), "{level}");
    let members: Vec<_> = world.witness.record().unwrap().members;
    for member in members.iter().take(world.paths.len()) {
        world.sim.inject(&member.path, Fault::Vanish);
        let pool = world.open_read_only().unwrap();
        assert_holds(
            &pool,
            state,
            &format!("{level} without {}", member.path.display()),
        );
        drop(pool);
        world.sim.heal(&member.path);
    }
}

#[test]
fn a_failed_member_is_rebuilt_onto_a_new_device_while_clients_write() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        pool.fail_member(0, "for a test").unwrap();
        assert_eq!(pool.status().state, PoolState::Degraded);
        write(&pool, &mut state, "a", 0, 2, 30_000);
        let path = world.add_device("new");
        let job = pool.replace_member(0, &path, false).unwrap();
        assert_eq!((job.kind, job.member), (JobKind::Rebuild, Some(0)));
        let mut seed = 3;
        while pool.job_step().unwrap() {
            seed += 1;
            let offset = seed * 7919 % (VOLUME_BYTES - 20_000);
            write(&pool, &mut state, "a", offset, seed, 20_000);
            if seed % 3 == 0 {
                pool.flush().unwrap();
            }
        }
        done(&pool, job.id);
        assert_eq!(pool.status().state, PoolState::Online, "{level}");
        assert_eq!(states(&pool), vec![MemberState::Online; width]);
        assert_eq!(pool.members()[0].path, "new");
        survives_any_loss(&world, pool, &state, level);
    }
}

#[test]
fn a_healthy_member_is_replaced_without_giving_redundancy_up() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        let path = world.add_device("new");
        let job = pool.replace_member(1, &path, false).unwrap();
        assert_eq!(pool.members()[1].state, MemberState::Online);
        assert_eq!(pool.members().last().unwrap().state, MemberState::Replacing);
        pool.job_step().unwrap();
        // Another one goes meanwhile, and nobody notices.
        let other = if level == Level::Raid1 { 1 } else { width - 1 };
        world.sim.inject(&world.paths[other], Fault::Vanish);
        write(&pool, &mut state, "a", 5000, 2, 100_000);
        pool.flush().unwrap();
        assert_holds(&pool, &state, "with one member replaced and one gone");
        finish_jobs(&pool);
        assert_eq!(pool.job(job.id).unwrap().state, JobState::Done, "{level}");
        assert_eq!(pool.members()[1].path, "new");
        assert_holds(&pool, &state, "after the replacement");
    }
}

#[test]
fn a_spare_takes_over_by_itself() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        let path = world.add_device("spare");
        let spare = pool.add_spare(&path, false).unwrap();
        assert_eq!(spare as usize, width);
        assert_eq!(states(&pool)[width], MemberState::Spare);
        world.sim.inject(&world.paths[0], Fault::Vanish);
        write(&pool, &mut state, "a", 0, 2, 50_000);
        pool.flush().unwrap();
        assert_eq!(states(&pool)[0], MemberState::Failed);
        assert!(pool.status().last_failure.is_some());
        pool.maintenance_step(false).unwrap();
        assert_eq!(states(&pool)[width], MemberState::Rebuilding);
        finish_jobs(&pool);
        assert_eq!(states(&pool), vec![MemberState::Online; width], "{level}");
        survives_any_loss(&world, pool, &state, level);
    }
}

#[test]
fn a_spare_that_leaves_takes_nothing_over() {
    let (world, pool, _) = pool_of(Level::Raid5, 3);
    let path = world.add_device("spare");
    let spare = pool.add_spare(&path, false).unwrap();
    pool.remove_member(spare).unwrap();
    assert_eq!(states(&pool), [MemberState::Online; 3]);
    pool.fail_member(2, "for a test").unwrap();
    pool.maintenance_step(false).unwrap();
    assert_eq!(pool.jobs(), []);
}

#[test]
fn a_member_that_is_removed_can_be_taken_away_and_its_place_filled() {
    let (world, pool, mut state) = pool_of(Level::Raid5, 3);
    pool.remove_member(1).unwrap();
    assert_eq!(states(&pool)[1], MemberState::Failed);
    pool.remove_member(1).unwrap();
    let refused = pool.remove_member(2).unwrap_err().to_string();
    assert!(refused.contains("cannot be done without"), "{refused}");
    assert_eq!(states(&pool)[2], MemberState::Online);
    world.sim.remove_device(&world.paths[1]);
    write(&pool, &mut state, "a", 0, 9, 60_000);
    pool.flush().unwrap();
    let path = world.add_device("new");
    let job = pool.replace_member(1, &path, false).unwrap();
    done(&pool, job.id);
    assert_eq!(states(&pool), [MemberState::Online; 3]);
    assert_holds(&pool, &state, "with a new member");
}

#[test]
fn a_member_that_returns_gets_only_what_it_missed() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        // Seals are recorded, and the member knows of it.
        pool.checkpoint().unwrap();
        pool.fail_member(0, "for a test").unwrap();
        write(&pool, &mut state, "a", 0, 2, 60_000);
        pool.checkpoint().unwrap();
        let back = pool.readd_member(0, &world.paths[0]).unwrap();
        let back = done(&pool, back.id);
        assert_eq!(states(&pool), vec![MemberState::Online; width]);

        pool.fail_member(0, "again").unwrap();
        let path = world.add_device("new");
        let whole = pool.replace_member(0, &path, false).unwrap();
        let whole = done(&pool, whole.id);
        assert!(
            back.bytes_total * 2 < whole.bytes_total,
            "{level}: {} of {} bytes were copied",
            back.bytes_total,
            whole.bytes_total
        );
        survives_any_loss(&world, pool, &state, level);
    }
}

#[test]
fn a_returned_member_has_all_that_it_missed() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        pool.fail_member(0, "for a test").unwrap();
        write(&pool, &mut state, "a", 0, 2, 200_000);
        let job = pool.readd_member(0, &world.paths[0]).unwrap();
        done(&pool, job.id);
        survives_any_loss(&world, pool, &state, level);
    }
}

#[test]
fn a_cancelled_rebuild_lets_its_device_go() {
    let (world, pool, state) = pool_of(Level::Raid6, 4);
    pool.fail_member(3, "for a test").unwrap();
    let path = world.add_device("new");
    let job = pool.replace_member(3, &path, false).unwrap();
    pool.job_step().unwrap();
    let job = pool.cancel_job(job.id).unwrap();
    assert_eq!(job.state, JobState::Idle);
    assert_eq!(pool.members().len(), 4);
    assert!(!pool.job_step().unwrap());
    assert_eq!(
        pool.cancel_job(job.id).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    // The same device, again.
    let job = pool.replace_member(3, &path, true).unwrap();
    done(&pool, job.id);
    assert_holds(&pool, &state, "after a second rebuild");
}

#[test]
fn a_target_that_fails_ends_its_rebuild_and_nothing_else() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        pool.fail_member(0, "for a test").unwrap();
        let path = world.add_device("new");
        let job = pool.replace_member(0, &path, false).unwrap();
        world.sim.inject(&path, Fault::Vanish);
        write(&pool, &mut state, "a", 0, 2, 50_000);
        pool.flush().unwrap();
        finish_jobs(&pool);
        let job = pool.job(job.id).unwrap();
        assert_eq!(job.state, JobState::Failed, "{level}");
        assert!(!job.message.is_empty());
        assert_eq!(pool.failure(), None);
        assert_holds(&pool, &state, "with the target gone");
    }
}

#[test]
fn a_device_that_is_too_small_is_told_how_large_it_must_be() {
    let (world, pool, _) = pool_of(Level::Raid5, 3);
    world
        .sim
        .add_device("small", world.device_bytes - (1 << 20));
    let error = pool.replace_member(0, "small".as_ref(), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("bytes"), "{error}");
    world.sim.add_device("large", world.device_bytes * 2);
    let job = pool.replace_member(0, "large".as_ref(), false).unwrap();
    done(&pool, job.id);
    assert_eq!(states(&pool), [MemberState::Online; 3]);
}

#[test]
fn the_last_member_that_can_be_spared_is_not_failed_on_request() {
    let (_world, pool, state) = pool_of(Level::Raid5, 3);
    pool.fail_member(0, "for a test").unwrap();
    assert!(pool.fail_member(1, "one too many").is_err());
    assert_eq!(pool.status().state, PoolState::Degraded);
    assert_holds(&pool, &state, "after a refusal");
    assert_eq!(
        pool.fail_member(17, "nobody").unwrap_err().kind(),
        ErrorKind::NotFound
    );
}

#[test]
fn beyond_the_redundancy_writes_stop_and_status_says_what_is_lost() {
    let (world, pool, state) = pool_of(Level::Raid5, 3);
    for path in &world.paths[..2] {
        world.sim.inject(path, Fault::Vanish);
    }
    let data = [7; 4096];
    let write = Operation::Write {
        offset: 0,
        data: &data,
    };
    let _accepted_in_memory = request(&pool, "a", write);
    assert!(pool.flush().is_err());
    let status = pool.status();
    assert_eq!(status.state, PoolState::Failed);
    assert!(status.stopped.is_some());
    let losses = status.losses.unwrap();
    assert!(losses.complete);
    let lost = |offset: u64| {
        losses
            .volumes
            .iter()
            .flat_map(|volume| &volume.ranges)
            .any(|range| (range.offset..range.offset + range.length).contains(&offset))
    };
    let (mut readable, mut unreadable) = (0, 0);
    for offset in (4096..VOLUME_BYTES / 2).step_by(4096) {
        let mut buffer = [0; 4096];
        let read = Operation::Read {
            offset,
            buffer: &mut buffer,
        };
        match request(&pool, "a", read) {
            Ok(()) => {
                readable += 1;
                let at = usize::try_from(offset).unwrap();
                assert_eq!(buffer, state["a"][at..at + 4096]);
            }
            Err(error) => {
                unreadable += 1;
                assert!(matches!(error, DiskError::Io(_)), "{error}");
                assert!(lost(offset), "{offset} is lost and status does not say so");
            }
        }
    }
    assert!(unreadable > 0, "{readable} of all chunks can be read");
}

/// Runs a rebuild on a watched pool and cuts the power at every operation.
fn every_cut_of_a_rebuild(level: Level, width: usize, start: fn(&World, &Simulated)) -> usize {
    const SMALL: Scale = Scale {
        segments: 24,
        segment_bytes: 48 << 10,
        journal_bytes: 128 << 10,
        ..Scale::TINY
    };
    let mut world = World::create(level, width, SMALL, 5);
    let pool = world.open().unwrap();
    let state = filled(&pool, "a", 160 << 10);
    pool.checkpoint().unwrap();
    world.add_device("new");
    pool.close().unwrap();
    drop(pool);
    let watcher = Watcher::new(&world.sim, &world.witness);
    world.watcher = Some(watcher.clone());
    let pool = world.open().unwrap();
    watcher.watched.lock().on = true;
    start(&world, &pool);
    while pool.job_step().unwrap() {
        pool.checkpoint().unwrap();
    }
    watcher.watched.lock().on = false;
    assert_eq!(pool.status().state, PoolState::Online);
    drop(pool);
    world.watcher = None;
    let moments = std::mem::take(&mut watcher.watched.lock().moments);
    for (number, moment) in moments.iter().enumerate() {
        let seed = number as u64;
        world.sim.restore(&moment.world);
        world.witness = moment.witness.fork(79);
        world.sim.power_cut(seed);
        world.sim.power_on();
        let context = format!("{level}, cut {number} at {}", moment.operation);
        let pool = world
            .open()
            .unwrap_or_else(|error| panic!("{context}: {error}: {error:?}"));
        assert_holds(&pool, &state, &context);
        finish_jobs(&pool);
        for job in pool.jobs() {
            assert!(
                matches!(job.state, JobState::Done | JobState::Failed),
                "{context}: {job:?}"
            );
        }
        if pool.status().state == PoolState::Online {
            // What claims to be in sync is.
            pool.close().unwrap();
            drop(pool);
            assert_eq!(problems(&world), Vec::<String>::new(), "{context}");
            let other = world.witness.record().unwrap().members[width - 1]
                .path
                .clone();
            world.sim.inject(&other, Fault::Vanish);
            let pool = world.open_read_only().unwrap();
            assert_holds(
                &pool,
                &state,
                &format!("{context}, then another member lost"),
            );
        }
    }
    moments.len()
}

fn replace_failed(_: &World, pool: &Simulated) {
    pool.fail_member(0, "for a test").unwrap();
    pool.replace_member(0, "new".as_ref(), false).unwrap();
}

fn replace_healthy(_: &World, pool: &Simulated) {
    pool.replace_member(0, "new".as_ref(), false).unwrap();
}

fn spare(_: &World, pool: &Simulated) {
    pool.add_spare("new".as_ref(), false).unwrap();
    pool.fail_member(0, "for a test").unwrap();
    pool.maintenance_step(false).unwrap();
}

fn come_back(world: &World, pool: &Simulated) {
    pool.fail_member(0, "for a test").unwrap();
    pool.readd_member(0, &world.paths[0]).unwrap();
}

fn every_cut(level: Level) {
    let (_, width) = SHAPES.into_iter().find(|shape| shape.0 == level).unwrap();
    let starts: [fn(&World, &Simulated); 4] = [replace_failed, replace_healthy, spare, come_back];
    for start in starts {
        let cuts = every_cut_of_a_rebuild(level, width, start);
        println!("{level}: {cuts} cuts");
        assert!(cuts > 50);
    }
}

#[test]
fn no_cut_of_a_rebuild_loses_anything_on_raid1() {
    every_cut(Level::Raid1);
}

#[test]
fn no_cut_of_a_rebuild_loses_anything_on_raid5() {
    every_cut(Level::Raid5);
}

#[test]
fn no_cut_of_a_rebuild_loses_anything_on_raid6() {
    every_cut(Level::Raid6);
}

#[test]
fn no_cut_of_a_rebuild_loses_anything_on_raid10() {
    every_cut(Level::Raid10);
}

#[test]
fn a_rebuild_goes_on_after_a_crash_from_its_cursor() {
    let (world, pool, state) = pool_of(Level::Raid5, 3);
    pool.fail_member(0, "for a test").unwrap();
    let path = world.add_device("new");
    let job = pool.replace_member(0, &path, false).unwrap();
    for _ in 0..4 {
        pool.job_step().unwrap();
    }
    pool.checkpoint().unwrap();
    let before = pool.job(job.id).unwrap();
    assert!(before.bytes_done > 0);
    drop(pool);
    world.sim.power_cut(3);
    world.sim.power_on();
    let pool = world.open().unwrap();
    let after = pool.job(job.id).unwrap();
    assert_eq!(after.state, JobState::Running);
    assert_eq!(after.bytes_done, before.bytes_done);
    done(&pool, job.id);
    survives_any_loss(&world, pool, &state, Level::Raid5);
}
