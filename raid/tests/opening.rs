//! What creating and opening refuse, in words, writing nothing.

#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use tessera_raid::{
    Array, CreateSpec, Kind, Level, RaidError, Sizes, describe_member, device::sim::Fault,
};

fn create(pool: &Pool, spec: &CreateSpec) -> Result<Array, RaidError> {
    Array::create(
        pool.backend(),
        spec,
        b"zero",
        Box::new(pool.witness.clone()),
    )
}

/// Refused with this kind and these words, and nothing written.
fn assert_refused<T: std::fmt::Debug>(
    pool: &Pool,
    outcome: impl FnOnce() -> Result<T, RaidError>,
    kind: Kind,
    words: &[&str],
) {
    let before = (pool.writes(), pool.witness.record());
    let error = outcome().expect_err("it is to be refused");
    assert_eq!(error.kind(), kind, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{error} lacks {word}");
    }
    assert!(!error.to_string().ends_with('.'));
    assert_eq!(
        (pool.writes(), pool.witness.record()),
        before,
        "nothing is written"
    );
}

#[test]
fn creating_refuses_impossible_shapes() {
    let pool = Pool::devices(Level::Raid5, 4, 60);
    let good = spec(Level::Raid5, &pool.paths);
    let cases: Vec<(CreateSpec, &str)> = vec![
        (
            CreateSpec {
                members: pool.paths[..2].to_vec(),
                ..good.clone()
            },
            "3 to 64 members",
        ),
        (
            CreateSpec {
                level: Level::Single,
                ..good.clone()
            },
            "exactly 1",
        ),
        (
            CreateSpec {
                level: Level::Raid10,
                members: pool.paths[..3].to_vec(),
                ..good.clone()
            },
            "even",
        ),
        (
            CreateSpec {
                stripe_unit_bytes: 5000,
                ..good.clone()
            },
            "5000",
        ),
        (
            CreateSpec {
                stripe_unit_bytes: 0,
                ..good.clone()
            },
            "Stripe unit 0",
        ),
        (
            CreateSpec {
                sizes: Sizes {
                    segment_data_bytes_target: 1 << 30,
                    ..good.sizes
                },
                ..good.clone()
            },
            "too large",
        ),
        (
            CreateSpec {
                sizes: Sizes {
                    journal_bytes: Some(5000),
                    ..good.sizes
                },
                ..good.clone()
            },
            "5000",
        ),
        (
            CreateSpec {
                sizes: Sizes {
                    journal_bytes: Some(0),
                    ..good.sizes
                },
                ..good.clone()
            },
            "journal",
        ),
        // The default journal alone is larger than the devices.
        (
            CreateSpec {
                sizes: Sizes {
                    journal_bytes: None,
                    ..good.sizes
                },
                ..good.clone()
            },
            "too small",
        ),
    ];
    for (spec, word) in cases {
        assert_refused(
            &pool,
            || create(&pool, &spec),
            Kind::InvalidArgument,
            &[word],
        );
    }
    let long = vec![0; tessera_raid::ENGINE_RECORD_BYTES + 1];
    let witness = Box::new(pool.witness.clone());
    let error = Array::create(pool.backend(), &good, &long, witness).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(create(&pool, &good).is_ok());
}

#[test]
fn creating_refuses_members_given_twice_or_not_there() {
    let pool = Pool::devices(Level::Raid1, 2, 61);
    let mut twice = spec(Level::Raid1, &pool.paths);
    twice.members[1] = twice.members[0].clone();
    assert_refused(
        &pool,
        || create(&pool, &twice),
        Kind::DuplicateMember,
        &["disk0", "twice"],
    );
    let mut absent = spec(Level::Raid1, &pool.paths);
    absent.members[1] = "nowhere".into();
    assert_refused(&pool, || create(&pool, &absent), Kind::Io, &["nowhere"]);
}

#[test]
fn creating_refuses_a_member_that_is_too_small() {
    let pool = Pool::devices(Level::Raid1, 2, 62);
    pool.world.resize(pool.path(1), SLOTS_OFFSET + 4096);
    let spec = spec(Level::Raid1, &pool.paths);
    assert_refused(
        &pool,
        || create(&pool, &spec),
        Kind::InvalidArgument,
        &["disk1", "too small"],
    );
}

