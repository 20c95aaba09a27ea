//! What an administrator sets for a pool; kept in the root page.
//!
//! ```text
//!   0  rebuild rate u64            |   8  scrub rate u64
//!  16  read errors an hour u32, stall limit in ms u32
//!  24  scrub interval in s u64     |  32  next scrub is due, ms u64
//! ```
//! and, elsewhere in the page, of the index:
//! ```text
//!   0  index disk limit u64        |   8  index flags u64: 1 dropped
//! ```
//! and of the jobs that came later:
//! ```text
//!   0  reclaim rate u64            |   8  dedup rate u64
//!  16  dedup every, s, u64; 0: never, all ones: when idle
//! ```
//! Little-endian, 40, 16 and 24 bytes. Limits of 0 were never set: those with
//! which the array was opened are in force. The space below which is warned stands
//! by itself: 0 for the default, bytes, or percent with the highest bit set.

use crate::{
    api::{DedupSchedule, PoolSettings, SettingsChange},
    error::{EngineError, ErrorKind},
};

/// Bytes of encoded settings.
pub(crate) const SETTINGS_BYTES: usize = 40;

/// Bytes of encoded settings of reclaim and deduplication.
pub(crate) const JOB_SETTINGS_BYTES: usize = 24;
/// See [`DedupSchedule::Idle`].
const WHEN_IDLE: u64 = u64::MAX;
/// Bytes of encoded settings of the index.
pub(crate) const INDEX_SETTINGS_BYTES: usize = 16;
const INDEX_DROPPED: u64 = 1;
/// What the index's database needs in any case.
const INDEX_DISK_BYTES_MIN: u64 = 1 << 20;

/// Four weeks: a block that rots is found before its mirror is likely to.
const SCRUB_INTERVAL_SECONDS: u64 = 28 * 86_400;
/// Below this a busy disk is taken for a dead one.
const STALL_LIMIT_MS_MIN: u32 = 1000;

/// Percent of the capacity below which is warned, unless something is set.
const WARN_FREE_PERCENT: u32 = 10;
/// Marks a percentage.
const IS_PERCENT: u64 = 1 << 63;

