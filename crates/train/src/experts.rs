//! The sparse feed-forward block, forward and backward: `y = Σ_k p_k · w2_k (silu(w1_k x) ⊙ (w3_k x))`, tokens grouped by
//! expert.
//!
//! `place` numbers the pairs of a token and one of its experts, expert after expert. With two experts, the tokens 0 → {1},
//! 1 → {0}, 2 → {1} have places 1, 0, 2, and `starts = [0, 1, 3]`.

use std::ops::Range;

use octet_kernels::gradients::{dot, for_each_rows, for_each_rows_of, swiglu_gradient};
use octet_kernels::{Target, swiglu};
use octet_model::Routing;

use crate::Gradients;
use crate::linear::{Linear, Pass};

/// Rows that a thread takes at a time.
const ROWS_AT_ONCE: usize = 32;

/// The three matrices of an expert.
pub(crate) struct Expert {
    pub(crate) w1: Linear,
    pub(crate) w2: Linear,
    pub(crate) w3: Linear,
}

impl Expert {
    /// Answers to `x [n, dim]`, with what stands in between, `w1 x`, `w3 x` and their product `[n, hidden_dim]`.
    pub(crate) fn forward(
        &self,
        pass: &mut Pass<'_>,
        x: &[f32],
        [gate, up, hidden]: [&mut [f32]; 3],
        answers: &mut [f32],
    ) {
        self.w1.forward(pass, x, gate);
        self.w3.forward(pass, x, up);
        swiglu_rows(pass, gate, up, self.w1.rows, hidden);
        self.w2.forward(pass, hidden, answers);
    }
}

/// Which token and choice each place is of.
struct Places {
    /// Of each place, `token * per_token + rank`.
    choices: Vec<u32>,
    /// Of each choice, its place.
    places: Vec<u32>,
    /// Where each expert's places begin; one more than there are experts.
    starts: Vec<usize>,
}

impl Places {
    fn new(routing: &Routing, n_experts: usize) -> Places {
        let mut starts = vec![0; n_experts + 1];
        routing.experts.iter().for_each(|&e| starts[e as usize + 1] += 1);
        (0..n_experts).for_each(|e| starts[e + 1] += starts[e]);
        let mut next = starts.clone();
        let (mut choices, mut places) = (vec![0; routing.experts.len()], vec![0; routing.experts.len()]);
        for (choice, &expert) in routing.experts.iter().enumerate() {
            let place = &mut next[expert as usize];
            (choices[*place], places[choice]) = (choice as u32, *place as u32);
            *place += 1;
        }
        Places { choices, places, starts }
    }

    fn of_expert(&self, expert: usize) -> Range<usize> {
        self.starts[expert]..self.starts[expert + 1]
    }

    /// Rows of `x [tokens, dim]` in the order of places, each times its `factor`.
    fn gather(&self, pass: &mut Pass<'_>, x: &[f32], dim: usize, per_token: usize) -> Vec<f32> {
        let mut rows = pass.buffers.take(self.choices.len() * dim);
        for_each_rows(pass.pool, &mut rows, dim, ROWS_AT_ONCE, |first, rows| {
            for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                let token = self.choices[first + i] as usize / per_token;
                row.copy_from_slice(&x[token * dim..][..dim]);
            }
        });
        rows
    }

    /// `out [tokens, dim]` = (plus) the sum of each token's `rows [places, dim]`, each times its weight if there are any.
    fn scatter(
        &self,
        pass: &Pass<'_>,
        rows: &[f32],
        weights: Option<&[f32]>,
        (per_token, dim): (usize, usize),
        target: Target,
        out: &mut [f32],
    ) {
        for_each_rows(pass.pool, out, dim, ROWS_AT_ONCE, |first, out| {
            for (i, out) in out.chunks_exact_mut(dim).enumerate() {
                if target == Target::Fresh {
                    out.fill(0.0);
                }
                for choice in (first + i) * per_token..(first + i + 1) * per_token {
                    let row = &rows[self.places[choice] as usize * dim..][..dim];
                    let weight = weights.map_or(1.0, |w| w[choice]);
                    out.iter_mut().zip(row).for_each(|(out, x)| *out += weight * x);
                }
            }
        });
    }
}

