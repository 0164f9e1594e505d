//! Parses `DATABASE_URL`, in libpq's syntax.

use std::{
    fmt,
    net::IpAddr,
    num::NonZeroU16,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, atomic::AtomicUsize},
};

use arc_swap::ArcSwap;
use nix::unistd::{User, geteuid};
use tokio_postgres::{
    Config,
    config::{ChannelBinding, SslNegotiation},
};

use super::{
    conninfo::ConnInfo,
    password::{self, FoundPassword, Login, MissingPassword},
    tls::{Reach, Tls, TlsError},
};
use crate::runtime::loopback::{is_loopback, is_loopback_host};

/// The port if a URL names none.
const DEFAULT_PORT: u16 = 5432;

/// The socket folders if a URL names no host: that of Linux distributions, and Postgres'
/// built-in default.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// Parameters that have an effect.
const USED: &[&str] = &[
    "application_name",
    "channel_binding",
    "dbname",
    "fallback_application_name",
    "host",
    "hostaddr",
    "options",
    "passfile",
    "password",
    "port",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslnegotiation",
    "sslrootcert",
    "sslsni",
    "user",
];

/// libpq parameters that are accepted and ignored: the bridge has its own timeouts,
/// probes and order of hosts, and uses UTF-8 and no GSSAPI.
const IGNORED: &[&str] = &[
    "client_encoding",
    "connect_timeout",
    "gssdelegation",
    "gsslib",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "keepalives_retries",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "sslcompression",
    "tcp_user_timeout",
];

/// Parameters that are accepted only with values that don't require anything unsupported.
const BOUND: &[(&str, &[&str])] = &[
    ("gssencmode", &["disable", "prefer"]),
    ("sslcertmode", &["disable", "allow"]),
    ("target_session_attrs", &["any", "read-write", "primary"]),
];

const NO_SERVICES: &str = "service files (pg_service.conf) are not read: specify the host, the \
                           database and the role of the service";

/// Unsupported libpq parameters, and what to do instead.
const REFUSED: &[(&str, &str)] = &[
    ("require_auth", "use channel_binding=require instead"),
    (
        "requirepeer",
        "restrict the socket's folder to its owner instead",
    ),
    ("service", NO_SERVICES),
    ("servicefile", NO_SERVICES),
    ("sslcrl", "certificate revocation lists are not supported"),
    (
        "sslcrldir",
        "certificate revocation lists are not supported",
    ),
    ("sslpassword", "the key must not be encrypted"),
];

/// The location of the database, in libpq's syntax: a URL or `key=value` pairs. Its
/// `Debug` form hides the password.
///
/// Clones share their value: [`replace_by`](Self::replace_by) changes all of them.
#[derive(Clone)]
pub struct DatabaseUrl(Arc<ArcSwap<Target>>);

/// The contents of a URL.
pub(super) struct Target {
    pub(super) config: Config,
    pub(super) hosts: Vec<HostAddress>,
    pub(super) tls: Tls,
    /// The password file to search if the URL contains no password.
    passfile: Option<PathBuf>,
    /// The host that answered last is tried first. After a failover, each connection
    /// would otherwise first try the failed host.
    pub(super) answered: AtomicUsize,
}

impl DatabaseUrl {
    /// The current value.
    pub(super) fn target(&self) -> Arc<Target> {
        self.0.load_full()
    }

    /// Makes later connections use the servers and the role of `other`. Open connections
    /// stay.
    pub fn replace_by(&self, other: &Self) {
        self.0.store(other.target());
    }
}

impl Target {
    /// The database, which by default has the role's name.
    fn database(&self) -> &str {
        let database = self.config.get_dbname().or(self.config.get_user());
        database.unwrap_or_default()
    }

    pub(super) fn user(&self) -> &str {
        self.config.get_user().unwrap_or_default()
    }

    /// The password for this host from outside the connection string; `None` if the
    /// connection string contains one.
    pub(super) fn password(
        &self,
        host: &HostAddress,
    ) -> Option<Result<FoundPassword, MissingPassword>> {
        if self.config.get_password().is_some() {
            return None;
        }
        let (name, port) = match host {
            HostAddress::Tcp { name, port, .. } => (name.clone(), *port),
            // As libpq does for the folder that it was built with.
            HostAddress::Unix { folder, port } => {
                let is_default = SOCKET_FOLDERS
                    .iter()
                    .any(|known| folder == Path::new(known));
                let name = if is_default {
                    "localhost".to_owned()
                } else {
                    folder.display().to_string()
                };
                (name, *port)
            }
        };
        let login = Login {
            host: &name,
            port,
            database: self.database(),
            user: self.user(),
        };
        Some(password::find(login, self.passfile.as_deref()))
    }
}

/// One of the hosts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HostAddress {
    Tcp {
        /// The name in the server's certificate.
        name: String,
        /// The IP address, if it is given instead of looking up the name.
        address: Option<IpAddr>,
        port: u16,
    },
    Unix {
        folder: PathBuf,
        port: u16,
    },
}

