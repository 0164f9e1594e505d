//! Parsing of HTTP header values, which are bytes and need not be text.

/// The value without surrounding whitespace. In HTTP that means spaces and tabs only (RFC
/// 9110, section 5.6.3): a no-break space is part of the value.
pub fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Splits a text at separators outside of quoted strings. In a quoted string, a backslash
/// escapes the next character (RFC 9110, section 5.6.4).
pub fn split_unquoted(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |character| {
        if is_escaped {
            is_escaped = false;
            return false;
        }
        match character {
            '\\' if is_quoted => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            _ => return character == separator && !is_quoted,
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whitespace_is_spaces_and_tabs() {
        for (value, expected) in [
            (&b""[..], &b""[..]),
            (b" \t ", b""),
            (b" \ta b\t ", b"a b"),
            (b"a", b"a"),
            ("\u{a0}a\u{3000}".as_bytes(), "\u{a0}a\u{3000}".as_bytes()),
            (b"\x0ba\x0c", b"\x0ba\x0c"),
        ] {
            assert_eq!(trimmed(value), expected, "{value:?}");
        }
    }

    #[test]
    fn separators_inside_quotes_are_no_separators() {
        let parts = |text| split_unquoted(text, ';').collect::<Vec<_>>();
        assert_eq!(parts("a;b=\"c;d\";e"), ["a", "b=\"c;d\"", "e"]);
        assert_eq!(parts(r#"a="\";";b"#), [r#"a="\";""#, "b"]);
        assert_eq!(parts("a=\";b"), ["a=\";b"]);
        assert_eq!(parts(""), [""]);
    }
}
