//! `tessera pool set`: what can be changed while the pool is in use.

use std::path::PathBuf;

use clap::Args;
use tessera_engine::api::{DedupSchedule, PoolSettings, SettingsChange};

use crate::{
    access::{self, Intent},
    args::Globals,
    output, size,
};

/// Show a pool's settings, or change some
///
/// They are kept in the pool and hold at once, also while it is served.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera pool set tank\n  \
    tessera pool set tank --rebuild-rate 200M --scrub-rate 50M\n  \
    tessera pool set tank --stall-limit 10 --scrub-interval 2592000\n  \
    tessera pool set tank --dedup-every idle --dedup-rate 100M\n  \
    tessera pool set tank --index-disk 4G\n  \
    tessera pool set tank --warn-free 15%")]
pub(crate) struct Set {
    /// The pool's directory
    dir: PathBuf,
    /// Most bytes a second that a rebuild copies; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    rebuild_rate: Option<u64>,
    /// Most bytes a second that a scrub reads; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    scrub_rate: Option<u64>,
    /// Most bytes a second that a reclaim moves; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    gc_rate: Option<u64>,
    /// Most bytes a second that a deduplication reads; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    dedup_rate: Option<u64>,
    /// When a deduplication starts by itself: 'off', 'idle', or a time after the
    /// last one as in 90s, 30m, 6h or 1d
    #[arg(long, value_name = "WHEN", value_parser = parse_schedule)]
    dedup_every: Option<DedupSchedule>,
    /// Failed reads within an hour that a member may have before it is failed
    #[arg(long, value_name = "COUNT")]
    read_errors: Option<u32>,
    /// Seconds that a member may stall before it is failed
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=86_400))]
    stall_limit: Option<u32>,
    /// Seconds from one scrub to the next; 0 means never
    #[arg(long, value_name = "SECONDS")]
    scrub_interval: Option<u64>,
    /// Most bytes of the fingerprint index on disk; 0 means no limit
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    index_disk: Option<u64>,
    /// Free space below which is warned: a percentage of the capacity, or a
    /// size; 0 means never
    #[arg(long, value_name = "PERCENT%|SIZE", value_parser = warn_free)]
    warn_free: Option<WarnFree>,
    /// Show the settings as JSON
    #[arg(long)]
    json: bool,
}

impl Set {
    pub(crate) fn run(self, globals: &Globals) -> anyhow::Result<()> {
        let change = SettingsChange {
            rebuild_bytes_per_second: self.rebuild_rate,
            scrub_bytes_per_second: self.scrub_rate,
            read_errors_per_hour: self.read_errors,
            // At most a day in milliseconds.
            stall_limit_ms: self.stall_limit.map(|seconds| seconds * 1000),
            scrub_interval_seconds: self.scrub_interval,
            reclaim_bytes_per_second: self.gc_rate,
            dedup_bytes_per_second: self.dedup_rate,
            dedup_every: self.dedup_every,
            index_disk_bytes: self.index_disk,
            warn_free_percent: self.warn_free.and_then(WarnFree::percent),
            warn_free_bytes: self.warn_free.and_then(WarnFree::bytes),
        };
        let changes = change != SettingsChange::default();
        let intent = if changes {
            Intent::Change
        } else {
            Intent::Look
        };
        let settings = access::with_pool(&self.dir, intent, globals.io(), |pool| {
            Ok(if changes {
                pool.change_settings(&change)?
            } else {
                pool.settings()?
            })
        })?;
        if self.json {
            output::print_json(&settings)
        } else {
            output::print(&render(&settings))
        }
    }
}

/// `off`, `idle`, or a number of seconds, minutes, hours or days.
fn parse_schedule(text: &str) -> Result<DedupSchedule, String> {
    match text {
        "off" => return Ok(DedupSchedule::Off),
        "idle" => return Ok(DedupSchedule::Idle),
        _ => {}
    }
    let malformed = || "it is 'off', 'idle', or a time as in 90s, 30m, 6h or 1d".to_owned();
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(malformed()),
    };
    let number: u32 = number.parse().map_err(|_| malformed())?;
    let total = number.checked_mul(seconds);
    total
        .map(DedupSchedule::Seconds)
        .ok_or_else(|| "the time is longer than a century".to_owned())
}

