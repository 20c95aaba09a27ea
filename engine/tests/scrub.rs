//! Scrubs: what rots is found where it is, charged to whose it is, and mended.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    model::State,
    pools::{assert_holds, done, filled, finish_jobs, problems, request, scrubbed, write},
    watch::Watcher,
    world::{SHAPES, Scale, World, losses, volume},
};
use tessera_engine::{
    ErrorKind,
    api::{JobState, SettingsChange},
    disk::Operation,
    pool::simulation::Simulated,
};
use tessera_raid::{Level, device::sim::Fault};

fn pool_of(level: Level, width: usize) -> (World, Simulated, State) {
    let world = World::create(level, width, Scale::TINY, 12);
    let pool = world.open().unwrap();
    let state = filled(&pool, "a", 600 << 10);
    pool.checkpoint().unwrap();
    (world, pool, state)
}

fn redundant() -> impl Iterator<Item = (Level, usize)> {
    SHAPES.into_iter().filter(|(level, _)| losses(*level) > 0)
}

/// The first segment's block on a member, spoilt.
fn spoil(world: &World, member: usize, block: u64) {
    let at = world.slot_offset(0) + block * 4096;
    world.sim.poke(&world.paths[member], at, &[0x5a; 4096]);
}

#[test]
fn a_healthy_pool_has_nothing_to_mend() {
    for (level, width) in SHAPES {
        let (world, pool, state) = pool_of(level, width);
        let job = scrubbed(&pool);
        assert_eq!(
            (job.found, job.repaired, job.lost),
            (0, 0, 0),
            "{level}: {job:?}"
        );
        assert!(job.checked > 100);
        assert_eq!(job.members.len(), width, "{level}");
        assert!(job.members.iter().all(|member| member.checked > 0));
        assert_holds(&pool, &state, "after a scrub");
        drop(pool);
        drop(world);
    }
}

#[test]
fn what_rots_on_any_one_member_is_mended_and_charged_to_it() {
    for (level, width) in redundant() {
        for member in 0..width {
            let (world, pool, state) = pool_of(level, width);
            for block in [0, 1, 3] {
                spoil(&world, member, block);
            }
            let job = scrubbed(&pool);
            assert!(job.found >= 3, "{level}, member {member}: {job:?}");
            assert_eq!((job.repaired, job.lost), (job.found, 0), "{level}: {job:?}");
            for counts in &job.members {
                let its = counts.index as usize == member;
                assert_eq!(counts.found > 0, its, "{level}, member {member}: {job:?}");
            }
            let again = scrubbed(&pool);
            assert_eq!(again.found, 0, "{level}, member {member}: {again:?}");
            pool.close().unwrap();
            drop(pool);
            assert_eq!(problems(&world), Vec::<String>::new());
            // Any other one may go now.
            world
                .sim
                .inject(&world.paths[(member + 1) % width], Fault::Vanish);
            let pool = world.open_read_only().unwrap();
            assert_holds(&pool, &state, &format!("{level}, member {member} mended"));
        }
    }
}

#[test]
fn unreadable_blocks_are_written_again() {
    for (level, width) in redundant() {
        let (world, pool, state) = pool_of(level, width);
        let fault = Fault::ReadErrors {
            offset: world.slot_offset(0) + 4096,
            length: 4096,
        };
        world.sim.inject(&world.paths[1], fault);
        let job = scrubbed(&pool);
        assert!(job.found > 0 && job.lost == 0, "{level}: {job:?}");
        let again = scrubbed(&pool);
        assert_eq!(again.found, 0, "{level}: {again:?}");
        assert_holds(&pool, &state, "after unreadable blocks");
    }
}

