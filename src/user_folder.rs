//! Where a user's programs keep things, by the XDG base directories.

use std::path::PathBuf;

/// What is worth keeping, such as conversations: `XDG_DATA_HOME`, else `~/.local/share`.
pub fn data() -> Option<PathBuf> {
    folder("XDG_DATA_HOME", "share")
}

/// What may be lost, such as the lines that were typed: `XDG_STATE_HOME`, else `~/.local/state`.
pub fn state() -> Option<PathBuf> {
    folder("XDG_STATE_HOME", "state")
}

fn folder(variable: &str, name: &str) -> Option<PathBuf> {
    // The specification has relative paths ignored.
    let set = std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    set.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".local").join(name)))
}
