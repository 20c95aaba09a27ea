//! `tessera serve` as a service: its configuration, reloading it, the
//! background, sockets handed on, other users.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixDatagram, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use common::{
    Ran, Served, TestPool, command, contents, python_nbd_command, requires, scratch, tessera, text,
    tool,
};
use rustix::process::{Pid, Signal, kill_process};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

/// Writes a configuration next to the pool.
fn configure(pool: &TestPool, rest: &str) -> PathBuf {
    let path = pool.root.path().join("tessera.toml");
    fs::write(&path, format!("pool = 'pool'\n{rest}")).unwrap();
    path
}

fn serve_configured(config: &Path, endpoints: usize) -> Served {
    let command = command(["serve", "--config", &text(config)]);
    Served::start_command(command, endpoints)
}

fn endpoints(pool: &TestPool) -> Vec<String> {
    let status = pool.status();
    let endpoints = status["server"]["endpoints"].as_array().unwrap();
    let endpoints = endpoints.iter().map(|uri| uri.as_str().unwrap().to_owned());
    endpoints.collect()
}

#[test]
fn a_configuration_is_served_and_the_command_line_overrides_it() {
    let pool = TestPool::raid5();
    let config = configure(
        &pool,
        "read_only = true\nmemory = '256M'\n[nbd]\nsockets = ['a.sock']\nlisten = ['127.0.0.1:0']\n",
    );
    let served = serve_configured(&config, 2);
    let socket = pool.root.path().join("a.sock");
    assert_eq!(
        served.uris[0],
        format!("nbd+unix:///?socket={}", text(&socket))
    );
    assert!(served.uris[1].starts_with("nbd://127.0.0.1:"));
    assert_eq!(pool.status()["server"]["read_only"], true);
    served.stop();

    let other = text(&pool.root.path().join("b.sock"));
    let command = command(["serve", "--config", &text(&config), "--socket", &other]);
    let served = Served::start_command(command, 1);
    assert_eq!(served.uris, [format!("nbd+unix:///?socket={other}")]);
    assert!(!socket.exists());
    served.stop();
}

#[test]
fn a_wrong_configuration_is_refused_with_its_line_and_changes_nothing() {
    let pool = TestPool::raid5();
    let before = contents(&pool.dir);
    for (rest, names) in [
        ("memroy = '1G'\n", "line 2: unknown field `memroy`"),
        ("[nbd]\nsocket = 'x'\n", "did you mean sockets?"),
        ("[nbd]\nlisten = ['nowhere']\n", "HOST:PORT"),
        ("drain_timeout_seconds = 100000\n", "86400"),
        ("pool = 'again'\n", "duplicate"),
    ] {
        let config = text(&configure(&pool, rest));
        for arguments in [
            &["serve", "--config", &config][..],
            &["serve", "--config", &config, "--daemon"],
            &["config", "check", &config],
        ] {
            let sentence = tessera(arguments).refused();
            assert!(sentence.contains(names), "{rest:?}: {sentence}");
        }
    }
    for missing in ["/nonexistent.toml", "/"] {
        tessera(["config", "check", missing]).refused();
        tessera(["serve", "--config", missing]).refused();
    }
    assert_eq!(contents(&pool.dir), before);
}

#[test]
fn checking_a_configuration_shows_what_would_hold() {
    let pool = TestPool::raid5();
    let config = text(&configure(&pool, "memory = '1G'\n[nbd]\nsockets = ['s']\n"));
    let shown = tessera(["config", "check", &config]).ok();
    assert!(shown.contains("Memory:       1G\n"), "{shown}");
    assert!(
        shown.contains("Drain:        at most 30 seconds\n"),
        "{shown}"
    );
    let json = tessera(["config", "check", &config, "--json"]).json();
    assert_eq!(json["memory_bytes"], 1u64 << 30);
    assert_eq!(json["pool"], text(&pool.dir));
    assert_eq!(
        json["endpoints"],
        serde_json::json!([{ "socket": text(&pool.root.path().join("s")) }])
    );
    // A file can be checked while the server that it is for runs.
    let served = serve_configured(Path::new(&config), 1);
    tessera(["config", "check", &config]).ok();
    served.stop();
    let example = tessera(["config", "example"]).ok();
    let path = pool.root.path().join("example.toml");
    fs::write(&path, example).unwrap();
    tessera(["config", "check", &text(&path)]).ok();
}

/// What a service manager is told, in order.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(root: &Path) -> Self {
        let path = root.join("notify.sock");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    fn told(&self) -> String {
        let mut message = [0u8; 256];
        let length = self.socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }
}

