//! Settings whose values must not be shown. Each is given directly or in a file.

use std::{convert::Infallible, fmt, fs, io, path::Path, str::FromStr};

use super::ConfigError;

/// Maximum size of a file that contains a secret: no secret is longer, and a device would
/// never end.
const FILE_BYTES: u64 = 1 << 20;

/// A value that must not be shown. clap prints values that it can't parse, so secrets are
/// parsed later.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl FromStr for Secret {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Secret {
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    /// The database URLs in a list: URLs are separated by white space, and keys and values,
    /// which contain spaces, by line breaks.
    pub(super) fn each_url(&self) -> impl Iterator<Item = Self> {
        let in_line = |line: &str| -> Vec<String> {
            match line.contains("://") {
                true => line.split_whitespace().map(str::to_owned).collect(),
                false => vec![line.trim().to_owned()],
            }
        };
        let each = self.0.lines().flat_map(in_line);
        each.filter(|url| !url.is_empty()).map(Self)
    }
}

/// The value of the setting `name`, given directly or in a file, as container platforms
/// mount secrets. White space around a file's text is not part of it.
///
/// # Errors
///
/// [`ConfigError`], if both are given, or the file can't be read.
pub(super) fn given(
    name: &'static str,
    value: Option<&Secret>,
    file: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    match (value, file) {
        (Some(_), Some(_)) => Err(ConfigError::Twice(name)),
        (value, None) => Ok(value.cloned()),
        (None, Some(path)) => read(path).map(Some).map_err(|source| ConfigError::File {
            name,
            path: path.to_owned(),
            source,
        }),
    }
}

/// Why a file that holds a secret can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is empty")]
    Empty,
    #[error("it is UTF-16, as Windows PowerShell writes it: save it as UTF-8")]
    Utf16,
    #[error("it is not UTF-8")]
    NotUtf8,
}

fn read(path: &Path) -> Result<Secret, SecretFileError> {
    use std::io::Read;

    let file = fs::File::open(path)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES).read_to_end(&mut bytes)?;
    match text(&bytes)?.trim() {
        "" => Err(SecretFileError::Empty),
        text => Ok(Secret(text.to_owned())),
    }
}

/// The text of a file, without the byte order mark that Windows editors put at its
/// beginning.
fn text(bytes: &[u8]) -> Result<&str, SecretFileError> {
    const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";
    const UTF_16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];
    if UTF_16_MARKS.iter().any(|mark| bytes.starts_with(mark)) {
        return Err(SecretFileError::Utf16);
    }
    let bytes = bytes.strip_prefix(UTF_8_MARK).unwrap_or(bytes);
    str::from_utf8(bytes).map_err(|_| SecretFileError::NotUtf8)
}
