//! The disks of a catalogue as negotiation sees them.

use std::sync::Arc;

use tessera_engine::disk::Disk;

use super::shared::Shared;
use crate::protocol::{ExportInfo, Exports};

/// The catalogue under the server's options.
pub(crate) struct CatalogExports<'a> {
    shared: &'a Shared,
}

impl<'a> CatalogExports<'a> {
    pub(crate) fn new(shared: &'a Shared) -> Self {
        Self { shared }
    }

    /// Finds a disk. The empty name means the only one, if there is just one.
    pub(crate) fn open(&self, name: &str) -> Option<Arc<dyn Disk>> {
        let catalog = &self.shared.catalog;
        if !name.is_empty() {
            return catalog.open(name);
        }
        match catalog.names().as_slice() {
            [only] => catalog.open(only),
            _ => None,
        }
    }
}

impl Exports for CatalogExports<'_> {
    fn names(&self) -> Vec<String> {
        self.shared.catalog.names()
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
}
