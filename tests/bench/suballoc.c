// SPDX-License-Identifier: MIT
/*
 * What a pool costs, and what it wastes: the blocks that PyTorch's allocator handed out in a recorded run, asked of a pool
 * instead. tests/gpu/record_trace.py says what ran; traces/ has it.
 *
 * A round replays all of it in a new pool. Its last third, a steady state of some 340 blocks, is timed: allocating and
 * freeing through the public library, the slabs that come and go meanwhile included. The most that was reserved is
 * compared with what PyTorch's own segments came to in that run.
 *
 * No byte of the memory is touched, so without a GPU the fake driver's serves, in a process of its own.
 */
#include "bench.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "gmsclient.h"
#include "gmsd.h"
#include "samples.h"

#define ROUNDS 15
#define LIMIT_NS 50.0 /* a pair of one allocation and one free: 20 million in a second */
#define SAMPLE_EVERY 1000
#define MIB 1048576.0

/* ---- the trace */

/* An allocation of `bytes` into a slot, or, with bytes 0, the free of what is in the slot. */
struct step {
        uint64_t bytes;
        uint32_t slot;
};

struct trace {
        struct step *steps;
        size_t n, steady, end; /* from that one on, up to where the program comes to its end and frees its model */
        size_t pairs;          /* allocations between */
        uint32_t slots;
        double segments;       /* bytes of the most that PyTorch held */
        double unused;         /* the part of its segments that was in no block, the mean of the steady state */
};

static void *grown(void *p, size_t n, size_t *room, size_t size) {
        if (n < *room)
                return p;
        *room = MAX(2 * *room, (size_t)1024);
        p = reallocarray(p, *room, size);
        if (!p)
                bench_die("no memory");
        return p;
}

/* Blocks and segments are named by how long ago they came; a block gets a slot, which is the next one's when it is freed. */
static void trace_read(struct trace *t, const struct bench *b) {
        char command[sizeof(b->build) + 64], kind;
        unsigned long long value;
        _cleanup_free_ uint32_t *slot_of = NULL, *unused = NULL;
        _cleanup_free_ uint64_t *segment = NULL, *block = NULL;
        _cleanup_free_ double *idle = NULL; /* after each step, the part of the segments that is in no block */
        size_t blocks = 0, segments = 0, n_unused = 0, room = 0, blocks_room = 0, unused_room = 0, segments_room = 0;
        size_t block_room = 0, idle_room = 0;
        double held = 0, used = 0;
        *t = (struct trace){};
        (void)snprintf(command, sizeof(command), "gzip -dc '%s/tests/bench/trace.gz'", b->build);
        FILE *f = popen(command, "re");
        if (!f)
                bench_die("%s: %s", command, strerror(errno));
        while (fscanf(f, " %c %llu", &kind, &value) == 2) {
                if (kind == 'A' || kind == 'F') {
                        segment = grown(segment, segments, &segments_room, sizeof(*segment));
                        if (kind == 'A')
                                segment[segments++] = value;
                        held += kind == 'A' ? (double)value : -(double)segment[segments - 1 - value];
                        t->segments = MAX(t->segments, held);
                        continue;
                }
                t->steps = grown(t->steps, t->n, &room, sizeof(*t->steps));
                if (kind == 'a') {
                        slot_of = grown(slot_of, blocks, &blocks_room, sizeof(*slot_of));
                        block = grown(block, blocks, &block_room, sizeof(*block));
                        block[blocks] = value;
                        used += (double)value;
                        slot_of[blocks] = n_unused ? unused[--n_unused] : t->slots++;
                        t->steps[t->n++] = (struct step){ value, slot_of[blocks++] };
                } else {
                        unused = grown(unused, n_unused, &unused_room, sizeof(*unused));
                        used -= (double)block[blocks - 1 - value];
                        unused[n_unused++] = slot_of[blocks - 1 - value];
                        t->steps[t->n++] = (struct step){ 0, unused[n_unused - 1] };
                }
                idle = grown(idle, t->n - 1, &idle_room, sizeof(*idle));
                idle[t->n - 1] = held > 0 ? 1 - used / held : 0;
        }
        if (pclose(f) != 0 || t->n == 0)
                bench_die("%s: no trace", command);
        t->steady = t->n / 3 * 2;
        t->end = t->n - t->n / 50;
        for (size_t i = t->steady; i < t->end; i++) {
                t->pairs += t->steps[i].bytes > 0;
                t->unused += idle[i] / (double)(t->end - t->steady);
        }
}

/* ---- a round */

struct result {
        double pair_ns, reserved, requested;
        double external, unused; /* fragmentation, and the part of the slabs that is in no piece: the means of the steady state */
        double slabs;    /* at most */
};

static struct gms *writer(const struct gmsd *d) {
        struct gms *g;
        char store[64];
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RW;
        o.label = "bench";
        (void)snprintf(store, sizeof(store), "%s/suballoc", d->device);
        if (gms_open(&g, d->socket, store) < 0 || gms_connect(g, &o) < 0)
                bench_die("connect: %s", gms_last_error());
        return g;
}

static void replay(struct gms_pool *p, const struct step *step, const struct step *end, uint64_t *address) {
        struct gms_piece piece = GMS_INIT(struct gms_piece);
        for (; step < end; step++) {
                if (step->bytes == 0) {
                        if (gms_pool_free(p, address[step->slot]) < 0)
                                bench_die("free: %s", gms_last_error());
                        continue;
                }
                if (gms_pool_allocate(p, step->bytes, 0, &piece) < 0)
                        bench_die("allocate: %s", gms_last_error());
                address[step->slot] = piece.address;
        }
}

