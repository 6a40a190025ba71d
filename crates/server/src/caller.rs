//! Who asks: the same paths serve unlike dialects, told apart by path and headers.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use serde_json::Value;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use crate::keys::Key;
use crate::refusal::Refusal;
use crate::{anthropic, mistral, ollama, openai};

/// Whose words a client understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// OpenAI's, and everybody's who does not say otherwise.
    OpenAi,
    /// Mistral's.
    Mistral,
    /// Vercel's `ai`, which may be either of the two and gets bodies that both can read.
    VercelAi,
    /// Ollama's.
    Ollama,
    /// Anthropic's.
    Anthropic,
}

impl Dialect {
    /// Reads path and headers.
    pub fn of(uri: &Uri, headers: &HeaderMap) -> Dialect {
        let path = uri.path();
        if path == "/" || path.starts_with("/api/") {
            return Dialect::Ollama;
        }
        if path.starts_with("/v1/messages") || headers.contains_key("anthropic-version") {
            return Dialect::Anthropic;
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let agents = [text("user-agent"), text("x-mistral-user-agent")];
        let says = |mark: &str| agents.iter().any(|agent| agent.contains(mark));
        if path.starts_with("/v1/fim/") || says("mistral-client") || says("ai-sdk/mistral") || says("ai-sdk-mistral") {
            Dialect::Mistral
        } else if agents.iter().any(|agent| agent.starts_with("ai/")) || says("ai-sdk") {
            Dialect::VercelAi
        } else {
            Dialect::OpenAi
        }
    }

    /// Name for metrics and logs.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Mistral => "mistral",
            Dialect::VercelAi => "ai-sdk",
            Dialect::Ollama => "ollama",
            Dialect::Anthropic => "anthropic",
        }
    }

    /// Status and body of a refusal, in this dialect.
    pub fn refuse(self, refusal: &Refusal, request_id: &str) -> (u16, Value) {
        let status = refusal.status().as_u16();
        match self {
            Dialect::OpenAi => (status, openai::error::body(refusal)),
            Dialect::Mistral => mistral::error::answer(refusal),
            Dialect::VercelAi => (status, mistral::error::for_both(refusal)),
            Dialect::Ollama => (status, ollama::error::body(refusal)),
            Dialect::Anthropic => anthropic::error::answer(refusal, request_id),
        }
    }
}

/// The client of one request.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its dialect.
    pub dialect: Dialect,
    /// When the request arrived.
    pub started: Instant,
    /// The id that its logs and ours have in common.
    pub request_id: Arc<str>,
    /// The key that it showed; `None` where none is needed.
    pub key: Option<Arc<Key>>,
    /// Fields that were read and change nothing.
    pub ignored: Ignored,
}

/// Names of fields that were accepted without effect; the reply names them.
#[derive(Clone, Debug, Default)]
pub struct Ignored(Arc<Mutex<Vec<&'static str>>>);

impl Ignored {
    /// Adds one.
    pub fn add(&self, name: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(name);
    }

    /// All so far.
    pub fn names(&self) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Caller {
    /// The name under which its things are kept: its key's, or `local`.
    pub fn name(&self) -> &str {
        self.key.as_ref().map_or(Caller::NOBODY, |key| &key.name)
    }

    /// The name of whoever comes without a key.
    pub const NOBODY: &'static str = "local";
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Caller, Refusal> {
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| Refusal::internal("a route was added outside enter"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialect(path: &str, headers: &[(&'static str, &str)]) -> Dialect {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        Dialect::of(&path.parse().unwrap(), &headers)
    }

    #[test]
    fn clients_are_told_apart() {
        let agent = |agent| dialect("/v1/chat/completions", &[("user-agent", agent)]);
        assert_eq!(agent("OpenAI/Python 3.54.0"), Dialect::OpenAi);
        assert_eq!(agent("curl/8"), Dialect::OpenAi);
        assert_eq!(agent("mistral-client-python/3.7.0"), Dialect::Mistral);
        assert_eq!(agent("ai-sdk/mistral/3.0 ai-sdk/provider-utils/4 runtime/node.js/v20"), Dialect::Mistral);
        assert_eq!(agent("ai/6.0.326 ai-sdk/provider-utils/4.0 runtime/node.js/20"), Dialect::VercelAi);
        // Since version 5 of its parts, Vercel's client writes hyphens.
        assert_eq!(agent("ai-sdk-mistral/4.0.87 ai-sdk-provider-utils/5.0.81 node.js/v20"), Dialect::Mistral);
        assert_eq!(agent("ai-sdk-openai-compatible/3.0.92 ai-sdk-provider-utils/5.0.81"), Dialect::VercelAi);
        assert_eq!(dialect("/v1/models", &[("anthropic-version", "2023-06-01")]), Dialect::Anthropic);
        assert_eq!(dialect("/v1/models", &[("x-mistral-user-agent", "mistral-client-typescript/2")]), Dialect::Mistral);
        assert_eq!(dialect("/v1/messages", &[]), Dialect::Anthropic);
        assert_eq!(dialect("/api/chat", &[("user-agent", "ollama-python/0.6")]), Dialect::Ollama);
        assert_eq!(dialect("/v1/fim/completions", &[]), Dialect::Mistral);
    }
}
