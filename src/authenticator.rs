//! Finds out who is asking, from all that a request carries.

use actix_web::{HttpRequest, http::header};

use crate::{
    identity::{Identity, Unidentified},
    notification::UserId,
    ticket::Tickets,
    token::Tokens,
};

/// The cookie that carries a token where no header can be set.
pub const COOKIE: &str = "tidings_token";

/// What is believed.
pub struct Credentials {
    /// Tokens, if any key is configured.
    pub tokens: Option<Tokens>,
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
    /// never falls back to another.
    ///
    /// # Errors
    ///
    /// [`Unidentified`].
    pub async fn identify(
        &self,
        request: &HttpRequest,
        named: Named<'_>,
    ) -> Result<Identity, Unidentified> {
        let mut found: Option<Identity> = None;
        let mut add = |identity: Identity| {
            found = Some(match found.take() {
                None => identity,
                Some(other) => other.and(identity)?,
            });
            Ok(())
        };
        if let (QueryUser::Believed, Some(user)) = (self.credentials.query, named.user) {
            add(UserId::parse(user).ok_or(Unidentified::User)?.into())?;
        }
        for token in tokens(request)? {
            let tokens = self.credentials.tokens.as_ref();
            let tokens = tokens.ok_or(Unidentified::Invalid)?;
            add(tokens.verify(&token).await?.into())?;
        }
        // Last, because it asks the database.
        if let Some(ticket) = named.ticket {
            if self.credentials.tickets == TicketPolicy::Refused {
                return Err(Unidentified::Ticket);
            }
            add(self.tickets.verify(ticket).await?)?;
        }
        found.ok_or(Unidentified::Missing)
    }
}

/// Every token that a request carries.
fn tokens(request: &HttpRequest) -> Result<Vec<String>, Unidentified> {
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
            .filter(|cookie| cookie.name() == COOKIE)
            .map(|cookie| cookie.value().to_owned()),
    );
    Ok(tokens)
}
