//! Sockets that the service manager opened for this process: systemd's socket activation.
//!
//! See <https://www.freedesktop.org/software/systemd/man/latest/sd_listen_fds.html>. The
//! service manager keeps such a socket open while no bridge runs. So during a restart and
//! after a crash, connections wait in its queue instead of being refused.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
    process,
};

use listenfd::ListenFd;

/// The number of sockets that are passed.
const COUNT: &str = "LISTEN_FDS";

/// The id of the process to which they are passed.
const PROCESS: &str = "LISTEN_PID";

/// Their names, separated by colons.
const NAMES: &str = "LISTEN_FDNAMES";

/// systemd's name for a socket without a name.
const UNNAMED: &str = "unknown";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SocketPurpose {
    Stream,
    Admin,
}

impl SocketPurpose {
    /// Its name in `FileDescriptorName=`.
    fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Admin => "admin",
        }
    }

    /// The purpose of a socket with this name, when `count` sockets are passed.
    fn of(name: &str, count: usize) -> Result<Self, InheritedSocketsError> {
        match name {
            "stream" => Ok(Self::Stream),
            "admin" => Ok(Self::Admin),
            // Launchers other than systemd don't name sockets.
            "" | UNNAMED if count == 1 => Ok(Self::Stream),
            _ => Err(InheritedSocketsError::Name(name.to_owned())),
        }
    }
}

/// The sockets that were passed to this process.
#[derive(Debug, Default)]
pub struct InheritedSockets {
    /// For browsers, instead of `TIDINGS_LISTEN`.
    pub stream: Option<Inherited>,
    /// For probes, instead of `TIDINGS_ADMIN_LISTEN`.
    pub admin: Option<Inherited>,
}

/// A socket that is already listening.
#[derive(Debug)]
pub struct Inherited {
    listener: TcpListener,
    address: SocketAddr,
}

impl Inherited {
    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn into_listener(self) -> TcpListener {
        self.listener
    }
}

/// Why the passed sockets can't be used.
#[derive(Debug, thiserror::Error)]
pub enum InheritedSocketsError {
    /// `LISTEN_FDS` is not a number.
    #[error("{COUNT} is {0:?}; it must be the number of sockets")]
    Count(String),
    /// A socket for an unknown purpose.
    #[error(
        "the service manager passed a socket named {0:?}: set FileDescriptorName=stream (for \
             browsers) or FileDescriptorName=admin (for probes and monitoring) in its .socket unit"
    )]
    Name(String),
    /// Two sockets for one purpose.
    #[error(
        "the service manager passed two sockets named {0}, but a bridge uses only one: \
             ListenStream=[::]:8080 with BindIPv6Only=both accepts IPv4, too"
    )]
    Twice(&'static str),
    /// Not a TCP socket, or one that doesn't listen.
    #[error(
        "the service manager passed a socket named {name} that can't be used: {reason}; it must \
             be a listening TCP socket (ListenStream= with an address and a port, and Accept=no)"
    )]
    Socket {
        name: &'static str,
        reason: io::Error,
    },
}

impl InheritedSockets {
    /// Takes the sockets that were passed to this process, and clears the variables that
    /// describe them. Must be called before the process has a second thread, because it
    /// changes the environment.
    ///
    /// # Errors
    ///
    /// [`InheritedSocketsError`] if a socket can't be used: a socket was passed on purpose, so
    /// it is never silently ignored.
    pub fn of_process() -> Result<Self, InheritedSocketsError> {
        let purposes = purposes(|name| env::var(name).ok(), process::id())?;
        let mut activation = Self::default();
        if purposes.is_empty() {
            return Ok(activation);
        }
        let mut sockets = ListenFd::from_env();
        for (index, purpose) in purposes.into_iter().enumerate() {
            let inherited = inherit(&mut sockets, index).map_err(|reason| {
                let name = purpose.name();
                InheritedSocketsError::Socket { name, reason }
            })?;
            let place = match purpose {
                SocketPurpose::Stream => &mut activation.stream,
                SocketPurpose::Admin => &mut activation.admin,
            };
            if place.replace(inherited).is_some() {
                return Err(InheritedSocketsError::Twice(purpose.name()));
            }
        }
        Ok(activation)
    }
}

