//! The disks of a catalogue as one client sees them.

use std::sync::Arc;

use tessera_engine::disk::Disk;

use super::shared::Shared;
use super::tls::{self, Tls};
use crate::protocol::{ExportInfo, Exports, Instance};

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Client {
    /// Somebody on this machine, who may open the socket's file.
    Local,
    /// Somebody on the network, with the names that a certificate has proven.
    Network(Vec<String>),
}

impl Client {
    /// A client on the network that has shown this certificate.
    pub(crate) fn with_certificate(certificate: Option<&[u8]>) -> Self {
        Self::Network(certificate.map(tls::names_in).unwrap_or_default())
    }
}

/// The catalogue under the server's options.
pub(crate) struct CatalogExports<'a> {
    shared: &'a Shared,
    /// As it was when the client came, whatever is renewed meanwhile.
    tls: Option<Arc<Tls>>,
    client: Client,
}

impl<'a> CatalogExports<'a> {
    pub(crate) fn new(shared: &'a Shared, client: Client) -> Self {
        Self {
            shared,
            tls: shared.tls(),
            client,
        }
    }

    /// The TLS that it came under.
    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_deref()
    }

    /// Who asks.
    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn admits(&self, name: &str) -> bool {
        match (&self.tls, &self.client) {
            // Who may see a volume may see its snapshots, and nobody else.
            (Some(tls), Client::Network(names)) => {
                let volume = name.split_once('@').map_or(name, |(volume, _)| volume);
                tls.admits(volume, names)
            }
            (None, _) | (_, Client::Local) => true,
        }
    }

    /// Finds a disk. The empty name means the only one, if there is just one.
    pub(crate) fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        let catalog = &self.shared.catalog;
        if !name.is_empty() {
            return self.admits(name).then(|| catalog.open(name))?;
        }
        match self.names().as_slice() {
            [only] => catalog.open(only),
            _ => None,
        }
    }
}

impl Exports for CatalogExports<'_> {
    fn names(&self) -> Vec<String> {
        let mut names = self.shared.catalog.names();
        names.retain(|name| self.admits(name));
        names
    }

    fn describe(&self, name: &str) -> Option<ExportInfo> {
        let info = self.open(name)?.info();
        Some(ExportInfo {
            name: info.name,
            description: info.description,
            size: info.size,
            read_only: info.read_only || self.shared.options.read_only,
        })
    }

    fn snapshots(&self, name: &str) -> Vec<String> {
        self.open(name)
            .map_or_else(Vec::new, |disk| disk.snapshots())
    }

    fn instance(&self) -> Option<&Instance> {
        self.shared.options.instance.as_ref()
    }
}
