//! TLS with real clients, and with those that do not keep to the rules.

#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use common::disk::{MemoryCatalog, MemoryDisk};
use common::{pattern, requires};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;
use tessera_nbd::{ListenError, Server, ServerOptions, Tls, TlsError, TlsFiles, TlsMode};

const MIB: usize = 1 << 20;

/// An authority, and certificates of its making, laid out as libnbd and qemu
/// want them.
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
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// A certificate and its key.
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
}

struct Fixture {
    directory: TempDir,
    authority: Authority,
}

impl Fixture {
    fn new() -> Self {
        let fixture = Self {
            directory: TempDir::new().unwrap(),
            authority: Authority::new(),
        };
        fixture.put("ca.pem", &fixture.authority.pem);
        let (certificate, key) = fixture.authority.certify("localhost", 2100);
        fixture.put("server.pem", &certificate);
        fixture.put("server.key", &key);
        for client in ["alice", "bob"] {
            let (certificate, key) = fixture.authority.certify(client, 2100);
            fixture.client(client, &fixture.authority, &certificate, &key);
        }
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn put(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn client(&self, name: &str, trusts: &Authority, certificate: &str, key: &str) {
        fs::create_dir(self.path(name)).unwrap();
        self.put(&format!("{name}/ca-cert.pem"), &trusts.pem);
        self.put(&format!("{name}/client-cert.pem"), certificate);
        self.put(&format!("{name}/client-key.pem"), key);
    }

    fn files(&self, with_clients: bool) -> TlsFiles {
        TlsFiles {
            certificate: self.path("server.pem"),
            key: self.path("server.key"),
            client_authority: with_clients.then(|| self.path("ca.pem")),
        }
    }

    fn serve(&self, mode: TlsMode, with_clients: bool, lists: &[(&str, &str)]) -> Served {
        let mut clients = BTreeMap::<String, Vec<String>>::new();
        for (export, client) in lists {
            let list = clients.entry((*export).to_owned()).or_default();
            list.push((*client).to_owned());
        }
        let tls = Tls::load(mode, &self.files(with_clients), clients).unwrap();
        let disks: Vec<_> = ["open", "secret"]
            .into_iter()
            .map(|name| Arc::new(MemoryDisk::new(name, 8 * MIB as u64)))
            .collect();
        let options = ServerOptions {
            tls: Some(tls),
            ..ServerOptions::default()
        };
        let server = Server::new(MemoryCatalog::with(&disks), options);
        let uri = server.listen_tcp("127.0.0.1:0").unwrap();
        let socket = self.path("nbd.sock");
        server.listen_unix(&socket).unwrap();
        let port = uri.rsplit_once(':').unwrap().1.to_owned();
        Served {
            server,
            uri,
            port,
            socket,
        }
    }

    /// Runs nbdinfo on an export, as a client with certificates, or none.
    fn nbdinfo(&self, served: &Served, export: &str, client: Option<&str>) -> Output {
        let uri = match client {
            Some(client) => format!(
                "nbds://localhost:{}/{export}?tls-certificates={}",
                served.port,
                self.path(client).display()
            ),
            None => format!("nbd://localhost:{}/{export}", served.port),
        };
        Command::new("nbdinfo")
            .args(["--size", &uri])
            .output()
            .unwrap()
    }

    fn sees(&self, served: &Served, export: &str, client: Option<&str>) -> bool {
        self.nbdinfo(served, export, client).status.success()
    }
}

struct Served {
    #[allow(dead_code, reason = "it serves until it is dropped")]
    server: Server,
    uri: String,
    port: String,
    socket: PathBuf,
}

fn run(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{tool} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn same(a: &Path, b: &Path) -> bool {
    fs::read(a).unwrap() == fs::read(b).unwrap()
}

#[test]
fn real_clients_copy_in_and_out_under_tls() {
    if !requires(&["nbdcopy", "nbdinfo", "qemu-img"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Required, true, &[]);
    assert!(served.uri.starts_with("nbds://"));
    let image = fixture.path("image");
    fs::write(&image, pattern(5, 8 * MIB)).unwrap();
    let image_path = image.to_str().unwrap();
    let alice = fixture.path("alice");
    let uri = format!(
        "nbds://localhost:{}/open?tls-certificates={}",
        served.port,
        alice.display()
    );
    run("nbdcopy", &["--flush", image_path, &uri]);
    let copy = fixture.path("copy");
    run("nbdcopy", &[&uri, copy.to_str().unwrap()]);
    assert!(same(&image, &copy));
    // What qemu reads under TLS is what nbdcopy wrote.
    let credentials = format!(
        "tls-creds-x509,id=t,endpoint=client,dir={}",
        alice.display()
    );
    let target = format!(
        "driver=nbd,server.type=inet,server.host=localhost,server.port={},export=open,tls-creds=t",
        served.port
    );
    run(
        "qemu-img",
        &[
            "compare",
            "--object",
            &credentials,
            "--image-opts",
            &target,
            &format!("driver=raw,file.filename={image_path}"),
        ],
    );
}

#[test]
fn renewed_certificates_are_shown_to_the_next_client() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Required, true, &[("secret", "alice")]);
    assert!(fixture.sees(&served, "open", Some("alice")));
    assert!(!fixture.sees(&served, "secret", Some("bob")));

    // Another authority altogether, and another list.
    let other = Authority::new();
    let (certificate, key) = other.certify("localhost", 2100);
    fixture.put("server.pem", &certificate);
    fixture.put("server.key", &key);
    fixture.put("ca.pem", &other.pem);
    let (certificate, key) = other.certify("carol", 2100);
    fixture.client("carol", &other, &certificate, &key);
    let lists = BTreeMap::from([("secret".to_owned(), vec!["carol".to_owned()])]);
    let renewed = Tls::load(TlsMode::Allowed, &fixture.files(true), lists).unwrap();
    assert!(served.server.renew_tls(renewed));
    assert!(!fixture.sees(&served, "open", Some("alice")));
    assert!(fixture.sees(&served, "secret", Some("carol")));
    // The mode stays.
    assert!(!fixture.sees(&served, "open", None));
}

#[test]
fn without_tls_a_server_that_requires_it_shows_nothing() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Required, false, &[]);
    assert!(!fixture.sees(&served, "open", None));
    assert!(fixture.sees(&served, "open", Some("alice")));
    // Whoever may open the socket's file is on this machine.
    let local = format!("nbd+unix:///open?socket={}", served.socket.display());
    run("nbdinfo", &["--size", &local]);
}

