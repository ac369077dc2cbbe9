/* SPDX-License-Identifier: MIT */
/*
 * A model of one store, its clients, and the daemon that may die: every order of events, checked by spin.
 *
 * What it is: the rules, each written again from the file that has them in C.
 *      lock_grant()            daemon/lock.c       who is granted; what is waiting and no conflict
 *      apply(), let_go()       daemon/store.c      what a change does to layouts, references, the fence
 *      loop()                  daemon/session.c    one request at a time; an ended session gives back what it has
 *                              daemon/dispatch.c   a request that is repeated gets its first answer
 *      carry_out()             daemon/durable.c    descriptor to the manager, record, answer; record, then drop
 *      recover()               daemon/durable.c    the fold, orphans, RESUMED
 *      client()                libgmsclient        sends again what was not answered; stops before it asks to be stopped
 * What it is not: the C code. There are no bytes, no metadata, no damaged journal. The fold is a copy of the state; that fold
 * and life agree is a test of its own. A layout has one allocation at most, and a process opens its next session when
 * the daemon has seen the end of the one before.
 *
 * The daemon is one process a session here, and their steps are atomic: it does one thing at a time, and whose turn it is
 * next is open. Inside a step it may die between any two durable actions.
 *
 * What holds is asserted where it could be broken:
 *      answer()      two writers never, a writer beside a reader only as UPDATE, two processes never in one sealed layout
 *      destroyed()   nobody who lives reads what is freed
 *      record()      what is published is lost by commit, discard and clear only; a request is carried out once
 *      promises()    clients hold what they were told; each descriptor of a record is kept, and no other
 *      recover()     the same, of what the last daemon left
 * and a state that nobody can leave while a client waits is an error of its own (spin: "invalid end state"). At the end are
 * two formulas that need fairness.
 *
 * Instances (the list is in rules.mk):
 *      N=3            clients
 *      PATIENT=1      set of those who wait without a deadline, and live meanwhile
 *      READERS=4      set of those who only read
 *      MORTAL         clients die at any moment; their process exits later than their socket closes
 *      HEIR           or earlier: a child that inherited the socket holds it open
 *      CLEAR          an administrator clears the store, by force too
 *      FENCE_ASKS     a process that left a sealed layout may ask again; else it exits first
 *      RESTARTS=1     so often the daemon dies and comes back; descriptors and journal are modelled
 *      FEW            no discard and no refresh, and who is dead stays dead
 *      LIVE           for the formulas: no deaths, and a session makes few requests
 * Defects, each of which must be found. BREAK_ASIDE, BREAK_WATCH and BREAK_DRAIN were in the C code, and found here.
 *      BREAK_FIFO       a grant looks at holders only
 *      BREAK_QUEUE      who asks is put first
 *      BREAK_MATRIX     UPDATE goes together with UPDATE
 *      BREAK_REFERENCE  what a session works on is not a reference
 *      BREAK_FENCE      ADOPT does not wait for the writer's process
 *      BREAK_ASIDE      who waits for a process to exit holds back that process itself
 *      BREAK_WATCH      the fence is a process that nobody watches: it exited before, or only the last daemon watched it
 *      BREAK_ORDER      the answer goes before the record
 *      BREAK_KEEP       the record goes before the descriptor is kept
 *      BREAK_DROP       a descriptor is dropped before the record
 *      BREAK_SERIAL     the record does not say which request it answers
 *      BREAK_DRAIN      what was in the socket of a restored session is read, beside what is sent again
 *      BREAK_ORPHANS    kept descriptors that nothing names stay
 */

#ifndef N
#define N 3
#endif
#ifndef PATIENT
#define PATIENT 1
#endif
#define patient(who) ((PATIENT >> (who)) & 1)
#ifndef READERS
#define READERS 0
#endif
#define only_reads(who) ((READERS >> (who)) & 1)
#define LAYOUTS (2 * N) /* never more at once; asserted */
#define NOBODY 255

/* Claims: nothing, a mode held, waiting, or nothing any more (claim.gone). */
#define NONE 0
#define RO 1
#define UPDATE 2
#define RW 3
#define WAITING 4
#define GONE 5
#define writes(mode) ((mode) == UPDATE || (mode) == RW)

/* Wants: RO, UPDATE, RW, and */
#define RW_OR_RO 4
#define ADOPT 5

