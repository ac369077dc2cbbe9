// SPDX-License-Identifier: MIT
/*
 * What others notice while a worker is busy for 300 ms: with a create, with a free. The GPU is the fake driver's, whose calls
 * take as long as they are told, and so does the close of its memory in a worker, as it is preloaded. But there it is the
 * function that takes long, whoever calls it last: only a real free shows whether the last descriptor is the worker's. That
 * is one of a large allocation on host, as often as it takes to meet a race.
 *
 * The others are eight sessions, half of them on the busy device, which make requests by turns at a fixed pace. A request that
 * is late because the answer before it was late counts from when it was due: otherwise a daemon that stands still for 300 ms
 * would show as one bad measurement among thousands. Each round has its 99th percentile, and the median of those is the result:
 * what the daemon does happens in every round, what else the machine does in some.
 */
#include "bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "fakecuda.h"
#include "gmsd.h"
#include "memory.h"
#include "raw.h"
#include "samples.h"

#define SESSIONS 8
#define PACE_US 200.0
#define BUSY_US 300000.0
#define ROUNDS 7
#define LIMIT_US 1000.0
#define LARGE (UINT64_C(1) << 30)
#define FREES 16

/* What was seen in many rounds. */
struct seen {
        struct samples p99; /* of each round */
        double max;
        size_t n;
};

/* Takes a round's measurements. */
static void seen_add(struct seen *s, struct samples *round) {
        samples_add(&s->p99, samples_percentile(round, 99));
        s->max = MAX(s->max, samples_percentile(round, 100));
        s->n += round->n;
        samples_done(round);
}

static void seen_done(struct seen *s) {
        samples_done(&s->p99);
}

struct others {
        struct raw at[SESSIONS];
        unsigned turn;
        double due; /* the next request */
};

static void others_open(struct others *o, const struct gmsd *d) {
        *o = (struct others){};
        for (unsigned i = 0; i < SESSIONS; i++) {
                char store[64];
                (void)snprintf(store, sizeof(store), "%s/other%u", i % 2 ? "host" : d->device, i);
                raw_open(&o->at[i], d->socket);
                raw_hello(&o->at[i], store, GMS__MODE__RW);
        }
}

static void others_close(struct others *o) {
        for (unsigned i = 0; i < SESSIONS; i++)
                raw_close(&o->at[i]);
}

static void sleep_until(double us) {
        struct timespec t = { .tv_sec = (time_t)(us / 1e6) };
        t.tv_nsec = (long)((us - (double)t.tv_sec * 1e6) * 1e3);
        (void)clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
}

static void others_begin(struct others *o) {
        o->due = now_us();
}

/* The round trips that are due in this time; with `until`, before something has arrived there. */
static void trips(struct others *o, double us, int until, struct samples *into) {
        double now = now_us(), end = now + us;
        char peek;
        while (o->due < end && (until < 0 || recv(until, &peek, 1, MSG_PEEK | MSG_DONTWAIT) < 0)) {
                double start = o->due;
                if (now < start) { /* to wake up late is nobody's fault */
                        sleep_until(start);
                        start = now_us();
                }
                raw_state(&o->at[o->turn++ % SESSIONS]);
                now = now_us();
                samples_add(into, now - start);
                o->due = start + PACE_US;
        }
}

/* Those that are due by now, and were held up. */
static void others_catch_up(struct others *o, struct samples *into) {
        trips(o, 0, -1, into);
}

static void others_alone(struct others *o, struct samples *into) {
        others_begin(o);
        trips(o, BUSY_US, -1, into);
        others_catch_up(o, into);
}

/* A session that allocates n bytes, and gives them back: what the others see meanwhile. */
static void beside_create(struct others *o, const struct gmsd *d, struct fakecuda *knobs, struct samples *into) {
        struct raw r;
        char store[64];
        (void)snprintf(store, sizeof(store), "%s/busy", d->device);
        raw_open(&r, d->socket);
        raw_hello(&r, store, GMS__MODE__RW);
        fakecuda_delay(knobs, "cuMemCreate", (uint32_t)BUSY_US, 1);
        double since = now_us();
        others_begin(o);
        raw_send_allocate(&r, 1, MEMORY_SIZE);
        trips(o, 10 * BUSY_US, r.fd, into);
        others_catch_up(o, into);
        if (now_us() - since < BUSY_US)
                bench_die("the worker was not busy with a create");
        struct fdset *fds;
        raw_drop(raw_receive(&r, &fds));
        fdset_free(fds);
        raw_close(&r);
        gmsd_settle(d);
}

/* The end of a session frees. Returns how long the worker had to do with it, at most `us`. */
static double beside_free(struct others *o, const struct gmsd *d, const char *store, uint64_t bytes, double us,
                          struct fakecuda *knobs, struct samples *into) {
        struct raw r, look;
        raw_open(&look, d->socket);
        raw_hello(&look, NULL, GMS__MODE__NONE);
        raw_open(&r, d->socket);
        raw_hello(&r, store, GMS__MODE__RW);
        (void)raw_allocate(&r, 1, bytes, NULL);
        if (knobs)
                fakecuda_delay(knobs, "close", (uint32_t)BUSY_US, 1);
        double since = now_us(), took = 0;
        uint64_t owned = bytes;
        others_begin(o);
        raw_close(&r);
        while (owned > 0 && took < us) {
                trips(o, 5000, -1, into);
                raw_first_device(&look, NULL, 0, &owned);
                took = now_us() - since;
        }
        others_catch_up(o, into);
        raw_close(&look);
        gmsd_settle(d);
        return took;
}

