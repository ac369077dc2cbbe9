// SPDX-License-Identifier: MIT
/*
 * gmsd is killed again and again while one process reads a whole GPU's worth of memory in a loop and another sleeps and
 * wakes. Every byte stays right, nobody loses a lock, and the device's memory use stays what it was.
 *
 *   takeover GMSD [DEVICE [GIB [KILLS]]]        gms-keeper is found beside GMSD; cuda:0, 100 GiB, 10 kills
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "base.h"
#include "gmsclient.h"

#define PIECE (UINT64_C(1) << 30)
#define CHUNK (UINT64_C(64) << 20)

static char dir[64], socket_path[96], store[48];

static double now_s(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *who, const char *what) {
        fprintf(stderr, "takeover: %s: %s: %s\n", who, what, gms_last_error());
        _exit(1);
}

/* What chunk `n` holds: one sequence, and the chunk's number in front, so that no two chunks are alike. */
static uint64_t *pattern(void) {
        uint64_t *p = malloc(CHUNK), x = 88172645463325252u;
        for (size_t i = 0; p && i < CHUNK / 8; i++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                p[i] = x;
        }
        return p;
}

static struct gms *open_store(const char *label, uint32_t mode) {
        struct gms *g = NULL;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = mode;
        o.label = label;
        o.deadline_ms = 60000;
        if (gms_open(&g, socket_path, mode == GMS_MODE_NONE ? NULL : store) < 0 || gms_connect(g, &o) < 0)
                fail(label, "connect");
        return g;
}

static struct gms_allocation piece_at(struct gms *g, const char *who, uint64_t slot) {
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        if (gms_find(g, slot, &a) < 0)
                fail(who, "find");
        return a;
}

static int writer(uint64_t pieces) {
        struct gms *g = open_store("writer", GMS_MODE_RW);
        uint64_t *p = pattern();
        for (uint64_t i = 0; p && i < pieces; i++) {
                struct gms_allocation a = GMS_INIT(struct gms_allocation);
                if (gms_allocate(g, PIECE, "weights", &a) < 0)
                        fail("writer", "allocate");
                for (uint64_t at = 0; at < PIECE; at += CHUNK) {
                        p[0] = (i * PIECE + at) / CHUNK;
                        if (gms_write(g, a.id, at, p, CHUNK) < 0)
                                fail("writer", "write");
                }
        }
        if (gms_commit(g, "takeover", GMS_COMMIT_LEAVE) < 0)
                fail("writer", "commit");
        gms_close(g);
        free(p);
        return 0;
}

/* One chunk, bytewise. */
static void verify(struct gms *g, const char *who, uint64_t slot, uint64_t at, uint64_t *want, uint64_t *got) {
        struct gms_allocation a = piece_at(g, who, slot);
        want[0] = (slot * PIECE + at) / CHUNK;
        if (gms_read(g, a.id, at, got, CHUNK) < 0)
                fail(who, "read");
        if (memcmp(want, got, CHUNK) != 0) {
                fprintf(stderr, "takeover: %s: slot %llu differs at %llu\n", who, (unsigned long long)slot, (unsigned long long)at);
                _exit(1);
        }
}

static bool told_to_end(int fd) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        return poll(&p, 1, 0) > 0;
}

/* Reads everything, over and over. Says how much when it is told to end. */
static int reader(int fd, uint64_t pieces) {
        struct gms *g = open_store("reader", GMS_MODE_RO);
        uint64_t *want = pattern(), *got = malloc(CHUNK), bytes = 0;
        if (!want || !got || gms_attach(g) < 0)
                fail("reader", "attach");
        (void)!write(fd, &bytes, sizeof(bytes));
        while (!told_to_end(fd))
                for (uint64_t slot = 0; slot < pieces && !told_to_end(fd); slot++)
                        for (uint64_t at = 0; at < PIECE; at += CHUNK, bytes += CHUNK)
                                verify(g, "reader", slot, at, want, got);
        struct gms_state s = GMS_INIT(struct gms_state);
        if (gms_state(g, &s) < 0 || s.mode != GMS_MODE_RO)
                fail("reader", "still has its lock");
        (void)!write(fd, &bytes, sizeof(bytes));
        gms_close(g);
        free(want);
        free(got);
        return 0;
}

/* Sleeps and wakes, and looks at one chunk each time. */
static int sleeper(int fd, uint64_t pieces) {
        struct gms *g = open_store("sleeper", GMS_MODE_RO);
        uint64_t *want = pattern(), *got = malloc(CHUNK), wakes = 0;
        int changed;
        if (!want || !got || gms_attach(g) < 0)
                fail("sleeper", "attach");
        uint64_t address = piece_at(g, "sleeper", 0).address;
        (void)!write(fd, &wakes, sizeof(wakes));
        for (; !told_to_end(fd); wakes++) {
                if (gms_unmap_all(g) < 0 || gms_remap_all(g, &changed) < 0)
                        fail("sleeper", "sleeps and wakes");
                if (changed || piece_at(g, "sleeper", 0).address != address)
                        fail("sleeper", "finds what it left");
                verify(g, "sleeper", wakes % pieces, wakes * CHUNK % PIECE, want, got);
        }
        (void)!write(fd, &wakes, sizeof(wakes));
        gms_close(g);
        free(want);
        free(got);
        return 0;
}

/* ---- the one who kills */

struct child {
        pid_t pid;
        int fd;
};

static struct child start(const char *self, const char *role, uint64_t pieces) {
        int pair[2];
        char fd[16], n[24];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) < 0)
                fail(role, "socketpair");
        (void)snprintf(fd, sizeof(fd), "%d", pair[1]);
        (void)snprintf(n, sizeof(n), "%llu", (unsigned long long)pieces);
        pid_t pid = fork();
        if (pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                close(pair[0]);
                execl(self, self, "--role", role, fd, socket_path, store, n, NULL);
                _exit(127);
        }
        close(pair[1]);
        return (struct child){ .pid = pid, .fd = pair[0] };
}

