/*
 * lease.pml: two nodes, one file share, at most one of them active.
 *
 * The rules are L1 to L8 of docs/guarantees.md.  README.md in this folder says what is
 * modelled, what is not, and how to read a counterexample.  `model/run` checks it.
 *
 * Each rule can be taken out (-DNO_L1 ...); the verifier must then find two active nodes.
 *
 * Shape   One process for each node and one for the world (the file server, which carries
 *         out requests, and the clock).  Every option of a `do` is one atomic step.  Nothing
 *         ever forces a node to move: a node paused between any two steps is the schedule in
 *         which its process is not chosen while the clock goes on.
 * Time    Ticks.  No absolute time is kept, only how much is left or has gone by, so the
 *         proof has no time limit.
 * Epochs  Without VANISH they are kept relative to the newest one (1 = the newest, 0 = any
 *         older one, whose record no longer matters), so the proof has no limit on their
 *         number.  With VANISH they are absolute, 1 to EPOCHS.
 */

/* ---- constants ------------------------------------------------------------------------ */

#ifndef HOLD
#define HOLD 3 /* ticks from before a claim or renewal began to the holder's deadline */
#endif
#ifndef LATE
#define LATE 1 /* ticks past the deadline by which the guard has killed, drift included */
#endif
#ifdef NO_L4
#define WAIT (HOLD + LATE - 1)
#else
#define WAIT (HOLD + LATE) /* ticks for which the watcher must see no change */
#endif

#ifndef VANISH
#define VANISH 0 /* how often the newest epoch may vanish from the share */
#endif
#if defined(NO_SAME) || defined(NO_DOUBT) || defined(NO_SESSION)
#define KEEP_KNOWLEDGE
#endif

#if VANISH
#ifndef EPOCHS
#define EPOCHS 4
#endif
#define CLAIM_MAX EPOCHS
#else
#define EPOCHS 1
#define CLAIM_MAX 2 /* the next one; it is called 1 as soon as it exists */
#endif

/* printf of one of two texts; Promela has no strings in expressions. */
#define SAY_IF(cond, yes, no) if :: cond -> printf(yes) :: else -> printf(no) fi

/* Fewer steps, where a counterexample needs no more and would take long to find. */
#ifdef FEW
#define CRASHES false
#else
#define CRASHES true
#endif

/* State of the record of an epoch. */
#define ABSENT 0
#define TORN 1 /* created, its content not yet written */
#define HELD 2
#define RELEASED 3

/* Phase of a node. */
#define WATCHING 0
#define HOLDING 1
#define DYING 2 /* the daemon is dead, the guard has not finished yet */

/* The request in flight and how far it is. */
#define NONE 0
#define LOOK_SENT 1
#define LOOK_READ 2
#define CLAIM_SENT 3
#define CLAIM_CREATED 4
#define CLAIM_GOOD 5
#define CLAIM_LOST 6
#define RENEW_SENT 7
#define RENEW_WRITTEN 8
#define RENEW_GOOD 9
#define RENEW_LOST 10
#define RELEASE_SENT 11
#define RELEASE_WRITTEN 12

/* A request whose sender gave up and which may still land. */
#define LATE_CREATE 1
#define LATE_WRITE 2
#define LATE_RELEASE 3

/* ---- the share ------------------------------------------------------------------------ */

byte rec[EPOCHS + 3]; /* rec[e]: record of epoch e; rec[0] is never used */
byte top = 1;         /* the highest epoch that exists */
#if VANISH
byte vanish_left = VANISH;
#endif

/* ---- the nodes ------------------------------------------------------------------------ */

