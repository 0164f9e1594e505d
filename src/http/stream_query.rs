//! The query parameters of `GET /stream`.

use form_urlencoded::parse;

use crate::{
    delivery::{page_reader::REPLAY_ROWS, sse::Format},
    domain::topic::{Topic, TopicChoice},
};

/// The query parameters of a request for a stream.
///
/// Unknown parameters are ignored, because pages and proxies add their own (cache
/// busters, campaign tags). If a parameter other than `topic` is repeated, the last value
/// counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamQuery {
    /// `format`: `text` or `json`.
    pub format: Format,
    /// `replay`: how many of the user's last rows the stream begins with, at most
    /// [`REPLAY_ROWS`].
    pub replay: u32,
    /// `last_event_id`, or `lastEventId`, as event-source-polyfill and
    /// reconnecting-eventsource call it. These libraries append theirs to the URL from
    /// the page, so the last one that isn't empty is the most recent.
    pub last_event_id: Option<String>,
    /// `expected_user`: the user for whom the page was made. Others may have logged in
    /// since, in another tab, and all tabs share the cookie.
    pub expected_user: Option<String>,
    /// `topic`: the only topics that the client wants, each in a parameter of its own. At
    /// most [`TopicChoice::MOST_ASKED`], sorted, without repetitions.
    pub topics: Option<Vec<Topic>>,
}

/// A parameter with an invalid value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadParameter {
    #[error("format must be text or json, not {0:?}")]
    Format(String),
    #[error("replay must be a number from 0 to {REPLAY_ROWS}, not {0:?}")]
    Replay(String),
    #[error("topic must be 1 to {most} bytes without control characters, not {0:?}", most = Topic::MAX_BYTES)]
    Topic(String),
    #[error(
        "topic must not be repeated more than {} times",
        TopicChoice::MOST_ASKED
    )]
    Topics,
    #[error("errors must be retry or status, not {0:?}")]
    Errors(String),
}

impl StreamQuery {
    /// Parses a query string, percent-encoded as in a URL.
    ///
    /// # Errors
    ///
    /// [`BadParameter`], but never because of a last event id: a status other than 200
    /// ends an `EventSource` permanently.
    pub fn read(query: &str) -> Result<Self, BadParameter> {
        let mut parameters = Self::default();
        for (name, value) in parse(query.as_bytes()) {
            match &*name {
                "format" => {
                    parameters.format = match &*value {
                        "text" => Format::Text,
                        "json" => Format::Json,
                        _ => return Err(BadParameter::Format(value.into_owned())),
                    };
                }
                "replay" => {
                    let rows = value.parse().ok().filter(|rows| *rows <= REPLAY_ROWS);
                    let bad = || BadParameter::Replay(value.clone().into_owned());
                    parameters.replay = rows.ok_or_else(bad)?;
                }
                "last_event_id" | "lastEventId" if !value.is_empty() => {
                    parameters.last_event_id = Some(value.into_owned());
                }
                "topic" => {
                    let topic = Topic::parse(&value);
                    let topic = topic.ok_or_else(|| BadParameter::Topic(value.into_owned()))?;
                    let topics = parameters.topics.get_or_insert_default();
                    if topics.len() == TopicChoice::MOST_ASKED {
                        return Err(BadParameter::Topics);
                    }
                    topics.push(topic);
                }
                "expected_user" => parameters.expected_user = Some(value.into_owned()),
                "errors" if RejectionForm::named(&value).is_none() => {
                    return Err(BadParameter::Errors(value.into_owned()));
                }
                _ => {}
            }
        }
        if let Some(topics) = &mut parameters.topics {
            topics.sort_unstable();
            topics.dedup();
        }
        Ok(parameters)
    }
}

/// `errors`: how to reject a client that can't have a stream at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RejectionForm {
    /// With an empty stream that says when to retry, if the client accepts an event
    /// stream.
    #[default]
    Retry,
    /// With the status: 429 or 503.
    Status,
}

