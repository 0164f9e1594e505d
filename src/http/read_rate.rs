//! Limits the rate at which a client may send.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

/// The idle time after which a client may send a full burst of 256 KiB. That is enough
/// for a proxy that opens all streams of a connection, with two kilobytes of headers
/// each.
const BURST: Duration = Duration::from_secs(4);

/// The sustained rate, in bytes per second. Besides its requests, a well-behaved client
/// sends only window updates, about a hundredth of what it reads. At this rate, a flood
/// of the smallest frames costs a few hundredths of a CPU core.
const A_SECOND: u32 = 64 << 10;

/// The most bytes per read. A throttled client is read again when it may send this many.
const PIECE: usize = 4 << 10;

/// Reads without a pause before yielding to other tasks of the thread.
const PIECES: u32 = 4;

/// A connection that is read no faster than the rate limit: a client that sends more has
/// to wait.
pub struct Paced<I> {
    io: I,
    pace: ReadPace,
    /// Set while the client is throttled.
    wait: Option<Pin<Box<Sleep>>>,
    /// Reads without a pause.
    in_a_row: u32,
}

impl<I> Paced<I> {
    pub fn new(io: I) -> Self {
        Self {
            io,
            pace: ReadPace(Instant::now()),
            wait: None,
            in_a_row: 0,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let paced = self.get_mut();
        if paced.in_a_row == PIECES {
            paced.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        while let Some(free) = paced.pace.free_at(Instant::now()) {
            let wait = || Box::pin(sleep_until(free));
            let poll = paced.wait.get_or_insert_with(wait).as_mut().poll(cx);
            paced.in_a_row = 0;
            ready!(poll);
            paced.wait = None;
        }
        let most = bytes.remaining().min(PIECE);
        let mut piece = ReadBuf::new(bytes.initialize_unfilled_to(most));
        let outcome = Pin::new(&mut paced.io).poll_read(cx, &mut piece);
        let count = piece.filled().len();
        bytes.advance(count);
        paced.pace.count(count, Instant::now());
        match outcome {
            Poll::Ready(_) => paced.in_a_row += 1,
            Poll::Pending => paced.in_a_row = 0,
        }
        outcome
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

/// When the client may send a full burst again. Each byte that it sends moves this by the
/// time that the rate allows for one (the generic cell rate algorithm).
struct ReadPace(Instant);

impl ReadPace {
    /// When a piece may be read; `None` if it may be read now.
    fn free_at(&self, now: Instant) -> Option<Instant> {
        let free = self.0.checked_sub(BURST - span(PIECE))?;
        (free > now).then_some(free)
    }

    fn count(&mut self, bytes: usize, now: Instant) {
        self.0 = self.0.max(now) + span(bytes);
    }
}

/// The time in which the rate allows this many bytes.
fn span(bytes: usize) -> Duration {
    Duration::from_secs(1).mul_f64(bytes as f64 / f64::from(A_SECOND))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    /// Covers the resolution of timers and the size of a piece.
    const CLOSE: Duration = Duration::from_millis(100);

    async fn time_to_read(paced: &mut Paced<impl AsyncRead + Unpin>, bytes: usize) -> Duration {
        let start = Instant::now();
        let mut read = vec![0; bytes];
        paced.read_exact(&mut read).await.expect("bytes");
        start.elapsed()
    }

    // The paused clock doesn't advance while there is work to do.
    #[tokio::test(start_paused = true)]
    async fn a_client_may_send_a_burst_and_then_at_its_pace() {
        let (mut client, server) = duplex(1 << 16);
        tokio::spawn(async move { while client.write_all(&[0; 1 << 12]).await.is_ok() {} });
        let mut paced = Paced::new(server);
        let burst = 4 * A_SECOND as usize;
        assert!(time_to_read(&mut paced, burst).await < CLOSE);
        for seconds in [1, 10] {
            let took = time_to_read(&mut paced, seconds * A_SECOND as usize).await;
            let expected = Duration::from_secs(seconds as u64);
            assert!(took.abs_diff(expected) < CLOSE, "{took:?} for {seconds}");
        }
        // Half the idle time allows half the burst.
        tokio::time::sleep(BURST / 2).await;
        assert!(time_to_read(&mut paced, burst / 2).await < CLOSE);
        let took = time_to_read(&mut paced, burst / 2).await;
        assert!(took.abs_diff(BURST / 2) < CLOSE, "{took:?}");
    }
}
