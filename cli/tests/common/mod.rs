//! What the tests of the real binary share: running it, serving a pool,
//! calling outside tools.
#![allow(dead_code, reason = "every test file uses its own part")]

pub(crate) mod mount;

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// Small enough to make in no time, large enough for a journal and segments.
pub(crate) const MEMBER_BYTES: u64 = 256 << 20;

/// Whether outside tools are there. A bare machine skips the test with a
/// message; where `CI=true` a missing tool is a failure.
#[must_use]
pub(crate) fn requires(tools: &[&str]) -> bool {
    let missing: Vec<&str> = tools
        .iter()
        .copied()
        .filter(|tool| !available(tool))
        .collect();
    if missing.is_empty() {
        return true;
    }
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(
        !ci,
        "{missing:?} must be installed where CI=true: see scripts/setup.sh"
    );
    eprintln!("skipped: {missing:?} is not installed (see scripts/setup.sh)");
    false
}

fn available(tool: &str) -> bool {
    if tool == "python3-libnbd" {
        return Command::new("/usr/bin/python3")
            .args(["-c", "import nbd"])
            .output()
            .is_ok_and(|output| output.status.success());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
}

/// How a command ended and what it said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("output is UTF-8"),
        }
    }
}

impl Ran {
    /// The standard output of a command that must have succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout
    }

    /// The same as JSON.
    #[track_caller]
    pub(crate) fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// The sentence of a command that must have failed as commands do: status
    /// 1, nothing on stdout, one line on stderr.
    #[track_caller]
    pub(crate) fn refused(self) -> String {
        assert_eq!(self.code, Some(1), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        let sentence = self
            .stderr
            .strip_prefix("tessera: ")
            .unwrap_or_else(|| panic!("{self:?}"));
        let sentence = sentence
            .strip_suffix('\n')
            .unwrap_or_else(|| panic!("{self:?}"));
        assert!(!sentence.contains('\n'), "one line: {self:?}");
        assert!(!sentence.ends_with('.'), "no final stop: {self:?}");
        assert!(sentence.len() > 10, "says something: {self:?}");
        sentence.to_owned()
    }
}

/// The binary under test, not yet started.
pub(crate) fn command<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tessera"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("TESSERA_LOG");
    command
}

/// Runs the binary to its end.
pub(crate) fn tessera<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ran {
    // A command that should have been refused may start to serve instead; the
    // limit only turns that into a failure.
    let command = command(arguments);
    Command::new("timeout")
        .arg("120")
        .arg(command.get_program())
        .args(command.get_args())
        .stdin(Stdio::null())
        .env_remove("TESSERA_LOG")
        .output()
        .expect("the binary runs")
        .into()
}

/// Runs an outside tool to its end.
pub(crate) fn tool(program: &str, arguments: &[&str]) -> Ran {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
        .into()
}

/// Runs a python3-libnbd script to its end; `h` is a handle that has
/// structured replies and `base:allocation` asked for and is not connected.
pub(crate) fn python_nbd(script: &str, arguments: &[&str]) -> Ran {
    python_nbd_command(script, arguments)
        .output()
        .expect("python3 runs")
        .into()
}

