//! The directory of a zip archive whose entries are stored as they are.
//!
//! Nothing is inflated, so an archive cannot grow; entries must not share bytes, so it cannot pretend to either.
//! The directory stands at the end of the file, and may be of zip64's form.

use std::ops::Range;
use std::path::Path;

use crate::Error;
use crate::error::shown;

/// A file in the archive.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where its bytes lie in the archive's file.
    pub(super) bytes: Range<usize>,
}

const END_SIGNATURE: &[u8] = b"PK\x05\x06";
const END_BYTES: usize = 22;
const END64_SIGNATURE: &[u8] = b"PK\x06\x06";
const LOCATOR64_SIGNATURE: &[u8] = b"PK\x06\x07";
const LOCATOR64_BYTES: usize = 20;
const CENTRAL_SIGNATURE: &[u8] = b"PK\x01\x02";
const CENTRAL_BYTES: u64 = 46;
const LOCAL_SIGNATURE: &[u8] = b"PK\x03\x04";
const LOCAL_BYTES: u64 = 30;

/// The entries of the archive whose bytes are `file`, in the directory's order.
pub(super) fn read_entries(path: &Path, file: &[u8]) -> Result<Vec<Entry>, Error> {
    let zip = Zip { path, file };
    let (mut at, count) = zip.directory()?;
    let mut entries = Vec::new();
    for _ in 0..count {
        let (entry, next) = zip.central_entry(at)?;
        entries.push(entry);
        at = next;
    }
    zip.refuse_overlaps(&entries)?;
    Ok(entries)
}

struct Zip<'a> {
    path: &'a Path,
    file: &'a [u8],
}

impl<'a> Zip<'a> {
    fn damaged(&self, what: &str) -> Error {
        let problem = format!("{what}; the file is no torch archive, damaged, or cut short: fetch it again");
        Error::malformed(self.path, problem)
    }

