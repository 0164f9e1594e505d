//! Runs a program against real bridges and a real PostgreSQL.

use std::{ops::Range, sync::Arc};

use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error};

use super::{
    oracle::{Commits, Number, Opening, Row, Rows, Verdict, number_of},
    program::{BRIDGES, Step, TABS, User, WRITERS},
    settling::{Settle, Settled},
    tab::{Tab, Until},
    world::World,
};
use tidings::domain::{position::RowKey, snapshot::Xid};

/// The writer that commits with `synchronous_commit = off`. A crash of Postgres may undo its rows
/// after they were delivered, and assign their transaction ids and row ids again.
const HURRIED_WRITER: usize = 0;

/// One in this many rows has a long text, so that some rows fill a mailbox.
const LONG_TEXT_EVERY: u32 = 3;
const LONG_TEXT: usize = 400;

/// The rows of a user that the table shows now.
pub async fn user_rows(client: &Client, user: &str) -> Result<Rows, String> {
    let query = "select text, id, xid::text, sent from notifications where user_id = $1";
    let rows = client.query(query, &[&user]).await;
    let rows = rows.map_err(|error| format!("{query}: {error}"))?;
    let rows = rows.iter().map(|row| {
        let text: String = row.get(0);
        let xid: String = row.get(2);
        let key = RowKey {
            xid: Xid(xid.parse().map_err(|_| format!("no xid: {xid}"))?),
            id: row.get(1),
        };
        let sent = row.get(3);
        Ok((number_of(&text)?, Row { key, text, sent }))
    });
    rows.collect()
}

/// An application's session.
#[derive(Default)]
struct Writer {
    client: Option<Arc<Client>>,
    /// What its open transaction has inserted.
    open: Option<Vec<Range<Number>>>,
    /// A commit that has not been waited for yet.
    commit: Option<Commit>,
}

struct Commit {
    rows: Vec<Range<Number>>,
    began: u64,
    running: JoinHandle<Result<(), Error>>,
}

/// A program while it runs.
pub struct Run<'a> {
    world: &'a mut World,
    writers: [Writer; WRITERS],
    tabs: Vec<Tab>,
    next: Number,
    /// Only marks of rows before this one may be lost.
    marked_from: Number,
    clock: u64,
    commits: Commits,
    settled: Settled,
}

impl<'a> Run<'a> {
    pub fn new(world: &'a mut World) -> Self {
        let tab = |user| Tab::new(world.name(user), world.patience);
        Self {
            tabs: TABS.into_iter().map(tab).collect(),
            world,
            writers: Default::default(),
            next: 1,
            marked_from: 1,
            clock: 0,
            commits: Commits::new(),
            settled: Settled::begin(),
        }
    }

    /// Runs the steps, brings everything to an end, and checks the result.
    pub async fn play(mut self, steps: &[Step]) -> Result<Vec<Verdict>, String> {
        for &step in steps {
            self.step(step).await?;
        }
        self.finish().await
    }

