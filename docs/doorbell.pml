/* The doorbell, as a model for SPIN (https://spinroot.com). `make doorbell` checks it.
 *
 * One advisory lock for each table. A bridge that idles takes it, if it can: it has the seat, and
 * sleeps. A writer rings, unless it could lock it, shared, until its commit is visible. While
 * one bridge has the seat, others sleep as its guests. Two claims:
 *
 *  no_lost_bell  whoever sleeps with a row that it has not seen was rung, or is about to be
 *  seen_at_last  every writer comes to its end, and in the end every bridge that runs has seen
 *                every row that was committed, if whoever can take a step takes it some day
 *
 * Nobody looks once a second in the model (but with TICK): the claims rest on the lock and the bell.
 *
 * What is taken from PostgreSQL:
 *  - A shared try fails while another session holds the lock exclusively; an exclusive try fails
 *    while another session holds it in any mode. Nobody ever waits for the lock.
 *  - A commit becomes visible at one instant. Later the transaction's lock goes; and later, before
 *    or after the lock, its bell reaches those who listened at that instant, each at its own time.
 *  - Rows, locks and bells of a savepoint that is rolled back go together.
 *  - The lock of a session goes at once when it is given back, a NOTIFY in the same message at
 *    the commit after that. A message is carried out though the client has frozen.
 *  - A session that ends gives up its lock and what it listened to at once. Its bridge learns of
 *    it with its next query, or while it waits, at any time later.
 *  - A crash ends all sessions and transactions. Prepared transactions stay, with their locks.
 *
 * Sizes: BRIDGES (up to 3), WRITERS (up to 2), and ROWS, the statements of each writer, which it
 * groups into transactions as it likes, and commits or rolls back.
 *
 * More of the world:
 *  FAULTS=n     n times at most a session of a bridge ends, or a bridge freezes for good, with its
 *               session or without; but the session that has the seat, or is giving it up, stays
 *  SEATED_DIES  that one may end as well (with more than one bridge only TICK mends it)
 *  CRASH        a fault may also be a crash of the server
 *  STOPS        bridges may stop in order, for good
 *  SAVEPOINTS   writers open, release and roll back savepoints
 *  PREPARE      writers may prepare a transaction first, if it doesn't ring
 *  NO_ROOM      a writer may find no room for its lock, and rings
 *  HANG         a writer may stay in its transaction for ever
 *  TICK         who sleeps may look by itself
 *
 * Mistakes, each of which must break `seen_at_last`:
 *  LOOKS_BEFORE_SEATED         the look after sitting down has a snapshot from before
 *  NO_LOOK_WHEN_SEATED         it doesn't look after sitting down
 *  CLEARS_BELL_AFTER_LOOK      instead of before
 *  LISTENS_AFTER_LAST_LOOK     LISTEN comes after the look that it falls asleep on
 *  SLEEPS_AFTER_CONNECTING     it goes on sleeping on a new session
 *  SLEEPS_WITHOUT_SEAT         it gives its seat up and sleeps on
 *  SITS_AMONG_WRITERS          it takes the seat though a writer holds the lock
 *  GUEST_AMONG_WRITERS         it takes a failed try for somebody's seat, and never tests it
 *  GUEST_LOOKS_BEFORE_TEST     a guest looks, and then tests whether the seat is taken
 *  GUEST_NEVER_TESTS           a guest that was rung looks, and doesn't test the seat
 *  NO_LEAVE_RING               who gives the seat up doesn't ring
 *  RINGS_BEFORE_UNLOCK         it does, but first
 *  UNLOCK_AND_RING             it does, in two messages; it may freeze between them (FAULTS)
 *  STOPS_WITHOUT_LEAVING       who stops doesn't give the seat up in order (STOPS)
 *  TICK_TESTS_WITHOUT_LOOKING  a guest's tick looks only if the seat is free (SEATED_DIES)
 *  UNLOCKS_BEFORE_VISIBLE      a writer's lock goes before its rows are visible
 *  LOCK_OF_LOST_SAVEPOINT      a row stays, and its lock goes with a savepoint that is rolled back
 *  BELL_OF_LOST_SAVEPOINT      a row stays, and its bell goes with a savepoint that is rolled back
 *  DOORBELL_OFF                a writer leaves the bell unrung (TICK mends it)
 *
 * Not mistakes, checked so that nobody need fear them:
 *  NO_LOOK_AFTER_CONNECTING    it tries to sleep before its first look
 *  LOOKS_BEFORE_LISTEN         its first look comes before LISTEN
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
#define b_sits  (b + 1)

byte visible;            /* rows that are committed */
byte seen[BRIDGES];      /* rows */

