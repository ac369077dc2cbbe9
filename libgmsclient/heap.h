// SPDX-License-Identifier: MIT
#pragma once
/*
 * A heap: pieces of slabs, found and given back in constant time, but for heap_search(). A slab is a range of addresses that the owner adds. What
 * is behind them is never touched, as it may be a GPU's memory: all that is known of a slab lies here.
 *
 * A slab is tiled by blocks, used or free, and no two neighbours are free. Free blocks are in bins by size, 32 to each
 * power of two, with bitmaps over them. Used blocks are found by their address in a hash table.
 *
 * Nothing here locks, waits, talks to the daemon, or decides how large a slab is: pool.c does.
 */
#include <limits.h>

#include "base.h"

#define HEAP_UNIT UINT64_C(256)      /* slabs and blocks begin at multiples of it, and are multiples of it */
#define HEAP_MAX (UINT64_C(1) << 47) /* bytes of a slab; of a piece and its alignment together */

enum {
        _HEAP_E_SUCCESS,
        HEAP_E_FULL,    /* no free block that was tried has room for the piece */
        HEAP_E_UNKNOWN, /* no piece begins at the address */
};

#define BIN_NONE UINT_MAX

/* A cache line. */
struct block {
        uint64_t address;
        uint64_t bytes;
        struct slab *slab;
        struct block *left, *right; /* neighbours in the slab; outermost the slab's end */
        union {
                struct list link;   /* free: in heap.bins */
                uint64_t requested; /* used: bytes as asked for */
                struct block *next; /* neither: in heap.spare */
        };
        unsigned bin;               /* of a free one; BIN_NONE: it is used */
};

struct slab {
        struct list link;  /* heap.slabs */
        uint64_t id, slot; /* the owner's */
        uint64_t address, bytes;
        struct block end;  /* left of the first block and right of the last; counts as used */
};

#define HEAP_BINS 1152u
#define HEAP_WORDS (HEAP_BINS / 64)

struct heap {
        uint64_t words_filled;      /* a bit for each word that is not 0 */
        uint64_t words[HEAP_WORDS]; /* a bit for each bin that is not empty */
        struct list bins[HEAP_BINS];

        /* the used blocks by address: open addressing, at most a quarter full */
        struct block **places;
        size_t places_mask;
        unsigned places_shift;

        struct block *spare; /* blocks that are no part of any slab */
        struct chunk *chunks;

        struct list slabs;      /* in the order they came */
        size_t n_slabs, n_empty; /* of them with nothing used */
        size_t n_pieces;
        uint64_t reserved;      /* bytes of the slabs */
        uint64_t allocated;     /* of the used blocks */
        uint64_t requested;     /* of the pieces in them */
        uint64_t reserved_peak, requested_peak;
};

struct heap_piece {
        uint64_t slot, offset, address;
};

void heap_init(struct heap *h);
/* Forgets all slabs. */
void heap_done(struct heap *h);

/* One slab more. -ENOMEM. */
int heap_add(struct heap *h, uint64_t id, uint64_t slot, uint64_t address, uint64_t bytes, struct slab **ret_slab);
/* Forgets a slab of which nothing is used. */
void heap_remove(struct heap *h, struct slab *s);

/*
 * A piece of `bytes`, 1 at least, at a multiple of `alignment`, a power of two. Of blocks that are only about as large it
 * tries a few; then HEAP_E_FULL. -ENOMEM.
 */
int heap_allocate(struct heap *h, uint64_t bytes, uint64_t alignment, struct heap_piece *ret);
/* The same, but tries all of them, which is no longer constant time: for when more cannot be had. */
int heap_search(struct heap *h, uint64_t bytes, uint64_t alignment, struct heap_piece *ret);
/* The same from the beginning of a slab of which nothing is used, and which has room for it. -ENOMEM. */
int heap_allocate_first(struct heap *h, struct slab *s, uint64_t bytes, struct heap_piece *ret);
/* Gives a piece back. *ret_emptied is its slab if nothing else of that is used, else NULL. HEAP_E_UNKNOWN. */
int heap_free(struct heap *h, uint64_t address, struct slab **ret_emptied);
/* Whether a piece begins there. */
bool heap_has(const struct heap *h, uint64_t address);

/* Nothing of it is used: its one block is free. */
static inline bool slab_is_empty(const struct slab *s) {
        return s->end.left == s->end.right && s->end.left->bin != BIN_NONE;
}

/* Bytes of the largest free block; looks at all that are about as large. */
uint64_t heap_largest(const struct heap *h);

/* For tests, looks at everything: NULL, or what should hold and does not. */
const char *heap_check(const struct heap *h);
