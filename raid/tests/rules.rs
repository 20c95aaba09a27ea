//! Rules R1 to R6 and R16 one by one, on simulated devices.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::*;
use tessera_raid::{
    ArrayState, Kind, Level, MemberState, describe_member,
    device::{AlignedBuf, sim::Fault},
};

fn vanish(pool: &Pool, member: usize) {
    pool.world.inject(pool.path(member), Fault::Vanish);
}

fn block(seed: u64) -> Arc<AlignedBuf> {
    Arc::new(AlignedBuf::copy_of(&noise(seed, 4096)))
}

#[test]
fn r1_a_commit_is_on_every_member_twice() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 30);
    let before: Vec<_> = pool
        .paths
        .iter()
        .map(|path| pool.world.counters(path))
        .collect();
    let sequence = array.sequence();
    array.commit(b"two", false).unwrap();
    assert_eq!(array.sequence(), sequence + 1);
    for (path, before) in pool.paths.iter().zip(before) {
        let after = pool.world.counters(path);
        assert_eq!(after.writes - before.writes, 2, "front and end");
        assert_eq!(after.durable_writes - before.durable_writes, 2);
    }
    assert_eq!(array.check_superblocks(), (12, Vec::new()));
    // Either copy alone is enough.
    array.close();
    let mut pool = pool;
    let snapshot = pool.snapshot();
    for damaged in [0, DEVICE_BYTES - 16384] {
        pool.restore(&snapshot);
        for path in pool.paths.clone() {
            pool.world.poke(&path, damaged, &noise(1, 16384));
        }
        let before = pool.writes();
        let array = pool.open().unwrap();
        assert_eq!(
            pool.writes() - before,
            3,
            "only the damaged place of the newest is written, once a member"
        );
        assert_eq!(array.engine_record(), b"two");
        assert_eq!(
            array.check_superblocks().1,
            [""; 0],
            "opening has mended the newest"
        );
    }
}

#[test]
#[should_panic(expected = "the clean flag is cleared before the first write")]
fn r1_nothing_is_written_under_the_clean_flag() {
    let pool = Pool::devices(Level::Raid1, 2, 31);
    let array = pool.array_created();
    let _ = array.write_stripes(&[stripe(&array, 0, 0, 1)]);
}

#[test]
#[should_panic(expected = "the clean flag is cleared before the first write")]
fn r1_nothing_is_written_after_a_clean_commit() {
    let (_pool, array) = Pool::create(Level::Raid1, 2, 31);
    array.write_stripes(&[stripe(&array, 0, 0, 1)]).unwrap();
    array.commit(b"end", true).unwrap();
    let _ = array.journal_write(0, &block(1));
}

#[test]
fn r1_a_stale_member_stays_out() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 32);
    let mut model = Model::default();
    let old = pool.world.image(pool.path(2));
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    for _ in 0..3 {
        array.commit(b"later", false).unwrap();
    }
    array.close();
    pool.world.restore_image(pool.path(2), &old);
    let array = pool.open().unwrap();
    assert_eq!(not_online(&array), [2]);
    assert_eq!(state_of(&array, 2), MemberState::Failed);
    model.check(&array, "without the stale member");
    array.close();
    // A second stale one is one too many, and nothing is written.
    pool.world.restore_image(pool.path(1), &old);
    let before = pool.writes();
    // It is the image of another member: two of them say they are the same.
    assert_eq!(pool.open().unwrap_err().kind(), Kind::DuplicateMember);
    assert_eq!(pool.writes(), before);
}

