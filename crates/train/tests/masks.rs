//! What is learned of a conversation, with Mistral's own tokenizers: exactly what serving would let the model say.

use octet_tokenizer::{ChatFormat, Conversation, Message, Tokenizer};
use octet_train::dataset::{Example, Origin, Pair, Row};
use octet_train::sample::{Sample, SampleMaker, TooLong};
use std::path::{Path, PathBuf};

fn tokenizer(name: &str) -> Tokenizer {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/cache/mistral-common");
    let path = std::env::var_os("OCTET_TOKENIZERS").map_or_else(|| default.into(), PathBuf::from).join(name);
    assert!(path.is_file(), "{} is missing: run tests/fetch_tokenizers first", path.display());
    Tokenizer::open(path).unwrap()
}

fn row(example: Example) -> Row {
    Row { example, origin: Origin { file: Path::new("t.jsonl").into(), number: 9 } }
}

fn chat(messages: Vec<Message>) -> Row {
    row(Example::Chat(Conversation { messages, tools: vec![] }))
}

fn two_turns() -> Vec<Message> {
    vec![
        Message::system("Be brief."),
        Message::user("Hello"),
        Message::assistant("Hi there"),
        Message::user("Bye </s>"),
        Message::assistant("See you"),
    ]
}

/// Each learned run as text with the names of control tokens.
fn learned(tokenizer: &Tokenizer, sample: &Sample) -> Vec<String> {
    let runs = sample.learned.chunk_by(|a, b| a == b);
    let mut at = 0;
    let mut texts = Vec::new();
    for run in runs {
        let ids = &sample.tokens[at..at + run.len()];
        at += run.len();
        if run[0] {
            texts.push(ids.iter().map(|&id| tokenizer.piece(id)).collect());
        }
    }
    texts
}

#[test]
fn v1_learns_every_answer_in_one_sample() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let format = ChatFormat::named(&tokenizer, "v1").unwrap();
    let mut maker = SampleMaker::new(&tokenizer, Some(&format), 500, TooLong::Refuse);
    let samples = maker.samples(&chat(two_turns())).unwrap();
    assert_eq!(samples.len(), 1);
    assert_eq!(learned(&tokenizer, &samples[0]), ["▁Hi▁there</s>", "▁See▁you</s>"]);
    let whole = format.render(&Conversation { messages: two_turns(), tools: vec![] }).unwrap();
    assert_eq!(samples[0].tokens, whole.ids);
}

/// v3 writes the system text at the last user turn, so the past is written in another way than it was when it was said.
#[test]
fn v3_gives_each_answer_the_prompt_that_serving_gives() {
    let tokenizer = tokenizer("mistral_instruct_tokenizer_240323.model.v3");
    let format = ChatFormat::named(&tokenizer, "v3").unwrap();
    let mut maker = SampleMaker::new(&tokenizer, Some(&format), 500, TooLong::Refuse);
    let samples = maker.samples(&chat(two_turns())).unwrap();
    assert_eq!(samples.len(), 2);
    for (sample, (end, answer)) in samples.iter().zip([(2, "▁Hi▁there</s>"), (4, "▁See▁you</s>")]) {
        assert_eq!(learned(&tokenizer, sample), [answer]);
        let prompt = format.render(&Conversation { messages: two_turns()[..end].to_vec(), tools: vec![] }).unwrap();
        assert!(sample.tokens.starts_with(&prompt.ids));
        assert!(!sample.learned[prompt.ids.len() - 1] && sample.learned[prompt.ids.len()]);
    }
    // Without a system text the past stays as it was.
    let samples = maker.samples(&chat(two_turns()[1..].to_vec())).unwrap();
    assert_eq!(samples.len(), 1);
}

#[test]
fn a_template_learns_up_to_the_end_of_the_answer_and_not_the_line_break_after_it() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let template = "{% for m in messages %}{{ '<' + m.role + '>' + m.content + eos_token + '\n' }}{% endfor %}\
                    {% if add_generation_prompt %}<assistant>{% endif %}";
    let format = ChatFormat::template(&tokenizer, template, Path::new("t.jinja")).unwrap();
    let mut maker = SampleMaker::new(&tokenizer, Some(&format), 500, TooLong::Refuse);
    let samples = maker.samples(&chat(two_turns())).unwrap();
    assert_eq!(samples.len(), 1);
    let texts = learned(&tokenizer, &samples[0]);
    assert_eq!(texts.iter().map(|t| t.replace('▁', " ")).collect::<Vec<_>>(), ["Hi there</s>", "See you</s>"]);
    assert!(samples[0].tokens.ends_with(&[tokenizer.eos().unwrap()]));
}

