// SPDX-License-Identifier: MIT
#pragma once
/*
 * A pool: a heap over slabs that are allocations of a writer's handle. It decides when a slab is taken, how large, and when
 * one goes back; where pieces are in them is the heap's.
 *
 * Three locks, taken in this order: `turn` by whoever talks to the daemon for the pool, one at a time; then the handle's own;
 * and last, also inside of the mutex of torch.c, the latch around the heap, held for nanoseconds. Allocating and freeing take
 * the latch alone as long as the slabs do, so they go on while another thread waits for the device. That one, and those who
 * wait for their turn, look at the heap again and again; a free pays nothing for waking them.
 *
 * In a forked child nothing of it is used: `here` says where one is, in one load.
 */
#include <pthread.h>

#include "gmsclient.h"
#include "heap.h"
#include "latch.h"
#include "limbo.h"

struct gms_pool {
        unsigned refs;         /* the caller's, and one for each piece that PyTorch has, and each call of its that is inside */
        const unsigned *here;  /* a page of its own: 1; 0 in a forked child, where the kernel clears it */
        struct gms *gms;       /* kept open */
        struct vmm *vmm;       /* the handle's */
        uint64_t grant;        /* of the session it was opened in: gms.grants */
        uint64_t granularity;
        uint64_t expected, slab_max;
        char tag[GMS_TAG_SIZE];

        pthread_mutex_t turn;
        struct latch latch;
        bool lasting;          /* the layout was sealed or published: its slabs stay. Under the latch */
        struct heap heap;
        struct limbo limbo;

        /* torch.c's, under its mutex */
        struct list torch_link;
        int torch_ordinal;     /* of its GPU */
        bool torch_used;       /* allocations for that come from here */
};

/* -EINVAL there is none; -ECHILD it was inherited over fork(). */
int pool_refuse(const struct gms_pool *p);
static inline int pool_check(const struct gms_pool *p) {
        return p && __atomic_load_n(p->here, __ATOMIC_RELAXED) ? 0 : pool_refuse(p);
}

struct gms_pool *pool_ref(struct gms_pool *p);
struct gms_pool *pool_unref(struct gms_pool *p);

/* Whether a piece begins there. */
bool pool_has(struct gms_pool *p, uint64_t address);

/* Frees such a piece once the stream has done what it has to do now. */
void pool_free_behind(struct gms_pool *p, uint64_t address, void *stream);

/* Looks at a few of the pieces that were freed like this. */
void pool_look(struct gms_pool *p);
