//! What is to be read: files, block devices, directories of files, NBD exports.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom},
    os::unix::fs::{FileExt, FileTypeExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::io::Errno;
use tessera_nbd::client::{Client, Uri};

use super::BLOCK_BYTES;
use crate::failure::{Failure, Kind};

/// One run of bytes from 0 on, as a volume would hold it.
#[derive(Debug)]
pub(crate) struct Image {
    place: Place,
    size: u64,
}

#[derive(Debug)]
enum Place {
    File(PathBuf),
    Nbd(String, Box<Client>),
}

fn cannot_read(path: &Path, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        _ => Kind::Io,
    };
    Failure::new(kind, format!("{} cannot be read: {error}", path.display()))
}

/// What the words on a command line name, in the order in which it is read.
pub(crate) fn images(words: &[String]) -> Result<Vec<Image>, Failure> {
    let mut images = Vec::new();
    for word in words {
        if Uri::looks_like(word) {
            images.push(Image::of_export(word)?);
            continue;
        }
        let path = Path::new(word);
        let metadata = fs::metadata(path).map_err(|error| cannot_read(path, &error))?;
        if metadata.is_dir() {
            of_directory(path, &mut images)?;
        } else {
            images.push(Image::of_file(path, &metadata)?);
        }
    }
    Ok(images)
}

/// Every file below a directory, by name. Links are not followed: what they
/// point to is there by itself, or was not meant.
fn of_directory(path: &Path, images: &mut Vec<Image>) -> Result<(), Failure> {
    let failed = |error: io::Error| cannot_read(path, &error);
    let entries = fs::read_dir(path).map_err(failed)?;
    let mut below: Vec<PathBuf> = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(failed)?;
    below.sort();
    for path in below {
        let metadata = fs::symlink_metadata(&path).map_err(|error| cannot_read(&path, &error))?;
        if metadata.is_dir() {
            of_directory(&path, images)?;
        } else if metadata.is_file() {
            images.push(Image::of_file(&path, &metadata)?);
        }
    }
    Ok(())
}

impl Image {
    fn of_file(path: &Path, metadata: &fs::Metadata) -> Result<Self, Failure> {
        let kind = metadata.file_type();
        let size = if kind.is_file() {
            metadata.len()
        } else if kind.is_block_device() {
            let end = File::open(path).and_then(|mut file| file.seek(SeekFrom::End(0)));
            end.map_err(|error| cannot_read(path, &error))?
        } else {
            return Err(Failure::new(
                Kind::InvalidArgument,
                format!(
                    "{} is neither a file, a directory nor a block device",
                    path.display()
                ),
            ));
        };
        Ok(Self {
            place: Place::File(path.to_owned()),
            size,
        })
    }

    fn of_export(text: &str) -> Result<Self, Failure> {
        let client = text
            .parse::<Uri>()
            .and_then(|uri| Client::connect(&uri))
            .map_err(|error| of_nbd(text, &error))?;
        Ok(Self {
            size: client.size(),
            place: Place::Nbd(text.to_owned(), Box::new(client)),
        })
    }

    /// Its bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads it block by block. Holes of a sparse file are passed over: they
    /// are zeroes, which no pool stores.
    pub(super) fn read(
        self,
        each: &mut dyn FnMut(Arc<Vec<u8>>),
        read: &dyn Fn(u64),
    ) -> Result<(), Failure> {
        let size = self.size;
        match self.place {
            Place::Nbd(text, mut client) => blocks(size, read, each, &mut |offset, target| {
                client
                    .read(offset, target)
                    .map_err(|error| of_nbd(&text, &error))?;
                Ok(target.len())
            }),
            Place::File(path) => {
                let file = File::open(&path).map_err(|error| cannot_read(&path, &error))?;
                let mut next_data = None;
                blocks(size, read, each, &mut |offset, target| {
                    let end = offset + target.len() as u64;
                    let at = match next_data.take() {
                        Some(at) if at >= offset => at,
                        _ => data_from(&file, offset),
                    };
                    if at >= end {
                        next_data = Some(at);
                        return Ok(0);
                    }
                    fill(&file, offset, target).map_err(|error| cannot_read(&path, &error))
                })
            }
        }
    }
}

/// Fills a block from an offset on; how many bytes there were.
type Fetch<'a> = dyn FnMut(u64, &mut [u8]) -> Result<usize, Failure> + 'a;

/// Hands on every block that `fetch` says has bytes.
fn blocks(
    size: u64,
    read: &dyn Fn(u64),
    each: &mut dyn FnMut(Arc<Vec<u8>>),
    fetch: &mut Fetch<'_>,
) -> Result<(), Failure> {
    let mut offset = 0;
    while offset < size {
        let left = usize::try_from(size - offset).unwrap_or(usize::MAX);
        let mut block = vec![0; left.min(BLOCK_BYTES)];
        let length = block.len() as u64;
        let filled = fetch(offset, &mut block)?;
        if filled > 0 {
            // A file that was cut meanwhile goes on with zeroes.
            each(Arc::new(block));
        }
        read(length);
        offset += length;
    }
    Ok(())
}

/// Where data goes on at or after `offset`; `offset` where nobody can say.
fn data_from(file: &File, offset: u64) -> u64 {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(at) => at,
        // Only a hole is left.
        Err(Errno::NXIO) => u64::MAX,
        Err(_) => offset,
    }
}

fn fill(file: &File, offset: u64, target: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < target.len() {
        match file.read_at(&mut target[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn of_nbd(text: &str, error: &tessera_nbd::client::ClientError) -> Failure {
    use std::error::Error;
    let cause = error.source().map(|cause| format!(": {cause}"));
    Failure::new(
        Kind::Io,
        format!("{text}: {error}{}", cause.unwrap_or_default()),
    )
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn read_all(image: Image) -> (Vec<(usize, u8)>, u64) {
        let (blocks, read) = (RefCell::new(Vec::new()), Cell::new(0));
        let mut each = |block: Arc<Vec<u8>>| {
            blocks.borrow_mut().push((block.len(), block[0]));
        };
        image
            .read(&mut each, &|bytes| read.set(read.get() + bytes))
            .unwrap();
        (blocks.into_inner(), read.get())
    }

    #[test]
    fn directories_are_read_by_name_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("b")).unwrap();
        for (name, bytes) in [("c", 3), ("a", 1), ("b/x", 2)] {
            fs::write(dir.path().join(name), vec![7; bytes]).unwrap();
        }
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        let found = images(&[dir.path().display().to_string()]).unwrap();
        let sizes: Vec<u64> = found.iter().map(Image::size).collect();
        assert_eq!(sizes, [1, 2, 3]);
    }

    #[test]
    fn holes_are_passed_over_and_odd_ends_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len((9 << 20) + 5).unwrap();
        file.write_all_at(&[3; 4096], 4 << 20).unwrap();
        file.write_all_at(&[9; 5], 9 << 20).unwrap();
        let image = images(&[path.display().to_string()])
            .unwrap()
            .pop()
            .unwrap();
        let (blocks, read) = read_all(image);
        assert_eq!(blocks, [(1 << 20, 3), (5, 9)]);
        assert_eq!(read, (9 << 20) + 5);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (word, why) in [
            ("/nowhere/at/all", "/nowhere/at/all cannot be read"),
            ("/dev/null", "neither a file"),
            ("nbd+unix:///x?socket=/nowhere", "cannot be reached"),
            ("nbd://", "names no host"),
        ] {
            let failure = images(&[word.to_owned()]).unwrap_err().to_string();
            assert!(failure.contains(why), "{word}: {failure}");
        }
    }
}
