//! Who answers in a chat: a model of our own, or one behind a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use octet_engine::{Flow, Generator, Piece, Prompt, TextStart};
use octet_model::Nothing;
use octet_tokenizer::{ChatFormat, Conversation};

use crate::generate::{experts_cost, statistics};
use crate::remote::Remote;
use crate::sampling_options::SamplingOptions;
use crate::stdout;

/// Who answers.
pub enum Voice {
    /// A model in this process, with the format of its conversations.
    Own(Box<Generator>, ChatFormat),
    /// A model behind a server.
    Server(Remote),
}

impl Voice {
    /// A model in this process.
    ///
    /// # Errors
    /// Nothing tells how conversations are written for it.
    pub fn own(generator: Generator) -> anyhow::Result<Voice> {
        let format = ChatFormat::for_tokenizer(generator.tokenizer())?;
        Ok(Voice::Own(Box::new(generator), format))
    }

    /// Experts that work on each token, as far as is known.
    pub fn experts(&self) -> String {
        match self {
            Voice::Own(generator, _) => generator.experts_per_token().to_string(),
            Voice::Server(remote) => remote.experts_per_token.map_or("off".into(), |experts| experts.to_string()),
        }
    }

    /// Sets them; `None` for the model's own number. Tells what they cost, if that is known.
    ///
    /// # Errors
    /// The model has not so many.
    pub fn set_experts(&mut self, experts: Option<usize>) -> anyhow::Result<String> {
        match self {
            Voice::Own(generator, _) => {
                generator.set_experts_per_token(experts)?;
                Ok(experts_cost(generator.model(), generator.experts_per_token()))
            }
            Voice::Server(remote) => {
                remote.experts_per_token = experts;
                Ok(String::new())
            }
        }
    }

    /// Answers a conversation: the text goes to standard output as it comes, then statistics to standard error. Gives the
    /// whole text.
    ///
    /// # Errors
    /// It cannot be answered, or nobody reads the answer any more.
    pub fn say(
        &mut self,
        conversation: &Conversation,
        options: &SamplingOptions,
        stopped: &Arc<AtomicBool>,
    ) -> anyhow::Result<String> {
        let mut stream = stdout::Stream::new();
        let mut show = |text: &str| match stream.push(text) {
            Flow::Continue if stopped.load(Ordering::Relaxed) => Flow::Stop,
            flow => flow,
        };
        let (text, statistics) = match self {
            Voice::Own(generator, format) => {
                let prompt = format.render(conversation)?;
                let (sampling, stop) = (options.sampling(), options.stop());
                let start = TextStart::Fresh;
                let request = Prompt { prompt: &prompt.ids, start, sampling: &sampling, stop: &stop, logprobs: None };
                let mut watch = |event: Piece<'_>| show(event.text);
                let answer = generator.generate(&request, &mut Nothing, &mut watch)?;
                let statistics = statistics(generator, &answer, sampling.seed);
                (answer.text, statistics)
            }
            Voice::Server(remote) => {
                let reply = remote.ask(&conversation.messages, options, None, stopped.clone(), &mut show);
                // A connection that breaks ends the answer, where a terminal that does ends the chat: a message alone.
                let reply = reply.map_err(|error| anyhow::anyhow!("{error:#}"))?;
                let statistics = reply.statistics();
                (reply.text, statistics)
            }
        };
        stream.finish()?;
        eprintln!("{statistics}\n");
        Ok(text)
    }
}
