use super::*;

const HERE: Incarnation = Incarnation {
    timeline: 1,
    since: crate::domain::history::Since(7),
};

/// Adds rows that were written at the times of their ids. Returns how many were lost.
fn add(queue: &mut MarkQueue, rows: impl IntoIterator<Item = i64>) -> u64 {
    let rows = rows.into_iter();
    rows.map(|row| queue.add(HERE, row, Moment(row))).sum()
}

/// A database in which some rows can't be marked.
struct World {
    queue: MarkQueue,
    now: Instant,
    locked: BTreeSet<i64>,
    failing: BTreeSet<i64>,
    slow: BTreeSet<i64>,
    is_away: bool,
    marked: BTreeSet<i64>,
    statements: usize,
    failures: usize,
}

impl World {
    fn new(rows: impl IntoIterator<Item = i64>) -> Self {
        let mut queue = MarkQueue::default();
        assert_eq!(add(&mut queue, rows), 0);
        Self {
            queue,
            now: Instant::now(),
            locked: BTreeSet::new(),
            failing: BTreeSet::new(),
            slow: BTreeSet::new(),
            is_away: false,
            marked: BTreeSet::new(),
            statements: 0,
            failures: 0,
        }
    }

    /// Runs one statement, if the lane has something to do.
    fn step(&mut self, lane: Lane) -> bool {
        let Some(batch) = self.queue.take(lane, self.now) else {
            return false;
        };
        self.statements += 1;
        let at = |row: &i64| Moment(*row);
        assert!(batch.rows.iter().map(at).eq(batch.written.iter().copied()));
        let has = |rows: &BTreeSet<i64>| batch.rows.iter().any(|row| rows.contains(row));
        let outcome = if self.is_away {
            MarkOutcome::DatabaseFailed("read-only".to_owned())
        } else if has(&self.slow) {
            MarkOutcome::TimedOut("no answer".to_owned())
        } else if has(&self.failing) {
            self.failures += 1;
            MarkOutcome::RowFailed("no".to_owned())
        } else {
            let rows: BTreeSet<i64> = batch.rows.iter().copied().collect();
            self.marked.extend(rows.difference(&self.locked));
            MarkOutcome::Marked {
                locked: rows.intersection(&self.locked).copied().collect(),
            }
        };
        assert_eq!(self.queue.conclude(batch, outcome, self.now), 0);
        true
    }

    /// Does everything that can be done now.
    fn run(&mut self) {
        while self.step(Lane::Fresh) || self.step(Lane::Held) {}
    }

    /// Does everything that can be done in this time.
    fn run_for(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            self.run();
            self.now += Duration::from_millis(5);
        }
    }
}

fn set(rows: impl IntoIterator<Item = i64>) -> BTreeSet<i64> {
    rows.into_iter().collect()
}

#[test]
fn a_locked_row_holds_up_no_other_and_is_tried_again_with_its_own_backoff() {
    let mut world = World::new(0..10);
    world.locked = set([3]);
    world.run();
    assert_eq!(world.marked.len(), 9);
    let stuck = world.queue.stuck().expect("a row");
    assert_eq!((stuck.rows, stuck.since), (1, world.now));
    // Other rows are never tried together with it.
    add(&mut world.queue, 10..20);
    world.run();
    assert_eq!(world.marked.len(), 19);
    let before = world.statements;
    world.run_for(Duration::from_secs(60));
    assert!(
        (10..=40).contains(&(world.statements - before)),
        "{}",
        world.statements
    );
    world.locked.clear();
    world.run_for(RETRY_LONGEST);
    assert_eq!(world.marked.len(), 20);
    assert_eq!((world.queue.stuck(), world.queue.len()), (None, 0));
}

#[test]
fn many_locked_rows_are_tried_together_whenever_they_were_locked() {
    let mut world = World::new([]);
    world.locked = (0..2_000).collect();
    for row in 0..2_000 {
        add(&mut world.queue, [row]);
        world.run();
        world.now += Duration::from_millis(5);
    }
    let before = world.statements;
    world.run_for(Duration::from_secs(60));
    let each_second = (world.statements - before) / 60;
    assert!(each_second <= 20, "{each_second}");
}

#[test]
fn failing_rows_are_found_among_a_thousand_at_once() {
    for bad in [set([0]), set([999]), set([17, 500, 501])] {
        let mut world = World::new(0..1_000);
        world.failing = bad.clone();
        world.run();
        assert_eq!(world.marked.len(), 1_000 - bad.len(), "{bad:?}");
        assert!(
            world.failures <= 12 * bad.len(),
            "{bad:?}: {}",
            world.failures
        );
        let stuck = world.queue.stuck().expect("rows");
        assert_eq!((stuck.rows, stuck.reason.as_str()), (bad.len(), "no"));
        world.failing.clear();
        world.run_for(RETRY_LONGEST);
        assert_eq!(world.marked.len(), 1_000);
        assert_eq!(world.queue.stuck(), None);
    }
}

