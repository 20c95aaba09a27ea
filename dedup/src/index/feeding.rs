//! What goes into the database and the filter, and what goes out again when
//! the memory or the disk given is used up.
//!
//! Two rates (`sampling.rs`), each moving in halves:
//!
//! * *kept*: what the database holds. It becomes sparser when the disk limit is
//!   reached, is in the stamp, and becomes denser only when all is made anew.
//! * *asked*: what the filter holds and is looked up, at least as sparse. It
//!   follows from memory alone and is found anew at every start, so a command
//!   that opens the pool with little memory leaves no trace.

use super::{
    FingerprintIndex, Worker,
    queue::{self, Pending},
    store::StoreError,
    tables::Tables,
};

/// Keys scanned into the filter by one step.
const SCAN_KEYS: usize = 8192;

impl FingerprintIndex {
    /// One piece of background work; true if there may be more at once.
    ///
    /// Queued segments wait for a batch to fill; after some calls with nothing
    /// else to do, they are put in as they are.
    pub fn step(&self) -> bool {
        let mut worker = self.worker.lock();
        self.retire(&mut worker);
        let tables = self.tables();
        if self.trim(&mut worker, &tables) {
            return true;
        }
        let ripe = self.queue.lock().ripe();
        if ripe && self.ingest(&mut worker) {
            return true;
        }
        self.scan(&mut worker, &tables)
    }

    /// Puts everything queued into the database, for a clean stop. What cannot
    /// be put in is read in again at the next start.
    pub fn flush(&self) {
        let mut worker = self.worker.lock();
        while self.ingest(&mut worker) {}
        self.retire(&mut worker);
    }

    /// Puts one batch in; false when there is none or it has to wait.
    pub(super) fn ingest(&self, worker: &mut Worker) -> bool {
        if self.is_dropped() {
            self.queue.lock().clear();
            return false;
        }
        let tables = self.tables();
        if tables.store.crowded() || self.over_disk_limit(&tables) {
            return false;
        }
        let batch = self.queue.lock().take_batch();
        if batch.is_empty() {
            return false;
        }
        let mut entries = queue::sorted_entries(&batch, worker.coverage.rate);
        let keys_max = tables.store.keys_max(self.disk_limit());
        let after = |worker: &Worker, more: usize| worker.keys.saturating_add(more as u64);
        let complete: Vec<_> = batch.iter().filter(|pending| pending.complete).collect();
        let outcome = loop {
            let outcome = if after(worker, entries.len()) > keys_max {
                Err(StoreError::Full)
            } else {
                // The filter first: what is in the database is never denied.
                let asked = tables.asked();
                for (prefix, _) in entries.iter().filter(|(prefix, _)| asked.keeps(*prefix)) {
                    tables.filter.insert(*prefix);
                }
                let mut coverage = worker.coverage.clone();
                for pending in &complete {
                    coverage.insert(pending.generation);
                }
                let stamp = coverage.encode(self.pool);
                tables.store.ingest(&entries, &stamp).map(|()| coverage)
            };
            // `keys` is an estimate: the database itself may say so as well.
            let full = matches!(outcome, Err(StoreError::Full));
            if !full || !self.thin(worker, &tables) {
                break outcome;
            }
            entries.retain(|(prefix, _)| worker.coverage.rate.keeps(*prefix));
        };
        match outcome {
            Ok(coverage) => {
                worker.coverage = coverage;
                // Not above what the database counts, which leaves out what was
                // there before.
                worker.keys = after(worker, entries.len()).min(tables.store.entries());
            }
            Err(error) => {
                tracing::warn!(%error, entries = entries.len(), "fingerprints dropped");
            }
        }
        // Either findable otherwise now, or given up.
        for pending in &batch {
            self.forget_fresh(pending);
        }
        if tables.filter.count() > tables.filter.capacity() {
            // It may be full of what is dead or came twice.
            let expected = tables.asked().share(worker.keys, worker.coverage.rate);
            let sparser = expected > tables.filter.capacity() / 4 * 3;
            self.fill_anew(worker, &tables, sparser);
        }
        true
    }

