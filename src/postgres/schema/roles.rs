//! `tidings roles`: `sql/roles.sql` as one script for psql.

use super::SchemaName;

/// How `sql/roles.sql` includes the privileges.
const INCLUDE: &str = "\\ir grants.sql\n";

/// Returns a script for psql that creates the groups and grants their privileges in this
/// schema. `from` is a role that has installed Tidings there before and whose objects
/// are handed over. psql's variables of these names take precedence.
pub fn roles(schema: &SchemaName, from: Option<&str>) -> String {
    let schema = format!("\\set schema {}", variable(schema.name()));
    let from = format!("\\set from {}", variable(from.unwrap_or_default()));
    include_str!("../../../sql/roles.sql")
        .replace("\\set schema public", &schema)
        .replace("\\set from ''", &from)
        .replace(INCLUDE, include_str!("../../../sql/grants.sql"))
}

/// A value for psql's `\set`.
fn variable(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\r', "\\r")
        .replace('\'', "''");
    format!("'{escaped}'")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_is_complete_and_contains_the_given_names() {
        let schema: SchemaName = "o'ne\\".parse().expect("a name");
        let script = roles(&schema, Some("app"));
        assert!(script.contains("  \\set schema 'o''ne\\\\'\n"), "{script}");
        assert!(script.contains("  \\set from 'app'\n"), "{script}");
        let includes = |line: &str| line.starts_with("\\i");
        assert!(
            !script
                .lines()
                .any(|line| includes(line) && !line.starts_with("\\if "))
        );
        assert!(script.contains(include_str!("../../../sql/grants.sql")));
    }
}
