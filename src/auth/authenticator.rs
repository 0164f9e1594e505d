//! Identifies the user of a request from all the credentials that it carries.

use std::{str, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest,
    http::header::{self, HeaderMap},
};
use tokio::time::{Instant, timeout_at};

use crate::{
    auth::{
        client_addr::Client,
        cookie::CookieName,
        jwt::Tokens,
        ticket::Tickets,
        user_header::{HeaderRejection, UserHeader},
    },
    domain::{
        identity::{Identity, Unidentified},
        notification::UserId,
    },
};

/// The most tokens in one request. A request has one, or one in the header and several in
/// cookies for different paths or domains. Each costs a signature check, and a request
/// head has room for hundreds.
const MOST_TOKENS: usize = 4;

/// Time limit for identifying a user, including every wait: for a turn, a database
/// connection, the reply, a key set. The browser receives nothing until then.
const LIMIT: Duration = Duration::from_secs(3);

/// The accepted kinds of credentials. Kinds that are not configured are ignored, because
/// they belong to another application.
pub struct Credentials {
    pub tokens: Option<Arc<Tokens>>,
    /// The cookie that may carry a token.
    pub cookie: CookieName,
    /// The header in which a proxy names the user.
    pub user_header: Option<UserHeader>,
    pub tickets: TicketPolicy,
    /// Whether `?user=` is accepted.
    pub query: QueryUser,
}

/// Whether tickets are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketPolicy {
    Believed,
    /// A request that carries a ticket is rejected.
    Refused,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryUser {
    /// Only in `tidings dev`.
    Believed,
    /// Everywhere else.
    Ignored,
}

/// The credentials in a request's query. They are parsed separately from the other
/// parameters, so that errors in those are explained to authenticated clients only.
#[derive(Clone, Debug, Default)]
pub struct CredentialQuery {
    /// The values of `?user=`.
    users: Vec<String>,
    /// The values of `?ticket=`.
    tickets: Vec<String>,
}

impl CredentialQuery {
    /// Parses a query. Repeated parameters are no error here, because a parameter that is
    /// not configured is ignored.
    pub fn of(query: &str) -> Self {
        let mut named = Self::default();
        // This can't fail: bytes that are not UTF-8 are replaced.
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            match &*name {
                "user" => named.users.push(value.into_owned()),
                "ticket" => named.tickets.push(value.into_owned()),
                _ => {}
            }
        }
        named
    }
}

pub struct Authenticator {
    credentials: Credentials,
    tickets: Tickets,
}

impl Authenticator {
    /// Accepts these credentials, and looks tickets up in `tickets`.
    pub fn new(credentials: Credentials, tickets: Tickets) -> Self {
        Self {
            credentials,
            tickets,
        }
    }

    /// The identity of a request.
    ///
    /// Every credential of a configured kind must be valid, and all must name the same
    /// user: an invalid one never falls back to another. A check that takes longer than
    /// three seconds fails with [`Unidentified::Unavailable`].
    pub async fn identify(
        &self,
        request: &HttpRequest,
        client: Client,
    ) -> Result<Identity, Unidentified> {
        let deadline = Instant::now() + LIMIT;
        let named = CredentialQuery::of(request.query_string());
        let proving = self.prove(request, &named, client, deadline);
        timeout_at(deadline, proving)
            .await
            .unwrap_or(Err(Unidentified::Unavailable))
    }

