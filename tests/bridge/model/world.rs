//! What programs run in, one after another: a database and its bridges.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use private_postgres::{Cluster, Shutdown};
use tidings::domain::{position::Position, snapshot::Xid};
use tokio::{process::Child, time::timeout};
use tokio_postgres::{Client, Error};

use super::{
    memberships::Since,
    oracle::Number,
    program::{BRIDGES, Change, Step, Topic, User},
    settling::Settle,
    table::Names,
};
use crate::support::{
    PATIENCE,
    bridge::{Bridge, serve_options},
    carrier::Carrier,
    database::{Database, start_forgetful_cluster},
    process,
};

/// The smallest possible value, so that mailboxes overflow.
const QUEUE: &str = "--queue-bytes=1024";

/// So small that many transactions are read in several pieces. The other bridge uses the default
/// page size.
const TAIL: &str = "--tail-rows=20";

/// So frequent that tabs also disconnect before and after a heartbeat, and while rows are being
/// sent. The other bridge uses the default.
const HEARTBEAT: Duration = Duration::from_millis(5);

/// How long to wait for a row or a mark that must arrive: longer than the longest pause before a
/// bridge tries the database again.
const ROW_PATIENCE: Duration = Duration::from_secs(20);

/// How long to wait until a bridge has noticed that a tab has left: it may notice it only at its
/// next heartbeat.
const NOTICES: Duration = Duration::from_millis(200);

/// An application's own memberships, which are copied from here.
const WATCHED: &str = "create table members (user_id text, room bigint, primary key (user_id, room)); \
     grant select, insert, delete on members to tidings_writer; \
     select tidings_watch('members', 'user_id', 'room', 'room:')";

enum Running {
    Inside(Bridge),
    Outside(Child, SocketAddr),
}

/// A database and the bridges that are running.
pub struct World {
    database: Database,
    client: Client,
    watcher: Client,
    /// Sessions that no writer uses any more.
    idle: Vec<Arc<Client>>,
    /// Set for programs that disturb the server.
    cluster: Option<Cluster>,
    bridges: [Option<Running>; BRIDGES],
    /// Set if bridges share what they read.
    carrier: Option<Carrier>,
    programs: usize,
    settle: Settle,
    /// The number of the next row.
    pub next: Number,
    /// How long to wait for a row or a mark.
    pub patience: Duration,
}

impl World {
    /// Uses the cluster that all tests share.
    pub async fn shared(settle: Settle) -> Self {
        Self::open(Database::migrated().await, None, settle).await
    }

    /// Uses a separate server.
    pub async fn fragile() -> Self {
        let cluster = start_forgetful_cluster().await;
        let database = Database::migrated_in(&cluster).await;
        Self::open(database, Some(cluster), Settle::AtOnce).await
    }

    async fn open(database: Database, cluster: Option<Cluster>, settle: Settle) -> Self {
        let watcher = database.superuser().connect().await;
        watcher.batch_execute(WATCHED).await.expect(WATCHED);
        Self {
            settle,
            next: 1,
            client: database.connect().await,
            watcher,
            database,
            idle: Vec::new(),
            cluster,
            bridges: Default::default(),
            carrier: None,
            programs: 0,
            patience: ROW_PATIENCE,
        }
    }

    /// Has bridges share what they read, over an unreliable carrier.
    pub async fn sharing(mut self) -> Self {
        self.carrier = Some(Carrier::unreliable(BRIDGES).await);
        self
    }

    /// Starts all bridges and gives the users new names.
    pub async fn begin_program(&mut self) {
        self.programs += 1;
        // A new program must not look at those of all others.
        let everyones = "delete from notifications where topic = '*'";
        self.watcher
            .batch_execute(everyones)
            .await
            .expect(everyones);
        for bridge in 0..BRIDGES {
            self.start(bridge).await;
        }
    }

    pub async fn close(self) {
        for bridge in self.bridges.into_iter().flatten() {
            stop(bridge).await;
        }
        if let Some(cluster) = self.cluster {
            cluster.stop().await.expect("an end");
        }
    }

    /// The user's name in the database, and those of the topics.
    pub fn names(&self, user: User) -> Names {
        let topics = Topic::ALL.map(|topic| match topic {
            Topic::Everyone => "*".to_owned(),
            Topic::Watched => format!("room:{}", self.programs),
            Topic::First | Topic::Second => format!("{topic:?}:{}", self.programs),
        });
        Names {
            user: format!("{user:?} {}", self.programs),
            topics: topics.into(),
        }
    }

