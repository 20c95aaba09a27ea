//! Superblock copies out to the members.

use std::{collections::BTreeMap, sync::Arc};

use super::{Array, superblock_buffer};
use crate::{
    MemberIndex, RaidError,
    array::roster::{OpenDevice, Roster},
    device::{AlignedBuf, BufSlice, Io, IoOp},
    member::places,
    sabotage::broken,
    superblock::{PoolRecord, SUPERBLOCK_BYTES, Standing, encode},
};

/// A copy to be written.
struct Target {
    row: MemberIndex,
    device: Arc<OpenDevice>,
}

impl Array {
    /// Whether no failure of `failing` changes what the record says: a spare
    /// holds nothing.
    pub(super) fn none_counts(&self, record: &PoolRecord, failing: &[Arc<OpenDevice>]) -> bool {
        failing.iter().all(|device| {
            let row = record.row_of(device.uuid);
            row.is_none_or(|row| record.members[row.index()].standing == Standing::Spare)
        })
    }

    /// Writes a record's copies to everybody who gets superblocks; who
    /// failed, and why the first one did.
    pub(super) fn write_copies(
        &self,
        roster: &Roster,
        record: &PoolRecord,
        buffers: &mut Vec<Arc<AlignedBuf>>,
    ) -> (Vec<Arc<OpenDevice>>, String) {
        let mut failing = Vec::new();
        let mut why = String::new();
        buffers.resize_with(record.members.len().max(buffers.len()), superblock_buffer);
        let written = record.standing(Standing::is_written).iter();
        let mut targets: Vec<Target> = written
            .filter_map(|row| {
                // One that has failed meanwhile is named in the next record.
                let device = roster.live_by_uuid(record.members[row.index()].uuid)?;
                let device = Arc::clone(device);
                Some(Target { row, device })
            })
            .collect();
        if broken("R1.every_member") {
            targets.truncate(targets.len().max(2) - 1);
        }
        for target in &targets {
            let buffer = &mut buffers[target.row.index()];
            // An operation abandoned on a stalled member still owns its
            // buffer (R5): it gets to keep it.
            if Arc::get_mut(buffer).is_none() {
                *buffer = superblock_buffer();
            }
            let bytes = Arc::get_mut(buffer).expect("the buffer is not shared");
            encode(record, target.row, bytes);
        }
        // 1. the fronts, 2. the ends.
        for place in 0..if broken("R1.second_copy") { 1 } else { 2 } {
            let targets: Vec<&Target> = targets
                .iter()
                .filter(|target| !target.device.has_failed() && !holds(&failing, &target.device))
                .collect();
            let copy = |target: &Target| Arc::clone(&buffers[target.row.index()]);
            self.write_place(
                roster,
                record,
                place,
                !broken("sync.superblock"),
                &targets,
                copy,
                &mut failing,
                &mut why,
            );
        }
        (failing, why)
    }

    /// R1: gives members the newest superblock that they lack, before it is
    /// followed by another. Only places that do not hold it are written, so a
    /// crash cannot take it away from where it is.
    pub(in crate::array) fn write_missing_copies(
        &self,
        record: &PoolRecord,
        missing: &BTreeMap<MemberIndex, [bool; 2]>,
    ) -> Result<(), RaidError> {
        let (failing, why) = self.restore_copies(record, missing);
        self.fail_devices(&failing, &why)
    }

    /// The same for the one writer; who failed, and why the first one did.
    pub(in crate::array) fn restore_copies(
        &self,
        record: &PoolRecord,
        missing: &BTreeMap<MemberIndex, [bool; 2]>,
    ) -> (Vec<Arc<OpenDevice>>, String) {
        let roster = self.roster();
        let mut failing = Vec::new();
        let mut why = String::new();
        let all: Vec<(Target, [bool; 2])> = missing
            .iter()
            .filter_map(|(row, lacks)| {
                let device = Arc::clone(roster.live(*row)?);
                Some((Target { row: *row, device }, *lacks))
            })
            .collect();
        for place in 0..2 {
            let targets: Vec<&Target> = all
                .iter()
                .filter(|(target, lacks)| lacks[place] && !holds(&failing, &target.device))
                .map(|(target, _)| target)
                .collect();
            let copy = |target: &Target| {
                let mut bytes = AlignedBuf::zeroed(SUPERBLOCK_BYTES as usize);
                encode(record, target.row, &mut bytes);
                Arc::new(bytes)
            };
            self.write_place(
                &roster,
                record,
                place,
                !broken("sync.missing_superblock"),
                &targets,
                copy,
                &mut failing,
                &mut why,
            );
        }
        (failing, why)
    }

    /// Writes one of the two places of a record on each target.
    #[allow(clippy::too_many_arguments)] // two loops share what they gather
    fn write_place(
        &self,
        roster: &Roster,
        record: &PoolRecord,
        place: usize,
        durable: bool,
        targets: &[&Target],
        copy: impl Fn(&Target) -> Arc<AlignedBuf>,
        failing: &mut Vec<Arc<OpenDevice>>,
        why: &mut String,
    ) {
        let mut batch: Vec<Io> = targets
            .iter()
            .map(|target| {
                let size = record.members[target.row.index()].size_bytes;
                Io {
                    device: target.device.handle,
                    offset: places(record.sequence, size)[place],
                    op: IoOp::Write {
                        data: vec![BufSlice::whole(copy(target))],
                        durable,
                    },
                    outcome: None,
                }
            })
            .collect();
        self.run(roster, &mut batch);
        for (io, target) in batch.iter().zip(targets) {
            // The areas are preallocated: being short of space here is a
            // failure like any other, because the sequence cannot wait.
            if let Some(Err(error)) = &io.outcome {
                target.device.counters.write_failed();
                if failing.is_empty() {
                    *why = format!("its superblock cannot be written: {error}");
                }
                failing.push(Arc::clone(&target.device));
            }
        }
    }
}

fn holds(devices: &[Arc<OpenDevice>], device: &Arc<OpenDevice>) -> bool {
    devices.iter().any(|other| Arc::ptr_eq(other, device))
}
