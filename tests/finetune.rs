//! `octet finetune` from end to end, on a tiny mixture of experts: it learns, it goes on after being killed, and it says what
//! is wrong.

mod scratch;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use scratch::{Scratch, octet, octet_reading, text};
use serde_json::{Value, json};

/// The reference model with a tokenizer whose tokens are bytes, and ChatML's two.
fn model(scratch: &Scratch) -> PathBuf {
    let folder = scratch.copy_of("mixtral-8x2", "model");
    scratch.file("model/tokenizer.json", scratch::bytes_tokenizer().to_string());
    folder
}

/// Conversations in which a letter is asked and the next one answered.
fn letters(scratch: &Scratch) -> PathBuf {
    let line = |i: u8| {
        let (asked, answer) = ((b'a' + i % 25) as char, (b'a' + i % 25 + 1) as char);
        let messages = json!([{"role": "user", "content": asked.to_string()},
                              {"role": "assistant", "content": answer.to_string().repeat(1 + i as usize % 3)}]);
        json!({"messages": messages}).to_string() + "\n"
    };
    scratch.file("letters.jsonl", (0..40).map(line).collect::<String>())
}

const RUN: [&str; 16] = [
    "--targets",
    "attention,experts,router",
    "--rate",
    "0.01",
    "--batch",
    "8",
    "--steps",
    "12",
    "--save-every",
    "3",
    "--seed",
    "7",
    "--pass-tokens",
    "100",
    "--threads",
    "2",
];

fn finetune(model: &Path, data: &Path, out: &Path, more: &[&str]) -> scratch::Outcome {
    octet(["finetune", text(model), text(data), "--out", text(out)].into_iter().chain(RUN).chain(more.iter().copied()))
}

/// `(step, loss)` of each step, the loss as it stands in the file.
fn losses(out: &Path) -> Vec<(u64, String)> {
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let steps = entries.filter(|entry| entry.get("loss").is_some());
    steps.map(|entry| (entry["step"].as_u64().unwrap(), entry["loss"].to_string())).collect()
}

#[test]
fn a_killed_run_goes_on_to_the_same_losses() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), letters(&scratch));
    let whole = scratch.path("whole");
    finetune(&model, &data, &whole, &[]).succeeded();
    let expected = losses(&whole);
    assert_eq!(expected.len(), 12);
    let (first, last): (f64, f64) = (expected[0].1.parse().unwrap(), expected[11].1.parse().unwrap());
    assert!(last < 0.7 * first, "the loss went from {first} to {last}");

    // Killed, with no chance to tidy up, as soon as it says that step 7 is done.
    let killed = scratch.path("killed");
    let mut child = Command::new(env!("CARGO_BIN_EXE_octet"))
        .args(["finetune", text(&model), text(&data), "--out", text(&killed)])
        .args(RUN)
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let seventh = said.take_while(|line| !line.contains("step 7 of 12")).count();
    assert!(seventh >= 6, "only {seventh} lines before step 7");
    child.kill().unwrap();
    child.wait().unwrap();
    finetune(&model, &data, &killed, &["--resume"]).succeeded();
    assert_eq!(losses(&killed), expected);
    let adapter = |out: &Path| std::fs::read(out.join("adapter_model.safetensors")).unwrap();
    assert!(adapter(&whole) == adapter(&killed), "the adapters differ");

    // What was trained can be asked, and is as good as the run said.
    let report = octet(["finetune", text(&model), text(&data), "--evaluate", "--adapter", text(&whole)]).succeeded();
    let report: Value = serde_json::from_str(&report).unwrap();
    let untrained = octet(["finetune", text(&model), text(&data), "--evaluate"]).succeeded();
    let untrained: Value = serde_json::from_str(&untrained).unwrap();
    assert!(report["loss"].as_f64().unwrap() < 0.7 * untrained["loss"].as_f64().unwrap(), "{report} {untrained}");
    assert_eq!(report["expert_load"].as_array().unwrap().len(), 8);

    let other = scratch.file("other.jsonl", "{\"text\": \"abc\"}\n");
    finetune(&model, &other, &killed, &["--resume"]).refused_naming(&["another model, data or settings"]);
    finetune(&model, &data, &killed, &[]).refused_naming(&["is there already", "--resume"]);
}

