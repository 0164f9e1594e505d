//! The schema's name, and how it stands in SQL.

use std::{fmt, str::FromStr};

/// The name of the schema that contains all objects, 1 to 63 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SchemaName(String);

impl SchemaName {
    pub fn public() -> Self {
        Self("public".to_owned())
    }

    /// The unquoted name.
    pub fn name(&self) -> &str {
        &self.0
    }

    /// The name in double quotes, for SQL.
    pub fn quoted(&self) -> String {
        quoted(&self.0)
    }

    /// Fills this schema into a text of `sql/` or `migrations/`: as an identifier
    /// (`:"schema"`), as a string (`:'schema'`), or in a string that names something in
    /// the schema (`:'"schema".notifications'`).
    pub fn fill(&self, text: &str) -> String {
        let mut pieces = text.split(":'\"schema\".");
        let mut filled = pieces.next().unwrap_or_default().to_owned();
        for piece in pieces {
            let (name, rest) = piece.split_once('\'').unwrap_or((piece, ""));
            filled += &literal(&self.qualified(name));
            filled += rest;
        }
        filled
            .replace(":\"schema\"", &self.quoted())
            .replace(":'schema'", &literal(&self.0))
    }

    /// An SQL constant for the relation of this name in the schema.
    pub fn regclass(&self, name: &str) -> String {
        format!("{}::regclass", literal(&self.qualified(name)))
    }

    /// Prefixes an unquoted name with this schema.
    pub fn qualified(&self, name: &str) -> String {
        format!("{}.{name}", self.quoted())
    }
}

/// A name in double quotes, for SQL.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string in single quotes, for SQL.
pub(in crate::postgres) fn literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if doubled.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

impl FromStr for SchemaName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.len() {
            0 => Err("a schema's name can't be empty"),
            64.. => Err("a schema's name has at most 63 bytes"),
            _ if text.contains('\0') => Err("a schema's name can't contain NUL"),
            // Function bodies, which contain the name, are dollar-quoted.
            _ if text.contains("$$") => Err("a schema's name can't contain $$"),
            _ if text.starts_with("pg_") => Err("names that begin with pg_ belong to Postgres"),
            _ => Ok(Self(text.to_owned())),
        }
    }
}

impl fmt::Display for SchemaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_in_a_text_as_a_name_a_text_or_part_of_one() {
        let schema: SchemaName = "o'ne \"two\"".parse().expect("a name");
        let filled = schema.fill(
            "select :'schema', :'\"schema\".notes', :'\"schema\".f(int)' from :\"schema\".notes",
        );
        assert_eq!(
            filled,
            "select 'o''ne \"two\"', '\"o''ne \"\"two\"\"\".notes', '\"o''ne \"\"two\"\"\".f(int)' \
             from \"o'ne \"\"two\"\"\".notes"
        );
    }

    #[test]
    fn names_that_would_end_a_functions_body_are_refused() {
        for name in ["", "pg_mine", "a\0b", "a$$b", &"n".repeat(64)] {
            assert!(SchemaName::from_str(name).is_err(), "{name:?}");
        }
    }
}
