// SPDX-License-Identifier: MIT
/*
 * soak SECONDS [SEED]: random clients, each a process of its own, and random deaths: of clients, of workers, and of the
 * daemon, under gms-keeper. Nothing that was published may be lost, no byte may be another, nobody who lives may lose a
 * session, and nothing may be left at the end. On the device $GMS_TEST_DEVICE (host:256M).
 *
 * A publication's bytes follow from a number that it carries as metadata; so any reader can check any generation.
 */
#include <fcntl.h>
#include <dirent.h>
#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

#include "base.h"
#include "gmsclient.h"

#define CLIENTS 12
#define STORES 4
#define WAIT_MS 3000
#define PARTS_MAX 4
#define PART_MAX (1u << 20)
#define BURST 4u          /* deaths of the daemon in a row; then it runs so long that the keeper takes it for settled, */
#define SETTLED_MS 10500u /* and starts the next one at once: else most of the time there would be none */

static char dir[64], socket_path[96], device[32];
static pid_t keeper;
static struct gms_daemon last; /* what was last known of the daemon */

/* What all processes of the test know. */
static struct shared {
        _Atomic bool stop, failed;
        _Atomic uint64_t sessions, publications, adoptions, naps, refreshes, verified;
        _Atomic uint64_t published[STORES]; /* the highest generation whose commit was answered */
} *shared;

/* ---- chance */

static uint64_t state;

static uint64_t any(uint64_t below) {
        state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return (state >> 33) % below;
}

static uint64_t now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static void rest(uint64_t ms) {
        struct timespec t = { .tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000 };
        (void)nanosleep(&t, NULL);
}

/* ---- clients */

static _Noreturn void fail(const char *what, const char *why) {
        fprintf(stderr, "soak: process %d: %s: %s\n", (int)getpid(), what, why);
        shared->failed = true;
        _exit(1);
}

static void check(int r, const char *what) {
        if (r < 0)
                fail(what, gms_last_error());
}
#define ok(call) check(call, #call)

static const char *store_name(const char *kind, uint64_t i) {
        static char name[64];
        (void)snprintf(name, sizeof(name), "%s/%s%" PRIu64, device, kind, i);
        return name;
}

/* False when the lock could not be had in time: others want it too. */
static bool connect_as(struct gms *g, uint32_t mode) {
        struct gms_connect_options o = { .size = sizeof(o), .mode = mode, .deadline_ms = WAIT_MS, .label = "soak" };
        int r = gms_connect(g, &o);
        if (r == -ETIMEDOUT || r == -EBUSY)
                return false;
        check(r, "connect");
        shared->sessions++;
        return true;
}

static struct gms *open_store(const char *kind, uint64_t i) {
        struct gms *g;
        ok(gms_open(&g, socket_path, store_name(kind, i)));
        return g;
}

static void fill(uint64_t *to, uint64_t words, uint64_t number, uint64_t slot) {
        for (uint64_t i = 0; i < words; i++)
                to[i] = (number + slot * 977 + i) * UINT64_C(0x9e3779b97f4a7c15);
}

static size_t parts_of(struct gms *g, struct gms_allocation *parts) {
        size_t n;
        parts[0].size = sizeof(parts[0]);
        ok(gms_allocations(g, parts, PARTS_MAX, &n));
        return n;
}

static void write_parts(struct gms *g, uint64_t number) {
        static uint64_t bytes[PART_MAX / 8];
        struct gms_allocation parts[PARTS_MAX] = {};
        for (size_t i = 0, n = parts_of(g, parts); i < n; i++) {
                fill(bytes, parts[i].bytes / 8, number, parts[i].slot);
                ok(gms_write(g, parts[i].id, 0, bytes, parts[i].bytes));
        }
}

static void verify_parts(struct gms *g, uint64_t number) {
        static uint64_t bytes[PART_MAX / 8], wanted[PART_MAX / 8];
        struct gms_allocation parts[PARTS_MAX] = {};
        for (size_t i = 0, n = parts_of(g, parts); i < n; i++) {
                ok(gms_read(g, parts[i].id, 0, bytes, parts[i].bytes));
                fill(wanted, parts[i].bytes / 8, number, parts[i].slot);
                if (memcmp(bytes, wanted, parts[i].bytes) != 0)
                        fail("verify", "other bytes than were published");
                shared->verified += parts[i].bytes;
        }
}

