//! Members that come and go: spares, replacement, rebuild, return.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use common::*;
use tessera_raid::{
    Array, ArrayState, Kind, Level, MemberState, MemberStatus, RaidError, Source,
    device::sim::Fault,
};

fn vanish(pool: &Pool, path: &Path) {
    pool.world.inject(path, Fault::Vanish);
}

/// Takes away every set of members that the level survives, one set after the
/// other, and reads everything.
fn check_every_loss(pool: &mut Pool, model: &Model, context: &str) {
    let before = pool.snapshot();
    let sets = survivable(&pool.open_known().unwrap());
    pool.restore(&before);
    for lost in sets {
        let array = pool.open_known().unwrap();
        let members = array.status().members;
        for member in &lost {
            vanish(pool, &members[*member].path);
        }
        model.check(&array, &format!("{context}, then losing {lost:?}"));
        array.close();
        pool.restore(&before);
    }
}

fn row(array: &Array, path: &Path) -> MemberStatus {
    let members = array.status().members;
    members
        .into_iter()
        .find(|member| member.path == path)
        .unwrap()
}

fn kind<T: std::fmt::Debug>(outcome: Result<T, RaidError>) -> Kind {
    let error = outcome.unwrap_err();
    assert!(!error.to_string().ends_with('.'));
    error.kind()
}

#[test]
fn a_healthy_member_can_be_replaced_at_every_level() {
    for (level, width) in SHAPES {
        for member in [0, width - 1] {
            let context = format!("{level} of {width}, member {member}");
            let (mut pool, array) = Pool::create(level, width, 100);
            let mut model = Model::default();
            model.fill(&array, 0, 1).unwrap();
            model.fill(&array, 3, 2).unwrap();
            let new = pool.add_device("new", DEVICE_BYTES);
            let attached = array.attach(index(member), &new_device(&new)).unwrap();
            assert_eq!(attached.since, None);
            assert_eq!(attached.target, index(width), "behind the members");
            assert_eq!(array.targets().len(), 1);
            let of = index(member);
            assert_eq!(row(&array, &new).state, MemberState::Replacing { of });
            assert_eq!(array.status().state, ArrayState::Online, "{context}");
            model.fill(&array, 5, 3).unwrap();
            rebuild(&array, attached.target, &[0, 3]).unwrap();
            let writes = pool.world.counters(pool.path(member)).writes;
            array
                .commit_promoting(b"new", false, attached.target)
                .unwrap();
            assert_eq!(array.engine_record(), b"new");
            assert!(array.targets().is_empty());
            // Whoever was replaced is out: not even a superblock goes there.
            model.fill(&array, 6, 4).unwrap();
            array.sync().unwrap();
            array.commit(b"later", false).unwrap();
            assert_eq!(pool.world.counters(pool.path(member)).writes, writes);
            model.check(&array, &context);
            assert_eq!(array.status().members[member].path, new);
            assert_eq!(array.status().members.len(), width);
            assert_eq!(array.status().state, ArrayState::Online, "{context}");
            array.close();
            check_every_loss(&mut pool, &model, &context);
            // It is left out also where it is given.
            let mut paths = pool.known_paths();
            paths.push(pool.path(member).to_owned());
            let array = pool.open_with(&paths, &options()).unwrap();
            assert!(not_online(&array).is_empty(), "{context}");
        }
    }
}

#[test]
fn a_failed_member_is_rebuilt_at_every_redundant_level() {
    for (level, width) in SHAPES {
        let (pool, array) = Pool::create(level, width, 101);
        if array.current_layout().guaranteed_failures() == 0 {
            continue;
        }
        drop(pool);
        for member in [0, width / 2] {
            let context = format!("{level} of {width}, member {member}");
            let (mut pool, array) = Pool::create(level, width, 101);
            let mut model = Model::default();
            model.fill(&array, 0, 1).unwrap();
            vanish(&pool, &pool.paths[member].clone());
            model.fill(&array, 1, 2).unwrap();
            assert_eq!(not_online(&array), [member]);
            let new = pool.add_device("new", DEVICE_BYTES);
            let attached = array.attach(index(member), &new_device(&new)).unwrap();
            let of = index(member);
            assert_eq!(row(&array, &new).state, MemberState::Rebuilding { of });
            assert_eq!(array.status().state, ArrayState::Degraded);
            model.fill(&array, 2, 3).unwrap();
            rebuild(&array, attached.target, &[0, 1]).unwrap();
            // Interrupted by a stop, and gone on with.
            array.commit(b"cursor", true).unwrap();
            array.close();
            let array = pool.open_known().unwrap();
            assert_eq!(array.targets()[0].uuid, attached.uuid, "{context}");
            array.commit(b"on", false).unwrap();
            array
                .commit_promoting(b"new", false, attached.target)
                .unwrap();
            assert_eq!(array.status().state, ArrayState::Online, "{context}");
            array.close();
            check_every_loss(&mut pool, &model, &context);
        }
    }
}

