//! The power is cut at every device operation while members come and go, and
//! what is found afterwards is what `docs/members.md` promises.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::*;
use tessera_raid::{Array, Level, MemberState, Source, describe_member};

const NEW: &str = "new";

/// Levels, and whether the member that is replaced has failed before.
const CASES: [(Level, usize, bool); 9] = [
    (Level::Single, 1, false),
    (Level::Raid0, 2, false),
    (Level::Raid1, 2, false),
    (Level::Raid1, 2, true),
    (Level::Raid5, 3, false),
    (Level::Raid5, 3, true),
    (Level::Raid6, 4, true),
    (Level::Raid10, 4, false),
    (Level::Raid10, 4, true),
];

/// A pool with two segments that are safe, and a device more.
fn prepared(level: Level, width: usize, seed: u64) -> (Pool, Model) {
    let (pool, array) = Pool::create(level, width, seed);
    let mut model = Model::default();
    model.fill(&array, 0, 1).unwrap();
    model.fill(&array, 1, 2).unwrap();
    array.sync().unwrap();
    array.commit(b"safe", false).unwrap();
    array.close();
    pool.add_device(NEW, DEVICE_BYTES);
    (pool, model)
}

/// Every device that carries a superblock, whatever the witness knows.
fn with_superblocks(pool: &Pool) -> Vec<PathBuf> {
    let backend = pool.backend();
    let mut paths = pool.paths.clone();
    paths.push(NEW.into());
    paths.retain(|path| describe_member(&backend, path).is_ok());
    paths
}

/// Whatever a crash left: the member's place is given to the new device, and
/// then everything is there without any set of members the level survives.
fn finish(pool: &mut Pool, array: Array, member: usize, model: &Model, context: &str) {
    array.commit(b"again", false).unwrap();
    let slots: Vec<u32> = model.segments.keys().copied().collect();
    if array.status().members[member].path != Path::new(NEW) {
        let target = match array.targets().first() {
            Some(target) => target.target,
            None => {
                let source = Source::NewDevice {
                    path: NEW.into(),
                    force: true,
                };
                let attached = array.attach(index(member), &source);
                attached
                    .unwrap_or_else(|error| panic!("{context}: {error}"))
                    .target
            }
        };
        rebuild(&array, target, &slots).unwrap();
        array.commit_promoting(b"promoted", false, target).unwrap();
    }
    let sets = survivable(&array);
    assert!(not_online(&array).is_empty(), "{context}");
    array.close();
    let whole = pool.snapshot();
    for lost in sets {
        pool.restore(&whole);
        let array = pool.open_known().unwrap();
        let members = array.status().members;
        for member in &lost {
            pool.world.inject(
                &members[*member].path,
                tessera_raid::device::sim::Fault::Vanish,
            );
        }
        model.check(&array, &format!("{context}, losing {lost:?}"));
    }
}

#[derive(Default)]
struct Done {
    attached: bool,
    promoted: bool,
    model: Model,
}

fn replace(pool: &Pool, member: usize, failed: bool, old: &Model) -> Done {
    let mut done = Done {
        model: old.clone(),
        ..Done::default()
    };
    let Ok(array) = pool.open_known() else {
        return done;
    };
    let mut steps = || -> Result<(), tessera_raid::RaidError> {
        array.commit(b"on", false)?;
        if failed {
            array.fail_member(index(member), "test")?;
        }
        let attached = array.attach(index(member), &new_device(Path::new(NEW)))?;
        done.attached = true;
        let mut model = done.model.clone();
        model.fill(&array, 2, 3)?;
        array.sync()?;
        done.model = model.clone();
        rebuild(&array, attached.target, &[0, 1])?;
        array.commit(b"cursor", false)?;
        array.commit_promoting(b"promoted", false, attached.target)?;
        done.promoted = true;
        model.fill(&array, 3, 4)?;
        array.sync()?;
        done.model = model;
        Ok(())
    };
    let _cut = steps();
    done
}

#[test]
fn replacing_a_member_can_be_cut_anywhere() {
    for (level, width, failed) in CASES {
        let member = width - 1;
        let (mut pool, old) = prepared(level, width, 120);
        let act = |pool: &Pool| replace(pool, member, failed, &old);
        cut_everywhere(&mut pool, act, |pool, done, when| {
            let mut pool = pool.clone();
            let crashed = pool.snapshot();
            for given in ["known", "all"] {
                pool.restore(&crashed);
                let context = format!("{level} of {width}, failed {failed}, {given}, {when}");
                let paths = match given {
                    "known" => pool.known_paths(),
                    _ => with_superblocks(&pool),
                };
                let array = pool
                    .open_with(&paths, &options())
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                let promoted = array.status().members[member].path == Path::new(NEW);
                assert!(promoted || !done.promoted, "{context}: it was acknowledged");
                let state = state_of(&array, member);
                let online = state == MemberState::Online;
                assert!(online || failed && !promoted, "{context}: {state:?}");
                let attached = promoted || !array.targets().is_empty();
                assert!(attached || !done.attached, "{context}: it was attached");
                done.model.check(&array, &context);
                finish(&mut pool, array, member, &done.model, &context);
            }
        });
    }
}

