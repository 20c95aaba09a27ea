//! Serves a disk in memory, or one that keeps nothing, to measure the transport.
//!
//! ```text
//! memory SOCKET|HOST:PORT [--size BYTES] [--null] [--flush-on-thread]
//! ```
//!
//! Ends when its standard input does.

#[path = "../tests/common/disk.rs"]
mod disk;

use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::{FlushMode, MemoryCatalog, MemoryDisk};
use tessera_nbd::{Server, ServerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut endpoint = None;
    let mut size = 4 << 30;
    let mut null = false;
    let mut flush_mode = FlushMode::Inline;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--size" => size = arguments.next().ok_or("--size needs a number")?.parse()?,
            "--null" => null = true,
            "--flush-on-thread" => flush_mode = FlushMode::Thread,
            _ => endpoint = Some(argument),
        }
    }
    let endpoint = endpoint.ok_or("Name a socket or HOST:PORT")?;
    let disk = if null {
        MemoryDisk::null("disk", size)
    } else {
        MemoryDisk::new("disk", size)
    };
    disk.set_flush_mode(flush_mode);
    let server = Server::new(
        MemoryCatalog::with(&[Arc::new(disk)]),
        ServerOptions::default(),
    );
    let uri = if endpoint.contains('/') {
        server.listen_unix(Path::new(&endpoint))?
    } else {
        server.listen_tcp(&endpoint)?
    };
    println!("listening on {uri}");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    let drained = server.shutdown(Duration::from_secs(5));
    eprintln!("{drained:?} {:#?}", server.stats());
    Ok(())
}
