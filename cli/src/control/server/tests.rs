//! The control socket's two ends against a pool made of a map.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt, sync::Mutex};

use tessera_engine::api::{
    CheckReport, Compression, DedupMode, DedupSchedule, IndexInfo, JobInfo, JobKind, PoolSettings,
    PoolState, PoolStatus, SegmentCounts, SettingsChange, SnapshotDiff, SnapshotInfo, SpaceUse,
    VolumeChange, VolumeInfo, VolumeSpec,
};

use super::*;
use crate::{
    access::{DiffPart, JobControl, NewDevice, Resize, ServerInfo, SnapshotName, StatusAnswer},
    check_run::{CheckAnswer, CheckState},
    control::client::Client,
};

#[derive(Default)]
struct MapPool(Mutex<BTreeMap<String, VolumeInfo>>);

fn missing(name: &str) -> Failure {
    Failure::new(Kind::NotFound, format!("There is no volume {name:?}"))
}

impl Management for MapPool {
    fn start_check(&self, data: bool) -> Result<CheckAnswer, Failure> {
        Ok(CheckAnswer {
            state: CheckState::Running,
            total: u64::from(data),
            ..CheckAnswer::default()
        })
    }

    fn check(&self) -> Result<CheckAnswer, Failure> {
        Ok(CheckAnswer {
            state: CheckState::Done,
            report: Some(CheckReport {
                problems: vec!["Page 3 is torn".into()],
                ..CheckReport::default()
            }),
            ..CheckAnswer::default()
        })
    }

    fn status(&self) -> Result<StatusAnswer, Failure> {
        Ok(StatusAnswer {
            pool: PoolStatus {
                uuid: "u".into(),
                level: "raid5".into(),
                state: PoolState::Online,
                members: Vec::new(),
                stripe_unit_bytes: 65536,
                capacity_bytes: u64::MAX,
                free_bytes: 1,
                reclaimable_bytes: Some(5),
                logical_bytes: 2,
                unique_bytes: 3,
                stored_bytes: 4,
                dedup_ratio: 1.5,
                compression_ratio: 1.0,
                io_engine: "simulated".into(),
                served: true,
                volumes: 0,
                snapshots: 0,
                snapshot_bytes: 0,
                counted_unix_ms: Some(6),
                counted_exactly: true,
                warnings: Vec::new(),
                index_entries: 0,
                index_state: "ready".into(),
                index: IndexInfo::default(),
                segments: SegmentCounts::default(),
                sequence: 9,
                last_failure: None,
                stopped: None,
                losses: None,
                jobs: Vec::new(),
            },
            server: Some(ServerInfo {
                pid: 7,
                version: "0".into(),
                endpoints: vec!["nbd://x".into()],
                read_only: false,
                connections: 0,
            }),
        })
    }

    fn volumes(&self) -> Result<Vec<VolumeInfo>, Failure> {
        Ok(self.0.lock().unwrap().values().cloned().collect())
    }

    fn volume(&self, name: &str) -> Result<VolumeInfo, Failure> {
        self.0
            .lock()
            .unwrap()
            .get(name)
            .cloned()
            .ok_or_else(|| missing(name))
    }

    fn create_volume(&self, spec: &VolumeSpec) -> Result<VolumeInfo, Failure> {
        let info = VolumeInfo {
            name: spec.name.clone(),
            id: 1,
            size_bytes: spec.size_bytes,
            logical_bytes: 0,
            chunk_bytes: spec.chunk_bytes,
            dedup: spec.dedup,
            compression: spec.compression,
            allow_shrink: false,
            space: SpaceUse::known(3, 2, 1),
        };
        self.0
            .lock()
            .unwrap()
            .insert(spec.name.clone(), info.clone());
        Ok(info)
    }

    fn resize_volume(&self, name: &str, resize: Resize) -> Result<VolumeInfo, Failure> {
        let mut volumes = self.0.lock().unwrap();
        let volume = volumes.get_mut(name).ok_or_else(|| missing(name))?;
        if resize.size_bytes < volume.size_bytes && !resize.force {
            return Err(Failure::new(Kind::InvalidArgument, "That would shrink it"));
        }
        volume.size_bytes = resize.size_bytes;
        Ok(volume.clone())
    }