/// What was trained by the best evaluation is of one run: another one in the same folder, and one that has lost it, do not
/// take what they find, or the last numbers, for it.
#[test]
fn the_best_evaluation_is_that_of_the_run() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), letters(&scratch));
    let other = scratch.file("other.jsonl", "{\"text\": \"abcdefgh\"}\n".repeat(8));
    let (out, alone) = (scratch.path("out"), scratch.path("alone"));
    let evaluate = ["--eval", text(&data), "--eval-every", "2"];
    let adapter = |out: &Path| std::fs::read(out.join("adapter_model.safetensors")).unwrap();
    finetune(&model, &data, &out, &evaluate).succeeded();
    let best = adapter(&out);

    // The numbers of the best evaluation are lost.
    std::fs::rename(out.join("best"), scratch.path("best")).unwrap();
    finetune(&model, &data, &out, &[&evaluate[..], &["--resume"]].concat()).refused_naming(&["best", "is missing"]);
    std::fs::rename(scratch.path("best"), out.join("best")).unwrap();
    finetune(&model, &data, &out, &[&evaluate[..], &["--resume"]].concat()).succeeded();
    assert!(adapter(&out) == best, "a run that has ended ends the same again");

    // The run was killed after its first evaluation and before its first snapshot; another one takes its place.
    std::fs::remove_dir_all(out.join("snapshots")).unwrap();
    let said = finetune(&model, &other, &out, &["--resume"]);
    assert!(said.stderr().contains("starting anew") && !said.stderr().contains("best"), "{}", said.stderr());
    said.succeeded();
    finetune(&model, &other, &alone, &[]).succeeded();
    assert!(adapter(&out) == adapter(&alone), "the result is another run's");
    assert!(!out.join("best").exists());
}

/// The configuration's coefficient counts however the model is spelled, also when a run goes on.
#[test]
fn a_folder_and_its_weights_are_one_model() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), letters(&scratch));
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_str(&config).unwrap();
    config["router_aux_loss_coef"] = json!(0.5);
    scratch.file("model/config.json", config.to_string());
    let file = model.join("model.safetensors");
    let [by_folder, by_file] = ["folder", "file"].map(|name| scratch.path(name));
    finetune(&model, &data, &by_folder, &[]).succeeded();
    finetune(&file, &data, &by_file, &[]).succeeded();
    assert_eq!(losses(&by_file), losses(&by_folder));
    finetune(&file, &data, &by_folder, &["--resume"]).succeeded();
    finetune(&file, &data, &by_folder, &["--resume", "--balance", "0.5"]).succeeded();
    finetune(&file, &data, &by_folder, &["--resume", "--balance", "0.001"]).refused_naming(&["settings"]);
}

