//! Negotiation on a socket: feeds the state machine, under a deadline.

use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

use super::buffers::SMALL_BYTES;
use super::exports::{CatalogExports, Client};
use super::outbox::{Outbox, Wake};
use super::shared::Shared;
use super::tls::{Tls, TlsMode};
use crate::protocol::negotiation::Closed;
use crate::protocol::{Agreement, Encryption, Negotiation, Step};

/// How long a client that is still negotiating may take to hear that the server
/// is shutting down.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);
/// What is received at once: more than any sensible option, and together with
/// the longest option still less than a small buffer.
const RECEIVE_BYTES: usize = 4096;

/// How a negotiation ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The client chose an export; these bytes came after it.
    Agreed(Agreement, Vec<u8>, Client),
    /// It ended by the protocol's rules.
    Closed(Closed),
    /// The client hung up.
    Gone,
    /// The client took too long.
    TimedOut,
}

/// Negotiates with a client that has just connected.
pub(crate) fn negotiate(shared: &Shared, outbox: &Outbox, client: Client) -> io::Result<Outcome> {
    let mut exports = CatalogExports::new(shared, client);
    let encryption = match (exports.tls(), exports.client()) {
        (None, _) | (_, Client::Local) => Encryption::Unavailable,
        (Some(tls), Client::Network(_)) => match tls.mode {
            TlsMode::Allowed => Encryption::Offered,
            TlsMode::Required => Encryption::Required,
        },
    };
    let mut deadline = Instant::now() + shared.options.handshake_timeout;
    let mut output = Vec::new();
    let mut input = Vec::new();
    let mut scratch = [0; RECEIVE_BYTES];
    let mut negotiation = Negotiation::new(encryption, &mut output);
    let mut draining = false;
    loop {
        let mut used = 0;
        let step = loop {
            let progress = negotiation.feed(&input[used..], &exports, &mut output);
            used += progress.consumed;
            // Sent after every option, so that a client cannot pile up replies.
            send(outbox, &mut output, deadline)?;
            if progress.step != Step::Continue {
                break progress.step;
            }
            if Instant::now() >= deadline {
                return Ok(Outcome::TimedOut);
            }
        };
        input.drain(..used);
        match step {
            Step::Transmission(agreement) => {
                assert!(
                    input.len() <= SMALL_BYTES,
                    "no more is received than one option"
                );
                return Ok(Outcome::Agreed(agreement, input, exports.client().clone()));
            }
            Step::StartTls => {
                // Whatever came in the clear behind the request is not the
                // client's, or not meant to be trusted.
                input.clear();
                match start_tls(exports.tls(), outbox, deadline)? {
                    Handshake::Done => {}
                    Handshake::Gone => return Ok(Outcome::Gone),
                    Handshake::TimedOut => return Ok(Outcome::TimedOut),
                }
                let certificate = outbox.transport().client_certificate();
                let client = Client::with_certificate(certificate.as_deref());
                exports = CatalogExports::new(shared, client);
                negotiation.tls_started();
                continue;
            }
            Step::Closed(reason) => return Ok(Outcome::Closed(reason)),
            Step::NeedMore | Step::Continue => {}
        }
        let count = loop {
            if shared.is_draining() && !draining {
                draining = true;
                negotiation.shut_down();
                deadline = deadline.min(Instant::now() + SHUTDOWN_GRACE);
            }
            if let Some(count) = outbox.receive(&mut scratch)? {
                break count;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || outbox.wait(Some(left))? == Wake::TimedOut {
                return Ok(Outcome::TimedOut);
            }
        };
        if count == 0 {
            return Ok(Outcome::Gone);
        }
        input.extend_from_slice(&scratch[..count]);
    }
}

/// How a TLS handshake ended that did not fail.
enum Handshake {
    Done,
    Gone,
    TimedOut,
}

fn start_tls(tls: Option<&Tls>, outbox: &Outbox, deadline: Instant) -> io::Result<Handshake> {
    let config = &tls.expect("TLS is only offered where there is one").config;
    let transport = outbox.transport();
    transport.start_tls(config.clone())?;
    while transport.is_handshaking() || transport.has_unsent() {
        if transport.is_handshaking() && transport.shake_hands()? == Some(0) {
            return Ok(Handshake::Gone);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Handshake::TimedOut);
        }
        if !transport.flush()? {
            outbox.wait_writable(deadline)?;
        } else if transport.is_handshaking() && outbox.wait(Some(left))? == Wake::TimedOut {
            return Ok(Handshake::TimedOut);
        }
    }
    Ok(Handshake::Done)
}

fn send(outbox: &Outbox, output: &mut Vec<u8>, deadline: Instant) -> io::Result<()> {
    if !output.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        outbox.send(&mut [IoSlice::new(output)], left)?;
        output.clear();
    }
    Ok(())
}
