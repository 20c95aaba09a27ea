//! The power is cut at every device operation of a short sequence, and what
//! is found afterwards is what the rules promise: R1, R2, R3.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use tessera_raid::{
    Kind, Level, MemberIndex, MemberState, describe_member,
    device::{AlignedBuf, sim::Fault},
};

/// The sequence and standing of every member that answers, from the devices.
fn sequences(pool: &Pool) -> Vec<u64> {
    let backend = pool.backend();
    pool.paths
        .iter()
        .filter_map(|path| describe_member(&backend, path).ok())
        .map(|member| member.sequence)
        .collect()
}

#[test]
fn r1_a_commit_is_atomic_wherever_the_power_fails() {
    for (level, width) in SHAPES {
        let (mut pool, array) = Pool::create(level, width, 20);
        let base = array.sequence();
        array.close();
        let act = |pool: &Pool| {
            let Ok(array) = pool.open() else {
                return (false, false);
            };
            let two = array.commit(b"two", false);
            let three = two.as_ref().is_ok().then(|| array.commit(b"three", true));
            (two.is_ok(), three.is_some_and(|three| three.is_ok()))
        };
        cut_everywhere(&mut pool, act, |pool, (two, three), when| {
            let context = format!("{level} of {width}, {when}");
            let sequences = sequences(pool);
            assert_eq!(sequences.len(), width, "{context}");
            let newest = *sequences.iter().max().unwrap();
            let oldest = *sequences.iter().min().unwrap();
            assert!(newest - oldest <= 1, "{context}: {sequences:?}");
            assert!(newest >= base, "{context}");
            let array = pool
                .open()
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            assert!(not_online(&array).is_empty(), "{context}: nobody failed");
            let record = array.engine_record();
            let allowed: &[&[u8]] = match (two, three) {
                (true, true) => &[b"three"],
                (true, false) => &[b"two", b"three"],
                _ => &[b"one", b"two"],
            };
            assert!(allowed.contains(&&record[..]), "{context}: {record:?}");
            assert_eq!(array.was_clean(), record == b"three", "{context}");
            // Opening has given it to everybody.
            array.close();
            let sequences = self::sequences(pool);
            assert!(
                sequences.iter().all(|s| *s == newest),
                "{context}: {sequences:?}"
            );
        });
    }
}

#[test]
fn r1_after_a_crash_any_survivable_loss_still_has_the_commit() {
    for (level, width) in [(Level::Raid1, 2), (Level::Raid5, 3), (Level::Raid6, 4)] {
        let (mut pool, array) = Pool::create(level, width, 21);
        array.close();
        let act = |pool: &Pool| {
            pool.open()
                .is_ok_and(|array| array.commit(b"two", false).is_ok())
        };
        cut_everywhere(&mut pool, act, |pool, acknowledged, when| {
            let mut pool = pool.clone();
            let crashed = pool.snapshot();
            for lost in 0..width {
                let context = format!("{level} of {width} without {lost}, {when}");
                pool.restore(&crashed);
                pool.world.inject(pool.path(lost), Fault::Vanish);
                let array = pool
                    .open()
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(not_online(&array), [lost], "{context}");
                let record = array.engine_record();
                assert!(
                    record == b"two" || !acknowledged && record == b"one",
                    "{context}"
                );
            }
        });
    }
}

#[test]
fn r1_opening_after_a_crash_can_itself_be_cut() {
    for (level, width) in [(Level::Single, 1), (Level::Raid0, 2), (Level::Raid5, 3)] {
        let (mut pool, array) = Pool::create(level, width, 25);
        array.close();
        let commit = |pool: &Pool| {
            let array = pool.open();
            array.is_ok_and(|array| array.commit(b"two", false).is_ok())
        };
        cut_everywhere(&mut pool, commit, |pool, acknowledged, when| {
            let mut pool = pool.clone();
            let open = |pool: &Pool| pool.open().map(|array| array.engine_record()).ok();
            cut_everywhere(&mut pool, open, |pool, seen, again| {
                let context = format!("{level} of {width}, {when}, then {again}");
                let array = pool
                    .open()
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                let record = array.engine_record();
                assert!(record == b"two" || !acknowledged, "{context}");
                assert!(
                    seen.is_none_or(|seen| seen == record),
                    "{context}: it was seen"
                );
                assert!(not_online(&array).is_empty(), "{context}");
            });
        });
    }
}