/* Requests. */
#define HELLO 1
#define ALLOCATE 2
#define SEAL 3
#define DISCARD 4
#define COMMIT 5
#define COMMIT_LEAVE 6
#define REFRESH 7
#define SETTLE_NEXT 8
#define SETTLE_HERE 9
/* Other changes. */
#define LEAVE 10
#define EXITED 11
#define CLEAR_ 12

/* What the journal's fold is, and what the daemon has in its memory. Layouts are numbered from 1, processes too. */
typedef store {
        byte claim[N];
        byte want[N];
        byte queue[N];
        byte waiting;
        byte view[N];
        byte next[N];
        byte published;
        byte sealed;
        byte draft;
        bit shaped;             /* the draft is sealed */
        byte fence;
        byte refs[LAYOUTS + 1];
        bit memory[LAYOUTS + 1];  /* has its allocation */
};
store live;
#ifdef RESTARTS
store disk;
#else
#define disk live
#endif

/* The daemon's memory that no journal has. */
bool up = true;
bool watch[N];                  /* a pidfd on the process; so too if nothing depends on it: some states less */
#ifdef RESTARTS
byte answered[N];               /* the last request answered: 2 is the client's present one, 1 the one before, 0 an older */
byte recorded[N];               /* the same in the journal, where refusals are not */
bool parked[N];                 /* waits for the manager to have its descriptor */
byte crashes;

/* The service manager: what it keeps. */
bool socket_kept[N];
bit memory_kept[LAYOUTS + 1];
bool hand_kept[N];              /* an allocation that is not recorded yet */
#endif

/*
 * Sockets. What can be read is read before anything else happens, save a death of the daemon: a request that waits in a
 * socket while others go first is the same as one that is sent later. A waiter's socket is not read; it has nothing to say.
 */
bool hup[N];                    /* the client's end is closed */
#ifdef RESTARTS
byte present[N];                /* copies of the present request that are not read */
byte former[N];                 /* and of the one before */
bool resumed[N];                /* RESUMED is on its way */
#define reads(who) (live.claim[who] != WAITING && !parked[who])
#define unread(who) (up && (present[who] || former[who]) && reads(who))
#if N == 2
#define calm (!unread(0) && !unread(1))
#else
#define calm (!unread(0) && !unread(1) && !unread(2))
#endif
#define resumed(who) resumed[who]
#else
chan socket[N] = [0] of { byte };
#define calm true
#define resumed(who) false
#endif

/* Clients: what they asked, and what they were told. */
byte request[N];
byte want[N];
bool unanswered[N];
byte mode[N];
byte view[N];
byte next[N];
bit memory[N];                  /* its view's */
bool exited[N];
short writing[N];               /* layouts its process may still write to */
byte effects[N];                /* how often the present request was carried out */

/* Of one step: zero between steps. */
byte op, l, m, was;
short released, owed;           /* effects: layouts to destroy, clients to tell */
bool refused;
/* Of one d_step. */
hidden byte j, k, fresh, ahead, found, turn_mode;
hidden byte fenced, aside, wrote;

/* ---- store.c: references */

inline drop(layout) {
        if
        :: layout ->
                live.refs[layout]--;
                if
                :: live.refs[layout] == 0 -> released = released | (1 << layout); live.memory[layout] = 0
                :: else
                fi;
                layout = 0
        :: else
        fi
}

#ifdef BREAK_REFERENCE
#define ref_view(who) skip
#define drop_view(who) live.view[who] = 0
#else
#define ref_view(who) live.refs[live.view[who]]++
#define drop_view(who) drop(live.view[who])
#endif

inline new_draft() {
        fresh = 1;
        do
        :: fresh <= LAYOUTS && (live.refs[fresh] || (released & (1 << fresh))) -> fresh++
        :: else -> break
        od;
        assert(fresh <= LAYOUTS);
        live.draft = fresh;
        live.refs[fresh] = 1;
        live.shaped = 0
}

/* ---- lock.c */

#define bit_of(mode) (1 << (mode))
#ifdef BREAK_MATRIX
#define conflicts(mode) ((mode) == RO -> bit_of(RW) : ((mode) == UPDATE -> bit_of(RW) : 14))
#else
#define conflicts(mode) ((mode) == RO -> bit_of(RW) : ((mode) == UPDATE -> bit_of(UPDATE) | bit_of(RW) : 14))
#endif

