// SPDX-License-Identifier: MIT
#pragma once
/*
 * One keeper with a puppet as its service: started, spoken to, ended. What goes wrong ends the test. A keeper ends with the
 * test that started it, and a puppet with its socket.
 */
#include <sys/types.h>

#include "base.h"
#include "puppet.h"

struct stage {
        char dir[64], socket[100], log[100];
        int listening;
        pid_t keeper;
        int puppet;       /* socket of the one that runs */
        pid_t puppet_pid; /* in this PID namespace */
};

extern struct stage stage;

void stage_open(void); /* for checked fixtures */
void stage_close(void);

/* Options of the keeper, then NULL. The puppet is its command. */
void stage_start(const char *option, ...);
/* The same as PID 1 of a PID namespace. False when that is not allowed. */
bool stage_start_as_init(void);
/* Any command; its status. */
int stage_run(const char *arg, ...);
int stage_status(void); /* of the keeper, which ends */
const char *stage_log(void);

/* Waits for the next puppet to say that it is there. How long that took, in microseconds. */
long stage_next(void);
void stage_kill(void); /* SIGKILL to the puppet */

/* Says something to the puppet, with `n` descriptors, and gives its answer, good until the next. */
const char *ask_with(const int *fds, unsigned n, const char *format, ...) _printf_(3, 4);
#define ask(...) ask_with(NULL, 0, __VA_ARGS__)
long ask_number(const char *format, ...) _printf_(1, 2); /* what follows "ok " */
int ask_fd(const char *name);                            /* what is kept by that name, or -1 */
const char *hear(void);                                  /* what the puppet says unasked */

unsigned stage_keeper_fds(void);
unsigned stage_names(void); /* how many the puppet was given */
long now_us(void);
