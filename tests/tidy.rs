//! What can be checked of the house rules: lengths, dead links, where `unsafe` may stand, who may know whom.
//!
//! Reads the source as text. rustfmt's layout makes that enough: a function ends at the brace under its first letter.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Functions that may be longer than [`MAX_FUNCTION_LINES`], each with the reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[];

/// Files that may be longer than [`MAX_FILE_LINES`], each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

const MAX_FUNCTION_LINES: usize = 70;
const MAX_FILE_LINES: usize = 500;
const MAX_FIXTURES_BYTES: u64 = 25_000_000;

/// Which of our own crates each crate may depend on: the arrows of ARCHITECTURE.md.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("checkpoint", &[]),
    ("tokenizer", &["checkpoint"]),
    ("kernels", &["checkpoint"]),
    ("model", &["checkpoint", "kernels"]),
    ("engine", &["checkpoint", "tokenizer", "kernels", "model"]),
    ("train", &["checkpoint", "tokenizer", "kernels", "model", "engine"]),
    ("server", &["tokenizer", "engine"]),
];

/// Source files that may hold `unsafe`, by the start of their path. The last ones count what is allocated.
const MAY_BE_UNSAFE: &[&str] = &[
    "crates/kernels/src/",
    "crates/checkpoint/src/mapping.rs",
    "crates/checkpoint/tests/hostile.rs",
    "crates/engine/tests/steady_state.rs",
];

#[test]
fn functions_are_short_or_have_a_reason() {
    let mut excused = BTreeSet::new();
    let mut faults = Vec::new();
    for (path, text) in rust_sources() {
        for (name, line, length) in functions(&text) {
            if length <= MAX_FUNCTION_LINES {
                continue;
            }
            if LONG_FUNCTIONS.iter().any(|(p, n, _)| *p == path && *n == name) {
                excused.insert((path.clone(), name));
            } else {
                faults.push(format!("{path}:{line}: {name} has {length} lines"));
            }
        }
    }
    for (path, name, _) in LONG_FUNCTIONS {
        if !excused.contains(&(path.to_string(), name.to_string())) {
            faults.push(format!("{path}: {name} is excused in tests/tidy.rs and need not be"));
        }
    }
    none(faults, "split the function, or list it in LONG_FUNCTIONS with the reason");
}

#[test]
fn files_are_short_or_have_a_reason() {
    let mut faults = Vec::new();
    for (path, text) in rust_sources() {
        let lines = text.lines().count();
        let excused = LONG_FILES.iter().any(|(p, _)| *p == path);
        if lines > MAX_FILE_LINES && !excused {
            faults.push(format!("{path} has {lines} lines"));
        }
        if lines <= MAX_FILE_LINES && excused {
            faults.push(format!("{path} is excused in tests/tidy.rs and need not be"));
        }
    }
    none(faults, "split the file by concept, or list it in LONG_FILES with the reason");
}

