//! `octet finetune`: continued pretraining, supervised fine-tuning and DPO.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, bail};
use octet_checkpoint::Checkpoint;
use octet_tokenizer::Tokenizer;
use octet_train::dataset::{Dataset, Example};
use octet_train::snapshot::Best;
use octet_train::task::Task;
use octet_train::trainer::{Ending, Event, Settings, Trainer, Wish};
use octet_train::{AdapterUse, Tuned};

use crate::{footprint, format, machine, output, stdout};
use data::{DataOptions, Method, Samples};
use settings::{DpoOptions, LoopOptions};

mod check;
mod data;
pub mod forecast;
mod model;
mod reading;
mod record;
mod reference;
mod room;
mod settings;
mod view;

pub use model::{balance_coefficient, target};

/// Learn from texts, conversations or preferences
///
/// DATA is JSONL, Parquet, a folder of those, or - for standard input; rows are {"text"}, {"messages"}, {"prompt",
/// "completion"} or {"prompt", "chosen", "rejected"}. OUT gets the adapter in PEFT's format, or with --all the whole model;
/// metrics.jsonl, TensorBoard's event files, curve.svg; and snapshots, from which --resume goes on.
#[derive(clap::Args)]
pub struct Args {
    /// Folder or file of the checkpoint
    model: PathBuf,
    /// JSONL, Parquet or text file, a folder of those, or - for standard input
    data: PathBuf,
    /// Folder to write
    #[arg(short, long, value_name = "OUT", required_unless_present_any = ["check", "evaluate"])]
    out: Option<PathBuf>,
    /// Print the loss on DATA, as JSON, and learn nothing; --adapter names an adapter to use
    #[arg(long, conflicts_with_all = ["out", "check", "resume", "eval"])]
    evaluate: bool,
    /// Report lengths, cuts, template and what is learned, with samples, and stop
    #[arg(long)]
    check: bool,
    /// What to learn: text (every token of plain texts), sft (answers) or dpo (preferences) [default: what the first row is]
    #[arg(long, value_parser = ["text", "sft", "dpo"])]
    method: Option<String>,
    #[command(flatten)]
    data_options: DataOptions,
    #[command(flatten)]
    targets: model::TargetOptions,
    #[command(flatten)]
    loop_options: LoopOptions,
    #[command(flatten)]
    dpo: DpoOptions,
    /// Held-out data in the same shapes, to evaluate on
    #[arg(long, value_name = "DATA")]
    eval: Option<PathBuf>,
    /// Steps between evaluations, and after the last
    #[arg(long, value_name = "N", default_value_t = 50)]
    eval_every: u64,
    /// End after this many evaluations without a gain
    #[arg(long, value_name = "N", requires = "eval")]
    patience: Option<u32>,
    /// Steps between snapshots, and after the last
    #[arg(long, value_name = "N", default_value_t = 50)]
    save_every: u64,
    /// Go on from the last snapshot in OUT
    #[arg(long)]
    resume: bool,
    /// Threads [default: as many as this process may use]
    #[arg(short, long)]
    threads: Option<usize>,
    /// Start even where the run is predicted not to fit in memory
    #[arg(long)]
    load_anyway: bool,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<()> {
    check_numbers(&args)?;
    let checkpoint = Arc::new(Checkpoint::open(&args.model)?);
    let tokenizer = Tokenizer::of_checkpoint(&checkpoint)?;
    let dataset = data::read(&args.data)?;
    let method = method(&args, &dataset)?;
    let chat = data::format(&tokenizer, &args.data_options)?;
    let samples = data::samples(dataset, method, &tokenizer, chat.as_ref(), &args.data_options);
    if args.check {
        let limits = (args.data_options.max_length, args.loop_options.batch);
        stdout::print(&check::report(&samples, method, &tokenizer, chat.as_ref(), limits))?;
    }
    data::refuse_bad(&samples, args.data_options.skip_bad, &args.data)?;
    if args.evaluate {
        return evaluate(&args, &checkpoint, method, samples);
    }
    let held_out = match &args.eval {
        Some(source) => {
            let samples = data::samples(data::read(source)?, method, &tokenizer, chat.as_ref(), &args.data_options);
            data::refuse_bad(&samples, args.data_options.skip_bad, source)?;
            Some(samples)
        }
        None => None,
    };
    let element_type = footprint::types_of(&checkpoint, None);
    let run = reading::run(&args, &checkpoint, &element_type)?;
    let reading = reading::reading(&args, &run, method, &samples, held_out.as_ref());
    if args.check {
        return stdout::print(&check::forecast(&run.forecast(&reading, machine::memory())?));
    }
    let out = args.out.as_deref().context("--out is missing: say where the result is to go")?;
    room::check_memory(&args, &run, &reading, &samples)?;
    room::check_disk(out, run.trained())?;
    train((&args, out), &checkpoint, method, samples, held_out)
}

fn check_numbers(args: &Args) -> anyhow::Result<()> {
    args.loop_options.check()?;
    if args.data_options.max_length < 2 {
        bail!("--max-length {} is too short: a token is predicted from those before it", args.data_options.max_length);
    }
    if args.eval_every == 0 || args.save_every == 0 || args.patience == Some(0) || args.threads == Some(0) {
        bail!("--eval-every, --save-every, --patience and --threads have to be 1 or more");
    }
    if args.eval.as_deref() == Some(Path::new("-")) && args.data == Path::new("-") {
        bail!("--eval and DATA cannot both be standard input");
    }
    Ok(())
}

/// The method that was asked for, or the one that the first row is made for.
fn method(args: &Args, dataset: &Dataset) -> anyhow::Result<Method> {
    match args.method.as_deref() {
        Some("dpo") => Ok(Method::Dpo),
        Some(_) => Ok(Method::NextToken),
        None => match dataset.rows.first().map(|row| &row.example) {
            Some(Example::Pair(_)) => Ok(Method::Dpo),
            Some(_) => Ok(Method::NextToken),
            None => match dataset.bad.first() {
                Some(bad) => bail!("{bad}"),
                None => bail!("{}: is empty", args.data.display()),
            },
        },
    }
}

fn train(
    (args, out): (&Args, &Path),
    checkpoint: &Arc<Checkpoint>,
    method: Method,
    samples: Samples,
    held_out: Option<Samples>,
) -> anyhow::Result<()> {
    prepare(args, out, checkpoint)?;
    let fingerprint = fingerprint(args, checkpoint, &samples)?;
    let mut model = model::open(checkpoint, &args.targets, args.threads, args.loop_options.seed)?;
    let references =
        reference::Cache { folder: out, fingerprint: &fingerprint, pass_tokens: args.loop_options.pass_tokens };
    let begins = what_begins(&samples, &model);
    let (order, total_steps) = args.loop_options.order(samples.len());
    let train = task(args, method, samples, &mut model, (&references, "train", order.visited(total_steps)))?;
    let held_out = held_out.map(|samples| {
        let all = (0..samples.len()).collect();
        task(args, method, samples, &mut model, (&references, "eval", all))
    });
    let held_out = held_out.transpose()?;
    let settings = Settings {
        order,
        schedule: args.loop_options.schedule(total_steps, model::default_rate(&args.targets, method)),
        adamw: args.loop_options.adamw(),
        max_norm: Some(args.loop_options.clip).filter(|&norm| norm > 0.0),
        pass_tokens: args.loop_options.pass_tokens,
        balance: balance(args, checkpoint),
        evaluate_every: held_out.is_some().then_some(args.eval_every),
        patience: args.patience,
        save_every: args.save_every,
        snapshots: out.join("snapshots"),
        fingerprint,
    };
    let (ending, best) = watch((args, out, &begins), settings, &mut model, &train, held_out.as_ref())?;
    if ending == Ending::Stopped {
        return Ok(());
    }
    if best.is_some() {
        model::take_best(&mut model, &model::best(out))?;
        output::tell("the result is that of the best evaluation");
    }
    let written = model::write(&model, &args.model, out)?;
    output::tell(&format!("wrote {written}"));
    Ok(())
}

/// Prints what the model makes of the samples. Preferences are compared with nothing: there is no other model here.
fn evaluate(args: &Args, checkpoint: &Arc<Checkpoint>, method: Method, samples: Samples) -> anyhow::Result<()> {
    let mut model = model::open_to_ask(checkpoint, &args.targets, args.threads)?;
    let task = match method {
        Method::NextToken => Task::NextToken(samples.single),
        Method::Dpo => Task::Preference { pairs: samples.pairs, loss: args.dpo.preference()?, reference: None },
    };
    let all: Vec<usize> = (0..task.len()).collect();
    let outcome = task.observe(&mut model, &all, args.loop_options.pass_tokens).map_err(anyhow::Error::msg)?;
    let loss = outcome.mean_loss();
    let mut report = serde_json::json!({"loss": loss, "tokens": outcome.tokens});
    match outcome.preferences() {
        Some((accuracy, margin)) => {
            report["accuracy"] = accuracy.into();
            report["margin"] = margin.into();
        }
        None => report["perplexity"] = loss.exp().into(),
    }
    if let Some(entropy) = outcome.routers.mean_entropy() {
        report["expert_load"] = outcome.routers.load().into();
        report["expert_load_of_layers"] = outcome.routers.load_of_layers().into();
        report["router_entropy"] = entropy.into();
    }
    stdout::print_json(&report)
}

/// Goes on from the last snapshot, if that is asked for.
fn resume(args: &Args, out: &Path, trainer: &mut Trainer<'_>) -> anyhow::Result<()> {
    if !args.resume {
        return Ok(());
    }
    if !trainer.resume()? {
        output::tell(&format!("{} holds no snapshot; starting anew", out.display()));
        return model::forget_best(&model::best(out));
    }
    if trainer.state().best.is_some() { model::check_best(&model::best(out)) } else { Ok(()) }
}

/// Runs the loop under the user's eyes. Gives the best evaluation too, if there was one.
fn watch(
    (args, out, begins): (&Args, &Path, &[String]),
    settings: Settings,
    model: &mut Tuned,
    train: &Task,
    held_out: Option<&Task>,
) -> anyhow::Result<(Ending, Option<Best>)> {
    let total = settings.schedule.total_steps;
    let best = model::best(out);
    let mut trainer = Trainer::new(settings, model, train, held_out);
    resume(args, out, &mut trainer)?;
    begins.iter().for_each(|note| output::tell(note));
    let done = trainer.state().step;
    let mut tokens = trainer.state().tokens;
    let mut record = record::Record::open(out, done)?;
    let mut view = view::View::new(done, total);
    let asked_to_stop = stop_on_interrupt()?;
    let mut failed = None;
    let mut watcher = |event: Event<'_>| {
        let written = match event {
            Event::Step(report) => {
                tokens += report.outcome.tokens;
                view.step(report);
                record.step(report, tokens)
            }
            Event::Evaluated { step, outcome, is_best } => {
                view.evaluation(step, outcome, is_best);
                record.evaluation(step, outcome)
            }
        };
        failed = written.err().or(failed.take());
        if failed.is_some() || asked_to_stop.load(Ordering::Relaxed) { Wish::Stop } else { Wish::Continue }
    };
    let ending = trainer.run(&mut watcher, &mut |learner| model::keep_best(learner, &best))?;
    let (step, found) = (trainer.state().step, trainer.state().best);
    view.finish();
    if let Some(error) = failed {
        return Err(error);
    }
    let title = format!("{}: loss of {} steps", output::model_name(out), format::count(step));
    let curve = record.draw(out, &title)?;
    match ending {
        Ending::Stopped => output::tell(&format!(
            "stopped after step {step} of {total}; the same command with --resume goes on from there"
        )),
        Ending::NoGain => output::tell(&format!("the held-out loss fell no more; stopped after step {step}")),
        Ending::Finished => {}
    }
    output::tell(&format!("{} shows the loss", curve.display()));
    Ok((ending, found))
}

