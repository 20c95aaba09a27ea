//! The kernel's NBD driver: an export as a block device that outlives its
//! server.
//!
//! [`Attachment::new`] negotiates, hands the socket to the kernel, and
//! [`Attachment::keep`] replaces it whenever the server has gone and come back;
//! requests wait meanwhile. What must hold, and why it is so, is in
//! `docs/attach.md`.

mod netlink;
mod state;
mod sysfs;

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{Mode, OFlags},
    io::Errno,
};
use thiserror::Error;

use crate::{
    client::{Client, ClientError, Terms, Uri},
    protocol::constants::transmission_flag,
};
use netlink::{Driver, Events, NewDevice};

/// The logical block where the server demands none: what disks have.
const BLOCK_BYTES: u32 = 512;
/// The largest block the kernel's driver can have: a page.
const BLOCK_BYTES_MAX: u32 = 4096;
/// How often the kernel looks for requests that a lost connection has taken
/// with it.
const REQUEST_TIMER: Duration = Duration::from_secs(5);
/// Between two tries to reach a server.
const TRY_AGAIN: Duration = Duration::from_millis(250);
/// How often it is looked whether to stop, or whether the device is gone.
const TICK: Duration = Duration::from_millis(250);

/// Why an export is no block device.
#[derive(Debug, Error)]
pub enum AttachError {
    /// The server: unreachable, or without the export.
    #[error(transparent)]
    Server(#[from] ClientError),
    /// The kernel has no driver, or not one that is loaded.
    #[error("The kernel's NBD driver is not loaded: as root, 'modprobe nbd' loads it")]
    NoDriver,
    /// Only root may.
    #[error("Only root can attach and detach block devices")]
    NotPermitted,
    /// The device has another connection.
    #[error("{0} is attached already, to {1}")]
    Busy(String, String),
    /// Something has the device mounted or holds it in another way.
    #[error("{0} is in use: unmount it first")]
    InUse(String),
    /// What was named is no NBD device.
    #[error("{0} is no NBD device: they are called /dev/nbd0, /dev/nbd1 and so on")]
    NoDevice(String),
    /// It cannot be taken over without losing what nobody would miss in time.
    #[error(
        "The server of {0} did not end clean, as far as is known, so what it had answered and \
         not flushed may be lost: detach the device (--force) and attach it anew"
    )]
    Crashed(String),
    /// There is nothing to detach.
    #[error("{0} is not attached")]
    NotAttached(String),
    /// The export cannot be a block device.
    #[error("The export cannot be a block device: {0}")]
    Unsuitable(String),
    /// The export is not what the device was made of.
    #[error("The export has changed while its server was away: {0}")]
    Changed(String),
    /// The kernel refused.
    #[error("The kernel's NBD driver {0}")]
    Driver(&'static str, #[source] io::Error),
    /// The device cannot be opened or written.
    #[error("{0} cannot be {1}")]
    Device(String, &'static str, #[source] io::Error),
}

/// The number of an NBD device: 3 of `/dev/nbd3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceNumber(u32);

impl DeviceNumber {
    /// The device's path.
    pub fn path(self) -> PathBuf {
        PathBuf::from(self.to_string())
    }
}

impl std::fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/dev/nbd{}", self.0)
    }
}

impl std::str::FromStr for DeviceNumber {
    type Err = AttachError;

    fn from_str(text: &str) -> Result<Self, AttachError> {
        let wrong = || AttachError::NoDevice(text.to_owned());
        let name = text.strip_prefix("/dev/").unwrap_or(text);
        let number = name.strip_prefix("nbd").ok_or_else(wrong)?;
        // A sign or a partition (nbd0p1) is no number of a device.
        if !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(wrong());
        }
        number.parse().map(Self).map_err(|_| wrong())
    }
}

/// How to attach.
#[derive(Debug, Clone, Copy)]
pub struct AttachOptions {
    /// Which device; otherwise the first that is free.
    pub device: Option<DeviceNumber>,
    /// How long requests wait for a server that is away before they fail with
    /// EIO. Whole seconds, at least one.
    pub wait: Duration,
    /// When its server comes back from a crash.
    pub after_crash: AfterCrash,
}

