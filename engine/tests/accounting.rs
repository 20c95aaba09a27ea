//! What is stored for whom, against a naive model, and warnings of what is left.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    Rng, from_env, noise,
    pools::{finish_jobs, request},
    world::{Scale, World, volume},
};
use tessera_engine::{
    api::{DedupMode, SettingsChange, SpaceUse, VolumeSpec, WarningKind},
    disk::Operation,
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 128 << 10,
    segments: 160,
    journal_bytes: 2 << 20,
};
const CHUNK: u64 = 4096;
const CHUNKS: u64 = 400;

/// By volume or `volume@snapshot`: what each chunk holds, 0 for nothing.
type Model = BTreeMap<String, Vec<u64>>;

fn write(pool: &Simulated, name: &str, chunk: u64, content: u64) {
    let data = noise(content, CHUNK as usize);
    let write = Operation::Write {
        offset: chunk * CHUNK,
        data: &data,
    };
    assert_eq!(request(pool, name, write), Ok(()), "{:?}", pool.failure());
}

fn discard(pool: &Simulated, name: &str, chunk: u64, count: u64) {
    let discard = Operation::Discard {
        offset: chunk * CHUNK,
        length: count * CHUNK,
    };
    assert_eq!(request(pool, name, discard), Ok(()));
}

fn contents(of: &[u64]) -> BTreeSet<u64> {
    of.iter().copied().filter(|content| *content != 0).collect()
}

/// Counts by comparing everybody with everybody.
fn expected(model: &Model, name: &str) -> SpaceUse {
    let own = contents(&model[name]);
    let others: BTreeSet<u64> = model
        .iter()
        .filter(|(other, _)| *other != name)
        .flat_map(|(_, of)| contents(of))
        .collect();
    let bytes = CHUNK * own.len() as u64;
    let exclusive = CHUNK * own.difference(&others).count() as u64;
    SpaceUse::known(bytes, bytes, exclusive)
}

fn compare(pool: &Simulated, model: &Model, context: &str) {
    let status = pool.status();
    assert!(status.counted_exactly && status.counted_unix_ms.is_some());
    let mut shown = BTreeMap::new();
    for volume in pool.volumes() {
        shown.insert(volume.name, (volume.logical_bytes, volume.space));
    }
    for snapshot in pool.snapshots(None).unwrap() {
        let name = format!("{}@{}", snapshot.volume, snapshot.name);
        shown.insert(name, (snapshot.logical_bytes, snapshot.space));
    }
    let should: BTreeMap<String, (u64, SpaceUse)> = model
        .iter()
        .map(|(name, of)| {
            let mapped = of.iter().filter(|content| **content != 0).count() as u64;
            (name.clone(), (CHUNK * mapped, expected(model, name)))
        })
        .collect();
    assert_eq!(shown, should, "{context}");
    let all = |is_volume: bool| -> BTreeSet<u64> {
        let of = model.iter();
        of.filter(|(name, _)| name.contains('@') != is_volume)
            .flat_map(|(_, of)| contents(of))
            .collect()
    };
    let (volumes, snapshots) = (all(true), all(false));
    let unique = CHUNK * volumes.len() as u64;
    assert_eq!(status.unique_bytes, unique, "{context}");
    assert_eq!(status.stored_bytes, unique, "{context}");
    let only_snapshots = snapshots.difference(&volumes).count() as u64;
    assert_eq!(status.snapshot_bytes, CHUNK * only_snapshots, "{context}");
}

/// One of the volumes, or of the snapshots.
fn some(rng: &mut Rng, model: &Model, snapshots: bool) -> Option<String> {
    let names = model.keys();
    let names: Vec<&String> = names
        .filter(|name| name.contains('@') == snapshots)
        .collect();
    let count = names.len() as u64;
    (count > 0).then(|| names[rng.below(count) as usize].clone())
}

fn run(seed: u64, operations: u64) {
    let world = World::create(Level::Raid5, 3, SCALE, seed);
    let pool = world.open().unwrap();
    let mut rng = Rng::new(seed);
    let mut model = Model::new();
    for name in ["a", "b"] {
        pool.create_volume(&volume(name, CHUNKS * CHUNK)).unwrap();
        model.insert(name.to_owned(), vec![0; CHUNKS as usize]);
    }
    let mut made = 0;
    let mut fresh = 1 << 32;
    for operation in 0..operations {
        let name = some(&mut rng, &model, false).unwrap();
        let snapshot = some(&mut rng, &model, true);
        let parts = snapshot.as_deref().and_then(|name| name.split_once('@'));
        let of = || model[snapshot.as_deref().unwrap()].clone();
        match (rng.below(20), parts) {
            (0..12, _) => {
                let first = rng.below(CHUNKS);
                for chunk in first..(first + 1 + rng.below(8)).min(CHUNKS) {
                    // New, or one of a few that are everywhere.
                    let content = match rng.below(3) {
                        0 => 1 + rng.below(40),
                        _ => {
                            fresh += 1;
                            fresh
                        }
                    };
                    write(&pool, &name, chunk, content);
                    model.get_mut(&name).unwrap()[chunk as usize] = content;
                }
            }
            (12, _) => {
                let first = rng.below(CHUNKS);
                let count = rng.below(40).min(CHUNKS - first);
                discard(&pool, &name, first, count);
                model.get_mut(&name).unwrap()[first as usize..][..count as usize].fill(0);
            }
            (13..16, _) if model.len() < 14 => {
                made += 1;
                pool.create_snapshot(&name, &format!("s{made}")).unwrap();
                model.insert(format!("{name}@s{made}"), model[&name].clone());
            }
            (16, Some((volume, own))) if model.len() < 14 => {
                made += 1;
                let clone = format!("c{made}");
                pool.clone_snapshot(volume, own, &clone).unwrap();
                model.insert(clone, of());
            }
            (17, Some((volume, own))) => {
                pool.roll_back(volume, own, false).unwrap();
                model.insert(volume.to_owned(), of());
            }
            (18, Some((volume, own))) => {
                pool.delete_snapshot(volume, own).unwrap();
                model.remove(&format!("{volume}@{own}"));
            }
            (19, _) if rng.below(4) == 0 && model.len() > 6 && name.starts_with('c') => {
                pool.delete_volume_and_snapshots(&name).unwrap();
                let of = format!("{name}@");
                model.retain(|other, _| *other != name && !other.starts_with(&of));
            }
            _ => {
                pool.reclaim().unwrap();
            }
        }
        if operation % 25 == 24 {
            let context = format!("TESSERA_SEED={seed}, operation {operation}");
            compare(&pool, &model, &context);
        }
    }
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    compare(&pool, &model, &format!("TESSERA_SEED={seed}, opened again"));
}

