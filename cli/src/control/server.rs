//! The server's side: listens on the control socket while a pool is served.
//!
//! One thread accepts; each connection gets a short-lived thread of its own,
//! at most [`MAX_CONNECTIONS`] at a time. A connection carries one request and
//! has [`REQUEST_PATIENCE`] to send it, so nobody can hold a place for long.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::{
        fs::FileTypeExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::Mode,
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType},
};

use super::{
    Address, SOCKET_NAME, client,
    http::{self, Parsed, Request, Response},
    routes,
};
use crate::{
    access::Management,
    failure::{Failure, Kind},
};

/// Connections answered at a time; more are told to come again.
const MAX_CONNECTIONS: usize = 16;
/// How long a client may take to send its request, and to take the answer.
const REQUEST_PATIENCE: Duration = Duration::from_secs(10);
/// How long shutting down waits for requests being carried out.
const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(15);
/// A pause after a connection that could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Connections the kernel may hold for us.
const BACKLOG: i32 = 64;

/// The listening control socket of a served pool.
#[derive(Debug)]
pub(crate) struct ControlServer {
    path: PathBuf,
    /// Closing it wakes the accepting thread.
    wake: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
    places: Arc<Places>,
}

impl ControlServer {
    /// Listens on the pool's control socket, replacing one that a killed
    /// server left behind. Call it only while holding the pool's lock.
    pub(crate) fn start(dir: &Path, pool: Arc<dyn Management>) -> Result<Self, Failure> {
        let path = dir.join(SOCKET_NAME);
        let failed = |error: io::Error| {
            Failure::new(
                Kind::Io,
                format!("{} cannot be listened on: {error}", path.display()),
            )
        };
        remove_stale(dir, &path)?;
        let listener = listen(dir).map_err(failed)?;
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let places = Arc::new(Places::default());
        let acceptor = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn({
                let places = Arc::clone(&places);
                move || accept_loop(&listener, &woken, &pool, &places)
            })
            .map_err(failed)?;
        Ok(Self {
            path,
            wake: Some(wake),
            acceptor: Some(acceptor),
            places,
        })
    }

    /// Stops accepting, lets requests being carried out finish, and removes
    /// the socket.
    pub(crate) fn shutdown(mut self) {
        self.stop();
        self.places.wait_until_free(SHUTDOWN_PATIENCE);
    }

    fn stop(&mut self) {
        if self.wake.take().is_none() {
            return;
        }
        // The name goes first, so that no client finds a socket that nobody
        // will answer at.
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the control socket was not removed");
        }
        if let Some(acceptor) = self.acceptor.take() {
            // It only panics on a bug, and then there is nothing left to stop.
            let _ = acceptor.join();
        }
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn remove_stale(dir: &Path, path: &Path) -> Result<(), Failure> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(Failure::new(
                Kind::Io,
                format!("{}: {error}", path.display()),
            ));
        }
    };
    if !kind.is_socket() {
        return Err(Failure::new(
            Kind::AlreadyExists,
            format!("{} is in the way: it is not a socket", path.display()),
        ));
    }
    if client::connect(dir)?.is_some() {
        return Err(Failure::new(
            Kind::Busy,
            format!("The pool {} is being served already", dir.display()),
        ));
    }
    fs::remove_file(path).map_err(|error| {
        Failure::new(
            Kind::Io,
            format!("{} cannot be removed: {error}", path.display()),
        )
    })
}

