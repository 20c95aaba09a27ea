//! The witness: a second memory of the pool's last membership change (R3).
//!
//! Superblocks alone cannot tell "the other half is gone" from "I am the half
//! that was left behind". The witness can, because every membership change is
//! stored in it before any write made under it is acknowledged.

mod pool_file;

use std::{path::PathBuf, sync::Arc};

use parking_lot::Mutex;
use uuid::Uuid;

use crate::{Level, MemberIndex, RaidError};
pub use pool_file::PoolFile;

/// A member as the witness knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessMember {
    /// Its position.
    pub index: MemberIndex,
    /// Its identity.
    pub uuid: Uuid,
    /// Where it was last seen.
    pub path: PathBuf,
}

/// What the witness remembers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessRecord {
    /// The pool.
    pub pool: Uuid,
    /// Its level, for people.
    pub level: Level,
    /// Its members in index order.
    pub members: Vec<WitnessMember>,
    /// How many membership changes there were.
    pub membership_epoch: u64,
    /// The random id of the last one.
    pub membership_id: Uuid,
}

/// Remembers the last membership change outside of the members.
pub trait Witness: Send + Sync {
    /// The record, or `None` if there is none (lost, or not made yet).
    fn load(&self) -> Result<Option<WitnessRecord>, RaidError>;

    /// Replaces the record. On `Ok` it is durable; on `Err` either the old or
    /// the new record is there, whole.
    fn store(&self, record: &WitnessRecord) -> Result<(), RaidError>;

    /// A random id that was never issued before: for pools, members and
    /// membership changes. Simulations make it depend on their seed.
    fn issue_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

/// A witness in memory, for simulation. Clones share one state, which so
/// survives the power cut that ends an array.
#[derive(Debug, Clone, Default)]
pub struct MemoryWitness {
    state: Arc<Mutex<MemoryState>>,
}

#[derive(Debug, Default, Clone)]
struct MemoryState {
    record: Option<WitnessRecord>,
    issued: u64,
    seed: u64,
    failing: bool,
    stores: u64,
}

impl MemoryWitness {
    /// An empty witness with seed 0.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty witness whose ids depend on `seed` alone.
    pub fn with_seed(seed: u64) -> Self {
        Self {
            state: Arc::new(Mutex::new(MemoryState {
                seed,
                ..MemoryState::default()
            })),
        }
    }

    /// A witness with the same contents that no longer shares them: what a
    /// second host with a copy of the pool's directory would have.
    #[must_use]
    pub fn fork(&self, seed: u64) -> Self {
        let state = MemoryState {
            seed,
            ..self.state.lock().clone()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// From now on every store fails, or succeeds again.
    pub fn set_failing(&self, failing: bool) {
        self.state.lock().failing = failing;
    }

    /// Forgets the record, as when the pool's directory is lost.
    pub fn forget(&self) {
        self.state.lock().record = None;
    }

    /// The record as it is.
    pub fn record(&self) -> Option<WitnessRecord> {
        self.state.lock().record.clone()
    }

    /// How many stores succeeded.
    pub fn stores(&self) -> u64 {
        self.state.lock().stores
    }
}

impl Witness for MemoryWitness {
    fn load(&self) -> Result<Option<WitnessRecord>, RaidError> {
        Ok(self.state.lock().record.clone())
    }

    fn store(&self, record: &WitnessRecord) -> Result<(), RaidError> {
        let mut state = self.state.lock();
        if state.failing {
            return Err(RaidError::new(
                crate::Kind::Witness,
                "The simulated witness refuses to be written",
            ));
        }
        state.record = Some(record.clone());
        state.stores += 1;
        Ok(())
    }

    fn issue_id(&self) -> Uuid {
        let mut state = self.state.lock();
        state.issued += 1;
        // SplitMix64 twice: enough for ids that differ, and repeatable.
        let high = split_mix(state.seed ^ 0x7465_7373_6572_6121, state.issued * 2);
        let low = split_mix(state.seed, state.issued * 2 + 1);
        Uuid::from_u64_pair(high, low)
    }
}

fn split_mix(seed: u64, step: u64) -> u64 {
    let mut z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