bool session[BRIDGES];   /* it has one, as the server knows */
bool asleep[BRIDGES];    /* waits for the bell */
bool frozen[BRIDGES];    /* for good, or stopped */
byte listens;            /* bridges */
byte rung;               /* bridges: the bell has reached them, or is on its way to them */

byte sits = NOBODY;      /* who holds the lock exclusively: bridge + 1 */
byte leaves;             /* bridges that have given it up, and are still to ring */
bool held[WRITERS];      /* the lock shared, by the transaction */
bool held_inner[WRITERS];/* and by its open savepoint */
bool prepared[WRITERS];
bool cut[WRITERS];       /* its session ended in a crash */
byte written;            /* writers that are done */

#if WRITERS == 1
#define among_writers (held[0] || held_inner[0])
#else
#define among_writers (held[0] || held_inner[0] || held[1] || held_inner[1])
#endif

#define has_seen(b) (frozen[b] || (visible & ~seen[b]) == 0)
#if BRIDGES == 1
#define all_have_seen has_seen(0)
#elif BRIDGES == 2
#define all_have_seen (has_seen(0) && has_seen(1))
#else
#define all_have_seen (has_seen(0) && has_seen(1) && has_seen(2))
#endif

/* Asleep with a row that it has not seen: was rung, or whoever gave the seat up is about to ring. */
#define rests(b) (!asleep[b] || !session[b] || (rung & bit(b)) || leaves != 0 || \
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

