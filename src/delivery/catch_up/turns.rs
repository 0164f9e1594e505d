//! Whose page is read next: users take turns, so that one with a thousand
//! streams waits for itself and delays nobody else.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::domain::notification::UserId;

/// Pages of one user that are read at once. A second one lets the tabs of a
/// browser overlap; more would only let one user fill the pool.
const PAGES_AT_ONCE: usize = 2;

/// Part of the time for which one user's pages may occupy the database, once the
/// burst is used up: a quarter. Two tabs that read without a pause need less, as
/// they write to their sockets in between.
const SHARE: u32 = 4;

/// Time in the database that a user's pages may take before their rate is
/// limited: some 1,500 pages of 500 rows, so that a browser that restores a
/// hundred tabs, or returns after weeks, never reaches the limit.
const BURST: Duration = Duration::from_secs(5);

/// What one page counts at most: a database that is slow or away is not the
/// user's fault.
const LARGEST_COST: Duration = Duration::from_millis(20);

/// A debt that is waited for, to forget the user when it is paid: of a user who
/// reads a few pages and is idle then, as most are, nothing remains.
const SMALL_DEBT: Duration = Duration::from_secs(1);

/// Users whose rates are remembered before those that are at rest are dropped.
/// An entry takes some 200 bytes.
const REMEMBERED_USERS: usize = 1_024;

/// Grants turns to read a page.
#[derive(Debug)]
pub struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Pages that may be read at once, less those that are.
    free: usize,
    users: HashMap<UserId, User>,
    /// Users who wait and may read a page now, each once, in order.
    ready: VecDeque<UserId>,
    /// How many users there may be before idle ones are dropped.
    swept_at: usize,
}

/// One user who waits, reads, or has read lately.
#[derive(Debug)]
struct User {
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// Places that are taken, by a page that is read or that was too expensive.
    taken: usize,
    /// Whether it is in `ready`.
    is_ready: bool,
    /// When all that was read will have been paid for at the user's
    /// [`SHARE`] (the generic cell rate algorithm).
    paid_at: Instant,
}

impl User {
    fn may_read(&self) -> bool {
        !self.is_ready && self.taken < PAGES_AT_ONCE && !self.waiting.is_empty()
    }

    fn is_idle(&self, now: Instant) -> bool {
        self.taken == 0 && self.waiting.is_empty() && self.paid_at <= now
    }
}

/// The right to read one page. Dropping it gives it back.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    user: UserId,
    holds: Holds,
}

/// What a turn has to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// The user's place, and one of the pages that are read at once.
    Page,
    /// The user's place alone.
    Place,
    /// Nothing: the stream that asked had gone.
    Nothing,
}

