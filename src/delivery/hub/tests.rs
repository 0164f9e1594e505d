use futures_util::task::{ArcWake, noop_waker, waker};

use super::*;
use crate::{
    delivery::mailbox,
    domain::{
        membership::Membership,
        notification::{Expiry, UserId},
        position::RowKey,
    },
};

fn reading(rows: impl IntoIterator<Item = (&'static str, i64, usize)>) -> Reading {
    let notifications = rows.into_iter().map(|(user, id, bytes)| {
        let notification = Notification {
            key: RowKey { xid: Xid(1), id },
            event: None,
            text: "x".repeat(bytes),
            created_at: None,
            expires: Expiry::Never,
            reference: None,
            topic: None,
        };
        (addressee(user), notification)
    });
    Reading {
        changes: Vec::new(),
        notifications: notifications.collect(),
        snapshot: Arc::default(),
        unread: Arc::default(),
        tail: Tail::default(),
    }
}

/// A user, or a topic if the name begins with `#`.
fn addressee(name: &str) -> Addressee {
    match name.strip_prefix('#') {
        Some(name) => Addressee::Topic(topic(name)),
        None => Addressee::User(UserId::parse(name).expect("a user")),
    }
}

fn topic(name: &str) -> Topic {
    Topic::parse(name).expect("a topic")
}

fn add_routes(connection: &Connection, names: &[&str], page: &Snapshot) -> bool {
    let topics: Vec<_> = names.iter().map(|name| topic(name)).collect();
    connection.add_routes(topics.iter(), page)
}

fn connect(hub: &Arc<Hub>, user: &str) -> Connection {
    let user = UserId::parse(user).expect("a user");
    hub.register(&user.into(), hub.note()).0
}

fn letter(connection: &Connection) -> Option<Letter> {
    let waker = noop_waker();
    match connection.poll_letter(&mut Context::from_waker(&waker)) {
        Poll::Ready(letter) => Some(letter),
        Poll::Pending => None,
    }
}

fn ids(connection: &Connection) -> Vec<i64> {
    match letter(connection) {
        Some(Letter::Batch(batch)) => batch
            .events
            .iter()
            .map(|event| event.notification().key.id)
            .collect(),
        other => panic!("not a batch: {other:?}"),
    }
}

#[test]
fn every_connection_of_a_user_gets_the_users_rows_and_no_others() {
    let hub = Arc::new(Hub::new(1_000));
    let (tab, other_tab, bob) = (
        connect(&hub, "alice"),
        connect(&hub, "alice"),
        connect(&hub, "bob"),
    );
    hub.publish(reading([
        ("alice", 1, 1),
        ("bob", 2, 1),
        ("alice", 3, 1),
        ("carol", 4, 1),
    ]));
    let audience = hub.audience();
    assert_eq!((audience.users, audience.opened), (2, 3));
    assert_eq!(audience.waiting_rows, 5, "two in each of two tabs, and one");
    assert_eq!(ids(&tab), [1, 3]);
    assert_eq!(ids(&other_tab), [1, 3]);
    assert_eq!(ids(&bob), [2]);
    assert!(letter(&tab).is_none() && letter(&bob).is_none());
}

#[test]
fn a_connection_that_is_dropped_leaves_nothing_behind() {
    let hub = Arc::new(Hub::new(1_000));
    let (tab, other_tab) = (connect(&hub, "alice"), connect(&hub, "alice"));
    drop(tab);
    assert_eq!(hub.connections(), 1);
    hub.publish(reading([("alice", 1, 1)]));
    assert_eq!(ids(&other_tab), [1]);
    drop(other_tab);
    assert_eq!(hub.connections(), 0);
    assert!(hub.registry.lock().subscribers.is_empty());
}

#[test]
fn a_full_mailbox_is_emptied_and_says_so_until_it_is_reopened() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    hub.publish(reading([("alice", 1, 600)]));
    hub.publish(reading([("alice", 2, 600)]));
    hub.publish(reading([("alice", 3, 1)]));
    assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
    assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
    let audience = hub.audience();
    assert_eq!((audience.overflows, audience.waiting_rows), (1, 0));
    tab.reopen();
    assert!(letter(&tab).is_none());
    hub.publish(reading([("alice", 4, 1)]));
    assert_eq!(ids(&tab), [4]);
}

