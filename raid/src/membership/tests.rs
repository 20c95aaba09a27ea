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
        "2 of 4 are usable",
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
fn a_replaced_member_is_left_out_and_named_if_it_is_missed() {
    let record = record(Level::Raid5, 3);
    let mut old = record.clone();
    old.sequence -= 5;
    old.members[1].uuid = Uuid::from_u128(999);
    let all = [found(&record, 0), found(&old, 1), found(&record, 2)];
    let choice = choose(&all, Some(&witness_of(&record)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 2]));
    assert_eq!(
        choice.rows,
        [Some(MemberIndex(0)), None, Some(MemberIndex(2))]
    );
    let (kind, message) = refused(&all[..2], Some(&witness_of(&record)));
    assert_eq!(kind, Kind::TooFewMembers);
    for part in ["1 of 3 is usable", "of no use: disk1"] {
        assert!(message.contains(part), "{message}");
    }
}

/// The record with further rows, after so many superblocks.
fn with_rows(record: &PoolRecord, standings: &[Standing]) -> PoolRecord {
    let mut next = record.clone();
    for standing in standings {
        let row = match standing {
            Standing::Vacant => MemberRecord::VACANT,
            standing => MemberRecord {
                uuid: Uuid::from_u128(200 + next.members.len() as u128),
                standing: *standing,
                ..record.members[0].clone()
            },
        };
        next.members.push(row);
    }
    next
}

fn changed(record: &PoolRecord, id: u128, change: impl Fn(&mut PoolRecord)) -> PoolRecord {
    let mut next = later(record, 1);
    next.history.push(Uuid::from_u128(id));
    change(&mut next);
    next
}

#[test]
fn r1_a_target_at_most_one_behind_goes_on_being_one() {
    let old = with_rows(
        &record(Level::Raid5, 3),
        &[Standing::Target(MemberIndex(1))],
    );
    for (behind, current) in [(0, true), (1, true), (2, false)] {
        let new = later(&old, behind);
        let all = [
            found(&new, 0),
            found(&new, 1),
            found(&new, 2),
            found(&old, 3),
        ];
        let choice = choose(&all, Some(&witness_of(&new)), false).unwrap();
        assert_eq!(
            choice.in_sync,
            set(&[0, 1, 2]),
            "a target counts for nothing"
        );
        assert_eq!(choice.targets, if current { set(&[3]) } else { set(&[]) });
        let dropped = [(MemberIndex(3), Standing::Vacant)];
        assert_eq!(choice.changes, if current { &[] } else { &dropped[..] });
    }
    let without = [found(&old, 0), found(&old, 1), found(&old, 2)];
    let choice = choose(&without, Some(&witness_of(&old)), false).unwrap();
    assert_eq!(choice.changes, [(MemberIndex(3), Standing::Vacant)]);
}

#[test]
fn r4_a_target_does_not_make_up_for_a_member() {
    let record = with_rows(
        &record(Level::Raid5, 3),
        &[Standing::Target(MemberIndex(1))],
    );
    let all = [found(&record, 0), found(&record, 3)];
    assert_eq!(
        refused(&all, Some(&witness_of(&record))).0,
        Kind::TooFewMembers
    );
}

#[test]
fn a_spare_may_be_arbitrarily_old_and_is_never_the_newest() {
    let old = with_rows(&record(Level::Raid5, 3), &[Standing::Spare]);
    let mut new = later(&old, 500);
    for id in 0..40 {
        new.history.push(Uuid::from_u128(5000 + id));
    }
    let all = [
        found(&new, 0),
        found(&new, 1),
        found(&new, 2),
        found(&old, 3),
    ];
    let choice = choose(&all, Some(&witness_of(&new)), false).unwrap();
    assert_eq!(
        (choice.in_sync, choice.spares),
        (set(&[0, 1, 2]), set(&[3]))
    );
    assert!(choice.changes.is_empty());
    // One that has more than the others was alone in getting it.
    let all = [
        found(&old, 0),
        found(&old, 1),
        found(&old, 2),
        found(&later(&old, 1), 3),
    ];
    let choice = choose(&all, Some(&witness_of(&old)), false).unwrap();
    assert_eq!((choice.record, choice.spares), (old.clone(), set(&[3])));
    assert_eq!(refused(&all[3..], None).0, Kind::TooFewMembers);
    // Absent, it changes nothing.
    let choice = choose(&all[..3], Some(&witness_of(&old)), false).unwrap();
    assert!(choice.changes.is_empty() && choice.spares.is_empty());
}