/// The same, not yet started.
pub(crate) fn python_nbd_command(script: &str, arguments: &[&str]) -> Command {
    let prelude = "import nbd, sys\nh = nbd.NBD()\nh.add_meta_context('base:allocation')\n";
    let mut command = Command::new("/usr/bin/python3");
    command
        .arg("-c")
        .arg(format!("{prelude}{script}"))
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// A directory of its own for one test. Sockets must fit an address, so it is
/// not below the build directory, whose name may be long.
pub(crate) fn scratch() -> TempDir {
    tempfile::Builder::new()
        .prefix("tessera-")
        .tempdir()
        .expect("a temporary directory")
}

/// A pool of sparse files in a directory that goes with it.
pub(crate) struct TestPool {
    pub(crate) root: TempDir,
    pub(crate) dir: PathBuf,
}

impl TestPool {
    /// Four files in RAID 5.
    pub(crate) fn raid5() -> Self {
        Self::create("raid5", 4)
    }

    pub(crate) fn create(level: &str, files: usize) -> Self {
        Self::create_of(level, files, MEMBER_BYTES)
    }

    /// Files of so many bytes each.
    pub(crate) fn create_of(level: &str, files: usize, member_bytes: u64) -> Self {
        let root = scratch();
        let dir = root.path().join("pool");
        let made = tessera([
            "pool".as_ref(),
            "create".as_ref(),
            dir.as_os_str(),
            "--level".as_ref(),
            level.as_ref(),
            "--files".as_ref(),
            files.to_string().as_ref(),
            "--file-size".as_ref(),
            member_bytes.to_string().as_ref(),
        ]);
        made.ok();
        Self { root, dir }
    }

    /// A copy in another directory, as if the members had been carried there.
    /// `pool.toml` still names the members by their old paths; see
    /// [`TestPool::import_all_but`].
    pub(crate) fn copy_members(&self) -> (TempDir, Vec<PathBuf>) {
        let root = scratch();
        let mut members = Vec::new();
        for path in self.members() {
            let target = root
                .path()
                .join(path.file_name().expect("a member has a name"));
            tool("cp", &["--sparse=always", &text(&path), &text(&target)]).ok();
            members.push(target);
        }
        (root, members)
    }

    /// The member files in order.
    pub(crate) fn members(&self) -> Vec<PathBuf> {
        let mut members: Vec<PathBuf> = fs::read_dir(&self.dir)
            .expect("the pool's directory can be listed")
            .map(|entry| entry.expect("an entry").path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "img"))
            .collect();
        members.sort();
        members
    }

    /// `tessera A B DIR C...`.
    pub(crate) fn run(&self, noun: &str, verb: &str, rest: &[&str]) -> Ran {
        run_on(&self.dir, noun, verb, rest)
    }

    pub(crate) fn volume(&self, name: &str, size: &str) {
        self.run("volume", "create", &[name, "--size", size]).ok();
    }

    pub(crate) fn status(&self) -> Value {
        self.run("pool", "status", &["--json"]).json()
    }

    /// Serves it on its default socket.
    pub(crate) fn serve(&self) -> Served {
        Served::start(&self.dir, &[])
    }
}

/// `tessera A B DIR C...`.
pub(crate) fn run_on(dir: &Path, noun: &str, verb: &str, rest: &[&str]) -> Ran {
    let dir = text(dir);
    tessera([noun, verb, &dir].into_iter().chain(rest.iter().copied()))
}

/// A path of this test, which is UTF-8.
pub(crate) fn text(path: &Path) -> String {
    path.to_str().expect("test paths are UTF-8").to_owned()
}

/// A serving process; killed when dropped, if it has not ended before.
pub(crate) struct Served {
    child: Child,
    /// The endpoints it has told of.
    pub(crate) uris: Vec<String>,
}

impl Served {
    /// Starts `tessera serve DIR ARGUMENT...` and waits until clients can connect.
    #[track_caller]
    pub(crate) fn start(dir: &Path, arguments: &[&str]) -> Self {
        let endpoints = if arguments.contains(&"--socket") && arguments.contains(&"--listen") {
            2
        } else {
            1
        };
        let mut command = command(["serve", &text(dir)]);
        command.args(arguments);
        Self::start_command(command, endpoints)
    }

    /// Starts a command that serves and tells of so many endpoints.
    #[track_caller]
    pub(crate) fn start_command(mut command: Command, endpoints: usize) -> Self {
        command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let stdout = child.stdout.take().expect("stdout is piped");
        let uris: Vec<String> = BufReader::new(stdout)
            .lines()
            .take(endpoints)
            .map(|line| {
                let line = line.expect("stdout is UTF-8");
                let uri = line.strip_prefix("listening on ");
                uri.unwrap_or_else(|| panic!("serve printed {line:?}"))
                    .to_owned()
            })
            .collect();
        let mut served = Self { child, uris };
        if served.uris.len() < endpoints {
            panic!("serve ended early: {:?}", served.child.wait());
        }
        served
    }

