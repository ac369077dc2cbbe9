// SPDX-License-Identifier: MIT
#pragma once
/* What there is, counted: descriptors, mappings, sessions, workers, bytes. */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define ACCOUNT_WORKERS 8

struct account {
        uint64_t sessions, stores, allocations, bytes, owned, waiting;
        uint64_t device_free; /* of a GPU, as NVML says; 0 for host memory, which others use too */
        unsigned gmsd_fds, own_fds, own_maps, workers;
        unsigned worker_fds; /* of the one that has most */
        pid_t worker[ACCOUNT_WORKERS];
};

void account_take(struct account *a);

/* Opens the books: what there is now is what there shall be at the end. */
void account_begin(void);
/* Takes what there is now, if the books are open and this is the process that keeps them. */
bool account_open(struct account *a);
/* What came between the two, in this process, belongs to the driver and stays. */
void account_adjust(const struct account *before, const struct account *after);
/* The daemon is not to be asked any more. */
void account_without_daemon(void);
/* Clears all stores but the bystander's, and waits until all is as it was. Fails the test with what was left. */
void account_settle(void);
