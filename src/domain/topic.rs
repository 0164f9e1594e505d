//! Topics: names under which one row reaches many users.

use std::{
    fmt,
    sync::{Arc, LazyLock},
};

/// The topic of a notification: the value of `topic`. 1 to 255 bytes, compared byte by
/// byte.
///
/// A thin pointer: streams may have a thousand topics each, whose names they share.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<Box<str>>);

impl Topic {
    /// The limit of the column's constraint, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// The topic that everyone has, whatever their memberships.
    pub const EVERYONE: &str = "*";

    /// Accepts 1 to [`MAX_BYTES`](Self::MAX_BYTES) bytes without control characters, which
    /// would let a name look like another one in a log or a terminal.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = (1..=Self::MAX_BYTES).contains(&text.len());
        let is_printable = !text.contains(char::is_control);
        (fits && is_printable).then(|| Self(Arc::new(text.into())))
    }

    pub fn everyone() -> Self {
        Self(Arc::new(Self::EVERYONE.into()))
    }

    pub fn is_everyone(&self) -> bool {
        self.as_str() == Self::EVERYONE
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which topics a stream may have besides those of the user's memberships, and which of
/// all of them its client wants. The default is all of the user's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicChoice {
    /// The topics that the credentials grant.
    pub granted: Arc<[Topic]>,
    /// The topics that the client asked for. It narrows the stream's topics, and never
    /// widens them.
    pub asked: Option<Arc<[Topic]>>,
}

impl TopicChoice {
    /// How many topics credentials may grant. A token with more would be longer than
    /// servers accept in a cookie.
    pub const MOST_GRANTED: usize = 100;

    /// How many topics a client may ask for: as many as a stream may have.
    pub const MOST_ASKED: usize = 1_000;

    /// All of the user's topics. Most streams have this one, and share it.
    pub fn all() -> Arc<Self> {
        static ALL: LazyLock<Arc<TopicChoice>> = LazyLock::new(Arc::default);
        Arc::clone(&ALL)
    }

    /// Whether the client wants the topic, if it may have it.
    pub fn wants(&self, topic: &Topic) -> bool {
        self.asked
            .as_ref()
            .is_none_or(|asked| asked.contains(topic))
    }

    /// The granted topics that the client wants, without everyone's.
    pub fn granted(&self) -> impl Iterator<Item = &Topic> {
        let granted = self.granted.iter();
        granted.filter(|topic| !topic.is_everyone() && self.wants(topic))
    }

    /// The topics that the client asked for and that `has` denies, without everyone's.
    pub fn refused(&self, has: impl Fn(&Topic) -> bool) -> Vec<String> {
        let asked = self.asked.iter().flat_map(|asked| asked.iter());
        let refused = asked.filter(|topic| !topic.is_everyone() && !has(topic));
        refused.map(ToString::to_string).collect()
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
        for text in ["", "a\0", "a\nb", "\x7f", "\u{85}", &format!("{longest}x")] {
            assert_eq!(Topic::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_client_that_asks_for_topics_gets_no_more_than_it_may_have() {
        let topics = |names: &[&str]| -> Arc<[Topic]> {
            names.iter().filter_map(|name| Topic::parse(name)).collect()
        };
        let all = TopicChoice {
            granted: topics(&["a", "b", "*"]),
            asked: None,
        };
        assert!(all.granted().map(Topic::as_str).eq(["a", "b"]));
        assert!(all.refused(|_| false).is_empty());
        let some = TopicChoice {
            asked: Some(topics(&["b", "c", "*"])),
            ..all
        };
        assert!(some.granted().map(Topic::as_str).eq(["b"]));
        assert_eq!(some.refused(|topic| topic.as_str() == "b"), ["c"]);
        assert!(!some.wants(&topics(&["a"])[0]) && some.wants(&Topic::everyone()));
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
