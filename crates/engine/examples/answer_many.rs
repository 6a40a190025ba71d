//! One model, several questions at once: Octet inside another program.
//!
//! ```text
//! cargo run --release -p octet-engine --example answer_many -- MODEL.gguf "Why is the sky blue?" "Who wrote Hamlet?"
//! ```
//!
//! All questions share each pass over the weights, their common beginning is computed once, and each answer is the one
//! that its question alone would have got.

use std::error::Error;

use octet_engine::{Engine, EngineOptions, Event, Request, Stop, TextStart};
use octet_tokenizer::{ChatFormat, Conversation, Message};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: answer_many MODEL QUESTION...";
    let model = arguments.next().ok_or(usage)?;
    let questions: Vec<String> = arguments.collect();

    let engine = Engine::open(model.as_ref(), &EngineOptions::default())?;
    let format = ChatFormat::for_tokenizer(engine.tokenizer())?;
    let mut streams = Vec::new();
    for question in &questions {
        let conversation = Conversation { messages: vec![Message::user(question)], ..Default::default() };
        let mut request = Request::new(format.render(&conversation)?.ids, TextStart::Fresh);
        request.stop = Stop::after(200);
        // All are on their way from here on; reading one does not hold the others up.
        streams.push(engine.generate(request)?);
    }
    for (question, events) in questions.iter().zip(streams) {
        println!("> {question}");
        for event in events {
            match event {
                Event::Token { text, .. } => print!("{text}"),
                Event::Finished { text, usage, .. } => {
                    println!(
                        "{text}\n  {} tokens, {} of the prompt shared\n",
                        usage.completion_tokens, usage.cached_tokens
                    );
                }
                Event::Failed(error) => return Err(error.into()),
                _ => {}
            }
        }
    }
    let stats = engine.stats();
    println!("{} steps for {} tokens", stats.steps, stats.completion_tokens);
    Ok(())
}
