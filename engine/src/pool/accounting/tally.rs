//! Counting what many owners hold, some of it together, in bounded memory.
//!
//! Owners (volumes and snapshots) come one after the other, and each is told as
//! what it has otherwise than the one before. So a chunk that lies unchanged in
//! a thousand snapshots is told twice: when it comes and when it goes.
//!
//! ```text
//!   owner        0    1    2    3    4
//!   chunk x           |---------|         held by 1, 2, 3: shared
//!   chunk y      |----|         |--|      held by 0 and by 3: shared
//!   chunk z                |--|           held by 2 alone: exclusive
//! ```
//! Every chunk seen is remembered. When they become too many, only one of two
//! is looked at from then on, then one of four, chosen by a hash of their
//! places, and what is counted stands for the others: an estimate whose error
//! is about one by the root of the number that is remembered (a tenth of a
//! percent for a million). Until then the count is exact.

use std::collections::HashMap;

use crate::api::SpaceUse;

/// Bytes that remembering a place takes, with the table's slack at its worst.
pub(super) const BYTES_PER_PLACE: usize = 50;

/// No owner, or several.
const NOBODY: u32 = u32::MAX;
const MANY: u32 = u32::MAX - 1;

/// A chunk or a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item {
    /// Names it.
    pub(super) place: u64,
    /// Bytes it takes.
    pub(super) stored: u32,
    /// Bytes it stands for; 0 for a page.
    pub(super) logical: u32,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    stored: u32,
    logical: u32,
    /// How often the present owner names it.
    names: u32,
    /// Since which owner it is there without a gap, while `names` is not 0.
    since: u32,
    /// Its only owner before that.
    only: u32,
    of_volume: bool,
}

/// What one owner holds of what is looked at, each standing for others.
#[derive(Debug, Clone, Copy, Default)]
struct Change {
    unique: i64,
    stored: i64,
}

/// A count under way.
#[derive(Debug)]
pub(super) struct Tally {
    places_max: usize,
    /// One of `1 << shift` places is looked at.
    shift: u32,
    known: HashMap<u64, Known>,
    /// By how much each owner's sums differ from those of the one before.
    changes: Vec<Change>,
    /// How many of the owners so far are volumes, the present one included.
    volumes: Vec<u32>,
}

/// What came out.
#[derive(Debug, Default)]
pub(super) struct Totals {
    /// By owner, in their order.
    pub(super) owners: Vec<SpaceUse>,
    /// Of all volumes together.
    pub(super) volumes_unique: u64,
    /// The same after compression.
    pub(super) volumes_stored: u64,
    /// What only snapshots hold, after compression.
    pub(super) snapshots_stored: u64,
    /// Of `is_counted` places.
    pub(super) live_bytes: u64,
    /// Their number.
    pub(super) live_items: u64,
    /// Nothing was estimated.
    pub(super) exact: bool,
}

impl Tally {
    /// Remembers at most so many places.
    pub(super) fn new(places_max: usize) -> Self {
        Self {
            places_max: places_max.max(1),
            shift: 0,
            known: HashMap::new(),
            changes: Vec::new(),
            volumes: Vec::new(),
        }
    }

    /// Begins with the next owner, which so far holds what the last one did.
    pub(super) fn next_owner(&mut self, is_volume: bool) {
        self.changes.push(Change::default());
        let before = self.volumes.last().copied().unwrap_or(0);
        self.volumes.push(before + u32::from(is_volume));
    }

    fn owner(&self) -> u32 {
        u32::try_from(self.changes.len() - 1).expect("a pool has few volumes and snapshots")
    }

    fn is_looked_at(&self, place: u64) -> bool {
        looked_at(place, self.shift)
    }

    /// The present owner names it once more than the last one.
    pub(super) fn comes(&mut self, item: Item) {
        if !self.is_looked_at(item.place) {
            return;
        }
        let owner = self.owner();
        let known = self.known.entry(item.place).or_insert(Known {
            stored: item.stored,
            logical: item.logical,
            names: 0,
            since: owner,
            only: NOBODY,
            of_volume: false,
        });
        if known.names == 0 {
            known.since = owner;
        }
        // A page is in a tree once, however often it is told of.
        known.names = match item.logical {
            0 => 1,
            _ => known.names + 1,
        };
        while self.known.len() > self.places_max {
            self.shift += 1;
            let shift = self.shift;
            self.known.retain(|place, _| looked_at(*place, shift));
        }
    }

