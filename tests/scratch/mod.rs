//! The real binary in a folder of its own, and what it said.
#![allow(dead_code)] // each test program uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder that goes when the test ends.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file and gives its path.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// A copy of a folder of the reference data, such as `mixtral-8x2`.
    pub fn copy_of(&self, fixture: &str, name: &str) -> PathBuf {
        let (from, to) = (fixtures().join(fixture), self.path(name));
        std::fs::create_dir_all(&to).unwrap();
        for entry in std::fs::read_dir(&from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
            }
        }
        to
    }

    /// A reference model as a GGUF, made by `octet convert`.
    pub fn gguf_of(&self, fixture: &str, name: &str) -> PathBuf {
        let out = self.path(name);
        octet(["convert", text(&fixtures().join(fixture)), text(&out), "--to", "gguf"]).succeeded();
        out
    }

    /// Everything in the folder, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// The folder of the reference data.
pub fn fixtures() -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    std::env::var_os("OCTET_FIXTURES").map_or_else(|| default.into(), PathBuf::from)
}

/// A real tokenizer of Mistral's, such as `tokenizer.model.v1`.
pub fn tokenizer(name: &str) -> PathBuf {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cache/mistral-common");
    let path = std::env::var_os("OCTET_TOKENIZERS").map_or_else(|| default.into(), PathBuf::from).join(name);
    assert!(path.is_file(), "{} is missing: run tests/fetch_tokenizers first", path.display());
    path
}

/// A byte-level vocabulary of the space and the letters a to z, with ids from 10.
pub fn letters_tokenizer() -> serde_json::Value {
    let tokens = std::iter::once('Ġ').chain('a'..='z');
    let vocab: serde_json::Map<_, _> = tokens.zip(10..).map(|(c, id)| (c.to_string(), serde_json::json!(id))).collect();
    let byte_level = serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "use_regex": true });
    serde_json::json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": null, "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}

/// Its id of a letter or space.
pub fn letter_id(byte: u8) -> usize {
    if byte == b' ' { 10 } else { 11 + usize::from(byte - b'a') }
}

/// A tokenizer whose tokens are bytes, and ChatML's two. GPT-2's alphabet: printable Latin-1 stands for itself, the rest for 256 and on.
pub fn bytes_tokenizer() -> serde_json::Value {
    use serde_json::json;
    let is_plain = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut other = 256..;
    let letters = (0..256).map(|b| if is_plain(b) { b } else { other.next().unwrap() });
    let letters: Vec<String> = letters.map(|c| char::from_u32(c).unwrap().to_string()).collect();
    let vocabulary: serde_json::Map<String, serde_json::Value> =
        letters.into_iter().enumerate().map(|(id, letter)| (letter, json!(id))).collect();
    let special = |id: u32, name: &str| json!({"id": id, "content": name, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    json!({
        "version": "1.0", "added_tokens": [special(256, "<|im_start|>"), special(257, "<|im_end|>")],
        "normalizer": null, "pre_tokenizer": byte_level, "decoder": byte_level,
        "post_processor": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs octet with nothing on standard input.
pub fn octet<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
    let output = command.args(&arguments).stdin(Stdio::null()).output().unwrap();
    Outcome { arguments: arguments.join(" "), output }
}

/// Runs octet with `input` on standard input.
pub fn octet_reading<'a>(input: &str, arguments: impl IntoIterator<Item = &'a str>) -> Outcome {
    use std::io::Write;
    let arguments: Vec<&str> = arguments.into_iter().collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
    command.args(&arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // A program that refuses its flags may be gone before it reads.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    Outcome { arguments: arguments.join(" "), output: child.wait_with_output().unwrap() }
}

/// A server of its own port, which goes when the test ends.
pub struct Serving {
    /// Where it is.
    pub url: String,
    child: std::process::Child,
}

impl Serving {
    /// Serves models; returns once it answers.
    pub fn new(models: &[&str], options: &[&str]) -> Serving {
        use std::io::{BufRead, BufReader};
        let mut command = Command::new(env!("CARGO_BIN_EXE_octet"));
        command.arg("serve").args(models).args(["--port", "0", "--threads", "2"]).args(options);
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut told = String::new();
        let url = loop {
            let line = lines.next().unwrap_or_else(|| panic!("the server ended: {told}")).unwrap();
            if let Some((_, url)) = line.split_once("octet serves at ") {
                break url.to_owned();
            }
            told += &line;
        };
        // A full pipe would stop the server at its next line of log.
        std::thread::spawn(move || lines.for_each(drop));
        Serving { url, child }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// What a run printed and how it ended.
pub struct Outcome {
    pub arguments: String,
    pub output: Output,
}

impl Outcome {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    /// Asserts success, and gives standard output.
    pub fn succeeded(self) -> String {
        assert!(self.output.status.success(), "octet {}: {}\n{}", self.arguments, self.output.status, self.stderr());
        self.stdout()
    }

    /// Asserts that the run was refused as users are owed it: an exit code of its own (no signal, no panic), and one line on
    /// standard error. Gives that line.
    pub fn refused(self) -> String {
        let (code, stderr) = (self.output.status.code(), self.stderr());
        let shown = format!("octet {}: {code:?}\n{stderr}", self.arguments);
        assert!(code.is_some_and(|code| code != 0), "{shown}\nshould have failed, with an exit code");
        assert!(code != Some(101) && !stderr.contains("panicked"), "{shown}\nno panic is an answer");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{shown}\nshould be one line");
        assert!(stderr.starts_with("octet: "), "{shown}\nshould begin with the program's name");
        stderr.trim_end().to_owned()
    }

    /// Asserts a refusal whose line contains each of `words`.
    pub fn refused_naming(self, words: &[&str]) {
        let line = self.refused();
        for word in words {
            assert!(line.contains(word), "{line}\nshould name {word}");
        }
    }
}
