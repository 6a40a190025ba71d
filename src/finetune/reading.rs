//! What a run will go through, from its options and samples: the same steps, cut into the same passes.

use std::ops::Range;

use octet_checkpoint::{Checkpoint, ElementType, TensorName};
use octet_model::Adapter;
use octet_train::pace::{Passes, Unit};
use octet_train::packing::Order;
use octet_train::sample::Sample;

use super::Args;
use super::data::{Method, Samples};
use super::forecast::{Reading, Run};
use super::model::lora;

/// What the options train, and how.
///
/// # Errors
/// An adapter that cannot be read.
pub fn run<'a>(
    args: &Args,
    checkpoint: &'a Checkpoint,
    element_type: &'a dyn Fn(TensorName) -> ElementType,
) -> anyhow::Result<Run<'a>> {
    let params = checkpoint.params();
    let lora = match &args.targets.adapter {
        _ if args.targets.all => None,
        Some(folder) => Some(Adapter::read(folder, params)?.options),
        None => Some(lora(&args.targets, 0)),
    };
    let (keep_bytes, pass_tokens) = (args.targets.keep << 20, args.loop_options.pass_tokens);
    Ok(Run { params, element_type, lora, keep_bytes, pass_tokens, threads: args.threads })
}

/// The run's steps, evaluations and look at the reference.
pub fn reading(args: &Args, run: &Run<'_>, method: Method, samples: &Samples, held_out: Option<&Samples>) -> Reading {
    let units = units(samples, method);
    if units.is_empty() {
        return Reading::default();
    }
    let (order, steps) = args.loop_options.order(units.len());
    let mut reading = Reading {
        steps,
        learn: learned(run, &order, steps, &units),
        look: Passes::default(),
        sequence_tokens: sequence_tokens(&samples.sequences()),
        pairs: method == Method::Dpo,
    };
    if method == Method::Dpo && !args.dpo.reference_free {
        let asked: Vec<Unit> = order.visited(steps).into_iter().map(|index| units[index]).collect();
        reading.look.add(&asked, run.pass_tokens, |_| 0);
    }
    if let Some(held_out) = held_out.map(|samples| self::units(samples, method)) {
        let mut once = Passes::default();
        once.add(&held_out, run.pass_tokens, |_| 0);
        let times = steps.div_ceil(args.eval_every) + u64::from(method == Method::Dpo && !args.dpo.reference_free);
        reading.look = reading.look.and(once.times(times));
    }
    reading
}

/// Samples that are gone through one by one; of longer runs the first epoch stands for the others.
const EXACT: u64 = 1_000_000;

/// All passes of the run's steps.
fn learned(run: &Run<'_>, order: &Order, steps: u64, units: &[Unit]) -> Passes {
    let sum = |steps: Range<u64>| {
        let mut passes = Passes::default();
        for step in order.steps(steps) {
            let units: Vec<Unit> = step.into_iter().map(|index| units[index]).collect();
            passes.add(&units, run.pass_tokens, |tokens| run.layers_again(tokens));
        }
        passes
    };
    if steps.saturating_mul(order.per_step as u64) <= EXACT {
        return sum(0..steps);
    }
    let epochs = steps / order.steps_per_epoch();
    let whole = sum(0..order.steps_per_epoch().min(steps)).times(epochs.max(1));
    let rest = if epochs > 0 { sum(epochs * order.steps_per_epoch()..steps) } else { Passes::default() };
    Passes { longest: longest_pass(units, order.per_step, run.pass_tokens), ..whole.and(rest) }
}

/// Tokens that no pass exceeds, in whatever order the samples come.
fn longest_pass(units: &[Unit], per_step: usize, pass_tokens: usize) -> usize {
    let mut lengths: Vec<usize> = units.iter().map(|unit| unit.tokens).collect();
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let step: usize = lengths.iter().take(per_step).sum();
    step.min(pass_tokens.max(lengths[0]))
}

fn units(samples: &Samples, method: Method) -> Vec<Unit> {
    let unit = |sequences: &[&Sample]| Unit {
        tokens: sequences.iter().map(|sample| sample.tokens.len()).sum(),
        learned: sequences.iter().map(|sample| sample.n_learned()).sum(),
    };
    match method {
        Method::NextToken => samples.single.iter().map(|sample| unit(&[sample])).collect(),
        Method::Dpo => samples.pairs.iter().map(|pair| unit(&[&pair.chosen, &pair.rejected])).collect(),
    }
}

/// The length of the sequence that a token is in, in the mean over tokens.
fn sequence_tokens(sequences: &[&Sample]) -> usize {
    let (mut squares, mut sum) = (0, 0);
    for length in sequences.iter().map(|sample| sample.tokens.len()) {
        squares += length * length;
        sum += length;
    }
    squares.checked_div(sum).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_like_their_first_epoch() {
        let params = crate::synth::params_of("mixtral-8x7b").unwrap();
        let element_type = |_| ElementType::BF16;
        let run = Run {
            params: &params,
            element_type: &element_type,
            lora: None,
            keep_bytes: 0,
            pass_tokens: 100,
            threads: None,
        };
        let units: Vec<Unit> = (0..10).map(|i| Unit { tokens: 10 + i, learned: 1 }).collect();
        let order = Order { n_samples: 10, per_step: 3, seed: 1 };
        let exact = learned(&run, &order, 7, &units);
        let tokens: usize = order.steps(0..7).flatten().map(|index| units[index].tokens).sum();
        assert_eq!((exact.tokens, exact.count), (tokens as u64, 7));
        assert!(exact.longest <= longest_pass(&units, 3, 100));
        let long = learned(&run, &order, 4_000_001, &units);
        let first = order.steps(4_000_000..4_000_001).flatten().map(|index| units[index].tokens).sum::<usize>();
        assert_eq!((long.tokens, long.count), (145_000_000 + first as u64, 4_000_001));
        assert_eq!(long.longest, 54, "19 + 18 + 17, in whatever order");
    }

    #[test]
    fn no_pass_is_longer_than_the_longest() {
        let units: Vec<Unit> = [10, 90, 30, 20].map(|tokens| Unit { tokens, learned: tokens }).into();
        assert_eq!(longest_pass(&units, 2, 2048), 120, "a step has fewer tokens than a pass may have");
        assert_eq!(longest_pass(&units, 4, 100), 100);
        assert_eq!(longest_pass(&units, 4, 50), 90, "a sample is never cut");
    }
}
