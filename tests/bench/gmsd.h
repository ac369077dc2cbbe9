// SPDX-License-Identifier: MIT
#pragma once
/* The daemon under test: one process on a socket of its own. */
#include "bench.h"

struct gmsd {
        pid_t pid;
        char dir[64];
        char socket[96];
        char log[96];
        char device[32]; /* the name its stores begin with */
};

/*
 * Starts build/gmsd for `device` and waits until it serves. `environment` is a list "NAME=VALUE" that ends with NULL, or
 * NULL; `more` is another device, or NULL. Its end is a failure of the run.
 */
void gmsd_start(struct gmsd *g, const struct bench *b, const char *device, const char *more, char *const environment[]);
/* The same under gms-keeper, on a socket beside that; the process is the keeper's. */
void gmsd_start_kept(struct gmsd *g, const struct bench *b, const char *device);
void gmsd_stop(struct gmsd *g);

/* Resident memory in bytes: now, and the most it ever was. */
double gmsd_rss(const struct gmsd *g);
double gmsd_rss_peak(const struct gmsd *g);

/* Bytes of the device that stores hold or the worker has still to free. */
uint64_t gmsd_owned(const struct gmsd *g);
/* Waits until that is nothing: what was freed before costs nobody time now. */
void gmsd_settle(const struct gmsd *g);
