//! Constrained answers: which tokens may come next, by llguidance.
//!
//! A constraint is compiled once, where the request is submitted; answers get copies of it. What may come next is known as
//! soon as a token is drawn, so the engine works it out while the next forward pass runs, see [`Masks`](crate::masks).

use std::sync::{Arc, Mutex, PoisonError};

use llguidance::api::{GrammarInit, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use octet_tokenizer::{TokenKind, Tokenizer};

use crate::{Constraint, Error};

/// Compiled constraints that are kept.
const KEPT: usize = 64;

/// Compiles constraints for one tokenizer.
pub(crate) struct Grammars {
    factory: ParserFactory,
    /// Most recently used last.
    compiled: Mutex<Vec<(Constraint, Matcher)>>,
}

/// Where an answer is in its grammar.
pub(crate) struct GrammarState {
    matcher: Matcher,
}

/// What may come next.
pub(crate) type Mask = SimpleVob;

impl Grammars {
    /// # Errors
    /// If the tokenizer has no end of text, without which an answer could not end.
    pub(crate) fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Grammars, Error> {
        let ends: Vec<u32> = (0..vocab_size as u32).filter(|&id| tokenizer.is_end_of_generation(id)).collect();
        let Some(&end) = tokenizer.eos().as_ref().or(ends.first()) else {
            return Err(Error::Constraint("this model's tokenizer has no end of text; constraints need one".into()));
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32).map(|id| word(tokenizer, id)).collect();
        let trie = TokTrie::from(&TokRxInfo::new(vocab_size as u32, end), &words).with_eos_tokens(&ends);
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices).map_err(refusal)?;
        factory.quiet();
        Ok(Grammars { factory, compiled: Mutex::default() })
    }

    /// The beginning of a constrained answer.
    ///
    /// # Errors
    /// [`Error::Constraint`] for one that cannot be read, or enforced to the letter.
    pub(crate) fn compile(&self, constraint: &Constraint) -> Result<GrammarState, Error> {
        let known = self.take_compiled(constraint);
        // Without the lock: one that takes long holds up nobody else.
        let entry = match known {
            Some(entry) => entry,
            None => (constraint.clone(), self.compile_anew(constraint)?),
        };
        let matcher = entry.1.deep_clone();
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        compiled.retain(|(known, _)| known != constraint);
        compiled.push(entry);
        if compiled.len() > KEPT {
            compiled.remove(0);
        }
        Ok(GrammarState { matcher })
    }

    fn take_compiled(&self, constraint: &Constraint) -> Option<(Constraint, Matcher)> {
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        let index = compiled.iter().position(|(known, _)| known == constraint)?;
        Some(compiled.remove(index))
    }

    fn compile_anew(&self, constraint: &Constraint) -> Result<Matcher, Error> {
        let grammar = match constraint {
            Constraint::Json => json(serde_json::json!({"type": "object"})),
            Constraint::JsonSchema(schema) => json(read_schema(schema)?),
            Constraint::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Constraint::Lark(grammar) => TopLevelGrammar::from_lark(grammar.clone()),
        };
        let parser = self.factory.create_parser_from_init_default(GrammarInit::Serialized(grammar));
        let mut matcher = Matcher::new(parser);
        if let Some(error) = matcher.get_error() {
            return Err(refusal(error));
        }
        match matcher.grammar_warnings().first() {
            Some(warning) => Err(refusal(warning)),
            None => Ok(matcher),
        }
    }
}

/// A grammar for the schema, with little room for space: small models that may write any number of line breaks between two
/// values write nothing else until their tokens are used up.
fn json(mut schema: serde_json::Value) -> TopLevelGrammar {
    const SPACE: &str = r"\x20|\x0A[\x20\x09]{0,32}";
    if let Some(keywords) = schema.as_object_mut() {
        keywords.insert("x-guidance".to_owned(), serde_json::json!({ "whitespace_pattern": SPACE }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// Reads a schema; our own reading of it must not be loosened from inside.
fn read_schema(text: &str) -> Result<serde_json::Value, Error> {
    let schema: serde_json::Value =
        serde_json::from_str(text).map_err(|e| refusal(format!("the schema is no JSON: {e}")))?;
    if schema.get("x-guidance").is_some() {
        return Err(refusal("the schema has the keyword x-guidance, which is not taken"));
    }
    Ok(schema)
}

/// The bytes of a token; control tokens are marked, so that no text matches them.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    match tokenizer.kind(id) {
        TokenKind::Control => [&[TokTrie::SPECIAL_TOKEN_MARKER], tokenizer.piece(id).as_bytes()].concat(),
        TokenKind::Unknown | TokenKind::Unused => Vec::new(),
        TokenKind::Normal | TokenKind::UserDefined | TokenKind::Byte(_) => tokenizer.bytes(id).to_vec(),
    }
}

fn refusal(error: impl std::fmt::Display) -> Error {
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    // Between the two a regular expression is drawn with an arrow, which one line cannot show.
    let why = text.lines().skip(1).find_map(|line| line.trim().strip_prefix("error: "));
    let why = why.map_or(String::new(), |why| format!(" {why}"));
    Error::Constraint(format!("the constraint cannot be enforced: {first}{why}"))
}

impl GrammarState {
    /// A copy at the same place.
    pub(crate) fn copy(&self) -> GrammarState {
        GrammarState { matcher: self.matcher.deep_clone() }
    }

    /// Which tokens may come next; none if something went wrong, which [`GrammarState::accept`] then tells.
    pub(crate) fn mask(&mut self) -> Option<Mask> {
        self.matcher.compute_mask_or_eos().ok()
    }

    /// Takes a drawn token; true if the answer is complete and nothing more may come.
    ///
    /// # Errors
    /// If the token does not belong here: bias or broken weights left none that does.
    pub(crate) fn accept(&mut self, token: u32) -> Result<bool, Error> {
        match self.matcher.consume_token(token) {
            Ok(()) => Ok(self.matcher.is_stopped()),
            Err(error) => Err(refusal(error)),
        }
    }
}
