//! Metadata contexts: which there are, how they are named and numbered.
//!
//! | name | number on a connection | flags of an extent |
//! | --- | --- | --- |
//! | `base:allocation` | 1 | hole, zero |
//! | `tessera:changed-since:SNAPSHOT` | from 2 on, in the order asked for | bit 0: it may read differently |
//! | `tessera:kept:INSTANCE` | none: it can be listed, not chosen | |
//!
//! The last is a statement, not a context: nothing that this instance of the
//! server has answered is lost. It is listed when asked for by its whole name and
//! true, and for `tessera:kept:` with the instance that serves.

use super::constants::{BASE_ALLOCATION, BASE_ALLOCATION_ID};

/// What stands before the snapshot's name.
pub const CHANGED_SINCE: &str = "tessera:changed-since:";
/// What stands before the name of an instance of the server.
pub const KEPT: &str = "tessera:kept:";
/// Our own namespace.
pub const NAMESPACE: &str = "tessera:";
/// `tessera:changed-since:SNAPSHOT`: the run may read differently.
pub const STATE_CHANGED: u32 = 1 << 0;
/// Most snapshots that a client can choose at once.
pub const SINCE_MAX: usize = 15;

/// Some of the contexts of a connection, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ContextSet(u32);

impl ContextSet {
    /// None.
    pub const NONE: Self = Self(0);
    /// `base:allocation` alone.
    pub const ALLOCATION: Self = Self(1);

    /// True when it has none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it has the context of this number.
    pub fn has(self, id: u32) -> bool {
        self.iter().any(|other| other == id)
    }

    /// Adds one; false when it was there, or cannot be.
    #[must_use]
    pub fn insert(&mut self, id: u32) -> bool {
        let bit = id.checked_sub(BASE_ALLOCATION_ID);
        let bit = bit.filter(|bit| *bit as usize <= SINCE_MAX);
        let Some(mask) = bit.map(|bit| 1 << bit) else {
            return false;
        };
        let new = self.0 & mask == 0;
        self.0 |= mask;
        new
    }

    /// The numbers, ascending.
    pub fn iter(self) -> impl Iterator<Item = u32> {
        let bits = 0..=u32::try_from(SINCE_MAX).expect("few");
        bits.filter(move |bit| self.0 >> bit & 1 == 1)
            .map(|bit| BASE_ALLOCATION_ID + bit)
    }
}

/// What a client has chosen for one export.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contexts {
    /// Which numbers there are.
    pub set: ContextSet,
    /// Snapshots by their place: the first has the number after
    /// `base:allocation`.
    pub since: Vec<String>,
}

impl Contexts {
    /// Adds one by its name; its number, unless it is there already.
    pub(crate) fn add(&mut self, name: &str) -> Option<u32> {
        let id = match name.strip_prefix(CHANGED_SINCE) {
            None => BASE_ALLOCATION_ID,
            Some(snapshot) if self.since.iter().any(|known| known == snapshot) => return None,
            Some(snapshot) => {
                self.since.push(snapshot.to_owned());
                BASE_ALLOCATION_ID + u32::try_from(self.since.len()).expect("few")
            }
        };
        self.set.insert(id).then_some(id)
    }

    /// The snapshot that a number other than that of `base:allocation` means.
    pub fn snapshot(&self, id: u32) -> Option<&str> {
        let at = usize::try_from(id.checked_sub(BASE_ALLOCATION_ID + 1)?).ok()?;
        self.since.get(at).map(String::as_str)
    }
}

/// A query for contexts, as far as it concerns us.
pub(crate) enum Query<'a> {
    /// `base:allocation`.
    Allocation,
    /// That of one snapshot.
    Since(&'a str),
    /// Whether what an instance has answered is kept; of no name, which one
    /// serves.
    Kept(&'a str),
    /// All of a namespace.
    All {
        /// `base:`; otherwise ours.
        base: bool,
    },
    /// Somebody else's.
    Other,
}

impl<'a> Query<'a> {
    pub(crate) fn new(query: &'a str) -> Self {
        match query {
            BASE_ALLOCATION => Self::Allocation,
            "base:" => Self::All { base: true },
            NAMESPACE | CHANGED_SINCE => Self::All { base: false },
            _ => {
                let since = query.strip_prefix(CHANGED_SINCE).map(Self::Since);
                let kept = || query.strip_prefix(KEPT).map(Self::Kept);
                since.or_else(kept).unwrap_or(Self::Other)
            }
        }
    }
}
