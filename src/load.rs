//! `octet bench --server URL`: a load generator for any OpenAI-compatible server.
//!
//! Prompts are short English words that are one token each in the vocabularies of Llama, Mistral, GPT-2 and SmolLM, so N
//! words are N tokens; the first ones may be the same in all. Request `i` of a seed always has the same prompt. Answers are
//! streamed and greedy. With `--rate` requests arrive as a Poisson process, and the time to the first token counts from the
//! moment at which a request was due; without, each client sends its next request when its last one has ended.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::bail;
use octet_engine::Random;

use crate::stdout;

mod call;
mod prompts;
mod summary;

use call::{Call, HangUp, Record};
use prompts::Prompts;
use summary::Summary;

/// How a server is put under load.
#[derive(clap::Args, Clone)]
pub struct LoadArgs {
    /// Measure a running server that speaks OpenAI's API, as http://127.0.0.1:8080, in place of a model
    #[arg(long, value_name = "URL", conflicts_with = "model")]
    pub server: Option<String>,
    /// --server: name of the model there
    #[arg(long, value_name = "NAME", default_value = "model", requires = "server")]
    server_model: String,
    /// --server: API key
    #[arg(long, default_value = "none", requires = "server", hide_default_value = true)]
    key: String,
    /// --server: clients, each of which sends its next request when its last one has ended
    #[arg(long, default_value_t = 1, requires = "server", value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// --server: requests in all [default: one for each client]
    #[arg(long, requires = "server")]
    requests: Option<usize>,
    /// --server: requests a second, as a Poisson process, in place of clients that wait for each other
    #[arg(long, requires = "server")]
    rate: Option<f64>,
    /// --server: tokens of each request's own
    #[arg(long, default_value_t = 128, requires = "server")]
    prompt_tokens: usize,
    /// --server: tokens before those, the same in all requests
    #[arg(long, default_value_t = 0, requires = "server")]
    shared_tokens: usize,
    /// --server: tokens of each answer
    #[arg(long, default_value_t = 64, requires = "server")]
    output_tokens: usize,
    /// --server: once every client streams, one prompt of so many tokens arrives too
    #[arg(long, value_name = "TOKENS", requires = "server")]
    intruder: Option<usize>,
    /// --server: before, one stream a client that hangs up after so many tokens; 0: while its prompt is read
    #[arg(long, value_name = "TOKENS", requires = "server")]
    abandon: Option<usize>,
    /// --server: requests that are sent first, one by one, and do not count
    #[arg(long, default_value_t = 0, requires = "server")]
    warmup: usize,
    /// --server: another seed for the prompts
    #[arg(long, default_value_t = 1, requires = "server")]
    seed: u64,
}

impl LoadArgs {
    fn requests(&self) -> usize {
        self.requests.unwrap_or(usize::from(self.clients))
    }

    /// Request number `index`, as JSON.
    fn body(&self, prompt: &str, output_tokens: usize) -> String {
        serde_json::json!({
            "model": self.server_model,
            "prompt": prompt,
            "max_tokens": output_tokens,
            "temperature": 0,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        })
        .to_string()
    }
}

/// Runs the load and prints what came of it.
pub fn run(args: &LoadArgs, server: &str, json: bool) -> anyhow::Result<()> {
    if args.output_tokens == 0 || args.prompt_tokens + args.shared_tokens == 0 {
        bail!("--prompt-tokens and --output-tokens have to be 1 or more");
    }
    if args.rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
        bail!("--rate has to be above 0");
    }
    let call = Call::new(server, &args.key)?;
    let load = Load { args, call, prompts: Prompts::new(args.seed, args.shared_tokens, args.prompt_tokens) };
    for i in 0..args.warmup {
        let record =
            load.request(load.prompts.other(i, args.prompt_tokens), args.output_tokens, Instant::now(), HangUp::Never);
        if let Some(error) = record.error {
            bail!("{server}: {error}");
        }
    }
    load.abandon();
    let began = Instant::now();
    let (records, intruder) = match (args.rate, args.intruder) {
        (Some(rate), _) => (load.arrivals(rate), None),
        (None, Some(tokens)) => load.with_intruder(tokens),
        (None, None) => (load.closed(&AtomicUsize::new(0)), None),
    };
    let summary = Summary::new(&records, intruder.as_ref(), began.elapsed());
    if json {
        stdout::print_json(&summary)?
    } else {
        stdout::print(&summary.to_string())?
    }
    match records.iter().find_map(|record| record.error.as_ref()) {
        Some(error) => bail!("{} of {} requests failed; the first: {error}", summary.failures, records.len()),
        None => Ok(()),
    }
}