/// The body of an answer to a request that closes its connection.
fn http(address: &str, request: &str, body: &str) -> Value {
    let mut stream = TcpStream::connect(address).unwrap();
    let head = format!("{request} HTTP/1.0\r\nhost: {address}\r\ncontent-type: application/json");
    write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[test]
fn an_adapter_answers_in_the_terminal_and_over_http() {
    let scratch = Scratch::new();
    let (model, data, out) = (model(&scratch), letters(&scratch), scratch.path("out"));
    let run = ["finetune", text(&model), text(&data), "--out", text(&out), "--rate", "0.01", "--steps", "40"];
    octet(run.into_iter().chain(["--batch", "8", "--targets", "attention,experts,router"])).succeeded();
    let asked = ["--chat", "--temperature", "0", "--max-tokens", "24", "--quiet", "c"];
    let say = |more: &[&str]| {
        octet(["generate", text(&model)].into_iter().chain(more.iter().copied()).chain(asked)).succeeded()
    };
    let (plain, taught) = (say(&[]), say(&["--adapter", text(&out)]));
    assert_ne!(plain, taught);
    assert_ne!(say(&["--adapter", text(&out), "--quantize", "Q8_0"]), say(&["--quantize", "Q8_0"]));

    let adapter = format!("taught={}", text(&out));
    let mut server = Command::new(env!("CARGO_BIN_EXE_octet"))
        .args(["serve", text(&model), "--port", "0", "--adapter", &adapter])
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    let address =
        said.find_map(|line| Some(line.split_once("http://")?.1.to_owned())).expect("it says where it serves");
    let answer = |model: &str| {
        let message = json!({"role": "user", "content": "c"});
        let body = json!({"model": model, "messages": [message], "temperature": 0, "max_tokens": 24}).to_string();
        http(&address, "POST /v1/chat/completions", &body)
    };
    let [of_model, of_adapter] =
        ["model", "taught"].map(|name| answer(name)["choices"][0]["message"]["content"].clone());
    let models = http(&address, "GET /v1/models", "");
    let unknown = answer("untaught")["error"]["message"].to_string();
    server.kill().unwrap();
    server.wait().unwrap();
    assert_eq!(of_model.as_str().unwrap(), plain.trim_end_matches('\n'));
    assert_eq!(of_adapter.as_str().unwrap(), taught.trim_end_matches('\n'));
    assert_eq!(models["data"][0]["id"], "model", "{models}");
    assert_eq!(
        (&models["data"][1]["id"], &models["data"][1]["parent"]),
        (&json!("taught"), &json!("model")),
        "{models}"
    );
    assert!(unknown.contains("model, taught"), "{unknown}");

    let other = scratch.copy_of("mixtral-4x3", "other");
    let adapter_of_other = scratch::fixtures().join("mixtral-4x3/lora");
    octet(["generate", text(&model), "--adapter", text(&adapter_of_other), "x"])
        .refused_naming(&["another model's adapter"]);
    octet(["generate", text(&model), "--adapter", text(&data), "x"]).refused_naming(&["adapter_config.json"]);
    let serve = |adapter: &str| octet(["serve", text(&model), text(&other), "--port", "0", "--adapter", adapter]);
    serve(&adapter).refused_naming(&["which model", "model, other"]);
    serve(&format!("{adapter}:third")).refused_naming(&["no model third"]);
    serve("model=x:other").refused_naming(&["of this name already"]);
}

#[test]
fn ctrl_c_ends_the_step_and_keeps_it() {
    let scratch = Scratch::new();
    let (model, data, out) = (model(&scratch), letters(&scratch), scratch.path("out"));
    let mut child = Command::new(env!("CARGO_BIN_EXE_octet"))
        .args(["finetune", text(&model), text(&data), "--out", text(&out), "--steps", "100000", "--batch", "4"])
        .stderr(Stdio::piped())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line.contains("step 3 of 100000")));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let rest: Vec<String> = said.collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    let end = rest.iter().find(|line| line.contains("stopped after step")).unwrap_or_else(|| panic!("{rest:?}"));
    assert!(end.contains("--resume"), "{end}");
    assert_eq!(std::fs::read_dir(out.join("snapshots")).unwrap().count(), 1);
}

#[test]
fn a_run_that_diverges_stops_and_names_step_and_rows() {
    let scratch = Scratch::new();
    let (model, data, out) = (model(&scratch), letters(&scratch), scratch.path("out"));
    let arguments = ["finetune", text(&model), text(&data), "--out", text(&out), "--rate", "1e30", "--save-every", "1"];
    let outcome = octet(arguments.into_iter().chain(["--warmup", "0", "--batch", "20", "--epochs", "3"]));
    let (stderr, code) = (outcome.stderr(), outcome.output.status.code());
    assert_eq!(code, Some(1), "{stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.contains("of step 2 is") && last.contains("letters.jsonl, line "), "{last}");
    assert!(out.join("snapshots/step-000000001/state.json").is_file());
}

/// Letters of which the next one is better than another.
fn pairs(scratch: &Scratch, count: u8) -> PathBuf {
    let pair = |i: u8| {
        let answer = |c: u8| ((b'a' + c % 26) as char).to_string();
        json!({"prompt": answer(i), "chosen": answer(i + 1), "rejected": answer(i + 7)}).to_string() + "\n"
    };
    scratch.file("pairs.jsonl", (0..count).map(pair).collect::<String>())
}

/// What the reference said of each training pair, if it was asked; bit for bit.
fn kept_reference(out: &Path) -> Vec<Option<[f64; 2]>> {
    let kept: Value = serde_json::from_slice(&std::fs::read(out.join("reference-train.json")).unwrap()).unwrap();
    serde_json::from_value(kept["log_probabilities"].clone()).unwrap()
}

#[test]
fn the_reference_reads_the_pairs_of_the_steps_alone() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), pairs(&scratch, 16));
    let run = |out: &Path, more: &[&str]| {
        let arguments = ["finetune", text(&model), text(&data), "--out", text(out), "--batch", "2"];
        octet(arguments.into_iter().chain(more.iter().copied())).succeeded();
        kept_reference(out)
    };
    let (whole, few) = (scratch.path("whole"), scratch.path("few"));
    let of_all = run(&whole, &["--epochs", "1"]);
    let of_few = run(&few, &["--steps", "3"]);
    assert_eq!((of_all.len(), of_all.iter().flatten().count()), (16, 16));
    assert_eq!((of_few.len(), of_few.iter().flatten().count()), (16, 6), "three steps of two pairs");
    // Sums of ten logarithms in f32, of passes that hold other samples: some 1e-6 each.
    let near = |few: [f64; 2], all: [f64; 2]| few.iter().zip(all).all(|(few, all)| (few - all).abs() < 1e-5);
    let same = of_few.iter().zip(&of_all).all(|(few, all)| few.is_none_or(|few| near(few, all.unwrap())));
    assert!(same, "{of_few:?} {of_all:?}");

    // What is kept is used again where it is of the same run and holds what the steps need, and computed again elsewhere.
    let file = few.join("reference-train.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    let known = of_few.iter().flatten().next().unwrap()[0].to_string();
    let again = |text: &str| {
        std::fs::write(&file, text).unwrap();
        run(&few, &["--steps", "3", "--resume"]);
        std::fs::read_to_string(&file).unwrap()
    };
    let changed = kept.replace(&known, "-1.5");
    assert_ne!(changed, kept);
    assert_eq!(again(&changed), changed, "it is read, not computed");
    assert_eq!(again(&changed.replace("\"fingerprint\":\"", "\"fingerprint\":\"0")), kept, "of another run");
    let mut lacking: Value = serde_json::from_str(&kept).unwrap();
    lacking["log_probabilities"] = json!(vec![Value::Null; 16]);
    assert_eq!(again(&lacking.to_string()), kept, "it lacks what the steps need");
}