inline entry_turn(who) {
        fenced = false;
        if
        :: live.want[who] == RO || live.want[who] == UPDATE || live.want[who] == RW -> turn_mode = live.want[who]
        :: live.want[who] == RW_OR_RO -> turn_mode = (live.published -> RO : RW)
        :: live.want[who] == ADOPT ->
                turn_mode = RW;
#ifndef BREAK_FENCE
                fenced = live.sealed && live.fence != 0 && live.fence != who + 1
#endif
        fi
}

inline dequeue(who) {
        k = 0;
        do
        :: live.queue[k] != who -> k++
        :: else -> break
        od;
        live.waiting--;
        do
        :: k < live.waiting -> live.queue[k] = live.queue[k + 1]; k++
        :: else -> break
        od;
        live.queue[k] = 0
}

inline lock_grant() {
        ahead = 0;
        aside = false;
        for (j : 0 .. N - 1) {
                if
                :: live.claim[j] >= RO && live.claim[j] <= RW -> ahead = ahead | bit_of(live.claim[j])
                :: else
                fi;
#ifndef BREAK_ASIDE
                /* The process of the fence waits itself: nobody's waiting for its exit may hold it back. */
                if
                :: live.claim[j] == WAITING && live.sealed && live.fence == j + 1 -> aside = true
                :: else
                fi
#endif
        }
        found = NOBODY;
        k = 0;
        do
        :: found == NOBODY && k < live.waiting ->
                j = live.queue[k];
                entry_turn(j);
                if
                :: turn_mode == RO && !live.published  /* holds back nobody */
                :: fenced && aside
                :: else ->
                        if
                        :: !fenced && !(ahead & conflicts(turn_mode)) -> found = j
                        :: else ->
#ifdef BREAK_FIFO
                                skip
#else
                                ahead = ahead | bit_of(turn_mode)
#endif
                        fi
                fi;
                k++
        :: else -> break
        od
}

/* ---- store.c: changes. They work on `live`; what is to be released and who is to be told is in `released`, `owed`. */

inline store_check() {
        ahead = 0;
        for (j : 0 .. N - 1) {
                if
                :: writes(live.claim[j]) -> ahead++
                :: else
                fi
        }
        assert(ahead <= 1);
        assert((live.draft != 0) == (ahead == 1));
        assert(!(live.published && live.sealed))
}

inline grant_waiting() {
        do
        :: true ->
                lock_grant();
                if
                :: found == NOBODY -> break
                :: else -> skip
                fi;
                j = found;
                entry_turn(j);
                dequeue(j);
                if
                :: turn_mode == RO -> live.view[j] = live.published
                :: else ->
                        assert(!live.draft);
                        if
                        :: live.want[j] == ADOPT && live.sealed ->
                                live.draft = live.sealed; live.shaped = 1; live.sealed = 0; live.fence = 0
                        :: else -> new_draft()
                        fi;
                        live.view[j] = live.draft
                fi;
                ref_view(j);
                live.claim[j] = turn_mode;
                live.want[j] = 0;
                owed = owed | (1 << j)
        od;
        store_check();
        /* Only a sealed layout's fence means anything: one state less. */
        if
        :: !live.sealed -> live.fence = 0
        :: else
        fi
}

inline let_go(who) {
        wrote = writes(live.claim[who]);
        if
        :: live.claim[who] == WAITING -> dequeue(who)
        :: else
        fi;
        live.claim[who] = NONE;
        live.want[who] = 0;
        drop_view(who);
        drop(live.next[who]);
        if
        :: wrote && !live.shaped -> drop(live.draft)
        :: wrote && live.shaped ->
                drop(live.sealed);
                live.sealed = live.draft;
                live.draft = 0;
                live.shaped = 0;
#ifdef BREAK_WATCH
                live.fence = who + 1
#else
                live.fence = (watch[who] -> who + 1 : 0)
#endif
        :: else
        fi
}

