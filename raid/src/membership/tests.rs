//! The rules of R1 and R3 on made-up superblocks.

use super::*;
use crate::{
    LayoutId, Level, WitnessMember,
    layout::Layout,
    superblock::{Geometry, HASH_BLAKE3, History, MemberRecord},
};
use uuid::Uuid;

const SIZE: u64 = 8 << 20;

fn record(level: Level, width: u8) -> PoolRecord {
    let members = (0..width)
        .map(|n| MemberRecord {
            uuid: Uuid::from_u128(100 + u128::from(n)),
            size_bytes: SIZE,
            slot_count: 3,
            standing: Standing::InSync,
            changed_at: 1,
        })
        .collect();
    let columns = (0..width).map(MemberIndex).collect();
    PoolRecord {
        pool: Uuid::from_u128(1),
        sequence: 10,
        commits: 4,
        history: History::first(Uuid::from_u128(1000)),
        clean: false,
        hash_algorithm: HASH_BLAKE3,
        geometry: Geometry::new(1 << 16, 1 << 18),
        current_layout: LayoutId(0),
        layouts: vec![Layout::new(LayoutId(0), level, 1 << 16, columns).unwrap()],
        members,
        engine_record: Vec::new(),
    }
}

fn found(record: &PoolRecord, member: u8) -> Found {
    let superblock = Superblock {
        member: MemberIndex(member),
        record: record.clone(),
    };
    Found {
        path: PathBuf::from(format!("disk{member}")),
        superblock,
        size_bytes: SIZE,
    }
}

/// The record after `failed` were recorded under the change `id`.
fn without(record: &PoolRecord, failed: &[u8], id: u128) -> PoolRecord {
    let mut next = record.clone();
    next.sequence += 1;
    next.history.push(Uuid::from_u128(id));
    for member in failed {
        next.members[usize::from(*member)].standing = Standing::Failed;
    }
    next
}

fn later(record: &PoolRecord, by: u64) -> PoolRecord {
    PoolRecord {
        sequence: record.sequence + by,
        ..record.clone()
    }
}

fn witness_of(record: &PoolRecord) -> WitnessRecord {
    WitnessRecord {
        pool: record.pool,
        level: record.layout().level,
        members: record
            .indices()
            .map(|index| WitnessMember {
                index,
                uuid: record.members[index.index()].uuid,
                path: PathBuf::from(format!("disk{index}")),
            })
            .collect(),
        membership_epoch: record.history.epoch,
        membership_id: record.history.head(),
    }
}

fn refused(found: &[Found], witness: Option<&WitnessRecord>) -> (Kind, String) {
    let error = choose(found, witness, false).unwrap_err();
    (error.kind(), error.to_string())
}

fn set(members: &[u8]) -> MemberSet {
    members.iter().map(|member| MemberIndex(*member)).collect()
}

#[test]
fn r1_a_member_one_behind_is_current() {
    let old = record(Level::Raid5, 3);
    let new = later(&old, 1);
    let found = [found(&old, 0), found(&new, 1), found(&old, 2)];
    let choice = choose(&found, Some(&witness_of(&old)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 1, 2]));
    assert_eq!(choice.record.sequence, 11);
    assert!(choice.changes.is_empty());
}

#[test]
fn r1_a_member_further_behind_is_stale() {
    let old = record(Level::Raid5, 3);
    let new = later(&old, 2);
    let found = [found(&old, 0), found(&new, 1), found(&new, 2)];
    let choice = choose(&found, Some(&witness_of(&old)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[1, 2]));
    assert_eq!(choice.changes, [(MemberIndex(0), Standing::Stale)]);
}

#[test]
fn r1_a_member_named_failed_stays_out_even_if_one_behind() {
    let old = record(Level::Raid5, 3);
    let new = without(&old, &[2], 1001);
    let found = [found(&new, 0), found(&new, 1), found(&old, 2)];
    let choice = choose(&found, Some(&witness_of(&old)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 1]));
    assert!(choice.changes.is_empty(), "it is recorded already");
}

#[test]
fn r1_an_absent_member_is_to_be_recorded() {
    let record = record(Level::Raid6, 5);
    let found: Vec<_> = [0, 2, 4].map(|n| found(&record, n)).into();
    let choice = choose(&found, Some(&witness_of(&record)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 2, 4]));
    let absent = [1, 3].map(|n| (MemberIndex(n), Standing::Absent));
    assert_eq!(choice.changes, absent);
}

