//! `octet quantize`: the right types, the right bytes, and what interrupts it.

mod scratch;

use std::path::{Path, PathBuf};

use octet_checkpoint::mix::Mix;
use octet_checkpoint::{Checkpoint, ElementType, ExpertMatrix, LayerTensor, Tensor, TensorName, gguf};
use octet_kernels::blocks::dequantize_row;
use octet_kernels::quantize::quantize_row;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use scratch::{Outcome, Scratch, fixtures, letter_id, letters_tokenizer, octet, text};

fn bytes(tensor: &Tensor<'_>) -> Vec<u8> {
    let mut bytes = vec![0; tensor.rows() * tensor.row_bytes()];
    tensor.read_rows(0..tensor.rows(), &mut bytes);
    bytes
}

/// A tensor's numbers.
fn values(tensor: &Tensor<'_>) -> Vec<f32> {
    let mut values = vec![0.0; tensor.rows() * tensor.cols()];
    for (bytes, values) in bytes(tensor).chunks_exact(tensor.row_bytes()).zip(values.chunks_exact_mut(tensor.cols())) {
        dequantize_row(tensor.element_type(), bytes, values);
    }
    values
}

fn quantized(tensor: &Tensor<'_>, to: ElementType, importance: Option<&[f32]>) -> Vec<u8> {
    let row_bytes = to.row_bytes(tensor.cols()).unwrap();
    let mut out = vec![0; tensor.rows() * row_bytes];
    for (row, out) in values(tensor).chunks_exact(tensor.cols()).zip(out.chunks_exact_mut(row_bytes)) {
        quantize_row(to, row, importance, out);
    }
    out
}

/// Every mix, on widths that are multiples of 256 and on 64 and 96, which are not.
#[test]
fn every_mix_writes_the_types_and_bytes_that_it_should() {
    for name in ["mixtral-4x1-wide", "mixtral-8x2"] {
        let (scratch, model) = (Scratch::new(), fixtures().join(name));
        let source = Checkpoint::open(&model).unwrap();
        for mix in Mix::all() {
            let out = scratch.path(&format!("{}.gguf", mix.name()));
            octet(["quantize", text(&model), text(&out), "--to", mix.name()]).succeeded();
            octet(["verify", text(&out)]).succeeded();
            let result = Checkpoint::open(&out).unwrap();
            for tensor in source.params().tensors() {
                let (from, to) = (source.tensor(tensor).unwrap(), result.tensor(tensor).unwrap());
                let what = format!("{name} {} {tensor}", mix.name());
                assert_eq!(to.element_type(), mix.element_type(tensor, source.params()), "{what}");
                assert!(bytes(&to) == quantized(&from, to.element_type(), None), "{what}");
                if from.rows() == 1 || tensor == TensorName::Layer(0, LayerTensor::Router) {
                    assert_eq!(to.element_type(), ElementType::F32, "{what}");
                }
                assert_eq!(
                    to.element_type().block_len() == 256,
                    to.cols() % 256 == 0 && to.element_type().block_len() > 32
                );
            }
        }
    }
}

#[test]
fn roles_can_be_given_other_types() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-4x1-wide"));
    let out = scratch.path("out.gguf");
    let set = ["--set", "ffn_down=Q5_0", "--set", "output=F16", "--set", "attn_v_exps=Q2_K", "--set", "attn_v=Q3_K"];
    octet([&["quantize", text(&model), text(&out), "--to", "Q4_K_M"], &set[..2], &set[2..4], &set[6..]].concat())
        .succeeded();
    let result = Checkpoint::open(&out).unwrap();
    let kind = |name| result.tensor(name).unwrap().element_type();
    assert_eq!(kind(TensorName::Layer(0, LayerTensor::Expert(3, ExpertMatrix::W2))), ElementType::Q5_0);
    assert_eq!(kind(TensorName::Output), ElementType::F16);
    assert_eq!(kind(TensorName::Layer(0, LayerTensor::Wv)), ElementType::Q3_K);
    assert_eq!(kind(TensorName::Layer(0, LayerTensor::Wq)), ElementType::Q4_K);
}

