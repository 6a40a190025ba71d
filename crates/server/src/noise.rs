//! Lines of system texts that change with every request and tell the model nothing, such as the header that Claude Code
//! sends for its account. They stand at the very front, so each would make all pages after it worthless; they are taken
//! out, and the reply says so.

use octet_tokenizer::{Message, Role};

/// How such lines begin that no operator has to name.
const KNOWN: [&str; 1] = ["x-anthropic-billing-header:"];

/// Takes lines out of system messages that begin as known ones or `more` do; whether there were any.
pub fn take_out(messages: &mut [Message], more: &[String]) -> bool {
    let is_noise = |line: &str| {
        let line = line.trim_start();
        KNOWN.iter().copied().chain(more.iter().map(String::as_str)).any(|noise| line.starts_with(noise))
    };
    let mut found = false;
    for message in messages.iter_mut().filter(|message| message.role == Role::System) {
        if !message.content.lines().any(is_noise) {
            continue;
        }
        found = true;
        let rest: String = message.content.split_inclusive('\n').filter(|line| !is_noise(line)).collect();
        message.content = rest.trim_start_matches('\n').to_owned();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_change_with_every_request_are_taken_out() {
        let text = |cch: u32| {
            format!(
                "x-anthropic-billing-header: cc_version=2.1; cch={cch:05x};\n\nBe brief.\nTokens left: {cch}\nBe kind."
            )
        };
        let quiet = |cch: u32| {
            let mut messages = [Message::system(text(cch)), Message::user(text(cch))];
            assert!(take_out(&mut messages, &["Tokens left:".into()]));
            assert_eq!(messages[1].content, text(cch), "what users say is theirs");
            messages[0].content.clone()
        };
        assert_eq!(quiet(7), "Be brief.\nBe kind.");
        assert_eq!(quiet(7), quiet(8));
        assert!(!take_out(&mut [Message::system("Be brief.")], &[]));
    }
}