    async fn step(&mut self, step: Step) -> Result<(), String> {
        match step {
            Step::Insert { writer, user, rows } => {
                let (insert, rows) = self.insert(user, rows);
                self.write(writer, &insert, Some(rows)).await
            }
            Step::InsertInSavepoint { writer, user, kept } => {
                let (insert, rows) = self.insert(user, 2);
                let end = if kept { "release" } else { "rollback to" };
                let work = format!("savepoint s; {insert}; {end} savepoint s");
                self.write(writer, &work, kept.then_some(rows)).await
            }
            Step::Commit { writer, waits } => {
                self.commit(writer).await?;
                if waits {
                    self.join(writer).await?;
                }
                Ok(())
            }
            Step::RollBack { writer } => self.roll_back(writer).await,
            Step::Send { user, rows } => self.send(user, rows).await.map(drop),
            Step::Connect { tab, bridge } => self.connect(tab, bridge).await,
            Step::Read { tab, rows } => self.read(tab, rows).await,
            Step::Reset { tab } => {
                if let Some(source) = self.tabs[tab].leave() {
                    source.reset();
                }
                Ok(())
            }
            Step::Close { tab } => {
                self.tabs[tab].close();
                Ok(())
            }
            Step::Stop { bridge } => {
                self.world.stop(bridge).await;
                self.end_streams(bridge).await
            }
            Step::Kill { bridge } => {
                if self.world.kill(bridge).await {
                    self.lose_marks();
                    Ok(())
                } else {
                    self.end_streams(bridge).await
                }
            }
            Step::Start { bridge } => {
                self.world.start(bridge).await;
                Ok(())
            }
            Step::Settle => self.settle().await,
            Step::EndListeners => self.world.end_listeners().await,
            Step::EndSessions => self.world.end_sessions().await,
            Step::Restart | Step::Crash | Step::KillBackend => {
                self.world.hurt(step).await?;
                if step != Step::Restart {
                    self.lose_marks();
                    self.tabs.iter_mut().for_each(Tab::crash);
                }
                Ok(())
            }
        }
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The statement that inserts new rows, and their numbers.
    fn insert(&mut self, user: Option<User>, rows: u32) -> (String, Range<Number>) {
        let numbers = self.next..self.next + rows;
        self.next = numbers.end;
        let user = match user {
            Some(user) => format!("'{}'", self.world.name(user)),
            None => format!(
                "case n % 3 when 0 then '{}' when 1 then '{}' else '{}' end",
                self.world.name(User::Alice),
                self.world.name(User::Bob),
                self.world.name(User::Carol),
            ),
        };
        let insert = format!(
            "insert into notifications (user_id, text) select {user}, \
             n || case n % {LONG_TEXT_EVERY} when 0 then repeat(' ', {LONG_TEXT}) else '' end || ' .' \
             from generate_series({}, {}) n",
            numbers.start,
            numbers.end - 1
        );
        (insert, numbers)
    }

    /// Runs `work` in the writer's transaction.
    async fn write(
        &mut self,
        writer: usize,
        work: &str,
        rows: Option<Range<Number>>,
    ) -> Result<(), String> {
        self.join(writer).await?;
        let Writer { client, open, .. } = &mut self.writers[writer];
        let session = match client {
            Some(client) => client,
            None => client.insert(self.world.take_session().await?),
        };
        let begin = match open {
            Some(_) => "",
            None if writer == HURRIED_WRITER => "begin; set local synchronous_commit = off;",
            None => "begin;",
        };
        match session.batch_execute(&format!("{begin} {work}")).await {
            Ok(()) => open.get_or_insert_default().extend(rows),
            Err(error) => self.fail(writer, &error)?,
        }
        Ok(())
    }

    /// Starts a commit.
    async fn commit(&mut self, writer: usize) -> Result<(), String> {
        self.join(writer).await?;
        let began = self.now();
        let Writer {
            client,
            open,
            commit,
        } = &mut self.writers[writer];
        if let (Some(client), Some(rows)) = (client, open.take()) {
            let client = Arc::clone(client);
            let running = tokio::spawn(async move { client.batch_execute("commit").await });
            *commit = Some(Commit {
                rows,
                began,
                running,
            });
        }
        Ok(())
    }

    /// Waits for the writer's commit, if there is one.
    async fn join(&mut self, writer: usize) -> Result<(), String> {
        if let Some(commit) = self.writers[writer].commit.take() {
            match commit.running.await.map_err(|error| error.to_string())? {
                Ok(()) => {
                    let visible = self.now();
                    let rows = commit.rows.into_iter().flatten();
                    self.commits
                        .extend(rows.map(|number| (number, (commit.began, visible))));
                }
                Err(error) => self.fail(writer, &error)?,
            }
        }
        Ok(())
    }

    async fn roll_back(&mut self, writer: usize) -> Result<(), String> {
        self.join(writer).await?;
        let Writer { client, open, .. } = &mut self.writers[writer];
        if let (Some(client), Some(_)) = (client, open.take())
            && let Err(error) = client.batch_execute("rollback").await
        {
            self.fail(writer, &error)?;
        }
        Ok(())
    }

    /// A writer may lose its session only if the program disturbs the server.
    fn fail(&mut self, writer: usize, error: &Error) -> Result<(), String> {
        self.writers[writer] = Writer::default();
        if self.world.is_hurt() && (error.is_closed() || error.code().is_some()) {
            Ok(())
        } else {
            Err(format!("writer {writer}: {error}"))
        }
    }

    /// Inserts new rows in their own transaction and returns the last number.
    async fn send(&mut self, user: Option<User>, rows: u32) -> Result<Number, String> {
        let (insert, numbers) = self.insert(user, rows);
        let began = self.now();
        let sent = self.world.client().batch_execute(&insert).await;
        sent.map_err(|error| format!("{insert}: {error}"))?;
        let visible = self.now();
        let last = numbers.end - 1;
        self.commits
            .extend(numbers.map(|number| (number, (began, visible))));
        Ok(last)
    }

    async fn connect(&mut self, tab: usize, bridge: usize) -> Result<(), String> {
        let Some(address) = self.world.address(bridge) else {
            return Ok(());
        };
        let tab = &mut self.tabs[tab];
        tab.leave();
        tab.bridge = Some(bridge);
        if !tab.is_stranger() {
            tab.connect(address).await;
            let acknowledged = tab.acknowledged().iter();
            self.settled.add(acknowledged.map(|row| row.number));
            return Ok(());
        }
        // A bridge that hasn't noticed a crash yet moves its position back when it does. Then rows
        // that others were sent shortly before are new to it again.
        let tail = match self.world.is_hurt() {
            true => None,
            false => self.world.position(bridge),
        };
        let before = user_rows(self.world.watcher(), &tab.name).await?;
        tab.connect(address).await;
        tab.observed(Opening {
            before,
            tail,
            answered: user_rows(self.world.watcher(), &tab.name).await?,
            has_crashed: false,
            // The other bridge may notice a crash later than this one, and takes an id from after
            // the crash for one from before it.
            may_repeat: self.world.is_hurt(),
        });
        Ok(())
    }

    /// The last row that the tab could read is a new one, so the tab can wait for it without
    /// knowing which other rows are still to arrive.
    async fn read(&mut self, tab: usize, rows: usize) -> Result<(), String> {
        if !self.tabs[tab].is_connected() {
            return Ok(());
        }
        let until = match rows {
            0 => Until::FirstId,
            _ => Until::Rows(rows, self.send(Some(TABS[tab]), 1).await?),
        };
        self.tabs[tab].read(self.world.watcher(), until).await
    }

    /// A bridge has ended its streams gracefully, so all rows written to them are settled. At most,
    /// those are all rows in the table now.
    async fn end_streams(&mut self, bridge: usize) -> Result<(), String> {
        if self.world.settle() == Settle::AtOnce {
            return Ok(());
        }
        let tabs = self.tabs.iter();
        for tab in tabs.filter(|tab| tab.is_connected() && tab.bridge == Some(bridge)) {
            let rows = user_rows(self.world.watcher(), &tab.name).await?;
            self.settled.add(rows.into_keys());
        }
        Ok(())
    }

    /// Rows that were written so far, even if they are read later, may stay unmarked.
    fn lose_marks(&mut self) {
        self.marked_from = self.next;
    }

    /// Waits until all rows that were read are marked.
    async fn settle(&mut self) -> Result<(), String> {
        if self.world.settle() == Settle::Never {
            return Ok(());
        }
        let chains = self.tabs.iter().flat_map(Tab::chains);
        let read: Vec<i64> = chains
            .flat_map(|(chain, _)| chain.received())
            .filter(|row| row.number >= self.marked_from)
            .map(|row| row.id)
            .collect();
        self.world.until_marked(&read).await
    }

    async fn finish(mut self) -> Result<Vec<Verdict>, String> {
        for writer in 0..WRITERS {
            if writer % 2 == 0 {
                self.commit(writer).await?;
                self.join(writer).await?;
            } else {
                self.roll_back(writer).await?;
            }
            self.world.keep_session(self.writers[writer].client.take());
        }
        for bridge in 0..BRIDGES {
            self.world.start(bridge).await;
        }
        while !self.read_to_the_end().await? {}
        self.settle().await?;
        if self.world.settle() == Settle::Never {
            self.until_acknowledged().await?;
        }
        self.judge().await
    }

    /// Requires that all tabs are connected to running bridges. Waits until the rows acknowledged
    /// by their last event ids are marked.
    async fn until_acknowledged(&self) -> Result<(), String> {
        let acknowledged = self.tabs.iter().flat_map(Tab::acknowledged);
        let ids: Vec<i64> = acknowledged.map(|row| row.id).collect();
        self.world.until_marked(&ids).await
    }

    /// Reconnects all tabs that were ever connected, and reads up to the last row of their user.
    /// Returns false if the bridge of one of them is gone.
    async fn read_to_the_end(&mut self) -> Result<bool, String> {
        for tab in 0..TABS.len() {
            if self.tabs[tab].was_connected && !self.tabs[tab].is_connected() {
                self.connect(tab, tab % BRIDGES).await?;
            }
        }
        for user in User::ALL {
            let last = self.send(Some(user), 1).await?;
            let tabs = TABS.into_iter().zip(&mut self.tabs);
            for (_, tab) in tabs.filter(|(of, tab)| *of == user && tab.is_connected()) {
                let watcher = self.world.watcher();
                tab.read(watcher, Until::Rows(usize::MAX, last)).await?;
                // Rows of a large transaction may arrive after later ones.
                let table = user_rows(watcher, &tab.name).await?;
                while tab.is_connected() && !tab.has_all(&table, &self.commits) {
                    let one_more = Until::Rows(1, Number::MAX);
                    if tab.read(watcher, one_more).await.is_err() {
                        // Missing rows are reported below.
                        break;
                    }
                }
            }
        }
        let mut tabs = self.tabs.iter();
        Ok(tabs.all(|tab| tab.is_connected() || !tab.was_connected))
    }

    async fn judge(&self) -> Result<Vec<Verdict>, String> {
        let mut verdicts = Vec::new();
        for user in User::ALL {
            let name = self.world.name(user);
            let table = user_rows(self.world.watcher(), &name).await?;
            let tabs = self.tabs.iter().filter(|tab| tab.name == name);
            if self.world.settle() == Settle::Never {
                self.settled
                    .judge(&table)
                    .map_err(|error| format!("{user:?}'s rows: {error}"))?;
            }
            let mut was_connected = false;
            for (index, tab) in tabs.enumerate() {
                was_connected |= tab.was_connected;
                for (chain, is_open) in tab.chains() {
                    let verdict = chain.judge(&table, &self.commits, is_open);
                    let verdict = verdict
                        .map_err(|error| format!("{user:?}'s tab {index} at its end: {error}"))?;
                    verdicts.push(verdict);
                }
            }
            if !was_connected && table.values().any(|row| row.sent) {
                return Err(format!(
                    "{user:?} was never there, and has rows that are sent"
                ));
            }
        }
        Ok(verdicts)
    }
}