#[test]
fn wishes_that_cannot_be_are_refused() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-8x2"));
    let out = scratch.path("out.gguf");
    let quantize = |more: &[&str]| octet([&["quantize", text(&model), text(&out)], more].concat());
    quantize(&[]).refused_naming(&["--to"]);
    quantize(&["--to", "Q4"]).refused_naming(&["--to", "Q4_K_M"]);
    quantize(&["--to", "Q4_K_M", "--set", "attn_q=Q4_K"]).refused_naming(&["attn_q", "64", "256"]);
    quantize(&["--to", "Q4_K_M", "--set", "router=Q4_K"]).refused_naming(&["--set", "ffn_down"]);
    quantize(&["--to", "Q4_K_M", "--set", "output=IQ2_S"]).refused_naming(&["--set", "IQ2_S"]);
    quantize(&["--to", "Q4_K_M", "--save-importance", "x.gguf"]).refused_naming(&["--calibrate"]);
    let other = scratch.file("text.txt", "hello");
    quantize(&["--to", "Q4_K_M", "--importance", text(&other)]).refused_naming(&["text.txt"]);
    quantize(&["--to", "Q4_K_M", "--calibrate", text(&scratch.path("no.txt"))]).refused_naming(&["no.txt"]);
    assert_eq!(scratch.names(), ["text.txt"]);
}

/// What calibration would be for is looked at before it, and so is where its result would go.
#[test]
fn nothing_is_learned_for_an_output_that_cannot_be() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", letters_tokenizer().to_string());
    let text_file = scratch.file("text.txt", "the quick brown fox jumps over the lazy dog ".repeat(20));
    let (gguf, taken) = (scratch.path("model.gguf"), scratch.file("taken.gguf", "mine"));
    octet(["convert", text(&model), text(&gguf), "--to", "gguf"]).succeeded();
    let before = scratch.names();
    let quantize = |out: &str, more: &[&str], words: &[&str]| {
        let out = scratch.path(out);
        let fixed = ["quantize", text(&gguf), text(&out), "--to", "Q4_0", "--calibrate", text(&text_file)];
        let run = octet([&fixed[..], more].concat());
        assert_eq!(run.stdout(), "", "the text was read");
        run.refused_naming(words);
    };
    quantize("taken.gguf", &[], &["taken.gguf", "--force"]);
    quantize("no/out.gguf", &[], &["no such folder"]);
    quantize("out.gguf", &["--set", "ffn_down=Q6_K"], &["--set ffn_down=Q6_K", "multiple of 256"]);
    quantize("out.gguf", &["--save-importance", text(&taken)], &["taken.gguf", "--force"]);
    quantize("out.gguf", &["--save-importance", text(&gguf), "--force"], &["model.gguf", "is the model itself"]);
    let out = scratch.path("out.gguf");
    quantize("out.gguf", &["--save-importance", text(&out)], &["out.gguf", "two outputs"]);
    assert_eq!(scratch.names(), before);
    assert_eq!(std::fs::read_to_string(taken).unwrap(), "mine");
}

#[test]
fn the_comparison_tells_how_far_weights_moved() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-4x1-wide"));
    let out = scratch.path("out.gguf");
    let table = octet(["quantize", text(&model), text(&out), "--to", "Q8_0", "--compare"]).succeeded();
    let (source, result) = (Checkpoint::open(&model).unwrap(), Checkpoint::open(&out).unwrap());
    let name = TensorName::Layer(0, LayerTensor::Wq);
    let (from, to) = (values(&source.tensor(name).unwrap()), values(&result.tensor(name).unwrap()));
    let squares: f64 = from.iter().map(|&x| f64::from(x).powi(2)).sum();
    let errors: f64 = from.iter().zip(&to).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
    let percent = 100.0 * (errors / squares).sqrt();
    // Of the largest of 32 normal numbers, about 2, a step is 2 / 127, and the error a step / sqrt(12): 0.45 %.
    assert!((0.3..0.7).contains(&percent), "{percent}");
    let line = table.lines().find(|line| line.starts_with("attention q")).expect(&table);
    assert!(line.contains("Q8_0") && line.contains(&format!("{percent:.3} %")), "{line} should say {percent}");
    let norms = table.lines().find(|line| line.starts_with("norms")).expect(&table);
    assert!(norms.contains("F32") && norms.contains(" 0 %"), "{norms}");
}

