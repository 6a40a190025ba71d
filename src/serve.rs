//! `octet serve`: models over HTTP.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::builder::TypedValueParser;
use octet_checkpoint::{Checkpoint, ElementType, Params, TensorName};
use octet_engine::{AdapterSource, DiskCacheOptions, Engine, EngineOptions, OpenOptions};
use octet_kernels::KvType;
use octet_server::{
    AdapterOption, EngineHandle, Facts, Limits, LoadFailure, Loaded, Loader, Options, PeerOption, Planner,
};

use crate::footprint;
use crate::model_options::{RunOptions, kv_type, quantized_type};
use crate::plan::DoesNotFit;
use crate::user_folder;

/// Serve models over HTTP, in the words of OpenAI, Mistral, Ollama and Anthropic
///
/// Without keys the server listens on loopback addresses only. SIGHUP reads the keys anew; Ctrl-C and SIGTERM let answers
/// end that have begun. docs/serving.md tells what each API takes.
#[derive(clap::Args)]
pub struct Args {
    /// Models: folders or files; NAME=PATH gives one a name [default: that of the file or folder]
    #[arg(required = true, value_name = "MODEL")]
    models: Vec<String>,
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on; 0 for a free one
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// Another name for a model, as mistral-small=mixtral; several times
    #[arg(long, value_name = "ALIAS=NAME", value_parser = pair("ALIAS=NAME"))]
    alias: Vec<(String, String)>,
    /// An adapter (LoRA) that requests name as they name a model, as NAME=FOLDER, or NAME=FOLDER:MODEL where there are
    /// several models; several times
    #[arg(long, value_name = "NAME=FOLDER", value_parser = adapter)]
    adapter: Vec<(String, PathBuf, Option<String>)>,
    /// A key that clients have to show, as KEY or NAME=KEY; several times
    #[arg(long, value_name = "KEY")]
    api_key: Vec<String>,
    /// File of keys, a name and a key a line, with limits
    #[arg(long, value_name = "FILE")]
    api_keys: Option<PathBuf>,
    /// Certificate chain (PEM) for HTTPS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Origin whose pages may call the server, such as `https://chat.example`; several times
    #[arg(long, value_name = "ORIGIN")]
    origin: Vec<String>,
    /// Largest body of a request, MiB
    #[arg(long, value_name = "MIB", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_body: u32,
    /// Longest prompt, tokens [default: the context's]
    #[arg(long, value_name = "TOKENS")]
    max_prompt: Option<usize>,
    /// Requests that may wait for a model; more get 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..).map(|n| n as usize))]
    max_requests: usize,
    /// Answers that a model writes at the same time; more wait
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024).map(usize::from))]
    max_running: usize,
    /// Memory for keys and values of all answers and of the prefix cache of a model, MiB [default: four contexts, at most
    /// 4096, but always one context]. What is named here is taken from the system while there is nothing else to do
    #[arg(long, value_name = "MIB")]
    kv_memory: Option<u64>,
    /// Folder for keys and values of prompts that fall out of memory; they are found again after a restart [default: none]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Most that a model may put there, MiB
    #[arg(long, value_name = "MIB", default_value_t = 8192, requires = "cache")]
    cache_size: u64,
    /// Never guess tokens ahead; answers are the same with and without
    #[arg(long)]
    no_speculation: bool,
    /// Folder in which the page's conversations are kept [default: octet in the user's data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Keep no conversations
    #[arg(long, conflicts_with = "data")]
    no_history: bool,
    /// Another server that speaks OpenAI's API, whose models the page may compare with ours, as NAME=URL; several times
    #[arg(long, value_name = "NAME=URL", value_parser = pair("NAME=URL, such as other=https://HOST/v1"))]
    peer: Vec<(String, String)>,
    /// Environment variable that holds the key of a peer, as NAME=VARIABLE; several times
    #[arg(long, value_name = "NAME=VARIABLE", value_parser = pair("NAME=VARIABLE, of a peer that --peer names"))]
    peer_key: Vec<(String, String)>,
    /// Connections at the same time; more wait
    #[arg(long, value_name = "N", default_value_t = 2048)]
    max_connections: usize,
    /// Seconds after which a reader that takes nothing loses its answer
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    slow_reader: u64,
    /// Seconds that answers may take to end when the server stops
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain: u64,
    /// Write the log as JSON
    #[arg(long)]
    log_json: bool,
    /// Let prompts and answers stand in the log
    #[arg(long)]
    log_text: bool,
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Tokens of context of each request [default: the model's own, at most 32768]
    #[arg(short, long)]
    context: Option<usize>,
    /// Type of the KV cache: f16, q8_0 or f32
    #[arg(long, default_value = "f16", value_parser = kv_type)]
    kv: KvType,
    /// Quantize float weights to this type while loading, such as Q8_0 or Q4_K
    #[arg(long, value_name = "TYPE", value_parser = quantized_type)]
    quantize: Option<ElementType>,
    /// Tokens of a prompt that run in one pass
    #[arg(long, default_value_t = 512)]
    chunk: usize,
    /// Milliseconds that reading a prompt may hold up the answers beside it at a time; two thirds more if it is long
    #[arg(long, value_name = "MS", default_value_t = 225, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    step_budget: u64,
    /// Lines of system texts that begin so do not reach the model, because they change with every request; several times
    #[arg(long, value_name = "TEXT")]
    system_noise: Vec<String>,
    /// Load even where the model is predicted not to fit in memory
    #[arg(long)]
    load_anyway: bool,
}

