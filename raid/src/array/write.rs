//! Whole stripes out to the members, and making them durable.

use std::sync::Arc;

use super::{Array, StripeWrite};
use crate::{
    Column, Kind, MemberIndex, MemberSet, Placement, RaidError,
    device::{AlignedBuf, BufSlice, Io, IoOp},
    layout::{Layout, Role},
    parity,
    sabotage::broken,
};

/// P and Q of the stripes of one call, in their order.
#[derive(Default)]
struct Parity {
    p: Option<Arc<AlignedBuf>>,
    q: Option<Arc<AlignedBuf>>,
}

impl Array {
    /// Writes whole stripes with their parity on all in-sync members and
    /// targets. Not durable before [`Array::sync`].
    ///
    /// Adjacent stripes of one segment that follow each other in `writes`
    /// become one operation a member. On `Ok` every member not written to is
    /// known as failed on disk (R2).
    ///
    /// # Errors
    /// `NoSpace` where a sparse member's file system is full: some members
    /// may hold the stripes, nothing has failed, the call can be repeated.
    /// `Stopped` where more members have failed than the layout survives.
    pub fn write_stripes(&self, writes: &[StripeWrite]) -> Result<(), RaidError> {
        self.may_write()?;
        let roster = self.roster();
        let used = roster.written();
        let mut batch = Vec::new();
        let mut targets: Vec<MemberIndex> = Vec::new();
        let mut rest = writes;
        while let Some(first) = rest.first() {
            let length = run_length(rest);
            let (run, after) = rest.split_at(length);
            rest = after;
            let layout = self.check_writes(run)?;
            let parity = self.parity_of(layout, run);
            for column in layout.columns().iter() {
                let offset = self.unit_offset(layout, &first.placement, column, first.stripe);
                for holder in roster.holders(layout.member(column), used) {
                    let op = IoOp::Write {
                        data: column_data(layout, run, &parity, column),
                        durable: false,
                    };
                    batch.push(roster.io(holder, offset, op));
                    targets.push(holder);
                }
            }
        }
        self.run(&roster, &mut batch);
        let outcomes = batch
            .iter()
            .map(|io| &io.outcome)
            .zip(targets.iter().copied());
        if let Some(full) = self.settle_writes(&roster, "a write failed", outcomes)? {
            return Err(full);
        }
        self.barrier(&roster, used)
    }

    /// Makes everything written before durable on all in-sync members and
    /// targets.
    ///
    /// A member that cannot is failed, and never asked again as if it could:
    /// what it failed to make durable is lost on it. On `Ok` the others hold
    /// everything and the failure is behind the barrier (R2).
    pub fn sync(&self) -> Result<(), RaidError> {
        self.may_write()?;
        if broken("sync.data") {
            return Ok(());
        }
        let roster = self.roster();
        let used = roster.written();
        let mut batch: Vec<Io> = used
            .iter()
            .map(|member| roster.io(member, 0, IoOp::Sync))
            .collect();
        self.run(&roster, &mut batch);
        let mut failing = MemberSet::EMPTY;
        let mut why = String::new();
        for (io, member) in batch.iter().zip(used.iter()) {
            // A lack of space included: the data is gone from the cache.
            if let Some(Err(error)) = &io.outcome {
                roster.rows[member.index()].counters.write_failed();
                why = format!("a sync failed: {error}");
                failing.insert(member);
            }
        }
        if !failing.is_empty() && !broken("sync.failure") {
            self.degrade(&roster, failing, &why)?;
        }
        self.barrier(&roster, used)
    }

    /// The segment's contents no longer matter; sparse files give the space
    /// back. The caller knows that nothing reads there any more (R9).
    pub fn discard_segment(&self, placement: &Placement) {
        if self.may_write().is_err() {
            return;
        }
        let Ok(layout) = self.layout_of(placement) else {
            return;
        };
        let roster = self.roster();
        let used = roster.written();
        let mut batch = Vec::new();
        for column in layout.columns().iter() {
            let offset = self.unit_offset(layout, placement, column, 0);
            let length = self.geometry.slot_bytes;
            for holder in roster.holders(layout.member(column), used) {
                batch.push(roster.io(holder, offset, IoOp::Discard { length }));
            }
        }
        self.run(&roster, &mut batch);
        for error in batch
            .iter()
            .filter_map(|io| io.outcome.as_ref()?.as_ref().err())
        {
            tracing::debug!(%error, "a discard failed");
        }
    }

    fn check_writes(&self, run: &[StripeWrite]) -> Result<&Layout, RaidError> {
        let layout = self.layout_of(&run[0].placement)?;
        let stripes = self.segment_geometry(layout).stripes_per_segment;
        for write in run {
            if write.stripe >= stripes || write.data.len() != layout.stripe_data_bytes() as usize {
                return Err(RaidError::new(
                    Kind::InvalidArgument,
                    format!(
                        "Stripe {} of {} bytes does not fit segments of {stripes} stripes of {}",
                        write.stripe,
                        write.data.len(),
                        layout.stripe_data_bytes()
                    ),
                ));
            }
        }
        Ok(layout)
    }

    fn parity_of(&self, layout: &Layout, run: &[StripeWrite]) -> Parity {
        let unit = layout.stripe_unit_bytes as usize;
        let has_p = layout.p_column(run[0].stripe).is_some();
        let has_q = layout.q_column(run[0].stripe).is_some();
        if !has_p {
            return Parity::default();
        }
        let mut p = self.scratch(unit * run.len());
        let mut q = if has_q {
            self.scratch(unit * run.len())
        } else {
            AlignedBuf::empty()
        };
        let mut q_units = q.chunks_mut(unit);
        for (write, p_unit) in run.iter().zip(p.chunks_mut(unit)) {
            let data: Vec<&[u8]> = write.data.chunks(unit).collect();
            match q_units.next() {
                Some(q_unit) => parity::generate_pq(&data, p_unit, q_unit),
                None => parity::generate_p(&data, p_unit),
            }
        }
        Parity {
            p: Some(Arc::new(p)),
            q: has_q.then(|| Arc::new(q)),
        }
    }
}

/// How many of the first writes are adjacent stripes of one segment.
fn run_length(writes: &[StripeWrite]) -> usize {
    let adjacent = |pair: &[StripeWrite]| {
        pair[0].stripe.checked_add(1) == Some(pair[1].stripe)
            && pair[0].placement == pair[1].placement
    };
    1 + writes.windows(2).take_while(|pair| adjacent(pair)).count()
}

/// What a column gets of adjacent stripes.
fn column_data(
    layout: &Layout,
    run: &[StripeWrite],
    parity: &Parity,
    column: Column,
) -> Vec<BufSlice> {
    let unit = layout.stripe_unit_bytes as usize;
    let part = |buffer: &Arc<AlignedBuf>, n: usize| {
        BufSlice::new(Arc::clone(buffer), n * unit..(n + 1) * unit)
    };
    let slices = run
        .iter()
        .enumerate()
        .map(|(n, write)| match layout.role(write.stripe, column) {
            Role::Data(k) | Role::Mirror(k) => part(&write.data, k as usize),
            Role::P => part(
                parity.p.as_ref().expect("a layout with a P column has P"),
                n,
            ),
            Role::Q => part(
                parity.q.as_ref().expect("a layout with a Q column has Q"),
                n,
            ),
        });
    slices.collect()
}
