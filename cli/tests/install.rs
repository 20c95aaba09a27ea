//! `make install`: what it puts where, and that it can be used.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{fs, path::Path, process::Command};

use common::{Ran, requires, scratch, tessera, text, tool};

fn make(target: &str, destination: &Path) -> Ran {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    Command::new("make")
        .args(["--no-print-directory", "-C", &text(checkout), target])
        .arg("PREFIX=/opt/tessera")
        .arg(format!("DESTDIR={}", text(destination)))
        .env("TESSERA", env!("CARGO_BIN_EXE_tessera"))
        .output()
        .unwrap()
        .into()
}

#[test]
fn everything_is_installed_below_the_prefix_and_goes_again() {
    if !requires(&["make", "bash"]) {
        return;
    }
    let root = scratch();
    make("install", root.path()).ok();
    let prefix = root.path().join("opt/tessera");
    let version = tool(&text(&prefix.join("bin/tessera")), &["--version"]).ok();
    assert!(version.starts_with("tessera "), "{version}");
    let completions = prefix.join("share/bash-completion/completions/tessera");
    tool("bash", &["-n", &text(&completions)]).ok();
    for completions in [
        "share/zsh/site-functions/_tessera",
        "share/fish/vendor_completions.d/tessera.fish",
    ] {
        let script = fs::read_to_string(prefix.join(completions)).unwrap();
        assert!(script.contains("drain-timeout"), "{completions}");
    }
    let page = fs::read_to_string(prefix.join("share/man/man1/tessera-serve.1")).unwrap();
    assert!(page.contains("tessera serve tank"), "{page}");
    if requires(&["groff"]) {
        let pages = prefix.join("share/man/man1");
        for page in fs::read_dir(pages).unwrap() {
            let page = text(&page.unwrap().path());
            let ran = tool("groff", &["-man", "-Tutf8", "-ww", &page]);
            assert_eq!(ran.stderr, "", "{page}");
            assert!(ran.ok().contains("problems"), "{page}");
        }
    }
    for unit in [
        "tessera@.service",
        "tessera@.socket",
        "tessera-attach@.service",
    ] {
        let path = prefix.join("lib/systemd/system").join(unit);
        let unit = fs::read_to_string(path).unwrap();
        assert!(!unit.contains("/usr/local"), "{unit}");
    }
    let example = prefix.join("share/doc/tessera/tessera.toml");
    tessera(["config", "check", &text(&example)]).ok();
    make("uninstall", root.path()).ok();
    let left = tool("find", &[&text(root.path()), "-type", "f"]).ok();
    assert_eq!(left, "");
}

#[test]
fn pages_go_to_a_directory_that_exists() {
    tessera(["man", "/nonexistent/directory"]).refused();
    let root = scratch();
    tessera(["man", &text(root.path())]).ok();
    assert!(root.path().join("tessera-pool-create.1").exists());
}
#[test]
fn the_container_is_served_what_its_configuration_says() {
    let config = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/install/container.toml"
    );
    let json = tessera(["config", "check", config, "--json"]).json();
    assert_eq!(json["endpoints"][1]["listen"], "0.0.0.0:10809");
}