/// Ctrl-C asks the run to stop after its step; a second one ends the program at once.
fn stop_on_interrupt() -> anyhow::Result<Arc<AtomicBool>> {
    let asked = Arc::new(AtomicBool::new(false));
    let flag = asked.clone();
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("note: stopping after this step; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(asked)
}

/// What is trained and what was left out, to be told once nothing stands in the way any more.
fn what_begins(samples: &Samples, model: &Tuned) -> Vec<String> {
    let trained = model.model().parameters().n_values() as u64;
    let all = model.model().checkpoint().params().n_parameters();
    let share = 100.0 * trained as f64 / all as f64;
    let [trained, all] = [trained, all].map(format::count);
    let mut notes = vec![format!("{trained} numbers are trained, for a model of {all} ({share:.3}%)")];
    let Samples { bad, n_too_long, n_dropped, .. } = samples;
    if !bad.is_empty() || *n_too_long > 0 || *n_dropped > 0 {
        let bad = bad.len();
        notes.push(format!("{bad} wrong rows were left out; {n_too_long} samples were too long, {n_dropped} left out"));
    }
    notes
}

/// Refuses an output that holds something, unless it is to be gone on with.
fn prepare(args: &Args, out: &Path, checkpoint: &Checkpoint) -> anyhow::Result<()> {
    output::refuse_inside(out, checkpoint)?;
    let is_there =
        out.exists() && (!out.is_dir() || std::fs::read_dir(out).is_ok_and(|mut files| files.next().is_some()));
    if is_there && !args.resume {
        bail!("{}: is there already; choose another --out, or go on with it by --resume", out.display());
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))
}