#[test]
fn where_tls_is_allowed_both_kinds_of_client_work() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Allowed, false, &[]);
    assert!(fixture.sees(&served, "open", None));
    assert!(fixture.sees(&served, "open", Some("alice")));
}

#[test]
fn an_export_with_a_list_is_there_for_those_on_it_alone() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Allowed, true, &[("secret", "alice")]);
    assert!(fixture.sees(&served, "secret", Some("alice")));
    assert!(!fixture.sees(&served, "secret", Some("bob")));
    assert!(!fixture.sees(&served, "secret", None));
    assert!(fixture.sees(&served, "open", Some("bob")));
    // Nor is it listed; so the one that is left is bob's default export.
    let listed = |client: &str| {
        let uri = format!(
            "nbds://localhost:{}?tls-certificates={}",
            served.port,
            fixture.path(client).display()
        );
        let output = Command::new("nbdinfo")
            .args(["--list", "--json", &uri])
            .output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    };
    assert!(listed("alice").contains("secret"));
    assert!(!listed("bob").contains("secret"));
    assert!(listed("bob").contains("open"));
}

#[test]
fn clients_of_another_authority_and_expired_ones_are_refused() {
    if !requires(&["nbdinfo"]) {
        return;
    }
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Required, true, &[]);
    let stranger = Authority::new();
    let (certificate, key) = stranger.certify("mallory", 2100);
    fixture.client("mallory", &fixture.authority, &certificate, &key);
    let (certificate, key) = fixture.authority.certify("carol", 2021);
    fixture.client("carol", &fixture.authority, &certificate, &key);
    assert!(!fixture.sees(&served, "open", Some("mallory")));
    assert!(!fixture.sees(&served, "open", Some("carol")));
    assert!(fixture.sees(&served, "open", Some("alice")));
}