byte phase[2];
byte op[2];
bit serves[2];  /* its services run: from its decision until it or the guard stops them */
byte epoch[2];  /* the epoch it claims or holds */
byte left[2];   /* ticks until the guard has killed; own deadline passed: left <= LATE */
byte age[2];    /* ticks since before the claim or renewal in flight began */
byte seen[2];   /* watching: the newest epoch it knows; 0 nothing yet, or a long gone one */
byte quiet[2];  /* ticks since it last learned of a change, up to WAIT */
bit may[2];     /* its last look allows a claim */
bit sent_ok[2]; /* its look in flight was sent after the wait */
byte got[2];    /* what the look in flight found: the newest epoch, */
bit changed[2]; /* whether that or its record differs from what this node knows, */
bit freed[2];   /* and whether the record says released */
bit dirty[2];   /* the record it knows was written since it learned of it */
bit dirty2[2];  /* the same for what the look in flight has found */
#if VANISH
bit lost[2];    /* its connection was lost; what it asks next goes over a new one */
bit fresh[2];   /* its look in flight was the first over a new connection */
byte trust[2];  /* ticks since the answer to that look, up to WAIT */
bit tmp_mine;   /* always 0 between steps */
bit mine[2];    /* the file of the epoch it holds is the one that it created */
byte gave[2];   /* the epoch that it released itself in this life and session, or 0 */
#endif
#if VANISH && !defined(NO_DOUBT)
#define TRUSTED(i) (trust[i] >= WAIT || gave[i] == got[i])
#else
#define TRUSTED(i) true
#endif
byte tmp, epoch_new; /* always 0 between steps */
byte late[2];   /* what may still land, */
byte late_epoch[2]; /* and of which epoch */
#ifdef NO_L6
bit again[2];   /* the renewal in flight began after the deadline */
#endif

/* Reachability: with one of these, a `counterexample` is the proof that the model does what
 * it is for; a model in which nobody ever becomes active would be safe, and worthless. */
#if defined(REACH_WAIT) || defined(REACH_RELEASE)
byte last;         /* who was active last: node + 1 */
bit by_release[2]; /* the claim was allowed by a release, not by the wait */
#define TOOK(i) by_release[i] = freed[i]
#endif
#ifdef REACH_WAIT
#define REACHED(i) assert(last == 0 || last == i + 1 || by_release[i]); last = i + 1
#elif defined(REACH_RELEASE)
#define REACHED(i) assert(last == 0 || last == i + 1 || !by_release[i]); last = i + 1
#elif defined(REACH_VANISH)
#define REACHED(i) assert(vanish_left == VANISH)
#else
#define REACHED(i) skip
#endif
#ifndef TOOK
#define TOOK(i) skip
#endif

#define NAME(i) (97 + i)

#ifdef NO_TORN
#define IS_RELEASED(r) (r == RELEASED || r == TORN)
#else
#define IS_RELEASED(r) (r == RELEASED)
#endif

/* ---- what landing requests do --------------------------------------------------------- */

#ifdef NO_L3
#define QUIET_SPOILT(i) skip
#define QUIET_COUNTS(i) (seen[i] > 0)
#else
#define QUIET_SPOILT(i) quiet[i] = 0
#define QUIET_COUNTS(i) (seen[i] > 0 && !dirty[i])
#endif

/* Node i's next answered look will find a change, so how long it has waited no longer
 * matters; forgetting it saves states. */
inline spoil(i)
{
    dirty[i] = 1;
    QUIET_SPOILT(i)
}

/* The record of epoch e was written. */
inline touch(e)
{
    if
    :: seen[0] == e -> spoil(0)
    :: else
    fi;
    if
    :: seen[1] == e -> spoil(1)
    :: else
    fi;
    if
    :: op[0] == LOOK_READ && got[0] == e -> dirty2[0] = 1
    :: else
    fi;
    if
    :: op[1] == LOOK_READ && got[1] == e -> dirty2[1] = 1
    :: else
    fi
}

inline older(x)
{
    if
    :: x > 0 -> x--
    :: else
    fi
}

