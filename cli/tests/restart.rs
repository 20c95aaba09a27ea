//! The recipes of docs/install/restart.md: a server that restarts under
//! clients that wait for it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use common::{Served, TestPool, python_nbd_command, requires, text};
use rustix::process::Signal;
use tessera_nbd::client::{Client, Uri};

/// How the server goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Going {
    Drained,
    Killed,
}

impl Going {
    fn end(self, served: Served) {
        match self {
            Self::Drained => served.stop_with(Signal::TERM),
            Self::Killed => {
                served.kill();
            }
        }
    }
}

/// A program that is told one line at a time and answers.
struct Dialogue {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Dialogue {
    fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn say(&mut self, line: &str) {
        let mut input = self.input.as_ref().expect("it is still told something");
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// Reads on until a line holds one of these, and tells which line.
    #[track_caller]
    fn until(&mut self, wanted: &[&str]) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert_ne!(
                self.output.read_line(&mut line).unwrap(),
                0,
                "it ended without any of {wanted:?}: {all}"
            );
            all.push_str(&line);
            if wanted.iter().any(|part| line.contains(part)) {
                return line;
            }
        }
    }
}

impl Drop for Dialogue {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// qemu with `reconnect-delay`: what a guest asks for meanwhile waits.
fn qemu_waits_for_a_server_that_was(going: Going) {
    if !requires(&["qemu-io"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let served = pool.serve();
    let image = format!(
        "driver=nbd,server.type=unix,server.path={},export=vm,reconnect-delay=120",
        text(&pool.dir.join("nbd.sock"))
    );
    let mut qemu = Dialogue::start(Command::new("qemu-io").args(["--image-opts", &image]));
    // Only what was flushed survives a kill; a drain keeps all of it.
    let write = match going {
        Going::Drained => "write",
        Going::Killed => "write -f",
    };
    for (pattern, offset) in [(1, "0"), (2, "64k")] {
        qemu.say(&format!("{write} -P {pattern} {offset} 64k"));
        qemu.until(&["wrote 65536"]);
    }
    going.end(served);
    // With nobody there, this waits.
    qemu.say("write -P 3 128k 64k");
    let served = pool.serve();
    let done = qemu.until(&["wrote 65536", "failed"]);
    assert!(done.contains("wrote 65536"), "{done}");
    for (pattern, offset) in [(1, "0"), (2, "64k"), (3, "128k")] {
        qemu.say(&format!("read -P {pattern} {offset} 64k"));
        let done = qemu.until(&["read 65536", "failed"]);
        assert!(done.contains("read 65536"), "{pattern}: {done}");
    }
    qemu.say("quit");
    assert!(qemu.child.wait().unwrap().success());
    served.stop();
}

#[test]
fn qemu_waits_for_a_server_that_was_drained() {
    qemu_waits_for_a_server_that_was(Going::Drained);
}

#[test]
fn qemu_waits_for_a_server_that_was_killed() {
    qemu_waits_for_a_server_that_was(Going::Killed);
}

/// What a persistent client has to do: it connects anew and asks again for
/// everything that was not answered.
const PERSISTENT: &str = "
import time
def connected():
    # No clock decides: it tries for as long as the test lasts.
    while True:
        h = nbd.NBD()
        try:
            h.connect_uri(sys.argv[1])
            return h
        except nbd.Error:
            time.sleep(0.02)
def persist(ask):
    global h
    while True:
        try:
            return ask(h)
        except nbd.Error as error:
            h = connected()
h = connected()
print('connected', flush=True)
for number, line in enumerate(sys.stdin, 1):
    block = bytes([number]) * 4096
    persist(lambda h: h.pwrite(block, number * 4096, nbd.CMD_FLAG_FUA))
    print('wrote', number, flush=True)
for done in range(1, number + 1):
    assert persist(lambda h: h.pread(4096, done * 4096)) == bytes([done]) * 4096, done
print('verified', number, flush=True)
";

#[test]
fn a_client_that_asks_again_loses_nothing_over_restarts() {
    if !requires(&["python3-libnbd"]) {
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm", "64M");
    let mut served = pool.serve();
    let mut client = Dialogue::start(&mut python_nbd_command(PERSISTENT, &[&served.uri("vm")]));
    client.until(&["connected"]);
    let mut number = 0;
    for going in [Going::Drained, Going::Killed, Going::Drained, Going::Killed] {
        number += 1;
        client.say("go");
        client.until(&[&format!("wrote {number}\n")]);
        going.end(served);
        // Asked while nobody is there.
        number += 1;
        client.say("go");
        served = pool.serve();
        client.until(&[&format!("wrote {number}\n")]);
    }
    // The end of its input lets it read everything back.
    drop(client.input.take());
    client.until(&[&format!("verified {number}\n")]);
    served.stop();
}

#[test]
fn a_client_can_ask_whether_what_it_was_answered_is_kept() {
    let pool = TestPool::raid5();
    pool.volume("vm1", "64M");
    let served = pool.serve();
    let uri: Uri = served.uri("vm1").parse().unwrap();
    let this_run = || Client::kept(&uri, None).unwrap().unwrap();
    let kept = |run: &str| Client::kept(&uri, Some(run)).unwrap().is_some();
    let stopped = this_run();
    assert!(kept(&stopped), "it goes on");
    Going::Drained.end(served);

    let served = pool.serve();
    let killed = this_run();
    assert_ne!(stopped, killed);
    assert!(kept(&stopped), "it ended clean");
    Going::Killed.end(served);

    for _ in 0..2 {
        let served = pool.serve();
        assert!(kept(&stopped), "that does not change");
        assert!(!kept(&killed), "nor does this");
        Going::Drained.end(served);
    }
}
