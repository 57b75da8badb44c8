//! The turns of a conversation: who speaks, what is said, in which order.

use std::borrow::Cow;

use super::record::{Conversations, Field, Turn, unknown_role};
use super::reject::{Reason, Rejection};

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    System,
    User,
    Assistant,
    /// What a tool gave back: for the model a question like any other.
    Tool,
}

impl Role {
    /// The name in the pool.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User | Self::Tool => "user",
            Self::Assistant => "assistant",
        }
    }

    /// Reads the names that LLaVA, ShareGPT, LLaMA-Factory and OpenAI give to the roles.
    fn parse(name: &str) -> Option<Self> {
        const NAMES: [(&str, Role); 15] = [
            ("human", Role::User),
            ("user", Role::User),
            ("gpt", Role::Assistant),
            ("assistant", Role::Assistant),
            ("chatgpt", Role::Assistant),
            ("bard", Role::Assistant),
            ("model", Role::Assistant),
            ("function_call", Role::Assistant),
            ("tool_call", Role::Assistant),
            ("system", Role::System),
            ("developer", Role::System),
            ("observation", Role::Tool),
            ("tool", Role::Tool),
            ("tool_response", Role::Tool),
            ("function", Role::Tool),
        ];
        NAMES
            .iter()
            .find(|(known, _)| name.eq_ignore_ascii_case(known))
            .map(|&(_, role)| role)
    }
}

type Spoken<'a> = (Role, Cow<'a, str>);

/// Checks the turns of a record; `system` is a prompt that stands outside of them.
pub(super) fn check<'a>(
    conversations: Conversations<'a>,
    system: Option<Cow<'a, str>>,
    alternate: bool,
) -> Result<Vec<Spoken<'a>>, Rejection> {
    let given = match conversations {
        Conversations::Turns(turns) if !turns.is_empty() => turns,
        Conversations::Turns(_) => {
            return Err(no_conversations("the list of turns is empty".into()));
        }
        Conversations::Absent => {
            return Err(no_conversations("the list of turns is missing".into()));
        }
        Conversations::NotAList(what) => {
            return Err(no_conversations(format!(
                "the list of turns is {what}, not a list"
            )));
        }
    };
    let mut turns = Vec::with_capacity(given.len() + 1);
    for (index, turn) in given.into_iter().enumerate() {
        turns.push(check_turn(index, turn)?);
    }
    if let Some(prompt) = system.filter(|_| turns[0].0 != Role::System) {
        turns.insert(0, (Role::System, prompt));
    }
    let is_answer = |(role, content): &Spoken<'_>| *role == Role::Assistant && !is_blank(content);
    if !turns.iter().any(is_answer) {
        let detail = "no assistant turn has any text".into();
        return Err(Rejection::new(Reason::NoAnswer, None, detail));
    }
    if alternate {
        check_order(&turns)?;
    }
    Ok(turns)
}

fn no_conversations(detail: String) -> Rejection {
    Rejection::new(Reason::NoConversations, None, detail)
}

fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

fn check_turn(index: usize, turn: Turn<'_>) -> Result<Spoken<'_>, Rejection> {
    let bad = |what: String| Rejection::new(Reason::BadTurn, None, format!("turn {index}: {what}"));
    let (role, content) = match turn {
        Turn::NotAnObject(what) => return Err(bad(format!("it is {what}, not an object"))),
        Turn::Fields { role, content } => (role, content),
    };
    let role = match role {
        Field::Text(name) => Role::parse(&name).ok_or_else(|| bad(unknown_role(&name)))?,
        Field::NotAString(what) => return Err(bad(format!("its role is {what}, not a string"))),
        Field::BadParts(_) => return Err(bad("its role is a list, not a string".into())),
        Field::Absent => return Err(bad("it has no 'from' or 'role'".into())),
    };
    match content {
        Field::Text(content) => Ok((role, content)),
        Field::NotAString(what) => Err(bad(format!("its text is {what}, not a string"))),
        Field::BadParts(why) => Err(bad(why)),
        Field::Absent => Err(bad("it has no 'value' or 'content'".into())),
    }
}

/// A system turn comes first, then a question, and nobody but tools speaks twice in a row: the chat templates
/// of most models refuse anything else, and LLaMA-Factory drops it.
fn check_order(turns: &[Spoken<'_>]) -> Result<(), Rejection> {
    let mut before = None;
    for (index, &(role, _)) in turns.iter().enumerate() {
        let what = match (before, role) {
            (Some(_), Role::System) => "a system turn after other turns",
            (None | Some(Role::System), Role::Assistant) => "an answer before any question",
            (Some(Role::User), Role::User) => "a second question without an answer between",
            (Some(Role::Assistant), Role::Assistant) => {
                "a second answer without a question between"
            }
            _ => {
                before = Some(role);
                continue;
            }
        };
        let detail = format!("turn {index}: {what}; --turn-order any keeps such records");
        return Err(Rejection::new(Reason::TurnOrder, None, detail));
    }
    Ok(())
}
