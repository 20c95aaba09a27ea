//! The background threads: each only drives step functions (R24).

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{CheckpointKind, engine::Engine, snapshots::UNFOLDED_MAX};
use crate::{
    api::JobKind,
    jobs::{Driver, Next, Steps},
};

/// How often the timer commits, and maintenance looks around.
const TICK: Duration = Duration::from_secs(1);

/// Checkpoints that find nothing written since this many ticks make an idle
/// pool come to rest.
const IDLE_TICKS: u32 = 3;

/// Running threads; stopped by [`Threads::stop`].
#[derive(Debug)]
pub(crate) struct Threads {
    stopping: Arc<AtomicBool>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    pub(crate) fn start(engine: &Arc<Engine>) -> std::io::Result<Self> {
        let stopping = Arc::new(AtomicBool::new(false));
        let mut threads = Self {
            stopping,
            handles: Vec::new(),
        };
        threads.spawn(engine, "tsr-writer", write_stripes)?;
        threads.spawn(engine, "tsr-commit", commit)?;
        threads.spawn(engine, "tsr-maintain", maintain)?;
        threads.spawn(engine, "tsr-index", feed_index)?;
        threads.spawn(engine, "tsr-jobs", run_jobs)?;
        Ok(threads)
    }

    fn spawn(
        &mut self,
        engine: &Arc<Engine>,
        name: &str,
        body: fn(&Engine, &AtomicBool),
    ) -> std::io::Result<()> {
        let (engine, stopping) = (Arc::clone(engine), Arc::clone(&self.stopping));
        let handle = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || body(&engine, &stopping))?;
        self.handles.push(handle);
        Ok(())
    }

    pub(crate) fn stop(self, engine: &Engine) {
        self.stopping.store(true, Ordering::Release);
        let signals = &engine.signals;
        for bell in [
            &signals.writer,
            &signals.committer,
            &signals.maintenance,
            &signals.index,
            &signals.jobs,
        ] {
            bell.ring();
        }
        for handle in self.handles {
            if handle.join().is_err() {
                tracing::error!("A background thread panicked");
            }
        }
    }
}

fn write_stripes(engine: &Engine, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        match engine.writer.step() {
            Ok(true) => {}
            Ok(false) => {
                engine.signals.writer.listen(TICK);
            }
            Err(error) => {
                // Whoever needs the stripes meets the error too, and decides.
                tracing::warn!(%error, "Stripes cannot be written");
                std::thread::sleep(TICK);
            }
        }
    }
}

fn commit(engine: &Engine, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        let rung = engine.signals.committer.listen(TICK);
        engine.committer_step();
        let result = if rung {
            engine.commit_if_much()
        } else {
            engine.timer_step()
        };
        if let Err(error) = result {
            tracing::warn!(%error, "The periodic commit failed");
        }
    }
    engine.committer_step();
}

fn maintain(engine: &Engine, stopping: &AtomicBool) {
    let mut last_sequence = 0;
    let mut idle_ticks = 0;
    while !stopping.load(Ordering::Acquire) {
        let rung = engine.signals.maintenance.listen(TICK);
        if stopping.load(Ordering::Acquire) || engine.read_only {
            continue;
        }
        let sequence = engine.state.lock().sequence;
        idle_ticks = if sequence != last_sequence || rung {
            0
        } else {
            idle_ticks + 1
        };
        last_sequence = sequence;
        if let Err(error) = engine.maintenance_step(idle_ticks >= IDLE_TICKS) {
            tracing::warn!(%error, "Maintenance failed");
        }
    }
}

fn feed_index(engine: &Engine, stopping: &AtomicBool) {
    while !stopping.load(Ordering::Acquire) {
        let worked = engine.index.step() | engine.index.rebuild_step(&*engine.table);
        if !worked {
            engine.signals.index.listen(TICK);
        }
    }
}

/// Steps jobs, as fast as settings and clients allow.
fn run_jobs(engine: &Engine, stopping: &AtomicBool) {
    let steps = EngineSteps {
        engine,
        took: Cell::new(Duration::ZERO),
    };
    let mut driver = Driver::default();
    while !stopping.load(Ordering::Acquire) {
        match driver.turn(&steps) {
            Next::Idle => {
                engine.signals.jobs.listen(TICK);
            }
            Next::Rest(rest) if rest.is_zero() => {}
            Next::Rest(rest) => {
                engine.signals.jobs.listen(rest);
            }
        }
    }
}

struct EngineSteps<'a> {
    engine: &'a Engine,
    took: Cell<Duration>,
}

impl Steps for EngineSteps<'_> {
    fn next_kind(&self) -> Option<JobKind> {
        let jobs = self.engine.jobs.lock();
        jobs.next_running().map(|job| job.kind)
    }

    fn step(&self) -> Option<(JobKind, u64)> {
        let began = Instant::now();
        let stepped = self.engine.job_step();
        self.took.set(began.elapsed());
        match stepped {
            Ok(stepped) => stepped.map(|stepped| (stepped.kind, stepped.bytes)),
            Err(error) => {
                tracing::warn!(%error, "A job cannot go on");
                None
            }
        }
    }

    fn limit(&self, kind: JobKind) -> u64 {
        self.engine.rate_limit(kind)
    }

    fn take_busy(&self) -> bool {
        self.engine.take_busy()
    }

    fn now_ms(&self) -> u64 {
        (self.engine.clock)()
    }

    fn took(&self) -> Duration {
        self.took.get()
    }
}

impl Engine {
    /// Bytes a second that a kind of job may move; 0: no limit.
    fn rate_limit(&self, kind: JobKind) -> u64 {
        let settings = self.pool_settings();
        match kind {
            JobKind::Rebuild => settings.rebuild_bytes_per_second,
            JobKind::Scrub => settings.scrub_bytes_per_second,
            JobKind::Reclaim => settings.reclaim_bytes_per_second,
            JobKind::Dedup => settings.dedup_bytes_per_second,
        }
    }

    /// One turn of maintenance: spares for failed members, a scrub or a
    /// deduplication that is due, a checkpoint when much has changed or nothing
    /// more is coming, a reclaim pass when space runs low.
    pub(crate) fn maintenance_step(&self, idle: bool) -> Result<(), crate::error::EngineError> {
        if self.check_usable().is_err() {
            return Ok(());
        }
        self.take_spares_over();
        self.heal_unreadable();
        self.scrub_by_schedule();
        self.dedup_by_schedule(idle);
        self.hold_while_written(idle);
        let layers = self.layer_bytes.load(Ordering::Relaxed);
        let journal_is_half_full = {
            let commit = self.commit.lock();
            2 * commit.ring.used_bytes() > commit.ring.capacity_bytes()
        };
        let due = layers > self.budget.layers as u64
            || journal_is_half_full
            || 2 * self.unfolded() > UNFOLDED_MAX
            || self.jobs.lock().wants_checkpoint();
        if due || idle && self.is_dirty() {
            self.checkpoint_now(CheckpointKind::Normal)?;
        }
        self.punch_cleared();
        if self.account_step() {
            // The next turn at once, and in between whatever else is due.
            self.signals.maintenance.ring();
        }
        self.watch_space();
        if self.is_low_on_space() && self.reclaim_may_help() {
            self.reclaim_pass()?;
        }
        self.reclaim_when_low();
        Ok(())
    }

    /// Commits without being asked when many records are pending.
    fn commit_if_much(&self) -> Result<(), crate::error::EngineError> {
        if self.pending_bytes.load(Ordering::Relaxed) > 1 << 20 && self.check_usable().is_ok() {
            self.commit_now()?;
        }
        Ok(())
    }
}
