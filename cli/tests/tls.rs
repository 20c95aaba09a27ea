//! TLS as it is asked for on the command line and in a configuration.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    fs,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use common::{Ran, Served, TestPool, command, contents, requires, tessera, text, tool};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustix::process::Signal;

/// An authority and what it has signed.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "test authority");
        Self {
            pem: params.self_signed(&key).unwrap().pem(),
            issuer: Issuer::new(params, key),
        }
    }

    fn certify(&self, name: &str, last_year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 1);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// Puts a server's files and those of some clients next to the pool.
    fn lay_out(&self, pool: &TestPool, clients: &[&str]) {
        let (certificate, key) = self.certify("localhost", 2100);
        put(pool, "ca.pem", &self.pem);
        put(pool, "server.pem", &certificate);
        put(pool, "server.key", &key);
        for client in clients {
            let (certificate, key) = self.certify(client, 2100);
            fs::create_dir(pool.root.path().join(client)).unwrap();
            put(pool, &format!("{client}/ca-cert.pem"), &self.pem);
            put(pool, &format!("{client}/client-cert.pem"), &certificate);
            put(pool, &format!("{client}/client-key.pem"), &key);
        }
    }
}

fn put(pool: &TestPool, name: &str, contents: &str) -> PathBuf {
    let path = pool.root.path().join(name);
    fs::write(&path, contents).unwrap();
    path
}

fn pool_with(clients: &[&str]) -> (TestPool, Authority) {
    let pool = TestPool::raid5();
    let authority = Authority::new();
    authority.lay_out(&pool, clients);
    (pool, authority)
}

/// nbdinfo on an export, as a client with certificates, or none.
fn nbdinfo(pool: &TestPool, served: &Served, export: &str, client: Option<&str>) -> Ran {
    let port = served.uris[0].rsplit_once(':').unwrap().1;
    let uri = match client {
        Some(client) => format!(
            "nbds://localhost:{port}/{export}?tls-certificates={}",
            text(&pool.root.path().join(client))
        ),
        None => format!("nbd://localhost:{port}/{export}"),
    };
    tool("nbdinfo", &["--size", &uri])
}

fn sees(pool: &TestPool, served: &Served, export: &str, client: Option<&str>) -> bool {
    nbdinfo(pool, served, export, client).code == Some(0)
}

#[test]
fn clients_are_encrypted_known_and_kept_to_their_exports() {
    if !requires(&["nbdinfo", "qemu-img"]) {
        return;
    }
    let (pool, _authority) = pool_with(&["alice", "bob"]);
    pool.volume("open", "64M");
    pool.volume("secret", "64M");
    let file = |name: &str| text(&pool.root.path().join(name));
    let mut command = command(["serve", &text(&pool.dir), "--listen", "127.0.0.1:0"]);
    command
        .args(["--tls-cert", &file("server.pem")])
        .args(["--tls-key", &file("server.key")])
        .args(["--tls-client-ca", &file("ca.pem")])
        .args(["--tls-allow", "secret=alice"]);
    let served = Served::start_command(command, 1);
    assert!(served.uris[0].starts_with("nbds://"), "{:?}", served.uris);
    assert!(sees(&pool, &served, "open", Some("alice")));
    assert!(sees(&pool, &served, "secret", Some("alice")));
    assert!(sees(&pool, &served, "open", Some("bob")));
    assert!(!sees(&pool, &served, "secret", Some("bob")));
    assert!(!sees(&pool, &served, "open", None));
    let port = served.uris[0].rsplit_once(':').unwrap().1;
    let credentials = format!(
        "tls-creds-x509,id=tls0,endpoint=client,dir={}",
        file("alice")
    );
    let image = format!("driver=nbd,host=localhost,port={port},export=secret,tls-creds=tls0");
    tool(
        "qemu-img",
        &["info", "--object", &credentials, "--image-opts", &image],
    )
    .ok();
    served.stop();
}

