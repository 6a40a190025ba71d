//! What `octet serve` refuses before it listens, in one line that names the fault. tests/clients has what it serves.

mod scratch;

use scratch::{Scratch, Serving, fixtures, octet, text};

#[test]
fn without_keys_only_this_machine_may_come_in() {
    let model = fixtures().join("mixtral-8x2");
    octet(["serve", text(&model), "--host", "0.0.0.0", "--port", "0"]).refused_naming(&["loopback", "--api-key"]);
}

#[test]
fn options_that_cannot_be_are_named() {
    let scratch = Scratch::new();
    let model = fixtures().join("mixtral-8x2");
    let keys = scratch.file("keys", "alice sk-1\nbob");
    octet(["serve", text(&model), "--api-keys", text(&keys)]).refused_naming(&["line 2", "bob"]);
    let keys = scratch.file("keys", "alice sk-1 speed=3");
    octet(["serve", text(&model), "--api-keys", text(&keys)]).refused_naming(&["line 1", "speed"]);
    octet(["serve", text(&model), "--port", "0", "--alias", "x=nothing"])
        .refused_naming(&["--alias x=nothing", "mixtral-8x2"]);
    octet(["serve", text(&model), text(&model), "--port", "0"]).refused_naming(&["mixtral-8x2", "two models"]);
    let pem = scratch.file("cert.pem", "nothing");
    octet(["serve", text(&model), "--port", "0", "--tls-cert", text(&pem), "--tls-key", text(&pem)])
        .refused_naming(&["cert.pem"]);
    octet(["serve", text(&model), "--tls-cert", text(&pem)]).refused_naming(&["--tls-key"]);
    octet(["serve", text(&model), "--port", "0", "--max-requests", "0"]).refused_naming(&["--max-requests", "0"]);
}

#[test]
fn peers_are_named_with_addresses_and_keys_that_exist() {
    let model = fixtures().join("mixtral-8x2");
    let serve = |options: &[&str]| octet([&["serve", text(&model), "--port", "0"], options].concat());
    serve(&["--peer", "other"]).refused_naming(&["NAME=URL"]);
    serve(&["--peer", "other=ftp://host"]).refused_naming(&["--peer other", "ftp://host", "https://HOST"]);
    serve(&["--peer", "a=http://x", "--peer", "a=http://y"]).refused_naming(&["--peer a=http://y", "once"]);
    serve(&["--peer-key", "other=KEY"]).refused_naming(&["--peer-key other=KEY", "--peer other=URL"]);
    let unset = ["--peer", "other=http://x", "--peer-key", "other=OCTET_TEST_NO_SUCH_KEY"];
    serve(&unset).refused_naming(&["OCTET_TEST_NO_SUCH_KEY is not set"]);
    serve(&["--data", "x", "--no-history"]).refused_naming(&["--data", "--no-history"]);
}

/// Two files of one name have a folder each of the cache, at the same time and one after the other.
#[test]
fn models_of_one_file_name_share_a_cache() {
    let scratch = Scratch::new();
    let tokenizer = scratch::bytes_tokenizer().to_string();
    let [a, b] = [("a", "mixtral-8x2"), ("b", "mixtral-4x3")].map(|(name, fixture)| {
        let model = scratch.copy_of(fixture, name);
        scratch.file(&format!("{name}/tokenizer.json"), &tokenizer);
        format!("{name}={}", text(&model.join("model.safetensors")))
    });
    let cache = scratch.path("cache");
    let options = ["--cache", text(&cache), "--no-history"];
    drop(Serving::new(&[&a, &b], &options));
    drop(Serving::new(&[&b], &options));
    let mut folders: Vec<_> =
        std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    assert_eq!(folders.len(), 2, "{folders:?}");
    assert!(folders.iter().all(|name| name.starts_with("model.safetensors-")), "{folders:?}");
}

#[test]
fn a_model_that_is_not_there_or_has_no_words_is_named() {
    let scratch = Scratch::new();
    octet(["serve", text(&scratch.path("missing.gguf"))]).refused_naming(&["missing.gguf"]);
    // The reference models have no tokenizer.
    octet(["serve", text(&fixtures().join("mixtral-8x2")), "--port", "0"]).refused_naming(&["tokenizer"]);
}

#[test]
fn an_address_in_use_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    octet(["serve", text(&fixtures().join("mixtral-8x2")), "--port", &port]).refused_naming(&["cannot listen", &port]);
}

#[test]
fn a_load_needs_a_server_that_answers() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    octet(["bench", "--server", &format!("http://{closed}")]).refused_naming(&["cannot connect"]);
    octet(["bench", "--server", "ftp://x"]).refused_naming(&["ftp://x", "http://"]);
    octet(["bench", "--server", &format!("http://{closed}"), "--rate", "0"]).refused_naming(&["--rate"]);
}