#[test]
fn a_promoted_member_is_known_by_its_identity_not_its_row() {
    let mut before = with_rows(
        &record(Level::Raid5, 3),
        &[Standing::Target(MemberIndex(1))],
    );
    before.members[1].standing = Standing::Failed;
    let after = changed(&before, 1001, |record| {
        record.members[1] = MemberRecord {
            standing: Standing::InSync,
            ..record.members[3].clone()
        };
        record.members[3] = MemberRecord::VACANT;
    });
    // The crash came before it had the superblock that promotes it.
    let all = [found(&after, 0), found(&before, 3), found(&before, 2)];
    for witness in [witness_of(&before), witness_of(&after)] {
        let choice = choose(&all, Some(&witness), false).unwrap();
        assert_eq!(choice.in_sync, set(&[0, 1, 2]));
        assert_eq!(choice.rows[1], Some(MemberIndex(1)));
    }
    // The one it replaced may be there too; a healthy one was one behind.
    let mut healthy = before.clone();
    healthy.members[1].standing = Standing::InSync;
    let all = [
        found(&after, 0),
        found(&healthy, 1),
        found(&after, 2),
        found(&after, 1),
    ];
    let choice = choose(&all, Some(&witness_of(&before)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 1, 2]));
    assert_eq!(choice.rows[1], None);
    // Two behind it has lost writes like anybody else.
    let later = later(&after, 1);
    let all = [found(&later, 0), found(&before, 3), found(&later, 2)];
    let choice = choose(&all, Some(&witness_of(&before)), false).unwrap();
    assert_eq!(choice.changes, [(MemberIndex(1), Standing::Stale)]);
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
fn r3_a_history_too_long_ago_does_not_connect_but_may_be_in_common() {
    let old = record(Level::Raid1, 3);
    let mut new = without(&old, &[2], 2000);
    for n in 0..40 {
        new.history.push(Uuid::from_u128(3000 + n));
    }
    // Failed long ago, it is left out: it names those as in sync who stayed.
    let both = [found(&new, 0), found(&new, 1), found(&old, 2)];
    let choice = choose(&both, Some(&witness_of(&new)), false).unwrap();
    assert_eq!(choice.in_sync, set(&[0, 1]));
    // Everybody it knows has been replaced since. What tells is when it was
    // named failed, and whether its last superblock names anybody.
    let mut strangers = new.clone();
    for (n, member) in strangers.members.iter_mut().take(2).enumerate() {
        member.uuid = Uuid::from_u128(300 + n as u128);
    }
    let mut alone = without(&old, &[0, 1], 4000);
    alone.sequence = old.sequence;
    alone.members[0].changed_at = alone.sequence;
    for (named_at, theirs, accepted) in [
        (old.sequence, &old, false),
        (old.sequence + 1, &old, true),
        (old.sequence + 1, &alone, false),
        (old.sequence + 2, &alone, true),
    ] {
        let mut new = strangers.clone();
        new.members[2].changed_at = named_at;
        let all = [found(&new, 0), found(&new, 1), found(theirs, 2)];
        match choose(&all, Some(&witness_of(&new)), false) {
            Ok(choice) => assert!(accepted && choice.in_sync == set(&[0, 1])),
            Err(error) => assert!(!accepted && error.kind() == Kind::Diverged, "{error}"),
        }
    }
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