#[test]
fn r1_mending_a_copy_never_risks_the_other() {
    for (level, width) in [(Level::Single, 1), (Level::Raid1, 2)] {
        for damaged in [0, 1] {
            let (mut pool, array) = Pool::create(level, width, 26);
            array.commit(b"two", false).unwrap();
            let slot = array.sequence() % 2 * 8192;
            let offset = [slot, DEVICE_BYTES - 16384 + slot][damaged];
            array.close();
            for path in &pool.paths {
                pool.world.poke(path, offset + 500, b"rot");
            }
            let open = |pool: &Pool| pool.open().is_ok();
            cut_everywhere(&mut pool, open, |pool, _, when| {
                let context = format!("{level} of {width}, copy {damaged}, {when}");
                let array = pool
                    .open()
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                assert_eq!(array.engine_record(), b"two", "{context}");
            });
        }
    }
}

#[test]
fn r2_an_acknowledged_degraded_write_is_never_undone_by_the_member_it_skipped() {
    for (level, width) in [
        (Level::Raid1, 2),
        (Level::Raid5, 3),
        (Level::Raid6, 4),
        (Level::Raid10, 4),
    ] {
        let (mut pool, array) = Pool::create(level, width, 22);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        array.close();
        for path in ["write", "sync", "journal"] {
            let start = pool.snapshot();
            let act = |pool: &Pool| {
                let array = pool.open();
                let Some(array) = array.ok().filter(|a| a.commit(b"two", false).is_ok()) else {
                    return (false, Model::default());
                };
                match path {
                    "sync" => pool.world.inject(pool.path(1), Fault::FailNextSync),
                    "write" => {
                        let fault = Fault::WriteErrors {
                            offset: SLOTS_OFFSET,
                            length: u64::MAX / 2,
                        };
                        pool.world.inject(pool.path(1), fault);
                    }
                    _ => {
                        let fault = Fault::WriteErrors {
                            offset: 16384,
                            length: JOURNAL,
                        };
                        pool.world.inject(pool.path(1), fault);
                    }
                }
                let mut model = Model::default();
                let mut done = model.fill(&array, 1, 5).is_ok() && array.sync().is_ok();
                if path == "journal" {
                    let data = std::sync::Arc::new(tessera_raid::device::AlignedBuf::copy_of(
                        &noise(3, 8192),
                    ));
                    done = done && array.journal_write(4096, &data).is_ok();
                }
                (done, model)
            };
            cut_everywhere(&mut pool, act, |pool, (acknowledged, model), when| {
                let context = format!("{level} of {width}, {path}, {when}");
                // The member that was skipped answers again.
                pool.world.heal(pool.path(1));
                let array = pool
                    .open()
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                let failed = not_online(&array);
                if acknowledged {
                    assert_eq!(failed, [1], "{context}");
                    let witnessed = pool.witness.record().unwrap();
                    assert_eq!(witnessed.membership_epoch, array.membership_epoch());
                    model.check(&array, &context);
                    if path == "journal" {
                        let mut found = Vec::new();
                        for member in array.journal_members() {
                            let buffer = tessera_raid::device::AlignedBuf::zeroed(8192);
                            found.push(array.journal_read(member, 4096, buffer).unwrap());
                        }
                        assert!(
                            found.iter().any(|bytes| bytes[..] == noise(3, 8192)),
                            "{context}"
                        );
                    }
                } else {
                    assert!(failed.is_empty() || failed == [1], "{context}: {failed:?}");
                }
                // What was there before is there in any case.
                let mut old = Model::default();
                old.segments.insert(0, model_of_slot_0(&array));
                old.check(&array, &context);
            });
            pool.restore(&start);
        }
    }
}

fn model_of_slot_0(array: &tessera_raid::Array) -> Vec<u8> {
    (0..array.stripes_per_segment())
        .flat_map(|n| noise(1000 + u64::from(n), array.stripe_data_bytes() as usize))
        .collect()
}

#[test]
fn opening_without_a_member_can_be_cut_anywhere_and_repeated() {
    for (level, width) in [(Level::Raid1, 2), (Level::Raid5, 4), (Level::Raid6, 4)] {
        let (mut pool, array) = Pool::create(level, width, 23);
        let epoch = array.membership_epoch();
        array.close();
        let act = |pool: &Pool| {
            let paths: Vec<_> = pool.paths[1..].to_vec();
            pool.open_with(&paths, &options()).is_ok()
        };
        cut_everywhere(&mut pool, act, |pool, acknowledged, when| {
            let context = format!("{level} of {width}, {when}");
            // The member is there again.
            let array = pool
                .open()
                .unwrap_or_else(|error| panic!("{context}: {error}"));
            let failed = not_online(&array);
            let recorded = array.membership_epoch() > epoch;
            assert_eq!(failed.is_empty(), !recorded, "{context}");
            assert!(!acknowledged || failed == [0], "{context}: {failed:?}");
        });
    }
}

