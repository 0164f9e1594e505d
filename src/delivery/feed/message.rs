//! What a feeder sends to the other bridges, and its encoding.
//!
//! Senders and receivers are authenticated (`fanout/feed_keys.rs`), so what was decoded is
//! what a bridge has read. The layout may change with the version of the sealed message.

use std::{sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::role::Sign;
use crate::{
    delivery::memberships::MembershipChange,
    domain::{
        clock::Moment,
        durable_floor::Log,
        history::History,
        membership::Membership,
        notification::{Addressee, Expiry, Notification, UserId},
        position::{Position, ReadPoint, ReadStep, RowKey, Unread},
        snapshot::{Snapshot, Xid},
        topic::Topic,
    },
};

/// Everything that is between two positions of the feeder. Without rows and changes, it
/// shows that the feeder is there and what it has seen.
#[derive(Clone, Debug)]
pub struct FeedMessage {
    pub history: History,
    pub step: ReadStep,
    /// The state of the write-ahead log when the last statement was read.
    pub log: Log,
    /// What the feeder says of itself.
    pub sign: Sign,
    /// When it was sent, by the database's clock.
    pub sent: Moment,
    pub changes: Vec<Arc<MembershipChange>>,
    pub runs: Vec<FeedRun>,
}

/// Rows in the order of delivery.
#[derive(Clone, Debug)]
pub struct FeedRun {
    pub rows: Vec<(Addressee, Notification)>,
    /// The feeder's position after them.
    pub after: Position,
    /// What it left to later reads.
    pub unread: Unread,
}

/// A message that was sealed by a bridge and can't be decoded, which is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a message that can't be decoded")]
pub struct Undecodable;

#[derive(Serialize, Deserialize)]
struct WireMessage<'a> {
    history: History,
    before: ReadPoint,
    after: ReadPoint,
    inserted: u64,
    flushed: u64,
    sign: Sign,
    sent: i64,
    #[serde(borrow)]
    changes: Vec<WireChange<'a>>,
    #[serde(borrow)]
    runs: Vec<WireRun<'a>>,
}

#[derive(Serialize, Deserialize)]
enum WireChange<'a> {
    One {
        user: &'a str,
        topic: &'a str,
        xid: Xid,
        now: Option<(Option<Xid>, Option<Arc<Snapshot>>)>,
    },
    Any {
        user: Option<&'a str>,
    },
}

#[derive(Serialize, Deserialize)]
struct WireRun<'a> {
    #[serde(borrow)]
    rows: Vec<WireRow<'a>>,
    after: Position,
    unread: Unread,
}

#[derive(Serialize, Deserialize)]
struct WireRow<'a> {
    key: RowKey,
    to: WireAddressee<'a>,
    event: Option<&'a str>,
    text: &'a str,
    created_at: Option<i64>,
    /// What was left of its time when it was sent.
    left: Option<Duration>,
    reference: Option<&'a str>,
}

