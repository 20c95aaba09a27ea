//! A disk in memory with knobs and counters, for tests and for measuring the
//! transport.

#![allow(unreachable_pub, dead_code, missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use tessera_engine::disk::{
    Disk, DiskCatalog, DiskError, DiskInfo, Extent, ExtentKind, FlushDone, Operation, Request,
};

const PAGE: usize = 4096;

enum Page {
    Hole,
    Zero,
    Data(Box<[u8]>),
}

/// What a flush does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushMode {
    /// Completes inside the call.
    Inline,
    /// Completes on another thread.
    Thread,
    /// Waits for [`MemoryDisk::release_flushes`].
    Held,
}

/// The disk.
pub struct MemoryDisk {
    name: String,
    pages: Vec<Mutex<Page>>,
    size: AtomicU64,
    /// Reported as read-only.
    pub read_only: bool,
    /// Data goes nowhere and comes from nowhere.
    pub null: bool,
    flush_mode: Mutex<FlushMode>,
    held: Mutex<Vec<FlushDone>>,
    failures: Mutex<Vec<(Range<u64>, DiskError)>>,
    flush_failure: Mutex<Option<DiskError>>,
    /// The range that has to wait.
    gate: Mutex<Option<Range<u64>>>,
    gate_opened: Condvar,
    /// Calls of `execute`.
    pub batches: AtomicUsize,
    /// Requests in them.
    pub requests: AtomicUsize,
    /// Calls of `flush`.
    pub flushes: AtomicUsize,
    /// Calls of `work_ahead`.
    pub worked_ahead: AtomicUsize,
    /// Bytes asked to be prefetched.
    pub prefetched: AtomicU64,
    /// Threads inside `execute` that wait at the gate.
    pub at_gate: AtomicUsize,
    flusher: flusher::Flusher,
}

/// A thread that completes flushes, without depending on a channel crate.
mod flusher {
    use std::sync::mpsc::{Sender, channel};

    use super::FlushDone;

    pub struct Flusher(Sender<FlushDone>);

    impl Flusher {
        pub fn start() -> Self {
            let (sender, receiver) = channel::<FlushDone>();
            std::thread::spawn(move || {
                for done in receiver {
                    done(Ok(()));
                }
            });
            Self(sender)
        }

        pub fn push(&self, done: FlushDone) {
            self.0
                .send(done)
                .expect("the flusher runs as long as the disk");
        }
    }
}

impl MemoryDisk {
    pub fn new(name: &str, size: u64) -> Self {
        let pages = usize::try_from(size).unwrap().div_ceil(PAGE);
        Self {
            name: name.into(),
            pages: (0..pages).map(|_| Mutex::new(Page::Hole)).collect(),
            size: AtomicU64::new(size),
            read_only: false,
            null: false,
            flush_mode: Mutex::new(FlushMode::Inline),
            held: Mutex::default(),
            failures: Mutex::default(),
            flush_failure: Mutex::default(),
            gate: Mutex::new(None),
            gate_opened: Condvar::new(),
            batches: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            flushes: AtomicUsize::new(0),
            worked_ahead: AtomicUsize::new(0),
            prefetched: AtomicU64::new(0),
            at_gate: AtomicUsize::new(0),
            flusher: flusher::Flusher::start(),
        }
    }

    /// A disk whose data is thrown away, of any size.
    pub fn null(name: &str, size: u64) -> Self {
        let mut disk = Self::new(name, 0);
        disk.null = true;
        disk.size = AtomicU64::new(size);
        disk
    }

    pub fn set_flush_mode(&self, mode: FlushMode) {
        *self.flush_mode.lock() = mode;
    }

    pub fn release_flushes(&self) {
        for done in std::mem::take(&mut *self.held.lock()) {
            done(self.flush_result());
        }
    }

    pub fn held_flushes(&self) -> usize {
        self.held.lock().len()
    }

    /// Any operation that touches `range` fails from now on.
    pub fn fail(&self, range: Range<u64>, error: DiskError) {
        self.failures.lock().push((range, error));
    }

