//! Pure geometry: which member holds what, and how to get it back.
//!
//! A stripe is one stripe unit on every member of a layout. A *column* is a
//! position in the layout's ordered member list, so that a member replaced
//! later keeps its place. Roles rotate with the stripe's number within its
//! segment, left-symmetric as in Linux md (`drivers/md/raid5.c`,
//! `ALGORITHM_LEFT_SYMMETRIC`), here RAID 5 of four:
//!
//! ```text
//!            column 0   1   2   3
//! stripe 0         D0  D1  D2  P
//! stripe 1         D1  D2  P   D0
//! stripe 2         D2  P   D0  D1
//! stripe 3         P   D0  D1  D2
//! ```
//!
//! RAID 6 has Q in the column after P and the data after Q. RAID 1 has one
//! data unit, copied to every column; RAID 10 has data unit `k` in columns
//! `2k` and `2k + 1`. Nothing here does I/O.

use crate::units::{Column, ColumnSet, LayoutId, Level, MAX_MEMBERS, MemberIndex, MemberSet};

mod placement;
mod segment;
#[cfg(test)]
mod tests;

pub use placement::{Placement, PlacementError, Slots};
pub use segment::{Piece, SegmentGeometry};

use crate::{device::BLOCK_BYTES, sabotage::broken};

/// A level, a stripe unit and ordered members: how some segments are spread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Its number in the pool's layout table.
    pub id: LayoutId,
    /// How data and redundancy are spread.
    pub level: Level,
    /// Consecutive bytes on one member, a multiple of 4096.
    pub stripe_unit_bytes: u32,
    /// The members in the order of their columns.
    pub members: Vec<MemberIndex>,
}

/// Why a layout cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// The level does not work with so many members.
    #[error("Level {level} needs {}, not {count}", .level.members_in_words())]
    MemberCount {
        /// The level.
        level: Level,
        /// How many there are.
        count: usize,
    },
    /// The stripe unit is no multiple of the block size, or out of bounds.
    #[error("Stripe unit {0} is not a multiple of 4096 between 4K and 1M")]
    StripeUnit(u32),
    /// A member appears twice.
    #[error("Member {0} appears twice in the layout")]
    Duplicate(MemberIndex),
    /// A member index is out of bounds.
    #[error("Member index {0} is not below 64")]
    Index(MemberIndex),
}

/// The largest stripe unit, so that a stripe of 64 members stays within
/// 64 MiB.
pub const MAX_STRIPE_UNIT_BYTES: u32 = 1 << 20;

/// What a column holds in one stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// A data unit, or the first copy of one.
    Data(u32),
    /// A further copy of a data unit.
    Mirror(u32),
    /// The XOR of the data units.
    P,
    /// The weighted sum of the data units, see [`crate::parity`].
    Q,
}

/// One way to obtain a unit of a stripe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Recipe {
    /// Read it from this column.
    Copy(Column),
    /// Read every column of `read` and solve for the wanted unit, treating
    /// those of `erased` as missing whether they are or not
    /// (see [`crate::parity::reconstruct`]).
    Solve {
        /// The columns taken as missing; the wanted one is among them.
        erased: ColumnSet,
        /// The columns needed: all others.
        read: ColumnSet,
    },
}

/// How a plain read obtains a data unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReadPlan {
    /// From any one of these columns, which hold equal copies.
    Direct(ColumnSet),
    /// By solving; cheapest way first.
    Solve {
        /// The columns taken as missing.
        erased: ColumnSet,
        /// The columns to read.
        read: ColumnSet,
    },
    /// Too much has failed.
    Lost,
}

impl Layout {
    /// A checked layout.
    pub fn new(
        id: LayoutId,
        level: Level,
        stripe_unit_bytes: u32,
        members: Vec<MemberIndex>,
    ) -> Result<Self, LayoutError> {
        let layout = Self {
            id,
            level,
            stripe_unit_bytes,
            members,
        };
        layout.check()?;
        Ok(layout)
    }

    /// Whether the fields fit together, for a layout read from disk.
    pub fn check(&self) -> Result<(), LayoutError> {
        let (level, count) = (self.level, self.members.len());
        if !level.accepts(count) {
            return Err(LayoutError::MemberCount { level, count });
        }
        let unit = self.stripe_unit_bytes;
        let aligned = usize::try_from(unit).is_ok_and(|unit| unit.is_multiple_of(BLOCK_BYTES));
        if unit == 0 || unit > MAX_STRIPE_UNIT_BYTES || !aligned {
            return Err(LayoutError::StripeUnit(unit));
        }
        let mut seen = MemberSet::EMPTY;
        for &member in &self.members {
            if member.index() >= MAX_MEMBERS {
                return Err(LayoutError::Index(member));
            }
            if seen.contains(member) {
                return Err(LayoutError::Duplicate(member));
            }
            seen.insert(member);
        }
        Ok(())
    }