#[test]
fn too_many_rows_fill_a_mailbox_too() {
    let hub = Arc::new(Hub::new(1_000_000));
    let tab = connect(&hub, "alice");
    for id in 0..=mailbox::QUEUE_ROWS as i64 {
        hub.publish(reading([("alice", id, 1)]));
    }
    assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
}

#[test]
fn an_empty_mailbox_takes_a_row_of_any_size() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    hub.publish(reading([("alice", 1, 1 << 20)]));
    assert_eq!(ids(&tab), [1]);
}

#[test]
fn a_position_joins_the_tail_only_when_all_has_left_the_mailbox() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    let seen = Position::after(Some(Xid(9)), &Snapshot::new(Xid(10), Vec::new()));
    let tail = Tail {
        history: History::default(),
        position: Arc::new(seen.clone()),
        safe: Xid(0),
    };
    hub.publish(Reading {
        tail,
        ..reading([("alice", 1, 1)])
    });
    let mut position = Position::default();
    tab.join_tail(&mut position);
    assert_eq!(position, Position::default());
    assert_eq!(ids(&tab), [1]);
    tab.join_tail(&mut position);
    assert_eq!(position, seen);
}

fn crash(hub: &Hub, safe: u64) {
    let recovery = Recovery {
        history: History::default(),
        safe: Xid(safe),
        published: Arc::default(),
    };
    hub.recover(recovery, Tail::default());
}

fn recovered(connection: &Connection) -> Xid {
    match letter(connection) {
        Some(Letter::Recovered(recovery)) => recovery.safe,
        other => panic!("no recovery: {other:?}"),
    }
}

#[test]
fn a_crash_is_announced_between_the_rows_before_and_after_it() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    hub.publish(reading([("alice", 1, 1)]));
    crash(&hub, 7);
    hub.publish(reading([("alice", 2, 1)]));
    assert_eq!(ids(&tab), [1]);
    assert_eq!(recovered(&tab), Xid(7));
    assert_eq!(ids(&tab), [2]);
    assert!(letter(&tab).is_none());
}

/// The history of a hub's tail when a connection was last woken.
struct TailWhenWoken {
    hub: Arc<Hub>,
    history: Mutex<Option<History>>,
}

impl ArcWake for TailWhenWoken {
    fn wake_by_ref(this: &Arc<Self>) {
        *this.history.lock() = Some(this.hub.tail().history);
    }
}

/// It requests pages of the new history, which are read only if the tail is in it.
#[test]
fn whoever_learns_of_a_crash_finds_the_tail_in_the_new_history() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    let woken = Arc::new(TailWhenWoken {
        hub: Arc::clone(&hub),
        history: Mutex::default(),
    });
    let waker = waker(Arc::clone(&woken));
    assert!(
        tab.poll_letter(&mut Context::from_waker(&waker))
            .is_pending()
    );
    let recovery = Recovery {
        history: History {
            system_identifier: 8,
            ..History::default()
        },
        safe: Xid(7),
        published: Arc::default(),
    };
    let tail = Tail {
        history: recovery.history,
        ..Tail::default()
    };
    hub.recover(recovery.clone(), tail);
    assert_eq!(*woken.history.lock(), Some(recovery.history));
}

#[test]
fn a_full_mailbox_still_announces_every_crash() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    hub.publish(reading([("alice", 1, 600)]));
    crash(&hub, 7);
    hub.publish(reading([("alice", 2, 600)]));
    crash(&hub, 9);
    assert_eq!(recovered(&tab), Xid(7));
    assert!(matches!(letter(&tab), Some(Letter::Overflowed)));
}

