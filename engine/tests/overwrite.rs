//! The whole pool with its threads, on real sparse files: space comes back by
//! itself, concurrent writers agree, and the index is only a hint.
#![allow(clippy::unwrap_used)]

use std::{
    path::Path,
    sync::{Arc, mpsc},
};

use tessera_engine::{
    api::{Compression, DedupMode, PoolSpec, VolumeSpec},
    disk::{Disk, DiskError, Operation, Request},
    pool::{IoChoice, Pool, PoolOptions},
};
use tessera_raid::Level;

const CHUNK: usize = 4096;

fn create(directory: &Path, level: Level, members: usize, bytes: u64) {
    let spec = PoolSpec {
        level,
        stripe_unit_bytes: 64 << 10,
        members: (0..members)
            .map(|n| directory.join(format!("disk{n}.img")))
            .collect(),
        create_files_bytes: Some(bytes),
        force: false,
    };
    Pool::create(directory, &spec, IoChoice::Auto).unwrap();
}

fn open(directory: &Path) -> Arc<Pool> {
    let options = PoolOptions {
        memory_bytes: 64 << 20,
        ..PoolOptions::default()
    };
    Pool::open(directory, &options).unwrap()
}

fn volume(name: &str, size_bytes: u64) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        size_bytes,
        chunk_bytes: 4096,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
    }
}

/// Chunks that nothing else holds: a stamp, then bytes that follow from it.
fn fill(seed: u64, buffer: &mut [u8]) {
    for (number, chunk) in (0u64..).zip(buffer.chunks_mut(CHUNK)) {
        let mut state = (seed << 24 | number).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        for eight in chunk.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            eight.copy_from_slice(&state.to_le_bytes()[..eight.len()]);
        }
    }
}

fn write(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) -> Result<(), DiskError> {
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    let [request] = batch;
    request.result
}

fn read(disk: &Arc<dyn Disk>, offset: u64, buffer: &mut [u8]) {
    let mut batch = [Request::new(Operation::Read { offset, buffer })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()), "a read at {offset}");
}

fn flush(disk: &Arc<dyn Disk>) {
    let (sender, receiver) = mpsc::channel();
    disk.flush(Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Ok(()));
}

#[test]
fn two_fifths_of_the_capacity_are_overwritten_twenty_times() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), Level::Raid5, 4, 128 << 20);
    let pool = open(directory.path());
    let step = 1 << 20;
    let size = pool.status().capacity_bytes * 2 / 5 / step * step;
    pool.create_volume(&volume("a", size)).unwrap();
    let disk = pool.catalog().open("a").unwrap();
    let mut data = vec![0; 1 << 20];
    for round in 0..20 {
        for offset in (0..size).step_by(1 << 20) {
            fill(round << 32 | offset >> 20, &mut data);
            assert_eq!(
                write(&disk, offset, &data),
                Ok(()),
                "round {round} at {offset}"
            );
        }
        flush(&disk);
    }
    let mut found = vec![0; 1 << 20];
    for offset in (0..size).step_by(1 << 20) {
        fill(19 << 32 | offset >> 20, &mut data);
        read(&disk, offset, &mut found);
        assert!(found == data, "at {offset}");
    }
    drop(disk);
    pool.close().unwrap();
}

