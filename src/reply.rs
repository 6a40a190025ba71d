//! An answer of any model, ours or a server's: its words, its tokens with their probabilities, and what it took.

use std::time::Duration;

use serde_json::Value;

use crate::format;

/// An answer, and what it took as seen from here.
#[derive(Default)]
pub struct Reply {
    /// Without a stop string.
    pub text: String,
    /// Its tokens, where probabilities were asked for and the server gives them.
    pub tokens: Vec<Said>,
    /// As the server counts; 0 if it does not.
    pub prompt_tokens: usize,
    /// As the server counts, else pieces of text.
    pub completion_tokens: usize,
    /// From the question to the first piece of text.
    pub first_token: Duration,
    /// From the first piece to the last.
    pub generation: Duration,
    /// As the server says.
    pub finish_reason: String,
}

/// A token of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// Its id, where that is known.
    pub id: Option<u32>,
    /// What it writes; a part of a character, perhaps.
    pub bytes: Vec<u8>,
    /// Its probability; `None` where nobody tells it.
    pub probability: Option<f64>,
    /// What the likeliest tokens at this place write, and their probabilities.
    pub top: Vec<(Vec<u8>, f64)>,
}

impl Reply {
    /// Adds an event; gives the text that it brings.
    pub fn take(&mut self, event: &Value) -> String {
        let number = |place: &str| event.pointer(place).and_then(Value::as_u64).unwrap_or(0) as usize;
        if event["usage"].is_object() {
            self.prompt_tokens = number("/usage/prompt_tokens");
            self.completion_tokens = number("/usage/completion_tokens");
        }
        let choice = event.pointer("/choices/0").unwrap_or(&Value::Null);
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish_reason = reason.into();
        }
        let tokens = choice.pointer("/logprobs/content").and_then(Value::as_array);
        self.tokens.extend(tokens.into_iter().flatten().map(Said::read));
        let text = choice.pointer("/delta/content").and_then(Value::as_str).unwrap_or_default();
        self.text.push_str(text);
        text.to_owned()
    }

    /// Its tokens; where the server told none the words of the text stand for them.
    pub fn pieces(&self) -> Vec<Said> {
        if !self.tokens.is_empty() || self.text.is_empty() {
            return self.tokens.clone();
        }
        let word = |word: &str| Said { bytes: word.into(), ..Said::default() };
        self.text.split_inclusive(char::is_whitespace).map(word).collect()
    }

    /// Tokens per second after the first; 0 if there was no second one.
    pub fn rate(&self) -> f64 {
        match self.generation.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.completion_tokens.saturating_sub(1) as f64 / seconds,
        }
    }

    /// Speed and time, in one line.
    pub fn statistics(&self) -> String {
        let mut parts = vec![
            format!("{} tokens, {}", self.completion_tokens, format::rate(self.rate())),
            format!("prompt {} tokens", self.prompt_tokens),
            format!("first token {}", format::duration(self.first_token)),
        ];
        match self.finish_reason.as_str() {
            "length" => parts.push("ended by its limit of tokens".into()),
            "" => parts.push("stopped".into()),
            _ => {}
        }
        parts.join(" · ")
    }
}

impl Said {
    /// A token as OpenAI's `logprobs` write it; `id` is ours, llama.cpp's and others'.
    fn read(value: &Value) -> Said {
        let bytes = |value: &Value| match value["bytes"].as_array() {
            Some(bytes) => bytes.iter().filter_map(|b| u8::try_from(b.as_u64()?).ok()).collect(),
            None => value["token"].as_str().unwrap_or_default().as_bytes().to_vec(),
        };
        let probability = |value: &Value| value["logprob"].as_f64().map(f64::exp);
        let top = value["top_logprobs"].as_array().into_iter().flatten();
        Said {
            id: value["id"].as_u64().and_then(|id| id.try_into().ok()),
            bytes: bytes(value),
            probability: probability(value),
            top: top.map(|other| (bytes(other), probability(other).unwrap_or(0.0))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_become_a_reply() {
        let mut reply = Reply::default();
        let event = json!({"choices": [{"delta": {"content": "hé"}, "logprobs": {"content": [{
            "token": "h?", "bytes": [104, 195], "logprob": -0.5, "id": 7,
            "top_logprobs": [{"token": "h", "logprob": 0.0}]}]}, "finish_reason": null}]});
        assert_eq!(reply.take(&event), "hé");
        reply.take(&json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}));
        reply.take(&json!({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}));
        let token = &reply.tokens[0];
        assert_eq!((token.id, &token.bytes[..], &token.top[..]), (Some(7), &[104, 195][..], &[(vec![104], 1.0)][..]));
        assert!((token.probability.unwrap() - 0.6065).abs() < 1e-4);
        assert_eq!((reply.prompt_tokens, reply.completion_tokens, reply.finish_reason.as_str()), (5, 2, "stop"));
    }

    #[test]
    fn words_stand_for_tokens_that_are_not_told() {
        let reply = Reply { text: "one two".into(), ..Reply::default() };
        let pieces: Vec<Vec<u8>> = reply.pieces().into_iter().map(|piece| piece.bytes).collect();
        assert_eq!(pieces, [b"one ".to_vec(), b"two".to_vec()]);
    }
}
