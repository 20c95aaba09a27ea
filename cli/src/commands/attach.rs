//! `tessera attach`: an export as a block device of this machine's kernel, kept
//! connected while its server comes and goes.

use std::{sync::atomic::Ordering, time::Duration};

use clap::{Args, ValueEnum};
use tessera_nbd::{
    client::Uri,
    kernel::{
        self, AfterCrash, AttachError, AttachOptions, Attachment, DeviceNumber, Ended, Event,
    },
};

use crate::{daemon, notify::notify, output, signals::StopSignals};

/// The longest wait that can be asked for, in seconds: a day.
const WAIT_SECONDS_MAX: u64 = 24 * 60 * 60;

/// Attach an export as a block device of this machine
///
/// Gives the export to the kernel's NBD driver, prints the device's path, and
/// stays to connect it again whenever the server has gone and come back:
/// requests wait meanwhile and none fails. What is mounted on it goes on. When the
/// server was killed instead of stopped the device ends (see --after-crash). Needs
/// root, and the driver ('modprobe nbd'). SIGTERM and SIGINT detach the device,
/// unless it is in use: then it stays, and this command, given again with
/// --device, takes it over.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    tessera attach 'nbd+unix:///vm1?socket=tank/nbd.sock'\n  \
    disk=$(tessera attach nbd://127.0.0.1/vm1 --daemon) && mount \"$disk\" /mnt\n  \
    umount /mnt && tessera detach \"$disk\"")]
pub(crate) struct Attach {
    /// The export: nbd://HOST:PORT/EXPORT or nbd+unix:///EXPORT?socket=PATH
    #[arg(value_name = "URI")]
    uri: String,
    /// The device, such as /dev/nbd0 [default: the first that is free]
    #[arg(long)]
    device: Option<String>,
    /// Seconds that requests wait for a server that is away, before they fail
    #[arg(long, value_name = "SECONDS", default_value_t = 300,
        value_parser = clap::value_parser!(u64).range(1..=WAIT_SECONDS_MAX))]
    wait: u64,
    /// When the server comes back from a crash: end the device, as if its power
    /// had failed, or go on [default: end]
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        default_value_t,
        hide_default_value = true
    )]
    after_crash: AfterCrashArg,
    /// Go to the background once the device can be used
    #[arg(long)]
    daemon: bool,
    /// This is the process in the background
    #[arg(long, hide = true, conflicts_with = daemon::DAEMON)]
    detached: bool,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum AfterCrashArg {
    /// What waits fails; attach again, and check the file systems
    #[default]
    End,
    /// For those who write durably only: what was answered and not flushed may be
    /// lost without a sign
    Continue,
}

impl Attach {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        if self.daemon {
            return daemon::start();
        }
        if self.detached {
            daemon::leave_session()?;
        }
        let uri: Uri = self.uri.parse()?;
        let device = self.device.as_deref().map(str::parse).transpose()?;
        let signals = StopSignals::install()?;
        let mut attached = Attachment::new(
            uri,
            AttachOptions {
                device,
                wait: Duration::from_secs(self.wait),
                after_crash: match self.after_crash {
                    AfterCrashArg::End => AfterCrash::End,
                    AfterCrashArg::Continue => AfterCrash::GoOn,
                },
            },
        )?;
        let device = attached.device();
        output::print(&format!("{device}\n"))?;
        if self.detached {
            daemon::leave_output()?;
        }
        notify("READY=1");
        if attached.taken_over() {
            output::remark(&format!(
                "{device} was attached before, and is kept connected again"
            ));
        }
        let stop = signals.stopping();
        let ended = attached.keep(&stop, &mut |event| tell(device, &event))?;
        notify("STOPPING=1");
        if ended == Ended::Crashed {
            anyhow::bail!(
                "The server of {device} did not end clean, so what it had answered and not \
                 flushed may be lost: the device is ended as if its power had failed. \
                 Unmount it, attach again, and check its file systems"
            );
        }
        // A signal may have come together with the end of the device.
        if ended == Ended::Stopped && stop.load(Ordering::SeqCst) {
            release(device)?;
        }
        output::remark(&format!("{device} is detached"));
        Ok(())
    }
}

fn tell(device: DeviceNumber, event: &Event) {
    match event {
        Event::Lost => output::remark(&format!(
            "{device} has lost its server; requests wait for it"
        )),
        Event::Back { after } => output::remark(&format!(
            "{device} is connected again after {:.1} s",
            after.as_secs_f64()
        )),
        Event::BackFromCrash => output::complain(&format!(
            "{device} is connected again to a server that did not end clean: what it had \
             answered and not flushed may be lost"
        )),
        Event::Unsuitable(error) => output::complain(&format!(
            "{device} is not connected again: {error}. It is tried on"
        )),
    }
}

/// Detaches what nothing uses.
fn release(device: DeviceNumber) -> anyhow::Result<()> {
    match kernel::detach(device) {
        Err(AttachError::InUse(_)) => anyhow::bail!(
            "{device} is in use and stays attached, but nothing connects it again: \
             give the same command again with --device {device}, or unmount it and \
             'tessera detach {device}'"
        ),
        other => Ok(other?),
    }
}
