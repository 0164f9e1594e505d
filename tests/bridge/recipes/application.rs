//! A running application built from a page's code.

use std::{
    env,
    ffi::OsString,
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use super::page::Page;
use crate::support::{PATIENCE, bridge::SECRET, database::psql};

/// It executes one command per line and responds with one line. Dropping it kills it.
pub struct Application {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    errors: PathBuf,
    /// The first line it printed.
    versions: String,
}

impl Application {
    /// Starts the page's code together with its driver.
    pub async fn start(page: &Page, database_url: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("recipes")
            .join(&page.name);
        Self::start_in(&folder, page, &page.name, database_url).await
    }

    /// Starts the page's code together with the files of another name, in a folder of its own.
    pub async fn start_in(folder: &Path, page: &Page, name: &str, database_url: &str) -> Self {
        page.write_to(folder);
        let errors = folder.join("errors.log");
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/recipes"))
            .args(["start", name])
            .arg(folder)
            .env("DATABASE_URL", database_url)
            .env("TIDINGS_JWT_SECRET", SECRET)
            .env("PSQL", psql())
            .env("PATH", program_path())
            .env("TIDINGS_SCHEMA", "tidings")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(File::create(&errors).expect("a log"))
            .kill_on_drop(true)
            .spawn()
            .expect("scripts/recipes");
        let input = child.stdin.take().expect("its input");
        let output = child.stdout.take().expect("its output");
        let mut application = Self {
            child,
            input,
            answers: BufReader::new(output).lines(),
            errors,
            versions: String::new(),
        };
        application.versions = application.answer("its start").await;
        application
    }

    /// The versions it runs with.
    pub fn versions(&self) -> &str {
        &self.versions
    }

    /// Executes a command and returns the response.
    pub async fn ask(&mut self, command: &str) -> String {
        let line = format!("{command}\n");
        let sent = self.input.write_all(line.as_bytes()).await;
        assert!(sent.is_ok(), "{command}: {}", self.said());
        self.answer(command).await
    }

    async fn answer(&mut self, command: &str) -> String {
        match timeout(PATIENCE, self.answers.next_line()).await {
            Ok(Ok(Some(answer))) => answer,
            outcome => panic!("no answer to {command} ({outcome:?}): {}", self.said()),
        }
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.errors).expect("its log")
    }

    /// It exits when its input is closed.
    pub async fn stop(mut self) {
        drop(self.input);
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("an end").expect("a status");
        assert!(status.success(), "{status}");
    }
}

/// Where a page's commands find `tidings`, the one under test, and `psql`.
pub fn program_path() -> OsString {
    let tidings = Path::new(env!("CARGO_BIN_EXE_tidings")).parent();
    let psql = psql();
    let inherited = env::var_os("PATH").expect("a path");
    let folders = tidings.into_iter().chain(psql.parent());
    let path = env::join_paths(folders.map(Into::into).chain(env::split_paths(&inherited)));
    path.expect("a path")
}