/* After a create: without VANISH the newest epoch is called 1 again, all others 0. */
inline rename_epochs()
{
#if VANISH
    if
    :: epoch_new > top -> top = epoch_new
    :: else
    fi;
    epoch_new = top;
    clear_old()
#else
    if
    :: epoch_new == 2 ->
        rec[1] = rec[2];
        rec[2] = ABSENT;
        older(epoch[0]); older(epoch[1]);
        older(seen[0]); older(seen[1]);
        older(got[0]); older(got[1]);
        older(late_epoch[0]); older(late_epoch[1]);
        /* What is known of an older epoch, and writes to it, no longer matter. */
        if
        :: seen[0] == 0 -> quiet[0] = 0; dirty[0] = 0
        :: else
        fi;
        if
        :: seen[1] == 0 -> quiet[1] = 0; dirty[1] = 0
        :: else
        fi;
        dirty2[0] = 0;
        dirty2[1] = 0
    :: else
    fi
#endif
}

#if VANISH
#define IS_OLD(e) (e < FLOOR)
#else
#define IS_OLD(e) false
#endif

#if VANISH
/* No epoch below this can become the newest again.  What is known of one no longer matters;
 * forgetting it saves states. */
#define FLOOR (top - vanish_left)

inline forget_old(i)
{
    if
    :: seen[i] > 0 && seen[i] < FLOOR && rec[seen[i] + 1] != ABSENT ->
        seen[i] = 0; quiet[i] = 0; dirty[i] = 0
    :: else
    fi;
    if
    :: late[i] > LATE_CREATE && late_epoch[i] < FLOOR -> late[i] = NONE; late_epoch[i] = 0
    :: else
    fi
}

inline clear_old()
{
    forget_old(0);
    forget_old(1);
    do
    :: epoch_new > 0 ->
        if
        :: epoch_new < FLOOR && rec[epoch_new] != ABSENT -> rec[epoch_new] = HELD
        :: else
        fi;
        epoch_new--
    :: else -> break
    od;
    skip
}
#endif

inline write_record(e, state)
{
    if
    :: e > 0 && rec[e] != ABSENT ->
        touch(e);
        rec[e] = (IS_OLD(e) -> HELD : state)
    :: else
    fi
}

/* ---- the node's steps ----------------------------------------------------------------- */

inline forget_look(i)
{
#if VANISH
    fresh[i] = 0;
#endif
    got[i] = 0;
    changed[i] = 0;
    freed[i] = 0;
    sent_ok[i] = 0;
    dirty2[i] = 0
}

inline forget_watch(i)
{
    seen[i] = 0;
    quiet[i] = 0;
    dirty[i] = 0;
    may[i] = 0
}

/* No longer a holder; the services are down. */
inline to_watching(i)
{
    phase[i] = WATCHING;
    serves[i] = 0;
    left[i] = 0;
    epoch[i] = 0;
#if VANISH
    mine[i] = 0;
#endif
    forget_watch(i)
}

/* A claim rests on a read; it counts only over the same connection as that read. */
#if VANISH && !defined(NO_SAME)
#define SAME_SESSION(i) (!lost[i])
#else
#define SAME_SESSION(i) true
#endif

/* A holder rewrites only the record that it created itself. */
#if VANISH && !defined(NO_MARK)
#define IS_MINE(i) (rec[epoch[i]] != ABSENT && mine[i])
#else
#define IS_MINE(i) (rec[epoch[i]] != ABSENT)
#endif

/* Is there something to land?  A rewrite goes out only after a read that shows our record. */
#define IN_THE_AIR(i) ((op[i] == CLAIM_SENT && SAME_SESSION(i)) || op[i] == CLAIM_CREATED \
    || ((op[i] == RENEW_SENT || op[i] == RELEASE_SENT) && IS_MINE(i)))

/* The sender gives up; what has not landed yet is lost, or may land later. */
inline give_up(i, may_land)
{
    if
    :: may_land && late[i] == NONE ->
        if
        :: op[i] == CLAIM_SENT -> late[i] = LATE_CREATE
        :: op[i] == CLAIM_CREATED || op[i] == RENEW_SENT -> late[i] = LATE_WRITE
        :: op[i] == RELEASE_SENT -> late[i] = LATE_RELEASE
        :: else
        fi;
        if
        :: late[i] != NONE -> late_epoch[i] = epoch[i]
        :: else
        fi
    :: else
    fi;
    op[i] = NONE;
    age[i] = 0;
#if VANISH
    lost[i] = (lost[i] || fresh[i]);
#endif
    forget_look(i);
#ifdef NO_L6
    again[i] = 0;
#endif
    if
    :: phase[i] == WATCHING ->
        epoch[i] = 0;
#if VANISH
        mine[i] = 0
#endif
    :: else
    fi
}

