//! A decoder layer, forward and backward: `x += attention(norm(x)); x += experts(norm(x))`.

use octet_kernels::{Target, add_assign};
use octet_model::Routing;

use crate::Gradients;
use crate::attention::{Attention, AttentionActivations, Step};
use crate::balance::Balance;
use crate::dense_router;
use crate::experts::{self, Expert, ExpertActivations};
use crate::linear::{Linear, Pass};
use crate::norm::Norm;
use crate::router;

/// The weights of a layer.
pub(crate) struct Layer {
    pub(crate) attention_norm: Norm,
    pub(crate) attention: Attention,
    pub(crate) ffn_norm: Norm,
    /// `[num_experts, dim]`; `None` in dense models.
    pub(crate) router: Option<Linear>,
    pub(crate) experts: Vec<Expert>,
    pub(crate) per_token: usize,
}

/// What the way back needs of the way forward.
pub(crate) struct LayerActivations {
    attention: AttentionActivations,
    /// The stream between attention and experts, `[n, dim]`.
    middle: Vec<f32>,
    pub(crate) routing: Routing,
    experts: ExpertActivations,
}

impl LayerActivations {
    /// Lets the buffers be used again.
    pub(crate) fn give_back(self, pass: &mut Pass<'_>) {
        let buffers = self.attention.into_buffers().into_iter().chain(self.experts.into_buffers());
        buffers.chain([self.middle, self.routing.logits]).for_each(|x| pass.buffers.give(x));
    }
}

impl Layer {
    /// Advances the residual stream `x [n, dim]` through this layer, in place.
    pub(crate) fn forward(&self, pass: &mut Pass<'_>, step: &Step<'_>, x: &mut [f32]) -> LayerActivations {
        let mut delta = pass.buffers.take(x.len());
        let normed = self.attention_norm.forward(pass, x);
        let attention = self.attention.forward(pass, step, &normed, &mut delta);
        pass.buffers.give(normed);
        add_assign(x, &delta);
        let mut middle = pass.buffers.take(x.len());
        middle.copy_from_slice(x);

        let normed = self.ffn_norm.forward(pass, x);
        let routing = router::forward(pass, self.router.as_ref(), &normed, self.ffn_norm.dim, self.per_token);
        let experts = experts::forward(pass, &self.experts, &normed, &routing, &mut delta);
        add_assign(x, &delta);
        [normed, delta].into_iter().for_each(|x| pass.buffers.give(x));
        LayerActivations { attention, middle, routing, experts }
    }

    /// Turns `d_x [n, dim]`, the gradient of what the layer gave, into that of what it took, which was `x`.
    pub(crate) fn backward(
        &self,
        pass: &mut Pass<'_>,
        step: &Step<'_>,
        (x, kept): (&[f32], LayerActivations),
        balance: Option<&Balance>,
        d_x: &mut [f32],
        gradients: &mut Gradients,
    ) {
        let LayerActivations { attention, middle, routing, experts } = kept;
        let mut d_normed = pass.buffers.take(x.len());
        let normed = self.ffn_norm.forward(pass, &middle);
        let given = (&normed[..], &routing, experts);
        let is_dense = pass.dense_router && self.router.as_ref().is_some_and(Linear::is_trained);
        let others = is_dense.then(|| dense_router::by_the_others(pass, &self.experts, (&normed, &routing), d_x));
        let d_weights = experts::backward(pass, &self.experts, given, d_x, &mut d_normed, gradients);
        if let Some(router) = &self.router {
            let d_logits = match others {
                Some(others) => dense_router::logits_gradient(&routing, &d_weights, others, balance),
                None => router::logits_gradient(&routing, &d_weights, balance),
            };
            router.backward(pass, (&normed, &d_logits), Target::Sum, &mut d_normed, gradients);
        }
        self.ffn_norm.backward(pass, &middle, &d_normed, d_x, gradients);
        [normed, middle, routing.logits].into_iter().for_each(|x| pass.buffers.give(x));

        let normed = self.attention_norm.forward(pass, x);
        self.attention.backward(pass, step, (&normed, attention), d_x, &mut d_normed, gradients);
        self.attention_norm.backward(pass, x, &d_normed, d_x, gradients);
        [normed, d_normed].into_iter().for_each(|x| pass.buffers.give(x));
    }

    /// Whether anything of it is trained.
    pub(crate) fn is_trained(&self) -> bool {
        let experts = self.experts.iter().flat_map(|e| [&e.w1, &e.w2, &e.w3]);
        let norms = [&self.attention_norm, &self.ffn_norm].iter().any(|norm| norm.weight.is_trained());
        norms || self.attention.is_trained() || self.router.iter().chain(experts).any(Linear::is_trained)
    }
}
