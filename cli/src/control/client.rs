//! The client's side: management calls that another process carries out.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Serialize, de::DeserializeOwned};
use tessera_engine::api::{
    IndexInfo, JobInfo, JobKind, PoolSettings, SettingsChange, SnapshotDiff, SnapshotInfo,
    VolumeChange, VolumeInfo, VolumeSpec,
};

use super::{
    Address, SOCKET_NAME,
    http::{self, Parsed, Request, Response},
    wire::{
        self, ChangeBody, CheckBody, CloneBody, DeleteBody, DiffBody, ErrorBody, FailBody,
        ReaddBody, RollBackBody, SpareAnswer,
    },
};
use crate::{
    access::{DiffPart, JobControl, Management, NewDevice, Resize, SnapshotName, StatusAnswer},
    check_run::CheckAnswer,
    failure::{Failure, Kind},
};

/// How long an operation may take before the client stops waiting for it.
const ANSWER_PATIENCE: Duration = Duration::from_secs(300);

/// A served pool, reached through its control socket. Every call is a
/// connection of its own.
#[derive(Debug)]
pub(crate) struct Client {
    dir: PathBuf,
}

impl Client {
    /// The pool's server, or `None` when there is none: no socket, or one
    /// that a killed server left behind.
    pub(crate) fn connect(dir: &Path) -> Result<Option<Self>, Failure> {
        Ok(connect(dir)?.map(|_| Self {
            dir: dir.to_owned(),
        }))
    }

    fn call<T: DeserializeOwned>(
        &self,
        method: &str,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Failure> {
        let body = match body {
            Some(body) => serde_json::to_vec(body)
                .map_err(|error| Failure::new(Kind::InvalidArgument, error.to_string()))?,
            None => Vec::new(),
        };
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body,
        };
        let response = self.exchange(&request)?;
        if (200..300).contains(&response.status) {
            return serde_json::from_slice(&response.body).map_err(|error| {
                Failure::new(
                    Kind::Io,
                    format!(
                        "The server's answer is not understood ({error}); is it of another version?"
                    ),
                )
            });
        }
        match serde_json::from_slice::<ErrorBody>(&response.body) {
            Ok(body) => Err(body.error),
            Err(_) => Err(Failure::new(
                Kind::Io,
                format!("The server answered with status {}", response.status),
            )),
        }
    }

    fn exchange(&self, request: &Request) -> Result<Response, Failure> {
        let lost = |error: io::Error| {
            Failure::new(
                Kind::Io,
                format!(
                    "The server at {} did not answer: {error}",
                    self.dir.join(SOCKET_NAME).display()
                ),
            )
        };
        let mut stream = connect(&self.dir)?.ok_or_else(|| {
            Failure::new(
                Kind::Io,
                format!("The server of {} is gone", self.dir.display()),
            )
        })?;
        // A server that refuses early (too busy) may close before it has read
        // everything; its answer is still there to be read.
        let sent = stream.write_all(&http::encode_request(request));
        match read_response(&mut stream) {
            Ok(response) => response,
            Err(error) => Err(lost(sent.err().unwrap_or(error))),
        }
    }
}

