//! Embeds the page: what lies in `web/dist` when this is compiled, with the packed form of each file beside it.
//!
//! Without Node there is no such folder, and the server works without the page.

use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() -> std::io::Result<()> {
    let dist = Path::new("../../web/dist");
    // Cargo can only watch what is there; an empty folder is the page that was not built.
    if !dist.exists() {
        let _ = std::fs::create_dir_all(dist);
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", dist.display());
    let mut files = Vec::new();
    if dist.is_dir() {
        find(&dist.canonicalize()?, &mut files)?;
    }
    files.sort();
    let root = dist.canonicalize().unwrap_or_default();
    let mut list = String::from("&[\n");
    for path in files.iter().filter(|path| path.extension().is_none_or(|end| end != "gz")) {
        let name = path.strip_prefix(&root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let packed = PathBuf::from(format!("{}.gz", path.display()));
        let packed = if files.contains(&packed) { format!("Some(include_bytes!({packed:?}))") } else { "None".into() };
        // A string takes writes without fail.
        let _ = writeln!(list, "    File {{ name: {name:?}, bytes: include_bytes!({path:?}), packed: {packed} }},");
    }
    list.push_str("]\n");
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("cargo sets OUT_DIR"))?;
    std::fs::write(Path::new(&out).join("page_files.rs"), list)
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { find(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
