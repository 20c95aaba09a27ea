//! Reading and hashing the chunks of a window, in the order of their places.

use tessera_dedup::{Entry, decompress, fingerprint_many};

use super::window::Window;
use crate::{
    error::EngineError,
    pool::{engine::Engine, write::GROUP_BYTES},
};

/// Bytes before compression of one step.
const HASH_BYTES: usize = 2 * GROUP_BYTES;

/// What a step came to.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Hashed {
    pub(super) chunks: u64,
    pub(super) read_bytes: u64,
    /// Stored bytes of all chunks that have been dealt with.
    pub(super) passed_bytes: u64,
}

impl Engine {
    /// Hashes wanted chunks from `at` on, and moves it behind them.
    pub(super) fn hash_some(
        &self,
        window: &mut Window,
        at: &mut usize,
    ) -> Result<Hashed, EngineError> {
        self.check_usable()?;
        // Nothing that is read now is freed and used again meanwhile (R9).
        let _guard = self.epochs.enter();
        let mut hashed = Hashed::default();
        let mut chosen = Vec::new();
        let mut logical = 0;
        while let Some(chunk) = window.chunks.get(*at) {
            if chunk.is_wanted() && self.is_still(chunk.entry.segment, chunk.generation) {
                logical += chunk.logical as usize;
                if !chosen.is_empty() && logical > HASH_BYTES {
                    break;
                }
                chosen.push(*at);
            }
            hashed.passed_bytes += u64::from(chunk.entry.stored);
            *at += 1;
        }
        let entries: Vec<Entry> = chosen.iter().map(|at| window.chunks[*at].entry).collect();
        let stored = self.reader.read_stored(&entries);
        let mut whole = Vec::with_capacity(chosen.len());
        let mut bytes = Vec::with_capacity(chosen.len());
        for (index, stored) in chosen.into_iter().zip(stored) {
            let chunk = &window.chunks[index];
            let mut data = vec![0; chunk.logical as usize];
            // What is damaged is for a scrub to tell of: it stays unhashed.
            let unpacked = stored
                .ok()
                .and_then(|stored| decompress(&stored, chunk.entry.kind, &mut data).ok());
            if unpacked.is_some() {
                hashed.read_bytes += u64::from(chunk.entry.stored);
                whole.push(index);
                bytes.push(data);
            }
        }
        let slices: Vec<&[u8]> = bytes.iter().map(Vec::as_slice).collect();
        let mut prints = Vec::with_capacity(slices.len());
        fingerprint_many(&slices, &mut prints);
        hashed.chunks = whole.len() as u64;
        for (index, print) in whole.into_iter().zip(prints) {
            window.chunks[index].print = Some(print);
        }
        Ok(hashed)
    }
}