/// The coefficient of the load-balancing loss.
fn balance(args: &Args, checkpoint: &Checkpoint) -> f32 {
    args.loop_options.balance.unwrap_or_else(|| balance_coefficient(checkpoint.params()))
}

/// Everything that another run would have in another way: a run goes on only where all of it is the same.
fn fingerprint(args: &Args, checkpoint: &Checkpoint, samples: &Samples) -> anyhow::Result<String> {
    use sha2::{Digest, Sha256};
    let mut hash = Sha256::new();
    for line in output::identity(checkpoint)? {
        hash.update(line);
    }
    for sample in samples.sequences() {
        sample.tokens.iter().for_each(|id| hash.update(id.to_le_bytes()));
        sample.learned.iter().for_each(|&learned| hash.update([u8::from(learned)]));
    }
    let LoopOptions {
        epochs,
        steps,
        batch,
        pass_tokens,
        rate,
        schedule,
        warmup,
        floor,
        weight_decay,
        clip,
        balance: _,
        masters,
        seed,
    } = &args.loop_options;
    hash.update(format!(
        "{epochs} {steps:?} {batch} {pass_tokens} {rate:?} {schedule:?} {warmup} {floor} {weight_decay} {clip}"
    ));
    let balance = balance(args, checkpoint);
    hash.update(format!("{balance} {masters} {seed} {:?} {:?}", args.dpo.preference()?, args.targets));
    if args.dpo.base_reference {
        hash.update("base reference");
    }
    Ok(crate::format::hex(&hash.finalize()))
}

fn task(
    args: &Args,
    method: Method,
    samples: Samples,
    model: &mut Tuned,
    (references, name, wanted): (&reference::Cache<'_>, &str, Vec<usize>),
) -> anyhow::Result<Task> {
    if method == Method::NextToken {
        return Ok(Task::NextToken(samples.single));
    }
    let loss = args.dpo.preference()?;
    model.observe_with(if args.dpo.base_reference { AdapterUse::Off } else { AdapterUse::On });
    let reference = match args.dpo.reference_free {
        true => None,
        false => Some(references.get(name, model, &samples.pairs, &wanted)?),
    };
    model.observe_with(AdapterUse::On);
    Ok(Task::Preference { pairs: samples.pairs, loss, reference })
}