    /// Puts a rebuilt segment in the queue as long as the database takes what
    /// is in it.
    pub(super) fn push_patiently(&self, mut pending: Pending) {
        loop {
            let refused = self.queue.lock().push(pending);
            match refused {
                Some(refused) if self.ingest(&mut self.worker.lock()) => pending = refused,
                // Left out: the next start reads it in.
                _ => return,
            }
        }
    }

    fn over_disk_limit(&self, tables: &Tables) -> bool {
        let limit = self.disk_limit();
        limit != 0 && tables.store.disk_bytes() > limit
    }

    /// One piece of coming within the disk limit, which may have been lowered;
    /// false when nothing is to be done, or nothing helps.
    fn trim(&self, worker: &mut Worker, tables: &Tables) -> bool {
        if worker.keys > tables.store.keys_max(self.disk_limit()) {
            if std::mem::take(&mut worker.keys_unsifted) {
                tables.store.compact();
                worker.keys = tables.store.entries();
                return true;
            }
            return self.thin(worker, tables);
        }
        if !self.over_disk_limit(tables) {
            return false;
        }
        // First without what is dead or left out already, then with half.
        if worker.compacted_to == Some(tables.store.disk_bytes()) && !self.thin(worker, tables) {
            return false;
        }
        tables.store.compact();
        worker.compacted_to = Some(tables.store.disk_bytes());
        true
    }

    /// Keeps half of the fingerprints from now on; false when no sparser rate
    /// is of use.
    fn thin(&self, worker: &mut Worker, tables: &Tables) -> bool {
        let Some(rate) = worker.coverage.rate.halved() else {
            return false;
        };
        let mut coverage = worker.coverage.clone();
        coverage.rate = rate;
        // The stamp first: it must not claim what is gone.
        if let Err(error) = tables.store.ingest(&[], &coverage.encode(self.pool)) {
            tracing::warn!(%error, "the fingerprint index cannot be thinned out");
            return false;
        }
        worker.coverage = coverage;
        tables.set_kept(rate);
        tables.store.thin(rate.last());
        worker.keys = (worker.keys / 2).min(tables.store.entries());
        if tables.asked() < rate {
            tables.set_asked(rate);
            self.restart_scan(worker, tables);
        }
        tracing::info!(
            one_in = rate.one_in(),
            "the fingerprint index keeps a sparser sample: it has reached its limit"
        );
        true
    }

    /// Fills the filter from the database again, with half of it if need be;
    /// false when no sparser rate is of use.
    fn fill_anew(&self, worker: &mut Worker, tables: &Tables, sparser: bool) -> bool {
        let asked = tables.asked();
        match if sparser { asked.halved() } else { Some(asked) } {
            Some(rate) => tables.set_asked(rate),
            // Fuller than it should be: more false alarms, within the budget.
            None => return false,
        }
        self.restart_scan(worker, tables);
        tracing::info!(
            one_in = tables.asked().one_in(),
            "the fingerprint filter is full and filled anew"
        );
        true
    }

    fn restart_scan(&self, worker: &mut Worker, tables: &Tables) {
        tables.filter.clear();
        worker.scan_from = Some(0);
    }

    /// Fills the filter from the database, a piece at a time.
    fn scan(&self, worker: &mut Worker, tables: &Tables) -> bool {
        let Some(from) = worker.scan_from else {
            return false;
        };
        let asked = tables.asked();
        let next = tables.store.scan(from, SCAN_KEYS, &mut |prefix| {
            if asked.keeps(prefix) {
                tables.filter.insert(prefix);
            }
        });
        if next.is_ok()
            && tables.filter.count() > tables.filter.capacity()
            && self.fill_anew(worker, tables, true)
        {
            return true;
        }
        match next {
            Ok(Some(next)) if asked.keeps(next) => {
                worker.scan_from = Some(next);
                true
            }
            Ok(_) => {
                worker.scan_from = None;
                tables.filter.set_complete();
                false
            }
            Err(error) => {
                // It goes on saying "maybe"; the lookup budget bounds the cost.
                tracing::warn!(%error, "the fingerprint filter stays incomplete");
                worker.scan_from = None;
                false
            }
        }
    }
}
