//! `tessera serve`: endpoints, stopping, what clients may and may not do.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    process::{ChildStdout, Command, Stdio},
};

use common::{
    Served, TestPool, contents, python_nbd, python_nbd_command, requires, tessera, text, tool,
};
use rustix::process::Signal;

#[test]
fn every_endpoint_is_told_and_answers() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let socket = text(&pool.root.path().join("other.sock"));
    let served = Served::start(&pool.dir, &["--socket", &socket, "--listen", "127.0.0.1:0"]);
    assert_eq!(served.uris[0], format!("nbd+unix:///?socket={socket}"));
    assert!(
        served.uris[1].starts_with("nbd://127.0.0.1:"),
        "{:?}",
        served.uris
    );
    for uri in &served.uris {
        // The only volume is the default export.
        assert_eq!(
            tool("nbdinfo", &["--size", uri]).ok().trim(),
            (1u64 << 30).to_string()
        );
    }
    let server = &pool.status()["server"];
    assert_eq!(server["pid"], served.pid());
    assert_eq!(server["endpoints"], serde_json::json!(served.uris));
    assert_eq!(server["read_only"], false);
    served.stop();
    assert!(!fs::exists(&socket).unwrap());
}

#[test]
fn the_default_endpoint_is_a_socket_in_the_pools_directory() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    let socket = pool.dir.join("nbd.sock");
    assert_eq!(
        served.uris,
        [format!("nbd+unix:///?socket={}", text(&socket))]
    );
    let mode = fs::metadata(pool.dir.join("control.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    served.stop();
    assert!(!socket.exists());
    assert!(!pool.dir.join("control.sock").exists());
}

#[test]
fn each_stop_signal_ends_the_server_well() {
    let pool = TestPool::raid5();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        pool.serve().stop_with(signal);
        assert_eq!(pool.status()["state"], "online");
    }
}

#[test]
fn sockets_of_a_killed_server_are_replaced() {
    let pool = TestPool::raid5();
    for _ in 0..3 {
        pool.serve().kill();
        assert!(pool.dir.join("control.sock").exists() && pool.dir.join("nbd.sock").exists());
        // Nobody listens there: the command opens the pool itself.
        assert_eq!(pool.status()["served"], false);
    }
    pool.serve().stop();
}

#[test]
fn wrong_endpoints_are_refused_and_leave_the_pool_usable() {
    let pool = TestPool::raid5();
    let dir = text(&pool.dir);
    let taken = pool.root.path().join("taken.sock");
    let _listener = UnixListener::bind(&taken).unwrap();
    let file = pool.root.path().join("file");
    fs::write(&file, "precious").unwrap();
    let long = text(&pool.root.path().join("x".repeat(120)));
    for arguments in [
        ["--socket", &text(&taken)],
        ["--socket", &text(&file)],
        ["--socket", &long],
        ["--socket", "/nonexistent/nbd.sock"],
        ["--listen", "nowhere"],
        ["--listen", "127.0.0.1:99999"],
        ["--listen", "192.0.2.1:10809"],
        ["--listen", ""],
        ["--memory", "lots"],
        ["--memory", "0"],
        ["--memory", "1K"],
        ["--io", "tape"],
    ] {
        tessera([&["serve", &dir][..], &arguments].concat()).refused();
        assert!(!pool.dir.join("control.sock").exists(), "{arguments:?}");
        assert!(!pool.dir.join("nbd.sock").exists(), "{arguments:?}");
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    assert!(taken.exists());
    pool.serve().stop();
}

#[test]
fn a_second_server_is_refused_while_the_first_goes_on() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let served = pool.serve();
    let other = text(&pool.root.path().join("other.sock"));
    tessera(["serve", &text(&pool.dir), "--socket", &other]).refused();
    tool("nbdinfo", &[&served.uri("vm")]).ok();
    served.stop();
}

#[test]
fn a_read_only_server_writes_nothing_anywhere() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let before: Vec<_> = contents(&pool.dir)
        .into_iter()
        .filter(|(path, _)| is_member(path))
        .collect();
    let served = Served::start(&pool.dir, &["--read-only"]);
    let script = "
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
assert h.is_read_only()
assert h.pread(4096, 0) == bytes(4096)
for name, call in [('write', lambda: h.pwrite(b'x' * 512, 0)), ('trim', lambda: h.trim(4096, 0)),
                   ('zero', lambda: h.zero(4096, 0))]:
    try:
        call()
    except nbd.Error as error:
        assert error.errno == 'EPERM', (name, error)
    else:
        raise SystemExit(name + ' was allowed')