static uint64_t number_of(struct gms *g) {
        const char *key = "number";
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        uint64_t number;
        ok(gms_metadata_get(g, &key, 1, &list));
        memcpy(&number, list.entries[0].value, sizeof(number));
        gms_metadata_free(&list);
        return number;
}

static struct gms_state state_of(struct gms *g) {
        struct gms_state s = GMS_INIT(struct gms_state);
        ok(gms_state(g, &s));
        return s;
}

/* False when there is no memory: readers of older generations have it, or workers have died too often of late. */
static bool build(struct gms *g, uint64_t number) {
        for (uint64_t i = 0, n = 1 + any(PARTS_MAX); i < n; i++) {
                int r = gms_allocate(g, 8 * (1 + any(PART_MAX / 8)), NULL, NULL);
                if (r == -ENOMEM || (r == -EIO && strstr(gms_last_error(), "faulted")))
                        return false;
                check(r, "allocate");
        }
        write_parts(g, number);
        struct gms_metadata e = { .size = sizeof(e), .key = "number", .value = &number, .value_size = sizeof(number) };
        ok(gms_metadata_put(g, &e, 1));
        return true;
}

static void note_published(uint64_t i, uint64_t generation) {
        uint64_t known = shared->published[i];
        while (known < generation && !__atomic_compare_exchange_n((uint64_t *)&shared->published[i], &known, generation, false,
                                                                  __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
                ;
        shared->publications++;
}

static void publish(uint32_t mode) {
        uint64_t i = any(STORES), number = any(UINT32_MAX);
        struct gms *g = open_store("w", i);
        if (connect_as(g, mode) && build(g, number)) {
                ok(gms_commit(g, NULL, 0));
                note_published(i, state_of(g).generation);
                verify_parts(g, number);
        }
        gms_close(g);
}

static void write_one(void) {
        publish(GMS_MODE_RW);
}

static void update_one(void) {
        publish(GMS_MODE_UPDATE);
}

/* Attached to no older generation than was known to be published before. NULL: not in time. */
static struct gms *attach(uint64_t i) {
        uint64_t known = shared->published[i];
        struct gms *g = open_store("w", i);
        if (!connect_as(g, GMS_MODE_RO)) {
                gms_close(g);
                return NULL;
        }
        if (state_of(g).generation < known)
                fail("attach", "a publication is lost");
        ok(gms_attach(g));
        return g;
}

static void read_one(void) {
        struct gms *g = attach(any(STORES));
        uint64_t number = g ? number_of(g) : 0;
        for (uint64_t n = 1 + any(20); g && n > 0 && !shared->stop; n--) {
                verify_parts(g, number);
                rest(any(20));
                int changed, r = any(3) == 0 ? gms_refresh(g, &changed) : -ESTALE;
                if (r == -ESTALE)
                        continue;
                check(r, "refresh");
                number = number_of(g);
                shared->refreshes++;
        }
        gms_close(g);
}

static void sleep_one(void) {
        struct gms *g = attach(any(STORES));
        uint64_t number = g ? number_of(g) : 0;
        for (uint64_t n = 1 + any(8); g && n > 0 && !shared->stop; n--) {
                ok(gms_unmap_all(g));
                rest(any(30));
                ok(gms_remap_all(g, NULL));
                verify_parts(g, number);
                shared->naps++;
        }
        gms_close(g);
}

/* What is sealed has the bytes of whoever wrote last, whole or not; here only that they can be had and written. */
static void adopt_one(void) {
        struct gms *g = open_store("kv", any(STORES));
        if (!connect_as(g, GMS_MODE_ADOPT)) {
                gms_close(g);
                return;
        }
        if (state_of(g).sealed) {
                ok(gms_attach(g));
                shared->adoptions++;
        } else if (build(g, 1)) {
                ok(gms_seal(g));
        }
        for (uint64_t n = any(5); n > 0; n--) {
                uint64_t number = any(UINT32_MAX);
                write_parts(g, number);
                verify_parts(g, number);
        }
        gms_close(g);
}

static _Noreturn void client(uint64_t seed) {
        static void (*const lives[])(void) = { write_one, update_one, read_one, read_one, read_one, sleep_one, adopt_one };
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        state = seed;
        while (!shared->stop)
                lives[any(ARRAY_SIZE(lives))]();
        _exit(0);
}

/* ---- the daemon */

static const char *in_build(const char *name) {
        static char path[1024];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 64);
        path[n > 0 ? n : 0] = '\0';
        for (unsigned up = 0; up < 2 && strrchr(path, '/'); up++)
                *strrchr(path, '/') = '\0';
        return strcat(strcat(path, "/"), name);
}

static void start_keeper(const char *spec) {
        char log[96];
        (void)snprintf(log, sizeof(log), "%s/log", dir);
        keeper = fork();
        if (keeper != 0)
                return;
        char *gmsd = strdup(in_build("gmsd"));
        int fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        (void)dup2(fd, STDERR_FILENO);
        (void)setsid();
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        (void)execl(in_build("gms-keeper"), "gms-keeper", "--", gmsd, "--socket", socket_path, "--device", spec, NULL);
        _exit(127);
}

static unsigned count_fds(pid_t pid) {
        char path[64];
        unsigned n = 0;
        (void)snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
        DIR *d = opendir(path);
        while (d && readdir(d))
                n++;
        if (d)
                (void)closedir(d);
        return n;
}

/* A child of a process; 0: it has none. */
static pid_t child_of(pid_t pid) {
        char path[64];
        int child = 0;
        (void)snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)pid, (int)pid);
        FILE *f = fopen(path, "re");
        if (f && fscanf(f, "%d", &child) != 1)
                child = 0;
        if (f)
                (void)fclose(f);
        return child;
}

