//! What a server needs to speak TLS, and whom it lets see which export.
//!
//! Only TCP is encrypted: a Unix socket is guarded by its directory. Clients
//! show a certificate where an authority for them is given, and then must. An
//! export with a list of names is there only for clients whose certificate has
//! one of them, as DNS name or as common name; for all others, and in the
//! clear, it does not exist.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use thiserror::Error;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Whether clients have to use TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Those that ask for it.
    Allowed,
    /// Everything but asking for it is refused in the clear.
    Required,
}

/// The files that make up a server's side of TLS, all of them PEM.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The server's certificate, then those that lead to its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities for clients; where given, clients must show a certificate.
    pub client_authority: Option<PathBuf>,
}

/// TLS for a server.
#[derive(Debug, Clone)]
pub struct Tls {
    pub(crate) mode: TlsMode,
    pub(crate) config: Arc<ServerConfig>,
    clients: BTreeMap<String, Vec<String>>,
}

/// Why there can be no TLS.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{path} cannot be read")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: std::io::Error,
    },
    /// A file holds no certificate or key.
    #[error("{path} holds no {wanted} in PEM form")]
    Empty {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// A certificate is no X.509.
    #[error("{0} holds a certificate that cannot be understood")]
    Malformed(PathBuf),
    /// A certificate's time is over, or has not begun.
    #[error("The certificate in {path} is valid from {from} to {to} only: renew it")]
    Expired {
        /// The file.
        path: PathBuf,
        /// The first moment it is valid.
        from: String,
        /// The last one.
        to: String,
    },
    /// The key does not belong to the certificate, or the like.
    #[error("The certificate {certificate} and the key {key} cannot be used")]
    Unusable {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// No authority can be made of the file.
    #[error("{path} holds no authority for clients that can be used: {reason}")]
    Authority {
        /// The file.
        path: PathBuf,
        /// What rustls says.
        reason: String,
    },
    /// Lists of clients need client certificates.
    #[error("Export {0} has a list of clients, but no authority for client certificates is given")]
    ListWithoutAuthority(String),
}

impl Tls {
    /// Reads the files and checks that they fit, now rather than at the first
    /// client. `clients` lists, by export, the names of those that may use it;
    /// exports without a list are for everybody.
    pub fn load(
        mode: TlsMode,
        files: &TlsFiles,
        clients: BTreeMap<String, Vec<String>>,
    ) -> Result<Self, TlsError> {
        let chain = certificates(&files.certificate)?;
        check_time(&files.certificate, &chain[0])?;
        let key_bytes = read(&files.key)?;
        let key = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|_| TlsError::Empty {
            path: files.key.clone(),
            wanted: "private key",
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for every default version");
        let builder = match &files.client_authority {
            None => {
                if let Some(export) = clients.keys().next() {
                    return Err(TlsError::ListWithoutAuthority(export.clone()));
                }
                builder.with_no_client_auth()
            }
            Some(path) => {
                let refuse = |reason: String| TlsError::Authority {
                    path: path.clone(),
                    reason,
                };
                let mut roots = RootCertStore::empty();
                for certificate in certificates(path)? {
                    check_time(path, &certificate)?;
                    roots
                        .add(certificate)
                        .map_err(|error| refuse(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|error| refuse(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let config = builder
            .with_single_cert(chain, key)
            .map_err(|source| TlsError::Unusable {
                certificate: files.certificate.clone(),
                key: files.key.clone(),
                source,
            })?;
        Ok(Self {
            mode,
            config: Arc::new(config),
            clients,
        })
    }

    /// Whether a client with these names may know of an export.
    pub(crate) fn admits(&self, export: &str, names: &[String]) -> bool {
        self.clients
            .get(export)
            .is_none_or(|list| list.iter().any(|name| names.contains(name)))
    }
}

/// The names that a client's certificate gives it. The certificate has been
/// verified; one that cannot be understood gives none.
pub(crate) fn names_in(certificate: &[u8]) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let mut names: Vec<String> = parsed
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .map(str::to_owned)
        .collect();
    if let Ok(Some(alternatives)) = parsed.subject_alternative_name() {
        names.extend(
            alternatives
                .value
                .general_names
                .iter()
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                }),
        );
    }
    names
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|source| TlsError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(TlsError::Empty {
            path: path.to_owned(),
            wanted: "certificate",
        }),
    }
}

fn check_time(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|_| TlsError::Malformed(path.to_owned()))?;
    let validity = parsed.validity();
    if validity.is_valid() {
        return Ok(());
    }
    Err(TlsError::Expired {
        path: path.to_owned(),
        from: validity.not_before.to_string(),
        to: validity.not_after.to_string(),
    })
}
