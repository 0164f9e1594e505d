//! Who is asking, and for how long the answer holds.

use std::time::Duration;

use tokio::time::Instant;

use crate::notification::UserId;

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

/// Whose streams are to end, by `disconnect_user` or because a ticket was
/// removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disconnection {
    /// The user.
    pub user: UserId,
    /// Only those that this ticket opened; all of them if there is none.
    pub ticket: Option<TicketHash>,
}

impl Disconnection {
    /// Whether a stream of this user, opened with this ticket, is to end.
    pub fn means(&self, user: &UserId, ticket: Option<TicketHash>) -> bool {
        self.user == *user && (self.ticket.is_none() || self.ticket == ticket)
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
