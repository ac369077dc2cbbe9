// SPDX-License-Identifier: MIT
/*
 * What others notice while a worker is busy for 300 ms: with a create, with a free. The GPU is the fake driver's, whose calls
 * take as long as they are told, and so does the close of its memory's last descriptor, as it is preloaded. A real free is
 * that of one large allocation on host.
 *
 * The others are eight sessions, half of them on the busy device; by turns, each makes a request at a fixed time. A round trip
 * counts from that time on, also when the one before was late: otherwise a daemon that stands still for 300 ms would show as
 * one bad measurement among thousands.
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
#define ROUNDS 5
#define LIMIT_US 1000.0
#define LARGE (UINT64_C(3) << 30)

struct others {
        struct raw at[SESSIONS];
        unsigned turn;
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

/* Round trips until the time is over; with `until`, also until something has arrived there. */
static void trips(struct others *o, double us, int until, struct samples *into) {
        double start = now_us(), due = start;
        char peek;
        while (due < start + us && (until < 0 || recv(until, &peek, 1, MSG_PEEK | MSG_DONTWAIT) < 0)) {
                while (now_us() < due)
                        ; /* to sleep would add the time it takes to wake up */
                raw_state(&o->at[o->turn++ % SESSIONS]);
                samples_add(into, now_us() - due);
                due += PACE_US;
        }
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
        raw_send_allocate(&r, 1, MEMORY_SIZE);
        trips(o, 10 * BUSY_US, r.fd, into);
        if (now_us() - since < BUSY_US)
                bench_die("the worker was not busy with a create");
        struct fdset *fds;
        _cleanup_frame_ Gms__Frame *answer = raw_receive(&r, &fds);
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
        raw_close(&r);
        while (owned > 0 && took < us) {
                trips(o, 5000, -1, into);
                raw_first_device(&look, NULL, 0, &owned);
                took = now_us() - since;
        }
        raw_close(&look);
        gmsd_settle(d);
        return took;
}

static void fake_busy(struct bench *b) {
        char dir[128], dir_env[160], path_env[sizeof(b->build) + 64], preload_env[sizeof(b->build) + 64];
        (void)snprintf(dir, sizeof(dir), "%s/fakecuda", b->dir);
        (void)snprintf(dir_env, sizeof(dir_env), "FAKECUDA_DIR=%s", dir);
        (void)snprintf(path_env, sizeof(path_env), "LD_LIBRARY_PATH=%s/tests/fakecuda", b->build);
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

        _cleanup_samples_ struct samples idle = {}, create = {}, free_ = {};
        trips(&o, BUSY_US, -1, &idle); /* to warm up */
        samples_done(&idle);
        for (int i = 0; i < ROUNDS; i++) {
                trips(&o, BUSY_US, -1, &idle);
                beside_create(&o, &d, knobs, &create);
                if (beside_free(&o, &d, store, MEMORY_SIZE, 2 * BUSY_US, knobs, &free_) < BUSY_US)
                        bench_die("the worker was not busy with a free");
        }
        double p_create = samples_percentile(&create, 99), p_free = samples_percentile(&free_, 99);
        double p_idle = samples_percentile(&idle, 99);
        bench_row(b, "busy_p99", "us", MAX(p_create, p_free), LIMIT_US, 1.0,
                  "99th percentile of others' round trips beside 300 ms of create or free (fake driver), the worse; limit 1 ms");
        bench_row(b, "busy_create_p99", "us", p_create, p_idle, NONE, "beside a cuMemCreate of 300 ms, against nobody busy");
        bench_row(b, "busy_create_max", "us", samples_percentile(&create, 100), samples_percentile(&idle, 100), NONE,
                  "the greatest of %zu of them, and of %zu beside nobody", create.n, idle.n);
        bench_row(b, "busy_free_p99", "us", p_free, p_idle, NONE, "beside a close of 300 ms, against nobody busy");
        bench_row(b, "busy_free_max", "us", samples_percentile(&free_, 100), samples_percentile(&idle, 100), NONE,
                  "the greatest of %zu of them", free_.n);
        others_close(&o);
        gmsd_stop(&d);
}

static void host_busy(struct bench *b) {
        struct gmsd d;
        struct others o;
        uint64_t bytes = MIN(LARGE, memory_plan().size * MEMORY_N);
        gmsd_start(&d, b, "host", NULL, NULL);
        others_open(&o, &d);
        _cleanup_samples_ struct samples s = {}, idle = {};
        trips(&o, BUSY_US, -1, &idle);
        samples_done(&idle);
        trips(&o, BUSY_US, -1, &idle);
        double took = beside_free(&o, &d, "host/busy", bytes, 100 * BUSY_US, NULL, &s);
        bench_row(b, "busy_free_host_p99", "us", samples_percentile(&s, 99), samples_percentile(&idle, 99), NONE,
                  "beside a real free of %llu MiB of host memory, which took %.0f ms", (unsigned long long)bytes >> 20, took / 1e3);
        others_close(&o);
        gmsd_stop(&d);
}

void busy_run(struct bench *b) {
        fake_busy(b);
        host_busy(b);
}
