//! SQL expressions from the command line, which become part of a function.
//!
//! An expression is put between parentheses. It stays there if its strings, comments and
//! parentheses end where it ends, so that is what is checked here. Whether it is a valid
//! expression, Postgres decides (`table.rs`).

use std::{fmt, str::FromStr};

/// An expression or a condition over the columns of a row `n`, which can't end the
/// parentheses that it is put between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression(String);

/// Why a text is not accepted as an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    #[error("it is empty")]
    Empty,
    #[error("it contains a semicolon outside of strings: it must be a single expression")]
    Semicolon,
    #[error("it contains a comment: leave it out")]
    Comment,
    #[error("it contains a parameter such as $1: write the value itself")]
    Parameter,
    #[error("it contains a dollar sign that begins no string: put the name in double quotes")]
    Dollar,
    #[error("it contains a backslash outside of strings")]
    Backslash,
    #[error("a string, name or parenthesis that begins with {0} does not end")]
    Unclosed(&'static str),
    #[error("it closes a parenthesis with {0} that it did not open")]
    Unopened(char),
    #[error(
        "a number is followed by a letter or a quote: write it in decimal, with a space after it"
    )]
    Number,
    #[error("a string continues on the next line: write it as one string")]
    Continued,
}

/// What Postgres takes for blank space.
const BLANK: [char; 6] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];

/// A piece of an expression.
enum Token {
    Blank,
    String,
    Open(char),
    Close(char),
    Other,
}

impl Expression {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Expression {
    type Err = ExpressionError;

    fn from_str(text: &str) -> Result<Self, ExpressionError> {
        let (mut rest, mut open, mut is_empty) = (text, Vec::new(), true);
        while !rest.is_empty() {
            let (token, length) = next(rest)?;
            rest = &rest[length..];
            match token {
                Token::Blank => continue,
                Token::String => refuse_continuation(rest)?,
                Token::Open(bracket) => open.push(bracket),
                Token::Close(bracket) => match (open.pop(), bracket) {
                    (Some('('), ')') | (Some('['), ']') => {}
                    _ => return Err(ExpressionError::Unopened(bracket)),
                },
                Token::Other => {}
            }
            is_empty = false;
        }
        match open.pop() {
            _ if is_empty => Err(ExpressionError::Empty),
            Some('[') => Err(ExpressionError::Unclosed("[")),
            Some(_) => Err(ExpressionError::Unclosed("(")),
            None => Ok(Self(text.to_owned())),
        }
    }
}

/// The first token of a text that isn't empty, and its length.
///
/// It is read as Postgres does with `standard_conforming_strings = on`: whatever begins or
/// ends a string there must do so here.
fn next(text: &str) -> Result<(Token, usize), ExpressionError> {
    let first = text.chars().next().unwrap_or_default();
    let other = |length| Ok((Token::Other, length));
    match first {
        _ if BLANK.contains(&first) => Ok((Token::Blank, 1)),
        '\'' => Ok((Token::String, quoted(text, '\'', Backslash::IsText)?)),
        '"' => other(quoted(text, '"', Backslash::IsText)?),
        '$' => Ok((Token::String, dollar_quoted(text)?)),
        '(' | '[' => Ok((Token::Open(first), 1)),
        ')' | ']' => Ok((Token::Close(first), 1)),
        ';' => Err(ExpressionError::Semicolon),
        '\\' => Err(ExpressionError::Backslash),
        _ if text.starts_with("--") || text.starts_with("/*") => Err(ExpressionError::Comment),
        '0'..='9' => other(number(text)?),
        _ if is_of_name(first) => {
            let length = text.find(|c| !is_of_name(c)).unwrap_or(text.len());
            let (name, rest) = text.split_at(length);
            if name.eq_ignore_ascii_case("e") && rest.starts_with('\'') {
                let string = quoted(rest, '\'', Backslash::Escapes)?;
                return Ok((Token::String, length + string));
            }
            other(length)
        }
        _ => other(first.len_utf8()),
    }
}

/// Whether a character may be part of a name. Digits and dollar signs don't begin one,
/// which [`next`] has ruled out.
fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == '$' || !c.is_ascii()
}

/// What a backslash means within a string.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Backslash {
    IsText,
    Escapes,
}

/// The length of a string or name that begins with a quote. A doubled quote doesn't end
/// it.
fn quoted(text: &str, quote: char, backslash: Backslash) -> Result<usize, ExpressionError> {
    let mut characters = text.char_indices().skip(1).peekable();
    while let Some((at, c)) = characters.next() {
        if c == '\\' && backslash == Backslash::Escapes {
            characters.next();
        } else if c == quote && characters.next_if(|&(_, next)| next == quote).is_none() {
            return Ok(at + 1);
        }
    }
    Err(ExpressionError::Unclosed(if quote == '"' {
        "\""
    } else {
        "'"
    }))
}