static struct gms *look(void) {
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        struct gms *g;
        ok(gms_open(&g, socket_path, NULL));
        for (uint64_t end = now_ms() + 20000; gms_connect(g, &o) < 0; rest(5))
                if (now_ms() > end)
                        fail("connect", gms_last_error());
        last.size = sizeof(last);
        ok(gms_query_daemon(g, &last));
        return g;
}

/* ---- deaths */

static struct {
        pid_t pid[CLIENTS];
        unsigned clients, daemons, workers;
        pid_t daemon;  /* the last one, and when */
        uint64_t last;
} dead;

static void start_client(unsigned i) {
        uint64_t seed = any(UINT64_MAX);
        dead.pid[i] = fork();
        if (dead.pid[i] == 0)
                client(seed);
}

static void end_client(unsigned i, int signal_) {
        int status;
        if (signal_)
                (void)kill(dead.pid[i], signal_);
        (void)waitpid(dead.pid[i], &status, 0);
        if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status) != 0)
                shared->failed = true;
}

static void kill_one(void) {
        uint64_t what = any(100);
        pid_t gmsd = child_of(keeper), worker = gmsd ? child_of(gmsd) : 0;
        bool rested = now_ms() - dead.last > SETTLED_MS;
        if (what < 12 && gmsd && gmsd != dead.daemon && (rested || dead.daemons % BURST != 0)) {
                (void)kill(gmsd, SIGKILL);
                dead.daemons++;
                dead.daemon = gmsd;
                dead.last = now_ms();
        }
        if (what >= 10 && what < 15 && worker) { /* now and then both */
                (void)kill(worker, SIGKILL);
                dead.workers++;
        }
        if (what >= 15) {
                unsigned i = (unsigned)any(CLIENTS);
                end_client(i, SIGKILL);
                start_client(i);
                dead.clients++;
        }
}

/* ---- the end */

static void final_check(void) {
        for (uint64_t i = 0; i < STORES; i++) {
                struct gms *g = shared->published[i] ? attach(i) : NULL;
                if (shared->published[i] && !g)
                        fail("the end", "a published store cannot be read");
                if (g)
                        verify_parts(g, number_of(g));
                gms_close(g);
        }
}

