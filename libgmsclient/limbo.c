// SPDX-License-Identifier: MIT
#include "limbo.h"

#include <unistd.h>

#define LOOK_US 50u

void limbo_init(struct limbo *l) {
        *l = (struct limbo){};
        (void)pthread_mutex_init(&l->mutex, NULL);
}

void limbo_done(struct limbo *l, struct vmm *v) {
        for (size_t i = 0; v && i < l->n; i++)
                if (l->pieces[i].fenced)
                        vmm_fence_free(v, l->pieces[i].fence);
        free(l->pieces);
}

bool limbo_wait(struct limbo *l, struct vmm *v) {
        bool all = true;
        for (size_t i = 0; i < l->n; i++) {
                while (l->pieces[i].fenced && !vmm_fence_passed(v, l->pieces[i].fence))
                        (void)usleep(LOOK_US);
                all = all && l->pieces[i].fenced;
        }
        return all;
}

static int limbo_grow(struct limbo *l) {
        size_t room = MAX(2 * l->room, (size_t)16);
        struct limbo_piece *pieces = reallocarray(l->pieces, room, sizeof(*pieces));
        if (!pieces)
                return -ENOMEM;
        l->pieces = pieces;
        l->room = room;
        return 0;
}

bool limbo_is_empty(struct limbo *l) {
        (void)pthread_mutex_lock(&l->mutex);
        bool empty = l->n == 0;
        (void)pthread_mutex_unlock(&l->mutex);
        return empty;
}

void limbo_add(struct limbo *l, struct vmm *v, uint64_t address, void *stream) {
        struct limbo_piece piece = { .address = address };
        piece.fenced = vmm_fence_record(v, stream, &piece.fence) == 0;
        (void)pthread_mutex_lock(&l->mutex);
        int r = l->n < l->room ? 0 : limbo_grow(l);
        if (r == 0)
                l->pieces[l->n++] = piece;
        (void)pthread_mutex_unlock(&l->mutex);
        if (r < 0 && piece.fenced)
                vmm_fence_free(v, piece.fence);
}

bool limbo_take(struct limbo *l, struct vmm *v, bool quiet, size_t *looks, uint64_t *ret_address) {
        bool found = false;
        (void)pthread_mutex_lock(&l->mutex);
        for (*looks = MIN(*looks, l->n); !found && *looks > 0; (*looks)--) {
                l->next = l->next < l->n ? l->next : 0;
                struct limbo_piece *p = &l->pieces[l->next];
                found = p->fenced ? vmm_fence_passed(v, p->fence) : quiet;
                if (!found) {
                        l->next++;
                        continue;
                }
                if (p->fenced)
                        vmm_fence_free(v, p->fence);
                *ret_address = p->address;
                *p = l->pieces[--l->n];
        }
        (void)pthread_mutex_unlock(&l->mutex);
        return found;
}