    /// Joins or leaves in this session. Returns the membership that is there afterwards, and
    /// whether anything changed.
    pub async fn change(
        &self,
        session: &Client,
        change: Change,
    ) -> Result<(Option<(Xid, Since)>, bool), Error> {
        let (user, topic) = change.of();
        let names = self.names(user);
        let (user, name) = (&names.user, names.topic(topic));
        let changed = if topic == Topic::Watched {
            let room = i64::try_from(self.programs).expect("a number");
            let work = match change {
                Change::Join(..) => "insert into members values ($1, $2) on conflict do nothing",
                Change::Leave(..) => "delete from members where user_id = $1 and room = $2",
            };
            session.execute(work, &[user, &room]).await? > 0
        } else {
            let work = match change {
                Change::Join(..) => "select subscribe($1::text, $2)",
                Change::Leave(..) => "select unsubscribe($1::text, $2)",
            };
            session.query_one(work, &[user, &name]).await?.get(0)
        };
        // A repeatable read transaction still sees the membership that another one has ended
        // since, besides its own new one.
        let now = "select xid::text, since::text from topic_subscriptions \
                   where user_id = $1 and topic = $2 order by xid desc limit 1";
        let now = session.query_opt(now, &[user, &name]).await?;
        let now = now.map(|row| membership(row.get(0), row.get(1)));
        Ok((now, changed))
    }

    /// The memberships of this program that the table shows.
    pub async fn memberships(&self) -> Result<Vec<((User, Topic), Xid, Since)>, String> {
        let query = "select user_id, topic, xid::text, since::text from topic_subscriptions";
        let rows = self.watcher.query(query, &[]).await;
        let rows = rows.map_err(|error| format!("{query}: {error}"))?;
        let mut found = Vec::new();
        for row in &rows {
            let (of_user, of_topic): (&str, &str) = (row.get(0), row.get(1));
            for user in User::ALL {
                let names = self.names(user);
                let topic = Topic::ALL
                    .into_iter()
                    .find(|&topic| names.topic(topic) == of_topic);
                if names.user == of_user
                    && let Some(topic) = topic
                {
                    let (xid, since) = membership(row.get(2), row.get(3));
                    found.push(((user, topic), xid, since));
                }
            }
        }
        Ok(found)
    }

    pub async fn lose_cursors(&self) -> Result<(), String> {
        let work = "delete from tidings_cursors";
        let done = self.watcher.batch_execute(work).await;
        done.map_err(|error| format!("{work}: {error}"))
    }

    /// Waits until the bridge has at most this many connections, if it runs in this process.
    pub async fn has_noticed(&self, bridge: usize, most: usize) -> bool {
        let Some(Running::Inside(bridge)) = &self.bridges[bridge] else {
            return false;
        };
        let noticing = async {
            while bridge.connections() > most {
                tokio::task::yield_now().await;
            }
        };
        timeout(NOTICES, noticing).await.is_ok()
    }

