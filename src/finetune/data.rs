//! From files to samples, with what was wrong on the way.

use std::path::{Path, PathBuf};

use anyhow::bail;
use octet_tokenizer::{ChatFormat, Tokenizer};
use octet_train::dataset::{self, BadRow, Dataset, Example};
use octet_train::sample::{PairSample, Sample, SampleMaker, TooLong};

/// How rows become samples.
#[derive(clap::Args)]
pub struct DataOptions {
    /// Tokens of a sample at most; longer plain texts become several samples
    #[arg(long, value_name = "N", default_value_t = 1024)]
    pub max_length: usize,
    /// What happens to longer conversations: refuse (the run does not start), cut (their end) or drop
    #[arg(long, value_name = "RULE", default_value = "refuse", value_parser = too_long)]
    pub too_long: TooLong,
    /// Leave out rows that are wrong in place of refusing them; they are counted
    #[arg(long)]
    pub skip_bad: bool,
    /// Format of conversations in place of the model's own: v1, v2, v3 or chatml
    #[arg(long, value_name = "NAME", conflicts_with = "template")]
    pub format: Option<String>,
    /// Jinja template of conversations in place of the model's own
    #[arg(long, value_name = "FILE")]
    pub template: Option<PathBuf>,
}

fn too_long(name: &str) -> Result<TooLong, String> {
    match name {
        "refuse" => Ok(TooLong::Refuse),
        "cut" => Ok(TooLong::CutEnd),
        "drop" => Ok(TooLong::Drop),
        _ => Err("choose refuse, cut or drop".into()),
    }
}

/// What is learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Every token of plain texts, and answers in conversations.
    NextToken,
    /// Preferences.
    Dpo,
}

/// Samples out of one source.
#[derive(Default)]
pub struct Samples {
    /// Of texts and conversations.
    pub single: Vec<Sample>,
    /// Of preference pairs.
    pub pairs: Vec<PairSample>,
    /// Rows that gave nothing, and why.
    pub bad: Vec<BadRow>,
    /// Rows by shape: texts, conversations, pairs.
    pub shapes: [usize; 3],
    /// Samples longer than the limit.
    pub n_too_long: usize,
    /// Samples that were left out.
    pub n_dropped: usize,
}

impl Samples {
    /// How many samples there are, of whichever kind was made; a pair is one.
    pub fn len(&self) -> usize {
        self.single.len() + self.pairs.len()
    }

    /// All sequences, a pair's two among them.
    pub fn sequences(&self) -> Vec<&Sample> {
        let pairs = self.pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]);
        self.single.iter().chain(pairs).collect()
    }
}

/// The format in which conversations are written; `None` if nothing tells.
pub fn format(tokenizer: &Tokenizer, options: &DataOptions) -> anyhow::Result<Option<ChatFormat>> {
    match (&options.format, &options.template) {
        (None, None) => Ok(ChatFormat::for_tokenizer(tokenizer).ok()),
        (name, file) => crate::render::chosen_format(tokenizer, name.as_deref(), file.as_deref()).map(Some),
    }
}

/// Reads a file, a folder, or standard input for `-`.
pub fn read(source: &Path) -> anyhow::Result<Dataset> {
    let dataset = if source == Path::new("-") {
        dataset::read_from(std::io::stdin().lock(), Path::new("standard input"))
    } else {
        dataset::read(source)
    };
    dataset.map_err(anyhow::Error::msg)
}

/// Makes samples of every row. Rows that do not fit the method, or are too long where that is refused, join the bad ones.
pub fn samples(
    dataset: Dataset,
    method: Method,
    tokenizer: &Tokenizer,
    format: Option<&ChatFormat>,
    options: &DataOptions,
) -> Samples {
    let mut samples = Samples { bad: dataset.bad, ..Samples::default() };
    let mut maker = SampleMaker::new(tokenizer, format, options.max_length, options.too_long);
    for row in dataset.rows {
        samples.shapes[match row.example {
            Example::Text(_) => 0,
            Example::Chat(_) => 1,
            Example::Pair(_) => 2,
        }] += 1;
        let made = match method {
            Method::NextToken => maker.samples(&row).map(|made| samples.single.extend(made)),
            Method::Dpo => maker.pair(&row).map(|made| samples.pairs.extend(made)),
        };
        if let Err(problem) = made {
            let prefix = format!("{}: ", row.origin);
            let problem = problem.strip_prefix(&prefix).unwrap_or(&problem).to_owned();
            samples.bad.push(BadRow { origin: row.origin, problem });
        }
    }
    (samples.n_too_long, samples.n_dropped) = (maker.n_too_long, maker.n_dropped);
    samples
}

/// Refuses what cannot be learned from: wrong rows unless they are skipped, and data in which nothing is learned.
pub fn refuse_bad(samples: &Samples, skip_bad: bool, source: &Path) -> anyhow::Result<()> {
    if let (Some(first), false) = (samples.bad.first(), skip_bad) {
        let others = samples.bad.len() - 1;
        let more = match others {
            0 => String::new(),
            n => format!(" ({n} more rows are wrong; --check lists them, --skip-bad leaves them out)"),
        };
        bail!("{first}{more}");
    }
    if samples.sequences().iter().map(|sample| sample.n_learned()).sum::<usize>() == 0 {
        bail!("{}: holds nothing to learn: no sample has a supervised token", source.display());
    }
    Ok(())
}
