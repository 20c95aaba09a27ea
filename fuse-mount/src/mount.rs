//! A mount while it lives.
//!
//! Ending it, in this order: (1) unmount, which writes back what the kernel
//! still holds, or detach if somebody is in it; (2) wait a little for the
//! kernel to say that nobody is left; (3) close the gate: what runs is
//! finished, what comes gets an error. After that the pool can be closed.

use std::{
    mem::ManuallyDrop,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use fuser::{Config, MountOption, Session, SessionACL};

use crate::{
    entry::Owner,
    filesystem::TesseraFs,
    mountpoint::{MountError, MountId, Mountpoint, SOURCE, unmount},
    shared::Shared,
    volumes::Volumes,
};

/// Threads that take requests from the kernel, each through a descriptor of
/// its own. More than cores, because those with long reads wait for members.
const THREADS: usize = 8;

/// How long programs that have files open are waited for at the end.
const LEAVE_PATIENCE: Duration = Duration::from_secs(3);

/// How to mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MountOptions {
    /// Nothing can be written through the mount.
    pub read_only: bool,
    /// Other users than the one who mounts can see it; the files' modes, which
    /// let their owner in and root, hold for them.
    pub allow_other: bool,
}

/// A pool's volumes, mounted. A descriptor of each stays open until the
/// process ends.
pub struct Mount {
    path: PathBuf,
    shared: Arc<Shared>,
    id: Option<MountId>,
    ended: Receiver<()>,
}

impl Mount {
    /// Mounts `volumes`; programs can use them on return. `ended` is called
    /// when the mount is no more, whoever ended it.
    ///
    /// Without [`Mount::end`] it lives as long as the process.
    ///
    /// # Errors
    /// [`MountError::Mount`] with the system's reason.
    pub fn start(
        volumes: Arc<dyn Volumes>,
        mountpoint: &Mountpoint,
        options: MountOptions,
        ended: impl FnOnce() + Send + 'static,
    ) -> Result<Self, MountError> {
        let refused = |reason| MountError::Mount {
            path: mountpoint.path().to_owned(),
            reason,
        };
        let owner = Owner {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            mounted: SystemTime::now(),
            read_only: options.read_only,
        };
        let shared = Arc::new(Shared::new(volumes, owner, cores()));
        let (sender, receiver) = channel();
        let tell = move || {
            // Nobody listens any more when the patience of the end was short.
            let _ = sender.send(());
            ended();
        };
        let filesystem = TesseraFs::new(Arc::clone(&shared), Box::new(tell));
        let session =
            Session::new(filesystem, mountpoint.path(), &config(options)).map_err(refused)?;
        let id = MountId::seen_at(mountpoint.path()).map_err(refused)?;
        // Dropped, the handle would unmount whatever it finds at the path, even
        // where ours has gone and only what was below it is left.
        let _never_dropped = ManuallyDrop::new(session.spawn().map_err(refused)?);
        Ok(Self {
            path: mountpoint.path().to_owned(),
            shared,
            id,
            ended: receiver,
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Tells how many files programs have open.
    pub fn open_files(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let shared = Arc::clone(&self.shared);
        move || shared.open_files()
    }

    /// Ends it. Programs that do not leave are cut off: what they were
    /// answered stays true, what they ask from now on fails.
    ///
    /// # Errors
    /// The mount is still in the mount table; it has been cut off all the same.
    pub fn end(self) -> Result<(), MountError> {
        let unmounted = match MountId::seen_at(&self.path) {
            Ok(seen) if seen.is_some() && seen == self.id => unmount(&self.path),
            // Somebody else has unmounted it, or mounted something over it.
            Ok(_) => Ok(()),
            Err(reason) => Err(MountError::Unmount {
                path: self.path.clone(),
                reason,
            }),
        };
        if unmounted.is_ok() && self.ended.recv_timeout(LEAVE_PATIENCE).is_err() {
            tracing::warn!(
                files = self.shared.open_files(),
                "programs still use the mount and are cut off"
            );
        }
        self.shared.close();
        unmounted
    }
}

fn config(options: MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(SOURCE.to_owned()),
        MountOption::Subtype(SOURCE.to_owned()),
        // Modes hold, for whoever can see the mount.
        MountOption::DefaultPermissions,
        MountOption::NoDev,
        MountOption::NoSuid,
        MountOption::NoExec,
        MountOption::NoAtime,
    ];
    config.mount_options.push(if options.read_only {
        MountOption::RO
    } else {
        MountOption::RW
    });
    config.acl = if options.allow_other {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.n_threads = Some(THREADS.max(2 * cores()));
    config.clone_fd = true;
    config
}

fn cores() -> usize {
    thread::available_parallelism().map_or(2, usize::from)
}