#[test]
fn every_file_opens_with_its_idea() {
    let is_silent = |(path, text): &(String, String)| !text.starts_with("//!") && !is_test_module(path);
    let faults = rust_sources().filter(is_silent).map(|(path, _)| path).collect();
    none(faults, "open the file with `//!` and a sentence that says what it is for");
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let mut faults = Vec::new();
    for (path, text) in rust_sources() {
        if MAY_BE_UNSAFE.iter().any(|p| path.starts_with(p)) || path == "tests/tidy.rs" {
            continue;
        }
        for (i, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if words(code).any(|w| w == "unsafe") {
                faults.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
        let is_root = path.ends_with("/lib.rs") || path == "src/main.rs";
        if is_root && !path.starts_with("crates/checkpoint/") && !text.contains("#![forbid(unsafe_code)]") {
            faults.push(format!("{path} lacks #![forbid(unsafe_code)]"));
        }
    }
    none(faults, "move it into octet-kernels or checkpoint's mapping.rs, each block with its SAFETY");
}

#[test]
fn arrows_point_one_way() {
    let mut faults = Vec::new();
    for folder in fs::read_dir(root().join("crates")).unwrap() {
        let name = folder.unwrap().file_name().into_string().unwrap();
        let Some((_, allowed)) = MAY_KNOW.iter().find(|(n, _)| *n == name) else {
            faults.push(format!("crates/{name} has no row in MAY_KNOW"));
            continue;
        };
        let manifest = fs::read_to_string(root().join("crates").join(&name).join("Cargo.toml")).unwrap();
        let known = manifest.lines().take_while(|l| !l.starts_with("[dev-dependencies]"));
        for known in known.filter_map(|l| l.strip_prefix("octet-")) {
            let known: String = known.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == '-').collect();
            if !allowed.contains(&known.as_str()) {
                faults.push(format!("crates/{name} depends on octet-{known}"));
            }
        }
    }
    none(faults, "a line of code knows only the floors below it: see ARCHITECTURE.md");
}

#[test]
fn library_code_never_unwraps() {
    let mut faults = Vec::new();
    for (path, text) in rust_sources() {
        if path.contains("/tests/") || path.starts_with("tests/") || path.contains("/benches/") || is_test_module(&path)
        {
            continue;
        }
        let code = text.lines().take_while(|l| !l.starts_with("#[cfg(test)]")).enumerate();
        for (i, line) in code.filter(|(_, l)| !l.trim_start().starts_with("//") && l.contains(".unwrap()")) {
            faults.push(format!("{path}:{}: {}", i + 1, line.trim()));
        }
    }
    none(faults, "return an error, or use expect(\"why it cannot fail\")");
}

#[test]
fn no_test_is_ignored_or_sleeps() {
    let mut faults = Vec::new();
    for (path, text) in rust_sources().filter(|(p, _)| p != "tests/tidy.rs") {
        for (i, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("#[ignore") || line.contains("thread::sleep") {
                faults.push(format!("{path}:{}: {}", i + 1, line.trim()));
            }
        }
    }
    none(faults, "make the test fast and certain instead");
}

#[test]
fn no_file_is_called_utils() {
    let vague = ["utils.rs", "util.rs", "common.rs", "helpers.rs", "misc.rs"];
    let faults =
        rust_sources().map(|(p, _)| p).filter(|p| vague.iter().any(|v| p.ends_with(&format!("/{v}")))).collect();
    none(faults, "name the file after the concept that it holds");
}

#[test]
fn links_in_markdown_lead_somewhere() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for path in tracked(&root()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
        let text = fs::read_to_string(&path).unwrap();
        for (line, target) in links(&text) {
            seen += 1;
            if let Some(fault) = dead(&path, &text, &target) {
                faults.push(format!("{}:{line}: {fault}", relative(&path)));
            }
        }
    }
    assert!(seen > 0, "found no link in any Markdown file: the search is broken");
    none(faults, "mend the link");
}

#[test]
fn the_architecture_names_files_that_exist() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let quoted = text.split('`').skip(1).step_by(2);
    let named: BTreeSet<&str> = quoted.filter(|word| word.ends_with(".rs") || word.ends_with('/')).collect();
    assert!(named.len() > 30, "found only {named:?}: the search is broken");
    let files: Vec<String> = tracked(&root()).iter().map(|path| format!("/{}", relative(path))).collect();
    let is_there = |name: &str| {
        let ending = format!("/{name}");
        files.iter().any(|path| path.ends_with(&ending) || (name.ends_with('/') && path.contains(&ending)))
    };
    let faults = named.into_iter().filter(|name| !is_there(name)).map(str::to_owned).collect();
    none(faults, "ARCHITECTURE.md changes in the commit that changes the truth");
}

#[test]
fn every_dependency_has_its_sentence() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = text.split("## Dependencies").nth(1).unwrap().lines().filter(|line| line.starts_with('|'));
    let explained: BTreeSet<&str> =
        rows.flat_map(|row| row.split('|').nth(1).unwrap().split(',').map(str::trim)).collect();
    let mut used = BTreeSet::new();
    for manifest in tracked(&root()).iter().filter(|p| p.ends_with("Cargo.toml") && !relative(p).starts_with("fuzz")) {
        let manifest = fs::read_to_string(manifest).unwrap();
        for section in manifest.split("\n[").filter(|s| s.lines().next().unwrap().ends_with("dependencies]")) {
            let names = section.lines().skip(1).filter_map(|line| line.split(['=', '.', ' ']).next());
            used.extend(
                names.filter(|n| !n.is_empty() && !n.starts_with('#') && !n.starts_with("octet-")).map(str::to_owned),
            );
        }
    }
    let mut faults: Vec<String> = used.iter().filter(|n| !explained.contains(n.as_str())).cloned().collect();
    let names = explained
        .iter()
        .filter(|n| n.chars().all(|c| c.is_alphanumeric() || c == '-') && n.len() > 1 && **n != "crate");
    faults.extend(
        names.filter(|n| !used.contains(**n) && !n.starts_with('-')).map(|n| format!("{n} is not used any more")),
    );
    none(faults, "say in ARCHITECTURE.md what a user gets from it");
}

