/* The doorbell, as a model for SPIN (https://spinroot.com). `make doorbell` checks it.
 *
 * A flag that everybody sees at once says whether writers ring. A bridge that idles sets it, finds
 * no writer in a transaction, looks, and sleeps. A bridge that wakes unsets it, and rings for the
 * others. Each change gives the flag a new generation; who sleeps knows its own. Two claims:
 *
 *  no_lost_bell  whoever sleeps with a row that it has not seen was rung, or is about to be
 *  seen_at_last  every writer comes to its end, and in the end every bridge that runs has seen
 *                every row that was committed, if whoever can take a step takes it some day
 *
 * Nobody looks once a second in the model (but with TICK): the claims rest on the flag, the table's
 * lock and the bell.
 *
 * What is taken from PostgreSQL:
 *  - The flag is a sequence: a change belongs to no transaction, is seen by all at once, and stays.
 *  - A change is made under an advisory lock of its transaction that is only tried, so no two are
 *    made at once. The try may fail for no good reason: a stranger may have the lock.
 *  - An INSERT has the table's lock before its trigger reads the flag; its transaction keeps it.
 *    Who asks for its holders finds each that has it all the while, though not all at one instant.
 *  - A commit becomes visible at one instant. Later the transaction's locks go; and later, before
 *    or after them, its bell reaches those who listened at that instant, each at its own time.
 *  - Rows, locks and bells of a savepoint that is rolled back go together.
 *  - A query sees what its snapshot saw, but a flag that it reads after that is as it is by then.
 *  - A message is carried out though the client has frozen.
 *  - A session that ends gives up its locks and what it listened to at once. Its bridge learns of
 *    it with its next query, or while it waits, at any time later.
 *  - A crash ends all sessions and transactions, and may take the flag back to any earlier value.
 *    Prepared transactions stay, with their locks.
 *
 * Generations are not counted. A bridge has a bit instead: `stale`, raised for all when the flag is
 * unset, and taken from one that notes the generation. With COUNTED they are, up to a bound, after
 * which the flag stays as it is (not with CRASH): that the bit stands for them is checked as well.
 *
 * Sizes: BRIDGES (up to 3), WRITERS (up to 2), and ROWS, the statements of each writer, which it
 * groups into transactions as it likes, and commits or rolls back.
 *
 * More of the world:
 *  FAULTS=n     n times at most a session of a bridge ends, or a bridge freezes for good, with its
 *               session or without; but a session that has unset the flag rings before it ends
 *  WAKER_DIES   that one may end before, as if its commit failed: the change stays, the bell goes
 *               (with more than one bridge only TICK mends it)
 *  CRASH        a fault may also be a crash of the server
 *  STOPS        bridges may stop in order, for good
 *  SAVEPOINTS   writers open, release and roll back savepoints
 *  PREPARE      writers may prepare a transaction first, if it doesn't ring
 *  HANG         a writer may stay in its transaction for ever
 *  TICK         who sleeps may look by itself
 *
 * Mistakes, each of which must break `seen_at_last`:
 *  LOOKS_BEFORE_SETTING        the look that it falls asleep on has a snapshot from before it set
 *                              the flag
 *  LOOKS_BEFORE_TEST           or from before it asked who has the table's lock
 *  TESTS_BEFORE_SETTING        it asks who has the table's lock, and then sets the flag
 *  NO_TEST                     it doesn't ask
 *  NO_TEST_IF_SET              it asks only if it set the flag itself
 *  NO_LOOK_AFTER_TEST          it doesn't look any more
 *  CLEARS_BELL_AFTER_LOOK      instead of before
 *  LISTENS_AFTER_LAST_LOOK     LISTEN comes after the look that it falls asleep on
 *  SLEEPS_AFTER_CONNECTING     it goes on sleeping on a new session
 *  LOOKS_AND_SLEEPS_ON         it does so after a look, if the flag has the generation it noted
 *                              (a crash brings it back, and keeps what is prepared: CRASH, PREPARE)
 *  SLEEPS_WITHOUT_FLAG         it falls asleep whatever has become of the flag
 *  SLEEPS_ON_WITHOUT_FLAG      when rung it looks, whatever has become of the flag
 *  IGNORES_GENERATION          it cares only whether the flag is set
 *  NOTES_GENERATION_LATE       it takes for its own the generation that its look finds
 *  NO_WAKE_RING                who unsets the flag doesn't ring
 *  RINGS_BEFORE_UNSETTING      it does, but first
 *  UNSETS_THEN_RINGS           it does, in two messages; it may freeze between them (FAULTS)
 *  GENERATION_COMES_TWICE      changes need no lock, and each counts on from what it has read
 *  LOCKS_AFTER_READING_FLAG    a writer reads the flag, and then locks the table
 *  UNLOCKS_BEFORE_VISIBLE      a writer's lock goes before its rows are visible
 *  LOCK_OF_LOST_SAVEPOINT      a row stays, and its lock goes with a savepoint that is rolled back
 *                              (a cursor that inserts and fails there does so; TICK mends it)
 *  BELL_OF_LOST_SAVEPOINT      a row stays, and its bell goes with a savepoint that is rolled back
 *  DOORBELL_OFF                a writer leaves the bell unrung (TICK mends it)
 *  TICK_READS_ONLY_FLAG        a tick looks only if the flag has changed (DOORBELL_OFF)
 *
 * Not mistakes, checked so that nobody need fear them:
 *  NO_LOOK_AFTER_CONNECTING    it tries to sleep before its first look
 *  LOOKS_BEFORE_LISTEN         its first look comes before LISTEN
 *  READS_FLAG_BEFORE_LOOK      after it has forgotten the bell, but before the look's snapshot
 *  CLEARS_BELL_BEFORE_SETTING  and not again; then SLEEPS_WITHOUT_FLAG is no mistake
 *  STOPS_WITHOUT_WAKING        who stops leaves the flag set (STOPS)
 *  UNLOCKS_BEFORE_TEST         others may change the flag while it asks who has the table's lock
 *  RINGS_AFTER_UNLOCKING       who unset the flag rings when others may already change it
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

bool session[BRIDGES];   /* it has one, as the server knows */
bool asleep[BRIDGES];    /* waits for the bell */
bool frozen[BRIDGES];    /* for good, or stopped */
byte listens;            /* bridges */
byte rung;               /* bridges: the bell has reached them, or is on its way to them */