#[test]
fn creating_refuses_what_looks_used_unless_forced() {
    let cases: [(u64, &[u8], &str); 6] = [
        (0x438, b"\x53\xef", "ext4"),
        (0, b"XFSB", "XFS"),
        (510, b"\x55\xaa", "partition"),
        (0x10040, b"_BHRfS_M", "btrfs"),
        (40000, b"x", "not zero"),
        (DEVICE_BYTES - 4096, b"x", "not zero"),
    ];
    for (offset, bytes, word) in cases {
        let pool = Pool::devices(Level::Raid1, 2, 63);
        pool.world.poke(pool.path(1), offset, bytes);
        let spec = spec(Level::Raid1, &pool.paths);
        assert_refused(
            &pool,
            || create(&pool, &spec),
            Kind::AlreadyUsed,
            &["disk1", word, "--force"],
        );
        let forced = CreateSpec {
            force: true,
            ..spec
        };
        create(&pool, &forced).unwrap().close();
        pool.open().unwrap();
    }
}

#[test]
fn creating_refuses_members_of_a_pool_unless_forced() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 64);
    let uuid = array.uuid().to_string();
    array.close();
    let spec = spec(Level::Raid1, &pool.paths);
    assert_refused(
        &pool,
        || create(&pool, &spec),
        Kind::AlreadyUsed,
        &["already"],
    );
    pool.witness.forget();
    assert_refused(
        &pool,
        || create(&pool, &spec),
        Kind::AlreadyUsed,
        &["disk0", &uuid],
    );
    let forced = CreateSpec {
        force: true,
        ..spec
    };
    let array = create(&pool, &forced).unwrap();
    assert_ne!(array.uuid().to_string(), uuid);
    assert_eq!(
        array.check_superblocks(),
        (8, Vec::new()),
        "nothing is left of the old pool"
    );
}

#[test]
fn unequal_members_have_as_many_slots_as_the_smallest() {
    let pool = Pool::devices(Level::Raid5, 3, 65);
    pool.world
        .resize(pool.path(1), DEVICE_BYTES - 2 * SLOT_BYTES);
    pool.world
        .resize(pool.path(2), DEVICE_BYTES + 9 * SLOT_BYTES + 4096);
    let array = pool.array_created();
    assert_eq!(u64::from(array.slot_count()), SLOTS - 2);
    let data = u64::from(array.segment_data_bytes());
    assert_eq!(array.data_capacity_bytes(), (SLOTS - 2) * data);
    array.commit(b"", false).unwrap();
    let mut model = Model::default();
    model
        .fill(&array, u32::try_from(SLOTS).unwrap() - 3, 1)
        .unwrap();
    array.commit(b"", true).unwrap();
    assert_eq!(array.check_superblocks().1, [""; 0]);
    array.close();
    model.check(&pool.open().unwrap(), "reopened");
}

#[test]
fn opening_refuses_what_is_no_member() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 66);
    array.close();
    pool.world.add_device("blank", DEVICE_BYTES);
    pool.world.add_device("empty", 0);
    for other in ["blank", "empty"] {
        let mut paths = pool.paths.clone();
        paths[2] = other.into();
        let open = || pool.open_with(&paths, &options());
        assert_refused(&pool, open, Kind::NotAMember, &[other, "not a member"]);
    }
    for offset in [0, 8192, DEVICE_BYTES - 16384, DEVICE_BYTES - 8192] {
        pool.world
            .poke(pool.path(0), offset + 1000, &noise(offset, 50));
    }
    assert_refused(
        &pool,
        || pool.open(),
        Kind::NotAMember,
        &["disk0", "checksum"],
    );
    assert!(
        pool.open_with(&pool.paths[1..], &options()).is_ok(),
        "without it the pool opens"
    );
}

#[test]
fn opening_refuses_members_of_another_pool() {
    let (pool, array) = Pool::create(Level::Raid1, 2, 67);
    array.close();
    let other = Pool {
        paths: vec!["other0".into(), "other1".into()],
        witness: tessera_raid::MemoryWitness::with_seed(5),
        ..pool.clone()
    };
    for path in &other.paths {
        pool.world.add_device(path, DEVICE_BYTES);
    }
    other.array_created().close();
    let mixed = [pool.paths[0].clone(), other.paths[1].clone()];
    let open = || pool.open_with(&mixed, &options());
    assert_refused(&pool, open, Kind::DifferentPools, &["disk0", "other1"]);
    let open = || pool.open_with(&other.paths, &options());
    assert_refused(&pool, open, Kind::DifferentPools, &["other0"]);
}