#[test]
fn answers_in_a_row_are_one_answer() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let format = ChatFormat::named(&tokenizer, "v1").unwrap();
    let mut maker = SampleMaker::new(&tokenizer, Some(&format), 500, TooLong::Refuse);
    let messages = vec![Message::user("a"), Message::assistant("b"), Message::assistant("c"), Message::user("d")];
    let samples = maker.samples(&chat(messages)).unwrap();
    assert_eq!(learned(&tokenizer, &samples[0]), ["▁b<0x0A><0x0A>c</s>"]);
}

#[test]
fn what_is_too_long_follows_the_rule() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let format = ChatFormat::named(&tokenizer, "v1").unwrap();
    let make = |rule, limit| {
        let mut maker = SampleMaker::new(&tokenizer, Some(&format), limit, rule);
        let made = maker.samples(&chat(two_turns()));
        (made, maker.n_too_long, maker.n_dropped)
    };
    let (made, ..) = make(TooLong::Refuse, 20);
    let problem = made.unwrap_err();
    assert!(problem.starts_with("t.jsonl, line 9: has ") && problem.contains("--max-length is 20"), "{problem}");
    let (made, n_too_long, n_dropped) = make(TooLong::CutEnd, 20);
    assert_eq!((made.unwrap()[0].tokens.len(), n_too_long, n_dropped), (20, 1, 0));
    // Cut within the first prompt, nothing is left to learn.
    let (made, n_too_long, n_dropped) = make(TooLong::CutEnd, 5);
    assert_eq!((made.unwrap().len(), n_too_long, n_dropped), (0, 1, 1));
    let (made, n_too_long, n_dropped) = make(TooLong::Drop, 20);
    assert_eq!((made.unwrap().len(), n_too_long, n_dropped), (0, 1, 1));
}

#[test]
fn long_texts_lose_nothing() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let mut maker = SampleMaker::new(&tokenizer, None, 10, TooLong::Refuse);
    let text = "one two three four five six seven eight nine ten eleven twelve";
    let samples = maker.samples(&row(Example::Text(text.into()))).unwrap();
    let ids: Vec<u32> = samples.iter().flat_map(|sample| sample.tokens.clone()).collect();
    assert!(samples.len() > 1 && samples.iter().all(|sample| sample.tokens.len() <= 10));
    assert_eq!(ids[1..ids.len() - 1], tokenizer.encode(text));
    assert_eq!((ids[0], ids[ids.len() - 1]), (tokenizer.bos().unwrap(), tokenizer.eos().unwrap()));
}

#[test]
fn a_pair_is_one_prompt_with_two_answers() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let format = ChatFormat::named(&tokenizer, "v1").unwrap();
    let mut maker = SampleMaker::new(&tokenizer, Some(&format), 500, TooLong::Refuse);
    let prompt = Conversation { messages: two_turns()[..4].to_vec(), tools: vec![] };
    let answer = |text: &str| vec![Message::assistant(text)];
    let pair = Pair { prompt, chosen: answer("Bye"), rejected: answer("No") };
    let pair = maker.pair(&row(Example::Pair(pair))).unwrap().unwrap();
    // What was answered before the prompt's end is no part of the comparison.
    assert_eq!(learned(&tokenizer, &pair.chosen), ["▁Bye</s>"]);
    assert_eq!(learned(&tokenizer, &pair.rejected), ["▁No</s>"]);
    let shared = pair.chosen.learned.iter().position(|&l| l).unwrap();
    assert_eq!(pair.chosen.tokens[..shared], pair.rejected.tokens[..shared]);
    let text = maker.pair(&chat(two_turns())).unwrap_err();
    assert!(text.contains("is a conversation; --method dpo needs"), "{text}");
}

#[test]
fn a_model_without_a_format_says_so() {
    let tokenizer = tokenizer("tokenizer.model.v1");
    let mut maker = SampleMaker::new(&tokenizer, None, 500, TooLong::Refuse);
    assert!(maker.samples(&chat(two_turns())).unwrap_err().contains("choose --format or --template"));
}
