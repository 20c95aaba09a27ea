//! Whose turn it is: starting, stepping, pausing and ending jobs.
//!
//! One step of one job at a time, under the work lock, which comes before every
//! other lock of the engine. What a step needs to remember between steps and
//! can find out again after a crash is in [`Work`]; what must survive is in the
//! job table, and with it in the next checkpoint.

use std::sync::atomic::Ordering;

use super::{
    dedup::DedupWork, engine::Engine, losses::Naming, rebuild::RebuildWork, reclaim::ReclaimWork,
    scrub::ScrubWork, walk::WALK_STEP_BYTES,
};
use crate::{
    api::{JobInfo, JobKind, JobState, PoolSettings, SettingsChange},
    error::{EngineError, ErrorKind},
    jobs::JobRecord,
};

/// What steps remember.
#[derive(Debug, Default)]
pub(crate) struct Work {
    pub(crate) rebuild: Option<RebuildWork>,
    pub(crate) scrub: Option<ScrubWork>,
    pub(crate) reclaim: Option<ReclaimWork>,
    pub(crate) dedup: Option<DedupWork>,
    /// Of a scrub that ended before the pool was opened.
    pub(crate) naming: Option<Naming>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stepped {
    pub(crate) kind: JobKind,
    /// Bytes read and written, for pacing.
    pub(crate) bytes: u64,
}

fn job_name(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Scrub => "A scrub",
        JobKind::Rebuild => "A rebuild",
        JobKind::Reclaim => "A reclaim",
        JobKind::Dedup => "A deduplication",
    }
}

fn no_job(id: u64) -> EngineError {
    EngineError::new(ErrorKind::NotFound, format!("There is no job {id}"))
}

impl Engine {
    /// One step of the job whose turn it is; `None` when there is none.
    ///
    /// # Errors
    /// Only the pool's: a job that fails says so in its own record.
    pub(crate) fn job_step(&self) -> Result<Option<Stepped>, EngineError> {
        let mut work = self.work.lock();
        if self.read_only || self.check_usable().is_err() {
            return Ok(None);
        }
        let Some(job) = self.jobs.lock().next_running().cloned() else {
            return self.name_ended(&mut work.naming);
        };
        let result = match job.kind {
            JobKind::Rebuild => self.rebuild_step(&mut work.rebuild, &job).map(Some),
            JobKind::Scrub => self.scrub_step(&mut work.scrub, &job).map(Some),
            JobKind::Reclaim => self.reclaim_step(&mut work.reclaim, &job).map(Some),
            JobKind::Dedup => self.dedup_step(&mut work.dedup, &job),
        };
        let now = (self.clock)();
        match result {
            Ok(bytes) => {
                self.jobs.lock().sample(job.id, now);
                Ok(bytes.map(|bytes| Stepped {
                    kind: job.kind,
                    bytes,
                }))
            }
            // Space comes back; the step is tried again.
            Err(error) if error.kind() == ErrorKind::NoSpace => Err(error),
            Err(error) => {
                self.check_usable()?;
                self.end_job(job.id, JobState::Failed, &error.to_string());
                Err(error)
            }
        }
    }

    /// A step of saying again what an ended scrub found lost.
    fn name_ended(&self, naming: &mut Option<Naming>) -> Result<Option<Stepped>, EngineError> {
        let Some(job) = self.jobs.lock().unnamed().cloned() else {
            return Ok(None);
        };
        let mut current = match naming.take().filter(|current| current.is_of(job.id)) {
            Some(current) => current,
            None => self.begin_naming(&job)?,
        };
        if self.naming_step(&mut current) {
            self.finish_naming(&job, current);
        } else {
            *naming = Some(current);
        }
        Ok(Some(Stepped {
            kind: JobKind::Scrub,
            bytes: WALK_STEP_BYTES,
        }))
    }

    /// Ends a job.
    pub(crate) fn end_job(&self, id: u64, state: JobState, message: &str) {
        let now = (self.clock)();
        self.jobs.lock().update(id, |record| {
            record.state = state;
            record.ended_ms = now;
            message.clone_into(&mut record.message);
        });
        tracing::info!(job = id, ?state, message, "A job has ended");
        self.signals.maintenance.ring();
    }

    /// Adds a job and wakes whoever drives the steps.
    pub(crate) fn add_job(&self, kind: JobKind, change: impl FnOnce(&mut JobRecord)) -> u64 {
        let now = (self.clock)();
        let id = self.jobs.lock().add(|id| {
            let mut record = JobRecord::new(id, kind, now);
            change(&mut record);
            record
        });
        self.signals.jobs.ring();
        self.signals.maintenance.ring();
        id
    }

    /// Begins a scrub, a reclaim or a deduplication: of each there is one at a
    /// time.
    pub(crate) fn start_job(&self, kind: JobKind) -> Result<JobInfo, EngineError> {
        self.check_writable()?;
        let how = match self.newest_job(kind).state {
            JobState::Paused => "paused",
            JobState::Running => "running",
            _ => {
                let id = self.add_job(kind, |_| {});
                return self.job_info(id);
            }
        };
        let message = format!("{} is {how} already", job_name(kind));
        Err(EngineError::new(ErrorKind::Busy, message))
    }

