//! Topics: names under which one row reaches many users.

use std::{fmt, sync::Arc};

/// The topic of a notification: the value of `topic`. 1 to 255 bytes, compared byte by
/// byte.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// The limit of the column's constraint, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// The topic that everyone has, whatever their memberships.
    pub const EVERYONE: &str = "*";

    /// Accepts 1 to [`MAX_BYTES`](Self::MAX_BYTES) bytes without ASCII control
    /// characters, which would let a name look like another one in a log or a terminal.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        let is_printable = !text.bytes().any(|byte| byte.is_ascii_control());
        (fits && is_printable).then(|| Self(text.into()))
    }

    pub fn everyone() -> Self {
        Self(Self::EVERYONE.into())
    }

    pub fn is_everyone(&self) -> bool {
        &*self.0 == Self::EVERYONE
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_a_short_printable_text() {
        let longest = "é".repeat(127) + "x";
        for text in ["*", "project:7", " ", "Projekt:Übung", &longest] {
            let topic = Topic::parse(text).unwrap_or_else(|| panic!("{text:?} is a topic"));
            assert_eq!(topic.as_str(), text);
            assert_eq!(topic.is_everyone(), text == "*");
        }
        for text in ["", "a\0", "a\nb", "\x7f", &format!("{longest}x")] {
            assert_eq!(Topic::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn names_that_look_alike_are_different_topics() {
        let topic = |text| Topic::parse(text).expect("a topic");
        for other in [
            "Project:7",
            "project:7 ",
            "project:70",
            "project:",
            "*",
            "**",
        ] {
            assert_ne!(topic("project:7"), topic(other));
        }
        assert!(!topic("**").is_everyone());
    }
}
