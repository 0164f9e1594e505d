//! Who is asking, and for how long the answer holds.

use std::time::Duration;

use tokio::time::Instant;

use crate::domain::notification::UserId;

/// How far the clocks of issuer and bridge may be apart. A token is good for
/// this long after its `exp`, and so is a stream that was opened with it.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The user.
    pub user: UserId,
    /// From when on the same credentials are refused, if they expire.
    pub expires: Option<Instant>,
    /// The ticket that was shown, if there was one.
    pub ticket: Option<TicketHash>,
}

impl Identity {
    /// Both, for as long as both hold.
    ///
    /// # Errors
    ///
    /// [`Unidentified::Disagree`].
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
        })
    }
}

impl From<UserId> for Identity {
    /// One that never expires.
    fn from(user: UserId) -> Self {
        Self {
            user,
            expires: None,
            ticket: None,
        }
    }
}

/// SHA-256 of a ticket, by which the database and the hub know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TicketHash(pub [u8; 32]);

impl TicketHash {
    /// As the database has it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

/// Which streams are to end, by `disconnect_user` and `disconnect_everyone` or
/// because tickets were removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disconnection {
    /// All of a user's.
    User(UserId),
    /// Those of a user that this ticket opened.
    Ticket(UserId, TicketHash),
    /// Those of a user that any ticket opened.
    Tickets(UserId),
    /// Everyone's that any ticket opened.
    AllTickets,
    /// Everyone's.
    Everyone,
}

impl Disconnection {
    /// As the database has it: without a user it concerns everyone, without a
    /// ticket all streams, and an empty ticket stands for any. `None` for what
    /// no stream can match.
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

    /// The user whose streams end; `None` for everyone.
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::User(user) | Self::Ticket(user, _) | Self::Tickets(user) => Some(user),
            Self::AllTickets | Self::Everyone => None,
        }
    }

    /// Whether a stream of this user, opened with this ticket, is to end.
    pub fn means(&self, user: &UserId, ticket: Option<TicketHash>) -> bool {
        self.user().is_none_or(|whose| whose == user) && self.means_ticket(ticket)
    }

    /// Whether a stream that was opened with this ticket is to end, if its user is
    /// concerned.
    pub fn means_ticket(&self, ticket: Option<TicketHash>) -> bool {
        match self {
            Self::User(_) | Self::Everyone => true,
            Self::Ticket(_, gone) => ticket == Some(*gone),
            Self::Tickets(_) | Self::AllTickets => ticket.is_some(),
        }
    }
}

/// Why a request is nobody's. The text is for the client, and says nothing of
/// the inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    /// No token at all.
    #[error(
        "this stream needs to know who you are: sign in, or send a token as `Authorization: Bearer <JWT>`"
    )]
    Missing,
    /// It was valid once.
    #[error("the token has expired: get a new one")]
    Expired,
    /// Wrong in any other way: signature, algorithm, form, claims.
    #[error("the token is not valid here: get one from the application that this stream is of")]
    Invalid,
    /// Unknown, expired, or taken away.
    #[error("the ticket is not valid, or not any more: get a new one")]
    Ticket,
    /// Two sources that name two users.
    #[error("the request carries credentials of different users: send one")]
    Disagree,
    /// A header for proxies, from somebody else.
    #[error(
        "the request has a header that only a trusted proxy may set: leave it out, or come through the proxy"
    )]
    Spoofed,
    /// Not a text of 1 to 255 bytes.
    #[error("the user must be a text of 1 to 255 bytes")]
    User,
    /// Nobody can tell at the moment: what it takes is out of reach.
    #[error("it can't be told at the moment who you are: try again in some seconds")]
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
