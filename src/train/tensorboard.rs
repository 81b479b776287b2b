//! Scalars as a TensorBoard event file.
//!
//! The file is a list of records `u64 length · u32 masked crc32c of the length · bytes · u32 masked crc32c of the bytes`,
//! little-endian (TensorFlow's TFRecord); each holds one protocol-buffer message `Event`. Of it three kinds are written:
//! the version, the start of a session, and scalars.
//!
//! The crates that write this bring a protocol-buffer compiler or an image library; the few fields fit here.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// An event file under way.
#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Begins a new file in `folder`. What older files there hold from `step` on is not shown any more: a resumed run
    /// takes those steps again.
    pub(super) fn create(folder: &Path, step: usize) -> Result<Events> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let seconds = now();
        // TensorBoard reads the files of a folder in the order of their names.
        let name = |attempt: u32| {
            format!(
                "events.out.tfevents.{:010}.{:09}.{}.cluescope",
                seconds as u64,
                attempt,
                std::process::id()
            )
        };
        for attempt in 0.. {
            let path = folder.join(name(attempt));
            match File::options().write(true).create_new(true).open(&path) {
                Ok(file) => {
                    let mut events = Events { path, file };
                    events.record(&[double(1, seconds), bytes(3, b"brain.Event:2")].concat())?;
                    let session = bytes(7, &varint(1, 1));
                    events.record(&[double(1, seconds), varint(2, step as u64), session].concat())?;
                    return Ok(events);
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && attempt < 1000 => {}
                Err(e) => return Err(Error::io(&path)(e)),
            }
        }
        Err(Error::Stopped(format!("{}: no free name for an event file", folder.display())))
    }

    /// Writes `scalars` of one step.
    pub(super) fn write(&mut self, step: usize, scalars: &[(&str, f64)]) -> Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let value = [bytes(1, tag.as_bytes()), float(2, *value as f32)].concat();
            summary.extend(bytes(1, &value));
        }
        self.record(&[double(1, now()), varint(2, step as u64), bytes(5, &summary)].concat())
    }

    fn record(&mut self, message: &[u8]) -> Result<()> {
        let length = (message.len() as u64).to_le_bytes();
        let record =
            [&length[..], &masked_crc(&length).to_le_bytes(), message, &masked_crc(message).to_le_bytes()]
                .concat();
        // In one piece: a reader looking on, or a kill, meets whole records or a cut last one, which readers pass over.
        self.file.write_all(&record).map_err(Error::io(&self.path))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A protocol-buffer integer: seven bits a byte, the lowest first.
fn number(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn varint(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [number(field << 3 | 1), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [number(field << 3 | 2), number(value.len() as u64), value.to_vec()].concat()
}

fn float(field: u64, value: f32) -> Vec<u8> {
    [number(field << 3 | 5), value.to_le_bytes().to_vec()].concat()
}

fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: the messages are some fifty bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_and_numbers_are_those_of_their_standards() {
        // The check value of CRC-32C, and 32 zero bytes (RFC 3720, B.4).
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(number(300), [0xac, 0x02]);
        assert_eq!(float(2, 1.0), [0x15, 0, 0, 0x80, 0x3f]);
    }
}
