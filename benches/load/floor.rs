//! Baselines for Tidings: the same table without a trigger, or with a plain NOTIFY
//! trigger and a connection that only LISTENs.

use std::{collections::HashSet, sync::Arc, thread, time::Duration};

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::{runtime::Builder, sync::oneshot, time::sleep};
use tokio_postgres::{AsyncMessage, NoTls};

use crate::{
    Result, audience::Arrival, clock::Moment, report::Counts, server::Database, subject::row_of,
};

/// As written by hand: each row is sent as a notification with its contents.
const PLAIN_NOTIFY: &str = "
    create function plain_notify() returns trigger language plpgsql as $$
    begin
      perform pg_notify('plain', new.text);
      return null;
    end
    $$;
    create trigger plain_notify after insert on notifications
    for each row execute function plain_notify()";

const ASKS_AGAIN: Duration = Duration::from_millis(2);

/// Removes the triggers from the table, so that no notification is sent.
pub async fn silence(database: &Database) -> Result<()> {
    let work = "alter table notifications disable trigger user";
    database.execute(work).await
}

/// Makes the table send NOTIFY for each row, and nothing else.
pub async fn notify_plainly(database: &Database) -> Result<()> {
    silence(database).await?;
    database.execute(PLAIN_NOTIFY).await
}

#[derive(Default)]
struct Heard {
    arrivals: Vec<Arrival>,
    rows: HashSet<u64>,
    received: u64,
    repeated: u64,
}

/// A connection that LISTENs, on a thread of its own.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    /// The thread ends when this is dropped.
    _over: oneshot::Sender<()>,
}

impl Listener {
    /// Returns when it is listening.
    pub async fn start(database: &Database) -> Result<Self> {
        let heard = Arc::<Mutex<Heard>>::default();
        let (over, ending) = oneshot::channel();
        let (listens, listening) = oneshot::channel();
        let (database, hearing) = (database.clone(), Arc::clone(&heard));
        let runtime = Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new()
            .name("listener".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        ended = listen(&database, &hearing, listens) => ended,
                        _ = ending => Ok(()),
                    }
                })
            })?;
        listening.await?;
        Ok(Self { heard, _over: over })
    }

    /// Waits until the first `rows` rows have arrived, or for as long as `limit`.
    pub async fn until_arrived(&self, rows: u64, limit: Duration) -> Counts {
        let begin = Moment::now();
        while (self.heard.lock().rows.len() as u64) < rows && Moment::now().since(begin) < limit {
            sleep(ASKS_AGAIN).await;
        }
        let heard = self.heard.lock();
        Counts {
            expected: rows,
            received: heard.received,
            missing: rows - heard.rows.len() as u64,
            repeated: heard.repeated,
            wrong_user: 0,
        }
    }

    /// All arrivals since the last call.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.heard.lock().arrivals)
    }
}

async fn listen(
    database: &Database,
    heard: &Mutex<Heard>,
    listens: oneshot::Sender<()>,
) -> Result<()> {
    let (client, mut connection) = tokio_postgres::connect(database.url(), NoTls).await?;
    let mut messages = stream::poll_fn(|context| connection.poll_message(context));
    let mut asking = std::pin::pin!(client.batch_execute("listen plain"));
    let mut listens = Some(listens);
    loop {
        let message = tokio::select! {
            answer = &mut asking, if listens.is_some() => {
                answer?;
                // The receiver is gone if the run has ended already.
                let _ = listens.take().map(|listens| listens.send(()));
                continue;
            }
            message = messages.next() => message.ok_or("the listener's session ended")??,
        };
        if let AsyncMessage::Notification(notification) = message
            && let Some(row) = row_of(notification.payload().as_bytes())
        {
            let at = Moment::now();
            let mut heard = heard.lock();
            heard.received += 1;
            heard.arrivals.push(Arrival { row, at });
            if !heard.rows.insert(row) {
                heard.repeated += 1;
            }
        }
    }
}
