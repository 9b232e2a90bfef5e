//! The bytes of a text file, decompressed where its name says so.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use zstd::stream::read::Decoder as ZstdDecoder;

const BUFFER_BYTES: usize = 256 << 10;
/// Buffer of decompressed bytes: a folder may hold many files that are open at once.
const DECOMPRESSED_BYTES: usize = 32 << 10;

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Zstd,
}

impl Compression {
    /// By the last extension of its name.
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// Bytes to read line by line, some of which can be put back.
pub(super) struct Input {
    back: Vec<u8>,
    /// Bytes of `back` that were read again.
    read_again: usize,
    bytes: Box<dyn BufRead + Send>,
}

impl Input {
    /// The bytes of a file from byte `position` on, counted after decompression.
    pub fn open(path: &Path, position: u64) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let bytes: Box<dyn BufRead + Send> = match Compression::of(path) {
            None => {
                file.seek(SeekFrom::Start(position))?;
                Box::new(BufReader::with_capacity(BUFFER_BYTES, file))
            }
            Some(compression) => {
                let file = BufReader::with_capacity(DECOMPRESSED_BYTES, file);
                let decoder: Box<dyn Read + Send> = match compression {
                    Compression::Gzip => Box::new(MultiGzDecoder::new(file)),
                    Compression::Zstd => Box::new(ZstdDecoder::with_buffer(file)?),
                };
                let mut bytes = BufReader::with_capacity(DECOMPRESSED_BYTES, decoder);
                io::copy(&mut bytes.by_ref().take(position), &mut io::sink())?;
                Box::new(bytes)
            }
        };
        Ok(Self { back: Vec::new(), read_again: 0, bytes })
    }

    /// Appends what is left of the line, with its end, to `record`, but at most `most` bytes;
    /// returns how many.
    pub fn read_line(&mut self, most: usize, record: &mut Vec<u8>) -> io::Result<usize> {
        let back = &self.back[self.read_again..];
        let back = &back[..back.len().min(most)];
        let line_end = back.iter().position(|byte| *byte == b'\n');
        let again = line_end.map_or(back.len(), |end| end + 1);
        record.extend_from_slice(&back[..again]);
        self.read_again += again;
        if line_end.is_some() || again == most {
            return Ok(again);
        }
        let left = (most - again) as u64;
        Ok(again + self.bytes.by_ref().take(left).read_until(b'\n', record)?)
    }

    /// Puts bytes back, to be read before all others.
    pub fn unread(&mut self, bytes: &[u8]) {
        self.back.splice(..self.read_again, bytes.iter().copied());
        self.read_again = 0;
    }
}
