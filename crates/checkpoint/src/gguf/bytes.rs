//! A bounded walk over a header: nothing is allocated before the bytes for it are known to be there.

use std::path::Path;

use crate::Error;

/// The rest of a header.
pub(super) struct Bytes<'a> {
    path: &'a Path,
    file: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    pub(super) fn new(path: &'a Path, file: &'a [u8]) -> Bytes<'a> {
        Bytes { path, file, at: 0 }
    }

    /// Bytes walked so far.
    pub(super) fn position(&self) -> u64 {
        self.at as u64
    }

    /// Bytes still to come.
    pub(super) fn remaining(&self) -> u64 {
        (self.file.len() - self.at) as u64
    }

    /// The next `len` bytes; `what` says in an error what they would have been.
    pub(super) fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8], Error> {
        if len > self.remaining() {
            let problem = format!(
                "the file ends at byte {} within {what}, {len} bytes at {}; the download was cut short or the file is damaged, fetch it again",
                self.file.len(),
                self.at
            );
            return Err(Error::malformed(self.path, problem));
        }
        let bytes = &self.file[self.at..self.at + len as usize];
        self.at += len as usize;
        Ok(bytes)
    }

    /// The next `N` bytes as an array.
    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], Error> {
        let bytes = self.take(N as u64, what)?;
        Ok(bytes.try_into().expect("take returns the length asked for"))
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// A length and as many bytes.
    pub(super) fn string(&mut self, what: &str) -> Result<&'a [u8], Error> {
        let len = self.u64(what)?;
        self.take(len, what)
    }

    /// A string that names something, hence must be UTF-8.
    pub(super) fn name(&mut self, what: &str) -> Result<String, Error> {
        let at = self.at;
        match std::str::from_utf8(self.string(what)?) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(Error::malformed(self.path, format!("{what} at byte {at} is no UTF-8; the file is damaged"))),
        }
    }
}
