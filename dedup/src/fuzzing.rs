//! Entry points for fuzzing: any bytes give an answer or an error, and what is
//! accepted is encoded the same way again. Not part of the crate's interface.

use crate::{
    ENTRY_BYTES, Entry,
    summary::{self, SUMMARY_BLOCK_BYTES, Summary},
};

/// Bytes as entries and as summary blocks, each also with a right checksum.
pub fn summary(bytes: &[u8]) {
    let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
    for bytes in entries {
        if let Some(entry) = Entry::decode(bytes) {
            assert_eq!(entry.encode(), *bytes, "an entry is encoded in one way");
        }
    }
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().next_multiple_of(SUMMARY_BLOCK_BYTES), 0);
    blocks(&padded);
    for block in padded.chunks_exact_mut(SUMMARY_BLOCK_BYTES) {
        let (body, crc) = block.split_at_mut(SUMMARY_BLOCK_BYTES - 4);
        crc.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    }
    blocks(&padded);
}

fn blocks(bytes: &[u8]) {
    let mut first = None;
    for (number, block) in (0..).zip(bytes.chunks_exact(SUMMARY_BLOCK_BYTES)) {
        if let Ok(decoded) = summary::decode_block(block, number) {
            first.get_or_insert(decoded.id);
        }
    }
    let Some(id) = first else { return };
    if let Ok(Summary {
        pool,
        segment,
        generation,
        records,
    }) = summary::decode_blocks(bytes, &id)
    {
        let whole = Summary {
            pool,
            segment,
            generation,
            records,
        };
        assert_eq!(
            summary::encode_blocks(&whole),
            bytes,
            "a summary is encoded in one way"
        );
    }
}