#[test]
fn a_detach_can_be_cut_anywhere() {
    let (mut pool, old) = prepared(Level::Raid5, 3, 121);
    let array = pool.open_unclean();
    array.attach(index(1), &new_device(Path::new(NEW))).unwrap();
    array.close();
    let act = |pool: &Pool| {
        let array = pool.open_known().ok()?;
        let target = array.targets().first()?.target;
        array.detach(target, "test").ok()
    };
    cut_everywhere(&mut pool, act, |pool, done, when| {
        let mut pool = pool.clone();
        let crashed = pool.snapshot();
        for paths in [pool.known_paths(), with_superblocks(&pool)] {
            pool.restore(&crashed);
            let array = pool.open_with(&paths, &options()).unwrap();
            assert!(array.targets().is_empty() || done.is_none(), "{when}");
            assert!(not_online(&array).iter().all(|row| *row == 3), "{when}");
            old.check(&array, &when);
            finish(&mut pool, array, 1, &old, &when);
        }
    });
}

#[test]
fn adding_taking_and_removing_a_spare_can_be_cut_anywhere() {
    let (mut pool, old) = prepared(Level::Raid5, 3, 122);
    let act = |pool: &Pool| {
        let mut done = 0;
        let Ok(array) = pool.open_known() else {
            return done;
        };
        let mut steps = || -> Result<(), tessera_raid::RaidError> {
            array.commit(b"on", false)?;
            let force = pool.world.counters(NEW).writes > 0;
            let spare = array.add_spare(Path::new(NEW), force)?;
            done = 1;
            array.remove_spare(spare)?;
            done = 2;
            let spare = array.add_spare(Path::new(NEW), true)?;
            done = 3;
            array.attach(index(0), &Source::Spare(spare))?;
            done = 4;
            Ok(())
        };
        let _cut = steps();
        done
    };
    cut_everywhere(&mut pool, act, |pool, done, when| {
        let context = format!("{when}, after {done}");
        let mut pool = pool.clone();
        let crashed = pool.snapshot();
        for paths in [pool.known_paths(), with_superblocks(&pool)] {
            pool.restore(&crashed);
            let array = pool.open_with(&paths, &options()).unwrap();
            let (spares, targets) = (array.spares().len(), array.targets().len());
            match done {
                0 => assert_eq!(targets, 0, "{context}"),
                1 | 2 => assert_eq!(targets, 0, "{context}"),
                3 => assert_eq!(spares + targets, 1, "{context}"),
                _ => assert_eq!((spares, targets), (0, 1), "{context}"),
            }
            old.check(&array, &context);
            // Whatever its row is, the device can be taken in the end.
            for row in array.spares() {
                array.remove_spare(row).unwrap();
            }
            let missing = |row: &&tessera_raid::MemberStatus| row.state == MemberState::Missing;
            if let Some(row) = array.status().members.iter().find(missing) {
                array.remove_spare(row.index).unwrap();
            }
            finish(&mut pool, array, 0, &old, &context);
        }
    });
}

#[test]
fn a_return_can_be_cut_anywhere() {
    let (mut pool, mut old) = prepared(Level::Raid1, 2, 123);
    let away = pool.paths[1].clone();
    let array = pool.open_unclean();
    let sealed_at = array.commits();
    array.fail_member(index(1), "test").unwrap();
    old.fill(&array, 2, 3).unwrap();
    array.sync().unwrap();
    array.close();
    let act = |pool: &Pool| {
        let array = pool.open_known().ok()?;
        array.commit(b"on", false).ok()?;
        let source = Source::Returning { path: away.clone() };
        let attached = array.attach(index(1), &source).ok()?;
        assert_eq!(attached.since, Some(sealed_at));
        rebuild(&array, attached.target, &[2]).ok()?;
        array.commit_promoting(b"back", false, attached.target).ok()
    };
    cut_everywhere(&mut pool, act, |pool, done, when| {
        let mut pool = pool.clone();
        let array = pool.open_known().unwrap();
        let online = not_online(&array).is_empty();
        assert!(online || done.is_none(), "{when}");
        old.check(&array, &when);
        if online && array.targets().is_empty() {
            array.close();
            pool.world
                .inject(&pool.paths[0], tessera_raid::device::sim::Fault::Vanish);
            old.check(&pool.open_known().unwrap(), &when);
            return;
        }
        finish(&mut pool, array, 1, &old, &when);
    });
}
