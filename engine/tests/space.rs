//! Space (R22): a full pool refuses new data and nothing else, and gives
//! space back without being opened again; what is overwritten is reclaimed.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    Rng, from_env, noise,
    world::{SHAPES, Scale, World, volume},
};
use tessera_engine::{
    disk::{DiskError, Operation, Request},
    pool::simulation::Simulated,
};
use tessera_raid::Level;

const SCALE: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 64 << 10,
    segments: 64,
    journal_bytes: 256 << 10,
};

/// A checkpoint takes a small part of a segment, as in real pools.
const ROOMY: Scale = Scale {
    unit_bytes: 4096,
    segment_bytes: 256 << 10,
    ..SCALE
};

fn request(pool: &Simulated, name: &str, operation: Operation<'_>) -> Result<(), DiskError> {
    let mut batch = [Request::new(operation)];
    pool.disk(name).unwrap().execute(&mut batch);
    let [request] = batch;
    request.result
}

fn check(pool: &Simulated, expected: &[u8], context: &str) {
    for (at, piece) in (0u64..).step_by(1 << 16).zip(expected.chunks(1 << 16)) {
        let mut buffer = vec![0xee; piece.len()];
        let read = Operation::Read {
            offset: at,
            buffer: &mut buffer,
        };
        assert_eq!(request(pool, "a", read), Ok(()), "{context} at {at}");
        assert!(buffer == piece, "{context} at {at}");
    }
}