inline apply(what, who) {
        refused = false;
        if
        :: what == HELLO ->
                live.claim[who] = WAITING;
                live.want[who] = want[who];
#ifdef BREAK_QUEUE
                for (j : 1 .. live.waiting) { live.queue[live.waiting + 1 - j] = live.queue[live.waiting - j] }
                live.queue[0] = who;
#else
                live.queue[live.waiting] = who;
#endif
                live.waiting++
        :: what == LEAVE -> let_go(who)
        :: what == EXITED ->
                if
                :: live.fence == who + 1 -> live.fence = 0
                :: else
                fi
        :: what >= ALLOCATE && what <= COMMIT_LEAVE && !writes(live.claim[who]) -> refused = true
        :: what >= REFRESH && what <= SETTLE_HERE && live.claim[who] != RO -> refused = true
        :: what == ALLOCATE && writes(live.claim[who]) ->
                if
                :: live.shaped -> refused = true
                :: else ->
                        assert(!live.memory[live.view[who]]); /* or it is made twice */
                        live.memory[live.view[who]] = 1
                fi
        :: what == SEAL && writes(live.claim[who]) ->
                if
                :: live.published -> refused = true
                :: else -> live.shaped = 1
                fi
        :: what == DISCARD && writes(live.claim[who]) ->
                drop(live.published);
                drop(live.sealed);
                live.fence = 0
        :: (what == COMMIT || what == COMMIT_LEAVE) && writes(live.claim[who]) ->
                drop(live.published);
                drop(live.sealed);
                live.published = live.draft;
                live.draft = 0;
                live.shaped = 0;
                if
                :: what == COMMIT_LEAVE -> drop_view(who); live.claim[who] = GONE
                :: else -> live.claim[who] = RO
                fi
        :: what == REFRESH && live.claim[who] == RO ->
                if
                :: !live.published -> refused = true
                :: else ->
                        drop(live.next[who]);
                        if
                        :: live.published != live.view[who] ->
                                live.next[who] = live.published; live.refs[live.published]++
                        :: else
                        fi
                fi
        :: what == SETTLE_NEXT && live.claim[who] == RO ->
                if
                :: live.next[who] ->
                        drop_view(who);
                        live.view[who] = live.next[who]; live.next[who] = 0
                :: else -> refused = true
                fi
        :: what == SETTLE_HERE && live.claim[who] == RO -> drop(live.next[who])
        fi;
        if
        :: !refused && (what == HELLO || what == LEAVE || what == EXITED || what == COMMIT || what == COMMIT_LEAVE) ->
                grant_waiting()
        :: else
        fi
}

/* ---- the journal and the manager */

#define is_client_request(what) ((what) <= SETTLE_HERE)

#ifdef RESTARTS
inline copy(to, from) {
        for (j : 0 .. N - 1) {
                to.claim[j] = from.claim[j]; to.want[j] = from.want[j]; to.queue[j] = from.queue[j];
                to.view[j] = from.view[j]; to.next[j] = from.next[j]
        }
        for (j : 1 .. LAYOUTS) { to.refs[j] = from.refs[j]; to.memory[j] = from.memory[j] }
        to.waiting = from.waiting; to.published = from.published; to.sealed = from.sealed; to.draft = from.draft;
        to.shaped = from.shaped; to.fence = from.fence
}
#endif

/* Ghosts go with it: what is published is lost in three ways only, and nothing is carried out twice. */
inline record(what, who) {
        d_step {
                assert(!was || live.published == was || what == COMMIT || what == COMMIT_LEAVE || what == DISCARD ||
                       what == CLEAR_);
#ifdef RESTARTS
                if
                :: is_client_request(what) ->
                        effects[who]++;
                        assert(effects[who] <= 1);
#ifdef BREAK_SERIAL
                        if
                        :: what == HELLO -> answered[who] = 2; recorded[who] = 2
                        :: else
                        fi
#else
                        answered[who] = 2; recorded[who] = 2
#endif
                :: what == LEAVE -> answered[who] = 0; recorded[who] = 0
                :: else
                fi;
                copy(disk, live);
                /* What the descriptor is kept for has a name from here on. */
                if
                :: what == ALLOCATE && hand_kept[who] -> memory_kept[live.view[who]] = 1; hand_kept[who] = false
                :: else
                fi
#endif
        }
}

/* A connection is over, from the daemon's side. */
inline disconnect(who) {
#ifdef RESTARTS
        present[who] = 0; former[who] = 0; resumed[who] = false;
#endif
        unanswered[who] = false; request[who] = 0;
        mode[who] = NONE; view[who] = 0; next[who] = 0; memory[who] = 0; effects[who] = 0;
        want[who] = 0
}

