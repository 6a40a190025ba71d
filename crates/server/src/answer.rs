//! From the engine's events to the pieces of an answer: calls of tools are taken out of the text, and what it all took is
//! counted.

use std::collections::VecDeque;
use std::time::Instant;

use octet_engine::Routed;
use octet_tokenizer::ToolCall;
use serde_json::{Value, json};

use crate::ask::{Ask, Calls};
use crate::bridge::{Event, Events, Running};
use crate::messages::ToolChoice;
use crate::on_demand::Use;
use crate::piece::{End, Piece, Usage};
use crate::refusal::{Fault, Refusal};
use crate::tool_calls::{CallParser, Found};
use crate::track::Track;

/// An answer that is being written. Dropping it ends it, wherever it is.
pub struct Answer {
    events: Events,
    /// Ends the engine's part, prompt by prompt, when dropped.
    running: Running,
    track: Track,
    /// Keeps the model while the answer is written.
    using: Option<Use>,
    choices: Vec<State>,
    /// Choices of a prompt.
    n: usize,
    calls: Option<Calls>,
    /// Tokens read of each prompt, and those of them that the prefix cache had.
    read: Vec<(usize, usize)>,
    prompt_tokens: usize,
    usage: Usage,
    ready: VecDeque<Piece>,
    is_over: bool,
}

#[derive(Default)]
struct State {
    parser: Option<CallParser>,
    n_calls: usize,
    last_token: Option<Instant>,
    /// Its end is told.
    has_ended: bool,
    /// The engine is done with it, and has said what it took.
    is_counted: bool,
}

impl Answer {
    /// The answer to `ask`, of which `running` sends `events`.
    pub fn new(ask: &Ask, events: Events, running: Running, track: Track) -> Answer {
        let parser = |calls: &Calls| match calls.choice {
            ToolChoice::Required | ToolChoice::Named(_) => CallParser::forced(calls.style),
            ToolChoice::Auto | ToolChoice::None => CallParser::new(calls.style),
        };
        let state = |_| State { parser: ask.calls.as_ref().map(parser), ..State::default() };
        Answer {
            events,
            running,
            track,
            using: None,
            choices: (0..ask.choices()).map(state).collect(),
            n: ask.n,
            calls: ask.calls.clone(),
            read: vec![(0, 0); ask.prompts.len()],
            prompt_tokens: ask.prompts.iter().map(Vec::len).sum(),
            usage: Usage::default(),
            ready: VecDeque::new(),
            is_over: false,
        }
    }

    /// The same with this use of the model, which is over with the answer.
    pub fn using(self, using: Use) -> Answer {
        Answer { using: Some(using), ..self }
    }

