//! Scalars in the files that TensorBoard reads.
//!
//! A file is a list of records `length: u64 | masked crc32c of length | data | masked crc32c of data`; the data is a
//! protobuf message `Event { wall_time = 1, step = 2, file_version = 3 | summary = 5 }`, of whose summary we write
//! `value = 1 { tag = 1, simple_value = 2 }`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// One run's events.
#[derive(Debug)]
pub struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Begins a file in `folder`, which is made if need be. A run that goes on after an interruption has a file of its own;
    /// TensorBoard shows both as one.
    ///
    /// # Errors
    /// The system refuses the folder or the file.
    pub fn create(folder: &Path) -> std::io::Result<EventFile> {
        std::fs::create_dir_all(folder)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!("events.out.tfevents.{:010}.octet.{}", now.as_secs(), now.subsec_nanos());
        let path = folder.join(name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        let mut events = EventFile { file, path };
        let mut event = event(0);
        bytes_field(3, b"brain.Event:2", &mut event);
        events.record(&event)?;
        Ok(events)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds scalars of a step.
    ///
    /// # Errors
    /// The disk is full, or gone.
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f64)]) -> std::io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in scalars {
            let mut entry = Vec::new();
            bytes_field(1, tag.as_bytes(), &mut entry);
            entry.push(2 << 3 | 5);
            entry.extend_from_slice(&(*value as f32).to_le_bytes());
            bytes_field(1, &entry, &mut summary);
        }
        let mut event = event(step);
        bytes_field(5, &summary, &mut event);
        self.record(&event)
    }

    /// Writes a record at once, so that a killed run loses nothing and leaves no half record.
    fn record(&mut self, data: &[u8]) -> std::io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend_from_slice(&masked_crc(&length).to_le_bytes());
        record.extend_from_slice(data);
        record.extend_from_slice(&masked_crc(data).to_le_bytes());
        self.file.write_all(&record)
    }
}

/// An event that has its time and step.
fn event(step: u64) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let mut event = vec![1 << 3 | 1];
    event.extend_from_slice(&now.to_le_bytes());
    event.push(2 << 3);
    varint(step, &mut event);
    event
}

fn bytes_field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 128 {
        out.push(value as u8 | 128);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The checksum as TensorFlow's records hold it: turned by 15 bits and moved, so that a checksum of data with checksums in
/// it stays a good one.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit by bit: some hundred bytes a step.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 3720, B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn records_are_whole_and_begin_with_the_version() {
        let folder = tempfile::tempdir().unwrap();
        let mut events = EventFile::create(folder.path()).unwrap();
        events.scalars(300, &[("train/loss", 1.5), ("train/rate", 0.25)]).unwrap();
        let bytes = std::fs::read(events.path()).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(masked_crc(&rest[..8]).to_le_bytes(), rest[8..12]);
            let data = &rest[12..12 + length];
            assert_eq!(masked_crc(data).to_le_bytes(), rest[12 + length..16 + length]);
            records.push(data);
            rest = &rest[16 + length..];
        }
        assert_eq!(records.len(), 2);
        assert!(records[0].ends_with(b"\x1a\x0dbrain.Event:2"));
        // step = 300, then a summary with two values.
        assert_eq!(records[1][9..13], [0x10, 0xAC, 0x02, 0x2A]);
        assert!(records[1].ends_with(&0.25f32.to_le_bytes()));
    }
}
