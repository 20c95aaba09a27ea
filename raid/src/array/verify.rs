//! Whether parity and mirrors agree with the data, and making them.
//!
//! Nobody here knows which of two copies is right, or whether a parity or its
//! data has rotted: whoever calls says so.

use std::ops::Range;

use super::{
    Array,
    roster::Roster,
    stripe::{recover, solve},
    types::{StripeCheck, StripeState},
};
use crate::{
    Column, ColumnSet, Kind, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, BufSlice, Io, IoOp},
    layout::Layout,
    parity,
    sabotage::broken,
};

/// What the members in use hold of one stripe, by column.
struct Stripe<'a> {
    layout: &'a Layout,
    stripe: u32,
    units: Vec<Option<AlignedBuf>>,
    /// The columns whose members failed to read them.
    unreadable: ColumnSet,
}

impl Stripe<'_> {
    fn unit(&self, column: Column) -> Option<&[u8]> {
        self.units[column.index()].as_deref()
    }

    fn present(&self) -> ColumnSet {
        let there = |column: &Column| self.unit(*column).is_some();
        self.layout.columns().iter().filter(there).collect()
    }

    /// What each column that is redundant should hold according to the
    /// others: mirrors by the first copy there is, parities by the data.
    /// `None` where there is nothing to compare.
    fn redundancy(&self) -> Option<Vec<(Column, AlignedBuf)>> {
        let present = self.present();
        let mut expected = Vec::new();
        if self.layout.p_column(self.stripe).is_none() {
            for k in 0..self.layout.data_units() {
                let copies = self.layout.locate(self.stripe, k).intersection(present);
                let Some(first) = copies.lowest() else {
                    continue;
                };
                let right = self.unit(first).expect("it is present");
                let others = copies.without(first).iter();
                expected.extend(others.map(|column| (column, AlignedBuf::copy_of(right))));
            }
            return (!expected.is_empty()).then_some(expected);
        }
        let p = self.layout.p_column(self.stripe);
        let q = self.layout.q_column(self.stripe);
        let absent = self.layout.columns().difference(present);
        for column in [p, q]
            .into_iter()
            .flatten()
            .filter(|parity| present.contains(*parity))
        {
            // Without one member it takes the other parity to know the data.
            let others: ColumnSet = [p, q].into_iter().flatten().collect();
            let lacking = absent.difference(others).len();
            let helpers = others.without(column).intersection(present).len();
            // And only Q is then compared with what P says, not P with Q: the
            // data was verified as P gives it.
            if lacking > helpers || lacking > 0 && Some(column) == p {
                continue;
            }
            // Where the data is there, the other parity must not be asked.
            let used = |other: Column| match lacking {
                0 => !others.contains(other),
                _ => other != column,
            };
            let present = |other: Column| self.unit(other).filter(|_| used(other));
            let unit = self.layout.stripe_unit_bytes as usize;
            let mut right = AlignedBuf::zeroed(unit);
            if recover(self.layout, self.stripe, column, &present, &mut right) {
                expected.push((column, right));
            }
        }
        (!expected.is_empty()).then_some(expected)
    }

    /// The data of the stripe in each way in which it can be read: at the
    /// levels with mirrors from the first copies and from the last, at the
    /// others directly, or solved for with as many parities as it takes.
    fn readings(&self) -> Vec<Vec<u8>> {
        let present = self.present();
        let columns = |k| self.layout.locate(self.stripe, k);
        let units = 0..self.layout.data_units();
        let parities = self.layout.parity_columns(self.stripe);
        if parities.is_empty() {
            let copies = |pick: fn(ColumnSet) -> Option<Column>| {
                let unit = |k| self.unit(pick(columns(k).intersection(present))?);
                units.clone().map(unit).collect::<Option<Vec<_>>>()
            };
            let readings = [copies(ColumnSet::lowest), copies(|set| set.iter().last())];
            return readings
                .into_iter()
                .flatten()
                .map(|it| it.concat())
                .collect();
        }
        let absent = self
            .layout
            .columns()
            .difference(present)
            .difference(parities);
        let helpers = parities.intersection(present);
        let asked: Vec<ColumnSet> = match absent.len() {
            0 => vec![ColumnSet::EMPTY],
            1 => helpers.iter().map(ColumnSet::of).collect(),
            lacking if lacking == helpers.len() => vec![helpers],
            _ => Vec::new(),
        };
        let reading = |asked: ColumnSet| {
            let erased = absent.union(parities.difference(asked));
            let of = |column| self.unit(column).expect("what is not erased is present");
            let mut data = vec![0; units.len() * self.layout.stripe_unit_bytes as usize];
            let targets = data.chunks_mut(self.layout.stripe_unit_bytes as usize);
            for (k, target) in units.clone().zip(targets) {
                match self.unit(self.layout.data_column(self.stripe, k)) {
                    Some(bytes) => target.copy_from_slice(bytes),
                    None => solve(self.layout, self.stripe, k, erased, of, target),
                }
            }
            data
        };
        asked.into_iter().map(reading).collect()
    }

    /// What follows from the data for each mirror and parity that is to be
    /// written: those of members in use.
    fn redundancy_of(&self, data: &[u8]) -> Vec<(Column, AlignedBuf)> {
        let in_use = self.present().union(self.unreadable);
        let units: Vec<&[u8]> = data
            .chunks(self.layout.stripe_unit_bytes as usize)
            .collect();
        let parities = self.layout.parity_columns(self.stripe);
        if parities.is_empty() {
            let copies = (0..).zip(&units).flat_map(|(k, unit)| {
                let holders = self.layout.locate(self.stripe, k).intersection(in_use);
                holders
                    .iter()
                    .map(|column| (column, AlignedBuf::copy_of(unit)))
                    .collect::<Vec<_>>()
            });
            return copies.collect();
        }
        let unit = self.layout.stripe_unit_bytes as usize;
        let (mut p, mut q) = (AlignedBuf::zeroed(unit), AlignedBuf::zeroed(unit));
        let made = match self.layout.q_column(self.stripe) {
            Some(column) => {
                parity::generate_pq(&units, &mut p, &mut q);
                vec![(self.layout.p_column(self.stripe), p), (Some(column), q)]
            }
            None => {
                parity::generate_p(&units, &mut p);
                vec![(self.layout.p_column(self.stripe), p)]
            }
        };
        let wanted = |(column, bytes): (Option<Column>, AlignedBuf)| {
            let column = column.filter(|column| in_use.contains(*column))?;
            Some((column, bytes))
        };
        made.into_iter().filter_map(wanted).collect()
    }

    fn members(&self, columns: ColumnSet) -> Vec<MemberIndex> {
        self.layout.members_of(columns).iter().collect()
    }
}

