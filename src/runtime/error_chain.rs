//! The text of an error with its causes.

use std::{
    error::Error,
    fmt::{self, Write},
};

use tokio_postgres::error::{DbError, SqlState};

use crate::runtime::escape;

/// Displays an error and its causes, with ": " between them. An error's own text doesn't
/// include its cause.
#[derive(Clone, Copy, Debug)]
pub struct ErrorChain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut next = Some(self.0);
        while let Some(error) = next {
            next = error.source();
            if !text.is_empty() {
                text.push_str(": ");
            }
            // tokio-postgres' own text is only "db error".
            if let Some(reported) = next.and_then(|cause| cause.downcast_ref::<DbError>()) {
                text.push_str(&escape::line(&message(reported)));
                break;
            }
            write!(text, "{error}")?;
        }
        // The text may quote a server, and names of roles and objects.
        f.write_str(&escape::lines(&text))
    }
}

/// What to do if row-level security applies to a query.
const ROW_SECURITY: &str = ": row-level security would hide rows from this role; `tidings check` \
                            shows the statement that fixes it";

fn message(error: &DbError) -> String {
    let hint = error.hint().map(|hint| format!(" ({hint})"));
    let advice = match is_row_security(error) {
        true => ROW_SECURITY,
        false => "",
    };
    format!("{}{}{advice}", error.message(), hint.unwrap_or_default())
}

/// Whether Postgres rejected a query because row-level security applies to it
/// (`row_security = off`). The code is the same for every missing privilege, and the
/// message may be translated, so the function name in the server's source decides.
pub fn is_row_security(error: &DbError) -> bool {
    *error.code() == SqlState::INSUFFICIENT_PRIVILEGE && error.routine() == Some("check_enable_rls")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error("can't open the door")]
        Inner(#[from] io::Error),
        #[error(transparent)]
        Transparent(io::Error),
    }

    #[test]
    fn each_cause_is_named_once() {
        let cause = || io::Error::new(io::ErrorKind::NotFound, "no key");
        let outer = Outer::from(cause());
        let chain = ErrorChain(&outer).to_string();
        assert_eq!(chain, "can't open the door: no key");
        let transparent = Outer::Transparent(cause());
        assert_eq!(ErrorChain(&transparent).to_string(), "no key");
        assert_eq!(ErrorChain(&cause()).to_string(), "no key");
    }

    #[test]
    fn no_error_controls_a_terminal() {
        let error = io::Error::other("\u{1b}[2J");
        assert_eq!(ErrorChain(&error).to_string(), "\\u{1b}[2J");
    }
}
