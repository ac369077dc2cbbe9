// SPDX-License-Identifier: MIT
/*
 * Attaching to 2,048 published allocations with gms_attach(), against the bare minimum with the descriptors of the same
 * allocations (bare.h). A round is one of each, in this order and in the other by turns.
 */
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "bare.h"
#include "gmsclient.h"
#include "gmsd.h"
#include "memory.h"
#include "raw.h"
#include "samples.h"

#define N MEMORY_N
#define ROUNDS 41

static int fds[N];
static uint64_t sizes[N];

/* ---- attaching */

static double attach(const char *socket, const char *store, double *ret_connect) {
        struct gms *g;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RO;
        o.label = "bench";
        if (gms_open(&g, socket, store) < 0)
                bench_die("gms_open: %s", gms_last_error());
        double since = now_us();
        if (gms_connect(g, &o) < 0)
                bench_die("connect: %s", gms_last_error());
        double connected = now_us();
        if (gms_attach(g) < 0)
                bench_die("attach: %s", gms_last_error());
        double took = now_us() - connected;
        *ret_connect = connected - since;
        gms_close(g);
        return took;
}

/* ---- counting round trips */

struct relay {
        int listener;
        const struct gmsd *gmsd;
};

/* Passes frames between one client and gmsd, and at the client's end says how many the client sent. */
static void relay(int fd, void *arg) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        struct relay *relay = arg;
        struct raw server;
        uint32_t requests = 0;
        int client = accept(relay->listener, NULL, NULL);
        raw_open(&server, relay->gmsd->socket);
        struct pollfd p[] = { { .fd = client, .events = POLLIN }, { .fd = server.fd, .events = POLLIN } };
        while (poll(p, 2, -1) > 0) {
                int from = p[0].revents ? 0 : 1;
                struct fdset *set;
                size_t len;
                if (channel_recv(p[from].fd, buf, &len, &set) != 0 || channel_send(p[1 - from].fd, buf, len, set) != 0)
                        break;
                fdset_free(set);
                requests += from == 0;
        }
        (void)send(fd, &requests, sizeof(requests), MSG_NOSIGNAL);
}

static uint32_t count_round_trips(const struct bench *b, const struct gmsd *d, const char *store) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s/relay.sock", b->dir);
        struct relay r = { .listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), .gmsd = d };
        if (r.listener < 0 || bind(r.listener, (struct sockaddr *)&address, sizeof(address)) < 0 || listen(r.listener, 1) < 0)
                bench_die("%s: %s", address.sun_path, strerror(errno));

        struct helper h = bench_fork(relay, &r);
        double connect;
        uint32_t requests;
        (void)attach(address.sun_path, store, &connect);
        if (recv(h.fd, &requests, sizeof(requests), 0) != sizeof(requests))
                bench_die("the relay has ended");
        bench_join(&h);
        close_fd(r.listener);
        return requests - 1; /* Hello is connecting */
}

/* ---- the part */

void attach_run(struct bench *b) {
        struct gmsd d;
        struct raw writer;
        struct memory m = memory_plan();
        char store[64];
        gmsd_start(&d, b, b->device, NULL, NULL);
        (void)snprintf(store, sizeof(store), "%s/attach", d.device);
        raw_open(&writer, d.socket);
        raw_hello(&writer, store, GMS__MODE__RW);
        (void)raw_allocate(&writer, N, m.size, fds);
        raw_publish(&writer);

        bool host = strcmp(d.device, "host") == 0;
        struct bare bare;
        for (int i = 0; i < N; i++)
                sizes[i] = m.size;
        bare_init(&bare, d.device, fds, sizes, N);

        _cleanup_samples_ struct samples value = {}, whole = {}, floor = {}, released = {};
        for (int round = -1; round < ROUNDS; round++) { /* the first is to warm up */
                double f = 0, v = 0, connect = 0, release = 0;
                for (int half = 0; half < 2; half++) {
                        if ((round + half) % 2 == 0) {
                                v = attach(d.socket, store, &connect);
                                continue;
                        }
                        f = bare_map(&bare);
                        release = bare_release(&bare);
                        (void)bare_unmap(&bare);
                }
                if (round < 0)
                        continue;
                samples_add(&value, v);
                samples_add(&whole, v + connect);
                samples_add(&floor, f);
                samples_add(&released, f + release);
        }
        bare_done(&bare);

        double least = samples_cost(&floor), took = samples_cost(&value);
        bench_row(b, "attach_2048", "us", took, least, host ? 1.5 : 1.15, "gms_attach() of %d times %s, against %s", N, m.text,
                  host ? "receiving, mmap and close of each" : "import, map and set access of each");
        bench_row(b, "attach_2048_connected", "us", samples_cost(&whole), least, NONE, "gms_connect() and gms_attach()");
        if (!host)
                bench_row(b, "attach_2048_released", "us", took, samples_cost(&released), NONE,
                          "gms_attach(), against the bare calls and the release of each handle");
        bench_row(b, "attach_round_trips", "", count_round_trips(b, &d, store), N / FDSET_MAX + 3, 1.0,
                  "requests of one gms_attach(), against %d/%u + 3", N, FDSET_MAX);
        for (int i = 0; i < N; i++)
                fds[i] = close_fd(fds[i]);
        gmsd_stop(&d);
}
