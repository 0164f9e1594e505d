//! Waits shorter than a millisecond, the resolution of tokio's timer.

use std::time::Duration;

#[cfg(target_os = "linux")]
use self::kernel::Timer;

/// A kernel timer; tokio's timer where there is none.
#[derive(Debug)]
pub struct Pause {
    #[cfg(target_os = "linux")]
    timer: Option<Timer>,
}

impl Pause {
    /// Call it on the runtime that will wait.
    pub fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            timer: Timer::new().ok(),
        }
    }

    pub async fn wait(&self, time: Duration) {
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.timer
            && timer.wait(time).await.is_ok()
        {
            return;
        }
        tokio::time::sleep(time).await;
    }
}

#[cfg(target_os = "linux")]
mod kernel {
    use std::{fs::File, io, os::fd::AsFd, time::Duration};

    use nix::sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    };
    use tokio::net::unix::pipe::Receiver;

    /// A timer file descriptor; see `timerfd_create(2)`.
    #[derive(Debug)]
    pub struct Timer {
        timer: TimerFd,
        /// A timer is read like a pipe, and tokio can read pipes.
        rings: Receiver,
    }

    impl Timer {
        pub fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            let rings = File::from(timer.as_fd().try_clone_to_owned()?);
            let rings = Receiver::from_file_unchecked(rings)?;
            Ok(Self { timer, rings })
        }

        pub async fn wait(&self, time: Duration) -> io::Result<()> {
            // A value of zero would disarm the timer.
            let time = time.max(Duration::from_nanos(1));
            let once = Expiration::OneShot(TimeSpec::from_duration(time));
            self.timer.set(once, TimerSetTimeFlags::empty())?;
            loop {
                self.rings.readable().await?;
                match self.rings.try_read(&mut [0; size_of::<u64>()]) {
                    // Readiness left over from a wait that was cancelled.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    outcome => return outcome.map(drop),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_pause_lasts_at_least_its_time_and_can_be_given_up() {
        let pause = Pause::new();
        let time = Duration::from_micros(300);
        for _ in 0..20 {
            let begun = Instant::now();
            pause.wait(time).await;
            assert!(begun.elapsed() >= time);
            // A cancelled wait doesn't end the next one early.
            tokio::select! {
                biased;
                () = pause.wait(Duration::from_micros(1)) => {}
                () = std::future::ready(()) => {}
            }
        }
    }
}
