//! Threaded `pread`/`pwrite` backend.
use super::{Backend, DeviceFacts, DeviceHandle, Io, OpenMode, Verdict};
use std::{io, path::Path};
/// Blocking calls on worker threads.
#[derive(Debug, Default)]
pub struct ThreadBackend {}
impl ThreadBackend {
    /// A backend without devices.
    pub fn new() -> Self {
        Self::default()
    }
}
impl Backend for ThreadBackend {
    fn name(&self) -> &'static str {
        "threads"
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
