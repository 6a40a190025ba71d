//! Tokens per second of a step forward and backward, over random samples: `speed MODEL [full|attention|experts|forward]
//! [SAMPLES] [LENGTH] [KEPT_MIB] [STEPS]`.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use octet_checkpoint::Checkpoint;
use octet_model::{LoraOptions, LoraTarget};
use octet_train::{AdapterUse, Batch, Model, StepOptions, Trained, new_adapter};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = arguments.first().ok_or("give a model")?;
    let method = arguments.get(1).map_or("attention", String::as_str);
    let number = |index: usize, default: usize| arguments.get(index).and_then(|a| a.parse().ok()).unwrap_or(default);
    let (samples, length, kept, steps) = (number(2, 4), number(3, 512), number(4, 1024), number(5, 2));
    let checkpoint = Arc::new(Checkpoint::open(Path::new(model))?);
    let targets = match method {
        "experts" => vec![LoraTarget::Attention, LoraTarget::Experts],
        _ => vec![LoraTarget::Attention],
    };
    let trained = match method {
        "full" => Trained::All,
        "forward" => Trained::Nothing,
        _ => Trained::Adapter(new_adapter(LoraOptions { targets, ..LoraOptions::default() }, checkpoint.params())?),
    };
    let model = Model::new(checkpoint, Model::default_threads(), trained)?;
    let mut batch = Batch::default();
    let mut state = 1u32;
    for _ in 0..samples {
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % model.config().vocab_size as u32
        };
        let tokens: Vec<u32> = (0..length).map(|_| next()).collect();
        let labels: Vec<_> = tokens.iter().map(|&id| Some(id)).collect();
        batch.push(&tokens, &labels);
    }
    let options = StepOptions { kept_bytes: kept << 20, ..Default::default() };
    let mut gradients = model.zero_gradients();
    for step in 0..=steps {
        let start = Instant::now();
        gradients.clear();
        let report = match method {
            "forward" => model.loss(&batch, &options, AdapterUse::On)?,
            _ => model.loss_and_gradients(&batch, &options, &mut gradients)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let rate = batch.tokens().len() as f64 / seconds;
        println!("step {step}: {seconds:.2} s, {rate:.1} tokens/s, loss {:.4}", report.loss);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().filter(|line| line.starts_with("VmHWM")).for_each(|line| println!("{line}"));
    Ok(())
}