/// What the way back needs of the way forward.
pub(crate) struct ExpertActivations {
    places: Places,
    /// `w1 x` and `w3 x`, `[places, hidden_dim]`.
    gate: Vec<f32>,
    up: Vec<f32>,
}

impl ExpertActivations {
    pub(crate) fn into_buffers(self) -> [Vec<f32>; 2] {
        [self.gate, self.up]
    }
}

/// `out [n, dim]` = the weighted sum of the chosen experts' answers to `x [n, dim]`.
pub(crate) fn forward(
    pass: &mut Pass<'_>,
    experts: &[Expert],
    x: &[f32],
    routing: &Routing,
    out: &mut [f32],
) -> ExpertActivations {
    let (dim, hidden_dim, k) = (experts[0].w1.cols, experts[0].w1.rows, routing.per_token);
    let places = Places::new(routing, experts.len());
    let n = places.choices.len();
    let gathered = places.gather(pass, x, dim, k);
    let [mut gate, mut up, mut hidden] = [(); 3].map(|()| pass.buffers.take(n * hidden_dim));
    let mut answers = pass.buffers.take(n * dim);
    for (index, expert) in experts.iter().enumerate() {
        let at = |width: usize| {
            let own = places.of_expert(index);
            own.start * width..own.end * width
        };
        if at(1).is_empty() {
            continue;
        }
        let between = [&mut gate, &mut up, &mut hidden].map(|x| &mut x[at(hidden_dim)]);
        expert.forward(pass, &gathered[at(dim)], between, &mut answers[at(dim)]);
    }
    places.scatter(pass, &answers, Some(&routing.weights), (k, dim), Target::Fresh, out);
    [gathered, hidden, answers].into_iter().for_each(|x| pass.buffers.give(x));
    ExpertActivations { places, gate, up }
}