/// What becomes of a device whose server did not end clean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterCrash {
    /// It ends, and what waits fails, as if its power had failed: what was
    /// answered and not flushed may be lost, and a flush must not succeed that
    /// should have covered it.
    End,
    /// It goes on. Nothing is lost for those who write durably (FUA, `O_DSYNC`)
    /// only.
    GoOn,
}

/// What happens to an attached device.
#[derive(Debug)]
pub enum Event {
    /// The server has gone; requests wait.
    Lost,
    /// It is back.
    Back {
        /// How long it was away.
        after: Duration,
    },
    /// It is back from a crash, and the device goes on as it was told to.
    BackFromCrash,
    /// It answers, but not with this export as it was. It is asked again.
    Unsuitable(AttachError),
}

/// How [`Attachment::keep`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to stop; the device is still attached.
    Stopped,
    /// Somebody has detached the device.
    Detached,
    /// It was ended because its server did not end clean.
    Crashed,
}

/// An export that is a block device.
pub struct Attachment {
    driver: Driver,
    events: Events,
    uri: Uri,
    identifier: String,
    device: DeviceNumber,
    terms: Terms,
    /// The run of the server that answers, where it tells.
    instance: Option<String>,
    after_crash: AfterCrash,
    taken_over: bool,
}

impl Attachment {
    /// Attaches an export. A device that is named and has been attached to the
    /// same address is taken over as it is.
    ///
    /// # Errors
    /// The server cannot be reached or has no such export, the kernel has no
    /// driver, the caller is not permitted to, or the device is taken or would
    /// hide a crash. Nothing is attached then that was not before.
    pub fn new(uri: Uri, options: AttachOptions) -> Result<Self, AttachError> {
        let identifier = uri.identity();
        let (client, instance) = connect_to_one_run(&uri)?;
        let terms = client.terms();
        let block_bytes = block_of(terms)?;
        let socket = client.into_socket()?;
        let driver = open_driver()?;
        // Before the device exists, so that no loss of its connection is missed.
        let events = driver
            .events()
            .map_err(told("does not tell of its devices"))?;
        let known = options.device.filter(|device| {
            sysfs::is_attached(device.0)
                && sysfs::identifier(device.0).as_ref() == Some(&identifier)
        });
        let device = if let Some(device) = known {
            if options.after_crash == AfterCrash::End {
                refuse_after_crash(&uri, device)?;
            }
            reconnect(&driver, device, &identifier, terms.size, socket.as_fd())?;
            device
        } else {
            let made = driver.connect(&NewDevice {
                index: options.device.map(|device| device.0),
                size: terms.size,
                block_bytes,
                flags: terms.flags,
                wait: options.wait,
                identifier: &identifier,
                socket: socket.as_fd(),
            });
            DeviceNumber(made.map_err(|error| refused(options.device, error))?)
        };
        if let Err(error) = remember(device, instance.as_deref()) {
            if known.is_none() {
                end(&driver, device)?;
            }
            return Err(error);
        }
        if let Err(error) = sysfs::set_request_timer(device.0, REQUEST_TIMER) {
            // Requests then go on within 30 seconds instead.
            tracing::debug!(%error, %device, "the request timer stays as it was");
        }
        Ok(Self {
            driver,
            events,
            uri,
            identifier,
            device,
            terms,
            instance,
            after_crash: options.after_crash,
            taken_over: known.is_some(),
        })
    }

    /// The device.
    pub fn device(&self) -> DeviceNumber {
        self.device
    }

    /// What the server said about the export.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Whether the device was attached before.
    pub fn taken_over(&self) -> bool {
        self.taken_over
    }