static uint64_t hear(struct child *c) {
        uint64_t value;
        if (read(c->fd, &value, sizeof(value)) != sizeof(value)) {
                fprintf(stderr, "takeover: a process has failed\n");
                exit(1);
        }
        return value;
}

static uint64_t end(struct child *c) {
        int status;
        (void)!write(c->fd, "", 1);
        uint64_t value = hear(c);
        if (waitpid(c->pid, &status, 0) != c->pid || status != 0)
                exit(1);
        return value;
}

/* The daemon as it is now, asked on a connection of its own. False while there is none. */
static bool look(struct gms_daemon *daemon, uint64_t *ret_free) {
        struct gms *g = NULL;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        struct gms_device *devices = NULL;
        size_t n = 0;
        *daemon = (struct gms_daemon)GMS_INIT(struct gms_daemon);
        bool ok = gms_open(&g, socket_path, NULL) == 0 && gms_connect(g, &o) == 0 && gms_query_daemon(g, daemon) == 0 &&
                  gms_query_devices(g, &devices, &n) == 0 && n > 0 && strcmp(devices[0].state, "ready") == 0;
        if (ok)
                *ret_free = devices[0].free;
        gms_array_free(devices);
        gms_close(g);
        return ok;
}

static double kill_daemon(unsigned long long *ret_free) {
        struct gms_daemon before, after;
        uint64_t free_bytes = 0;
        if (!look(&before, &free_bytes))
                fail("killer", "look");
        double start_s = now_s();
        (void)kill((pid_t)before.pid, SIGKILL);
        while (!look(&after, &free_bytes) || after.pid == before.pid)
                if (now_s() - start_s > 20)
                        fail("killer", "another gmsd comes");
        *ret_free = free_bytes;
        return (now_s() - start_s) * 1e3;
}

int main(int argc, char **argv) {
        if (argc == 7 && strcmp(argv[1], "--role") == 0) {
                int fd = atoi(argv[3]);
                uint64_t pieces = strtoull(argv[6], NULL, 10);
                (void)snprintf(socket_path, sizeof(socket_path), "%s", argv[4]);
                (void)snprintf(store, sizeof(store), "%s", argv[5]);
                return strcmp(argv[2], "writer") == 0 ? writer(pieces)
                       : strcmp(argv[2], "reader") == 0 ? reader(fd, pieces)
                                                        : sleeper(fd, pieces);
        }
        if (argc < 2)
                return 2;
        const char *gmsd = argv[1], *device = argc > 2 ? argv[2] : "cuda:0";
        uint64_t pieces = argc > 3 ? strtoull(argv[3], NULL, 10) : 100;
        unsigned kills = argc > 4 ? (unsigned)strtoul(argv[4], NULL, 10) : 10;
        char keeper[1024];
        (void)snprintf(dir, sizeof(dir), "/tmp/gms-takeover-XXXXXX");
        if (!mkdtemp(dir))
                return 1;
        (void)snprintf(socket_path, sizeof(socket_path), "%s/gmsd.sock", dir);
        (void)snprintf(store, sizeof(store), "%s/all", strncmp(device, "host", 4) == 0 ? "host" : device);
        const char *slash = strrchr(gmsd, '/');
        (void)snprintf(keeper, sizeof(keeper), "%.*sgms-keeper", slash ? (int)(slash - gmsd) + 1 : 0, gmsd);

        pid_t service = fork();
        if (service == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
                execl(keeper, keeper, "--", gmsd, "--socket", socket_path, "--device", device, NULL);
                _exit(127);
        }
        struct gms_daemon daemon;
        uint64_t free_before;
        double started = now_s();
        while (!look(&daemon, &free_before))
                if (now_s() - started > 30)
                        fail("start", "gmsd");

        struct child w = start("/proc/self/exe", "writer", pieces);
        double filling = now_s();
        int status;
        if (waitpid(w.pid, &status, 0) != w.pid || status != 0)
                return 1;
        printf("%llu GiB published in %.1f s\n", (unsigned long long)(pieces * PIECE >> 30), now_s() - filling);

        struct child r = start("/proc/self/exe", "reader", pieces), s = start("/proc/self/exe", "sleeper", pieces);
        (void)hear(&r), (void)hear(&s);
        unsigned long long free_first = 0, free_now = 0;
        double worst = 0, sum = 0, first = 0;
        for (unsigned i = 0; i < kills; i++) {
                (void)usleep(500000);
                double ms = kill_daemon(&free_now);
                free_first = i == 0 ? free_now : free_first;
                first = i == 0 ? ms : first;
                worst = MAX(worst, ms);
                sum += ms;
        }
        (void)usleep(500000);
        uint64_t wakes = end(&s), bytes = end(&r);
        (void)kill(service, SIGTERM);
        if (waitpid(service, &status, 0) != service || status != 0)
                return 1;
        (void)rmdir(dir);
        printf("%u kills of gmsd; the next has its device ready after %.0f ms the first time, %.0f ms in the mean, %.0f at worst: "
               "gms-keeper waits longer from death to death\n",
               kills, first, sum / MAX(kills, 1u), worst);
        printf("%.0f GiB read and verified, %llu sleeps and wakes, nothing lost\n", (double)bytes / 1073741824.0,
               (unsigned long long)wakes);
        printf("device free: %llu MiB after the first kill, %llu MiB after the last\n", free_first >> 20, free_now >> 20);
        return bytes > 0 && wakes > 0 ? 0 : 1;
}
