//! The shortest way through the whole engine, on real files.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

use std::sync::{Arc, mpsc};

use tessera_engine::{
    api::{Compression, DedupMode, PoolSpec, VolumeSpec},
    disk::{Disk, Operation, Request},
    pool::{IoChoice, Pool, PoolOptions},
};
use tessera_raid::Level;

fn spec(directory: &std::path::Path, level: Level, count: usize) -> PoolSpec {
    PoolSpec {
        level,
        stripe_unit_bytes: 64 << 10,
        members: (0..count)
            .map(|n| directory.join(format!("disk{n}.img")))
            .collect(),
        create_files_bytes: Some(256 << 20),
        force: false,
    }
}

fn volume(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        size_bytes: 64 << 20,
        chunk_bytes: 4096,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
    }
}

fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn write(disk: &Arc<dyn Disk>, offset: u64, data: &[u8]) {
    let mut batch = [Request::new(Operation::Write { offset, data })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
}

fn read(disk: &Arc<dyn Disk>, offset: u64, length: usize) -> Vec<u8> {
    let mut buffer = vec![0; length];
    let mut batch = [Request::new(Operation::Read {
        offset,
        buffer: &mut buffer,
    })];
    disk.execute(&mut batch);
    assert_eq!(batch[0].result, Ok(()));
    buffer
}

fn flush(disk: &Arc<dyn Disk>) {
    let (sender, receiver) = mpsc::channel();
    disk.flush(Box::new(move |result| sender.send(result).unwrap()));
    assert_eq!(receiver.recv().unwrap(), Ok(()));
}

#[test]
fn data_survives_a_clean_stop_and_is_deduplicated() {
    let directory = tempfile::tempdir().unwrap();
    let pool_dir = directory.path().join("pool");
    for (level, count) in [(Level::Raid5, 4), (Level::Single, 1), (Level::Raid6, 5)] {
        let here = pool_dir.join(level.name());
        Pool::create(&here, &spec(&here, level, count), IoChoice::Auto).unwrap();
        let options = PoolOptions {
            memory_bytes: 128 << 20,
            ..PoolOptions::default()
        };
        let data = pattern(7, 5 << 20);
        {
            let pool = Pool::open(&here, &options).unwrap();
            pool.create_volume(&volume("a")).unwrap();
            let disk = pool.catalog().open("a").unwrap();
            write(&disk, 0, &data);
            write(&disk, 20 << 20, &data);
            write(&disk, 12_345 + (10 << 20), &data[..100_000]);
            assert_eq!(read(&disk, 0, data.len()), data);
            assert_eq!(read(&disk, 20 << 20, data.len()), data);
            assert_eq!(read(&disk, 12_345 + (10 << 20), 100_000), data[..100_000]);
            flush(&disk);
            drop(disk);
            let status = pool.status();
            assert!(status.dedup_ratio > 1.8, "{status:?}");
            pool.close().unwrap();
        }
        let pool = Pool::open(&here, &options).unwrap();
        let disk = pool.catalog().open("a").unwrap();
        assert_eq!(read(&disk, 0, data.len()), data);
        assert_eq!(read(&disk, 20 << 20, data.len()), data);
        assert_eq!(read(&disk, 12_345 + (10 << 20), 100_000), data[..100_000]);
        assert_eq!(read(&disk, 15 << 20, 4096), vec![0; 4096]);
    }
}
