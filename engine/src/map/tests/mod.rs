//! Map trees against naive models.

mod damage;
mod diff;
mod layers;
mod model;
mod records;
mod rewrite;
mod store;
mod trees;
