//! Fields of JSON bodies: each is read, or refused by its name; none is dropped in silence.
//!
//! A body is read by several structs, each a group of fields that belong together, and what none of them names is unknown.

use axum::body::to_bytes;
use axum::extract::{FromRequest, Request};
use futures_core::Stream;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use crate::app::Shared;
use crate::caller::{Caller, Ignored};
use crate::refusal::{Fault, Refusal};

/// A group of fields.
pub trait Fields: DeserializeOwned {
    /// Their names in JSON.
    const NAMES: &'static [&'static str];
}

/// Declares a group of optional fields, with its schema.
macro_rules! fields {
    ($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default, serde::Deserialize, utoipa::ToSchema)]
        pub struct $name { $($(#[$doc])* pub $field: Option<$type>,)* }
        impl $crate::fields::Fields for $name {
            const NAMES: &'static [&'static str] = &[$(stringify!($field)),*];
        }
    };
}
pub(crate) use fields;

/// A documented field that we do not serve: its name, the values with which it changes nothing, and why not.
pub type Unsupported = (&'static str, &'static [&'static str], &'static str);

/// An object of which every field has to be accounted for.
#[derive(Debug, Default)]
pub struct Body {
    fields: Map<String, Value>,
    known: Vec<&'static str>,
    ignored: Ignored,
}

impl Body {
    /// Of these fields; those without effect are added to `ignored`.
    pub fn of(fields: Map<String, Value>, ignored: &Ignored) -> Body {
        Body { fields, known: Vec::new(), ignored: ignored.clone() }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// Other JSON, or none.
    pub fn parse(bytes: &[u8]) -> Result<Body, Refusal> {
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(fields)) => Ok(Body { fields, ..Body::default() }),
            Ok(_) => Err(Refusal::new(Fault::Invalid, "the body has to be a JSON object")),
            Err(_) if bytes.is_empty() => Err(Refusal::new(Fault::Invalid, "the body is empty; it has to be JSON")),
            Err(error) => Err(Refusal::new(Fault::Invalid, format!("the body is not valid JSON: {error}"))),
        }
    }

    /// Reads a group of fields.
    ///
    /// # Errors
    /// A field of the wrong type, by its path.
    pub fn read<T: Fields>(&mut self) -> Result<T, Refusal> {
        self.known.extend(T::NAMES);
        // The group is read alone, so that an error names a path in it.
        let own = self.fields.iter().filter(|(name, value)| T::NAMES.contains(&name.as_str()) && !value.is_null());
        let own: Map<String, Value> = own.map(|(name, value)| (name.clone(), value.clone())).collect();
        serde_path_to_error::deserialize(Value::Object(own)).map_err(|error| {
            let path = error.path().to_string();
            let problem = in_words(&error.into_inner().to_string());
            Refusal::field(path.clone(), format!("{path}: {problem}"))
        })
    }

    /// Refuses what is documented but not served, unless its value changes nothing. What may have any value and never
    /// changes anything is noted, so that the reply can name it.
    ///
    /// # Errors
    /// The first such field.
    pub fn unsupported(&mut self, list: &[Unsupported]) -> Result<(), Refusal> {
        for (name, harmless, why) in list {
            self.known.push(name);
            let Some(value) = self.fields.get(*name) else { continue };
            let is_empty = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) => fields.is_empty(),
                _ => false,
            };
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !is_empty && !harmless.contains(&text.as_str()) && !harmless.contains(&"*") {
                return Err(Refusal::unsupported(name, why));
            }
            if !is_empty && harmless.contains(&"*") {
                self.ignored.add(name);
            }
        }
        Ok(())
    }

    /// Refuses fields that nothing has read; gives where to note what else has no effect.
    ///
    /// # Errors
    /// The first such field.
    pub fn finish(self) -> Result<Ignored, Refusal> {
        match self.fields.keys().find(|name| !self.known.contains(&name.as_str())) {
            None => Ok(self.ignored),
            Some(name) => Err(Refusal::unknown(name.as_str())),
        }
    }
}

