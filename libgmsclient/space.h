// SPDX-License-Identifier: MIT
#pragma once
/*
 * The addresses of a handle: regions reserved from the driver, and where in them each mapping goes.
 *
 * A region the user reserved is filled from its beginning in the order mappings come, and stays until the handle is
 * closed; so two processes that reserve the same address and map the same layout get the same pointers. What does not fit
 * goes into a region of the library's own, one for a whole batch, which is given back with its last mapping.
 */
#include "base.h"
#include "mapping.h"

struct region {
        struct list link; /* space.regions */
        uint64_t address;
        uint64_t size;
        uint64_t used;    /* bytes from the beginning; what is behind is free */
        uint64_t before;  /* `used`, set aside while the region is filled anew */
        size_t live;      /* mappings that have addresses in it */
        bool kept;        /* the user's */
        bool vacant;      /* not reserved now: of its addresses only those of mapped mappings are ours */
};

struct space {
        struct list regions;
};

void space_init(struct space *s);
/* Gives all regions back; nothing is mapped in them any more. `v` NULL: frees the bookkeeping alone. */
void space_done(struct space *s, struct vmm *v);

/* Reserves a region of the user's, at `address` or anywhere if 0. Negative errno with a text: -EEXIST, -ENOMEM, ... */
int space_reserve(struct space *s, struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address);

/*
 * A batch: *rest is NULL at first and becomes the region of those that fit in no user's region, of `rest_size` bytes, the
 * upper bound for the batch. Negative errno with a text; then the mapping has no address.
 */
int space_place(struct space *s, struct vmm *v, struct mapping *m, struct region **rest, uint64_t rest_size);

/*
 * Between these two a region of the library's own is vacant, which makes mapping in it cheaper. Its mappings are all mapped
 * in the end, and it is reserved like any other; or they are undone, n of them, and it has no addresses any more.
 */
void space_vacate(struct vmm *v, struct region *region);
void space_occupied(struct region *region);
void space_abandon(struct vmm *v, struct region *region, struct mapping *m, size_t n);

/* Takes the addresses of unmapped mappings back. Space at the end of a user's region is used again. */
void space_take(struct vmm *v, struct mapping *m, size_t n);

/*
 * Between these two the user's regions are filled anew from their beginning, over the addresses of mappings that are
 * there but unmapped. In the end one side gives its addresses up: the old ones (keep), or the new.
 */
void space_restart(struct space *s);
void space_restart_end(struct space *s, struct vmm *v, bool keep, struct mapping *loser, size_t n);
