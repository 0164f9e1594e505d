//! The user that a request authenticates as, for how long, and what ends the user's
//! streams.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::domain::{
    notification::UserId,
    topic::{Topic, TopicChoice},
};

/// Allowed clock skew between issuer and bridge. A token is accepted this long after its
/// `exp`, and a stream that was opened with it lasts as long.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// The result of authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: UserId,
    /// When the same credentials start to be rejected, if they expire.
    pub expires: Option<Instant>,
    /// The ticket that was presented, if any.
    pub ticket: Option<TicketHash>,
    /// Topics that the credentials grant besides those of the user's memberships, at most
    /// [`TopicChoice::MOST_GRANTED`](crate::domain::topic::TopicChoice::MOST_GRANTED).
    pub topics: Arc<[Topic]>,
}

impl Identity {
    /// Combines two credentials of one request: valid for as long as both are. Either may
    /// grant topics.
    ///
    /// # Errors
    ///
    /// [`Unidentified::Disagree`] if they name different users.
    pub fn and(self, other: Self) -> Result<Self, Unidentified> {
        if self.user != other.user {
            return Err(Unidentified::Disagree);
        }
        let expires = match (self.expires, other.expires) {
            (Some(one), Some(another)) => Some(one.min(another)),
            (one, another) => one.or(another),
        };
        Ok(Self {
            user: self.user,
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
            Some(user) if user != self.user.as_str() => Err(Unidentified::Unexpected),
            _ => Ok(()),
        }
    }
}

impl From<UserId> for Identity {
    /// An identity that never expires.
    fn from(user: UserId) -> Self {
        Self {
            user,
            expires: None,
            ticket: None,
            topics: Arc::default(),
        }
    }
}

/// SHA-256 of a ticket. The database and the hub store only this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// A user's streams that were opened with this ticket.
    Ticket(UserId, TicketHash),
    /// A user's streams that were opened with any ticket.
    Tickets(UserId),
    /// All users' streams that were opened with any ticket.
    AllTickets,
    /// All streams.
    Everyone,
}

impl Disconnection {
    /// Reads a row's columns. Without a user it applies to everyone, without a ticket to
    /// all streams; an empty ticket stands for any ticket. `None` if no stream can match.
    pub fn from_columns(user: Option<&str>, ticket: Option<&[u8]>) -> Option<Self> {
        match (user, ticket) {
            (None, None) => Some(Self::Everyone),
            (None, Some(_)) => Some(Self::AllTickets),
            (Some(user), None) => UserId::parse(user).map(Self::User),
            (Some(user), Some([])) => UserId::parse(user).map(Self::Tickets),
            (Some(user), Some(hash)) => Some(Self::Ticket(
                UserId::parse(user)?,
                TicketHash::from_bytes(hash)?,
            )),
        }
    }

    /// The user whose streams end; `None` for all users.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) | Self::Ticket(user, _) | Self::Tickets(user) => Some(user),
            Self::AllTickets | Self::Everyone => None,
        }
    }

    /// Whether a stream of this user that was opened with this ticket must end.
    pub fn means(&self, user: &UserId, ticket: Option<TicketHash>) -> bool {
        self.user().is_none_or(|whose| whose == user) && self.means_ticket(ticket)
    }

    /// Like [`means`](Self::means), for a stream whose user is already known to match.
    pub fn means_ticket(&self, ticket: Option<TicketHash>) -> bool {
        match self {
            Self::User(_) | Self::Everyone => true,
            Self::Ticket(_, gone) => ticket == Some(*gone),
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

    #[test]
    fn what_the_database_says_ends_these_streams_and_no_others() {
        let user = |name| UserId::parse(name).expect("a user");
        let (gone, kept) = (TicketHash([1; 32]), TicketHash([2; 32]));
        let streams = [
            ("alice", None),
            ("alice", Some(gone)),
            ("alice", Some(kept)),
            ("bob", None),
            ("bob", Some(gone)),
        ];
        let ended = |user_id, ticket| {
            let one = Disconnection::from_columns(user_id, ticket).expect("a disconnection");
            streams.map(|(name, ticket)| one.means(&user(name), ticket))
        };
        let hash: &[u8] = &[1; 32];
        let (no, yes) = (false, true);
        assert_eq!(ended(Some("alice"), None), [yes, yes, yes, no, no]);
        assert_eq!(ended(Some("alice"), Some(hash)), [no, yes, no, no, no]);
        assert_eq!(ended(Some("alice"), Some(&[])), [no, yes, yes, no, no]);
        assert_eq!(ended(None, Some(&[])), [no, yes, yes, no, yes]);
        assert_eq!(ended(None, None), [yes; 5]);
    }

    #[test]
    fn a_row_that_no_stream_can_match_is_never_taken_for_everyone() {
        let long = "x".repeat(256);
        for user in ["", &long] {
            assert_eq!(Disconnection::from_columns(Some(user), None), None);
            assert_eq!(Disconnection::from_columns(Some(user), Some(&[])), None);
        }
        assert_eq!(Disconnection::from_columns(Some("alice"), Some(&[1])), None);
    }
}
