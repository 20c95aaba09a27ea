//! The pool: volumes, map trees, journal, checkpoints and recovery.

pub mod disk;
