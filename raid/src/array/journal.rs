//! The journal ring: the same on every member, copies as R16 says.

use std::sync::{Arc, atomic::Ordering};

use super::Array;
use crate::{
    Kind, MemberIndex, MemberSet, RaidError,
    device::{AlignedBuf, BLOCK_BYTES, BufSlice, IoOp},
    sabotage::broken,
    superblock::Geometry,
};

impl Array {
    /// Length of the journal ring.
    pub fn journal_bytes(&self) -> u64 {
        self.geometry.journal_bytes
    }

    /// Writes to the journal's copies (R16), durable on return.
    ///
    /// A copy that cannot be written fails its member; the call goes on once
    /// that is behind the barrier (R2), with another member if there is one.
    ///
    /// # Errors
    /// `Stopped` where more members have failed than the layout survives;
    /// `NoSpace` where a file system below a member has no space although
    /// the ring was preallocated.
    pub fn journal_write(&self, position: u64, data: &Arc<AlignedBuf>) -> Result<(), RaidError> {
        self.may_write()?;
        let offset = self.journal_offset(position, data.len())?;
        let roster = self.roster();
        let mut holders = MemberSet::EMPTY;
        loop {
            let used = roster.written();
            let wanted = self.current_layout().journal_members(roster.in_use());
            // A target gets a copy that does not count, so that it has the
            // whole journal when it becomes a member at a checkpoint (R16).
            let filled = roster.live_targets().map(|(target, _)| target);
            let filled = filled.filter(|_| !broken("R16.target_journal"));
            let targets: Vec<_> = wanted
                .into_iter()
                .chain(filled)
                .filter(|member| used.contains(*member) && !holders.contains(*member))
                .collect();
            if targets.is_empty() {
                return self.barrier(&roster, used);
            }
            let mut batch: Vec<_> = targets
                .iter()
                .map(|member| {
                    let data = vec![BufSlice::whole(Arc::clone(data))];
                    roster.io(
                        *member,
                        offset,
                        IoOp::Write {
                            data,
                            durable: !broken("sync.journal"),
                        },
                    )
                })
                .collect();
            self.run(&roster, &mut batch);
            let outcomes = batch
                .iter()
                .map(|io| &io.outcome)
                .zip(targets.iter().copied());
            let full = self.settle_writes(&roster, "a journal write failed", outcomes)?;
            if let Some(full) = full {
                return Err(full);
            }
            let written = batch
                .iter()
                .zip(&targets)
                .filter(|(io, _)| is_ok(&io.outcome));
            holders = holders.union(written.map(|(_, member)| *member).collect());
            if broken("R16.replace") {
                return self.barrier(&roster, used);
            }
        }
    }

    /// The in-sync members, whose rings recovery reads: copies move when
    /// members fail, so any of them may hold a batch.
    pub fn journal_members(&self) -> Vec<MemberIndex> {
        self.roster().in_use().iter().collect()
    }

    /// Reads a member's ring. A failure is counted and returned; the member
    /// stays, because its other blocks may still be needed.
    pub fn journal_read(
        &self,
        member: MemberIndex,
        position: u64,
        buffer: AlignedBuf,
    ) -> Result<AlignedBuf, RaidError> {
        let offset = self.journal_offset(position, buffer.len())?;
        let roster = self.roster();
        if !roster.in_use().contains(member) {
            return Err(RaidError::new(
                Kind::InvalidArgument,
                format!("Member {member} is not in use"),
            ));
        }
        let mut batch = [roster.io(member, offset, IoOp::Read(buffer))];
        self.run(&roster, &mut batch);
        let [io] = batch;
        match (io.outcome, io.op) {
            (Some(Ok(())), IoOp::Read(buffer)) => Ok(buffer),
            (Some(Err(error)), _) => {
                let row = &roster.rows[member.index()];
                row.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                let path = row.path.display();
                Err(RaidError::io(
                    format!("Cannot read the journal on {path}"),
                    error,
                ))
            }
            _ => unreachable!("a read that ran stays a read and has an outcome"),
        }
    }

    fn journal_offset(&self, position: u64, length: usize) -> Result<u64, RaidError> {
        let block = BLOCK_BYTES as u64;
        let length = length as u64;
        let end = position.checked_add(length);
        if length == 0
            || !position.is_multiple_of(block)
            || !length.is_multiple_of(block)
            || end.is_none_or(|end| end > self.journal_bytes())
        {
            return Err(RaidError::new(
                Kind::InvalidArgument,
                format!("{length} bytes at {position} do not fit the journal ring"),
            ));
        }
        Ok(Geometry::JOURNAL_OFFSET + position)
    }
}

fn is_ok(outcome: &Option<std::io::Result<()>>) -> bool {
    matches!(outcome, Some(Ok(())))
}