#[test]
fn what_a_client_could_not_read_directly_is_healed_without_a_scrub() {
    for (level, width) in redundant() {
        let mut healed = 0;
        for member in 0..width {
            let (world, pool, state) = pool_of(level, width);
            pool.close().unwrap();
            drop(pool);
            let fault = Fault::ReadErrors {
                offset: world.slot_offset(0),
                length: 4096,
            };
            world.sim.inject(&world.paths[member], fault);
            let pool = world.open().unwrap();
            assert_holds(&pool, &state, "with read errors");
            if pool.members()[member].read_errors == 0 {
                // Parity, or a copy that nobody chose to read.
                continue;
            }
            pool.maintenance_step(false).unwrap();
            pool.close().unwrap();
            drop(pool);
            let pool = world.open().unwrap();
            assert_holds(&pool, &state, "after healing");
            let errors = pool.members()[member].read_errors;
            assert_eq!(errors, 0, "{level}: member {member} is not healed");
            healed += 1;
        }
        assert!(healed > 0, "{level}: nobody read the block");
    }
}

#[test]
fn a_spoilt_journal_copy_is_made_up_for() {
    let (world, pool, mut state) = pool_of(Level::Raid1, 2);
    write(&pool, &mut state, "a", 0, 2, 4096);
    pool.flush().unwrap();
    let journal = 16 << 10;
    let ring = usize::try_from(Scale::TINY.journal_bytes).unwrap();
    let bytes = world.sim.peek(&world.paths[1], journal, ring);
    for (at, _) in (0u64..)
        .step_by(4096)
        .zip(bytes.chunks(4096))
        .filter(|(_, block)| block.starts_with(b"TSRBATCH"))
    {
        world
            .sim
            .poke(&world.paths[1], journal + at + 100, &[9; 50]);
    }
    let job = scrubbed(&pool);
    assert!(
        job.members[1].found > 0 && job.members[0].found == 0,
        "{job:?}"
    );
    assert_eq!(scrubbed(&pool).found, 0);
    drop(pool);
    world.sim.inject(&world.paths[0], Fault::Vanish);
    world.sim.power_cut(1);
    world.sim.power_on();
    assert_holds(&world.open().unwrap(), &state, "from the mended copy");
}