#[test]
fn what_was_read_before_a_crash_can_be_skipped_and_nothing_else() {
    let hub = Arc::new(Hub::new(1_000));
    let tab = connect(&hub, "alice");
    hub.publish(reading([("alice", 1, 1)]));
    assert!(tab.skip_to_recovery().is_none());
    crash(&hub, 7);
    hub.publish(reading([("alice", 2, 1)]));
    let recovery = tab.skip_to_recovery().expect("a crash");
    assert_eq!(recovery.safe, Xid(7));
    assert!(letter(&tab).is_none());
    hub.publish(reading([("alice", 3, 1)]));
    assert_eq!(ids(&tab), [3]);
}

#[test]
fn who_comes_while_the_bridge_drains_is_told_at_once() {
    let hub = Arc::new(Hub::new(1_000));
    let before = connect(&hub, "alice");
    hub.end_all(Ending::Draining);
    let after = connect(&hub, "alice");
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    for connection in [before, after] {
        assert_eq!(
            connection.poll_ending(&mut cx),
            Poll::Ready(Ending::Draining)
        );
        assert!(connection.poll_ending(&mut cx).is_pending());
    }
}

fn disconnection(user: &str, ticket: Option<u8>) -> Disconnection {
    let user = UserId::parse(user).expect("a user");
    match ticket {
        Some(byte) => Disconnection::Ticket(user, TicketHash([byte; 32])),
        None => Disconnection::User(user),
    }
}

fn is_ended(connection: &Connection) -> bool {
    let waker = noop_waker();
    let ending = connection.poll_ending(&mut Context::from_waker(&waker));
    ending == Poll::Ready(Ending::Disconnected)
}

#[test]
fn who_is_disconnected_while_being_identified_is_told_at_once() {
    let hub = Arc::new(Hub::new(1_000));
    let noted = hub.note();
    hub.disconnect(&[disconnection("alice", Some(1)), disconnection("bob", None)]);
    let connect = |user: &str, ticket: Option<u8>, noted| {
        let identity = Identity {
            ticket: ticket.map(|byte| TicketHash([byte; 32])),
            ..UserId::parse(user).expect("a user").into()
        };
        hub.register(&identity, noted).0
    };
    assert!(is_ended(&connect("alice", Some(1), noted)));
    assert!(is_ended(&connect("bob", Some(2), noted)));
    assert!(!is_ended(&connect("alice", Some(2), noted)));
    assert!(!is_ended(&connect("alice", None, noted)));
    assert!(!is_ended(&connect("bob", None, hub.note())));
    // A user who is logged out while the bridge stops doesn't stay for the drain time.
    let leaving = connect("alice", Some(2), hub.note());
    hub.disconnect(&[disconnection("alice", None)]);
    hub.end_all(Ending::Draining);
    assert!(is_ended(&leaving));
}

#[test]
fn everyone_is_disconnected_with_those_who_are_being_identified() {
    let hub = Arc::new(Hub::new(1_000));
    let noted = hub.note();
    let with_ticket = |user: &str, noted| {
        let identity = Identity {
            ticket: Some(TicketHash([1; 32])),
            ..UserId::parse(user).expect("a user").into()
        };
        hub.register(&identity, noted).0
    };
    let (token, ticket) = (connect(&hub, "alice"), with_ticket("bob", noted));
    hub.disconnect(&[Disconnection::AllTickets]);
    assert!(is_ended(&ticket) && is_ended(&with_ticket("carol", noted)));
    assert!(!is_ended(&token) && !is_ended(&connect(&hub, "carol")));
    hub.disconnect(&[Disconnection::Everyone]);
    assert!(is_ended(&token));
    let alice = UserId::parse("alice").expect("a user").into();
    assert!(is_ended(&hub.register(&alice, noted).0));
    assert!(!is_ended(&connect(&hub, "alice")));
    assert!(!is_ended(&with_ticket("bob", hub.note())));
}

