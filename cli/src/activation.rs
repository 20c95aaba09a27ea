//! Sockets that a service manager has made and handed on (`LISTEN_FDS`).
//!
//! The manager keeps its own copies, so that while this process is restarted
//! clients wait in the socket's queue and none is refused.

use std::os::fd::OwnedFd;

use anyhow::bail;
use listenfd::ListenFd;

/// The first descriptor that the protocol hands on.
const FIRST: usize = 3;

/// The sockets handed on to this very process, in the manager's order. Comes
/// before the first thread, because it clears the variables, and counts once.
///
/// # Errors
/// One of them is no stream socket.
pub(crate) fn sockets() -> anyhow::Result<Vec<OwnedFd>> {
    // The protocol names whom they are meant for; a child of that process
    // inherits the variables without the descriptors.
    if !meant_for_us() {
        return Ok(Vec::new());
    }
    let mut handed_on = ListenFd::from_env();
    let mut sockets = Vec::with_capacity(handed_on.len());
    for index in 0..handed_on.len() {
        if let Ok(Some(socket)) = handed_on.take_unix_listener(index) {
            sockets.push(socket.into());
        } else if let Ok(Some(socket)) = handed_on.take_tcp_listener(index) {
            sockets.push(socket.into());
        } else {
            bail!(
                "Descriptor {} handed on by the service manager is no stream socket: \
                 use ListenStream= and nothing else in the socket unit",
                FIRST + index
            );
        }
    }
    Ok(sockets)
}

/// Whether there are sockets for this process.
pub(crate) fn meant_for_us() -> bool {
    let own = std::process::id().to_string();
    std::env::var("LISTEN_PID").is_ok_and(|pid| pid == own)
        && std::env::var("LISTEN_FDS").is_ok_and(|count| count != "0")
}
