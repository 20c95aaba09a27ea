//! Transfer buffers: recycled, never zeroed again, and bounded for the whole
//! server.
//!
//! ```text
//! small   80 KiB   one to receive, one to reply; every busy connection may have
//!                  them, idle ones have none
//! window  an option taken when there is more to move and the budget allows;
//!                  without one a connection works on, in smaller steps
//! large  exact     one read that must be answered in one piece and does not
//!                  fit a window; waits for its turn
//! ```
//!
//! No deadlock: nobody waits for a small buffer or a window, and whoever holds
//! a large one waits only for the disk and, under a deadline, for its client.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// Holds the largest request that is not executed in pieces, with its header.
pub(crate) const SMALL_BYTES: usize = 80 << 10;
/// Idle buffers kept for reuse.
const SPARE_SMALL: usize = 32;
const SPARE_WINDOWS: usize = 8;

/// Counts what is lent out and keeps some of what comes back.
#[derive(Debug)]
pub(crate) struct BufferPool {
    window_bytes: usize,
    window_budget: usize,
    large_budget: usize,
    state: Mutex<State>,
    returned: Condvar,
}

#[derive(Debug, Default)]
struct State {
    small: Vec<Vec<u8>>,
    windows: Vec<Vec<u8>>,
    windows_out: usize,
    large_out: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Small,
    Window,
    Large,
}

/// A buffer of fixed length with arbitrary contents. Goes back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    class: Class,
    pool: Arc<BufferPool>,
}

impl BufferPool {
    /// Lends out at most `budget_bytes` in windows, and as much in large
    /// buffers (but always one).
    pub(crate) fn new(window_bytes: usize, budget_bytes: usize) -> Arc<Self> {
        let window_bytes = window_bytes.max(SMALL_BYTES);
        Arc::new(Self {
            window_bytes,
            window_budget: budget_bytes / window_bytes,
            large_budget: budget_bytes,
            state: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// Always succeeds at once.
    pub(crate) fn small(self: &Arc<Self>) -> Buffer {
        let spare = self.state.lock().small.pop();
        self.wrap(spare.unwrap_or_else(|| vec![0; SMALL_BYTES]), Class::Small)
    }

    /// `None` when the budget is spent.
    pub(crate) fn window(self: &Arc<Self>) -> Option<Buffer> {
        let spare = {
            let mut state = self.state.lock();
            if state.windows_out == self.window_budget {
                return None;
            }
            state.windows_out += 1;
            state.windows.pop()
        };
        Some(self.wrap(
            spare.unwrap_or_else(|| vec![0; self.window_bytes]),
            Class::Window,
        ))
    }

    /// A window to work ahead with: `None` when half the budget is spent, so
    /// that those who work ahead leave windows to those who have none.
    pub(crate) fn spare_window(self: &Arc<Self>) -> Option<Buffer> {
        if self.state.lock().windows_out >= self.window_budget / 2 {
            return None;
        }
        self.window()
    }

    /// Waits until the budget has room.
    pub(crate) fn large(self: &Arc<Self>, length: usize) -> Buffer {
        let mut state = self.state.lock();
        while state.large_out != 0 && state.large_out + length > self.large_budget {
            self.returned.wait(&mut state);
        }
        state.large_out += length;
        drop(state);
        self.wrap(vec![0; length], Class::Large)
    }

    fn wrap(self: &Arc<Self>, bytes: Vec<u8>, class: Class) -> Buffer {
        Buffer {
            bytes,
            class,
            pool: Arc::clone(self),
        }
    }
}

impl Buffer {
    pub(crate) fn is_small(&self) -> bool {
        self.class == Class::Small
    }

    pub(crate) fn is_large(&self) -> bool {
        self.class == Class::Large
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut state = self.pool.state.lock();
        match self.class {
            Class::Small => {
                if state.small.len() < SPARE_SMALL {
                    state.small.push(bytes);
                }
            }
            Class::Window => {
                state.windows_out -= 1;
                if state.windows.len() < SPARE_WINDOWS {
                    state.windows.push(bytes);
                }
            }
            Class::Large => {
                state.large_out -= bytes.len();
                self.pool.returned.notify_all();
            }
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: usize = 1 << 20;

    #[test]
    fn windows_end_with_the_budget_and_come_back_when_dropped() {
        let pool = BufferPool::new(WINDOW, 2 * WINDOW);
        let first = pool.window().unwrap();
        let second = pool.window().unwrap();
        assert_eq!(second.len(), WINDOW);
        assert!(pool.window().is_none());
        drop(first);
        assert!(pool.window().is_some());
    }

    #[test]
    fn who_works_ahead_leaves_half_the_windows_to_others() {
        let pool = BufferPool::new(WINDOW, 4 * WINDOW);
        let first = pool.spare_window().unwrap();
        let second = pool.spare_window().unwrap();
        assert!(pool.spare_window().is_none());
        assert!(pool.window().is_some());
        drop((first, second));
        assert!(pool.spare_window().is_some());
    }

    #[test]
    fn spare_buffers_are_bounded() {
        let pool = BufferPool::new(WINDOW, 64 * WINDOW);
        let lent: Vec<_> = (0..100).map(|_| pool.small()).collect();
        let windows: Vec<_> = (0..64).map(|_| pool.window().unwrap()).collect();
        drop((lent, windows));
        let state = pool.state.lock();
        assert_eq!(state.small.len(), SPARE_SMALL);
        assert_eq!(state.windows.len(), SPARE_WINDOWS);
        assert_eq!(state.windows_out, 0);
    }

    #[test]
    fn a_large_buffer_above_the_budget_waits_until_it_is_alone() {
        let pool = BufferPool::new(WINDOW, 100);
        let first = pool.large(1000);
        let waiter = std::thread::spawn({
            let pool = Arc::clone(&pool);
            move || pool.large(60).len()
        });
        while Arc::strong_count(&pool) < 3 {
            std::thread::yield_now();
        }
        assert_eq!(pool.state.lock().large_out, 1000);
        drop(first);
        assert_eq!(waiter.join().unwrap(), 60);
        assert_eq!(pool.state.lock().large_out, 0);
    }
}