    pub fn fail_flushes(&self, error: DiskError) {
        *self.flush_failure.lock() = Some(error);
    }

    pub fn resize(&self, size: u64) {
        self.size.store(size, Ordering::SeqCst);
    }

    /// Makes `execute` wait until [`MemoryDisk::open_gate`].
    pub fn close_gate(&self) {
        self.close_gate_to(0..u64::MAX);
    }

    /// Makes `execute` wait if the batch begins in `range`.
    pub fn close_gate_to(&self, range: Range<u64>) {
        *self.gate.lock() = Some(range);
    }

    pub fn open_gate(&self) {
        *self.gate.lock() = None;
        self.gate_opened.notify_all();
    }

    pub fn contents(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; length];
        self.read(offset, &mut bytes);
        bytes
    }

    fn flush_result(&self) -> Result<(), DiskError> {
        self.flush_failure.lock().clone().map_or(Ok(()), Err)
    }

    fn check(&self, offset: u64, length: u64) -> Result<(), DiskError> {
        let size = self.size.load(Ordering::SeqCst);
        let end = offset.checked_add(length).filter(|end| *end <= size);
        let Some(end) = end else {
            return Err(DiskError::OutOfRange {
                offset,
                length,
                size,
            });
        };
        if !self.null {
            for (range, error) in &*self.failures.lock() {
                if range.start < end && offset < range.end {
                    return Err(error.clone());
                }
            }
        }
        Ok(())
    }

    /// Calls `work` with each page the range touches, and the part of it.
    fn pages(
        &self,
        offset: u64,
        length: usize,
        mut work: impl FnMut(&Mutex<Page>, Range<usize>, usize),
    ) {
        let mut at = usize::try_from(offset).unwrap();
        let mut done = 0;
        while done < length {
            let begin = at % PAGE;
            let count = (PAGE - begin).min(length - done);
            work(&self.pages[at / PAGE], begin..begin + count, done);
            at += count;
            done += count;
        }
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) {
        let length = buffer.len();
        self.pages(offset, length, |page, part, at| {
            let target = &mut buffer[at..at + part.len()];
            match &*page.lock() {
                Page::Data(bytes) => target.copy_from_slice(&bytes[part]),
                Page::Hole | Page::Zero => target.fill(0),
            }
        });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.pages(offset, data.len(), |page, part, at| {
            let mut page = page.lock();
            if let Page::Hole | Page::Zero = *page {
                *page = Page::Data(vec![0; PAGE].into());
            }
            let Page::Data(bytes) = &mut *page else {
                unreachable!("made a moment ago")
            };
            let source = &data[at..at + part.len()];
            bytes[part].copy_from_slice(source);
        });
    }

    fn zero(&self, offset: u64, length: u64, keep_allocated: bool) {
        self.pages(offset, usize::try_from(length).unwrap(), |page, part, _| {
            let mut page = page.lock();
            if part.len() == PAGE {
                *page = if keep_allocated {
                    Page::Zero
                } else {
                    Page::Hole
                };
            } else if let Page::Data(bytes) = &mut *page {
                bytes[part].fill(0);
            }
        });
    }

    fn perform(&self, operation: &mut Operation<'_>) -> Result<(), DiskError> {
        let (offset, length, writes) = match operation {
            Operation::Read { offset, buffer } => (*offset, buffer.len() as u64, false),
            Operation::Write { offset, data } => (*offset, data.len() as u64, true),
            Operation::Discard { offset, length }
            | Operation::WriteZeroes { offset, length, .. } => (*offset, *length, true),
            Operation::Prefetch { offset, length } => (*offset, *length, false),
        };
        self.check(offset, length)?;
        if writes && self.read_only {
            return Err(DiskError::ReadOnly);
        }
        if self.null {
            return Ok(());
        }
        match operation {
            Operation::Read { buffer, .. } => self.read(offset, buffer),
            Operation::Write { data, .. } => self.write(offset, data),
            Operation::Discard { .. } => self.zero(offset, length, false),
            Operation::WriteZeroes { keep_allocated, .. } => {
                self.zero(offset, length, *keep_allocated);
            }
            Operation::Prefetch { .. } => {
                self.prefetched.fetch_add(length, Ordering::SeqCst);
            }
        }
        Ok(())
    }
}

