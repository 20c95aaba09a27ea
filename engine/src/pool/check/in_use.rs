//! Checking a pool while clients use it.
//!
//! ```text
//!   checkpoint     so that the root is of now, and the journal short
//!   hold commits   superblock copies; journal chain and its copies; the record
//!   let go         everything below the record's root, as on a stopped pool
//! ```
//! Pages are immutable, and what a root names lies in closed and synced stripes
//! (R12), so nothing that is read changes meanwhile. Reclaim may free segments:
//! they are passed over ([`super::source`]), and the report says how many. The
//! space comes back in time and clients never wait for a check, at the price
//! that what reclaim moves while a check runs is not part of it.

use super::{Check, CheckObserver, Source, check_array};
use crate::{
    api::CheckReport,
    error::{EngineError, ErrorKind},
    pool::{CheckpointKind, Pool, engine::Engine},
};

/// Roots that may be freed under a check before it gives up.
const ATTEMPTS: usize = 8;

impl Pool {
    /// As [`Pool::check`], on this open pool: everything that the root of a
    /// checkpoint taken for it names.
    ///
    /// # Errors
    /// `Busy` where the observer cancelled it, or the pool was closed.
    pub fn check_in_use(
        &self,
        data: bool,
        observer: &dyn CheckObserver,
    ) -> Result<CheckReport, EngineError> {
        self.engine.check_in_use(data, observer)
    }
}

/// An observer that also stops for a pool that is being closed.
struct UntilClosed<'a> {
    engine: &'a Engine,
    observer: &'a dyn CheckObserver,
}

impl CheckObserver for UntilClosed<'_> {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.observer.progress(stage, done, total);
    }

    fn cancelled(&self) -> bool {
        self.engine.is_closed() || self.observer.cancelled()
    }
}

impl Engine {
    pub(crate) fn check_in_use(
        &self,
        data: bool,
        observer: &dyn CheckObserver,
    ) -> Result<CheckReport, EngineError> {
        let observer = UntilClosed {
            engine: self,
            observer,
        };
        if self.read_only {
            // Nobody writes: the members are as they were when it was opened.
            return self.unless_cancelled(check_array(&self.array, data, &observer), &observer);
        }
        for _ in 0..ATTEMPTS {
            if let Some(report) = self.check_newest_root(data, &observer) {
                return self.unless_cancelled(report, &observer);
            }
        }
        Err(EngineError::new(
            ErrorKind::Busy,
            "Each root was freed before it could be read: try again when the pool is less busy",
        ))
    }

    fn unless_cancelled(
        &self,
        report: CheckReport,
        observer: &dyn CheckObserver,
    ) -> Result<CheckReport, EngineError> {
        if !observer.cancelled() {
            return Ok(report);
        }
        Err(EngineError::new(
            ErrorKind::Busy,
            match self.is_closed() {
                true => "The pool was closed before the check had ended",
                false => "The check was cancelled",
            },
        ))
    }

    /// `None` when the root was freed before it could be read.
    fn check_newest_root(&self, data: bool, observer: &dyn CheckObserver) -> Option<CheckReport> {
        // A pool that is full or has stopped is checked from the root it has.
        if self.check_usable().is_ok()
            && self.is_dirty()
            && let Err(error) = self.checkpoint_now(CheckpointKind::Normal)
        {
            tracing::info!(%error, "A check begins from an older checkpoint");
        }
        let source = Source::new(&self.array, Some(self));
        let mut check = Check::new(&source, observer);
        check.members();
        check.progress("journal", 0, 1);
        let (record, batches) = {
            let checkpoint = self.checkpoint.lock();
            // No batch is written meanwhile.
            let _commit = self.commit.lock();
            let record = checkpoint.record.clone();
            let batches = check.journal_chain(&record);
            (record, batches)
        };
        check.progress("journal", 1, 1);
        if !check.structures(&record, &batches, data) {
            return None;
        }
        check.read_errors();
        let freed = source.freed();
        if freed > 0 {
            check.note(format!(
                "{freed} segments were freed while the check ran, and are not part of it"
            ));
        }
        Some(check.findings.finish())
    }
}
