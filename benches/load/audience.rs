//! The readers: any number of streams, on one thread, over raw sockets.
//!
//! Each behaves like a browser's `EventSource`: when its stream ends, it reconnects with
//! its last id. The rows that each should receive are known, so missing, repeated and
//! misdirected ones are counted exactly.

use std::{
    io::{self, ErrorKind, Write, stderr},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    net::{TcpSocket, TcpStream},
    runtime::{Builder, Handle},
    sync::{Semaphore, oneshot},
    task::JoinHandle,
    time::sleep,
};

use crate::{
    Result,
    clock::Moment,
    event_stream::EventStream,
    report::Counts,
    subject::{Live, Subject, Users, row_of},
};

/// Streams that are being opened at any one time: more would wait in the server's accept
/// queue and, where that is short, retry a second later.
const OPENING: usize = 256;
/// Streams per local address: an address has 28,000 ports, and those of closed
/// connections stay taken for a minute.
const PER_ADDRESS: usize = 500;
/// After that many, the first address is used again.
const ADDRESSES: usize = 128;
/// A browser waits some seconds; a short pause shows breaks sooner.
const COMES_BACK_AFTER: Duration = Duration::from_millis(100);
/// One buffer serves all streams, since nothing stays in it.
const READ_BYTES: usize = 64 << 10;
/// How often waiting functions poll. The measured times don't depend on it: they are
/// taken when something happens.
const ASKS_AGAIN: Duration = Duration::from_millis(2);
/// Limit for opening all streams.
const OPENS_WITHIN: Duration = Duration::from_secs(60);

/// One event on one stream.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    pub row: u64,
    /// When it was read from the socket.
    pub at: Moment,
}

/// Whose streams they are.
#[derive(Clone, Copy, Debug)]
enum Seats {
    /// The users', in turn.
    Users,
    /// Each a different subscriber's, of one of the topics in turn.
    Subscribers,
}

/// State of one stream.
struct Seat {
    /// Who connects.
    name: String,
    /// The user or topic whose rows it receives.
    user: u64,
    stream: EventStream,
    is_live: bool,
    /// A bit for each row of its user, in order.
    seen: Vec<u64>,
}

impl Seat {
    /// Returns whether this row was seen for the first time.
    fn see(&mut self, number: u64) -> bool {
        let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        let is_first = self.seen[word] & bit == 0;
        self.seen[word] |= bit;
        is_first
    }

    /// How many of the first `numbers` rows of its user it has seen.
    fn seen_of(&self, numbers: u64) -> u64 {
        let (words, bits) = ((numbers / 64) as usize, numbers % 64);
        let whole = self.seen.iter().take(words).map(|word| word.count_ones());
        let last = self.seen.get(words).map(|word| word & ((1 << bits) - 1));
        whole.map(u64::from).sum::<u64>() + last.map_or(0, |word| word.count_ones().into())
    }
}

/// State of all streams.
struct Tally {
    seats: Vec<Seat>,
    buffer: Vec<u8>,
    arrivals: Vec<Arrival>,
    live: usize,
    live_since: Moment,
    first_seen: u64,
    received: u64,
    repeated: u64,
    wrong_user: u64,
    /// Streams that ended unexpectedly.
    broken: u64,
    why_broken: Option<io::Error>,
}

