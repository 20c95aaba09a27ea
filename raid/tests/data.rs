//! What is written is read back: at every level, with every set of members
//! missing that the level survives, with errors and with rot.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use tessera_raid::{
    ArrayState, Kind, Level, MemberIndex, MemberState, Placement, SlotIndex, device::sim::Fault,
};

/// Where byte `offset` of a unit lies on a device.
fn on_device(slot: u64, stripe: u64, offset: u64) -> u64 {
    SLOTS_OFFSET + slot * SLOT_BYTES + stripe * u64::from(UNIT) + offset
}

#[test]
fn every_level_gives_back_what_was_written() {
    for (level, width) in SHAPES {
        let (pool, array) = Pool::create(level, width, 1);
        let mut model = Model::default();
        for slot in [0, 3, 7] {
            model.fill(&array, slot, 10 + u64::from(slot)).unwrap();
        }
        model.check(&array, &format!("{level} of {width}"));
        array.sync().unwrap();
        array.commit(b"two", true).unwrap();
        assert_eq!(array.status().state, ArrayState::Online);
        assert_eq!(u64::from(array.slot_count()), SLOTS);
        array.close();
        let array = pool.open().unwrap();
        assert!(array.was_clean());
        assert_eq!(array.engine_record(), b"two");
        model.check(&array, &format!("{level} of {width}, reopened"));
    }
}

#[test]
fn every_survivable_loss_at_open_is_survived() {
    for (level, width) in SHAPES {
        let (mut pool, array) = Pool::create(level, width, 2);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        model.fill(&array, 5, 2).unwrap();
        array.sync().unwrap();
        let sets = survivable(&array);
        array.close();
        let before = pool.snapshot();
        for lost in sets {
            let context = format!("{level} of {width} without {lost:?}");
            pool.restore(&before);
            for member in &lost {
                pool.world.inject(pool.path(*member), Fault::Vanish);
            }
            let array = pool.open_unclean();
            assert_eq!(not_online(&array), lost, "{context}");
            model.check(&array, &context);
            // Written while degraded, read while degraded and after reopening.
            let mut more = model.clone();
            more.fill(&array, 0, 3).unwrap();
            more.fill(&array, 2, 4).unwrap();
            array.sync().unwrap();
            more.check(&array, &context);
            array.close();
            let array = pool.open().unwrap();
            more.check(&array, &format!("{context}, reopened"));
        }
    }
}

#[test]
fn every_survivable_loss_in_use_is_survived() {
    for (level, width) in SHAPES {
        let (mut pool, array) = Pool::create(level, width, 3);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let sets = survivable(&array);
        array.close();
        let before = pool.snapshot();
        for lost in sets {
            let context = format!("{level} of {width} losing {lost:?}");
            pool.restore(&before);
            let array = pool.open_unclean();
            for member in &lost {
                pool.world.inject(pool.path(*member), Fault::Vanish);
            }
            let mut model = model.clone();
            // The loss is met by a read, a write, a sync or the journal.
            match lost.len() % 3 {
                0 => model.check(&array, &context),
                1 => model.fill(&array, 1, 9).unwrap(),
                _ => array.sync().unwrap(),
            }
            model.fill(&array, 2, 10).unwrap();
            array.sync().unwrap();
            model.check(&array, &context);
            assert_eq!(not_online(&array), lost, "{context}");
            let state = if lost.is_empty() {
                ArrayState::Online
            } else {
                ArrayState::Degraded
            };
            assert_eq!(array.status().state, state);
            array.close();
            // The member is back, but has lost writes: it stays out.
            for member in &lost {
                pool.world.heal(pool.path(*member));
            }
            let array = pool.open().unwrap();
            assert_eq!(not_online(&array), lost, "{context}, reopened");
            model.check(&array, &format!("{context}, reopened"));
        }
    }
}

#[test]
fn a_read_error_is_reconstructed_and_counted_and_fails_nobody() {
    for (level, width) in SHAPES {
        let (pool, array) = Pool::create(level, width, 4);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        let fault = Fault::ReadErrors {
            offset: SLOTS_OFFSET,
            length: SLOT_BYTES,
        };
        pool.world.inject(pool.path(0), fault);
        if matches!(level, Level::Single | Level::Raid0) {
            let error = read_one(&array, 0, 0, 4096).unwrap_err();
            assert_eq!(error.kind(), Kind::Unrecoverable);
        } else {
            model.check(&array, &format!("{level} of {width}"));
        }
        let status = array.status();
        assert_eq!(status.state, ArrayState::Online);
        assert!(status.members[0].errors() > 0);
        assert!(
            status.members[1..]
                .iter()
                .all(|member| member.errors() == 0)
        );
    }
}