impl Turns {
    /// Grants up to `pages` turns at once.
    pub fn new(pages: usize) -> Self {
        Self(Mutex::new(State {
            free: pages.max(1),
            users: HashMap::new(),
            ready: VecDeque::new(),
            swept_at: REMEMBERED_USERS,
        }))
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub async fn take(self: &Arc<Self>, user: &UserId) -> Turn {
        loop {
            let granted = {
                let mut state = self.lock();
                let granted = state.enqueue(user, Instant::now());
                state.grant(self);
                granted
            };
            if let Ok(turn) = granted.await {
                return turn;
            }
        }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn enqueue(&mut self, user: &UserId, now: Instant) -> oneshot::Receiver<Turn> {
        if self.users.len() >= self.swept_at && !self.users.contains_key(user) {
            self.users.retain(|_, user| !user.is_idle(now));
            self.swept_at = (self.users.len() * 2).max(REMEMBERED_USERS);
        }
        let (grant, granted) = oneshot::channel();
        let entry = self.users.entry(user.clone()).or_insert_with(|| User {
            waiting: VecDeque::new(),
            taken: 0,
            is_ready: false,
            paid_at: now,
        });
        // Streams that have gone leave their places; there are never more of them
        // than of the others when this is done.
        if entry.waiting.len() == entry.waiting.capacity() {
            entry.waiting.retain(|other| !other.is_closed());
        }
        entry.waiting.push_back(grant);
        self.line_up(user);
        granted
    }

    /// Puts a user at the end of the line, if it may read.
    fn line_up(&mut self, user: &UserId) {
        if let Some(entry) = self.users.get_mut(user)
            && entry.may_read()
        {
            entry.is_ready = true;
            self.ready.push_back(user.clone());
        }
    }

    /// Grants as many turns as there are.
    fn grant(&mut self, turns: &Arc<Turns>) {
        while self.free > 0
            && let Some(user) = self.ready.pop_front()
        {
            let Some(entry) = self.users.get_mut(&user) else {
                continue;
            };
            entry.is_ready = false;
            while let Some(waiting) = entry.waiting.pop_front() {
                let turn = Turn {
                    turns: Arc::clone(turns),
                    user: user.clone(),
                    holds: Holds::Page,
                };
                match waiting.send(turn) {
                    Ok(()) => {
                        entry.taken += 1;
                        self.free -= 1;
                        break;
                    }
                    Err(mut turn) => turn.holds = Holds::Nothing,
                }
            }
            self.line_up(&user);
        }
    }

    /// Counts what a page took, and returns how long it takes until the user has
    /// paid for all of them.
    fn charge(&mut self, user: &UserId, took: Duration, now: Instant) -> Duration {
        let Some(entry) = self.users.get_mut(user) else {
            return Duration::ZERO;
        };
        entry.paid_at = entry.paid_at.max(now) + took.min(LARGEST_COST) * SHARE;
        entry.paid_at.saturating_duration_since(now)
    }

    /// Drops what is known of a user who has nothing to pay or to wait for.
    fn forget(&mut self, user: &UserId, now: Instant) {
        if self.users.get(user).is_some_and(|user| user.is_idle(now)) {
            self.users.remove(user);
        }
        if self.users.is_empty() {
            self.users = HashMap::new();
        }
    }

    fn give_back_place(&mut self, user: &UserId, now: Instant) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.taken -= 1;
        }
        self.forget(user, now);
        self.line_up(user);
    }
}

