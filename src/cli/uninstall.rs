//! `tidings uninstall`: lists what will be removed, asks, and removes it.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::{
    cli::{AnyError, output::Count},
    config::UninstallOptions,
    postgres::{connect::DatabaseUrl, schema::Removal},
    runtime::escape,
};

/// Why nothing was removed.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// An operator who did not see what would be removed has not agreed to it.
    #[error("nothing was removed: can't print what would be removed")]
    Terminal(#[from] io::Error),
    #[error(
        "nothing was removed: there is no terminal to ask for confirmation; if you are sure, pass \
         --yes"
    )]
    Unasked,
    #[error("nothing was removed: that is not the schema's name")]
    Declined,
}

/// Removes everything that belongs to Tidings.
///
/// # Errors
///
/// If nothing was removed.
pub async fn run(output: &mut impl Write, options: &UninstallOptions) -> Result<(), AnyError> {
    let (url, schema) = (options.database.session_url()?, &options.database.schema);
    let removal = Removal::find(&url, schema).await?;
    agree(output, options, &url, &removal)?;
    let groups = removal.groups.join(", ");
    removal.carry_out().await?;
    // The removal has succeeded, even if this can't be printed.
    let _ = writeln!(output, "Removed.");
    if !groups.is_empty() {
        let _ = writeln!(
            output,
            "The groups remain, because other schemas and databases may use them. If none does, \
             have a superuser run:\n  drop owned by {groups};\n  drop role {groups};"
        );
    }
    Ok(())
}

/// Prints what is removed, and asks for confirmation.
fn agree(
    output: &mut impl Write,
    options: &UninstallOptions,
    url: &DatabaseUrl,
    removal: &Removal,
) -> Result<(), UninstallError> {
    let schema = &options.database.schema;
    writeln!(output, "This removes from the schema {schema} in {url}:")?;
    for object in &removal.objects {
        writeln!(output, "  {}", escape::line(object))?;
    }
    if !removal.adopted.is_empty() {
        writeln!(output, "and what copies rows of other tables there:")?;
        for object in &removal.adopted {
            writeln!(output, "  {}", escape::line(object))?;
        }
    }
    writeln!(
        output,
        "and permanently deletes {} notifications, of which {} are unsent.",
        Count(removal.rows),
        Count(removal.unsent)
    )?;
    if removal.sessions > 0 {
        writeln!(
            output,
            "{} sessions of tidings are open: stop the bridges first, because a bridge that \
             restarts installs Tidings again (TIDINGS_MIGRATE=auto).",
            removal.sessions
        )?;
    }
    match options.yes {
        true => Ok(()),
        false => ask(output, schema.name()),
    }
}

fn ask(output: &mut impl Write, schema: &str) -> Result<(), UninstallError> {
    let input = io::stdin();
    if !input.is_terminal() {
        return Err(UninstallError::Unasked);
    }
    write!(output, "To remove it, type the schema's name: ")?;
    output.flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer)?;
    if answer.trim() == schema {
        Ok(())
    } else {
        Err(UninstallError::Declined)
    }
}
