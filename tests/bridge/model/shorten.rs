//! Shortens a failing program so that it can be read.

use std::time::{Duration, Instant};

use super::{play, program::Step, world::World};

/// No attempt begins after this.
const LIMIT: Duration = Duration::from_secs(60);

/// Many failures depend on a race: a program counts as failing if one of this many attempts fails.
const ATTEMPTS: usize = 2;

/// How long a shortened program waits for a row. Many programs are tried, and each one that fails
/// because of a missing row takes all of this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Removes smaller and smaller parts as long as the rest still fails. Returns the failure and the
/// remaining steps.
pub async fn shorten(world: &mut World, reason: &str, steps: &[Step]) -> (String, Vec<Step>) {
    let began = Instant::now();
    world.patience = PATIENCE;
    let (mut reason, mut steps) = (reason.to_owned(), steps.to_vec());
    let mut part = steps.len().div_ceil(2);
    loop {
        let length = steps.len();
        let mut start = 0;
        while start < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(start..steps.len().min(start + part));
            if began.elapsed() > LIMIT {
                return (reason, steps);
            }
            match failure(world, &fewer).await {
                Some(other) => (reason, steps) = (other, fewer),
                None => start += part,
            }
        }
        if part == 1 && steps.len() == length {
            return (reason, steps);
        }
        part = part.div_ceil(2);
    }
}

async fn failure(world: &mut World, steps: &[Step]) -> Option<String> {
    for _ in 0..ATTEMPTS {
        if let Err(reason) = play(world, steps).await {
            return Some(reason);
        }
    }
    None
}
