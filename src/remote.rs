//! A model behind a server that speaks OpenAI's API, asked as a model of one's own would be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use octet_engine::Flow;
use octet_tokenizer::Message;
use serde_json::{Value, json};

use crate::http::{self, Server};
use crate::reply::Reply;
use crate::sampling_options::SamplingOptions;
use crate::server_options::first_model;

/// A model of a server.
pub struct Remote {
    server: Server,
    /// Its name there.
    pub model: String,
    /// Sent along where it is set; servers other than ours may refuse it.
    pub experts_per_token: Option<usize>,
}

impl Remote {
    /// The model of this name, or the first that the server lists.
    ///
    /// # Errors
    /// The server cannot be asked, or lists none.
    pub fn new(server: Server, model: Option<String>, experts_per_token: Option<usize>) -> anyhow::Result<Remote> {
        let model = model.map_or_else(|| first_model(&server), Ok)?;
        Ok(Remote { server, model, experts_per_token })
    }

    /// Answers a conversation. `show` gets the text as it comes; it, or setting `stopped`, ends the answer. `logprobs` asks
    /// for the probabilities of so many likeliest tokens at each place.
    ///
    /// # Errors
    /// The server's refusal, or a connection that breaks.
    pub fn ask(
        &self,
        messages: &[Message],
        options: &SamplingOptions,
        logprobs: Option<usize>,
        stopped: Arc<AtomicBool>,
        show: &mut dyn FnMut(&str) -> Flow,
    ) -> anyhow::Result<Reply> {
        let mut body = options.for_server()?;
        body.extend([
            ("model".into(), json!(self.model)),
            ("messages".into(), json!(messages)),
            ("stream".into(), json!(true)),
            ("stream_options".into(), json!({"include_usage": true})),
        ]);
        if let Some(top) = logprobs {
            body.extend([("logprobs".into(), json!(true)), ("top_logprobs".into(), json!(top))]);
        }
        body.extend(self.experts_per_token.map(|experts| ("experts_per_token".into(), json!(experts))));
        let began = Instant::now();
        let sent = self.server.post("/v1/chat/completions", &Value::Object(body).to_string())?;
        let mut reply = Reply::default();
        let mut pieces = 0;
        for event in http::events(sent.answer(Some(stopped.clone()))?) {
            let event = match event {
                // Whoever stopped the answer keeps what there is.
                Err(_) if stopped.load(Ordering::Relaxed) => break,
                event => event?,
            };
            let text = reply.take(&event);
            if !text.is_empty() {
                match pieces {
                    0 => reply.first_token = began.elapsed(),
                    _ => reply.generation = began.elapsed() - reply.first_token,
                }
                pieces += 1;
            }
            if show(&text) == Flow::Stop {
                break;
            }
        }
        if reply.completion_tokens == 0 {
            reply.completion_tokens = pieces;
        }
        Ok(reply)
    }
}