impl Disk for MemoryDisk {
    fn info(&self) -> DiskInfo {
        DiskInfo {
            name: self.name.clone(),
            description: "A disk in memory".into(),
            size: self.size(),
            read_only: self.read_only,
            chunk_size: 4096,
        }
    }

    fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    fn execute(&self, batch: &mut [Request<'_>]) {
        self.batches.fetch_add(1, Ordering::SeqCst);
        self.requests.fetch_add(batch.len(), Ordering::SeqCst);
        let at = batch.first().map_or(0, |request| match request.operation {
            Operation::Read { offset, .. }
            | Operation::Write { offset, .. }
            | Operation::Discard { offset, .. }
            | Operation::WriteZeroes { offset, .. }
            | Operation::Prefetch { offset, .. } => offset,
        });
        let mut closed = self.gate.lock();
        let waits =
            |closed: &Option<Range<u64>>| closed.as_ref().is_some_and(|to| to.contains(&at));
        if waits(&closed) {
            self.at_gate.fetch_add(1, Ordering::SeqCst);
            while waits(&closed) {
                self.gate_opened.wait(&mut closed);
            }
            self.at_gate.fetch_sub(1, Ordering::SeqCst);
        }
        drop(closed);
        for request in batch {
            request.result = self.perform(&mut request.operation);
        }
    }

    fn flush(&self, done: FlushDone) {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let mode = *self.flush_mode.lock();
        match mode {
            FlushMode::Inline => done(self.flush_result()),
            FlushMode::Thread => self.flusher.push(done),
            FlushMode::Held => self.held.lock().push(done),
        }
    }

    fn work_ahead(&self) {
        self.worked_ahead.fetch_add(1, Ordering::SeqCst);
    }

    fn extents(&self, offset: u64, length: u64, max: usize) -> Result<Vec<Extent>, DiskError> {
        self.check(offset, length)?;
        if self.null {
            return Ok(vec![Extent {
                length,
                kind: ExtentKind::Data,
            }]);
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut at = offset;
        let end = offset + length;
        while at < end {
            let page = at / PAGE as u64;
            let next = ((page + 1) * PAGE as u64).min(end);
            let kind = match *self.pages[usize::try_from(page).expect("it fits")].lock() {
                Page::Hole => ExtentKind::Hole,
                Page::Zero => ExtentKind::Zero,
                Page::Data(_) => ExtentKind::Data,
            };
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.kind == kind => last.length += next - at,
                _ if full => break,
                _ => extents.push(Extent {
                    length: next - at,
                    kind,
                }),
            }
            at = next;
        }
        Ok(extents)
    }
}

/// Some disks by name.
#[derive(Default)]
pub struct MemoryCatalog {
    disks: Mutex<BTreeMap<String, Arc<dyn Disk>>>,
    /// Calls of `open`.
    pub opened: AtomicUsize,
    /// Pretend that there is nothing.
    pub empty: AtomicBool,
}

impl MemoryCatalog {
    pub fn with(disks: &[Arc<MemoryDisk>]) -> Arc<Self> {
        let catalog = Self::default();
        for disk in disks {
            catalog
                .disks
                .lock()
                .insert(disk.name.clone(), Arc::clone(disk) as Arc<dyn Disk>);
        }
        Arc::new(catalog)
    }
}

impl DiskCatalog for MemoryCatalog {
    fn names(&self) -> Vec<String> {
        if self.empty.load(Ordering::SeqCst) {
            return Vec::new();
        }
        self.disks.lock().keys().cloned().collect()
    }

    fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        self.opened.fetch_add(1, Ordering::SeqCst);
        if self.empty.load(Ordering::SeqCst) {
            return None;
        }
        self.disks.lock().get(name).cloned()
    }
}
