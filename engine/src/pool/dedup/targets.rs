//! Looking up what else holds the same bytes.
//!
//! The index is asked in the order of hashes and only says which segments may
//! hold some. Their summaries are then read, each once, and every hash in them
//! is compared: so an answer is never believed (R8), and neighbours that the
//! index does not know are found with those it does.

use tessera_dedup::{Fingerprint, Hit, Summary};
use tessera_raid::{SegmentId, device::BLOCK_BYTES, sabotage::broken};

use super::window::{SUMMARIES_PER_STEP, Window};
use crate::pool::engine::Engine;

/// Hashes looked up in one step.
const HASHES_PER_STEP: usize = 8192;

impl Engine {
    /// Asks the index about the sorted chunks from `at` on; true at the end.
    pub(super) fn look_up_some(&self, window: &mut Window, at: &mut usize) -> bool {
        let end = (*at + HASHES_PER_STEP).min(window.sorted.len());
        let mut firsts = Vec::new();
        let mut prints: Vec<Fingerprint> = Vec::new();
        for place in *at..end {
            let print = window.print(place);
            if prints.last() != Some(&print) {
                prints.push(print);
                firsts.push(place);
            }
        }
        for ((place, print), located) in firsts
            .into_iter()
            .zip(&prints)
            .zip(self.index.locate_all(&prints))
        {
            // Written lately: verified already, and perhaps in no summary yet.
            if let Some(hit) = self.index.fresh_get(print, &*self.table) {
                window.offer(place, print, hit);
            }
            window.suspects.extend(located);
        }
        *at = end;
        end == window.sorted.len()
    }

    /// Compares with the summaries of some of the suspected segments, and takes
    /// these off the list; how many bytes were read.
    pub(super) fn verify_some(
        &self,
        window: &mut Window,
        suspects: &mut Vec<(SegmentId, u32)>,
    ) -> u64 {
        let _guard = self.epochs.enter();
        let mut bytes = 0;
        let from = suspects.len().saturating_sub(SUMMARIES_PER_STEP);
        for (segment, generation_low) in suspects.drain(from..) {
            let Some(record) = self.table.record(segment) else {
                continue;
            };
            // The low 32 bits.
            if record.generation.0 as u32 != generation_low {
                continue;
            }
            bytes += u64::from(record.summary.blocks) * BLOCK_BYTES as u64;
            if let Some(summary) = self.read_summary(segment, &record) {
                window.compare(&summary);
            }
        }
        bytes
    }
}

impl Window {
    /// Takes what a summary lists of the hashes that are looked for.
    fn compare(&mut self, summary: &Summary) {
        for record in &summary.records {
            let Some(print) = record.fingerprint else {
                continue;
            };
            let hit = Hit {
                entry: record.entry,
                generation: summary.generation,
                logical: record.logical,
            };
            let place = match broken("R8.hash_on_hit") {
                // As the index compares: by the first bytes.
                true => self
                    .sorted
                    .partition_point(|index| self.prefix(*index) < print.prefix()),
                false => self
                    .sorted
                    .partition_point(|index| self.chunk(*index).print < Some(print)),
            };
            if place < self.sorted.len() {
                self.offer(place, &print, hit);
            }
        }
    }

    fn prefix(&self, index: u32) -> u64 {
        let print = self.chunk(index).print;
        print.expect("only hashed chunks are sorted").prefix()
    }

    /// Notes a chunk that may stay in the place of those from `place` on, if
    /// they are equal to it. The first one stays the choice.
    fn offer(&mut self, place: usize, print: &Fingerprint, hit: Hit) {
        for at in place..self.sorted.len() {
            let chunk = self.chunk(self.sorted[at]);
            let same = chunk.print == Some(*print)
                || broken("R8.hash_on_hit")
                    && chunk.print.map(|print| print.prefix()) == Some(print.prefix());
            if !same {
                return;
            }
            if chunk.logical == hit.logical {
                self.found.entry(at).or_insert(hit);
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tessera_dedup::{Entry, EntryKind, Generation, Owner, SummaryRecord};
    use uuid::Uuid;

    use super::*;
    use crate::pool::dedup::window::Chunk;

    fn entry(segment: u32, position: u32) -> Entry {
        Entry {
            kind: EntryKind::Raw,
            segment: SegmentId(segment),
            position,
            stored: 4096,
            generation: 7,
            checksum: 0,
        }
    }

    fn looked_for(prints: &[[u8; 32]]) -> Window {
        let chunk = |(position, print): (u32, &[u8; 32])| Chunk {
            entry: entry(1, position),
            generation: Generation(7),
            logical: 4096,
            print: Some(Fingerprint(*print)),
            target: None,
            by_volume: true,
            by_snapshot: false,
            by_off: false,
            merged: false,
        };
        let mut window = Window {
            chunks: (0..).step_by(4096).zip(prints).map(chunk).collect(),
            ..Window::default()
        };
        window.sort_hashed();
        window
    }

    fn listing(print: [u8; 32], logical: u32) -> Summary {
        Summary {
            pool: Uuid::nil(),
            segment: SegmentId(2),
            generation: Generation(7),
            records: vec![SummaryRecord {
                fingerprint: Some(Fingerprint(print)),
                entry: entry(2, 0),
                logical,
                owner: Owner::default(),
            }],
        }
    }

    /// Hashes that the index cannot tell apart.
    #[test]
    fn r8_only_what_a_summary_lists_whole_takes_a_place() {
        let (one, mut other) = ([3; 32], [3; 32]);
        other[31] = 4;
        let mut window = looked_for(&[one]);
        window.compare(&listing(other, 4096));
        window.compare(&listing([2; 32], 4096));
        window.compare(&listing([9; 32], 4096));
        assert_eq!(window.found.len(), 0);
        window.compare(&listing(one, 8192));
        assert_eq!(window.found.len(), 0, "of another length");
        window.compare(&listing(one, 4096));
        assert_eq!(window.found.len(), 1);
        assert_eq!(window.choose_targets(), 1);
    }
}