impl Turn {
    /// Ends the turn after a page that took so long to read: another user's page
    /// may be read at once, and this user's once the rate limit allows it.
    pub async fn end(mut self, took: Duration) {
        let debt = {
            let mut state = self.turns.lock();
            state.free += 1;
            self.holds = Holds::Place;
            let debt = state.charge(&self.user, took, Instant::now());
            state.grant(&self.turns);
            debt
        };
        let rest = debt.saturating_sub(BURST * SHARE);
        if !rest.is_zero() {
            sleep(rest).await;
        }
        let (turns, user) = (Arc::clone(&self.turns), self.user.clone());
        drop(self);
        if debt <= SMALL_DEBT {
            sleep(debt).await;
            turns.lock().forget(&user, Instant::now());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.holds == Holds::Nothing {
            return;
        }
        let mut state = self.turns.lock();
        state.free += usize::from(self.holds == Holds::Page);
        state.give_back_place(&self.user, Instant::now());
        state.grant(&self.turns);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(name).expect("a user")
    }

    type Waiting = BoxFuture<'static, Turn>;

    fn ask(turns: &Arc<Turns>, name: &str) -> Waiting {
        let (turns, user) = (Arc::clone(turns), user(name));
        let mut asked = async move { turns.take(&user).await }.boxed();
        if let Some(turn) = (&mut asked).now_or_never() {
            return async move { turn }.boxed();
        }
        asked
    }

    /// The turn, if it has been granted.
    fn granted(waiting: &mut Waiting) -> Option<Turn> {
        waiting.now_or_never()
    }

    #[tokio::test(start_paused = true)]
    async fn one_user_reads_two_pages_at_once_however_many_turns_are_free() {
        let turns = Arc::new(Turns::new(6));
        let mut asked: Vec<_> = (0..100).map(|_| ask(&turns, "alice")).collect();
        let mut held: Vec<_> = asked.iter_mut().filter_map(granted).collect();
        assert_eq!(held.len(), PAGES_AT_ONCE);
        assert!(granted(&mut ask(&turns, "bob")).is_some());
        // The next one has its turn when one is given back.
        held.pop();
        assert!(granted(&mut asked[PAGES_AT_ONCE]).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn users_take_turns_however_many_pages_one_of_them_wants() {
        let turns = Arc::new(Turns::new(1));
        let first = granted(&mut ask(&turns, "alice")).expect("a turn");
        let mut of_alice: Vec<_> = (0..50).map(|_| ask(&turns, "alice")).collect();
        let mut of_bob = ask(&turns, "bob");
        let mut of_carol = ask(&turns, "carol");
        drop(first);
        // Alice was in line before them, once.
        let second = granted(&mut of_alice[0]).expect("a turn");
        drop(second);
        let bobs = granted(&mut of_bob).expect("a turn");
        drop(bobs);
        assert!(granted(&mut of_carol).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_user_who_reads_without_a_pause_has_a_quarter_of_the_time_after_the_burst() {
        let turns = Arc::new(Turns::new(6));
        let alice = user("alice");
        let cost = Duration::from_millis(4);
        let mut pages = 0;
        let begin = Instant::now();
        let minute = Duration::from_secs(60);
        while begin.elapsed() < minute {
            let turn = turns.take(&alice).await;
            sleep(cost).await;
            tokio::spawn(turn.end(cost));
            pages += 1;
        }
        let allowed = (BURST + minute / SHARE).as_millis() / cost.as_millis();
        let allowed = u32::try_from(allowed).expect("a number");
        assert!((allowed - 10..=allowed + 10).contains(&pages), "{pages}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_resting_user_occupies_no_connection() {
        let turns = Arc::new(Turns::new(1));
        let alice = user("alice");
        // The burst is used up, and more.
        for _ in 0..BURST.as_millis() / LARGEST_COST.as_millis() {
            let turn = turns.take(&alice).await;
            tokio::spawn(turn.end(LARGEST_COST));
        }
        let turn = turns.take(&alice).await;
        let resting = tokio::spawn(turn.end(LARGEST_COST));
        tokio::task::yield_now().await;
        assert!(!resting.is_finished());
        assert!(granted(&mut ask(&turns, "bob")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn of_a_user_who_has_read_a_few_pages_nothing_remains() {
        let turns = Arc::new(Turns::new(1));
        for number in 0..100 {
            let turn = turns.take(&user(&number.to_string())).await;
            tokio::spawn(turn.end(Duration::from_millis(number)));
        }
        sleep(SMALL_DEBT).await;
        assert!(turns.lock().users.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_database_is_not_held_against_its_users() {
        let turns = Arc::new(Turns::new(1));
        let alice = user("alice");
        let begin = Instant::now();
        for _ in 0..20 {
            let turn = turns.take(&alice).await;
            tokio::spawn(turn.end(Duration::from_secs(10)));
        }
        assert_eq!(begin.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_was_granted_to_a_stream_that_has_gone_is_given_back() {
        let turns = Arc::new(Turns::new(1));
        let held = granted(&mut ask(&turns, "alice")).expect("a turn");
        let next = ask(&turns, "bob");
        drop(held);
        // It was granted, and never looked at.
        drop(next);
        assert!(granted(&mut ask(&turns, "carol")).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_gives_up_leaves_nothing_behind() {
        let turns = Arc::new(Turns::new(1));
        let held = granted(&mut ask(&turns, "alice")).expect("a turn");
        for _ in 0..10_000 {
            drop(ask(&turns, "bob"));
        }
        let places = turns.lock().users[&user("bob")].waiting.len();
        assert!(places < 16, "{places}");
        let mut last = ask(&turns, "carol");
        drop(held);
        assert!(granted(&mut last).is_some());
        sleep(BURST * SHARE).await;
        for number in 0..10 * REMEMBERED_USERS {
            drop(ask(&turns, &number.to_string()));
        }
        let users = turns.lock().users.len();
        assert!(users <= REMEMBERED_USERS, "{users}");
    }
}
