//! One rule for conversations that a format cannot take as they are, the same for every API and for training.
//!
//! 1. Messages of one role in a row become one, their texts joined by an empty line. Tool results stay apart.
//! 2. System messages, wherever they stand, become one system text, joined by an empty line.
//! 3. Assistant messages with neither text nor calls are dropped, unless they are to be continued.
//! 4. If the first turn is not the user's, an empty user turn is put in front of it.
//!
//! The rule is mistral-common's, widened by 3 where mistral-common refuses. "In a row" means neighbours in the
//! original list: a system message between two user messages keeps them apart. One thing differs: beside other system
//! messages, mistral-common sets blank lines for one whose list of chunks holds empty texts alone, but none for one
//! whose text is empty; here neither says anything.

use super::conversation::{Conversation, Message, Role, TEXT_SEPARATOR};

/// A conversation whose turns any instruct format can write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Folded {
    /// All system texts; `None` if there are none.
    pub(crate) system: Option<String>,
    /// Begins with a user turn; no system turns.
    pub(crate) turns: Vec<Message>,
}

/// Applies the rule.
pub(crate) fn fold(conversation: &Conversation) -> Folded {
    let says_something = |message: &&Message| {
        message.role != Role::Assistant
            || !message.content.is_empty()
            || !message.tool_calls.is_empty()
            || message.prefix
    };
    let mut system = Vec::new();
    let mut turns: Vec<Message> = Vec::new();
    let mut previous = None;
    for message in conversation.messages.iter().filter(says_something) {
        let is_repeated = previous == Some(message.role);
        previous = Some(message.role);
        match (message.role, turns.last_mut()) {
            (Role::System, _) if message.content.is_empty() => {}
            (Role::System, _) => system.push(message.content.as_str()),
            (Role::User | Role::Assistant, Some(last)) if is_repeated => append(last, message),
            _ => turns.push(message.clone()),
        }
    }
    if turns.first().is_none_or(|first| first.role != Role::User) {
        turns.insert(0, Message::user(""));
    }
    let system = (!system.is_empty()).then(|| system.join(TEXT_SEPARATOR));
    Folded { system, turns }
}

fn append(last: &mut Message, message: &Message) {
    if !last.content.is_empty() && !message.content.is_empty() {
        last.content.push_str(TEXT_SEPARATOR);
    }
    last.content.push_str(&message.content);
    last.tool_calls.extend_from_slice(&message.tool_calls);
    last.prefix |= message.prefix;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folded(messages: &[(Role, &str)]) -> (Option<String>, Vec<(Role, String)>) {
        let messages = messages.iter().map(|&(role, text)| Message::new(role, text)).collect();
        let folded = fold(&Conversation { messages, tools: Vec::new() });
        (folded.system, folded.turns.into_iter().map(|turn| (turn.role, turn.content)).collect())
    }

    #[test]
    fn repeated_roles_become_one() {
        use Role::*;
        let (system, turns) =
            folded(&[(System, "a"), (User, "b"), (User, ""), (User, "c"), (Assistant, ""), (User, "d"), (System, "e")]);
        assert_eq!(system.as_deref(), Some("a\n\ne"));
        assert_eq!(turns, [(User, "b\n\nc\n\nd".into())]);
    }

    #[test]
    fn a_system_message_keeps_users_apart() {
        use Role::*;
        let (_, turns) = folded(&[(User, "a"), (System, "s"), (User, "b")]);
        assert_eq!(turns, [(User, "a".into()), (User, "b".into())]);
    }

    #[test]
    fn the_user_begins() {
        use Role::*;
        assert_eq!(folded(&[]).1, [(User, String::new())]);
        assert_eq!(folded(&[(Assistant, "hi")]).1, [(User, String::new()), (Assistant, "hi".into())]);
    }
}
