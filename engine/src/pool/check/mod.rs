//! Verifying a pool from its members, reading only.
//!
//! ```text
//!   superblocks -> journal chain -> root page -> segment table -> catalogue
//!     -> journal records -> map trees -> summaries -> chunks (on request)
//! ```
//! The check does not open the engine, because the engine rightly stops at the
//! first thing it cannot trust. This walks the same structures from the root
//! down, writes one sentence for each damaged object and goes on behind it. It
//! reads the members itself ([`source`]), not through the reader that clients
//! use: that one would mend what it can and keep quiet about it, and would
//! serve a page from its cache.
//!
//! * Damage that the redundancy still makes good is a problem, too: the next
//!   failure would make it a loss. The sentence says which it is.
//! * After an unclean stop the pages are those of the last checkpoint, and the
//!   journal's records are checked as recovery would use them: every location
//!   they name is closed and synced or has its bytes in the journal (R14).
//! * A page that volumes and snapshots share is walked once: what is wrong with
//!   it is told of the first that has it.
//! * When the power fails while a clean stop writes its superblocks, a copy of
//!   them may be torn under the word "clean". That is told as damage: nothing
//!   tells it from rot, and the next opening mends it.
//! * A pool in use is checked from the root of a checkpoint taken for it
//!   ([`in_use`]); clients go on meanwhile.
//! * Parity, and copies that a plain read does not look at, are not read unless
//!   something else fails: that is a scrub's work.

mod chunks;
mod in_use;
mod journal;
mod segments;
mod source;
mod trees;

use std::{collections::BTreeMap, error::Error, path::Path};

use tessera_raid::{Array, MemberIndex, MemberState};

use self::{
    segments::Segments,
    source::{Found, Range, Source},
    trees::{Seen, Volumes},
};
use super::{IoChoice, Pool, open_array};
use crate::{
    api::CheckReport,
    error::EngineError,
    journal::Batch,
    map::PageBytes,
    root::{EngineRecord, RootPage, RootPointer},
};

/// Most problems that are told apart; of more only the number is kept, so that
/// a ruined pool cannot fill the memory.
const PROBLEMS_MAX: usize = 1000;
/// The same of notes.
const NOTES_MAX: usize = 100;

/// Told how far a check is.
pub trait CheckObserver {
    /// `done` of `total` in this stage; a total may grow while its stage runs.
    fn progress(&self, stage: &str, done: u64, total: u64);

    /// Asked now and then: true ends the check early.
    fn cancelled(&self) -> bool {
        false
    }
}

impl Pool {
    /// Verifies a pool that nobody has open, writing nothing: superblocks,
    /// journal, every page of every tree and every pointer; with `data` also
    /// every chunk, each stored one once, by BLAKE3 where its segment's
    /// summary has a hash, else by checksum.
    ///
    /// What is damaged is in the report, never an error.
    ///
    /// # Errors
    /// Where the members do not make a pool or cannot be opened.
    pub fn check(
        directory: &Path,
        data: bool,
        io: IoChoice,
        observer: &dyn CheckObserver,
    ) -> Result<CheckReport, EngineError> {
        let array = open_array(directory, io.backend()?, true)?;
        Ok(check_array(&array, data, observer))
    }
}

/// As [`Pool::check`] on an array that was opened read-only.
pub(crate) fn check_array(array: &Array, data: bool, observer: &dyn CheckObserver) -> CheckReport {
    let source = Source::new(array, None);
    let mut check = Check::new(&source, observer);
    check.members();
    if let Some(record) = check.engine_record() {
        check.progress("journal", 0, 1);
        let batches = check.journal_chain(&record);
        if !array.was_clean() {
            check.note(format!(
                "The pool was not closed cleanly: the pages are those of checkpoint {}, and {} \
                 journal batches wait to be replayed",
                record.checkpoint,
                batches.len()
            ));
        }
        check.progress("journal", 1, 1);
        let _freed_root = check.structures(&record, &batches, data);
    }
    check.read_errors();
    check.findings.finish()
}

/// The report as it grows.
#[derive(Default)]
struct Findings {
    report: CheckReport,
    problems_left_out: u64,
    notes_left_out: u64,
}

impl Findings {
    fn problem(&mut self, sentence: impl Into<String>) {
        if self.report.problems.len() < PROBLEMS_MAX {
            self.report.problems.push(sentence.into());
        } else {
            self.problems_left_out += 1;
        }
    }

    fn note(&mut self, sentence: impl Into<String>) {
        if self.report.notes.len() < NOTES_MAX {
            self.report.notes.push(sentence.into());
        } else {
            self.notes_left_out += 1;
        }
    }

    fn finish(mut self) -> CheckReport {
        if self.problems_left_out > 0 {
            let rest = format!("There are {} more problems", self.problems_left_out);
            self.report.problems.push(rest);
        }
        if self.notes_left_out > 0 {
            let rest = format!("There are {} more notes", self.notes_left_out);
            self.report.notes.push(rest);
        }
        self.report
    }
}