static void nothing_left(unsigned keeper_fds, unsigned gmsd_fds) {
        struct gms *g = look();
        for (uint64_t end = now_ms() + 10000;; rest(5)) {
                for (uint64_t i = 0; i < STORES; i++) {
                        (void)gms_clear(g, store_name("w", i), 0);
                        (void)gms_clear(g, store_name("kv", i), 0);
                }
                struct gms_device *d;
                size_t n;
                ok(gms_query_daemon(g, &last));
                ok(gms_query_devices(g, &d, &n));
                uint64_t owned = d[0].owned;
                gms_array_free(d);
                unsigned k = count_fds(keeper), s = count_fds((pid_t)last.pid);
                if (last.sessions == 1 && last.bytes == 0 && owned == 0 && k == keeper_fds && s <= gmsd_fds)
                        break;
                if (now_ms() < end)
                        continue;
                fprintf(stderr,
                        "soak: left: %" PRIu64 " sessions, %" PRIu64 " bytes, %" PRIu64 " owned; %u descriptors of the keeper instead of "
                        "%u, %u of gmsd instead of %u\n",
                        last.sessions - 1, last.bytes, owned, k, keeper_fds, s, gmsd_fds);
                shared->failed = true;
                break;
        }
        if (last.unaccounted > 0)
                fail("the end", "the journal was damaged");
        if (last.restarts > dead.daemons)
                fail("the end", "the daemon has died by itself; its log says how");
        gms_close(g);
}

int main(int argc, char **argv) {
        uint64_t seconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 60;
        uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 10) : (uint64_t)time(NULL);
        const char *spec = getenv("GMS_TEST_DEVICE");
        spec = spec && *spec ? spec : "host:256M";
        (void)snprintf(device, sizeof(device), "%.*s", strncmp(spec, "host", 4) == 0 ? 4 : 31, spec);
        (void)snprintf(dir, sizeof(dir), "/tmp/gms-soak-XXXXXX");
        shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (!mkdtemp(dir) || shared == MAP_FAILED)
                return 1;
        (void)snprintf(socket_path, sizeof(socket_path), "%s/gmsd.sock", dir);
        state = seed;
        printf("soak: %" PRIu64 " seconds, seed %" PRIu64 "\n", seconds, seed);
        (void)fflush(stdout);

        start_keeper(spec);
        struct gms *g = look();
        rest(50); /* the keeper reads in its own time */
        unsigned keeper_fds = count_fds(keeper), gmsd_fds = count_fds((pid_t)last.pid) + 1; /* it will watch this process */
        gms_close(g);
        for (unsigned i = 0; i < CLIENTS; i++)
                start_client(i);
        for (uint64_t end = now_ms() + seconds * 1000; now_ms() < end && !shared->failed; rest(1 + any(120)))
                kill_one();
        shared->stop = true;
        for (unsigned i = 0; i < CLIENTS; i++)
                end_client(i, 0);
        if (!shared->failed)
                final_check();
        if (!shared->failed)
                nothing_left(keeper_fds, gmsd_fds);
        printf("soak: killed %u clients, %u daemons (%" PRIu64 " restarts, away for %" PRIu64 " ms), %u workers; %" PRIu64
               " sessions, %" PRIu64 " publications, %" PRIu64 " refreshes, %" PRIu64 " naps, %" PRIu64
               " adoptions; %.1f GiB verified: %s\n",
               dead.clients, dead.daemons, last.restarts, last.away_ms, dead.workers, shared->sessions, shared->publications,
               shared->refreshes, shared->naps, shared->adoptions, (double)shared->verified / (1u << 30),
               shared->failed ? "FAILED" : "nothing lost, nothing left");
        (void)kill(keeper, SIGTERM);
        (void)waitpid(keeper, NULL, 0);
        char command[160];
        if (shared->failed)
                printf("soak: the daemon's words are in %s/log\n", dir);
        else if (snprintf(command, sizeof(command), "rm -r %s", dir) > 0 && system(command) != 0)
                return 1;
        return shared->failed;
}
