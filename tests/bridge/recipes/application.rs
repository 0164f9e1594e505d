//! A running application whose code is a page's.

use std::{
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

/// It does what it is told: a line each, and a line in answer. Dropping it kills
/// it.
pub struct Application {
    child: Child,
    input: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    errors: PathBuf,
    /// What it said first.
    versions: String,
}

impl Application {
    /// Starts the page's code beside what drives it.
    pub async fn start(page: &Page, database_url: &str) -> Self {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join("recipes")
            .join(&page.name);
        Self::start_in(&folder, page, &page.name, database_url).await
    }

    /// Starts the page's code beside files of another name, in a folder of its own.
    pub async fn start_in(folder: &Path, page: &Page, name: &str, database_url: &str) -> Self {
        page.write_to(folder);
        let errors = folder.join("errors.log");
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/recipes"))
            .args(["start", name])
            .arg(folder)
            .env("DATABASE_URL", database_url)
            .env("TIDINGS_JWT_SECRET", SECRET)
            .env("PSQL", psql())
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

    /// What it runs with.
    pub fn versions(&self) -> &str {
        &self.versions
    }

    /// Has it do something, and returns its answer.
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

    /// It ends when nobody tells it anything any more.
    pub async fn stop(mut self) {
        drop(self.input);
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let status = ended.expect("an end").expect("a status");
        assert!(status.success(), "{status}");
    }
}