#[test]
fn two_members_of_raid6_are_rebuilt_at_once() {
    let (mut pool, array) = Pool::create(Level::Raid6, 5, 102);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    for member in [1, 3] {
        vanish(&pool, &pool.paths[member].clone());
    }
    model.fill(&array, 1, 2).unwrap();
    let targets = [1, 3].map(|member| {
        let new = pool.add_device(&format!("new{member}"), DEVICE_BYTES);
        array
            .attach(index(member), &new_device(&new))
            .unwrap()
            .target
    });
    assert_eq!(
        kind(array.attach(index(1), &new_device(Path::new("other")))),
        Kind::InvalidArgument,
        "one target a member"
    );
    for target in targets {
        rebuild(&array, target, &[0, 1]).unwrap();
        array.commit_promoting(b"new", false, target).unwrap();
    }
    array.close();
    check_every_loss(&mut pool, &model, "raid6");
}

#[test]
fn what_a_replaced_member_cannot_read_is_reconstructed() {
    for (level, width) in [(Level::Raid1, 2), (Level::Raid5, 3), (Level::Raid10, 4)] {
        let (mut pool, array) = Pool::create(level, width, 103);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let bad = Fault::ReadErrors {
            offset: SLOTS_OFFSET + u64::from(UNIT),
            length: u64::from(UNIT),
        };
        pool.world.inject(pool.path(1), bad);
        let new = pool.add_device("new", DEVICE_BYTES);
        let target = array.attach(index(1), &new_device(&new)).unwrap().target;
        let counts = array.rebuild_stripes(target, &at(0), 0..STRIPES).unwrap();
        assert_eq!(counts.written_bytes, SLOT_BYTES);
        assert_eq!(counts.read_errors, 2, "the run, and the block");
        assert_eq!(counts.lost_blocks, 0);
        array.sync().unwrap();
        array.commit_promoting(b"new", false, target).unwrap();
        array.close();
        check_every_loss(&mut pool, &model, level.name());
    }
    // Without redundancy the block is lost, and the rest is not.
    let (pool, array) = Pool::create(Level::Raid0, 2, 103);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    let bad = Fault::ReadErrors {
        offset: SLOTS_OFFSET + u64::from(UNIT),
        length: u64::from(UNIT),
    };
    pool.world.inject(pool.path(1), bad);
    let new = pool.add_device("new", DEVICE_BYTES);
    let target = array.attach(index(1), &new_device(&new)).unwrap().target;
    let counts = array.rebuild_stripes(target, &at(0), 0..STRIPES).unwrap();
    assert_eq!(counts.lost_blocks, 1);
    array.commit_promoting(b"new", false, target).unwrap();
    let range = 3 * UNIT..4 * UNIT;
    let expected = &model.segments[&0];
    for block in (0..array.segment_data_bytes()).step_by(UNIT as usize) {
        let read = read_one(&array, 0, block, UNIT).unwrap();
        let there = read == expected[block as usize..(block + UNIT) as usize];
        assert_eq!(there, !range.contains(&block), "block at {block}");
    }
}

#[test]
fn what_has_no_redundancy_cannot_be_rebuilt_and_says_so() {
    let (pool, array) = Pool::create(Level::Raid0, 2, 104);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    assert_eq!(
        kind(array.fail_member(index(0), "test")),
        Kind::TooFewMembers
    );
    let new = pool.add_device("new", DEVICE_BYTES);
    let target = array.attach(index(0), &new_device(&new)).unwrap().target;
    vanish(&pool, &pool.paths[0].clone());
    let error = array
        .rebuild_stripes(target, &at(0), 0..STRIPES)
        .unwrap_err();
    assert!(
        matches!(error.kind(), Kind::Unrecoverable | Kind::Stopped),
        "{error}"
    );
    assert!(array.status().stopped.is_some(), "R4: nothing is recorded");
}

