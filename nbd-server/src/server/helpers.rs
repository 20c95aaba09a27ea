//! Threads that execute a batch of reads while its connection still sends the
//! answers to the one before: otherwise the disk idles while the client takes
//! its data, and the client while the disk reads.
//!
//! ```text
//! connection   execute A │ send A │ collect B, send B │ collect C, send C
//! helper 1               │ execute B       │ execute D        │
//! helper 2               │ execute C           │ execute E
//! ```
//! With several at it, the disk reads for one while another checks what it has
//! got. How many a connection keeps busy is its own decision.
//!
//! Invariants:
//! * A job is taken only if a helper is free for it, so none waits for another;
//!   where none is free the connection executes its batch itself (R23).
//! * A helper waits for nothing but the disk: not for a connection, nor for
//!   memory, which a job brings along.
//! * Whoever gives a job waits for its end, even to drop it: when a connection
//!   has ended, nobody is inside the disk on its behalf.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use crossbeam::channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use tessera_engine::disk::Disk;

use super::batch::Batch;
use crate::protocol::HeaderStyle;

/// Helpers there may be even on a small machine: they mostly wait for a disk.
const HELPERS_MIN: usize = 4;

/// A batch of reads to execute.
pub(crate) struct Job {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) batch: Batch,
    pub(crate) style: HeaderStyle,
}

struct Task {
    job: Job,
    done: Sender<Option<Batch>>,
}

/// The helpers of a server, started when they are first needed. They end when
/// this is dropped.
pub(crate) struct Helpers {
    tasks: Sender<Task>,
    receiver: Receiver<Task>,
    count: Arc<Mutex<Count>>,
    most: usize,
}

#[derive(Default)]
struct Count {
    started: usize,
    busy: usize,
}

/// The batch of a job that has been given away; dropping it waits for its end.
pub(crate) struct Ticket(Option<Receiver<Option<Batch>>>);

impl Helpers {
    pub(crate) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self::with(cores.max(HELPERS_MIN))
    }

    fn with(most: usize) -> Self {
        let (tasks, receiver) = bounded(most);
        Self {
            tasks,
            receiver,
            count: Arc::default(),
            most,
        }
    }

    /// Gives a job to a free helper; gives the batch back if there is none.
    /// Never waits.
    pub(crate) fn give(&self, job: Job) -> Result<Ticket, Batch> {
        {
            let mut count = self.count.lock();
            if count.busy == self.most || count.busy == count.started && !self.start(&mut count) {
                return Err(job.batch);
            }
            count.busy += 1;
        }
        let (done, result) = bounded(1);
        // There is room: tasks in the channel are among the `most` busy ones.
        match self.tasks.try_send(Task { job, done }) {
            Ok(()) => Ok(Ticket(Some(result))),
            Err(error) => {
                self.count.lock().busy -= 1;
                Err(error.into_inner().job.batch)
            }
        }
    }

    fn start(&self, count: &mut Count) -> bool {
        let receiver = self.receiver.clone();
        let busy = Arc::clone(&self.count);
        let started = thread::Builder::new()
            .name("nbd-read-ahead".into())
            .spawn(move || {
                for Task { job, done } in receiver {
                    let batch = execute(job);
                    // Before the result, so that whoever gets it finds the
                    // helper free for the next job.
                    busy.lock().busy -= 1;
                    // Has room for the one result, and is never waited for.
                    let _ = done.send(batch);
                }
            });
        match started {
            Ok(_) => {
                count.started += 1;
                true
            }
            Err(error) => {
                tracing::debug!(%error, "no thread for a helper");
                false
            }
        }
    }
}

/// `None` when the disk panicked: that ends its connection, not the helper.
fn execute(job: Job) -> Option<Batch> {
    // The batch is dropped on panic, and disks guard their own state.
    catch_unwind(AssertUnwindSafe(move || {
        let Job {
            disk,
            mut batch,
            style,
        } = job;
        batch.execute(&*disk, &[], style);
        batch
    }))
    .ok()
}

impl Ticket {
    /// Waits for the executed batch; `None` when the disk panicked.
    pub(crate) fn wait(mut self) -> Option<Batch> {
        self.0
            .take()
            .and_then(|result| result.recv().ok().flatten())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(result) = self.0.take() {
            let _ = result.recv();
        }
    }
}

#[cfg(test)]
mod tests;