";
    python_nbd(script, &[&served.uri("vm")]).ok();
    assert_eq!(pool.status()["server"]["read_only"], true);
    pool.run("volume", "create", &["new", "--size", "1G"])
        .refused();
    pool.run("volume", "delete", &["vm"]).refused();
    pool.run("volume", "resize", &["vm", "--size", "1G"])
        .refused();
    served.stop();
    let after: Vec<_> = contents(&pool.dir)
        .into_iter()
        .filter(|(path, _)| is_member(path))
        .collect();
    assert_eq!(after, before);
}

fn is_member(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|extension| extension == "img")
}

/// A client that writes, then keeps its connection until told to go.
struct Connected {
    child: std::process::Child,
    output: BufReader<ChildStdout>,
}

impl Connected {
    fn to(uri: &str) -> Self {
        let script = "
h.connect_uri(sys.argv[1])
h.pwrite(b'x' * 4096, 0)
print('connected', flush=True)
sys.stdin.readline()
try:
    h.pread(4096, 0)
    print('alive', flush=True)
except nbd.Error:
    print('cut off', flush=True)
";
        let mut child = python_nbd_command(script, &[uri])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 runs");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut connected = Self { child, output };
        assert_eq!(connected.line(), "connected");
        connected
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn leave(mut self) -> String {
        self.child
            .stdin
            .take()
            .expect("stdin is piped")
            .write_all(b"\n")
            .unwrap();
        let last = self.line();
        self.child.wait().unwrap();
        last
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_volume_in_use_is_not_deleted() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let served = pool.serve();
    let client = Connected::to(&served.uri("vm"));
    assert!(
        pool.run("volume", "delete", &["vm"])
            .refused()
            .contains("vm")
    );
    assert_eq!(pool.status()["server"]["connections"], 1);
    assert_eq!(client.leave(), "alive");
    // The server notices the client's going a moment later.
    while pool.status()["server"]["connections"] != 0 {
        std::thread::yield_now();
    }
    pool.run("volume", "delete", &["vm"]).ok();
    served.stop();
}

#[test]
fn an_idle_client_does_not_hold_up_the_stop() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let served = pool.serve();
    let client = Connected::to(&served.uri("vm"));
    served.stop();
    assert_eq!(client.leave(), "cut off");
    // What it wrote was acknowledged, so a clean stop kept it, flush or no flush.
    let served = pool.serve();
    let script = "h.connect_uri(sys.argv[1]); assert h.pread(4096, 0) == b'x' * 4096";
    python_nbd(script, &[&served.uri("vm")]).ok();
    served.stop();
}

#[test]
fn garbage_on_either_socket_harms_nobody() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let served = pool.serve();
    let mut half_open = Vec::new();
    for name in ["control.sock", "nbd.sock"] {
        for length in [0usize, 1, 100, 100_000] {
            let mut stream = UnixStream::connect(pool.dir.join(name)).unwrap();
            // The server may hang up in the middle of it.
            let _ = stream.write_all(&vec![0xa5; length]);
            half_open.push(stream);
        }
    }
    assert_eq!(pool.status()["state"], "online");
    tool("nbdinfo", &[&served.uri("vm")]).ok();
    drop(half_open);
    served.stop();
}

#[test]
fn the_control_socket_speaks_http() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    let mut stream = UnixStream::connect(pool.dir.join("control.sock")).unwrap();
    let body = r#"{"name":"vm","size_bytes":1073741824}"#;
    write!(
        stream,
        "POST /v1/volumes HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    let made: serde_json::Value =
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(made, pool.run("volume", "show", &["vm", "--json"]).json());
    served.stop();
}

#[test]
fn a_service_manager_is_told_when_clients_can_connect() {
    let pool = TestPool::raid5();
    let path = pool.root.path().join("notify.sock");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_tessera"))
        .args(["serve", &text(&pool.dir)])
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut message = [0u8; 64];
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"READY=1");
    assert!(pool.dir.join("nbd.sock").exists());
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::TERM).unwrap();
    let length = manager.recv(&mut message).unwrap();
    assert_eq!(&message[..length], b"STOPPING=1");
    assert!(child.wait().unwrap().success());
}