#[test]
fn r2_a_target_that_fails_is_dropped_behind_the_barrier() {
    for (level, width) in [(Level::Raid0, 2), (Level::Raid1, 2), (Level::Raid6, 4)] {
        let (pool, array) = Pool::create(level, width, 105);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        let new = pool.add_device("new", DEVICE_BYTES);
        for act in 0..4 {
            let source = Source::NewDevice {
                path: new.clone(),
                force: true,
            };
            let target = array.attach(index(1), &source).unwrap().target;
            vanish(&pool, &new);
            let epoch = array.membership_epoch();
            match act {
                0 => model.fill(&array, 1, 2).unwrap(),
                1 => array.sync().unwrap(),
                2 => array.commit(b"two", false).unwrap(),
                _ => {
                    let outcome = array.rebuild_stripes(target, &at(0), 0..STRIPES);
                    assert_eq!(kind(outcome), Kind::TargetLost);
                }
            }
            assert_eq!(array.membership_epoch(), epoch + 1, "{level}, case {act}");
            assert!(array.targets().is_empty());
            assert_eq!(array.status().members.len(), width, "the row is vacant");
            assert_eq!(array.status().state, ArrayState::Online);
            assert!(array.status().last_failure.unwrap().contains("new"));
            let sequence = array.sequence();
            assert_eq!(
                kind(array.commit_promoting(b"no", false, target)),
                Kind::TargetLost
            );
            assert_eq!(kind(array.detach(target, "test")), Kind::TargetLost);
            assert_eq!(array.sequence(), sequence, "nothing was committed");
            assert_ne!(array.engine_record(), b"no");
            pool.world.heal(&new);
        }
        array.sync().unwrap();
        array.close();
        assert_eq!(
            pool.known_paths(),
            pool.paths,
            "the witness has forgotten it"
        );
        model.check(&pool.open().unwrap(), level.name());
    }
}

#[test]
fn a_target_that_lost_writes_or_is_gone_is_dropped_at_open() {
    for case in ["stale", "one behind", "absent"] {
        let (pool, array) = Pool::create(Level::Raid5, 3, 106);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let new = pool.add_device("new", DEVICE_BYTES);
        let target = array.attach(index(1), &new_device(&new)).unwrap();
        let old = pool.world.image(&new);
        array.commit(b"one", false).unwrap();
        if case == "stale" {
            array.commit(b"two", false).unwrap();
        }
        array.close();
        match case {
            "absent" => vanish(&pool, &new),
            _ => pool.world.restore_image(&new, &old),
        }
        let epoch = pool.witness.record().unwrap().membership_epoch;
        let array = pool.open_known().unwrap();
        assert!(not_online(&array).iter().all(|row| *row == 3), "{case}");
        let kept = case == "one behind";
        assert_eq!(array.targets().len(), usize::from(kept), "{case}");
        assert_eq!(array.membership_epoch(), epoch + u64::from(!kept), "{case}");
        if kept {
            assert_eq!(array.targets()[0].uuid, target.uuid);
        }
        model.check(&array, case);
        array.close();
        // What was dropped stays so, whoever comes back.
        pool.world.heal(&new);
        let mut paths = pool.paths.clone();
        paths.push(new);
        let array = pool.open_with(&paths, &options()).unwrap();
        assert_eq!(array.targets().len(), usize::from(kept), "{case}");
    }
}

#[test]
fn spares_are_added_taken_and_removed() {
    let (mut pool, array) = Pool::create(Level::Raid5, 3, 107);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    let (one, two) = (
        pool.add_device("one", DEVICE_BYTES),
        pool.add_device("two", DEVICE_BYTES),
    );
    let first = array.add_spare(&one, false).unwrap();
    let second = array.add_spare(&two, false).unwrap();
    assert_eq!(array.spares(), [first, second]);
    assert_eq!(row(&array, &one).state, MemberState::Spare);
    assert_eq!(kind(array.add_spare(&one, true)), Kind::Locked);
    assert_eq!(kind(array.remove_spare(index(0))), Kind::InvalidArgument);
    assert_eq!(
        kind(array.fail_member(first, "test")),
        Kind::InvalidArgument
    );
    array.remove_spare(first).unwrap();
    assert_eq!(array.spares(), [second]);
    assert_eq!(kind(array.remove_spare(first)), Kind::InvalidArgument);
    // Its row and its device are free again, the latter when told so.
    assert_eq!(kind(array.add_spare(&one, false)), Kind::AlreadyUsed);
    assert_eq!(array.add_spare(&one, true).unwrap(), first);
    // A spare that goes harms nobody, and is back when it is.
    vanish(&pool, &one);
    let epoch = array.membership_epoch();
    array.commit(b"two", false).unwrap();
    model.fill(&array, 1, 2).unwrap();
    array.sync().unwrap();
    assert_eq!(array.membership_epoch(), epoch);
    assert_eq!(array.spares(), [second]);
    assert_eq!(
        kind(array.attach(index(1), &Source::Spare(first))),
        Kind::InvalidArgument
    );
    for _ in 0..5 {
        array.commit(b"three", false).unwrap();
    }
    array.close();
    let array = pool.open_known().unwrap();
    assert_eq!(row(&array, &one).state, MemberState::Missing);
    array.close();
    pool.world.heal(&one);
    let array = pool.open_known().unwrap();
    assert_eq!(array.spares(), [first, second]);
    assert_eq!(array.check_superblocks().1, [""; 0]);
    array.commit(b"four", false).unwrap();
    vanish(&pool, &pool.paths[2].clone());
    model.fill(&array, 2, 3).unwrap();
    let target = array.attach(index(2), &Source::Spare(first)).unwrap();
    assert_eq!((target.target, target.since), (first, None));
    rebuild(&array, first, &[0, 1, 2]).unwrap();
    array.commit_promoting(b"new", false, first).unwrap();
    assert_eq!(array.spares(), [second]);
    array.close();
    check_every_loss(&mut pool, &model, "with a spare");
}

