//! Copies one by one, redundancy checked and mended, superblocks scrubbed, and
//! members that go wrong too often or too long.

#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::*;
use tessera_raid::{
    Array, Kind, Level, Limits, ManualClock, MemberState, OpenOptions, StripeState,
    device::sim::Fault,
};

const REDUNDANT: [(Level, usize); 5] = [
    (Level::Raid1, 3),
    (Level::Raid5, 3),
    (Level::Raid5, 5),
    (Level::Raid6, 5),
    (Level::Raid10, 4),
];

/// Where byte `offset` of a member's unit lies on its device.
fn on_device(slot: u32, stripe: u32, offset: u64) -> u64 {
    SLOTS_OFFSET + u64::from(slot) * SLOT_BYTES + u64::from(stripe * UNIT) + offset
}

fn rot(pool: &Pool, member: usize, slot: u32, stripe: u32) {
    let fault = Fault::BitRot {
        offset: on_device(slot, stripe, 77),
        mask: 0x10,
    };
    pool.world.inject(pool.path(member), fault);
}

fn filled(level: Level, width: usize, seed: u64) -> (Pool, Array, Model) {
    let (pool, array) = Pool::create(level, width, seed);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    model.fill(&array, 1, 2).unwrap();
    array.sync().unwrap();
    (pool, array, model)
}

#[test]
fn every_direct_copy_is_read_by_itself() {
    for (level, width) in SHAPES {
        let context = format!("{level} of {width}");
        let (pool, array, model) = filled(level, width, 130);
        let length = array.segment_data_bytes();
        let copies = array.read_copies(&at(0), 0, length).unwrap();
        let expected = match level {
            Level::Raid1 => width,
            Level::Raid10 => 2,
            _ => 1,
        };
        assert_eq!(copies.len(), expected, "{context}");
        for copy in &copies {
            assert!(copy.bytes[..] == model.segments[&0], "{context}");
            let mut next = 0;
            for part in &copy.parts {
                assert_eq!(part.range.start, next);
                next = part.range.end;
            }
            assert_eq!(next, length, "{context}");
        }
        // Rot is in one copy only, and in the part of the one who has it.
        rot(&pool, 0, 0, 2);
        let copies = array.read_copies(&at(0), 0, length).unwrap();
        let wrong: Vec<_> = copies
            .iter()
            .flat_map(|copy| copy.parts.iter().map(move |part| (copy, part)))
            .filter(|(copy, part)| {
                let range = part.range.start as usize..part.range.end as usize;
                copy.bytes[range.clone()] != model.segments[&0][range]
            })
            .map(|(_, part)| part.member)
            .collect();
        let is_data = !matches!(level, Level::Raid5 | Level::Raid6) || !wrong.is_empty();
        assert!(!is_data || wrong == [index(0)], "{context}: {wrong:?}");
        if array.current_layout().guaranteed_failures() > 0 {
            array.fail_member(index(0), "test").unwrap();
            let copies = array.read_copies(&at(1), 0, length).unwrap();
            for part in copies.iter().flat_map(|copy| &copy.parts) {
                let missing = part
                    .outcome
                    .as_ref()
                    .is_err_and(|e| e.kind() == Kind::NotInUse);
                assert_eq!(missing, part.member == index(0), "{context}");
            }
        }
    }
}

