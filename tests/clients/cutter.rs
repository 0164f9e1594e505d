//! A proxy for one stream that cuts its connections at random bytes.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use rand::{RngExt, rngs::StdRng};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    control::{Answer, Request, read_request},
    wire::{Aim, Hurry, Wire},
};

/// What happens to a stream besides cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Two bridges in turn.
    TwoBridges,
    /// One bridge, so that its restarts leave a time without any.
    OneBridge,
    /// Another tab of the same user is always connected, so rows are marked as sent
    /// while this one is disconnected.
    SecondTab,
    /// Each third connection is deferred by a bridge that is full.
    Deferrals,
    /// The token expires while the stream is open, which `tidings.expiring` announces.
    Expiring,
    /// The token expires while the client is disconnected, and the next request gets a
    /// 401.
    ExpiredAway,
}

impl Trouble {
    /// The trouble of the stream with this number.
    pub fn of(stream: usize) -> Self {
        match stream % 10 {
            0 | 1 | 9 => Self::TwoBridges,
            2 | 3 => Self::OneBridge,
            4 | 5 => Self::SecondTab,
            6 => Self::Deferrals,
            7 => Self::Expiring,
            _ => Self::ExpiredAway,
        }
    }
}

/// The addresses of the bridges of a run, which change when they are restarted.
#[derive(Debug)]
pub struct Bridges {
    pub serving: Vec<Mutex<SocketAddr>>,
    /// A bridge that is full: it defers every client.
    pub full: SocketAddr,
}

/// Records about a stream's connections.
#[derive(Debug, Default)]
pub struct Record {
    pub requests: usize,
    pub cuts: usize,
    /// On how many connections each row was forwarded completely.
    pub forwarded: HashMap<i64, usize>,
    /// Rows that a bridge sent twice on one connection.
    pub repeats: Vec<i64>,
    /// Rows that were cut between the line of their id and the empty line.
    pub unended: Vec<i64>,
    pub refusals: HashMap<u16, usize>,
    pub deferrals: usize,
    /// The number of open connections.
    pub open: usize,
    /// A log for finding the reason of a loss.
    pub log: Vec<String>,
}

#[derive(Debug)]
struct Shared {
    trouble: Trouble,
    bridges: Arc<Bridges>,
    /// The page that opens the stream, if the client runs in one.
    page: Option<String>,
    random: Mutex<StdRng>,
    wanted: usize,
    /// Until then the network is unavailable, once the first connection was cut.
    away_until: Option<Arc<OnceLock<Instant>>>,
    record: Mutex<Record>,
}

/// A TCP port of one stream. Dropping it closes all connections through it.
#[derive(Debug)]
pub struct Cutter {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: AbortOnDropHandle<()>,
}