    /// How many columns a stripe has.
    pub fn width(&self) -> u32 {
        u32::try_from(self.members.len()).expect("at most 64 members")
    }

    /// All columns.
    pub fn columns(&self) -> ColumnSet {
        ColumnSet::first(self.members.len())
    }

    /// All members.
    pub fn member_set(&self) -> MemberSet {
        self.members.iter().copied().collect()
    }

    /// The member of a column, which is below the width.
    pub fn member(&self, column: Column) -> MemberIndex {
        self.members[column.index()]
    }

    /// The column of a member, if it is part of the layout.
    pub fn column_of(&self, member: MemberIndex) -> Option<Column> {
        self.columns()
            .iter()
            .find(|column| self.member(*column) == member)
    }

    /// The columns of those `members` that are part of the layout.
    pub fn columns_of(&self, members: MemberSet) -> ColumnSet {
        self.columns()
            .iter()
            .filter(|column| members.contains(self.member(*column)))
            .collect()
    }

    /// The members of `columns`.
    pub fn members_of(&self, columns: ColumnSet) -> MemberSet {
        columns.iter().map(|column| self.member(column)).collect()
    }

    /// Distinct data units of a stripe.
    pub fn data_units(&self) -> u32 {
        match self.level {
            Level::Single | Level::Raid0 => self.width(),
            Level::Raid1 => 1,
            Level::Raid5 => self.width() - 1,
            Level::Raid6 => self.width() - 2,
            Level::Raid10 => self.width() / 2,
        }
    }

    /// Bytes of distinct data in a stripe.
    pub fn stripe_data_bytes(&self) -> u32 {
        self.data_units() * self.stripe_unit_bytes
    }

    /// `f`: any so many members can fail without loss.
    pub fn guaranteed_failures(&self) -> u32 {
        match self.level {
            Level::Single | Level::Raid0 => 0,
            Level::Raid1 => self.width() - 1,
            Level::Raid5 | Level::Raid10 => 1,
            Level::Raid6 => 2,
        }
    }

    /// Whether everything is still there when exactly `failed` are not.
    pub fn survives(&self, failed: MemberSet) -> bool {
        let failed = self.columns_of(failed);
        match self.level {
            Level::Raid10 => self.pairs().all(|pair| !pair.difference(failed).is_empty()),
            _ => failed.len() <= self.guaranteed_failures() as usize,
        }
    }

    /// RAID 10's mirrored pairs of columns.
    fn pairs(&self) -> impl Iterator<Item = ColumnSet> + use<> {
        (0..self.members.len() / 2).map(|pair| ColumnSet(0b11 << (2 * pair)))
    }

    /// The column of P, at the levels that have it.
    pub fn p_column(&self, stripe: u32) -> Option<Column> {
        match self.level {
            Level::Raid5 | Level::Raid6 => {
                Some(self.column(self.width() - 1 - stripe % self.width()))
            }
            _ => None,
        }
    }

    /// The column of Q, at the level that has it.
    pub fn q_column(&self, stripe: u32) -> Option<Column> {
        match self.level {
            Level::Raid6 => self
                .p_column(stripe)
                .map(|p| self.column(u32::from(p.0) + 1)),
            _ => None,
        }
    }

    /// The columns of P and Q, as far as the level has them.
    pub fn parity_columns(&self, stripe: u32) -> ColumnSet {
        let parities = [self.p_column(stripe), self.q_column(stripe)];
        parities.into_iter().flatten().collect()
    }

    /// Column `number` modulo the width.
    fn column(&self, number: u32) -> Column {
        Column(u8::try_from(number % self.width()).expect("a layout has at most 64 columns"))
    }

    /// The column of a data unit, or of its first copy.
    pub fn data_column(&self, stripe: u32, data_unit: u32) -> Column {
        assert!(
            data_unit < self.data_units(),
            "the unit is one of the stripe's"
        );
        match self.level {
            Level::Single | Level::Raid0 => self.column(data_unit),
            Level::Raid1 => Column(0),
            Level::Raid10 => self.column(2 * data_unit),
            Level::Raid5 | Level::Raid6 => {
                let last_parity = self.q_column(stripe).or(self.p_column(stripe));
                let last_parity = last_parity.expect("RAID 5 and 6 have parity");
                self.column(u32::from(last_parity.0) + 1 + data_unit)
            }
        }
    }

    /// Every column that holds a copy of a data unit.
    pub fn locate(&self, stripe: u32, data_unit: u32) -> ColumnSet {
        let first = self.data_column(stripe, data_unit);
        match self.level {
            Level::Raid1 => self.columns(),
            Level::Raid10 => ColumnSet(0b11 << first.0),
            _ => ColumnSet::of(first),
        }
    }

