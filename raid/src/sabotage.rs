//! Breaking one rule on purpose, to see that the tests notice.
//!
//! Each rule R1 to R24, and each sync, is a named barrier at the place that
//! keeps it. A build with the feature `sabotage` leaves out the barrier that
//! the environment variable `TESSERA_SABOTAGE` names; `scripts/sabotage.sh`
//! goes through all of them and expects the tests to fail for each. Every
//! other build has `false` in their place, and the compiler removes it.
//!
//! A barrier is broken in the way a programmer would forget it: a wait that
//! does not happen, a sync that is skipped, a check that always says yes.

/// Whether the barrier of this name is left out.
#[cfg(feature = "sabotage")]
pub fn broken(barrier: &str) -> bool {
    use std::sync::OnceLock;
    static CHOSEN: OnceLock<String> = OnceLock::new();
    let chosen = CHOSEN.get_or_init(|| std::env::var("TESSERA_SABOTAGE").unwrap_or_default());
    chosen == barrier
}

/// Whether the barrier of this name is left out: never.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn broken(_barrier: &str) -> bool {
    false
}