#[test]
fn a_member_that_was_briefly_away_needs_only_what_it_missed() {
    for (level, width) in [(Level::Raid1, 2), (Level::Raid5, 4), (Level::Raid6, 4)] {
        let context = format!("{level} of {width}");
        let (mut pool, array) = Pool::create(level, width, 108);
        let mut model = Model::default();
        let away = pool.paths[1].clone();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        array.commit(b"sealed", false).unwrap();
        let sealed_at = array.commits();
        model.fill(&array, 1, 2).unwrap();
        vanish(&pool, &away);
        array.sync().unwrap();
        array.commit(b"without", false).unwrap();
        model.fill(&array, 2, 3).unwrap();
        pool.world.heal(&away);
        let source = Source::Returning { path: away.clone() };
        let attached = array.attach(index(1), &source).unwrap();
        assert_eq!(attached.since, Some(sealed_at), "{context}");
        rebuild(&array, attached.target, &[1, 2]).unwrap();
        array
            .commit_promoting(b"back", false, attached.target)
            .unwrap();
        assert_eq!(array.status().members[1].path, away);
        assert_eq!(array.status().state, ArrayState::Online);
        array.close();
        check_every_loss(&mut pool, &model, &context);
    }
}

#[test]
fn r3_only_the_member_itself_can_return() {
    let (mut pool, array) = Pool::create(Level::Raid1, 2, 109);
    let away = pool.paths[1].clone();
    let back = Source::Returning { path: away.clone() };
    array.close();
    let before = pool.snapshot();
    // It went on alone.
    let array = pool.open_with(&pool.paths[1..], &options()).unwrap();
    array.commit(b"alone", false).unwrap();
    array.close();
    let alone = pool.world.image(&away);
    pool.restore(&before);
    let array = pool.open_unclean();
    let other = Source::Returning {
        path: pool.paths[0].clone(),
    };
    array.fail_member(index(1), "test").unwrap();
    assert_eq!(kind(array.attach(index(1), &other)), Kind::Locked);
    pool.world.restore_image(&away, &alone);
    let epoch = array.membership_epoch();
    assert_eq!(kind(array.attach(index(1), &back)), Kind::Diverged);
    let blank = pool.add_device("blank", DEVICE_BYTES);
    let blank = Source::Returning { path: blank };
    assert_eq!(kind(array.attach(index(1), &blank)), Kind::NotAMember);
    assert_eq!(kind(array.attach(index(7), &back)), Kind::InvalidArgument);
    assert_eq!(array.membership_epoch(), epoch, "nothing has changed");
    // But it can be overwritten, with force.
    let fresh = |force| Source::NewDevice {
        path: away.clone(),
        force,
    };
    assert_eq!(
        kind(array.attach(index(1), &fresh(false))),
        Kind::AlreadyUsed
    );
    let target = array.attach(index(1), &fresh(true)).unwrap();
    assert_eq!(target.since, None);
}

#[test]
fn r5_no_return_while_operations_are_unfinished() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 110);
    let away = pool.paths[1].clone();
    pool.world.inject(&away, Fault::Stall { asks: 5 });
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    assert_eq!(not_online(&array), [1]);
    pool.world.heal(&away);
    assert!(pool.world.stalled_operations(&away) > 0);
    let back = Source::Returning { path: away.clone() };
    assert_eq!(kind(array.attach(index(1), &back)), Kind::Locked);
    pool.world.release_stalled(&away);
    array.attach(index(1), &back).unwrap();
}

