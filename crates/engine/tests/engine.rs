//! The engine on a tiny real model: the same answers in any company, shared prompts computed once, nothing leaks.

mod support;

use std::time::{Duration, Instant};

use octet_engine::{
    Engine, EngineOptions, Event, Flow, Generator, Prompt, Random, Request, Stats, Stop, StopReason, TextStart,
};
use octet_kernels::KvType;
use octet_model::Nothing;
use support::{adapters, ask, ask_all, collect, engine, model, options, prompt, request};

/// Requests of every kind: short and long, greedy and drawn, with prompts that share their beginnings.
fn mixed() -> Vec<Request> {
    let lengths = [1, 5, 63, 64, 65, 130, 200, 300];
    let mut requests = Vec::new();
    for (i, &length) in lengths.iter().cycle().take(30).enumerate() {
        let mut ids = prompt(i as u64 % 3, length);
        if i % 4 == 3 {
            ids.extend(prompt(100 + i as u64, 20));
        }
        let mut request = request(ids, 8 + i * 13 % 90);
        request.logprobs = Some(2);
        if i % 2 == 1 {
            request.sampling.temperature = 0.9;
            request.sampling.top_p = 0.95;
            request.sampling.seed = i as u64;
            request.sampling.frequency_penalty = 0.2;
        }
        if i % 5 == 4 {
            request.experts_per_token = Some(1 + i % 3);
        }
        request.adapter = [None, None, Some("first"), Some("second"), None][i % 5].map(str::to_owned);
        request.priority = i as i32 % 2;
        requests.push(request);
    }
    requests
}

fn alone(options: &EngineOptions, requests: &[Request]) -> Vec<Vec<support::Answer>> {
    // A fresh engine for each: nothing is shared, nothing is cut.
    requests.iter().map(|r| ask(&engine(options), r.clone()).choices).collect()
}

#[test]
fn an_answer_does_not_depend_on_company_chunks_cache_or_preemption() {
    let requests = mixed();
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0] {
        let mut whole = options(64);
        whole.kv_bytes = Some(200 * 64 * 512);
        whole.open.kv = kv;
        whole.open.adapters = adapters();
        let expected = alone(&whole, &requests);
        let mut crowded = whole.clone();
        crowded.open.chunk = 37;
        // Room for about three of the longer sequences.
        crowded.open.context = Some(448);
        crowded.kv_bytes = Some(match kv {
            KvType::F32 => 8 * 64 * 512,
            KvType::F16 => 8 * 64 * 256,
            KvType::Q8_0 => 8 * 64 * 192,
        });
        for options in [&whole, &crowded] {
            let engine = engine(options);
            for round in 0..2 {
                let got = ask_all(&engine, &requests);
                for (i, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    assert_eq!(got.failed, None);
                    assert_eq!(&got.choices, expected, "{kv:?}, round {round}, request {i}");
                }
            }
            let stats = engine.stats();
            assert!(stats.cached_tokens > 0, "the second round finds prompts of the first");
            assert_eq!(stats.preemptions > 0, options.open.chunk == 37, "{} preemptions", stats.preemptions);
        }
    }
}

/// Adapters change answers, share no pages with the model alone, and are known by name.
#[test]
fn adapters_answer_by_name() {
    let mut with_adapters = options(64);
    with_adapters.open.adapters = adapters();
    let engine = engine(&with_adapters);
    let of = |adapter: Option<&str>| Request { adapter: adapter.map(str::to_owned), ..request(prompt(4, 100), 20) };
    let [plain, first, second] =
        [None, Some("first"), Some("second")].map(|adapter| ask(&engine, of(adapter)).choices.remove(0).ids);
    assert!(plain != first && plain != second && first != second, "{plain:?} {first:?} {second:?}");
    assert_eq!(engine.stats().cached_tokens, 0, "keys and values of one adapter are no use to another");
    assert_eq!(ask(&engine, of(Some("second"))).choices[0].ids, second);
    assert_eq!(engine.stats().cached_tokens, 99);
    let error = engine.generate(of(Some("third"))).err().unwrap().to_string();
    assert_eq!(error, "there is no adapter third; this model has first, second");
    let twice = [adapters(), adapters()].concat();
    with_adapters.open.adapters = twice;
    let error = Engine::open(model(), &with_adapters).err().unwrap().to_string();
    assert_eq!(error, "two adapters are called first; give one another name");
}