    /// The last owner named it once more than the present one.
    pub(super) fn goes(&mut self, place: u64) {
        if !self.is_looked_at(place) {
            return;
        }
        let owner = self.owner();
        let Some(known) = self.known.get_mut(&place) else {
            return;
        };
        known.names = known.names.saturating_sub(1);
        if known.names == 0 && known.since < owner {
            let mut closed = *known;
            self.close(&mut closed, owner - 1);
            self.known.insert(place, closed);
        }
    }

    /// Enters that owners `known.since..=last` hold it.
    fn close(&mut self, known: &mut Known, last: u32) {
        let first = known.since;
        known.only = match known.only {
            NOBODY if first == last => first,
            _ => MANY,
        };
        let before = match first {
            0 => 0,
            first => self.volumes[first as usize - 1],
        };
        known.of_volume |= self.volumes[last as usize] > before;
        if known.logical == 0 {
            return;
        }
        let unique = i64::from(known.logical) << self.shift;
        let stored = i64::from(known.stored) << self.shift;
        let begin = &mut self.changes[first as usize];
        begin.unique += unique;
        begin.stored += stored;
        if let Some(end) = self.changes.get_mut(last as usize + 1) {
            end.unique -= unique;
            end.stored -= stored;
        }
    }

    /// The end: the last owner is complete. `is_counted` chooses places for
    /// the sum of what is live.
    pub(super) fn finish(mut self, is_counted: impl Fn(u64) -> bool) -> Totals {
        let mut totals = Totals {
            exact: self.shift == 0,
            ..Totals::default()
        };
        if self.changes.is_empty() {
            return totals;
        }
        let last = self.owner();
        let mut exclusive = vec![0u64; self.changes.len()];
        for (place, mut known) in std::mem::take(&mut self.known) {
            if known.names > 0 {
                self.close(&mut known, last);
            }
            if known.only == NOBODY {
                continue;
            }
            let stored = u64::from(known.stored) << self.shift;
            if is_counted(place) {
                totals.live_bytes += stored;
                totals.live_items += 1 << self.shift;
            }
            if known.logical == 0 {
                continue;
            }
            if let Some(sum) = exclusive.get_mut(known.only as usize) {
                *sum += stored;
            }
            if known.of_volume {
                totals.volumes_unique += u64::from(known.logical) << self.shift;
                totals.volumes_stored += stored;
            } else {
                totals.snapshots_stored += stored;
            }
        }
        let mut now = Change::default();
        for (change, exclusive) in self.changes.iter().zip(exclusive) {
            now.unique += change.unique;
            now.stored += change.stored;
            let stored = u64::try_from(now.stored).unwrap_or(0);
            // An estimate may say otherwise.
            let exclusive = exclusive.min(stored);
            totals.owners.push(SpaceUse {
                unique_bytes: Some(u64::try_from(now.unique).unwrap_or(0)),
                stored_bytes: Some(stored),
                exclusive_bytes: Some(exclusive),
                shared_bytes: Some(stored - exclusive),
            });
        }
        totals
    }
}

