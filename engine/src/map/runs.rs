//! Block status: what a range of a volume is made of, in runs.
//!
//! Layers are stacked over pages without spelling out anything: a fill of a
//! terabyte and an absent subtree are one step each, and pages under a change
//! are not looked into.

use std::iter::Peekable;
use std::sync::Arc;

use tessera_dedup::{Entry, EntryKind};

use super::page::entry_at;
use super::scan::{Next, Scan};
use super::tree::{to_u64, to_usize};
use super::{Change, Changes, Layer, MapError, PageBytes, PageOwner, PageSource, Tree};

/// What a run is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunKind {
    /// Every index has stored bytes.
    Stored,
    /// Nothing stored; reads as zeroes.
    Hole,
    /// Reads as zeroes and was asked to stay allocated.
    Zero,
}

impl From<Entry> for RunKind {
    fn from(entry: Entry) -> Self {
        match entry.kind {
            EntryKind::Hole => Self::Hole,
            EntryKind::Zero => Self::Zero,
            // What is lost must not be taken for zeroes.
            EntryKind::Raw | EntryKind::Lz4 | EntryKind::Page | EntryKind::Lost => Self::Stored,
        }
    }
}

/// Consecutive indices of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Indices; at least one.
    pub count: u64,
    /// What they are.
    pub kind: RunKind,
}

/// What `first..first + count` is made of. Layers come newest first. Neighbours
/// differ in kind. The answer stops short of the range only when it has
/// `max_runs` runs, and then its last run is as long as it can be.
///
/// Mapped leaves have to be read: the cost is a page per 256 indices that are
/// neither changed nor under an absent subtree, in growing batches.
///
/// # Panics
/// If the tree is not one of entries.
pub fn runs(
    tree: &Tree,
    layers: &[&Layer],
    source: &dyn PageSource,
    first: u64,
    count: u64,
    max_runs: usize,
) -> Result<Vec<Run>, MapError> {
    assert!(tree.shape.holds_entries(), "only volumes have block status");
    let end = first
        .checked_add(count)
        .expect("a range of indices does not wrap");
    let mut layers: Vec<_> = layers
        .iter()
        .map(|layer| layer.changes_from(first).peekable())
        .collect();
    let mut pages = PageRuns::new(tree, first, end);
    let mut runs: Vec<Run> = Vec::new();
    let mut at = first;
    while at < end {
        let (kind, until) = match layered(&mut layers, at, end) {
            (Some(kind), until) => (kind, until),
            (None, limit) => {
                let (kind, until) = pages.at(source, at)?;
                (kind, until.min(limit))
            }
        };
        let count = until - at;
        let full = runs.len() >= max_runs;
        match runs.last_mut() {
            Some(run) if run.kind == kind => run.count += count,
            _ if full => break,
            _ => runs.push(Run { count, kind }),
        }
        at = until;
    }
    Ok(runs)
}

/// What the layers say about `at`, and up to where the answer holds.
fn layered(layers: &mut [Peekable<Changes<'_>>], at: u64, end: u64) -> (Option<RunKind>, u64) {
    let mut limit = end;
    for layer in layers {
        while layer
            .next_if(|change: &Change| change.end() <= at)
            .is_some()
        {}
        if let Some(change) = layer.peek() {
            if change.first() <= at {
                return (Some(change.entry().into()), change.end().min(limit));
            }
            limit = limit.min(change.first());
        }
    }
    (None, limit)
}

/// What the pages say, for rising indices.
struct PageRuns {
    scan: Scan,
    current: Current,
    end: u64,
}

enum Current {
    Nothing,
    Leaf {
        owner: PageOwner,
        first: u64,
        end: u64,
        page: Arc<PageBytes>,
    },
    Absent {
        end: u64,
        kind: RunKind,
    },
}

impl PageRuns {
    fn new(tree: &Tree, first: u64, end: u64) -> Self {
        let scan = Scan::with_absent(tree, first, end);
        Self {
            scan,
            current: Current::Nothing,
            end,
        }
    }

    fn at(&mut self, source: &dyn PageSource, at: u64) -> Result<(RunKind, u64), MapError> {
        loop {
            match &self.current {
                Current::Absent { end, kind } if at < *end => return Ok((*kind, *end)),
                Current::Leaf {
                    owner,
                    first,
                    end,
                    page,
                } if at < *end => {
                    let slot = to_usize(at - first);
                    let kind = RunKind::from(entry_at(*owner, page, slot)?);
                    let mut until = at + 1;
                    while until < *end {
                        let slot = to_usize(until - first);
                        if RunKind::from(entry_at(*owner, page, slot)?) != kind {
                            break;
                        }
                        until += 1;
                    }
                    return Ok((kind, until));
                }
                Current::Nothing | Current::Absent { .. } | Current::Leaf { .. } => {
                    self.scan.seek(at);
                    self.current = self.advance(source)?;
                }
            }
        }
    }

    fn advance(&mut self, source: &dyn PageSource) -> Result<Current, MapError> {
        let mut budget = usize::MAX;
        loop {
            match self.scan.next(source, &mut budget, &mut |_, _| true)? {
                Next::Page { owner, page, .. } if owner.level == 0 => {
                    let records = to_u64(super::TreeShape::VOLUME.records_per_leaf());
                    let first = owner.index * records;
                    return Ok(Current::Leaf {
                        owner,
                        first,
                        end: first + records,
                        page,
                    });
                }
                Next::Page { .. } => {}
                Next::Absent { end, pointer, .. } => {
                    return Ok(Current::Absent {
                        end,
                        kind: pointer.entry.into(),
                    });
                }
                // Beyond the tree's height nothing is stored.
                Next::Paused | Next::Done => {
                    return Ok(Current::Absent {
                        end: self.end,
                        kind: RunKind::Hole,
                    });
                }
            }
        }
    }
}