#[test]
fn a_larger_replacement_is_accepted_and_a_smaller_one_told_what_is_needed() {
    let (mut pool, array) = Pool::create(Level::Raid5, 3, 111);
    let mut model = Model::default();
    model.fill(&array, 7, 1).unwrap();
    let small = pool.add_device("small", DEVICE_BYTES - 4096);
    let error = array.attach(index(0), &new_device(&small)).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(
        error.to_string().contains(&DEVICE_BYTES.to_string()),
        "{error}"
    );
    let writes = pool.world.counters(&small).writes;
    assert_eq!(writes, 0);
    for member in 0..3 {
        let large = pool.add_device(&format!("large{member}"), 2 * DEVICE_BYTES);
        let target = array.attach(index(member), &new_device(&large)).unwrap();
        rebuild(&array, target.target, &[7]).unwrap();
        array
            .commit_promoting(b"new", false, target.target)
            .unwrap();
    }
    array.close();
    let array = pool.open_known().unwrap();
    assert_eq!(u64::from(array.slot_count()), SLOTS, "no more than before");
    assert_eq!(array.check_superblocks().1, [""; 0]);
    array.close();
    check_every_loss(&mut pool, &model, "with larger members");
}

#[test]
fn a_target_holds_the_journal_since_it_was_attached() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 112);
    vanish(&pool, &pool.paths[0].clone());
    array.sync().unwrap();
    let new = pool.add_device("new", DEVICE_BYTES);
    let target = array.attach(index(0), &new_device(&new)).unwrap().target;
    let block = |seed| {
        std::sync::Arc::new(tessera_raid::device::AlignedBuf::copy_of(&noise(
            seed, 4096,
        )))
    };
    array.journal_write(8192, &block(1)).unwrap();
    array.commit_promoting(b"new", false, target).unwrap();
    array.journal_write(4096, &block(2)).unwrap();
    array.close();
    vanish(&pool, &pool.paths[1].clone());
    let array = pool.open_known().unwrap();
    for (position, seed) in [(8192, 1), (4096, 2)] {
        let buffer = tessera_raid::device::AlignedBuf::zeroed(4096);
        let read = array.journal_read(index(0), position, buffer).unwrap();
        assert_eq!(read[..], noise(seed, 4096));
    }
}

#[test]
fn the_same_device_is_not_taken_twice() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 113);
    let member = pool.paths[0].clone();
    assert_eq!(
        kind(array.attach(index(1), &new_device(&member))),
        Kind::Locked
    );
    let absent = Path::new("nowhere");
    assert_eq!(kind(array.add_spare(absent, false)), Kind::Io);
    assert_eq!(array.status().members.len(), 2);
}

#[test]
fn members_change_while_others_write_and_read() {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    let (pool, array) = Pool::create(Level::Raid5, 3, 114);
    let mut old = Model::default();
    old.fill(&array, 3, 1).unwrap();
    old.fill(&array, 4, 2).unwrap();
    let done = AtomicBool::new(false);
    let rounds = [const { AtomicU64::new(0) }; 3];
    let mut models: Vec<Model> = Vec::new();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3u32)
            .map(|n| {
                let (array, done, rounds) = (&array, &done, &rounds);
                let (old, mut model) = (old.clone(), Model::default());
                scope.spawn(move || {
                    for round in 0.. {
                        model
                            .fill(array, n, u64::from(n) * 100 + round % 50)
                            .unwrap();
                        array.sync().unwrap();
                        model.check(array, "under change");
                        old.check(array, "what was there before");
                        rounds[n as usize].fetch_add(1, Ordering::AcqRel);
                        if done.load(Ordering::Acquire) {
                            break;
                        }
                    }
                    model
                })
            })
            .collect();
        let total = || rounds.iter().map(|round| round.load(Ordering::Acquire));
        for n in 0..9 {
            let new = pool.add_device(&format!("new{n}"), DEVICE_BYTES);
            let member = index(n % 3);
            if n % 2 == 0 {
                array.fail_member(member, "test").unwrap();
            }
            let target = array.attach(member, &new_device(&new)).unwrap().target;
            // What is written over and over is on the target after a whole
            // round; what is not is copied.
            let before: Vec<u64> = total().collect();
            rebuild(&array, target, &[3, 4]).unwrap();
            while total().zip(&before).any(|(now, before)| now < before + 2) {
                std::thread::yield_now();
            }
            if n % 4 == 3 {
                array.detach(target, "test").unwrap();
            } else {
                array.commit_promoting(b"on", false, target).unwrap();
            }
        }
        done.store(true, Ordering::Release);
        models = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect();
    });
    for model in models.iter().chain([&old]) {
        model.check(&array, "in the end");
    }
}