/// One check under way.
struct Check<'a> {
    array: &'a Array,
    source: &'a Source<'a>,
    /// Reads that had failed on each member before.
    errors_before: BTreeMap<MemberIndex, u64>,
    observer: &'a dyn CheckObserver,
    findings: Findings,
}

impl<'a> Check<'a> {
    fn new(source: &'a Source<'a>, observer: &'a dyn CheckObserver) -> Self {
        let members = source.array.status().members.into_iter();
        Self {
            array: source.array,
            source,
            errors_before: members
                .map(|member| (member.index, member.errors()))
                .collect(),
            observer,
            findings: Findings::default(),
        }
    }

    fn engine_record(&mut self) -> Option<EngineRecord> {
        let record = EngineRecord::decode(&self.array.engine_record());
        if record.is_none() {
            self.problem("The superblock's engine record cannot be understood");
        }
        record
    }

    /// From the engine record down. False when the root page was freed before
    /// it could be read.
    fn structures(&mut self, record: &EngineRecord, batches: &[Batch], data: bool) -> bool {
        let mut segments = Segments::new(self.array);
        let mut volumes = Volumes::default();
        let root = match &record.root {
            None => None,
            Some(pointer) => match self.root_page(record, pointer) {
                Some(page) => Some((pointer, page)),
                None => return self.source.freed() == 0,
            },
        };
        if let Some((pointer, page)) = &root {
            self.segment_table(record, pointer, page, &mut segments);
            volumes = self.catalogue(page, &mut segments);
            self.snapshot_table(page, &mut segments, &mut volumes);
            self.job_table(page, &mut segments);
        }
        let journalled = self.journal_records(record, batches, &mut segments, &mut volumes);
        let mut visited = Seen::default();
        for volume in volumes.and_snapshots() {
            self.volume(volume, &mut segments, &mut visited);
        }
        self.summaries(&mut segments);
        if data {
            self.chunks(&volumes, &segments, journalled);
        }
        if let Some(count) = segments.unnamed_sealed() {
            self.note(format!(
                "{count} full segments hold nothing live and await reclaim"
            ));
        }
        true
    }

    fn members(&mut self) {
        let (checked, problems) = self.array.check_superblocks();
        self.findings.report.superblocks_checked = checked;
        for problem in problems {
            self.problem(problem);
        }
        for member in self.array.status().members {
            let state = match member.state {
                MemberState::Online | MemberState::Spare => continue,
                MemberState::Rebuilding { .. } => "is being rebuilt",
                MemberState::Replacing { .. } => "is to replace another",
                MemberState::Failed => "has failed",
                MemberState::Missing => "is missing",
            };
            let path = member.path.display();
            self.note(format!(
                "Member {} ({path}) {state} and was not checked",
                member.index
            ));
        }
    }

    /// Reads that failed where another member had the bytes.
    fn read_errors(&mut self) {
        for member in self.array.status().members {
            let before = self.errors_before.get(&member.index).unwrap_or(&0);
            let errors = member.errors().saturating_sub(*before);
            if errors > 0 {
                let (index, path) = (member.index, member.path.display());
                self.problem(format!("Member {index} ({path}) failed {errors} reads"));
            }
        }
    }

    /// The page everything else hangs on; `None` after saying what is wrong.
    fn root_page(&mut self, record: &EngineRecord, pointer: &RootPointer) -> Option<RootPage> {
        let placement = pointer.placement.clone();
        let range = Range::of_page(pointer.generation, placement, &pointer.entry);
        let accept = |_: usize, bytes: &[u8]| crc32c::crc32c(bytes) == pointer.entry.checksum;
        let bytes = match self.source.read_all(&[range?], &accept).pop()? {
            Found::Whole(bytes) => bytes,
            Found::Mended(bytes, members) => {
                self.problem(format!("The root page {}", source::mended(&members)));
                bytes
            }
            Found::Freed => return None,
            Found::Lost => {
                self.problem(
                    "The root page is damaged: no copy verifies, so nothing below it can be found",
                );
                return None;
            }
        };
        self.findings.report.pages_checked += 1;
        let page: &PageBytes = bytes[..].try_into().ok()?;
        let decoded = RootPage::decode(page)
            .filter(|page| page.pool == self.array.uuid() && page.checkpoint == record.checkpoint);
        if decoded.is_none() {
            self.problem("The root page is not the one that the superblocks describe");
        }
        decoded
    }

    fn problem(&mut self, sentence: impl Into<String>) {
        self.findings.problem(sentence);
    }

    fn note(&mut self, sentence: impl Into<String>) {
        self.findings.note(sentence);
    }

    fn progress(&self, stage: &str, done: u64, total: u64) {
        self.observer.progress(stage, done, total.max(done));
    }
}

/// An error with all that lies beneath it, in one sentence.
fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
