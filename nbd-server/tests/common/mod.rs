//! What the tests share: a disk in memory, a small client, and servers to use
//! them with.

#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used)]

pub mod client;
pub mod disk;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use client::{Client, Style};
use disk::{MemoryCatalog, MemoryDisk};
use tempfile::TempDir;
use tessera_nbd::{Server, ServerOptions};

/// A server with one disk on a Unix socket.
pub struct Served {
    pub server: Server,
    pub disk: Arc<MemoryDisk>,
    pub socket: PathBuf,
    pub uri: String,
    directory: TempDir,
}

impl Served {
    pub fn new(size: u64) -> Self {
        Self::with(MemoryDisk::new("disk", size), ServerOptions::default())
    }

    pub fn with(disk: MemoryDisk, options: ServerOptions) -> Self {
        let directory = TempDir::new().unwrap();
        let disk = Arc::new(disk);
        let server = Server::new(MemoryCatalog::with(&[Arc::clone(&disk)]), options);
        let socket = directory.path().join("nbd.sock");
        let uri = server.listen_unix(&socket).unwrap();
        Self {
            server,
            disk,
            socket,
            uri,
            directory,
        }
    }

    pub fn connect(&self, style: Style) -> Client {
        Client::connect(&self.socket, style)
    }

    /// A path for scratch files.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Whether the tools are there. Tests that need them pass without on a bare
/// machine, with a message, and fail where `CI=true`.
pub fn requires(tools: &[&str]) -> bool {
    let missing: Vec<_> = tools
        .iter()
        .filter(|tool| Command::new(tool).arg("--version").output().is_err())
        .collect();
    if missing.is_empty() {
        return true;
    }
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{missing:?} must be installed in CI"
    );
    eprintln!("skipped: {missing:?} not installed");
    false
}

/// Waits until something is so. The tests rely on it happening, never on when:
/// the limit is only there to end a test that has failed.
pub fn eventually(what: &str, condition: impl Fn() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !condition() {
        assert!(std::time::Instant::now() < end, "never happened: {what}");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

/// Bytes that differ from place to place.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