#[test]
fn a_shared_prompt_is_computed_once() {
    let engine = engine(&options(64));
    let shared = prompt(1, 300);
    let requests: Vec<Request> = (0..16).map(|i| request([shared.clone(), prompt(50 + i, 20)].concat(), 4)).collect();
    let answers = ask_all(&engine, &requests);
    let stats = engine.stats();
    let computed = stats.prompt_tokens - stats.cached_tokens;
    // One reads all 320 tokens; fifteen read their own 20, and up to 8 that were not worth copying.
    assert!(computed <= 320 + 15 * 28, "{computed} tokens computed");
    for (request, answer) in requests.iter().zip(&answers) {
        assert_eq!(answer.choices, ask(&support::engine(&options(64)), request.clone()).choices);
    }
}

#[test]
fn a_growing_conversation_computes_only_what_is_new() {
    let engine = engine(&options(64));
    let mut ids = prompt(1, 100);
    let first = ask(&engine, request(ids.clone(), 20));
    assert_eq!(first.usage.cached_tokens, 0);
    ids.extend(&first.choices[0].ids);
    ids.extend(prompt(2, 10));
    let second = ask(&engine, request(ids.clone(), 5));
    // All but the last drawn token has been computed.
    assert_eq!(second.usage.cached_tokens, 119);
    assert_eq!(second.choices, ask(&support::engine(&options(64)), request(ids, 5)).choices);
}

#[test]
fn several_choices_share_their_prompt() {
    let engine = engine(&options(64));
    let mut several = request(prompt(1, 200), 12);
    several.n = 4;
    several.sampling.temperature = 1.0;
    several.sampling.seed = 9;
    let got = ask(&engine, several.clone());
    assert_eq!(got.choices.len(), 4);
    assert_eq!(engine.stats().prompt_tokens - engine.stats().cached_tokens, 200);
    for (choice, answer) in got.choices.iter().enumerate() {
        let mut one = several.clone();
        one.n = 1;
        one.sampling.seed += choice as u64;
        assert_eq!(&ask(&support::engine(&options(64)), one).choices[0], answer);
    }
}

#[test]
fn prompt_logprobs_hidden_states_and_routing_tell_of_every_token() {
    let mut scored = request(prompt(3, 150), 3);
    scored.prompt_logprobs = Some(1);
    scored.hidden = Some(octet_engine::Pooling::Mean);
    scored.record_routing = true;
    let mut small = options(64);
    small.open.chunk = 32;
    let (a, b) = (ask(&engine(&options(64)), scored.clone()), ask(&engine(&small), scored.clone()));
    assert_eq!(a.prompt_logprobs.len(), 149);
    assert_eq!(a.prompt_logprobs, b.prompt_logprobs);
    assert_eq!(a.hidden, b.hidden);
    assert!(a.prompt_logprobs.iter().zip(&scored.prompt[1..]).all(|(l, &id)| l.id == id && l.logprob < 0.0));
    let routed: usize = b.routed.iter().map(|r| r.n_tokens).sum();
    assert_eq!(routed, 152, "the last drawn token is never computed");
    assert!(b.routed.iter().all(|r| r.experts.len() == 2 * r.n_tokens * r.per_token));
}