#[test]
fn preferences_are_compared_with_the_model_that_was_asked_for() {
    let scratch = Scratch::new();
    let (model, letters, pairs) = (model(&scratch), letters(&scratch), pairs(&scratch, 8));
    let taught = scratch.path("taught");
    finetune(&model, &letters, &taught, &[]).succeeded();
    let run = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        let arguments = ["finetune", text(&model), text(&pairs), "--out", text(&out), "--batch", "8", "--steps", "1"];
        octet(arguments.into_iter().chain(more.iter().copied())).succeeded();
        let asked: Vec<[f64; 2]> = kept_reference(&out).into_iter().flatten().collect();
        (losses(&out)[0].1.parse::<f64>().unwrap(), asked)
    };
    let adapter = ["--adapter", text(&taught)];
    let (new, base) = run("new", &[]);
    let (continued, policy) = run("continued", &adapter);
    let (against_base, reference) = run("against-base", &[adapter[0], adapter[1], "--base-reference"]);
    // Policy and reference are the same before the first step, of a new adapter and of one that is continued.
    let ln_2 = std::f64::consts::LN_2;
    assert!((new - ln_2).abs() < 1e-6 && (continued - ln_2).abs() < 1e-6, "{new} {continued}");
    // Without its adapter the model is the one that a new adapter begins with.
    assert_eq!(reference, base);
    assert_ne!(policy, base);
    // -log σ(β ((policy - reference) of the better answer - that of the worse)), with β = 0.1.
    let loss = |(p, r): (&[f64; 2], &[f64; 2])| (1.0 + (-0.1 * ((p[0] - r[0]) - (p[1] - r[1]))).exp()).ln();
    let expected = policy.iter().zip(&base).map(loss).sum::<f64>() / 8.0;
    assert!((against_base - expected).abs() < 1e-6, "{against_base} {expected}");
    assert!((against_base - ln_2).abs() > 1e-3, "{against_base} is no other than ln 2");
}

#[test]
fn preferences_and_all_weights_are_learned() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), pairs(&scratch, 16));
    let out = scratch.path("out");
    let arguments =
        ["finetune", text(&model), text(&data), "--out", text(&out), "--all", "--rate", "0.003", "--steps", "8"];
    let more = ["--batch", "8", "--eval", text(&data), "--eval-every", "4"];
    octet(arguments.into_iter().chain(more)).succeeded();
    let lines = std::fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let first: Value = serde_json::from_str(lines.lines().next().unwrap()).unwrap();
    // Before the first step policy and reference are the same.
    assert!((first["loss"].as_f64().unwrap() - std::f64::consts::LN_2).abs() < 1e-6, "{first}");
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(last["eval_loss"].as_f64().unwrap() < 0.6 && last["eval_accuracy"].as_f64().unwrap() > 0.9, "{last}");
    assert!(std::fs::read_to_string(out.join("curve.svg")).unwrap().starts_with("<svg"));
    octet(["verify", text(&out.join("model"))]).succeeded();
    let tokens = octet(["tokenize", text(&out.join("model")), "ab"]).succeeded();
    assert!(tokens.contains("97"), "{tokens}");
}

