//! The superblock's bytes: round trips, damage, forgery and golden images.

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::MemberSet;

/// A record that uses every field, always the same.
fn sample(level: Level, width: u8, engine_record: Vec<u8>) -> PoolRecord {
    let geometry = Geometry::new(1 << 16, 2 * 65536);
    let members = (0..width)
        .map(|n| MemberRecord {
            uuid: Uuid::from_u128(0x1000 + u128::from(n)),
            size_bytes: geometry.size_for(u64::from(n) + 9),
            slot_count: 9,
            standing: if n == 0 {
                Standing::Failed
            } else {
                Standing::InSync
            },
            changed_at: 3 + u64::from(n),
        })
        .collect();
    let columns = (0..width).rev().map(MemberIndex).collect();
    let layout = Layout::new(LayoutId(5), level, 65536, columns).unwrap();
    let mut history = History::first(Uuid::from_u128(1));
    history.push(Uuid::from_u128(2));
    PoolRecord {
        pool: Uuid::from_u128(0xabcd),
        sequence: 77,
        commits: 70,
        history,
        clean: true,
        hash_algorithm: crate::superblock::HASH_BLAKE3,
        geometry,
        current_layout: LayoutId(5),
        layouts: vec![layout],
        members,
        engine_record,
    }
}

fn bytes_of(record: &PoolRecord, member: u8) -> Vec<u8> {
    let mut bytes = vec![0xaa; LENGTH];
    encode(record, MemberIndex(member), &mut bytes);
    bytes
}

fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes[..AT_CRC]);
    put(&mut bytes, AT_CRC, &crc.to_le_bytes());
    bytes
}

#[test]
fn every_level_and_width_round_trips() {
    for level in Level::ALL {
        for width in (1..=64).filter(|width| level.accepts(*width)) {
            let width = u8::try_from(width).unwrap();
            let record = sample(level, width, vec![9; usize::from(width)]);
            let decoded = decode(&bytes_of(&record, width - 1), true).unwrap();
            assert_eq!(decoded.record, record);
            assert_eq!(decoded.member, MemberIndex(width - 1));
        }
    }
}

#[test]
fn a_full_history_and_the_longest_engine_record_fit() {
    let mut record = sample(Level::Raid6, 64, vec![7; ENGINE_RECORD_BYTES]);
    for n in 0..100 {
        record.history.push(Uuid::from_u128(1000 + n));
    }
    assert_eq!(record.history.ids.len(), HISTORY_MAX);
    assert_eq!(record.history.epoch, 102);
    assert!(record.history.descends_from(Uuid::from_u128(1068)));
    assert!(!record.history.descends_from(Uuid::from_u128(1067)));
    assert_eq!(decode(&bytes_of(&record, 0), true).unwrap().record, record);
}

#[test]
fn every_single_bit_damage_is_refused() {
    let bytes = bytes_of(&sample(Level::Raid5, 4, vec![1, 2, 3]), 2);
    let mut damaged = bytes.clone();
    for bit in 0..bytes.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(
            decode(&damaged, false).is_err(),
            "bit {bit} does not matter"
        );
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(decode(&damaged, false).is_ok());
}

#[test]
fn a_torn_superblock_is_refused() {
    let old = bytes_of(&sample(Level::Raid5, 4, vec![1; 600]), 2);
    let record = PoolRecord {
        sequence: 79,
        ..sample(Level::Raid5, 4, vec![2; 600])
    };
    let new = bytes_of(&record, 2);
    for sectors in 1..16 {
        let torn = [&new[..sectors * 512], &old[sectors * 512..]].concat();
        let other = [&old[..sectors * 512], &new[sectors * 512..]].concat();
        for bytes in [torn, other] {
            assert!(bytes == old || bytes == new || decode(&bytes, true).is_err());
        }
    }
}

#[test]
fn unknown_features_are_refused_as_far_as_they_must() {
    let good = bytes_of(&sample(Level::Raid1, 2, vec![]), 0);
    let changed = |at: usize| {
        let mut bytes = good.clone();
        bytes[at + 3] = 1;
        with_crc(bytes)
    };
    let never = Err(Absence::Newer { readable: false });
    for writable in [false, true] {
        assert_eq!(decode(&changed(AT_VERSION), writable), never);
        assert_eq!(decode(&changed(AT_INCOMPAT), writable), never);
        assert!(decode(&changed(AT_COMPAT), writable).is_ok());
    }
    let read_only = changed(AT_READ_ONLY_COMPAT);
    assert!(decode(&read_only, false).is_ok());
    assert_eq!(
        decode(&read_only, true),
        Err(Absence::Newer { readable: true })
    );
}

