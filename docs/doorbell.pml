/* The doorbell, as a model for SPIN (https://spinroot.com). `make doorbell` checks it.
 *
 * A flag that is visible to everyone at once says whether writers ring. An idle bridge sets it, checks
 * that no writer is in a transaction, polls, and sleeps. A bridge that wakes up unsets it, and rings for
 * the others. Each change gives the flag a new generation; a sleeping bridge knows its own. Two claims:
 *
 *  no_lost_bell  a sleeping bridge that has not seen a row was rung, or is about to be
 *  seen_at_last  every writer terminates, and in the end every running bridge has seen every
 *                committed row, provided that every process that can take a step eventually does
 *
 * The model has no poll once a second (except with TICK): the claims depend on the flag, the table's
 * lock and the doorbell.
 *
 * Assumptions about PostgreSQL:
 *  - The flag is a sequence: a change belongs to no transaction, is visible to all at once, and persists.
 *  - A change is made under a transaction-level advisory lock that is only tried, so no two changes are
 *    concurrent. The try may fail for no good reason: another role may hold the lock.
 *  - An INSERT holds the table's lock before its trigger reads the flag; its transaction keeps it.
 *    A query for the lock's holders finds each one that holds it throughout, though not at one instant.
 *  - A commit becomes visible at one instant. The transaction's locks are released later; and later,
 *    before or after that, its notification reaches the sessions that were listening at that instant,
 *    each at its own time.
 *  - Rows, locks and notifications of a savepoint that is rolled back are discarded together.
 *  - A query sees its snapshot, but a flag that it reads afterwards has the value of that moment.
 *  - A message is executed even if the client has frozen.
 *  - A session that ends releases its locks and stops listening at once. Its bridge notices this with
 *    its next query or, while waiting, at any later time.
 *  - A crash ends all sessions and transactions, and may revert the flag to any earlier value.
 *    Prepared transactions remain, with their locks.
 *
 * Generations are not counted. Instead, each bridge has a bit, `stale`, which is raised for all when the
 * flag is unset, and cleared for a bridge that notes the generation. With COUNTED they are counted, up to
 * a bound, after which the flag doesn't change any more (not with CRASH): this checks that the bit
 * represents them correctly.
 *
 * Sizes: BRIDGES (up to 3), WRITERS (up to 2), and ROWS, the statements of each writer, which it
 * groups into transactions in any way, and commits or rolls back.
 *
 * Additional behaviour:
 *  FAULTS=n     up to n times, a bridge's session ends, or a bridge freezes permanently, with its
 *               session or without; but a session that has unset the flag rings before it ends
 *  WAKER_DIES   that session may end before it rings, as if its commit failed: the change stays, the
 *               notification is lost (with more than one bridge, only TICK recovers)
 *  CRASH        a fault may also be a crash of the server
 *  STOPS        bridges may shut down in order, permanently
 *  SAVEPOINTS   writers open, release and roll back savepoints
 *  PREPARE      writers may prepare a transaction first, if it doesn't ring
 *  HANG         a writer may stay in its transaction forever
 *  TICK         a sleeping bridge may poll by itself
 *
 * Mistakes, each of which must break `seen_at_last`:
 *  LOOKS_BEFORE_SETTING        the poll before it falls asleep has a snapshot from before it set the
 *                              flag
 *  LOOKS_BEFORE_TEST           or from before it checked who holds the table's lock
 *  TESTS_BEFORE_SETTING        it checks who holds the table's lock, and then sets the flag
 *  NO_TEST                     it doesn't check
 *  NO_TEST_IF_SET              it checks only if it set the flag itself
 *  NO_LOOK_AFTER_TEST          it doesn't poll again
 *  CLEARS_BELL_AFTER_LOOK      instead of before
 *  LISTENS_AFTER_LAST_LOOK     LISTEN comes after the poll before it falls asleep
 *  SLEEPS_AFTER_CONNECTING     it continues to sleep in a new session
 *  LOOKS_AND_SLEEPS_ON         it does so after a poll, if the flag has the generation it noted
 *                              (a crash restores it and keeps prepared transactions: CRASH, PREPARE)
 *  SLEEPS_WITHOUT_FLAG         it falls asleep whatever the flag's value is
 *  SLEEPS_ON_WITHOUT_FLAG      when rung it polls and sleeps again, whatever the flag's value is
 *  IGNORES_GENERATION          it checks only whether the flag is set
 *  NOTES_GENERATION_LATE       it notes the generation that its poll finds
 *  NO_WAKE_RING                a bridge that unsets the flag doesn't ring
 *  RINGS_BEFORE_UNSETTING      it rings first
 *  UNSETS_THEN_RINGS           it uses two messages; it may freeze between them (FAULTS)
 *  GENERATION_COMES_TWICE      changes need no lock, and each increments the value it has read
 *  LOCKS_AFTER_READING_FLAG    a writer reads the flag, and then locks the table
 *  UNLOCKS_BEFORE_VISIBLE      a writer's lock is released before its rows are visible
 *  LOCK_OF_LOST_SAVEPOINT      a row stays, and its lock is released with a savepoint that is rolled
 *                              back (as with a cursor that inserts and fails there; TICK recovers)
 *  BELL_OF_LOST_SAVEPOINT      a row stays, and its notification is discarded with a savepoint that is
 *                              rolled back
 *  DOORBELL_OFF                a writer doesn't ring (TICK recovers)
 *  TICK_READS_ONLY_FLAG        a tick polls only if the flag has changed (DOORBELL_OFF)
 *
 * Not mistakes, checked to show that they are harmless:
 *  NO_LOOK_AFTER_CONNECTING    it tries to sleep before its first poll
 *  LOOKS_BEFORE_LISTEN         its first poll comes before LISTEN
 *  READS_FLAG_BEFORE_LOOK      after it has forgotten the notification, but before the poll's snapshot
 *  CLEARS_BELL_BEFORE_SETTING  and not again; then SLEEPS_WITHOUT_FLAG is no mistake
 *  STOPS_WITHOUT_WAKING        a bridge that stops leaves the flag set (STOPS)
 *  UNLOCKS_BEFORE_TEST         others may change the flag while it checks who holds the table's lock
 *  RINGS_AFTER_UNLOCKING       the bridge that unset the flag rings when others may already change it
 *  CHANGES_WITHOUT_LOCK        changes need no lock, if still no generation comes twice
 */