#[test]
fn what_would_be_learned_is_shown_and_what_is_wrong_is_named() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), letters(&scratch));
    let report = octet(["finetune", text(&model), text(&data), "--check"]).succeeded();
    for part in ["40 conversations", "chatml", "⟦b<|im_end|>⟧", "letters.jsonl, line 1"] {
        assert!(report.contains(part), "{report}\nshould contain {part}");
    }
    // What a run would take is told as it then turns out: of time a test can only ask that it is told.
    let forecast = octet(["finetune", text(&model), text(&data), "--check"].into_iter().chain(RUN)).succeeded();
    let told = scratch.path("told");
    let said = finetune(&model, &data, &told, &[]).stderr();
    let metrics = std::fs::read_to_string(told.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let tokens = last["tokens"].as_u64().unwrap();
    let grouped = format!("{},{:03}", tokens / 1000, tokens % 1000);
    for part in [&format!("{grouped} tokens in 12 steps"), "fits", "tok/s", "as some layers and the head were measured"]
    {
        assert!(forecast.contains(part), "{forecast}\nshould contain {part}");
    }
    let trained = said.lines().find_map(|line| Some(line.split_once(" numbers are trained")?.0.to_owned())).unwrap();
    let trained = trained.rsplit(' ').next().unwrap();
    assert!(forecast.contains(&format!("{trained} numbers")), "{forecast}\nshould train {trained}");

    let check = |lines: &str| octet_reading(lines, ["finetune", text(&model), "-", "--check"]);
    let wrong = check("{\"text\": \"ok\"}\n{\"instruction\": \"x\"}\n");
    assert!(!wrong.output.status.success());
    assert!(wrong.stdout().contains("1 wrong"), "{}", wrong.stdout());
    assert!(wrong.stderr().contains("standard input, line 2: needs `messages`"), "{}", wrong.stderr());
    let out = scratch.path("out");
    let refused = |lines: &str, more: &[&str]| {
        let data = scratch.file("bad.jsonl", lines);
        let outcome = finetune(&model, &data, &out, more);
        assert!(!out.exists(), "nothing is to be left behind");
        outcome.refused()
    };
    let long = json!({"prompt": "a".repeat(50), "completion": "b"}).to_string();
    for (lines, more, words) in [
        ("", vec![], vec!["bad.jsonl", "is empty"]),
        ("{\"text\": \"ok\"}\nnonsense\n", vec![], vec!["bad.jsonl, line 2", "is not JSON"]),
        ("{\"text\": \"ok\"}\n", vec!["--method", "dpo"], vec!["line 1: is plain text", "`rejected`"]),
        (&long, vec!["--max-length", "20"], vec!["line 1: has 7", "--too-long"]),
        (&long, vec!["--max-length", "20", "--too-long", "drop"], vec!["holds nothing to learn"]),
        ("{\"text\": \"ok\"}\n", vec!["--warmup", "2"], vec!["--warmup"]),
    ] {
        let line = refused(lines, &more);
        words.iter().for_each(|word| assert!(line.contains(word), "{line}\nshould name {word}"));
    }
}

#[test]
fn a_router_learns_of_all_experts_if_asked() {
    let scratch = Scratch::new();
    let (model, data) = (model(&scratch), letters(&scratch));
    let run = |name: &str, more: &[&str]| {
        let out = scratch.path(name);
        let fixed = ["finetune", text(&model), text(&data), "--out", text(&out), "--steps", "2", "--rate", "0.1"];
        (octet([&fixed[..], more].concat()), out)
    };
    let losses_of = |name: &str, more: &[&str]| {
        let (run, out) = run(name, more);
        run.succeeded();
        losses(&out)
    };
    let (chosen, all) =
        (losses_of("chosen", &["--targets", "router"]), losses_of("all", &["--targets", "router", "--dense-router"]));
    assert_eq!(chosen[0], all[0], "the answer is that of the chosen experts");
    assert_ne!(chosen[1], all[1], "the router has learned something else");
    run("refused", &["--dense-router"]).0.refused_naming(&["--dense-router", "no router is trained", "--targets"]);
}
