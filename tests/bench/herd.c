// SPDX-License-Identifier: MIT
/*
 * A thousand readers of one store: each pulls all descriptors of 2,048 allocations and closes them; then all of them end
 * their sessions and connect anew at the same moment. How long each waits for its grant, and what the daemon weighs.
 *
 * The readers are connections of four processes, since a thousand processes would measure the scheduler. A grant counts from
 * connect() to the arrival of the Welcome; a row says how long it took for all.
 */
#include "bench.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "gmsd.h"
#include "raw.h"
#include "samples.h"

#define PROCESSES 4
#define EACH 250
#define READERS (PROCESSES * EACH)
#define ALLOCATIONS 2048
#define ROUNDS 9
#define LIMIT_GRANT_US 50000.0
#define LIMIT_RSS (16.0 * 1048576)
#define LIMIT_SESSION 2048.0
#define LIMIT_ALLOCATION 512.0

/* Shared with the processes. */
struct herd {
        const struct gmsd *gmsd;
        char store[64];
        _Atomic int next;        /* of the processes, which number themselves */
        double start;            /* when all begin */
        double grant[READERS];   /* µs */
        double finished[READERS];
};

enum order { CONNECT = 'c', RECONNECT = 'r' };

struct reader {
        struct raw raw;
        double since;
        double *ret_grant, *ret_finished;
};

static void reader_ask(struct reader *r, const struct herd *h, int epoll) {
        r->since = now_us();
        raw_open(&r->raw, h->gmsd->socket);
        raw_send_hello(&r->raw, h->store, GMS__MODE__RO);
        struct epoll_event e = { .events = EPOLLIN, .data.ptr = r };
        if (epoll_ctl(epoll, EPOLL_CTL_ADD, r->raw.fd, &e) < 0)
                bench_die("epoll_ctl: %s", strerror(errno));
}

/* Takes the grants that have arrived. */
static int readers_hear(int epoll, int timeout) {
        struct epoll_event e[64];
        int n = epoll_wait(epoll, e, ARRAY_SIZE(e), timeout);
        for (int i = 0; i < n; i++) {
                struct reader *r = e[i].data.ptr;
                raw_drop(raw_receive(&r->raw, NULL));
                *r->ret_finished = now_us();
                *r->ret_grant = *r->ret_finished - r->since;
                (void)epoll_ctl(epoll, EPOLL_CTL_DEL, r->raw.fd, NULL);
        }
        return MAX(n, 0);
}

static void herd_process(int fd, void *arg) {
        static struct reader readers[EACH];
        struct herd *h = arg;
        int me = h->next++, epoll = epoll_create1(EPOLL_CLOEXEC);
        for (int i = 0; i < EACH; i++)
                readers[i] = (struct reader){
                        .raw.fd = -1, .ret_grant = &h->grant[me * EACH + i], .ret_finished = &h->finished[me * EACH + i],
                };
        for (char order; recv(fd, &order, 1, 0) == 1;) {
                while (now_us() < h->start)
                        ;
                int granted = 0;
                for (int i = 0; i < EACH; i++)
                        raw_close(&readers[i].raw);
                for (int i = 0; i < EACH; i++) {
                        reader_ask(&readers[i], h, epoll);
                        granted += readers_hear(epoll, 0);
                }
                while (granted < EACH)
                        granted += readers_hear(epoll, -1);
                for (int i = 0; order == CONNECT && i < EACH; i++)
                        raw_pull(&readers[i].raw, 0, ALLOCATIONS, NULL);
                if (send(fd, &order, 1, MSG_NOSIGNAL) != 1)
                        return;
        }
}

static void all_do(struct helper *helpers, struct herd *h, enum order order) {
        char byte = (char)order;
        h->start = now_us() + 20000;
        for (int i = 0; i < PROCESSES; i++)
                if (send(helpers[i].fd, &byte, 1, MSG_NOSIGNAL) != 1)
                        bench_die("a process of readers has ended");
        for (int i = 0; i < PROCESSES; i++)
                if (recv(helpers[i].fd, &byte, 1, 0) != 1)
                        bench_die("a process of readers has ended");
}

/* What it weighs more for each of n. */
static double each(double more, double less, double n) {
        return (more - less) / n;
}

void herd_run(struct bench *b) {
        struct gmsd d;
        struct raw writer;
        struct helper helpers[PROCESSES];
        struct herd *h = mmap(NULL, sizeof(*h), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (h == MAP_FAILED)
                bench_die("mmap: %s", strerror(errno));
        gmsd_start(&d, b, b->device, NULL, NULL);
        h->gmsd = &d;
        (void)snprintf(h->store, sizeof(h->store), "%s/herd", d.device);
        double empty = gmsd_rss(&d);
        raw_open(&writer, d.socket);
        raw_hello(&writer, h->store, GMS__MODE__RW);
        (void)raw_allocate(&writer, ALLOCATIONS, 1, NULL);
        raw_publish(&writer);
        double published = gmsd_rss(&d);

        for (int i = 0; i < PROCESSES; i++)
                helpers[i] = bench_fork(herd_process, h);
        all_do(helpers, h, CONNECT);
        double attached = gmsd_rss(&d);

        /* Of every round its percentile, and of those the median: what the daemon does, it does in every round. */
        _cleanup_samples_ struct samples p99 = {}, p50 = {}, all = {};
        for (int round = 0; round < ROUNDS; round++) {
                _cleanup_samples_ struct samples grants = {};
                double last = 0;
                all_do(helpers, h, RECONNECT);
                for (int i = 0; i < READERS; i++) {
                        samples_add(&grants, h->grant[i]);
                        last = MAX(last, h->finished[i] - h->start);
                }
                samples_add(&p99, samples_percentile(&grants, 99));
                samples_add(&p50, samples_median(&grants));
                samples_add(&all, last);
        }
        double after = gmsd_rss(&d), peak = gmsd_rss_peak(&d);
        for (int i = 0; i < PROCESSES; i++)
                bench_join(&helpers[i]);

        bench_row(b, "grant_1000", "us", samples_median(&p99), LIMIT_GRANT_US, 1.0,
                  "99th percentile from connect() to the grant, %d readers reconnecting at once; limit 50 ms", READERS);
        bench_row(b, "grant_1000_median", "us", samples_median(&p50), NONE, NONE, "the median of them");
        bench_row(b, "grant_1000_all", "us", samples_median(&all), NONE, NONE, "until the last of them has its grant");
        double limit = LIMIT_RSS + READERS * LIMIT_SESSION + ALLOCATIONS * LIMIT_ALLOCATION;
        bench_row(b, "rss", "KiB", MAX(attached, after) / 1024, limit / 1024, 1.0,
                  "resident memory of gmsd: %d sessions, %d allocations; limit 16 MiB + 2 KiB a session + 512 B an allocation",
                  READERS, ALLOCATIONS);
        bench_row(b, "rss_peak", "KiB", peak / 1024, limit / 1024, NONE, "the most it ever was");
        bench_row(b, "rss_empty", "KiB", empty / 1024, NONE, NONE, "with nothing in it");
        bench_row(b, "rss_session", "B", each(attached, published, READERS), LIMIT_SESSION, NONE, "more for each session");
        bench_row(b, "rss_allocation", "B", each(published, empty, ALLOCATIONS), LIMIT_ALLOCATION, NONE,
                  "more for each allocation, the buffers of its making included");
        gmsd_stop(&d);
        (void)munmap(h, sizeof(*h));
}
