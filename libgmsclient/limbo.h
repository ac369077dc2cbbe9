// SPDX-License-Identifier: MIT
#pragma once
/*
 * Limbo: pieces that were freed while work on them may be under way on a GPU. Unmapping does not wait for that work, and
 * giving the memory to others would let it write there: so each stays here until the fence that its stream got then has
 * passed. Fences are looked at; they are waited for only at the end, as the memory itself may go then.
 *
 * Thread-safe. It knows addresses; what a piece is, its pool knows.
 */
#include <pthread.h>

#include "vmm.h"

struct limbo_piece {
        uint64_t address;
        uint64_t fence;
        bool fenced; /* else the stream took no fence, and only somebody who knows can say when its work is done */
};

struct limbo {
        pthread_mutex_t mutex;
        struct limbo_piece *pieces;
        size_t n, room;
        size_t next; /* to be looked at */
};

void limbo_init(struct limbo *l);
/* `v` NULL: frees the bookkeeping alone. */
void limbo_done(struct limbo *l, struct vmm *v);

/* Waits for all fences. False when there are pieces without one. */
bool limbo_wait(struct limbo *l, struct vmm *v);

bool limbo_is_empty(struct limbo *l);

/* A piece that was freed on this stream. One for which there is no memory here is lost to its pool. */
void limbo_add(struct limbo *l, struct vmm *v, uint64_t address, void *stream);

/*
 * Looks at up to `looks` pieces, each call going on where the last one ended, until one is found that may be used again:
 * *ret_address is its, and true is returned. `quiet`: no work is under way, so those without a fence may be used, too.
 */
bool limbo_take(struct limbo *l, struct vmm *v, bool quiet, size_t *looks, uint64_t *ret_address);