/// Fills `d_x [n, dim]`, and gives the gradient of the experts' weights `[n, per_token]`, from `d_out [n, dim]`.
pub(crate) fn backward(
    pass: &mut Pass<'_>,
    experts: &[Expert],
    (x, routing, kept): (&[f32], &Routing, ExpertActivations),
    d_out: &[f32],
    d_x: &mut [f32],
    gradients: &mut Gradients,
) -> Vec<f32> {
    let (dim, hidden_dim, k) = (experts[0].w1.cols, experts[0].w1.rows, routing.per_token);
    let ExpertActivations { places, mut gate, mut up } = kept;
    let n = places.choices.len();
    let mut d_answers = places.gather(pass, d_out, dim, k);
    // What only trained matrices want is not written down otherwise.
    let wants_inputs = experts.iter().any(|expert| expert.w1.is_trained() || expert.w3.is_trained());
    let wants_hidden = experts.iter().any(|expert| expert.w2.is_trained());
    let gathered = wants_inputs.then(|| places.gather(pass, x, dim, k));
    let mut d_hidden = pass.buffers.take(n * hidden_dim);
    let mut hidden = pass.buffers.take(if wants_hidden { n * hidden_dim } else { 0 });
    let (mut d_gathered, mut d_of_places) = (pass.buffers.take(n * dim), vec![0.0; n]);
    for (index, expert) in experts.iter().enumerate() {
        let own = places.of_expert(index);
        let at = |width: usize| own.start * width..own.end * width;
        if own.is_empty() {
            continue;
        }
        let (wide, narrow) = (at(hidden_dim), at(dim));
        expert.w2.input_gradient(pass, &d_answers[narrow.clone()], Target::Fresh, &mut d_hidden[wide.clone()]);
        let weights: Vec<f32> =
            places.choices[own.clone()].iter().map(|&choice| routing.weights[choice as usize]).collect();
        let (hidden_width, hidden_part) = if wants_hidden { (hidden_dim, wide.clone()) } else { (0, 0..0) };
        let results = [
            &mut gate[wide.clone()],
            &mut up[wide.clone()],
            &mut d_hidden[wide.clone()],
            &mut d_of_places[own.clone()],
            &mut hidden[hidden_part],
        ];
        let widths = [hidden_dim, hidden_dim, hidden_dim, 1, hidden_width];
        for_each_rows_of(pass.pool, results, widths, ROWS_AT_ONCE, |first, [gate, up, d_hidden, d_weights, hidden]| {
            let mut scratch = vec![0.0; hidden_dim];
            for (i, d_weight) in d_weights.iter_mut().enumerate() {
                let at = i * hidden_dim..(i + 1) * hidden_dim;
                let hidden = if wants_hidden { &mut hidden[at.clone()] } else { &mut scratch[..] };
                let given = [&mut gate[at.clone()], &mut up[at.clone()], &mut d_hidden[at]];
                *d_weight = middle_gradient(given, weights[first + i], hidden);
            }
        });
        if expert.w2.is_trained() {
            for_each_rows(pass.pool, &mut d_answers[narrow.clone()], dim, ROWS_AT_ONCE, |first, rows| {
                for (i, row) in rows.chunks_exact_mut(dim).enumerate() {
                    row.iter_mut().for_each(|d| *d *= weights[first + i]);
                }
            });
            expert.w2.weight_gradient(pass, &hidden[wide.clone()], &d_answers[narrow.clone()], gradients);
        }
        for (w, d_y, target) in [(&expert.w1, &gate, Target::Fresh), (&expert.w3, &up, Target::Sum)] {
            let (d_y, d_x) = (&d_y[wide.clone()], &mut d_gathered[narrow.clone()]);
            match &gathered {
                Some(gathered) => w.backward(pass, (&gathered[narrow.clone()], d_y), target, d_x, gradients),
                None => w.input_gradient(pass, d_y, target, d_x),
            }
        }
    }
    places.scatter(pass, &d_gathered, None, (k, dim), Target::Fresh, d_x);
    let used = [d_answers, hidden, d_hidden, d_gathered, gate, up].into_iter().chain(gathered);
    used.for_each(|x| pass.buffers.give(x));
    places.places.iter().map(|&place| d_of_places[place as usize]).collect()
}

/// One token's way back through `hidden = silu(gate) ⊙ up`, whose answer counts `weight`: makes `hidden`, replaces gate and up by
/// their gradients and gives the weight's. `d_hidden` is that of a weight of 1.
fn middle_gradient([gate, up, d_hidden]: [&mut [f32]; 3], weight: f32, hidden: &mut [f32]) -> f32 {
    swiglu(gate, up, hidden);
    // The weight's gradient is d_out·answer, which is d_hidden·hidden: so answers need not be kept.
    let d_weight = dot(d_hidden, hidden);
    d_hidden.iter_mut().for_each(|d| *d *= weight);
    swiglu_gradient(gate, up, d_hidden);
    d_weight
}

fn swiglu_rows(pass: &Pass<'_>, gate: &[f32], up: &[f32], hidden_dim: usize, hidden: &mut [f32]) {
    for_each_rows(pass.pool, hidden, hidden_dim, ROWS_AT_ONCE, |first, rows| {
        let at = first * hidden_dim..first * hidden_dim + rows.len();
        swiglu(&gate[at.clone()], &up[at], rows);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_stand_expert_after_expert() {
        let routing = Routing { experts: vec![1, 0, 1], per_token: 1, ..Default::default() };
        let places = Places::new(&routing, 3);
        assert_eq!(places.places, [1, 0, 2]);
        assert_eq!(places.choices, [1, 0, 2]);
        assert_eq!(places.starts, [0, 1, 3, 3]);
    }
}
