//! The database is dumped and restored into another cluster, where the current transaction id is
//! far behind those stored in the rows.

use private_postgres::PostgresBinaries;

use crate::support::{
    account::Account,
    bridge::Bridge,
    database::{Database, start_cluster},
    dev::shell,
    expect_gap,
    process::refusal,
    row_id, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_restored_into_another_cluster_delivers_what_was_unsent_and_what_comes() {
    let mut account = Account::without_repeats("dumped, and restored into another cluster");
    let (old_cluster, new_cluster) = (start_cluster().await, start_cluster().await);
    let old = Database::create(&old_cluster, "app").await;
    let new = Database::create(&new_cluster, "app").await;
    old.migrate().await;
    let bridge = Bridge::start(&old).await;
    old.execute(
        "do $$ begin for n in 1..5000 loop perform pg_current_xact_id(); commit; end loop; end $$",
    )
    .await;
    let mut alice = bridge.connect_live("alice").await;
    old.execute("select send_notification('alice', 'sent')")
        .await;
    let mut got = vec![row_id(&alice.next_event().await)];
    let id = alice.last_event_id().to_owned();
    old.until("select bool_and(sent) from notifications").await;
    bridge.stop().await;
    // Records everything up to now as sent to alice, at transaction ids that are ahead of the new
    // cluster's.
    old.owner()
        .execute(
            "insert into tidings_drained \
             select 'alice', pg_snapshot_xmin(pg_current_snapshot()), system_identifier \
             from pg_control_system()",
        )
        .await;
    old.execute("select send_notification('alice', 'unsent') from generate_series(1, 3)")
        .await;

    shell(&format!(
        "{} '{}' >{dump} && {} --no-psqlrc --quiet -v ON_ERROR_STOP=1 -d '{}' -f {dump}",
        program("pg_dump"),
        old.superuser().connection_string(),
        program("psql"),
        new.superuser().connection_string(),
        dump = new_cluster.folder().join("dump").display(),
    ))
    .await;
    assert_eq!(
        new.ids(
            "select id from notifications \
             where xid < pg_snapshot_xmax(pg_current_snapshot())"
        )
        .await,
        [0; 0],
        "the rows lie in the new cluster's future"
    );

    let said = refusal(&new, &[]).await;
    assert!(
        said.contains("run `tidings migrate` as the table's owner"),
        "{said}"
    );
    new.migrate().await;
    let bridge = Bridge::start(&new).await;
    let mut alice = bridge.resume("alice", &id).await;
    expect_gap(&mut alice, "epoch").await;
    let backlog = until(&mut alice, "tidings.caught-up").await;
    got.extend(backlog.iter().map(row_id));
    new.execute("select send_notification('alice', 'live')")
        .await;
    let live = alice.next_event().await;
    assert_eq!(live.data, "live");
    got.push(row_id(&live));
    account.client(new.ids("select id from notifications").await, &got);
    account.round();
    account.close();
}

/// The program's path, quoted for a shell.
fn program(name: &str) -> String {
    let binaries = PostgresBinaries::find().expect("a PostgreSQL");
    let program = binaries.beside(name).expect("a program of PostgreSQL's");
    format!("'{}'", program.display())
}