    /// `len` bytes at `at`, wherever a header claims them to be.
    fn slice(&self, at: u64, len: u64, what: &str) -> Result<&'a [u8], Error> {
        let end = at.checked_add(len).filter(|&end| end <= self.file.len() as u64);
        match end {
            Some(end) => Ok(&self.file[at as usize..end as usize]),
            None => Err(self.damaged(&format!("{what} reaches past the end of the zip archive"))),
        }
    }

    /// Where the directory begins, and how many entries it claims.
    fn directory(&self) -> Result<(u64, u64), Error> {
        let end_at = self.find_end().ok_or_else(|| self.damaged("there is no zip directory at its end"))?;
        let locator = end_at.checked_sub(LOCATOR64_BYTES).map(|at| &self.file[at..end_at]);
        if let Some(locator) = locator.filter(|locator| locator.starts_with(LOCATOR64_SIGNATURE)) {
            let end = self.slice(u64_at(locator, 8), 56, "zip64's end record")?;
            if !end.starts_with(END64_SIGNATURE) {
                return Err(self.damaged("zip64's end record is not where it should be"));
            }
            return Ok((u64_at(end, 48), u64_at(end, 32)));
        }
        let end = &self.file[end_at..];
        Ok((u32_at(end, 16).into(), u16_at(end, 10).into()))
    }

    /// The end record is the last thing in the file but for a comment, whose length it holds.
    fn find_end(&self) -> Option<usize> {
        let last = self.file.len().checked_sub(END_BYTES)?;
        let first = last.saturating_sub(u16::MAX.into());
        (first..=last).rev().find(|&at| {
            let end = &self.file[at..];
            end.starts_with(END_SIGNATURE) && END_BYTES + usize::from(u16_at(end, 20)) == end.len()
        })
    }

    /// The entry whose directory record is at `at`, and where the next record is.
    fn central_entry(&self, at: u64) -> Result<(Entry, u64), Error> {
        let record = self.slice(at, CENTRAL_BYTES, "the zip directory")?;
        if !record.starts_with(CENTRAL_SIGNATURE) {
            return Err(self.damaged("the zip directory is in disorder"));
        }
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|at| u64::from(u16_at(record, at)));
        let raw_name = self.slice(at + CENTRAL_BYTES, name_len, "the zip directory")?;
        let name = String::from_utf8_lossy(raw_name).into_owned();
        let extra = self.slice(at + CENTRAL_BYTES + name_len, extra_len, "the zip directory")?;
        let (flags, method) = (u16_at(record, 8), u16_at(record, 10));
        if flags & 1 != 0 || method != 0 {
            let what = format!("the compressed or encrypted entry {}", shown(&name));
            return Err(Error::unsupported(
                self.path,
                what,
                "torch stores entries as they are; save the file again with torch.save",
            ));
        }
        let (size, local_at) = self.place(record, extra, &name)?;
        let bytes = self.data(local_at, size, raw_name)?;
        Ok((Entry { name, bytes }, at + CENTRAL_BYTES + name_len + extra_len + comment_len))
    }

    /// Size and offset of an entry, from its record or, where those read all ones, from zip64's extra field.
    fn place(&self, record: &[u8], extra: &[u8], name: &str) -> Result<(u64, u64), Error> {
        let mut wide = zip64_values(extra).into_iter();
        let mut resolve = |value: u32| match value {
            u32::MAX => {
                wide.next().ok_or_else(|| self.damaged(&format!("entry {} lacks its zip64 sizes", shown(name))))
            }
            value => Ok(value.into()),
        };
        // zip64's order: size, compressed size, offset.
        let size: u64 = resolve(u32_at(record, 24))?;
        let compressed: u64 = resolve(u32_at(record, 20))?;
        let local_at = resolve(u32_at(record, 42))?;
        if size != compressed {
            return Err(self.damaged(&format!("entry {} is stored, but in another size than its own", shown(name))));
        }
        Ok((size, local_at))
    }

    /// Where an entry's bytes lie, behind its local header.
    fn data(&self, local_at: u64, size: u64, name: &[u8]) -> Result<Range<usize>, Error> {
        let header = self.slice(local_at, LOCAL_BYTES, "a zip entry")?;
        let [name_len, extra_len] = [26, 28].map(|at| u64::from(u16_at(header, at)));
        let local_name = self.slice(local_at + LOCAL_BYTES, name_len, "a zip entry")?;
        if !header.starts_with(LOCAL_SIGNATURE) || local_name != name {
            let name = shown(&String::from_utf8_lossy(name));
            return Err(self.damaged(&format!("zip entry {name} is not where the directory says")));
        }
        let start = local_at + LOCAL_BYTES + name_len + extra_len;
        self.slice(start, size, "a zip entry")?;
        Ok(start as usize..(start + size) as usize)
    }

    fn refuse_overlaps(&self, entries: &[Entry]) -> Result<(), Error> {
        let mut ranges: Vec<_> =
            entries.iter().map(|entry| (entry.bytes.start, entry.bytes.end, &entry.name)).collect();
        ranges.sort_unstable();
        match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
            Some(pair) => {
                Err(self.damaged(&format!("zip entries {} and {} overlap", shown(pair[0].2), shown(pair[1].2))))
            }
            None => Ok(()),
        }
    }
}