#ifndef BRIDGES
#define BRIDGES 2
#endif
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef ROWS
#define ROWS 1
#endif
#ifndef FAULTS
#define FAULTS 0
#endif

/* Rows and bridges are bits of a byte. */
#define bit(i)  (1 << (i))
#define NOBODY  0
#define all     (bit(BRIDGES) - 1)
#define b_locks (b + 1)

byte visible;            /* rows that are committed */
byte seen[BRIDGES];      /* rows */

bool session[BRIDGES];   /* whether it has one, according to the server */
bool asleep[BRIDGES];    /* waiting for the doorbell */
bool frozen[BRIDGES];    /* permanently, or stopped */
byte listens;            /* bridges */
byte rung;               /* bridges: the notification has reached them, or is on its way */

byte locked = NOBODY;    /* holder of the lock for changing the flag: bridge + 1 */
byte rings_next;         /* bridges that have unset the flag and not rung yet */

bool held[WRITERS];      /* the table's lock, by the transaction */
bool held_inner[WRITERS];/* and by its open savepoint */
bool prepared[WRITERS];
bool cut[WRITERS];       /* its session ended in a crash */
byte written;            /* finished writers */

#ifdef GENERATION_COMES_TWICE
#define COUNTED
#endif
#ifndef COUNTED
bool set;                /* the flag */
byte stale = all;        /* bridges whose noted generation has passed */
#define may_change  (locked == NOBODY)
#define is_noted(b) (!(stale & bit(b)))
#define set_flag()  set = true
#define unset()     set = false; stale = all
#define note(b)     stale = stale & ~bit(b)
#else
byte flag;               /* the flag's generation; it is set in each odd one */
byte noted[BRIDGES];
#define LAST        6
#define set         (flag & 1)
#define may_change  (locked == NOBODY && flag < LAST)
#define is_noted(b) (noted[b] == flag)
#define set_flag()  flag = flag | 1
#define unset()     flag++
#define note(b)     noted[b] = flag
#endif

