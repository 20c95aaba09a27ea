//! What `tessera attach` and `tessera detach` refuse before they touch a
//! device. With devices they are tried in a virtual machine, by
//! scripts/vm-attach-test.sh.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;

use common::{TestPool, scratch, tessera, text};

fn refuses(arguments: &[&str], sentence: &str) {
    let said = tessera(arguments).refused();
    assert!(said.contains(sentence), "{arguments:?}: {said}");
}

#[test]
fn an_export_that_cannot_be_had_is_told_in_one_sentence() {
    let pool = TestPool::raid5();
    pool.volume("vm1", "64M");
    let served = pool.serve();
    let nothing = scratch();
    let no_socket = text(&nothing.path().join("nbd.sock"));
    for (uri, sentence) in [
        (
            served.uri("vm2"),
            r#"The NBD server has no export "vm2""#.to_owned(),
        ),
        (
            format!("nbd+unix:///vm1?socket={no_socket}"),
            format!("The NBD server at {no_socket} cannot be reached: No such file or directory"),
        ),
        (
            "nbds://localhost/vm1".to_owned(),
            "TLS is not spoken here".to_owned(),
        ),
        ("/srv/vm1".to_owned(), "is no NBD address".to_owned()),
    ] {
        refuses(&["attach", &uri], &sentence);
    }
    for device in ["/dev/sda", "/dev/nbd0p1"] {
        let said = format!("{device} is no NBD device");
        refuses(&["attach", &served.uri("vm1"), "--device", device], &said);
        refuses(&["detach", device], &said);
    }
    served.stop();
}

#[test]
fn a_kernel_without_the_driver_is_told_and_how_to_load_it() {
    // With it this would make a device.
    if Path::new("/sys/module/nbd").exists() {
        eprintln!("skipped: this kernel has the driver");
        return;
    }
    let pool = TestPool::raid5();
    pool.volume("vm1", "64M");
    let served = pool.serve();
    let said = "The kernel's NBD driver is not loaded: as root, 'modprobe nbd' loads it";
    refuses(&["attach", &served.uri("vm1")], said);
    refuses(&["attach", &served.uri("vm1"), "--daemon"], said);
    refuses(&["detach", "/dev/nbd0"], said);
    served.stop();
}