/// Writes unique data from the start until there is no space; says how much.
fn fill(pool: &Simulated, model: &mut [u8], step: usize, seed: u64) -> usize {
    for at in (0..model.len()).step_by(step) {
        let data = noise(seed + at as u64, step);
        match request(
            pool,
            "a",
            Operation::Write {
                offset: at as u64,
                data: &data,
            },
        ) {
            Ok(()) => model[at..at + step].copy_from_slice(&data),
            Err(DiskError::NoSpace) => return at,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the volume is larger than the pool");
}

#[test]
fn a_full_pool_refuses_new_data_and_nothing_else() {
    for (level, width) in SHAPES {
        for step in [4096, 32 << 10] {
            let context = format!("{level}, {step}");
            let world = World::create(level, width, ROOMY, 1);
            let pool = world.open().unwrap();
            let size = 24 << 20;
            pool.create_volume(&volume("a", size as u64)).unwrap();
            let free = usize::try_from(pool.status().free_bytes).unwrap();
            let mut model = vec![0; size];
            let mut least = usize::MAX;
            let mut skipped = 0;
            for cycle in 0..4 {
                let filled = fill(&pool, &mut model, step, cycle << 32);
                least = least.min(filled);
                assert_eq!(pool.failure(), None, "{context}");
                pool.flush().unwrap();
                check(
                    &pool,
                    &model,
                    &format!("{context}, cycle {cycle}, full at {filled}"),
                );
                // Still refuses, still lives.
                let again = noise(999, 64 << 10);
                let offset = 23 << 20;
                let refused = request(
                    &pool,
                    "a",
                    Operation::Write {
                        offset,
                        data: &again,
                    },
                );
                assert_eq!(refused, Err(DiskError::NoSpace), "{context}");
                model[23 << 20..(23 << 20) + (64 << 10)].fill(0);
                discard(&pool, &mut model, 23 << 20, 64 << 10);
                // Odd little discards, then everything.
                let mut rng = Rng::new(cycle);
                for _ in 0..200 {
                    let at = rng.below(filled as u64 / 4096) as usize * 4096;
                    skipped += u64::from(!try_discard(&pool, &mut model, at));
                }
                check(&pool, &model, &format!("{context}, cycle {cycle}, holes"));
                discard(&pool, &mut model, 0, size);
                pool.flush().unwrap();
                assert_eq!(pool.failure(), None, "{context}");
            }
            // Where nothing at all can be freed, TRIM may do nothing.
            assert!(skipped < 40, "{context}: {skipped} of 800 discards");
            assert!(
                least * 10 >= free * 7,
                "{context}: {least} of {free} promised bytes"
            );
            let filled = fill(&pool, &mut model, step, 77 << 32);
            assert!(filled > 0);
            drop(pool);
            world.sim.kill_process();
            let pool = world
                .open()
                .unwrap_or_else(|error| panic!("{context}: {error:?}"));
            assert_eq!(pool.failure(), None);
            discard(&pool, &mut model, 0, size);
            fill(&pool, &mut model, step, 78 << 32);
            check(&pool, &model, &context);
            let closed = pool.close();
            assert!(closed.is_ok(), "{context}: {closed:?}");
        }
    }
}

fn discard(pool: &Simulated, model: &mut [u8], at: usize, length: usize) {
    let operation = Operation::Discard {
        offset: at as u64,
        length: length as u64,
    };
    assert_eq!(request(pool, "a", operation), Ok(()), "a discard at {at}");
    model[at..at + length].fill(0);
}

/// Discards one chunk. False where the full pool had no room to record it.
fn try_discard(pool: &Simulated, model: &mut [u8], at: usize) -> bool {
    let (offset, length) = (at as u64, 4096);
    assert_eq!(
        request(pool, "a", Operation::Discard { offset, length }),
        Ok(())
    );
    let mut buffer = vec![0xee; 4096];
    let buffer = &mut buffer;
    assert_eq!(
        request(pool, "a", Operation::Read { offset, buffer }),
        Ok(())
    );
    let done = buffer.iter().all(|byte| *byte == 0);
    assert!(done || *buffer == model[at..at + 4096]);
    if done {
        model[at..at + 4096].fill(0);
    }
    done
}

#[test]
fn two_fifths_of_the_capacity_are_overwritten_for_ever() {
    for (level, width) in SHAPES {
        for step in [4096usize, 28 << 10, 256 << 10] {
            for flushes in [false, true] {
                let context = format!("{level}, {step}, flushes {flushes}");
                let world = World::create(level, width, SCALE, 2);
                let pool = world.open().unwrap();
                let capacity = pool.status().capacity_bytes;
                let size = usize::try_from(capacity * 2 / 5).unwrap() / 4096 * 4096;
                pool.create_volume(&volume("a", size as u64)).unwrap();
                let mut model = vec![0; size];
                for round in 0..20u64 {
                    for at in (0..size).step_by(step) {
                        let data = noise(round << 32 | at as u64, step.min(size - at));
                        let write = Operation::Write {
                            offset: at as u64,
                            data: &data,
                        };
                        assert_eq!(
                            request(&pool, "a", write),
                            Ok(()),
                            "{context} round {round}"
                        );
                        model[at..at + data.len()].copy_from_slice(&data);
                        if flushes && at % 7 == 0 {
                            pool.flush().unwrap();
                        }
                    }
                    if round % 5 == 4 {
                        check(&pool, &model, &context);
                    }
                }
                pool.close().unwrap();
            }
        }
    }
}

#[test]
fn small_discards_all_over_a_large_full_volume_never_stop_the_pool() {
    // Every leaf of the map changes, far more pages than the reserve holds.
    let scale = Scale {
        segments: 80,
        ..ROOMY
    };
    let world = World::create(Level::Raid5, 3, scale, 3);
    let pool = world.open().unwrap();
    let leaf = 1 << 20;
    let leaves = from_env("TESSERA_LEAVES").unwrap_or(300);
    pool.create_volume(&volume("a", leaves * leaf)).unwrap();
    let mut written = Vec::new();
    'full: for within in 0..256 {
        for number in 0..leaves {
            let offset = number * leaf + within * 4096;
            let data = noise(offset, 4096);
            match request(
                &pool,
                "a",
                Operation::Write {
                    offset,
                    data: &data,
                },
            ) {
                Ok(()) => written.push(offset),
                Err(DiskError::NoSpace) => break 'full,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(written.len() > 100, "{}", written.len());
    for _ in 0..2 {
        for offset in &written {
            let (offset, length) = (*offset, 4096);
            assert_eq!(
                request(&pool, "a", Operation::Discard { offset, length }),
                Ok(())
            );
        }
        pool.flush().unwrap();
        assert_eq!(pool.failure(), None);
        pool.checkpoint().unwrap();
        let everything = Operation::Discard {
            offset: 0,
            length: leaves * leaf,
        };
        assert_eq!(request(&pool, "a", everything), Ok(()));
        for offset in &written[..written.len() / 2] {
            let data = noise(offset + 1, 4096);
            let write = Operation::Write {
                offset: *offset,
                data: &data,
            };
            assert_eq!(request(&pool, "a", write), Ok(()));
        }
    }
}