#ifdef IGNORES_GENERATION
#define is_own(b)   set
#else
#define is_own(b)   (set && is_noted(b))
#endif

#define has_seen(b) (frozen[b] || (visible & ~seen[b]) == 0)
#if BRIDGES == 1
#define all_have_seen has_seen(0)
#elif BRIDGES == 2
#define all_have_seen (has_seen(0) && has_seen(1))
#else
#define all_have_seen (has_seen(0) && has_seen(1) && has_seen(2))
#endif

/* If it sleeps and has not seen a row, it was rung, or the bridge that unset the flag will ring. */
#define rests(b) (!asleep[b] || !session[b] || (rung & bit(b)) || rings_next != 0 || \
                  (visible & ~seen[b]) == 0)
#if BRIDGES == 1
#define all_rest rests(0)
#elif BRIDGES == 2
#define all_rest (rests(0) && rests(1))
#else
#define all_rest (rests(0) && rests(1) && rests(2))
#endif

ltl seen_at_last { <>[] (written == WRITERS && all_have_seen) }
ltl no_lost_bell { [] all_rest }

/* --- Writers -------------------------------------------------------------------------------- */

/* Continues only if a crash has not ended the session. */
#define alive  if :: cut[w] -> goto lost :: else fi

inline lock() {
    if :: in_savepoint -> held_inner[w] = true :: else -> held[w] = true fi
}

/* The trigger, at the end of each INSERT. */
inline trigger() {
    atomic {
        alive;
        if
        :: !set
        :: set && in_savepoint -> rings_inner = true
        :: set && !in_savepoint -> rings = true
        fi
    }
}

inline unlock() {
    atomic { alive; held[w] = false }
}

proctype Writer(byte w) {
    byte row, rows, rows_inner;
    bool in_savepoint, rings, rings_inner;

statement:
    atomic {
        alive;
        if
        :: row == ROWS -> goto done
        :: else
        fi;
#ifdef SAVEPOINTS
        if :: !in_savepoint -> in_savepoint = true :: skip fi;
#endif
        if
#if !defined(LOCK_OF_LOST_SAVEPOINT) && !defined(BELL_OF_LOST_SAVEPOINT)
        :: in_savepoint -> rows_inner = rows_inner | bit(w * ROWS + row)
#endif
        :: else -> rows = rows | bit(w * ROWS + row)
        fi;
#ifndef LOCKS_AFTER_READING_FLAG
        lock();
#endif
        row++
    };
#ifndef DOORBELL_OFF
    trigger();
#endif
#ifdef LOCKS_AFTER_READING_FLAG
    atomic { alive; lock() };
#endif
#ifdef BELL_OF_LOST_SAVEPOINT
    atomic { held[w] = held[w] || held_inner[w]; held_inner[w] = false };
#endif
#ifdef LOCK_OF_LOST_SAVEPOINT
    atomic { rings = rings || rings_inner; rings_inner = false };
#endif
#if ROWS > 1
    if
    :: row < ROWS -> goto statement
    :: skip
    fi;
#endif

#ifdef SAVEPOINTS
    atomic {
        alive;
        if
        :: in_savepoint ->                       /* RELEASE; COMMIT does the same */
            held[w] = held[w] || held_inner[w];
            rows = rows | rows_inner;
            rings = rings || rings_inner
        :: in_savepoint                          /* ROLLBACK TO */
        :: else
        fi;
        held_inner[w] = false; rows_inner = 0; rings_inner = false; in_savepoint = false
    };
    if
    :: row < ROWS -> goto statement
    :: skip
    fi;
#endif
#ifdef PREPARE
    atomic {
        alive;
        if :: !rings -> prepared[w] = true :: skip fi
    };
#endif
#ifdef HANG
    if
    :: goto done
    :: skip
    fi;
#endif

#ifdef UNLOCKS_BEFORE_VISIBLE
    unlock();
#endif
    atomic {
        alive;
        prepared[w] = false;
        if
        :: visible = visible | rows;             /* COMMIT */
           if :: rings -> rung = rung | listens :: else fi
        :: skip                                  /* ROLLBACK */
        fi;
        rows = 0; rings = false
    };
    unlock();
    goto statement;

lost:                                            /* the crash released the lock, too */
    atomic {
        cut[w] = false; rows = 0; rows_inner = 0;
        in_savepoint = false; rings = false; rings_inner = false
    };
    goto statement;
done:
    written++
}

