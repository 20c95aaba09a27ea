//! What is stored for whom: of each volume and snapshot, and of the pool.
//!
//! Nothing is counted as it is written: shares change with every overwrite
//! anywhere, and counts that drift are worse than none. Instead all maps of a
//! checkpoint are walked on request ([`census`]), in bounded memory ([`tally`]).
//! The result stands until something has changed; see docs/space.md for what is
//! exact, and as of which moment.

mod census;
mod tally;

use std::{collections::BTreeMap, sync::Arc};

use census::{Census, Step};

use super::engine::Engine;
use crate::{api::SpaceUse, error::EngineError};

/// Pages that whoever asks walks at the most: about two seconds' worth.
const ASKED_PAGES_MAX: usize = 128 << 10;

/// Pages of one turn in the background.
const TURN_PAGES: usize = 2048;

/// Pages between two chances for reclaim.
const STEP_PAGES: usize = 512;

/// A count that took longer than this is not repeated at once.
const QUICK_MS: u64 = 250;

/// It stands for so many times as long as it took.
const STANDS_TIMES: u64 = 20;

/// Walks that reclaim may overtake before one is put off.
const ATTEMPTS: usize = 3;

/// What is stored for whom, as of one checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) checkpoint: u64,
    pub(crate) taken_unix_ms: u64,
    took_ms: u64,
    /// Nothing was estimated.
    pub(crate) exact: bool,
    /// Distinct chunks of volumes, before compression.
    pub(crate) unique_bytes: u64,
    /// The same after compression, before parity.
    pub(crate) stored_bytes: u64,
    /// What only snapshots hold, after compression, before parity.
    pub(crate) snapshot_bytes: u64,
    /// What nothing names in full segments, before parity.
    pub(crate) reclaimable_bytes: u64,
    /// By id of the volume or snapshot.
    pub(crate) owners: BTreeMap<u64, SpaceUse>,
}

/// The newest account, and the next one.
#[derive(Debug, Default)]
pub(crate) struct Accounting {
    newest: Option<Arc<Account>>,
    under_way: Option<Census>,
}

impl Engine {
    /// The newest account. Makes one if the last is out of date, as far as that
    /// is done in a moment; else the last one answers, and a new one is made in
    /// the background. `None` until there is one.
    pub(crate) fn account(&self) -> Option<Arc<Account>> {
        let mut accounting = self.accounting.lock();
        let checkpoint = self.roots().page.checkpoint;
        let now = (self.clock)();
        if let Some(newest) = &accounting.newest {
            let stands = match newest.took_ms {
                ..QUICK_MS => 0,
                took => took.saturating_mul(STANDS_TIMES),
            };
            let age = now.saturating_sub(newest.taken_unix_ms);
            if newest.checkpoint == checkpoint || age < stands {
                return Some(Arc::clone(newest));
            }
        }
        self.count_some(&mut accounting, ASKED_PAGES_MAX);
        if let Some(newest) = &accounting.newest
            && newest.checkpoint != checkpoint
            && newest.took_ms < QUICK_MS
        {
            // That one was begun by somebody before.
            self.count_some(&mut accounting, ASKED_PAGES_MAX);
        }
        if accounting.under_way.is_some() {
            self.signals.maintenance.ring();
        }
        accounting.newest.clone()
    }

    /// Goes on with a count that somebody has asked for. True when there is
    /// more to do.
    pub(crate) fn account_step(&self) -> bool {
        let mut accounting = self.accounting.lock();
        if accounting.under_way.is_none() {
            return false;
        }
        self.count_some(&mut accounting, TURN_PAGES);
        accounting.under_way.is_some()
    }

    fn count_some(&self, accounting: &mut Accounting, pages: usize) {
        let mut left = pages;
        let mut attempts = ATTEMPTS;
        while left > 0 && attempts > 0 {
            // A walk over one checkpoint needs its segments kept: reclaim frees
            // under this lock only.
            let Some(_no_reclaim) = self.reclaim.try_lock() else {
                return;
            };
            let census = accounting.under_way.take();
            let census = census.unwrap_or_else(|| Census::begin(self));
            match census.step(self, left.min(STEP_PAGES)) {
                Ok((census, Step::More)) => accounting.under_way = census,
                Ok((_, Step::Done(account))) => {
                    accounting.newest = Some(Arc::new(account));
                    return;
                }
                Ok((_, Step::Overtaken)) => attempts -= 1,
                Err(error) => {
                    give_up(&error);
                    return;
                }
            }
            left = left.saturating_sub(STEP_PAGES);
        }
    }

    /// What one volume or snapshot takes; unknown until there is an account.
    pub(crate) fn space_use(&self, id: u64) -> Option<SpaceUse> {
        self.account()?.owners.get(&id).copied()
    }
}

fn give_up(error: &EngineError) {
    tracing::warn!(%error, "What is stored for whom cannot be counted");
}