#[test]
fn a_reload_moves_endpoints_and_leaves_clients_alone() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let config = configure(&pool, "[nbd]\nsockets = ['a.sock', 'b.sock']\n");
    let manager = Manager::new(pool.root.path());
    let mut command = command(["serve", "--config", &text(&config)]);
    command
        .env("NOTIFY_SOCKET", &manager.path)
        .stderr(Stdio::piped());
    let mut served = Served::start_command(command, 2);
    assert_eq!(manager.told(), "READY=1");
    let script = "
h.connect_uri(sys.argv[1])
print('connected', flush=True)
sys.stdin.readline()
h.pwrite(b'x' * 4096, 0)
h.flush()
";
    let mut client = python_nbd_command(script, &[&served.uri("vm")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "connected\n");

    let [a, b, c] = ["a.sock", "b.sock", "c.sock"].map(|name| pool.root.path().join(name));
    let uri = |path: &Path| format!("nbd+unix:///?socket={}", text(path));
    let reload = |rest: &str| {
        configure(&pool, rest);
        served.signal(Signal::HUP);
        let told = manager.told();
        assert!(told.starts_with("RELOADING=1\nMONOTONIC_USEC="), "{told}");
        assert_eq!(manager.told(), "READY=1");
        endpoints(&pool)
    };
    assert_eq!(
        reload("memory = '1G'\n[nbd]\nsockets = ['b.sock', 'c.sock']\n"),
        [uri(&b), uri(&c)]
    );
    assert!(!a.exists() && b.exists() && c.exists());
    // What is wrong changes nothing: a key, or an endpoint behind a good one.
    fs::write(&a, "precious").unwrap();
    for wrong in [
        "[nbd]\nsocket = ['d.sock']\n",
        "[nbd]\nsockets = ['d.sock', 'a.sock']\n",
    ] {
        assert_eq!(reload(wrong), [uri(&b), uri(&c)]);
        assert!(!pool.root.path().join("d.sock").exists());
    }
    assert_eq!(fs::read_to_string(&a).unwrap(), "precious");

    drop(client.stdin.take());
    assert!(client.wait().unwrap().success());
    served.signal(Signal::TERM);
    assert_eq!(manager.told(), "STOPPING=1");
    let said = served.stderr();
    for part in [
        &format!("no longer listening on {}", uri(&a)),
        &format!("listening on {}", uri(&c)),
        "memory is different in the configuration: restart for it",
        "unknown field `socket`",
        "did you mean sockets?",
        "is not a socket",
    ] {
        assert!(said.contains(part), "{part:?} is not in {said}");
    }
    served.stop();
}

/// Ends the server of a pool by the process that its status names.
fn stop_background(pool: &TestPool) {
    let pid = pool.status()["server"]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    // It removes the control socket just before it gives up the pool, and the
    // next command waits for that.
    while pool.dir.join("control.sock").exists() {
        std::thread::yield_now();
    }
}

