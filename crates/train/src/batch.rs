//! Samples of any lengths, one after the other without padding; none sees another.

/// The tokens of one step.
///
/// Samples of 3 and 2 tokens: `tokens = [a0 a1 a2 b0 b1]`, `lengths = [3, 2]`, and where all is learned
/// `targets = [a1 a2 None b1 None]`: what each token is to be followed by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    tokens: Vec<u32>,
    targets: Vec<Option<u32>>,
    lengths: Vec<usize>,
}

impl Batch {
    /// Adds a sample. `labels` has an entry for each token: the token itself where it is to be learned, `None` where it is
    /// not (a user's words, in a conversation). The first label never counts, since nothing predicts it.
    ///
    /// # Panics
    /// If there are not as many labels as tokens.
    pub fn push(&mut self, tokens: &[u32], labels: &[Option<u32>]) {
        assert_eq!(tokens.len(), labels.len(), "a label for each token");
        if tokens.is_empty() {
            return;
        }
        self.tokens.extend_from_slice(tokens);
        self.targets.extend_from_slice(&labels[1..]);
        self.targets.push(None);
        self.lengths.push(tokens.len());
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.targets.clear();
        self.lengths.clear();
    }

    /// All tokens, sample after sample.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// What each token is to be followed by; `None` where that is not learned.
    pub fn targets(&self) -> &[Option<u32>] {
        &self.targets
    }

    /// Tokens of each sample.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// How many tokens are learned.
    pub fn n_targets(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    /// The sample that each token belongs to, and its position there.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.lengths.iter().enumerate().flat_map(|(sample, &len)| (0..len).map(move |position| (sample, position)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_become_targets_of_the_token_before() {
        let mut batch = Batch::default();
        batch.push(&[5, 6, 7], &[Some(5), None, Some(7)]);
        batch.push(&[], &[]);
        batch.push(&[8], &[Some(8)]);
        assert_eq!(batch.targets(), [None, Some(7), None, None]);
        assert_eq!(batch.lengths(), [3, 1]);
        assert_eq!(batch.n_targets(), 1);
        assert_eq!(batch.positions().collect::<Vec<_>>(), [(0, 0), (0, 1), (0, 2), (1, 0)]);
    }
}
