//! Jobs: long work in the background that outlives a restart.
//!
//! ```text
//!   start -> running <-> paused          record.rs  what a checkpoint keeps
//!              |  \                      table.rs   all jobs of a pool
//!              |   +--> failed, idle     pace.rs    how fast one may go
//!              +------> done
//! ```
//! A job is a row in a table of the checkpoint root and a step function of the
//! engine (`pool/rebuild.rs`, `pool/scrub/`). A step does a bounded piece of
//! work and moves the row's cursor; the next checkpoint makes cursor and counts
//! durable together. After a crash the job goes on from the durable cursor and
//! repeats what it had done since, so a step may be repeated without harm.
//!
//! Nothing here has a thread or a clock (R24): whoever drives the steps hands
//! the time in, and sleeps as long as [`Driver`] says.

mod driver;
mod pace;
mod record;
mod table;

pub(crate) use driver::{Driver, Next, Steps};
use pace::Pace;
pub(crate) use record::{Cursor, JobRecord};
pub(crate) use table::JobTable;

/// Milliseconds since 1970, or of a simulation.
pub type Clock = std::sync::Arc<dyn Fn() -> u64 + Send + Sync>;

/// The clock of the machine.
pub fn system_clock() -> Clock {
    std::sync::Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(0, |since| {
            u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
        })
    })
}