    /// What a column holds in a stripe.
    pub fn role(&self, stripe: u32, column: Column) -> Role {
        assert!(
            column.index() < self.members.len(),
            "the column is one of the layout's"
        );
        let number = u32::from(column.0);
        match self.level {
            Level::Single | Level::Raid0 => Role::Data(number),
            Level::Raid1 if number == 0 => Role::Data(0),
            Level::Raid1 => Role::Mirror(0),
            Level::Raid10 if number.is_multiple_of(2) => Role::Data(number / 2),
            Level::Raid10 => Role::Mirror(number / 2),
            Level::Raid5 | Level::Raid6 if self.p_column(stripe) == Some(column) => Role::P,
            Level::Raid5 | Level::Raid6 if self.q_column(stripe) == Some(column) => Role::Q,
            Level::Raid5 | Level::Raid6 => {
                let first = u32::from(self.data_column(stripe, 0).0);
                Role::Data((number + self.width() - first) % self.width())
            }
        }
    }

    /// What every column holds in a stripe, in the order of the columns.
    pub fn roles(&self, stripe: u32) -> Vec<Role> {
        self.columns()
            .iter()
            .map(|column| self.role(stripe, column))
            .collect()
    }

    /// R16: where journal copies go, given the members in sync: to
    /// `min(f + 1, live)` of them, and at RAID 10 to a whole mirrored pair.
    ///
    /// So all copies are lost only together with the pool: at RAID 1, 5 and 6
    /// because losing `f + 1` members loses it, at RAID 10 because losing a
    /// pair does. A RAID 10 whose every pair is broken takes the survivors of
    /// two; losing either already loses the pool.
    pub fn journal_members(&self, in_sync: MemberSet) -> Vec<MemberIndex> {
        let live = self.columns_of(in_sync);
        let needed = self.guaranteed_failures() as usize + 1;
        let copies = match broken("R16.copies") {
            true => needed.max(2) - 1,
            false => needed,
        };
        let whole_pair = match self.level {
            Level::Raid10 => self.pairs().find(|pair| pair.difference(live).is_empty()),
            _ => None,
        };
        whole_pair
            .unwrap_or(live)
            .iter()
            .take(copies)
            .map(|column| self.member(column))
            .collect()
    }

    /// How a plain read obtains a data unit while `failed` are not there.
    pub fn read_plan(&self, stripe: u32, data_unit: u32, failed: MemberSet) -> ReadPlan {
        let failed = self.columns_of(failed);
        let live = self.locate(stripe, data_unit).difference(failed);
        if !live.is_empty() {
            return ReadPlan::Direct(live);
        }
        self.solutions(stripe, data_unit, failed)
            .next()
            .map_or(ReadPlan::Lost, |(erased, read)| ReadPlan::Solve {
                erased,
                read,
            })
    }

    /// Every way to obtain a data unit while `failed` are not there: direct
    /// copies first, then by parity. At RAID 6 each further unit is in turn
    /// assumed wrong, so that one rotten unit anywhere can be arbitrated by
    /// a checksum.
    pub fn reconstructions(&self, stripe: u32, data_unit: u32, failed: MemberSet) -> Vec<Recipe> {
        let failed = self.columns_of(failed);
        let copies = self.locate(stripe, data_unit).difference(failed);
        let copies = copies.iter().map(Recipe::Copy);
        let solutions = self
            .solutions(stripe, data_unit, failed)
            .map(|(erased, read)| Recipe::Solve { erased, read });
        copies.chain(solutions).collect()
    }

    /// The sets of columns that can be taken as erased in order to solve for
    /// a data unit, and those then to be read; cheapest first.
    fn solutions(
        &self,
        stripe: u32,
        data_unit: u32,
        failed: ColumnSet,
    ) -> impl Iterator<Item = (ColumnSet, ColumnSet)> + use<> {
        let columns = self.columns();
        let must = failed.with(self.data_column(stripe, data_unit));
        let parities = match self.level {
            Level::Raid5 => 1,
            Level::Raid6 => 2,
            _ => 0,
        };
        let q = self.q_column(stripe);
        // Without Q what is left is a plain XOR, so that comes first.
        let others = q
            .into_iter()
            .chain(columns.iter().filter(move |other| Some(*other) != q));
        let sets: Vec<ColumnSet> = match parities {
            0 => Vec::new(),
            _ if must.len() > parities => Vec::new(),
            _ if must.len() == parities => vec![must],
            _ => others
                .filter(|other| !must.contains(*other))
                .map(|other| must.with(other))
                .collect(),
        };
        sets.into_iter()
            .map(move |erased| (erased, columns.difference(erased)))
    }
}
