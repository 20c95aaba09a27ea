//! Newtypes for the indices of a pool, and the RAID levels.
//!
//! An index of one kind never stands in for another: conversions are written
//! out. Sets of members are 64-bit masks, because a pool has at most
//! [`MAX_MEMBERS`] of them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The most members a pool, and so a layout, can have.
pub const MAX_MEMBERS: usize = 64;

/// A member of the pool, fixed for the member's life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MemberIndex(pub u8);

/// A layout of the pool's layout table.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct LayoutId(pub u16);

/// One of a member's equal areas that hold its part of a segment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SlotIndex(pub u32);

/// A row of the segment table.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct SegmentId(pub u32);

/// A position within a layout: column `c` of a stripe lies on the layout's
/// `c`-th member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Column(pub u8);

impl MemberIndex {
    /// The index as a slice position.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl Column {
    /// The column as a slice position.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

macro_rules! display_number {
    ($($name:ident),*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    )*};
}
display_number!(MemberIndex, LayoutId, SlotIndex, SegmentId, Column);

macro_rules! index_set {
    ($(#[$doc:meta])* $set:ident of $item:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
        pub struct $set(pub u64);

        impl $set {
            /// No element.
            pub const EMPTY: Self = Self(0);

            /// The elements `0..count`; `count` is at most 64.
            pub fn first(count: usize) -> Self {
                assert!(count <= MAX_MEMBERS, "a set has at most 64 elements");
                if count == MAX_MEMBERS { Self(u64::MAX) } else { Self((1 << count) - 1) }
            }

            /// One element.
            pub fn of(item: $item) -> Self {
                Self::EMPTY.with(item)
            }

            /// Whether `item` is in the set.
            pub fn contains(self, item: $item) -> bool {
                item.index() < MAX_MEMBERS && self.0 >> item.0 & 1 == 1
            }

            /// Adds `item`, which is below 64.
            pub fn insert(&mut self, item: $item) {
                assert!(item.index() < MAX_MEMBERS, "a set holds elements below 64");
                self.0 |= 1 << item.0;
            }

            /// Takes `item` out if it is there.
            pub fn remove(&mut self, item: $item) {
                if item.index() < MAX_MEMBERS {
                    self.0 &= !(1 << item.0);
                }
            }

            /// The set with `item`.
            #[must_use]
            pub fn with(mut self, item: $item) -> Self {
                self.insert(item);
                self
            }

            /// The set without `item`.
            #[must_use]
            pub fn without(mut self, item: $item) -> Self {
                self.remove(item);
                self
            }

            /// The elements in either.
            #[must_use]
            pub const fn union(self, other: Self) -> Self {
                Self(self.0 | other.0)
            }

            /// The elements in both.
            #[must_use]
            pub const fn intersection(self, other: Self) -> Self {
                Self(self.0 & other.0)
            }

            /// The elements that are not in `other`.
            #[must_use]
            pub const fn difference(self, other: Self) -> Self {
                Self(self.0 & !other.0)
            }

            /// How many elements there are.
            pub const fn len(self) -> usize {
                self.0.count_ones() as usize
            }

            /// Whether there are none.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }

            /// The lowest element.
            pub fn lowest(self) -> Option<$item> {
                self.iter().next()
            }

            /// The elements in ascending order.
            pub fn iter(self) -> impl Iterator<Item = $item> + Clone + use<> {
                let mut rest = self.0;
                std::iter::from_fn(move || {
                    let lowest = u8::try_from(rest.trailing_zeros()).ok()?;
                    if rest == 0 {
                        return None;
                    }
                    rest &= rest - 1;
                    Some($item(lowest))
                })
            }
        }

        impl FromIterator<$item> for $set {
            fn from_iter<I: IntoIterator<Item = $item>>(items: I) -> Self {
                items.into_iter().fold(Self::EMPTY, Self::with)
            }
        }

        impl fmt::Debug for $set {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_set().entries(self.iter().map(|item| item.0)).finish()
            }
        }
    };
}

index_set!(
    /// A set of members of the pool.
    MemberSet of MemberIndex
);
index_set!(
    /// A set of columns of one layout.
    ColumnSet of Column
);

/// How a layout spreads data and redundancy over its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// One member, no redundancy.
    Single,
    /// Striping without redundancy.
    Raid0,
    /// Every member holds everything.
    Raid1,
    /// One rotating parity unit a stripe.
    Raid5,
    /// Two rotating parity units a stripe.
    Raid6,
    /// Striping over mirrored pairs; columns `2k` and `2k + 1` are a pair.
    Raid10,
}

