//! Every direct copy of a range by itself, for whoever can verify them.

use super::{
    Array,
    types::{CopyPart, CopyReading},
};
use crate::{
    Column, Kind, MemberSet, Placement, RaidError,
    device::{AlignedBuf, Io, IoOp},
};

impl Array {
    /// Reads every direct copy of a range: one at the parity levels, as many
    /// as there are members at RAID 1, two at RAID 10. Nothing is
    /// reconstructed.
    ///
    /// # Errors
    /// `InvalidArgument` for a range that cannot be. What a member fails to
    /// give is an error of that part.
    pub fn read_copies(
        &self,
        placement: &Placement,
        offset: u32,
        length: u32,
    ) -> Result<Vec<CopyReading>, RaidError> {
        let layout = self.layout_of(placement)?;
        let pieces: Vec<_> = self.pieces(layout, offset, length as usize)?.collect();
        let roster = self.roster();
        let in_use = roster.in_use();
        let mut readings: Vec<CopyReading> = Vec::new();
        let mut batch: Vec<Io> = Vec::new();
        // Where each read belongs: which reading, which part.
        let mut places: Vec<(usize, usize)> = Vec::new();
        for piece in &pieces {
            let columns = layout.locate(piece.stripe, piece.data_unit);
            for (n, column) in columns.iter().enumerate() {
                if readings.len() == n {
                    readings.push(CopyReading {
                        bytes: AlignedBuf::zeroed(length as usize),
                        parts: Vec::with_capacity(pieces.len()),
                    });
                }
                let member = layout.member(column);
                let start = piece.offset_in_range;
                let mut part = CopyPart {
                    range: start..start + piece.length,
                    member,
                    outcome: Ok(()),
                };
                if in_use.contains(member) {
                    let offset = |column: Column| {
                        self.unit_offset(layout, placement, column, piece.stripe)
                            + u64::from(piece.offset_in_unit)
                    };
                    let read = IoOp::Read(self.scratch(piece.length as usize));
                    batch.push(roster.io(member, offset(column), read));
                    places.push((n, readings[n].parts.len()));
                } else {
                    let names = roster.names(MemberSet::of(member));
                    let message = format!("{names} is not in use");
                    part.outcome = Err(RaidError::new(Kind::NotInUse, message));
                }
                readings[n].parts.push(part);
            }
        }
        self.run(&roster, &mut batch);
        let members = places
            .iter()
            .map(|(n, part)| readings[*n].parts[*part].member);
        self.note_failures_of_reads(&roster, batch.iter().map(|io| &io.outcome).zip(members));
        for (io, (n, part)) in batch.into_iter().zip(places) {
            let CopyReading { bytes, parts } = &mut readings[n];
            let part = &mut parts[part];
            match (io.outcome, io.op) {
                (Some(Ok(())), IoOp::Read(buffer)) => {
                    let range = part.range.start as usize..part.range.end as usize;
                    bytes[range].copy_from_slice(&buffer);
                }
                (Some(Err(error)), _) => {
                    let names = roster.names(MemberSet::of(part.member));
                    part.outcome = Err(RaidError::io(format!("{names} cannot read"), error));
                }
                _ => unreachable!("a read that ran stays a read and has an outcome"),
            }
        }
        Ok(readings)
    }
}
