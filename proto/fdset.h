// SPDX-License-Identifier: MIT
#pragma once
/*
 * A set of descriptors that travel together: what one frame carries.
 *
 * A set either owns its descriptors and closes what is left in it, or borrows them (the daemon sends the same descriptor
 * to many readers). A leaked descriptor is leaked GPU memory, so there is no third way.
 */
#include "base.h"

#define FDSET_MAX 253u /* SCM_MAX_FD of the kernel: more are refused by sendmsg with EINVAL */

struct fdset {
        bool owned;
        unsigned n;
        int fds[]; /* `room` of them */
};

/* -ENOMEM. */
int fdset_new(struct fdset **ret_set, unsigned room, bool owned);
struct fdset *fdset_free(struct fdset *set);
/* Appends; the caller never adds more than the room it asked for. */
void fdset_add(struct fdset *set, int fd);
/* Takes descriptor `i` out of an owning set: it is the caller's now. -1 when it was taken before. */
int fdset_steal(struct fdset *set, unsigned i);

static inline void fdset_freep(struct fdset **set) {
        *set = fdset_free(*set);
}
