//! Hash maps keyed by fingerprint prefixes.
//!
//! A prefix is uniform already, but whoever writes data chooses it: a fixed
//! hash would let a guest fill one bucket. So it is mixed with a random key.
//! No code iterates these maps in an order that matters (R24).

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hasher, RandomState},
};

/// A map from fingerprint prefix.
pub(crate) type PrefixMap<V> = HashMap<u64, V, Keyed>;

/// Builds hashers with one random key.
#[derive(Debug, Clone)]
pub(crate) struct Keyed(u64);

impl Default for Keyed {
    fn default() -> Self {
        Self(RandomState::new().build_hasher().finish() | 1)
    }
}

impl BuildHasher for Keyed {
    type Hasher = KeyedHasher;

    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher {
            key: self.0,
            state: 0,
        }
    }
}

/// Hashes one `u64`.
#[derive(Debug)]
pub(crate) struct KeyedHasher {
    key: u64,
    state: u64,
}

impl Hasher for KeyedHasher {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only prefixes are hashed");
    }

    fn write_u64(&mut self, prefix: u64) {
        let product = u128::from(prefix ^ self.key.rotate_left(32)) * u128::from(self.key);
        // Both halves: the low one alone ignores the prefix's high bits.
        self.state = (product as u64) ^ ((product >> 64) as u64);
    }
}
