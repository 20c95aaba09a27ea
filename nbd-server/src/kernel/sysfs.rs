//! What the kernel shows of its NBD devices, in `/sys/block/nbdN`.

use std::{fs, io, path::PathBuf, time::Duration};

fn file(index: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/sys/block/nbd{index}/{name}"))
}

/// Whether a connection has been given to the device, and not been ended since.
pub(super) fn is_attached(index: u32) -> bool {
    file(index, "pid").exists()
}

/// What it was given as its server, where it was told.
pub(super) fn identifier(index: u32) -> Option<String> {
    let text = fs::read_to_string(file(index, "backend")).ok()?;
    Some(text.trim_end_matches('\n').to_owned())
}

/// Sets how often the kernel looks at requests that are not answered.
pub(super) fn set_request_timer(index: u32, period: Duration) -> io::Result<()> {
    let milliseconds = period.as_millis().to_string();
    fs::write(file(index, "queue/io_timeout"), milliseconds)
}