    /// How many choices it has.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The next piece; `None` after the last, which is [`Piece::Done`] or [`Piece::Failed`].
    pub async fn next(&mut self) -> Option<Piece> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.is_over {
                return None;
            }
            match self.events.recv().await {
                Some((choice, event)) => self.take(choice, event),
                None => self.fail(Refusal::internal("the engine stopped; the server's log tells why")),
            }
        }
    }

    /// A piece that is there already.
    pub fn next_now(&mut self) -> Option<Piece> {
        while self.ready.is_empty() && !self.is_over {
            let (choice, event) = self.events.try_recv().ok()?;
            self.take(choice, event);
        }
        self.ready.pop_front()
    }

    fn take(&mut self, choice: usize, event: Event) {
        match event {
            Event::End { end, usage } => {
                self.end(choice, end);
                self.count(choice, &usage);
            }
            Event::Cancelled { usage } if self.choices[choice].has_ended => self.count(choice, &usage),
            Event::Cancelled { .. } => {
                let message = "the server is going down and breaks the answer off; ask again elsewhere or later";
                self.fail(Refusal::new(Fault::Unavailable, message));
            }
            Event::Failed(refusal) => self.fail(refusal),
            // What is written behind the end, until the engine has heard of it.
            _ if self.choices[choice].has_ended => {}
            Event::Reading { prompt, done, cached } => {
                self.read[prompt] = (done, cached);
                let done = self.read.iter().map(|of| of.0).sum();
                self.track.read(done, self.read.iter().map(|of| of.1).sum());
                self.ready.push_back(Piece::Reading { done, total: self.prompt_tokens });
            }
            Event::Prompt(tokens) => self.ready.push_back(Piece::Prompt { choice, tokens }),
            Event::Token { text, token, is_wanted } => {
                self.count_token(choice);
                let (id, tokens) = (token.id, if is_wanted { vec![token] } else { Vec::new() });
                self.text(choice, Some(id), text, tokens);
            }
            Event::Routing(routed) => self.ready.push_back(Piece::Routing(routing(choice, &routed))),
            Event::Rest(text) => self.text(choice, None, text, Vec::new()),
        }
    }

    fn count_token(&mut self, choice: usize) {
        let now = Instant::now();
        self.usage.completion_tokens += 1;
        self.track.token(self.choices[choice].last_token.replace(now), now);
    }

    fn text(&mut self, choice: usize, token: Option<u32>, text: String, tokens: Vec<crate::piece::Token>) {
        let Some(parser) = &mut self.choices[choice].parser else {
            if !text.is_empty() || !tokens.is_empty() {
                self.ready.push_back(Piece::Text { choice, text, tokens });
            }
            return;
        };
        let found = parser.push(token, &text);
        if !tokens.is_empty() {
            self.ready.push_back(Piece::Text { choice, text: String::new(), tokens });
        }
        self.found(choice, found);
    }

    fn found(&mut self, choice: usize, found: Vec<Found>) {
        for one in found {
            match one {
                _ if self.choices[choice].has_ended => return,
                Found::Text(text) => self.ready.push_back(Piece::Text { choice, text, tokens: Vec::new() }),
                Found::Call(call) => {
                    let index = self.choices[choice].n_calls;
                    self.choices[choice].n_calls += 1;
                    self.ready.push_back(Piece::Call { choice, index, call });
                    if self.calls.as_ref().is_some_and(|calls| calls.single) {
                        self.end(choice, End::Eos);
                    }
                }
                Found::Unparsed(text) => {
                    let warning = format!("a tool call of choice {choice} could not be parsed and is given as text");
                    self.ready.push_back(Piece::Warning(warning));
                    self.ready.push_back(Piece::Text { choice, text, tokens: Vec::new() });
                }
            }
        }
    }

    fn end(&mut self, choice: usize, end: End) {
        if let Some(parser) = self.choices[choice].parser.take() {
            let rest = parser.finish();
            self.found(choice, rest);
        }
        let state = &mut self.choices[choice];
        if std::mem::replace(&mut state.has_ended, true) {
            return;
        }
        let is_named = matches!(&self.calls, Some(Calls { choice: ToolChoice::Named(_), .. }));
        let end = match end {
            End::Eos if state.n_calls > 0 && is_named => End::NamedCall,
            End::Eos if state.n_calls > 0 => End::Calls,
            end => end,
        };
        self.ready.push_back(Piece::End { choice, end });
        let prompt = choice / self.n;
        if self.choices[prompt * self.n..][..self.n].iter().all(|state| state.has_ended) {
            // A choice may have ended by its only call while the engine goes on with it: it is told so, and says then what
            // the choice took.
            if let Some(ticket) = self.running.get(prompt) {
                ticket.cancel();
            }
        }
    }

    /// Adds what a choice took; what all took is told after the last.
    fn count(&mut self, choice: usize, usage: &Usage) {
        self.usage.cached_tokens += usage.cached_tokens;
        self.usage.queued = self.usage.queued.max(usage.queued);
        self.usage.prompt_time = self.usage.prompt_time.max(usage.prompt_time);
        self.usage.generation_time = self.usage.generation_time.max(usage.generation_time);
        self.choices[choice].is_counted = true;
        if self.choices.iter().all(|state| state.is_counted) {
            self.usage.prompt_tokens = self.prompt_tokens;
            self.track.done(&self.usage);
            self.ready.push_back(Piece::Done(self.usage));
            self.is_over = true;
            self.using = None;
        }
    }

    fn fail(&mut self, refusal: Refusal) {
        self.track.failed(&refusal);
        self.ready.push_back(Piece::Failed(refusal));
        self.is_over = true;
        self.using = None;
    }
}