#[test]
fn what_is_stored_for_whom_is_what_a_naive_count_says() {
    let seeds = match from_env("TESSERA_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..6,
    };
    for seed in seeds {
        run(seed, 300);
    }
}

fn reclaim_all(pool: &Simulated) {
    pool.reclaim_start().unwrap();
    finish_jobs(pool);
}

#[test]
fn deleting_one_alone_frees_what_was_exclusive_to_it() {
    let world = World::create(Level::Raid5, 3, SCALE, 4);
    let pool = world.open().unwrap();
    pool.create_volume(&volume("a", CHUNKS * CHUNK)).unwrap();
    for chunk in 0..CHUNKS {
        write(&pool, "a", chunk, 1000 + chunk);
    }
    pool.create_snapshot("a", "s").unwrap();
    for chunk in 0..CHUNKS / 2 {
        write(&pool, "a", chunk, 5000 + chunk);
    }
    let half = CHUNKS / 2 * CHUNK;
    let snapshot = &pool.snapshots(None).unwrap()[0];
    assert_eq!(snapshot.space, SpaceUse::known(2 * half, 2 * half, half));
    while pool.reclaim().unwrap() {}
    let before = pool.status();
    pool.delete_snapshot("a", "s").unwrap();
    let dead = pool.status().reclaimable_bytes.unwrap();
    let became = dead - before.reclaimable_bytes.unwrap();
    // Chunks in a segment that is still open are not counted among the dead.
    let segment = u64::from(SCALE.segment_bytes);
    assert!(became.abs_diff(half) <= segment, "{became} for {half}");
    reclaim_all(&pool);
    let after = pool.status();
    let won = after.free_bytes - before.free_bytes;
    assert!(won.abs_diff(half) <= 3 * segment, "{won} for {half}");
    let left = after.reclaimable_bytes.unwrap();
    assert!(left <= 4 * segment, "{left} left of {dead}");
}

#[test]
fn compression_shows_in_what_a_volume_stores() {
    let world = World::create(Level::Raid1, 2, SCALE, 5);
    let pool = world.open().unwrap();
    let spec = VolumeSpec {
        dedup: DedupMode::Off,
        ..volume("a", CHUNKS * CHUNK)
    };
    pool.create_volume(&spec).unwrap();
    let mut data = vec![7; CHUNK as usize];
    for chunk in 0..100_u64 {
        data[..8].copy_from_slice(&chunk.to_le_bytes());
        let write = Operation::Write {
            offset: chunk * CHUNK,
            data: &data,
        };
        request(&pool, "a", write).unwrap();
    }
    let space = pool.volumes()[0].space;
    assert_eq!(space.unique_bytes, Some(100 * CHUNK));
    let stored = space.stored_bytes.unwrap();
    assert!(stored > 0 && stored < 50 * CHUNK, "{stored}");
    assert_eq!(space.exclusive_bytes, Some(stored));
}

#[test]
fn low_space_is_warned_of_below_the_mark_which_is_kept() {
    let world = World::create(Level::Raid5, 3, SCALE, 6);
    let pool = world.open().unwrap();
    let kinds = |pool: &Simulated| -> Vec<WarningKind> {
        let warnings = pool.status().warnings;
        warnings.into_iter().map(|warning| warning.kind).collect()
    };
    assert_eq!(kinds(&pool), []);
    pool.create_volume(&volume("a", 64 << 20)).unwrap();
    let free = pool.status().free_bytes;
    let set = |pool: &Simulated, bytes| {
        let change = SettingsChange {
            warn_free_bytes: Some(bytes),
            ..SettingsChange::default()
        };
        pool.set_settings(&change).unwrap();
    };
    set(&pool, free + 1);
    assert_eq!(kinds(&pool), [WarningKind::LowSpace]);
    set(&pool, free / 2);
    assert_eq!(kinds(&pool), []);
    pool.close().unwrap();
    drop(pool);
    let pool = world.open().unwrap();
    assert_eq!(pool.settings().warn_free_bytes, free / 2);
    let mut chunk = 0;
    while pool.status().free_bytes >= free / 2 {
        for _ in 0..32 {
            write(&pool, "a", chunk, 9000 + chunk);
            chunk += 1;
        }
    }
    assert_eq!(kinds(&pool), [WarningKind::LowSpace]);
    loop {
        let data = noise(90_000 + chunk, CHUNK as usize);
        let offset = chunk * CHUNK;
        let data = &data;
        if request(&pool, "a", Operation::Write { offset, data }).is_err() {
            break;
        }
        chunk += 1;
    }
    assert!(!kinds(&pool).is_empty(), "a full pool says so");
    discard(&pool, "a", 0, chunk);
    reclaim_all(&pool);
    assert_eq!(kinds(&pool), []);
}
