//! Repair of a pool that does not open, or that a check finds damaged.
//!
//! ```text
//!   does it open?   yes                  scrub: mend what any copy verifies of
//!                   root is there,       tables anew from what can be read of
//!                   tables are damaged   them and from summaries
//!                   root is lost         the newest older root that is whole
//!                   none is whole        maps that leaves of the catalogue and of the
//!                                        snapshot table name; volumes whose map is
//!                                        not whole anew, from leaves of it
//! ```
//! Each is tried on a pool opened read-only, so that the plan says what will
//! work. Applying it first keeps the superblocks' record as it was: only the
//! checkpoint at the end replaces it, so a crash leaves the pool as damaged as
//! before, and the repair can be tried again.
//!
//! Nothing that may be good is given up: every segment that a summary describes
//! is kept in the table, whether the root that was found knows it or not. What
//! nothing names is for reclaim to free, when space runs low.

mod rootless;
mod salvage;
mod scan;

use std::{path::Path, sync::Arc};

use tessera_raid::{Array, device::Backend};

pub(crate) use self::salvage::Salvage;
use self::salvage::Way;
use super::{
    CheckObserver, EngineOptions, IoChoice, MIN_MEMORY_BYTES, Pool, check::check_array,
    engine::Engine, open_array,
};
use crate::{
    api::{JobState, RepairReport},
    error::EngineError,
    jobs::system_clock,
};

/// Whether a repair only says what it would do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RepairMode {
    /// Write nothing.
    Plan,
    /// Do it.
    Apply,
}

impl Pool {
    /// Repairs a pool that nobody has open: superblocks from their copies,
    /// tables from summaries, maps from an older root or from their leaves,
    /// and whatever any copy verifies of.
    ///
    /// What cannot be put right is in the report, never an error.
    ///
    /// # Errors
    /// Where the members do not make a pool, or writing to them fails.
    pub fn repair(
        directory: &Path,
        mode: RepairMode,
        io: IoChoice,
        observer: &dyn CheckObserver,
    ) -> Result<RepairReport, EngineError> {
        let backend = io.backend()?;
        let open = |read_only| {
            open_array(
                directory,
                Arc::clone(&backend) as Arc<dyn Backend>,
                read_only,
            )
        };
        let options = EngineOptions {
            clock: system_clock(),
            ..EngineOptions::new(MIN_MEMORY_BYTES)
        };
        let report = repair(&open, &options, mode, observer)?;
        let index = directory.join("index");
        if mode == RepairMode::Apply && report.index_is_stale && index.exists() {
            std::fs::remove_dir_all(&index).map_err(|error| {
                let message = format!("Cannot remove {}: {error}", index.display());
                EngineError::new(crate::ErrorKind::Io, message)
            })?;
        }
        Ok(report)
    }
}

/// As [`Pool::repair`] over any array; `open` opens it read-only or not.
pub(crate) fn repair(
    open: &dyn Fn(bool) -> Result<Array, EngineError>,
    options: &EngineOptions,
    mode: RepairMode,
    observer: &dyn CheckObserver,
) -> Result<RepairReport, EngineError> {
    let mut report = RepairReport::default();
    let way = {
        let array = Arc::new(open(true)?);
        let (_, superblocks) = array.check_superblocks();
        for problem in superblocks {
            report.actions.push(format!("Write again: {problem}"));
        }
        salvage::find_way(&array, options, observer, &mut report)?
    };
    let salvage = match way {
        Way::AsItIs => {
            let found = check_array(&open(true)?, true, observer);
            for problem in found.problems {
                if !problem.starts_with("Superblock") {
                    report
                        .actions
                        .push(format!("Mend, where a copy verifies: {problem}"));
                }
            }
            // A check does not look at copies that a plain read does not need.
            report
                .actions
                .push("Verify every copy of everything, and mend what is wrong".to_owned());
            None
        }
        Way::With(salvage) => {
            report.index_is_stale = true;
            report
                .actions
                .push("Make the fingerprint index anew from summaries".to_owned());
            Some(salvage)
        }
        Way::None => {
            report
                .problems
                .push("Neither a root nor leaves of maps can be found".to_owned());
            return Ok(report);
        }
    };
    if mode == RepairMode::Plan {
        return Ok(report);
    }
    let engine = Engine::open_salvaging(open(false)?, options, salvage.as_deref())?;
    let scrub = engine.start_job(crate::api::JobKind::Scrub);
    if let Ok(job) = scrub {
        while engine.job_step()?.is_some() {
            let now = engine.job_info(job.id)?;
            observer.progress("scrub", now.bytes_done, now.bytes_total);
        }
        let job = engine.job_info(job.id)?;
        report.repaired = job.repaired;
        report.problems.extend(job.losses);
        if job.state == JobState::Failed {
            report.problems.push(job.message);
        }
    }
    engine.shut_down()?;
    report.applied = true;
    Ok(report)
}
