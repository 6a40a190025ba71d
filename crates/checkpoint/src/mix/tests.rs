//! The mixes against those that llama-quantize makes, and the faults against the mixes of December 2023.

use super::faults::{Types, of_types};
use super::*;
use crate::params::tests::mixtral_8x7b;
use crate::{Architecture, Moe};
use ExpertMatrix::{W1, W2};
use LayerTensor::*;

fn dense(n_layers: usize, n_kv_heads: usize) -> Params {
    Params { architecture: Architecture::Llama, n_layers, n_kv_heads, moe: None, ..mixtral_8x7b() }
}

fn smollm2_135m() -> Params {
    let shape = Params { dim: 576, hidden_dim: 1536, n_heads: 9, head_dim: 64, ..dense(30, 3) };
    Params { tied_embeddings: true, ..shape }
}

/// What llama-quantize makes of such models (that of llama-cpp-python 0.3.36, run on files of these layers and heads): mix,
/// embedding, output head, then a digit for each layer, or one for all, of queries, keys, values, attention output, gate and
/// down-projection. 2 to 6: Q2_K to Q6_K; 8: Q8_0; 0: Q4_0; a: Q5_0; b: Q5_1; `-`: tied to the embedding.
const MIXTRAL: &str = "
    Q8_0   8 8 8 8 8 8 8 8
    Q6_K   6 6 6 8 8 6 6 6
    Q5_K_M 5 6 5 8 8 5 5 66665565565565565565565565566666
    Q5_K_S 5 6 5 8 8 5 5 5
    Q4_K_M 4 6 4 8 8 5 4 66664464464464464464464464466666
    Q4_K_S 4 6 4 8 8 5 4 55554444444444444444444444444444
    Q4_0   0 6 0 8 8 0 0 0
    Q3_K_L 3 6 3 8 8 3 3 5
    Q3_K_M 3 6 3 8 8 5 3 55444444444444444444444444444444
    Q3_K_S 3 6 3 8 8 5 3 3
    Q2_K   2 6 2 8 8 5 2 3";
const MISTRAL_7B: &str = "
    Q8_0   8 8 8 8 8 8 8 8
    Q6_K   6 6 6 6 6 6 6 6
    Q5_K_M 5 6 5 5 66665565565565565565565565566666 5 5 66665565565565565565565565566666
    Q5_K_S 5 6 5 5 5 5 5 5
    Q4_K_M 4 6 4 4 66664464464464464464464464466666 4 4 66664464464464464464464464466666
    Q4_K_S 4 6 4 4 55554444444444444444444444444444 4 4 55554444444444444444444444444444
    Q4_0   0 6 0 0 0 0 0 0
    Q3_K_L 3 6 3 3 5 5 3 5
    Q3_K_M 3 6 3 3 55444444444444444444444444444444 4 3 55444444444444444444444444444444
    Q3_K_S 3 6 3 3 3 3 3 3
    Q2_K   2 6 2 2 4 3 2 3";
const LLAMA_2_7B: &str = "
    Q4_K_M 4 6 4 4 66664464464464464464464464466666 4 4 66664464464464464464464464466666
    Q3_K_M 3 6 3 3 55444444444444444444444444444444 4 3 55444444444444444444444444444444
    Q2_K   2 6 2 2 3 3 2 3";
const LLAMA_2_70B: &str = "
    Q6_K   6 6 6 6 6 6 6 6
    Q4_K_S 4 6 4 4 5 4 4 55555555554444444444444444444444444444444444444444444444444444444444444444444444
    Q3_K_L 3 6 3 3 5 5 3 5
    Q3_K_M 3 6 3 3 5 4 3 55555444444444444444444444444444444444444444444444444444444444444444444444444444
    Q3_K_S 3 6 3 3 5 3 3 3
    Q2_K   2 6 2 2 5 3 2 3";
const FOUR_EXPERTS: &str = "
    Q5_K_M 5 6 5 5 655655655666 5 5 655655655666
    Q4_K_M 4 6 4 4 644644644666 4 4 644644644666
    Q4_K_S 4 6 4 4 555544444444 4 4 544444444444
    Q3_K_M 3 6 3 3 554444444444 4 3 4
    Q2_K   2 6 2 2 3 3 2 3";
const SMOLLM2_135M: &str = "
    Q8_0   8 - 8 8 8 8 8 8
    Q6_K   8 - 8 8 8 8 8 6
    Q5_K_M 8 - b b 888bb8bb8bb8bb8bb8bb8bb8bb8888 b b 666556556556556556556556556666
    Q5_K_S 8 - b b b b b 5
    Q4_K_M 8 - a a 888aa8aa8aa8aa8aa8aa8aa8aa8888 a a 666446446446446446446446446666
    Q4_K_S 8 - a a bbbbaaaaaaaaaaaaaaaaaaaaaaaaaa a a 555444444444444444444444444444
    Q4_0   8 - 0 0 0 0 0 0
    Q3_K_L 8 - 0 0 b b 0 5
    Q3_K_M 8 - 0 0 bbaaaaaaaaaaaaaaaaaaaaaaaaaaaa a 0 544444444444444444444444444444
    Q3_K_S 8 - 0 0 0 0 0 3
    Q2_K   8 - 0 0 0 0 0 3";

fn digit(kind: ElementType) -> char {
    let digits = [(Q2_K, '2'), (Q3_K, '3'), (Q4_K, '4'), (Q5_K, '5'), (Q6_K, '6'), (Q8_0, '8')];
    let small = [(Q4_0, '0'), (Q5_0, 'a'), (Q5_1, 'b')];
    digits.iter().chain(&small).find(|(k, _)| *k == kind).map_or('?', |(_, digit)| *digit)
}