impl Tally {
    /// Reads what has arrived for a stream; returns true at its end.
    fn read(
        &mut self,
        number: usize,
        users: Users,
        live: Live,
        socket: &TcpStream,
    ) -> io::Result<bool> {
        let size = match socket.try_read(&mut self.buffer) {
            Ok(0) => return Ok(true),
            Ok(size) => size,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let at = Moment::now();
        let seat = &mut self.seats[number];
        let mut stream = std::mem::take(&mut seat.stream);
        let mut is_live = seat.is_live;
        let outcome = stream.read(&self.buffer[..size], |event| {
            if !matches!(event.name, b"" | b"message") {
                is_live |= matches!(live, Live::Event(name) if name.as_bytes() == event.name);
                return;
            }
            self.received += 1;
            match row_of(event.data) {
                Some(row) if users.of(row) == seat.user => {
                    self.arrivals.push(Arrival { row, at });
                    match seat.see(row / users.count) {
                        true => self.first_seen += 1,
                        false => self.repeated += 1,
                    }
                }
                _ => self.wrong_user += 1,
            }
        });
        is_live |= live == Live::Head && stream.has_begun();
        if is_live && !seat.is_live {
            self.live += 1;
            self.live_since = at;
        }
        seat.is_live = is_live;
        seat.stream = stream;
        outcome.map_err(io::Error::other)?;
        Ok(false)
    }

    /// Closes the stream, and resets the state for its next response.
    fn leave(&mut self, number: usize) {
        let seat = &mut self.seats[number];
        self.live -= usize::from(seat.is_live);
        seat.is_live = false;
        seat.stream.restart();
    }
}

struct Shared {
    subject: Subject,
    users: Users,
    tally: Mutex<Tally>,
    opening: Semaphore,
}

impl Shared {
    /// Runs a reader forever.
    async fn attend(self: Arc<Self>, number: usize) {
        loop {
            let ended = self.listen(number).await;
            {
                let mut tally = self.tally.lock();
                tally.leave(number);
                tally.broken += 1;
                if let Err(error) = ended {
                    tally.why_broken = Some(error);
                }
            }
            sleep(COMES_BACK_AFTER).await;
        }
    }

    /// Reads one stream until its end.
    async fn listen(&self, number: usize) -> io::Result<()> {
        let mut opening = self.opening.acquire().await.ok();
        let request = {
            let tally = self.tally.lock();
            let seat = &tally.seats[number];
            (self.subject.request)(&seat.name, seat.stream.last_id())
        };
        let socket = connect(self.subject.address, number).await?;
        send(&socket, request.as_bytes()).await?;
        loop {
            socket.readable().await?;
            let mut tally = self.tally.lock();
            if tally.read(number, self.users, self.subject.live, &socket)? {
                return Ok(());
            }
            if tally.seats[number].stream.has_begun() {
                drop(opening.take());
            }
        }
    }
}

async fn connect(to: SocketAddr, number: usize) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    // Not every system has more than the first of these addresses.
    if let Some(host) = u8::try_from(number / PER_ADDRESS % ADDRESSES)
        .ok()
        .filter(|&host| host > 0)
    {
        let from = Ipv4Addr::new(127, 0, 0, host + 1);
        socket.bind(SocketAddr::new(IpAddr::V4(from), 0))?;
    }
    socket.connect(to).await
}

