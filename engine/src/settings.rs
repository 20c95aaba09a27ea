//! What an administrator sets for a pool; kept in the root page.
//!
//! ```text
//!   0  rebuild rate u64            |   8  scrub rate u64
//!  16  read errors an hour u32, stall limit in ms u32
//!  24  scrub interval in s u64     |  32  next scrub is due, ms u64
//! ```
//! Little-endian, 40 bytes. Limits of 0 were never set: those with which the
//! array was opened are in force.

use crate::{
    api::{PoolSettings, SettingsChange},
    error::{EngineError, ErrorKind},
};

/// Bytes of encoded settings.
pub(crate) const SETTINGS_BYTES: usize = 40;

/// Four weeks: a block that rots is found before its mirror is likely to.
const SCRUB_INTERVAL_SECONDS: u64 = 28 * 86_400;
/// Below this a busy disk is taken for a dead one.
const STALL_LIMIT_MS_MIN: u32 = 1000;

/// The settings, and what goes with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kept: PoolSettings,
    /// When the next scrub is due by the schedule, in ms; 0: not known yet.
    pub(crate) scrub_due_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kept: PoolSettings {
                rebuild_bytes_per_second: 0,
                scrub_bytes_per_second: 0,
                read_errors_per_hour: 0,
                stall_limit_ms: 0,
                scrub_interval_seconds: SCRUB_INTERVAL_SECONDS,
            },
            scrub_due_ms: 0,
        }
    }
}

impl Settings {
    pub(crate) fn encode(&self) -> [u8; SETTINGS_BYTES] {
        let kept = &self.kept;
        let mut bytes = [0; SETTINGS_BYTES];
        bytes[..8].copy_from_slice(&kept.rebuild_bytes_per_second.to_le_bytes());
        bytes[8..16].copy_from_slice(&kept.scrub_bytes_per_second.to_le_bytes());
        bytes[16..20].copy_from_slice(&kept.read_errors_per_hour.to_le_bytes());
        bytes[20..24].copy_from_slice(&kept.stall_limit_ms.to_le_bytes());
        bytes[24..32].copy_from_slice(&kept.scrub_interval_seconds.to_le_bytes());
        bytes[32..].copy_from_slice(&self.scrub_due_ms.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; SETTINGS_BYTES]) -> Option<Self> {
        let u32_at = |at: usize| Some(u32::from_le_bytes(bytes[at..at + 4].try_into().ok()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        Some(Self {
            kept: PoolSettings {
                rebuild_bytes_per_second: u64_at(0)?,
                scrub_bytes_per_second: u64_at(8)?,
                read_errors_per_hour: u32_at(16)?,
                stall_limit_ms: u32_at(20)?,
                scrub_interval_seconds: u64_at(24)?,
            },
            scrub_due_ms: u64_at(32)?,
        })
    }

    /// The settings after a change.
    ///
    /// # Errors
    /// `InvalidArgument` for a limit that would fail healthy members.
    pub(crate) fn changed(&self, change: &SettingsChange) -> Result<Self, EngineError> {
        let mut settings = *self;
        let kept = &mut settings.kept;
        if let Some(rate) = change.rebuild_bytes_per_second {
            kept.rebuild_bytes_per_second = rate;
        }
        if let Some(rate) = change.scrub_bytes_per_second {
            kept.scrub_bytes_per_second = rate;
        }
        if let Some(errors) = change.read_errors_per_hour {
            if errors == 0 {
                let message = "A member may have at least 1 read error an hour";
                return Err(EngineError::new(ErrorKind::InvalidArgument, message));
            }
            kept.read_errors_per_hour = errors;
        }
        if let Some(limit) = change.stall_limit_ms {
            if limit < STALL_LIMIT_MS_MIN {
                let message = format!("A stall limit is at least {STALL_LIMIT_MS_MIN} ms");
                return Err(EngineError::new(ErrorKind::InvalidArgument, message));
            }
            kept.stall_limit_ms = limit;
        }
        if let Some(seconds) = change.scrub_interval_seconds {
            kept.scrub_interval_seconds = seconds;
            settings.scrub_due_ms = 0;
        }
        Ok(settings)
    }
}
