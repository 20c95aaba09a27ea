//! Reads summary blocks from the members and mends the damaged ones.

use tessera_raid::{SegmentRead, device::AlignedBuf};

use crate::{
    SummaryPlace,
    blocks::Blocks,
    summary::{SUMMARY_BLOCK_BYTES, SummaryBlock, SummaryId, decode_expected},
};

/// Consecutive blocks of one summary.
#[derive(Debug, Clone)]
pub(crate) struct SummaryRequest {
    /// Whose summary.
    pub(crate) id: SummaryId,
    /// Where all of it is.
    pub(crate) place: SummaryPlace,
    /// First block wanted.
    pub(crate) first: u32,
    /// Blocks wanted; cut to what there is.
    pub(crate) count: u32,
}

const BLOCK: u32 = SUMMARY_BLOCK_BYTES as u32; // 4096

/// Reads and verifies; one submission to the array for all. A block that
/// cannot be had is `None`.
pub(crate) fn load(
    array: &dyn Blocks,
    requests: &[SummaryRequest],
) -> Vec<Vec<Option<SummaryBlock>>> {
    let mut reads: Vec<SegmentRead> = requests
        .iter()
        .map(|request| {
            let count = request
                .place
                .blocks
                .saturating_sub(request.first)
                .min(request.count);
            SegmentRead {
                placement: request.place.placement.clone(),
                offset: request.place.offset + request.first.min(request.place.blocks) * BLOCK,
                buffer: AlignedBuf::zeroed(count as usize * SUMMARY_BLOCK_BYTES),
                outcome: Ok(()),
            }
        })
        .collect();
    array.read(&mut reads);
    requests
        .iter()
        .zip(&reads)
        .map(|(request, read)| decode(array, request, read))
        .collect()
}

fn decode(
    array: &dyn Blocks,
    request: &SummaryRequest,
    read: &SegmentRead,
) -> Vec<Option<SummaryBlock>> {
    let blocks = read.buffer.chunks_exact(SUMMARY_BLOCK_BYTES);
    (request.first..)
        .zip(blocks)
        .map(|(number, block)| match &read.outcome {
            Ok(()) => decode_expected(block, &request.id, number)
                .ok()
                .or_else(|| arbitrate(array, request, number)),
            Err(_) => arbitrate(array, request, number),
        })
        .collect()
}

/// Tries every reading of one block that the redundancy allows, and puts the
/// one that verifies back (R7: it is verified as a whole).
fn arbitrate(array: &dyn Blocks, request: &SummaryRequest, number: u32) -> Option<SummaryBlock> {
    let place = &request.place;
    let offset = place.offset + number * BLOCK;
    let mut accepted = None;
    let outcome = array.alternatives(&place.placement, offset, BLOCK, &mut |bytes| {
        accepted = decode_expected(bytes, &request.id, number).ok();
        accepted.is_some()
    });
    match outcome {
        Ok(Some(bytes)) => {
            if let Err(error) = array.rewrite_verified(&place.placement, offset, &bytes) {
                tracing::warn!(segment = place.segment.0, %error, "cannot mend a summary block");
            }
            accepted
        }
        Ok(None) => {
            tracing::warn!(
                segment = place.segment.0,
                block = number,
                "summary block is damaged"
            );
            None
        }
        Err(error) => {
            tracing::warn!(segment = place.segment.0, %error, "cannot read a summary block");
            None
        }
    }
}
