// SPDX-License-Identifier: MIT
#pragma once
/*
 * What every case of the integration tests stands on: a daemon of its own in a directory of its own, a bystander who must
 * not notice anything, and an account of everything that could be left behind.
 *
 *      TEST(lock, dead_waiter, .needs = NEEDS_FAKE)
 *      {
 *              ...
 *      }
 *
 * The fixture starts gmsd and a bystander process that holds a published layout, reads its bytes over and over and makes
 * round trips. After the body, descriptors of the daemon, of its workers and of the test, mappings, sessions, bytes and
 * the device's free memory come back to what they were, or the case fails and says what was left. Stores are cleared
 * first: what a body publishes is no leak.
 */
#include <check.h>
#include <stdint.h>
#include <sys/types.h>

#include "base.h"
#include "fakecuda.h"

enum needs {
        NEEDS_NOTHING,
        NEEDS_FAKE = 1,  /* the fake driver's knobs */
        NEEDS_CUDA = 2,  /* a GPU, fake or not */
        NEEDS_HOST = 4,  /* a store in host memory */
        NEEDS_SMALL = 8, /* a device whose size can be chosen: host, or fake */
        NEEDS_ROOT = 16,
};

struct test {
        const char *file, *name;
        void (*body)(void);
        struct test *next;

        unsigned needs;
        unsigned seconds;       /* until it has failed; 0: 30 */
        const char *memory;     /* size of the device, "64M" */
        const char *also;       /* a second --device */
        const char *devices;    /* number of fake GPUs */
        uint64_t files;         /* the daemon's limit of descriptors */
        bool no_daemon;         /* the body starts its own */
        bool no_bystander;
        bool open_to_all;       /* the socket and its directory, to other users */
        bool close_knob;        /* the fake's knob "close" works */
        bool respawns;          /* workers die, and others take their place */
};

void test_add(struct test *t);

#define TEST(group, case_, ...)                                                                                      \
        static void group##_##case_(void);                                                                           \
        static struct test test_##group##_##case_ = {                                                                \
                .file = __FILE__, .name = #group "/" #case_, .body = group##_##case_, ##__VA_ARGS__                  \
        };                                                                                                           \
        __attribute__((constructor)) static void add_##group##_##case_(void) {                                       \
                test_add(&test_##group##_##case_);                                                                   \
        }                                                                                                            \
        static void group##_##case_(void)

/* As ck_assert_msg(), for what others do meanwhile: it does not say where it was when all is well. */
#define must(condition, ...)                                                                                         \
        do {                                                                                                         \
                if (!(condition))                                                                                    \
                        _ck_assert_failed(__FILE__, __LINE__, #condition, __VA_ARGS__);                              \
        } while (0)

/* ---- the machine */

struct machine {
        const struct test *test;
        char dir[64], socket[96], log[96];
        char spec[64];          /* --device */
        const char *device;     /* its name in stores: host, cuda:0 */
        bool cuda, fake;
        pid_t gmsd;
        uint64_t granularity, total;
        struct fakecuda *knobs; /* of the fake driver; NULL without */
};
extern struct machine m;

/*
 * Runs `t`, all of it, in the process that Check made for it. Before that and after, in the process that outlives it:
 * makes the directory, and if the case has not come to its end, prints what the daemon said and removes it.
 */
void machine_run(const struct test *t);
void machine_make_directory(void);
void machine_clean_up(void);

/* "host/w", "cuda:0/w". One of a few static buffers. */
const char *store(const char *name);
/* A path in the directory of the machine, as store(). */
const char *path_of(const char *name);

struct gmsd_run {
        const char *socket;         /* NULL: the machine's */
        const char *const *devices; /* NULL: the machine's */
        const char *log;            /* NULL: the machine's */
        uid_t uid;                  /* 0: the test's */
};
/* Starts another daemon, or the machine's own where the case has none. Does not wait for it. */
pid_t gmsd_start(const struct gmsd_run *run);
/* Waits until a socket is served. */
void gmsd_wait(const char *socket);
/* Waits for the end of a daemon, or another child; its exit status, or 128 and the signal. */
int process_end(pid_t pid);
/* The machine's daemon ends by `signal`; the account is closed without it. */
void machine_stop(int signal);
/* All of a file, NUL-terminated: a log. The caller frees it. */
char *read_text(const char *path);

/* Descriptors, in a process. */
unsigned count_fds(pid_t pid);
/* KiB that a process has in memory. */
uint64_t resident_kib(pid_t pid);
/* Live children that are workers; their number. */
unsigned worker_pids(pid_t *pids, unsigned room);
/* The worker of the machine's device, once there is one that is ready. */
pid_t worker_ready(void);

/* ---- waiting: for a condition, never for a time */

uint64_t now_ms(void);
bool until_(uint64_t deadline, unsigned *step);
#define PATIENCE_MS 10000u
/* Fails the test if the condition does not come true. */
#define wait_for(condition)                                                                                          \
        do {                                                                                                         \
                unsigned step_ = 0;                                                                                  \
                for (uint64_t deadline_ = now_ms() + PATIENCE_MS; !(condition);)                                     \
                        if (!until_(deadline_, &step_))                                                              \
                                ck_abort_msg("did not come: %s", #condition);                                        \
        } while (0)

/* ---- the bystanders */

/* The longest round trip so far, in milliseconds, and how many there were. */
uint64_t bystander_worst_ms(uint64_t *ret_rounds);
void bystander_reset(void);

/* ---- children */

/* Another process of the test, and a line to it. Ends with the test, whatever happens. */
struct child {
        pid_t pid;
        int fd;
};
/* `body` runs in the child; when it returns the child ends well. */
void child_start(struct child *c, void (*body)(int line, void *arg), void *arg);
/* On either end. A byte says how far it is; hearing nothing for long fails the test. -1: the other has ended. */
void say(int line, int what);
int hear(int line);
/* Waits until the child says `what`. */
void child_wait(struct child *c, int what);
/* Ends it by a signal; waits until it is gone. */
void child_kill(struct child *c, int signal);
/* Waits until it ends well. */
void child_end(struct child *c);
/* For a child that has said what it has to say and waits for its end. */
_Noreturn void park(void);
