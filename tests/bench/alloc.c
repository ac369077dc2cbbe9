// SPDX-License-Identifier: MIT
/*
 * Allocating 2,048 in one batch, until the writer holds every descriptor, against the worker's bare work: vmm_create() of the
 * same sizes, which is create and export, in a loop in this process.
 *
 * The writer speaks the protocol itself: Allocate and the Pages that follow. gms_allocate_many() also maps each, which is a
 * cost of the client's and has its own row. On host 2 MiB are dear because the kernel clears them, alike in both; what gmsd
 * adds shows with the smallest allocations, so those have rows as well.
 *
 * A round is one of each, in this order and in the other by turns, and nothing of the one before is still being freed.
 */
#include "bench.h"

#include <stdio.h>
#include <string.h>

#include "gmsclient.h"
#include "gmsd.h"
#include "memory.h"
#include "raw.h"
#include "samples.h"
#include "vmm.h"

#define N MEMORY_N

static int fds[N];

static double close_all(void) {
        double since = now_us();
        for (int i = 0; i < N; i++)
                fds[i] = close_fd(fds[i]);
        return now_us() - since;
}

static double bare(struct vmm *v, uint64_t size) {
        double since = now_us();
        for (int i = 0; i < N; i++)
                if (vmm_create(v, size, &fds[i]) != 0)
                        bench_die("vmm_create: %s", v->text);
        double took = now_us() - since;
        (void)close_all();
        return took;
}

static double request(const struct gmsd *d, const char *store, uint64_t size) {
        struct raw r;
        raw_open(&r, d->socket);
        raw_hello(&r, store, GMS__MODE__RW);
        double since = now_us();
        (void)raw_allocate(&r, N, size, fds);
        double took = now_us() - since;
        (void)close_all();
        raw_close(&r);
        gmsd_settle(d);
        return took;
}

static double library(const struct gmsd *d, const char *store, uint64_t size) {
        static uint64_t sizes[N];
        for (int i = 0; i < N; i++)
                sizes[i] = size;
        struct gms *g;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RW;
        o.label = "bench";
        if (gms_open(&g, d->socket, store) < 0 || gms_connect(g, &o) < 0)
                bench_die("connect: %s", gms_last_error());
        double since = now_us();
        if (gms_allocate_many(g, N, sizes, NULL, NULL) < 0)
                bench_die("gms_allocate_many: %s", gms_last_error());
        double took = now_us() - since;
        gms_close(g);
        gmsd_settle(d);
        return took;
}

struct costs {
        double request, library, bare;
};

static struct costs measure(const struct gmsd *d, struct vmm *v, uint64_t size, int rounds, bool with_library) {
        _cleanup_samples_ struct samples r = {}, l = {}, f = {};
        char store[64];
        (void)snprintf(store, sizeof(store), "%s/alloc", d->device);
        for (int round = 0; round < rounds; round++) {
                for (int half = 0; half < 2; half++) {
                        if ((round + half) % 2 == 0)
                                samples_add(&r, request(d, store, size));
                        else
                                samples_add(&f, bare(v, size));
                }
                if (with_library)
                        samples_add(&l, library(d, store, size));
        }
        return (struct costs){ samples_cost(&r), with_library ? samples_cost(&l) : 0, samples_cost(&f) };
}

void alloc_run(struct bench *b) {
        struct gmsd d;
        struct vmm *v;
        char text[200];
        gmsd_start(&d, b, b->device, NULL, NULL);
        if (vmm_open(&v, d.device, text, sizeof(text)) != 0)
                bench_die("%s: %s", d.device, text);
        bool host = strcmp(d.device, "host") == 0;
        struct memory memory = memory_plan();

        (void)measure(&d, v, v->device.granularity, 1, true); /* to warm up */
        struct costs m = measure(&d, v, memory.size, host ? 5 : 9, !host);
        bench_row(b, "alloc_2048", "us", m.request, m.bare, 1.2,
                  "Allocate and its Pages, %d times %s, until all descriptors are here; against vmm_create() of each", N,
                  memory.text);
        if (host) {
                uint64_t small = v->device.granularity;
                m = measure(&d, v, small, 9, true);
                bench_row(b, "alloc_2048_small", "us", m.request, m.bare, NONE, "the same with allocations of %llu KiB",
                          (unsigned long long)small >> 10);
        }
        bench_row(b, host ? "alloc_2048_small_mapped" : "alloc_2048_mapped", "us", m.library, m.bare, NONE,
                  "gms_allocate_many() of those: the request, and mapping each");
        vmm_free(v);
        gmsd_stop(&d);
}