byte locked = NOBODY;    /* who may change the flag: bridge + 1 */
byte rings_next;         /* bridges that have unset the flag, and are still to ring */

bool held[WRITERS];      /* the table's lock, by the transaction */
bool held_inner[WRITERS];/* and by its open savepoint */
bool prepared[WRITERS];
bool cut[WRITERS];       /* its session ended in a crash */
byte written;            /* writers that are done */

#ifdef GENERATION_COMES_TWICE
#define COUNTED
#endif
#ifndef COUNTED
bool set;                /* the flag */
byte stale = all;        /* bridges: the generation that they noted has passed */
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

/* Asleep with a row that it has not seen: was rung, or whoever unset the flag is about to ring. */
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

/* A step of a session that a crash has not ended. */
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
        :: in_savepoint ->                       /* RELEASE; COMMIT does it as well */
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

lost:                                            /* the crash took the lock, too */
    atomic {
        cut[w] = false; rows = 0; rows_inner = 0;
        in_savepoint = false; rings = false; rings_inner = false
    };
    goto statement;
done:
    written++
}

/* --- Bridges -------------------------------------------------------------------------------- */

/* A query, as the start of a step: a frozen bridge asks nothing, and one without a session
 * learns of it. */
#define asks  !frozen[b] -> if :: !session[b] -> goto connect :: else fi

/* A later step of the same message: it is carried out for a frozen bridge as well. */
#define goes_on  if :: !session[b] -> goto connect :: else fi

/* (*) A state in which nobody can take a step is no cycle, and with fairness SPIN searches cycles
 * only: without this step `seen_at_last` would hold where all sleep for ever. */

/* Forgets that the bell rang, if it has come so far: on its way, it comes later. The bridge does
 * so when it wakes; more often, as here, is harder. */
inline clear() {
    atomic {
        !frozen[b];
        if :: rung & bit(b) -> rung = rung & ~bit(b) :: skip fi
    }
}

inline ring()  { rung = rung | listens }

/* Asks whether a transaction has the table's lock. */
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
    byte shot;                                   /* what the snapshot of its look has */
    bool busy, stops;
    bool slept;                                  /* and has not been awake since */
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
        :: goto awake                            /* polls on */
        :: skip                                  /* has found little for a while */
        :: set -> goto wake                      /* rows come fast: spares the writers the bell */
#ifdef STOPS
        :: stops = true; goto wake
#endif
        fi;
#ifdef LOOKS_BEFORE_SETTING
        shot = visible;
#endif
    };

idle:                                            /* one statement: set the flag, */
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
    test();                                      /* and find that no writer may have missed it */
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
        :: fall_asleep()                         /* a trickle: a look a bell */
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
        :: !frozen[b] && session[b] && !(rung & bit(b)) -> goto sleep   /* time goes by (*) */
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

wake:                                            /* one message: unset the flag, and ring */
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
                :: set_flag(); stale = 0         /* at the worst, what each may remember */
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
        if :: set_flag() :: skip fi;             /* as others left it */
        for (i : 0 .. BRIDGES - 1) { run Bridge(i) }
        for (i : 0 .. WRITERS - 1) { run Writer(i) }
        if :: FAULTS > 0 -> run Faults() :: else fi
    }
}
