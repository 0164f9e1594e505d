//! Random interleavings against an oracle that knows only the order of commits, and the
//! same with each rule broken.

mod world;

use self::world::{Broken, Outcome, World};

/// A program is a seed and a number of steps.
const STEPS: usize = 600;
const SEEDS: std::ops::Range<u64> = 0..400;

fn run(broken: Option<Broken>, seeds: std::ops::Range<u64>) -> Outcome {
    let mut total = Outcome::default();
    for seed in seeds {
        let mut world = World::new(seed, broken);
        for _ in 0..STEPS {
            world.step();
        }
        total.add(seed, world.settle());
    }
    total
}

#[test]
fn each_row_that_is_owed_is_written_once_and_no_other() {
    let outcome = run(None, SEEDS);
    assert!(outcome.written > 20_000, "{outcome:?}");
    assert!(outcome.late > 500, "{outcome:?}");
    assert!(outcome.is_exact(), "{outcome:?}");
}

/// A rule that can be broken without a failure isn't tested.
#[test]
fn each_rule_is_needed() {
    let kept: Vec<_> = Broken::ALL
        .into_iter()
        .filter(|&broken| run(Some(broken), SEEDS).is_exact())
        .collect();
    assert!(kept.is_empty(), "nothing fails without {kept:?}");
}
