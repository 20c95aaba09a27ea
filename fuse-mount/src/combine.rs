//! Gathers requests that wait for the members, so that they wait together.
//!
//! The kernel hands out one request at a time. A thread that gets a small read
//! either executes it at once, or, when enough others are executing, leaves it
//! and goes back for the next request. Who executes takes what has been left
//! meanwhile as one batch: many cold reads become one submission, and the more
//! the slower the members are. A lone read never waits for another.
//!
//! Nothing is left behind: items are put down under the lock under which the
//! last executor finds that there are none and stops.

use std::mem;

use parking_lot::Mutex;

/// Items of `T` on their way to whoever executes.
#[derive(Debug)]
pub struct Combiner<T> {
    state: Mutex<State<T>>,
    executors_max: usize,
    batch_max: usize,
}

#[derive(Debug)]
struct State<T> {
    waiting: Vec<T>,
    executors: usize,
}

impl<T> Combiner<T> {
    /// At most `executors_max` batches at a time of at most `batch_max` items.
    pub fn new(executors_max: usize, batch_max: usize) -> Self {
        let state = State {
            waiting: Vec::new(),
            executors: 0,
        };
        Self {
            state: Mutex::new(state),
            executors_max: executors_max.max(1),
            batch_max: batch_max.max(1),
        }
    }

    /// Has `item` executed: here, with others, or by one who is executing.
    pub fn submit(&self, item: T, mut execute: impl FnMut(Vec<T>)) {
        {
            let mut state = self.state.lock();
            if state.executors == self.executors_max {
                state.waiting.push(item);
                return;
            }
            state.executors += 1;
        }
        let mut batch = vec![item];
        loop {
            execute(batch);
            let mut state = self.state.lock();
            if state.waiting.is_empty() {
                state.executors -= 1;
                return;
            }
            let rest = state.waiting.len().min(self.batch_max);
            let rest = state.waiting.split_off(rest);
            batch = mem::replace(&mut state.waiting, rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Barrier, mpsc},
        thread,
    };

    use super::*;

    #[test]
    fn what_comes_while_another_executes_is_one_batch() {
        let combiner = Arc::new(Combiner::new(1, 4));
        let (sender, batches) = mpsc::channel();
        let (started, go_on) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
        let first = {
            let (combiner, sender) = (Arc::clone(&combiner), sender.clone());
            let (started, go_on) = (Arc::clone(&started), Arc::clone(&go_on));
            thread::spawn(move || {
                combiner.submit(0, |batch| {
                    if batch == [0] {
                        started.wait();
                        go_on.wait();
                    }
                    sender.send(batch).unwrap();
                });
            })
        };
        started.wait();
        for item in 1..=6 {
            combiner.submit(item, |_| unreachable!("somebody executes already"));
        }
        go_on.wait();
        first.join().unwrap();
        drop(sender);
        let batches: Vec<Vec<i32>> = batches.iter().collect();
        assert_eq!(batches, [vec![0], vec![1, 2, 3, 4], vec![5, 6]]);
        // The executor has gone: the next one executes itself.
        let mut own = Vec::new();
        combiner.submit(7, |batch| own.push(batch));
        assert_eq!(own, [vec![7]]);
    }

    #[test]
    fn everything_is_executed_once_whoever_submits_it() {
        let combiner = Arc::new(Combiner::new(2, 3));
        let (sender, done) = mpsc::channel();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let (combiner, sender) = (Arc::clone(&combiner), sender.clone());
                thread::spawn(move || {
                    for item in 0..1000 {
                        combiner.submit(thread * 1000 + item, |batch| {
                            assert!(batch.len() <= 3);
                            for item in batch {
                                sender.send(item).unwrap();
                            }
                        });
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(sender);
        let mut items: Vec<i32> = done.iter().collect();
        items.sort_unstable();
        assert_eq!(items, (0..4000).collect::<Vec<_>>());
    }
}