static struct gms_pool_stats stats_of(struct gms_pool *p) {
        struct gms_pool_stats s = GMS_INIT(struct gms_pool_stats);
        if (gms_pool_stats(p, &s) < 0)
                bench_die("stats: %s", gms_last_error());
        return s;
}

/* `sampled`: looks at the pool on the way, in all of the trace, and so does not time it. */
static struct result round_of(const struct gmsd *d, const struct trace *t, uint64_t *address, bool sampled) {
        struct gms *g = writer(d);
        struct gms_pool *p;
        struct result r = {};
        double samples = 0;
        if (gms_pool_open(&p, g, NULL) < 0)
                bench_die("pool: %s", gms_last_error());
        for (size_t i = 0; sampled && i < t->n; i += SAMPLE_EVERY) {
                replay(p, &t->steps[i], &t->steps[MIN(i + SAMPLE_EVERY, t->n)], address);
                struct gms_pool_stats s = stats_of(p);
                r.slabs = MAX(r.slabs, s.slabs);
                if (i < t->steady || i >= t->end || s.reserved == s.allocated)
                        continue;
                r.unused += 1 - (double)s.allocated / (double)s.reserved;
                r.external += 1 - (double)s.largest_free / (double)(s.reserved - s.allocated);
                samples++;
        }
        if (!sampled) {
                replay(p, t->steps, &t->steps[t->steady], address);
                double since = now_us();
                replay(p, &t->steps[t->steady], &t->steps[t->end], address);
                r.pair_ns = (now_us() - since) * 1e3 / (double)t->pairs;
                replay(p, &t->steps[t->end], &t->steps[t->n], address);
        }
        struct gms_pool_stats s = stats_of(p);
        r.external /= MAX(samples, 1);
        r.unused /= MAX(samples, 1);
        r.reserved = (double)s.reserved_peak;
        r.requested = (double)s.requested_peak;
        gms_pool_close(p);
        gms_close(g);
        gmsd_settle(d);
        return r;
}

static struct result measure(const struct bench *b, const struct trace *t, const char *device, char *const environment[]) {
        struct gmsd d;
        _cleanup_samples_ struct samples pairs = {};
        _cleanup_free_ uint64_t *address = calloc(t->slots, sizeof(*address));
        if (!address)
                bench_die("no memory");
        gmsd_start(&d, b, device, NULL, environment);
        struct result r = round_of(&d, t, address, true);
        for (int i = 0; i < ROUNDS; i++)
                samples_add(&pairs, round_of(&d, t, address, false).pair_ns);
        gmsd_stop(&d);
        r.pair_ns = samples_cost(&pairs);
        return r;
}

/* ---- where there is no GPU */

struct without_gpu {
        const struct bench *bench;
        const struct trace *trace;
};

/* The library finds the fake driver by its name, as it is loaded already. */
static void measure_on_fake(int fd, void *arg) {
        const struct without_gpu *w = arg;
        const struct bench *b = w->bench;
        char library[sizeof(b->build) + 64], path_env[sizeof(b->build) + 64], dir_env[128];
        (void)snprintf(library, sizeof(library), "%s/tests/fakecuda/libcuda.so.1", b->build);
        (void)snprintf(path_env, sizeof(path_env), "LD_LIBRARY_PATH=%s/tests/fakecuda", b->build);
        (void)snprintf(dir_env, sizeof(dir_env), "FAKECUDA_DIR=%s/suballoc", b->dir);
        char *environment[] = { dir_env, path_env, (char *)"FAKECUDA_MEMORY=16G", NULL };
        (void)putenv(environment[0]);
        (void)putenv(environment[2]);
        if (!dlopen(library, RTLD_NOW | RTLD_GLOBAL))
                bench_die("%s", dlerror());
        struct result r = measure(b, w->trace, "cuda:0", environment);
        if (write(fd, &r, sizeof(r)) != sizeof(r))
                bench_die("the result: %s", strerror(errno));
}

void suballoc_run(struct bench *b) {
        struct trace t;
        struct result r;
        trace_read(&t, b);
        if (strcmp(b->device, "host") != 0)
                r = measure(b, &t, b->device, NULL);
        else {
                struct helper h = bench_fork(measure_on_fake, &(struct without_gpu){ b, &t });
                if (read(h.fd, &r, sizeof(r)) != sizeof(r))
                        bench_die("no result of the pool on the fake GPU");
                bench_join(&h);
        }
        bench_row(b, "suballoc", "ns", r.pair_ns, LIMIT_NS, 1.0,
                  "gms_pool_allocate() and gms_pool_free(), a pair, in the steady state of a PyTorch trace: %.1f million a "
                  "second; limit 20", 1e3 / r.pair_ns);
        bench_row(b, "suballoc_reserved", "MiB", r.reserved / MIB, t.segments / MIB, 1.0,
                  "the most that the pool reserved for the trace, which is %.0f in use at most and %.0f slabs; against PyTorch's "
                  "segments", r.requested / MIB, r.slabs);
        bench_row(b, "suballoc_unused", "%", 100 * r.unused, 100 * t.unused, 1.0,
                  "of the slabs in no piece, the mean of the steady state; against PyTorch's segments in no block");
        bench_row(b, "suballoc_external", "%", 100 * r.external, NONE, NONE,
                  "external fragmentation (1 - largest free / free), the mean of the steady state");
        free(t.steps);
}