    async fn prove(
        &self,
        request: &HttpRequest,
        named: &CredentialQuery,
        client: Client,
        deadline: Instant,
    ) -> Result<Identity, Unidentified> {
        let credentials = &self.credentials;
        let mut found: Option<Identity> = None;
        let mut add = |identity: Identity| -> Result<(), Unidentified> {
            found = Some(match found.take() {
                None => identity,
                Some(other) => other.and(identity)?,
            });
            Ok(())
        };
        if credentials.query == QueryUser::Believed {
            for user in &named.users {
                add(UserId::parse(user).ok_or(Unidentified::User)?.into())?;
            }
        }
        if let Some(header) = &credentials.user_header
            && let Some(user) = header.user(request)?
        {
            add(user.into())?;
        }
        if let Some(tokens) = &credentials.tokens {
            for token in tokens_in(request.headers(), &credentials.cookie)? {
                add(tokens.verify(token).await?.into())?;
            }
        }
        // Last, because it queries the database.
        match named.tickets.as_slice() {
            [] => {}
            [_, ..] if credentials.tickets == TicketPolicy::Refused => {
                return Err(Unidentified::Ticket);
            }
            [ticket] => add(self.tickets.verify(ticket, client, deadline).await?)?,
            // Each one would cost a lookup.
            [_, _, ..] => return Err(Unidentified::Disagree),
        }
        found.ok_or(Unidentified::Missing)
    }
}

impl From<HeaderRejection> for Unidentified {
    fn from(disbelief: HeaderRejection) -> Self {
        match disbelief {
            HeaderRejection::Spoofed => Self::Spoofed,
            HeaderRejection::Malformed => Self::User,
        }
    }
}

/// All tokens in a request. Other authorization schemes and other applications' cookies
/// are ignored, whatever bytes they contain.
fn tokens_in<'a>(
    headers: &'a HeaderMap,
    cookie: &'a CookieName,
) -> Result<Vec<&'a str>, Unidentified> {
    let authorizations = headers.get_all(header::AUTHORIZATION);
    let bearers = authorizations.filter_map(|field| bearer(field.as_bytes()));
    let all = bearers.chain(cookie.values(headers)).take(MOST_TOKENS + 1);
    let tokens: Vec<&str> = all
        .map(str::from_utf8)
        .collect::<Result<_, _>>()
        .map_err(|_| Unidentified::Invalid)?;
    if tokens.len() > MOST_TOKENS {
        return Err(Unidentified::Invalid);
    }
    Ok(tokens)
}

/// The token in a value of `Authorization`, which has exactly one scheme (RFC 9110,
/// section 11.4), compared without regard to case. `Bearer` without a token is an invalid
/// token, not a missing one.
fn bearer(field: &[u8]) -> Option<&[u8]> {
    let field = field.trim_ascii();
    let is_end = |byte: &u8| matches!(byte, b' ' | b'\t');
    let end = field.iter().position(is_end).unwrap_or(field.len());
    let (scheme, token) = field.split_at(end);
    scheme
        .eq_ignore_ascii_case(b"bearer")
        .then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bearer_token_is_found_whatever_the_whitespace_and_case() {
        for (field, expected) in [
            (&b"Bearer x"[..], Some(&b"x"[..])),
            (b"bEARER x", Some(b"x")),
            (b"\tBearer \t x\t", Some(b"x")),
            (b"Bearer\tx", Some(b"x")),
            (b"Bearer x y", Some(b"x y")),
            (b"Bearer", Some(b"")),
            (b"Bearer \xff", Some(b"\xff")),
            (b"", None),
            (b"Basic Bearer x", None),
            (b"Bearerx", None),
            (b"Bearer\xc2\xa0x", None),
            (b"\xc2\xa0Bearer x", None),
            (b"\xff Bearer x", None),
        ] {
            assert_eq!(bearer(field), expected, "{field:?}");
        }
    }

    #[test]
    fn a_query_is_read_however_it_is_written() {
        let named = CredentialQuery::of(
            "ticket=%41&user=a%2Bb+c&x=%ff&ticket=b&=&&user&%75ser=d&ticket=%ff",
        );
        assert_eq!(named.tickets, ["A", "b", "\u{fffd}"]);
        assert_eq!(named.users, ["a+b c", "", "d"]);
        let named = CredentialQuery::of("tickets=a&Ticket=b&ticket%20=c&%=ticket");
        assert!(named.tickets.is_empty() && named.users.is_empty());
    }
}
