//! Verifying one piece of data in every copy, and mending it.

use std::{collections::BTreeSet, ops::Range};

use tessera_dedup::{Entry, SummaryRecord, decompress, fingerprint};
use tessera_raid::{CopyReading, Kind, MemberIndex, Placement, device::BLOCK_BYTES};

use crate::{jobs::JobRecord, pool::engine::Engine};

const BLOCK: u32 = BLOCK_BYTES as u32; // 4096

/// What was found, to be added to the job.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) checked: u64,
    pub(super) found: u64,
    pub(super) repaired: u64,
    members: Vec<(MemberIndex, [u64; 3])>,
    pub(super) lost: Vec<(tessera_raid::SegmentId, u32)>,
}

impl Tally {
    fn of(&mut self, member: MemberIndex) -> &mut [u64; 3] {
        let at = self.members.iter().position(|(index, _)| *index == member);
        let at = at.unwrap_or_else(|| {
            self.members.push((member, [0; 3]));
            self.members.len() - 1
        });
        &mut self.members[at].1
    }

    pub(super) fn checked(&mut self, member: MemberIndex) {
        self.of(member)[0] += 1;
    }

    pub(super) fn found(&mut self, members: impl IntoIterator<Item = MemberIndex>) {
        for member in members {
            self.of(member)[1] += 1;
            self.found += 1;
        }
    }

    pub(super) fn repaired(&mut self, members: impl IntoIterator<Item = MemberIndex>) {
        for member in members {
            self.of(member)[2] += 1;
            self.repaired += 1;
        }
    }

    pub(super) fn add_to(&self, record: &mut JobRecord) {
        record.checked += self.checked;
        record.found += self.found;
        record.repaired += self.repaired;
        for (member, [checked, found, repaired]) in &self.members {
            let counts = record.of(*member);
            counts.checked += checked;
            counts.found += found;
            counts.repaired += repaired;
        }
        for (segment, position) in &self.lost {
            record.note_lost(*segment, *position);
        }
    }
}

/// Something whose right bytes can be told from wrong ones.
pub(super) struct Wanted<'a> {
    pub(super) placement: &'a Placement,
    /// First byte within the segment's data.
    pub(super) position: u32,
    pub(super) length: u32,
    pub(super) is_right: &'a dyn Fn(&[u8]) -> bool,
}

/// Whether stored bytes are the record's: by checksum, and by hash where it has
/// one.
pub(super) fn is_record(record: &SummaryRecord, stored: &[u8]) -> bool {
    let Entry { kind, checksum, .. } = record.entry;
    if crc32c::crc32c(stored) != checksum {
        return false;
    }
    let Some(hash) = record.fingerprint else {
        return true;
    };
    let mut chunk = vec![0; record.logical as usize];
    decompress(stored, kind, &mut chunk).is_ok() && fingerprint(&chunk) == hash
}

impl Engine {
    /// Compares one piece in every copy that was read of a range beginning at
    /// `start`; mends it where one is wrong. False when no copy verifies.
    pub(super) fn scrub_wanted(
        &self,
        wanted: &Wanted<'_>,
        copies: &[CopyReading],
        start: u32,
        tally: &mut Tally,
    ) -> bool {
        let from = wanted.position - start;
        let within = from..from + wanted.length;
        let mut suspects = BTreeSet::new();
        tally.checked += 1;
        for copy in copies {
            let parts = copy
                .parts
                .iter()
                .filter(|part| overlap(&part.range, &within));
            let mut members = Vec::new();
            let (mut absent, mut unreadable) = (false, Vec::new());
            for part in parts {
                match &part.outcome {
                    Ok(()) => members.push(part.member),
                    Err(error) if error.kind() == Kind::NotInUse => absent = true,
                    Err(_) => unreadable.push(part.member),
                }
            }
            for member in members.iter().chain(&unreadable) {
                tally.checked(*member);
            }
            if !unreadable.is_empty() {
                suspects.extend(unreadable);
            } else if !absent
                && !(wanted.is_right)(&copy.bytes[within.start as usize..within.end as usize])
            {
                suspects.extend(members);
            }
        }
        let alone = copies.iter().all(|copy| {
            let mut parts = copy
                .parts
                .iter()
                .filter(|part| overlap(&part.range, &within));
            parts.any(|part| part.outcome.is_err())
        });
        if suspects.is_empty() && !alone {
            return true;
        }
        self.mend(wanted, &suspects, tally)
    }

    /// Looks for a reading that verifies and puts it back.
    pub(super) fn mend(
        &self,
        wanted: &Wanted<'_>,
        suspects: &BTreeSet<MemberIndex>,
        tally: &mut Tally,
    ) -> bool {
        let first = wanted.position / BLOCK * BLOCK;
        let end = (wanted.position + wanted.length).next_multiple_of(BLOCK);
        let at = (wanted.position - first) as usize;
        let within = at..at + wanted.length as usize;
        let found =
            self.array
                .read_alternatives(wanted.placement, first, end - first, &mut |bytes| {
                    (wanted.is_right)(&bytes[within.clone()])
                });
        let Ok(Some(right)) = found else {
            tally.found(suspects.iter().copied());
            return false;
        };
        // Of a chunk over several members only the reading tells whose part
        // was wrong; one that cannot be read is wrong in any case.
        let wrong: BTreeSet<MemberIndex> = if right.differing.is_empty() {
            suspects.clone()
        } else {
            right.differing.iter().copied().collect()
        };
        if wrong.is_empty() {
            // Nobody in use holds it: it was reconstructed, and it is right.
            return true;
        }
        tally.found(wrong.iter().copied());
        let bytes = &right.bytes[within];
        match self
            .array
            .rewrite_verified(wanted.placement, wanted.position, bytes)
        {
            Ok(()) => tally.repaired(wrong),
            Err(error) => tracing::warn!(%error, "A scrub cannot mend what it found"),
        }
        true
    }
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}
