//! How fast a job may go: a limit in bytes a second, and courtesy to clients.

use std::time::Duration;

/// While clients are served, a job rests this many times as long as its last
/// step took: it gets about a fifth of what the members can do.
const RESTS_PER_STEP: u32 = 4;
/// The longest rest for courtesy: however busy clients are, a job goes on.
const COURTESY_MAX: Duration = Duration::from_millis(200);
/// The longest rest at all, so that a changed limit is soon obeyed.
const REST_MAX: Duration = Duration::from_millis(500);
/// A job that was held up may catch up on this much time, not more.
const CREDIT_MAX_MS: u64 = 500;

/// Decides how long a job rests after a step.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// By now the limit allows all that has been done.
    due_ms: u64,
}

impl Pace {
    /// Counts a step of `bytes` that ended at `now_ms` and took `took`, and says
    /// how long to rest for clients' sake; `busy` says that there were any.
    /// `limit` is in bytes a second, 0 for none; [`Self::rest`] has its part.
    pub(crate) fn after(
        &mut self,
        bytes: u64,
        limit: u64,
        busy: bool,
        took: Duration,
        now_ms: u64,
    ) -> Duration {
        let courtesy = if busy {
            (took * RESTS_PER_STEP).min(COURTESY_MAX)
        } else {
            Duration::ZERO
        };
        if limit == 0 {
            self.due_ms = 0;
            return courtesy;
        }
        let cost = bytes.saturating_mul(1000) / limit;
        let from = self.due_ms.max(now_ms.saturating_sub(CREDIT_MAX_MS));
        self.due_ms = from.saturating_add(cost);
        courtesy
    }

    /// How long the limit allows no further step, at most [`REST_MAX`]: then
    /// ask again.
    pub(crate) fn rest(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.due_ms.saturating_sub(now_ms)).min(REST_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_kept_over_time() {
        let mut pace = Pace::default();
        let (mut now, mut bytes) = (10_000, 0);
        while now < 20_000 {
            bytes += 100_000;
            pace.after(100_000, 1_000_000, false, Duration::ZERO, now);
            let rest = pace.rest(now);
            now += u64::try_from(rest.as_millis()).unwrap().max(1);
        }
        assert!((9_000_000..11_500_000).contains(&bytes), "{bytes} in 10 s");
    }

    #[test]
    fn without_a_limit_only_clients_slow_a_job() {
        let mut pace = Pace::default();
        let took = Duration::from_millis(10);
        assert_eq!(pace.after(1 << 20, 0, false, took, 5), Duration::ZERO);
        assert_eq!(pace.after(1 << 20, 0, true, took, 5), 4 * took);
        assert_eq!(
            pace.after(1 << 20, 0, true, Duration::from_secs(9), 5),
            COURTESY_MAX
        );
    }

    #[test]
    fn a_raised_limit_is_obeyed_within_a_rest() {
        let mut pace = Pace::default();
        pace.after(1 << 30, 1, false, Duration::ZERO, 0);
        assert_eq!(pace.rest(0), REST_MAX);
        pace.after(0, 0, false, Duration::ZERO, 0);
        assert_eq!(pace.rest(0), Duration::ZERO);
    }
}
