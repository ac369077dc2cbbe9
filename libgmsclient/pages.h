// SPDX-License-Identifier: MIT
#pragma once
/*
 * Walks the allocations of a layout, which the daemon gives page by page: at most 253 of them, and their descriptors, are
 * here at any time.
 *
 *     _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .end = PAGES_ALL };
 *     while ((r = pages_next(&p, &a, &fd)) > 0) ...
 */
#include "conn.h"

#define PAGES_ALL UINT64_MAX

struct pages {
        struct conn *conn;
        const char *store;   /* another store's resting layout; NULL: the session's own */
        uint64_t generation; /* 0: what the session works on; else what a refresh pinned */
        bool descriptors;
        uint64_t next, end;  /* ranks */

        uint64_t total; /* allocations in the layout; right after the first pages_next() */
        uint64_t seen;  /* generation of the first page */
        uint64_t layout; /* of which that was */
        bool started;
        uint64_t last_slot;
        Gms__Frame *frame;
        struct fdset *fds;
        size_t i;
};

/*
 * The next allocation. *ret_fd is its descriptor when asked for, and the page's: it is closed by the call after this one
 * unless pages_steal() takes it. 1; 0 at the end; negative errno with a text: -EAGAIN (of another store: the layout was
 * replaced between two pages), -EPROTO, as conn_call().
 */
int pages_next(struct pages *p, const Gms__Allocation **ret_allocation, int *ret_fd);
/* The present one's descriptor, the caller's from now on. */
int pages_steal(struct pages *p);
void pages_done(struct pages *p);