#[test]
fn read_errors_of_several_members_are_survived_where_they_do_not_meet() {
    let (pool, array) = {
        // Units of four blocks, so that errors can lie beside each other.
        let pool = Pool::devices(Level::Raid5, 3, 5);
        let mut spec = spec(Level::Raid5, &pool.paths);
        spec.stripe_unit_bytes = 4 * UNIT;
        spec.sizes.segment_data_bytes_target = 4 * 2 * 4 * UNIT;
        let witness = Box::new(pool.witness.clone());
        let array = tessera_raid::Array::create(pool.backend(), &spec, b"", witness).unwrap();
        array.commit(b"", false).unwrap();
        (pool, array)
    };
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    for (member, block) in [(0, 0), (1, 1), (2, 3)] {
        let offset = SLOTS_OFFSET + block * 4096;
        pool.world.inject(
            pool.path(member),
            Fault::ReadErrors {
                offset,
                length: 4096,
            },
        );
    }
    model.check(&array, "three members, three blocks");
    // A fourth error meets another: that block is lost, and only that.
    pool.world.inject(
        pool.path(1),
        Fault::ReadErrors {
            offset: SLOTS_OFFSET,
            length: 4096,
        },
    );
    let lost: Vec<_> = (0..4)
        .filter(|n| read_one(&array, 0, n * 4096, 4096).is_err())
        .collect();
    assert_eq!(lost, [0]);
    assert_eq!(array.status().state, ArrayState::Online);
}

#[test]
fn segments_are_read_and_written_with_few_operations() {
    let (pool, array) = Pool::create(Level::Raid5, 4, 6);
    let counters = |n: usize| pool.world.counters(pool.path(n));
    let before: Vec<_> = (0..4).map(counters).collect();
    let writes: Vec<_> = (0..STRIPES)
        .map(|n| stripe(&array, 1, n, n.into()))
        .collect();
    array.write_stripes(&writes).unwrap();
    for (n, before) in before.iter().enumerate() {
        assert_eq!(
            counters(n).writes - before.writes,
            1,
            "adjacent stripes are one write"
        );
        assert_eq!(counters(n).written_bytes - before.written_bytes, SLOT_BYTES);
    }
    let reads = || (0..4).map(|n| counters(n).reads).sum::<u64>();
    let before = reads();
    read_one(&array, 1, 8192, 4096).unwrap();
    assert_eq!(reads() - before, 1, "a healthy block is one read");
    let before = reads();
    read_one(&array, 1, 0, array.segment_data_bytes()).unwrap();
    assert!(
        reads() - before <= 9,
        "adjacent units are read at once: {}",
        reads() - before
    );
    let syncs = |n: usize| counters(n).syncs;
    let before = syncs(2);
    array.sync().unwrap();
    assert_eq!(syncs(2) - before, 1);
}

#[test]
fn one_batch_may_have_good_and_bad_reads() {
    let (pool, array) = Pool::create(Level::Raid0, 2, 7);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    pool.world.inject(
        pool.path(1),
        Fault::ReadErrors {
            offset: SLOTS_OFFSET,
            length: 4096,
        },
    );
    let mut reads = [
        read_of(0, 0, 4096),
        read_of(0, 4096, 4096),
        read_of(0, 0, 100),
        read_of(99, 0, 4096),
        read_of(0, array.segment_data_bytes(), 4096),
        read_of(0, 8192, 8192),
        read_of(0, 0, 0),
    ];
    array.read(&mut reads);
    let outcomes: Vec<_> = reads
        .iter()
        .map(|read| read.outcome.as_ref().map_err(|error| error.kind()).err())
        .collect();
    let invalid = Some(Kind::InvalidArgument);
    let lost = Some(Kind::Unrecoverable);
    assert_eq!(
        outcomes,
        [None, lost, invalid, invalid, invalid, None, None]
    );
    assert_eq!(reads[5].buffer[..], model.segments[&0][8192..16384]);
}