/// One of `1 << shift` places, whatever pattern places have (the finalizer of
/// SplitMix64 spreads them).
fn looked_at(place: u64, shift: u32) -> bool {
    let mixed = place.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed ^ mixed >> 31) & ((1 << shift) - 1) == 0
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// What an owner holds: how often it names each place.
    type Held = BTreeMap<u64, u32>;

    fn item(place: u64) -> Item {
        Item {
            place,
            stored: 100 + u32::try_from(place % 7).unwrap(),
            logical: 4096,
        }
    }

    fn tally(owners: &[(bool, Held)], places_max: usize) -> Totals {
        let mut tally = Tally::new(places_max);
        let mut before = Held::new();
        for (is_volume, held) in owners {
            tally.next_owner(*is_volume);
            let places = before.keys().chain(held.keys());
            let places: std::collections::BTreeSet<u64> = places.copied().collect();
            for place in places {
                let was = before.get(&place).copied().unwrap_or(0);
                let is = held.get(&place).copied().unwrap_or(0);
                // In either order, as a walk may come by them.
                for _ in is..was {
                    tally.goes(place);
                }
                for _ in was..is {
                    tally.comes(item(place));
                }
            }
            assert!(tally.known.len() <= places_max);
            before = held.clone();
        }
        tally.finish(|place| place % 2 == 0)
    }

    fn expected(owners: &[(bool, Held)]) -> Totals {
        let mut totals = Totals {
            exact: true,
            ..Totals::default()
        };
        let stored = |place: &u64| u64::from(item(*place).stored);
        let holders = |place: u64| {
            let holding = move |owner: &&(bool, Held)| owner.1.contains_key(&place);
            owners.iter().filter(holding)
        };
        for (_, held) in owners {
            let all: u64 = held.keys().map(stored).sum();
            let alone = held.keys().filter(|place| holders(**place).count() == 1);
            let exclusive: u64 = alone.map(stored).sum();
            totals.owners.push(SpaceUse {
                unique_bytes: Some(4096 * held.len() as u64),
                stored_bytes: Some(all),
                exclusive_bytes: Some(exclusive),
                shared_bytes: Some(all - exclusive),
            });
        }
        let mut places: Vec<u64> = owners
            .iter()
            .flat_map(|(_, held)| held.keys().copied())
            .collect();
        places.sort_unstable();
        places.dedup();
        for place in &places {
            if holders(*place).any(|(is_volume, _)| *is_volume) {
                totals.volumes_unique += 4096;
                totals.volumes_stored += stored(place);
            } else {
                totals.snapshots_stored += stored(place);
            }
            if place % 2 == 0 {
                totals.live_bytes += stored(place);
                totals.live_items += 1;
            }
        }
        totals
    }

    fn owners() -> impl Strategy<Value = Vec<(bool, Held)>> {
        let held = prop::collection::btree_map(0u64..40, 1u32..4, 0..30);
        prop::collection::vec((any::<bool>(), held), 0..8)
    }

    proptest! {
        #[test]
        fn what_fits_is_counted_exactly(owners in owners()) {
            let counted = tally(&owners, 1000);
            prop_assert_eq!(format!("{counted:?}"), format!("{:?}", expected(&owners)));
        }
    }

    #[test]
    fn what_does_not_fit_is_estimated_and_not_remembered() {
        let held = |range: std::ops::Range<u64>| range.map(|n| (n << 12, 1)).collect::<Held>();
        let owners = [
            (false, held(0..60_000)),
            (false, held(20_000..90_000)),
            (true, held(20_000..60_000)),
            (true, held(150_000..180_000)),
        ];
        let (estimate, exact) = (tally(&owners, 8_000), expected(&owners));
        assert!(!estimate.exact);
        // A few thousand samples: within a few percent.
        let near = |is: u64, should: u64| is.abs_diff(should) * 20 <= should + 200_000;
        for (is, should) in estimate.owners.iter().zip(&exact.owners) {
            for (is, should) in [
                (is.unique_bytes, should.unique_bytes),
                (is.stored_bytes, should.stored_bytes),
                (is.exclusive_bytes, should.exclusive_bytes),
                (is.shared_bytes, should.shared_bytes),
            ] {
                let (is, should) = (is.unwrap(), should.unwrap());
                assert!(near(is, should), "{is} for {should}");
            }
        }
        assert!(near(estimate.volumes_stored, exact.volumes_stored));
        assert!(near(estimate.snapshots_stored, exact.snapshots_stored));
        assert!(near(estimate.live_bytes, exact.live_bytes));
    }

    #[test]
    fn a_page_that_is_told_of_twice_is_one_page() {
        let page = Item {
            place: 6,
            stored: 4096,
            logical: 0,
        };
        let mut tally = Tally::new(10);
        tally.next_owner(true);
        tally.comes(page);
        tally.comes(page);
        tally.next_owner(true);
        tally.goes(page.place);
        tally.goes(page.place);
        let totals = tally.finish(|_| true);
        assert_eq!((totals.live_bytes, totals.live_items), (4096, 1));
        assert_eq!(totals.owners, [SpaceUse::known(0, 0, 0); 2]);
    }
}