#[test]
fn a_spoilt_superblock_copy_is_written_again() {
    let (world, pool, _) = pool_of(Level::Raid5, 3);
    let device = world.device_bytes;
    for at in [0, 8192, device - 16384, device - 8192] {
        world.sim.poke(&world.paths[2], at, &[1; 4096]);
    }
    let job = scrubbed(&pool);
    let counts = job.members.iter().find(|member| member.index == 2).unwrap();
    assert!(counts.found > 0, "{job:?}");
    assert_eq!(counts.repaired, counts.found, "{job:?}");
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

#[test]
fn what_is_lost_is_named_by_volume_and_range_and_what_nothing_names_is_not() {
    for level in [Level::Single, Level::Raid1] {
        let (_, width) = SHAPES.into_iter().find(|shape| shape.0 == level).unwrap();
        let (world, pool, _) = pool_of(level, width);
        for member in 0..width {
            spoil(&world, member, 5);
        }
        let job = scrubbed(&pool);
        assert_eq!(job.lost, 1, "{level}: {job:?}");
        // Written from 4096 on, chunk by chunk: block 5 has the chunk at 24576.
        assert_eq!(
            job.losses,
            ["Volume a: 4096 bytes at 24576 are lost"],
            "{level}"
        );
        assert!(job.message.contains("lost"));

        let discard = Operation::Discard {
            offset: 24_576,
            length: 4096,
        };
        assert_eq!(request(&pool, "a", discard), Ok(()));
        let job = scrubbed(&pool);
        assert_eq!((job.lost, job.losses.len()), (0, 0), "{level}: {job:?}");
    }
}

#[test]
fn a_scrub_passes_over_what_a_crash_left_torn() {
    for (level, width) in redundant() {
        let (world, pool, mut state) = pool_of(level, width);
        for seed in 0..4 {
            let offset = 40_000 * seed;
            write(&pool, &mut state, "a", offset, 20 + seed, 30_000);
        }
        pool.flush().unwrap();
        write(&pool, &mut state.clone(), "a", 200_000, 30, 100_000);
        while pool.writer_step().unwrap() {}
        drop(pool);
        world.sim.power_cut(7);
        world.sim.power_on();
        let pool = world.open().unwrap();
        let job = scrubbed(&pool);
        assert_eq!((job.found, job.lost), (0, 0), "{level}: {job:?}");
    }
}

#[test]
fn a_scrub_goes_on_after_a_crash_with_its_counts() {
    let (world, pool, state) = pool_of(Level::Raid5, 3);
    spoil(&world, 1, 0);
    spoil(&world, 1, 1);
    let id = pool.scrub_start().unwrap().id;
    for _ in 0..5 {
        pool.job_step().unwrap();
    }
    pool.checkpoint().unwrap();
    let before = pool.job(id).unwrap();
    assert!(before.found > 0, "{before:?}");
    drop(pool);
    world.sim.power_cut(2);
    world.sim.power_on();
    let pool = world.open().unwrap();
    assert_eq!(pool.job(id).unwrap().found, before.found);
    assert_eq!(pool.job(id).unwrap().bytes_done, before.bytes_done);
    done(&pool, id);
    assert_holds(&pool, &state, "after the scrub");
}

#[test]
fn a_scrub_can_be_paused_resumed_and_cancelled() {
    let (_world, pool, _) = pool_of(Level::Raid5, 3);
    assert_eq!(pool.scrub_status().state, JobState::Idle);
    let id = pool.scrub_start().unwrap().id;
    assert_eq!(pool.scrub_start().unwrap_err().kind(), ErrorKind::Busy);
    pool.job_step().unwrap();
    assert_eq!(pool.pause_job(id).unwrap().state, JobState::Paused);
    assert!(!pool.job_step().unwrap(), "a paused job rests");
    assert_eq!(pool.resume_job(id).unwrap().state, JobState::Running);
    assert!(pool.job_step().unwrap());
    assert_eq!(pool.cancel_job(id).unwrap().state, JobState::Idle);
    assert!(!pool.job_step().unwrap());
    scrubbed(&pool);
    assert_eq!(pool.job(99).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn a_pause_survives_a_restart() {
    let (world, pool, _) = pool_of(Level::Raid5, 3);
    let id = pool.scrub_start().unwrap().id;
    pool.job_step().unwrap();
    pool.pause_job(id).unwrap();
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    assert_eq!(pool.job(id).unwrap().state, JobState::Paused);
    assert!(!pool.job_step().unwrap());
    pool.resume_job(id).unwrap();
    done(&pool, id);
}

#[test]
fn settings_are_kept_and_wrong_ones_refused() {
    let (world, pool, _) = pool_of(Level::Raid5, 3);
    let change = SettingsChange {
        rebuild_bytes_per_second: Some(5 << 20),
        read_errors_per_hour: Some(7),
        stall_limit_ms: Some(4000),
        ..SettingsChange::default()
    };
    let set = pool.set_settings(&change).unwrap();
    assert_eq!(
        (set.rebuild_bytes_per_second, set.stall_limit_ms),
        (5 << 20, 4000)
    );
    drop(pool);
    world.sim.power_cut(1);
    world.sim.power_on();
    let pool = world.open().unwrap();
    assert_eq!(pool.settings(), set);
    let change = SettingsChange {
        stall_limit_ms: Some(10),
        ..SettingsChange::default()
    };
    assert_eq!(
        pool.set_settings(&change).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(pool.settings(), set);
}

/// True for a leaf of a volume's map: nothing but entries of chunks.
fn is_leaf(block: &[u8]) -> bool {
    let kinds = block.chunks(16).map(|entry| {
        let high = u64::from_le_bytes(entry[8..].try_into().unwrap());
        (high >> 10) & 63
    });
    let kinds: Vec<u64> = kinds.collect();
    kinds.iter().all(|kind| matches!(kind, 0 | 2 | 3)) && kinds.iter().any(|kind| *kind > 0)
}

#[test]
fn a_map_page_that_is_lost_fails_no_checkpoint_and_is_never_read_as_zeroes() {
    let (world, pool, mut state) = pool_of(Level::Single, 1);
    pool.close().unwrap();
    drop(pool);
    let length = usize::try_from(world.device_bytes - world.slots_offset).unwrap();
    let bytes = world.sim.peek(&world.paths[0], world.slots_offset, length);
    for (at, _) in (world.slots_offset..)
        .step_by(4096)
        .zip(bytes.chunks(4096))
        .filter(|(_, block)| is_leaf(block))
    {
        world.sim.poke(&world.paths[0], at, &[0xee; 4096]);
    }
    let mut pool = world.open().unwrap();
    let read = |pool: &Simulated, offset: u64| {
        let mut buffer = vec![0; 4096];
        let operation = Operation::Read {
            offset,
            buffer: &mut buffer,
        };
        request(pool, "a", operation).map(|()| buffer)
    };
    assert!(read(&pool, 8192).is_err());
    write(&pool, &mut state, "a", 8192, 7, 4096);
    for _ in 0..2 {
        pool.checkpoint().unwrap();
        assert_eq!(read(&pool, 8192).unwrap(), state["a"][8192..12288]);
        for offset in [0, 4096, 12_288, 500_000 / 4096 * 4096] {
            assert!(read(&pool, offset).is_err(), "{offset} is lost");
        }
        let losses = pool.losses().unwrap();
        assert_eq!(losses.volumes[0].bytes, (600 << 10) - 4096);
        pool.close().unwrap();
        drop(pool);
        assert!(
            problems(&world)
                .iter()
                .any(|problem| problem.contains("is lost"))
        );
        pool = world.open().unwrap();
    }
    let whole = Operation::Discard {
        offset: 0,
        length: 600 << 10,
    };
    assert_eq!(request(&pool, "a", whole), Ok(()));
    assert_eq!(read(&pool, 4096).unwrap(), [0; 4096]);
    pool.close().unwrap();
    drop(pool);
    assert_eq!(problems(&world), Vec::<String>::new());
}

/// Scrubs a spoilt pool and cuts the power at every operation.
fn every_cut_of_a_scrub(level: Level) {
    const SMALL: Scale = Scale {
        segments: 24,
        segment_bytes: 48 << 10,
        journal_bytes: 128 << 10,
        ..Scale::TINY
    };
    let (_, width) = SHAPES.into_iter().find(|shape| shape.0 == level).unwrap();
    let mut world = World::create(level, width, SMALL, 6);
    let pool = world.open().unwrap();
    let state = filled(&pool, "a", 160 << 10);
    pool.close().unwrap();
    drop(pool);
    for block in 0..3 {
        spoil(&world, 1, block);
    }
    let watcher = Watcher::new(&world.sim, &world.witness);
    world.watcher = Some(watcher.clone());
    let pool = world.open().unwrap();
    watcher.watched.lock().on = true;
    let id = pool.scrub_start().unwrap().id;
    while pool.job_step().unwrap() {
        pool.checkpoint().unwrap();
    }
    watcher.watched.lock().on = false;
    assert!(pool.job(id).unwrap().repaired > 0);
    drop(pool);
    world.watcher = None;
    let moments = std::mem::take(&mut watcher.watched.lock().moments);
    assert!(moments.len() > 20);
    for (number, moment) in moments.iter().enumerate() {
        world.sim.restore(&moment.world);
        world.witness = moment.witness.fork(79);
        world.sim.power_cut(number as u64);
        world.sim.power_on();
        let context = format!("{level}, cut {number} at {}", moment.operation);
        let pool = world
            .open()
            .unwrap_or_else(|error| panic!("{context}: {error}: {error:?}"));
        assert_holds(&pool, &state, &context);
        finish_jobs(&pool);
        let job = scrubbed(&pool);
        assert_eq!(
            (job.repaired, job.lost),
            (job.found, 0),
            "{context}: {job:?}"
        );
        assert_eq!(scrubbed(&pool).found, 0, "{context}");
        assert_holds(&pool, &state, &context);
    }
}

#[test]
fn no_cut_of_a_scrub_harms_raid1() {
    every_cut_of_a_scrub(Level::Raid1);
}

#[test]
fn no_cut_of_a_scrub_harms_raid5() {
    every_cut_of_a_scrub(Level::Raid5);
}

#[test]
fn no_cut_of_a_scrub_harms_raid6() {
    every_cut_of_a_scrub(Level::Raid6);
}

#[test]
fn no_cut_of_a_scrub_harms_raid10() {
    every_cut_of_a_scrub(Level::Raid10);
}

#[test]
fn what_was_found_lost_is_named_again_after_the_pool_was_opened_anew() {
    let (world, pool, _) = pool_of(Level::Single, 1);
    spoil(&world, 0, 5);
    let named = scrubbed(&pool).losses;
    assert_eq!(named, ["Volume a: 4096 bytes at 24576 are lost"]);
    pool.close().unwrap();
    drop(pool);
    // Whoever only looks has no thread that would find it out.
    let pool = world.open_read_only().unwrap();
    let scrub = pool.scrub_status();
    assert_eq!((scrub.lost, scrub.losses), (1, named.clone()));
    assert_eq!(pool.status().jobs[0].losses, named);
    drop(pool);
    let pool = world.open().unwrap();
    finish_jobs(&pool);
    assert_eq!(pool.scrub_status().losses, named);
    // What has been written since is lost no more.
    let discard = Operation::Discard {
        offset: 24_576,
        length: 4096,
    };
    assert_eq!(request(&pool, "a", discard), Ok(()));
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    finish_jobs(&pool);
    assert_eq!(pool.scrub_status().losses, [""; 0]);
}

#[test]
fn every_step_of_a_scrub_is_short_and_clients_and_reclaim_go_on_between() {
    let scale = Scale {
        segments: 160,
        ..Scale::TINY
    };
    let world = World::create(Level::Single, 1, scale, 23);
    let pool = world.open().unwrap();
    // A page of the map for each chunk.
    const LEAVES: u64 = 700;
    pool.create_volume(&volume("wide", LEAVES << 20)).unwrap();
    let chunk = |number: u64| common::noise(number, 4096);
    for number in 0..LEAVES {
        let data = chunk(number);
        let operation = Operation::Write {
            offset: number << 20,
            data: &data,
        };
        request(&pool, "wide", operation).unwrap();
    }
    pool.flush().unwrap();
    pool.checkpoint().unwrap();
    // A crash: the segments that were open have no summaries.
    drop(pool);
    let pool = world.open().unwrap();
    for block in 0..8 {
        spoil(&world, 0, block);
    }
    let id = pool.scrub_start().unwrap().id;
    let (mut describing, mut naming, mut longest) = (0, 0, 0);
    let read_bytes = || world.sim.counters(&world.paths[0]).read_bytes;
    let mut overwritten = 0;
    loop {
        let before = read_bytes();
        let goes_on = pool.job_step().unwrap();
        longest = longest.max(read_bytes() - before);
        let job = pool.job(id).unwrap();
        describing += usize::from(job.message.contains("no summary describes"));
        naming += usize::from(job.message.contains("what is lost"));
        if !goes_on {
            break;
        }
        // Beyond what was spoiled.
        let number = 100 + overwritten % 500;
        overwritten += 1;
        let data = chunk(1000 + overwritten);
        let operation = Operation::Write {
            offset: number << 20,
            data: &data,
        };
        request(&pool, "wide", operation).unwrap();
        if overwritten % 16 == 0 {
            pool.reclaim().unwrap();
        }
    }
    let job = pool.job(id).unwrap();
    assert_eq!(job.state, JobState::Done, "{job:?}");
    assert!(job.lost > 0 && !job.losses.is_empty(), "{job:?}");
    assert!(describing >= 2, "{describing} steps: {job:?}");
    assert!(naming >= 2, "{naming} steps: {job:?}");
    assert!(longest <= 4 << 20, "a step read {longest} bytes");
}