    /// Connects the device anew whenever its server has gone, until `stop` is
    /// set or the device is detached.
    ///
    /// # Errors
    /// The driver does not answer as it should. The device stays.
    pub fn keep(
        &mut self,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Event),
    ) -> Result<Ended, AttachError> {
        loop {
            if stop.load(Ordering::SeqCst) {
                return Ok(Ended::Stopped);
            }
            if !sysfs::is_attached(self.device.0) {
                return Ok(Ended::Detached);
            }
            let lost = self.events.lost(self.device.0, TICK);
            if !lost.map_err(told("says something that cannot be read"))? {
                continue;
            }
            report(Event::Lost);
            if let Some(ended) = self.bring_back(stop, report)? {
                return Ok(ended);
            }
        }
    }

    /// Returns when there is a new connection, or no need for one.
    fn bring_back(
        &mut self,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Event),
    ) -> Result<Option<Ended>, AttachError> {
        let since = Instant::now();
        let mut complained = false;
        loop {
            if stop.load(Ordering::SeqCst) {
                return Ok(Some(Ended::Stopped));
            }
            if !sysfs::is_attached(self.device.0) {
                return Ok(Some(Ended::Detached));
            }
            match self.connect_again() {
                Ok(Again::Connected { crashed }) => {
                    report(match crashed {
                        true => Event::BackFromCrash,
                        false => Event::Back {
                            after: since.elapsed(),
                        },
                    });
                    return Ok(None);
                }
                Ok(Again::Ended) => return Ok(Some(Ended::Crashed)),
                Err(error @ AttachError::Driver(..)) => return Err(error),
                Err(AttachError::Server(ClientError::Io(..))) => {}
                Err(error) if !complained => {
                    complained = true;
                    report(Event::Unsuitable(error));
                }
                Err(_) => {}
            }
            thread::sleep(TRY_AGAIN);
        }
    }

    fn connect_again(&mut self) -> Result<Again, AttachError> {
        let (client, instance) = connect_to_one_run(&self.uri)?;
        let now = client.terms();
        check_same(self.terms, now)?;
        let crashed = match &self.instance {
            Some(before) => Client::kept(&self.uri, Some(before))?.is_none(),
            // A server that tells nothing is believed.
            None => false,
        };
        if crashed && self.after_crash == AfterCrash::End {
            end(&self.driver, self.device)?;
            return Ok(Again::Ended);
        }
        let socket = client.into_socket()?;
        // Messages about the old connection, of which one was enough. From here
        // on one is about the new.
        self.events
            .clear(self.device.0)
            .map_err(told("says something that cannot be read"))?;
        reconnect(
            &self.driver,
            self.device,
            &self.identifier,
            now.size,
            socket.as_fd(),
        )?;
        self.terms = now;
        self.instance = instance;
        remember(self.device, self.instance.as_deref())?;
        Ok(Again::Connected { crashed })
    }
}

fn remember(device: DeviceNumber, run: Option<&str>) -> Result<(), AttachError> {
    let remembered = state::remember(device.0, run);
    remembered.map_err(|error| AttachError::Device(device.to_string(), "remembered", error))
}

/// A device that is taken over is one whose requests may have waited since a
/// crash.
fn refuse_after_crash(uri: &Uri, device: DeviceNumber) -> Result<(), AttachError> {
    let kept = match state::remembered(device.0) {
        Some(Some(run)) => Client::kept(uri, Some(&run))?.is_some(),
        Some(None) => true,
        None => false,
    };
    match kept {
        true => Ok(()),
        false => Err(AttachError::Crashed(device.to_string())),
    }
}

/// How it went to connect again.
enum Again {
    Connected { crashed: bool },
    Ended,
}

/// A connection, and the run of the server that it is with. What a run says of
/// itself before and after is the same only if it was there in between.
fn connect_to_one_run(uri: &Uri) -> Result<(Client, Option<String>), ClientError> {
    let mut before = Client::kept(uri, None)?;
    loop {
        let client = Client::connect(uri)?;
        let after = Client::kept(uri, None)?;
        if before == after {
            return Ok((client, after));
        }
        before = after;
    }
}

/// Writes back what is cached of a device, flushes it, and detaches it.
///
/// # Errors
/// It is no NBD device, is not attached, or is in use; or what is cached could
/// not be written. It stays attached then.
pub fn detach(device: DeviceNumber) -> Result<(), AttachError> {
    let driver = open_driver()?;
    if !sysfs::is_attached(device.0) {
        return Err(AttachError::NotAttached(device.to_string()));
    }
    let file = open_exclusively(&device.path())?;
    let flushed = file.sync_all();
    flushed.map_err(|error| AttachError::Device(device.to_string(), "flushed", error))?;
    end(&driver, device)
}

