//! What can go wrong with a tokenizer or a prompt, said in one line that names the file and the way out.

use std::path::{Path, PathBuf};

/// Every failure of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {}: {cause}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A file is not what its name promises: truncated, of another format, or inconsistent in itself.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        problem: String,
    },
    /// A file asks for a component that Octet does not have.
    #[error("{}: {component} is not supported; {remedy}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The component, by the name that the file gives it.
        component: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// A folder holds no tokenizer that we know.
    #[error(
        "{} holds no tokenizer: expected tokenizer.json, tokenizer.model or a GGUF with a vocabulary; \
         copy the tokenizer file of the original model beside the weights",
        path.display()
    )]
    NoTokenizer {
        /// The folder.
        path: PathBuf,
    },
    /// Neither a template nor the vocabulary tells how to write a conversation.
    #[error(
        "{} has no chat template and its vocabulary belongs to no instruct format we know; \
         name one with --format v1|v2|v3|chatml, or give a template with --template FILE",
        path.display()
    )]
    NoChatFormat {
        /// Where the tokenizer came from.
        path: PathBuf,
    },
    /// The chosen instruct format needs a control token that the vocabulary does not have.
    #[error("format {format} needs the control token {token}, which the vocabulary of {} lacks", path.display())]
    MissingControlToken {
        /// The format's name.
        format: &'static str,
        /// The token's text.
        token: &'static str,
        /// Where the tokenizer came from.
        path: PathBuf,
    },
    /// The conversation holds something that the format cannot express.
    #[error("{0}")]
    Conversation(String),
    /// A GGUF could not be read.
    #[error(transparent)]
    Checkpoint(#[from] octet_checkpoint::Error),
    /// A chat template failed, or was stopped.
    #[error("the chat template of {} {problem}", path.display())]
    Template {
        /// Where the template came from.
        path: PathBuf,
        /// What it did, with its line.
        problem: String,
    },
}

impl Error {
    /// A complaint about the contents of `path`.
    pub(crate) fn malformed(path: &Path, problem: impl Into<String>) -> Self {
        Error::Malformed { path: path.to_owned(), problem: problem.into() }
    }

    /// `component` of `path` is known and refused.
    pub(crate) fn unsupported(path: &Path, component: impl Into<String>, remedy: &'static str) -> Self {
        Error::Unsupported { path: path.to_owned(), component: component.into(), remedy }
    }
}
