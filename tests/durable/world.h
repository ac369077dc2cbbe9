// SPDX-License-Identifier: MIT
#pragma once
/*
 * A daemon under a manager that keeps its descriptors, its deaths, and all that is to be seen of it before and after.
 *
 * Stands on the harness of the integration tests, with cases that start their own daemon (.no_daemon = true).
 */
#include "client.h"
#include "raw.h"

struct world {
        pid_t keeper;   /* 0: systemd, with $GMS_MANAGER=systemd, where one manages this user: tests/systemd/run */
        char unit[64];  /* of systemd */
        char crash[128]; /* $GMS_CRASH */
};
extern struct world w;

struct world_options {
        const char *gmsd;   /* in the build tree; NULL: "tests/gmsd-crash" */
        const char *fd_max; /* of the keeper; NULL: its own */
        const char *device; /* NULL: the machine's */
        bool no_word;       /* the daemon is not told fd_max */
};
/* Starts keeper and daemon; m.gmsd and `control` are theirs. */
void world_start(const struct world_options *o);
/* Ends both by SIGTERM to the keeper, and waits. */
void world_stop(void);

/* The daemon dies at the Nth step from now on; 0: only tells the steps. */
void world_arm(unsigned n);
/* The steps that were told since, one a line; the caller frees it. Disarms. */
char *world_steps(void);
/* Whether the step has not come. */
bool world_armed(void);

/* Kills the daemon, and waits for the next one. */
void world_kill(void);
/* The same, and meanwhile() runs while there is none: the keeper is stopped. */
void world_kill_and(void (*meanwhile)(void *arg), void *arg);
/* Waits for another daemon than `was`, and asks on a connection to it. */
void world_next(pid_t was);
/* Sees whether the daemon is another one by now. */
void world_look(void);

/* What gmsctl prints; it ends well. The caller frees it. */
char *world_gmsctl(const char *arguments);
/* What gmsctl says of it: status, sessions and every store, without what differs from moment to moment: ages, pids of the
 * daemon, numbers of sessions and allocations. The caller frees it. */
char *world_state(void);
/* Waits until that is the state; fails with both. */
void world_state_is(const char *wanted, const char *what);

/* What About says. */
Gms__Daemon *world_about(void);

/* How many descriptors the manager keeps (gms-keeper: has open), and waits until it is so many. */
unsigned world_kept(void);
void world_kept_is(unsigned n);
/* Waits until a process has so many descriptors; fails with all of them. */
void world_fds_are(pid_t pid, unsigned n);

/* Descriptors of the keeper's that hold a journal: paths of /proc that can be opened. NULL: none. */
const char *world_journal(void);