#[test]
fn who_may_have_been_meant_by_what_was_left_unread_is_sent_back() {
    let hub = Arc::new(Hub::new(1_000));
    let (open, noted) = (connect(&hub, "alice"), hub.note());
    hub.skip_disconnections();
    let bob = UserId::parse("bob").expect("a user").into();
    assert!(is_ended(&hub.register(&bob, noted).0));
    assert!(!is_ended(&open) && !is_ended(&connect(&hub, "bob")));
}

#[test]
fn a_ticket_without_a_user_is_a_subscriber_of_its_own() {
    let hub = Arc::new(Hub::new(1_000));
    let (gone, kept) = (TicketHash([1; 32]), TicketHash([2; 32]));
    let noted = hub.note();
    let connect = |identity: Identity| hub.register(&identity, noted).0;
    let with_token = || Identity {
        ticket: Some(gone),
        ..UserId::parse("alice").expect("a user").into()
    };
    let streams = [
        Identity::of_ticket(gone),
        Identity::of_ticket(gone),
        with_token(),
        Identity::of_ticket(kept),
    ]
    .map(connect);
    assert_eq!(hub.audience().users, 3);
    for stream in &streams {
        add_routes(stream, &["room"], &Snapshot::default());
    }
    hub.publish(reading([("alice", 1, 1), ("#room", 2, 1), ("#*", 3, 1)]));
    assert_eq!(
        streams.each_ref().map(ids),
        [vec![2, 3], vec![2, 3], vec![1, 2, 3], vec![2, 3]]
    );
    hub.disconnect(&[Disconnection::UserlessTicket(gone)]);
    assert_eq!(streams.each_ref().map(is_ended), [true, true, true, false]);
    // So are those that were being authenticated.
    let late = [
        Identity::of_ticket(gone),
        with_token(),
        Identity::of_ticket(kept),
    ]
    .map(connect);
    assert_eq!(late.each_ref().map(is_ended), [true, true, false]);
    drop((streams, late));
    assert_eq!((hub.audience().users, hub.audience().topics), (0, 0));
}

/// A change in which `user` joins or leaves.
fn change(user: &str, name: &str, now: Option<Membership>) -> Arc<MembershipChange> {
    Arc::new(MembershipChange::One {
        user: UserId::parse(user).expect("a user"),
        topic: topic(name),
        xid: Xid(1),
        now,
    })
}

#[test]
fn a_row_of_a_topic_reaches_its_connections_in_one_batch() {
    let hub = Arc::new(Hub::new(1_000));
    let tabs = ["alice", "alice", "bob", "carol"].map(|user| connect(&hub, user));
    let [tab, other_tab, bob, carol] = &tabs;
    for connection in [tab, other_tab, bob] {
        for topics in [vec!["team"], vec!["team", "*"]] {
            add_routes(connection, &topics, &Snapshot::default());
        }
    }
    assert_eq!(hub.audience().topics, 1);
    hub.publish(reading([("#team", 1, 1), ("#Team", 2, 1), ("#team", 3, 1)]));
    let batches = [tab, other_tab, bob].map(|connection| match letter(connection) {
        Some(Letter::Batch(batch)) => batch,
        other => panic!("not a batch: {other:?}"),
    });
    assert_eq!(batches[0].events.len(), 2);
    assert!(batches.iter().all(|batch| Arc::ptr_eq(batch, &batches[0])));
    assert!(letter(carol).is_none());
    hub.publish(reading([("#*", 4, 1)]));
    tabs.iter().for_each(|tab| assert_eq!(ids(tab), [4]));
    drop(tabs);
    assert_eq!(hub.audience().topics, 0);
}