#ifdef RESTARTS
inline crash() {
        d_step {
                crashes++;
                up = false;
                for (j : 0 .. N - 1) {
                        live.claim[j] = 0; live.want[j] = 0; live.queue[j] = 0; live.view[j] = 0; live.next[j] = 0;
                        answered[j] = 0; watch[j] = false; parked[j] = false;
                        /* A Hello that was read, and whose socket is not kept: that connection ends. */
                        if
                        :: !socket_kept[j] && unanswered[j] && present[j] == 0 && !hup[j] -> disconnect(j)
                        :: else
                        fi
                }
                for (j : 1 .. LAYOUTS) { live.refs[j] = 0; live.memory[j] = 0 }
                live.waiting = 0; live.published = 0; live.sealed = 0; live.draft = 0; live.shaped = 0; live.fence = 0;
                released = 0; owed = 0; op = 0; was = 0; l = 0; m = 0; refused = false
        }
}
#define DIES_HERE if :: crashes < RESTARTS -> crash(); goto again :: true fi
#else
#define DIES_HERE skip
#endif

/* A layout is gone now, and its number is free for another. */
inline destroyed(layout) {
        for (j : 0 .. N - 1) {
                assert(hup[j] || (view[j] != layout && next[j] != layout));
                if
                :: writing[j] & (1 << layout) -> writing[j] = writing[j] ^ (1 << layout)
                :: else
                fi
        }
}

inline drop_released() {
        l = 1;
        do
        :: l <= LAYOUTS && (released & (1 << l)) ->
                d_step {
                        destroyed(l);
#ifdef RESTARTS
                        memory_kept[l] = 0;
#endif
                        released = released ^ (1 << l)
                }
                DIES_HERE;
                l++
        :: l <= LAYOUTS && !(released & (1 << l)) -> l++
        :: l > LAYOUTS -> break
        od;
        l = 0
}

/* ---- answers: what the client knows from now on */

inline answer(who) {
        d_step {
                unanswered[who] = false;
                if
                :: hup[who]
                :: else ->
                        mode[who] = live.claim[who];
                        view[who] = live.view[who];
                        next[who] = live.next[who];
                        memory[who] = live.memory[live.view[who]];
                        for (j : 0 .. N - 1) {
                                if
                                :: j == who || hup[j]
                                :: else -> /* two writers never; a writer beside a reader only as UPDATE */
                                        assert(!(writes(mode[who]) && writes(mode[j])));
                                        assert(!(mode[who] == RW && mode[j] == RO) && !(mode[j] == RW && mode[who] == RO))
                                fi
                        }
                        if
                        :: request[who] == HELLO && writes(mode[who]) && !exited[who] ->
                                writing[who] = writing[who] | (1 << view[who]);
                                for (j : 0 .. N - 1) { /* nor two processes in one sealed layout */
                                        assert(j == who || !(writing[j] & (1 << view[who])))
                                }
                        :: else
                        fi
                fi;
                request[who] = 0; want[who] = 0; effects[who] = 0
        }
}

inline answer_owed() {
        m = 0;
        do
        :: m < N && (owed & (1 << m)) ->
                owed = owed ^ (1 << m);
                answer(m);
                DIES_HERE;
                m++
        :: m < N && !(owed & (1 << m)) -> m++
        :: m >= N -> break
        od;
        m = 0
}

/* Layouts are numbered anew after each step, in the order in which they are found: states that differ by numbers are one. */
hidden byte number[LAYOUTS + 1], old[LAYOUTS + 1];
hidden short bits;

inline see(layout) {
        if
        :: layout && !number[layout] -> k++; number[layout] = k
        :: else
        fi
}
inline renumber_set(set) {
        bits = 0;
        for (k : 1 .. LAYOUTS) {
                if
                :: set & (1 << k) -> bits = bits | (1 << number[k])
                :: else
                fi
        }
        set = bits
}
#define renumber_array(array) \
        for (k : 1 .. LAYOUTS) { old[k] = array[k] } \
        for (k : 1 .. LAYOUTS) { array[number[k]] = old[k] }

inline renumber() {
        for (k : 1 .. LAYOUTS) { number[k] = 0 }
        number[0] = 0;
        k = 0;
        see(live.published); see(live.sealed); see(live.draft);
        for (j : 0 .. N - 1) { see(live.view[j]); see(live.next[j]) }
        for (j : 1 .. LAYOUTS) { see(j) }
        live.published = number[live.published];
        live.sealed = number[live.sealed];
        live.draft = number[live.draft];
        for (j : 0 .. N - 1) {
                live.view[j] = number[live.view[j]];
                live.next[j] = number[live.next[j]];
                view[j] = number[view[j]];
                next[j] = number[next[j]];
                renumber_set(writing[j])
        }
        renumber_array(live.refs)
        renumber_array(live.memory)
#ifdef RESTARTS
        renumber_array(memory_kept)
        copy(disk, live);
#endif
        j = 0
}

