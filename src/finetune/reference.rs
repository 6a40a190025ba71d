//! What the reference says of each pair that the run comes to: computed once, kept beside the snapshots.

use std::path::Path;

use anyhow::{Context, bail};
use octet_train::learner::Learner;
use octet_train::sample::PairSample;
use serde::{Deserialize, Serialize};

use crate::progress::Progress;

/// Where reference log-probabilities are kept.
pub struct Cache<'a> {
    /// The run's folder.
    pub folder: &'a Path,
    /// The run's fingerprint: those of another run are no use.
    pub fingerprint: &'a str,
    /// Tokens of a pass.
    pub pass_tokens: usize,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    fingerprint: String,
    /// `[pairs]`: of the better and of the worse answer, of those that were asked. JSON keeps f64 bit for bit.
    log_probabilities: Vec<Option<[f64; 2]>>,
}

impl Cache<'_> {
    /// The log-probabilities of those `pairs` whose indices are `wanted`, read if they are kept, else computed by `model`,
    /// which must not have been trained unless the reference is the model without its adapter.
    pub fn get(
        &self,
        name: &str,
        model: &mut dyn Learner,
        pairs: &[PairSample],
        wanted: &[usize],
    ) -> anyhow::Result<Vec<Option<[f64; 2]>>> {
        let path = self.folder.join(format!("reference-{name}.json"));
        let is_whole = |kept: &Vec<Option<[f64; 2]>>| {
            kept.len() == pairs.len() && wanted.iter().all(|&index| kept[index].is_some())
        };
        if let Some(kept) = self.read(&path)?.filter(is_whole) {
            return Ok(kept);
        }
        let progress = Progress::of_tokens("reference");
        let tokens = |indices: &[usize]| indices.iter().map(|&index| tokens(&pairs[index])).sum();
        let total: u64 = tokens(wanted);
        let found = octet_train::task::reference(model, pairs, wanted, self.pass_tokens, |done| {
            progress.at(tokens(&wanted[..done]), total);
        });
        let found = found.map_err(anyhow::Error::msg)?;
        progress.finish();
        if found.iter().flatten().flatten().any(|log_p| !log_p.is_finite()) {
            bail!("the model gives log-probabilities that are no numbers; see octet verify");
        }
        let kept = Kept { fingerprint: self.fingerprint.to_owned(), log_probabilities: found.clone() };
        crate::whole_file::write(&path, &serde_json::to_vec(&kept)?)?;
        Ok(found)
    }

    fn read(&self, path: &Path) -> anyhow::Result<Option<Vec<Option<[f64; 2]>>>> {
        if !path.exists() {
            return Ok(None);
        }
        let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let kept: Option<Kept> = serde_json::from_slice(&bytes).ok();
        let kept = kept.filter(|kept| kept.fingerprint == self.fingerprint);
        Ok(kept.map(|kept| kept.log_probabilities))
    }
}

fn tokens(pair: &PairSample) -> u64 {
    (pair.chosen.tokens.len() + pair.rejected.tokens.len()) as u64
}