/// A reader's complaint, without Rust's names of types.
fn in_words(problem: &str) -> String {
    let types = [
        ("usize", "a whole number of 0 or more"),
        ("u32", "a whole number of 0 or more"),
        ("i64", "a whole number"),
        ("i32", "a whole number"),
        ("f32", "a number"),
        ("f64", "a number"),
    ];
    let named = types.iter().find_map(|(name, words)| Some(format!("{}{words}", problem.strip_suffix(name)?)));
    named.unwrap_or_else(|| problem.to_owned())
}

impl FromRequest<Shared> for Body {
    type Rejection = Refusal;

    async fn from_request(request: Request, app: &Shared) -> Result<Body, Refusal> {
        let ignored = request.extensions().get::<Caller>().map(|caller| caller.ignored.clone()).unwrap_or_default();
        Ok(Body { ignored, ..Body::parse(&read(request, app).await?)? })
    }
}

/// The bytes of a body, within the server's limits of size and time.
///
/// # Errors
/// 413 with the limit, 408.
pub async fn read(request: Request, app: &Shared) -> Result<axum::body::Bytes, Refusal> {
    let limit = app.limits.body_bytes;
    let too_large =
        || Refusal::new(Fault::TooLarge, format!("the body is larger than {limit} bytes, this server's limit"));
    let length = request.headers().get("content-length").and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let wait = Duration::from_secs(app.limits.body_timeout_s);
    if length.is_some_and(|length| length > limit as u64) {
        // Most clients read no answer before they have sent all, so what is not too much is taken and thrown away.
        let _ = tokio::time::timeout(wait, discard(request.into_body(), 4 * limit)).await;
        return Err(too_large());
    }
    match tokio::time::timeout(wait, to_bytes(request.into_body(), limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_over_limit(&error) => Err(too_large()),
        Ok(Err(error)) => Err(Refusal::new(Fault::Invalid, format!("the body broke off: {error}"))),
        Err(_) => Err(Refusal::new(Fault::TooSlow, format!("the body took longer than {} s", wait.as_secs()))),
    }
}

async fn discard(body: axum::body::Body, most: usize) {
    let mut data = body.into_data_stream();
    let mut seen = 0;
    while let Some(Ok(bytes)) = poll_fn(|context| Pin::new(&mut data).poll_next(context)).await {
        seen += bytes.len();
        if seen > most {
            return;
        }
    }
}

fn is_over_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.to_string().contains("length limit exceeded") {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fields! {
        /// A group.
        pub struct Group {
            /// A number.
            count: u32,
            /// A list.
            list: Vec<u8>,
        }
    }

    fn body(json: &str) -> Body {
        Body::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn faults_are_named_by_path() {
        let refusal = body(r#"{"list": [1, 2, "x"]}"#).read::<Group>().unwrap_err();
        assert_eq!(refusal.param.as_deref(), Some("list[2]"));
        let refusal = body(r#"{"count": -1}"#).read::<Group>().unwrap_err();
        assert!(refusal.message.ends_with("expected a whole number of 0 or more"), "{}", refusal.message);
        let group = body(r#"{"count": null, "list": [1]}"#).read::<Group>().unwrap();
        assert_eq!((group.count, group.list), (None, Some(vec![1])));
        assert!(Body::parse(b"[]").unwrap_err().message.contains("object"));
        assert!(Body::parse(b"{").unwrap_err().message.contains("not valid JSON"));
    }

    #[test]
    fn nothing_is_dropped_in_silence() {
        let mut unknown = body(r#"{"count": 1, "cuont": 2}"#);
        unknown.read::<Group>().unwrap();
        assert_eq!(unknown.finish().unwrap_err().param.as_deref(), Some("cuont"));
        let list: &[Unsupported] = &[("tier", &["auto"], "there is one tier"), ("hint", &["*"], "")];
        let mut harmless = body(r#"{"tier": "auto", "hint": [3]}"#);
        harmless.unsupported(list).unwrap();
        assert_eq!(harmless.ignored.names(), ["hint"]);
        harmless.finish().unwrap();
        let refusal = body(r#"{"tier": "fast"}"#).unsupported(list).unwrap_err();
        assert_eq!(refusal.message, "tier is not supported: there is one tier");
    }
}
