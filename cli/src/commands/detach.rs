//! `tessera detach`: the end of an attached block device.

use clap::Args;
use tessera_nbd::kernel;

/// Detach a block device that 'tessera attach' made
///
/// Writes back what the kernel has cached of it and flushes it first. Refuses
/// when the device is mounted or in use in another way, and then changes
/// nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tessera detach /dev/nbd0")]
pub(crate) struct Detach {
    /// The device, such as /dev/nbd0
    device: String,
}

impl Detach {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        Ok(kernel::detach(self.device.parse()?)?)
    }
}
