//! Every seed of the fuzz targets through the same entry points, on stable.

#[path = "../../fuzz/seeds.rs"]
mod seeds;

use seeds::each;
use tessera_engine::fuzzing;

#[test]
fn journal_seeds_do_no_harm() {
    each("journal", fuzzing::journal);
}

#[test]
fn map_seeds_do_no_harm() {
    each("map", fuzzing::map);
}

#[test]
fn root_seeds_do_no_harm() {
    each("root", fuzzing::root);
}
