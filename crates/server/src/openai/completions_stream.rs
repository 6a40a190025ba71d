//! A completion in JSON: whole, and event by event.

use serde_json::{Map, Value, json};

use super::wire::{Head, LEAST_LOGPROB, StreamOptions, finish_reason, usage};
use crate::caller::Dialect;
use crate::piece::{End, Piece, Token, Whole};
use crate::stream::{Out, Writer};

/// The whole answer; `texts` are what the answers to each prompt begin with.
pub fn whole_body(head: &Head, texts: &[String], n: usize, whole: Whole) -> Value {
    let choices = whole.choices.iter().enumerate().map(|(index, choice)| {
        let logprobs = head.logprobs.then(|| {
            let mut account = Logprobs::default();
            choice.prompt.iter().chain(&choice.tokens).for_each(|token| account.add(token));
            account.json()
        });
        json!({
            "index": index,
            "text": format!("{}{}", texts[index / n], choice.text),
            "logprobs": logprobs,
            "finish_reason": finish_reason(choice.end.as_ref().unwrap_or(&End::Eos)),
        })
    });
    let mut body = head.object("text_completion", choices.collect());
    body["usage"] = usage(&whole.usage);
    if let Some(octet) = head.octet(&whole.usage, &whole.warnings, &whole.routing) {
        body["octet"] = octet;
    }
    body
}

/// Four lists of one length.
#[derive(Default)]
struct Logprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters so far.
    offset: usize,
}

impl Logprobs {
    fn add(&mut self, token: &Token) {
        self.tokens.push(name(&token.text, &token.bytes));
        self.text_offset.push(self.offset);
        self.offset += token.text.chars().count();
        let Some(logprob) = token.logprob else {
            // The first token of a prompt follows nothing.
            self.token_logprobs.push(Value::Null);
            self.top_logprobs.push(Value::Null);
            return;
        };
        self.token_logprobs.push(json!(logprob.max(LEAST_LOGPROB)));
        let mut top = Map::new();
        for other in &token.top {
            // Best first: of two tokens with one text, the likelier stays.
            top.entry(name(&other.text, &other.bytes)).or_insert_with(|| json!(other.logprob.max(LEAST_LOGPROB)));
        }
        self.top_logprobs.push(Value::Object(top));
    }

    fn json(&self) -> Value {
        json!({
            "tokens": self.tokens,
            "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs,
            "text_offset": self.text_offset,
        })
    }

    /// The lists so far; the next ones begin where they end.
    fn take(&mut self) -> Value {
        let json = self.json();
        *self = Logprobs { offset: self.offset, ..Logprobs::default() };
        json
    }
}

/// A token's text, or as OpenAI writes it its bytes, where they are no text by themselves.
fn name(text: &str, bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(_) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

/// Writes events.
pub struct CompletionWriter {
    head: Head,
    options: StreamOptions,
    texts: Vec<String>,
    n: usize,
    dialect: Dialect,
    accounts: Vec<Logprobs>,
    warnings: Vec<String>,
}

impl CompletionWriter {
    /// A writer of `n` answers to each prompt, each of which begins with its text.
    pub fn new(head: Head, options: StreamOptions, texts: Vec<String>, n: usize, dialect: Dialect) -> CompletionWriter {
        let accounts = (0..texts.len() * n).map(|_| Logprobs::default()).collect();
        CompletionWriter { head, options, texts, n, dialect, accounts, warnings: Vec::new() }
    }

    fn choice(&mut self, choice: usize, text: &str, tokens: &[Token], end: Option<&End>, out: &mut Out) {
        let account = &mut self.accounts[choice];
        tokens.iter().for_each(|token| account.add(token));
        let logprobs = if self.head.logprobs && !tokens.is_empty() { account.take() } else { Value::Null };
        let reason = end.map(finish_reason);
        let choices = json!([{"index": choice, "text": text, "logprobs": logprobs, "finish_reason": reason}]);
        out.data(&self.event(choices));
    }

    fn event(&self, choices: Value) -> Value {
        let mut event = self.head.object("text_completion", choices);
        if self.options.include_usage {
            event["usage"] = Value::Null;
        }
        event
    }
}

impl Writer for CompletionWriter {
    fn begin(&mut self, _: &mut Out) {}

    fn piece(&mut self, piece: Piece, out: &mut Out) {
        match piece {
            Piece::Prompt { choice, tokens } => {
                let text = self.texts[choice / self.n].clone();
                self.choice(choice, &text, &tokens, None, out);
            }
            Piece::Text { choice, text, tokens } => self.choice(choice, &text, &tokens, None, out),
            Piece::Warning(warning) => self.warnings.push(warning),
            Piece::End { choice, end } => self.choice(choice, "", &[], Some(&end), out),
            Piece::Routing(routing) => {
                let mut event = self.event(json!([]));
                event["octet"] = json!({"routing": [routing]});
                out.data(&event);
            }
            Piece::Done(total) => {
                let octet = self.head.octet(&total, &self.warnings, &[]);
                if self.options.include_usage || octet.is_some() {
                    let mut event = self.event(json!([]));
                    event["usage"] = usage(&total);
                    if let Some(octet) = octet {
                        event["octet"] = octet;
                    }
                    out.data(&event);
                }
                out.text("data: [DONE]\n\n");
            }
            Piece::Failed(refusal) => out.data(&self.dialect.refuse(&refusal, "").1),
            Piece::Reading { .. } | Piece::Call { .. } => {}
        }
    }
}