#[test]
fn rot_is_arbitrated_wherever_redundancy_allows() {
    for (level, width) in SHAPES {
        let (pool, array) = Pool::create(level, width, 8);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        let right = &model.segments[&0];
        // Everything one member holds rots.
        for offset in (SLOTS_OFFSET..SLOTS_OFFSET + SLOT_BYTES).step_by(4096) {
            pool.world.inject(
                pool.path(0),
                Fault::BitRot {
                    offset: offset + 7,
                    mask: 4,
                },
            );
        }
        for block in 0..array.segment_data_bytes() / 4096 {
            let offset = block * 4096;
            let wanted = &right[offset as usize..offset as usize + 4096];
            let alternative = array
                .read_alternatives(&at(0), offset, 4096, &mut |bytes| bytes == wanted)
                .unwrap();
            let plain = read_one(&array, 0, offset, 4096).unwrap() == wanted;
            match alternative {
                Some(found) => {
                    assert_eq!(&found.bytes[..], wanted);
                    if !plain {
                        assert_eq!(found.differing, [index(0)]);
                    }
                }
                None => assert!(matches!(level, Level::Single | Level::Raid0) && !plain),
            }
        }
    }
}

#[test]
fn raid6_arbitrates_two_rotten_members_and_more_is_no_lie() {
    let (pool, array) = Pool::create(Level::Raid6, 6, 9);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    let rot = |member: usize| {
        for stripe in 0..u64::from(STRIPES) {
            let offset = on_device(0, stripe, 99);
            pool.world
                .inject(pool.path(member), Fault::BitRot { offset, mask: 0x81 });
        }
    };
    let accepted = || {
        let right = &model.segments[&0];
        let length = array.segment_data_bytes();
        let blocks = (0..length / 4096).map(|block| block as usize * 4096);
        blocks
            .filter(|offset| {
                let wanted = &right[*offset..*offset + 4096];
                let mut tried = 0;
                let found = array.read_alternatives(
                    &at(0),
                    u32::try_from(*offset).unwrap(),
                    4096,
                    &mut |bytes| {
                        tried += 1;
                        bytes == wanted
                    },
                );
                assert!(tried > 0);
                found
                    .unwrap()
                    .is_some_and(|found| found.bytes[..] == *wanted)
            })
            .count()
    };
    let all = (array.segment_data_bytes() / 4096) as usize;
    rot(1);
    rot(4);
    assert_eq!(accepted(), all, "any two rotten members are arbitrated");
    rot(2);
    assert!(accepted() < all, "three are too many");
}

#[test]
fn copies_that_rotted_in_different_blocks_still_give_the_whole() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 10);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    for (member, block) in [(0, 0), (1, 1), (0, 3), (1, 4)] {
        let offset = on_device(0, block, 5);
        pool.world
            .inject(pool.path(member), Fault::BitRot { offset, mask: 1 });
    }
    let wanted = &model.segments[&0][..5 * 4096];
    let mut tried = 0;
    let found = array
        .read_alternatives(&at(0), 0, 5 * 4096, &mut |bytes| {
            tried += 1;
            bytes == wanted
        })
        .unwrap()
        .expect("the blocks are all somewhere");
    assert_eq!(&found.bytes[..], wanted);
    assert!(tried <= 16, "only blocks that differ are combined: {tried}");
    assert_eq!(found.differing, [index(0), index(1)]);
    let none = array
        .read_alternatives(&at(0), 0, 5 * 4096, &mut |_| false)
        .unwrap();
    assert!(none.is_none());
}

#[test]
fn r7_only_verified_bytes_are_rewritten() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 11);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    let right = model.segments[&0].clone();
    // One block, two chunks: the first has rotted on one copy, the second on
    // the other.
    pool.world.inject(
        pool.path(0),
        Fault::BitRot {
            offset: on_device(0, 0, 100),
            mask: 1,
        },
    );
    pool.world.inject(
        pool.path(1),
        Fault::BitRot {
            offset: on_device(0, 0, 3000),
            mask: 1,
        },
    );
    array.rewrite_verified(&at(0), 0, &right[..1500]).unwrap();
    let copy = |member: usize| pool.world.peek(pool.path(member), SLOTS_OFFSET, 4096);
    assert_eq!(
        copy(0),
        right[..4096],
        "the first chunk is mended, the second never was bad"
    );
    assert_eq!(copy(1)[..1500], right[..1500]);
    assert_ne!(
        copy(1)[3000],
        right[3000],
        "nobody vouched for the second chunk here"
    );
    array
        .rewrite_verified(&at(0), 1500, &right[1500..4096])
        .unwrap();
    assert_eq!(copy(1), right[..4096]);
    let status = array.status();
    assert_eq!(
        [status.members[0].repaired, status.members[1].repaired],
        [1, 1]
    );
    // Nothing is wrong: nothing is written.
    let before = pool.writes();
    array.rewrite_verified(&at(0), 0, &right[..8192]).unwrap();
    assert_eq!(pool.writes(), before);
}