/// Our line of the table.
fn line(mix: Mix, params: &Params) -> Vec<String> {
    let of = |name| digit(mix.element_type(name, params));
    let layers = |tensor| {
        let all: String = (0..params.n_layers).map(|layer| of(TensorName::Layer(layer, tensor))).collect();
        let first = all[..1].to_owned();
        if all.chars().all(|c| first.starts_with(c)) { first } else { all }
    };
    let head = if params.tied_embeddings { '-' } else { of(TensorName::Output) };
    let outside = [mix.name().to_owned(), of(TensorName::TokenEmbedding).to_string(), head.to_string()];
    outside.into_iter().chain([Wq, Wk, Wv, Wo, Expert(0, W1), Expert(0, W2)].map(layers)).collect()
}

#[test]
fn mixes_are_those_of_llama_quantize() {
    let four_experts = Params {
        n_layers: 12,
        n_kv_heads: 16,
        moe: Some(Moe { num_experts: 4, num_experts_per_tok: 2 }),
        ..mixtral_8x7b()
    };
    let models = [
        (MIXTRAL, mixtral_8x7b()),
        (MISTRAL_7B, dense(32, 8)),
        (LLAMA_2_7B, dense(32, 32)),
        (LLAMA_2_70B, dense(80, 4)),
        (FOUR_EXPERTS, four_experts),
        (SMOLLM2_135M, smollm2_135m()),
    ];
    for (table, params) in models {
        for expected in table.trim().lines() {
            let mut expected: Vec<String> = expected.split_whitespace().map(str::to_owned).collect();
            let mix = Mix::from_name(&expected[0]).expect("a mix of ours");
            // Ours on purpose: theirs leaves the attention output of eight experts coarser here than in Q3_K_M and Q3_K_S.
            if mix == Mix::Q3_K_L && params.n_experts() == 8 {
                expected[6] = "5".to_owned();
            }
            assert_eq!(line(mix, &params), expected);
        }
    }
}

#[test]
fn routers_norms_and_all_experts() {
    let params = mixtral_8x7b();
    for mix in Mix::all() {
        for name in [AttentionNorm, FfnNorm, Router].map(|tensor| TensorName::Layer(3, tensor)) {
            assert_eq!(mix.element_type(name, &params), F32);
        }
        assert_eq!(mix.element_type(TensorName::OutputNorm, &params), F32);
        for layer in 0..32 {
            // One tensor holds all experts of a layer, so they have to agree.
            for matrix in [W1, W2, ExpertMatrix::W3] {
                let of = |e| mix.element_type(TensorName::Layer(layer, Expert(e, matrix)), &params);
                assert!((1..8).all(|e| of(e) == of(0)));
            }
        }
    }
}

#[test]
fn every_type_fits_its_rows() {
    for cols in [1, 31, 32, 96, 256, 576, 4096] {
        for kind in ElementType::all() {
            let fitting = fallback(kind, cols);
            assert!(fitting.row_bytes(cols).is_some(), "{kind} of {cols}");
            assert_eq!(fitting == kind, kind.row_bytes(cols).is_some(), "{kind} of {cols}");
        }
    }
}

#[test]
fn names_and_numbers_lead_back() {
    for mix in Mix::all() {
        assert_eq!(Mix::from_name(&mix.name().to_lowercase()), Some(mix));
        assert_eq!(Mix::from_file_type(mix.file_type().into()), Some(mix));
    }
    assert_eq!(Mix::from_name("q4_k"), Some(Mix::Q4_K_M));
    assert_eq!(Mix::from_name("Q7"), None);
}

/// The types that a mix gives, or those of December 2023: the layers' base everywhere but in the attention.
fn types(mix: Mix, attention_output: ElementType, december: Option<ElementType>) -> Types {
    let params = mixtral_8x7b();
    let layers = |tensor| (0..32).map(|l| mix.element_type(TensorName::Layer(l, tensor), &params)).collect();
    Types {
        claimed: Some(mix),
        gates: layers(Expert(0, W1)),
        downs: december.map_or_else(|| layers(Expert(0, W2)), |down| vec![down; 32]),
        attention_outputs: vec![attention_output; 32],
    }
}

#[test]
fn mixes_of_december_2023_are_named_and_sound_ones_are_not() {
    let sound = |mix: Mix| of_types(&types(mix, mix.attention_output(&mixtral_8x7b()), None));
    for mix in Mix::all() {
        assert_eq!(sound(mix), Vec::<String>::new(), "{mix}");
    }
    let two_bits = of_types(&types(Mix::Q2_K, Q3_K, Some(Q2_K)));
    assert_eq!(two_bits.len(), 2);
    assert!(two_bits[0].contains("llama.cpp#4872") && two_bits[1].contains("llama.cpp#4906"), "{two_bits:?}");
    for (mix, base) in [(Mix::Q3_K_M, Q3_K), (Mix::Q4_K_M, Q4_K), (Mix::Q5_K_M, Q5_K)] {
        let faults = of_types(&types(mix, Q5_K, Some(base)));
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].contains(&format!("it says {mix}")), "{faults:?}");
    }
    let unnamed = Types { claimed: None, ..types(Mix::Q4_K_M, Q5_K, Some(Q4_K)) };
    assert_eq!(of_types(&unnamed), Vec::<String>::new(), "a Q4_K_S that does not say what it is");
}
