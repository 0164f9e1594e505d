//! Who a request authenticates as, for how long, and what ends the streams.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::{
    notification::UserId,
    topic::{Topic, TopicChoice},
};

/// Allowed clock skew between issuer and bridge. A token is accepted this long after its
/// `exp`, and a stream that was opened with it lasts as long.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// The longest token that is accepted; a longer one is rejected without being parsed.
/// Real tokens have one or two thousand bytes.
pub const MOST_TOKEN_BYTES: usize = 8 << 10;

/// Who a stream is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subscriber {
    User(UserId),
    /// The holder of this ticket, which names no user: only topics. Shared, so that a
    /// subscriber takes no more memory than a user.
    Ticket(Arc<TicketHash>),
}

impl Subscriber {
    /// The user, whose rows and memberships the stream has. A ticket without a user has
    /// none.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) => Some(user),
            Self::Ticket(_) => None,
        }
    }
}

impl From<UserId> for Subscriber {
    fn from(user: UserId) -> Self {
        Self::User(user)
    }
}

/// The result of authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub subscriber: Subscriber,
    /// When the same credentials start to be rejected, if they expire.
    pub expires: Option<Instant>,
    /// The ticket that was presented, if any.
    pub ticket: Option<TicketHash>,
    /// Topics that the credentials grant besides those of the user's memberships, at most
    /// [`TopicChoice::MOST_GRANTED`](crate::domain::topic::TopicChoice::MOST_GRANTED) by
    /// each of them.
    pub topics: Arc<[Topic]>,
}

impl Identity {
    /// The holder of a ticket that names no user.
    pub fn of_ticket(hash: TicketHash) -> Self {
        Self {
            subscriber: Subscriber::Ticket(Arc::new(hash)),
            expires: None,
            ticket: Some(hash),
            topics: Arc::default(),
        }
    }

    /// Combines two credentials of one request: valid for as long as both are. Either may
    /// grant topics. A ticket without a user only adds its topics to those of the other.
    ///
    /// # Errors
    ///
    /// [`Unidentified::Disagree`] if they name different users.
    pub fn and(self, other: Self) -> Result<Self, Unidentified> {
        let subscriber = match (self.subscriber, other.subscriber) {
            (one, another) if one == another => one,
            (user @ Subscriber::User(_), Subscriber::Ticket(_))
            | (Subscriber::Ticket(_), user @ Subscriber::User(_)) => user,
            _ => return Err(Unidentified::Disagree),
        };
        let expires = match (self.expires, other.expires) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        Ok(Self {
            subscriber,
            expires,
            ticket: self.ticket.or(other.ticket),
            topics: match other.topics.is_empty() {
                true => self.topics,
                false => self.topics.iter().chain(&*other.topics).cloned().collect(),
            },
        })
    }

    /// Checks that this is the user that the client expects, if it names one.
    ///
    /// # Errors
    ///
    /// [`Unidentified::Unexpected`] if it expects another user.
    pub fn expect(&self, user: Option<&str>) -> Result<(), Unidentified> {
        match user {
            Some(_) if user != self.subscriber.user().map(UserId::as_str) => {
                Err(Unidentified::Unexpected)
            }
            _ => Ok(()),
        }
    }
}

impl From<UserId> for Identity {
    /// An identity that never expires.
    fn from(user: UserId) -> Self {
        Self {
            subscriber: user.into(),
            expires: None,
            ticket: None,
            topics: Arc::default(),
        }
    }
}

/// SHA-256 of a ticket. The database and the hub store only this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TicketHash(pub [u8; 32]);

