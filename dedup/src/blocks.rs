//! The part of the array that reading needs, as a seam for tests.

use tessera_raid::{Array, Placement, RaidError, SegmentRead, device::AlignedBuf};

/// Reads segments and puts verified bytes back. See [`Array`] for the meaning
/// of each method.
pub(crate) trait Blocks: Send + Sync {
    fn read(&self, reads: &mut [SegmentRead]);

    /// Bytes that lie together on one member; a read within them is one
    /// operation.
    fn unit_bytes(&self) -> u32;

    /// The bytes accepted, if any reading was.
    fn alternatives(
        &self,
        placement: &Placement,
        offset: u32,
        length: u32,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<AlignedBuf>, RaidError>;

    fn rewrite_verified(
        &self,
        placement: &Placement,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), RaidError>;
}

impl Blocks for Array {
    fn read(&self, reads: &mut [SegmentRead]) {
        Array::read(self, reads);
    }

    fn unit_bytes(&self) -> u32 {
        self.current_layout().stripe_unit_bytes
    }

    fn alternatives(
        &self,
        placement: &Placement,
        offset: u32,
        length: u32,
        accept: &mut dyn FnMut(&[u8]) -> bool,
    ) -> Result<Option<AlignedBuf>, RaidError> {
        let found = self.read_alternatives(placement, offset, length, accept)?;
        Ok(found.map(|found| found.bytes))
    }

    fn rewrite_verified(
        &self,
        placement: &Placement,
        offset: u32,
        bytes: &[u8],
    ) -> Result<(), RaidError> {
        Array::rewrite_verified(self, placement, offset, bytes)
    }
}