/* --- Bridges -------------------------------------------------------------------------------- */

/* A query, as the start of a step: a frozen bridge sends none, and one without a session
 * notices that. */
#define asks  !frozen[b] -> if :: !session[b] -> goto connect :: else fi

/* A later step of the same message: it is executed for a frozen bridge as well. */
#define goes_on  if :: !session[b] -> goto connect :: else fi

/* (*) A state in which no process can take a step isn't a cycle, and with fairness SPIN searches only
 * for cycles: without this step, `seen_at_last` would hold where all sleep forever. */

/* Forgets a notification that has arrived; one that is still on its way arrives later. The bridge
 * does so when it wakes up; doing it more often, as here, is a harder case. */
inline clear() {
    atomic {
        !frozen[b];
        if :: rung & bit(b) -> rung = rung & ~bit(b) :: skip fi
    }
}

inline ring()  { rung = rung | listens }

/* Checks whether a transaction holds the table's lock. */
inline test() {
    atomic { goes_on; busy = held[0] || held_inner[0] };
#if WRITERS > 1
    atomic { goes_on; busy = busy || held[1] || held_inner[1] };
#endif
}

inline end_session(b) {
    session[b] = false;
    listens = listens & ~bit(b); rung = rung & ~bit(b); rings_next = rings_next & ~bit(b);
    if :: locked == b_locks -> locked = NOBODY :: else fi
}

inline fall_asleep() {
    assert(listens & bit(b));
    asleep[b] = true; slept = true
}

