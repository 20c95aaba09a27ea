//! All jobs of a pool: those under way, and the last that ended.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::record::JobRecord;
use crate::api::{JobInfo, JobKind, JobMember, JobState};

/// Ended jobs that are remembered.
const ENDED_MAX: usize = 16;
const _: () = assert!(ENDED_MAX > JobKind::ALL.len());
/// A job that has done this much since the last checkpoint asks for one: what a
/// crash makes it do again.
const SAVE_BYTES: u64 = 1 << 30;
/// The rate is measured over this time.
const RATE_WINDOW_MS: u64 = 10_000;

#[derive(Debug)]
struct Row {
    record: JobRecord,
    /// Moments and bytes done by then, within the window.
    samples: VecDeque<(u64, u64)>,
    /// Sentences about what was lost, once they are known. They are not stored:
    /// after a restart they are found again from the places in the record.
    losses: Option<Vec<String>>,
}

impl Row {
    fn new(record: JobRecord) -> Self {
        Self {
            record,
            samples: VecDeque::new(),
            losses: None,
        }
    }

    fn rate(&self) -> u64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                after.saturating_sub(*before).saturating_mul(1000) / (to - from)
            }
            _ => 0,
        }
    }
}

/// See the module's text. Changed and read under one lock, in memory only.
#[derive(Debug, Default)]
pub(crate) struct JobTable {
    rows: BTreeMap<u64, Row>,
    dirty: BTreeSet<u64>,
    next_id: u64,
    /// A change that should not wait for a checkpoint taken for other reasons.
    urgent: bool,
    unsaved_bytes: u64,
    /// Runs, but does not have its turn.
    held: Option<u64>,
}

impl JobTable {
    /// A table as a checkpoint left it.
    pub(crate) fn load(rows: BTreeMap<u64, JobRecord>, next_id: u64) -> Self {
        Self {
            next_id: next_id.max(1),
            rows: rows
                .into_iter()
                .map(|(row, record)| (row, Row::new(record)))
                .collect(),
            ..Self::default()
        }
    }