#[test]
fn a_page_is_read_again_if_rows_may_have_been_dropped_that_it_lacks() {
    let hub = Arc::new(Hub::new(1_000));
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| connect(&hub, user));
    let shows = |xmax, running: &[u64]| {
        Snapshot::new(Xid(xmax), running.iter().copied().map(Xid).collect())
    };
    assert!(!add_routes(&alice, &["a"], &shows(8, &[])));
    hub.publish(Reading {
        snapshot: Arc::new(shows(10, &[7])),
        ..reading([("#a", 1, 1), ("#b", 2, 1)])
    });
    assert_eq!(ids(&alice), [1]);
    // It has what was passed to it, whatever its page shows.
    assert!(!add_routes(&alice, &["a"], &shows(8, &[])));
    assert!(add_routes(&alice, &["a", "b"], &shows(8, &[])));
    assert!(add_routes(&bob, &["b"], &shows(12, &[8])));
    assert!(!add_routes(&bob, &["b"], &shows(12, &[8])));
    assert!(!add_routes(&carol, &["b", "*"], &shows(12, &[7])));
}

#[test]
fn rows_of_a_user_and_of_several_topics_are_one_batch_in_their_order() {
    let hub = Arc::new(Hub::new(1_000));
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|user| connect(&hub, user));
    add_routes(&alice, &["a", "b"], &Snapshot::default());
    add_routes(&bob, &["b"], &Snapshot::default());
    hub.publish(reading([
        ("#b", 1, 1),
        ("alice", 2, 1),
        ("#a", 3, 1),
        ("carol", 4, 1),
        ("#*", 5, 1),
        ("#b", 6, 1),
        ("dave", 7, 1),
    ]));
    assert_eq!(ids(&alice), [1, 2, 3, 5, 6]);
    assert_eq!(ids(&bob), [1, 5, 6]);
    assert_eq!(ids(&carol), [4, 5]);
    assert!([alice, bob, carol].iter().all(|one| letter(one).is_none()));
}

#[test]
fn a_change_overtakes_the_batches_and_whoever_joins_reads_pages() {
    let hub = Arc::new(Hub::new(1_000));
    let [alice, bob] = ["alice", "bob"].map(|user| connect(&hub, user));
    add_routes(&alice, &["a"], &Snapshot::default());
    hub.publish(reading([("#a", 1, 1), ("bob", 2, 1)]));
    let (left, joined) = (
        change("alice", "a", None),
        change("bob", "a", Some(Membership::GRANTED)),
    );
    hub.publish(Reading {
        changes: vec![Arc::clone(&left), Arc::clone(&joined)],
        ..reading([("#a", 3, 1)])
    });
    assert!(matches!(letter(&alice), Some(Letter::Membership(change)) if change == left));
    assert_eq!(ids(&alice), [1]);
    alice.remove_route(&topic("a"));
    assert_eq!(bob.take_change(), Some(joined));
    assert!(matches!(letter(&bob), Some(Letter::Overflowed)));
    bob.reopen();
    hub.publish(reading([("#a", 4, 1)]));
    assert_eq!(ids(&bob), [4]);
    assert_eq!(ids(&alice), [3]);
    assert!(letter(&alice).is_none());
}

#[test]
fn a_client_that_does_not_read_is_ended_before_changes_are_forgotten() {
    let hub = Arc::new(Hub::new(1_000));
    let alice = connect(&hub, "alice");
    let changes = |count| vec![change("alice", "a", None); count];
    let publish = |count| {
        hub.publish(Reading {
            changes: changes(count),
            ..reading([])
        });
    };
    let waker = noop_waker();
    let cx = &mut Context::from_waker(&waker);
    publish(mailbox::QUEUE_CHANGES);
    assert!(alice.poll_ending(cx).is_pending());
    publish(1);
    assert_eq!(alice.poll_ending(cx), Poll::Ready(Ending::TooManyChanges));
}