#[test]
fn a_creation_cut_short_is_no_pool_and_can_be_forced_again() {
    let mut pool = Pool::devices(Level::Raid5, 3, 24);
    let create = |pool: &Pool| {
        let witness = Box::new(pool.witness.clone());
        let spec = spec(pool.level, &pool.paths);
        tessera_raid::Array::create(pool.backend(), &spec, b"zero", witness).is_ok()
    };
    cut_everywhere(&mut pool, create, |pool, created, when| {
        assert_eq!(pool.witness.record().is_some(), created, "{when}");
        match pool.open() {
            Ok(array) => assert_eq!(array.engine_record(), b"zero", "{when}"),
            Err(error) => {
                assert!(!created, "{when}: {error}");
                assert_eq!(error.kind(), Kind::NotAMember, "{when}: {error}");
            }
        }
        let forced = tessera_raid::CreateSpec {
            force: true,
            ..spec(pool.level, &pool.paths)
        };
        let witness = Box::new(pool.witness.clone());
        let array =
            tessera_raid::Array::create(pool.backend(), &forced, b"again", witness).unwrap();
        assert_eq!(array.check_superblocks().1, [""; 0], "{when}");
        array.close();
        assert_eq!(pool.open().unwrap().engine_record(), b"again", "{when}");
    });
}

#[test]
fn a_creation_that_has_returned_survives_a_power_cut() {
    for seed in 0..8 {
        let pool = Pool::devices(Level::Raid5, 3, 25);
        let create = |record: &[u8]| {
            let forced = tessera_raid::CreateSpec {
                force: true,
                ..spec(pool.level, &pool.paths)
            };
            let witness = Box::new(pool.witness.clone());
            tessera_raid::Array::create(pool.backend(), &forced, record, witness).unwrap()
        };
        // What an earlier pool left must not show through again either.
        let earlier = create(b"earlier");
        for _ in 0..5 {
            earlier.commit(b"much later", false).unwrap();
        }
        let old = earlier.uuid();
        earlier.close();
        let new = create(b"new").uuid();
        assert_ne!(old, new);
        pool.world.power_cut(seed);
        pool.world.power_on();
        let array = pool.open().unwrap();
        assert_eq!(array.uuid(), new);
        assert_eq!(array.engine_record(), b"new", "seed {seed}");
        assert_eq!(array.check_superblocks().1, [""; 0], "seed {seed}");
        let ring = array.journal_read(MemberIndex(1), 0, AlignedBuf::zeroed(JOURNAL as usize));
        assert!(ring.unwrap().iter().all(|byte| *byte == 0), "seed {seed}");
    }
}

/// R1: a member that lacked the newest superblock has it durably before the
/// next one is written anywhere.
#[test]
fn r1_what_a_member_lacked_is_durable_once_it_is_open() {
    for seed in 0..8 {
        let (pool, array) = Pool::create(Level::Raid5, 3, 26);
        let image = pool.world.image(pool.path(1));
        array.commit(b"newest", false).unwrap();
        let sequence = array.sequence();
        array.close();
        pool.world.restore_image(pool.path(1), &image);
        let array = pool.open().unwrap();
        pool.world.power_cut(seed);
        pool.world.power_on();
        drop(array);
        let array = pool.open().unwrap();
        assert_eq!(array.sequence(), sequence, "nothing was written but copies");
        let writes = pool.world.counters(pool.path(1)).durable_writes;
        array.close();
        // It lacks nothing any more.
        let array = pool.open().unwrap();
        assert_eq!(pool.world.counters(pool.path(1)).durable_writes, writes);
        array.close();
        let reread = pool.open().unwrap();
        assert_eq!(reread.check_superblocks().1, [""; 0], "seed {seed}");
    }
}

#[test]
fn r24_the_same_seed_gives_the_same_operations() {
    let run = |seed: u64| {
        let (pool, array) = Pool::create(Level::Raid6, 5, seed);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        pool.world.inject(pool.path(2), Fault::Vanish);
        model.fill(&array, 1, 2).unwrap();
        array.sync().unwrap();
        model.check(&array, "deterministic");
        array.commit(b"end", true).unwrap();
        assert_eq!(state_of(&array, 2), MemberState::Failed);
        pool.world.trace_hash()
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6), "the hash sees the ids");
}