#[test]
fn r4_too_few_members_are_refused_by_name() {
    let record = record(Level::Raid5, 4);
    let found = [
        found(&record, 0),
        found(&later(&record, 5), 1),
        found(&later(&record, 5), 2),
    ];
    let (kind, message) = refused(&found, Some(&witness_of(&record)));
    assert_eq!(kind, Kind::TooFewMembers);
    for part in [
        "2 of 4",
        "raid5",
        "disk0 (behind the others)",
        "disk3 (not found)",
    ] {
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(refused(&[], None).0, Kind::TooFewMembers);
}

#[test]
fn a_shrunken_member_is_failed() {
    let record = record(Level::Raid1, 2);
    let mut short = found(&record, 1);
    short.size_bytes -= 4096;
    let choice = choose(
        &[found(&record, 0), short],
        Some(&witness_of(&record)),
        false,
    )
    .unwrap();
    assert_eq!(choice.changes, [(MemberIndex(1), Standing::Failed)]);
}

#[test]
fn members_of_different_pools_are_refused() {
    let one = record(Level::Raid1, 2);
    let other = PoolRecord {
        pool: Uuid::from_u128(2),
        ..one.clone()
    };
    let (kind, message) = refused(&[found(&one, 0), found(&other, 1)], None);
    assert_eq!(kind, Kind::DifferentPools);
    assert!(
        message.contains("disk0") && message.contains("disk1"),
        "{message}"
    );
    let foreign = [found(&other, 0), found(&other, 1)];
    assert_eq!(
        refused(&foreign, Some(&witness_of(&one))).0,
        Kind::DifferentPools
    );
}

#[test]
fn two_copies_of_a_member_are_refused() {
    let record = record(Level::Raid1, 2);
    let mut copy = found(&record, 0);
    copy.path = PathBuf::from("copy-of-disk0");
    let (kind, message) = refused(&[found(&record, 0), copy, found(&record, 1)], None);
    assert_eq!(kind, Kind::DuplicateMember);
    assert!(message.contains("copy-of-disk0"), "{message}");
}

#[test]
fn a_replaced_member_is_refused() {
    let record = record(Level::Raid5, 3);
    let mut old = record.clone();
    old.sequence -= 5;
    old.members[1].uuid = Uuid::from_u128(999);
    let found = [found(&record, 0), found(&old, 1), found(&record, 2)];
    assert_eq!(
        refused(&found, Some(&witness_of(&record))).0,
        Kind::NotAMember
    );
}

#[test]
fn r3_halves_that_went_on_alone_are_refused_naming_both() {
    let common = record(Level::Raid1, 2);
    let left = later(&without(&common, &[1], 1001), 7);
    let right = without(&common, &[0], 1002);
    for witness in [None, Some(witness_of(&left)), Some(witness_of(&right))] {
        let (kind, message) = refused(&[found(&left, 0), found(&right, 1)], witness.as_ref());
        assert_eq!(kind, Kind::Diverged);
        assert!(
            message.contains("disk0") && message.contains("disk1"),
            "{message}"
        );
    }
}

#[test]
fn r3_equal_sequences_with_other_histories_are_not_the_same_superblock() {
    let common = record(Level::Raid1, 3);
    let ahead = later(&common, 1);
    let degraded = without(&common, &[2], 1001);
    assert_eq!(ahead.sequence, degraded.sequence);
    let found = [found(&degraded, 0), found(&ahead, 1)];
    assert_eq!(
        refused(&found, Some(&witness_of(&common))).0,
        Kind::Diverged
    );
}

#[test]
fn r3_a_history_too_long_ago_does_not_connect() {
    let old = record(Level::Raid1, 3);
    let mut new = without(&old, &[2], 2000);
    for n in 0..40 {
        new.history.push(Uuid::from_u128(3000 + n));
    }
    let found = [found(&new, 0), found(&new, 1), found(&old, 2)];
    assert_eq!(refused(&found, Some(&witness_of(&new))).0, Kind::Diverged);
}

#[test]
fn r3_members_behind_the_witness_are_refused() {
    let old = record(Level::Raid1, 2);
    let new = without(&old, &[1], 1001);
    let (kind, message) = refused(&[found(&old, 1)], Some(&witness_of(&new)));
    assert_eq!(kind, Kind::Behind);
    assert!(message.contains("disk1"), "{message}");
    // The user's word does not help against the witness's.
    assert!(choose(&[found(&old, 1)], Some(&witness_of(&new)), true).is_err());
}

#[test]
fn r3_members_ahead_of_the_witness_descend_from_it() {
    let old = record(Level::Raid1, 2);
    let new = without(&old, &[1], 1001);
    let choice = choose(&[found(&new, 0)], Some(&witness_of(&old)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0]));
}

#[test]
fn r3_members_beside_the_witness_are_diverged() {
    let common = record(Level::Raid1, 2);
    let left = without(&common, &[1], 1001);
    let right = without(&common, &[0], 1002);
    assert_eq!(
        refused(&[found(&right, 1)], Some(&witness_of(&left))).0,
        Kind::Diverged
    );
}

#[test]
fn r3_without_a_witness_a_half_needs_force() {
    // level, width, members given, whether the rest could have run alone
    let cases: [(Level, u8, &[u8], bool); 10] = [
        (Level::Raid1, 2, &[0], true),
        (Level::Raid1, 2, &[0, 1], false),
        (Level::Raid1, 3, &[0, 1], true),
        (Level::Raid5, 3, &[0, 1], false),
        (Level::Raid5, 4, &[1, 2, 3], false),
        (Level::Raid6, 4, &[0, 1], true),
        (Level::Raid6, 4, &[0, 1, 2], false),
        (Level::Raid6, 5, &[0, 1, 2], false),
        (Level::Raid10, 4, &[0, 2], true),
        (Level::Raid10, 4, &[0, 1, 2], false),
    ];
    for (level, width, given, alone) in cases {
        let record = record(level, width);
        let found: Vec<_> = given.iter().map(|n| found(&record, *n)).collect();
        let context = format!("{level} of {width}, {given:?}");
        match choose(&found, None, false) {
            Ok(_) => assert!(!alone, "{context}"),
            Err(error) => {
                assert!(alone, "{context}: {error}");
                assert_eq!(error.kind(), Kind::NeedsForce, "{context}");
            }
        }
        assert!(choose(&found, None, true).is_ok(), "{context}");
        assert!(
            choose(&found, Some(&witness_of(&record)), false).is_ok(),
            "{context}"
        );
    }
}
