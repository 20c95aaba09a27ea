//! Which run of a server a device was connected to last, for one who takes the
//! device over: `/run/tessera/nbdN`, gone with the next boot as the device is.

use std::{fs, io, path::PathBuf};

const DIRECTORY: &str = "/run/tessera";
/// Names of runs are shorter.
const NAME_BYTES_MAX: usize = 256;

fn file(index: u32) -> PathBuf {
    PathBuf::from(DIRECTORY).join(format!("nbd{index}"))
}

/// Remembers it; a run without a name is the empty one.
pub(super) fn remember(index: u32, run: Option<&str>) -> io::Result<()> {
    fs::create_dir_all(DIRECTORY)?;
    let new = file(index).with_extension("new");
    fs::write(&new, run.unwrap_or_default())?;
    fs::rename(new, file(index))
}

/// What was remembered: nothing, a run without a name, or a name.
pub(super) fn remembered(index: u32) -> Option<Option<String>> {
    let name = fs::read_to_string(file(index)).ok()?;
    let known = name.len() <= NAME_BYTES_MAX;
    known.then(|| Some(name).filter(|name| !name.is_empty()))
}

/// Forgets it.
pub(super) fn forget(index: u32) {
    let _never_there = fs::remove_file(file(index));
}
