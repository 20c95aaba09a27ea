//! Changed entries of single indices, in order: the dense half of a layer.
//!
//! ```text
//! BTreeMap  first key ->  bucket    keys   [k0 k1 k2 ..]    at most 128,
//!           (lower bound)           values [v0 v1 v2 ..]    sorted
//! ```
//!
//! A B-tree with fat leaves. A bucket holds the keys from its own lower bound
//! up to the next bucket's. Against a plain `BTreeMap` of entries: a run of
//! neighbours is one search and one copy, a stream in order leaves its buckets
//! full (24 bytes a change; 35 at random), the upper tree is small enough to
//! stay in the processor's cache, and a range is dropped by whole buckets.

use std::collections::BTreeMap;
use std::collections::btree_map;
use std::ops::Bound::{Excluded, Included, Unbounded};

use tessera_dedup::ENTRY_BYTES;

use super::tree::{to_u64, to_usize};

/// An encoded entry.
pub(super) type Packed = [u8; ENTRY_BYTES];

/// Changes in a full bucket. Half a bucket is moved by an average insertion:
/// with 128 that costs about as much as finding the bucket.
pub(super) const BUCKET_POINTS: usize = 128;

/// What a bucket takes: its arrays, allocated whole, and its place in the map.
const BUCKET_BYTES: usize =
    BUCKET_POINTS * (size_of::<u64>() + size_of::<Packed>()) + 2 * size_of::<(u64, Bucket)>();

#[derive(Debug, Clone)]
struct Bucket {
    keys: Vec<u64>,
    values: Vec<Packed>,
}

/// What became of a run that was to enter a bucket.
struct Inserted {
    /// Entries of the run that are in.
    used: usize,
    /// A new bucket and its lower bound.
    split: Option<(u64, Bucket)>,
}

impl Bucket {
    fn new() -> Self {
        Self {
            keys: Vec::with_capacity(BUCKET_POINTS),
            values: Vec::with_capacity(BUCKET_POINTS),
        }
    }

    fn lower_bound(&self, key: u64) -> usize {
        // Writes in order arrive beyond the end.
        if self.keys.last().is_none_or(|&last| last < key) {
            return self.keys.len();
        }
        self.keys.partition_point(|&k| k < key)
    }

    fn extend(&mut self, first: u64, values: &[Packed]) {
        self.keys.extend(first..first + to_u64(values.len()));
        self.values.extend_from_slice(values);
    }

    fn split_off(&mut self, at: usize) -> (u64, Self) {
        let mut right = Self::new();
        right.keys.extend_from_slice(&self.keys[at..]);
        right.values.extend_from_slice(&self.values[at..]);
        self.keys.truncate(at);
        self.values.truncate(at);
        (right.keys[0], right)
    }

    fn remove(&mut self, start: usize, end: usize) {
        self.keys.drain(start..end);
        self.values.drain(start..end);
    }

    /// Takes in as much of a run as it can at once. The caller comes again
    /// with the rest; each time either entries are used or room is made.
    fn insert(&mut self, first: u64, values: &[Packed]) -> Inserted {
        let length = values.len();
        let start = self.lower_bound(first);
        let end = match length {
            1 => start + usize::from(self.keys.get(start) == Some(&first)),
            _ => self.lower_bound(first + to_u64(length)),
        };
        if end - start == length {
            self.values[start..end].copy_from_slice(values);
            return Inserted {
                used: length,
                split: None,
            };
        }
        if self.keys.len() - (end - start) + length <= BUCKET_POINTS {
            if length == 1 {
                self.keys.insert(start, first);
                self.values.insert(start, values[0]);
            } else {
                self.keys.splice(start..end, first..first + to_u64(length));
                self.values.splice(start..end, values.iter().copied());
            }
            return Inserted {
                used: length,
                split: None,
            };
        }
        if start == self.keys.len() {
            // A stream in order fills its buckets to the brim.
            let room = BUCKET_POINTS - start;
            if room > 0 {
                self.extend(first, &values[..room]);
                return Inserted {
                    used: room,
                    split: None,
                };
            }
            let mut next = Self::new();
            next.extend(first, values);
            return Inserted {
                used: length,
                split: Some((first, next)),
            };
        }
        // Make room: at random in the middle, for a run where it goes.
        let at = if length == 1 {
            self.keys.len() / 2
        } else {
            self.remove(start, end);
            start
        };
        let split = (at < self.keys.len()).then(|| self.split_off(at));
        Inserted { used: 0, split }
    }
}

/// An ordered map from index to encoded entry.
#[derive(Debug, Clone, Default)]
pub(super) struct Points {
    buckets: BTreeMap<u64, Bucket>,
    length: usize,
}

impl Points {
    pub(super) fn len(&self) -> usize {
        self.length
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.buckets.len() * BUCKET_BYTES
    }