#[test]
fn redundancy_that_rots_is_found_and_mended() {
    for (level, width) in REDUNDANT {
        let (pool, array, model) = filled(level, width, 131);
        let stripes = array.stripes_per_segment();
        let clean = |array: &Array| {
            let checks = array.check_stripes(&at(0), 0..stripes).unwrap();
            checks
                .iter()
                .all(|check| check.state == StripeState::Consistent)
        };
        assert!(clean(&array), "{level}");
        for member in 0..width {
            for stripe in 0..stripes {
                let context = format!("{level} of {width}, member {member}, stripe {stripe}");
                rot(&pool, member, 0, stripe);
                let checks = array.check_stripes(&at(0), 0..stripes).unwrap();
                for check in checks {
                    let rotten = check.stripe == stripe;
                    let mismatch = matches!(check.state, StripeState::Mismatch(_));
                    assert_eq!(mismatch, rotten, "{context}: {check:?}");
                }
                // The caller's part: data is verified and put right first.
                let data = &model.segments[&0];
                let bytes = array.stripe_data_bytes() as usize;
                let own = &data[stripe as usize * bytes..(stripe as usize + 1) * bytes];
                let repaired = |array: &Array| -> u64 { array.status().members[member].repaired };
                let before = repaired(&array);
                array
                    .rewrite_verified(&at(0), stripe * bytes as u32, own)
                    .unwrap();
                let mended = array.mend_redundancy(&at(0), stripe, &|_| true).unwrap();
                assert!(mended.len() <= 1, "{context}: {mended:?}");
                assert_eq!(repaired(&array), before + 1, "{context}");
                assert!(clean(&array), "{context}");
                assert!(
                    array
                        .mend_redundancy(&at(0), stripe, &|_| true)
                        .unwrap()
                        .is_empty()
                );
            }
        }
        model.check(&array, level.name());
    }
}

#[test]
fn mending_never_makes_parity_of_what_cannot_be_read() {
    let (pool, array, model) = filled(Level::Raid5, 4, 132);
    let layout = array.current_layout().clone();
    for stripe in 0..2 {
        let parity = layout.member(layout.p_column(stripe).unwrap());
        for member in 0..4 {
            let bad = Fault::ReadErrors {
                offset: on_device(0, stripe, 0),
                length: u64::from(UNIT),
            };
            pool.world.inject(pool.path(member), bad);
            let check = array.check_stripes(&at(0), stripe..stripe + 1).unwrap();
            let unreadable = StripeState::Unreadable(vec![index(member)]);
            assert_eq!(check[0].state, unreadable);
            let outcome = array.mend_redundancy(&at(0), stripe, &|_| true);
            if index(member) == parity {
                assert_eq!(outcome.unwrap(), [parity], "written anew");
            } else {
                assert_eq!(outcome.unwrap_err().kind(), Kind::Unrecoverable);
                pool.world.heal(pool.path(member));
            }
            let check = array.check_stripes(&at(0), stripe..stripe + 1).unwrap();
            assert_eq!(check[0].state, StripeState::Consistent);
        }
    }
    model.check(&array, "raid5");
}

/// The repair of rotten data may be lost by the device that rotted it: parity
/// made of what it then holds would seal the damage.
#[test]
fn r7_redundancy_is_made_only_of_data_that_somebody_approves() {
    for (level, width) in REDUNDANT {
        let (pool, array, model) = filled(level, width, 134);
        let bytes = array.stripe_data_bytes() as usize;
        for member in 0..width {
            for stripe in 0..array.stripes_per_segment() {
                let context = format!("{level} of {width}, member {member}, stripe {stripe}");
                rot(&pool, member, 0, stripe);
                let data = &model.segments[&0];
                let own = &data[stripe as usize * bytes..(stripe as usize + 1) * bytes];
                pool.world.inject(pool.path(member), Fault::LoseNextWrite);
                let repair = array.rewrite_verified(&at(0), stripe * bytes as u32, own);
                repair.unwrap();
                match array.mend_redundancy(&at(0), stripe, &|data| data == own) {
                    Ok(mended) => assert!(
                        mended.is_empty() || mended == [index(member)],
                        "{context}: {mended:?}"
                    ),
                    Err(error) => assert_eq!(error.kind(), Kind::Unrecoverable, "{context}"),
                }
                pool.world.heal(pool.path(member));
                let mut right = false;
                array
                    .read_alternatives(&at(0), stripe * bytes as u32, bytes as u32, &mut |data| {
                        right |= data == own;
                        right
                    })
                    .unwrap();
                assert!(right, "{context}: it can still be read");
                array
                    .rewrite_verified(&at(0), stripe * bytes as u32, own)
                    .unwrap();
                array
                    .mend_redundancy(&at(0), stripe, &|data| data == own)
                    .unwrap();
            }
        }
        model.check(&array, level.name());
    }
}