/// A mark for free space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WarnFree {
    Percent(u32),
    Bytes(u64),
}

impl WarnFree {
    fn percent(self) -> Option<u32> {
        match self {
            Self::Percent(percent) => Some(percent),
            Self::Bytes(_) => None,
        }
    }

    fn bytes(self) -> Option<u64> {
        match self {
            Self::Percent(_) => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

fn warn_free(text: &str) -> Result<WarnFree, String> {
    match text.strip_suffix('%') {
        Some(number) => match number.parse() {
            Ok(percent @ 0..=100) => Ok(WarnFree::Percent(percent)),
            _ => Err("a percentage is a whole number from 0% to 100%".to_owned()),
        },
        None => size::parse(text).map(WarnFree::Bytes),
    }
}

fn render(settings: &PoolSettings) -> String {
    let rate = |bytes| match bytes {
        0 => "no limit".to_owned(),
        bytes => format!("{}/s", size::format(bytes)),
    };
    let interval = match settings.scrub_interval_seconds {
        0 => "never by itself".to_owned(),
        seconds => format!("every {seconds} s"),
    };
    let index = match settings.index_disk_bytes {
        0 => "no limit on disk".to_owned(),
        bytes => format!("at most {} on disk", size::format(bytes)),
    };
    let dedup = match settings.dedup_every {
        DedupSchedule::Off => "never by itself".to_owned(),
        DedupSchedule::Idle => "when nothing is written".to_owned(),
        DedupSchedule::Seconds(seconds) => format!("every {seconds} s"),
    };
    let warn_free = match (settings.warn_free_bytes, settings.warn_free_percent) {
        (0, 0) => "never".to_owned(),
        (0, percent) => format!("below {percent}% of the capacity"),
        (bytes, _) => format!("below {}", size::format(bytes)),
    };
    format!(
        "Rebuild rate:  {}\nScrub rate:    {}\nReclaim rate:  {}\nDedup rate:    {}\nRead errors:   {} an hour fail a member\n\
         Stall limit:   {} s\nScrub:         {interval}\nDedup:         {dedup}\nIndex:         {index}\nWarn of space: {warn_free}\n",
        rate(settings.rebuild_bytes_per_second),
        rate(settings.scrub_bytes_per_second),
        rate(settings.reclaim_bytes_per_second),
        rate(settings.dedup_bytes_per_second),
        settings.read_errors_per_hour,
        f64::from(settings.stall_limit_ms) / 1000.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_for_free_space_is_a_percentage_or_a_size() {
        assert_eq!(warn_free("15%"), Ok(WarnFree::Percent(15)));
        assert_eq!(warn_free("2G"), Ok(WarnFree::Bytes(2 << 30)));
        for text in ["101%", "%", "-1%", "x", "1.5%"] {
            assert!(warn_free(text).is_err(), "{text}");
        }
    }

    #[test]
    fn zero_is_shown_as_what_it_means() {
        let text = render(&PoolSettings {
            rebuild_bytes_per_second: 0,
            scrub_bytes_per_second: 50 << 20,
            read_errors_per_hour: 32,
            stall_limit_ms: 1500,
            scrub_interval_seconds: 0,
            reclaim_bytes_per_second: 7 << 20,
            dedup_bytes_per_second: 0,
            dedup_every: DedupSchedule::Idle,
            index_disk_bytes: 3 << 30,
            warn_free_percent: 0,
            warn_free_bytes: 1 << 30,
        });
        for part in [
            "no limit",
            "50M/s",
            "32 an hour",
            "1.5 s",
            "never by itself",
            "7M/s",
            "when nothing is written",
            "at most 3G on disk",
            "below 1G",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_schedule_is_a_word_or_a_time() {
        for (text, schedule) in [
            ("off", DedupSchedule::Off),
            ("idle", DedupSchedule::Idle),
            ("90", DedupSchedule::Seconds(90)),
            ("30m", DedupSchedule::Seconds(1800)),
            ("2d", DedupSchedule::Seconds(172_800)),
        ] {
            assert_eq!(parse_schedule(text), Ok(schedule), "{text}");
        }
        for text in ["", "m", "1w", "never", "-1", "99999999d"] {
            assert!(parse_schedule(text).is_err(), "{text}");
        }
    }
}
