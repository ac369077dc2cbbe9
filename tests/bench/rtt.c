// SPDX-License-Identifier: MIT
/*
 * A request's round trip: gms_state() of the public library, against an echo of frames of the same sizes between two
 * processes that do nothing but send() and recv().
 *
 * The two alternate in short rounds, so that whatever else the machine does falls on both. Where the processes run decides
 * more than what they do, so that is decided here, alike for both. The goal is on the strictest: on one CPU a round trip is
 * the work and two context switches. On two CPUs waking the other one up may cost five times that, which flatters the ratio;
 * where the scheduler may choose, it can choose differently for the two, and then the ratio says nothing.
 */
#include "bench.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "gmsclient.h"
#include "gmsd.h"
#include "raw.h"
#include "samples.h"

#define ROUNDS 40
#define TRIPS 250 /* a round */
#define WARM_UP 50

struct sizes {
        size_t request, reply;
};

static void echo(int fd, void *arg) {
        const struct sizes *sizes = arg;
        static char buf[CHANNEL_FRAME_MAX];
        while (recv(fd, buf, sizeof(buf), 0) > 0)
                if (send(fd, buf, sizes->reply, MSG_NOSIGNAL) < 0)
                        return;
}

static void echo_trip(int fd, const struct sizes *sizes) {
        static char buf[CHANNEL_FRAME_MAX];
        if (send(fd, buf, sizes->request, MSG_NOSIGNAL) < 0 || recv(fd, buf, sizeof(buf), 0) != (ssize_t)sizes->reply)
                bench_die("the echo has ended");
}

static void state_trip(struct gms *g) {
        struct gms_state state = GMS_INIT(struct gms_state);
        if (gms_state(g, &state) < 0)
                bench_die("gms_state: %s", gms_last_error());
}

/* What a frame of this session weighs; a serial of two bytes is that of most requests. */
static struct sizes frame_sizes(const struct gmsd *d, const char *store) {
        struct raw r;
        raw_open(&r, d->socket);
        raw_hello(&r, store, GMS__MODE__RO);
        r.serial = 1000;
        raw_state(&r);
        raw_close(&r);
        return (struct sizes){ .request = r.sent, .reply = r.received };
}

static struct gms *reader(const struct gmsd *d, const char *store) {
        struct gms *g;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RO;
        o.label = "bench";
        if (gms_open(&g, d->socket, store) < 0 || gms_connect(g, &o) < 0)
                bench_die("connect: %s", gms_last_error());
        return g;
}

static void pin(pid_t pid, const cpu_set_t *set) {
        if (sched_setaffinity(pid, sizeof(*set), set) < 0)
                bench_die("sched_setaffinity: %s", strerror(errno));
}

/* The n-th CPU of those that we may use, from the last one down: the first ones serve more interrupts. */
static cpu_set_t one_of(const cpu_set_t *all, int n) {
        cpu_set_t one;
        CPU_ZERO(&one);
        for (int cpu = CPU_SETSIZE - 1; cpu >= 0; cpu--)
                if (CPU_ISSET(cpu, all) && n-- == 0) {
                        CPU_SET(cpu, &one);
                        return one;
                }
        return *all;
}

struct pair {
        double value, floor; /* of the rounds' medians, µs */
};

static struct pair measure(struct gms *g, int echo_fd, const struct sizes *sizes) {
        _cleanup_samples_ struct samples value = {}, floor = {};
        for (int round = 0; round < ROUNDS; round++) {
                _cleanup_samples_ struct samples v = {}, f = {};
                for (int i = 0; i < TRIPS + WARM_UP; i++) {
                        double since = now_us();
                        echo_trip(echo_fd, sizes);
                        if (i >= WARM_UP)
                                samples_add(&f, now_us() - since);
                }
                for (int i = 0; i < TRIPS + WARM_UP; i++) {
                        double since = now_us();
                        state_trip(g);
                        if (i >= WARM_UP)
                                samples_add(&v, now_us() - since);
                }
                samples_add(&value, samples_median(&v));
                samples_add(&floor, samples_median(&f));
        }
        return (struct pair){ samples_cost(&value), samples_cost(&floor) };
}

void rtt_run(struct bench *b) {
        struct gmsd d;
        struct raw writer;
        char store[64];
        gmsd_start(&d, b, b->device, NULL, NULL);
        (void)snprintf(store, sizeof(store), "%s/rtt", d.device);
        raw_open(&writer, d.socket);
        raw_hello(&writer, store, GMS__MODE__RW);
        raw_publish(&writer);

        struct sizes sizes = frame_sizes(&d, store);
        struct gms *g = reader(&d, store);
        struct helper h = bench_fork(echo, &sizes);

        cpu_set_t all;
        if (sched_getaffinity(0, sizeof(all), &all) < 0)
                bench_die("sched_getaffinity: %s", strerror(errno));
        cpu_set_t here = one_of(&all, 0), there = one_of(&all, 1);
        struct {
                const char *name, *what;
                const cpu_set_t *ours, *theirs;
                double goal;
        } placements[] = {
                { "rtt", "both processes on one CPU", &here, &here, 2.0 },
                { "rtt_two_cpus", "each process on a CPU of its own", &here, &there, NONE },
                { "rtt_unpinned", "where the scheduler puts them", &all, &all, NONE },
        };
        for (size_t i = 0; i < ARRAY_SIZE(placements); i++) {
                pin(0, placements[i].ours);
                pin(h.pid, placements[i].theirs);
                pin(d.pid, placements[i].theirs);
                struct pair p = measure(g, h.fd, &sizes);
                bench_row(b, placements[i].name, "us", p.value, p.floor, placements[i].goal,
                          "gms_state(), against an echo of %zu and %zu bytes; %s", sizes.request, sizes.reply,
                          placements[i].what);
        }
        pin(0, &all);
        bench_join(&h);
        gms_close(g);
        gmsd_stop(&d);
}
