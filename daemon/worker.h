// SPDX-License-Identifier: MIT
#pragma once
/*
 * A worker: a child process that calls one device's driver, so that the daemon never does. It creates physical memory
 * and hands over the descriptors, and it closes descriptors, since closing the last one of a large allocation takes tens
 * of milliseconds. It has no state worth keeping and may die at any time.
 *
 * This is the daemon's end: a process and a socket. worker_main() is the child's.
 */
#include <sys/types.h>

#include "channel.h"
#include "wire.h"

struct worker {
        pid_t pid;
        struct channel channel;
};

/* Starts a child that runs worker_main(). `name` is for process lists. 0, negative errno. */
int worker_spawn(struct worker **ret_worker, const char *name);
/* Kills the child, whatever it is doing; somebody else reaps it. */
struct worker *worker_free(struct worker *w);

/* Sends or queues; takes `fds`. 0, CHANNEL_E_EOF, negative errno. */
int worker_send_consume(struct worker *w, Gms__Frame *frame, struct fdset *fds);
/* `buf` has CHANNEL_FRAME_MAX bytes. 0, CHANNEL_E_AGAIN, CHANNEL_E_EOF (gone, or it does not make sense), negative errno. */
int worker_receive(struct worker *w, uint8_t *buf, Gms__Frame **ret_frame, struct fdset **ret_fds);

/* The child: serves requests on descriptor WORKER_FD until the daemon goes away. Returns an exit status. */
#define WORKER_FD 3
int worker_main(void);