impl Level {
    /// Every level, in the order of their codes.
    pub const ALL: [Level; 6] = [
        Level::Single,
        Level::Raid0,
        Level::Raid1,
        Level::Raid5,
        Level::Raid6,
        Level::Raid10,
    ];

    /// The name users write.
    pub const fn name(self) -> &'static str {
        match self {
            Level::Single => "single",
            Level::Raid0 => "raid0",
            Level::Raid1 => "raid1",
            Level::Raid5 => "raid5",
            Level::Raid6 => "raid6",
            Level::Raid10 => "raid10",
        }
    }

    /// The number on disk.
    pub const fn code(self) -> u8 {
        match self {
            Level::Single => 0,
            Level::Raid0 => 1,
            Level::Raid1 => 2,
            Level::Raid5 => 5,
            Level::Raid6 => 6,
            Level::Raid10 => 10,
        }
    }

    /// The level of a number on disk.
    pub fn from_code(code: u8) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.code() == code)
    }

    /// The fewest members the level works with.
    pub const fn min_members(self) -> usize {
        match self {
            Level::Single => 1,
            Level::Raid0 | Level::Raid1 => 2,
            Level::Raid5 => 3,
            Level::Raid6 | Level::Raid10 => 4,
        }
    }

    /// The most members the level works with.
    pub const fn max_members(self) -> usize {
        match self {
            Level::Single => 1,
            _ => MAX_MEMBERS,
        }
    }

    /// Whether the level works with `count` members.
    pub const fn accepts(self, count: usize) -> bool {
        count >= self.min_members()
            && count <= self.max_members()
            && (!matches!(self, Level::Raid10) || count.is_multiple_of(2))
    }

    /// The member counts the level works with, in words for a message.
    pub const fn members_in_words(self) -> &'static str {
        match self {
            Level::Single => "exactly 1 member",
            Level::Raid0 | Level::Raid1 => "2 to 64 members",
            Level::Raid5 => "3 to 64 members",
            Level::Raid6 => "4 to 64 members",
            Level::Raid10 => "an even number of members from 4 to 64",
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A level's name that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Unknown level {0:?}; use one of single, raid0, raid1, raid5, raid6, raid10")]
pub struct UnknownLevel(pub String);

impl FromStr for Level {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Level::ALL
            .into_iter()
            .find(|level| level.name() == name)
            .ok_or_else(|| UnknownLevel(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn level_names_and_codes_round_trip() {
        for level in Level::ALL {
            assert_eq!(level.to_string().parse::<Level>().unwrap(), level);
            assert_eq!(Level::from_code(level.code()), Some(level));
        }
        assert!("RAID5".parse::<Level>().is_err());
        assert_eq!(Level::from_code(3), None);
    }

    #[test]
    fn levels_accept_only_their_member_counts() {
        let accepted = |level: Level| (0..=70).filter(|n| level.accepts(*n)).collect::<Vec<_>>();
        assert_eq!(accepted(Level::Single), vec![1]);
        assert_eq!(accepted(Level::Raid0), (2..=64).collect::<Vec<_>>());
        assert_eq!(accepted(Level::Raid1), (2..=64).collect::<Vec<_>>());
        assert_eq!(accepted(Level::Raid5), (3..=64).collect::<Vec<_>>());
        assert_eq!(accepted(Level::Raid6), (4..=64).collect::<Vec<_>>());
        let even = (4..=64).step_by(2).collect::<Vec<_>>();
        assert_eq!(accepted(Level::Raid10), even);
    }

    #[test]
    fn sets_hold_the_lowest_and_the_highest_member() {
        let mut set = MemberSet::EMPTY;
        set.insert(MemberIndex(0));
        set.insert(MemberIndex(63));
        assert_eq!(set.len(), 2);
        assert_eq!(
            set.iter().collect::<Vec<_>>(),
            [MemberIndex(0), MemberIndex(63)]
        );
        assert!(!set.contains(MemberIndex(64)));
        set.remove(MemberIndex(0));
        assert_eq!(set.lowest(), Some(MemberIndex(63)));
        assert_eq!(MemberSet::first(64).len(), 64);
        assert_eq!(
            MemberSet::first(3)
                .difference(MemberSet::of(MemberIndex(1)))
                .0,
            0b101
        );
        assert_eq!(format!("{:?}", MemberSet(0b101)), "{0, 2}");
    }
}