#[test]
fn in_the_background_it_serves_and_tells_its_log() {
    let pool = TestPool::raid5();
    let log = pool.root.path().join("log");
    let config = configure(&pool, "log = 'info'\n");
    let started = tessera([
        "serve",
        "--config",
        &text(&config),
        "--daemon",
        "--log-file",
        &text(&log),
    ]);
    let socket = pool.dir.join("nbd.sock");
    assert_eq!(
        started.ok(),
        format!("listening on nbd+unix:///?socket={}\n", text(&socket))
    );
    pool.volume("vm", "1G");
    // A log that was moved away is made anew by a reload.
    let moved = pool.root.path().join("log.1");
    fs::rename(&log, &moved).unwrap();
    let pid = pool.status()["server"]["pid"].as_i64().unwrap();
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::HUP).unwrap();
    while !log.exists() {
        std::thread::yield_now();
    }
    stop_background(&pool);
    assert_eq!(pool.status()["served"], false);
    let said = fs::read_to_string(&moved).unwrap();
    assert!(said.contains("control request"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
    let said = fs::read_to_string(&log).unwrap();
    assert!(said.contains("stopping"), "{said}");
}

#[test]
fn a_start_in_the_background_that_fails_says_so_in_front() {
    let pool = TestPool::raid5();
    let served = pool.serve();
    tessera(["serve", &text(&pool.dir), "--daemon"]).refused();
    served.stop();
    let missing = pool.root.path().join("none");
    tessera(["serve", &text(&missing), "--daemon"]).refused();
    tessera([
        "serve",
        &text(&pool.dir),
        "--daemon",
        "--log-file",
        "/none/log",
    ])
    .refused();
    assert!(!pool.dir.join("nbd.sock").exists());
    pool.serve().stop();
}

#[test]
fn sockets_of_a_service_manager_are_served_and_stay() {
    if !requires(&["systemd-socket-activate", "nbdinfo"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let path = pool.root.path().join("activated.sock");
    let mut manager = Command::new("systemd-socket-activate")
        .args(["--listen", &text(&path)])
        .args([env!("CARGO_BIN_EXE_tessera"), "serve", &text(&pool.dir)])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while !path.exists() {
        std::thread::yield_now();
    }
    let uri = format!("nbd+unix:///vm?socket={}", text(&path));
    // The first client starts the server, and waits for it.
    let size = tool("nbdinfo", &["--size", &uri]).ok();
    assert_eq!(size.trim(), (1u64 << 30).to_string());
    assert_eq!(
        endpoints(&pool),
        [format!("nbd+unix:///?socket={}", text(&path))]
    );
    assert!(!pool.dir.join("nbd.sock").exists());
    assert_eq!(pool.status()["server"]["pid"], manager.id());
    kill_process(Pid::from_child(&manager), Signal::TERM).unwrap();
    assert!(manager.wait().unwrap().success());
    assert!(path.exists());
}

#[test]
fn a_drain_ends_when_it_is_said_to() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "1G");
    let mut command = command(["serve", &text(&pool.dir), "--drain-timeout", "0"]);
    command.stderr(Stdio::piped());
    let mut served = Served::start_command(command, 1);
    // It asks for more than a socket holds and takes none of it.
    let script = "
h.connect_uri(sys.argv[1])
for i in range(8):
    h.aio_pread(nbd.Buffer(32 << 20), 0)
print('asked', flush=True)
sys.stdin.readline()
";
    let mut client = python_nbd_command(script, &[&served.uri("vm")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "asked\n");
    served.signal(Signal::TERM);
    let said = served.stderr();
    assert!(said.contains("did not take their answers"), "{said}");
    served.stop();
    client.kill().unwrap();
    client.wait().unwrap();
}

/// Whether tests can become another user, and a copy of the binary that any
/// user can run.
fn for_everybody() -> Option<(tempfile::TempDir, PathBuf)> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return None;
    }
    let root = scratch();
    fs::set_permissions(root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let binary = root.path().join("tessera");
    fs::copy(env!("CARGO_BIN_EXE_tessera"), &binary).unwrap();
    Some((root, binary))
}

fn as_nobody(binary: &Path, arguments: &[&str]) -> Ran {
    Command::new(binary)
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("TESSERA_LOG")
        .uid(NOBODY)
        .gid(NOBODY)
        .output()
        .unwrap()
        .into()
}

#[test]
fn an_ordinary_user_makes_serves_and_stops_a_pool() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let Some((root, binary)) = for_everybody() else {
        return;
    };
    let home = root.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(NOBODY), Some(NOBODY)).unwrap();
    let dir = text(&home.join("pool"));
    as_nobody(
        &binary,
        &[
            "pool",
            "create",
            &dir,
            "--level",
            "raid5",
            "--files",
            "3",
            "--file-size",
            "256M",
        ],
    )
    .ok();
    as_nobody(&binary, &["volume", "create", &dir, "vm", "--size", "1G"]).ok();
    let mut command = Command::new(&binary);
    command.args(["serve", &dir]).uid(NOBODY).gid(NOBODY);
    let served = Served::start_command(command, 1);
    tool("nbdinfo", &["--size", &served.uri("vm")]).ok();
    let status = as_nobody(&binary, &["pool", "status", &dir, "--json"]).json();
    assert_eq!(status["served"], true);
    served.stop();
}

#[test]
fn a_control_request_of_another_user_is_refused() {
    let Some((_root, binary)) = for_everybody() else {
        return;
    };
    let pool = TestPool::raid5();
    fs::set_permissions(pool.root.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let served = pool.serve();
    let dir = text(&pool.dir);
    let create = ["volume", "create", &dir, "vm", "--size", "1G"];
    // The socket's mode keeps others out, and so does the server itself.
    as_nobody(&binary, &create).refused();
    let socket = pool.dir.join("control.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let sentence = as_nobody(&binary, &create).refused();
    assert!(sentence.contains("another user"), "{sentence}");
    assert_eq!(pool.run("volume", "list", &["--json"]).ok().trim(), "[]");
    served.stop();
}