#[test]
fn predictions_are_compared_and_limits_hold() {
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-4x1-wide", "model");
    let text_file = scratch.file("text.txt", "the quick brown fox jumps over the lazy dog ".repeat(20));
    let compare = format!("--compare={}", text(&text_file));
    let quantize = |out: &str, mix: &str, more: &[&str]| {
        octet([&["quantize", text(&model), text(&scratch.path(out)), "--to", mix, "--force", &compare], more].concat())
    };
    quantize("out.gguf", "Q8_0", &[]).refused_naming(&["--compare", "tokenizer"]);
    assert!(!scratch.path("out.gguf").exists(), "what cannot be compared is not begun");
    std::fs::write(model.join("tokenizer.json"), letters_tokenizer().to_string()).unwrap();
    let kl = |table: &str| -> f64 {
        let line = table.lines().find(|line| line.contains("KL divergence")).unwrap_or_else(|| panic!("{table}"));
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    };
    let same = quantize("f32.gguf", "F32", &["--max-kl", "0", "--max-flips", "0"]).succeeded();
    assert_eq!(kl(&same), 0.0, "{same}");
    let (fine, coarse) = (quantize("q8.gguf", "Q8_0", &[]).succeeded(), quantize("q2.gguf", "Q2_K", &[]).succeeded());
    assert!(kl(&fine) > 0.0 && kl(&coarse) > 10.0 * kl(&fine), "{fine}{coarse}");
    let limit = format!("{}", kl(&coarse) / 2.0);
    quantize("q2.gguf", "Q2_K", &["--max-kl", &limit]).refused_naming(&["--max-kl", &limit, "q2.gguf"]);
    assert!(scratch.path("q2.gguf").exists());
    quantize("q2.gguf", "Q2_K", &["--max-kl", "-1"]).refused_naming(&["--max-kl"]);
    octet(["quantize", text(&model), text(&scratch.path("x.gguf")), "--to", "Q2_K", "--compare", "--max-kl", "1"])
        .refused_naming(&["--compare=TEXT"]);
}

/// A file as llama-imatrix writes it changes the bytes of the matrices that it names, and only those.
#[test]
fn an_importance_file_guides_the_search() {
    let (scratch, model) = (Scratch::new(), fixtures().join("mixtral-4x1-wide"));
    let imatrix = scratch.path("imatrix.gguf");
    let sums: Vec<f32> = (0..4 * 256).map(|i| ((i * 37) % 101) as f32 + 1.0).collect();
    write_imatrix(&imatrix, &[("blk.0.ffn_up_exps.weight", 4, sums.clone(), vec![200.0, 400.0, 100.0, 50.0])]);
    let out = scratch.path("out.gguf");
    let run = octet(["quantize", text(&model), text(&out), "--to", "Q4_K_S", "--importance", text(&imatrix)]);
    // Expert 3 saw 50 tokens, fewer than 64; gate and down of all experts saw none.
    assert!(run.stderr().contains("layer 0 expert 3: 50"), "{}", run.stderr());
    run.succeeded();
    let (source, result) = (Checkpoint::open(&model).unwrap(), Checkpoint::open(&out).unwrap());
    let up = |e| TensorName::Layer(0, LayerTensor::Expert(e, ExpertMatrix::W3));
    for (e, tokens) in [(0, 200.0), (1, 400.0), (2, 100.0)] {
        let importance: Vec<f32> = sums[e * 256..][..256].iter().map(|sum| sum / tokens).collect();
        let (from, to) = (source.tensor(up(e)).unwrap(), result.tensor(up(e)).unwrap());
        assert!(bytes(&to) == quantized(&from, to.element_type(), Some(&importance)), "expert {e}");
        assert!(bytes(&to) != quantized(&from, to.element_type(), None), "expert {e}: the importance changes nothing");
    }
    let wq = TensorName::Layer(0, LayerTensor::Wq);
    let (from, to) = (source.tensor(wq).unwrap(), result.tensor(wq).unwrap());
    assert!(bytes(&to) == quantized(&from, to.element_type(), None), "a matrix that the file does not name");
}