proctype Bridge(byte b) {
    byte shot;                                   /* the rows in the snapshot of its poll */
    bool busy, stops;
    bool slept;                                  /* has slept, and not been awake since */
#ifdef READS_FLAG_BEFORE_LOOK
    bool own;
#endif
#if defined(CHANGES_WITHOUT_LOCK) || defined(GENERATION_COMES_TWICE)
    byte read;
#endif

connect:
    atomic { !frozen[b] -> session[b] = true; stops = false; busy = false; shot = 0 };
#ifdef LOOKS_BEFORE_LISTEN
    atomic { asks; seen[b] = seen[b] | visible };
#endif
#ifndef LISTENS_AFTER_LAST_LOOK
    atomic {
        asks;
        listens = listens | bit(b);
#ifdef SLEEPS_AFTER_CONNECTING
        if :: slept -> fall_asleep(); goto sleep :: else fi;
#endif
#ifdef LOOKS_AND_SLEEPS_ON
        if :: slept -> goto last_look :: else fi;
#endif
#ifdef NO_LOOK_AFTER_CONNECTING
        goto idle;
#endif
    };
#endif

awake:
    atomic {
        asks;
        slept = false; busy = false;
        seen[b] = seen[b] | visible;
        if
        :: goto awake                            /* continues to poll */
        :: skip                                  /* has found few rows for a while */
        :: set -> goto wake                      /* frequent rows: writers need not ring */
#ifdef STOPS
        :: stops = true; goto wake
#endif
        fi;
#ifdef LOOKS_BEFORE_SETTING
        shot = visible;
#endif
    };

idle:                                            /* one statement: sets the flag, */
#ifdef CLEARS_BELL_BEFORE_SETTING
    clear();
#endif
#ifdef TESTS_BEFORE_SETTING
    test();
#endif
#ifdef CHANGES_WITHOUT_LOCK
    atomic { asks; slept = false; read = set; note(b) };
    atomic {
        goes_on;
        if :: !read -> set_flag(); stale = all & ~bit(b) :: else fi;
        read = 0
    };
#elif defined(GENERATION_COMES_TWICE)
    atomic {
        asks;
        slept = false;
        if :: !may_change -> goto awake :: else fi;
        read = flag; note(b)
    };
    atomic {
        goes_on;
        if :: !(read & 1) -> flag = read + 1; note(b) :: else fi;
        read = 0
    };
#else
    atomic {
        asks;
        slept = false;
        if
        :: may_change -> locked = b_locks
        :: goto awake
        fi;
#ifdef NO_TEST_IF_SET
        busy = set;
#endif
        set_flag();
        note(b);
#ifdef NO_TEST_IF_SET
        if :: busy -> busy = false; goto tested :: else fi;
#endif
    };
#endif
#ifdef UNLOCKS_BEFORE_TEST
    atomic { goes_on; locked = NOBODY };
#endif
#ifdef LOOKS_BEFORE_TEST
    atomic { goes_on; shot = visible };
#endif
#if !defined(NO_TEST) && !defined(TESTS_BEFORE_SETTING)
    test();                                      /* and checks that no writer may have missed it */
#endif
tested:
    atomic {
        goes_on;
        if :: locked == b_locks -> locked = NOBODY :: else fi
    };
    atomic {
        asks;
        if :: busy -> shot = 0; goto awake :: else fi;
#ifdef NO_LOOK_AFTER_TEST
        fall_asleep(); goto sleep;
#endif
    };

last_look:
#if !defined(CLEARS_BELL_AFTER_LOOK) && !defined(CLEARS_BELL_BEFORE_SETTING)
    clear();
#endif
#ifdef CLEARS_BELL_BEFORE_SETTING
    if :: slept -> clear() :: else fi;
#endif
#ifdef READS_FLAG_BEFORE_LOOK
    atomic { asks; own = is_own(b) };
#endif
#if defined(LOOKS_BEFORE_SETTING) || defined(LOOKS_BEFORE_TEST)
    atomic { asks; if :: slept -> shot = visible :: else fi };
#else
    atomic { asks; shot = visible };
#endif
#ifdef CLEARS_BELL_AFTER_LOOK
    clear();
#endif
    atomic {
        asks;
        seen[b] = seen[b] | shot;
        shot = 0;
#ifdef LISTENS_AFTER_LAST_LOOK
        listens = listens | bit(b);
#endif
#ifdef NOTES_GENERATION_LATE
        if :: set && !slept -> note(b) :: else fi;
#endif
        if
#ifdef READS_FLAG_BEFORE_LOOK
        :: own -> own = false
#else
        :: is_own(b)
#endif
#ifdef SLEEPS_WITHOUT_FLAG
        :: !is_own(b) && !slept
#endif
#ifdef SLEEPS_ON_WITHOUT_FLAG
        :: !is_own(b) && slept
#endif
        :: else -> goto awake
        fi;
        if
        :: fall_asleep()                         /* a trickle: one poll per notification */
        :: goto wake
        fi
    };

sleep:
    atomic {
        if
        :: !frozen[b] && ((rung & bit(b)) || !session[b])
#ifdef TICK
        :: !frozen[b]
#ifdef TICK_READS_ONLY_FLAG
            -> if :: session[b] && is_own(b) -> goto sleep :: else fi
#endif
#else
        :: !frozen[b] && session[b] && !(rung & bit(b)) -> goto sleep   /* time passes (*) */
#endif
#ifdef STOPS
        :: !frozen[b] && session[b] ->
            asleep[b] = false; slept = false;
            stops = true;
            goto wake
#endif
        fi;
        asleep[b] = false;
        if
        :: !session[b] -> goto connect
        :: else -> goto last_look
        fi
    };

wake:                                            /* one message: unsets the flag, and rings */
#ifdef STOPS_WITHOUT_WAKING
    if :: stops -> goto stop :: else fi;
#endif
#ifdef RINGS_BEFORE_UNSETTING
    atomic { asks; ring() };
#endif
#ifdef GENERATION_COMES_TWICE
    atomic {
        asks;
        if
        :: set && may_change -> read = flag
        :: else -> goto woken
        fi
    };
    atomic { goes_on; flag = read + 1; read = 0; rings_next = rings_next | bit(b) };
#else
#ifdef CHANGES_WITHOUT_LOCK
    atomic { asks; if :: set :: else -> goto woken fi };
#endif
    atomic {
        asks;
        if
#ifdef CHANGES_WITHOUT_LOCK
        :: true
#else
        :: set && may_change -> locked = b_locks
        :: goto woken
#endif
        fi;
        unset();
#if !defined(NO_WAKE_RING) && !defined(RINGS_BEFORE_UNSETTING)
        rings_next = rings_next | bit(b)
#endif
    };
#endif
#if defined(RINGS_AFTER_UNLOCKING) || defined(UNSETS_THEN_RINGS)
    atomic { goes_on; locked = NOBODY };
#endif
#if !defined(NO_WAKE_RING) && !defined(RINGS_BEFORE_UNSETTING)
    atomic {
#ifdef UNSETS_THEN_RINGS
        asks;
#else
        goes_on;
#endif
        ring();
        rings_next = rings_next & ~bit(b)
    };
#endif
    atomic {
        goes_on;
        if :: locked == b_locks -> locked = NOBODY :: else fi
    };
woken:
    if
    :: !stops -> goto awake
    :: else
    fi;

stop:
    atomic { asks; end_session(b); frozen[b] = true }
}

