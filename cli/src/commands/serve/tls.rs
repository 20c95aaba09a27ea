//! What `tessera serve` is asked to encrypt, and whom it is to let in.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Serialize;
use tessera_nbd::{Tls, TlsFiles, TlsMode};

use super::{
    config::{TlsConfig, TlsModeArg},
    settings::wrong,
};

/// Encryption that there is, and for whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct TlsSettings {
    /// All clients over TCP need it, not only those that ask for it.
    pub(crate) required: bool,
    /// The server's certificate, then those that lead to its authority.
    pub(crate) certificate: PathBuf,
    /// Its private key.
    pub(crate) key: PathBuf,
    /// Authorities for clients; where given, clients must show a certificate.
    pub(crate) client_authority: Option<PathBuf>,
    /// By export, the names in certificates that may use it.
    pub(crate) clients: BTreeMap<String, Vec<String>>,
}

impl TlsSettings {
    /// What the file and the command line, which has the last word, make of it.
    ///
    /// # Errors
    /// Half of it is missing.
    pub(super) fn resolve(config: TlsConfig, asked: TlsConfig) -> anyhow::Result<Option<Self>> {
        let certificate = asked.certificate.or(config.certificate);
        let key = asked.key.or(config.key);
        let clients = if asked.clients.is_empty() {
            config.clients
        } else {
            asked.clients
        };
        // Who gives a certificate and says no more means it.
        let given = certificate.is_some() || key.is_some();
        let mode = asked.mode.or(config.mode).unwrap_or(if given {
            TlsModeArg::Required
        } else {
            TlsModeArg::Off
        });
        if mode == TlsModeArg::Off {
            // A list that nobody would obey is worse than none.
            if let Some(export) = clients.keys().next() {
                return Err(wrong(format!(
                    "Export {export} has a list of clients, which needs TLS: \
                     turn it on, or take the list away"
                )));
            }
            return Ok(None);
        }
        let (Some(certificate), Some(key)) = (certificate, key) else {
            return Err(wrong(
                "TLS needs the server's certificate and its key (--tls-cert and --tls-key, \
                 or tls.certificate and tls.key)"
                    .to_owned(),
            ));
        };
        Ok(Some(Self {
            required: mode == TlsModeArg::Required,
            certificate,
            key,
            client_authority: asked.client_authority.or(config.client_authority),
            clients,
        }))
    }

    /// Reads the files and checks that they fit.
    pub(super) fn load(&self) -> anyhow::Result<Tls> {
        let mode = if self.required {
            TlsMode::Required
        } else {
            TlsMode::Allowed
        };
        let files = TlsFiles {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            client_authority: self.client_authority.clone(),
        };
        Ok(Tls::load(mode, &files, self.clients.clone())?)
    }
}

/// Entries of lists of clients, gathered by export.
pub(super) fn lists(pairs: &[(String, String)]) -> BTreeMap<String, Vec<String>> {
    let mut lists = BTreeMap::<String, Vec<String>>::new();
    for (export, name) in pairs {
        lists.entry(export.clone()).or_default().push(name.clone());
    }
    lists
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut TlsConfig)) -> anyhow::Result<Option<TlsSettings>> {
        let mut config = TlsConfig::default();
        change(&mut config);
        TlsSettings::resolve(config, TlsConfig::default())
    }

    #[test]
    fn tls_that_is_half_there_is_refused() {
        assert!(with(|tls| tls.certificate = Some("c".into())).is_err());
        assert!(with(|tls| tls.key = Some("k".into())).is_err());
        assert!(with(|tls| tls.mode = Some(TlsModeArg::Required)).is_err());
        let list = |tls: &mut TlsConfig| {
            tls.clients.insert("vm1".into(), Vec::new());
        };
        assert!(with(list).is_err());
        assert_eq!(with(|_| ()).unwrap(), None);
    }

    #[test]
    fn the_command_line_replaces_what_the_file_says_of_the_same() {
        let file = TlsConfig {
            mode: Some(TlsModeArg::Required),
            certificate: Some("c".into()),
            key: Some("k".into()),
            clients: lists(&[("vm1".into(), "alice".into())]),
            ..TlsConfig::default()
        };
        let asked = TlsConfig {
            mode: Some(TlsModeArg::Allowed),
            clients: lists(&[("vm1".into(), "bob".into()), ("vm1".into(), "eve".into())]),
            ..TlsConfig::default()
        };
        let both = TlsSettings::resolve(file, asked).unwrap().unwrap();
        assert!(!both.required);
        assert_eq!(both.certificate, PathBuf::from("c"));
        assert_eq!(both.clients["vm1"], ["bob", "eve"]);
    }
}