impl HostAddress {
    pub(super) fn reach(&self) -> Reach {
        let is_near = match self {
            Self::Unix { .. } => return Reach::Socket,
            Self::Tcp {
                address: Some(address),
                ..
            } => is_loopback(*address),
            Self::Tcp { name, .. } => is_loopback_host(name),
        };
        if is_near {
            Reach::Loopback
        } else {
            Reach::Remote
        }
    }
}

impl fmt::Display for HostAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { name, port, .. } => write!(f, "{name}:{port}"),
            Self::Unix { folder, .. } => write!(f, "{}", folder.display()),
        }
    }
}

/// Pairs the hosts as libpq does: an address is used instead of looking up the name at
/// the same index, and a single port applies to all hosts.
fn places(given: &ConnInfo) -> Result<Vec<HostAddress>, String> {
    let list = |name| -> Vec<&str> {
        let value = given.get(name).map(|value| value.split(',').map(str::trim));
        value.into_iter().flatten().collect()
    };
    let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    if !hosts.is_empty() && !addresses.is_empty() && hosts.len() != addresses.len() {
        let (hosts, addresses) = (hosts.len(), addresses.len());
        return Err(format!("it names {hosts} hosts and {addresses} addresses"));
    }
    let count = hosts.len().max(addresses.len()).max(1);
    if ports.len() > 1 && ports.len() != count {
        return Err(format!("it names {count} hosts and {} ports", ports.len()));
    }
    let port = |index| match ports.get(index).or(ports.first()).copied() {
        None | Some("") => Ok(DEFAULT_PORT),
        Some(port) => match port.parse::<NonZeroU16>() {
            Ok(port) => Ok(port.get()),
            Err(_) => Err("its port is not a number between 1 and 65535"),
        },
    };
    (0..count)
        .map(|index| {
            let port = port(index)?;
            let host = hosts.get(index).copied().unwrap_or_default();
            let address = addresses.get(index).copied().unwrap_or_default();
            Ok(match (host, address) {
                ("", "") => HostAddress::Unix {
                    folder: socket_folder(port).into(),
                    port,
                },
                (host, "") if host.starts_with('/') => HostAddress::Unix {
                    folder: host.into(),
                    port,
                },
                (host, "") => HostAddress::Tcp {
                    name: host.to_owned(),
                    address: None,
                    port,
                },
                (host, address) => HostAddress::Tcp {
                    name: if host.is_empty() { address } else { host }.to_owned(),
                    address: Some(
                        address
                            .parse()
                            .map_err(|_| "its hostaddr is not an IP address")?,
                    ),
                    port,
                },
            })
        })
        .collect()
}

fn socket_folder(port: u16) -> &'static str {
    let has_socket = |folder: &&str| Path::new(folder).join(format!(".s.PGSQL.{port}")).exists();
    let mut folders = SOCKET_FOLDERS.into_iter();
    folders.find(has_socket).unwrap_or(SOCKET_FOLDERS[0])
}

/// Rejects parameters that can't be honoured, instead of silently ignoring them.
fn refuse_unknown(given: &ConnInfo) -> Result<(), String> {
    for (name, shown) in given.names() {
        if USED.contains(&name) || IGNORED.contains(&name) {
            continue;
        }
        if let Some((_, values)) = BOUND.iter().find(|(known, _)| *known == name) {
            if given.get(name).is_none_or(|value| values.contains(&value)) {
                continue;
            }
            return Err(format!("{name} must be {}", values.join(" or ")));
        }
        return Err(match REFUSED.iter().find(|(known, _)| *known == name) {
            Some((_, instead)) => format!("the parameter {name} is not supported: {instead}"),
            None => format!("it has an unknown parameter ({shown})"),
        });
    }
    Ok(())
}

/// Why a connection string can't be used. No text contains a value that may be secret.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseUrlError {
    #[error("{0}")]
    Malformed(String),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl From<String> for DatabaseUrlError {
    fn from(text: String) -> Self {
        Self::Malformed(text)
    }
}

impl From<&str> for DatabaseUrlError {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl FromStr for DatabaseUrl {
    type Err = DatabaseUrlError;