#[test]
fn rows_that_can_be_marked_are_though_each_statement_has_one_that_fails() {
    let mut world = World::new([]);
    world.failing = (0..100_000).step_by(20).collect();
    for n in 0..500 {
        // A thousand rows per second, for ten seconds.
        add(&mut world.queue, n * 20..(n + 1) * 20);
        world.run();
        world.now += Duration::from_millis(20);
    }
    let late = 500 * 19 - world.marked.len();
    assert!(late <= 100, "{late} are late");
    // The rows that are known to fail don't contribute to that.
    assert!(
        world
            .queue
            .stuck()
            .is_some_and(|stuck| stuck.rows <= 500 + 100)
    );
}

#[test]
fn while_every_row_fails_few_statements_do_and_all_is_marked_afterwards() {
    let mut world = World::new(0..20_000);
    world.failing = set(0..30_000);
    world.run();
    let burst = world.failures;
    // A statement for each thousand, and the search.
    assert!(burst <= 20 + 61, "{burst}");
    for n in 0..500 {
        add(&mut world.queue, [20_000 + n]);
        let collect = world.queue.collect();
        world.now += collect;
        world.run();
    }
    assert_eq!(world.queue.collect(), COLLECT * 16);
    // In 160 seconds.
    let steady = world.failures - burst;
    assert!(steady <= 500 + 1_600 + 60, "{steady}");
    world.failing.clear();
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.marked.len(), 20_500);
    assert_eq!((world.queue.len(), world.queue.collect()), (0, COLLECT));
}

#[test]
fn a_row_that_makes_its_statement_wait_is_found_too() {
    let mut world = World::new(0..1_000);
    world.slow = set([3]);
    world.run();
    add(&mut world.queue, 1_000..1_010);
    // Either lane may be the first to retry, several times.
    world.run_for(Duration::from_secs(1));
    assert_eq!(world.marked.len(), 1_009, "{:?}", world.queue.stuck());
    assert_eq!(world.queue.stuck().expect("a row").rows, 1);
}

#[test]
fn an_outage_keeps_all_rows_and_tries_them_again_with_one_backoff() {
    let mut world = World::new(0..5_000);
    world.locked = set([1]);
    world.is_away = true;
    let began = world.now;
    world.run_for(Duration::from_secs(60));
    assert!(world.statements <= 40, "{}", world.statements);
    let stuck = world.queue.stuck().expect("rows");
    assert_eq!((stuck.rows, stuck.since), (5_000, began));
    assert_eq!(stuck.reason, "read-only");
    world.is_away = false;
    world.run_for(RETRY_LONGEST);
    assert_eq!(world.marked.len(), 4_999);
    let stuck = world.queue.stuck().expect("the locked one");
    assert_eq!(stuck.reason, LOCKED);
}

#[test]
fn a_frozen_database_makes_no_more_suspects_than_may_be() {
    let mut world = World::new(0..30_000);
    world.slow = set(0..30_000);
    world.run_for(Duration::from_secs(600));
    assert!(world.queue.suspected.count <= SUSPECTED_OF_DELAY + ROWS_AT_ONCE);
    world.slow.clear();
    world.run_for(Duration::from_secs(20));
    assert_eq!(world.marked.len(), 30_000);
    assert_eq!(world.queue.stuck(), None);
}

#[test]
fn the_oldest_rows_lose_their_marks_beyond_the_limits() {
    let id = |count: usize| i64::try_from(count).expect("a number");
    let mut queue = MarkQueue::default();
    assert_eq!(add(&mut queue, 0..id(KEPT) + 5), 5);
    assert_eq!(queue.fresh.keys().next(), Some(&(HERE, 5)));

    let mut queue = MarkQueue::default();
    add(&mut queue, 0..id(HELD) + 5_000);
    let now = Instant::now();
    let mut lost = 0;
    while let Some(batch) = queue.take(Lane::Fresh, now) {
        let locked = batch.rows.iter().copied().collect();
        lost += queue.conclude(batch, MarkOutcome::Marked { locked }, now);
    }
    assert_eq!((lost, queue.len()), (5_000, HELD));
    assert_eq!((queue.locked.due.len(), queue.locked.count), (HELD, HELD));
    assert_eq!(queue.held.keys().next(), Some(&(HERE, 5_000)));
}

#[test]
fn rows_of_two_incarnations_are_never_in_one_statement() {
    let mut queue = MarkQueue::default();
    for row in 0..10 {
        queue.add(Incarnation::default(), row, Moment(row));
    }
    add(&mut queue, 10..20);
    let mut now = Instant::now();
    let mut statements = 0;
    for lane in [Lane::Fresh, Lane::Held] {
        while let Some(batch) = queue.take(lane, now) {
            statements += 1;
            let is_here = |row: &i64| *row >= 10;
            let mut rows = batch.rows.iter();
            assert!(rows.all(|row| is_here(row) == (batch.incarnation == HERE)));
            let locked = batch.rows.iter().copied().collect();
            queue.conclude(batch, MarkOutcome::Marked { locked }, now);
        }
        now += Duration::from_secs(1);
    }
    assert!((4..=22).contains(&statements), "{statements}");
}
