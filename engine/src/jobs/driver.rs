//! What the job thread does between two steps: rests, and looks at limits.
//!
//! The thread only sleeps as long as it is told. So a test drives the same
//! turns with a clock of its own (R24).

use std::time::Duration;

use super::Pace;
use crate::api::JobKind;

/// Steps of jobs, and what they are paced by.
pub(crate) trait Steps {
    /// The kind of the job whose turn it is.
    fn next_kind(&self) -> Option<JobKind>;
    /// One step of the job whose turn it is, and the bytes it moved; `None`
    /// when there is none, or when it cannot go on now.
    fn step(&self) -> Option<(JobKind, u64)>;
    /// Bytes a second that a kind of job may move; 0: no limit.
    fn limit(&self, kind: JobKind) -> u64;
    /// Clients were served since the last question.
    fn take_busy(&self) -> bool;
    /// Milliseconds of a clock that goes on while the caller rests.
    fn now_ms(&self) -> u64;
    /// How long the last step took.
    fn took(&self) -> Duration;
}

/// What to do before the next turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Wait for a job.
    Idle,
    /// Rest so long, or less if something has changed.
    Rest(Duration),
}

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Driver {
    pace: Pace,
    /// Of the last step: its kind, and the limit then.
    last: Option<(JobKind, u64)>,
}

impl Driver {
    /// One turn: a step, unless a limit says to rest.
    pub(crate) fn turn(&mut self, steps: &dyn Steps) -> Next {
        if let Some((kind, limit)) = self.last {
            if steps.next_kind() == Some(kind) && steps.limit(kind) == limit {
                let rest = self.pace.rest(steps.now_ms());
                if !rest.is_zero() {
                    return Next::Rest(rest);
                }
            } else {
                // What was owed by another job, or under another limit, is
                // forgotten: a rebuild does not wait for a slow scrub.
                self.pace = Pace::default();
                self.last = None;
            }
        }
        let Some((kind, bytes)) = steps.step() else {
            self.last = None;
            return Next::Idle;
        };
        let limit = steps.limit(kind);
        if self.last != Some((kind, limit)) {
            self.pace = Pace::default();
        }
        self.last = Some((kind, limit));
        let courtesy = self.pace.after(
            bytes,
            limit,
            steps.take_busy(),
            steps.took(),
            steps.now_ms(),
        );
        Next::Rest(courtesy)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    const STEP_BYTES: u64 = 1 << 20;
    const TOOK: Duration = Duration::from_millis(5);

    /// Time passes only when somebody rests or a step is done.
    #[derive(Default)]
    struct Fake {
        now: Cell<u64>,
        busy: Cell<bool>,
        limits: RefCell<(u64, u64)>,
        jobs: RefCell<Vec<JobKind>>,
        moved: Cell<u64>,
    }

    impl Steps for Fake {
        fn next_kind(&self) -> Option<JobKind> {
            self.jobs.borrow().first().copied()
        }
        fn step(&self) -> Option<(JobKind, u64)> {
            let kind = *self.jobs.borrow().first()?;
            self.now.set(self.now.get() + 5);
            self.moved.set(self.moved.get() + STEP_BYTES);
            Some((kind, STEP_BYTES))
        }
        fn limit(&self, kind: JobKind) -> u64 {
            match kind {
                JobKind::Rebuild => self.limits.borrow().0,
                _ => self.limits.borrow().1,
            }
        }
        fn take_busy(&self) -> bool {
            self.busy.get()
        }
        fn now_ms(&self) -> u64 {
            self.now.get()
        }
        fn took(&self) -> Duration {
            TOOK
        }
    }

    impl Fake {
        /// Bytes moved within so many milliseconds of its time.
        fn run(&self, driver: &mut Driver, milliseconds: u64) -> u64 {
            let (end, before) = (self.now.get() + milliseconds, self.moved.get());
            while self.now.get() < end {
                match driver.turn(self) {
                    Next::Idle => break,
                    Next::Rest(rest) => {
                        let rest = u64::try_from(rest.as_millis()).unwrap();
                        self.now.set(self.now.get() + rest);
                    }
                }
            }
            self.moved.get() - before
        }
    }

    fn scrubbing() -> (Fake, Driver) {
        let fake = Fake::default();
        fake.now.set(100_000);
        fake.jobs.borrow_mut().push(JobKind::Scrub);
        (fake, Driver::default())
    }

    #[test]
    fn without_limit_and_clients_steps_follow_each_other() {
        let (fake, mut driver) = scrubbing();
        assert_eq!(fake.run(&mut driver, 1000), 200 * STEP_BYTES);
    }

    #[test]
    fn while_clients_are_served_a_job_gets_a_fifth() {
        let (fake, mut driver) = scrubbing();
        fake.busy.set(true);
        assert_eq!(fake.run(&mut driver, 1000), 40 * STEP_BYTES);
    }

    #[test]
    fn a_limit_is_kept_and_a_new_one_holds_within_a_rest() {
        let (fake, mut driver) = scrubbing();
        fake.limits.borrow_mut().1 = 10 << 20;
        let moved = fake.run(&mut driver, 10_000);
        assert!((95 << 20..=106 << 20).contains(&moved), "{moved}");
        fake.limits.borrow_mut().1 = 1 << 20;
        let moved = fake.run(&mut driver, 10_000);
        assert!((9 << 20..=12 << 20).contains(&moved), "{moved}");
        fake.limits.borrow_mut().1 = 0;
        let moved = fake.run(&mut driver, 1000);
        assert!(moved >= 99 * STEP_BYTES, "{moved}");
    }

    #[test]
    fn a_rebuild_pays_nothing_for_the_scrub_before_it() {
        let (fake, mut driver) = scrubbing();
        *fake.limits.borrow_mut() = (100 << 20, 1);
        assert_eq!(driver.turn(&fake), Next::Rest(Duration::ZERO));
        // The scrub's limit holds it back for ages.
        assert!(matches!(driver.turn(&fake), Next::Rest(rest) if !rest.is_zero()));
        fake.jobs.borrow_mut()[0] = JobKind::Rebuild;
        let moved = fake.run(&mut driver, 1000);
        assert!((90 << 20..=155 << 20).contains(&moved), "{moved}");
    }

    #[test]
    fn with_nothing_to_do_it_waits_and_owes_nothing_afterwards() {
        let (fake, mut driver) = scrubbing();
        fake.limits.borrow_mut().1 = 1;
        driver.turn(&fake);
        fake.jobs.borrow_mut().clear();
        assert_eq!(driver.turn(&fake), Next::Idle);
        fake.jobs.borrow_mut().push(JobKind::Scrub);
        assert_eq!(driver.turn(&fake), Next::Rest(Duration::ZERO));
    }
}
