//! Who worked on the tokens of a text, and what the Mixtral paper counts of it.

use octet_model::{Record, Routing};
use serde::Serialize;

use crate::experts_view::Choices;
use crate::text_tokens::TextTokens;

/// The choices of a run, for every token that it was given.
#[derive(Default)]
pub struct Recorded {
    per_token: usize,
    num_experts: usize,
    /// `[layer][tokens * per_token]`, best first.
    experts: Vec<Vec<u32>>,
    /// Their weights, in the same order.
    weights: Vec<Vec<f32>>,
}

impl Record for Recorded {
    fn routing(&mut self, layer: usize, routing: &Routing) {
        (self.per_token, self.num_experts) = (routing.per_token, routing.num_experts);
        if self.experts.len() <= layer {
            self.experts.resize_with(layer + 1, Vec::new);
            self.weights.resize_with(layer + 1, Vec::new);
        }
        self.experts[layer].extend_from_slice(&routing.experts);
        self.weights[layer].extend_from_slice(&routing.weights);
    }
}

/// The choices of one text.
pub struct Routes {
    /// Experts that work on a token.
    pub per_token: usize,
    /// Experts of a layer.
    pub num_experts: usize,
    experts: Vec<Vec<u32>>,
    weights: Vec<Vec<f32>>,
    /// Tokens whose left neighbour was not before them when they ran: those at the beginning of a chunk.
    starts: Vec<usize>,
}

/// How often neighbouring tokens have the same expert, as shares of all pairs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Repeats {
    /// The first choice of both is the same.
    pub first: f64,
    /// An expert is among the choices of both.
    pub any: f64,
}

/// What chance would give: `1 / E`, and `1 - C(E - k, k) / C(E, k)`; of 8 experts and 2 choices 12.5 % and 46 %
/// (Mixtral of Experts, table 5).
pub fn chance(num_experts: usize, per_token: usize) -> Repeats {
    let others = |i: usize| num_experts.saturating_sub(per_token + i) as f64 / (num_experts - i) as f64;
    Repeats { first: 1.0 / num_experts as f64, any: 1.0 - (0..per_token).map(others).product::<f64>() }
}

impl Routes {
    /// The choices for the tokens of `text`, which begin at row `first_row` of a run.
    pub fn of(recorded: &Recorded, first_row: usize, text: &TextTokens) -> Routes {
        let k = recorded.per_token;
        let (mut rows, mut starts, mut row, mut n_tokens) = (Vec::new(), Vec::new(), first_row, 0);
        for chunk in &text.chunks {
            starts.push(n_tokens);
            rows.push((row + text.n_lead) * k..(row + chunk.len()) * k);
            row += chunk.len();
            n_tokens += chunk.len() - text.n_lead;
        }
        fn cut<T: Copy>(layers: &[Vec<T>], rows: &[std::ops::Range<usize>]) -> Vec<Vec<T>> {
            let of_layer = |layer: &Vec<T>| rows.iter().flat_map(|rows| &layer[rows.clone()]).copied().collect();
            layers.iter().map(of_layer).collect()
        }
        let (experts, weights) = (cut(&recorded.experts, &rows), cut(&recorded.weights, &rows));
        Routes { per_token: k, num_experts: recorded.num_experts, experts, weights, starts }
    }

    /// Layers.
    pub fn n_layers(&self) -> usize {
        self.experts.len()
    }

    /// The experts of each token in a layer, best first.
    pub fn experts(&self, layer: usize) -> impl Iterator<Item = &[u32]> {
        self.experts[layer].chunks_exact(self.per_token)
    }

    /// Their weights.
    pub fn weights(&self, layer: usize) -> impl Iterator<Item = &[f32]> {
        self.weights[layer].chunks_exact(self.per_token)
    }

    /// How often each expert was chosen.
    pub fn load(&self) -> Choices {
        let mut choices = Choices::default();
        for (layer, experts) in self.experts.iter().enumerate() {
            choices.add(layer, self.num_experts, experts);
        }
        choices
    }

    /// How often neighbours share an expert in a layer; `None` where there are no neighbours.
    pub fn repeats(&self, layer: usize) -> Option<Repeats> {
        let experts: Vec<&[u32]> = self.experts(layer).collect();
        let (mut first, mut any, mut pairs) = (0, 0, 0usize);
        for (at, pair) in experts.windows(2).enumerate() {
            if self.starts.contains(&(at + 1)) {
                continue;
            }
            pairs += 1;
            first += usize::from(pair[0][0] == pair[1][0]);
            any += usize::from(pair[0].iter().any(|expert| pair[1].contains(expert)));
        }
        let share = |n: usize| n as f64 / pairs as f64;
        (pairs > 0).then(|| Repeats { first: share(first), any: share(any) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chance_is_what_the_paper_says() {
        let Repeats { first, any } = chance(8, 2);
        assert!((first - 0.125).abs() < 1e-9 && (any - (1.0 - 6.0 / 8.0 * 5.0 / 7.0)).abs() < 1e-9);
        assert_eq!(chance(2, 2).any, 1.0);
    }

    #[test]
    fn repeats_and_load_leave_bos_and_borders_of_chunks_out() {
        let mut recorded = Recorded::default();
        // A row of another text; BOS and three tokens; BOS and two tokens.
        let experts = [[3, 2], [3, 3], [0, 1], [0, 2], [1, 2], [3, 3], [1, 0], [2, 3]].concat();
        recorded.routing(
            0,
            &Routing { weights: vec![0.5; experts.len()], experts, per_token: 2, num_experts: 4, logits: Vec::new() },
        );
        let text = TextTokens { chunks: vec![vec![9, 5, 6, 7], vec![9, 5, 6]], n_lead: 1 };
        let routes = Routes::of(&recorded, 1, &text);
        assert_eq!(routes.experts(0).collect::<Vec<_>>(), [[0, 1], [0, 2], [1, 2], [1, 0], [2, 3]]);
        // Pairs: (01, 02), (02, 12), and across no border (10, 23).
        assert_eq!(routes.repeats(0), Some(Repeats { first: 1.0 / 3.0, any: 2.0 / 3.0 }));
        assert_eq!(routes.load().shares(0), [0.3, 0.3, 0.3, 0.1]);
    }
}
