//! `tessera estimate`: what a pool would make of data that is elsewhere.

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tessera_engine::estimate::{Estimate as Estimated, best_chunk_size};

use crate::{
    estimate::{self, Image},
    output::{self, Align, Table},
    size,
};

/// Predict what a pool would make of existing data
///
/// Reads files, block devices, directories of files and NBD exports once, and
/// changes nothing. Chunks are told apart, and compressed, as a volume with
/// deduplication and LZ4 would do it; all that is named is taken together. With
/// more distinct chunks than fit the memory, the figures are estimated from a
/// sample of them, and ERROR says how far off they may be (997 of 1000 times).
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera estimate disk.img\n  \
    tessera estimate /srv/images --chunk-size 4K,16K,64K\n  \
    tessera estimate /dev/vg0/vm1 'nbd+unix:///vm2?socket=other/nbd.sock' --json\n\n\
    TOTAL is what is saved after maps and summaries; parity is not counted. Of the\n\
    index's memory a pool's --memory gives a quarter.")]
pub(crate) struct Estimate {
    /// Files, directories, block devices or NBD addresses
    #[arg(value_name = "PATH|NBD-URI", required = true)]
    sources: Vec<String>,
    /// The chunk sizes to try
    #[arg(
        long,
        value_name = "SIZE,...",
        value_delimiter = ',',
        default_value = "4K,8K,16K",
        value_parser = size::parse_u32
    )]
    chunk_size: Vec<u32>,
    /// Memory for fingerprints
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = size::parse)]
    memory: u64,
    /// Show the figures as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Debug, Serialize)]
struct Answer {
    /// How many files, devices and exports were read.
    images: usize,
    /// Their bytes, holes included.
    total_bytes: u64,
    best_chunk_bytes: Option<u32>,
    estimates: Vec<Estimated>,
}

impl Estimate {
    pub(crate) fn run(mut self) -> anyhow::Result<()> {
        self.chunk_size.sort_unstable();
        self.chunk_size.dedup();
        let estimators = estimate::estimators(&self.chunk_size, self.memory)?;
        let images = estimate::images(&self.sources)?;
        let count = images.len();
        let total_bytes = images.iter().map(Image::size).sum();
        let bar = bar(total_bytes);
        let estimates = estimate::run(images, estimators, &|bytes| bar.inc(bytes));
        bar.finish_and_clear();
        let estimates = estimates?;
        let answer = Answer {
            images: count,
            total_bytes,
            best_chunk_bytes: best_chunk_size(&estimates),
            estimates,
        };
        if self.json {
            output::print_json(&answer)
        } else {
            output::print(&render(&answer))
        }
    }
}

fn bar(total_bytes: u64) -> ProgressBar {
    // A new bar draws to stderr, and hides itself where that is no terminal.
    let bar = ProgressBar::new(total_bytes);
    let template = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta:>5}";
    let style =
        ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar
}

fn render(answer: &Answer) -> String {
    let logical = answer.estimates.iter().map(|one| one.logical_bytes).max();
    let mut text = format!(
        "Read {} in {} {}; {} of it are not zero\n",
        size::format(answer.total_bytes),
        answer.images,
        if answer.images == 1 {
            "image"
        } else {
            "images"
        },
        size::format(logical.unwrap_or(0).min(answer.total_bytes)),
    );
    let mut table = Table::new(&[
        ("CHUNK", Align::Right),
        ("DEDUP", Align::Right),
        ("LZ4", Align::Right),
        ("TOTAL", Align::Right),
        ("STORED", Align::Right),
        ("INDEX MEMORY", Align::Right),
        ("INDEX DISK", Align::Right),
        ("ERROR", Align::Right),
    ]);
    for one in &answer.estimates {
        table.row(vec![
            size::format(u64::from(one.chunk_bytes)),
            format!("{:.2}", one.dedup_ratio),
            format!("{:.2}", one.compression_ratio),
            format!("{:.2}", one.savings_ratio),
            size::format(one.used_bytes),
            size::format(one.index_memory_bytes),
            size::format(one.index_disk_bytes),
            error(one),
        ]);
    }
    text.push_str(&table.render(0));
    if let Some(best) = answer
        .best_chunk_bytes
        .filter(|_| answer.estimates.len() > 1)
    {
        text.push_str(&format!(
            "The best of these chunk sizes: {}\n",
            size::format(u64::from(best))
        ));
    }
    text
}

fn error(one: &Estimated) -> String {
    match one.sampled_one_in {
        1 => "none".to_owned(),
        _ => format!("{:.1} %", 100.0 * (one.dedup_error + one.compression_error)),
    }
}

#[cfg(test)]
mod tests {
    use tessera_engine::estimate::{ESTIMATE_MEMORY_MIN, Estimator};

    use super::*;

    #[test]
    fn the_table_names_the_best_size_only_where_there_is_a_choice() {
        let of = |chunk| {
            let mut one = Estimator::new(chunk, ESTIMATE_MEMORY_MIN).unwrap();
            one.feed(&[5; 65536]);
            one.estimate()
        };
        let mut answer = Answer {
            images: 1,
            total_bytes: 65536,
            best_chunk_bytes: Some(4096),
            estimates: vec![of(4096)],
        };
        let text = render(&answer);
        assert!(text.starts_with("Read 64K in 1 image; 64K of it"), "{text}");
        assert!(text.contains("16.00") && text.contains("none"), "{text}");
        assert!(!text.contains("best"), "{text}");
        answer.estimates.push(of(8192));
        assert!(render(&answer).ends_with("chunk sizes: 4K\n"));
    }
}