impl Cutter {
    /// Cuts `wanted` connections; later ones are not cut.
    pub async fn start(
        trouble: Trouble,
        bridges: Arc<Bridges>,
        page: Option<String>,
        random: StdRng,
        wanted: usize,
        away_until: Option<Arc<OnceLock<Instant>>>,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            trouble,
            bridges,
            page,
            random: Mutex::new(random),
            wanted,
            away_until,
            record: Mutex::default(),
        });
        let serving = Arc::clone(&shared);
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                connections.spawn(async move { shared.connection(client).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Self {
            address,
            shared,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn record(&self) -> MutexGuard<'_, Record> {
        self.shared.record()
    }

    pub fn is_done(&self) -> bool {
        self.record().cuts >= self.shared.wanted
    }
}

#[derive(Clone, Copy, Debug)]
struct Cut {
    aim: Aim,
    is_reset: bool,
}

/// How a connection ended.
enum End {
    Closed,
    Reset,
}

impl Shared {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("a record")
    }

    fn random(&self) -> MutexGuard<'_, StdRng> {
        self.random.lock().expect("a generator")
    }

    fn note(&self, line: String) {
        self.record().log.push(line);
    }

    /// The next cut, if more are wanted.
    fn next_cut(&self) -> Option<Cut> {
        let (cuts, wanted) = (self.record().cuts, self.wanted);
        if cuts >= wanted {
            return None;
        }
        let mut random = self.random();
        // A client that has no id yet is cut in its first bytes: data that is in the
        // socket buffers then is lost unless the bridge sends it again.
        let kind = if cuts < 2 {
            random.random_range(0..4)
        } else {
            random.random_range(0..10)
        };
        let skip = random.random_range(0..12);
        let aim = match kind {
            // At once; otherwise the expiry of its token would be announced first.
            _ if cuts == 0 && self.trouble == Trouble::ExpiredAway => {
                Aim::Body(random.random_range(0..200))
            }
            0 => Aim::Head(random.random_range(0..400)),
            1 | 2 => Aim::Body(random.random_range(600..7_000)),
            3 | 4 => Aim::Body(random.random_range(0..800)),
            5 | 6 => Aim::Id {
                skip,
                bytes: random.random_range(3..20),
            },
            7 => Aim::Size {
                skip,
                digits: random.random_range(1..4),
            },
            8 => Aim::Line { skip },
            _ => Aim::Body(random.random_range(0..60_000)),
        };
        Some(Cut {
            aim,
            is_reset: random.random(),
        })
    }

    /// The bridge that the next connection is forwarded to.
    fn bridge(&self, requests: usize) -> SocketAddr {
        let mut random = self.random();
        let serving = &self.bridges.serving;
        if self.trouble == Trouble::Deferrals && requests % 3 == 2 {
            return self.bridges.full;
        }
        let index = match self.trouble {
            Trouble::OneBridge => 0,
            _ => random.random_range(0..serving.len()),
        };
        *serving[index].lock().expect("an address")
    }

    async fn connection(&self, client: TcpStream) {
        let _ = client.set_nodelay(true);
        let mut client = client;
        let mut wire = Wire::new();
        self.record().open += 1;
        let end = self.relay(&mut client, &mut wire).await;
        match &end {
            Ok(_) => self.note("closed".to_owned()),
            Err(error) => self.note(format!("broke: {error}")),
        }
        let mut record = self.record();
        record.open -= 1;
        for &row in &wire.rows {
            *record.forwarded.entry(row).or_default() += 1;
        }
        record.repeats.extend(&wire.repeats);
        record.unended.extend(wire.unended());
        for &status in &wire.refusals {
            *record.refusals.entry(status).or_default() += 1;
        }
        record.deferrals += wire.deferrals;
        if matches!(end, Ok(End::Reset) | Err(_)) {
            let _ = client.set_zero_linger();
        }
    }

    /// Forwards requests to a bridge and responses back. A client may reuse the
    /// connection for its next request.
    async fn relay(&self, client: &mut TcpStream, wire: &mut Wire) -> io::Result<End> {
        let mut request = read_request(client).await?;
        if let Some(page) = self
            .page
            .as_ref()
            .filter(|_| request.path.starts_with("/page"))
        {
            Answer::html(page).write(client).await?;
            return Ok(End::Closed);
        }
        let requests = {
            let mut record = self.record();
            record.requests += 1;
            record.requests
        };
        if requests > 1
            && let Some(until) = self.away_until.as_ref().and_then(|until| until.get())
        {
            sleep_until(*until).await;
        }
        let bridge = self.bridge(requests);
        let mut server = TcpStream::connect(bridge).await?;
        server.set_nodelay(true)?;
        let mut hurry = Hurry::default();
        let mut bytes = vec![0; 16 << 10];
        loop {
            let cut = self
                .next_cut()
                .filter(|_| request.path.starts_with("/stream"));
            let rows = wire.rows.len();
            self.note(format!(
                "{} from {:?} to {bridge}, {cut:?}",
                request.method,
                request.last_event_id()
            ));
            server.write_all(&request.head).await?;
            request = loop {
                tokio::select! {
                    next = read_request(client) => match next {
                        Ok(next) => break next,
                        // The client has disconnected: the bridge must notice that too.
                        Err(_) => return Ok(End::Closed),
                    },
                    count = server.read(&mut bytes) => {
                        let count = count?;
                        if count == 0 {
                            self.note(format!("ended after {} rows", wire.rows.len() - rows));
                            return Ok(End::Closed);
                        }
                        let out = hurry.pass(&bytes[..count]);
                        let end = wire.read(&out, cut.map(|cut| cut.aim));
                        client.write_all(&out[..end.unwrap_or(out.len())]).await?;
                        if let (Some(_), Some(cut)) = (end, cut) {
                            self.record().cuts += 1;
                            self.note(format!("cut after rows {:?}", &wire.rows[rows..]));
                            return Ok(if cut.is_reset { End::Reset } else { End::Closed });
                        }
                    }
                }
            };
            wire.restart();
            self.record().requests += 1;
        }
    }
}

impl Request {
    /// The last event id that the client sends.
    fn last_event_id(&self) -> Option<String> {
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("last-event-id")
                .then(|| value.trim().to_owned())
        };
        let text = String::from_utf8_lossy(&self.head);
        let in_query = self.path.split(['?', '&']).find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            matches!(name, "last_event_id" | "lastEventId").then(|| value.to_owned())
        });
        text.lines().find_map(header).or(in_query)
    }
}
