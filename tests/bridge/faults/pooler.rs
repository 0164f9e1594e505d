//! A PgBouncer in transaction mode between the bridge and Postgres. It doesn't forward
//! notifications, and its clients share sessions.

use futures_util::future::join_all;
use tokio_postgres::SimpleQueryMessage;

use crate::support::{
    account::Account,
    bridge::Bridge,
    database::{Database, shared_cluster},
    pooler::{Pooler, SERVER_CONNECTIONS},
    process::refusal,
    row_id, rows, until,
};

const USERS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const ROWS: usize = 100;

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_pooler_that_passes_no_notifications_on() {
    let database = Database::migrated().await;
    let pooler = Pooler::before(shared_cluster()).await;
    let said = refusal(&pooler.database(&database), &[]).await;
    for expected in ["TIDINGS_DIRECT_DATABASE_URL", "notifications", "pooler"] {
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_direct_url_beside_it_a_pooler_changes_nothing_and_keeps_nothing() {
    let mut account =
        Account::without_repeats("PgBouncer in transaction mode, and clients that come back");
    let database = Database::migrated().await;
    let pooler = Pooler::before(shared_cluster()).await;
    let pooled = pooler.database(&database);
    let direct = ["--direct-database-url", &database.connection_string()];
    let bridge = Bridge::start_with(&pooled, &direct).await;

    write(&pooled, "backlog").await;
    let got = join_all(USERS.map(|user| async {
        let mut source = bridge.connect(user).await;
        let backlog = until(&mut source, "tidings.caught-up").await;
        assert_eq!(backlog.len(), ROWS);
        source
    }))
    .await;
    let reading = got.into_iter().map(|mut source| async move {
        rows(&mut source, ROWS).await;
        source
    });
    let ((), sources) = tokio::join!(write(&pooled, "live"), join_all(reading));
    let ids: Vec<_> = sources
        .iter()
        .map(|source| source.last_event_id().to_owned())
        .collect();
    drop(sources);
    bridge.until_connections(0).await;

    write(&pooled, "missed").await;
    for (user, id) in USERS.iter().zip(ids) {
        let mut source = bridge.resume(user, &id).await;
        let missed = until(&mut source, "tidings.caught-up").await;
        assert!(missed.iter().all(|event| event.data == "missed"));
        let owed =
            format!("select id from notifications where user_id = '{user}' and text = 'missed'");
        let got: Vec<_> = missed.iter().map(row_id).collect();
        account.client(database.ids(&owed).await, &got);
    }
    account.round();
    database
        .until("select bool_and(sent) from notifications")
        .await;
    keeps_nothing(&pooled).await;
    bridge.stop().await;
    account.close();
}

/// Writes through the pooler as applications do: all users at the same time, one row per statement.
async fn write(pooled: &Database, text: &str) {
    join_all(USERS.map(|user| async move {
        let client = pooled.connect().await;
        let insert =
            format!("insert into notifications (user_id, text) values ('{user}', '{text}')");
        for _ in 0..ROWS {
            client.batch_execute(&insert).await.expect("a row");
        }
    }))
    .await;
}

/// Inspects every session of the pooler: state that one client leaves behind there affects all
/// others.
async fn keeps_nothing(pooled: &Database) {
    let clients = join_all((0..SERVER_CONNECTIONS).map(|_| pooled.connect())).await;
    let mut sessions = Vec::new();
    for client in &clients {
        // While its transaction is open, this client has a session to itself.
        client.batch_execute("begin").await.expect("a session");
        sessions.push(lines(client, "select pg_backend_pid()").await.concat());
        // The pooler sets these itself, to the values that each client asked for.
        let left_behind = "
            select 'setting ' || name from pg_settings
            where source = 'session' and name not in (
              'client_encoding', 'application_name', 'DateStyle', 'TimeZone',
              'standard_conforming_strings'
            )
            union all
            select 'statement ' || statement from pg_prepared_statements
            union all
            select 'channel ' || channel from pg_listening_channels() as channel
            union all
            select 'lock ' || locktype from pg_locks
            where pid = pg_backend_pid() and locktype = 'advisory'";
        assert_eq!(lines(client, left_behind).await, [""; 0]);
        for (name, default) in [
            ("enable_seqscan", "on"),
            ("search_path", "\"$user\", public"),
            ("synchronous_commit", "on"),
        ] {
            assert_eq!(lines(client, &format!("show {name}")).await, [default]);
        }
    }
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), SERVER_CONNECTIONS);
}

/// Returns the first column, without using a prepared statement.
async fn lines(client: &tokio_postgres::Client, query: &str) -> Vec<String> {
    let messages = client.simple_query(query).await.expect(query);
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    rows.collect()
}