/* What clients were told is what is; what is in a record is kept, and nothing else is. */
inline promises() {
        d_step {
                op = 0; was = 0;
                for (j : 0 .. N - 1) {
                        if
                        :: !unanswered[j] && !hup[j] ->
                                assert(mode[j] == live.claim[j]);
                                assert(view[j] == live.view[j]);
                                assert(next[j] == live.next[j]);
                                assert(memory[j] == live.memory[live.view[j]])
                        :: else
                        fi;
#ifdef RESTARTS
                        assert(socket_kept[j] == (live.claim[j] != NONE || parked[j]));
                        assert(!hand_kept[j] || parked[j]);
                        /* No copy of it is anywhere: nothing depends on it. */
                        if
                        :: !unanswered[j] && !present[j] && !former[j] && !resumed[j] -> answered[j] = 0; recorded[j] = 0
                        :: else
                        fi
#endif
                }
#ifdef RESTARTS
                for (j : 1 .. LAYOUTS) { assert(memory_kept[j] == live.memory[j]) }
#endif
                renumber()
        }
}

/* One change, from the apply to the answer. A HELLO is answered when it is granted. */
inline carry_out(what, who) {
        d_step { was = live.published; apply(what, who) }
        if
        :: refused ->
                d_step {
                        refused = false;
#ifdef RESTARTS
                        hand_kept[who] = false;
                        answered[who] = 2; /* that is in no record */
#endif
                }
                answer(who)
        :: else ->
#ifdef BREAK_ORDER
                if
                :: is_client_request(what) && what != HELLO -> answer(who)
                :: else
                fi;
                DIES_HERE;
#endif
#ifdef BREAK_DROP
                drop_released();
#endif
                record(what, who);
                DIES_HERE;
#ifdef BREAK_KEEP
                if
                :: what == ALLOCATE -> memory_kept[live.view[who]] = 1
                :: else
                fi;
#endif
                drop_released();
                answer_owed();
#ifndef BREAK_ORDER
                if
                :: is_client_request(what) && what != HELLO -> answer(who)
                :: else
                fi
#endif
        fi
}

/* A session has ended, and nobody is told: its socket is the last to go. */
inline session_over(who) {
        d_step {
#ifdef RESTARTS
                socket_kept[who] = false;
#endif
                hup[who] = false;
                disconnect(who)
        }
}

#define deadline_passes (live.claim[i] == WAITING && !patient(i))

proctype loop(byte i) {
again:
end:
        do
        :: atomic {
                if
#ifndef RESTARTS
                :: socket[i] ? op
#else
                :: up && former[i] && reads(i) ->
                        former[i]--;
                        assert(answered[i] >= 1) /* or it was answered, and is carried out now */
                :: up && present[i] && !former[i] && reads(i) ->
                        present[i]--;
                        if
                        :: answered[i] == 2 ->
                                if
                                :: unanswered[i] -> answer(i)
                                :: else /* its answer is on the way, and this one will be the second */
                                fi
                        :: else ->
                                assert(unanswered[i]); /* as above */
                                op = request[i];
                                if
                                :: op == ALLOCATE -> answered[i] = 2; op = 0; answer(i) /* no memory is free */
                                :: op == HELLO || op == ALLOCATE && writes(live.claim[i]) && !live.shaped ->
                                        DIES_HERE;
                                        d_step {
                                                if
                                                :: op == HELLO -> socket_kept[i] = true
#ifndef BREAK_KEEP
                                                :: op == ALLOCATE -> hand_kept[i] = true
#endif
                                                :: else
                                                fi;
                                                parked[i] = true;
                                                op = 0
                                        }
                                        DIES_HERE
                                :: else
                                fi
                        fi
                :: calm && up && parked[i] -> /* the manager has it */
                        parked[i] = false;
                        op = request[i]
#endif
                :: calm && up && (hup[i] || deadline_passes) ->
#ifdef RESTARTS
                        parked[i] = false;
                        hand_kept[i] = false;
#endif
                        op = LEAVE
                /* The socket of a process hangs up before its exit can be seen, unless another process holds it. */
                :: calm && up && watch[i] && exited[i] && !hup[i] ->
                        watch[i] = false;
                        op = (live.fence == i + 1 -> EXITED : 0)
                fi;
                if
                :: op && !(op == LEAVE && live.claim[i] == NONE) -> carry_out(op, i)
                :: else
                fi;
                if
                :: op == LEAVE -> session_over(i)
                :: else
                fi;
                promises()
           }
        od
}

