//! Parses the two forms of libpq's connection strings, a URL or `key=value` pairs, into
//! names and values.
//!
//! No message contains a value, since it may be the password or a part of it.

use std::str::Chars;

use percent_encoding::percent_decode_str;

/// The parameters, in order. As in libpq, the last value of a name counts, and an empty
/// value counts as absent.
#[derive(Default)]
pub(super) struct ConnInfo(Vec<(String, String)>);

impl ConnInfo {
    /// Parses either form.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let url = ["postgres://", "postgresql://"]
            .iter()
            .find_map(|scheme| text.strip_prefix(scheme));
        let mut parameters = Self::default();
        match url {
            Some(rest) => parameters.read_url(rest)?,
            None => parameters.read_pairs(text)?,
        }
        Ok(parameters)
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let pair = self.0.iter().rev().find(|pair| pair.0 == name)?;
        Some(pair.1.as_str()).filter(|value| !value.is_empty())
    }

    /// All names that have a value, each with a form for messages: the second word of an
    /// unquoted password is parsed as a name, and must not be shown.
    pub(super) fn names(&self) -> impl Iterator<Item = (&str, &str)> {
        let given = self.0.iter().enumerate();
        given
            .filter(|(_, pair)| !pair.1.is_empty())
            .map(|(index, pair)| {
                let after_password = index > 0 && self.0[index - 1].0 == "password";
                let is_plain = |c: char| c.is_ascii_lowercase() || c == '_';
                let shown = match pair.0.as_str() {
                    name if !after_password && name.chars().all(is_plain) => name,
                    _ => "not shown, in case it is part of a password",
                };
                (pair.0.as_str(), shown)
            })
    }

    fn set(&mut self, name: &str, value: String) {
        self.0.push((name.to_owned(), value));
    }

    fn read_url(&mut self, url: &str) -> Result<(), String> {
        let rest = match url.find(['@', '/']) {
            Some(at) if url[at..].starts_with('@') => {
                let (user, password) = url[..at].split_once(':').unwrap_or((&url[..at], ""));
                self.set("user", decoded(user)?);
                self.set("password", decoded(password)?);
                &url[at + 1..]
            }
            _ => url,
        };
        let (hosts, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (database, query) = rest.split_once('?').unwrap_or((rest, ""));
        self.read_hosts(hosts)?;
        self.set("dbname", decoded(database.trim_start_matches('/'))?);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or("a parameter after the ? has no =")?;
            match (decoded(name)?.as_str(), decoded(value)?) {
                // As libpq does, for JDBC users.
                ("ssl", value) if value == "true" => self.set("sslmode", "require".to_owned()),
                (name, value) => self.set(name, value),
            }
        }
        Ok(())
    }

    fn read_hosts(&mut self, text: &str) -> Result<(), String> {
        const ESCAPE: &str = "@, :, / and ? in the user or the password must be percent-encoded, \
                              as %40, %3A, %2F and %3F";
        if text.contains('@') {
            return Err(format!("it has a second @: {ESCAPE}"));
        }
        let (mut hosts, mut ports) = (Vec::new(), Vec::new());
        for place in text.split(',') {
            let (host, rest) = match place.strip_prefix('[') {
                Some(address) => address.split_once(']').ok_or("it has a [ without a ]")?,
                None => place.split_at(place.find(':').unwrap_or(place.len())),
            };
            let port = match rest.strip_prefix(':') {
                Some(port) => port,
                None if rest.is_empty() => "",
                None => return Err("only a port may follow the ] of an address".into()),
            };
            hosts.push(decoded(host)?);
            ports.push(decoded(port)?);
        }
        let is_number = |port: &String| port.chars().all(|c| c.is_ascii_digit());
        if !ports.iter().all(is_number) {
            return Err(format!("its port is not a number ({ESCAPE})"));
        }
        self.set("host", hosts.join(","));
        if ports.iter().any(|port| !port.is_empty()) {
            self.set("port", ports.join(","));
        }
        Ok(())
    }

    fn read_pairs(&mut self, text: &str) -> Result<(), String> {
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or(
                "it should look like postgres://user:password@host/database, or consist of \
                 key=value pairs",
            )?;
            let name = name.trim_end();
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(
                    "it has a word without = (put values with spaces in single quotes)".into(),
                );
            }
            let mut characters = after.trim_start().chars();
            let value = value(&mut characters)?;
            self.set(name, value);
            rest = characters.as_str().trim_start();
        }
        Ok(())
    }
}

