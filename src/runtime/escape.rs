//! Makes text from the database, the environment or clients safe to print.
//!
//! A terminal executes escape sequences: they set its title, move the cursor, hide
//! earlier output, or type into the shell. Without escaping, anyone who can choose an
//! event name, a role name or an `application_name` could control the terminal of the
//! operator who reads it.

use std::borrow::Cow;

/// Whether a terminal might do anything other than display this character: the control
/// characters C0 (ESC, CR, BEL …) and C1 (U+009B is CSI), DEL, the separators that some
/// terminals treat as line breaks, and the characters that reorder a line.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Escapes text for a single line. Every unsafe character is written as in Rust (`\n`,
/// `\u{1b}`).
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe, |c| c.escape_default().to_string())
}

/// Escapes text that may have several lines: line breaks and tabs are kept.
pub fn lines(text: &str) -> Cow<'_, str> {
    let is_escaped = |c| is_unsafe(c) && !matches!(c, '\n' | '\t');
    escaped(text, is_escaped, |c| c.escape_default().to_string())
}

/// Escapes JSON without changing its meaning. JSON itself only escapes C0; other unsafe
/// characters occur only in its strings, where they are written like `\u009b`.
pub fn json(text: &str) -> Cow<'_, str> {
    let is_escaped = |c: char| is_unsafe(c) && !c.is_ascii_whitespace();
    // All of them are in the basic multilingual plane.
    escaped(text, is_escaped, |c| format!("\\u{:04x}", u32::from(c)))
}

fn escaped(
    text: &str,
    is_escaped: impl Fn(char) -> bool,
    escape: impl Fn(char) -> String,
) -> Cow<'_, str> {
    if !text.contains(&is_escaped) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_escaped(c) {
            shown.push_str(&escape(c));
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An OSC sequence, a one-character CSI, a carriage return, DEL, and a direction
    /// override.
    const HOSTILE: &str = "a\x1b]0;t\x07\u{9b}2Jb\rc\x7f\u{202e}d\ne";

    #[test]
    fn nothing_that_controls_a_terminal_is_left() {
        let shown = r"a\u{1b}]0;t\u{7}\u{9b}2Jb\rc\u{7f}\u{202e}d";
        assert_eq!(line(HOSTILE), format!(r"{shown}\ne"));
        assert_eq!(lines(HOSTILE), format!("{shown}\ne"));
        for plain in ["", "Grüße, שלום, 日本 🎉"] {
            assert!(matches!(line(plain), Cow::Borrowed(text) if text == plain));
        }
    }

    #[test]
    fn json_means_the_same() {
        let value = serde_json::json!({ "text": HOSTILE });
        for text in [value.to_string(), format!("{value:#}")] {
            let shown = json(&text);
            assert!(
                !shown.contains(|c: char| is_unsafe(c) && c != '\n'),
                "{shown}"
            );
            let read: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
            assert_eq!(read, value);
        }
    }
}
