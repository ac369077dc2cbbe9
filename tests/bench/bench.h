// SPDX-License-Identifier: MIT
#pragma once
/*
 * One run of the benchmark: where things are, and the rows of its table.
 *
 * Every row is a ratio in this run: `value` against `floor`, which is what the same work costs without gmsd, or a limit.
 * The goal is on the ratio. A row without floor or goal explains another one.
 */
#include <math.h>
#include <time.h>

#include "base.h"

#define NONE NAN /* no floor, or no goal */

struct row {
        char name[32], unit[8], what[160];
        double value, floor, goal;
};

struct bench {
        const char *device; /* what gmsd is to serve: host, cuda:0 ... */
        char build[4096];   /* absolute: gmsd and the fake driver are there */
        char dir[64];       /* sockets and logs of this run; gone after it */
        struct row rows[64];
        size_t n_rows;
};

void bench_row(struct bench *b, const char *name, const char *unit, double value, double floor, double goal, const char *what,
               ...) _printf_(7, 8);

/* Says why there is no result, and ends this process: the run if it is the first one. */
__attribute__((__noreturn__)) void bench_die(const char *format, ...) _printf_(1, 2);

/*
 * A process that calls `run` with its end of a socket and then ends; it does not outlive this one. bench_join() tells
 * it the end of orders, and waits.
 */
struct helper {
        pid_t pid;
        int fd;
};
struct helper bench_fork(void (*run)(int fd, void *arg), void *arg);
void bench_join(struct helper *h);

static inline double now_us(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

/* ---- the parts, each with a daemon of its own */

void rtt_run(struct bench *b);    /* rtt.c: a request's round trip */
void attach_run(struct bench *b); /* attach.c: mapping what is published */
void alloc_run(struct bench *b);  /* alloc.c: allocating a batch */
void busy_run(struct bench *b);   /* busy.c: round trips beside a busy worker */
void herd_run(struct bench *b);   /* herd.c: a thousand readers, and the daemon's memory */
void suballoc_run(struct bench *b); /* suballoc.c: pieces of slabs, as PyTorch asked for them */
void slabs_run(struct bench *b);  /* slabs.c: a whole GPU attached, asleep, awake */
void tensors_run(struct bench *b); /* tensors.c: a model's tensors in PyTorch */
void load_run(struct bench *b);   /* load.c: a model file, from the page cache and from the disk */
void durable_run(struct bench *b); /* durable.c: what it costs to outlive one's own death, and how long that takes */
