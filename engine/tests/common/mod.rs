//! Simulated pools of tiny sizes, and a model of what they must hold.
//!
//! [`world`] makes devices, [`model`] knows what volumes may contain after a
//! crash, [`driver`] with [`requests`], [`batch`], [`catalogue`], [`snapshots`] and
//! [`upkeep`] does the same things to both, [`hazards`] is what goes wrong with
//! devices meanwhile, and [`crash`] opens again and compares.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod batch;
pub mod catalogue;
pub mod chosen;
pub mod crash;
pub mod driver;
pub mod fuzzed;
pub mod hazards;
pub mod interpose;
pub mod model;
pub mod pools;
pub mod requests;
pub mod sequences;
pub mod snapshots;
pub mod upkeep;
pub mod watch;
pub mod world;

/// SplitMix64: everything random in a run follows from its seed, or from the
/// bytes that a fuzzer chose, as long as there are any.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    choices: Option<std::vec::IntoIter<u8>>,
}

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self {
            state: seed,
            choices: None,
        }
    }

    pub fn from_choices(choices: Vec<u8>) -> Self {
        Self {
            state: 0,
            choices: Some(choices.into_iter()),
        }
    }

    /// There were choices, and all have been made.
    pub fn is_exhausted(&self) -> bool {
        self.choices.as_ref().is_some_and(|left| left.len() == 0)
    }

    pub fn next(&mut self) -> u64 {
        if let Some(choice) = self.choices.as_mut().and_then(Iterator::next) {
            // Small numbers choose between few things, large ones places.
            return u64::from(choice) * 0x0101_0101_0101;
        }
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Less than `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
}

/// Bytes that are different everywhere and follow from the seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ 0x5eed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&rng.next().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A number from the environment, to soak or to replay.
pub fn from_env(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .and_then(|value| value.parse().ok())
}
