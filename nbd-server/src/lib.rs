//! An NBD server for virtual disks: fixed newstyle negotiation, structured
//! replies, extended headers, block status, over TCP and Unix sockets.
//!
//! ```no_run
//! use std::{path::Path, sync::Arc, time::Duration};
//! use tessera_engine::disk::DiskCatalog;
//! use tessera_nbd::{ListenError, Server, ServerOptions};
//!
//! fn serve(catalog: Arc<dyn DiskCatalog>) -> Result<(), ListenError> {
//!     let server = Server::new(catalog, ServerOptions::default());
//!     println!("listening on {}", server.listen_unix(Path::new("/run/pool.sock"))?);
//!     println!("listening on {}", server.listen_tcp("127.0.0.1:10809")?);
//!     // ... until a signal arrives ...
//!     server.shutdown(Duration::from_secs(30));
//!     Ok(())
//! }
//! ```

pub mod client;
#[doc(hidden)]
pub mod fuzzing;
pub mod kernel;
pub mod protocol;
mod server;

pub use protocol::Instance;
pub use server::{
    Drained, ListenError, Server, ServerOptions, StatsSnapshot, Tls, TlsError, TlsFiles, TlsMode,
};