#[test]
fn a_reload_takes_over_certificates_and_lists() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let (pool, _first) = pool_with(&["alice"]);
    pool.volume("vm", "64M");
    let path = pool.root.path().join("notify.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    let told = || {
        let mut message = [0u8; 256];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    let configure = |clients: &str| {
        let text = format!(
            "pool = 'pool'\nnbd.listen = ['127.0.0.1:0']\n[tls]\ncertificate = 'server.pem'\n\
             key = 'server.key'\nclient_authority = 'ca.pem'\nclients.vm = [{clients}]\n"
        );
        put(&pool, "tessera.toml", &text)
    };
    let mut command = command(["serve", "--config", &text(&configure("'alice'"))]);
    command.env("NOTIFY_SOCKET", &path);
    let served = Served::start_command(command, 1);
    assert_eq!(told(), "READY=1");
    assert!(sees(&pool, &served, "vm", Some("alice")));
    let reload = || {
        served.signal(Signal::HUP);
        assert!(told().starts_with("RELOADING=1"));
        assert_eq!(told(), "READY=1");
    };

    // A certificate that is over is not taken over.
    let second = Authority::new();
    let (certificate, key) = second.certify("localhost", 2021);
    put(&pool, "server.pem", &certificate);
    put(&pool, "server.key", &key);
    reload();
    assert!(sees(&pool, &served, "vm", Some("alice")));

    second.lay_out(&pool, &["carol", "dave"]);
    configure("'carol'");
    reload();
    assert!(!sees(&pool, &served, "vm", Some("alice")));
    assert!(!sees(&pool, &served, "vm", Some("dave")));
    assert!(sees(&pool, &served, "vm", Some("carol")));
    served.stop();
}

#[test]
fn what_cannot_be_encrypted_is_refused_and_changes_nothing() {
    let (pool, authority) = pool_with(&[]);
    let (certificate, key) = authority.certify("localhost", 2021);
    put(&pool, "old.pem", &certificate);
    put(&pool, "old.key", &key);
    put(&pool, "garbage.pem", "garbage");
    let before = contents(&pool.dir);
    let file = |name: &str| text(&pool.root.path().join(name));
    let dir = text(&pool.dir);
    let refused = |arguments: &[&str], names: &str| {
        let command = [&["serve", &dir, "--listen", "127.0.0.1:0"][..], arguments].concat();
        let sentence = tessera(command).refused();
        assert!(sentence.contains(names), "{arguments:?}: {sentence}");
    };
    let (good, good_key) = (file("server.pem"), file("server.key"));
    refused(&["--tls-cert", &good], "--tls-key");
    refused(&["--tls", "required"], "--tls-cert");
    for (certificate, key, names) in [
        ("none.pem", "server.key", "none.pem"),
        ("server.pem", "none.key", "none.key"),
        ("garbage.pem", "server.key", "garbage.pem"),
        ("server.pem", "garbage.pem", "garbage.pem"),
        ("old.pem", "old.key", "valid from"),
        ("server.pem", "old.key", "cannot be used"),
    ] {
        let (certificate, key) = (file(certificate), file(key));
        refused(&["--tls-cert", &certificate, "--tls-key", &key], names);
    }
    let files = ["--tls-cert", &good, "--tls-key", &good_key];
    let with = |more: &[&'static str]| [&files[..], more].concat();
    refused(&with(&["--tls-allow", "vm=alice"]), "vm");
    refused(&["--tls-allow", "vm=alice"], "vm");
    let everybody = ["serve", &dir, "--listen", "0.0.0.0:0"];
    let sentence = tessera(everybody).refused();
    assert!(sentence.contains("--insecure"), "{sentence}");
    let allowed = [&everybody[..], &files, &["--tls", "allowed"]].concat();
    tessera(allowed).refused();
    assert_eq!(contents(&pool.dir), before);

    let insecure = [&everybody[..], &["--insecure"]].concat();
    let served = Served::start_command(command(insecure), 1);
    assert!(served.uris[0].starts_with("nbd://0.0.0.0:"));
    served.stop();
    let config = put(
        &pool,
        "tessera.toml",
        "pool = 'pool'\n[tls]\ncertificate = 'old.pem'\nkey = 'old.key'\n",
    );
    let sentence = tessera(["config", "check", &text(&config)]).refused();
    assert!(sentence.contains("valid from"), "{sentence}");
    assert!(Path::new(&good).exists());
}