#[test]
fn no_tracked_file_names_the_machine_it_was_made_on() {
    // Split, so that this file does not find itself.
    let marks = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("pythonhos", "ted"), concat!("--index", "-url")];
    let mut faults = Vec::new();
    for path in tracked(&root()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (i, line) in text.lines().enumerate() {
            let starts_a_path = |mark: &str| {
                line.split_once(mark)
                    .is_some_and(|(before, _)| !before.ends_with(|c: char| c.is_alphanumeric() || "._".contains(c)))
            };
            if let Some(mark) = marks.iter().find(|mark| starts_a_path(mark)) {
                faults.push(format!("{}:{}: {mark}", relative(&path), i + 1));
            }
        }
    }
    none(faults, "name nothing that only one machine has");
}

#[test]
fn reference_data_stays_small() {
    let bytes: u64 = tracked(&root().join("tests/fixtures")).iter().map(|p| p.metadata().unwrap().len()).sum();
    assert!(bytes > 0, "tests/fixtures is empty");
    assert!(bytes <= MAX_FIXTURES_BYTES, "tests/fixtures holds {bytes} bytes; at most {MAX_FIXTURES_BYTES}");
}

fn none(faults: Vec<String>, remedy: &str) {
    assert!(faults.is_empty(), "\n{}\n→ {remedy}\n", faults.join("\n"));
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn relative(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// All files below `folder` but those that the repository's .gitignore names.
fn tracked(folder: &Path) -> Vec<PathBuf> {
    let ignored = fs::read_to_string(root().join(".gitignore")).unwrap();
    let ignored: Vec<&str> = ignored.lines().map(|l| l.trim_matches('/')).filter(|l| !l.is_empty()).collect();
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if name == ".git" || ignored.contains(&name.as_str()) || ignored.contains(&relative(&path).as_str()) {
                continue;
            }
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

/// Path and text of every Rust file.
fn rust_sources() -> impl Iterator<Item = (String, String)> {
    let files: Vec<_> = tracked(&root()).into_iter().filter(|p| p.extension().is_some_and(|e| e == "rs")).collect();
    assert!(files.len() > 10, "found only {} Rust files: the search is broken", files.len());
    files.into_iter().map(|path| (relative(&path), fs::read_to_string(&path).unwrap()))
}

/// A file that is only compiled for tests, such as `src/gguf/tests.rs`.
fn is_test_module(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// Name, first line (from 1) and length of every function with a body.
fn functions(text: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let ends = |l: &&str| l.strip_prefix(indent).is_some_and(|rest| rest == "}" || rest == ";" || rest == ") {}");
        let is_whole = line.ends_with(';') || line.ends_with('}');
        let length = if is_whole { 1 } else { lines[i..].iter().position(ends).map_or(1, |n| n + 1) };
        found.push((name, i + 1, length));
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.trim_start().split(' ');
    let modifier =
        |w: &str| w.starts_with("pub") || ["const", "async", "unsafe", "extern", "\"C\""].contains(&w) || w == "in";
    let keyword = words.by_ref().find(|w| !modifier(w))?;
    let name = words.next()?;
    (keyword == "fn").then(|| name.split(['(', '<']).next().unwrap_or(name).to_string())
}

/// Line number and target of every `[text](target)` outside code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut in_code = false;
    for (i, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let outside_ticks: String = line.split('`').step_by(2).collect::<Vec<_>>().join("``");
        for rest in outside_ticks.split("](").skip(1) {
            if let Some((target, _)) = rest.split_once(')') {
                found.push((i + 1, target.to_string()));
            }
        }
    }
    found
}

/// What is wrong with a link's target, if anything. Addresses on the web are not tried: tests need no network.
fn dead(from: &Path, text: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').map_or((target, None), |(f, a)| (f, Some(a)));
    let path = if file.is_empty() { from.to_path_buf() } else { from.parent().unwrap().join(file) };
    if !path.exists() {
        return Some(format!("{target} does not exist"));
    }
    let anchor = anchor?;
    let text = if file.is_empty() { text.to_string() } else { fs::read_to_string(&path).unwrap_or_default() };
    let has = text.lines().filter(|l| l.starts_with('#')).any(|l| slug(l) == anchor);
    (!has).then(|| format!("{target}: no such heading"))
}

/// The anchor of a heading: lower case, spaces as hyphens, punctuation dropped.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn the_search_for_functions_finds_them() {
    let text = "fn a() {}\n\npub(crate) const fn b(\n    x: u8,\n) -> u8 {\n    x\n}\nimpl X {\n    fn c() {\n        1\n    }\n}\n";
    let found: Vec<_> = functions(text).into_iter().map(|(n, _, l)| (n, l)).collect();
    assert_eq!(found, [("a".to_string(), 1), ("b".to_string(), 5), ("c".to_string(), 3)]);
}