inline become_holder(i, since)
{
    phase[i] = HOLDING;
    left[i] = HOLD - since + LATE;
    op[i] = NONE;
    age[i] = 0;
    forget_watch(i)
}

proctype node(bit i)
{
    do
    /* L3: look at the share; remember whether the look was sent after the wait. */
    :: d_step { phase[i] == WATCHING && op[i] == NONE ->
        op[i] = LOOK_SENT;
        sent_ok[i] = (seen[i] > 0 && quiet[i] >= WAIT);
        may[i] = 0;
        printf("node %c: sends a look; ", NAME(i));
        SAY_IF(sent_ok[i], "its wait is over\n", "its wait is not over\n");
    }
    :: d_step { op[i] == LOOK_READ ->
        if
        :: changed[i] ->
            seen[i] = got[i];
            quiet[i] = 0;
            dirty[i] = dirty2[i];
        :: else
        fi;
#if VANISH
        if
        :: fresh[i] ->
            trust[i] = 0;
#ifndef NO_SESSION
            gave[i] = 0;
#endif
        :: else
        fi;
#endif
#ifdef NO_L3
        may[i] = (freed[i] && TRUSTED(i)) || (!changed[i] && quiet[i] >= WAIT);
#else
        may[i] = (freed[i] && TRUSTED(i)) || (!changed[i] && sent_ok[i]);
#endif
        printf("node %c: gets the answer: epoch %d ", NAME(i), got[i]);
        SAY_IF(changed[i], "changed", "unchanged");
        SAY_IF(freed[i], ", released", "");
        SAY_IF(may[i], ": it may take over\n", ": it waits on\n");
        TOOK(i);
        op[i] = NONE;
        forget_look(i);
    }

    /* L1: claim exactly the next epoch. */
    :: d_step { phase[i] == WATCHING && op[i] == NONE && may[i] && seen[i] < CLAIM_MAX ->
        op[i] = CLAIM_SENT;
        epoch[i] = seen[i] + 1;
        age[i] = 0;
        may[i] = 0;
        printf("node %c: sends the claim of epoch %d\n", NAME(i), epoch[i]);
    }
    :: d_step { op[i] == CLAIM_GOOD ->
        if
#ifdef NO_L5
        :: true ->
            become_holder(i, 0);
#else
        :: age[i] < HOLD ->
            become_holder(i, age[i]);
#endif
            printf("node %c: gets the answer: it holds epoch %d, deadline in %d\n",
                NAME(i), epoch[i], left[i] - LATE);
        :: else ->
            printf("node %c: gets the answer to its claim too late\n", NAME(i));
            op[i] = NONE; age[i] = 0; epoch[i] = 0;
        fi;
    }
    :: d_step { op[i] == CLAIM_LOST ->
        printf("node %c: gets the answer: the claim failed\n", NAME(i));
        op[i] = NONE; age[i] = 0; epoch[i] = 0;
    }

    :: d_step { phase[i] == HOLDING && !serves[i] && left[i] > LATE ->
        serves[i] = 1;
        printf("node %c: ACTIVE with epoch %d\n", NAME(i), epoch[i]);
        REACHED(i);
        assert(!(serves[0] && serves[1]));
    }

    /* L2: renew; counts only if it finished before the deadline it extends. */
    :: d_step { phase[i] == HOLDING && op[i] == NONE && left[i] > LATE ->
        op[i] = RENEW_SENT;
        age[i] = 0;
        printf("node %c: sends a renewal of epoch %d, deadline in %d\n", NAME(i),
            epoch[i], left[i] - LATE);
    }
#ifdef NO_L6
    :: d_step { phase[i] == HOLDING && op[i] == NONE && left[i] <= LATE ->
        op[i] = RENEW_SENT;
        age[i] = 0;
        again[i] = 1;
        printf("node %c: its deadline has passed, sends a renewal of epoch %d\n",
            NAME(i), epoch[i]);
    }
    :: d_step { op[i] == RENEW_GOOD && again[i] && age[i] < HOLD ->
        left[i] = HOLD - age[i] + LATE;
        op[i] = NONE; age[i] = 0; again[i] = 0;
        printf("node %c: gets the answer: renewed, deadline in %d\n", NAME(i),
            left[i] - LATE);
    }
#endif
    :: d_step { op[i] == RENEW_GOOD ->
        if
#ifdef NO_L2
        :: age[i] < HOLD ->
#else
        :: left[i] > LATE ->
#endif
            left[i] = HOLD - age[i] + LATE;
            printf("node %c: gets the answer: renewed, deadline in %d\n", NAME(i),
                left[i] - LATE);
        :: else ->
            printf("node %c: gets the answer after its deadline: does not count\n",
                NAME(i));
        fi;
        op[i] = NONE; age[i] = 0;
    }
    :: d_step { op[i] == RENEW_LOST ->
        printf("node %c: gets the answer: epoch %d is lost; it stops\n", NAME(i),
            epoch[i]);
        op[i] = NONE; age[i] = 0;
        to_watching(i);
    }

    /* L6, L7: stop, and then, if all went well, say so. */
    :: d_step { phase[i] == HOLDING && op[i] == NONE ->
        printf("node %c: stops its services\n", NAME(i));
        to_watching(i);
    }
    :: d_step { phase[i] == HOLDING && op[i] == NONE ->
        tmp = epoch[i];
#if VANISH
        tmp_mine = mine[i];
#endif
#ifdef NO_L7
        printf("node %c: sends a release of epoch %d, then stops\n", NAME(i), epoch[i]);
#else
        printf("node %c: stops its services, sends a release of epoch %d\n", NAME(i),
            epoch[i]);
        to_watching(i);
#endif
        epoch[i] = tmp;
        tmp = 0;
        op[i] = RELEASE_SENT;
#if VANISH
        gave[i] = epoch[i];
        mine[i] = tmp_mine;
        tmp_mine = 0;
#endif
    }
    :: d_step { op[i] == RELEASE_WRITTEN ->
        op[i] = NONE;
        to_watching(i);
    }

    /* L8: no answer.  What it asked for may have happened, or may happen yet. */
    :: d_step { CRASHES && IN_THE_AIR(i) && late[i] == NONE ->
        printf("node %c: gives up on its request, which may land later\n", NAME(i));
#ifdef NO_L8
        if
        :: op[i] == RENEW_SENT && left[i] > LATE -> left[i] = HOLD - age[i] + LATE
        :: else
        fi;
#endif
        give_up(i, 1);
    }
    :: d_step { op[i] != NONE ->
        printf("node %c: gives up on its request; the answer is lost\n", NAME(i));
#ifdef NO_L8
        if
        :: op[i] == RENEW_SENT && left[i] > LATE -> left[i] = HOLD - age[i] + LATE
        :: else
        fi;
#endif
        give_up(i, 0);
    }

    /* A crash of the daemon or the node.  Services live on until the guard has finished;
     * only then does the daemon start again, or the keeper write its will. */
    :: d_step { CRASHES && phase[i] != DYING ->
        printf("node %c: CRASH\n", NAME(i));
        give_up(i, IN_THE_AIR(i));
        may[i] = 0;
#if VANISH
        lost[i] = 1;
        gave[i] = 0;
#ifndef KEEP_KNOWLEDGE
        trust[i] = 0;
#endif
#endif
        if
        :: phase[i] == HOLDING ->
            phase[i] = DYING;
            left[i] = (serves[i] -> left[i] : 0)
        :: else -> forget_watch(i)
        fi;
    }
    :: d_step { phase[i] == DYING ->
        printf("node %c: the guard has finished; the node starts again\n", NAME(i));
        to_watching(i);
    }
    :: d_step { phase[i] == DYING && late[i] == NONE && IS_MINE(i) ->
        printf("node %c: the guard has finished; the keeper writes its will\n", NAME(i));
        late[i] = LATE_RELEASE;
        late_epoch[i] = epoch[i];
        to_watching(i);
    }
    od
}

