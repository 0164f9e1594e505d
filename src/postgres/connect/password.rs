//! Finds the password for a connection string without one as libpq does: in `PGPASSWORD`
//! or in a password file.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// The maximum size of a password file: thousands of lines. Reading a device would never
/// end.
const FILE_BYTES: u64 = 1 << 20;

/// What a line of a password file must match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Login<'a> {
    /// The name of the host; `localhost` for the default socket.
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// A password, and its source for the message if the server rejects it.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct FoundPassword {
    pub(super) password: String,
    pub(super) source: String,
}

/// Why there is no password.
#[derive(Debug, thiserror::Error)]
pub enum MissingPassword {
    /// No file is named, and there is no home directory for the default one.
    #[error("there is no password file")]
    NoFile,
    #[error("there is no password file {}", .0.display())]
    NotThere(PathBuf),
    #[error("the password file {} can't be read", .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// The path is a folder or a device.
    #[error("the password file {} is not a plain file", .0.display())]
    NotPlain(PathBuf),
    /// Other users may read the file, so it is ignored, as by libpq.
    #[error(
        "the password file {path} is ignored because its permissions ({mode:04o}) let others read \
         it: chmod 600 {path}",
        path = .0.display(), mode = .1
    )]
    Open(PathBuf, u32),
    #[error(
        "no line of the password file {} matches this host, port, database and role",
        .0.display()
    )]
    NoLine(PathBuf),
}

/// Returns `PGPASSWORD`, or else the first line for this login in a password file:
/// `named` by the connection string, named by `PGPASSFILE`, or `~/.pgpass`.
///
/// This is read for each connection, so that a new password needs no restart.
pub(super) fn find(
    login: Login<'_>,
    named: Option<&Path>,
) -> Result<FoundPassword, MissingPassword> {
    let is_given = |value: &std::ffi::OsString| !value.is_empty();
    if let Some(password) = env::var_os("PGPASSWORD").filter(is_given)
        && let Ok(password) = password.into_string()
    {
        let source = "PGPASSWORD".to_owned();
        return Ok(FoundPassword { password, source });
    }
    let variable = || {
        env::var_os("PGPASSFILE")
            .filter(is_given)
            .map(PathBuf::from)
    };
    let home = || Some(Path::new(&env::var_os("HOME").filter(is_given)?).join(".pgpass"));
    let file = named.map(Path::to_owned).or_else(variable).or_else(home);
    in_file(file.ok_or(MissingPassword::NoFile)?, login)
}

fn in_file(path: PathBuf, login: Login<'_>) -> Result<FoundPassword, MissingPassword> {
    use std::io::Read;

    // Checked before opening: opening a pipe would wait for a writer.
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MissingPassword::NotThere(path));
        }
        Err(error) => return Err(MissingPassword::Unreadable(path, error)),
    };
    if !metadata.is_file() {
        return Err(MissingPassword::NotPlain(path));
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(MissingPassword::Open(path, metadata.mode() & 0o777));
    }
    let mut bytes = Vec::new();
    let read = fs::File::open(&path).and_then(|file| file.take(FILE_BYTES).read_to_end(&mut bytes));
    if let Err(error) = read {
        return Err(MissingPassword::Unreadable(path, error));
    }
    let text = String::from_utf8_lossy(&bytes);
    // Some Windows editors write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    match text.lines().find_map(|line| password(line, login)) {
        Some(password) => Ok(FoundPassword {
            password,
            source: format!("the password file {}", path.display()),
        }),
        None => Err(MissingPassword::NoLine(path)),
    }
}

/// The password of a line, if it matches this login: `host:port:database:role:password`,
/// where `*` matches anything, and `\` escapes `:` and `\`.
fn password(line: &str, login: Login<'_>) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let port = login.port.to_string();
    let mut rest = line;
    for wanted in [login.host, &port, login.database, login.user] {
        rest = match rest.strip_prefix("*:") {
            Some(rest) => rest,
            None => {
                let (field, rest) = field(rest);
                // Another field must follow.
                if field != wanted {
                    return None;
                }
                rest?
            }
        };
    }
    let (password, _) = field(rest);
    Some(password).filter(|password| !password.is_empty())
}

