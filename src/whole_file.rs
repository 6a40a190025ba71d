//! Files that appear whole or not at all.

use std::path::Path;

use anyhow::Context;

/// Writes `bytes` beside `path` and renames the result to it; what was at `path` stays if anything fails.
pub fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = Path::new(&part);
    let written = std::fs::write(part, bytes).and_then(|()| std::fs::rename(part, path));
    if written.is_err() {
        // The error that matters is the one above; the partial file may not even exist.
        let _ = std::fs::remove_file(part);
    }
    written.with_context(|| format!("cannot write {}", path.display()))
}
