//! TLS to Postgres: what each `sslmode` accepts and rejects, on a real server.

use std::net::{SocketAddr, UdpSocket};

use rustls::pki_types::ServerName;
use tidings::{
    monitoring::logging::ErrorChain,
    postgres::connect::{ConnectError, DatabaseUrl},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::AbortOnDropHandle;

use super::server::{NAME, Server, encrypts};
use crate::support::tls::authority::Authority;
use crate::support::{
    bridge::Bridge,
    database::{Database, shared_cluster},
    process::refusal,
    until,
};

#[tokio::test(flavor = "multi_thread")]
async fn each_mode_takes_and_refuses_what_it_does_in_libpq() {
    let server = Server::start().await;
    let (ours, theirs) = (server.authority.file(), Authority::new());
    let (ours, theirs) = (ours.display(), theirs.file());
    let theirs = theirs.display();
    let encrypted = [
        "".to_owned(),
        "sslmode=allow".to_owned(),
        "sslmode=prefer".to_owned(),
        "sslmode=require".to_owned(),
        format!("sslmode=require sslrootcert={ours}"),
        format!("sslmode=verify-ca sslrootcert={ours}"),
        format!("sslmode=verify-ca sslrootcert={ours} host=other.test"),
        format!("sslmode=verify-full sslrootcert={ours} host={NAME}"),
        format!("sslmode=verify-full sslrootcert={ours} host={NAME} sslsni=0"),
        "sslmode=require ssl_min_protocol_version=TLSv1.3".to_owned(),
        "sslmode=require ssl_max_protocol_version=TLSv1.2".to_owned(),
    ];
    for how in &encrypted {
        assert!(server.encrypts(how).await.expect(how), "{how}");
    }
    // A role that may only connect in clear text: modes that prefer or allow clear text connect,
    // modes that require TLS don't.
    for how in ["", "sslmode=allow", "sslmode=prefer", "sslmode=disable"] {
        let how = format!("user=clear {how}");
        assert!(!server.encrypts(&how).await.expect(&how), "{how}");
    }
    let refused = [
        ("sslmode=disable".to_owned(), "no encryption"),
        ("user=clear sslmode=require".to_owned(), "SSL encryption"),
        (format!("sslrootcert={theirs}"), "UnknownIssuer"),
        (
            format!("sslmode=prefer sslrootcert={theirs}"),
            "UnknownIssuer",
        ),
        (
            format!("sslmode=require sslrootcert={theirs}"),
            "UnknownIssuer",
        ),
        (
            format!("sslmode=verify-ca sslrootcert={theirs}"),
            "UnknownIssuer",
        ),
        (
            format!("sslmode=verify-full sslrootcert={theirs} host={NAME}"),
            "UnknownIssuer",
        ),
        (
            format!("sslmode=verify-full sslrootcert={ours} host=other.test"),
            "other.test",
        ),
        // Without a host name, the certificate must be for the address.
        (
            format!("sslmode=verify-full sslrootcert={ours}"),
            server.address(),
        ),
    ];
    for (how, named) in &refused {
        let error = server.encrypts(how).await.expect_err(how);
        assert!(
            ErrorChain(&error).to_string().contains(named),
            "{how}: {error}"
        );
        // The bridge must not retry it for 30 s at start.
        assert!(!error.is_passing(), "{how}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_when_the_server_asks_for_it() {
    let server = Server::start().await;
    let theirs = Authority::new();
    let how = |authority: &Authority| {
        let own = authority.issue("certified", &[]);
        let (certificate, key) = (own.certificate.display(), own.key.display());
        format!("user=certified sslmode=require sslcert={certificate} sslkey={key}")
    };
    let good = how(&server.authority);
    assert!(server.encrypts(&good).await.expect("a connection"));
    let without = "user=certified sslmode=require";
    let disabled = format!("{good} sslcertmode=disable");
    for how in [without, disabled.as_str(), how(&theirs).as_str()] {
        assert!(server.encrypts(how).await.is_err(), "{how}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_can_be_bound_to_the_encrypted_connection() {
    let server = Server::start().await;
    let bound = "user=scrammed password='a good one' channel_binding=require";
    let encrypts = async |more: &str| server.encrypts(&format!("{bound} {more}")).await;
    assert!(encrypts("sslmode=require").await.expect("a connection"));
    let error = encrypts("sslmode=disable").await.expect_err("no TLS");
    assert!(
        ErrorChain(&error).to_string().contains("channel binding"),
        "{error:?}"
    );
    let error = encrypts("sslmode=require password=bad").await;
    let error = error.expect_err("a bad password");
    assert!(!ErrorChain(&error).to_string().contains("bad"), "{error:?}");
}

/// A port that forwards to the server and terminates TLS in between.
async fn middleman(server: &Server, liar: &Authority) -> (u16, AbortOnDropHandle<()>) {
    // The client's SSLRequest, and the response of a server that supports TLS.
    const ASKS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let acceptor = TlsAcceptor::from(liar.server(NAME));
    let connector = TlsConnector::from(server.authority.client("postgresql"));
    let address = format!("{}:5432", server.address());
    let leading = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut asked = [0; 8];
            client.read_exact(&mut asked).await.expect("a request");
            assert_eq!(asked, ASKS);
            client.write_all(b"S").await.expect("an answer");
            let mut server = TcpStream::connect(&address).await.expect("a server");
            server.write_all(&ASKS).await.expect("a request");
            assert_eq!(server.read_u8().await.expect("an answer"), b'S');
            let name = ServerName::try_from(NAME).expect("a name");
            let (acceptor, connector) = (acceptor.clone(), connector.clone());
            tokio::spawn(async move {
                let mut client = acceptor.accept(client).await?;
                let mut server = connector.connect(name, server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (port, AbortOnDropHandle::new(leading))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_middleman_is_found_out_by_the_certificate_or_the_bound_password() {
    let server = Server::start().await;
    let (port, _leading) = middleman(&server, &Authority::new()).await;
    let ours = server.authority.file();
    let through = async |how: &str| {
        encrypts(&format!(
            "host={NAME} hostaddr=127.0.0.1 port={port} dbname=postgres {how}"
        ))
        .await
    };
    // Without verification, nothing detects the middleman.
    let blind = through("user=tidings sslmode=require").await;
    assert!(blind.expect("a connection"));
    let verify = format!(
        "user=tidings sslmode=verify-ca sslrootcert={}",
        ours.display()
    );
    let error = through(&verify).await.expect_err("a middleman");
    assert!(
        ErrorChain(&error).to_string().contains("UnknownIssuer"),
        "{error:?}"
    );
    // Channel binding fails: the server offers it, but sees another connection.
    let bound = "user=scrammed password='a good one' sslmode=require";
    let error = through(bound).await.expect_err("a middleman");
    assert!(
        ErrorChain(&error).to_string().contains("channel binding"),
        "{error:?}"
    );
}

/// A port at `address` that leads to a server without TLS, since no server offers TLS on its Unix
/// socket.
async fn without_tls(address: &str, database: &Database) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((address, 0)).await.expect("a port");
    let port = listener.local_addr().expect("an address");
    let text = database.connection_string();
    let host = text.split_once(' ').expect("more than a host").0;
    let folder = host.strip_prefix("host=").expect("a folder").to_owned();
    let leading = tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let path = format!("{folder}/.s.PGSQL.5432");
            let mut server = UnixStream::connect(path).await.expect("a server");
            tokio::spawn(async move { copy_bidirectional(&mut client, &mut server).await });
        }
    });
    (port, AbortOnDropHandle::new(leading))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_unless_clear_text_is_asked_for() {
    tokio::task::spawn_blocking(shared_cluster)
        .await
        .expect("a cluster");
    let database = Database::migrated().await;
    let name = database.connection_string();
    let name = name.split_once("dbname=").expect("a database").1;
    // An address at which other machines could reach this one. Connecting a UDP socket sends
    // nothing.
    let asking = UdpSocket::bind("0.0.0.0:0").expect("a socket");
    let remote = match asking.connect("198.51.100.1:9") {
        Ok(()) => asking.local_addr().expect("an address").ip().to_string(),
        Err(error) => panic!("this machine is in no network: {error}"),
    };
    let rest = format!("user=tidings dbname={name}");
    for (address, default) in [("127.0.0.1", Some(false)), (remote.as_str(), None)] {
        let (port, _leading) = without_tls(address, &database).await;
        let at = |how: &str| format!("host={} port={} {rest} {how}", port.ip(), port.port());
        for how in ["sslmode=disable", "sslmode=allow", "sslmode=prefer"] {
            assert!(!encrypts(&at(how)).await.expect(how), "{address} {how}");
        }
        let error = encrypts(&at("sslmode=require")).await.expect_err("no TLS");
        assert!(matches!(error, ConnectError::Unencrypted { .. }), "{error}");
        match (encrypts(&at("")).await, default) {
            (Ok(encrypted), Some(expected)) => assert_eq!(encrypted, expected),
            (Err(error), None) => {
                assert!(error.to_string().contains("sslmode=disable"), "{error}");
                assert!(!error.is_passing(), "{error}");
                // The whole program reports it, at once.
                let said = refusal(&Database::at(at("")), &[]).await;
                assert!(said.contains("offers no TLS"), "{said}");
            }
            (outcome, _) => panic!("{address}: {outcome:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_listener_the_pool_and_the_migrations_are_all_encrypted() {
    let server = Server::start().await;
    let how = format!(
        "host={NAME} sslmode=verify-full sslrootcert={}",
        server.authority.file().display()
    );
    // The server accepts these roles only over TLS.
    let database = server.database(&how).await;
    database.migrate().await;
    let bridge = Bridge::start(&database).await;
    let mut source = bridge.connect("alice").await;
    until(&mut source, "tidings.caught-up").await;
    let beside = server.beside(&database);
    beside
        .execute("select send_notification('alice', 'encrypted')")
        .await;
    assert_eq!(source.next_event().await.data, "encrypted");
    beside
        .until("select bool_and(sent) from notifications")
        .await;
    let row = beside
        .superuser()
        .connect()
        .await
        .query_one(
            "select count(*) filter (where ssl), count(*) filter (where not ssl)
             from pg_stat_activity join pg_stat_ssl using (pid)
             where datname = current_database() and application_name = 'tidings'",
            &[],
        )
        .await
        .expect("its sessions");
    assert!(row.get::<_, i64>(0) >= 2, "listener and pool");
    assert_eq!(row.get::<_, i64>(1), 0);
    bridge.stop().await;
}

#[tokio::test]
async fn files_that_can_not_be_used_are_refused_at_start() {
    let authority = Authority::new();
    let (one, other) = (authority.issue("one", &[]), authority.issue("other", &[]));
    let shown = |path: &std::path::Path| path.display().to_string();
    let (certificate, key) = (shown(&one.certificate), shown(&one.key));
    let cases = [
        ("sslrootcert=/nowhere".to_owned(), "/nowhere"),
        (format!("sslrootcert={key}"), "no certificate"),
        (format!("sslcert=/nowhere sslkey={key}"), "/nowhere"),
        (
            format!("sslcert={certificate} sslkey={certificate}"),
            "no readable key",
        ),
        (
            format!("sslcert={certificate} sslkey={}", shown(&other.key)),
            "doesn't match",
        ),
    ];
    for (how, named) in cases {
        let text = format!("host=db user=u {how}");
        let error = text.parse::<DatabaseUrl>().expect_err(&how);
        assert!(
            ErrorChain(&error).to_string().contains(named),
            "{how}: {error:?}"
        );
    }
}
