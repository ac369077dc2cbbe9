// SPDX-License-Identifier: MIT
#include "fdset.h"

int fdset_new(struct fdset **ret_set, unsigned room, bool owned) {
        assert(room <= FDSET_MAX);

        struct fdset *set = malloc(sizeof(*set) + room * sizeof(set->fds[0]));
        if (!set)
                return -ENOMEM;

        *set = (struct fdset){ .owned = owned };
        *ret_set = set;
        return 0;
}

struct fdset *fdset_free(struct fdset *set) {
        if (!set)
                return NULL;
        if (set->owned)
                for (unsigned i = 0; i < set->n; i++)
                        close_fd(set->fds[i]);
        free(set);
        return NULL;
}

void fdset_add(struct fdset *set, int fd) {
        assert(set->n < FDSET_MAX);
        set->fds[set->n++] = fd;
}

int fdset_steal(struct fdset *set, unsigned i) {
        assert(set->owned && i < set->n);
        return steal_fd(&set->fds[i]);
}