/// Ends a device as if it had been pulled out: what is cached of it is lost, and
/// whoever uses it gets errors.
///
/// # Errors
/// It is not attached, or the caller is not permitted to.
pub fn pull(device: DeviceNumber) -> Result<(), AttachError> {
    let driver = open_driver()?;
    if !sysfs::is_attached(device.0) {
        return Err(AttachError::NotAttached(device.to_string()));
    }
    end(&driver, device)
}

fn end(driver: &Driver, device: DeviceNumber) -> Result<(), AttachError> {
    let ended = driver.disconnect(device.0);
    ended.map_err(|error| refused(Some(device), error))?;
    state::forget(device.0);
    Ok(())
}

/// The kernel gives a block device to one such opener, and a mount is one.
fn open_exclusively(path: &Path) -> Result<File, AttachError> {
    let name = || path.display().to_string();
    let opened = rustix::fs::open(
        path,
        OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .or_else(|error| match error {
        // A read-only export.
        Errno::ACCESS | Errno::ROFS | Errno::PERM => rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::EXCL | OFlags::CLOEXEC,
            Mode::empty(),
        ),
        other => Err(other),
    });
    let file = match opened {
        Ok(file) => File::from(file),
        Err(Errno::BUSY) => return Err(AttachError::InUse(name())),
        Err(error) => return Err(AttachError::Device(name(), "opened", error.into())),
    };
    let kind = file.metadata().map(|found| found.file_type());
    if !kind.is_ok_and(|kind| kind.is_block_device()) {
        return Err(AttachError::NoDevice(name()));
    }
    Ok(file)
}

fn open_driver() -> Result<Driver, AttachError> {
    Driver::open().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => AttachError::NoDriver,
        _ => AttachError::Driver("cannot be reached", error),
    })
}

fn reconnect(
    driver: &Driver,
    device: DeviceNumber,
    identifier: &str,
    size: u64,
    socket: std::os::fd::BorrowedFd<'_>,
) -> Result<(), AttachError> {
    let connected = driver.reconnect(device.0, identifier, size, socket);
    connected.map_err(|error| refused(Some(device), error))
}

fn told(what: &'static str) -> impl Fn(io::Error) -> AttachError {
    move |error| AttachError::Driver(what, error)
}

/// What the driver means by an error.
fn refused(device: Option<DeviceNumber>, error: io::Error) -> AttachError {
    match (Errno::from_io_error(&error), device) {
        (Some(Errno::PERM | Errno::ACCESS), _) => AttachError::NotPermitted,
        (Some(Errno::BUSY), Some(device)) => {
            let other = sysfs::identifier(device.0);
            let other = other.unwrap_or_else(|| "something else".to_owned());
            AttachError::Busy(device.to_string(), other)
        }
        _ => AttachError::Driver("refuses", error),
    }
}

/// The logical block of a device of this export.
fn block_of(terms: Terms) -> Result<u32, AttachError> {
    let block = terms.block_bytes.unwrap_or(1).max(BLOCK_BYTES);
    if !block.is_power_of_two() || block > BLOCK_BYTES_MAX {
        let why = format!("its server demands blocks of {block} bytes");
        return Err(AttachError::Unsuitable(why));
    }
    if terms.size < u64::from(block) {
        return Err(AttachError::Unsuitable(format!(
            "it has {} bytes",
            terms.size
        )));
    }
    Ok(block)
}

/// What an export may do while its server is away: grow.
fn check_same(before: Terms, now: Terms) -> Result<(), AttachError> {
    if now.size < before.size {
        let why = format!("it has {} bytes instead of {}", now.size, before.size);
        return Err(AttachError::Changed(why));
    }
    let read_only = |terms: Terms| terms.flags & transmission_flag::READ_ONLY != 0;
    if read_only(now) && !read_only(before) {
        return Err(AttachError::Changed("it is read-only".to_owned()));
    }
    // The kernel has decided by the old flags whether to flush.
    let missing = before.flags & !now.flags & !transmission_flag::READ_ONLY;
    if missing != 0 {
        let why = format!("its server has lost abilities (flags {missing:#x})");
        return Err(AttachError::Changed(why));
    }
    if block_of(now)? > block_of(before)? {
        return Err(AttachError::Changed("its blocks are larger".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