#[test]
fn the_engine_says_what_the_generator_says() {
    let mut generator = Generator::open(model(), &options(8).open).unwrap();
    let engine = engine(&options(64));
    for seed in 0..3 {
        let ids = prompt(seed, 40);
        let stop = Stop { max_tokens: Some(30), ..Stop::default() };
        let mut request = Request::new(ids.clone(), TextStart::Continued);
        (request.stop, request.logprobs) = (stop.clone(), Some(1));
        let (start, sampling) = (TextStart::Continued, &request.sampling);
        let question = Prompt { prompt: &ids, start, sampling, stop: &stop, logprobs: Some(1) };
        let answer = generator.generate(&question, &mut Nothing, &mut |_| Flow::Continue).unwrap();
        let got = ask(&engine, request.clone());
        assert_eq!((&got.choices[0].ids, &got.choices[0].text), (&answer.tokens, &answer.text));
        assert!(answer.logprobs.iter().map(|l| l.id).eq(answer.tokens.iter().copied()));
        assert_eq!(got.choices[0].reason, Some(answer.reason));
    }
}

#[test]
fn answers_end_for_the_reason_that_is_told() {
    let engine = engine(&options(64));
    let free = ask(&engine, request(prompt(1, 10), 20)).choices.remove(0);
    assert_eq!(free.reason, Some(StopReason::MaxTokens));
    let ended = |change: &dyn Fn(&mut Request)| {
        let mut request = request(prompt(1, 10), 20);
        change(&mut request);
        ask(&engine, request).choices.remove(0)
    };
    let by_token = ended(&|r| r.stop.token_ids = vec![free.ids[7]]);
    let first = free.ids.iter().position(|id| *id == free.ids[7]).unwrap();
    assert_eq!((by_token.reason, by_token.ids.len()), (Some(StopReason::StopToken(free.ids[7])), first));
    let least = ended(&|r| (r.stop.token_ids, r.stop.min_tokens) = (vec![free.ids[0]], 5));
    assert!(least.ids.len() >= 5 && !least.ids[..5].contains(&free.ids[0]));
    assert_eq!(
        ended(&|r| r.stop.max_tokens = Some(0)),
        support::Answer { reason: Some(StopReason::MaxTokens), ..Default::default() }
    );
    let late = ended(&|r| r.deadline = Some(Instant::now()));
    assert_eq!((late.reason, late.ids.len()), (Some(StopReason::Deadline), 0));
    let full = ended(&|r| (r.prompt, r.stop.max_tokens) = (prompt(1, 505), None));
    assert_eq!((full.reason, full.ids.len()), (Some(StopReason::ContextFull), 7));
    let needle: String = free.text.chars().skip(3).take(2).collect();
    let by_string = ended(&|r| r.stop.strings = vec!["never there".into(), needle.clone()]);
    assert_eq!((by_string.reason, by_string.stop_string), (Some(StopReason::StopString), Some(needle.clone())));
    assert_eq!(by_string.text, free.text[..free.text.find(&needle).unwrap()]);
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    let mut small = options(64);
    small.max_queue = 0;
    let (engine, full) = (engine(&options(64)), engine(&small));
    let error = |change: &dyn Fn(&mut Request)| {
        let mut request = request(prompt(1, 10), 20);
        change(&mut request);
        engine.generate(request).map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(error(&|r| r.prompt = vec![]), "the prompt is empty: give at least one token");
    let long = error(&|r| r.prompt = prompt(1, 600));
    assert!(long.contains("600") && long.contains("512"), "{long}");
    assert!(error(&|r| r.prompt = vec![512]).contains("512"));
    assert!(error(&|r| r.n = 0).contains("n is 0"));
    assert!(error(&|r| r.n = 65).contains("n is 65; it has to be from 1 to 64"), "more than may run");
    assert!(error(&|r| r.experts_per_token = Some(9)).contains("experts_per_token is 9"));
    assert!(error(&|r| r.sampling.top_p = 0.0).contains("top_p"));
    let refused = full.generate(request(prompt(1, 10), 1)).map(|_| ()).unwrap_err();
    assert!(matches!(refused, octet_engine::Error::QueueFull { .. }), "{refused}");
}

#[test]
fn higher_priority_goes_first() {
    let mut one = options(64);
    one.max_running = 1;
    let engine = engine(&one);
    let (sender, order) = std::sync::mpsc::channel();
    let submit = |name: &'static str, priority: i32| {
        let mut request = request(prompt(priority as u64, 300), 50);
        request.priority = priority;
        let sender = sender.clone();
        let sink = move |event| {
            if let Event::Finished { .. } = event {
                sender.send(name).unwrap();
            }
            Flow::Continue
        };
        engine.submit(request, Box::new(sink)).unwrap()
    };
    let _tickets = [submit("first", 0), submit("low", -1), submit("also low", -1), submit("high", 1)];
    drop(sender);
    // The first one may be stopped by the high one, and goes on afterwards.
    let order: Vec<_> = order.iter().take(4).collect();
    assert_eq!(order[2..], ["low", "also low"]);
}