/// The first field without its escapes, and the text after its `:`.
fn field(text: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            ':' => return (field, Some(characters.as_str())),
            // A backslash at the end of the line stands for itself.
            '\\' => field.push(characters.next().unwrap_or('\\')),
            c => field.push(c),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const LOGIN: Login<'_> = Login {
        host: "db.internal",
        port: 5432,
        database: "app",
        user: "notifier",
    };

    #[test]
    fn lines_match_as_in_libpq() {
        for (line, expected) in [
            ("db.internal:5432:app:notifier:secret", Some("secret")),
            ("*:*:*:*:secret", Some("secret")),
            ("db.internal:*:*:notifier:se:cret", Some("se")),
            (r"*:*:*:*:a\:b\\c\d", Some(r"a:b\cd")),
            (r"db\.internal:5432:app:notifier:x", Some("x")),
            (r"*:*:*:*:x\", Some(r"x\")),
            ("*:*:*:*:with space ", Some("with space ")),
            ("*:*:*:*:", None),
            ("*:*:*:*", None),
            ("*:*:*:", None),
            ("", None),
            ("# *:*:*:*:secret", None),
            ("#:*:*:*:secret", None),
            ("db:5432:app:notifier:secret", None),
            ("db.internal.evil:5432:app:notifier:secret", None),
            ("db.internal:5433:app:notifier:secret", None),
            ("db.internal:5432:other:notifier:secret", None),
            ("db.internal:5432:app:owner:secret", None),
            (r"\*:*:*:*:secret", None),
            ("**:*:*:*:secret", None),
        ] {
            assert_eq!(password(line, LOGIN).as_deref(), expected, "{line}");
        }
        let odd = Login {
            database: r"a:b\c",
            user: "*",
            ..LOGIN
        };
        assert_eq!(password(r"*:*:a\:b\\c:*:x", odd).as_deref(), Some("x"));
        assert_eq!(password(r"*:*:a\:b\\c:\*:x", odd).as_deref(), Some("x"));
        assert_eq!(password(r"*:*:a:b\\c:*:x", odd), None);
    }

    #[test]
    fn a_file_is_used_if_it_is_its_owners_alone_and_the_first_line_that_matches_counts() {
        let folder = env::temp_dir().join(format!("tidings-pgpass-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a folder");
        let file = folder.join("pgpass");
        let lines = "\u{feff}# of the tests\r\nother:*:*:*:no\r\ndb.internal:*:*:*:first\r\n*:*:*:*:second\n";
        fs::write(&file, lines).expect("a file");
        let allow = |mode| {
            let mode = fs::Permissions::from_mode(mode);
            fs::set_permissions(&file, mode).expect("a mode");
        };
        let found = |login| in_file(file.clone(), login).map(|found| found.password);
        for mode in [0o600, 0o400] {
            allow(mode);
            assert_eq!(found(LOGIN).expect("a line"), "first");
            let elsewhere = Login { host: "x", ..LOGIN };
            assert_eq!(found(elsewhere).expect("a line"), "second");
        }
        for mode in [0o640, 0o604, 0o610] {
            allow(mode);
            let error = found(LOGIN).expect_err("it is open").to_string();
            assert!(
                error.contains("chmod 600") && error.contains(&format!("{mode:o}")),
                "{error}"
            );
        }
        allow(0o600);
        fs::write(&file, "other:*:*:*:no\n").expect("a file");
        let error = found(LOGIN).expect_err("no line").to_string();
        assert!(error.contains("no line"), "{error}");
        let error = in_file(folder.clone(), LOGIN)
            .err()
            .expect("a folder")
            .to_string();
        assert!(error.contains("not a plain file"), "{error}");
        let error = in_file(folder.join("none"), LOGIN)
            .err()
            .expect("nothing")
            .to_string();
        assert!(error.contains("there is no password file"), "{error}");
        fs::remove_dir_all(&folder).expect("removed");
    }
}
