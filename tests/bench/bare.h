// SPDX-License-Identifier: MIT
#pragma once
/*
 * The floor of attaching and sleeping: what mapping and unmapping the same descriptors costs without gmsd.
 *
 *   host   receive them over a socket in messages of 253, mmap each anywhere, close each. The sender pushes all messages at
 *          once; a page of gmsd's must be asked for.
 *   GPU    import, map and set access, descriptors in hand. To release the imported handle afterwards is no part of it, and
 *          is part of attaching: it is timed by itself.
 */
#include "bench.h"
#include "cuda_driver.h"

struct bare {
        const int *fds;        /* the caller's, as are the sizes */
        const uint64_t *sizes;
        uint32_t n;

        struct helper feeder;  /* host */
        void **addresses;

        const struct cuda_driver *cu; /* NULL: host */
        int ordinal;
        CUmemGenericAllocationHandle *handles;
        CUdeviceptr at;
        uint64_t total;
};

/* `device` as stores begin with: host, cuda:0. */
void bare_init(struct bare *b, const char *device, const int *fds, const uint64_t *sizes, uint32_t n);
void bare_done(struct bare *b);

/* Each returns the microseconds it took. Map, release (nothing on host), unmap; addresses are given back untimed. */
double bare_map(struct bare *b);
double bare_release(struct bare *b);
double bare_unmap(struct bare *b);