async fn send(socket: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        socket.writable().await?;
        match socket.try_write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Streams that are read by a thread of their own. Dropping it closes them all.
pub struct Audience {
    shared: Arc<Shared>,
    readers: Vec<JoinHandle<()>>,
    runtime: Handle,
    /// The thread ends when this is dropped.
    _over: oneshot::Sender<()>,
}

impl Audience {
    /// Opens `streams` streams, assigned to the users in turn, and returns when all of
    /// them are live.
    pub async fn open(subject: Subject, users: Users, streams: usize) -> Result<Self> {
        Self::seated(subject, users, streams, Seats::Users).await
    }

    /// Opens a stream for each of `subscribers` subscribers of the topics, of which each has
    /// one in turn. The rows are for the topics.
    pub async fn subscribed(subject: Subject, topics: Users, subscribers: usize) -> Result<Self> {
        Self::seated(subject, topics, subscribers, Seats::Subscribers).await
    }

    async fn seated(subject: Subject, users: Users, streams: usize, seats: Seats) -> Result<Self> {
        let seat = |number| Seat {
            name: match seats {
                Seats::Users => users.name(users.of(number)),
                Seats::Subscribers => users.subscriber(number),
            },
            user: users.of(number),
            stream: EventStream::default(),
            is_live: false,
            seen: Vec::new(),
        };
        let shared = Arc::new(Shared {
            subject,
            users,
            tally: Mutex::new(Tally {
                seats: (0..streams as u64).map(seat).collect(),
                buffer: vec![0; READ_BYTES],
                arrivals: Vec::new(),
                live: 0,
                live_since: Moment::now(),
                first_seen: 0,
                received: 0,
                repeated: 0,
                wrong_user: 0,
                broken: 0,
                why_broken: None,
            }),
            opening: Semaphore::new(OPENING),
        });
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (over, ending) = oneshot::channel::<()>();
        thread::Builder::new()
            .name("audience".to_owned())
            .spawn(move || runtime.block_on(ending))?;
        let mut audience = Self {
            shared,
            readers: Vec::new(),
            runtime: handle,
            _over: over,
        };
        audience.come();
        audience.until_live(OPENS_WITHIN).await?;
        Ok(audience)
    }

    /// Closes all streams at once, and returns when they are closed.
    pub async fn leave(&mut self) {
        for reader in &self.readers {
            reader.abort();
        }
        for reader in self.readers.drain(..) {
            // It was aborted, or it returned nothing.
            let _ = reader.await;
        }
        let mut tally = self.shared.tally.lock();
        for number in 0..tally.seats.len() {
            tally.leave(number);
        }
    }

    /// Opens all streams at once, each with its last id, if it has one.
    pub fn come(&mut self) {
        for number in 0..self.shared.tally.lock().seats.len() {
            let reader = Arc::clone(&self.shared).attend(number);
            self.readers.push(self.runtime.spawn(reader));
        }
    }

    /// Waits until all are live at the same time, and returns since when.
    pub async fn until_live(&self, limit: Duration) -> Result<Moment> {
        let begin = Moment::now();
        loop {
            {
                let tally = self.shared.tally.lock();
                let (live, all) = (tally.live, tally.seats.len());
                if live == all {
                    return Ok(tally.live_since);
                }
                if Moment::now().since(begin) > limit {
                    let why = &tally.why_broken;
                    return Err(format!("{live} of {all} streams are live: {why:?}").into());
                }
            }
            sleep(ASKS_AGAIN).await;
        }
    }

    /// Waits until everything that is due of the first `rows` rows has arrived, or for as
    /// long as `limit`. What hasn't arrived by then counts as missing.
    pub async fn until_arrived(&self, rows: u64, limit: Duration) -> Counts {
        let begin = Moment::now();
        let expected = self.expected(rows);
        while self.shared.tally.lock().first_seen < expected && Moment::now().since(begin) < limit {
            sleep(ASKS_AGAIN).await;
        }
        self.counts(rows)
    }

    /// The counts for the first `rows` rows so far.
    pub fn counts(&self, rows: u64) -> Counts {
        let (users, tally) = (self.shared.users, self.shared.tally.lock());
        let seen = |seat: &Seat| seat.seen_of(users.share(seat.user, rows));
        let expected = self.expected_by(&tally, rows);
        Counts {
            expected,
            received: tally.received,
            missing: expected - tally.seats.iter().map(seen).sum::<u64>(),
            repeated: tally.repeated,
            wrong_user: tally.wrong_user,
        }
    }

    fn expected(&self, rows: u64) -> u64 {
        self.expected_by(&self.shared.tally.lock(), rows)
    }

    fn expected_by(&self, tally: &Tally, rows: u64) -> u64 {
        let users = self.shared.users;
        let share = |seat: &Seat| users.share(seat.user, rows);
        tally.seats.iter().map(share).sum()
    }

    /// All arrivals since the last call.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut self.shared.tally.lock().arrivals)
    }
}

impl Drop for Audience {
    /// Reports broken streams: they were reopened, which cost time, so the reader of the
    /// figures should know.
    fn drop(&mut self) {
        let tally = self.shared.tally.lock();
        if tally.broken > 0 {
            let (broken, why) = (tally.broken, &tally.why_broken);
            let _ = writeln!(
                stderr(),
                "{broken} streams were disconnected and reconnected: {why:?}"
            );
        }
    }
}
