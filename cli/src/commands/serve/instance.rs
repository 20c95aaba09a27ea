//! Which run of the server this is, and which ones before it ended clean.
//!
//! A client that finds its server again can ask whether all that it was answered
//! is still there (`tessera:kept:`, docs/attach.md). It is, once the run that
//! answered has closed its pool: that never changes any more, so names are only
//! added to `DIR/instances`, after the close. When the file is lost the answer is
//! no, which is the careful one.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use tessera_nbd::Instance;
use uuid::Uuid;

/// Runs that are remembered: more than a client misses while its requests wait.
const REMEMBERED: usize = 64;
/// What of the file is looked at.
const FILE_BYTES_MAX: u64 = 64 << 10;

fn file(directory: &Path) -> PathBuf {
    directory.join("instances")
}

/// A new run, and what is known of those before.
pub(super) fn begin(directory: &Path) -> Instance {
    let mut text = String::new();
    let read = File::open(file(directory))
        .and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text));
    if let Err(error) = read {
        // Lost or never there.
        tracing::debug!(%error, "nothing is known of earlier runs");
    }
    // Only whole names: a torn one could be taken for another.
    let names = text.lines().filter_map(|line| Uuid::try_parse(line).ok());
    let mut ended_clean: Vec<String> = names.map(|name| name.to_string()).collect();
    ended_clean.drain(..ended_clean.len().saturating_sub(REMEMBERED - 1));
    Instance {
        name: Uuid::new_v4().to_string(),
        ended_clean,
    }
}

/// Remembers that the run has ended and its pool is closed clean.
pub(super) fn ended(directory: &Path, instance: &Instance) -> io::Result<()> {
    let target = file(directory);
    let new = target.with_extension("new");
    let mut file = File::create(&new)?;
    for name in instance.ended_clean.iter().chain([&instance.name]) {
        writeln!(file, "{name}")?;
    }
    file.sync_all()?;
    fs::rename(&new, &target)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn runs_that_ended_are_remembered_and_others_are_not() {
        let directory = tempfile::tempdir().unwrap();
        let first = begin(directory.path());
        assert!(first.keeps("") && first.keeps(&first.name));
        ended(directory.path(), &first).unwrap();
        let killed = begin(directory.path());
        assert!(killed.keeps(&first.name));
        let third = begin(directory.path());
        assert_ne!(third.name, killed.name);
        assert!(third.keeps(&first.name) && !third.keeps(&killed.name));
        ended(directory.path(), &third).unwrap();
        let fourth = begin(directory.path());
        assert_eq!(fourth.ended_clean, [first.name, third.name]);
    }

    #[test]
    fn the_file_stays_short_and_may_hold_anything() {
        let directory = tempfile::tempdir().unwrap();
        for _ in 0..REMEMBERED + 10 {
            let run = begin(directory.path());
            ended(directory.path(), &run).unwrap();
        }
        let lines = |text: String| text.lines().count();
        let path = file(directory.path());
        assert_eq!(lines(fs::read_to_string(&path).unwrap()), REMEMBERED);
        for garbage in [&b"\xff\xfe"[..], b"\n\nhalf-a-name\n", b""] {
            fs::write(&path, garbage).unwrap();
            assert_eq!(begin(directory.path()).ended_clean, Vec::<String>::new());
        }
    }
}