/* ---- the world ------------------------------------------------------------------------ */

inline create(e)
{
    epoch_new = e;
    rec[e] = TORN;
    touch(e);
    rename_epochs();
    epoch_new = 0
}

#ifdef NO_L1
#define CAN_CREATE(e) true
#else
#define CAN_CREATE(e) (e > 0 && rec[e] == ABSENT)
#endif

/* The file server carries out the next step of node i's request. */
inline land(i)
{
    if
    :: op[i] == LOOK_SENT ->
        op[i] = LOOK_READ;
        got[i] = top;
        changed[i] = (dirty[i] || top != seen[i]);
#if VANISH
        /* L1: just connected, a node knows nothing. */
        fresh[i] = lost[i];
        lost[i] = 0;
        changed[i] = (changed[i] || fresh[i]);
#endif
        freed[i] = IS_RELEASED(rec[top]);
        if
        :: changed[i] -> sent_ok[i] = 0
        :: else
        fi;
        printf("share: reads epoch %d for node %c\n", top, NAME(i));
    :: op[i] == CLAIM_SENT ->
        if
        :: CAN_CREATE(epoch[i]) && SAME_SESSION(i) ->
            op[i] = CLAIM_CREATED;
#if VANISH
            mine[i] = 1;
#endif
            printf("share: creates epoch %d for node %c\n", epoch[i], NAME(i));
            create(epoch[i]);
        :: else ->
            op[i] = CLAIM_LOST;
            printf("share: node %c cannot create epoch %d\n", NAME(i), epoch[i]);
        fi
    :: op[i] == CLAIM_CREATED ->
        if
        :: epoch[i] > 0 && rec[epoch[i]] == ABSENT -> op[i] = CLAIM_LOST
        :: else -> op[i] = CLAIM_GOOD
        fi;
        printf("share: writes the record of epoch %d for node %c\n", epoch[i], NAME(i));
        write_record(epoch[i], HELD);
    :: op[i] == RENEW_SENT ->
        if
        :: epoch[i] > 0 && !IS_MINE(i) ->
            op[i] = RENEW_LOST;
            printf("share: epoch %d is not node %c's any more\n", epoch[i], NAME(i));
        :: else ->
            op[i] = RENEW_WRITTEN;
            printf("share: rewrites epoch %d for node %c\n", epoch[i], NAME(i));
            write_record(epoch[i], HELD);
        fi
    :: op[i] == RENEW_WRITTEN ->
        if
        :: rec[epoch[i] + 1] != ABSENT -> op[i] = RENEW_LOST
        :: else -> op[i] = RENEW_GOOD
        fi;
        printf("share: node %c looks for epoch %d: ", NAME(i), epoch[i] + 1);
        SAY_IF(op[i] == RENEW_GOOD, "not there\n", "there\n");
    :: op[i] == RELEASE_SENT ->
        op[i] = RELEASE_WRITTEN;
        if
        :: epoch[i] > 0 && !IS_MINE(i) ->
            printf("share: epoch %d is not node %c's any more\n", epoch[i], NAME(i))
        :: else ->
            printf("share: writes released over epoch %d for node %c\n", epoch[i], NAME(i));
            write_record(epoch[i], RELEASED)
        fi;
    fi
}

