//! The command line: what it accepts, and one sentence for what it does not.

use std::ffi::OsString;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, error::ErrorKind};
use serde::{Deserialize, Serialize};
use tessera_engine::pool::IoChoice;

use crate::{
    commands,
    output::{self, ColourArg},
};

/// Fault-tolerant, deduplicated virtual disks out of a handful of files or
/// block devices.
///
/// A pool is a directory (DIR) that names its members; the members hold all
/// data. Volumes of a pool are served as disks over NBD. While a pool is
/// served, the other commands reach the serving process by themselves.
#[derive(Debug, Parser)]
#[command(
    name = "tessera",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Examples:\n  \
        tessera pool create tank --level raid5 --files 4 --file-size 4G\n  \
        tessera volume create tank vm1 --size 20G\n  \
        tessera serve tank &\n  \
        qemu-img convert -n -O raw disk.qcow2 'nbd+unix:///vm1?socket=tank/nbd.sock'\n\n\
        Sizes are binary: 64K, 4G, 1.5T. Exit status: 0 done, 1 failed, 2 a check found problems."
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) globals: Globals,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Globals {
    /// How members are read and written [default: uring where the kernel allows it]
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "ENGINE",
        help_heading = "Global options"
    )]
    io: Option<IoArg>,
    /// Say more on stderr; twice for debugging
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Global options")]
    pub(crate) verbose: u8,
    /// Colours in what is printed
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "WHEN",
        default_value = "auto",
        help_heading = "Global options"
    )]
    pub(crate) color: ColourArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum IoArg {
    /// io_uring, or fail
    Uring,
    /// pread and pwrite in threads
    Threads,
}

impl IoArg {
    /// The device implementation asked for, if one was.
    pub(crate) const fn choice(asked: Option<Self>) -> IoChoice {
        match asked {
            None => IoChoice::Auto,
            Some(Self::Uring) => IoChoice::Uring,
            Some(Self::Threads) => IoChoice::Threads,
        }
    }
}

impl Globals {
    /// The device implementation asked for.
    pub(crate) fn io(&self) -> IoChoice {
        IoArg::choice(self.io)
    }

    /// The same as it was asked for, if it was.
    pub(crate) const fn io_asked(&self) -> Option<IoArg> {
        self.io
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a pool and look after it
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Make, show and change volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Keep what volumes held, and get it back
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    Clone(commands::clone::Clone),
    /// Look after the members of a pool
    #[command(subcommand)]
    Member(MemberCommand),
    /// Verify and mend a pool in use
    #[command(subcommand)]
    Scrub(ScrubCommand),
    /// Give back the space of what nothing uses any more
    #[command(subcommand)]
    Gc(GcCommand),
    /// Find and merge duplicates that writes have left
    #[command(subcommand)]
    Dedup(DedupCommand),
    /// Look after the fingerprint index, which finds duplicates
    #[command(subcommand)]
    Index(IndexCommand),
    /// Follow and steer what a pool does in the background
    #[command(subcommand)]
    Job(JobCommand),
    Serve(commands::serve::Serve),
    Mount(commands::mount::Mount),
    Attach(commands::attach::Attach),
    Detach(commands::detach::Detach),
    /// Check and write configuration files of 'tessera serve'
    #[command(subcommand)]
    Config(ConfigCommand),
    Estimate(commands::estimate::Estimate),
    Completions(commands::completions::Completions),
    Man(commands::man::Man),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    Check(commands::config::Check),
    Example(commands::config::Example),
}

#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    Create(commands::pool_create::Create),
    Status(commands::pool_status::Status),
    Import(commands::pool_import::Import),
    Check(commands::pool_check::Check),
    Repair(commands::pool_repair::Repair),
    Set(commands::pool_set::Set),
}

#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    #[command(visible_alias = "ls")]
    List(commands::member_list::List),
    Fail(commands::member_fail::Fail),
    #[command(visible_alias = "rm")]
    Remove(commands::member_remove::Remove),
    Replace(commands::member_replace::Replace),
    ReAdd(commands::member_replace::Readd),
    AddSpare(commands::member_add_spare::AddSpare),
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(commands::snapshot_create::Create),
    #[command(visible_alias = "ls")]
    List(commands::snapshot_list::List),
    #[command(visible_alias = "rm")]
    Delete(commands::snapshot_delete::Delete),
    Rollback(commands::snapshot_rollback::Rollback),
    Diff(commands::snapshot_diff::Diff),
}