struct Load<'a> {
    args: &'a LoadArgs,
    call: Call,
    prompts: Prompts,
}

impl Load<'_> {
    fn request(&self, prompt: String, output_tokens: usize, due: Instant, hang_up: HangUp<'_>) -> Record {
        self.call.send(&self.args.body(&prompt, output_tokens), output_tokens, due, hang_up)
    }

    /// One stream a client that is given up.
    fn abandon(&self) {
        let Some(after) = self.args.abandon else { return };
        thread::scope(|scope| {
            for i in 0..usize::from(self.args.clients) {
                let prompt = self.prompts.other(1000 + i, if after == 0 { self.args.prompt_tokens } else { 16 });
                scope.spawn(move || self.request(prompt, 2000, Instant::now(), HangUp::After(after)));
            }
        });
    }

    /// Clients that wait for their answers. `streaming` counts those which have eight tokens of one.
    fn closed(&self, streaming: &AtomicUsize) -> Vec<Record> {
        let (next, records) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..self.args.clients {
                scope.spawn(|| {
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        if index >= self.args.requests() {
                            return;
                        }
                        let prompt = self.prompts.of(index);
                        let watch = HangUp::Watch(streaming);
                        let record = self.request(prompt, self.args.output_tokens, Instant::now(), watch);
                        records.lock().expect("no thread panics with the lock").push(record);
                    }
                });
            }
        });
        records.into_inner().expect("no thread panics with the lock")
    }

    fn with_intruder(&self, tokens: usize) -> (Vec<Record>, Option<Record>) {
        let streaming = AtomicUsize::new(0);
        let is_over = AtomicUsize::new(0);
        thread::scope(|scope| {
            let intruder = scope.spawn(|| {
                while streaming.load(Ordering::Relaxed) < usize::from(self.args.clients) {
                    if is_over.load(Ordering::Relaxed) > 0 {
                        return None;
                    }
                    thread::park_timeout(Duration::from_millis(2));
                }
                Some(self.request(self.prompts.other(5000, tokens), 4, Instant::now(), HangUp::Never))
            });
            let records = self.closed(&streaming);
            is_over.store(1, Ordering::Relaxed);
            (records, intruder.join().expect("the intruder's thread does not panic"))
        })
    }

    /// Requests that arrive whether or not earlier ones have ended.
    fn arrivals(&self, rate: f64) -> Vec<Record> {
        let mut random = Random::new(self.args.seed);
        let records = Mutex::new(Vec::new());
        let mut due = Instant::now();
        thread::scope(|scope| {
            for index in 0..self.args.requests() {
                while let Some(left) = due.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
                    thread::park_timeout(left);
                }
                let (records, arrived) = (&records, due);
                scope.spawn(move || {
                    let record = self.request(self.prompts.of(index), self.args.output_tokens, arrived, HangUp::Never);
                    records.lock().expect("no thread panics with the lock").push(record);
                });
                let gap = -(1.0 - random.uniform()).ln() / rate;
                due += Duration::from_secs_f64(gap.min(3600.0));
            }
        });
        records.into_inner().expect("no thread panics with the lock")
    }
}
