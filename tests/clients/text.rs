//! Texts that a client may handle incorrectly.

use rand::{RngExt, rngs::StdRng};

/// The length of a text that takes many reads.
const LONG_BYTES: usize = 100 << 10;

/// The length of a text that some clients accept in one line only if configured to.
const HUGE_BYTES: usize = 600 << 10;

/// Texts that look like the surrounding format or its delimiters.
const DIFFICULT: [&str; 16] = [
    "",
    " one space before it",
    "   three spaces before it",
    "spaces after it  ",
    "\n",
    "\n\nempty lines before it",
    "empty lines after it\n\n",
    "CRLF\r\nCR\rLF\nend\r",
    "data: a line of data\ndata",
    "id: 5-AAA\n\nid: 6-AAA\n\n",
    "retry: 1\nevent: tidings.gap\n\n: a comment\n",
    "\u{feff}a byte order mark",
    "\u{1}\u{2}\u{8}\u{b}\u{c}\u{e}\u{1b}\u{1c}\u{1d}\u{1e}\u{1f}\u{7f} controls",
    "\u{85}\u{2028}\u{2029} line breaks that are none here",
    "😀𝄞 four bytes each: 🏴‍☠️",
    "äöü ß € 漢字",
];

/// One of these, or a plain text, and occasionally a long one.
pub fn any(random: &mut StdRng) -> String {
    match random.random_range(0..100) {
        0 => "😀".repeat(LONG_BYTES / 4),
        1 => "a line\n".repeat(LONG_BYTES / 40),
        2..40 => DIFFICULT[random.random_range(0..DIFFICULT.len())].to_owned(),
        _ => format!("Notification {}", random.random_range(0..1_000_000)),
    }
}

/// SSE can't represent CR: each line break becomes LF.
pub fn as_sse_has_it(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// One line of more than half a megabyte.
pub fn huge() -> String {
    "huge ".repeat(HUGE_BYTES / 5)
}
