// SPDX-License-Identifier: MIT
/*
 * A whole GPU in few allocations, as a pool takes them: attached by a process that comes new (from gms_connect() to all
 * mapped), put to sleep (gms_unmap_all) and woken (gms_remap_all), against the driver's bare calls for the same slabs. Once
 * with slabs of a pool that knew how much would come, as a loader does, and once of one that did not.
 *
 * 120 GiB on a GPU that has them, else nine tenths of what is free; 512 MiB of host memory, where a few calls cost so
 * little that the ratio says what connecting costs, and has no goal.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bare.h"
#include "gmsclient.h"
#include "gmsd.h"
#include "samples.h"

#define GIB (UINT64_C(1) << 30)
#define GPU_TOTAL (120 * GIB)
#define HOST_TOTAL (GIB / 2)
#define PIECES 480
#define ROUNDS 15
#define GPU_LIMIT_US 10000.0

static void check(int r, const char *what) {
        if (r < 0)
                bench_die("%s: %s", what, gms_last_error());
}

static struct gms *open_store(const struct gmsd *d, const char *store, uint32_t mode) {
        struct gms *g;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = mode;
        o.label = "bench";
        check(gms_open(&g, d->socket, store), "gms_open");
        check(gms_connect(g, &o), "connect");
        return g;
}

/* ---- what is attached */

static uint64_t plan_total(const struct gmsd *d) {
        struct gms_device *devices;
        size_t n;
        uint64_t total = HOST_TOTAL, unit;
        struct gms *g = open_store(d, NULL, GMS_MODE_NONE);
        check(gms_query_devices(g, &devices, &n), "devices");
        if (strcmp(devices[0].name, "host") != 0)
                total = MIN(GPU_TOTAL, devices[0].free / 10 * 9);
        unit = devices[0].granularity;
        gms_array_free(devices);
        gms_close(g);
        return total / PIECES / unit * unit * PIECES;
}

static void publish(const struct gmsd *d, const char *store, uint64_t total, bool told) {
        struct gms *g = open_store(d, store, GMS_MODE_RW);
        struct gms_pool *p;
        struct gms_pool_options o = GMS_INIT(struct gms_pool_options);
        struct gms_piece piece = GMS_INIT(struct gms_piece);
        o.expected = told ? total : 0;
        check(gms_pool_open(&p, g, &o), "pool");
        for (int i = 0; i < PIECES; i++)
                check(gms_pool_allocate(p, total / PIECES, 0, &piece), "pool");
        check(gms_pool_trim(p), "trim");
        check(gms_commit(g, NULL, 0), "commit");
        gms_pool_close(p);
        gms_close(g);
}

/* ---- the rows */

struct slabs {
        int *fds;
        uint64_t *sizes;
        size_t n;
};

static void slabs_get(struct slabs *s, struct gms *g) {
        check(gms_allocations(g, NULL, 0, &s->n), "allocations");
        struct gms_allocation *a = calloc(s->n, sizeof(*a));
        s->fds = calloc(s->n, sizeof(*s->fds));
        s->sizes = calloc(s->n, sizeof(*s->sizes));
        if (!a || !s->fds || !s->sizes)
                bench_die("out of memory");
        a[0].size = sizeof(*a);
        check(gms_allocations(g, a, s->n, &s->n), "allocations");
        for (size_t i = 0; i < s->n; i++) {
                s->sizes[i] = a[i].aligned;
                check(gms_export(g, a[i].id, &s->fds[i]), "export");
        }
        free(a);
}

static void slabs_done(struct slabs *s) {
        for (size_t i = 0; i < s->n; i++)
                (void)close(s->fds[i]);
        free(s->fds);
        free(s->sizes);
}

/* What one round of ours took, or of the bare calls. */
struct round {
        double attach, sleep, wake;
};

static struct round ours(const struct gmsd *d, const char *store) {
        struct round t;
        struct gms *g;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RO;
        o.label = "bench";
        check(gms_open(&g, d->socket, store), "gms_open");
        double since = now_us();
        check(gms_connect(g, &o), "connect");
        check(gms_attach(g), "attach");
        t.attach = now_us() - since;

        since = now_us();
        check(gms_unmap_all(g), "unmap");
        t.sleep = now_us() - since;
        since = now_us();
        check(gms_remap_all(g, NULL), "remap");
        t.wake = now_us() - since;
        gms_close(g);
        return t;
}

static struct round bare(struct bare *b) {
        struct round t;
        t.attach = bare_map(b);
        t.wake = t.attach + bare_release(b);
        t.sleep = bare_unmap(b);
        return t;
}

static void measure(struct bench *b, const struct gmsd *d, const char *store, uint64_t total, bool told) {
        bool host = strcmp(d->device, "host") == 0;
        struct slabs s;
        struct bare floor;
        struct gms *g = open_store(d, store, GMS_MODE_RO);
        check(gms_attach(g), "attach");
        slabs_get(&s, g);
        gms_close(g);
        bare_init(&floor, d->device, s.fds, s.sizes, (uint32_t)s.n);

        struct samples value[3] = {}, least[3] = {};
        for (int round = -1; round < ROUNDS; round++) { /* the first is to warm up */
                struct round v, f;
                if (round % 2 == 0) {
                        v = ours(d, store);
                        f = bare(&floor);
                } else {
                        f = bare(&floor);
                        v = ours(d, store);
                }
                if (round < 0)
                        continue;
                const double vs[] = { v.attach, v.sleep, v.wake }, fs[] = { f.attach, f.sleep, f.wake };
                for (int i = 0; i < 3; i++) {
                        samples_add(&value[i], vs[i]);
                        samples_add(&least[i], fs[i]);
                }
        }
        bare_done(&floor);

        static const struct {
                const char *name, *what;
                double goal;
        } rows[] = {
                { "attach_slabs", "from gms_connect() to all mapped", 1.25 },
                { "sleep", "gms_unmap_all()", 1.15 },
                { "wake", "gms_remap_all()", 1.15 },
        };
        for (int i = 0; i < 3; i++) {
                char name[48];
                (void)snprintf(name, sizeof(name), "%s%s", rows[i].name, told ? "" : "_untold");
                bench_row(b, name, "us", samples_cost(&value[i]), samples_cost(&least[i]), host ? NONE : rows[i].goal,
                          "%s, %.1f GiB in %zu slabs", rows[i].what, (double)total / (double)GIB, s.n);
        }
        if (total >= 100 * GIB)
                bench_row(b, told ? "attach_whole_gpu" : "attach_whole_gpu_untold", "us", samples_cost(&value[0]), GPU_LIMIT_US,
                          1.0, "the same, against 10 ms");
        for (int i = 0; i < 3; i++) {
                samples_done(&value[i]);
                samples_done(&least[i]);
        }
        slabs_done(&s);
}

void slabs_run(struct bench *b) {
        struct gmsd d;
        char store[64];
        gmsd_start(&d, b, b->device, NULL, NULL);
        uint64_t total = plan_total(&d);
        (void)snprintf(store, sizeof(store), "%s/slabs", d.device);
        for (int told = 1; told >= 0; told--) {
                publish(&d, store, total, told);
                measure(b, &d, store, total, told);
                struct gms *g = open_store(&d, NULL, GMS_MODE_NONE);
                check(gms_clear(g, store, 0), "clear");
                gms_close(g);
                gmsd_settle(&d);
        }
        gmsd_stop(&d);
}
