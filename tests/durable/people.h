// SPDX-License-Identifier: MIT
#pragma once
/*
 * Everybody that a daemon may have to do with, at once: readers, a writer beside them and one alone, waiters, a
 * generation that drains, a layout that was sealed by a process that lives, a request that waits for memory.
 */
#include "world.h"

struct people {
        struct gms *first, *second; /* read generation 1 of "w" */
        struct gms *update;         /* builds its generation 2: two allocations, one key */
        struct raw waits_rw, waits_ro; /* for "w", in this order */
        struct gms *old, *fresh;    /* read generations 1 and 2 of "d" */
        struct gms *alone;          /* builds in "x" */
        struct child sealer;        /* sealed "s", has left and lives */
        struct raw adopts;          /* waits for that to end */
        struct raw hungry;          /* writes in "m", and waits for memory that there is not */
        uint64_t hungry_serial;
};
extern struct people p;

/* A daemon and all of them. */
void people_come(void);
/* After a death: those that wait say again what they asked for. */
void people_resume(void);
/* Every byte of everybody's. */
void people_verify(void);
/* The sealer's process ends, and its layout is adopted. */
void people_sealer_exits(void);
/* They end in turn, and each gets what it waited for; nothing is left then, in any process. */
void people_go(void);
