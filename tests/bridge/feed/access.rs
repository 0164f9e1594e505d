//! Who may use the servers, the key and the lock.

use clap::Parser;
use tidings::{
    check::{self, Installation},
    config::{Cli, Command},
    fanout::{NatsIdentity, NatsServers},
    postgres::schema::SchemaName,
};

use super::{
    ALONE, FEEDING, FOLLOWING, bridge, bridge_with, pair, receives, receives_all, send, until_role,
    until_shares, write,
};
use crate::support::{
    database::Database, dev::DataFolder, nats::NatsServer, process::Served,
    tls::authority::Authority,
};

/// What a bridge needs, and nothing else.
const PERMISSIONS: &str = r#"{ publish: "tidings.1.>", subscribe: "tidings.1.>" }"#;

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_server_works_with_tls_an_nkey_and_minimal_permissions() {
    let database = Database::migrated().await;
    let authority = Authority::new();
    let certified = authority.issue("localhost", &["localhost", "127.0.0.1"]);
    let key = nkeys::KeyPair::new_user();
    let nats = NatsServer::start_oldest(|_| {
        format!(
            "tls {{ cert_file: {:?}, key_file: {:?} }}\n\
             authorization {{ users: [ {{ nkey: {}, permissions: {PERMISSIONS} }} ] }}\n",
            certified.certificate,
            certified.key,
            key.public_key()
        )
    });
    let folder = DataFolder::new();
    std::fs::create_dir(folder.path()).expect("a folder");
    let seed = folder.path().join("nkey");
    std::fs::write(&seed, format!("{}\n", key.seed().expect("a seed"))).expect("a file");
    let url = format!("tls://{}", nats.address());
    let (ca, seed) = (authority.file(), seed.to_str().expect("a path").to_owned());
    let more = [
        "--nats-ca-file",
        ca.to_str().expect("a path"),
        "--nats-nkey-file",
        &seed,
    ];
    let feeder = bridge_with(&database, &url, &more).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge_with(&database, &url, &more).await;
    until_role(&follower, FOLLOWING).await;
    let mut source = follower.connect_live("alice").await;
    let owed = write(&database, 2, 30).await;
    let last = send(&database).await;
    receives_all(&mut source, owed, last).await;
    // A certificate of another authority is not trusted.
    let mut stranger = Served::start(&database, &["--nats-url", &url]).await;
    stranger.until_logged("WARN", "trouble with NATS").await;
    stranger
        .until_metric(r#"tidings_feed_role{role="alone"}"#, |value| value == 1.0)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_and_password_or_a_credentials_file_are_enough() {
    let database = Database::migrated().await;
    let nats = NatsServer::start_with(|_| {
        format!(
            "authorization {{ users: [ {{ user: bridges, password: secret, \
             permissions: {PERMISSIONS} }} ] }}\n"
        )
    });
    let url = format!("nats://bridges:secret@{}", nats.address());
    let feeder = bridge_with(&database, &url, &[]).await;
    until_role(&feeder, FEEDING).await;
    drop(feeder);

    let jwt = Jwts::new();
    let nats = NatsServer::start_with(|_| jwt.configuration());
    let folder = DataFolder::new();
    std::fs::create_dir(folder.path()).expect("a folder");
    let file = folder.path().join("bridge.creds");
    std::fs::write(&file, jwt.credentials()).expect("a file");
    let file = file.to_str().expect("a path");
    let more = ["--nats-credentials-file", file];
    let feeder = bridge_with(&database, &nats.url(), &more).await;
    until_role(&feeder, FEEDING).await;
    let follower = bridge_with(&database, &nats.url(), &more).await;
    until_role(&follower, FOLLOWING).await;
}

/// The JWTs of a server in operator mode.
struct Jwts {
    operator: String,
    account: String,
    account_key: String,
    user: String,
    seed: String,
}

impl Jwts {
    fn new() -> Self {
        let (operator, account, user) = (
            nkeys::KeyPair::new_operator(),
            nkeys::KeyPair::new_account(),
            nkeys::KeyPair::new_user(),
        );
        let unlimited = serde_json::json!({
            "subs": -1, "conn": -1, "leaf": -1, "imports": -1, "exports": -1, "data": -1,
            "payload": -1, "wildcards": true
        });
        let subjects = serde_json::json!({ "allow": ["tidings.1.>"] });
        Self {
            operator: jwt(
                &operator,
                &operator,
                &serde_json::json!({ "type": "operator", "version": 2 }),
            ),
            account: jwt(
                &operator,
                &account,
                &serde_json::json!({ "type": "account", "version": 2, "limits": unlimited }),
            ),
            account_key: account.public_key(),
            user: jwt(
                &account,
                &user,
                &serde_json::json!({
                    "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
                    "pub": subjects, "sub": subjects
                }),
            ),
            seed: user.seed().expect("a seed"),
        }
    }

    fn configuration(&self) -> String {
        let Self {
            operator,
            account,
            account_key,
            ..
        } = self;
        format!(
            "operator: {operator}\nresolver: MEMORY\n\
             resolver_preload: {{ {account_key}: {account} }}\n"
        )
    }

    fn credentials(&self) -> String {
        let Self { user, seed, .. } = self;
        format!(
            "-----BEGIN NATS USER JWT-----\n{user}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        )
    }
}

fn jwt(issuer: &nkeys::KeyPair, subject: &nkeys::KeyPair, nats: &serde_json::Value) -> String {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};

    let claims = serde_json::json!({
        "jti": "TESTS", "iat": 1_700_000_000, "iss": issuer.public_key(),
        "sub": subject.public_key(), "name": "tests", "nats": nats
    });
    let head = r#"{"typ":"JWT","alg":"ed25519-nkey"}"#;
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", encode(head), encode(&claims.to_string()));
    let signature = issuer.sign(signed.as_bytes()).expect("a signature");
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_may_not_publish_does_not_stay_the_feeder() {
    let database = Database::migrated().await;
    let nats = NatsServer::start_with(|_| {
        r#"authorization { users: [
            { user: mute, password: secret,
              permissions: { publish: { deny: ">" }, subscribe: "tidings.1.>" } }
            { user: bridges, password: secret,
              permissions: { publish: "tidings.1.>", subscribe: "tidings.1.>" } }
        ] }"#
            .to_owned()
    });
    let url = |user| format!("nats://{user}:secret@{}", nats.address());
    let mut mute = Served::start(&database, &["--nats-url", &url("mute")]).await;
    let line = mute.until_logged("WARN", "can't send to the others").await;
    assert!(line.to_string().contains("leaves"), "{line}");
    let bridge = bridge_with(&database, &url("bridges"), &[]).await;
    until_role(&bridge, FEEDING).await;
    mute.until_metric(r#"tidings_feed_role{role="following"}"#, |it| it == 1.0)
        .await;
    let mut source = mute.connect_live("alice").await;
    let id = send(&database).await;
    receives(&mut source, id).await;
}

/// What `tidings check` says of NATS, and of locks.
async fn findings(database: &Database, urls: &str) -> String {
    let Command::Check(options) = Cli::parse_from(["tidings", "check"]).command else {
        panic!("not check")
    };
    let nats = NatsServers::new(urls, NatsIdentity::Anonymous, None).expect("servers");
    let place = Installation {
        nats: Some(&nats),
        direct: &database.bridge().url(),
        pooled: None,
        schema: &SchemaName::public(),
        replicas: &[],
        memberships: None,
    };
    let report = check::examine(place, &options.thresholds).await;
    let findings = report.expect("a report").findings;
    let texts = findings
        .iter()
        .map(|one| format!("{} {:?}", one.found, one.fix));
    texts.collect::<Vec<_>>().join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn check_proves_that_messages_get_through() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, _follower) = pair(&database, &nats).await;
    assert_eq!(findings(&database, &nats.url()).await, "");

    let apart = NatsServer::start();
    let both = format!("{},{}", nats.url(), apart.url());
    let found = findings(&database, &both).await;
    assert!(
        found.contains("don't arrive at") && found.contains("one cluster"),
        "{found}"
    );

    let mut gone = NatsServer::start();
    gone.kill();
    let found = findings(&database, &gone.url()).await;
    assert!(
        found.contains(&format!("{} can't be used", gone.address())),
        "{found}"
    );

    let mute = NatsServer::start_with(|_| {
        r#"authorization { users: [ { user: mute, password: secret,
           permissions: { publish: "other", subscribe: "tidings.1.>" } } ] }"#
            .to_owned()
    });
    let found = findings(&database, &format!("nats://mute:secret@{}", mute.address())).await;
    assert!(
        found.contains("does not come back") && found.contains("tidings.1."),
        "{found}"
    );
    let found = findings(&database, &format!("nats://mute:wrong@{}", mute.address())).await;
    assert!(
        found.contains("can't be used: ") && !found.contains("wrong"),
        "{found}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_views_show_who_feeds() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, _follower) = pair(&database, &nats).await;
    let states = "select array_agg(state order by state)::text = '{feeding,following}' \
                  from tidings_bridges";
    database.superuser().until(states).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_key_is_taken_up_without_losing_a_row() {
    let database = Database::migrated().await;
    let nats = NatsServer::start();
    let (_feeder, follower) = pair(&database, &nats).await;
    let mut source = follower.connect_live("alice").await;
    let count = "select count(*) from tidings_feed_keys";
    for _ in 0..3 {
        let writing = tokio::spawn({
            let database = database.clone();
            async move { write(&database, 2, 40).await }
        });
        database
            .superuser()
            .execute("select rotate_feed_key()")
            .await;
        let owed = writing.await.expect("rows");
        let last = send(&database).await;
        receives_all(&mut source, owed, last).await;
    }
    assert_eq!(database.superuser().ids(count).await, [2]);
    // Both have it.
    until_role(&follower, FOLLOWING).await;
    let mut applied = 0.0;
    for _ in 0..100 {
        let before = applied;
        let id = send(&database).await;
        receives(&mut source, id).await;
        applied = super::read_metric(&follower, "tidings_feed_rows_total").await;
        if applied > before && before > 0.0 {
            return;
        }
    }
    panic!("no row comes in a message");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_not_read_the_key_polls_for_itself() {
    let database = Database::migrated().await;
    database
        .superuser()
        .execute("revoke select on tidings_feed_keys from tidings_bridge")
        .await;
    let nats = NatsServer::start();
    let mut bridge = Served::start(&database.bridge(), &["--nats-url", &nats.url()]).await;
    bridge.until_logged("WARN", "tidings_feed_keys").await;
    bridge
        .until_metric(r#"tidings_feed_role{role="alone"}"#, |it| it == 1.0)
        .await;
    let mut source = bridge.connect_live("alice").await;
    let id = send(&database).await;
    receives(&mut source, id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_who_holds_the_lock_costs_polls_and_no_row() {
    let database = Database::migrated().await;
    let stranger = database.superuser().connect().await;
    let lock = "select pg_advisory_lock(1953064038, 'notifications'::regclass::oid::int)";
    stranger.execute(lock, &[]).await.expect(lock);
    let nats = NatsServer::start();
    let found = findings(&database, &nats.url()).await;
    // A superuser may hold any lock.
    assert_eq!(found, "");
    let bridges = [
        bridge(&database, &nats).await,
        bridge(&database, &nats).await,
    ];
    for bridge in &bridges {
        let mut source = bridge.connect_live("alice").await;
        let id = send(&database).await;
        receives(&mut source, id).await;
        until_role(bridge, ALONE).await;
    }
    drop(stranger);
    for bridge in &bridges {
        until_shares(bridge).await;
    }
}