#define CAN_LAND(i) (op[i] == LOOK_SENT || op[i] == CLAIM_SENT || op[i] == CLAIM_CREATED \
    || op[i] == RENEW_SENT || op[i] == RENEW_WRITTEN || op[i] == RELEASE_SENT)

inline land_late(i)
{
    if
    :: late[i] == LATE_CREATE ->
        if
        :: CAN_CREATE(late_epoch[i]) ->
            late[i] = LATE_WRITE;
            printf("share: LATE create of epoch %d for node %c\n", late_epoch[i],
                NAME(i));
            create(late_epoch[i]);
        :: else ->
            late[i] = NONE;
            late_epoch[i] = 0;
        fi
    :: late[i] == LATE_WRITE ->
        printf("share: LATE write to epoch %d for node %c\n", late_epoch[i], NAME(i));
        write_record(late_epoch[i], HELD);
        late[i] = NONE;
        late_epoch[i] = 0;
    :: late[i] == LATE_RELEASE ->
        printf("share: LATE release of epoch %d for node %c\n", late_epoch[i], NAME(i));
        write_record(late_epoch[i], RELEASED);
        late[i] = NONE;
        late_epoch[i] = 0;
    fi
}

inline pass(i)
{
#if VANISH
    if
    :: trust[i] < WAIT && !lost[i] -> trust[i]++
    :: else
    fi;
#endif
    if
    :: left[i] > 0 ->
        left[i]--;
        if
        :: left[i] == 0 && serves[i] ->
            serves[i] = 0;
            printf("guard %c: kills the services\n", NAME(i));
        :: left[i] <= LATE && !serves[i] -> left[i] = 0
        :: else
        fi
    :: else
    fi;
    if
    :: op[i] >= CLAIM_SENT && op[i] <= RENEW_GOOD && age[i] < HOLD -> age[i]++
    :: else
    fi;
    if
    :: QUIET_COUNTS(i) && quiet[i] < WAIT -> quiet[i]++
    :: else
    fi
}