/// A call in the form in which OpenAI and Mistral write it.
pub fn tool_call(call: &crate::tool_calls::Call) -> ToolCall {
    let function = octet_tokenizer::FunctionCall { name: call.name.clone(), arguments: call.arguments.clone() };
    ToolCall { id: Some(call.id.clone()), kind: "function".into(), function }
}

/// Experts and weights `[layers][tokens][experts of a token]` of consecutive tokens, prompt included.
fn routing(choice: usize, routed: &Routed) -> Value {
    let (tokens, each) = (routed.n_tokens.max(1), routed.per_token.max(1));
    let layers = |list: Vec<Value>| -> Value {
        let tokens_of = |layer: &[Value]| -> Value { layer.chunks(each).map(|experts| json!(experts)).collect() };
        list.chunks(tokens * each).map(tokens_of).collect()
    };
    json!({
        "choice": choice,
        "first_position": routed.first_position,
        "experts": layers(routed.experts.iter().map(|expert| json!(expert)).collect()),
        "weights": layers(routed.weights.iter().map(|weight| json!(weight)).collect()),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::piece::Token;
    use crate::stream::tests::track;
    use crate::tool_calls::CallStyle;
    use octet_engine::TextStart;
    use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

    const CALL: &str = "<tool_call>{\"name\": \"f\", \"arguments\": {}}";

    fn answer(n: usize) -> (UnboundedSender<(usize, Event)>, Answer) {
        let (sender, events) = unbounded_channel();
        let calls = Calls { style: CallStyle::Tagged, choice: ToolChoice::Auto, single: true };
        let ask = Ask { n, calls: Some(calls), ..Ask::new(vec![1; 9], TextStart::Fresh) };
        (sender, Answer::new(&ask, events, Vec::new(), track()))
    }

    fn token(text: &str) -> Event {
        Event::Token { text: text.into(), token: Token::default(), is_wanted: false }
    }

    fn usage() -> Usage {
        Usage { prompt_tokens: 9, cached_tokens: 4, prompt_time: Duration::from_millis(3), ..Usage::default() }
    }

    fn pieces(answer: &mut Answer) -> Vec<Piece> {
        std::iter::from_fn(|| answer.next_now()).collect()
    }

    #[test]
    fn an_answer_that_ends_by_its_only_call_still_says_what_it_took() {
        let (events, mut answer) = answer(1);
        events.send((0, token(CALL))).unwrap();
        let first = pieces(&mut answer);
        assert!(matches!(first[..], [Piece::Call { .. }, Piece::End { end: End::Calls, .. }]), "{first:?}");
        events.send((0, token("behind the end"))).unwrap();
        assert!(pieces(&mut answer).is_empty());
        events.send((0, Event::Cancelled { usage: usage() })).unwrap();
        let rest = pieces(&mut answer);
        let [Piece::Done(usage)] = rest[..] else { panic!("{rest:?}") };
        assert_eq!((usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens), (9, 4, 1));
        assert_eq!(usage.prompt_time, Duration::from_millis(3));
    }

    #[test]
    fn a_choice_that_ended_by_its_call_waits_for_the_others() {
        let (events, mut answer) = answer(2);
        events.send((0, token(CALL))).unwrap();
        events.send((1, token("text"))).unwrap();
        events.send((1, Event::End { end: End::Eos, usage: usage() })).unwrap();
        let first = pieces(&mut answer);
        assert!(matches!(first.last(), Some(Piece::End { choice: 1, end: End::Eos })), "{first:?}");
        events.send((0, Event::Cancelled { usage: usage() })).unwrap();
        assert!(matches!(pieces(&mut answer)[..], [Piece::Done(_)]));
    }

    #[test]
    fn what_the_server_cancels_breaks_off_even_behind_a_choice_that_has_ended() {
        let (events, mut answer) = answer(2);
        events.send((0, Event::End { end: End::Eos, usage: usage() })).unwrap();
        events.send((1, Event::Cancelled { usage: usage() })).unwrap();
        let told = pieces(&mut answer);
        assert!(matches!(told.last(), Some(Piece::Failed(refusal)) if refusal.fault == Fault::Unavailable), "{told:?}");
    }
}
