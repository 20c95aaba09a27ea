//! What a simulated device holds: durable pages under a volatile cache.
//!
//! Every write since the last sync is remembered as a version of its page. A
//! power cut chooses, for each 512-byte sector of each page that has any,
//! among what was durable and all versions since, and may tear it. Maps and
//! pages are shared between copies, so a snapshot costs next to nothing.

use std::{collections::BTreeMap, sync::Arc};

use super::rng::Rng;
use crate::device::BLOCK_BYTES;

pub(super) type Page = [u8; BLOCK_BYTES];

/// A page's contents; `None` is a hole, which reads as zeroes.
pub(super) type Stored = Option<Arc<Page>>;

/// What a power cut leaves whole or not.
const SECTOR_BYTES: usize = 512;

static ZERO_PAGE: Page = [0; BLOCK_BYTES];

/// The contents of a device. Pages count from its start.
#[derive(Debug, Clone, Default)]
pub(super) struct Store {
    durable: Arc<BTreeMap<u64, Arc<Page>>>,
    /// Versions written since the last sync, oldest first, never empty.
    volatile: Arc<BTreeMap<u64, Vec<Stored>>>,
}

fn bytes(stored: &Stored) -> &Page {
    stored.as_deref().unwrap_or(&ZERO_PAGE)
}

impl Store {
    /// What a read returns.
    pub(super) fn read(&self, page: u64) -> &Page {
        match self
            .volatile
            .get(&page)
            .and_then(|versions| versions.last())
        {
            Some(latest) => bytes(latest),
            None => self.durable.get(&page).map_or(&ZERO_PAGE, |page| page),
        }
    }

    /// Whether the page takes up space.
    pub(super) fn is_allocated(&self, page: u64) -> bool {
        match self
            .volatile
            .get(&page)
            .and_then(|versions| versions.last())
        {
            Some(latest) => latest.is_some(),
            None => self.durable.contains_key(&page),
        }
    }

    /// Pages that take up space.
    pub(super) fn allocated(&self) -> u64 {
        let durable = self
            .durable
            .keys()
            .filter(|page| !self.volatile.contains_key(page))
            .count();
        let volatile = self
            .volatile
            .values()
            .filter(|versions| versions.last().is_some_and(Option::is_some));
        (durable + volatile.count()) as u64
    }

    /// Pages with versions that are not durable.
    pub(super) fn unflushed(&self) -> u64 {
        self.volatile.len() as u64
    }

    /// Writes a page into the volatile cache.
    pub(super) fn write(&mut self, page: u64, contents: Stored) {
        Arc::make_mut(&mut self.volatile)
            .entry(page)
            .or_default()
            .push(contents);
    }

    /// Makes a page's contents durable, whatever was cached for it.
    pub(super) fn write_durable(&mut self, page: u64, contents: Stored) {
        if self.volatile.contains_key(&page) {
            Arc::make_mut(&mut self.volatile).remove(&page);
        }
        let durable = Arc::make_mut(&mut self.durable);
        match contents {
            Some(contents) => durable.insert(page, contents),
            None => durable.remove(&page),
        };
    }

    /// Makes everything durable.
    pub(super) fn sync(&mut self) {
        for (page, mut versions) in std::mem::take(Arc::make_mut(&mut self.volatile)) {
            let latest = versions.pop().expect("a dirty page has a version");
            self.write_durable(page, latest);
        }
    }

    /// Forgets everything that is not durable.
    pub(super) fn drop_unflushed(&mut self) {
        self.volatile = Arc::default();
    }

    /// Changes bytes of a page wherever they are kept.
    pub(super) fn damage(&mut self, page: u64, change: impl Fn(&mut Page)) {
        let changed = |stored: &Page| {
            let mut copy = *stored;
            change(&mut copy);
            Arc::new(copy)
        };
        let latest = self
            .volatile
            .get(&page)
            .and_then(|versions| versions.last());
        if let Some(latest) = latest.map(|latest| changed(bytes(latest))) {
            let versions = Arc::make_mut(&mut self.volatile).get_mut(&page);
            *versions
                .and_then(|versions| versions.last_mut())
                .expect("just seen") = Some(latest);
        }
        let durable = changed(self.durable.get(&page).map_or(&ZERO_PAGE, |page| page));
        Arc::make_mut(&mut self.durable).insert(page, durable);
    }

    /// Drops all pages from `first` on.
    pub(super) fn truncate(&mut self, first: u64) {
        Arc::make_mut(&mut self.durable).split_off(&first);
        Arc::make_mut(&mut self.volatile).split_off(&first);
    }

    /// The power goes: unflushed sectors become old, new or torn.
    ///
    /// Independent sectors alone would hardly ever show a cut at which one
    /// whole write survived and another did not, so some cuts decide per
    /// page, and some keep or lose everything.
    pub(super) fn power_cut(&mut self, rng: &mut Rng, tear: bool) {
        let manner = rng.below(8);
        for (page, versions) in std::mem::take(Arc::make_mut(&mut self.volatile)) {
            let old = self.durable.get(&page).cloned();
            let mut candidates = vec![old];
            candidates.extend(versions);
            let latest = candidates.len() - 1;
            let survivor = match manner {
                0 => candidates[0].clone(),
                1 => candidates[latest].clone(),
                2..5 => candidates[rng.index(candidates.len())].clone(),
                _ => Some(Arc::new(torn_page(&candidates, rng, tear))),
            };
            self.write_durable(page, survivor);
        }
    }
}

fn torn_page(candidates: &[Stored], rng: &mut Rng, tear: bool) -> Page {
    let mut page = ZERO_PAGE;
    for (sector, target) in page.chunks_exact_mut(SECTOR_BYTES).enumerate() {
        let range = sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES;
        target.copy_from_slice(&bytes(&candidates[rng.index(candidates.len())])[range.clone()]);
        if !tear || rng.below(8) != 0 {
            continue;
        }
        if rng.below(4) == 0 {
            target.fill_with(|| rng.next().to_le_bytes()[0]);
        } else {
            let end = rng.index(SECTOR_BYTES / 8) * 8;
            let other = &bytes(&candidates[rng.index(candidates.len())])[range];
            target[..end].copy_from_slice(&other[..end]);
        }
    }
    page
}
