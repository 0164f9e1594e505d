//! Runs a program against real bridges and a real PostgreSQL.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::Arc,
};

use tidings::domain::snapshot::Xid;
use tokio_postgres::{Client, Error, error::SqlState};

use super::{
    memberships::{Memberships, Pending, Since},
    oracle::{Commits, Elsewhere, Facts, Number, Opening, Received, Verdict, Window},
    program::{BRIDGES, Change, Step, TABS, To, User, WRITERS},
    settling::{Settle, Settled},
    tab::{Tab, Until},
    table::read_rows,
    world::World,
    writer::{Commit, Work, Writer},
};

/// The writer that commits with `synchronous_commit = off`. A crash of Postgres may undo its rows
/// after they were delivered, and assign their transaction ids and row ids again.
const HURRIED_WRITER: usize = 0;

/// One in this many rows has a long text, so that some rows fill a mailbox.
const LONG_TEXT_EVERY: u32 = 3;
const LONG_TEXT: usize = 400;

/// A program while it runs.
pub struct Run<'a> {
    world: &'a mut World,
    writers: [Writer; WRITERS],
    tabs: Vec<Tab>,
    /// Only marks of rows before this one may be lost.
    marked_from: Number,
    clock: u64,
    commits: Commits,
    memberships: Memberships,
    settled: Settled,
    /// For each user, the rows that may have settled on a stream that asks for no topics.
    settled_for: BTreeMap<User, BTreeSet<Number>>,
}