/* The trigger, at the end of each INSERT. */
inline trigger() {
    atomic {
        alive;
        if
        :: sits == NOBODY ->
            if
            :: in_savepoint -> held_inner[w] = true
            :: else -> held[w] = true
            fi
        :: sits != NOBODY ->
            if :: in_savepoint -> rings_inner = true :: else -> rings = true fi
#ifdef NO_ROOM
        :: sits == NOBODY ->
            if :: in_savepoint -> rings_inner = true :: else -> rings = true fi
#endif
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
        row++
    };
#ifndef DOORBELL_OFF
    trigger();
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

inline look()  { seen[b] = seen[b] | visible }

inline ring()  { rung = rung | listens }

inline end_session(b) {
    session[b] = false;
    listens = listens & ~bit(b); rung = rung & ~bit(b); leaves = leaves & ~bit(b);
    if :: sits == b_sits -> sits = NOBODY :: else fi
}

inline fall_asleep() {
    asleep[b] = true;
#if !defined(SLEEPS_AFTER_CONNECTING) && !defined(SLEEPS_WITHOUT_SEAT)
    assert((listens & bit(b)) && (is_guest || sits == b_sits));
#endif
#ifndef SITS_AMONG_WRITERS
    assert(sits == NOBODY || !among_writers);
#endif
}

proctype Bridge(byte b) {
    byte before;
    bool is_guest, stops, ticks;

connect:
    atomic { !frozen[b] -> session[b] = true; is_guest = false; stops = false };
#ifdef LOOKS_BEFORE_LISTEN
    atomic { asks; look() };
#endif
#ifndef LISTENS_AFTER_LAST_LOOK
    atomic {
        asks;
        listens = listens | bit(b);
#ifdef SLEEPS_AFTER_CONNECTING
        if
        :: seen[b] != 0 -> fall_asleep(); goto sleep
        :: else
        fi;
#endif
#ifdef NO_LOOK_AFTER_CONNECTING
        goto idle;
#endif
    };
#endif

awake:
    atomic {
        asks;
        look();
        if
        :: goto awake                            /* polls on */
        :: skip                                  /* has found little for a while */
#ifdef STOPS
        :: goto stop
#endif
        fi;
#ifdef LOOKS_BEFORE_SEATED
        before = visible;
#endif
    };

idle:                                            /* one statement: try for the seat; */
    atomic {
        asks;
        if
#ifndef SITS_AMONG_WRITERS
        :: sits == NOBODY && !among_writers -> sits = b_sits; goto seated
#else
        :: sits == NOBODY -> sits = b_sits; goto seated
#endif
        :: skip                                  /* a writer, a bridge, or the test of another */
        fi;
#ifdef GUEST_AMONG_WRITERS
        is_guest = true; goto last_look;
#endif
    };
    is_guest = true;

guest:                                           /* or else test it as writers do */
    clear();
#ifdef GUEST_LOOKS_BEFORE_TEST
    atomic { asks; look() };
#endif
    atomic {
        asks;
        if
        :: sits == NOBODY -> is_guest = false; ticks = false; goto awake
        :: else
        fi;
#ifdef GUEST_LOOKS_BEFORE_TEST
        fall_asleep(); goto sleep;
#endif
#ifdef TICK_TESTS_WITHOUT_LOOKING
        if :: ticks -> ticks = false; fall_asleep(); goto sleep :: else fi;
#endif
        goto last_look
    };

seated:
    clear();
#ifdef NO_LOOK_WHEN_SEATED
    atomic { asks; fall_asleep(); goto sleep };
#elif defined(LOOKS_BEFORE_SEATED)
    atomic { asks; seen[b] = seen[b] | before; fall_asleep(); goto sleep };
#endif

last_look:
    atomic {
        asks;
        look();
#if defined(CLEARS_BELL_AFTER_LOOK) || defined(LISTENS_AFTER_LAST_LOOK)
    };
#ifdef CLEARS_BELL_AFTER_LOOK
    clear();
#endif
    atomic {
        asks;
        listens = listens | bit(b);
#endif
        if
        :: fall_asleep()
#ifndef SLEEPS_WITHOUT_SEAT
        :: !is_guest -> goto leave               /* rows come fast: spares the writers the bell */
#endif
        fi
    };

sleep:
    atomic {
        if
        :: !frozen[b] && ((rung & bit(b)) || !session[b])
#ifdef TICK
        :: !frozen[b] -> ticks = true
#else
        :: !frozen[b] && session[b] && !(rung & bit(b)) -> goto sleep   /* time goes by (*) */
#endif
#ifdef STOPS
        :: !frozen[b] && session[b] ->
            asleep[b] = false;
            stops = true;
            if
#ifndef STOPS_WITHOUT_LEAVING
            :: sits == b_sits -> goto leave
#endif
            :: else -> goto stop
            fi
#endif
        fi;
        asleep[b] = false;
        if
        :: !session[b] -> ticks = false; goto connect
        :: session[b] && is_guest ->
#ifdef GUEST_NEVER_TESTS
            clear();
            goto last_look
#else
            goto guest
#endif
        :: session[b] && !is_guest ->
            clear();
#ifdef SLEEPS_WITHOUT_SEAT
            if :: sits == b_sits -> sits = NOBODY :: else fi;
#endif
            goto last_look                       /* a trickle: a look a bell */
        fi
    };

leave:
#ifdef RINGS_BEFORE_UNLOCK
    atomic { asks; ring() };
    atomic { asks; sits = NOBODY };
#else
    atomic {
        asks;
        assert(sits == b_sits);
        sits = NOBODY;
#ifndef NO_LEAVE_RING
        leaves = leaves | bit(b)
#endif
    };
#ifndef NO_LEAVE_RING
    atomic {
#ifdef UNLOCK_AND_RING
        asks;
#else
        if :: !session[b] -> goto connect :: else fi;
#endif
        ring();
        leaves = leaves & ~bit(b)
    };
#endif
#endif
    if
    :: !stops -> goto awake
    :: else
    fi;

stop:
    atomic { asks; end_session(b); frozen[b] = true }
}

/* --- Faults --------------------------------------------------------------------------------- */

#ifdef SEATED_DIES
#define may_die(b)  true
#else
#define may_die(b)  (sits != b_sits && !(leaves & bit(b)))
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
                od
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
        for (i : 0 .. BRIDGES - 1) { run Bridge(i) }
        for (i : 0 .. WRITERS - 1) { run Writer(i) }
        if :: FAULTS > 0 -> run Faults() :: else fi
    }
}