/// The length of a string that begins with a tag between dollar signs.
fn dollar_quoted(text: &str) -> Result<usize, ExpressionError> {
    let rest = &text[1..];
    if rest.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(ExpressionError::Parameter);
    }
    let is_of_tag = |c: char| is_of_name(c) && c != '$';
    let length = rest.find(|c| !is_of_tag(c)).unwrap_or(rest.len());
    if !rest[length..].starts_with('$') {
        return Err(ExpressionError::Dollar);
    }
    let (tag, rest) = text.split_at(length + 2);
    let end = rest.find(tag).ok_or(ExpressionError::Unclosed("$"))?;
    Ok(end + 2 * tag.len())
}

/// The length of a decimal number, without the sign of an exponent and what follows it.
///
/// Releases of Postgres differ in where a number ends that is followed by a letter, and
/// the letter may decide what a string means (`1e5e'\'`).
fn number(text: &str) -> Result<usize, ExpressionError> {
    let length = text
        .find(|c| !is_of_name(c) && c != '.')
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(length);
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, ""));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let ends = !rest.starts_with(['\'', '"']);
    if ends && [whole, fraction, exponent].into_iter().all(is_number) {
        Ok(length)
    } else {
        Err(ExpressionError::Number)
    }
}

/// Postgres joins a string to one that follows on another line, and reads both in the same
/// way, which depends on the first one's beginning.
fn refuse_continuation(rest: &str) -> Result<(), ExpressionError> {
    let next = rest.trim_start_matches(BLANK);
    let gap = &rest[..rest.len() - next.len()];
    if next.starts_with('\'') && gap.contains(['\n', '\r']) {
        return Err(ExpressionError::Continued);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_accepted_as_they_are() {
        for text in [
            "text",
            " not sent ",
            "n.\"we;ird \"\"name\"\" --(\"",
            "'it''s; -- (' || n.id",
            r"E'\'; drop table t; --' || e'\\'",
            r"'a\' || 'b'",
            "$$ ; ) $$ || $a$ $$ ' $b$ $a$",
            "(data::jsonb || jsonb_build_object('id', n.id))::text",
            "(select e.type from app.events as e where e.id = n.event_id)",
            "array[[1], [2]][1:2]",
            "case when id > 1.5e10 and id < 1e-3 + .5 then 'a' else 'b' end",
            "id between 1 and 10",
            "naïve$name || \"größe\"",
            "n.a - -1",
            "'a' 'b'",
            "u&'\\0041\\'",
            "'one\nstring'",
        ] {
            let parsed: Result<Expression, _> = text.parse();
            assert_eq!(parsed.map(|it| it.to_string()).as_deref(), Ok(text));
        }
    }

    #[test]
    fn nothing_that_could_end_the_parentheses_is_accepted() {
        use ExpressionError::*;
        for (text, reason) in [
            ("", Empty),
            (" \n", Empty),
            ("text; drop table t", Semicolon),
            ("text -- comment", Comment),
            ("text /* comment */", Comment),
            ("a +-- comment", Comment),
            ("text)", Unopened(')')),
            ("text) from t; (", Unopened(')')),
            ("(a[1)]", Unopened(')')),
            ("]", Unopened(']')),
            ("(text", Unclosed("(")),
            ("a[1", Unclosed("[")),
            ("'text", Unclosed("'")),
            ("'text''", Unclosed("'")),
            (r"E'text\'", Unclosed("'")),
            (r"e'text\\\'", Unclosed("'")),
            ("\"text", Unclosed("\"")),
            ("$$ text", Unclosed("$")),
            ("$a$ text $b$", Unclosed("$")),
            ("id = $1", Parameter),
            ("a $ b", Dollar),
            ("$a", Dollar),
            ("\\! rm", Backslash),
            // Postgres 14 reads an escape string here, and 15 an error.
            (r"1e5e'\' ' ; drop table t; --'", Number),
            (r"1e'\' ' ; drop table t; --'", Number),
            (r".5e'\' ' ; drop table t; --'", Number),
            ("1$a$ ' $a$", Number),
            ("0xff", Number),
            // The second line is an escape string, too.
            ("E'a'\n'\\' ; drop table t; --'", Continued),
            ("'a' \t\r 'b'", Continued),
        ] {
            let parsed: Result<Expression, _> = text.parse();
            assert_eq!(parsed, Err(reason), "{text:?}");
        }
    }
}