/* --- Faults --------------------------------------------------------------------------------- */

#ifdef WAKER_DIES
#define may_die(b)  true
#else
#define may_die(b)  (!(rings_next & bit(b)))
#endif

proctype Faults() {
    byte n, b;
    do
    :: n < FAULTS ->
        atomic {
            n++;
            select(b : 0 .. BRIDGES - 1);
            if
            :: may_die(b) -> end_session(b)
            :: frozen[b] = true
            :: may_die(b) -> frozen[b] = true; end_session(b)
#ifdef CRASH
            ::  b = 0;
                do
                :: b < BRIDGES -> end_session(b); b++
                :: else -> break
                od;
                b = 0;
                do
                :: b < WRITERS ->
                    if
                    :: prepared[b]
                    :: else -> cut[b] = true; held[b] = false; held_inner[b] = false
                    fi;
                    b++
                :: else -> break
                od;
                if
                :: unset()
                :: set_flag(); stale = 0         /* worst case: a value that each may remember */
                :: skip
                fi
#endif
            fi;
            b = 0
        }
    :: break
    od
}

init {
    byte i;
    atomic {
        if :: set_flag() :: skip fi;             /* left by earlier bridges */
        for (i : 0 .. BRIDGES - 1) { run Bridge(i) }
        for (i : 0 .. WRITERS - 1) { run Writer(i) }
        if :: FAULTS > 0 -> run Faults() :: else fi
    }
}