#if VANISH
/* The file server crashes: connections are lost, and with them what was in the air. */
inline disconnect(i)
{
    lost[i] = 1;
    late[i] = NONE;
    late_epoch[i] = 0;
#ifndef KEEP_KNOWLEDGE
    /* Its next answered look starts everything anew; forgetting now saves states. */
    trust[i] = 0;
    forget_watch(i);
    if
    :: op[i] == LOOK_READ -> op[i] = LOOK_SENT; forget_look(i)
    :: op[i] == LOOK_SENT -> forget_look(i)
    :: else
    fi;
#endif
    if
    :: op[i] == CLAIM_CREATED -> op[i] = CLAIM_LOST
    :: op[i] == RENEW_WRITTEN -> op[i] = RENEW_SENT /* tried again, from the start */
    :: else
    fi;
    if
    :: epoch[i] == top -> mine[i] = 0
    :: else
    fi;
    if
    :: gave[i] == top -> gave[i] = 0
    :: else
    fi
}
#endif

proctype world()
{
    do
    :: d_step { CAN_LAND(0) -> land(0) }
    :: d_step { CAN_LAND(1) -> land(1) }
    :: d_step { late[0] != NONE -> land_late(0) }
    :: d_step { late[1] != NONE -> land_late(1) }
    :: d_step { late[0] != NONE -> late[0] = NONE; late_epoch[0] = 0 }
    :: d_step { late[1] != NONE -> late[1] = NONE; late_epoch[1] = 0 }
    :: d_step { true -> printf("TICK\n"); pass(0); pass(1) }
#ifdef FROZEN
    :: d_step { true -> printf("TICK node a is frozen\n"); pass(1) }
#endif
#if VANISH
    :: d_step { vanish_left > 0 && top > 1 ->
        printf("share: CRASH of the file server, epoch %d has vanished\n", top);
        vanish_left--;
        disconnect(0);
        disconnect(1);
        rec[top] = ABSENT;
        do
        :: rec[top] == ABSENT -> top--
        :: else -> break
        od;
        epoch_new = top;
        clear_old();
    }
#endif
    od
}

init
{
    atomic {
        rec[0] = HELD;
        rec[1] = RELEASED;
#if VANISH
        lost[0] = 1;
        lost[1] = 1;
#endif
        run node(0);
        run node(1);
        run world();
    }
}