/// The settings, and what goes with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) kept: PoolSettings,
    /// When the next scrub is due by the schedule, in ms; 0: not known yet.
    pub(crate) scrub_due_ms: u64,
    /// The fingerprint index was dropped and is not made anew by itself.
    pub(crate) index_dropped: bool,
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
                reclaim_bytes_per_second: 0,
                dedup_bytes_per_second: 0,
                dedup_every: DedupSchedule::Off,
                index_disk_bytes: 0,
                warn_free_percent: WARN_FREE_PERCENT,
                warn_free_bytes: 0,
            },
            scrub_due_ms: 0,
            index_dropped: false,
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
                ..Self::default().kept
            },
            scrub_due_ms: u64_at(32)?,
            index_dropped: false,
        })
    }

    pub(crate) fn encode_of_jobs(&self) -> [u8; JOB_SETTINGS_BYTES] {
        let every = match self.kept.dedup_every {
            DedupSchedule::Off => 0,
            DedupSchedule::Idle => WHEN_IDLE,
            DedupSchedule::Seconds(seconds) => u64::from(seconds),
        };
        let mut bytes = [0; JOB_SETTINGS_BYTES];
        bytes[..8].copy_from_slice(&self.kept.reclaim_bytes_per_second.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.kept.dedup_bytes_per_second.to_le_bytes());
        bytes[16..].copy_from_slice(&every.to_le_bytes());
        bytes
    }

    /// With what [`Self::encode_of_jobs`] made.
    pub(crate) fn with_those_of_jobs(mut self, bytes: &[u8; JOB_SETTINGS_BYTES]) -> Option<Self> {
        let u64_at = |at: usize| Some(u64::from_le_bytes(bytes[at..at + 8].try_into().ok()?));
        self.kept.reclaim_bytes_per_second = u64_at(0)?;
        self.kept.dedup_bytes_per_second = u64_at(8)?;
        self.kept.dedup_every = match u64_at(16)? {
            0 => DedupSchedule::Off,
            WHEN_IDLE => DedupSchedule::Idle,
            seconds => DedupSchedule::Seconds(u32::try_from(seconds).ok()?),
        };
        Some(self)
    }

    /// What is kept of the index, which the other bytes do not have.
    pub(crate) fn encode_index(&self) -> [u8; INDEX_SETTINGS_BYTES] {
        let flags = if self.index_dropped { INDEX_DROPPED } else { 0 };
        let mut bytes = [0; INDEX_SETTINGS_BYTES];
        bytes[..8].copy_from_slice(&self.kept.index_disk_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    /// With what [`Self::encode_index`] has made; `None` for flags it does not
    /// know.
    pub(crate) fn with_index(mut self, bytes: &[u8; INDEX_SETTINGS_BYTES]) -> Option<Self> {
        let (limit, flags) = bytes.split_at(8);
        self.kept.index_disk_bytes = u64::from_le_bytes(limit.try_into().ok()?);
        let flags = u64::from_le_bytes(flags.try_into().ok()?);
        self.index_dropped = flags & INDEX_DROPPED != 0;
        (flags & !INDEX_DROPPED == 0).then_some(self)
    }

    /// The space below which is warned, as stored beside the rest.
    pub(crate) fn encode_warn_free(&self) -> u64 {
        match (self.kept.warn_free_bytes, self.kept.warn_free_percent) {
            (0, WARN_FREE_PERCENT) => 0,
            (0, percent) => IS_PERCENT | u64::from(percent),
            (bytes, _) => bytes,
        }
    }

    /// With what [`Self::encode_warn_free`] made; `None` for anything else.
    pub(crate) fn with_warn_free(mut self, stored: u64) -> Option<Self> {
        let (percent, bytes) = match stored {
            0 => (WARN_FREE_PERCENT, 0),
            bytes if bytes & IS_PERCENT == 0 => (0, bytes),
            percent => (u32::try_from(percent & !IS_PERCENT).ok()?, 0),
        };
        self.kept.warn_free_percent = percent;
        self.kept.warn_free_bytes = bytes;
        (percent <= 100 && self.encode_warn_free() == stored).then_some(self)
    }

    /// Bytes of free space below which is warned.
    pub(crate) fn warn_free(&self, capacity: u64) -> u64 {
        match self.kept.warn_free_bytes {
            0 => capacity / 100 * u64::from(self.kept.warn_free_percent),
            bytes => bytes,
        }
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
        if let Some(rate) = change.reclaim_bytes_per_second {
            kept.reclaim_bytes_per_second = rate;
        }
        if let Some(rate) = change.dedup_bytes_per_second {
            kept.dedup_bytes_per_second = rate;
        }
        if let Some(every) = change.dedup_every {
            kept.dedup_every = match every {
                DedupSchedule::Seconds(0) => DedupSchedule::Off,
                other => other,
            };
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
        if let Some(bytes) = change.index_disk_bytes {
            if (1..INDEX_DISK_BYTES_MIN).contains(&bytes) {
                let message = format!("The index needs at least {INDEX_DISK_BYTES_MIN} bytes");
                return Err(EngineError::new(ErrorKind::InvalidArgument, message));
            }
            kept.index_disk_bytes = bytes;
        }
        match (change.warn_free_percent, change.warn_free_bytes) {
            (None, None) => {}
            (Some(percent @ 0..=100), None) => {
                (kept.warn_free_percent, kept.warn_free_bytes) = (percent, 0);
            }
            (None, Some(bytes @ ..IS_PERCENT)) => {
                (kept.warn_free_percent, kept.warn_free_bytes) = (0, bytes);
            }
            (Some(_), Some(_)) => {
                let message = "A warning is given below a percentage or a size, not both";
                return Err(EngineError::new(ErrorKind::InvalidArgument, message));
            }
            _ => {
                let message = "A warning is given below 0 to 100 percent, or less than 8 EiB";
                return Err(EngineError::new(ErrorKind::InvalidArgument, message));
            }
        }
        Ok(settings)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn change() -> SettingsChange {
        SettingsChange::default()
    }

    #[test]
    fn the_stored_form_of_settings_does_not_change() {
        let settings = Settings {
            kept: PoolSettings {
                rebuild_bytes_per_second: 0x0102,
                scrub_bytes_per_second: 0x0304,
                read_errors_per_hour: 0x05,
                stall_limit_ms: 0x0607,
                scrub_interval_seconds: 0x0809,
                ..Settings::default().kept
            },
            scrub_due_ms: 0x0a0b,
            index_dropped: false,
        };
        let mut expected = [0; SETTINGS_BYTES];
        for (at, byte) in [
            (0, 2),
            (1, 1),
            (8, 4),
            (9, 3),
            (16, 5),
            (20, 7),
            (21, 6),
            (24, 9),
            (25, 8),
            (32, 0x0b),
            (33, 0x0a),
        ] {
            expected[at] = byte;
        }
        assert_eq!(settings.encode(), expected);
        assert_eq!(Settings::decode(&expected), Some(settings));
    }

    #[test]
    fn the_stored_form_of_settings_of_jobs_does_not_change() {
        let of = |dedup_every| Settings {
            kept: PoolSettings {
                reclaim_bytes_per_second: 0x0102,
                dedup_bytes_per_second: 0x0304,
                dedup_every,
                ..Settings::default().kept
            },
            ..Settings::default()
        };
        for (every, stored) in [
            (DedupSchedule::Off, 0u64),
            (DedupSchedule::Seconds(0x0506), 0x0506),
            (DedupSchedule::Idle, u64::MAX),
        ] {
            let bytes = of(every).encode_of_jobs();
            let mut expected = [0; JOB_SETTINGS_BYTES];
            expected[..2].copy_from_slice(&[2, 1]);
            expected[8..10].copy_from_slice(&[4, 3]);
            expected[16..].copy_from_slice(&stored.to_le_bytes());
            assert_eq!(bytes, expected);
            let decoded = Settings::default().with_those_of_jobs(&bytes);
            assert_eq!(decoded, Some(of(every)));
        }
        // Too long a time.
        let mut bytes = [0; JOB_SETTINGS_BYTES];
        bytes[22] = 1;
        assert_eq!(Settings::default().with_those_of_jobs(&bytes), None);
    }

    #[test]
    fn limits_that_would_fail_healthy_members_are_refused() {
        let refused = [
            SettingsChange {
                read_errors_per_hour: Some(0),
                ..change()
            },
            SettingsChange {
                stall_limit_ms: Some(STALL_LIMIT_MS_MIN - 1),
                ..change()
            },
            SettingsChange {
                index_disk_bytes: Some(1),
                ..change()
            },
        ];
        for change in refused {
            let error = Settings::default().changed(&change).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{change:?}");
        }
        let least = SettingsChange {
            read_errors_per_hour: Some(1),
            stall_limit_ms: Some(STALL_LIMIT_MS_MIN),
            ..change()
        };
        assert!(Settings::default().changed(&least).is_ok());
    }

    #[test]
    fn what_is_not_named_stays_and_a_new_interval_begins_anew() {
        let before = Settings {
            scrub_due_ms: 77,
            ..Settings::default()
        };
        assert_eq!(before.changed(&change()).unwrap(), before);
        let rate = SettingsChange {
            scrub_bytes_per_second: Some(5),
            ..change()
        };
        let after = before.changed(&rate).unwrap();
        assert_eq!(after.scrub_due_ms, 77);
        assert_eq!(after.kept.scrub_bytes_per_second, 5);
        assert_eq!(after.kept.rebuild_bytes_per_second, 0);
        let interval = SettingsChange {
            scrub_interval_seconds: Some(60),
            ..change()
        };
        assert_eq!(before.changed(&interval).unwrap().scrub_due_ms, 0);
    }

    #[test]
    fn the_stored_form_of_the_settings_of_the_index_does_not_change() {
        let mut settings = Settings::default();
        assert_eq!(settings.encode_index(), [0; INDEX_SETTINGS_BYTES]);
        settings.kept.index_disk_bytes = 0x0102;
        settings.index_dropped = true;
        let mut expected = [0; INDEX_SETTINGS_BYTES];
        expected[..2].copy_from_slice(&[2, 1]);
        expected[8] = 1;
        assert_eq!(settings.encode_index(), expected);
        assert_eq!(Settings::default().with_index(&expected), Some(settings));
        expected[9] = 1;
        assert_eq!(Settings::default().with_index(&expected), None);
    }

    #[test]
    fn a_warning_is_below_a_percentage_or_a_size_and_kept_as_either() {
        let default = Settings::default();
        assert_eq!(default.warn_free(1000), 100);
        assert_eq!(default.encode_warn_free(), 0);
        let percent = |percent| SettingsChange {
            warn_free_percent: Some(percent),
            ..change()
        };
        let bytes = |bytes| SettingsChange {
            warn_free_bytes: Some(bytes),
            ..change()
        };
        for (change, below, stored) in [
            (percent(10), 100, 0),
            (percent(0), 0, IS_PERCENT),
            (percent(100), 1000, IS_PERCENT | 100),
            (bytes(7), 7, 7),
            (bytes(0), 0, IS_PERCENT),
        ] {
            let changed = default
                .changed(&bytes(99))
                .unwrap()
                .changed(&change)
                .unwrap();
            assert_eq!(changed.warn_free(1000), below, "{change:?}");
            assert_eq!(changed.encode_warn_free(), stored, "{change:?}");
            assert_eq!(default.with_warn_free(stored), Some(changed));
        }
        for change in [
            percent(101),
            bytes(IS_PERCENT),
            SettingsChange {
                warn_free_bytes: Some(1),
                ..percent(1)
            },
        ] {
            let error = default.changed(&change).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{change:?}");
        }
        for stored in [IS_PERCENT | 101, IS_PERCENT | 10, u64::MAX] {
            assert_eq!(default.with_warn_free(stored), None, "{stored:x}");
        }
    }

    proptest! {
        #[test]
        fn settings_round_trip(bytes: [u8; SETTINGS_BYTES]) {
            let settings = Settings::decode(&bytes).unwrap();
            prop_assert_eq!(settings.encode(), bytes);
        }
    }
}