/*
 * Real frees. Returns the percentile; or, if any of them held everybody up, how long: a round trip that takes most of a free
 * is the daemon's doing, however seldom it happens.
 */
static double host_busy(struct bench *b) {
        struct gmsd d;
        struct others o;
        uint64_t bytes = MIN(LARGE, memory_plan().size * MEMORY_N);
        double took = 0;
        unsigned stalls = 0;
        gmsd_start(&d, b, "host", NULL, NULL);
        others_open(&o, &d);
        struct seen idle = {}, busy = {};
        _cleanup_samples_ struct samples round = {};
        others_alone(&o, &round); /* to warm up */
        samples_done(&round);
        for (int i = 0; i < FREES; i++) {
                others_alone(&o, &round);
                seen_add(&idle, &round);
                double free_us = beside_free(&o, &d, "host/busy", bytes, 100 * BUSY_US, NULL, &round);
                took += free_us;
                stalls += samples_percentile(&round, 100) > free_us / 2;
                seen_add(&busy, &round);
        }
        double p99 = samples_median(&busy.p99);
        bench_row(b, "busy_free_host_p99", "us", p99, samples_median(&idle.p99), NONE,
                  "beside %d real frees of %llu MiB of host memory, which took %.0f ms each", FREES,
                  (unsigned long long)bytes >> 20, took / FREES / 1e3);
        bench_row(b, "busy_free_host_max", "us", busy.max, idle.max, NONE, "the greatest of %zu of them; %u frees held everybody up",
                  busy.n, stalls);
        seen_done(&idle);
        seen_done(&busy);
        others_close(&o);
        gmsd_stop(&d);
        return stalls > 0 ? busy.max : p99;
}

/* Returns the worse of the two percentiles. */
static double fake_busy(struct bench *b) {
        const char *libraries = getenv("LD_LIBRARY_PATH");
        char dir[128], dir_env[160], path_env[2 * sizeof(b->build)], preload_env[sizeof(b->build) + 64];
        (void)snprintf(dir, sizeof(dir), "%s/fakecuda", b->dir);
        (void)snprintf(dir_env, sizeof(dir_env), "FAKECUDA_DIR=%s", dir);
        (void)snprintf(path_env, sizeof(path_env), "LD_LIBRARY_PATH=%s/tests/fakecuda%s%s", b->build,
                       libraries ? ":" : "", libraries ? libraries : "");
        (void)snprintf(preload_env, sizeof(preload_env), "LD_PRELOAD=%s/tests/fakecuda/libcuda.so.1", b->build);
        char *environment[] = { dir_env, path_env, preload_env, NULL };

        struct gmsd d;
        struct others o;
        char store[64];
        gmsd_start(&d, b, "cuda:0", "host", environment);
        struct fakecuda *knobs = fakecuda_open(dir);
        if (!knobs)
                bench_die("the fake driver's knobs in %s: %s", dir, strerror(errno));
        (void)snprintf(store, sizeof(store), "%s/busy", d.device);
        others_open(&o, &d);

        struct seen idle = {}, create = {}, free_ = {};
        _cleanup_samples_ struct samples round = {};
        others_alone(&o, &round); /* to warm up */
        samples_done(&round);
        for (int i = 0; i < ROUNDS; i++) {
                others_alone(&o, &round);
                seen_add(&idle, &round);
                beside_create(&o, &d, knobs, &round);
                seen_add(&create, &round);
                if (beside_free(&o, &d, store, MEMORY_SIZE, 2 * BUSY_US, knobs, &round) < BUSY_US)
                        bench_die("the worker was not busy with a free");
                seen_add(&free_, &round);
        }
        double p_create = samples_median(&create.p99), p_free = samples_median(&free_.p99), p_idle = samples_median(&idle.p99);
        bench_row(b, "busy_create_p99", "us", p_create, p_idle, NONE, "beside a cuMemCreate of 300 ms, against nobody busy");
        bench_row(b, "busy_create_max", "us", create.max, idle.max, NONE, "the greatest of %zu of them, and of %zu beside nobody",
                  create.n, idle.n);
        bench_row(b, "busy_free_p99", "us", p_free, p_idle, NONE, "beside a close of 300 ms, against nobody busy");
        bench_row(b, "busy_free_max", "us", free_.max, idle.max, NONE, "the greatest of %zu of them", free_.n);
        seen_done(&idle);
        seen_done(&create);
        seen_done(&free_);
        others_close(&o);
        gmsd_stop(&d);
        return MAX(p_create, p_free);
}

void busy_run(struct bench *b) {
        double fake = fake_busy(b), host = host_busy(b);
        bench_row(b, "busy_p99", "us", MAX(fake, host), LIMIT_US, 1.0,
                  "99th percentile of others' round trips beside a busy worker, the worst of three, or the longest hold-up; limit 1 ms");
}
