//! `octet tokenize` and `octet render`: tables for people, filters for programs.

mod scratch;

use scratch::{Scratch, octet, octet_reading, text, tokenizer};
use serde_json::{Value, json};

const V3: &str = "mistral_instruct_tokenizer_240323.model.v3";

fn filtered<'a>(input: &Value, arguments: impl IntoIterator<Item = &'a str>) -> Value {
    let output = octet_reading(&input.to_string(), arguments).succeeded();
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

/// A few rows of tests/fixtures/tokenizer-goldens.json, spelled out.
#[test]
fn tokenize_filters_json() {
    let model = tokenizer("tokenizer.model.v1");
    let rows = filtered(&json!(["Hello", "a\u{2581}b", "", "</s>"]), ["tokenize", text(&model), "--json"]);
    assert_eq!(rows[0], json!({"ids": [22557], "pieces": ["▁Hello"], "decoded": "Hello"}));
    assert_eq!(rows[1], json!({"ids": [264, 287], "pieces": ["▁a", "▁b"], "decoded": "a b"}));
    assert_eq!(rows[2], json!({"ids": [], "pieces": [], "decoded": ""}));
    assert_eq!(rows[3]["decoded"], "</s>");
    assert!(rows[3]["ids"].as_array().unwrap().len() > 1, "typed control tokens are text");
    let control = filtered(&json!(["</s>"]), ["tokenize", text(&model), "--json", "--control"]);
    assert_eq!(control[0]["ids"], json!([2]));
}

#[test]
fn tokenize_prints_a_table() {
    let model = tokenizer("tokenizer.model.v1");
    let expected = "  22557  ▁Hello\n     13  <0x0A>\n      2  tokens\n";
    assert_eq!(octet(["tokenize", text(&model), "Hello\n"]).succeeded(), expected);
    assert_eq!(octet_reading("Hello\n", ["tokenize", text(&model)]).succeeded(), expected);
}

#[test]
fn render_filters_json() {
    let conversation = json!({"messages": [{"role": "user", "content": "Hello"}], "tools": null});
    let rendered = filtered(&conversation, ["render", text(&tokenizer(V3)), "--json"]);
    assert_eq!(rendered, json!({"ids": [1, 3, 23325, 4], "text": "<s>[INST]▁Hello[/INST]"}));
    let v1 = filtered(&conversation, ["render", text(&tokenizer("tokenizer.model.v1")), "--json"]);
    assert_eq!(v1["ids"], json!([1, 733, 16289, 28793, 22557, 733, 28748, 16289, 28793]));
}

#[test]
fn render_takes_text_formats_and_templates() {
    let model = tokenizer("tokenizer.model.v1");
    let said = octet(["render", text(&model), "Hi", "--system", "Be brief."]).succeeded();
    assert!(said.starts_with("<s>▁[INST]▁Be▁brief.<0x0A><0x0A>Hi▁[/INST]\n\n      1  <s>\n"), "{said}");
    let chatml = octet(["render", text(&model), "Hi", "--format", "chatml"]).succeeded();
    assert!(chatml.starts_with("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"), "{chatml}");
    let scratch = Scratch::new();
    let template = scratch.file("t.jinja", "{{ messages[0].content | upper }}");
    let own = octet(["render", text(&model), "Hi", "--template", text(&template), "--json"]).succeeded();
    assert!(own.contains("\"text\":\"HI\""), "{own}");
    octet(["render", text(&model), "Hi", "--format", "v9"]).refused_naming(&["--format v9", "chatml"]);
    let endless =
        scratch.file("e.jinja", "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}");
    octet(["render", text(&model), "Hi", "--template", text(&endless)]).refused_naming(&["e.jinja", "end"]);
}

#[test]
fn what_has_no_tokenizer_or_format_is_named() {
    let scratch = Scratch::new();
    let empty = scratch.file("tokenizer.model", "");
    octet(["tokenize", text(&empty), "x"]).refused_naming(&["tokenizer.model", "SentencePiece"]);
    octet(["tokenize", text(&scratch.path("none")), "x"]).refused_naming(&["none"]);
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]});
    octet_reading(&image.to_string(), ["render", text(&tokenizer(V3)), "--json"]).refused_naming(&["image_url"]);
}