impl TicketHash {
    /// Reads the column's value; `None` unless it has 32 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Which streams must end, because of `disconnect_user`, `disconnect_everyone`, or
/// deleted tickets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disconnection {
    /// All streams of a user.
    User(UserId),
    /// A user's streams that were opened with this ticket, which names the user.
    Ticket(UserId, TicketHash),
    /// All streams that were opened with this ticket, which names no user. Some may be a
    /// user's, who has another credential as well.
    UserlessTicket(TicketHash),
    /// A user's streams that were opened with any ticket.
    Tickets(UserId),
    /// All users' streams that were opened with any ticket.
    AllTickets,
    /// All streams.
    Everyone,
}

impl Disconnection {
    /// Reads a row's columns. Without a user it applies to everyone, without a ticket to
    /// all streams; an empty ticket stands for any ticket. Without a user but with a
    /// ticket, it applies to this ticket. `None` if no stream can match.
    pub fn from_columns(user: Option<&str>, ticket: Option<&[u8]>) -> Option<Self> {
        match (user, ticket) {
            (None, None) => Some(Self::Everyone),
            (None, Some([])) => Some(Self::AllTickets),
            (None, Some(hash)) => TicketHash::from_bytes(hash).map(Self::UserlessTicket),
            (Some(user), None) => UserId::parse(user).map(Self::User),
            (Some(user), Some([])) => UserId::parse(user).map(Self::Tickets),
            (Some(user), Some(hash)) => Some(Self::Ticket(
                UserId::parse(user)?,
                TicketHash::from_bytes(hash)?,
            )),
        }
    }

    /// The user whose streams end. `None` if others' may.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) | Self::Ticket(user, _) | Self::Tickets(user) => Some(user),
            Self::UserlessTicket(_) | Self::AllTickets | Self::Everyone => None,
        }
    }

    /// Whether a stream that was opened with these credentials must end.
    pub fn means(&self, identity: &Identity) -> bool {
        self.user()
            .is_none_or(|whose| identity.subscriber.user() == Some(whose))
            && self.means_ticket(identity.ticket)
    }

    /// Like [`means`](Self::means), for a stream whose user is already known to match.
    pub fn means_ticket(&self, ticket: Option<TicketHash>) -> bool {
        match self {
            Self::User(_) | Self::Everyone => true,
            Self::Ticket(_, gone) | Self::UserlessTicket(gone) => ticket == Some(*gone),
            Self::Tickets(_) | Self::AllTickets => ticket.is_some(),
        }
    }
}

