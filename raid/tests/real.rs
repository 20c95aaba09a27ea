//! The array over real files, with io_uring and with threads.

#![allow(clippy::unwrap_used)]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::*;
use tessera_raid::{
    Array, CreateSpec, Kind, Level, Limits, OpenOptions, PoolFile, Sizes, Witness,
    device::{AlignedBuf, Backend, ThreadBackend, UringBackend, sim::Fault},
};

const MEMBER_BYTES: u64 = 8 << 20;

fn backends() -> Vec<Arc<dyn Backend>> {
    let mut backends: Vec<Arc<dyn Backend>> = vec![Arc::new(ThreadBackend::new())];
    match UringBackend::probe() {
        Ok(uring) => backends.push(Arc::new(uring)),
        Err(reason) => eprintln!("io_uring is not tested here: {reason}"),
    }
    backends
}

fn files(directory: &Path, count: usize) -> Vec<PathBuf> {
    (0..count)
        .map(|n| {
            let path = directory.join(format!("disk{n}.img"));
            fs::File::create(&path)
                .unwrap()
                .set_len(MEMBER_BYTES)
                .unwrap();
            path
        })
        .collect()
}

fn spec_of(level: Level, members: &[PathBuf]) -> CreateSpec {
    let sizes = Sizes {
        segment_data_bytes_target: 1 << 20,
        journal_bytes: Some(1 << 20),
    };
    CreateSpec {
        level,
        stripe_unit_bytes: 64 << 10,
        members: members.to_vec(),
        force: false,
        sizes,
        stall_limit: Limits::default().stall,
    }
}

fn quick() -> OpenOptions {
    OpenOptions {
        lock_patience: Duration::from_millis(50),
        ..OpenOptions::default()
    }
}

#[test]
fn every_backend_survives_the_loss_of_each_member() {
    for backend in backends() {
        for (level, width) in [
            (Level::Raid1, 2),
            (Level::Raid5, 4),
            (Level::Raid6, 4),
            (Level::Raid10, 4),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let members = files(directory.path(), width);
            let witness = PoolFile::new(directory.path());
            let spec = spec_of(level, &members);
            let array =
                Array::create(Arc::clone(&backend), &spec, b"", Box::new(witness.clone())).unwrap();
            array.commit(b"one", false).unwrap();
            let mut model = Model::default();
            model.fill(&array, 0, 1).unwrap();
            array.sync().unwrap();
            let data = Arc::new(AlignedBuf::copy_of(&noise(5, 8192)));
            array.journal_write(4096, &data).unwrap();
            model.check(&array, backend.name());
            let wanted = &model.segments[&0][4096..16384];
            let found = array
                .read_alternatives(&at(0), 4096, 12288, &mut |bytes| bytes == wanted)
                .unwrap();
            assert!(found.is_some());
            array.discard_segment(&at(1));
            array.commit(b"two", true).unwrap();
            assert_eq!(array.check_superblocks().1, [""; 0]);
            array.close();
            for lost in &members {
                let context = format!("{} {level} without {}", backend.name(), lost.display());
                let copy = tempfile::tempdir().unwrap();
                for file in fs::read_dir(directory.path()).unwrap() {
                    let file = file.unwrap();
                    fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
                }
                fs::remove_file(copy.path().join(lost.file_name().unwrap())).unwrap();
                let witness = PoolFile::new(copy.path());
                let record = witness.load().unwrap().unwrap();
                let paths: Vec<_> = record.members.iter().map(|m| m.path.clone()).collect();
                assert!(
                    paths.iter().all(|path| path.starts_with(copy.path())),
                    "{context}"
                );
                let array =
                    Array::open(Arc::clone(&backend), &paths, Box::new(witness), &quick()).unwrap();
                assert_eq!(not_online(&array).len(), 1, "{context}");
                assert_eq!(array.engine_record(), b"two");
                assert!(array.was_clean());
                model.check(&array, &context);
                array.commit(b"three", false).unwrap();
                let mut model = model.clone();
                model.fill(&array, 1, 4).unwrap();
                array.sync().unwrap();
                model.check(&array, &context);
                let rings = array.journal_members();
                let has_it = rings.into_iter().any(|member| {
                    let read = array.journal_read(member, 4096, AlignedBuf::zeroed(8192));
                    read.unwrap()[..] == data[..]
                });
                assert!(has_it, "{context}");
            }
        }
    }
}