fn listen(dir: &Path) -> io::Result<UnixListener> {
    let address = Address::in_directory(dir)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // On Linux the file takes the socket's own mode, so it is private from the
    // first moment; setting it after bind would leave a gap.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &address.address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn accept_loop(
    listener: &UnixListener,
    woken: &UnixStream,
    pool: &Arc<dyn Management>,
    places: &Arc<Places>,
) {
    loop {
        let mut events = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(woken, PollFlags::IN),
        ];
        if let Err(error) = wait_for(&mut events, None) {
            tracing::error!(%error, "the control socket cannot be waited on");
            return;
        }
        if !events[1].revents().is_empty() {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => dispatch(stream, pool, places),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                // Out of descriptors, most likely: do not spin on it, but do
                // stop when told to.
                tracing::warn!(%error, "a control connection was not accepted");
                let mut stop = [PollFd::new(woken, PollFlags::IN)];
                if wait_for(&mut stop, Some(ACCEPT_PAUSE)).is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits for one of the events, or the time to pass. An interruption counts as
/// neither: the caller looks again.
fn wait_for(events: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<()> {
    let patience = patience.map(|patience| Timespec {
        tv_sec: i64::try_from(patience.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(patience.subsec_nanos()),
    });
    match rustix::event::poll(events, patience.as_ref()) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// How many connections are being answered.
#[derive(Debug, Default)]
struct Places {
    taken: Mutex<usize>,
    /// Notified when the last one is given up.
    free: Condvar,
}

impl Places {
    fn taken(&self) -> std::sync::MutexGuard<'_, usize> {
        // A number is whole whatever happened to who held it.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_until_free(&self, patience: Duration) {
        let waited = self
            .free
            .wait_timeout_while(self.taken(), patience, |taken| *taken > 0);
        drop(waited);
    }
}

/// Counts a connection for as long as it lives.
struct Place(Arc<Places>);

impl Place {
    fn take(places: &Arc<Places>) -> Option<Self> {
        let mut taken = places.taken();
        if *taken == MAX_CONNECTIONS {
            return None;
        }
        *taken += 1;
        Some(Self(Arc::clone(places)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.0.taken();
        *taken -= 1;
        if *taken == 0 {
            self.0.free.notify_all();
        }
    }
}

fn dispatch(stream: UnixStream, pool: &Arc<dyn Management>, places: &Arc<Places>) {
    // Only accept was meant not to block.
    if stream.set_nonblocking(false).is_err() {
        return;
    }
    if let Err(failure) = check_peer(&stream) {
        turn_away(stream, 403, &failure);
        return;
    }
    let Some(place) = Place::take(places) else {
        let busy = "The server is busy with other requests: try again";
        turn_away(stream, 503, &Failure::new(Kind::Busy, busy));
        return;
    };
    let pool = Arc::clone(pool);
    let spawned = std::thread::Builder::new()
        .name("control-request".to_owned())
        .spawn(move || {
            let _place = place;
            if let Err(error) = serve_one(stream, pool.as_ref()) {
                tracing::debug!(%error, "a control connection ended early");
            }
        });
    if let Err(error) = spawned {
        tracing::warn!(%error, "no thread for a control connection");
    }
}

/// The file's mode keeps others out; this also holds where the socket was
/// handed on or the mode was changed.
fn check_peer(stream: &UnixStream) -> Result<(), Failure> {
    let own = rustix::process::geteuid();
    match rustix::net::sockopt::socket_peercred(stream) {
        Ok(peer) if peer.uid == own || peer.uid.is_root() => Ok(()),
        Ok(_) => Err(Failure::new(
            Kind::InvalidArgument,
            "The pool is served by another user",
        )),
        Err(error) => Err(Failure::new(
            Kind::Io,
            format!("Your user id is unknown: {error}"),
        )),
    }
}

/// Answers without a thread and without waiting: a short answer fits the
/// socket's buffer, and if it does not, the client sees the connection close.
fn turn_away(mut stream: UnixStream, status: u16, failure: &Failure) {
    let response = http::encode_response(&routes::refuse_as(status, failure));
    if stream.set_nonblocking(true).is_ok() {
        let _ = stream.write(&response);
    }
}

fn serve_one(mut stream: UnixStream, pool: &dyn Management) -> io::Result<()> {
    stream.set_write_timeout(Some(REQUEST_PATIENCE))?;
    let response = match read_request(&mut stream)? {
        Ok(request) => {
            tracing::info!(
                method = request.method,
                path = request.path,
                "control request"
            );
            routes::answer(pool, &request)
        }
        Err(refusal) => refusal,
    };
    stream.write_all(&http::encode_response(&response))
}

fn read_request(stream: &mut UnixStream) -> io::Result<Result<Request, Response>> {
    let deadline = Instant::now() + REQUEST_PATIENCE;
    let mut bytes = Vec::new();
    let mut piece = [0u8; 4096];
    loop {
        match http::parse_request(&bytes) {
            Ok(Parsed::Complete(request)) => return Ok(Ok(request)),
            Ok(Parsed::Partial) => {}
            Err(malformed) => return Ok(Err(routes::refuse_malformed(&malformed))),
        }
        // The deadline is for the whole request: trickling bytes extends nothing.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err(too_slow()));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            // Connections that only look whether somebody listens end here.
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Ok(Err(too_slow()));
            }
            Err(error) => return Err(error),
        }
    }
}

fn too_slow() -> Response {
    routes::refuse_as(
        408,
        &Failure::new(Kind::InvalidArgument, "The request took too long"),
    )
}

#[cfg(test)]
mod tests;
