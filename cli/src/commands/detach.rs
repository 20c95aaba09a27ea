//! `tessera detach`: the end of an attached block device.

use clap::Args;
use tessera_nbd::kernel;

/// Detach a block device that 'tessera attach' made
///
/// Writes back what the kernel has cached of it and flushes it first. Refuses
/// when the device is mounted or in use in another way, and then changes
/// nothing.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  tessera detach /dev/nbd0\n  \
    tessera detach /dev/nbd0 --force    # its server is gone for good")]
pub(crate) struct Detach {
    /// The device, such as /dev/nbd0
    device: String,
    /// End it at once, in use or not, as if it had been pulled out: what is cached
    /// of it is lost, and whoever uses it gets errors
    #[arg(long)]
    force: bool,
}

impl Detach {
    pub(crate) fn run(self) -> anyhow::Result<()> {
        let device = self.device.parse()?;
        if self.force {
            kernel::pull(device)?;
        } else {
            kernel::detach(device)?;
        }
        Ok(())
    }
}
