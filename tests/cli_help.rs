//! The help of every command, as a snapshot: whoever changes it by accident sees it here, whoever means it in the diff.
//!
//! `OCTET_REFRESH=1 cargo test --test cli_help` writes the snapshots anew.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

/// Commands that the main help does not list.
const HIDDEN: [&str; 1] = ["synth"];

#[test]
fn help_is_as_it_was() {
    let refresh = std::env::var_os("OCTET_REFRESH").is_some();
    let mut expected = BTreeSet::new();
    for command in [""].into_iter().chain(commands().iter().map(String::as_str)).chain(HIDDEN) {
        let path = snapshot(if command.is_empty() { "octet" } else { command });
        let text = help(command);
        if refresh {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            text,
            before,
            "\n{} differs; if you mean it: OCTET_REFRESH=1 cargo test --test cli_help",
            path.display()
        );
        expected.insert(path);
    }
    let there: BTreeSet<_> =
        std::fs::read_dir(snapshot("").parent().unwrap()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(there, expected, "snapshots of commands that are no more");
}

#[test]
fn the_readme_has_a_row_for_every_command() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for command in commands() {
        let row = readme.lines().find(|line| line.starts_with('|') && line.contains(&format!("`octet {command} ")));
        assert!(row.is_some(), "README.md has no row with an example of octet {command}");
    }
}

fn snapshot(command: &str) -> PathBuf {
    PathBuf::from(format!("{}/tests/help/{command}.txt", env!("CARGO_MANIFEST_DIR")))
}

/// The help of a command, wrapped as on a terminal of 100 columns.
fn help(command: &str) -> String {
    let mut octet = Command::new(env!("CARGO_BIN_EXE_octet"));
    octet.args((!command.is_empty()).then_some(command)).arg("--help").env("COLUMNS", "100").env("NO_COLOR", "1");
    let output = octet.output().unwrap();
    assert!(output.status.success(), "octet {command} --help: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The commands that the main help lists.
fn commands() -> Vec<String> {
    let help = help("");
    let lines = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    let names = lines.filter_map(|line| line.strip_prefix("  ")).filter(|line| !line.starts_with(' '));
    let commands: Vec<String> =
        names.map(|line| line.split(' ').next().unwrap().to_owned()).filter(|c| c != "help").collect();
    assert!(commands.len() > 5, "found only {commands:?} in the main help: the search is broken");
    commands
}
