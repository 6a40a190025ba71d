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
    let out = std::env::var_os("OUT_DIR").ok_or_else(|| std::io::Error::other("cargo sets OUT_DIR"))?;
    let list = embed(&files, &dist.canonicalize().unwrap_or_default(), Path::new(&out))?;
    std::fs::write(Path::new(&out).join("page_files.rs"), list)
}

/// Copies the files, since the page may be built anew while the compiler reads; the list of them, in Rust.
fn embed(files: &[PathBuf], root: &Path, out: &Path) -> std::io::Result<String> {
    let copy = |path: &Path| -> std::io::Result<String> {
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace(['/', '\\'], "-");
        std::fs::copy(path, out.join(&name))?;
        Ok(format!("include_bytes!(concat!(env!(\"OUT_DIR\"), {:?}))", format!("/{name}")))
    };
    let mut list = String::from("&[\n");
    for path in files.iter().filter(|path| path.extension().is_none_or(|end| end != "gz")) {
        let name = path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/");
        let bytes = copy(path)?;
        let packed = PathBuf::from(format!("{}.gz", path.display()));
        let packed = if files.contains(&packed) { format!("Some({})", copy(&packed)?) } else { "None".into() };
        // A string takes writes without fail.
        let _ = writeln!(list, "    File {{ name: {name:?}, bytes: {bytes}, packed: {packed} }},");
    }
    list.push_str("]\n");
    Ok(list)
}

fn find(folder: &Path, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() { find(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
