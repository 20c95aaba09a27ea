//! Entry points for fuzzing: any bytes give an answer or an error, and what is
//! accepted is encoded to the same meaning again. Not part of the crate's
//! interface.

use crate::{
    Placement,
    superblock::{SUPERBLOCK_BYTES, decode, encode},
};

const LENGTH: usize = SUPERBLOCK_BYTES as usize; // 8192

/// Bytes as a superblock, also with a right checksum, and as a placement.
pub fn superblock(bytes: &[u8]) {
    let mut block = bytes.to_vec();
    block.resize(LENGTH, 0);
    one(&block);
    let crc = crc32c::crc32c(&block[..LENGTH - 4]);
    block[LENGTH - 4..].copy_from_slice(&crc.to_le_bytes());
    one(&block);
    if let Ok((placement, taken)) = Placement::decode(bytes) {
        let mut again = Vec::new();
        placement.encode(&mut again);
        assert_eq!(again, bytes[..taken], "a placement is encoded in one way");
    }
}

fn one(block: &[u8]) {
    for writable in [false, true] {
        let Ok(superblock) = decode(block, writable) else {
            continue;
        };
        let mut again = vec![0; LENGTH];
        encode(&superblock.record, superblock.member, &mut again);
        let decoded = decode(&again, writable).ok();
        assert_eq!(
            decoded.as_ref(),
            Some(&superblock),
            "what is accepted can be written"
        );
    }
}