/// Parses one value: quoted, or up to white space.
fn value(characters: &mut Chars<'_>) -> Result<String, String> {
    let is_quoted = characters.as_str().starts_with('\'');
    if is_quoted {
        characters.next();
    }
    let mut value = String::new();
    while let Some(character) = characters.next() {
        match character {
            '\\' => value.extend(characters.next()),
            '\'' if is_quoted => return Ok(value),
            space if !is_quoted && space.is_whitespace() => return Ok(value),
            other => value.push(other),
        }
    }
    if is_quoted {
        return Err("it has a ' that is never closed".to_owned());
    }
    Ok(value)
}

/// Percent-decodes a string.
fn decoded(text: &str) -> Result<String, String> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    // Each escape is three bytes for one; a malformed one is left as it is.
    let escapes = text.matches('%').count();
    if text.len() != bytes.len() + 2 * escapes || bytes.contains(&0) {
        return Err(
            "a % must be followed by two hexadecimal digits other than 00 (write % itself as %25)"
                .to_owned(),
        );
    }
    String::from_utf8(bytes).map_err(|_| "it is not valid UTF-8 after percent-decoding".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(text: &str) -> Vec<(String, String)> {
        let parameters = ConnInfo::parse(text).expect(text);
        let all = parameters.0.into_iter();
        all.filter(|(_, value)| !value.is_empty()).collect()
    }

    #[test]
    fn both_forms_are_read_as_libpq_reads_them() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            ("postgresql://", &[]),
            ("", &[]),
            ("postgresql:///mydb", &[("dbname", "mydb")]),
            ("postgresql://host", &[("host", "host")]),
            (
                "postgresql://host:/mydb",
                &[("host", "host"), ("dbname", "mydb")],
            ),
            ("postgres://u@h", &[("user", "u"), ("host", "h")]),
            (
                "postgres://u:p%40s%2Fs@h:1,[::1]:2,%2Frun%2Fpg,k/d%20b?sslmode=require&",
                &[
                    ("user", "u"),
                    ("password", "p@s/s"),
                    ("host", "h,::1,/run/pg,k"),
                    ("port", "1,2,,"),
                    ("dbname", "d b"),
                    ("sslmode", "require"),
                ],
            ),
            (
                "postgres:///db?host=/run/pg&user=a@b&ssl=true&options=-c%20a=b",
                &[
                    ("dbname", "db"),
                    ("host", "/run/pg"),
                    ("user", "a@b"),
                    ("sslmode", "require"),
                    ("options", "-c a=b"),
                ],
            ),
            (
                "postgres://u:what?@h?dbname=d",
                &[
                    ("user", "u"),
                    ("password", "what?"),
                    ("host", "h"),
                    ("dbname", "d"),
                ],
            ),
            (
                r" host = 'a b'  user=it\'s password='\\' dbname= ",
                &[("host", "a b"), ("user", "it's"), ("password", r"\")],
            ),
        ];
        for (text, expected) in cases {
            let expected: Vec<_> = expected
                .iter()
                .map(|&(name, value)| (name.to_owned(), value.to_owned()))
                .collect();
            assert_eq!(given(text), expected, "{text}");
        }
        let twice = ConnInfo::parse("postgres://a/?host=b&host=c").expect("a URL");
        assert_eq!(twice.get("host"), Some("c"));
    }

    #[test]
    fn what_is_malformed_is_refused_without_showing_it() {
        for text in [
            "mysql://u:hunter2@h/d",
            "postgres://u:hunter2@hunter2@h/d",
            "postgres://u:hunter2/3@h/d",
            "postgres://u:hunter2%@h",
            "postgres://u:hunter2%00@h",
            "postgres://u:hunter2%FF@h",
            "postgres://[::1",
            "postgres://[::1]hunter2",
            "postgres://h?hunter2",
            "password=a hunter2",
            "password='hunter2",
            "hunter2",
        ] {
            let error = ConnInfo::parse(text).err().expect(text);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let split = ConnInfo::parse("password=my hunter=2 x=y").expect("pairs");
        assert!(split.names().all(|(_, shown)| !shown.contains("hunter")));
    }
}