#[derive(Debug, Subcommand)]
pub(crate) enum ScrubCommand {
    /// Verify every copy of everything, and mend what is wrong
    ///
    /// Reads every chunk, page, summary, parity, journal and superblock copy,
    /// knows by checksum and hash which copy is wrong, and writes the right one
    /// over it. A served pool is scrubbed in the background while clients go on;
    /// a stopped one in the foreground, and an interrupted scrub goes on later.
    /// Exit status 2 means that something is lost.
    #[command(after_help = "Examples:\n  \
        tessera scrub start tank\n  \
        tessera scrub start tank --wait --json")]
    Start(commands::started_job::Start),
    /// Show the newest scrub
    #[command(after_help = "Examples:\n  \
        tessera scrub status tank\n  \
        tessera scrub status tank --json | jq .progress")]
    Status(commands::started_job::Newest),
    /// Stop the scrub that runs; the next one starts anew
    #[command(after_help = "Example:\n  tessera scrub cancel tank")]
    Cancel(commands::started_job::Newest),
}

#[derive(Debug, Subcommand)]
pub(crate) enum GcCommand {
    /// Give back the space of what nothing uses any more
    ///
    /// Frees segments that hold nothing live, and moves what is live out of
    /// segments that are mostly dead. A pool does so by itself when less than a
    /// quarter of it is free; this is for having the space now. A served pool is
    /// reclaimed in the background while clients go on; a stopped one in the
    /// foreground, and an interrupted reclaim begins again where it matters.
    #[command(after_help = "Examples:\n  \
        tessera gc start tank\n  \
        tessera gc start tank --wait --json")]
    Start(commands::started_job::Start),
    /// Show the newest reclaim
    #[command(after_help = "Examples:\n  \
        tessera gc status tank\n  \
        tessera gc status tank --json | jq .progress")]
    Status(commands::started_job::Newest),
    /// Stop the reclaim that runs; what it has moved stays moved
    #[command(after_help = "Example:\n  tessera gc cancel tank")]
    Cancel(commands::started_job::Newest),
}

#[derive(Debug, Subcommand)]
pub(crate) enum DedupCommand {
    /// Find and merge duplicates of what was stored without looking for any
    ///
    /// Reads and hashes the chunks that volumes of mode 'post' have taken since
    /// the last time, looks for others with the same bytes in all volumes,
    /// snapshots and clones, and has all of them use one. The space comes back
    /// with the next reclaim ('tessera gc start'). What a volume of mode 'off'
    /// uses is left alone. A served pool is deduplicated in the background while
    /// clients go on; a stopped one in the foreground, and an interrupted run
    /// goes on later.
    #[command(after_help = "Examples:\n  \
        tessera dedup start tank\n  \
        tessera dedup start tank --wait --json")]
    Start(commands::started_job::Start),
    /// Show the newest deduplication
    #[command(after_help = "Examples:\n  \
        tessera dedup status tank\n  \
        tessera dedup status tank --json | jq .progress")]
    Status(commands::started_job::Newest),
    /// Stop the deduplication that runs; what it has merged stays merged
    #[command(after_help = "Example:\n  tessera dedup cancel tank")]
    Cancel(commands::started_job::Newest),
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    Status(commands::index_status::Status),
    Drop(commands::index_drop::DropIndex),
    Rebuild(commands::index_rebuild::Rebuild),
}

#[derive(Debug, Subcommand)]
pub(crate) enum JobCommand {
    #[command(visible_alias = "ls")]
    List(commands::job_list::List),
    Follow(commands::job_follow::Follow),
    /// Stop a job until it is told to go on
    Pause(commands::job_control::Control),
    /// Let a paused job go on
    Resume(commands::job_control::Control),
    /// Stop a job for good
    Cancel(commands::job_control::Control),
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    Create(commands::volume_create::Create),
    #[command(visible_alias = "ls")]
    List(commands::volume_list::List),
    Show(commands::volume_show::Show),
    Resize(commands::volume_resize::Resize),
    Rename(commands::volume_rename::Rename),
    Set(commands::volume_set::Set),
    #[command(visible_alias = "rm")]
    Delete(commands::volume_delete::Delete),
}

/// Why there is no command to run.
#[derive(Debug)]
pub(crate) enum Stop {
    /// Help or the version was asked for: show this.
    Show(String),
    /// The command line is wrong: say this and fail.
    Refuse(String),
}

/// Reads the command line.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Stop> {
    Cli::try_parse_from(arguments).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Show(shown(&error)),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            Stop::Refuse("No command given; see 'tessera --help'".to_owned())
        }
        _ => Stop::Refuse(sentence(&error.to_string())),
    })
}

