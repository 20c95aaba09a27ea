//! With a database whose answers are wrong.

use super::*;

/// Answers whatever the test wants.
#[derive(Debug, Default)]
struct Liar {
    answers: HashMap<u64, store::Location>,
}

impl KeyStore for Liar {
    fn lookup(&self, keys: &[u64], out: &mut [Option<store::Location>]) {
        for (key, out) in keys.iter().zip(out) {
            *out = self.answers.get(key).copied();
        }
    }
    fn ingest(&self, _: &[(u64, store::Location)], _: &[u8]) -> Result<(), StoreError> {
        Err(StoreError::Full)
    }
    fn scan(&self, _: u64, _: usize, _: &mut dyn FnMut(u64)) -> Result<Option<u64>, StoreError> {
        Err(StoreError::Full)
    }
    fn crowded(&self) -> bool {
        false
    }
    fn keys_max(&self, _: u64) -> u64 {
        u64::MAX
    }
    fn thin(&self, _: u64) {}
    fn compact(&self) {}
    fn disk_bytes(&self) -> u64 {
        0
    }
    fn entries(&self) -> u64 {
        0
    }
    fn memory_bytes(&self) -> usize {
        0
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// R8: no state of the database makes a wrong hit.
    #[test]
    fn a_database_that_lies_makes_no_wrong_hit(
        answers in prop::collection::vec(
            (0usize..150, prop_oneof![0u32..4, any::<u32>()],
             prop_oneof![0u32..60, any::<u32>()], prop_oneof![4u32..9, any::<u32>()]),
            0..200),
        states in prop::collection::vec((0u32..4, 0u8..5), 0..4),
    ) {
        // Segment s has generation s + 5. Chunks 120..150 are stored nowhere.
        thread_local!(static POOL: (TestPool, Vec<Vec<Vec<u8>>>) = {
            let pool = TestPool::new(Level::Single, 1);
            let segments: Vec<_> = (0..3).map(|s| chunks(s * 40, 40)).collect();
            for (segment, chunks) in (0..).zip(&segments) {
                pool.write_segment(segment, u64::from(segment) + 5, chunks, true);
            }
            (pool, segments)
        });
        POOL.with(|(pool, segments)| {
            let everything: Vec<Vec<u8>> =
                segments.iter().flatten().cloned().chain(chunks(1000, 30)).collect();
            let prints = prints(&everything);
            let mut liar = Liar::default();
            for (key, segment, record, generation_low) in answers {
                let location = store::Location {
                    segment: SegmentId(segment), record, generation_low,
                };
                liar.answers.insert(prints[key].prefix(), location);
            }
            let opened = lifecycle::Opened {
                store: Box::new(liar), coverage: Coverage::default(), on_disk: false,
            };
            let options = options(pool, None);
            let furnished = furnish(&options, opened);
            let index = FingerprintIndex::with(
                options, Arc::<Array>::clone(&pool.array), furnished, Liveness::default(),
            );
            let saved = pool.directory.facts.lock().clone();
            for (segment, state) in states {
                let mut facts = pool.directory.facts.lock();
                let Some(known) = facts.get_mut(&SegmentId(segment)) else { continue };
                match state {
                    0 => known.frozen = true,
                    1 => known.generation.0 += 1,
                    2 => known.generation.0 += 1 << 32,
                    3 => known.summary = None,
                    _ => { facts.remove(&SegmentId(segment)); }
                }
            }
            let found = probe(&index, pool, &prints);
            let now = std::mem::replace(&mut *pool.directory.facts.lock(), saved);
            for (number, hit) in found.iter().enumerate() {
                let Some(hit) = hit else { continue };
                let segment = hit.entry.segment;
                let facts = &now[&segment];
                prop_assert!(!facts.frozen && facts.generation == hit.generation);
                prop_assert_eq!(hit.generation.0, u64::from(segment.0) + 5);
                // The chunk at that place is the one asked for.
                let mut target = vec![0; 4096];
                let mut read = [tessera_raid::SegmentRead {
                    placement: facts.placement.clone(),
                    offset: hit.entry.position / 4096 * 4096,
                    buffer: tessera_raid::device::AlignedBuf::zeroed(8192),
                    outcome: Ok(()),
                }];
                pool.array.read(&mut read);
                let from = (hit.entry.position % 4096) as usize;
                let stored = &read[0].buffer[from..from + hit.entry.stored as usize];
                crate::decompress(stored, hit.entry.kind, &mut target).unwrap();
                prop_assert_eq!(&target, &everything[number]);
            }
            Ok(())
        })?;
    }
}
