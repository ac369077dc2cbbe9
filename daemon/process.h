// SPDX-License-Identifier: MIT
#pragma once
/*
 * Who is at the other end of a socket: its user, its process, and a descriptor that tells when that process has exited.
 * That exit, not the end of the connection, is when its work on a GPU has stopped (driver facts: the socket of a writer
 * that was killed hangs up 34 ms before).
 */
#include <sys/types.h>

#include "base.h"

struct process_identity {
        pid_t pid;
        uid_t uid;
        uint64_t key; /* tells processes apart, also when a pid is used again; 0: unknown */
};

/* The peer of a connected Unix socket. 0, negative errno. */
int process_identify(int socket, struct process_identity *ret_identity);
/* The pid in a key; 0: not in this one. */
static inline pid_t process_pid(uint64_t key) {
        return key >> 63 ? 0 : (pid_t)(key & ((1u << 22) - 1));
}
/*
 * A pidfd of that peer: readable once it has exited. `socket` may be -1: then by pid, guarded by the time it started.
 * 0, -ESRCH (it has exited already), other negative errno.
 */
int process_open(int socket, const struct process_identity *identity, int *ret_pidfd);
