//! Jobs that begin by themselves: when they are due, and when they wait.

use std::sync::atomic::Ordering;

use super::{dedup::PHASE_SCHEDULED, engine::Engine};
use crate::{
    api::{DedupMode, DedupSchedule, JobKind, JobState},
    jobs::JobRecord,
};

/// What is said of a deduplication that waits for clients to stop writing.
const HELD: &str = "Waits until nothing is written";

/// A deduplication that began because nothing was written.
#[derive(Debug)]
pub(crate) struct IdleRun {
    job: u64,
    /// Changes up to the last look.
    sequence: u64,
}

impl Engine {
    /// Starts a scrub when the schedule says so.
    pub(crate) fn scrub_by_schedule(&self) {
        let now = (self.clock)();
        if now == 0 {
            return;
        }
        let due = {
            let mut settings = self.settings.lock();
            let interval = settings.kept.scrub_interval_seconds.saturating_mul(1000);
            if interval == 0 {
                return;
            }
            if settings.scrub_due_ms == 0 {
                // Becomes durable with whatever checkpoint comes next.
                settings.scrub_due_ms = now.saturating_add(interval);
            }
            settings.scrub_due_ms <= now
        };
        if due && let Err(error) = self.start_job(JobKind::Scrub) {
            tracing::warn!(%error, "The scheduled scrub cannot start");
        }
    }

    /// Starts a deduplication when the schedule says so, there is a volume that
    /// leaves it to be done, and something has been written since the last one.
    pub(crate) fn dedup_by_schedule(&self, idle: bool) {
        let every = self.settings.lock().kept.dedup_every;
        if every == DedupSchedule::Off {
            return;
        }
        let newest = self.newest_job(JobKind::Dedup);
        let due = match every {
            DedupSchedule::Off => false,
            // It takes a tenth of the idle time at the most.
            DedupSchedule::Idle => {
                let took = newest.ended_unix_ms.saturating_sub(newest.started_unix_ms);
                idle && (self.clock)() >= newest.ended_unix_ms.saturating_add(10 * took)
            }
            DedupSchedule::Seconds(seconds) => {
                let rested = u64::from(seconds) * 1000;
                newest.id == 0 || (self.clock)() >= newest.ended_unix_ms.saturating_add(rested)
            }
        };
        if !due || matches!(newest.state, JobState::Running | JobState::Paused) {
            return;
        }
        let sequence = self.state.lock().sequence;
        let posts = || {
            let volumes = self.volumes.read();
            let mut all = volumes.by_id.values();
            all.any(|volume| volume.state.read().dedup == DedupMode::Post)
        };
        if self.deduplicated_at.load(Ordering::Relaxed) == sequence || !posts() {
            return;
        }
        if self.read_only || self.check_usable().is_err() {
            return;
        }
        let id = self.add_job(JobKind::Dedup, |record| {
            record.cursor.phase = PHASE_SCHEDULED;
        });
        self.deduplicated_at.store(sequence, Ordering::Relaxed);
        if every == DedupSchedule::Idle {
            *self.idle_run.lock() = Some(IdleRun { job: id, sequence });
        }
    }

    /// Holds the deduplication that began because nothing was written as long as
    /// something is; other jobs have their turn meanwhile.
    pub(crate) fn hold_while_written(&self, idle: bool) {
        let mut run = self.idle_run.lock();
        let Some(IdleRun { job, sequence }) = &mut *run else {
            return;
        };
        let job = *job;
        let now = self.state.lock().sequence;
        let written = std::mem::replace(sequence, now) != now;
        let waits = self.settings.lock().kept.dedup_every == DedupSchedule::Idle;
        let mut jobs = self.jobs.lock();
        let is_active = jobs.get(job).is_some_and(JobRecord::is_active);
        let hold = match (waits && is_active, written) {
            (false, _) => false,
            (true, true) => true,
            (true, false) => !idle && jobs.is_held(job),
        };
        if !waits || !is_active {
            *run = None;
        }
        if jobs.hold(job, hold) {
            let message = if hold { HELD } else { "" };
            jobs.update(job, |record| message.clone_into(&mut record.message));
            drop(jobs);
            self.signals.jobs.ring();
        }
    }
}