/// Help and the version are as colourful as everything on standard output.
fn shown(error: &clap::Error) -> String {
    let styled = error.render();
    if output::on_stdout() {
        styled.ansi().to_string()
    } else {
        styled.to_string()
    }
}

/// Clap explains in paragraphs: the error itself, hints, usage. Ours is one
/// sentence: the error and the hints.
fn sentence(rendered: &str) -> String {
    let mut parts = Vec::new();
    for paragraph in rendered.split("\n\n") {
        let words = paragraph.split_whitespace().collect::<Vec<_>>().join(" ");
        if let Some(error) = words.strip_prefix("error: ") {
            parts.push(capitalised(error.trim_end_matches('.')));
        } else if let Some(tip) = words.strip_prefix("tip: ") {
            parts.push(tip.trim_end_matches('.').to_owned());
        }
    }
    if parts.is_empty() {
        parts.push("The command line is not understood; see 'tessera --help'".to_owned());
    }
    parts.join("; ")
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn refusal(line: &str) -> String {
        match parse(line.split(' ').map(OsString::from)) {
            Err(Stop::Refuse(sentence)) => sentence,
            other => panic!("{line:?} gave {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn mistakes_are_one_sentence_that_names_what_is_wrong() {
        for (line, names) in [
            ("tessera", "tessera --help"),
            ("tessera pool", "--help"),
            ("tessera poool", "poool"),
            ("tessera serve", "<DIR>"),
            ("tessera serve d --bogus", "--bogus"),
            ("tessera serve d --memory lots", "lots"),
            ("tessera --io tape pool status d", "tape"),
            ("tessera volume create d v", "--size"),
            ("tessera volume create d v --size 12Q", "12Q"),
            ("tessera volume create d v --size 1G --dedup maybe", "maybe"),
            ("tessera volume create d v --size 1G --chunk-size 8G", "8G"),
            ("tessera pool create d --level raid7 a b", "raid7"),
            (
                "tessera pool create d --level raid5 --files 4",
                "--file-size",
            ),
            (
                "tessera pool create d --level raid5 --files 4 --file-size 1G a",
                "--files",
            ),
            ("tessera pool create d --level raid5", "MEMBER"),
            ("tessera pool import d", "MEMBER"),
            ("tessera pool set d --stall-limit 0", "--stall-limit"),
            ("tessera member replace d 1", "NEW_PATH"),
            ("tessera member fail d", "MEMBER"),
            ("tessera pool repair d", "--dry-run"),
            ("tessera job pause d x", "x"),
            ("tessera volume rename d a", "NEW"),
            ("tessera volume set d a --dedup later", "later"),
            ("tessera volume set d", "NAME"),
            ("tessera snapshot create d vm1", "VOLUME@SNAPSHOT"),
            ("tessera clone d a@b", "NEW"),
            ("tessera vollume list d", "'volume'"),
            ("tessera volume lst d", "'list'"),
            ("tessera pool status d --jsn", "'--json'"),
            ("tessera serve d --config f.toml", "--config"),
            ("tessera serve d --drain-timeout soon", "soon"),
            ("tessera serve d --daemon --foreground", "--foreground"),
            ("tessera serve d --log-file f", "--daemon"),
            ("tessera serve d --tls-allow vm1", "vm1=guest1"),
            ("tessera serve d --tls maybe", "maybe"),
            ("tessera config check", "FILE"),
            ("tessera completions klingon", "klingon"),
        ] {
            let sentence = refusal(line);
            assert!(sentence.contains(names), "{line:?}: {sentence}");
            assert!(!sentence.contains('\n'), "{line:?}: {sentence}");
            assert!(!sentence.ends_with('.'), "{line:?}: {sentence}");
            assert!(
                sentence.starts_with(char::is_uppercase),
                "{line:?}: {sentence}"
            );
        }
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        fn visit(command: &mut clap::Command, path: &str) {
            let names: Vec<String> = command
                .get_subcommands()
                .map(|sub| sub.get_name().to_owned())
                .collect();
            if names.is_empty() {
                let help = command.render_long_help().to_string();
                assert!(help.contains("Example"), "{path} has no example:\n{help}");
            }
            for name in names {
                let sub = command.find_subcommand_mut(&name).expect("listed just now");
                visit(sub, &format!("{path} {name}"));
            }
        }
        visit(&mut Cli::command(), "tessera");
    }
}
