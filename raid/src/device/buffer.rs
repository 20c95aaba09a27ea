//! Block-aligned memory for device I/O, and a bounded pool that recycles it.
//!
//! O_DIRECT wants addresses, offsets and lengths aligned; [`AlignedBuf`] is
//! memory that always is. A [`BufferPool`] bounds how much of it is in use
//! and lends recycled buffers, which come back when dropped.
//!
//! All buffers of a request are taken in one call (R23): a thread that holds
//! some and waits for more could wait for another that does the same.
#![allow(unsafe_code)]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    collections::{BTreeMap, VecDeque},
    fmt,
    ops::{Deref, DerefMut, Range},
    ptr::NonNull,
    sync::{Arc, Weak},
};

use parking_lot::{Condvar, Mutex};

use super::BLOCK_BYTES;

/// Owned memory at an address aligned to [`BLOCK_BYTES`].
///
/// Its allocation is a multiple of [`BLOCK_BYTES`]; its length is what was
/// asked for. The bytes are always initialised. One taken from a
/// [`BufferPool`] returns there when dropped, and holds what its last user
/// left in it.
pub struct AlignedBuf {
    pointer: NonNull<u8>,
    length: usize,
    /// Bytes allocated, a multiple of `BLOCK_BYTES`; zero for the empty one.
    capacity: usize,
    pool: Option<Weak<PoolInner>>,
}

// SAFETY: the buffer owns its memory exclusively, like a `Box<[u8]>`.
unsafe impl Send for AlignedBuf {}
// SAFETY: shared access only reads; writing needs `&mut`.
unsafe impl Sync for AlignedBuf {}

fn memory_layout(capacity: usize) -> Layout {
    Layout::from_size_align(capacity, BLOCK_BYTES).expect("buffer sizes are far below isize::MAX")
}

impl AlignedBuf {
    /// No memory at all.
    pub const fn empty() -> Self {
        Self {
            pointer: NonNull::dangling(),
            length: 0,
            capacity: 0,
            pool: None,
        }
    }

    /// `length` bytes of zeroes.
    pub fn zeroed(length: usize) -> Self {
        if length == 0 {
            return Self::empty();
        }
        let capacity = length.next_multiple_of(BLOCK_BYTES);
        let layout = memory_layout(capacity);
        // SAFETY: the layout's size is not zero.
        let pointer = unsafe { alloc_zeroed(layout) };
        let Some(pointer) = NonNull::new(pointer) else {
            handle_alloc_error(layout)
        };
        Self {
            pointer,
            length,
            capacity,
            pool: None,
        }
    }

    /// A copy of `bytes`.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Shortens the buffer; does nothing where it is shorter already.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Sets the length anew, up to the allocation; bytes beyond the old
    /// length hold what was there before.
    ///
    /// # Panics
    /// Where `length` exceeds [`AlignedBuf::capacity`].
    pub fn set_length(&mut self, length: usize) {
        assert!(
            length <= self.capacity,
            "a buffer does not outgrow its allocation"
        );
        self.length = length;
    }

    /// Bytes allocated.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes the buffer and leaves the empty one.
    pub fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn into_raw(self) -> (NonNull<u8>, usize) {
        let raw = (self.pointer, self.capacity);
        std::mem::forget(self);
        raw
    }
}

impl Default for AlignedBuf {
    fn default() -> Self {
        Self::empty()
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `length <= capacity` bytes are allocated and initialised
        // (or the length is zero and the pointer merely non-null).
        unsafe { std::slice::from_raw_parts(self.pointer.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        let pool = self.pool.take().and_then(|pool| pool.upgrade());
        let raw = RawBuf {
            pointer: self.pointer,
            capacity: self.capacity,
        };
        match pool {
            Some(pool) => pool.give_back(raw),
            None => drop(raw),
        }
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} bytes)", self.length)
    }
}

/// An allocation that belongs to nobody for the moment.
struct RawBuf {
    pointer: NonNull<u8>,
    capacity: usize,
}

// SAFETY: owns its memory exclusively.
unsafe impl Send for RawBuf {}

impl Drop for RawBuf {
    fn drop(&mut self) {
        // SAFETY: allocated with this very layout by `AlignedBuf::zeroed`,
        // and owned by nobody else.
        unsafe { dealloc(self.pointer.as_ptr(), memory_layout(self.capacity)) }
    }
}

/// Lends aligned buffers of any length, at most a fixed number of bytes at a
/// time. Clones share one budget.
///
/// Those who wait are served in the order they came, so a large request is
/// not starved by small ones.
#[derive(Clone)]
pub struct BufferPool {
    inner: Arc<PoolInner>,
}

struct PoolInner {
    limit_bytes: usize,
    state: Mutex<PoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// Bytes lent.
    lent: usize,
    /// Bytes in `free`; `lent + idle` stays within the limit.
    idle: usize,
    free: BTreeMap<usize, Vec<RawBuf>>,
    /// Tickets of those who wait, first come first.
    queue: VecDeque<u64>,
    next_ticket: u64,
}

