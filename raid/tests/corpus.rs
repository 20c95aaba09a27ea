//! Every seed of the fuzz targets through the same entry points, on stable.

#[path = "../../fuzz/seeds.rs"]
mod seeds;

use seeds::each;
use tessera_raid::fuzzing;

#[test]
fn superblock_seeds_do_no_harm() {
    each("superblock", fuzzing::superblock);
}
