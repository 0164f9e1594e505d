//! `tidings adopt`: prints or runs the SQL that has an application's table copied.

use std::io::Write;

use crate::{
    cli::AnyError,
    config::AdoptOptions,
    postgres::{
        adoption::{Adopter, AdoptionRequest},
        schema::LOCK_LIMIT,
    },
    runtime::escape,
};

/// Prints the SQL for the table, or runs it.
///
/// # Errors
///
/// If the table can't be adopted, or the SQL can't be run or printed.
pub async fn run(output: &mut impl Write, options: &AdoptOptions) -> Result<(), AnyError> {
    let url = options.database.session_url()?;
    let adopter = Adopter::open(&url, &options.database.schema).await?;
    let (script, done) = match (&options.user, &options.text) {
        (Some(user), Some(text)) => {
            let request = AdoptionRequest {
                table: &options.table,
                user,
                text,
                event: options.event.as_ref(),
                reference: options.reference.as_ref(),
                condition: options.condition.as_ref(),
                mark: options.mark.as_deref(),
                existing: options.existing.as_ref(),
            };
            (adopter.adopt(request).await?, "Adopted")
        }
        // clap requires both unless the table is to be removed.
        _ => (adopter.remove(&options.table).await?, "Removed"),
    };
    if options.apply {
        adopter.apply(script, LOCK_LIMIT).await?;
        // It has succeeded, even if this can't be printed.
        let _ = writeln!(output, "{done}.");
        return Ok(());
    }
    // What a terminal would execute is escaped, so the SQL would say something else.
    if escape::lines(&script.sql) != script.sql {
        return Err(
            "the SQL contains control characters, which are not printed: pass --apply".into(),
        );
    }
    write!(output, "{}", script.sql)?;
    Ok(output.flush()?)
}