/// The counts once nothing is taken any more, or after a while: an answer's last event is sent before its place is given up.
fn settled(engine: &Engine) -> Stats {
    let patience = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = engine.stats();
        if stats.running + stats.waiting + stats.pages_used == 0 || Instant::now() > patience {
            return stats;
        }
        std::thread::yield_now();
    }
}

#[test]
fn thousands_of_requests_that_go_away_leak_nothing() {
    let mut tight = options(10);
    tight.open.chunk = 48;
    tight.max_running = 12;
    tight.max_queue = 4000;
    let engine = engine(&tight);
    let reference = support::engine(&options(64));
    let mut random = Random::new(77);
    let mut kept = Vec::new();
    for i in 0..3000 {
        let mut request =
            request(prompt(random.bits() % 6, 1 + (random.bits() % 180) as usize), (random.bits() % 24) as usize);
        request.n = if i % 7 == 0 { 3 } else { 1 };
        request.sampling.temperature = 1.0;
        request.sampling.seed = i;
        request.priority = (random.bits() % 3) as i32;
        match random.bits() % 4 {
            0 => drop(engine.generate(request).unwrap()),
            1 => {
                let patience = random.bits() % 12;
                let mut seen = 0;
                let sink = move |_| {
                    seen += 1;
                    if seen > patience { Flow::Stop } else { Flow::Continue }
                };
                // The ticket lives on while the listener has gone.
                kept.push((None, Some(engine.submit(request, Box::new(sink)).unwrap())));
            }
            2 => {
                request.deadline = Some(Instant::now() + Duration::from_micros(random.bits() % 200_000));
                kept.push((Some((None, engine.generate(request).unwrap())), None));
            }
            _ => {
                let copy = (i % 29 == 0).then(|| request.clone());
                kept.push((Some((copy, engine.generate(request).unwrap())), None));
            }
        }
    }
    for (events, _ticket) in kept {
        let Some((copy, events)) = events else { continue };
        let got = collect(events);
        assert!(got.failed.is_none() && got.choices.iter().all(|answer| answer.reason.is_some()));
        if let Some(request) = copy {
            assert_eq!(got.choices, ask(&reference, request).choices);
        }
    }
    let stats = settled(&engine);
    assert_eq!((stats.running, stats.waiting, stats.pages_used, stats.failed), (0, 0, 0, 0));
    assert!(stats.preemptions > 0 && stats.cancelled > 500, "{stats:?}");
    assert_eq!(ask(&engine, request(prompt(9, 100), 5)).choices, ask(&reference, request(prompt(9, 100), 5)).choices);
}

#[test]
fn a_drained_engine_finishes_what_it_has() {
    let engine = engine(&options(64));
    let handle = engine.clone();
    let events = handle.generate(request(prompt(1, 200), 30)).unwrap();
    engine.drain(Duration::from_secs(60));
    assert_eq!(collect(events).choices[0].ids.len(), 30);
    assert!(matches!(handle.generate(request(prompt(1, 2), 1)), Err(octet_engine::Error::ShuttingDown)));
}

