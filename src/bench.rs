//! `octet bench`: prompt processing and generation, measured as llama-bench and llama-batched-bench do.
//!
//! Each test is run once to warm up and then `-r` times; what is timed is the forward passes alone, on random tokens, so
//! that the answer's own course does not matter.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::bail;
use octet_checkpoint::Checkpoint;
use octet_kernels::KvType;
use octet_kernels::limits::ReadTest;
use octet_model::{LoadOptions, Packing, Transformer};

use crate::load::LoadArgs;
use crate::model_options::kv_type;
use crate::progress::Progress;
use crate::{machine, stdout};

mod limits;
mod measure;
mod row;

use limits::Limits;
use measure::{Setting, Test};
use row::Row;

/// Measure prompt processing and generation
///
/// Options and JSON fields mean what they mean to llama-bench, and with --npl to llama-batched-bench; -npp, -ntg, -npl,
/// -ctk and -ctv may be written with one dash, as there. Beside each speed stands the share that it reaches of what this
/// machine can do, measured before and after each repetition: of the memory's bandwidth where tokens are generated, of the
/// 8-bit multiply-adds where prompts are read.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    #[arg(required_unless_present = "server")]
    model: Option<PathBuf>,
    #[command(flatten)]
    load: LoadArgs,
    /// Tokens of a prompt; several as 64,512; 0 for no such test
    #[arg(short = 'p', long, value_delimiter = ',', default_value = "512")]
    n_prompt: Vec<usize>,
    /// Tokens to generate
    #[arg(short = 'n', long, value_delimiter = ',', default_value = "128")]
    n_gen: Vec<usize>,
    /// Tokens that are in the KV cache before the test begins
    #[arg(short = 'd', long, value_delimiter = ',', default_value = "0")]
    n_depth: Vec<usize>,
    /// Sequences that generate at once, as 1,2,4,8: tests of --npp and --ntg, in place of -p, -n and -d
    #[arg(long, value_delimiter = ',')]
    npl: Vec<usize>,
    /// Tokens of the prompt of each of the sequences
    #[arg(long, value_delimiter = ',', default_value = "32")]
    npp: Vec<usize>,
    /// Tokens that each of the sequences generates
    #[arg(long, value_delimiter = ',', default_value = "32")]
    ntg: Vec<usize>,
    /// Threads [default: as many as this process may use]
    #[arg(short, long, value_delimiter = ',')]
    threads: Vec<usize>,
    /// Repetitions of each test
    #[arg(short, long, default_value_t = 5)]
    repetitions: usize,
    /// Begin to measure at once, without a run that does not count
    #[arg(long)]
    no_warmup: bool,
    /// Tokens of a prompt that run in one pass
    #[arg(short = 'b', long, default_value_t = 512)]
    batch_size: usize,
    /// Type of keys and values in the cache: f16, q8_0 or f32
    #[arg(long, visible_alias = "ctk", visible_alias = "kv", default_value = "f16", value_parser = kv_type)]
    cache_type_k: KvType,
    /// The same, for whoever says it twice
    #[arg(long, alias = "ctv", value_parser = kv_type, hide = true)]
    cache_type_v: Option<KvType>,
    /// Experts that work on each token, as 1,2,4: what each costs [default: the model's own number]
    #[arg(long, value_name = "K", value_delimiter = ',')]
    experts_per_token: Vec<usize>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Options that llama-bench writes with one dash.
const ONE_DASH: [&str; 5] = ["npp", "ntg", "npl", "ctk", "ctv"];

/// The command line with llama-bench's spelling made ours: `-npl` is `--npl` in `octet bench`.
pub fn spelled_as_ours(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let line: Vec<OsString> = line.into_iter().collect();
    if line.get(1).is_none_or(|command| command != "bench") {
        return line;
    }
    let ours = |word: OsString| match word.to_str().and_then(|word| word.strip_prefix('-')) {
        Some(name) if ONE_DASH.contains(&name.split('=').next().unwrap_or_default()) => format!("--{name}").into(),
        _ => word,
    };
    line.into_iter().map(ours).collect()
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Some(path) = &args.model else {
        return crate::load::run(&args.load, args.load.server.as_deref().unwrap_or_default(), args.json);
    };
    args.check()?;
    let checkpoint = Arc::new(Checkpoint::open(path)?);
    let mut rows = Vec::new();
    let reads = ReadTest::new();
    for threads in args.thread_counts() {
        let model = load(&checkpoint, threads)?;
        for setting in args.settings(model.config().num_experts_per_tok) {
            let mut limits = Limits::default();
            let samples = measure::run(&model, &setting, &mut || limits.measure(&reads, model.pool()))?;
            let resident = machine::resident_bytes().map(|bytes| bytes.saturating_sub(reads.resident_bytes()));
            let row = Row::new(path, &checkpoint, &model, &setting, &limits, resident, &samples);
            if !args.json {
                row::print(&row, rows.is_empty())?;
            }
            rows.push(row);
        }
    }
    if args.json { stdout::print_json(&rows) } else { Ok(()) }
}