    fn rename_volume(&self, old: &str, new: &str) -> Result<VolumeInfo, Failure> {
        let mut volumes = self.0.lock().unwrap();
        let mut volume = volumes.remove(old).ok_or_else(|| missing(old))?;
        volume.name = new.to_owned();
        volumes.insert(new.to_owned(), volume.clone());
        Ok(volume)
    }

    fn set_volume(&self, name: &str, change: &VolumeChange) -> Result<VolumeInfo, Failure> {
        let mut volumes = self.0.lock().unwrap();
        let volume = volumes.get_mut(name).ok_or_else(|| missing(name))?;
        volume.dedup = change.dedup.unwrap_or(volume.dedup);
        volume.compression = change.compression.unwrap_or(volume.compression);
        Ok(volume.clone())
    }

    fn delete_volume(&self, name: &str, snapshots: bool) -> Result<(), Failure> {
        assert!(!snapshots || name == "all", "only asked for so");
        self.0
            .lock()
            .unwrap()
            .remove(name)
            .map(|_| ())
            .ok_or_else(|| missing(name))
    }

    fn snapshots(&self, volume: Option<&str>) -> Result<Vec<SnapshotInfo>, Failure> {
        Ok(volume
            .map(|volume| snapshot(volume, "s"))
            .into_iter()
            .collect())
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotInfo, Failure> {
        Ok(snapshot(&name.volume, &name.snapshot))
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<(), Failure> {
        match name.to_string().as_str() {
            "vm1@s" => Ok(()),
            other => Err(missing(other)),
        }
    }

    fn roll_back(&self, name: &SnapshotName, force: bool) -> Result<VolumeInfo, Failure> {
        match force {
            true => self.volume(&name.volume),
            false => Err(Failure::new(Kind::Busy, "It is in use")),
        }
    }

    fn clone_snapshot(&self, name: &SnapshotName, new: &str) -> Result<VolumeInfo, Failure> {
        let mut volume = self.volume(&name.volume)?;
        volume.name = new.to_owned();
        Ok(volume)
    }

    fn snapshot_diff(
        &self,
        from: &SnapshotName,
        to: &str,
        part: DiffPart,
    ) -> Result<SnapshotDiff, Failure> {
        Ok(SnapshotDiff {
            from: from.to_string(),
            to: to.to_owned(),
            from_bytes: 1,
            to_bytes: part.offset,
            changed_bytes: part.max as u64,
            ranges: Vec::new(),
            end: 3,
        })
    }

    fn fail_member(&self, member: u32, reason: &str) -> Result<(), Failure> {
        match (member, reason) {
            (3, "it smokes") => Ok(()),
            _ => Err(Failure::new(Kind::NotFound, format!("no member {member}"))),
        }
    }

    fn remove_member(&self, member: u32) -> Result<(), Failure> {
        self.fail_member(member, "it smokes")
    }

    fn replace_member(&self, member: u32, device: &NewDevice) -> Result<JobInfo, Failure> {
        Ok(JobInfo {
            member: Some(member),
            message: format!("{} {}", device.path.display(), device.force),
            ..JobInfo::none(JobKind::Rebuild)
        })
    }

    fn readd_member(&self, member: u32, path: &Path) -> Result<JobInfo, Failure> {
        let device = NewDevice {
            path: path.to_owned(),
            force: false,
        };
        self.replace_member(member, &device)
    }

    fn add_spare(&self, device: &NewDevice) -> Result<u32, Failure> {
        Ok(if device.force { 5 } else { 4 })
    }

    fn jobs(&self) -> Result<Vec<JobInfo>, Failure> {
        Ok(vec![self.job(1)?])
    }

    fn job(&self, id: u64) -> Result<JobInfo, Failure> {
        Ok(JobInfo {
            id,
            ..JobInfo::none(JobKind::Scrub)
        })
    }

    fn control_job(&self, id: u64, control: JobControl) -> Result<JobInfo, Failure> {
        Ok(JobInfo {
            message: format!("{control:?}"),
            ..self.job(id)?
        })
    }

    fn start_job(&self, _: JobKind) -> Result<JobInfo, Failure> {
        self.job(2)
    }

    fn newest_job(&self, _: JobKind) -> Result<JobInfo, Failure> {
        self.job(1)
    }

    fn cancel_newest(&self, _: JobKind) -> Result<JobInfo, Failure> {
        Err(Failure::new(Kind::NotFound, "No scrub runs"))
    }

    fn index(&self) -> Result<IndexInfo, Failure> {
        Ok(IndexInfo {
            state: "ready".into(),
            ..IndexInfo::default()
        })
    }

    fn drop_index(&self) -> Result<IndexInfo, Failure> {
        Ok(IndexInfo {
            state: "dropped".into(),
            ..IndexInfo::default()
        })
    }

    fn rebuild_index(&self) -> Result<IndexInfo, Failure> {
        Ok(IndexInfo {
            state: "rebuilding".into(),
            ..IndexInfo::default()
        })
    }

    fn settings(&self) -> Result<PoolSettings, Failure> {
        self.change_settings(&SettingsChange::default())
    }

    fn change_settings(&self, change: &SettingsChange) -> Result<PoolSettings, Failure> {
        Ok(PoolSettings {
            rebuild_bytes_per_second: change.rebuild_bytes_per_second.unwrap_or(1),
            scrub_bytes_per_second: change.scrub_bytes_per_second.unwrap_or(2),
            read_errors_per_hour: change.read_errors_per_hour.unwrap_or(3),
            stall_limit_ms: change.stall_limit_ms.unwrap_or(4),
            scrub_interval_seconds: change.scrub_interval_seconds.unwrap_or(5),
            reclaim_bytes_per_second: change.reclaim_bytes_per_second.unwrap_or(6),
            dedup_bytes_per_second: change.dedup_bytes_per_second.unwrap_or(7),
            dedup_every: change.dedup_every.unwrap_or_default(),
            index_disk_bytes: change.index_disk_bytes.unwrap_or(6),
            warn_free_percent: change.warn_free_percent.unwrap_or(6),
            warn_free_bytes: change.warn_free_bytes.unwrap_or(0),
        })
    }

    fn is_for_command(&self) -> bool {
        false
    }
}

fn serve(dir: &Path) -> ControlServer {
    ControlServer::start(dir, Arc::new(MapPool::default())).expect("the socket can be listened on")
}

fn exchange(dir: &Path, request: &[u8]) -> String {
    let mut stream = client::connect(dir).unwrap().expect("the server listens");
    stream.write_all(request).unwrap();
    // A server that answers before it has read everything resets the
    // connection behind its answer.
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
    String::from_utf8(answer).unwrap()
}

fn spec(name: &str) -> VolumeSpec {
    VolumeSpec {
        name: name.to_owned(),
        size_bytes: 1 << 30,
        chunk_bytes: 4096,
        dedup: DedupMode::Inline,
        compression: Compression::Lz4,
    }
}

#[test]
fn members_jobs_scrub_and_settings_cross_the_socket_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let server = ControlServer::start(dir.path(), Arc::new(MapPool::default())).unwrap();
    let client = Client::connect(dir.path()).unwrap().unwrap();
    client.fail_member(3, "it smokes").unwrap();
    assert_eq!(
        client.fail_member(4, "it smokes").unwrap_err().kind,
        Kind::NotFound
    );
    client.remove_member(3).unwrap();
    let device = |force| NewDevice {
        path: "/d/new.img".into(),
        force,
    };
    let job = client.replace_member(2, &device(true)).unwrap();
    assert_eq!(
        (job.member, job.message.as_str()),
        (Some(2), "/d/new.img true")
    );
    let job = client.readd_member(1, Path::new("/d/old.img")).unwrap();
    assert_eq!(
        (job.member, job.message.as_str()),
        (Some(1), "/d/old.img false")
    );
    assert_eq!(client.add_spare(&device(true)).unwrap(), 5);
    assert_eq!(client.jobs().unwrap().len(), 1);
    assert_eq!(client.job(u64::MAX).unwrap().id, u64::MAX);
    for control in [JobControl::Pause, JobControl::Resume, JobControl::Cancel] {
        let job = client.control_job(9, control).unwrap();
        assert_eq!((job.id, job.message), (9, format!("{control:?}")));
    }
    assert_eq!(client.start_job(JobKind::Scrub).unwrap().id, 2);
    assert_eq!(client.newest_job(JobKind::Scrub).unwrap().id, 1);
    assert_eq!(
        client.cancel_newest(JobKind::Scrub).unwrap_err().message,
        "No scrub runs"
    );
    let change = SettingsChange {
        stall_limit_ms: Some(70),
        dedup_every: Some(DedupSchedule::Seconds(9)),
        ..SettingsChange::default()
    };
    let settings = client.change_settings(&change).unwrap();
    assert_eq!(settings.dedup_every, DedupSchedule::Seconds(9));
    assert_eq!(
        (settings.stall_limit_ms, settings.scrub_bytes_per_second),
        (70, 2)
    );
    assert_eq!(client.settings().unwrap().stall_limit_ms, 4);

    let check = client.start_check(true).unwrap();
    assert_eq!((check.state, check.total), (CheckState::Running, 1));
    assert_eq!(client.start_check(false).unwrap().total, 0);
    assert_eq!(client.check(), MapPool::default().check());
    server.shutdown();
}

#[test]
fn every_call_crosses_the_socket_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let client = Client::connect(dir.path())
        .unwrap()
        .expect("the server listens");
    assert_eq!(client.status(), MapPool::default().status());
    assert_eq!(client.volumes(), Ok(Vec::new()));
    let made = client.create_volume(&spec("vm1")).unwrap();
    assert_eq!(client.volumes(), Ok(vec![made.clone()]));
    assert_eq!(client.volume("vm1"), Ok(made));
    let grown = client
        .resize_volume(
            "vm1",
            Resize {
                size_bytes: 2 << 30,
                force: false,
            },
        )
        .unwrap();
    assert_eq!(grown.size_bytes, 2 << 30);
    let refused = client.resize_volume(
        "vm1",
        Resize {
            size_bytes: 1,
            force: false,
        },
    );
    assert_eq!(
        refused,
        Err(Failure::new(Kind::InvalidArgument, "That would shrink it"))
    );
    let shrunk = client
        .resize_volume(
            "vm1",
            Resize {
                size_bytes: 1,
                force: true,
            },
        )
        .unwrap();
    assert_eq!(shrunk.size_bytes, 1);
    assert_eq!(
        client.rename_volume("vm1", "wéb 1/2").unwrap().name,
        "wéb 1/2"
    );
    assert_eq!(client.volume("vm1"), Err(missing("vm1")));
    assert_eq!(client.volume("wéb 1/2").unwrap().name, "wéb 1/2");
    assert_eq!(client.delete_volume("wéb 1/2", false), Ok(()));
    assert_eq!(
        client.delete_volume("wéb 1/2", false),
        Err(missing("wéb 1/2"))
    );
    server.shutdown();
    assert!(Client::connect(dir.path()).unwrap().is_none());
}