    /// Sets consecutive indices; at most [`BUCKET_POINTS`] of them.
    pub(super) fn insert(&mut self, mut first: u64, mut values: &[Packed]) {
        while !values.is_empty() {
            // The run may not pass the lower bound of the next bucket.
            let mut length = values.len();
            if length > 1
                && let Some((&next, _)) = self.buckets.range((Excluded(first), Unbounded)).next()
            {
                length = length.min(usize::try_from(next - first).unwrap_or(usize::MAX));
            }
            let bucket = match self.buckets.range_mut(..=first).next_back() {
                Some((_, bucket)) => bucket,
                None => self.buckets.entry(0).or_insert_with(Bucket::new),
            };
            let before = bucket.keys.len();
            let inserted = bucket.insert(first, &values[..length]);
            let mut after = bucket.keys.len();
            if let Some((key, split)) = inserted.split {
                after += split.keys.len();
                self.buckets.insert(key, split);
            }
            self.length = self.length + after - before;
            first += to_u64(inserted.used);
            values = &values[inserted.used..];
        }
    }

    /// Forgets the indices `from..to`.
    pub(super) fn remove_range(&mut self, from: u64, to: u64) {
        if self.buckets.is_empty() || from >= to {
            return;
        }
        let mut next = self.buckets.range(..=from).next_back().map(|(&key, _)| key);
        if next.is_none() {
            next = self.bucket_between(from, to);
        }
        while let Some(key) = next {
            let bucket = self.buckets.get_mut(&key).expect("the key was just found");
            let (start, end) = (bucket.lower_bound(from), bucket.lower_bound(to));
            self.length -= end - start;
            if end - start == bucket.keys.len() {
                self.buckets.remove(&key);
            } else {
                bucket.remove(start, end);
            }
            next = self.bucket_between(key, to);
        }
        self.join(from);
    }

    /// The first bucket whose lower bound is above `after` and below `to`.
    fn bucket_between(&self, after: u64, to: u64) -> Option<u64> {
        if to <= after + 1 {
            return None;
        }
        let range = (Excluded(after), Excluded(to));
        self.buckets
            .range::<u64, _>(range)
            .next()
            .map(|(&key, _)| key)
    }

    /// Joins the bucket over `at` with its neighbours where the two are rather
    /// empty, so that removals cannot leave a bucket behind for every few
    /// entries.
    fn join(&mut self, at: u64) {
        let Some((&middle, _)) = self.buckets.range(..=at).next_back() else {
            return;
        };
        self.join_next(middle);
        if let Some((&left, _)) = self.buckets.range(..middle).next_back() {
            self.join_next(left);
        }
    }

    fn join_next(&mut self, left: u64) {
        let mut two = self.buckets.range(left..);
        let (Some((_, first)), Some((&right, second))) = (two.next(), two.next()) else {
            return;
        };
        if first.keys.len() + second.keys.len() > BUCKET_POINTS / 2 {
            return;
        }
        let second = self.buckets.remove(&right).expect("the key was just found");
        let first = self.buckets.get_mut(&left).expect("the key was just found");
        first.keys.extend_from_slice(&second.keys);
        first.values.extend_from_slice(&second.values);
    }

    pub(super) fn get(&self, index: u64) -> Option<&Packed> {
        let (_, bucket) = self.buckets.range(..=index).next_back()?;
        let slot = bucket.lower_bound(index);
        (bucket.keys.get(slot) == Some(&index)).then(|| &bucket.values[slot])
    }

    /// Calls `found` for every change within `count` indices from `first`,
    /// with its distance from `first`.
    pub(super) fn for_range(
        &self,
        first: u64,
        count: usize,
        mut found: impl FnMut(usize, &Packed),
    ) {
        if self.buckets.is_empty() {
            return;
        }
        let end = first + to_u64(count);
        for (_, bucket) in self.buckets_from(first) {
            let start = bucket.lower_bound(first);
            let keys = &bucket.keys[start..];
            for (key, value) in keys.iter().zip(&bucket.values[start..]) {
                if *key >= end {
                    return;
                }
                found(to_usize(key - first), value);
            }
        }
    }

    fn buckets_from(&self, from: u64) -> btree_map::Range<'_, u64, Bucket> {
        let start = self
            .buckets
            .range(..=from)
            .next_back()
            .map_or(from, |(&key, _)| key);
        self.buckets.range((Included(start), Unbounded))
    }

    /// All changes from `from` on, in order.
    pub(super) fn iter_from(&self, from: u64) -> Iter<'_> {
        let mut buckets = self.buckets_from(from);
        let (keys, values) = buckets.next().map_or((&[][..], &[][..]), |(_, bucket)| {
            let start = bucket.lower_bound(from);
            (&bucket.keys[start..], &bucket.values[start..])
        });
        Iter {
            keys,
            values,
            buckets,
        }
    }
}

/// Changes in order.
#[derive(Debug, Clone)]
pub(super) struct Iter<'a> {
    keys: &'a [u64],
    values: &'a [Packed],
    buckets: btree_map::Range<'a, u64, Bucket>,
}

impl<'a> Iterator for Iter<'a> {
    type Item = (u64, &'a Packed);

    fn next(&mut self) -> Option<Self::Item> {
        while self.keys.is_empty() {
            let (_, bucket) = self.buckets.next()?;
            (self.keys, self.values) = (&bucket.keys, &bucket.values);
        }
        let (key, keys) = self.keys.split_first()?;
        let (value, values) = self.values.split_first()?;
        (self.keys, self.values) = (keys, values);
        Some((*key, value))
    }
}
