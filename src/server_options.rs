//! The options by which commands talk with a running server in place of a model of their own, said once.

use anyhow::Context;
use serde_json::Value;

use crate::http::Server;

/// Which server.
#[derive(clap::Args, Clone)]
pub struct ServerOptions {
    /// Talk with a running server that speaks OpenAI's API, as http://127.0.0.1:8080 or https://HOST, in place of a model
    /// of one's own
    #[arg(long, value_name = "URL")]
    pub server: Option<String>,
    /// --server: its key [default: OCTET_API_KEY in the environment, if set]
    #[arg(long, value_name = "KEY", requires = "server")]
    pub api_key: Option<String>,
}

impl ServerOptions {
    /// The server, if one was named. Errors: no address that we can speak to.
    pub fn server(&self) -> anyhow::Result<Option<Server>> {
        self.server.as_ref().map(|url| self.at(url).context("--server")).transpose()
    }

    /// The server at this address, with the same key. Errors: no address that we can speak to.
    pub fn at(&self, url: &str) -> anyhow::Result<Server> {
        let key = self.api_key.clone().or_else(|| std::env::var("OCTET_API_KEY").ok()).unwrap_or_default();
        Server::new(url, &key)
    }
}

/// The first model that a server lists.
///
/// # Errors
/// It cannot be asked, or lists none.
pub fn first_model(server: &Server) -> anyhow::Result<String> {
    let list = server.get("/v1/models").context("the server's list of models")?;
    let first = list.pointer("/data/0/id").and_then(Value::as_str);
    Ok(first.context("the server lists no models; name one with --server-model")?.to_owned())
}