fn read_response(stream: &mut UnixStream) -> io::Result<Result<Response, Failure>> {
    let deadline = Instant::now() + ANSWER_PATIENCE;
    let mut bytes = Vec::new();
    let mut piece = [0u8; 16 << 10];
    loop {
        match http::parse_response(&bytes) {
            Ok(Parsed::Complete(response)) => return Ok(Ok(response)),
            Ok(Parsed::Partial) => {}
            Err(malformed) => return Ok(Err(Failure::new(Kind::Io, malformed.message))),
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => bytes.extend_from_slice(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Connects, or tells that nobody listens.
pub(super) fn connect(dir: &Path) -> Result<Option<UnixStream>, Failure> {
    let failed = |error: io::Error| {
        let path = dir.join(SOCKET_NAME);
        let kind = if error.kind() == io::ErrorKind::PermissionDenied {
            Kind::Busy
        } else {
            Kind::Io
        };
        Failure::new(
            kind,
            format!("{} cannot be reached: {error}", path.display()),
        )
    };
    let address = match Address::in_directory(dir) {
        Ok(address) => address,
        Err(error) if nobody_there(error.kind()) => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|errno| failed(errno.into()))?;
    match rustix::net::connect(&socket, &address.address).map_err(io::Error::from) {
        Ok(()) => {
            let stream = UnixStream::from(socket);
            stream
                .set_write_timeout(Some(ANSWER_PATIENCE))
                .map_err(failed)?;
            Ok(Some(stream))
        }
        Err(error) if nobody_there(error.kind()) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// No directory, no socket in it, or a socket whose listener is gone. What is
/// wrong with the directory itself is for whoever opens the pool to say.
fn nobody_there(kind: io::ErrorKind) -> bool {
    matches!(
        kind,
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::ConnectionRefused
    )
}

const NO_BODY: Option<&()> = None;

fn member_path(member: u32, verb: &str) -> String {
    format!("{}/{member}{verb}", wire::MEMBERS_PATH)
}

fn snapshot_path(name: &SnapshotName, verb: &str) -> String {
    wire::snapshot_path(&name.to_string()) + verb
}

impl Management for Client {
    fn status(&self) -> Result<StatusAnswer, Failure> {
        self.call("GET", wire::STATUS_PATH, NO_BODY)
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        self.call("GET", wire::VOLUMES_PATH, NO_BODY)
    }

    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        self.call("GET", &wire::volume_path(name), NO_BODY)
    }

    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure> {
        self.call("POST", wire::VOLUMES_PATH, Some(spec))
    }

    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure> {
        let body = ChangeBody {
            size_bytes: Some(resize.size_bytes),
            force: resize.force,
            ..ChangeBody::default()
        };
        self.call("PATCH", &wire::volume_path(name), Some(&body))
    }

    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure> {
        let body = ChangeBody {
            name: Some(new.to_owned()),
            ..ChangeBody::default()
        };
        self.call("PATCH", &wire::volume_path(old), Some(&body))
    }

    fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, Failure> {
        self.call("PATCH", &wire::volume_path(name), Some(change))
    }

    fn delete_volume(&self, name: &str, snapshots: bool) -> Result<(), Failure> {
        let body = DeleteBody { snapshots };
        self.call("DELETE", &wire::volume_path(name), Some(&body))
    }

    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, Failure> {
        match volume {
            None => self.call("GET", wire::SNAPSHOTS_PATH, NO_BODY),
            Some(volume) => self.call("GET", &wire::snapshot_path(volume), NO_BODY),
        }
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, Failure> {
        self.call("POST", &snapshot_path(name, ""), NO_BODY)
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<(), Failure> {
        self.call("DELETE", &snapshot_path(name, ""), NO_BODY)
    }

    fn roll_back(&self, name: &SnapshotName, force: bool) -> Result<VolumeInfo, Failure> {
        let body = RollBackBody { force };
        self.call("POST", &snapshot_path(name, "/rollback"), Some(&body))
    }

    fn clone_snapshot(&self, name: &SnapshotName, new: &str) -> Result<VolumeInfo, Failure> {
        let body = CloneBody {
            name: new.to_owned(),
        };
        self.call("POST", &snapshot_path(name, "/clone"), Some(&body))
    }

    fn snapshot_diff(
        &self,
        from: &SnapshotName,
        to: &str,
        part: DiffPart,
    ) -> Result<SnapshotDiff, Failure> {
        let body = DiffBody {
            to: to.to_owned(),
            part,
        };
        self.call("POST", &snapshot_path(from, "/diff"), Some(&body))
    }

    fn fail_member(&self, member: u32, reason: &str) -> Result<(), Failure> {
        let body = FailBody {
            reason: reason.to_owned(),
        };
        self.call("POST", &member_path(member, "/fail"), Some(&body))
    }

    fn remove_member(&self, member: u32) -> Result<(), Failure> {
        self.call("DELETE", &member_path(member, ""), NO_BODY)
    }

    fn replace_member(&self, member: u32, device: &NewDevice) -> Result<JobInfo, Failure> {
        self.call("POST", &member_path(member, "/replace"), Some(device))
    }

    fn readd_member(&self, member: u32, path: &Path) -> Result<JobInfo, Failure> {
        let body = ReaddBody {
            path: path.to_owned(),
        };
        self.call("POST", &member_path(member, "/readd"), Some(&body))
    }

    fn add_spare(&self, device: &NewDevice) -> Result<u32, Failure> {
        let answer: SpareAnswer = self.call("POST", wire::MEMBERS_PATH, Some(device))?;
        Ok(answer.index)
    }

    fn jobs(&self) -> Result<Vec<JobInfo>, Failure> {
        self.call("GET", wire::JOBS_PATH, NO_BODY)
    }

    fn job(&self, id: u64) -> Result<JobInfo, Failure> {
        self.call("GET", &format!("{}/{id}", wire::JOBS_PATH), NO_BODY)
    }

    fn control_job(&self, id: u64, control: JobControl) -> Result<JobInfo, Failure> {
        let verb = match control {
            JobControl::Pause => "pause",
            JobControl::Resume => "resume",
            JobControl::Cancel => "cancel",
        };
        self.call("POST", &format!("{}/{id}/{verb}", wire::JOBS_PATH), NO_BODY)
    }

    fn start_job(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        self.call("POST", wire::kind_path(kind), NO_BODY)
    }

    fn newest_job(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        self.call("GET", wire::kind_path(kind), NO_BODY)
    }

    fn cancel_newest(&self, kind: JobKind) -> Result<JobInfo, Failure> {
        self.call("DELETE", wire::kind_path(kind), NO_BODY)
    }

    fn index(&self) -> Result<IndexInfo, Failure> {
        self.call("GET", wire::INDEX_PATH, NO_BODY)
    }

    fn drop_index(&self) -> Result<IndexInfo, Failure> {
        self.call("DELETE", wire::INDEX_PATH, NO_BODY)
    }

    fn rebuild_index(&self) -> Result<IndexInfo, Failure> {
        self.call("POST", wire::INDEX_PATH, NO_BODY)
    }

    fn settings(&self) -> Result<PoolSettings, Failure> {
        self.call("GET", wire::SETTINGS_PATH, NO_BODY)
    }

    fn change_settings(&self, change: &SettingsChange) -> Result<PoolSettings, Failure> {
        self.call("PATCH", wire::SETTINGS_PATH, Some(change))
    }

    fn start_check(&self, data: bool) -> Result<CheckAnswer, Failure> {
        self.call("POST", wire::CHECK_PATH, Some(&CheckBody { data }))
    }

    fn check(&self) -> Result<CheckAnswer, Failure> {
        self.call("GET", wire::CHECK_PATH, NO_BODY)
    }

    fn is_for_command(&self) -> bool {
        false
    }
}