/// Reads `LEFT=RIGHT`; `form` says what it has to be.
fn pair(form: &'static str) -> impl Fn(&str) -> Result<(String, String), String> + Clone {
    move |text| {
        let (left, right) = text.split_once('=').ok_or_else(|| format!("it has to be {form}"))?;
        Ok((left.into(), right.into()))
    }
}

/// `NAME=FOLDER[:MODEL]`; a colon in an existing folder's name belongs to it.
fn adapter(text: &str) -> Result<(String, PathBuf, Option<String>), String> {
    let (name, whole) = text.split_once('=').ok_or("it has to be NAME=FOLDER or NAME=FOLDER:MODEL")?;
    if name.is_empty() || name.contains('/') {
        return Err("an adapter's name is not empty and has no slash".into());
    }
    match whole.rsplit_once(':') {
        Some((folder, model)) if !Path::new(whole).exists() => Ok((name.into(), folder.into(), Some(model.into()))),
        _ => Ok((name.into(), whole.into(), None)),
    }
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    start_log(&args);
    let adapters = args.adapter.iter().cloned();
    let adapters = adapters.map(|(name, folder, model)| AdapterOption { name, folder, model }).collect();
    let models = args.models.iter().map(|model| named(model)).collect::<anyhow::Result<Vec<_>>>()?;
    let limits = Limits {
        body_bytes: (args.max_body as usize) << 20,
        prompt_tokens: args.max_prompt,
        connections: args.max_connections.max(1),
        slow_reader_s: args.slow_reader.max(1),
        drain_s: args.drain,
        ..Limits::default()
    };
    let loader = loader(&args);
    let data = data_folder(&args)?;
    let kept =
        data.as_ref().map_or_else(String::new, |folder| format!("\nconversations are kept in {}", folder.display()));
    let peers = peers(&args.peer, &args.peer_key)?;
    octet_server::serve(Options {
        host: args.host,
        port: args.port,
        models,
        adapters,
        aliases: args.alias,
        peers,
        loader,
        api_keys: args.api_key,
        key_file: args.api_keys,
        data,
        planner: planner(),
        tls: args.tls_cert.zip(args.tls_key),
        limits,
        origins: args.origin,
        system_noise: args.system_noise,
        log_text: args.log_text,
        ready: Box::new(move |url| eprintln!("octet serves at {url}{kept}")),
    })?;
    Ok(())
}

/// Where conversations are kept, if they are. A folder that was named is made at once, so that a wrong name shows.
fn data_folder(args: &Args) -> anyhow::Result<Option<PathBuf>> {
    if args.no_history {
        return Ok(None);
    }
    if let Some(folder) = &args.data {
        std::fs::create_dir_all(folder).with_context(|| format!("--data: cannot make {}", folder.display()))?;
        return Ok(Some(folder.clone()));
    }
    let of_user = user_folder::data().map(|folder| folder.join("octet"));
    if of_user.is_none() {
        eprintln!(
            "no conversations are kept, since neither HOME nor XDG_DATA_HOME is set; name a folder by --data DIR"
        );
    }
    Ok(of_user)
}

/// Peers with their keys, which stand in the environment so that no list of processes shows them.
fn peers(named: &[(String, String)], keys: &[(String, String)]) -> anyhow::Result<Vec<PeerOption>> {
    for (name, variable) in keys {
        if !named.iter().any(|(known, _)| known == name) {
            bail!("--peer-key {name}={variable}: there is no peer {name}; name it by --peer {name}=URL");
        }
    }
    let one = |(name, url): &(String, String)| {
        let variable = keys.iter().find(|(of, _)| of == name).map(|(_, variable)| variable);
        let key = variable.map(|variable| {
            std::env::var(variable).with_context(|| format!("--peer-key {name}={variable}: {variable} is not set"))
        });
        Ok(PeerOption { name: name.clone(), url: url.clone(), key: key.transpose()? })
    };
    named.iter().map(one).collect()
}

fn start_log(args: &Args) {
    let filter = tracing_subscriber::filter::Targets::new().with_default(tracing::Level::WARN);
    let filter = filter.with_target("octet_server", tracing::Level::INFO);
    let plain = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).with_writer(std::io::stderr);
    let plain = plain.with_target(false).with_ansi(std::io::stderr().is_terminal());
    use tracing_subscriber::layer::SubscriberExt;
    if args.log_json {
        let _ = tracing::subscriber::set_global_default(plain.json().finish().with(filter));
    } else {
        let _ = tracing::subscriber::set_global_default(plain.finish().with(filter));
    }
}