#[derive(Serialize, Deserialize)]
enum WireAddressee<'a> {
    User(&'a str),
    Topic(&'a str),
}

impl FeedMessage {
    /// `now` is when it is sent.
    pub fn encode(&self, now: Instant) -> Vec<u8> {
        let message = WireMessage {
            history: self.history,
            before: self.step.before.clone(),
            after: self.step.after.clone(),
            inserted: self.log.inserted.into(),
            flushed: self.log.flushed.into(),
            sign: self.sign,
            sent: self.sent.0,
            changes: self.changes.iter().map(|it| WireChange::of(it)).collect(),
            runs: self.runs.iter().map(|run| WireRun::of(run, now)).collect(),
        };
        // Fails only for types that say so, and none of these does.
        postcard::to_allocvec(&message).unwrap_or_default()
    }

    /// Decodes a message that arrives `now`. Rows expire as at the feeder, if both know
    /// the database's clock, which is `clock` now.
    ///
    /// # Errors
    ///
    /// [`Undecodable`].
    pub fn decode(bytes: &[u8], now: Instant, clock: Moment) -> Result<Self, Undecodable> {
        let message: WireMessage<'_> = postcard::from_bytes(bytes).map_err(|_| Undecodable)?;
        let age = clock.0.saturating_sub(message.sent).max(0).unsigned_abs();
        let sent_at = now.checked_sub(Duration::from_micros(age)).unwrap_or(now);
        let changes = message.changes.into_iter().map(|change| change.read());
        let runs = message.runs.into_iter().map(|run| run.read(sent_at));
        Ok(Self {
            history: message.history,
            step: ReadStep {
                before: message.before,
                after: message.after,
            },
            log: Log {
                inserted: message.inserted.into(),
                flushed: message.flushed.into(),
            },
            sign: message.sign,
            sent: Moment(message.sent),
            changes: changes.collect::<Option<_>>().ok_or(Undecodable)?,
            runs: runs.collect::<Option<_>>().ok_or(Undecodable)?,
        })
    }
}

impl<'a> WireChange<'a> {
    fn of(change: &'a MembershipChange) -> Self {
        match change {
            MembershipChange::One {
                user,
                topic,
                xid,
                now,
            } => Self::One {
                user: user.as_str(),
                topic: topic.as_str(),
                xid: *xid,
                now: now.as_ref().map(|it| (it.xid, it.since.clone())),
            },
            MembershipChange::Any { user } => Self::Any {
                user: user.as_ref().map(UserId::as_str),
            },
        }
    }

    fn read(self) -> Option<Arc<MembershipChange>> {
        let change = match self {
            Self::One {
                user,
                topic,
                xid,
                now,
            } => MembershipChange::One {
                user: UserId::parse(user)?,
                topic: Topic::parse(topic)?,
                xid,
                now: now.map(|(xid, since)| Membership { xid, since }),
            },
            Self::Any { user: None } => MembershipChange::Any { user: None },
            Self::Any { user: Some(user) } => MembershipChange::Any {
                user: Some(UserId::parse(user)?),
            },
        };
        Some(Arc::new(change))
    }
}

impl<'a> WireRun<'a> {
    fn of(run: &'a FeedRun, now: Instant) -> Self {
        Self {
            rows: run.rows.iter().map(|row| WireRow::of(row, now)).collect(),
            after: run.after.clone(),
            unread: run.unread.clone(),
        }
    }

    fn read(self, sent_at: Instant) -> Option<FeedRun> {
        let rows = self.rows.into_iter().map(|row| row.read(sent_at));
        Some(FeedRun {
            rows: rows.collect::<Option<_>>()?,
            after: self.after,
            unread: self.unread,
        })
    }
}

impl<'a> WireRow<'a> {
    fn of((to, notification): &'a (Addressee, Notification), now: Instant) -> Self {
        Self {
            key: notification.key,
            to: match to {
                Addressee::User(user) => WireAddressee::User(user.as_str()),
                Addressee::Topic(topic) => WireAddressee::Topic(topic.as_str()),
            },
            event: notification.event.as_deref(),
            text: &notification.text,
            created_at: notification.created_at.map(|it| it.0),
            left: match notification.expires {
                Expiry::Never => None,
                Expiry::At(at) => Some(at.saturating_duration_since(now)),
            },
            reference: notification.reference.as_deref(),
        }
    }

    fn read(self, sent_at: Instant) -> Option<(Addressee, Notification)> {
        let to = match self.to {
            WireAddressee::User(user) => Addressee::User(UserId::parse(user)?),
            WireAddressee::Topic(topic) => Addressee::Topic(Topic::parse(topic)?),
        };
        let notification = Notification {
            key: self.key,
            event: self.event.map(str::to_owned),
            text: self.text.to_owned(),
            created_at: self.created_at.map(Moment),
            expires: match self.left {
                None => Expiry::Never,
                Some(left) => sent_at.checked_add(left).map_or(Expiry::Never, Expiry::At),
            },
            reference: self.reference.map(str::to_owned),
            topic: to.topic().cloned(),
        };
        Some((to, notification))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn message(now: Instant) -> FeedMessage {
        let user = UserId::parse("alice").expect("a user");
        let topic = Topic::parse("room").expect("a topic");
        let snapshot = Snapshot::new(Xid(9), vec![Xid(7)]);
        let position = Position::after(Some(Xid(8)), &snapshot);
        let row = |to: Addressee, expires| {
            let notification = Notification {
                key: RowKey {
                    xid: Xid(8),
                    id: -3,
                },
                event: Some("alert".to_owned()),
                text: "line\nline".to_owned(),
                created_at: Some(Moment(-5)),
                expires,
                reference: Some("r".to_owned()),
                topic: to.topic().cloned(),
            };
            (to, notification)
        };
        let one = |now| MembershipChange::One {
            user: user.clone(),
            topic: topic.clone(),
            xid: Xid(8),
            now,
        };
        let joined = Membership {
            xid: Some(Xid(8)),
            since: Some(Arc::new(snapshot.clone())),
        };
        let changes = [
            one(None),
            one(Some(joined)),
            MembershipChange::Any { user: None },
            MembershipChange::Any {
                user: Some(user.clone()),
            },
        ];
        FeedMessage {
            history: History {
                system_identifier: -1,
                ..History::default()
            },
            step: ReadStep {
                before: ReadPoint::default(),
                after: ReadPoint {
                    position: Arc::new(position.clone()),
                    snapshot: Arc::new(snapshot),
                },
            },
            log: Log {
                inserted: 100.into(),
                flushed: 90.into(),
            },
            sign: Sign::Leaves,
            sent: Moment(1_000_000),
            changes: changes.map(Arc::new).into(),
            runs: vec![FeedRun {
                rows: vec![
                    row(Addressee::User(user), Expiry::Never),
                    row(Addressee::Topic(topic), Expiry::At(now + 5 * SECOND)),
                ],
                after: position,
                unread: Unread::after(RowKey { xid: Xid(6), id: 4 }),
            }],
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_message_is_decoded_as_it_was_encoded() {
        let now = Instant::now();
        let sent = message(now);
        let received = FeedMessage::decode(&sent.encode(now), now, sent.sent);
        let received = received.expect("a message");
        assert_eq!(format!("{received:?}"), format!("{sent:?}"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_row_expires_no_later_because_its_message_was_late() {
        let now = Instant::now();
        let bytes = message(now).encode(now);
        for (late, left) in [(2, 3), (-2, 5), (9, 0)] {
            let clock = Moment(1_000_000 + late * 1_000_000);
            let received = FeedMessage::decode(&bytes, now, clock).expect("a message");
            let Expiry::At(expires) = received.runs[0].rows[1].1.expires else {
                panic!("it never expires")
            };
            assert_eq!(expires.saturating_duration_since(now), left * SECOND);
        }
    }

    #[test]
    fn what_is_no_message_is_rejected() {
        let now = Instant::now();
        let bytes = message(now).encode(now);
        for length in 0..bytes.len() {
            assert!(FeedMessage::decode(&bytes[..length], now, Moment(0)).is_err());
        }
    }
}