#[test]
fn r1_a_read_only_open_writes_nothing_at_all() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 33);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    array.close();
    vanish(&pool, 0);
    let (before, witness) = (pool.writes(), pool.witness.record());
    let array = pool.open_with(&pool.paths, &read_only()).unwrap();
    model.check(&array, "read-only and degraded");
    assert!(array.read_only() && !array.was_clean());
    let kinds = [
        array.commit(b"", false).unwrap_err().kind(),
        array
            .write_stripes(&[stripe(&array, 0, 0, 1)])
            .unwrap_err()
            .kind(),
        array.journal_write(0, &block(1)).unwrap_err().kind(),
        array.sync().unwrap_err().kind(),
        array.fail_member(index(1), "test").unwrap_err().kind(),
        array.rewrite_verified(&at(0), 0, &[1]).unwrap_err().kind(),
    ];
    assert_eq!(kinds, [Kind::ReadOnly; 6]);
    array.discard_segment(&at(0));
    // One that vanishes now is left out in memory alone.
    pool.world.heal(pool.path(0));
    array.close();
    let array = pool.open_with(&pool.paths, &read_only()).unwrap();
    vanish(&pool, 2);
    model.check(&array, "read-only, losing a member");
    assert_eq!(array.status().state, ArrayState::Degraded);
    for member in &array.status().members[..2] {
        assert_eq!(member.errors(), 0, "nobody tried to write");
    }
    assert_eq!(not_online(&array), [2]);
    assert_eq!((pool.writes(), pool.witness.record()), (before, witness));
}

#[test]
fn r1_an_absent_member_is_recorded_before_open_returns() {
    let (pool, array) = Pool::create(Level::Raid6, 4, 34);
    let epoch = array.membership_epoch();
    array.close();
    vanish(&pool, 3);
    let array = pool.open().unwrap();
    assert_eq!(array.membership_epoch(), epoch + 1);
    assert_eq!(pool.witness.record().unwrap().membership_epoch, epoch + 1);
    assert_eq!(state_of(&array, 3), MemberState::Missing);
    array.close();
    // The member is back, the pool was never written to: still it stays out.
    pool.world.heal(pool.path(3));
    let array = pool.open().unwrap();
    assert_eq!(state_of(&array, 3), MemberState::Failed);
    assert_eq!(array.membership_epoch(), epoch + 1, "known already");
}

#[test]
fn r2_the_barrier_is_durable_when_a_write_is_acknowledged() {
    let (pool, array) = Pool::create(Level::Raid5, 4, 35);
    let sequence = array.sequence();
    vanish(&pool, 1);
    array.write_stripes(&[stripe(&array, 0, 0, 1)]).unwrap();
    // Not even a power cut right now brings the member back.
    pool.world.power_cut(9);
    pool.world.power_on();
    pool.world.heal(pool.path(1));
    let backend = pool.backend();
    for survivor in [0, 2, 3] {
        let described = describe_member(&backend, pool.path(survivor)).unwrap();
        assert_eq!(described.sequence, sequence + 1);
    }
    assert_eq!(
        describe_member(&backend, pool.path(1)).unwrap().sequence,
        sequence
    );
    drop(array);
    assert_eq!(not_online(&pool.open().unwrap()), [1]);
}

#[test]
fn r2_a_member_failed_by_hand_is_behind_the_barrier() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 36);
    array.fail_member(index(0), "on request").unwrap();
    array.fail_member(index(0), "twice").unwrap();
    assert_eq!(
        array.fail_member(index(7), "none").unwrap_err().kind(),
        Kind::InvalidArgument
    );
    pool.world.power_cut(1);
    pool.world.power_on();
    drop(array);
    assert_eq!(not_online(&pool.open().unwrap()), [0]);
}

#[test]
fn r3_without_the_witness_nothing_is_acknowledged() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 37);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    pool.witness.set_failing(true);
    vanish(&pool, 1);
    let error = array.write_stripes(&[stripe(&array, 1, 0, 1)]).unwrap_err();
    assert_eq!(error.kind(), Kind::Stopped);
    assert_eq!(array.sync().unwrap_err().kind(), Kind::Stopped);
    assert_eq!(array.commit(b"", false).unwrap_err().kind(), Kind::Stopped);
    assert_eq!(array.status().state, ArrayState::Failed);
    model.check(&array, "reads go on");
    array.close();
    // Opening needs the witness as well.
    assert_eq!(pool.open().unwrap_err().kind(), Kind::Witness);
    pool.witness.set_failing(false);
    model.check(&pool.open().unwrap(), "reopened");
}