#[test]
fn r7_a_repair_leaves_parity_consistent() {
    for (level, width) in [(Level::Raid5, 4), (Level::Raid6, 5)] {
        let (pool, array) = Pool::create(level, width, 12);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let right = model.segments[&0].clone();
        for stripe in 0..u64::from(STRIPES) {
            let offset = on_device(0, stripe, 17);
            pool.world
                .inject(pool.path(1), Fault::BitRot { offset, mask: 2 });
        }
        for (n, chunk) in right.chunks(1024).enumerate() {
            let offset = u32::try_from(n * 1024).unwrap();
            array.rewrite_verified(&at(0), offset, chunk).unwrap();
        }
        model.check(&array, "mended");
        // Parity on member 1 has rotted as well and is not ours to mend, so
        // lose that member; every stripe's other parity must still agree.
        array.fail_member(index(1), "test").unwrap();
        model.check(&array, "mended and degraded");
    }
}

#[test]
fn an_unreadable_block_is_readable_after_its_repair() {
    for (level, width) in [(Level::Raid1, 2), (Level::Raid5, 3), (Level::Raid6, 4)] {
        let (pool, array) = Pool::create(level, width, 13);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        let length = SLOT_BYTES;
        pool.world.inject(
            pool.path(0),
            Fault::ReadErrors {
                offset: SLOTS_OFFSET,
                length,
            },
        );
        let right = model.segments[&0].clone();
        for block in (0..right.len()).step_by(4096) {
            let offset = u32::try_from(block).unwrap();
            array
                .rewrite_verified(&at(0), offset + 8, &right[block + 8..block + 100])
                .unwrap();
        }
        let errors = array.status().members[0].errors();
        model.check(&array, &format!("{level}"));
        assert_eq!(
            array.status().members[0].errors(),
            errors,
            "{level}: no more errors"
        );
        assert_eq!(state_of(&array, 0), MemberState::Online);
    }
}

#[test]
fn discarded_segments_give_space_back() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 14);
    let mut model = Model::default();
    model.fill(&array, 2, 1).unwrap();
    array.sync().unwrap();
    let before = pool.world.allocated_blocks(pool.path(1));
    array.discard_segment(&at(2));
    let after = pool.world.allocated_blocks(pool.path(1));
    assert_eq!(before - after, SLOT_BYTES / 4096);
}

#[test]
fn stripes_that_do_not_fit_are_refused() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 15);
    let before = pool.writes();
    let good = stripe(&array, 0, 0, 1);
    let mut long = good.clone();
    long.data = std::sync::Arc::new(tessera_raid::device::AlignedBuf::zeroed(4096));
    for bad in [
        stripe(&array, 0, STRIPES, 1),
        stripe(&array, u32::try_from(SLOTS).unwrap(), 0, 1),
        long,
    ] {
        let error = array.write_stripes(&[good.clone(), bad]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
    assert_eq!(
        pool.writes(),
        before,
        "nothing was written, the good one included"
    );
}

#[test]
fn a_long_range_is_read_although_one_member_is_wrong_in_all_of_it() {
    for (level, width) in [
        (Level::Raid1, 2),
        (Level::Raid5, 3),
        (Level::Raid6, 4),
        (Level::Raid10, 4),
    ] {
        let (pool, array) = Pool::create(level, width, 31);
        let mut model = Model::default();
        model.fill(&array, 0, 1).unwrap();
        array.sync().unwrap();
        let placement = Placement::equal(array.current_layout().id, SlotIndex(0));
        let length = array.segment_data_bytes();
        let mut expected = None;
        let right = array.read_alternatives(&placement, 0, length, &mut |bytes: &[u8]| {
            expected = Some(bytes.to_vec());
            true
        });
        assert!(right.unwrap().is_some());
        let expected = expected.unwrap();
        // It lost every write, and shows what was there before.
        let junk: Vec<u8> = (0..SLOT_BYTES).map(|byte| (byte % 251) as u8).collect();
        pool.world.poke(pool.path(1), SLOTS_OFFSET, &junk);
        let mut asked = 0;
        let found = array.read_alternatives(&placement, 0, length, &mut |bytes: &[u8]| {
            asked += 1;
            bytes == expected
        });
        let found = found.unwrap().expect("all but one member are right");
        assert!(*found.bytes == *expected, "{level}");
        assert_eq!(found.differing, [MemberIndex(1)], "{level}");
        assert!(asked < 40, "{level}: asked {asked} times");
    }
}