    /// A session that sees everything and may terminate other sessions.
    pub fn watcher(&self) -> &Client {
        &self.watcher
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Whether programs disturb the server.
    pub fn is_hurt(&self) -> bool {
        self.cluster.is_some()
    }

    pub fn settle(&self) -> Settle {
        self.settle
    }

    /// A session that no other writer is using.
    pub async fn take_session(&mut self) -> Result<Arc<Client>, String> {
        match self.idle.pop() {
            Some(session) => Ok(session),
            None => Ok(Arc::new(connect(&self.database).await?)),
        }
    }

    /// Keeps the session for the next program's writers.
    pub fn keep_session(&mut self, session: Option<Arc<Client>>) {
        self.idle.extend(session);
    }

    pub fn address(&self, bridge: usize) -> Option<SocketAddr> {
        match self.bridges[bridge].as_ref()? {
            Running::Inside(bridge) => Some(bridge.address()),
            Running::Outside(_, address) => Some(*address),
        }
    }

    /// The bridge's position, if it runs in this process.
    pub fn position(&self, bridge: usize) -> Option<Position> {
        match self.bridges[bridge].as_ref()? {
            Running::Inside(bridge) => Some(bridge.position()),
            Running::Outside(..) => None,
        }
    }

    pub async fn start(&mut self, bridge: usize) {
        if self.bridges[bridge].is_some() {
            return;
        }
        let nats = self.carrier.as_ref().map(|it| it.url(bridge));
        let nats = nats.map(|url| format!("--nats-url={url}"));
        let nats = nats.as_deref();
        let running = if bridge == 0 {
            let mut settings = vec![QUEUE, TAIL, self.settle.setting()];
            settings.extend(nats);
            let mut options = serve_options(&self.database, &settings);
            options.bridge.heartbeat = HEARTBEAT;
            Running::Inside(Bridge::start_as(&options).await)
        } else if self.is_hurt() || self.settle == Settle::Never {
            let mut settings = vec![QUEUE, "--drain=0s", self.settle.setting()];
            settings.extend(nats);
            let (child, address) = process::serve(&self.database, &settings).await;
            Running::Outside(child, address)
        } else {
            let mut settings = vec![QUEUE];
            settings.extend(nats);
            Running::Inside(Bridge::start_with(&self.database, &settings).await)
        };
        self.bridges[bridge] = Some(running);
    }

    pub async fn stop(&mut self, bridge: usize) {
        if let Some(bridge) = self.bridges[bridge].take() {
            stop(bridge).await;
        }
    }

    /// Returns whether rows that it had written but not marked may stay unmarked.
    pub async fn kill(&mut self, bridge: usize) -> bool {
        match self.bridges[bridge].take() {
            Some(Running::Outside(mut child, _)) => {
                child.kill().await.expect("a signal");
                true
            }
            // It ends its streams, which settles their rows. Which rows those are is known only
            // after a graceful stop.
            Some(running) if self.settle == Settle::Never => {
                stop(running).await;
                false
            }
            // It flushes its marks by itself, if the server is available.
            _ => self.is_hurt(),
        }
    }

    pub async fn end_listeners(&self) -> Result<(), String> {
        self.end("query like '%The first rows, of all users%'")
            .await
    }

    pub async fn end_sessions(&self) -> Result<(), String> {
        self.end("true").await
    }

    async fn end(&self, which: &str) -> Result<(), String> {
        let work = format!(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name = 'tidings' and {which}"
        );
        let done = self.watcher.batch_execute(&work).await;
        done.map_err(|error| format!("{work}: {error}"))
    }

    /// Restarts or crashes the server, and waits until it is available again.
    pub async fn hurt(&mut self, step: Step) -> Result<(), String> {
        let Some(cluster) = &mut self.cluster else {
            return Ok(());
        };
        self.idle.clear();
        match step {
            Step::Restart => cluster.restart(Shutdown::Fast).await,
            Step::Crash => cluster.restart(Shutdown::Immediate).await,
            _ => {
                let victim = connect(&self.database).await?;
                let victim = victim.query_one("select pg_backend_pid()", &[]).await;
                let victim = victim.map_err(|error| error.to_string())?.get(0);
                kill(Pid::from_raw(victim), Signal::SIGKILL).expect("a signal");
                // Once the server starts terminating sessions, it accepts no new ones.
                while self.client.batch_execute("select").await.is_ok() {}
                Ok(())
            }
        }
        .map_err(|error| error.to_string())?;
        let superuser = self.database.superuser();
        let connecting = async {
            loop {
                if let (Ok(client), Ok(watcher)) =
                    (connect(&self.database).await, connect(&superuser).await)
                    && client.batch_execute("select").await.is_ok()
                    && watcher.batch_execute("select").await.is_ok()
                {
                    return (client, watcher);
                }
                tokio::task::yield_now().await;
            }
        };
        let connected = timeout(PATIENCE, connecting).await;
        (self.client, self.watcher) = connected.map_err(|_| format!("no server after {step:?}"))?;
        Ok(())
    }

    pub async fn until_marked(&self, rows: &[i64]) -> Result<(), String> {
        let query = "select coalesce(array_agg(id), '{}') from notifications where id = any($1) and not sent";
        let mut unmarked: Vec<i64> = Vec::new();
        let asking = async {
            loop {
                let answer = self.watcher.query_one(query, &[&rows]).await;
                unmarked = answer.map_err(|error| error.to_string())?.get(0);
                if unmarked.is_empty() {
                    return Ok(());
                }
                tokio::task::yield_now().await;
            }
        };
        let outcome = timeout(self.patience, asking).await;
        outcome.unwrap_or_else(|_| Err(format!("read, and never marked: {unmarked:?}")))
    }
}

/// From the text forms of `xid` and `since`.
fn membership(xid: &str, since: &str) -> (Xid, Since) {
    let xid = xid.parse().expect("a transaction id");
    (Xid(xid), Since::parse(since).expect("a snapshot"))
}

async fn connect(database: &Database) -> Result<Client, String> {
    let connecting = database.try_connect().await;
    connecting.map_err(|error| error.to_string())
}

async fn stop(bridge: Running) {
    match bridge {
        Running::Inside(bridge) => bridge.stop().await,
        Running::Outside(mut child, _) => {
            process::signal(&child, Signal::SIGTERM);
            let ended = timeout(PATIENCE, child.wait()).await;
            ended.expect("it stops").expect("an end");
        }
    }
}