#[test]
fn r3_a_split_brain_is_refused_naming_both_sides() {
    let (mut pool, array) = Pool::create(Level::Raid1, 2, 38);
    array.close();
    // Two hosts, each with one half and a copy of the directory.
    let other = Pool {
        witness: pool.witness.fork(99),
        ..pool.clone()
    };
    let left = pool.open_with(&pool.paths[..1], &options()).unwrap();
    let right = other.open_with(&pool.paths[1..], &options()).unwrap();
    for _ in 0..3 {
        left.commit(b"left", false).unwrap();
    }
    right.commit(b"right", false).unwrap();
    left.close();
    right.close();
    let before = pool.writes();
    for witness in [&pool.witness, &other.witness] {
        let pool = Pool {
            witness: witness.clone(),
            ..pool.clone()
        };
        let error = pool.open().unwrap_err();
        assert_eq!(error.kind(), Kind::Diverged);
        let message = error.to_string();
        assert!(
            message.contains("disk0") && message.contains("disk1"),
            "{message}"
        );
    }
    // Each side alone is fine where it is known, and nowhere else.
    assert_eq!(pool.writes(), before);
    assert_eq!(
        pool.open_with(&pool.paths[..1], &options())
            .unwrap()
            .engine_record(),
        b"left"
    );
    let error = pool.open_with(&pool.paths[1..], &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Diverged);
    pool.witness.forget();
    pool.witness = pool.witness.fork(1);
    assert_eq!(pool.open().unwrap_err().kind(), Kind::Diverged);
}

#[test]
fn r3_a_left_behind_half_is_refused() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 39);
    vanish(&pool, 1);
    array.commit(b"alone", false).unwrap();
    array.close();
    pool.world.heal(pool.path(1));
    let before = pool.writes();
    let error = pool.open_with(&pool.paths[1..], &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::Behind, "{error}");
    // With the witness lost it needs force, and gets it.
    pool.witness.forget();
    let error = pool.open_with(&pool.paths[1..], &options()).unwrap_err();
    assert_eq!(error.kind(), Kind::NeedsForce, "{error}");
    assert_eq!(pool.writes(), before);
    let forced = tessera_raid::OpenOptions {
        force: true,
        ..options()
    };
    assert!(pool.open_with(&pool.paths[1..], &forced).is_ok());
}

#[test]
fn r3_import_makes_the_witness_anew_with_the_paths_given() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 40);
    let known = pool.witness.record().unwrap();
    array.close();
    pool.witness.forget();
    let mut paths = pool.paths.clone();
    pool.world.link("elsewhere", "disk1");
    paths[1] = "elsewhere".into();
    paths.reverse();
    pool.open_with(&paths, &options()).unwrap().close();
    let record = pool.witness.record().unwrap();
    assert_eq!(record.membership_id, known.membership_id);
    let stored: Vec<_> = record
        .members
        .iter()
        .map(|m| m.path.to_str().unwrap())
        .collect();
    assert_eq!(stored, ["disk0", "elsewhere", "disk2"]);
}