    /// Ends the newest job of a kind.
    pub(crate) fn cancel_newest(&self, kind: JobKind) -> Result<JobInfo, EngineError> {
        let newest = self.newest_job(kind);
        if !matches!(newest.state, JobState::Running | JobState::Paused) {
            let message = match kind {
                JobKind::Scrub => "No scrub is running",
                JobKind::Rebuild => "No rebuild is running",
                JobKind::Reclaim => "No reclaim is running",
                JobKind::Dedup => "No deduplication is running",
            };
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        self.cancel_job(newest.id)
    }

    pub(crate) fn job_infos(&self) -> Vec<JobInfo> {
        self.name_for_a_look();
        let jobs = self.jobs.lock();
        let ids: Vec<u64> = jobs.all().iter().map(|record| record.id).collect();
        ids.into_iter().filter_map(|id| jobs.info(id)).collect()
    }

    pub(crate) fn job_info(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.name_for_a_look();
        self.jobs.lock().info(id).ok_or_else(|| no_job(id))
    }

    /// The newest job of a kind, or one that has never been.
    pub(crate) fn newest_job(&self, kind: JobKind) -> JobInfo {
        self.name_for_a_look();
        let jobs = self.jobs.lock();
        let newest = jobs.newest(kind).and_then(|record| jobs.info(record.id));
        newest.unwrap_or_else(|| JobInfo::none(kind))
    }

    /// Pauses a running job; it keeps what it has done.
    pub(crate) fn pause_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        let mut work = self.work.lock();
        match self.job_info(id)?.kind {
            JobKind::Reclaim => self.forget_moving(&mut work.reclaim),
            JobKind::Dedup => work.dedup = None,
            JobKind::Rebuild | JobKind::Scrub => {}
        }
        self.change_job(id, JobState::Running, JobState::Paused)
    }

    /// Lets a paused job go on.
    pub(crate) fn resume_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        let info = self.change_job(id, JobState::Paused, JobState::Running)?;
        self.signals.jobs.ring();
        Ok(info)
    }

    fn change_job(&self, id: u64, from: JobState, to: JobState) -> Result<JobInfo, EngineError> {
        self.check_writable()?;
        let mut jobs = self.jobs.lock();
        let state = jobs.get(id).ok_or_else(|| no_job(id))?.state;
        if state != from && state != to {
            let message = format!("Job {id} is neither running nor paused");
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        jobs.update(id, |record| record.state = to);
        jobs.forget_rate(id);
        let info = jobs.info(id).ok_or_else(|| no_job(id));
        drop(jobs);
        self.signals.maintenance.ring();
        info
    }

    /// Ends a job that is running or paused. The target of a rebuild is let go.
    pub(crate) fn cancel_job(&self, id: u64) -> Result<JobInfo, EngineError> {
        self.check_writable()?;
        // No step is under way while the target goes.
        let mut work = self.work.lock();
        let record = self.jobs.lock().get(id).cloned();
        let record = record.ok_or_else(|| no_job(id))?;
        if !record.is_active() {
            let message = format!("Job {id} has ended already");
            return Err(EngineError::new(ErrorKind::InvalidArgument, message));
        }
        if record.kind == JobKind::Rebuild
            && let Some(target) = self.target_of(&record)
        {
            self.array.detach(target, "the rebuild was cancelled")?;
        }
        if record.kind == JobKind::Reclaim {
            self.forget_moving(&mut work.reclaim);
        }
        if record.kind == JobKind::Dedup {
            work.dedup = None;
        }
        self.end_job(id, JobState::Idle, "Cancelled");
        self.job_info(id)
    }

    pub(crate) fn pool_settings(&self) -> PoolSettings {
        let kept = self.settings.lock().kept;
        let limits = self.array.limits();
        PoolSettings {
            read_errors_per_hour: limits.read_errors_per_hour,
            stall_limit_ms: u32::try_from(limits.stall.as_millis()).unwrap_or(u32::MAX),
            ..kept
        }
    }

    /// Changes settings: in force at once, durable on return.
    pub(crate) fn set_settings(
        &self,
        change: &SettingsChange,
    ) -> Result<PoolSettings, EngineError> {
        self.check_writable()?;
        let changed = {
            let mut settings = self.settings.lock();
            *settings = settings.changed(change)?;
            *settings
        };
        self.apply_limits(&changed);
        self.index.set_disk_limit(changed.kept.index_disk_bytes);
        self.signals.index.ring();
        self.checkpoint_now(super::CheckpointKind::Normal)?;
        self.signals.jobs.ring();
        Ok(self.pool_settings())
    }

    /// Clients were served since the last call.
    pub(crate) fn take_busy(&self) -> bool {
        self.clients_busy.swap(false, Ordering::Relaxed)
    }
}
