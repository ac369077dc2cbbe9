// SPDX-License-Identifier: MIT
#pragma once
/*
 * A latch: a lock that is held for nanoseconds, and never over anything that waits. Taking it is one atomic exchange and
 * letting it go a plain store. A mutex costs twice that, which is as much as the allocating that it would guard here.
 *
 * In return nobody is woken: who finds it taken spins, and sleeps when that lasts, as its holder was interrupted then.
 */
#include <time.h>

#include "base.h"

#define LATCH_SPINS 200u
#define LATCH_SLEEP_NS 20000

struct latch {
        uint32_t taken;
};

static inline bool latch_try(struct latch *l) {
        return __atomic_exchange_n(&l->taken, 1, __ATOMIC_ACQUIRE) == 0;
}

static __attribute__((__noinline__, __unused__)) void latch_wait(struct latch *l) {
        for (unsigned spins = 0;;) {
                while (__atomic_load_n(&l->taken, __ATOMIC_RELAXED))
                        if (++spins > LATCH_SPINS)
                                (void)nanosleep(&(struct timespec){ .tv_nsec = LATCH_SLEEP_NS }, NULL);
#if defined(__x86_64__)
                        else
                                __builtin_ia32_pause();
#endif
                if (latch_try(l))
                        return;
        }
}

static inline void latch_take(struct latch *l) {
        if (__builtin_expect(!latch_try(l), 0))
                latch_wait(l);
}

static inline void latch_drop(struct latch *l) {
        __atomic_store_n(&l->taken, 0, __ATOMIC_RELEASE);
}
