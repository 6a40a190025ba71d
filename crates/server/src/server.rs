//! From options to a server that runs until it is told to stop.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;

use crate::app::{App, Limits, Planner, Shared};
use crate::keys::Keys;
use crate::listener::accept;
use crate::metrics::Metrics;
use crate::models::{AdapterOption, Loader, Models};
use crate::octet::answer_files;
use crate::octet::answers::Answers;
use crate::octet::conversations::History;
use crate::octet::history::{self, Samples};
use crate::octet::peers::{PeerOption, Peers};
use crate::routes::routes;
use crate::tls;

/// How long the last lines of answers may take to reach their files when the server goes down.
const KEEPING: Duration = Duration::from_secs(5);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option that cannot be.
    #[error("{0}")]
    Option(String),
    /// The address cannot be had.
    #[error("cannot listen on {address}: {cause}")]
    Listen {
        /// Which.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A model cannot be opened.
    #[error("{0}")]
    Model(String),
    /// Threads or signals.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// How to serve.
pub struct Options {
    /// Address.
    pub host: String,
    /// Port; 0 for a free one.
    pub port: u16,
    /// Models by name and path.
    pub models: Vec<(String, PathBuf)>,
    /// Adapters of models.
    pub adapters: Vec<AdapterOption>,
    /// Other names of models.
    pub aliases: Vec<(String, String)>,
    /// Other servers whose models the page may ask.
    pub peers: Vec<PeerOption>,
    /// How a model is opened.
    pub loader: Loader,
    /// `KEY` or `NAME=KEY`.
    pub api_keys: Vec<String>,
    /// A file of keys.
    pub key_file: Option<PathBuf>,
    /// Where conversations are kept; `None` to keep none.
    pub data: Option<PathBuf>,
    /// What `octet plan` would say.
    pub planner: Planner,
    /// Certificate chain and key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Bounds.
    pub limits: Limits,
    /// Origins whose pages may call.
    pub origins: Vec<String>,
    /// How lines of system texts begin that models are not shown.
    pub system_noise: Vec<String>,
    /// Whether prompts and answers may stand in the log.
    pub log_text: bool,
    /// Called once the server answers, with its address.
    pub ready: Box<dyn FnOnce(&str) + Send>,
}

/// Serves until SIGINT or SIGTERM, then lets answers end. SIGHUP reads the keys anew.
///
/// # Errors
/// An option that cannot be, an address in use, a model that cannot be opened.
pub fn serve(options: Options) -> Result<(), Error> {
    let keys = Keys::read(&options.api_keys, options.key_file.as_deref()).map_err(Error::Option)?;
    let is_loopback = options.host == "localhost" || options.host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if keys.is_empty() && !is_loopback {
        return Err(Error::Option(format!(
            "without keys the server listens on loopback addresses only, and {} is none; give --api-key",
            options.host
        )));
    }
    let tls = options.tls.as_ref().map(|(chain, key)| tls::acceptor(chain, key)).transpose().map_err(Error::Option)?;
    let peers = Peers::new(options.peers).map_err(Error::Option)?;
    // Two threads for HTTP: the cores belong to the model.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let address = format!("{}:{}", options.host, options.port);
        let listener = TcpListener::bind((options.host.as_str(), options.port)).await;
        let listener = listener.map_err(|cause| Error::Listen { address, cause })?;
        let address = listener.local_addr()?;
        let models = Models::new(options.models, options.adapters, options.aliases, options.loader);
        let models = models.map_err(Error::Option)?;
        let models = Arc::new(models.without_noise(options.system_noise));
        let history = options.data.as_deref().map(History::at);
        let app: Shared = Arc::new(App {
            models: models.clone(),
            keys: RwLock::new(Arc::new(keys)),
            limits: options.limits.clone(),
            metrics: Arc::new(Metrics::new(models.clone())),
            history,
            answers: Answers::default(),
            peers,
            journal: Arc::default(),
            samples: Samples::default(),
            started: Instant::now(),
            planner: options.planner,
            log_text: options.log_text,
            origins: options.origins,
        });
        load_all(&app).await?;
        tokio::spawn(history::watch(Arc::downgrade(&app)));
        tokio::spawn(answer_files::watch(app.clone()));
        let stop = watch_signals(app.clone(), options.api_keys, options.key_file)?;
        (options.ready)(&url(address, tls.is_some()));
        let until = accept(listener, routes(&app), tls, &options.limits, stop).await;
        // Answers that go on without a connection have what is left of the same time.
        tokio::task::spawn_blocking(move || models.drain(until)).await.map_err(std::io::Error::other)?;
        if tokio::time::timeout(KEEPING, app.answers.settled()).await.is_err() {
            tracing::error!("some answers could not be kept in time");
        }
        Ok(())
    })
}

fn url(address: SocketAddr, is_encrypted: bool) -> String {
    format!("{}://{address}", if is_encrypted { "https" } else { "http" })
}

async fn load_all(app: &Shared) -> Result<(), Error> {
    for entry in app.models.list() {
        let app = app.clone();
        let loaded = tokio::task::spawn_blocking(move || app.models.load(&entry.name, false)).await;
        match loaded {
            Ok(Ok(())) => {}
            Ok(Err(refusal)) => return Err(Error::Model(refusal.message)),
            Err(error) => return Err(Error::Model(format!("opening the model failed: {error}"))),
        }
    }
    Ok(())
}

/// Notified when the server is to stop.
fn watch_signals(app: Shared, flags: Vec<String>, file: Option<PathBuf>) -> Result<Arc<Notify>, Error> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let stop = Arc::new(Notify::new());
    let notify = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => break,
                _ = terminate.recv() => break,
                _ = hang_up.recv() => reload(&app, &flags, file.as_deref()),
            }
        }
        tracing::info!("stopping; answers that have begun may end");
        notify.notify_one();
        // A second signal does not wait.
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        std::process::exit(130);
    });
    Ok(stop)
}

/// Puts the keys in anew. Keys that cannot be read leave the old ones, and a server that has keys never loses the last.
fn reload(app: &App, flags: &[String], file: Option<&std::path::Path>) {
    let old = app.keys();
    match Keys::read(flags, file) {
        Ok(newer) if newer.is_empty() != old.is_empty() => {
            tracing::error!("the keys stay as they were: a reload cannot open or close the server");
        }
        Ok(newer) => {
            let renewed = old.renewed(newer);
            tracing::info!(keys = renewed.iter().count(), "keys read anew");
            *app.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(renewed);
        }
        Err(error) => tracing::error!(error, "the keys stay as they were"),
    }
}