#[test]
fn r4_more_failures_than_survivable_stop_writes_and_leave_superblocks_alone() {
    for (level, width, lost) in [
        (Level::Single, 1, &[0][..]),
        (Level::Raid0, 3, &[1]),
        (Level::Raid1, 2, &[0, 1]),
        (Level::Raid5, 4, &[1, 2]),
        (Level::Raid6, 5, &[0, 1, 2]),
        (Level::Raid10, 4, &[2, 3]),
    ] {
        let (pool, array) = Pool::create(level, width, 41);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let (sequence, witness) = (array.sequence(), pool.witness.record());
        for member in lost {
            vanish(&pool, *member);
        }
        let writes = [stripe(&array, 1, 0, 1), stripe(&array, 1, 1, 2)];
        let error = array.write_stripes(&writes).unwrap_err();
        assert_eq!(error.kind(), Kind::Stopped, "{level}");
        assert_eq!(array.status().state, ArrayState::Failed);
        assert!(array.status().stopped.is_some());
        for kind in [
            array.write_stripes(&writes).unwrap_err().kind(),
            array.sync().unwrap_err().kind(),
            array.commit(b"no", false).unwrap_err().kind(),
            array.journal_write(0, &block(1)).unwrap_err().kind(),
        ] {
            assert_eq!(kind, Kind::Stopped);
        }
        assert_eq!(
            (array.sequence(), pool.witness.record()),
            (sequence, witness)
        );
        array.close();
        // It was the cables: the pool is whole again.
        for member in lost {
            pool.world.heal(pool.path(*member));
        }
        let array = pool.open().unwrap();
        assert_eq!(not_online(&array), [0; 0], "{level}");
        model.check(&array, &format!("{level}"));
    }
}

#[test]
fn r4_a_member_that_is_needed_cannot_be_failed_by_hand() {
    let (_pool, array) = Pool::create(Level::Raid1, 2, 54);
    array.fail_member(index(0), "test").unwrap();
    let error = array.fail_member(index(1), "test").unwrap_err();
    assert_eq!(error.kind(), Kind::TooFewMembers);
    assert_eq!(array.status().state, ArrayState::Degraded, "nothing stops");
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    model.check(&array, "on the last member");
}

#[test]
fn r4_a_full_file_system_is_nobodys_failure() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 42);
    pool.world
        .inject(pool.path(1), Fault::NoSpace { blocks_left: 1 });
    let writes: Vec<_> = (0..STRIPES)
        .map(|n| stripe(&array, 0, n, n.into()))
        .collect();
    assert_eq!(
        array.write_stripes(&writes).unwrap_err().kind(),
        Kind::NoSpace
    );
    assert_eq!(array.status().state, ArrayState::Online);
    // Journal and superblocks are preallocated and go on.
    array.journal_write(0, &block(1)).unwrap();
    array.commit(b"full", false).unwrap();
    assert_eq!(array.status().state, ArrayState::Online);
    pool.world.heal(pool.path(1));
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    model.check(&array, "space again");
}

#[test]
fn r5_a_stalled_member_is_failed_and_its_late_write_does_no_harm() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 43);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    pool.world.inject(pool.path(2), Fault::Stall { asks: 5 });
    model.fill(&array, 1, 2).unwrap();
    array.sync().unwrap();
    assert_eq!(not_online(&array), [2]);
    assert!(pool.world.stalled_operations(pool.path(2)) > 0);
    model.fill(&array, 0, 3).unwrap();
    model.check(&array, "degraded");
    pool.world.heal(pool.path(2));
    pool.world.release_stalled(pool.path(2));
    model.check(&array, "after the late write");
    array.sync().unwrap();
    array.close();
    let array = pool.open().unwrap();
    assert_eq!(not_online(&array), [2]);
    model.check(&array, "reopened");
}

#[test]
fn r5_a_short_stall_is_waited_for() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 44);
    pool.world.inject(pool.path(2), Fault::Stall { asks: 1 });
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    assert_eq!(array.status().state, ArrayState::Online);
    pool.world.heal(pool.path(2));
    model.check(&array, "slow");
}

#[test]
fn r6_a_failure_while_superblocks_are_written_becomes_the_next_write() {
    for offset in [0, DEVICE_BYTES - 16384] {
        let (pool, array) = Pool::create(Level::Raid6, 5, 45);
        let (sequence, epoch) = (array.sequence(), array.membership_epoch());
        pool.world.inject(
            pool.path(1),
            Fault::WriteErrors {
                offset,
                length: 16384,
            },
        );
        array.commit(b"two", false).unwrap();
        assert_eq!(
            array.sequence(),
            sequence + 2,
            "the commit, then the failure"
        );
        assert_eq!(array.membership_epoch(), epoch + 1);
        assert_eq!(not_online(&array), [1]);
        array.close();
        let array = pool.open().unwrap();
        assert_eq!(array.engine_record(), b"two");
        assert_eq!(not_online(&array), [1]);
    }
}

