//! SIGHUP: the bridge rereads its files, and no stream ends.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use jsonwebtoken::Algorithm::ES256;
use nix::sys::signal::Signal;
use tidings::{
    auth::jwt::{self, JwtSecret, Rules},
    domain::notification::UserId,
};

use crate::support::{
    bridge::{SECRET, status, token},
    database::{Database, start_cluster},
    dev::{DataFolder, Dev},
    event_source::EventSource,
    key_pair::KeyPair,
    key_server::{Answer, KeyServer},
    process::Served,
    standby::Standby,
    until,
};

const OTHER_SECRET: &str = "another secret of the tests, 32 bytes or more";

/// Reread files take effect within this time, long before anything would be reread without a
/// signal.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A file with the value of a setting. Dropping it removes the file.
struct Setting {
    folder: DataFolder,
}

impl Setting {
    fn new(text: &str) -> Self {
        let folder = DataFolder::new();
        fs::create_dir(folder.path()).expect("a folder");
        let setting = Self { folder };
        setting.write(text);
        setting
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("setting")
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).expect("a file");
    }

    /// A bridge that reads it.
    async fn of(&self, database: &Database, name: &str, more: &[&str]) -> Served {
        let path = self.path();
        let path = path.to_str().expect("UTF-8");
        Served::start_in(database, more, &[(name, path)]).await
    }
}

fn token_of(secret: &str) -> String {
    let secret: JwtSecret = secret.parse().expect("a secret");
    let user = UserId::parse("alice").expect("a user");
    jwt::sign(&secret, &Rules::default(), &user, 3_600).expect("a token")
}

/// Opens a stream and waits until it is live.
async fn live(bridge: &Served, token: &str) -> EventSource {
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str())];
    let mut source = EventSource::open(bridge.address(), "/stream", &headers).await;
    until(&mut source, "tidings.caught-up").await;
    source
}