#[test]
fn a_pool_open_elsewhere_is_refused_and_links_are_seen_through() {
    for backend in backends() {
        let directory = tempfile::tempdir().unwrap();
        let members = files(directory.path(), 3);
        let witness = || Box::new(PoolFile::new(directory.path()));
        let link = directory.path().join("link.img");
        std::os::unix::fs::symlink(&members[0], &link).unwrap();
        let hard = directory.path().join("hard.img");
        fs::hard_link(&members[1], &hard).unwrap();
        for twin in [&link, &hard] {
            let mut spec = spec_of(Level::Raid5, &members);
            spec.members[2] = twin.clone();
            let error = Array::create(Arc::clone(&backend), &spec, b"", witness()).unwrap_err();
            assert_eq!(error.kind(), Kind::DuplicateMember, "{error}");
        }
        let spec = spec_of(Level::Raid5, &members);
        let array = Array::create(Arc::clone(&backend), &spec, b"", witness()).unwrap();
        // Another backend is what another process would have.
        let other: Arc<dyn Backend> = Arc::new(ThreadBackend::new());
        let error = Array::open(Arc::clone(&other), &members, witness(), &quick()).unwrap_err();
        assert_eq!(error.kind(), Kind::Locked, "{error}");
        array.close();
        Array::open(other, &members, witness(), &quick()).unwrap();
        let not_there = [
            directory.path().to_owned(),
            members[0].clone(),
            members[1].clone(),
        ];
        assert!(Array::open(Arc::clone(&backend), &not_there, witness(), &quick()).is_err());
    }
}

#[test]
fn a_pool_imported_without_some_members_opens_again() {
    let directory = tempfile::tempdir().unwrap();
    let members = files(directory.path(), 5);
    let backend = backends().remove(0);
    let spec = spec_of(Level::Raid6, &members);
    let witness = Box::new(PoolFile::new(directory.path()));
    Array::create(Arc::clone(&backend), &spec, b"", witness).unwrap();
    let other = tempfile::tempdir().unwrap();
    let witness = PoolFile::new(other.path());
    let given = &members[2..];
    let array = Array::open(
        Arc::clone(&backend),
        given,
        Box::new(witness.clone()),
        &quick(),
    );
    array.unwrap().close();
    let record = witness.load().unwrap().unwrap();
    let paths: Vec<_> = record.members.into_iter().map(|m| m.path).collect();
    assert!(paths[..2].iter().all(|path| path.as_os_str().is_empty()));
    assert_eq!(paths[2..], members[2..]);
    let array = Array::open(backend, &paths, Box::new(witness), &quick()).unwrap();
    assert_eq!(not_online(&array), [0, 1]);
}

#[test]
fn the_areas_that_must_not_run_out_of_space_are_allocated() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let members = files(directory.path(), 2);
    let witness = Box::new(PoolFile::new(directory.path()));
    let spec = spec_of(Level::Raid1, &members);
    Array::create(backends().remove(0), &spec, b"", witness).unwrap();
    for member in &members {
        let allocated = fs::metadata(member).unwrap().blocks() * 512;
        assert!(
            allocated >= (1 << 20) + 2 * 16384,
            "journal and superblocks: {allocated}"
        );
        assert!(allocated < MEMBER_BYTES / 2, "slots are not: {allocated}");
    }
}

/// Threads write, read, journal and commit while a member is lost.
fn hammer(array: &Array, lose: impl FnOnce() + Send) {
    let slots = 4;
    let mut fixed = Model::default();
    fixed.fill(array, slots, 99).unwrap();
    array.sync().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..slots {
            let fixed = &fixed;
            scope.spawn(move || {
                let mut model = Model::default();
                for round in 0..12 {
                    model
                        .fill(array, thread, u64::from(thread) * 100 + round)
                        .unwrap();
                    model.check(array, "own segment");
                    fixed.check(array, "shared segment");
                    if round % 3 == 0 {
                        array.sync().unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            for round in 0..40u8 {
                array.commit(&[round], false).unwrap();
                let data = Arc::new(AlignedBuf::copy_of(&noise(round.into(), 4096)));
                array
                    .journal_write(u64::from(round % 4) * 4096, &data)
                    .unwrap();
            }
        });
        scope.spawn(move || {
            std::thread::yield_now();
            lose();
        });
    });
    assert_eq!(array.engine_record(), [39]);
    fixed.check(array, "afterwards");
}

#[test]
fn threads_share_an_array_that_loses_a_member() {
    for (level, width) in [
        (Level::Raid1, 2),
        (Level::Raid5, 4),
        (Level::Raid6, 5),
        (Level::Raid10, 4),
    ] {
        let (pool, array) = Pool::create(level, width, 80);
        hammer(&array, || pool.world.inject(pool.path(1), Fault::Vanish));
        array.sync().unwrap();
        assert_eq!(not_online(&array), [1]);
        array.close();
        pool.world.heal(pool.path(1));
        assert_eq!(not_online(&pool.open().unwrap()), [1]);
    }
    for backend in backends() {
        let directory = tempfile::tempdir().unwrap();
        let members = files(directory.path(), 4);
        let witness = Box::new(PoolFile::new(directory.path()));
        let spec = spec_of(Level::Raid5, &members);
        let array = Array::create(backend, &spec, b"", witness).unwrap();
        array.commit(b"", false).unwrap();
        hammer(&array, || array.fail_member(index(2), "test").unwrap());
        assert_eq!(not_online(&array), [2]);
    }
}
