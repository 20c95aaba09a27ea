//! Mounting a pool in a test, and taking it away whatever happens.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::{
    io::Errno,
    mount::UnmountFlags,
    process::{Pid, Signal, kill_process},
};

use super::{TestPool, command, requires, text, tool};

/// Whether file systems can be mounted here. Containers often have no
/// /dev/fuse, which is nobody's fault; where it is, the tools must be too.
pub(crate) fn can_mount(tools: &[&str]) -> bool {
    let device = fs::metadata("/dev/fuse").is_ok_and(|found| found.file_type().is_char_device());
    if !device || OpenOptions::new().write(true).open("/dev/fuse").is_err() {
        eprintln!("skipped: /dev/fuse is not here or not ours to open");
        return false;
    }
    requires(&[&["fusermount3"], tools].concat())
}

/// Whether loop devices can be made and mounted here.
pub(crate) fn can_loop(tools: &[&str]) -> bool {
    if !rustix::process::geteuid().is_root() || !Path::new("/dev/loop-control").exists() {
        eprintln!("skipped: only root can mount, and only where there are loop devices");
        return false;
    }
    can_mount(&[&["losetup", "mount", "umount", "cp", "diff"], tools].concat())
}

/// A mounting process; killed and unmounted when dropped.
pub(crate) struct Mounted {
    pub(crate) child: Child,
    pub(crate) path: PathBuf,
    /// Where NBD clients connect, if it serves them as well.
    pub(crate) uri: Option<String>,
}

impl Mounted {
    /// `tessera mount`.
    #[track_caller]
    pub(crate) fn start(pool: &TestPool, arguments: &[&str]) -> Self {
        let path = mountpoint(pool);
        let mut command = command(["mount", &text(&pool.dir), &text(&path)]);
        command.args(arguments);
        Self::run(command, path)
    }

    /// `tessera serve --mount`.
    #[track_caller]
    pub(crate) fn serve(pool: &TestPool) -> Self {
        let path = mountpoint(pool);
        let command = command(["serve", &text(&pool.dir), "--mount", &text(&path)]);
        Self::run(command, path)
    }

    #[track_caller]
    fn run(mut command: Command, path: PathBuf) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let mut mounted = Self {
            child,
            path,
            uri: None,
        };
        for line in BufReader::new(stdout).lines() {
            let line = line.unwrap();
            if let Some(uri) = line.strip_prefix("listening on ") {
                mounted.uri = Some(uri.to_owned());
            } else {
                assert_eq!(line, format!("mounted on {}", text(&mounted.path)));
                return mounted;
            }
        }
        panic!("it ended early: {:?}", mounted.child.wait());
    }

    pub(crate) fn file(&self, volume: &str) -> PathBuf {
        self.path.join("volumes").join(volume)
    }

    /// The URI of a volume over NBD.
    pub(crate) fn uri(&self, volume: &str) -> String {
        let uri = self.uri.as_ref().expect("it serves NBD");
        let (scheme, query) = uri.split_once("///?").expect("a Unix socket");
        format!("{scheme}///{volume}?{query}")
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// It must end well and leave nothing mounted.
    #[track_caller]
    pub(crate) fn stop(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the mount ended with {status}");
        assert!(!is_mounted(&self.path));
        assert_eq!(fs::read_dir(&self.path).unwrap().count(), 0);
    }

    /// kill -9: the mount stays, dead.
    #[track_caller]
    pub(crate) fn kill(mut self) {
        self.signal(Signal::KILL);
        self.child.wait().unwrap();
        assert!(is_mounted(&self.path));
        assert_eq!(
            rustix::fs::statfs(&self.path).map(|_| ()),
            Err(Errno::NOTCONN)
        );
        // Left as it is for the next start: nothing for `drop` to do.
        self.path = PathBuf::new();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // All of these fail when it has ended well.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if !self.path.as_os_str().is_empty() {
            let _ = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        }
    }
}

pub(crate) fn mountpoint(pool: &TestPool) -> PathBuf {
    let path = pool.root.path().join("mnt");
    let _exists = fs::create_dir(&path);
    path
}

pub(crate) fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .any(|line| line.split(' ').nth(4) == path.to_str())
}

pub(crate) fn write_file(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// A loop device over a file; gone when dropped.
pub(crate) struct Loop(pub(crate) String);

impl Loop {
    #[track_caller]
    pub(crate) fn over(path: &Path, arguments: &[&str]) -> Self {
        let path = text(path);
        let command = [&["--find", "--show"], arguments, &[path.as_str()]].concat();
        Self(tool("losetup", &command).ok().trim().to_owned())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        tool("losetup", &["-d", &self.0]);
    }
}

/// A file system mounted from a device or a file; gone when dropped.
pub(crate) struct FileSystem(pub(crate) PathBuf);

impl FileSystem {
    #[track_caller]
    pub(crate) fn mount(from: &str, at: &Path, options: &str) -> Self {
        let _exists = fs::create_dir(at);
        tool("mount", &["-o", options, from, &text(at)]).ok();
        Self(at.to_owned())
    }

    /// Everything must be written back.
    #[track_caller]
    pub(crate) fn unmount(self) {
        tool("umount", &[&text(&self.0)]).ok();
        std::mem::forget(self);
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _gone = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}