/// Checks that the stream still receives what is sent.
async fn assert_goes_on(source: &mut EventSource, database: &Database) {
    let send = "select send_notification('alice', 'through it all')";
    database.execute(send).await;
    assert_eq!(source.next_event().await.data, "through it all");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_lets_others_in_and_ends_no_stream() {
    let database = Database::migrated().await;
    let setting = Setting::new(SECRET);
    let mut bridge = setting.of(&database, "TIDINGS_JWT_SECRET_FILE", &[]).await;
    let (old, new) = (token("alice"), token_of(OTHER_SECRET));
    let mut stream = live(&bridge, &old).await;
    assert_eq!(status(bridge.address(), &new).await, 401);

    setting.write(OTHER_SECRET);
    let asked = Instant::now();
    bridge.signal(Signal::SIGHUP);
    let told = bridge.until_logged("INFO", "the token secrets from").await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert_eq!(status(bridge.address(), &new).await, 200);
    assert_eq!(status(bridge.address(), &old).await, 401);
    assert_goes_on(&mut stream, &database).await;

    let bad = "hunter2";
    setting.write(bad);
    bridge.signal(Signal::SIGHUP);
    let warned = bridge.until_logged("WARN", "the token secrets in").await;
    let path = setting.path().display().to_string();
    for line in [told, warned] {
        let line = line.to_string();
        assert!(line.contains(&path), "it names no file: {line}");
        assert!(
            !line.contains(bad) && !line.contains(OTHER_SECRET),
            "{line}"
        );
    }
    assert_eq!(status(bridge.address(), &new).await, 200);
    fs::remove_file(setting.path()).expect("a file");
    bridge.signal(Signal::SIGHUP);
    bridge.until_logged("WARN", "can't be read").await;
    assert_eq!(status(bridge.address(), &new).await, 200);
    assert_goes_on(&mut stream, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_public_key_lets_others_in_and_one_that_no_algorithm_serves_is_refused() {
    let database = Database::migrated().await;
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    let setting = Setting::new(old.pem());
    let accepted = "--jwt-algorithms=HS256,ES256";
    let mut bridge = setting
        .of(&database, "TIDINGS_JWT_PUBLIC_KEY_FILE", &[accepted])
        .await;
    let (old, theirs) = (old.token(ES256, "a"), new.token(ES256, "a"));
    assert_eq!(status(bridge.address(), &old).await, 200);
    setting.write(new.pem());
    bridge.signal(Signal::SIGHUP);
    bridge
        .until_logged("INFO", "the tokens' public keys from")
        .await;
    assert_eq!(status(bridge.address(), &theirs).await, 200);
    assert_eq!(status(bridge.address(), &old).await, 401);
    // The secret didn't come from a file, so it is still valid.
    assert_eq!(status(bridge.address(), &token("alice")).await, 200);
    setting.write("-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----\n");
    bridge.signal(Signal::SIGHUP);
    let warned = bridge
        .until_logged("WARN", "the tokens' public keys in")
        .await;
    assert!(!warned.to_string().contains("hunter2"), "{warned}");
    setting.write(KeyPair::rsa().pem());
    bridge.signal(Signal::SIGHUP);
    let warned = bridge
        .until_logged("WARN", "the tokens' public keys in")
        .await;
    assert!(
        warned.to_string().contains("TIDINGS_JWT_ALGORITHMS"),
        "{warned}"
    );
    assert_eq!(status(bridge.address(), &theirs).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_use_the_new_url_and_open_ones_stay() {
    let database = Database::migrated().await;
    let url = format!("{} application_name=", database.connection_string());
    let setting = Setting::new(&format!("{url}before"));
    let mut bridge = setting.of(&database, "DATABASE_URL_FILE", &[]).await;
    let mut stream = live(&bridge, &token("alice")).await;
    let superuser = database.superuser();
    let sessions = |name: &str| {
        format!(
            "select pid::bigint from pg_stat_activity where datname = current_database() \
             and application_name = '{name}' order by 1"
        )
    };
    let before = superuser.ids(&sessions("before")).await;
    assert!(!before.is_empty());

    setting.write(&format!("{url}after"));
    let asked = Instant::now();
    bridge.signal(Signal::SIGHUP);
    bridge.until_logged("INFO", "the database URL from").await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    assert_goes_on(&mut stream, &database).await;
    let still = superuser.ids(&sessions("before")).await;
    assert!(
        before.iter().all(|pid| still.contains(pid)),
        "{before:?} {still:?}"
    );

    setting.write("postgres://bridge:hunter2@127.0.0.1/app?sslmode=nonsense");
    bridge.signal(Signal::SIGHUP);
    let warned = bridge.until_logged("WARN", "the database URL in").await;
    assert!(!warned.to_string().contains("hunter2"), "{warned}");

    superuser
        .execute(
            "select pg_terminate_backend(pid) from pg_stat_activity \
             where datname = current_database() and application_name = 'before'",
        )
        .await;
    bridge
        .until_logged("INFO", "reconnected to the database")
        .await;
    assert!(!superuser.ids(&sessions("after")).await.is_empty());
    assert_goes_on(&mut stream, &database).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_set_of_keys_is_fetched_at_once() {
    let database = Database::migrated().await;
    let (old, new) = (KeyPair::p256(), KeyPair::p256());
    let server = KeyServer::start(Answer::Keys(vec![old.jwk("a")])).await;
    let url = format!("--jwks-url={}", server.url());
    let mut bridge = Served::start(&database, &[&url]).await;
    bridge.until_logged("INFO", "fetched the key set").await;
    // Under the same key name, so that no token triggers a fetch.
    server.answer(Answer::Keys(vec![new.jwk("a")]));
    let asked = Instant::now();
    bridge.signal(Signal::SIGHUP);
    server.until_asked(2).await;
    assert!(asked.elapsed() < AT_ONCE, "{:?}", asked.elapsed());
    let theirs = new.token(ES256, "a");
    while status(bridge.address(), &theirs).await != 200 {
        assert!(asked.elapsed() < 2 * AT_ONCE, "the new key is not used");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_files_a_hangup_ends_nothing() {
    let database = Database::migrated().await;
    let mut bridge = Served::start(&database, &[]).await;
    let mut stream = live(&bridge, &token("alice")).await;
    for _ in 0..3 {
        bridge.signal(Signal::SIGHUP);
        bridge.until_logged("INFO", "nothing to reload").await;
    }
    assert_goes_on(&mut stream, &database).await;

    let folder = DataFolder::new();
    let dev = Dev::start(&folder).await;
    dev.signal(Signal::SIGHUP);
    dev.until_said("has no files to reload").await;
    dev.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_has_moved_is_used() {
    let primary = start_cluster().await;
    let database = Database::migrated_in(&primary).await;
    let standby = Standby::of(&primary).await;
    standby.follows(&primary).await;
    let replica = Database::at(standby.cluster().url(database.name())).bridge();
    let setting = Setting::new("postgres://nobody@127.0.0.1:1/nothing");
    let name = "TIDINGS_REPLICA_DATABASE_URL_FILE";
    let mut bridge = setting.of(&database, name, &[]).await;
    bridge.until_logged("WARN", "can't be used").await;
    let mut source = live(&bridge, &token("alice")).await;
    setting.write(&replica.connection_string());
    bridge.signal(Signal::SIGHUP);
    bridge.until_logged("INFO", "served by the replica").await;
    assert_goes_on(&mut source, &database).await;
}
