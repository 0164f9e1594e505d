//! Decides whose page is read next: users take turns, so that a user with a thousand
//! streams delays only their own.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::domain::identity::Subscriber;

/// How many pages of one user are read at once. Two let a browser's tabs overlap; more
/// would only let one user fill the pool.
const PAGES_AT_ONCE: usize = 2;

/// Once a user's burst is used up, their pages may occupy the database for one part in
/// this many of the time: a quarter. Two tabs that read continuously need less, because
/// they write to their sockets in between.
const SHARE: u32 = 4;

/// The database time that a user's pages may take before their rate is limited: some
/// 1,500 pages of 500 rows, so that a browser that restores a hundred tabs, or returns
/// after weeks, never reaches the limit.
const BURST: Duration = Duration::from_secs(5);

/// The maximum that is charged for one page: a slow or unreachable database is not the
/// user's fault.
const LARGEST_COST: Duration = Duration::from_millis(20);

/// For debts up to this, the task waits until the debt is paid and then forgets the user.
/// So nothing remains of a user who reads a few pages and is then idle, as most are.
const SMALL_DEBT: Duration = Duration::from_secs(1);

/// How many users' rates are kept before idle users are dropped. An entry takes some 200
/// bytes.
const REMEMBERED_USERS: usize = 1_024;

#[derive(Debug)]
pub struct Turns(Mutex<TurnsState>);

#[derive(Debug)]
struct TurnsState {
    /// How many more pages may be read at once.
    free: usize,
    users: HashMap<Subscriber, User>,
    /// Users who are waiting and may read a page now, each once, in order.
    ready: VecDeque<Subscriber>,
    /// The number of users at which idle ones are dropped.
    swept_at: usize,
}

/// A user who is waiting, reading, or has read recently.
#[derive(Debug)]
struct User {
    waiting: VecDeque<oneshot::Sender<Turn>>,
    /// Places that are taken, by a page that is being read or by one whose cost isn't
    /// paid yet.
    taken: usize,
    /// Whether the user is in `ready`.
    is_ready: bool,
    /// When everything that was read will have been paid for at the user's [`SHARE`] (the
    /// generic cell rate algorithm).
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

/// Permission to read one page. Dropping it returns it.
#[derive(Debug)]
pub struct Turn {
    turns: Arc<Turns>,
    user: Subscriber,
    holds: Holds,
}

/// What a turn has to return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Holds {
    /// The user's place, and one of the pages that may be read at once.
    Page,
    /// Only the user's place.
    Place,
    /// Nothing: the stream that asked is gone.
    Nothing,
}

impl Turns {
    /// `pages` is the number of turns that are granted at once.
    pub fn new(pages: usize) -> Self {
        Self(Mutex::new(TurnsState {
            free: pages.max(1),
            users: HashMap::new(),
            ready: VecDeque::new(),
            swept_at: REMEMBERED_USERS,
        }))
    }

    /// Waits for a turn. Dropping the future gives up the place in the queue.
    pub async fn take(self: &Arc<Self>, user: &Subscriber) -> Turn {
        loop {
            let granted = {
                let mut state = self.0.lock();
                let granted = state.enqueue(user, Instant::now());
                state.grant(self);
                granted
            };
            if let Ok(turn) = granted.await {
                return turn;
            }
        }
    }
}

impl TurnsState {
    fn enqueue(&mut self, user: &Subscriber, now: Instant) -> oneshot::Receiver<Turn> {
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
        // Streams that are gone leave their entries behind. Cleaning up whenever the
        // queue is at capacity means that there are never more of those than of others.
        if entry.waiting.len() == entry.waiting.capacity() {
            entry.waiting.retain(|other| !other.is_closed());
        }
        entry.waiting.push_back(grant);
        self.line_up(user);
        granted
    }

    /// Appends a user to `ready`, if the user may read.
    fn line_up(&mut self, user: &Subscriber) {
        if let Some(entry) = self.users.get_mut(user)
            && entry.may_read()
        {
            entry.is_ready = true;
            self.ready.push_back(user.clone());
        }
    }

    /// Grants as many turns as possible.
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

    /// Charges the user for a page. Returns how long it takes until all of the user's
    /// pages are paid for.
    fn charge(&mut self, user: &Subscriber, took: Duration, now: Instant) -> Duration {
        let Some(entry) = self.users.get_mut(user) else {
            return Duration::ZERO;
        };
        entry.paid_at = entry.paid_at.max(now) + took.min(LARGEST_COST) * SHARE;
        entry.paid_at.saturating_duration_since(now)
    }

    /// Drops the entry of a user who owes nothing and isn't waiting.
    fn forget(&mut self, user: &Subscriber, now: Instant) {
        if self.users.get(user).is_some_and(|user| user.is_idle(now)) {
            self.users.remove(user);
        }
        if self.users.is_empty() {
            self.users = HashMap::new();
        }
    }

    fn give_back_place(&mut self, user: &Subscriber, now: Instant) {
        if let Some(entry) = self.users.get_mut(user) {
            entry.taken -= 1;
        }
        self.forget(user, now);
        self.line_up(user);
    }
}

impl Turn {
    /// Ends the turn after a page that took this long to read: another user's page may be
    /// read at once, this user's next page as soon as the rate limit allows.
    pub async fn end(mut self, took: Duration) {
        let debt = {
            let mut state = self.turns.0.lock();
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
            turns.0.lock().forget(&user, Instant::now());
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.holds == Holds::Nothing {
            return;
        }
        let mut state = self.turns.0.lock();
        state.free += usize::from(self.holds == Holds::Page);
        state.give_back_place(&self.user, Instant::now());
        state.grant(&self.turns);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt, future::BoxFuture};

    use super::*;
    use crate::domain::notification::UserId;

    fn user(name: &str) -> Subscriber {
        UserId::parse(name).expect("a user").into()
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
        // The next one gets its turn when one is returned.
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
        // Alice was already in line, once.
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
        // Use up the burst.
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
        assert!(turns.0.lock().users.is_empty());
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
        // The turn was granted but never received.
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
        let places = turns.0.lock().users[&user("bob")].waiting.len();
        assert!(places < 16, "{places}");
        let mut last = ask(&turns, "carol");
        drop(held);
        assert!(granted(&mut last).is_some());
        sleep(BURST * SHARE).await;
        for number in 0..10 * REMEMBERED_USERS {
            drop(ask(&turns, &number.to_string()));
        }
        let users = turns.0.lock().users.len();
        assert!(users <= REMEMBERED_USERS, "{users}");
    }
}
