// SPDX-License-Identifier: MIT
#pragma once
/*
 * The allocator of one device: its worker, the requests that the worker has, the requests that wait for memory, and the
 * descriptors that go back to be freed. It keeps the account of what the device's stores own.
 *
 * It sees no socket event and no clock: the server polls allocator_fd(), calls allocator_dispatch() when it is readable
 * and allocator_tick() when allocator_wake() has come, with the time in milliseconds, and takes finished jobs with
 * allocator_finished(). It restarts its worker, later and later while it keeps dying, and knows no session.
 *
 * Memory. A job that finds no room waits, until its deadline, for something to change: this device's memory was freed, a
 * process that had it mapped has exited (allocator_kick()), or the device reports more room. Then it is tried again;
 * it is never tried blindly. Jobs that fit pass jobs that do not.
 */
#include "wire.h"
#include "worker.h"

#define ALLOCATOR_NEVER UINT64_MAX

struct job_run {
        uint64_t size;   /* asked for */
        uint64_t aligned;
        char *tag;       /* NULL: none */
        uint32_t count;
};

/* A request for physical memory. Made by its owner; the allocator's between submit and finished. */
struct job {
        struct list link;
        void *owner;        /* NULL: cancelled */
        uint64_t deadline;  /* absolute */
        uint64_t bytes;     /* all runs, aligned */
        struct job_run *runs;
        size_t n_runs;
        int *fds;           /* n of them, in the order of the runs; -1 once taken */
        uint32_t n, done;
        uint64_t first_id;  /* the owner's: ids are given when the descriptors are there */
        unsigned attempts;  /* workers that died over it */
        unsigned refusals;  /* for want of memory */
        uint64_t not_before; /* until then the device's word that there is room does not count: it was refused just now */
        Gms__Status status; /* when finished */
        char text[320];
};

struct device_info {
        char spec[64];   /* as configured: cuda:N, cuda:GPU-…, host */
        char name[32];
        char uuid[48];
        char model[96];
        uint64_t total, free, granularity;
};

struct allocator;

/* `capacity` caps what stores may own; 0: what the device has. 0, -ENOMEM, errors of starting the worker. */
int allocator_new(struct allocator **ret_allocator, const char *spec, uint64_t capacity, uint64_t now);
struct allocator *allocator_free(struct allocator *a);

/* A job with room for `n_runs` runs and, once they are filled in, job_prepare() for their descriptors. -ENOMEM. */
int job_new(struct job **ret_job, size_t n_runs);
int job_prepare(struct job *job);
/* Closes descriptors nobody took; a finished job's must have gone back through allocator_release(). */
struct job *job_free(struct job *job);

void allocator_submit(struct allocator *a, struct job *job, uint64_t now);
/* The owner is gone: the job ends without it, and what was made for it is freed. */
void allocator_cancel(struct allocator *a, struct job *job);
/* The next finished job, which is the caller's from then on; NULL when there is none. */
struct job *allocator_finished(struct allocator *a);

/* Frees one allocation: the worker closes the descriptor. */
void allocator_release_consume(struct allocator *a, int fd, uint64_t bytes);

/* What is known of a device before its worker has answered, from an earlier daemon; memory that daemon left to it. */
void allocator_remember(struct allocator *a, const struct device_info *info);
void allocator_account(struct allocator *a, uint64_t bytes, uint64_t descriptors);
/* One such allocation is nobody's any more here, and somebody else keeps it. */
void allocator_forget(struct allocator *a, uint64_t bytes);

/* Never use it, and show why: for a device that has no stores yet. */
void allocator_disable(struct allocator *a, const char *why);

/* Another cap on what stores may own; 0: what the device has. What is owned above it stays. */
void allocator_set_capacity(struct allocator *a, uint64_t capacity, uint64_t now);

/* Memory may have come free elsewhere. */
void allocator_kick(struct allocator *a, uint64_t now);

int allocator_fd(const struct allocator *a); /* -1: no worker at present */
bool allocator_wants_write(const struct allocator *a);
void allocator_dispatch(struct allocator *a, uint64_t now);
void allocator_tick(struct allocator *a, uint64_t now);
uint64_t allocator_wake(const struct allocator *a);

/* starting, ready, faulted */
const char *allocator_state(const struct allocator *a);
/* Whether the first answer has come, good or bad. */
bool allocator_answered(const struct allocator *a);
bool allocator_ready(const struct allocator *a);
const char *allocator_text(const struct allocator *a);
const struct device_info *allocator_info(const struct allocator *a);
uint64_t allocator_owned(const struct allocator *a);
/* Descriptors in this process that hold memory, and those that requests under way will add. */
uint64_t allocator_descriptors(const struct allocator *a);
size_t allocator_waiting(const struct allocator *a);