    /// The URI of a volume at the first endpoint.
    pub(crate) fn uri(&self, volume: &str) -> String {
        match self.uris[0].split_once("///?") {
            Some((scheme, query)) => format!("{scheme}///{volume}?{query}"),
            None => format!("{}/{volume}", self.uris[0].trim_end_matches('/')),
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the server runs");
    }

    /// Stops it as a service manager does; it must end well.
    #[track_caller]
    pub(crate) fn stop(self) {
        self.stop_with(Signal::TERM);
    }

    #[track_caller]
    pub(crate) fn stop_with(mut self, signal: Signal) {
        self.signal(signal);
        let status = self.child.wait().expect("the server can be waited for");
        assert!(status.success(), "the server ended with {status}");
    }

    /// What it says on stderr until it ends, where that is piped. Stop it first.
    pub(crate) fn stderr(&mut self) -> String {
        let mut said = String::new();
        let stderr = self.child.stderr.as_mut().expect("stderr is piped");
        stderr.read_to_string(&mut said).expect("it is UTF-8");
        said
    }

    /// kill -9.
    pub(crate) fn kill(mut self) -> ExitStatus {
        self.signal(Signal::KILL);
        self.child.wait().expect("the server can be waited for")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a directory holds: each file's length and a digest of its contents.
/// Equal before and after means that nothing was changed.
pub(crate) fn contents(dir: &Path) -> BTreeMap<PathBuf, (u64, u64)> {
    let mut found = BTreeMap::new();
    let Ok(entries) = fs::read_dir(dir) else {
        return found;
    };
    for entry in entries {
        let entry = entry.expect("an entry");
        let kind = entry.file_type().expect("its type");
        let path = entry.path();
        if kind.is_dir() {
            found.insert(path.clone(), (0, 0));
            found.extend(contents(&path));
        } else if kind.is_file() {
            let length = entry.metadata().expect("its length").len();
            found.insert(path.clone(), (length, digest(&path)));
        } else if kind.is_socket() {
            found.insert(path, (0, 1));
        }
    }
    found
}

/// FNV-1a over 64-bit words, skipping holes by way of SEEK_DATA.
fn digest(path: &Path) -> u64 {
    let mut file = File::open(path).expect("it can be opened");
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut offset = 0;
    let mut buffer = vec![0u8; 1 << 20];
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)) {
        file.seek(SeekFrom::Start(data)).expect("it can be read");
        let end =
            rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).expect("a hole follows");
        file.seek(SeekFrom::Start(data)).expect("it can be read");
        let mut left = end - data;
        let mut position = data;
        while left > 0 {
            let want = usize::try_from(left.min(1 << 20)).expect("at most 1 MiB");
            let got = file.read(&mut buffer[..want]).expect("it can be read");
            if got == 0 {
                break;
            }
            for (index, word) in buffer[..got].chunks(8).enumerate() {
                let mut bytes = [0u8; 8];
                bytes[..word.len()].copy_from_slice(word);
                let value = u64::from_le_bytes(bytes);
                // Zeroes count as little as holes do.
                if value != 0 {
                    let place = position + 8 * index as u64;
                    hash = (hash ^ value ^ place.rotate_left(32)).wrapping_mul(0x0100_0000_01b3);
                }
            }
            left -= got as u64;
            position += got as u64;
        }
        offset = end;
    }
    hash
}

/// Writes a file of incompressible bytes that depend on `seed` alone, with a
/// hole in its middle third.
pub(crate) fn random_file(path: &Path, bytes: u64, seed: u64) {
    let file = File::create(path).expect("the file can be made");
    file.set_len(bytes).expect("the file can be grown");
    let mut file = std::io::BufWriter::new(file);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut fill = |from: u64, to: u64| {
        file.seek(SeekFrom::Start(from)).expect("it can be written");
        for _ in 0..(to - from) / 8 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            file.write_all(&state.to_le_bytes())
                .expect("it can be written");
        }
    };
    let third = bytes / 3 / 4096 * 4096;
    fill(0, third);
    fill(2 * third, bytes);
    file.flush().expect("it can be written");
}

/// Overwrites `length` bytes of a file at `offset`.
pub(crate) fn scribble(path: &Path, offset: u64, length: usize) {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .open(path)
        .expect("it can be opened");
    file.seek(SeekFrom::Start(offset))
        .expect("it can be written");
    file.write_all(&vec![0x5a; length])
        .expect("it can be written");
    file.sync_all().expect("it can be synced");
}