#ifdef CLEAR
proctype administrator() {
again:
        do
        :: break
        :: atomic { calm && up ->
                d_step {
                        m = 0;
                        was = live.published;
                        for (j : 0 .. N - 1) {
                                if
                                :: live.claim[j] >= RO && live.claim[j] <= RW -> m = 1
                                :: else
                                fi
                        }
                }
                if
                :: m == 0 -> m = 0 /* or by force */
                :: m == 1 -> m = 0
                fi;
                d_step {
                        for (j : 0 .. N - 1) {
                                if
                                :: live.claim[j] >= RO && live.claim[j] <= RW ->
                                        let_go(j);
                                        live.claim[j] = GONE;
                                        mode[j] = GONE; view[j] = 0; next[j] = 0; memory[j] = 0
                                :: else
                                fi
                        }
                        drop(live.published);
                        drop(live.sealed);
                        grant_waiting()
                }
                record(CLEAR_, 0);
                drop_released();
                answer_owed();
                promises()
           }
        od
}
#endif

#ifdef RESTARTS
/* The manager starts the next daemon, which folds, lets go of what nothing names, and tells its sessions. */
proctype recover() {
again:
end:
        do
        :: atomic { up && crashes < RESTARTS -> crash() }
        :: atomic { !up ->
                d_step {
                        copy(live, disk);
                        for (j : 0 .. N - 1) {
                                answered[j] = recorded[j];
                                assert(live.claim[j] == NONE || socket_kept[j])
                        }
                        for (j : 1 .. LAYOUTS) { assert(!live.memory[j] || memory_kept[j]) }
                }
                DIES_HERE;
#ifndef BREAK_ORPHANS
                d_step {
                        for (k : 1 .. LAYOUTS) {
                                if
                                :: !live.refs[k] -> destroyed(k)
                                :: else
                                fi;
                                if
                                :: !live.memory[k] -> memory_kept[k] = 0
                                :: else
                                fi
                        }
                        for (k : 0 .. N - 1) {
                                hand_kept[k] = false;
                                if
                                :: socket_kept[k] && live.claim[k] == NONE ->
                                        socket_kept[k] = false;
                                        disconnect(k)
                                :: else
                                fi
                        }
                }
                DIES_HERE;
#endif
                d_step {
                        for (j : 0 .. N - 1) {
#ifdef BREAK_WATCH
                                watch[j] = !exited[j] && (live.claim[j] != NONE || live.fence != j + 1);
#else
                                watch[j] = !exited[j];
#endif
                                if
                                :: live.claim[j] != NONE && !hup[j] ->
#ifndef BREAK_DRAIN
                                        present[j] = 0; former[j] = 0;
#endif
                                        resumed[j] = unanswered[j]
                                :: else
                                fi
                        }
                }
#ifndef BREAK_WATCH
                if
                :: live.fence && exited[live.fence - 1] -> carry_out(EXITED, live.fence - 1)
                :: else
                fi;
#endif
                up = true;
                promises()
           }
        od
}
#endif

/* ---- clients */

inline forget(who) {
        mode[who] = NONE; view[who] = 0; next[who] = 0; memory[who] = 0
}

inline send(what) {
        d_step {
                request[i] = what;
                unanswered[i] = true;
#ifdef RESTARTS
                former[i] = former[i] + present[i];
                if
                :: answered[i] -> answered[i]--
                :: else
                fi;
                if
                :: recorded[i] -> recorded[i]--
                :: else
                fi;
                present[i] = 1;
#endif
                /* What it will not do any more, it stops before it asks. */
                if
                :: what == COMMIT -> writing[i] = writing[i] ^ (1 << view[i]); mode[i] = RO
                :: what == COMMIT_LEAVE -> writing[i] = writing[i] ^ (1 << view[i]); forget(i); mode[i] = GONE
                :: what == REFRESH || what == SETTLE_HERE -> next[i] = 0
                :: what == SETTLE_NEXT -> view[i] = next[i]; next[i] = 0
                :: else
                fi
        }
#ifndef RESTARTS
        socket[i] ! what
#endif
}