#[test]
fn opening_refuses_members_given_twice() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 68);
    array.close();
    let mut paths = pool.paths.clone();
    paths[2] = paths[0].clone();
    assert_refused(
        &pool,
        || pool.open_with(&paths, &options()),
        Kind::DuplicateMember,
        &["disk0"],
    );
    // A copy is another file with the same superblock.
    pool.world.add_device("copy", DEVICE_BYTES);
    pool.world
        .restore_image("copy", &pool.world.image(pool.path(0)));
    paths[2] = "copy".into();
    let open = || pool.open_with(&paths, &options());
    assert_refused(&pool, open, Kind::DuplicateMember, &["disk0", "copy"]);
}

#[test]
fn opening_refuses_a_pool_that_is_open_already() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 69);
    assert_refused(&pool, || pool.open(), Kind::Locked, &["disk0", "in use"]);
    let open = || pool.open_with(&pool.paths, &read_only());
    assert_refused(&pool, open, Kind::Locked, &["in use"]);
    let backend = pool.backend();
    let describe = || describe_member(&backend, pool.path(1));
    assert_refused(&pool, describe, Kind::Locked, &["disk1"]);
    array.close();
    let one = pool.open_with(&pool.paths, &read_only()).unwrap();
    let two = pool.open_with(&pool.paths, &read_only()).unwrap();
    assert_eq!(one.uuid(), two.uuid(), "readers share");
    assert_refused(&pool, || pool.open(), Kind::Locked, &["in use"]);
}

#[test]
fn opening_refuses_too_few_members_by_name() {
    let (pool, array) = Pool::create(Level::Raid5, 4, 70);
    array.close();
    for options in [options(), read_only()] {
        let open = || pool.open_with(&pool.paths[..2], &options);
        let words = ["2 of 4", "disk2 (not found)", "disk3 (not found)"];
        assert_refused(&pool, open, Kind::TooFewMembers, &words);
    }
    pool.world.inject(pool.path(0), Fault::Vanish);
    pool.world.inject(pool.path(1), Fault::Vanish);
    assert_refused(
        &pool,
        || pool.open(),
        Kind::TooFewMembers,
        &["disk0 (not found)"],
    );
}

#[test]
fn opening_refuses_a_newer_format() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 71);
    array.commit(b"x", false).unwrap();
    array.close();
    // One copy of one member is enough: a newer program was there.
    let mut bytes = pool.world.peek(pool.path(1), 0, 8192);
    bytes[16] = 1;
    let crc = crc32c::crc32c(&bytes[..8188]);
    bytes[8188..].copy_from_slice(&crc.to_le_bytes());
    pool.world.poke(pool.path(1), 0, &bytes);
    assert_refused(
        &pool,
        || pool.open(),
        Kind::NewerFormat,
        &["disk1", "newer"],
    );
}

#[test]
fn members_come_in_any_order_and_are_described() {
    let (pool, array) = Pool::create(Level::Raid6, 5, 72);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    array.sync().unwrap();
    let (uuid, sequence) = (array.uuid(), array.sequence());
    array.close();
    let backend = pool.backend();
    for (n, path) in pool.paths.iter().enumerate() {
        let described = describe_member(&backend, path).unwrap();
        assert_eq!((described.pool, described.index), (uuid, index(n)));
        assert_eq!((described.level, described.member_count), (Level::Raid6, 5));
        assert_eq!(described.sequence, sequence);
    }
    let mut paths = pool.paths.clone();
    paths.swap(0, 3);
    paths.swap(1, 4);
    let array = pool.open_with(&paths, &options()).unwrap();
    model.check(&array, "in another order");
    let status = array.status();
    assert!(
        status
            .members
            .iter()
            .zip(&pool.paths)
            .all(|(member, path)| member.path == *path)
    );
}

#[test]
fn a_member_that_was_truncated_is_failed() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 73);
    let mut model = Model::default();
    model.fill(&array, 7, 1).unwrap();
    array.sync().unwrap();
    array.close();
    pool.world.resize(pool.path(2), SLOTS_OFFSET + SLOT_BYTES);
    let array = pool.open().unwrap();
    assert_eq!(not_online(&array), [2]);
    model.check(&array, "without the truncated one");
}

#[test]
fn a_member_that_grew_is_still_itself() {
    let (pool, array) = Pool::create(Level::Raid5, 3, 74);
    array.commit(b"end", true).unwrap();
    array.close();
    pool.world.resize(pool.path(2), DEVICE_BYTES * 2);
    let array = pool.open().unwrap();
    assert!(not_online(&array).is_empty());
    assert_eq!(array.check_superblocks().1, [""; 0]);
}
