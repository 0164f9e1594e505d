//! Writes the log to standard error, without ever waiting for the reader.
//!
//! A pipe whose reader hangs takes 64 KiB and then blocks the writer, and every task of
//! the bridge logs. So lines are queued and written by a dedicated thread. A line for
//! which the queue has no room is dropped and counted.
//!
//! `tracing-appender` does the same, but its guard reports a reader that hangs with
//! `eprintln!`, where the process would then hang; and it limits the number of lines,
//! which doesn't bound memory.

use std::{
    io::{self, Write, stderr},
    mem,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use crate::runtime::escape;

/// Size limit of the queue: some thousand lines, which is a burst of some milliseconds at
/// the level `trace`, and minutes of `info`. As many bytes again may be in the thread
/// that is writing.
const QUEUE_BYTES: usize = 1 << 20;

/// Memory that an empty queue keeps.
const KEPT_BYTES: usize = 16 << 10;

/// Writes whole lines. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Output(Arc<LogState>);

/// The same for lines of JSON, whose own escapes don't cover everything that a terminal
/// would execute.
#[derive(Clone, Debug)]
pub struct JsonOutput(Output);

#[derive(Debug, Default)]
struct LogState {
    queue: Mutex<LogQueue>,
    /// Signals that the queue is not empty.
    filled: Condvar,
    /// Signals that the queue is empty and nothing is being written.
    emptied: Condvar,
    dropped: AtomicU64,
}

#[derive(Debug, Default)]
struct LogQueue {
    bytes: Vec<u8>,
    lines: u64,
    is_writing: bool,
}

impl Output {
    /// Starts the thread that writes to standard error.
    ///
    /// # Errors
    ///
    /// If the system refuses a thread.
    pub fn start() -> io::Result<Self> {
        Self::start_with(stderr())
    }

    /// A writer for lines of JSON.
    pub fn as_json(&self) -> JsonOutput {
        JsonOutput(self.clone())
    }

    fn start_with(target: impl Write + Send + 'static) -> io::Result<Self> {
        let output = Self(Arc::default());
        let shared = Arc::clone(&output.0);
        let thread = thread::Builder::new().name("tidings-log".to_owned());
        thread.spawn(move || shared.write_for_ever(target))?;
        Ok(output)
    }

    /// Queues a line, or drops it if the queue is full. Never waits for the reader.
    pub fn line(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.bytes.len() + line.len() > QUEUE_BYTES {
            self.0.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        queue.bytes.extend_from_slice(line);
        queue.lines += 1;
        self.0.filled.notify_one();
    }

    /// The number of lines that were dropped or could not be written.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }

    /// Whether there is room for more than a burst, which means that the reader is
    /// reading again.
    pub fn has_room(&self) -> bool {
        self.0.queue.lock().bytes.len() < QUEUE_BYTES / 2
    }

    /// Waits until all lines are written, for at most `limit`.
    pub fn flush(&self, limit: Duration) {
        let give_up = Instant::now() + limit;
        let mut queue = self.0.queue.lock();
        let is_busy = |queue: &mut LogQueue| queue.is_writing || !queue.bytes.is_empty();
        self.0
            .emptied
            .wait_while_until(&mut queue, is_busy, give_up);
    }
}

impl LogState {
    fn write_for_ever(&self, mut target: impl Write) {
        let mut queue = self.queue.lock();
        loop {
            while queue.bytes.is_empty() {
                queue.is_writing = false;
                self.emptied.notify_all();
                self.filled.wait(&mut queue);
            }
            let (mut bytes, lines) = (mem::take(&mut queue.bytes), mem::take(&mut queue.lines));
            queue.is_writing = true;
            drop(queue);
            // The pipe is closed: only the metrics can report this.
            if target
                .write_all(&bytes)
                .and_then(|()| target.flush())
                .is_err()
            {
                self.dropped.fetch_add(lines, Ordering::Relaxed);
            }
            bytes.clear();
            bytes.shrink_to(KEPT_BYTES);
            queue = self.queue.lock();
            if queue.bytes.is_empty() {
                queue.bytes = bytes;
            }
        }
    }
}

/// Each write is one whole line, as the subscriber writes them.
impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.line(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for JsonOutput {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match str::from_utf8(line) {
            Ok(text) => self.0.line(escape::json(text).as_bytes()),
            Err(_) => self.0.line(line),
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{self, Receiver, Sender};

    use super::*;

    /// Accepts bytes only while it is being read.
    struct Pipe {
        begun: Sender<()>,
        read: Receiver<()>,
        taken: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Pipe {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.begun.send(());
            let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            self.read.recv().map_err(closed)?;
            self.taken.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const SHORT: Duration = Duration::from_millis(50);
    const PATIENCE: Duration = Duration::from_secs(10);

    #[test]
    fn a_reader_that_hangs_costs_lines_and_no_time() {
        let ((begin, begun), (reads, read)) = (mpsc::channel(), mpsc::channel());
        let taken = Arc::default();
        let pipe = Pipe {
            begun: begin,
            read,
            taken: Arc::clone(&taken),
        };
        let output = Output::start_with(pipe).expect("a thread");
        output.line(b"first\n");
        begun.recv_timeout(PATIENCE).expect("it is written");

        // From here on the thread hangs.
        let (line, start) = (vec![b'x'; QUEUE_BYTES / 16], Instant::now());
        for _ in 0..16 {
            assert_eq!(output.dropped(), 0);
            output.line(&line);
        }
        assert!(!output.has_room());
        output.line(b"one too many\n");
        assert_eq!(output.dropped(), 1);
        output.flush(SHORT);
        let took = start.elapsed();
        assert!(took < PATIENCE && took >= SHORT, "{took:?}");

        for _ in 0..2 {
            reads.send(()).expect("a thread");
        }
        output.flush(PATIENCE);
        assert!(output.has_room());
        assert_eq!(taken.lock().len(), 6 + QUEUE_BYTES);

        // Closed: lines that can't be written count as dropped.
        drop(reads);
        output.line(b"for nobody\n");
        output.flush(PATIENCE);
        assert_eq!(output.dropped(), 2);
    }
}