#[test]
fn r6_two_failures_in_turn_while_superblocks_are_written() {
    let (pool, array) = Pool::create(Level::Raid6, 5, 46);
    pool.world.inject(
        pool.path(1),
        Fault::WriteErrors {
            offset: 0,
            length: 8192,
        },
    );
    pool.world.inject(
        pool.path(3),
        Fault::WriteErrors {
            offset: 8192,
            length: 8192,
        },
    );
    // One of the two places is written by this, the other by its follower.
    array.commit(b"two", false).unwrap();
    assert_eq!(not_online(&array), [1, 3]);
    array.commit(b"three", false).unwrap();
    array.close();
    assert_eq!(pool.open().unwrap().engine_record(), b"three");
}

#[test]
fn a_failed_sync_fails_the_member_and_is_never_repeated() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 47);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    pool.world.inject(pool.path(0), Fault::FailNextSync);
    let before = pool.world.counters(pool.path(0));
    array.sync().unwrap();
    let after = pool.world.counters(pool.path(0));
    assert_eq!(after.syncs - before.syncs, 1);
    assert_eq!(not_online(&array), [0]);
    array.sync().unwrap();
    assert_eq!(
        pool.world.counters(pool.path(0)),
        after,
        "it is left alone from now on"
    );
    pool.world.power_cut(3);
    pool.world.power_on();
    drop(array);
    model.check(&pool.open().unwrap(), "after a power cut");
}

#[test]
fn what_was_not_synced_may_go_and_what_was_stays() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 48);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    model.clone().fill(&array, 1, 2).unwrap();
    pool.world.power_cut(5);
    pool.world.power_on();
    drop(array);
    let array = pool.open().unwrap();
    model.check(&array, "synced");
}

#[test]
fn r16_the_journal_has_as_many_copies_as_may_be_lost_and_one() {
    for (level, width) in SHAPES {
        let (pool, array) = Pool::create(level, width, 49);
        let before: Vec<_> = (0..width)
            .map(|n| pool.world.counters(pool.path(n)))
            .collect();
        array.journal_write(8192, &block(7)).unwrap();
        let holders: Vec<_> = (0..width)
            .filter(|n| {
                let after = pool.world.counters(pool.path(*n));
                assert_eq!(
                    after.writes,
                    after.durable_writes - before[*n].durable_writes + before[*n].writes
                );
                after.writes > before[*n].writes
            })
            .collect();
        let copies = array.current_layout().guaranteed_failures() as usize + 1;
        assert_eq!(holders.len(), copies, "{level} of {width}");
        // Whichever losses the pool survives, a copy survives.
        for lost in survivable(&array) {
            assert!(
                holders.iter().any(|n| !lost.contains(n)),
                "{level} of {width}, {lost:?}"
            );
        }
        for member in array.journal_members() {
            let read = array
                .journal_read(member, 8192, AlignedBuf::zeroed(4096))
                .unwrap();
            let expected = holders.contains(&member.index());
            assert_eq!(
                read[..] == noise(7, 4096),
                expected,
                "{level} of {width}, {member}"
            );
        }
    }
}