fn snapshot(volume: &str, name: &str) -> SnapshotInfo {
    SnapshotInfo {
        volume: volume.to_owned(),
        name: name.to_owned(),
        id: 7,
        size_bytes: 8,
        logical_bytes: 9,
        taken_unix_ms: 10,
        space: SpaceUse::default(),
    }
}

#[test]
fn snapshots_are_managed_through_the_socket() {
    let dir = tempfile::tempdir().unwrap();
    let _server = serve(dir.path());
    let client = Client::connect(dir.path()).unwrap().unwrap();
    client.create_volume(&spec("vm1")).unwrap();
    let name: SnapshotName = "vm1@s".parse().unwrap();
    let made = client.create_snapshot(&name);
    assert_eq!(made, Ok(snapshot("vm1", "s")));
    assert_eq!(client.snapshots(None), Ok(Vec::new()));
    assert_eq!(
        client.snapshots(Some("vm1")),
        Ok(vec![snapshot("vm1", "s")])
    );
    let busy = client.roll_back(&name, false).unwrap_err();
    assert_eq!(busy.kind, Kind::Busy);
    assert_eq!(client.roll_back(&name, true).unwrap().name, "vm1");
    assert_eq!(client.clone_snapshot(&name, "new").unwrap().name, "new");
    let diff = client.snapshot_diff(&name, "vm1@t", DiffPart { offset: 5, max: 6 });
    let diff = diff.unwrap();
    assert_eq!((diff.from.as_str(), diff.to.as_str()), ("vm1@s", "vm1@t"));
    assert_eq!((diff.to_bytes, diff.changed_bytes), (5, 6));
    assert_eq!(client.delete_snapshot(&name), Ok(()));
    let other: SnapshotName = "vm1@é".parse().unwrap();
    assert_eq!(client.delete_snapshot(&other), Err(missing("vm1@é")));
}