/// Why a request could not be authenticated. The text is sent to the client and reveals
/// nothing internal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// No credentials were sent.
    #[error(
        "this stream requires authentication: sign in, or send a token as `Authorization: Bearer \
         <JWT>`"
    )]
    Missing,
    /// The token has expired.
    #[error("the token has expired: get a new one")]
    Expired,
    /// The token is invalid for any other reason: signature, algorithm, form, claims.
    #[error(
        "the token is not valid here: get one from the application that this stream belongs to"
    )]
    Invalid,
    /// The token is longer than [`MOST_TOKEN_BYTES`], for example because it grants
    /// thousands of topics.
    #[error(
        "the token is longer than {} KiB: leave out claims that the stream does not need",
        MOST_TOKEN_BYTES >> 10
    )]
    TooLong,
    /// The ticket is unknown, expired or deleted.
    #[error("the ticket is not valid, or no longer valid: get a new one")]
    Ticket,
    /// Two credentials name different users.
    #[error("the request carries credentials of different users: send only one")]
    Disagree,
    /// The credentials are those of another user than the client expects.
    #[error(
        "the credentials are not those of the user that expected_user names: load the page again, or \
         sign in as this user"
    )]
    Unexpected,
    /// A header reserved for trusted proxies, sent by another address.
    #[error(
        "the request has a header that only a trusted proxy may set: remove it, or connect through \
         the proxy"
    )]
    Spoofed,
    /// The topics that a token grants are not a short list of names.
    #[error(
        "the claim topics must be an array of at most {} texts of 1 to {} bytes without control \
         characters",
        TopicChoice::MOST_GRANTED,
        Topic::MAX_BYTES
    )]
    Topics,
    /// The user is not a text of 1 to 255 bytes.
    #[error("the user must be 1 to 255 bytes long")]
    User,
    /// Authentication is impossible at the moment, because something it depends on is
    /// unreachable.
    #[error("authentication is temporarily unavailable: try again in a few seconds")]
    Unavailable,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(user: &str, ticket: Option<TicketHash>) -> Identity {
        Identity {
            ticket,
            ..UserId::parse(user).expect("a user").into()
        }
    }

    #[test]
    fn what_the_database_says_ends_these_streams_and_no_others() {
        let (gone, kept) = (TicketHash([1; 32]), TicketHash([2; 32]));
        let streams = [
            identity("alice", None),
            identity("alice", Some(gone)),
            identity("alice", Some(kept)),
            identity("bob", None),
            identity("bob", Some(gone)),
            Identity::of_ticket(gone),
            Identity::of_ticket(kept),
        ];
        let ended = |user_id, ticket| {
            let one = Disconnection::from_columns(user_id, ticket).expect("a disconnection");
            streams.each_ref().map(|stream| one.means(stream))
        };
        let hash: &[u8] = &[1; 32];
        let (no, yes) = (false, true);
        assert_eq!(ended(Some("alice"), None), [yes, yes, yes, no, no, no, no]);
        assert_eq!(
            ended(Some("alice"), Some(hash)),
            [no, yes, no, no, no, no, no]
        );
        assert_eq!(
            ended(Some("alice"), Some(&[])),
            [no, yes, yes, no, no, no, no]
        );
        // A ticket that names no user may have been sent along with a user's token.
        assert_eq!(ended(None, Some(hash)), [no, yes, no, no, yes, yes, no]);
        assert_eq!(ended(None, Some(&[])), [no, yes, yes, no, yes, yes, yes]);
        assert_eq!(ended(None, None), [yes; 7]);
    }

    #[test]
    fn a_row_that_no_stream_can_match_is_never_taken_for_everyone() {
        let long = "x".repeat(256);
        for user in ["", &long] {
            assert_eq!(Disconnection::from_columns(Some(user), None), None);
            assert_eq!(Disconnection::from_columns(Some(user), Some(&[])), None);
        }
        for user in [Some("alice"), None] {
            assert_eq!(Disconnection::from_columns(user, Some(&[1])), None);
        }
    }

    #[test]
    fn credentials_of_one_request_agree_or_are_rejected() {
        let topics = |names: &[&str]| names.iter().filter_map(|name| Topic::parse(name)).collect();
        let hash = TicketHash([1; 32]);
        let alice = Identity {
            topics: topics(&["a"]),
            ..identity("alice", None)
        };
        let ticket = Identity {
            topics: topics(&["b"]),
            ..Identity::of_ticket(hash)
        };
        let both = alice.clone().and(ticket.clone()).expect("no other user");
        assert_eq!(both.subscriber, alice.subscriber);
        assert_eq!(
            (both.ticket, both.topics),
            (Some(hash), topics(&["a", "b"]))
        );
        let turned = ticket.clone().and(alice.clone()).expect("no other user");
        assert_eq!(turned.subscriber, alice.subscriber);
        for other in [identity("bob", None), identity("bob", Some(hash))] {
            assert_eq!(alice.clone().and(other), Err(Unidentified::Disagree));
        }
        let other = Identity::of_ticket(TicketHash([2; 32]));
        assert_eq!(ticket.clone().and(other), Err(Unidentified::Disagree));
        assert_eq!(ticket.expect(None), Ok(()));
        assert_eq!(ticket.expect(Some("alice")), Err(Unidentified::Unexpected));
        assert_eq!(alice.expect(Some("alice")), Ok(()));
    }

    #[test]
    fn a_subscriber_takes_no_more_memory_than_a_user() {
        assert_eq!(size_of::<Subscriber>(), size_of::<UserId>());
    }
}