#ifdef FENCE_ASKS
#define may_ask(who) true
#else
#define may_ask(who) (disk.fence != who + 1)
#endif
#ifdef LIVE
#define can_ask_more (left > 0)
#define ask_less left--
#else
#define can_ask_more true
#define ask_less skip
#endif

#ifdef RESTARTS
#define builds (writes(mode[i]) && memory[i])
#else
#define builds writes(mode[i])
#endif
#define connected (unanswered[i] || mode[i] != NONE)
#define at_rest (!unanswered[i] && !resumed(i) && !hup[i] && !exited[i])
/* A patient reader has nobody to blame while nothing is published. */
#ifdef MORTAL
#define may_give_up (request[i] != HELLO || !patient(i) || (want[i] == RO && up && !live.published))
#else
#define may_give_up (request[i] == HELLO && want[i] == RO && up && !live.published)
#endif

/* Where it is, is in what it was told. It is stuck if it waits, so this is no end; who does not wait can always move. */
proctype client(byte i) {
#ifdef LIVE
        byte left;
#endif
        do
        :: atomic { calm && at_rest && mode[i] == NONE && may_ask(i) ->
                if
                :: want[i] = RO
                :: !only_reads(i) -> want[i] = UPDATE
                :: !only_reads(i) -> want[i] = RW
                :: !only_reads(i) -> want[i] = RW_OR_RO
                :: !only_reads(i) -> want[i] = ADOPT
                fi;
#ifdef LIVE
                left = 2;
#endif
                send(HELLO)
           }
#ifdef RESTARTS
        :: atomic { calm && resumed[i] && !hup[i] && !exited[i] ->
                resumed[i] = false;
                present[i]++
           }
        :: atomic { calm && at_rest && writes(mode[i]) && !memory[i] -> send(ALLOCATE) }
#endif
        :: atomic { calm && at_rest && builds && can_ask_more -> ask_less; send(SEAL) }
        :: atomic { calm && at_rest && builds && can_ask_more -> ask_less; send(COMMIT) }
        :: atomic { calm && at_rest && builds && can_ask_more -> ask_less; send(COMMIT_LEAVE) }
#ifndef FEW
        :: atomic { calm && at_rest && builds && can_ask_more -> ask_less; send(DISCARD) }
#endif
#if !defined(LIVE) && !defined(FEW)
        :: atomic { calm && at_rest && mode[i] == RO -> send(REFRESH) }
        :: atomic { calm && at_rest && mode[i] == RO && next[i] -> send(SETTLE_NEXT) }
        :: atomic { calm && at_rest && mode[i] == RO && next[i] -> send(SETTLE_HERE) }
#endif
        /* Leaves: the socket closes. Then, sooner or later or never, the process exits; that is a death. */
        :: atomic { calm && connected && !hup[i] && !unanswered[i] -> hup[i] = true; forget(i) }
#ifndef LIVE
        :: atomic { calm && connected && !hup[i] && unanswered[i] && (may_give_up || exited[i]) -> hup[i] = true; forget(i) }
#endif
        :: atomic { calm && !exited[i] && (hup[i] || !connected) -> exited[i] = true; writing[i] = 0 }
#ifdef HEIR
        :: atomic { calm && !exited[i] && connected && !hup[i] && (!unanswered[i] || may_give_up) ->
                exited[i] = true;
                writing[i] = 0
           }
#endif
        /* Another process comes, or none ever again. */
#ifndef FEW
        :: atomic { calm && exited[i] && !connected && !hup[i] && up && !watch[i] && disk.fence != i + 1 ->
                exited[i] = false;
                watch[i] = true
           }
#endif
        :: calm && exited[i] && !connected && !hup[i] -> break
        od;
end:
        false
}

init {
        atomic {
                for (m : 0 .. N - 1) {
                        watch[m] = true;
                        run client(m);
                        run loop(m)
                }
                m = 0;
#ifdef CLEAR
                run administrator();
#endif
#ifdef RESTARTS
                run recover()
#endif
        }
}

#ifdef LIVE
#define waits_0 (live.claim[0] == WAITING && patient(0))
ltl fair { [] ((waits_0 && want[0] != RO) -> <> !(waits_0 && want[0] != RO)) }
/* Who can only read waits for a publication. If that happens again and again, one of them is for the reader. */
ltl readers { [] <> (live.published != 0) -> [] ((waits_0 && want[0] == RO) -> <> !(waits_0 && want[0] == RO)) }
#endif
