//! Files that appear whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::Context;

/// Writes `bytes` beside `path`, flushes them to the disk, and renames the result to `path`; what was there stays if anything
/// fails.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let written = File::create(part).and_then(|mut file| {
        file.write_all(bytes)?;
        // Else a name may outlive a power cut, and what it names not.
        file.sync_all()?;
        fs::rename(part, path)
    });
    if written.is_err() {
        // The error that matters is the one above; the partial file may not even exist.
        let _ = fs::remove_file(part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