    /// The id that the next job gets.
    pub(crate) fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Adds a job; of ended ones the oldest makes room, but not the newest of
    /// its kind: that one is what its status tells.
    pub(crate) fn add(&mut self, make: impl FnOnce(u64) -> JobRecord) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let ended = self.rows_by_age(|record| !record.is_active());
        let row = if ended.len() >= ENDED_MAX {
            let newest = JobKind::ALL.map(|kind| self.newest(kind).map(|record| record.id));
            let told = |row: &&u64| newest.contains(&Some(self.rows[row].record.id));
            let oldest = ended.iter().find(|row| !told(row));
            *oldest.expect("there are more ended jobs than kinds")
        } else {
            (0..)
                .find(|row| !self.rows.contains_key(row))
                .expect("the numbers do not end")
        };
        self.rows.insert(row, Row::new(make(id)));
        self.dirty.insert(row);
        self.urgent = true;
        id
    }

    fn rows_by_age(&self, wanted: impl Fn(&JobRecord) -> bool) -> Vec<u64> {
        let mut rows: Vec<(u64, u64)> = self
            .rows
            .iter()
            .filter(|(_, row)| wanted(&row.record))
            .map(|(number, row)| (row.record.id, *number))
            .collect();
        rows.sort_unstable();
        rows.into_iter().map(|(_, row)| row).collect()
    }

    fn row_of(&self, id: u64) -> Option<u64> {
        let found = self.rows.iter().find(|(_, row)| row.record.id == id);
        found.map(|(number, _)| *number)
    }

    /// A job's record.
    pub(crate) fn get(&self, id: u64) -> Option<&JobRecord> {
        Some(&self.rows.get(&self.row_of(id)?)?.record)
    }

    /// Every record, oldest first.
    pub(crate) fn all(&self) -> Vec<&JobRecord> {
        let rows = self.rows_by_age(|_| true);
        rows.iter().map(|row| &self.rows[row].record).collect()
    }

    /// Changes a job. A change of state asks for a checkpoint.
    pub(crate) fn update(&mut self, id: u64, change: impl FnOnce(&mut JobRecord)) {
        let Some(number) = self.row_of(id) else {
            return;
        };
        let row = self.rows.get_mut(&number).expect("found above");
        let before = row.record.state;
        let done = row.record.done_bytes;
        change(&mut row.record);
        self.urgent |= row.record.state != before;
        self.unsaved_bytes += row.record.done_bytes.saturating_sub(done);
        self.dirty.insert(number);
    }

    /// Notes how far a job is at this moment, for its rate.
    pub(crate) fn sample(&mut self, id: u64, now_ms: u64) {
        if let Some(row) = self.row_of(id).and_then(|row| self.rows.get_mut(&row)) {
            row.samples.push_back((now_ms, row.record.done_bytes));
            while row.samples.len() > 2 && row.samples[1].0 + RATE_WINDOW_MS < now_ms {
                row.samples.pop_front();
            }
        }
    }

    /// Forgets the rate: the job was paused.
    pub(crate) fn forget_rate(&mut self, id: u64) {
        if let Some(row) = self.row_of(id).and_then(|row| self.rows.get_mut(&row)) {
            row.samples.clear();
        }
    }

    /// Keeps sentences about what a job found lost.
    pub(crate) fn set_losses(&mut self, id: u64, losses: Vec<String>) {
        if let Some(row) = self.row_of(id).and_then(|row| self.rows.get_mut(&row)) {
            row.losses = Some(losses);
        }
    }

    /// The newest ended scrub that found losses which have not been named since
    /// the pool was opened.
    pub(crate) fn unnamed(&self) -> Option<&JobRecord> {
        let rows = self.rows_by_age(|record| {
            record.kind == JobKind::Scrub && !record.is_active() && record.lost > 0
        });
        let unnamed = |row: &&u64| self.rows[*row].losses.is_none();
        rows.iter()
            .rev()
            .find(unnamed)
            .map(|row| &self.rows[row].record)
    }

    /// Lets a job wait, until it is let go or the pool is opened again. True if
    /// that is new.
    pub(crate) fn hold(&mut self, id: u64, hold: bool) -> bool {
        let changes = self.is_held(id) != hold;
        if changes {
            self.held = hold.then_some(id);
        }
        changes
    }

    /// Whether a job waits.
    pub(crate) fn is_held(&self, id: u64) -> bool {
        self.held == Some(id)
    }

    /// The job whose turn it is: rebuilds, reclaims, deduplications, scrubs;
    /// older ones first.
    pub(crate) fn next_running(&self) -> Option<&JobRecord> {
        let of = |kind: JobKind| {
            let running = |record: &JobRecord| {
                record.kind == kind
                    && record.state == JobState::Running
                    && self.held != Some(record.id)
            };
            self.rows_by_age(running).first().copied()
        };
        let kinds = [
            JobKind::Rebuild,
            JobKind::Reclaim,
            JobKind::Dedup,
            JobKind::Scrub,
        ];
        let row = kinds.into_iter().find_map(of)?;
        Some(&self.rows[&row].record)
    }

    /// The newest job of a kind.
    pub(crate) fn newest(&self, kind: JobKind) -> Option<&JobRecord> {
        let rows = self.rows_by_age(|record| record.kind == kind);
        rows.last().map(|row| &self.rows[row].record)
    }

    /// True when something should become durable soon.
    pub(crate) fn wants_checkpoint(&self) -> bool {
        self.urgent || self.unsaved_bytes >= SAVE_BYTES
    }

    /// Has the next checkpoint write every row.
    pub(crate) fn rewrite_all(&mut self) {
        self.dirty.extend(self.rows.keys());
    }

    /// The rows that a checkpoint has to write; later changes are dirty again.
    pub(crate) fn take_dirty(&mut self) -> BTreeMap<u64, Vec<u8>> {
        self.urgent = false;
        self.unsaved_bytes = 0;
        let dirty = std::mem::take(&mut self.dirty);
        let encoded = dirty
            .into_iter()
            .filter_map(|row| Some((row, self.rows.get(&row)?.record.encode())));
        encoded.collect()
    }

    /// The checkpoint that took these rows was given up.
    pub(crate) fn give_back(&mut self, rows: impl Iterator<Item = u64>) {
        let before = self.dirty.len();
        self.dirty.extend(rows);
        self.urgent |= self.dirty.len() > before;
    }

    /// What a job is shown as.
    pub(crate) fn info(&self, id: u64) -> Option<JobInfo> {
        let row = &self.rows[&self.row_of(id)?];
        let record = &row.record;
        let rate = if record.state == JobState::Running {
            row.rate()
        } else {
            0
        };
        let left = record.total_bytes.saturating_sub(record.done_bytes);
        let progress = match (record.state, record.total_bytes) {
            (JobState::Done, _) => 1.0,
            (_, 0) => 0.0,
            // The last step is not done before the state says so.
            (_, total) => (record.done_bytes as f64 / total as f64).min(0.999),
        };
        Some(JobInfo {
            id,
            kind: record.kind,
            state: record.state,
            progress,
            bytes_done: record.done_bytes,
            bytes_total: record.total_bytes,
            bytes_per_second: rate,
            eta_seconds: (record.state == JobState::Running)
                .then(|| left.checked_div(rate))
                .flatten(),
            started_unix_ms: record.started_ms,
            ended_unix_ms: record.ended_ms,
            message: record.message.clone(),
            member: record.member.map(|member| u32::from(member.0)),
            checked: record.checked,
            found: record.found,
            repaired: record.repaired,
            lost: record.lost,
            merged_bytes: record.merged_bytes,
            losses: row.losses.clone().unwrap_or_default(),
            members: record
                .members
                .iter()
                .map(|(member, counts)| JobMember {
                    index: u32::from(member.0),
                    checked: counts.checked,
                    found: counts.found,
                    repaired: counts.repaired,
                })
                .collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table_with(count: u64) -> JobTable {
        let mut table = JobTable::load(BTreeMap::new(), 0);
        for _ in 0..count {
            let id = table.add(|id| JobRecord::new(id, JobKind::Scrub, 0));
            table.update(id, |record| record.state = JobState::Done);
        }
        table
    }

    #[test]
    fn many_jobs_of_one_kind_do_not_push_out_the_newest_of_another() {
        let mut table = JobTable::default();
        let mut ended = |kind: JobKind| {
            let id = table.add(|id| JobRecord::new(id, kind, 1));
            table.update(id, |record| record.state = JobState::Done);
            id
        };
        let scrub = ended(JobKind::Scrub);
        let mut reclaim = 0;
        for _ in 0..3 * ENDED_MAX {
            reclaim = ended(JobKind::Reclaim);
        }
        assert_eq!(table.newest(JobKind::Scrub).unwrap().id, scrub);
        assert_eq!(table.newest(JobKind::Reclaim).unwrap().id, reclaim);
        assert_eq!(table.all().len(), ENDED_MAX);
    }

    #[test]
    fn the_newest_ended_jobs_are_remembered_and_ids_never_repeat() {
        let mut table = table_with(40);
        let ids: Vec<u64> = table.all().iter().map(|record| record.id).collect();
        assert_eq!(ids, (25..=40).collect::<Vec<_>>());
        let running = table.add(|id| JobRecord::new(id, JobKind::Rebuild, 0));
        assert_eq!(table.next_running().unwrap().id, running);
        let rows = table.take_dirty();
        let decoded = rows
            .iter()
            .map(|(row, bytes)| (*row, JobRecord::decode(bytes).unwrap()));
        let loaded = JobTable::load(decoded.collect(), table.next_id());
        assert_eq!(loaded.all(), table.all());
        assert_eq!(loaded.next_id(), 42);
    }

    #[test]
    fn rebuilds_come_before_scrubs() {
        let mut table = table_with(1);
        table.add(|id| JobRecord::new(id, JobKind::Scrub, 0));
        let rebuild = table.add(|id| JobRecord::new(id, JobKind::Rebuild, 0));
        assert_eq!(table.next_running().unwrap().id, rebuild);
        table.update(rebuild, |record| record.state = JobState::Paused);
        assert_eq!(table.next_running().unwrap().kind, JobKind::Scrub);
    }

    #[test]
    fn rate_and_eta_follow_the_last_seconds() {
        let mut table = table_with(0);
        let id = table.add(|id| JobRecord::new(id, JobKind::Scrub, 0));
        table.update(id, |record| record.total_bytes = 100_000_000);
        for second in 0..=20 {
            table.update(id, |record| record.done_bytes = second * 1_000_000);
            table.sample(id, second * 1000);
        }
        let info = table.info(id).unwrap();
        assert_eq!(info.bytes_per_second, 1_000_000);
        assert_eq!(info.eta_seconds, Some(80));
        assert!((info.progress - 0.2).abs() < 1e-9);
    }

    #[test]
    fn only_changes_of_state_and_much_progress_ask_for_a_checkpoint() {
        let mut table = table_with(0);
        let id = table.add(|id| JobRecord::new(id, JobKind::Scrub, 0));
        assert!(table.wants_checkpoint());
        let rows = table.take_dirty();
        assert!(!table.wants_checkpoint());
        table.update(id, |record| record.done_bytes = 5);
        assert!(!table.wants_checkpoint());
        table.update(id, |record| record.done_bytes = 2 << 30);
        assert!(table.wants_checkpoint());
        table.give_back(rows.into_keys());
        assert_eq!(table.take_dirty().len(), 1);
    }
}