#[test]
fn garbage_instead_of_a_tls_handshake_harms_nobody() {
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Required, false, &[]);
    let address = format!("127.0.0.1:{}", served.port);
    for garbage in [
        &[0u8; 64][..],
        &[0xff; 4096],
        b"GET / HTTP/1.1\r\n\r\n",
        &[],
    ] {
        let mut socket = TcpStream::connect(&address).unwrap();
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting).unwrap();
        socket.write_all(&3u32.to_be_bytes()).unwrap();
        socket.write_all(b"IHAVEOPT").unwrap();
        socket.write_all(&5u32.to_be_bytes()).unwrap();
        socket.write_all(&0u32.to_be_bytes()).unwrap();
        let mut reply = [0; 20];
        socket.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..16], 1u32.to_be_bytes());
        // The server may have closed before it has read all of it.
        let _ = socket.write_all(garbage);
        socket.shutdown(std::net::Shutdown::Write).ok();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    }
    if requires(&["nbdinfo"]) {
        assert!(fixture.sees(&served, "open", Some("alice")));
    }
}

#[test]
fn an_option_sent_in_the_clear_behind_starttls_does_not_count() {
    let fixture = Fixture::new();
    let served = fixture.serve(TlsMode::Allowed, false, &[]);
    let mut socket = TcpStream::connect(format!("127.0.0.1:{}", served.port)).unwrap();
    let mut greeting = [0; 18];
    socket.read_exact(&mut greeting).unwrap();
    let mut bytes = 3u32.to_be_bytes().to_vec();
    for option in [5u32, 3] {
        bytes.extend_from_slice(b"IHAVEOPT");
        bytes.extend_from_slice(&option.to_be_bytes());
        bytes.extend_from_slice(&0u32.to_be_bytes());
    }
    socket.write_all(&bytes).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    // The acknowledgement of STARTTLS; then nothing of the list, at most an
    // alert of TLS.
    assert_eq!(answer[..20].len(), 20);
    let text = String::from_utf8_lossy(&answer[20..]);
    assert!(!text.contains("open") && !text.contains("secret"), "{text}");
}

#[test]
fn what_cannot_work_is_said_before_anybody_connects() {
    let fixture = Fixture::new();
    let load = |files: &TlsFiles| {
        let error = Tls::load(TlsMode::Required, files, BTreeMap::new()).unwrap_err();
        error.to_string()
    };
    let files = fixture.files(true);
    let missing = TlsFiles {
        key: fixture.path("nowhere.key"),
        ..files.clone()
    };
    assert!(load(&missing).contains("nowhere.key cannot be read"));
    let no_key = TlsFiles {
        key: fixture.path("server.pem"),
        ..files.clone()
    };
    assert!(load(&no_key).contains("holds no private key"));
    let no_certificate = TlsFiles {
        certificate: fixture.path("server.key"),
        ..files.clone()
    };
    assert!(load(&no_certificate).contains("holds no certificate"));
    let foreign = TlsFiles {
        key: fixture.path("alice/client-key.pem"),
        ..files.clone()
    };
    assert!(load(&foreign).contains("cannot be used"));
    let (certificate, key) = fixture.authority.certify("localhost", 2021);
    let expired = TlsFiles {
        certificate: fixture.put("old.pem", &certificate),
        key: fixture.put("old.key", &key),
        ..files
    };
    assert!(load(&expired).contains("renew it"), "{}", load(&expired));
    let lists = BTreeMap::from([("secret".to_owned(), vec!["alice".to_owned()])]);
    assert!(matches!(
        Tls::load(TlsMode::Required, &fixture.files(false), lists),
        Err(TlsError::ListWithoutAuthority(_))
    ));
}

#[test]
fn other_machines_are_listened_to_only_under_tls_or_when_told_so() {
    let catalog = || MemoryCatalog::with(&[Arc::new(MemoryDisk::new("disk", 1 << 20))]);
    let refused = Server::new(catalog(), ServerOptions::default());
    assert!(matches!(
        refused.listen_tcp("0.0.0.0:0"),
        Err(ListenError::InTheClear(_))
    ));
    let fixture = Fixture::new();
    let with = |mode| ServerOptions {
        tls: Some(Tls::load(mode, &fixture.files(false), BTreeMap::new()).unwrap()),
        ..ServerOptions::default()
    };
    let allowed = Server::new(catalog(), with(TlsMode::Allowed));
    assert!(allowed.listen_tcp("0.0.0.0:0").is_err());
    let required = Server::new(catalog(), with(TlsMode::Required));
    assert!(
        required
            .listen_tcp("0.0.0.0:0")
            .unwrap()
            .starts_with("nbds://")
    );
    let told = ServerOptions {
        in_the_clear: true,
        ..ServerOptions::default()
    };
    assert!(Server::new(catalog(), told).listen_tcp("0.0.0.0:0").is_ok());
}
