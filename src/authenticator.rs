//! Finds out who is asking, from all that a request carries.

use std::{str::FromStr, time::Duration};

use actix_web::{HttpRequest, http::header};
use tokio::time::{Instant, timeout_at};

use crate::{
    client::Client,
    identity::{Identity, Unidentified},
    notification::UserId,
    ticket::Tickets,
    token::Tokens,
    user_header::{Disbelief, UserHeader},
};

/// The name of the cookie that carries a token where no header can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieName(String);

impl FromStr for CookieName {
    type Err = &'static str;

    /// A token of RFC 6265: `__Host-` and the like are part of a name.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_token =
            |byte: u8| byte.is_ascii_graphic() && !b"()<>@,;:\\\"/[]?={}".contains(&byte);
        if !text.is_empty() && text.bytes().all(is_token) {
            Ok(Self(text.to_owned()))
        } else {
            Err("a cookie's name has letters, digits, - and _ in it, such as __Host-tidings")
        }
    }
}

impl Default for CookieName {
    fn default() -> Self {
        Self("tidings_token".to_owned())
    }
}

/// A request has one token, or a header's and those of cookies for several paths
/// or domains. Each costs the check of a signature, and a head has room for
/// hundreds.
const MOST_TOKENS: usize = 4;

/// How long it may take to find out who is asking, with all that a request waits
/// for: its turn, a connection to the database, the answer, a key set. A browser
/// waits for its first byte.
const LIMIT: Duration = Duration::from_secs(3);

/// Where a request may say who is asking. What is not configured is not looked
/// at: it is somebody else's.
pub struct Credentials {
    /// Tells whose a token is.
    pub tokens: Option<Tokens>,
    /// The cookie that may carry one.
    pub cookie: CookieName,
    /// What a proxy says.
    pub user_header: Option<UserHeader>,
    /// Tickets.
    pub tickets: TicketPolicy,
    /// `?user=`.
    pub query: QueryUser,
}

/// Whether tickets are believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketPolicy {
    /// They are.
    Believed,
    /// They are not; a request that carries one is nobody's.
    Refused,
}

/// Whether `?user=` is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryUser {
    /// Only in `tidings dev`.
    Believed,
    /// Everywhere else.
    Ignored,
}

/// What a request's query says of who is asking.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'a> {
    /// `?user=`.
    pub user: Option<&'a str>,
    /// `?ticket=`.
    pub ticket: Option<&'a str>,
}

/// Finds out who is asking.
pub struct Authenticator {
    credentials: Credentials,
    tickets: Tickets,
}

impl Authenticator {
    /// Believes these credentials, and looks tickets up in `tickets`.
    pub fn new(credentials: Credentials, tickets: Tickets) -> Self {
        Self {
            credentials,
            tickets,
        }
    }

    /// The identity of a request.
    ///
    /// Every source that is present must be good, and all must agree: a bad one
    /// never falls back to another. What can't be found out within a few seconds is
    /// [`Unidentified::Unavailable`].
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn identify(
        &self,
        request: &HttpRequest,
        named: Named<'_>,
        client: Client,
    ) -> Result<Identity, Unidentified> {
        let deadline = Instant::now() + LIMIT;
        let proving = self.prove(request, named, client, deadline);
        timeout_at(deadline, proving)
            .await
            .unwrap_or(Err(Unidentified::Unavailable))
    }

    async fn prove(
        &self,
        request: &HttpRequest,
        named: Named<'_>,
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
        if let (QueryUser::Believed, Some(user)) = (credentials.query, named.user) {
            add(UserId::parse(user).ok_or(Unidentified::User)?.into())?;
        }
        if let Some(header) = &credentials.user_header
            && let Some(user) = header.user(request)?
        {
            add(user.into())?;
        }
        if let Some(tokens) = &credentials.tokens {
            for token in tokens_in(request, &credentials.cookie)? {
                add(tokens.verify(&token).await?.into())?;
            }
        }
        // Last, because it asks the database.
        if let Some(ticket) = named.ticket {
            if credentials.tickets == TicketPolicy::Refused {
                return Err(Unidentified::Ticket);
            }
            add(self.tickets.verify(ticket, client, deadline).await?)?;
        }
        found.ok_or(Unidentified::Missing)
    }
}

impl From<Disbelief> for Unidentified {
    fn from(disbelief: Disbelief) -> Self {
        match disbelief {
            Disbelief::Spoofed => Self::Spoofed,
            Disbelief::Malformed => Self::User,
        }
    }
}

/// Every token that a request carries.
fn tokens_in(request: &HttpRequest, cookie_name: &CookieName) -> Result<Vec<String>, Unidentified> {
    let mut tokens = Vec::new();
    for value in request.headers().get_all(header::AUTHORIZATION) {
        let value = value.to_str().map_err(|_| Unidentified::Invalid)?;
        // RFC 9110, section 11.1: the scheme's case doesn't matter. Other
        // schemes are for somebody else, a proxy's password for instance.
        if let Some((scheme, token)) = value.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            tokens.push(token.trim().to_owned());
        }
    }
    let cookies = request.cookies().map_err(|_| Unidentified::Invalid)?;
    tokens.extend(
        cookies
            .iter()
            .filter(|cookie| cookie.name() == cookie_name.0)
            .map(|cookie| cookie.value().to_owned()),
    );
    if tokens.len() > MOST_TOKENS {
        return Err(Unidentified::Invalid);
    }
    Ok(tokens)
}