/// A pool in the middle of everything: a failed member with a target, a
/// healthy one that is being replaced, a spare, and a vacant row.
fn with_roles() -> PoolRecord {
    let mut record = sample(Level::Raid6, 5, (0..200).collect());
    let standings = [
        Standing::Target(MemberIndex(0)),
        Standing::Vacant,
        Standing::Spare,
        Standing::Target(MemberIndex(3)),
    ];
    for (n, standing) in (5..).zip(standings) {
        let row = MemberRecord {
            uuid: Uuid::from_u128(0x1000 + n),
            standing,
            changed_at: 70 + u64::try_from(n).unwrap(),
            ..record.members[4].clone()
        };
        record.members.push(match standing {
            Standing::Vacant => MemberRecord::VACANT,
            _ => row,
        });
    }
    record
}

#[test]
fn spares_targets_and_vacant_rows_round_trip() {
    let record = with_roles();
    for member in [0, 5, 7, 8] {
        let decoded = decode(&bytes_of(&record, member), true).unwrap();
        assert_eq!(decoded.record, record);
        assert_eq!(decoded.member, MemberIndex(member));
    }
    assert_eq!(record.not_in_sync(), MemberSet::of(MemberIndex(0)));
    assert_eq!(record.layout_members(), MemberSet::first(5));
    assert_eq!(record.row_of(Uuid::nil()), None);
}

#[test]
fn roles_that_cannot_be_are_refused() {
    let good = with_roles();
    let refused = |change: &dyn Fn(&mut PoolRecord), member: u8| {
        let mut record = good.clone();
        change(&mut record);
        let mut bytes = bytes_of(&record, 0);
        bytes[AT_MEMBER_INDEX] = member;
        put(
            &mut bytes,
            AT_MEMBER,
            record.members[usize::from(member)].uuid.as_bytes(),
        );
        assert!(decode(&with_crc(bytes), true).is_err());
    };
    refused(&|record| record.members[1].standing = Standing::Spare, 0);
    refused(&|record| record.members[1].standing = Standing::Vacant, 0);
    refused(&|record| record.members[6].uuid = Uuid::from_u128(1), 0);
    refused(&|record| record.members[5].uuid = record.members[4].uuid, 0);
    refused(
        &|record| record.members[5].standing = Standing::Target(MemberIndex(7)),
        0,
    );
    refused(
        &|record| record.members[5].standing = Standing::Target(MemberIndex(63)),
        0,
    );
    refused(&|_| (), 6);
}

proptest! {
    /// A checksum that matches does not excuse nonsense: nothing panics,
    /// and what is accepted can be written and read back the same.
    #[test]
    fn forged_fields_never_panic(changes in prop::collection::vec((0..AT_ENGINE, any::<u8>()), 1..8)) {
        let mut bytes = bytes_of(&sample(Level::Raid6, 5, vec![3; 40]), 1);
        for (at, value) in changes {
            bytes[at] = value;
        }
        if let Ok(superblock) = decode(&with_crc(bytes), true) {
            let again = bytes_of(&superblock.record, superblock.member.0);
            prop_assert_eq!(decode(&again, true).unwrap(), superblock);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..LENGTH + 1)) {
        prop_assert!(decode(&bytes, true).is_err());
    }
}

/// The format's first version, byte for byte. The file is never edited;
/// a new version gets a new one.
#[test]
fn the_golden_image_is_what_is_written_and_read() {
    let golden = include_bytes!("../../../testdata/format/superblock-1.bin");
    let mut record = sample(Level::Raid6, 5, (0..200).collect());
    record.history.push(Uuid::from_u128(0x33));
    assert_eq!(decode(golden, true).unwrap().record, record);
    assert!(bytes_of(&record, 3) == golden, "the encoding has changed");
}

/// The same with every role a row can have.
#[test]
fn the_golden_image_of_roles_is_what_is_written_and_read() {
    let golden = include_bytes!("../../../testdata/format/superblock-1-roles.bin");
    let record = with_roles();
    assert_eq!(decode(golden, true).unwrap().record, record);
    assert!(bytes_of(&record, 8) == golden, "the encoding has changed");
}