fn load(checkpoint: &Arc<Checkpoint>, threads: usize) -> anyhow::Result<Transformer> {
    let progress = Progress::new("loading");
    let mut report = |done, total| progress.at(done, total);
    let options = LoadOptions { progress: Some(&mut report), packing: Packing::AtOnce, ..Default::default() };
    let model = Transformer::load(checkpoint.clone(), threads, options)?;
    progress.finish();
    Ok(model)
}

impl Args {
    fn check(&self) -> anyhow::Result<()> {
        let at_least_one = [
            ("--repetitions", self.repetitions),
            ("--batch-size", self.batch_size),
            ("--threads", self.threads.iter().copied().min().unwrap_or(1)),
            ("--npl", self.npl.iter().copied().min().unwrap_or(1)),
            ("--experts-per-token", self.experts_per_token.iter().copied().min().unwrap_or(1)),
        ];
        if let Some((flag, _)) = at_least_one.into_iter().find(|&(_, value)| value == 0) {
            bail!("{flag} is 0; it has to be 1 or more");
        }
        if self.cache_type_v.is_some_and(|v| v != self.cache_type_k) {
            bail!("-ctv differs from -ctk; keys and values are kept in one type");
        }
        if self.tests().is_empty() {
            let (prompt, generate) = if self.npl.is_empty() { ("-p", "-n") } else { ("--npp", "--ntg") };
            bail!(
                "{prompt} and {generate} are 0, so there is nothing to measure; give one of them tokens, as {prompt} 512"
            );
        }
        Ok(())
    }

    fn thread_counts(&self) -> Vec<usize> {
        if self.threads.is_empty() { vec![octet_kernels::cpu::available_threads()] } else { self.threads.clone() }
    }

    /// Every test under every setting, in the order in which llama-bench runs them.
    fn settings(&self, own_experts: usize) -> Vec<Setting> {
        let experts =
            if self.experts_per_token.is_empty() { vec![own_experts] } else { self.experts_per_token.clone() };
        let tests = self.tests();
        let setting = |experts_per_token, test| Setting {
            test,
            experts_per_token,
            batch_size: self.batch_size,
            kv: self.cache_type_k,
            repetitions: self.repetitions,
            warmup: !self.no_warmup,
        };
        experts.iter().flat_map(|&experts| tests.iter().map(move |&test| setting(experts, test))).collect()
    }

    /// The tests that have something to measure.
    fn tests(&self) -> Vec<Test> {
        let mut tests = if self.npl.is_empty() { self.single_tests() } else { self.batched_tests() };
        tests.retain(|test| {
            let (_, _, n_prompt, n_gen) = test.sizes();
            n_prompt + n_gen > 0
        });
        tests
    }

    fn single_tests(&self) -> Vec<Test> {
        let of_depth = |depth| {
            let prompts = self.n_prompt.iter().map(move |&n_prompt| Test::Single { depth, n_prompt, n_gen: 0 });
            prompts.chain(self.n_gen.iter().map(move |&n_gen| Test::Single { depth, n_prompt: 0, n_gen }))
        };
        self.n_depth.iter().flat_map(|&depth| of_depth(depth)).collect()
    }

    fn batched_tests(&self) -> Vec<Test> {
        let mut tests = Vec::new();
        for &pp in &self.npp {
            for &tg in &self.ntg {
                tests.extend(self.npl.iter().map(|&pl| Test::Batched { pp, tg, pl }));
            }
        }
        tests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_dash_is_enough_where_llama_bench_has_one() {
        let words = |line: &str| spelled_as_ours(line.split(' ').map(OsString::from));
        assert_eq!(
            words("octet bench m -npl 1,2 -ctk=q8_0 -p 3"),
            ["octet", "bench", "m", "--npl", "1,2", "--ctk=q8_0", "-p", "3"]
        );
        assert_eq!(words("octet chat -ctk"), ["octet", "chat", "-ctk"]);
    }
}