impl Array {
    /// Compares the redundancy of some stripes with their data. The caller
    /// keeps the segment from being freed meanwhile (R9), and asks only about
    /// stripes whose writing is over.
    ///
    /// # Errors
    /// `InvalidArgument` for stripes that the segment lacks.
    pub fn check_stripes(
        &self,
        placement: &Placement,
        stripes: Range<u32>,
    ) -> Result<Vec<StripeCheck>, RaidError> {
        let layout = self.check_range(placement, &stripes)?;
        let roster = self.roster();
        let stripes = self.read_stripes(&roster, layout, placement, stripes);
        let checks = stripes.iter().map(|stripe| {
            let state = if !stripe.unreadable.is_empty() {
                StripeState::Unreadable(stripe.members(stripe.unreadable))
            } else if let Some(expected) = stripe.redundancy() {
                let differs = |(column, right): &&(Column, AlignedBuf)| {
                    stripe.unit(*column) != Some(&right[..])
                };
                let wrong = expected.iter().filter(differs).map(|(column, _)| *column);
                match stripe.members(wrong.collect()) {
                    wrong if wrong.is_empty() => StripeState::Consistent,
                    wrong => StripeState::Mismatch(wrong),
                }
            } else {
                StripeState::Unchecked
            };
            StripeCheck {
                stripe: stripe.stripe,
                state,
            }
        });
        Ok(checks.collect())
    }