impl<'a> Run<'a> {
    pub fn new(world: &'a mut World) -> Self {
        let first = world.next;
        let tab = |of: (User, _)| Tab::new(of, world.names(of.0), first, world.patience);
        Self {
            tabs: TABS.into_iter().map(tab).collect(),
            world,
            writers: Default::default(),
            marked_from: first,
            clock: 0,
            commits: Commits::new(),
            memberships: Memberships::default(),
            settled: Settled::begin(),
            settled_for: BTreeMap::new(),
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
            Step::BeginRepeatableRead { writer } => self.begin_repeatable_read(writer).await,
            Step::Insert { writer, to, rows } => {
                let (insert, rows) = self.insert(to, rows);
                self.write(writer, &insert, Some(rows)).await
            }
            Step::InsertInSavepoint { writer, to, kept } => {
                let (insert, rows) = self.insert(to, 2);
                let end = if kept { "release" } else { "rollback to" };
                let work = format!("savepoint s; {insert}; {end} savepoint s");
                self.write(writer, &work, kept.then_some(rows)).await
            }
            Step::Change { writer, change } => self.change(writer, change).await,
            Step::ChangeAtOnce { change } => self.change_at_once(change).await,
            Step::LoseCursors => self.world.lose_cursors().await,
            Step::Commit { writer, waits } => {
                self.commit(writer).await?;
                if waits {
                    self.join(writer).await?;
                }
                Ok(())
            }
            Step::RollBack { writer } => self.roll_back(writer).await,
            Step::Send { to, rows } => self.send(to, rows).await.map(drop),
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
                self.forget_connections(bridge);
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
                self.recover_memberships().await
            }
        }
    }

    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// The statement that inserts new rows, and their numbers.
    fn insert(&mut self, to: To, rows: u32) -> (String, Range<Number>) {
        let numbers = self.world.next..self.world.next + rows;
        self.world.next = numbers.end;
        let name = |user| self.world.names(user).user;
        let (column, value) = match to {
            To::User(user) => ("user_id", format!("'{}'", name(user))),
            To::Users => (
                "user_id",
                format!(
                    "case n % 3 when 0 then '{}' when 1 then '{}' else '{}' end",
                    name(User::Alice),
                    name(User::Bob),
                    name(User::Carol),
                ),
            ),
            To::Topic(topic) => {
                let names = self.world.names(User::Alice);
                ("topic", format!("'{}'", names.topic(topic)))
            }
        };
        let insert = format!(
            "insert into notifications ({column}, text) select {value}, \
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
        let session = self.session(writer).await?;
        let begin = match self.writers[writer].open {
            Some(_) => "",
            None => begin(writer),
        };
        match session.batch_execute(&format!("{begin} {work}")).await {
            Ok(()) => {
                let open = self.writers[writer].open.get_or_insert_default();
                open.rows.extend(rows);
            }
            Err(error) => self.fail(writer, &error)?,
        }
        Ok(())
    }

    /// The writer's session, in which nothing is running.
    async fn session(&mut self, writer: usize) -> Result<Arc<Client>, String> {
        self.join(writer).await?;
        let session = match self.writers[writer].client.take() {
            Some(session) => session,
            None => self.world.take_session().await?,
        };
        self.writers[writer].client = Some(Arc::clone(&session));
        Ok(session)
    }

    async fn begin_repeatable_read(&mut self, writer: usize) -> Result<(), String> {
        let session = self.session(writer).await?;
        if self.writers[writer].open.is_some() {
            return Ok(());
        }
        let began = self.now();
        let work = format!(
            "{} set transaction isolation level repeatable read; select",
            begin(writer)
        );
        match session.batch_execute(&work).await {
            Ok(()) => {
                let snapshot = Some((began, self.now()));
                self.writers[writer].open = Some(Work {
                    snapshot,
                    ..Work::default()
                });
            }
            Err(error) => self.fail(writer, &error)?,
        }
        Ok(())
    }

    /// Whether a transaction of another writer has changed this membership: a second change would
    /// wait for its end.
    fn is_being_changed(&self, change: Change, by: Option<usize>) -> bool {
        let writers = self.writers.iter().enumerate();
        let mut others = writers.filter(|(writer, _)| Some(*writer) != by);
        others.any(|(_, writer)| writer.has_changed(change.of()))
    }

    async fn change(&mut self, writer: usize, change: Change) -> Result<(), String> {
        let session = self.session(writer).await?;
        if self.is_being_changed(change, Some(writer)) {
            return Ok(());
        }
        self.write(writer, "select", None).await?;
        let Some(Work { snapshot, .. }) = self.writers[writer].open else {
            return Ok(());
        };
        let began = self.now();
        match self.world.change(&session, change).await {
            Ok(joined) => {
                let taken = snapshot.unwrap_or((began, self.now()));
                self.writers[writer]
                    .open
                    .get_or_insert_default()
                    .changes
                    .extend(pending(change, joined, taken));
            }
            Err(error) => self.fail(writer, &error)?,
        }
        Ok(())
    }

    async fn change_at_once(&mut self, change: Change) -> Result<(), String> {
        if self.is_being_changed(change, None) {
            return Ok(());
        }
        let began = self.now();
        let joined = self.world.change(self.world.client(), change).await;
        let joined = joined.map_err(|error| format!("{change:?}: {error}"))?;
        let window = (began, self.now());
        let changes = pending(change, joined, window).into_iter().collect();
        self.memberships.commit(changes, window);
        Ok(())
    }

    /// After a crash, whatever was committed without waiting for the disk may be gone.
    async fn recover_memberships(&mut self) -> Result<(), String> {
        let left = self.world.memberships().await?;
        let now = self.now();
        self.memberships.recover(&left, now)
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
        if let (Some(client), Some(work)) = (client, open.take()) {
            let client = Arc::clone(client);
            let running = tokio::spawn(async move { client.batch_execute("commit").await });
            *commit = Some(Commit {
                work,
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
                    let committed = (commit.began, self.now());
                    let Work { rows, changes, .. } = commit.work;
                    let rows = rows.into_iter().flatten();
                    self.commits.extend(rows.map(|number| (number, committed)));
                    self.memberships.commit(changes, committed);
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

    /// A writer may lose its session only if the program disturbs the server. A transaction may
    /// fail that sees an old snapshot and changes what has changed since.
    fn fail(&mut self, writer: usize, error: &Error) -> Result<(), String> {
        self.writers[writer] = Writer::default();
        let is_outdated = error.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE);
        if is_outdated || self.world.is_hurt() && (error.is_closed() || error.code().is_some()) {
            Ok(())
        } else {
            Err(format!("writer {writer}: {error}"))
        }
    }

    /// Inserts new rows in their own transaction and returns the last number.
    async fn send(&mut self, to: To, rows: u32) -> Result<Number, String> {
        let (insert, numbers) = self.insert(to, rows);
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
        let now = self.now();
        let tab = &mut self.tabs[tab];
        tab.leave();
        if !tab.is_stranger() {
            tab.connect(bridge, address, now).await;
            let acknowledged = tab.acknowledged().iter().map(|row| row.number);
            if tab.asked.is_none() {
                let settled = self.settled_for.entry(tab.user).or_default();
                settled.extend(acknowledged.clone());
            }
            self.settled.add(acknowledged);
            return Ok(());
        }
        // A bridge that hasn't noticed a crash yet moves its position back when it does. Then rows
        // that others were sent shortly before are new to it again.
        let tail = match self.world.is_hurt() {
            true => None,
            false => self.world.position(bridge),
        };
        let before = read_rows(self.world.watcher(), &tab.names).await?;
        tab.connect(bridge, address, now).await;
        tab.observed(Opening {
            before,
            tail,
            answered: read_rows(self.world.watcher(), &tab.names).await?,
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
            _ => Until::Rows(rows, self.send(To::User(self.tabs[tab].user), 1).await?),
        };
        let elsewhere = self.elsewhere(tab);
        let watcher = self.world.watcher();
        self.tabs[tab].read(watcher, until, &elsewhere).await
    }

    /// What all other streams of the tab's user may have been sent by now.
    fn elsewhere(&mut self, tab: usize) -> Elsewhere {
        let now = self.now();
        let user = self.tabs[tab].user;
        let mut until = 0;
        for (index, other) in self.tabs.iter().enumerate() {
            // One that asks for topics moves no cursor.
            if other.user != user || other.asked.is_some() {
                continue;
            }
            let present = usize::from(index == tab && other.is_connected());
            let earlier = other.connections.iter().rev().skip(present);
            let gone = earlier.map(|one| one.gone.unwrap_or(now)).max();
            until = until.max(gone.unwrap_or_default());
        }
        let settled = match self.world.settle() {
            Settle::AtOnce => None,
            Settle::Never => Some(self.settled_for.get(&user).cloned().unwrap_or_default()),
        };
        Elsewhere { until, settled }
    }

    /// Tabs that have left this bridge are sent nothing more.
    fn forget_connections(&mut self, bridge: usize) {
        let now = self.now();
        for tab in &mut self.tabs {
            let is_running = self.world.address(bridge).is_some();
            let present = usize::from(is_running && tab.is_connected());
            let left = tab.connections.iter_mut().rev().skip(present);
            for one in left.filter(|one| one.bridge == bridge) {
                one.gone.get_or_insert(now);
            }
        }
    }

    /// A bridge has ended its streams gracefully, so all rows written to them are settled. At most,
    /// those are all rows in the table now.
    async fn end_streams(&mut self, bridge: usize) -> Result<(), String> {
        if self.world.settle() == Settle::AtOnce {
            return Ok(());
        }
        let tabs = self.tabs.iter();
        for tab in tabs.filter(|tab| tab.is_connected() && tab.bridge == Some(bridge)) {
            let rows = read_rows(self.world.watcher(), &tab.names).await?;
            if tab.asked.is_none() {
                let settled = self.settled_for.entry(tab.user).or_default();
                settled.extend(rows.keys());
            }
            self.settled.add(rows.into_keys());
        }
        Ok(())
    }

    /// Rows that were written so far, even if they are read later, may stay unmarked.
    fn lose_marks(&mut self) {
        self.marked_from = self.world.next;
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
        self.world.until_marked(&read).await?;
        for bridge in 0..BRIDGES {
            let here = |tab: &&Tab| tab.is_connected() && tab.bridge == Some(bridge);
            let most = self.tabs.iter().filter(here).count();
            if self.world.has_noticed(bridge, most).await {
                self.forget_connections(bridge);
            }
        }
        Ok(())
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
        for tab in &self.tabs {
            let table = read_rows(self.world.watcher(), &tab.names).await?;
            let is_own = |row: &&Received| {
                let row = table.get(&row.number);
                row.is_some_and(|row| row.topic.is_none())
            };
            let acknowledged = tab.acknowledged();
            // An id that names a row of a topic doesn't say whose it is, and counts for nothing.
            if acknowledged.last().as_ref().is_some_and(is_own) {
                let own = acknowledged.iter().filter(is_own);
                let ids: Vec<i64> = own.map(|row| row.id).collect();
                self.world.until_marked(&ids).await?;
            }
        }
        Ok(())
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
            let last = self.send(To::User(user), 1).await?;
            let table = read_rows(self.world.watcher(), &self.world.names(user)).await?;
            for index in 0..TABS.len() {
                let elsewhere = self.elsewhere(index);
                let (watcher, tab) = (self.world.watcher(), &mut self.tabs[index]);
                if tab.user != user || !tab.is_connected() {
                    continue;
                }
                let up_to = Until::Rows(usize::MAX, last);
                tab.read(watcher, up_to, &elsewhere).await?;
                let facts = Facts {
                    table: &table,
                    commits: &self.commits,
                    memberships: &self.memberships,
                };
                // Rows of a large transaction may arrive after later ones, and so do those of a
                // membership that was seen late.
                while tab.is_connected() && !tab.has_all(facts) {
                    let one_more = Until::Rows(1, Number::MAX);
                    if tab.read(watcher, one_more, &elsewhere).await.is_err() {
                        // Missing rows are reported below.
                        break;
                    }
                }
            }
            // Whatever else came was written before this.
            let last = self.send(To::User(user), 1).await?;
            for index in 0..TABS.len() {
                let elsewhere = self.elsewhere(index);
                let (watcher, tab) = (self.world.watcher(), &mut self.tabs[index]);
                if tab.user == user && tab.is_connected() {
                    let up_to = Until::Rows(usize::MAX, last);
                    tab.read(watcher, up_to, &elsewhere).await?;
                }
            }
        }
        let mut tabs = self.tabs.iter();
        Ok(tabs.all(|tab| tab.is_connected() || !tab.was_connected))
    }

    async fn judge(&self) -> Result<Vec<Verdict>, String> {
        let mut verdicts = Vec::new();
        for user in User::ALL {
            let table = read_rows(self.world.watcher(), &self.world.names(user)).await?;
            let tabs = self.tabs.iter().filter(|tab| tab.user == user);
            let facts = Facts {
                table: &table,
                commits: &self.commits,
                memberships: &self.memberships,
            };
            if !self.world.is_hurt() {
                self.memberships.judge(&table, &self.commits)?;
            }
            if self.world.settle() == Settle::Never {
                self.settled
                    .judge(&table)
                    .map_err(|error| format!("{user:?}'s rows: {error}"))?;
            }
            let mut was_connected = false;
            for (index, tab) in tabs.enumerate() {
                was_connected |= tab.was_connected;
                for (chain, is_open) in tab.chains() {
                    let verdict = chain.judge(facts, is_open);
                    let verdict = verdict
                        .map_err(|error| format!("{user:?}'s tab {index} at its end: {error}"))?;
                    verdicts.push(verdict);
                }
            }
            let own = table.values().filter(|row| row.topic.is_none());
            if !was_connected && own.into_iter().any(|row| row.sent) {
                return Err(format!(
                    "{user:?} was never there, and has rows that are sent"
                ));
            }
        }
        Ok(verdicts)
    }
}

/// Begins a transaction of this writer.
fn begin(writer: usize) -> &'static str {
    match writer {
        HURRIED_WRITER => "begin; set local synchronous_commit = off;",
        _ => "begin;",
    }
}

/// `joined` is the membership that is there afterwards, and whether anything changed.
fn pending(
    change: Change,
    (now, has_changed): (Option<(Xid, Since)>, bool),
    taken: Window,
) -> Option<Pending> {
    has_changed.then(|| Pending {
        change,
        joined: now.map(|(xid, since)| (xid, since, taken)),
    })
}