/// Name and path of a model.
fn named(model: &str) -> anyhow::Result<(String, PathBuf)> {
    if let Some((name, path)) = model.split_once('=').filter(|_| !Path::new(model).exists()) {
        if name.is_empty() || name.contains('/') {
            bail!("{model}: a model's name is not empty and has no slash");
        }
        return Ok((name.into(), path.into()));
    }
    let path = PathBuf::from(model);
    let full = path.canonicalize().with_context(|| format!("cannot open {model}"))?;
    let name = if full.is_dir() { full.file_name() } else { full.file_stem() };
    let name = name.with_context(|| format!("{model} has no name; give it one as NAME={model}"))?;
    Ok((name.to_string_lossy().into_owned(), path))
}

fn loader(args: &Args) -> Loader {
    let (threads, context, kv, quantize, chunk, load_anyway) =
        (args.threads, args.context, args.kv, args.quantize, args.chunk, args.load_anyway);
    let (kv_bytes, max_queue, max_running) = (args.kv_memory.map(|mib| mib << 20), args.max_requests, args.max_running);
    let (cache, cache_bytes, speculation) = (args.cache.clone(), args.cache_size << 20, !args.no_speculation);
    let step_budget = Duration::from_millis(args.step_budget);
    Arc::new(move |path: &Path, adapters: &[AdapterOption], anyway: bool| {
        let load_anyway = load_anyway || anyway;
        let options =
            RunOptions { threads, context, kv, quantize, chunk, experts_per_token: None, adapter: None, load_anyway };
        let cache_folder = cache.as_ref().map(|folder| folder.join(cache_name(path)));
        let disk_cache = cache_folder.map(|folder| DiskCacheOptions { folder, bytes: cache_bytes });
        let engine = EngineOptions {
            kv_bytes,
            max_queue,
            max_running,
            disk_cache,
            speculation,
            step_budget,
            ..Default::default()
        };
        load(path, &options, adapters, engine).map_err(failure)
    })
}

/// The name of a model's own folder in the cache: that of its file, and since many are called model.safetensors, a hash of
/// where it lies.
fn cache_name(model: &Path) -> String {
    use sha2::{Digest, Sha256};
    let full = model.canonicalize().unwrap_or_else(|_| model.to_owned());
    let name = full.file_name().unwrap_or_default().to_string_lossy();
    let place = Sha256::digest(full.as_os_str().as_encoded_bytes());
    format!("{name}-{}", crate::format::hex(&place[..4]))
}

fn failure(error: anyhow::Error) -> LoadFailure {
    match error.downcast_ref::<DoesNotFit>() {
        Some(DoesNotFit(why)) => {
            let why = format!("{why}; --load-anyway, or \"load_anyway\": true in the API, tries");
            LoadFailure { why, does_not_fit: true }
        }
        None => LoadFailure { why: format!("{error:#}"), does_not_fit: false },
    }
}

fn load(
    path: &Path,
    options: &RunOptions,
    adapters: &[AdapterOption],
    engine: EngineOptions,
) -> anyhow::Result<Loaded> {
    let source = |adapter: &AdapterOption| AdapterSource { name: adapter.name.clone(), folder: adapter.folder.clone() };
    let open = OpenOptions { adapters: adapters.iter().map(source).collect(), ..options.open_options()? };
    let checkpoint = options.checkpoint(path)?;
    let engine = options.engine(checkpoint.clone(), EngineOptions { open, ..engine })?;
    let facts = facts(path, &checkpoint, &engine, options);
    let tokenizer = engine.tokenizer().clone();
    Ok(Loaded { facts, tokenizer, engine: EngineHandle::new(engine) })
}

fn facts(path: &Path, checkpoint: &Checkpoint, engine: &Engine, options: &RunOptions) -> Facts {
    let (params, info) = (checkpoint.params(), engine.model());
    let types = footprint::types_of(checkpoint, options.quantize);
    Facts {
        path: path.into(),
        file_bytes: footprint::file_bytes(params, footprint::types_of(checkpoint, None)),
        weights_bytes: info.weights_bytes as u64,
        parameters: params.n_parameters(),
        active_parameters: params.n_active_parameters(),
        quantization: most_common(params, types),
        context: info.context,
        layers: params.n_layers,
        experts: info.config.num_experts,
        experts_per_token: info.config.num_experts_per_tok,
        dim: params.dim,
        vocab_size: info.config.vocab_size,
    }
}

/// The type of most weights.
fn most_common(params: &Params, types: impl Fn(TensorName) -> ElementType) -> String {
    let mut weights = BTreeMap::<String, u64>::new();
    for name in params.tensors() {
        let [rows, cols] = params.shape(name);
        *weights.entry(types(name).to_string()).or_default() += (rows * cols) as u64;
    }
    weights.into_iter().max_by_key(|(_, n)| *n).map(|(name, _)| name).unwrap_or_default()
}

/// `octet plan` for the page: takes its options as JSON, and gives its report.
fn planner() -> Planner {
    Arc::new(|request| crate::plan::report_of(request).map_err(|error| format!("{error:#}")))
}