#[test]
fn degraded_stripes_are_checked_as_far_as_can_be() {
    let (pool, array, model) = filled(Level::Raid6, 4, 133);
    array.fail_member(index(1), "test").unwrap();
    let stripes = array.stripes_per_segment();
    let checks = array.check_stripes(&at(0), 0..stripes).unwrap();
    assert!(
        checks
            .iter()
            .all(|check| check.state == StripeState::Consistent)
    );
    let layout = array.current_layout().clone();
    for stripe in 0..stripes {
        let q = layout.member(layout.q_column(stripe).unwrap());
        if q == index(1) {
            continue;
        }
        rot(&pool, q.index(), 0, stripe);
        let check = array.check_stripes(&at(0), stripe..stripe + 1).unwrap();
        assert_eq!(check[0].state, StripeState::Mismatch(vec![q]));
        let bytes = array.stripe_data_bytes() as usize;
        let own = &model.segments[&0][stripe as usize * bytes..(stripe as usize + 1) * bytes];
        let mended = array.mend_redundancy(&at(0), stripe, &|data| data == own);
        assert_eq!(mended.unwrap(), [q]);
        let check = array.check_stripes(&at(0), stripe..stripe + 1).unwrap();
        assert_eq!(check[0].state, StripeState::Consistent);
    }
    model.check(&array, "one is missing");
    array.fail_member(index(2), "test").unwrap();
    let checks = array.check_stripes(&at(0), 0..stripes).unwrap();
    assert!(
        checks
            .iter()
            .all(|check| check.state == StripeState::Unchecked)
    );
    model.check(&array, "two are missing");
    // Nothing to compare, and nobody to blame.
    let (_pool, array, _model) = filled(Level::Raid0, 2, 133);
    let checks = array.check_stripes(&at(0), 0..1).unwrap();
    assert_eq!(checks[0].state, StripeState::Unchecked);
}

#[test]
fn superblock_copies_are_made_whole_while_the_array_is_in_use() {
    let (mut pool, array) = Pool::create(Level::Raid5, 3, 134);
    let spare = pool.add_device("spare", DEVICE_BYTES);
    array.add_spare(&spare, false).unwrap();
    array.commit(b"two", false).unwrap();
    for scrub in array.scrub_superblocks().unwrap() {
        assert_eq!(
            (scrub.checked, scrub.wrong.len(), scrub.rewritten),
            (4, 0, 0)
        );
    }
    let places = [0, 8192, DEVICE_BYTES - 16384, DEVICE_BYTES - 8192];
    let mut paths = pool.paths.clone();
    paths.push(spare);
    let before = pool.snapshot();
    array.close();
    // Every set of places, on each member.
    for path in &paths {
        for damaged in 1..16u32 {
            pool.restore(&before);
            let array = pool.open_known().unwrap();
            let wrong: Vec<u64> = (0..4)
                .filter(|n| damaged >> n & 1 == 1)
                .map(|n| places[n])
                .collect();
            for offset in &wrong {
                pool.world.poke(path, *offset, &noise(9, 8192));
            }
            let scrubs = array.scrub_superblocks().unwrap();
            for (scrub, other) in scrubs.iter().zip(&paths) {
                let expected = if other == path { wrong.len() } else { 0 };
                assert_eq!(scrub.wrong.len(), expected, "{scrub:?}");
                assert_eq!(scrub.rewritten, expected as u64, "{scrub:?}");
            }
            let again = array.scrub_superblocks().unwrap();
            assert!(
                again.iter().all(|scrub| scrub.wrong.is_empty()),
                "{again:?}"
            );
            assert_eq!(array.check_superblocks().1, [""; 0]);
            array.commit(b"three", false).unwrap();
        }
    }
    // An old copy that is whole in itself is wrong too: a write was lost.
    pool.restore(&before);
    let array = pool.open_known().unwrap();
    pool.world.inject(&paths[1], Fault::LoseNextWrite);
    array.commit(b"lost", false).unwrap();
    let scrubs = array.scrub_superblocks().unwrap();
    assert_eq!(scrubs[1].wrong.len(), 1, "{scrubs:?}");
    assert_eq!(scrubs[1].rewritten, 1);
}