#[test]
fn the_socket_is_private_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    let server = serve(dir.path());
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    server.shutdown();
    assert!(!path.exists());
}

#[test]
fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap());
    assert!(Client::connect(dir.path()).unwrap().is_none());
    let server = serve(dir.path());
    let second = ControlServer::start(dir.path(), Arc::new(MapPool::default()));
    assert_eq!(second.expect_err("one server a pool").kind, Kind::Busy);
    assert!(Client::connect(dir.path()).unwrap().is_some());
    server.shutdown();
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(SOCKET_NAME);
    fs::write(&path, "precious").unwrap();
    assert!(ControlServer::start(dir.path(), Arc::new(MapPool::default())).is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

#[test]
fn a_directory_too_deep_for_a_socket_address_works() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d".repeat(120)).join("e".repeat(120));
    fs::create_dir_all(&dir).unwrap();
    let server = serve(&dir);
    assert!(Client::connect(&dir).unwrap().unwrap().volumes().is_ok());
    server.shutdown();
    assert!(!dir.join(SOCKET_NAME).exists());
}

#[test]
fn wrong_requests_are_named_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let body = |method: &str, path: &str, json: &str| {
        format!(
            "{method} {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{json}",
            json.len()
        )
    };
    for (request, status) in [
        ("nonsense\r\n\r\n".to_owned(), "400"),
        ("GET /v2/status HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("GET /v1/volumes/none HTTP/1.1\r\n\r\n".to_owned(), "404"),
        ("PUT /v1/status HTTP/1.1\r\n\r\n".to_owned(), "405"),
        (
            "GET / HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n".to_owned(),
            "413",
        ),
        (body("POST", "/v1/volumes", "{"), "400"),
        (body("POST", "/v1/volumes", r#"{"name":"a"}"#), "400"),
        (
            body("POST", "/v1/volumes", r#"{"name":"a","size_bytes":-1}"#),
            "400",
        ),
        (
            body("PATCH", "/v1/volumes/a", r#"{"size_bytes":1,"name":"b"}"#),
            "400",
        ),
        (body("PATCH", "/v1/volumes/a", "{}"), "400"),
        (
            body("PATCH", "/v1/volumes/a", r#"{"dedup":"post","name":"b"}"#),
            "400",
        ),
        (
            body("PATCH", "/v1/volumes/a", r#"{"dedup":"later"}"#),
            "400",
        ),
    ] {
        let answer = exchange(dir.path(), request.as_bytes());
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {answer}"
        );
        assert!(answer.contains("\"message\":"), "{request:?}: {answer}");
    }
    assert!(exchange(dir.path(), b"GET /v1/volumes HTTP/1.1\r\n\r\n").ends_with("[]\n"));
    server.shutdown();
}

#[test]
fn clients_that_hold_every_place_do_not_stop_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let server = serve(dir.path());
    let idle: Vec<UnixStream> = (0..MAX_CONNECTIONS + 8)
        .map(|_| {
            client::connect(dir.path())
                .unwrap()
                .expect("the server listens")
        })
        .collect();
    // Connections are accepted in order, so by the time one more is answered
    // all of them have been given or refused a place.
    let answer = exchange(dir.path(), b"GET /v1/status HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(idle);
    let client = Client::connect(dir.path())
        .unwrap()
        .expect("the server listens");
    // The threads need a moment to notice; every refusal is a clean one.
    while let Err(failure) = client.volumes() {
        assert_eq!(failure.kind, Kind::Busy, "{failure}");
        std::thread::yield_now();
    }
    server.shutdown();
}