#[test]
fn pages_on_disk_survive_a_restart_and_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut stored = options(12);
    stored.disk_cache = Some(octet_engine::DiskCacheOptions { folder: folder.path().into(), bytes: 4 << 20 });
    let question = || request(prompt(1, 300), 10);
    let first = engine(&stored);
    let expected = ask(&first, question()).choices;
    // Others push its pages out of memory.
    for seed in 2..6 {
        ask(&first, request(prompt(seed, 320), 4));
    }
    let again = ask(&first, question());
    assert_eq!((&again.choices, first.stats().disk_tokens > 0), (&expected, true));
    drop(first);
    let second = engine(&stored);
    let again = ask(&second, question());
    assert_eq!((again.choices, again.usage.cached_tokens), (expected, 4 * 64));
    drop(second);
    let mut other = stored.clone();
    other.open.kv = KvType::Q8_0;
    other.kv_bytes = None;
    let refused = octet_engine::Engine::open(model(), &other).map(|_| ()).unwrap_err().to_string();
    assert!(refused.contains("another model or format"), "{refused}");
}

#[test]
fn guessing_changes_no_answer() {
    let mut plain = options(64);
    plain.speculation = false;
    let (guessing, plain) = (engine(&options(64)), engine(&plain));
    for seed in 0..4 {
        let mut repetitive = request(prompt(seed, 40).repeat(3), 200);
        repetitive.logprobs = Some(1);
        repetitive.sampling.temperature = if seed % 2 == 0 { 0.0 } else { 0.3 };
        repetitive.sampling.seed = seed;
        repetitive.record_routing = true;
        let (a, b) = (ask(&guessing, repetitive.clone()), ask(&plain, repetitive));
        assert_eq!(a.choices, b.choices);
        let routed = |outcome: &support::Outcome| outcome.routed.iter().map(|r| r.n_tokens).sum::<usize>();
        assert_eq!(routed(&a), routed(&b));
    }
    let stats = guessing.stats();
    assert!(stats.drafted_tokens > 0 && stats.accepted_tokens <= stats.drafted_tokens, "{stats:?}");
    assert_eq!(plain.stats().drafted_tokens, 0);
}

/// A panic on the engine's thread, here of a listener, ends the answers under way; the next ones are as before.
#[test]
fn a_fault_ends_the_answers_under_way_and_not_the_engine() {
    let engine = engine(&options(64));
    let asked = request(prompt(1, 100), 20);
    let before = ask(&engine, asked.clone());
    let beside = engine.generate(request(prompt(2, 100), 400)).unwrap();
    let _ticket = engine.submit(request(prompt(3, 10), 10), Box::new(|_| panic!("on purpose"))).unwrap();
    let beside = collect(beside);
    assert!(beside.failed.is_some_and(|error| error.contains("ask again")));
    let after = ask(&engine, asked);
    assert_eq!((after.failed, after.choices), (None, before.choices));
    let stats = settled(&engine);
    assert_eq!((stats.running, stats.waiting, stats.pages_used), (0, 0, 0));
}

/// Whoever watches an engine sees that it has work while its first step hangs, and that it has none after a fault.
#[test]
fn what_runs_is_counted_before_its_step_has_ended() {
    let engine = engine(&options(64));
    let (sender, seen) = std::sync::mpsc::channel();
    let handle: octet_engine::Handle = (*engine).clone();
    let sink = move |event| {
        if let Event::PromptProgress { .. } = event {
            sender.send(handle.stats().running).unwrap();
            panic!("on purpose");
        }
        Flow::Continue
    };
    let _ticket = engine.submit(request(prompt(3, 10), 10), Box::new(sink)).unwrap();
    assert_eq!(seen.recv(), Ok(1));
    assert_eq!(settled(&engine).running, 0);
}

/// Several answers to one prompt are as many as they are, also before the prompt has been read.
#[test]
fn no_more_answers_run_than_may() {
    let mut two = options(64);
    two.max_running = 3;
    let engine = engine(&two);
    let (sender, most) = std::sync::mpsc::channel();
    let submit = |n: usize| {
        let mut request = request(prompt(n as u64, 40), 12);
        request.n = n;
        let (sender, handle) = (sender.clone(), (*engine).clone());
        let sink = move |event| {
            if let Event::Token { .. } = event {
                sender.send(handle.stats().running).unwrap();
            }
            Flow::Continue
        };
        engine.submit(request, Box::new(sink)).unwrap()
    };
    let _tickets = [submit(2), submit(3), submit(1), submit(2)];
    drop(sender);
    assert_eq!(most.iter().max(), Some(3));
}
