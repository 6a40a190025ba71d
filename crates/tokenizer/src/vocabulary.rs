//! The list of tokens: what each is called, what bytes it stands for, and of what kind it is.

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::RandomState;

/// How SentencePiece writes a space inside a piece: U+2581, "lower one eighth block".
pub(crate) const SPACE_MARK: char = '\u{2581}';

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for text that the vocabulary cannot express.
    Unknown,
    /// Steers the model (`<s>`, `[INST]`); never read out of text, and no text when decoded.
    Control,
    /// Text that is cut out before any merging.
    UserDefined,
    /// A hole in the numbering.
    Unused,
    /// One raw byte, for text that has no piece.
    Byte(u8),
}

/// One token as its file describes it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) piece: String,
    pub(crate) kind: TokenKind,
}

/// All tokens of a model, by id.
#[derive(Debug, Default, Clone)]
pub(crate) struct Vocabulary {
    tokens: Vec<Token>,
    /// The decoded bytes of all tokens, one after the other; token `i` is `bytes[ends[i - 1]..ends[i]]`.
    bytes: Vec<u8>,
    ends: Vec<usize>,
    by_piece: HashMap<Box<str>, u32, RandomState>,
}

impl Vocabulary {
    /// A vocabulary whose token `i` is `tokens[i]`. `surface` appends the bytes that a token of text stands for.
    /// Where two tokens have one piece, the first keeps the name.
    /// What looks like `<|im_start|>` steers the model, even if its file calls it user-defined, as those of many
    /// fine-tuned models do: else a user could type it.
    pub(crate) fn new(mut tokens: Vec<Token>, surface: impl Fn(&Token, &mut Vec<u8>)) -> Self {
        for token in &mut tokens {
            if token.kind == TokenKind::UserDefined && looks_like_control(&token.piece) {
                token.kind = TokenKind::Control;
            }
        }
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(tokens.len());
        let mut by_piece = HashMap::with_capacity_and_hasher(tokens.len(), RandomState::default());
        for (id, token) in (0u32..).zip(&tokens) {
            match token.kind {
                TokenKind::Normal | TokenKind::Unused | TokenKind::UserDefined => surface(token, &mut bytes),
                TokenKind::Byte(byte) => bytes.push(byte),
                TokenKind::Unknown | TokenKind::Control => {}
            }
            ends.push(bytes.len());
            by_piece.entry(token.piece.as_str().into()).or_insert(id);
        }
        Self { tokens, bytes, ends, by_piece }
    }

    /// The same vocabulary with unused tokens up to `size`.
    pub(crate) fn padded_to(&self, size: usize) -> Self {
        let mut padded = self.clone();
        for _ in self.len()..size {
            padded.tokens.push(Token { piece: String::new(), kind: TokenKind::Unused });
            padded.ends.push(padded.bytes.len());
        }
        padded
    }

    /// The tokens for files in which each needs a name of its own: holes, and tokens whose name an earlier one has,
    /// are unused there and called `[PAD7]`.
    pub(crate) fn exported(&self) -> impl Iterator<Item = (Cow<'_, str>, TokenKind)> {
        self.tokens().map(|(id, token)| {
            if self.id(&token.piece) == Some(id) && !token.piece.is_empty() {
                (token.piece.as_str().into(), token.kind)
            } else {
                (format!("[PAD{id}]").into(), TokenKind::Unused)
            }
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The token's name, or `None` past the end of the vocabulary.
    pub(crate) fn piece(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(|token| token.piece.as_str())
    }

    /// The token's kind; ids past the end are holes.
    pub(crate) fn kind(&self, id: u32) -> TokenKind {
        self.tokens.get(id as usize).map_or(TokenKind::Unused, |token| token.kind)
    }

    /// The bytes that the token stands for; none for control tokens and ids past the end.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..end]
    }

    pub(crate) fn id(&self, piece: &str) -> Option<u32> {
        self.by_piece.get(piece).copied()
    }

    /// The id of `piece` if it is a control token.
    pub(crate) fn control(&self, piece: &str) -> Option<u32> {
        self.id(piece).filter(|&id| self.kind(id) == TokenKind::Control)
    }

    /// The id of `piece` if it is plain text.
    pub(crate) fn normal(&self, piece: &str) -> Option<u32> {
        self.id(piece).filter(|&id| self.kind(id) == TokenKind::Normal)
    }

    pub(crate) fn tokens(&self) -> impl Iterator<Item = (u32, &Token)> {
        (0u32..).zip(&self.tokens)
    }

    /// The tokens that no text may become, as names to look for in what a template wrote.
    pub(crate) fn steering(&self) -> impl Iterator<Item = (&str, u32)> {
        let steers = |token: &Token| matches!(token.kind, TokenKind::Control | TokenKind::Unknown);
        // A name of one byte could not be told from text that a user typed, see `chat::shield`.
        let named = self.tokens().filter(move |(_, token)| steers(token) && token.piece.len() > 1);
        named.map(|(id, token)| (token.piece.as_str(), id))
    }

    /// The tokens of one kind.
    pub(crate) fn of_kind(&self, kind: TokenKind) -> impl Iterator<Item = (u32, &Token)> {
        self.tokens().filter(move |(_, token)| token.kind == kind)
    }
}

/// Whether a name has the form `<|…|>`.
pub(crate) fn looks_like_control(piece: &str) -> bool {
    piece.len() > 4 && piece.starts_with("<|") && piece.ends_with("|>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_control_is_control() {
        let user_defined = |piece: &str| Token { piece: piece.into(), kind: TokenKind::UserDefined };
        let vocabulary = Vocabulary::new(vec![user_defined("<|im_start|>"), user_defined("<tool>")], |_, _| {});
        assert_eq!((vocabulary.kind(0), vocabulary.kind(1)), (TokenKind::Control, TokenKind::UserDefined));
        assert!(!looks_like_control("<||>"));
    }
}
