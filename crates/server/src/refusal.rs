//! Why a request gets no answer, before any dialect has put it into its own words.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

/// What kind of fault it is; decides the status, and each dialect's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Something in the request is wrong or not supported.
    Invalid,
    /// A field that no API of ours documents.
    UnknownField,
    /// Prompt and answer do not fit the context.
    ContextTooLong,
    /// No key, or one that nobody gave out.
    Unauthorized,
    /// A page of another origin, or a path that is switched off.
    Forbidden,
    /// A model, conversation or answer of that name does not exist.
    NotFound,
    /// Somebody else has changed it in between.
    Conflict,
    /// The path exists, the method does not.
    Method,
    /// The body is too large.
    TooLarge,
    /// The body or its headers came too slowly.
    TooSlow,
    /// The key's allowance is used up, or the queue is full.
    TooMany,
    /// The server is going down or the model is not loaded.
    Unavailable,
    /// Another server that was asked for this one failed.
    Upstream,
    /// Our own fault.
    Internal,
}

/// A fault with the words and the place.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// Its kind.
    pub fault: Fault,
    /// One sentence that says what is wrong and what to do.
    pub message: String,
    /// The field at fault, as `messages[0].content`.
    pub param: Option<String>,
    /// When trying again makes sense, seconds.
    pub retry_after_s: Option<u64>,
}

impl Refusal {
    /// A fault in these words.
    pub fn new(fault: Fault, message: impl Into<String>) -> Refusal {
        Refusal { fault, message: message.into(), param: None, retry_after_s: None }
    }

    /// A fault of one field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Refusal {
        Refusal { param: Some(param.into()), ..Refusal::new(Fault::Invalid, message) }
    }

    /// A field that no endpoint of its kind has.
    pub fn unknown(param: impl Into<String>) -> Refusal {
        let param = param.into();
        let message = format!("{param} is no field that this endpoint knows; leave it out");
        Refusal { param: Some(param), ..Refusal::new(Fault::UnknownField, message) }
    }

    /// A field with a value that is documented but not served here.
    pub fn unsupported(param: &str, why: &str) -> Refusal {
        Refusal::field(param, format!("{param} is not supported: {why}"))
    }

    /// Something that does not exist.
    pub fn not_found(message: impl Into<String>) -> Refusal {
        Refusal::new(Fault::NotFound, message)
    }

    /// Our own fault; the details are in the log.
    pub fn internal(message: impl Into<String>) -> Refusal {
        Refusal::new(Fault::Internal, message)
    }

    /// Too much at once; try again after so many seconds.
    pub fn too_many(message: impl Into<String>, retry_after_s: u64) -> Refusal {
        Refusal { retry_after_s: Some(retry_after_s.max(1)), ..Refusal::new(Fault::TooMany, message) }
    }

    /// The status that every dialect but Mistral's (422) and Anthropic's (529) gives it.
    pub fn status(&self) -> StatusCode {
        match self.fault {
            Fault::Invalid | Fault::UnknownField | Fault::ContextTooLong => StatusCode::BAD_REQUEST,
            Fault::Unauthorized => StatusCode::UNAUTHORIZED,
            Fault::Forbidden => StatusCode::FORBIDDEN,
            Fault::NotFound => StatusCode::NOT_FOUND,
            Fault::Conflict => StatusCode::PRECONDITION_FAILED,
            Fault::Method => StatusCode::METHOD_NOT_ALLOWED,
            Fault::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Fault::TooSlow => StatusCode::REQUEST_TIMEOUT,
            Fault::TooMany => StatusCode::TOO_MANY_REQUESTS,
            Fault::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Fault::Upstream => StatusCode::BAD_GATEWAY,
            Fault::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// Carries the refusal outward; [`crate::enter`] writes the body, since it knows who asked.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = self.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}
