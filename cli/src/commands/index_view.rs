//! How the fingerprint index is shown, and waited for.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use tessera_engine::api::IndexInfo;

use crate::{access::Management, failure::Failure, size};

/// Positions of a progress bar.
const BAR_STEPS: u64 = 1000;
/// How often a rebuild is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// For people.
pub(crate) fn render(index: &IndexInfo) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        text.push_str(&format!("{:<14}{value}\n", format!("{name}:")));
    };
    line("State", state(index));
    if matches!(index.state.as_str(), "dropped" | "closed") {
        return text;
    }
    line("Fingerprints", format!("about {}", index.entries));
    line("Looked up", sampled(index.sampled_one_in));
    line("Kept", sampled(index.kept_one_in));
    line(
        "Memory",
        format!(
            "{} of {}; at this rate {} for each TiB of unique 4K chunks",
            size::format(index.memory_bytes),
            size::format(index.memory_limit_bytes),
            size::format(index.memory_bytes_per_tib)
        ),
    );
    let limit = match index.disk_limit_bytes {
        0 => String::new(),
        bytes => format!(" of {}", size::format(bytes)),
    };
    line(
        "Disk",
        format!(
            "{}{limit}; at this rate {} for each TiB of unique 4K chunks",
            size::format(index.disk_bytes),
            size::format(index.disk_bytes_per_tib)
        ),
    );
    text
}

/// In one line, for the status of the pool.
pub(crate) fn line(index: &IndexInfo) -> String {
    match index.state.as_str() {
        "dropped" | "closed" => state(index),
        _ => {
            let sample = match index.sampled_one_in {
                1 => String::new(),
                one_in => format!(", 1 in {one_in} looked up"),
            };
            format!(
                "{}, about {} fingerprints, {} of memory, {} on disk{sample}",
                state(index),
                index.entries,
                size::format(index.memory_bytes),
                size::format(index.disk_bytes)
            )
        }
    }
}

fn state(index: &IndexInfo) -> String {
    match index.state.as_str() {
        "dropped" => "dropped: nothing is deduplicated".to_owned(),
        "closed" => "closed: serve the pool to see more".to_owned(),
        "rebuilding" => format!(
            "rebuilding, {} of {} segments",
            index.segments_done, index.segments_total
        ),
        other => other.to_owned(),
    }
}

fn sampled(one_in: u64) -> String {
    match one_in {
        1 => "all".to_owned(),
        one_in => format!("1 in {one_in}"),
    }
}

/// Waits until the index is ready, or dropped, drawing a bar on a terminal.
pub(crate) fn follow(pool: &dyn Management) -> Result<IndexInfo, Failure> {
    // Draws to stderr, and hides itself where that is no terminal.
    let bar = ProgressBar::new(BAR_STEPS);
    let style = ProgressStyle::with_template("{wide_bar} {percent:>3} % {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    loop {
        let index = pool.index()?;
        // The fraction is between 0 and 1.
        bar.set_position((index.progress.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
        bar.set_message(state(&index));
        if index.state != "rebuilding" {
            bar.finish_and_clear();
            return Ok(index);
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(state: &str) -> IndexInfo {
        IndexInfo {
            state: state.to_owned(),
            segments_done: 3,
            segments_total: 9,
            entries: 1000,
            sampled_one_in: 4,
            kept_one_in: 1,
            memory_bytes: 1 << 20,
            memory_limit_bytes: 64 << 20,
            disk_bytes: 2 << 20,
            disk_limit_bytes: 8 << 20,
            ..IndexInfo::default()
        }
    }

    #[test]
    fn what_is_left_out_and_how_far_a_rebuild_is_are_shown() {
        let text = render(&index("rebuilding"));
        for part in ["3 of 9 segments", "1 in 4", "all", "1M of 64M", "2M of 8M"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(line(&index("ready")).contains("1 in 4 looked up"));
        let mut whole = index("ready");
        whole.sampled_one_in = 1;
        assert!(!line(&whole).contains("looked up"));
        assert!(!render(&index("dropped")).contains("Memory"));
    }
}