impl RejectionForm {
    /// The choice in a query string. Other parameters may be invalid: a request is
    /// rejected before they are checked.
    pub fn wanted(query: &str) -> Self {
        let given = parse(query.as_bytes()).filter(|(name, _)| name == "errors");
        let last = given.last().and_then(|(_, value)| Self::named(&value));
        last.unwrap_or_default()
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "retry" => Some(Self::Retry),
            "status" => Some(Self::Status),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(query: &str) -> Option<String> {
        StreamQuery::read(query)
            .unwrap_or_else(|error| panic!("{query}: {error}"))
            .last_event_id
    }

    #[test]
    fn the_last_id_that_is_not_empty_counts_under_either_name() {
        for (query, wanted) in [
            ("", None),
            ("last_event_id=", None),
            ("last_event_id=7-A", Some("7-A")),
            ("lastEventId=7-A", Some("7-A")),
            ("last_event_id=7-A&lastEventId=8-B", Some("8-B")),
            ("lastEventId=8-B&last_event_id=7-A", Some("7-A")),
            ("last_event_id=7-A&last_event_id=8-B", Some("8-B")),
            ("last_event_id=7-A&lastEventId=", Some("7-A")),
            ("lastEventId=&lastEventId=7-A&lastEventId=", Some("7-A")),
            ("last_event_id=%FF%00&lastEventId", Some("\u{fffd}\0")),
        ] {
            assert_eq!(id(query).as_deref(), wanted, "{query}");
        }
    }

    #[test]
    fn unknown_parameters_are_ignored_and_wrong_values_are_not() {
        let wanted = StreamQuery {
            format: Format::Json,
            replay: 3,
            last_event_id: None,
            expected_user: Some("7".to_owned()),
            topics: Some(vec![
                Topic::everyone(),
                Topic::parse("team:1").expect("a topic"),
            ]),
        };
        let query = "_=1795999999&utm_source=x&format=text&format=json&replay=3&&a&errors=status&expected_user=8&expected_user=7&topic=team:1&topic=*&topic=team%3A1";
        assert_eq!(StreamQuery::read(query), Ok(wanted));
        for query in [
            "format=xml",
            "format=",
            "replay=-1",
            "replay=501",
            "replay=a",
            "errors=none",
            "topic=",
            "topic=\n",
            "topic=\u{85}",
        ] {
            let error = StreamQuery::read(query).expect_err(query).to_string();
            let (name, value) = query.split_once('=').expect("a value");
            assert!(error.starts_with(name), "{error}");
            assert!(error.ends_with(&format!("{value:?}")), "{error}");
        }
    }

    #[test]
    fn topics_are_whole_names_and_not_too_many() {
        let asked = |query: &str| -> Option<Vec<String>> {
            let topics = StreamQuery::read(query).ok()?.topics.unwrap_or_default();
            Some(topics.iter().map(ToString::to_string).collect())
        };
        for (query, wanted) in [
            ("", vec![]),
            ("topics=a&Topic=a&topic%20=a", vec![]),
            ("topic=a,b&topic=a", vec!["a", "a,b"]),
            (
                "topic=a+b&topic=a%2Bb&topic=A%20B",
                vec!["A B", "a b", "a+b"],
            ),
            ("t%6Fpic=%70roject:7%261", vec!["project:7&1"]),
            // Is replaced, as browsers would.
            ("topic=%ff", vec!["\u{fffd}"]),
        ] {
            assert_eq!(asked(query).expect(query), wanted, "{query}");
        }
        for query in [
            "topic",
            "topic=",
            "topic=a&topic=",
            "topic=%00",
            "topic=a%0ab",
            "topic=%7F",
        ] {
            assert_eq!(asked(query), None, "{query}");
        }
        let many = |count| {
            (0..count)
                .map(|number| format!("topic={number}&"))
                .collect::<String>()
        };
        let most = asked(&many(TopicChoice::MOST_ASKED)).expect("topics");
        assert_eq!(most.len(), TopicChoice::MOST_ASKED);
        let error = StreamQuery::read(&many(TopicChoice::MOST_ASKED + 1)).expect_err("too many");
        assert_eq!(error, BadParameter::Topics);
    }

    #[test]
    fn a_client_that_asks_for_the_status_gets_it_whatever_else_it_asks_for() {
        for (query, wanted) in [
            ("", RejectionForm::Retry),
            ("errors=retry", RejectionForm::Retry),
            ("errors=status", RejectionForm::Status),
            ("format=xml&errors=status", RejectionForm::Status),
            ("errors=status&errors=retry", RejectionForm::Retry),
            ("errors=nonsense", RejectionForm::Retry),
        ] {
            assert_eq!(RejectionForm::wanted(query), wanted, "{query}");
        }
    }
}