/// Allocation sizes: eight steps per doubling, so that recycling finds a
/// match and at most an eighth is wasted.
fn size_class(length: usize) -> usize {
    let step = (length.next_power_of_two() / 16).max(BLOCK_BYTES);
    length.max(1).next_multiple_of(step)
}

impl BufferPool {
    /// A pool that lends at most `limit_bytes` at a time.
    pub fn new(limit_bytes: usize) -> Self {
        let inner = PoolInner {
            limit_bytes,
            state: Mutex::default(),
            returned: Condvar::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The most bytes lent at a time.
    pub fn limit_bytes(&self) -> usize {
        self.inner.limit_bytes
    }

    /// Bytes lent at the moment.
    pub fn lent_bytes(&self) -> usize {
        self.inner.state.lock().lent
    }

    /// A buffer of `length` bytes; waits while too much is lent. Its contents
    /// are arbitrary. A length over the limit is lent when nothing else is.
    pub fn take(&self, length: usize) -> AlignedBuf {
        let mut taken = self.take_many(&[length]);
        taken.pop().expect("as many buffers as lengths")
    }

    /// All buffers of one request, taken together (R23).
    pub fn take_many(&self, lengths: &[usize]) -> Vec<AlignedBuf> {
        let wanted = total_bytes(lengths);
        let mut state = self.inner.state.lock();
        if !(state.queue.is_empty() && self.inner.fits(&state, wanted)) {
            let ticket = state.next_ticket;
            state.next_ticket += 1;
            state.queue.push_back(ticket);
            while !(state.queue.front() == Some(&ticket) && self.inner.fits(&state, wanted)) {
                self.inner.returned.wait(&mut state);
            }
            state.queue.pop_front();
            // What is left may satisfy the next in the queue too.
            self.inner.returned.notify_all();
        }
        self.lend(state, lengths, wanted)
    }

    /// As [`BufferPool::take`], or `None` where it would wait.
    pub fn try_take(&self, length: usize) -> Option<AlignedBuf> {
        self.try_take_many(&[length])?.pop()
    }

    /// As [`BufferPool::take_many`], or `None` where it would wait.
    pub fn try_take_many(&self, lengths: &[usize]) -> Option<Vec<AlignedBuf>> {
        let wanted = total_bytes(lengths);
        let state = self.inner.state.lock();
        (state.queue.is_empty() && self.inner.fits(&state, wanted))
            .then(|| self.lend(state, lengths, wanted))
    }

    fn lend(
        &self,
        mut state: parking_lot::MutexGuard<'_, PoolState>,
        lengths: &[usize],
        wanted: usize,
    ) -> Vec<AlignedBuf> {
        state.lent += wanted;
        let mut recycled: Vec<Option<RawBuf>> = Vec::with_capacity(lengths.len());
        for &length in lengths {
            let raw = match length {
                0 => None,
                _ => state.take_idle(size_class(length)),
            };
            recycled.push(raw);
        }
        let surplus = state.shrink_to(self.inner.limit_bytes);
        // Freeing and allocating can be slow: not under the lock.
        drop(state);
        drop(surplus);
        let pool = Arc::downgrade(&self.inner);
        let buffers = lengths.iter().zip(recycled).map(|(&length, raw)| {
            if length == 0 {
                return AlignedBuf::empty();
            }
            let (pointer, capacity) = match raw {
                Some(raw) => {
                    let parts = (raw.pointer, raw.capacity);
                    std::mem::forget(raw);
                    parts
                }
                None => AlignedBuf::zeroed(size_class(length)).into_raw(),
            };
            AlignedBuf {
                pointer,
                length,
                capacity,
                pool: Some(pool.clone()),
            }
        });
        buffers.collect()
    }
}

fn total_bytes(lengths: &[usize]) -> usize {
    lengths
        .iter()
        .filter(|length| **length > 0)
        .map(|length| size_class(*length))
        .sum()
}

impl PoolInner {
    fn fits(&self, state: &PoolState, wanted: usize) -> bool {
        state.lent == 0 || state.lent + wanted <= self.limit_bytes
    }

    fn give_back(&self, raw: RawBuf) {
        let mut state = self.state.lock();
        state.lent -= raw.capacity;
        state.idle += raw.capacity;
        state.free.entry(raw.capacity).or_default().push(raw);
        let surplus = state.shrink_to(self.limit_bytes);
        if !state.queue.is_empty() {
            self.returned.notify_all();
        }
        drop(state);
        drop(surplus);
    }
}

impl PoolState {
    fn take_idle(&mut self, class: usize) -> Option<RawBuf> {
        let raw = self.free.get_mut(&class)?.pop()?;
        self.idle -= class;
        Some(raw)
    }

    /// Takes out idle buffers, largest first, until lent and idle ones
    /// together are within the limit.
    fn shrink_to(&mut self, limit_bytes: usize) -> Vec<RawBuf> {
        let mut surplus = Vec::new();
        while self.idle > 0 && self.lent + self.idle > limit_bytes {
            let Some(mut largest) = self.free.last_entry() else {
                break;
            };
            match largest.get_mut().pop() {
                Some(raw) => {
                    self.idle -= raw.capacity;
                    surplus.push(raw);
                }
                None => drop(largest.remove()),
            }
        }
        surplus
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (lent, limit) = (self.lent_bytes(), self.inner.limit_bytes);
        write!(f, "BufferPool({lent} of {limit} bytes lent)")
    }
}

/// A block-aligned part of a shared buffer, as a write takes it.
#[derive(Clone)]
pub struct BufSlice {
    buffer: Arc<AlignedBuf>,
    range: Range<usize>,
}

impl BufSlice {
    /// The part `range` of `buffer`.
    ///
    /// # Panics
    /// Where the range leaves the buffer or is not block-aligned.
    pub fn new(buffer: Arc<AlignedBuf>, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= buffer.len(),
            "slice within its buffer"
        );
        assert!(
            range.start.is_multiple_of(BLOCK_BYTES) && range.end.is_multiple_of(BLOCK_BYTES),
            "slices are block-aligned"
        );
        Self { buffer, range }
    }

    /// All of `buffer`, whose length is a multiple of [`BLOCK_BYTES`].
    pub fn whole(buffer: Arc<AlignedBuf>) -> Self {
        let range = 0..buffer.len();
        Self::new(buffer, range)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// The buffer it is part of.
    pub fn buffer(&self) -> &Arc<AlignedBuf> {
        &self.buffer
    }
}

impl From<AlignedBuf> for BufSlice {
    fn from(buffer: AlignedBuf) -> Self {
        Self::whole(Arc::new(buffer))
    }
}

impl fmt::Debug for BufSlice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufSlice({:?})", self.range)
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_truncate() {
        for length in [1, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = AlignedBuf::zeroed(length);
            assert_eq!(buffer.as_ptr().addr() % BLOCK_BYTES, 0);
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer[length - 1] = 7;
            buffer.truncate(length / 2);
            assert_eq!(buffer.len(), length / 2);
            buffer.set_length(length);
            assert_eq!(buffer[length - 1], 7);
        }
        assert!(AlignedBuf::empty().is_empty());
        assert_eq!(
            format!("{:?}", AlignedBuf::zeroed(8)),
            "AlignedBuf(8 bytes)"
        );
    }

    #[test]
    fn pool_lends_no_more_than_its_limit_and_recycles() {
        let pool = BufferPool::new(64 << 10);
        let first = pool.take(48 << 10);
        let address = first.as_ptr();
        assert!(pool.try_take(32 << 10).is_none());
        let small = pool.try_take(16 << 10).unwrap();
        assert_eq!(pool.lent_bytes(), 64 << 10);
        drop(small);
        drop(first);
        assert_eq!(pool.lent_bytes(), 0);
        assert_eq!(pool.take(48 << 10).as_ptr(), address);
    }

    #[test]
    fn idle_buffers_never_push_the_pool_over_its_limit() {
        let pool = BufferPool::new(64 << 10);
        for length in [4 << 10, 8 << 10, 20 << 10, 64 << 10, 12 << 10, 60 << 10] {
            drop(pool.take(length));
            let state = pool.inner.state.lock();
            let held: usize = state.free.values().flatten().map(|raw| raw.capacity).sum();
            assert_eq!(held, state.idle);
            assert!(state.idle + state.lent <= 64 << 10);
        }
    }

    #[test]
    fn a_request_over_the_limit_is_served_alone() {
        let pool = BufferPool::new(16 << 10);
        let big = pool.take(1 << 20);
        assert!(pool.try_take(4096).is_none());
        drop(big);
        assert!(pool.try_take(4096).is_some());
    }

    #[test]
    fn a_waiting_large_request_is_not_overtaken_by_small_ones() {
        let pool = BufferPool::new(64 << 10);
        let held = pool.take(32 << 10);
        let (sender, receiver) = mpsc::channel();
        let waiter = thread::spawn({
            let pool = pool.clone();
            move || {
                let large = pool.take_many(&[32 << 10, 32 << 10]);
                sender.send(()).unwrap();
                drop(large);
            }
        });
        while pool.inner.state.lock().queue.is_empty() {
            thread::yield_now();
        }
        assert!(pool.try_take(4096).is_none(), "the queue comes first");
        drop(held);
        receiver.recv().unwrap();
        waiter.join().unwrap();
        assert_eq!(pool.lent_bytes(), 0);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(8192);
        let mut buffer = pool.take(4096);
        drop(pool);
        buffer.fill(1);
        assert_eq!(buffer[4095], 1);
    }

    #[test]
    #[should_panic(expected = "block-aligned")]
    fn slices_must_be_block_aligned() {
        BufSlice::new(Arc::new(AlignedBuf::zeroed(8192)), 512..4608);
    }
}
