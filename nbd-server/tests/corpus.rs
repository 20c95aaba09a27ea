//! Every seed of the fuzz targets through the same entry points, on stable.

#[path = "../../fuzz/seeds.rs"]
mod seeds;

use seeds::each;
use tessera_nbd::fuzzing;

#[test]
fn negotiation_seeds_do_no_harm() {
    each("nbd_negotiation", fuzzing::negotiation);
}

#[test]
fn transmission_seeds_do_no_harm() {
    each("nbd_transmission", fuzzing::transmission);
}
