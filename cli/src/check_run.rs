//! A check of a pool that this process serves, run beside its clients.
//!
//! One at a time, in a thread of its own. Whoever began it asks for it again
//! and again, sees how far it is, and finds the report in the last answer. One
//! that nobody asks for any more (its command was interrupted) is given up.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tessera_engine::{
    api::CheckReport,
    pool::{CheckObserver, Pool},
};

use crate::failure::{Failure, Kind};

/// A check that nobody has asked for in this time is given up.
const ABANDONED_AFTER: Duration = Duration::from_secs(60);

/// How far a check is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CheckState {
    /// None was ever begun.
    #[default]
    Idle,
    /// It goes on.
    Running,
    /// The report is there.
    Done,
    /// It ended without a report.
    Failed,
}

/// What is told of a check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CheckAnswer {
    /// How far it is.
    pub(crate) state: CheckState,
    /// What it looks at.
    pub(crate) stage: String,
    /// How much of that stage is done.
    pub(crate) done: u64,
    /// Of how much.
    pub(crate) total: u64,
    /// What it found, once it is done.
    pub(crate) report: Option<CheckReport>,
    /// Why it failed.
    pub(crate) error: Option<Failure>,
}

#[derive(Debug, Default)]
struct Run {
    answer: CheckAnswer,
    asked: Option<Instant>,
}

/// The place for one check.
#[derive(Debug, Clone, Default)]
pub(crate) struct CheckRun(Arc<Mutex<Run>>);

impl CheckRun {
    fn run(&self) -> MutexGuard<'_, Run> {
        // Whole whatever happened to who held it: fields are set one by one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a check of the pool.
    pub(crate) fn start(&self, pool: &Arc<Pool>, data: bool) -> Result<CheckAnswer, Failure> {
        let mut run = self.run();
        if run.answer.state == CheckState::Running {
            return Err(Failure::new(
                Kind::Busy,
                "A check is running already: try again when it has ended",
            ));
        }
        let (pool, place) = (Arc::clone(pool), self.clone());
        let spawned = std::thread::Builder::new()
            .name("check".to_owned())
            .spawn(move || place.carry_out(&pool, data));
        spawned.map_err(|error| {
            Failure::new(
                Kind::Io,
                format!("No thread for the check can be had: {error}"),
            )
        })?;
        *run = Run {
            answer: CheckAnswer {
                state: CheckState::Running,
                ..CheckAnswer::default()
            },
            asked: Some(Instant::now()),
        };
        Ok(run.answer.clone())
    }

    /// How far the newest check is.
    pub(crate) fn ask(&self) -> CheckAnswer {
        let mut run = self.run();
        run.asked = Some(Instant::now());
        run.answer.clone()
    }

    fn carry_out(&self, pool: &Pool, data: bool) {
        let result = pool.check_in_use(data, self);
        let mut run = self.run();
        let answer = &mut run.answer;
        match result {
            Ok(report) => {
                answer.state = CheckState::Done;
                answer.report = Some(report);
            }
            Err(error) => {
                answer.state = CheckState::Failed;
                answer.error = Some(error.into());
            }
        }
    }
}

impl CheckObserver for CheckRun {
    fn progress(&self, stage: &str, done: u64, total: u64) {
        let answer = &mut self.run().answer;
        stage.clone_into(&mut answer.stage);
        (answer.done, answer.total) = (done, total);
    }

    fn cancelled(&self) -> bool {
        let asked = self.run().asked;
        asked.is_some_and(|asked| asked.elapsed() > ABANDONED_AFTER)
    }
}