    fn from_str(text: &str) -> Result<Self, DatabaseUrlError> {
        let given = ConnInfo::parse(text)?;
        refuse_unknown(&given)?;
        let hosts = places(&given)?;
        let reaches: Vec<_> = hosts.iter().map(HostAddress::reach).collect();
        let tls = Tls::of(&given, &reaches)?;

        let mut config = Config::new();
        match given.get("user") {
            Some(user) => config.user(user),
            // As libpq does.
            None => match User::from_uid(geteuid()) {
                Ok(Some(user)) => config.user(user.name),
                _ => return Err("it names no user".into()),
            },
        };
        if let Some(password) = given.get("password") {
            config.password(password);
        }
        if let Some(database) = given.get("dbname") {
            config.dbname(database);
        }
        if let Some(options) = given.get("options") {
            config.options(options);
        }
        let name = given.get("application_name");
        let name = name.or(given.get("fallback_application_name"));
        config.application_name(name.unwrap_or("tidings"));
        config.channel_binding(match given.get("channel_binding") {
            None | Some("prefer") => ChannelBinding::Prefer,
            Some("require") => ChannelBinding::Require,
            Some("disable") => ChannelBinding::Disable,
            Some(_) => return Err("channel_binding must be disable, prefer or require".into()),
        });
        if tls.is_direct {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        Ok(Self(Arc::new(ArcSwap::from_pointee(Target {
            config,
            hosts,
            tls,
            passfile: given.get("passfile").map(PathBuf::from),
            answered: AtomicUsize::default(),
        }))))
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({self})")
    }
}

/// Hosts and database, for messages; never the password.
impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target();
        for (index, host) in target.hosts.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match host {
                HostAddress::Tcp { name, .. } => write!(f, "{comma}{name}")?,
                HostAddress::Unix { folder, .. } => write!(f, "{comma}{}", folder.display())?,
            }
        }
        write!(f, "/{}", target.database())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(name: &str, address: Option<&str>, port: u16) -> HostAddress {
        HostAddress::Tcp {
            name: name.to_owned(),
            address: address.map(|address| address.parse().expect("an address")),
            port,
        }
    }

    fn unix(folder: &str, port: u16) -> HostAddress {
        let folder = folder.into();
        HostAddress::Unix { folder, port }
    }

    #[test]
    fn hosts_are_paired_as_libpq_pairs_them() {
        let cases = [
            ("postgresql://u@h/d", vec![tcp("h", None, 5432)]),
            (
                "postgres://u@a:1,b,[::1]:3/d",
                vec![tcp("a", None, 1), tcp("b", None, 5432), tcp("::1", None, 3)],
            ),
            (
                "postgres://u@/d?host=a,b&port=6000",
                vec![tcp("a", None, 6000), tcp("b", None, 6000)],
            ),
            (
                "postgres://u@a,b/d?hostaddr=10.0.0.1,",
                vec![tcp("a", Some("10.0.0.1"), 5432), tcp("b", None, 5432)],
            ),
            ("user=u hostaddr=::1", vec![tcp("::1", Some("::1"), 5432)]),
            ("postgres://u@%2Fa%20b:6/d", vec![unix("/a b", 6)]),
            ("postgres://u@localhost/d?host=/a", vec![unix("/a", 5432)]),
            ("user=u port=7", vec![unix(socket_folder(7), 7)]),
            (
                "user=u host=a,/b port=,8 sslmode=disable",
                vec![tcp("a", None, 5432), unix("/b", 8)],
            ),
        ];
        for (text, expected) in cases {
            let url: DatabaseUrl = text.parse().expect(text);
            assert_eq!(url.target().hosts, expected, "{text}");
        }
    }

    #[test]
    fn the_local_host_is_known_by_its_name_and_its_addresses() {
        let reach = |name, address| tcp(name, address, 1).reach();
        assert_eq!(unix("/a", 1).reach(), Reach::Socket);
        for near in ["localhost", "LocalHost", "127.0.0.1", "127.8.8.8", "::1"] {
            assert_eq!(reach(near, None), Reach::Loopback, "{near}");
        }
        assert_eq!(reach("::ffff:127.0.0.1", None), Reach::Loopback);
        assert_eq!(reach("db", Some("127.0.0.1")), Reach::Loopback);
        for far in ["db", "localhost.example.com", "10.0.0.1", "::2", "0.0.0.0"] {
            assert_eq!(reach(far, None), Reach::Remote, "{far}");
        }
        assert_eq!(reach("localhost", Some("10.0.0.1")), Reach::Remote);
    }

    #[test]
    fn what_libpq_knows_is_used_ignored_or_refused_by_name() {
        for good in [
            "connect_timeout=5 keepalives_count=2 gssencmode=prefer target_session_attrs=primary",
            "application_name=a options='-c x=y' channel_binding=disable sslcompression=0",
            "gssencmode='' passfile='' replication=''",
            "passfile=/run/secrets/pgpass",
        ] {
            let text = format!("user=u {good}");
            text.parse::<DatabaseUrl>().expect(good);
        }
        for (bad, named) in [
            ("gssencmode=require", "gssencmode"),
            ("target_session_attrs=standby", "target_session_attrs"),
            ("sslcertmode=require", "sslcertmode"),
            ("service=x", "pg_service.conf"),
            ("sslcrl=x", "sslcrl"),
            ("require_auth=md5", "require_auth"),
            ("channel_binding=yes", "channel_binding"),
            ("replication=database", "replication"),
            ("schema=app", "schema"),
            ("hostaddr=db", "hostaddr"),
            ("port=0", "port"),
            ("port=65536", "port"),
            ("host=a,b hostaddr=::1", "2 hosts and 1 addresses"),
            ("host=a,b port=1,2,3", "2 hosts and 3 ports"),
        ] {
            let error = format!("user=u {bad}").parse::<DatabaseUrl>();
            let error = error.expect_err(bad);
            assert!(error.to_string().contains(named), "{bad}: {error}");
        }
    }
}