#[test]
fn too_many_read_errors_within_an_hour_fail_a_member_that_can_be_spared() {
    let clock = ManualClock::default();
    let (pool, array, model) = filled(Level::Raid5, 3, 135);
    array.close();
    let options = OpenOptions {
        read_errors_per_hour: 3,
        clock: Arc::new(clock.clone()),
        ..options()
    };
    let array = pool.open_with(&pool.paths, &options).unwrap();
    array.commit(b"on", false).unwrap();
    let bad = |member: usize| {
        let fault = Fault::ReadErrors {
            offset: SLOTS_OFFSET,
            length: SLOT_BYTES,
        };
        pool.world.inject(pool.path(member), fault);
    };
    bad(0);
    let errors = || {
        let before = array.status().members[0].read_errors;
        model.check(&array, "with read errors");
        array.status().members[0].read_errors - before
    };
    // Each error is noted for whoever can put it right.
    assert_eq!(array.limits().read_errors_per_hour, 3);
    array.set_limits(Limits {
        read_errors_per_hour: 1000,
        ..array.limits()
    });
    assert!(errors() > 3);
    assert_eq!(state_of(&array, 0), MemberState::Online);
    let noted = array.take_unreadable();
    assert!(!noted.is_empty());
    assert!(
        noted
            .iter()
            .all(|noted| noted.member == index(0) && noted.placement == at(0))
    );
    assert!(array.take_unreadable().is_empty());
    for noted in &noted {
        let start = noted.offset as usize;
        let bytes = &model.segments[&0][start..start + noted.length as usize];
        array
            .rewrite_verified(&noted.placement, noted.offset, bytes)
            .unwrap();
    }
    clock.advance(Duration::from_secs(3601));
    array.set_limits(Limits {
        read_errors_per_hour: 3,
        ..array.limits()
    });
    assert_eq!(errors(), 0, "they can be read again");
    bad(0);
    assert!(errors() > 0);
    assert_eq!(state_of(&array, 0), MemberState::Failed);
    let status = array.status();
    assert!(status.members[0].reason.as_ref().unwrap().contains("reads"));
    assert!(status.last_failure.unwrap().contains("disk0"));
    assert_eq!(status.members[0].write_errors, 0);
    // R4: the next one cannot be done without.
    bad(1);
    let reads = || read_one(&array, 0, 0, UNIT);
    for _ in 0..10 {
        let _unreadable = reads();
    }
    assert!(array.status().members[1].read_errors > 3);
    assert_eq!(state_of(&array, 1), MemberState::Online);
    assert!(array.status().stopped.is_none());
}

#[test]
fn one_that_does_not_answer_refuses_opening_and_creating() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 136);
    let epoch = array.membership_epoch();
    array.close();
    pool.world.inject(pool.path(1), Fault::Stall { asks: 3 });
    let hasty = OpenOptions {
        answer_patience: Duration::ZERO,
        ..options()
    };
    let error = pool.open_with(&pool.paths, &hasty).unwrap_err();
    assert_eq!(error.kind(), Kind::Stalled);
    assert!(
        error.to_string().contains("disk1 does not answer"),
        "{error}"
    );
    pool.world.kill_process();
    // With more patience it is waited for, and nobody has been failed.
    let array = pool.open().unwrap();
    assert_eq!(array.membership_epoch(), epoch);
    array.close();
    let pool = Pool::devices(Level::Raid5, 3, 137);
    pool.world.inject(pool.path(2), Fault::Stall { asks: 3 });
    let witness = Box::new(pool.witness.clone());
    let spec = spec(Level::Raid5, &pool.paths);
    let error = Array::create(pool.backend(), &spec, b"", witness).unwrap_err();
    assert_eq!(error.kind(), Kind::Stalled);
    assert!(pool.witness.record().is_none());
}
