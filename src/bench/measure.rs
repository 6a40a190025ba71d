//! The tests themselves: what is run, and how long it takes.

use std::time::{Duration, Instant};

use octet_engine::Random;
use octet_kernels::KvType;
use octet_model::{Batch, KvCache, Logits, Nothing, SequenceId, Transformer, Workspace};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// One sequence that has `depth` tokens: a prompt is read, then tokens are generated. As llama-bench does.
    Single { depth: usize, n_prompt: usize, n_gen: usize },
    /// `pl` sequences at once: each reads a prompt of `pp` tokens and generates `tg`. As llama-batched-bench does.
    Batched { pp: usize, tg: usize, pl: usize },
}

/// A test and how it is run.
pub struct Setting {
    pub test: Test,
    pub experts_per_token: usize,
    /// Tokens of a prompt that run in one pass.
    pub batch_size: usize,
    pub kv: KvType,
    pub repetitions: usize,
    /// Whether a run that does not count comes first.
    pub warmup: bool,
}

/// What one repetition took.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Time to read the prompts.
    pub prompt: Duration,
    /// Time to generate.
    pub generation: Duration,
}

impl Test {
    /// Sequences, tokens that each has before the test, tokens of its prompt, tokens to generate.
    pub fn sizes(self) -> (usize, usize, usize, usize) {
        match self {
            Test::Single { depth, n_prompt, n_gen } => (1, depth, n_prompt, n_gen),
            Test::Batched { pp, tg, pl } => (pl, 0, pp, tg),
        }
    }

    /// How many of the tokens whose speed is told give logits: of a prompt the last one, else all.
    pub fn logits_per_token(self) -> f64 {
        match self {
            Test::Single { n_prompt, n_gen, .. } => (n_prompt.min(1) + n_gen) as f64 / (n_prompt + n_gen).max(1) as f64,
            Test::Batched { .. } => 1.0,
        }
    }
}

/// Runs a test and gives a sample of each repetition that counts; calls `between` before each of them and after the last.
pub fn run(model: &Transformer, setting: &Setting, between: &mut dyn FnMut()) -> anyhow::Result<Vec<Sample>> {
    let (n_sequences, depth, n_prompt, n_gen) = setting.test.sizes();
    let tokens_each = (depth + n_prompt + n_gen).next_multiple_of(KvCache::PAGE_TOKENS);
    let mut cache = KvCache::new(model.config(), setting.kv, n_sequences * tokens_each)?;
    let sequences = (0..n_sequences).map(|_| cache.add_sequence()).collect();
    let mut bench = Bench {
        model,
        setting,
        sequences,
        cache,
        workspace: Workspace::default(),
        batch: Batch::default(),
        tokens: Vec::new(),
        random: Random::new(1),
    };
    bench.prompts(depth)?;
    let mut samples = Vec::new();
    let first = if setting.warmup { 0 } else { 1 };
    for repetition in first..=setting.repetitions {
        bench.forget_after(depth);
        if repetition > 0 {
            between();
        }
        let sample = bench.repetition(n_prompt, n_gen)?;
        if repetition > 0 {
            samples.push(sample);
        }
    }
    between();
    Ok(samples)
}

struct Bench<'a> {
    model: &'a Transformer,
    setting: &'a Setting,
    sequences: Vec<SequenceId>,
    cache: KvCache,
    workspace: Workspace,
    batch: Batch,
    tokens: Vec<u32>,
    random: Random,
}

impl Bench<'_> {
    fn repetition(&mut self, n_prompt: usize, n_gen: usize) -> anyhow::Result<Sample> {
        let start = Instant::now();
        self.prompts(n_prompt)?;
        let prompt = start.elapsed();
        for _ in 0..n_gen {
            self.begin();
            for index in 0..self.sequences.len() {
                self.push(index, 1, Logits::Last);
            }
            self.forward()?;
        }
        Ok(Sample { prompt, generation: start.elapsed() - prompt })
    }

    /// Reads `n_tokens` tokens in every sequence, one sequence after the other, as many in a pass as `batch_size` allows.
    fn prompts(&mut self, n_tokens: usize) -> anyhow::Result<()> {
        self.begin();
        for index in 0..self.sequences.len() {
            let mut left = n_tokens;
            while left > 0 {
                let n = left.min(self.setting.batch_size - self.batch.tokens.len());
                left -= n;
                self.push(index, n, if left == 0 { Logits::Last } else { Logits::None });
                if self.batch.tokens.len() == self.setting.batch_size {
                    self.forward()?;
                    self.begin();
                }
            }
        }
        if self.batch.tokens.is_empty() { Ok(()) } else { self.forward() }
    }

    fn forget_after(&mut self, depth: usize) {
        self.sequences.iter().for_each(|&sequence| self.cache.truncate(sequence, depth));
    }

    fn begin(&mut self) {
        self.batch.clear();
        self.batch.experts_per_token = Some(self.setting.experts_per_token);
    }

    /// Adds random tokens of a sequence to the pass.
    fn push(&mut self, index: usize, n_tokens: usize, wanted: Logits) {
        let vocab_size = self.model.config().vocab_size as u64;
        let random = &mut self.random;
        self.tokens.clear();
        self.tokens.extend((0..n_tokens).map(|_| (random.bits() % vocab_size) as u32));
        self.batch.push(self.sequences[index], &self.tokens, wanted);
    }

    fn forward(&mut self) -> anyhow::Result<()> {
        self.model.forward(&self.batch, &mut self.cache, &mut self.workspace, &mut Nothing)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_token_of_a_prompt_gives_logits() {
        let single = |n_prompt, n_gen| Test::Single { depth: 4096, n_prompt, n_gen }.logits_per_token();
        assert_eq!((single(512, 0), single(0, 32), single(30, 2)), (1.0 / 512.0, 1.0, 3.0 / 32.0));
        assert_eq!(Test::Batched { pp: 128, tg: 32, pl: 4 }.logits_per_token(), 1.0);
    }
}
