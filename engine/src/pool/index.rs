//! The fingerprint index as the pool's user sees it: what it takes, and how it
//! is dropped and made anew while clients go on.
//!
//! That it is dropped is a setting, in the members: a lost `DIR/index` does not
//! bring it back, and neither does import. The setting is durable before
//! anything is deleted, and a start after a crash in between deletes the rest.

use std::time::Duration;

use tessera_dedup::IndexState;

use super::{CheckpointKind, engine::Engine};
use crate::{
    api::IndexInfo,
    error::{EngineError, ErrorKind},
};

/// Lookups that were under way take milliseconds. Who waits is a command.
const TRIES: u32 = 5000;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

impl Engine {
    pub(crate) fn index_info(&self) -> IndexInfo {
        let facts = self.index.facts();
        let (done, total) = match facts.state {
            IndexState::Rebuilding { done, total } => (done, total),
            IndexState::Ready | IndexState::Dropped => (0, 0),
        };
        let state = match facts.state {
            IndexState::Dropped => "dropped",
            _ if self.read_only => "closed",
            IndexState::Ready => "ready",
            IndexState::Rebuilding { .. } => "rebuilding",
        };
        IndexInfo {
            state: state.to_owned(),
            progress: match total {
                0 => 1.0,
                total => done as f64 / total as f64,
            },
            segments_done: done,
            segments_total: total,
            entries: facts.entries,
            sampled_one_in: facts.asked_one_in,
            kept_one_in: facts.kept_one_in,
            memory_bytes: facts.memory_bytes,
            memory_limit_bytes: facts.memory_limit_bytes,
            disk_bytes: facts.disk_bytes,
            disk_limit_bytes: facts.disk_limit_bytes,
            memory_bytes_per_tib: facts.memory_bytes_per_tib,
            disk_bytes_per_tib: facts.disk_bytes_per_tib,
        }
    }

    /// Drops the index until [`Self::rebuild_index`].
    pub(crate) fn drop_index(&self) -> Result<IndexInfo, EngineError> {
        self.check_writable()?;
        self.keep_index_dropped(true)?;
        self.index.discard();
        self.signals.index.ring();
        Ok(self.index_info())
    }

    /// Makes the index anew from the summaries, in the background.
    pub(crate) fn rebuild_index(&self) -> Result<IndexInfo, EngineError> {
        self.check_writable()?;
        self.index.discard();
        let mut tries = 0;
        while !self.index.reopen() {
            tries += 1;
            if tries == TRIES {
                let message = "Lookups in the old index do not end: try again";
                return Err(EngineError::new(ErrorKind::Busy, message));
            }
            std::thread::sleep(BETWEEN_TRIES);
        }
        self.keep_index_dropped(false)?;
        self.begin_index_rebuild();
        self.signals.index.ring();
        Ok(self.index_info())
    }

    fn keep_index_dropped(&self, dropped: bool) -> Result<(), EngineError> {
        let before = std::mem::replace(&mut self.settings.lock().index_dropped, dropped);
        if before == dropped {
            return Ok(());
        }
        self.checkpoint_now(CheckpointKind::Normal)
    }
}
