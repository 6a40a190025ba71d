//! Checksum files beside the weights: what `md5sum` and `sha256sum` write, and Mistral's `RELEASE`.
//!
//! A checksum is a word of 32 (MD5) or 64 (SHA-256) hexadecimal digits; the file that it belongs to is the last other word
//! of its line that has a dot in it. That reads `1faa…79e6  consolidated.00.pth`, `SHA256 (a.safetensors) = 0123…`, and the
//! lines of a RELEASE, whose ornaments are ignored.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use md5::Md5;
use sha2::Sha256;
use sha2::digest::Digest;

/// Most bytes of a checksum file that are read; published ones have a few kilobytes.
const MAX_LIST_BYTES: u64 = 1 << 20;
/// Bytes that are hashed at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// What a list says about one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// The file it speaks of.
    pub file: PathBuf,
    /// The digest in lower-case hexadecimal digits: 32 for MD5, 64 for SHA-256.
    pub expected: String,
    /// The list that says so.
    pub list: PathBuf,
}

/// Every checksum in the lists of `folder`.
pub fn in_folder(folder: &Path) -> anyhow::Result<Vec<Checksum>> {
    let cannot = || format!("cannot list {}", folder.display());
    let mut lists = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(cannot)? {
        let path = entry.with_context(cannot)?.path();
        if path.file_name().and_then(|n| n.to_str()).is_some_and(is_list) {
            lists.push(path);
        }
    }
    lists.sort();
    let mut found = Vec::new();
    for list in lists {
        let mut text = Vec::new();
        let file = File::open(&list).with_context(|| format!("cannot read {}", list.display()))?;
        file.take(MAX_LIST_BYTES).read_to_end(&mut text).with_context(|| format!("cannot read {}", list.display()))?;
        for (name, expected) in entries(&String::from_utf8_lossy(&text), &list) {
            found.push(Checksum { file: folder.join(name), expected, list: list.clone() });
        }
    }
    Ok(found)
}

/// The digest of a file in hexadecimal digits, of the kind that `expected` has; `progress` hears of every chunk's bytes.
pub fn digest(checksum: &Checksum, progress: &dyn Fn(u64)) -> anyhow::Result<String> {
    let file = File::open(&checksum.file).with_context(|| format!("cannot read {}", checksum.file.display()))?;
    let hashed = match checksum.expected.len() {
        32 => hash::<Md5>(file, progress),
        _ => hash::<Sha256>(file, progress),
    };
    hashed.with_context(|| format!("cannot read {}", checksum.file.display()))
}

fn hash<D: Digest>(mut file: File, progress: &dyn Fn(u64)) -> std::io::Result<String> {
    let mut hasher = D::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            n => {
                hasher.update(&chunk[..n]);
                progress(n as u64);
            }
        }
    }
    Ok(crate::format::hex(&hasher.finalize()))
}

fn is_list(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let endings = [".md5", ".sha256", "md5sums", "md5sum.txt", "sha256sums", "sha256sum.txt", "checklist.chk"];
    name == "release" || endings.iter().any(|ending| name.ends_with(ending))
}

/// Pairs of file name and digest in the text of `list`.
fn entries(text: &str, list: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let words = || line.split(|c: char| c.is_whitespace() || "()=*,;│║|".contains(c)).filter(|w| !w.is_empty());
        let Some(digest) = words().find(|w| is_digest(w)) else {
            continue;
        };
        let named = words().filter(|w| !is_digest(w)).filter_map(file_name).next_back();
        // `model.gguf.sha256` may hold the digest alone: it speaks of the file that it is named after.
        let own = || list.file_stem().and_then(|stem| file_name(stem.to_str()?));
        if let Some(name) = named.or_else(own) {
            found.push((name, digest.to_ascii_lowercase()));
        }
    }
    found
}

fn is_digest(word: &str) -> bool {
    matches!(word.len(), 32 | 64) && word.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The word as the name of a file in the same folder. A list has no say over files elsewhere.
fn file_name(word: &str) -> Option<String> {
    let name = word.trim_start_matches("./").trim_end_matches(':');
    let plain = name.contains('.') && !name.contains(['/', '\\']) && name.chars().any(|c| c.is_alphanumeric());
    plain.then(|| name.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MD5_OF_ABC: &str = "900150983cd24fb0d6963f7d28e17f72";
    const SHA256_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn lists_of_every_kind_are_read() {
        let pair = |name: &str, digest: &str| vec![(name.to_string(), digest.to_string())];
        let cases = [
            (format!("{MD5_OF_ABC}  ./consolidated.00.pth\n"), pair("consolidated.00.pth", MD5_OF_ABC)),
            (format!("{} *a.bin\r\n", MD5_OF_ABC.to_uppercase()), pair("a.bin", MD5_OF_ABC)),
            (format!("SHA256 (a.safetensors) = {SHA256_OF_ABC}\n"), pair("a.safetensors", SHA256_OF_ABC)),
            (format!("║  tokenizer.model - md5sum: {MD5_OF_ABC}  ║\n"), pair("tokenizer.model", MD5_OF_ABC)),
            (format!("{SHA256_OF_ABC}\n"), pair("model.gguf", SHA256_OF_ABC)),
            (format!("{MD5_OF_ABC}  ../../secret.txt\nno digest here.txt\n"), pair("model.gguf", MD5_OF_ABC)),
        ];
        for (text, expected) in cases {
            assert_eq!(entries(&text, Path::new("model.gguf.sha256")), expected, "{text}");
        }
        assert_eq!(entries(&format!("{MD5_OF_ABC}\n"), Path::new("RELEASE")), []);
    }

    #[test]
    fn digests_are_those_of_the_standards() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.bin"), "abc").unwrap();
        std::fs::write(folder.path().join("SHA256SUMS"), format!("{SHA256_OF_ABC}  a.bin\n")).unwrap();
        std::fs::write(folder.path().join("RELEASE"), format!("~~ a.bin: {MD5_OF_ABC} ~~\n")).unwrap();
        let checksums = in_folder(folder.path()).unwrap();
        assert_eq!(checksums.len(), 2);
        for checksum in checksums {
            assert_eq!(digest(&checksum, &|_| ()).unwrap(), checksum.expected);
        }
    }
}
