// SPDX-License-Identifier: MIT
#pragma once
/*
 * The lock of one store: who holds it in which mode, and who waits, in order of arrival.
 *
 * One rule grants: an entry is granted when it conflicts with no holder and with nobody who waits before it. So a
 * waiting writer holds back the readers behind it, nobody starves, and neighbours that are compatible go in together.
 * Two kinds of waiting are not conflicts:
 *   - who can only read waits for a publication while there is none. A writer has to come first, so it holds back nobody;
 *   - who adopts a sealed layout waits until the writer before it has exited: it keeps its place, and holds back others, but
 *     not while that very process waits too: one would wait for the other's exit, and the other for its turn.
 *
 * Pure: no socket, no clock, no descriptor. What the lock cannot know by itself (is something published, is something
 * sealed) comes in as facts. Deadlines are the caller's: lock_leave() ends a wait.
 */
#include "base.h"

enum lock_mode {
        LOCK_MODE_RO,
        LOCK_MODE_UPDATE,
        LOCK_MODE_RW,
        _LOCK_MODE_MAX,
};

enum lock_want {
        LOCK_WANT_RO,
        LOCK_WANT_UPDATE,
        LOCK_WANT_RW,
        LOCK_WANT_RW_OR_RO, /* RO if something is published at its turn, else RW */
        LOCK_WANT_ADOPT,    /* RW, and the sealed layout with it if there is one */
        _LOCK_WANT_MAX,
};

struct lock_facts {
        bool published;
        bool sealed;
        uint64_t fence; /* process that may still be writing to the sealed layout; 0: none */
};

/* One session's place, in the queue or among the holders. Embedded in what the caller keeps for it. */
struct lock_entry {
        struct list link;
        enum lock_want want;
        enum lock_mode mode; /* once held */
        bool held;
        uint64_t process;    /* identifies the session's process; 0: unknown */
};

struct lock {
        struct list holders;
        struct list queue;
        unsigned held[_LOCK_MODE_MAX];
        unsigned waiting;
};

void lock_init(struct lock *lock);

/* Joins the queue; `entry` has want and process set. Grants nothing by itself. */
void lock_ask(struct lock *lock, struct lock_entry *entry);

/* Moves the next entry that may go from the queue to the holders and returns it; NULL when there is none. */
struct lock_entry *lock_grant(struct lock *lock, const struct lock_facts *facts);

/* Leaves the queue or the holders; harmless when it is in neither. */
void lock_leave(struct lock *lock, struct lock_entry *entry);

/* A writer becomes a reader, with no moment between. */
void lock_downgrade(struct lock *lock, struct lock_entry *entry);

/* Whether `holder` is in the way of `waiter`. */
bool lock_in_the_way(const struct lock_entry *holder, const struct lock_entry *waiter, const struct lock_facts *facts);

static inline bool lock_mode_writes(enum lock_mode mode) {
        return mode != LOCK_MODE_RO;
}
