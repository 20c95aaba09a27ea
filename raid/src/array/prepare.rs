//! Making devices ready to become members: areas laid out and made durable.

use std::time::Duration;

use crate::{
    Kind, RaidError,
    device::{Backend, Deadline, Io, IoOp, Patient},
    member::{OpenMember, stalled},
    sabotage::broken,
    superblock::{Geometry, SUPERBLOCK_AREA_BYTES},
};

/// A device that writes so much zeroes within the stall limit is not stalled.
const STEP_BYTES: u64 = 8 << 20;

/// Allocates and zeroes the superblock areas and the journal ring, durably:
/// neither needs space or metadata later (R4), and nothing of what was there
/// is taken for a superblock or a journal. With `discard` the slots are given
/// back too.
pub(super) fn lay_out(
    backend: &dyn Backend,
    opened: &[OpenMember],
    geometry: &Geometry,
    discard: bool,
    patience: Duration,
) -> Result<(), RaidError> {
    let front = Geometry::JOURNAL_OFFSET + geometry.journal_bytes;
    if discard {
        // Nothing depends on it: a device need not be able to. But nothing
        // may be written before it has ended, however long it takes.
        let slots = |member: &OpenMember| {
            let slots = u64::from(geometry.slot_count(member.facts.size_bytes));
            let length = slots * geometry.slot_bytes;
            io(member, geometry.slots_offset, IoOp::Discard { length })
        };
        let mut discards: Vec<Io> = opened.iter().map(slots).collect();
        backend.run(&mut discards, &Patient);
    }
    zero(backend, opened, 0, front, patience, |_| 0)?;
    let end = |member: &OpenMember| member.facts.size_bytes - SUPERBLOCK_AREA_BYTES;
    zero(backend, opened, 0, SUPERBLOCK_AREA_BYTES, patience, end)?;
    if broken("sync.laid_out") {
        return Ok(());
    }
    let mut syncs: Vec<Io> = opened
        .iter()
        .map(|member| io(member, 0, IoOp::Sync))
        .collect();
    run_all(backend, &mut syncs, opened, 1, patience)
}

/// Zeroes the journal ring alone, not durably.
pub(super) fn zero_journal(
    backend: &dyn Backend,
    member: &OpenMember,
    geometry: &Geometry,
    patience: Duration,
) -> Result<(), RaidError> {
    let member = std::slice::from_ref(member);
    let first = Geometry::JOURNAL_OFFSET;
    zero(
        backend,
        member,
        first,
        first + geometry.journal_bytes,
        patience,
        |_| 0,
    )
}

fn zero(
    backend: &dyn Backend,
    opened: &[OpenMember],
    from: u64,
    to: u64,
    patience: Duration,
    start: impl Fn(&OpenMember) -> u64,
) -> Result<(), RaidError> {
    let mut next = from;
    while next < to {
        let length = (to - next).min(STEP_BYTES);
        let mut step: Vec<Io> = opened
            .iter()
            .map(|member| io(member, start(member) + next, IoOp::Preallocate { length }))
            .collect();
        run_all(backend, &mut step, opened, 1, patience)?;
        next += length;
    }
    Ok(())
}

fn io(member: &OpenMember, offset: u64, op: IoOp) -> Io {
    Io {
        device: member.device,
        offset,
        op,
        outcome: None,
    }
}

/// Runs a batch with `each` operations a member; the first failure counts.
pub(super) fn run_all(
    backend: &dyn Backend,
    batch: &mut [Io],
    opened: &[OpenMember],
    each: usize,
    patience: Duration,
) -> Result<(), RaidError> {
    backend.run(batch, &Deadline::after(patience));
    for (n, io) in batch.iter_mut().enumerate() {
        if let Some(Err(error)) = io.outcome.take() {
            let path = &opened[n / each].path;
            return Err(match error.kind() {
                std::io::ErrorKind::TimedOut => stalled(path),
                std::io::ErrorKind::StorageFull => RaidError::new(
                    Kind::NoSpace,
                    format!(
                        "There is no space for the journal and superblocks of {}",
                        path.display()
                    ),
                ),
                _ => RaidError::io(format!("Cannot write {}", path.display()), error),
            });
        }
    }
    Ok(())
}
