//! Finds the programs of an installed PostgreSQL.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{ClusterError, Result};

/// An installed PostgreSQL: the folder that contains `postgres` and `initdb`.
#[derive(Debug, Clone)]
pub struct PostgresBinaries {
    folder: PathBuf,
    version: Version,
}

/// Why a folder can't be used as an installed PostgreSQL.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// This program is missing.
    #[error("it contains no `{0}`")]
    Lacks(&'static str),
    /// `postgres` exists but can't be executed. The text, which is part of a sentence,
    /// includes the cause.
    #[error("its `postgres` can't be run ({0})")]
    CannotRun(io::Error),
    /// `postgres --version` doesn't print a version that we know.
    #[error("its `postgres --version` prints {0:?}")]
    UnknownVersion(String),
}

impl PostgresBinaries {
    /// Uses the folder named by `PG_BIN_DIR`; without it, the highest version found on
    /// `PATH` and where Debian, Red Hat, Homebrew and Postgres.app install.
    ///
    /// Blocks for some milliseconds: it runs `postgres --version` in each folder that it
    /// finds.
    ///
    /// # Errors
    ///
    /// [`ClusterError::BadBinDir`] if `PG_BIN_DIR` is set and unusable,
    /// [`ClusterError::NoBinaries`] if it is unset and nothing is found.
    pub fn find() -> Result<Self> {
        match env::var_os("PG_BIN_DIR").filter(|folder| !folder.is_empty()) {
            Some(folder) => {
                let folder = PathBuf::from(folder);
                Self::at(&folder).map_err(|reason| ClusterError::BadBinDir { folder, reason })
            }
            None => usual_folders()
                .iter()
                .rev() // `max_by_key` returns the last of equals: the one on `PATH`.
                .filter_map(|folder| Self::at(folder).ok())
                .max_by_key(|found| found.version)
                .ok_or(ClusterError::NoBinaries),
        }
    }

    /// Uses this folder.
    pub fn at(folder: &Path) -> Result<Self, Unusable> {
        // The server is started in another working directory.
        let folder = std::path::absolute(folder).map_err(|_| Unusable::Lacks("postgres"))?;
        for name in ["postgres", "initdb"] {
            if !folder.join(name).is_file() {
                return Err(Unusable::Lacks(name));
            }
        }
        let output = Command::new(folder.join("postgres"))
            .arg("--version")
            .stdin(Stdio::null())
            .output()
            .map_err(Unusable::CannotRun)?;
        let said = String::from_utf8_lossy(&output.stdout);
        match Version::parse(&said) {
            Some(version) => Ok(Self { folder, version }),
            None => Err(Unusable::UnknownVersion(said.trim().to_owned())),
        }
    }

    /// The server's `psql`, if it is installed.
    pub fn psql(&self) -> Option<PathBuf> {
        self.beside("psql")
    }

    /// A program that comes with the server, if it is installed: beside `postgres`, or
    /// beside the target of the link if only `postgres` is linked.
    pub fn beside(&self, name: &str) -> Option<PathBuf> {
        let linked = fs::canonicalize(self.folder.join("postgres"));
        let places = [Ok(self.folder.join("postgres")), linked];
        let programs = places.into_iter().flatten();
        programs
            .map(|server| server.with_file_name(name))
            .find(|program| program.is_file())
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.beside(name).unwrap_or_else(|| self.folder.join(name))
    }

    pub(super) fn major(&self) -> u32 {
        self.version.major
    }
}

/// Folders that may contain a server, whether they exist or not.
fn usual_folders() -> Vec<PathBuf> {
    const PLACES: [(&str, &str); 5] = [
        ("/usr/lib/postgresql", ""),
        ("/usr", "pgsql-"),
        ("/opt/homebrew/opt", "postgresql"),
        ("/usr/local/opt", "postgresql"),
        ("/Applications/Postgres.app/Contents/Versions", ""),
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let installed = PLACES.iter().flat_map(|&(parent, prefix)| {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        entries
            .filter(move |entry| entry.file_name().to_string_lossy().starts_with(prefix))
            .map(|entry| entry.path().join("bin"))
    });
    env::split_paths(&path).chain(installed).collect()
}

/// A server version, ordered by age. A pre-release counts as minor version 0 of its major
/// version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    major: u32,
    minor: u32,
}

impl Version {
    /// Parses the output of `postgres --version`, such as
    /// `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
    fn parse(said: &str) -> Option<Self> {
        let (_product, version) = said.strip_prefix("postgres (")?.split_once(") ")?;
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        let major = numbers.next()?.parse().ok()?;
        let minor = numbers.next().and_then(|minor| minor.parse().ok());
        Some(Self {
            major,
            minor: minor.unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(number: &str) -> Version {
        Version::parse(&format!("postgres (PostgreSQL) {number}\n")).unwrap()
    }

    #[test]
    fn reads_the_version_that_a_distribution_adds_to() {
        let version = version("15.18 (Debian 15.18-0+deb12u1)");
        assert_eq!((version.major, version.minor), (15, 18));
    }

    #[test]
    fn finds_what_lies_beside_a_server_that_was_linked_to() {
        let folder = env::temp_dir().join(format!("tidings-links-{}", std::process::id()));
        let [installed, linked] = ["installed", "linked"].map(|name| folder.join(name));
        for folder in [&installed, &linked] {
            fs::create_dir_all(folder).unwrap();
        }
        for program in ["postgres", "psql"] {
            fs::write(installed.join(program), "").unwrap();
        }
        std::os::unix::fs::symlink(installed.join("postgres"), linked.join("postgres")).unwrap();
        let version = version("15.2");
        let binaries = |folder| PostgresBinaries { folder, version };
        assert_eq!(binaries(linked).psql(), Some(installed.join("psql")));
        assert_eq!(binaries(installed).beside("pg_dump"), None);
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn orders_versions_by_age() {
        let in_order = ["9.6.24", "15.2", "15.18", "18beta2", "18.1", "18.10"];
        assert!(
            in_order
                .map(version)
                .is_sorted_by(|earlier, later| earlier < later)
        );
    }

    #[test]
    fn takes_nothing_else_for_a_version() {
        for said in [
            "",
            "postgres",
            "postgres (PostgreSQL) ",
            "mise ERROR 15.2",
            "postgres (PostgreSQL) 99999999999.1",
        ] {
            assert_eq!(Version::parse(said), None, "{said:?}");
        }
    }
}
