// SPDX-License-Identifier: MIT
#include "lock.h"

/* Symmetric: held against asked, and a waiter against the ones behind it. */
static const bool compatible[_LOCK_MODE_MAX][_LOCK_MODE_MAX] = {
        [LOCK_MODE_RO] = { [LOCK_MODE_RO] = true, [LOCK_MODE_UPDATE] = true },
        [LOCK_MODE_UPDATE] = { [LOCK_MODE_RO] = true },
};

enum turn {
        TURN_READY,
        TURN_FENCED,      /* has to wait for a process to exit, in its place */
        TURN_UNPUBLISHED, /* has to wait for a writer, who goes first */
};

/* What an entry would hold if it were granted now, and whether anything but others is in its way. */
static enum turn entry_turn(const struct lock_entry *e, const struct lock_facts *facts, enum lock_mode *ret_mode) {
        switch (e->want) {
        case LOCK_WANT_RO:
                *ret_mode = LOCK_MODE_RO;
                return facts->published ? TURN_READY : TURN_UNPUBLISHED;
        case LOCK_WANT_UPDATE:
                *ret_mode = LOCK_MODE_UPDATE;
                return TURN_READY;
        case LOCK_WANT_RW:
                *ret_mode = LOCK_MODE_RW;
                return TURN_READY;
        case LOCK_WANT_RW_OR_RO:
                *ret_mode = facts->published ? LOCK_MODE_RO : LOCK_MODE_RW;
                return TURN_READY;
        case LOCK_WANT_ADOPT:
                /* A process is no danger to itself: it may adopt what it sealed. */
                *ret_mode = LOCK_MODE_RW;
                return facts->sealed && facts->fence != 0 && facts->fence != e->process ? TURN_FENCED : TURN_READY;
        default:
                abort();
        }
}

static void lock_check(const struct lock *lock) {
        assert(lock->held[LOCK_MODE_RW] <= 1);
        assert(lock->held[LOCK_MODE_UPDATE] <= 1);
        assert(lock->held[LOCK_MODE_RW] == 0 || lock->held[LOCK_MODE_UPDATE] + lock->held[LOCK_MODE_RO] == 0);
}

static void lock_hold(struct lock *lock, struct lock_entry *e, enum lock_mode mode) {
        list_unlink(&e->link);
        lock->waiting--;
        list_append(&lock->holders, &e->link);
        e->held = true;
        e->mode = mode;
        lock->held[mode]++;
        lock_check(lock);
}

void lock_init(struct lock *lock) {
        *lock = (struct lock){};
        list_init(&lock->holders);
        list_init(&lock->queue);
}

void lock_ask(struct lock *lock, struct lock_entry *e) {
        e->held = false;
        list_append(&lock->queue, &e->link);
        lock->waiting++;
}

/* Whether the process that is to exit first waits here itself. */
static bool fence_waits(const struct lock *lock, const struct lock_facts *facts) {
        list_for(e, &lock->queue, struct lock_entry, link)
                if (facts->fence != 0 && e->process == facts->fence)
                        return true;
        return false;
}

struct lock_entry *lock_grant(struct lock *lock, const struct lock_facts *facts) {
        bool ahead[_LOCK_MODE_MAX] = {}; /* modes held, or waited for by somebody earlier */
        bool aside = fence_waits(lock, facts);
        for (int m = 0; m < _LOCK_MODE_MAX; m++)
                ahead[m] = lock->held[m] > 0;

        list_for(e, &lock->queue, struct lock_entry, link) {
                enum lock_mode mode;
                enum turn turn = entry_turn(e, facts, &mode);
                if (turn == TURN_UNPUBLISHED || (turn == TURN_FENCED && aside))
                        continue;

                bool free = turn == TURN_READY;
                for (int m = 0; m < _LOCK_MODE_MAX; m++)
                        free = free && (!ahead[m] || compatible[m][mode]);
                if (free) {
                        lock_hold(lock, e, mode);
                        return e;
                }
                ahead[mode] = true;
        }
        return NULL;
}

void lock_leave(struct lock *lock, struct lock_entry *e) {
        if (list_empty(&e->link))
                return;
        list_unlink(&e->link);
        if (e->held)
                lock->held[e->mode]--;
        else
                lock->waiting--;
        e->held = false;
}

void lock_downgrade(struct lock *lock, struct lock_entry *e) {
        assert(e->held && lock_mode_writes(e->mode));
        lock->held[e->mode]--;
        e->mode = LOCK_MODE_RO;
        lock->held[e->mode]++;
        lock_check(lock);
}

bool lock_in_the_way(const struct lock_entry *holder, const struct lock_entry *waiter, const struct lock_facts *facts) {
        enum lock_mode mode;
        return entry_turn(waiter, facts, &mode) != TURN_UNPUBLISHED && !compatible[holder->mode][mode];
}