/// The numbers of zip64's extra field (identifier 1), at most the three that we use.
fn zip64_values(mut extra: &[u8]) -> Vec<u64> {
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let len = usize::from(u16_at(head, 2)).min(rest.len());
        let (body, next) = rest.split_at(len);
        if u16_at(head, 0) == 1 {
            return body.as_chunks().0.iter().take(3).map(|&bytes| u64::from_le_bytes(bytes)).collect();
        }
        extra = next;
    }
    Vec::new()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where an archive says its sizes and offsets.
    #[derive(Clone, Copy, PartialEq)]
    enum Form {
        Plain,
        /// As torch does for what does not fit 32 bits: all ones, and the truth in an extra field.
        Zip64,
    }

    /// An archive of stored entries, byte for byte by the format's description.
    fn archive(form: Form, entries: &[(&str, &[u8])]) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        for (name, data) in entries {
            let (size, offset) = (data.len() as u64, file.len() as u64);
            file.extend(record(LOCAL_SIGNATURE, &[], 14, size as u32, name, &[], &[]));
            file.extend_from_slice(data);
            let (shown, extra) = match form {
                Form::Plain => (size as u32, Vec::new()),
                Form::Zip64 => (
                    u32::MAX,
                    [&[1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes(), &offset.to_le_bytes()].concat(),
                ),
            };
            let offset = if form == Form::Plain { offset as u32 } else { u32::MAX };
            let tail = [&[0; 10][..], &offset.to_le_bytes()].concat();
            // An unknown extra field before zip64's must be passed over.
            let extra = [&[0x42, 0x42, 2, 0, 9, 9][..], &extra].concat();
            directory.extend(record(CENTRAL_SIGNATURE, &[20, 0], 14, shown, name, &extra, &tail));
        }
        let (at, size) = (file.len() as u64, directory.len() as u64);
        file.extend(directory);
        if form == Form::Zip64 {
            let end_at = file.len() as u64;
            let count = (entries.len() as u64).to_le_bytes();
            file.extend([END64_SIGNATURE, &[0; 20], &count, &count, &size.to_le_bytes(), &at.to_le_bytes()].concat());
            file.extend([LOCATOR64_SIGNATURE, &[0; 4], &end_at.to_le_bytes(), &[1, 0, 0, 0]].concat());
        }
        let (count, at) = match form {
            Form::Plain => (entries.len() as u16, at as u32),
            Form::Zip64 => (u16::MAX, u32::MAX),
        };
        file.extend([END_SIGNATURE, &[0; 4], &count.to_le_bytes(), &count.to_le_bytes()].concat());
        file.extend([&(size as u32).to_le_bytes()[..], &at.to_le_bytes(), &[7, 0], b"comment"].concat());
        file
    }

    /// A local or central record: `gap` zero bytes, two equal sizes, the lengths of name and extra, `tail`, name, extra.
    fn record(signature: &[u8], start: &[u8], gap: usize, size: u32, name: &str, extra: &[u8], tail: &[u8]) -> Vec<u8> {
        let size = size.to_le_bytes();
        let lens = [(name.len() as u16).to_le_bytes(), (extra.len() as u16).to_le_bytes()].concat();
        [signature, start, &vec![0; gap], &size, &size, &lens, tail, name.as_bytes(), extra].concat()
    }

    fn read(file: &[u8]) -> Result<Vec<Entry>, String> {
        read_entries(Path::new("a.pth"), file).map_err(|e| e.to_string())
    }

    #[test]
    fn entries_are_found_in_both_forms() {
        for form in [Form::Plain, Form::Zip64] {
            let file = archive(form, &[("a/data.pkl", b"program"), ("a/data/0", b""), ("a/data/1", b"numbers")]);
            let entries = read(&file).unwrap();
            let found: Vec<_> = entries.iter().map(|entry| (entry.name.as_str(), &file[entry.bytes.clone()])).collect();
            assert_eq!(found, [("a/data.pkl", &b"program"[..]), ("a/data/0", b""), ("a/data/1", b"numbers")]);
        }
    }

    #[test]
    fn an_archive_cannot_pretend_to_more_than_it_holds() {
        let whole = archive(Form::Zip64, &[("a", b"12345678"), ("b", b"12345678")]);
        let size_at = whole.windows(4).position(|w| w == [1, 0, 24, 0]).unwrap() + 4;
        let with = |at: usize, value: u64| {
            let mut file = whole.clone();
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
            file
        };
        let both_sizes = |value: u64| {
            let mut file = with(size_at, value);
            file[size_at + 8..size_at + 16].copy_from_slice(&value.to_le_bytes());
            read(&file)
        };
        assert!(both_sizes(u64::MAX).unwrap_err().contains("reaches past the end"));
        assert!(both_sizes(40).unwrap_err().contains("entries a and b overlap"));
        assert!(read(&with(size_at, 7)).unwrap_err().contains("in another size than its own"));
        assert!(read(&with(size_at + 16, 1)).unwrap_err().contains("a is not where the directory says"));
        assert!(read(&with(size_at + 16, u64::MAX)).unwrap_err().contains("reaches past the end"));
    }
}