/// R9, R20: segments are freed, punched and used again under the readers.
#[test]
fn readers_never_see_what_a_reused_segment_holds() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), Level::Raid5, 3, 48 << 20);
    let pool = open(directory.path());
    let chunks = 2048u64;
    pool.create_volume(&volume("a", chunks * CHUNK as u64))
        .unwrap();
    let catalog = pool.catalog();
    // A chunk says where it belongs; any version of it is right.
    let stamped = |chunk: u64, version: u64| {
        let mut bytes = vec![0; CHUNK];
        fill(chunk << 20 | version, &mut bytes);
        bytes[..8].copy_from_slice(&chunk.to_le_bytes());
        bytes[8..16].copy_from_slice(&version.to_le_bytes());
        bytes
    };
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..2u64 {
            let disk = catalog.open("a").unwrap();
            let (done, stamped) = (&done, &stamped);
            scope.spawn(move || {
                let mut at = reader * 77;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    at = (at * 5 + 1) % chunks;
                    let mut bytes = vec![0; CHUNK];
                    read(&disk, at * CHUNK as u64, &mut bytes);
                    let word =
                        |from: usize| u64::from_le_bytes(bytes[from..from + 8].try_into().unwrap());
                    if bytes.iter().any(|byte| *byte != 0) {
                        assert_eq!(word(0), at, "another chunk's bytes");
                        assert!(bytes == stamped(at, word(8)), "torn chunk {at}");
                    }
                }
            });
        }
        let disk = catalog.open("a").unwrap();
        for version in 0..40 {
            for first in (0..chunks).step_by(64) {
                let data: Vec<u8> = (first..first + 64)
                    .flat_map(|chunk| stamped(chunk, version))
                    .collect();
                let written = write(&disk, first * CHUNK as u64, &data);
                if written.is_err() {
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                }
                assert_eq!(written, Ok(()), "version {version}");
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    pool.close().unwrap();
}

/// R13: a partial write holds its chunk from its read to its map change.
#[test]
fn partial_writes_of_one_chunk_do_not_lose_each_other() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), Level::Raid1, 2, 64 << 20);
    let pool = open(directory.path());
    pool.create_volume(&volume("a", 64 << 10)).unwrap();
    let catalog = pool.catalog();
    std::thread::scope(|scope| {
        for writer in 0..4u8 {
            let disk = catalog.open("a").unwrap();
            scope.spawn(move || {
                for round in 0..200u8 {
                    let offset = u64::from(writer) * 512;
                    assert_eq!(write(&disk, offset, &[round; 512]), Ok(()));
                    let mut own = [0; 512];
                    read(&disk, offset, &mut own);
                    assert_eq!(own, [round; 512], "another writer undid this one");
                }
            });
        }
    });
    pool.close().unwrap();
}

#[test]
fn concurrent_identical_writes_store_one_copy() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), Level::Raid5, 3, 128 << 20);
    let pool = open(directory.path());
    let mut data = vec![0; 8 << 20];
    fill(5, &mut data);
    for writer in 0..4 {
        pool.create_volume(&volume(&format!("v{writer}"), 16 << 20))
            .unwrap();
    }
    let catalog = pool.catalog();
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let disk = catalog.open(&format!("v{writer}")).unwrap();
            let (data, barrier) = (&data, &barrier);
            scope.spawn(move || {
                barrier.wait();
                for (number, piece) in (0u64..).zip(data.chunks(256 << 10)) {
                    assert_eq!(write(&disk, number * (256 << 10), piece), Ok(()));
                }
                flush(&disk);
            });
        }
    });
    let status = pool.status();
    assert_eq!(status.logical_bytes, 4 * data.len() as u64);
    assert_eq!(status.unique_bytes, data.len() as u64, "{status:?}");
    let stored: u64 = status.stored_bytes;
    assert_eq!(
        stored,
        data.len() as u64,
        "what does not pack is stored once, as it is"
    );
    pool.close().unwrap();
}

#[test]
fn the_index_can_be_deleted_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    create(directory.path(), Level::Raid5, 3, 128 << 20);
    let mut data = vec![0; 12 << 20];
    fill(6, &mut data);
    {
        let pool = open(directory.path());
        pool.create_volume(&volume("a", 16 << 20)).unwrap();
        let disk = pool.catalog().open("a").unwrap();
        assert_eq!(write(&disk, 0, &data), Ok(()));
        drop(disk);
        pool.close().unwrap();
    }
    std::fs::remove_dir_all(directory.path().join("index")).unwrap();
    let pool = open(directory.path());
    // The rebuild runs in the background: its end is waited for, not timed.
    while pool.status().index_state != "ready" {
        std::thread::yield_now();
    }
    let disk = pool.catalog().open("a").unwrap();
    let mut found = vec![0; data.len()];
    read(&disk, 0, &mut found);
    assert!(found == data, "nothing is lost");
    pool.create_volume(&volume("b", 16 << 20)).unwrap();
    let other = pool.catalog().open("b").unwrap();
    assert_eq!(write(&other, 0, &data), Ok(()));
    flush(&other);
    let status = pool.status();
    assert_eq!(status.logical_bytes, 2 * data.len() as u64);
    // Hits are allowed to be missed, but not many.
    assert!(
        status.unique_bytes < data.len() as u64 * 11 / 10,
        "{status:?}"
    );
    drop((disk, other));
    pool.close().unwrap();
}