#[test]
fn r16_a_lost_copy_is_made_up_for() {
    for (level, width) in [
        (Level::Raid5, 4),
        (Level::Raid6, 6),
        (Level::Raid10, 6),
        (Level::Raid1, 3),
    ] {
        let (pool, array) = Pool::create(level, width, 50);
        vanish(&pool, 0);
        array.journal_write(0, &block(7)).unwrap();
        assert_eq!(not_online(&array), [0]);
        let holders = array
            .journal_members()
            .into_iter()
            .filter(|member| {
                let read = array
                    .journal_read(*member, 0, AlignedBuf::zeroed(4096))
                    .unwrap();
                read[..] == noise(7, 4096)
            })
            .count();
        let copies = array.current_layout().guaranteed_failures() as usize + 1;
        assert!(holders >= copies.min(width - 1), "{level}: {holders}");
        pool.world.power_cut(1);
        pool.world.power_on();
        drop(array);
        let array = pool.open().unwrap();
        assert_eq!(not_online(&array), [0]);
        let found = array.journal_members().into_iter().any(|member| {
            let read = array
                .journal_read(member, 0, AlignedBuf::zeroed(4096))
                .unwrap();
            read[..] == noise(7, 4096)
        });
        assert!(found, "{level}");
    }
}

#[test]
fn journal_positions_beyond_the_ring_are_refused() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 51);
    let before = pool.writes();
    let small = Arc::new(AlignedBuf::zeroed(100));
    for (position, data) in [
        (JOURNAL, block(1)),
        (u64::MAX - 4095, block(1)),
        (100, block(1)),
        (0, small),
    ] {
        let error = array.journal_write(position, &data).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    assert!(
        array
            .journal_read(index(0), JOURNAL, AlignedBuf::zeroed(4096))
            .is_err()
    );
    assert!(
        array
            .journal_read(index(5), 0, AlignedBuf::zeroed(4096))
            .is_err()
    );
    assert_eq!(pool.writes(), before);
    array.journal_write(JOURNAL - 4096, &block(1)).unwrap();
}

#[test]
fn superblock_damage_is_reported_and_the_newest_is_mended() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 52);
    array.commit(b"end", true).unwrap();
    array.close();
    for (path, offset) in [
        ("disk0", 0),
        ("disk1", 8192),
        ("disk2", DEVICE_BYTES - 16384),
    ] {
        pool.world.inject(
            path,
            Fault::BitRot {
                offset: offset + 300,
                mask: 1,
            },
        );
    }
    let array = pool.open_with(&pool.paths, &read_only()).unwrap();
    let (checked, problems) = array.check_superblocks();
    assert_eq!((checked, problems.len()), (12, 3), "{problems:?}");
    assert!(
        problems[0].contains("Superblock A of disk0"),
        "{problems:?}"
    );
    array.close();
    let array = pool.open().unwrap();
    assert!(
        array.check_superblocks().1.len() < 3,
        "the newest are whole again"
    );
    array.commit(b"more", false).unwrap();
    array.commit(b"end", true).unwrap();
    assert_eq!(array.check_superblocks(), (12, Vec::new()));
}

#[test]
fn engine_records_that_do_not_fit_are_refused() {
    let (_pool, array) = Pool::create(Level::Single, 1, 53);
    let long = vec![1; tessera_raid::ENGINE_RECORD_BYTES + 1];
    let sequence = array.sequence();
    assert_eq!(
        array.commit(&long, false).unwrap_err().kind(),
        Kind::InvalidArgument
    );
    assert_eq!(array.sequence(), sequence);
    array.commit(&long[1..], false).unwrap();
    assert_eq!(array.engine_record(), long[1..]);
}

#[test]
fn r4_one_that_stalls_beside_one_that_is_gone_is_waited_for() {
    let (pool, array) = Pool::create(Level::Raid5, 4, 47);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    pool.world.inject(pool.path(1), Fault::Vanish);
    pool.world.inject(pool.path(2), Fault::Stall { asks: 5 });
    model.fill(&array, 1, 2).unwrap();
    array.sync().unwrap();
    assert_eq!(not_online(&array), [1], "the one that is gone, and only it");
    assert_eq!(array.status().stopped, None);
    pool.world.heal(pool.path(2));
    model.fill(&array, 0, 3).unwrap();
    model.check(&array, "degraded by one");
}