/// The purposes of the sockets in their order, from the variables.
fn purposes(
    variable: impl Fn(&str) -> Option<String>,
    process: u32,
) -> Result<Vec<SocketPurpose>, InheritedSocketsError> {
    let variable = |name| variable(name).unwrap_or_default();
    let (count, meant) = (variable(COUNT), variable(PROCESS));
    // The sockets may have been meant for a parent process.
    if count.is_empty() || !(meant.is_empty() || meant.parse() == Ok(process)) {
        return Ok(Vec::new());
    }
    let count: u8 = count
        .parse()
        .map_err(|_| InheritedSocketsError::Count(count))?;
    let names = variable(NAMES);
    let names = names.split(':').chain(std::iter::repeat(""));
    names
        .take(count.into())
        .map(|name| SocketPurpose::of(name, count.into()))
        .collect()
}

fn inherit(sockets: &mut ListenFd, index: usize) -> io::Result<Inherited> {
    let missing = || io::Error::from(io::ErrorKind::NotFound);
    let listener = sockets.take_tcp_listener(index)?.ok_or_else(missing)?;
    #[cfg(target_os = "linux")]
    if !socket2::SockRef::from(&listener).is_listener()? {
        return Err(io::Error::other("it is not listening"));
    }
    // Also proves that it is neither a Unix socket nor closed.
    let address = listener.local_addr()?;
    Ok(Inherited { listener, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PID: u32 = 42;

    fn passed(variables: &[(&str, &str)]) -> Result<Vec<SocketPurpose>, String> {
        let value = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        purposes(value, PID).map_err(|error| error.to_string())
    }

    #[test]
    fn sockets_are_told_apart_by_their_names_and_one_without_is_for_the_stream() {
        use SocketPurpose::{Admin, Stream};
        type Case<'a> = (&'a [(&'a str, &'a str)], &'a [SocketPurpose]);
        let cases: [Case<'_>; 8] = [
            (&[], &[]),
            (&[(COUNT, "0"), (PROCESS, "42")], &[]),
            (&[(COUNT, "1"), (PROCESS, "42")], &[Stream]),
            (&[(COUNT, "1"), (NAMES, UNNAMED)], &[Stream]),
            (&[(COUNT, "1"), (NAMES, "admin")], &[Admin]),
            (
                &[(COUNT, "2"), (PROCESS, "42"), (NAMES, "admin:stream")],
                &[Admin, Stream],
            ),
            // Meant for another process.
            (&[(COUNT, "1"), (PROCESS, "41")], &[]),
            (&[(COUNT, "many"), (PROCESS, "41")], &[]),
        ];
        for (variables, expected) in cases {
            assert_eq!(passed(variables).as_deref(), Ok(expected), "{variables:?}");
        }
    }

    #[test]
    fn what_is_passed_for_nothing_that_is_known_is_refused() {
        for (variables, reason) in [
            (&[(COUNT, "many")][..], "\"many\""),
            (&[(COUNT, "-1")], "\"-1\""),
            (&[(COUNT, "2000000000")], "\"2000000000\""),
            (&[(COUNT, "1"), (NAMES, "http")], "\"http\""),
            // systemd's default name, which doesn't tell the purpose.
            (
                &[(COUNT, "1"), (NAMES, "tidings.socket")],
                "FileDescriptorName=stream",
            ),
            (&[(COUNT, "2"), (NAMES, "stream")], "named \"\""),
            (&[(COUNT, "2"), (NAMES, "unknown:unknown")], "\"unknown\""),
        ] {
            let error = passed(variables).expect_err(reason);
            assert!(error.contains(reason), "{variables:?}: {error}");
        }
    }
}