    /// Makes a stripe's parity, or its mirror copies, what follows from its
    /// data; whose was rewritten. Not durable: if the write is lost, the
    /// damage is found once more.
    ///
    /// `is_right` is given the data of the whole stripe, as the members give it
    /// now, and says whether all that is referred to in it verifies. Only of
    /// bytes that it has approved anything is made: parity of rotten data would
    /// seal the damage (R7), and that the caller repaired the data before does
    /// not say that the device kept the repair. Where a data column is missing,
    /// each way of solving for it is offered.
    ///
    /// The caller promises what [`Array::check_stripes`] asks for.
    ///
    /// # Errors
    /// `Unrecoverable` where a data column cannot be read, or no reading of the
    /// data is right: repair it first.
    pub fn mend_redundancy(
        &self,
        placement: &Placement,
        stripe: u32,
        is_right: &dyn Fn(&[u8]) -> bool,
    ) -> Result<Vec<MemberIndex>, RaidError> {
        self.may_write()?;
        let range = stripe..stripe.saturating_add(1);
        let layout = self.check_range(placement, &range)?;
        // Two repairs of one block would undo each other.
        let _repair = self.repairs.lock();
        let roster = self.roster();
        let read = self.read_stripes(&roster, layout, placement, range).pop();
        let read = read.expect("one stripe was asked for");
        let parities = layout.parity_columns(stripe);
        let data = read.unreadable.difference(parities);
        if !parities.is_empty() && !data.is_empty() {
            let names = roster.names(layout.members_of(data));
            return Err(RaidError::new(
                Kind::Unrecoverable,
                format!("Stripe {stripe} of {placement:?} cannot be read from {names}"),
            ));
        }
        let approved = |data: &Vec<u8>| broken("R7.mend") || is_right(data);
        let Some(right) = read.readings().into_iter().find(approved) else {
            return Err(RaidError::new(
                Kind::Unrecoverable,
                format!("Nothing that is read of stripe {stripe} of {placement:?} is right"),
            ));
        };
        let used = roster.written();
        let mut batch: Vec<Io> = Vec::new();
        let mut holders: Vec<MemberIndex> = Vec::new();
        let mut mended = MemberSet::EMPTY;
        for (column, right) in read.redundancy_of(&right) {
            if read.unit(column) == Some(&right[..]) {
                continue;
            }
            let offset = self.unit_offset(layout, placement, column, stripe);
            let data = BufSlice::from(right);
            mended.insert(layout.member(column));
            for holder in roster.holders(layout.member(column), used) {
                let op = IoOp::Write {
                    data: vec![data.clone()],
                    durable: false,
                };
                batch.push(roster.io(holder, offset, op));
                holders.push(holder);
            }
        }
        self.run(&roster, &mut batch);
        let outcomes = batch.iter().map(|io| &io.outcome).zip(holders);
        if let Some(full) = self.settle_writes(&roster, "a repairing write failed", outcomes)? {
            return Err(full);
        }
        self.count_repairs(&roster, mended);
        Ok(mended.iter().collect())
    }

    /// Reads what the members in use hold of some stripes, with one operation
    /// a member; where that fails, unit by unit.
    fn read_stripes<'a>(
        &self,
        roster: &Roster,
        layout: &'a Layout,
        placement: &Placement,
        stripes: Range<u32>,
    ) -> Vec<Stripe<'a>> {
        let columns = layout.columns_of(roster.in_use());
        let mut read: Vec<Stripe<'a>> = stripes
            .clone()
            .map(|stripe| Stripe {
                layout,
                stripe,
                units: layout.columns().iter().map(|_| None).collect(),
                unreadable: ColumnSet::EMPTY,
            })
            .collect();
        let plain = self.read_units(roster, layout, placement, columns, stripes.clone());
        let unit = layout.stripe_unit_bytes as usize;
        for (column, bytes) in columns.iter().zip(plain) {
            for (n, stripe) in read.iter_mut().enumerate() {
                stripe.units[column.index()] = match &bytes {
                    Some(bytes) => Some(AlignedBuf::copy_of(&bytes[n * unit..(n + 1) * unit])),
                    None => {
                        let range = stripe.stripe..stripe.stripe + 1;
                        let one = ColumnSet::of(column);
                        let mut alone = self.read_units(roster, layout, placement, one, range);
                        alone.pop().flatten()
                    }
                };
                // One that went meanwhile is missing, which is another thing.
                let in_use = roster.in_use().contains(layout.member(column));
                if stripe.units[column.index()].is_none() && in_use {
                    stripe.unreadable.insert(column);
                }
            }
        }
        read
    }

    fn read_units(
        &self,
        roster: &Roster,
        layout: &Layout,
        placement: &Placement,
        columns: ColumnSet,
        stripes: Range<u32>,
    ) -> Vec<Option<AlignedBuf>> {
        let length = (stripes.end - stripes.start) as usize * layout.stripe_unit_bytes as usize;
        if length == 0 {
            return Vec::new();
        }
        let mut batch: Vec<Io> = columns
            .iter()
            .map(|column| {
                let offset = self.unit_offset(layout, placement, column, stripes.start);
                let read = IoOp::Read(self.scratch(length));
                roster.io(layout.member(column), offset, read)
            })
            .collect();
        self.run(roster, &mut batch);
        let members = columns.iter().map(|column| layout.member(column));
        self.note_failures_of_reads(roster, batch.iter().map(|io| &io.outcome).zip(members));
        let units = batch.into_iter().map(|io| match (io.outcome, io.op) {
            (Some(Ok(())), IoOp::Read(buffer)) => Some(buffer),
            _ => None,
        });
        units.collect()
    }
}