/// Writes `NAME.in_sum2 [n, cols]` and `NAME.counts [n, 1]` for each matrix.
fn write_imatrix(path: &Path, matrices: &[(&str, u64, Vec<f32>, Vec<f32>)]) {
    use octet_checkpoint::write::{Existing, Job, NewTensor, gguf};
    let tensor = |name: String, n: u64, values: &[f32]| {
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let cols = values.len() as u64 / n;
        let fill = move |rows: std::ops::Range<usize>, out: &mut [u8]| {
            out.copy_from_slice(&bytes[rows.start * cols as usize * 4..rows.end * cols as usize * 4]);
            Ok(())
        };
        NewTensor::new(name, ElementType::F32, vec![n, cols], Box::new(fill))
    };
    let tensors = matrices.iter().flat_map(|(name, n, sums, counts)| {
        [tensor(format!("{name}.in_sum2"), *n, sums), tensor(format!("{name}.counts"), *n, counts)]
    });
    let job = Job { out: path.to_owned(), existing: Existing::Refuse, threads: 1, made_from: Vec::new() };
    job.run(&gguf::plan(&[], tensors.collect()), &mut |_| {}).unwrap();
}

/// Calibration is held against what the first layer's queries are multiplied with, worked out from the weights: each
/// letter's embedding, normed.
#[test]
fn calibration_learns_the_mean_squares_of_what_matrices_meet() {
    const TEXT: &str = "the quick brown fox jumps over the lazy dog ";
    let scratch = Scratch::new();
    let model = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", letters_tokenizer().to_string());
    let text_file = scratch.file("text.txt", TEXT.repeat(40));
    let (out, learned) = (scratch.path("out.gguf"), scratch.path("learned.gguf"));
    let options = ["--calibrate", text(&text_file), "--calibrate-tokens", "1000", "--save-importance", text(&learned)];
    let table = octet([&["quantize", text(&model), text(&out), "--to", "Q4_0"], &options[..]].concat()).succeeded();

    let (source, learned) = (Checkpoint::open(&model).unwrap(), gguf::File::open(&learned).unwrap());
    let floats = |name: &str| -> Vec<f32> {
        let tensor = learned.tensors().iter().find(|tensor| tensor.name == name).unwrap_or_else(|| panic!("{name}"));
        learned.bytes(tensor).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let ids: Vec<usize> = TEXT.repeat(40).bytes().take(1000).map(letter_id).collect();
    let expected = squares_of_normed_embeddings(&source, &ids);
    assert_eq!(floats("blk.0.attn_q.weight.counts"), [1000.0]);
    for (got, expected) in floats("blk.0.attn_q.weight.in_sum2").iter().zip(&expected) {
        // Sums of a thousand squares, each with a few roundings of 2^-24.
        assert!((f64::from(*got) - expected).abs() <= 1e-5 * expected, "{got} should be {expected}");
    }
    let per_expert = floats("blk.1.ffn_down_exps.weight.counts");
    assert_eq!((per_expert.len(), per_expert.iter().sum::<f32>()), (8, 2000.0), "each token meets two experts");
    let shown: Vec<f32> =
        table.lines().last().unwrap().split_whitespace().skip(2).map(|n| n.parse().unwrap()).collect();
    assert_eq!(shown, per_expert, "{table}");

    let wq = TensorName::Layer(0, LayerTensor::Wq);
    let (from, result) = (source.tensor(wq).unwrap(), Checkpoint::open(&out).unwrap());
    let to = result.tensor(wq).unwrap();
    assert!(bytes(&to) != quantized(&from, to.element_type(), None), "calibration changes nothing");
    let again = scratch.path("again.gguf");
    let file = scratch.path("learned.gguf");
    octet(["quantize", text(&model), text(&again), "--to", "Q4_0", "--importance", text(&file)]).succeeded();
    assert!(std::fs::read(&again).unwrap() == std::fs::read(&out).unwrap(), "what was saved is not what was learned");
}

/// For each column, the sum over the tokens of the square of its normed embedding.
fn squares_of_normed_embeddings(model: &Checkpoint, ids: &[usize]) -> Vec<f64> {
    let embedding = values(&model.tensor(TensorName::TokenEmbedding).unwrap());
    let norm = values(&model.tensor(TensorName::Layer(0, LayerTensor::AttentionNorm)).unwrap());
    let mut sums = vec![0.0; norm.len()];
    for id in ids {
        let x = &embedding[id * norm.len()..][..norm.len()];
        let mean_square = x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / x.len() as f64;
        for ((sum, &x), &weight) in sums.iter_mut().zip(x).zip(&norm) {
            *sum += (f64::from(x) * f64::from(weight)).powi(2) / (mean_square + 1e-5);
        }
    }
    sums
}

/// A dense model in bfloat16 of some 57 MB, whose tensors are a few MB each.
///
/// The journal is written every 4 MiB and at most 8 MiB wait for it, so that what is killed at 0.7 of the Q8_0's 30 MB
/// has surely left something.
fn large_model(scratch: &Scratch) -> PathBuf {
    let folder = scratch.path("large");
    std::fs::create_dir(&folder).unwrap();
    let config = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 1024, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "max_position_embeddings": 128, "tie_word_embeddings": false,
    });
    let config = scratch.file("large/config.json", config.to_string());
    let params = octet_checkpoint::Params::read(&config).unwrap();
    let mut state = 1u32;
    let mut noise = |n: usize| -> Vec<u8> {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // A bfloat16 of size 1/8 to 1/4, of either sign.
            (0x3e00 | (state >> 16 & 0x807f)) as u16
        };
        (0..n).flat_map(|_| next().to_le_bytes()).collect()
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = params
        .tensors()
        .map(|name| {
            let [rows, cols] = params.shape(name);
            let shape = if rows == 1 { vec![cols] } else { vec![rows, cols] };
            (name.hugging_face(None), shape, noise(rows * cols))
        })
        .collect();
    let views =
        tensors.iter().map(|(name, shape, bytes)| (name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    folder
}

/// Runs octet under a limit of `bytes` on the size of files. The kernel sends XFSZ to whoever writes beyond it: a death
/// at a certain place, without a clock.
#[cfg(target_os = "linux")]
fn octet_within(bytes: u64, arguments: &[&str]) -> Outcome {
    let script = format!("ulimit -c 0; ulimit -f {}; exec \"$@\"", bytes / 1024);
    let mut command = std::process::Command::new("bash");
    command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_octet")]).args(arguments);
    Outcome { arguments: arguments.join(" "), output: command.output().unwrap() }
}

#[cfg(target_os = "linux")]
#[test]
fn a_killed_run_goes_on_and_ends_the_same() {
    use std::os::unix::process::ExitStatusExt;
    let scratch = Scratch::new();
    let model = large_model(&scratch);
    let (whole, out) = (scratch.path("whole.gguf"), scratch.path("out.gguf"));
    for command in [["convert", "--to", "gguf", "--force"], ["quantize", "--to", "Q8_0", "--force"]] {
        let arguments = |out| [&command[..], &[text(&model), out]].concat();
        octet(arguments(text(&whole))).succeeded();
        let size = whole.metadata().unwrap().len();
        let _ = std::fs::remove_file(&out);

        let killed = octet_within(size * 7 / 10, &arguments(text(&out)));
        assert!(killed.output.status.signal().is_some(), "{}: {}", killed.output.status, killed.stderr());
        assert!(!out.exists(), "a killed run shows no output");
        let again = octet(arguments(text(&out)));
        assert!(again.stderr().contains("going on with"), "{command:?}: {}", again.stderr());
        again.succeeded();
        assert!(
            std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(),
            "{command:?}: differs from an undisturbed run's"
        );
        assert_eq!(scratch.names(), ["large", "out.gguf", "whole.gguf"]);
    }
}
