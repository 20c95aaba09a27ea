//! io_uring backend.
use super::{Backend, DeviceFacts, DeviceHandle, Io, OpenMode, Verdict};
use std::{io, path::Path};
/// A ring per thread.
#[derive(Debug, Default)]
pub struct UringBackend {}
impl UringBackend {
    /// A backend, where the kernel allows io_uring.
    pub fn probe() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
impl Backend for UringBackend {
    fn name(&self) -> &'static str {
        "io_uring"
    }
    fn open(&self, _path: &Path, _mode: OpenMode) -> io::Result<DeviceHandle> {
        todo!()
    }
    fn create_file(&self, _path: &Path, _size_bytes: u64) -> io::Result<()> {
        todo!()
    }
    fn facts(&self, _device: DeviceHandle) -> DeviceFacts {
        todo!()
    }
    fn close(&self, _device: DeviceHandle) {
        todo!()
    }
    fn run(&self, _batch: &mut [Io], _verdict: &dyn Verdict) {
        todo!()
    }
}
