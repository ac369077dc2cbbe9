// SPDX-License-Identifier: MIT
#pragma once
/*
 * A session without the library: frames as they are, on a blocking socket, so that what is measured is the request alone.
 * Everything that goes wrong ends the run.
 */
#include "bench.h"
#include "channel.h"
#include "wire.h"

struct raw {
        int fd;
        uint64_t serial;
        size_t sent, received; /* bytes of the last request and reply */
        uint8_t *last;         /* the last request, to be sent again when gmsd was restarted */
};

void raw_open(struct raw *r, const char *socket);
/* False when nobody listens. */
bool raw_try_open(struct raw *r, const char *socket);
/* The socket is closed: the session ends, and gives back its lock. */
void raw_close(struct raw *r);

/* A request, and the next answer, which is wire_free()d; `ret_fds` NULL: none may come. Events are passed over. */
void raw_send(struct raw *r, Gms__Frame *request);
Gms__Frame *raw_receive(struct raw *r, struct fdset **ret_fds);
Gms__Frame *raw_call(struct raw *r, Gms__Frame *request, struct fdset **ret_fds);
/* An answer in which nothing is of interest but that it came. */
static inline void raw_drop(Gms__Frame *answer) {
        wire_free(&answer);
}

/* `store` NULL goes with mode NONE. Waits for the lock. */
void raw_send_hello(struct raw *r, const char *store, Gms__Mode mode);
void raw_hello(struct raw *r, const char *store, Gms__Mode mode);
void raw_state(struct raw *r);
void raw_first_device(struct raw *r, char *ret_name, size_t size, uint64_t *ret_owned);

/*
 * Allocates n of one size and pulls all descriptors, in 1 + n/253 round trips; `ret_fds` has room for n, or is NULL and each
 * is closed. Returns the first id.
 */
uint64_t raw_allocate(struct raw *r, uint32_t n, uint64_t size, int *ret_fds);
void raw_send_allocate(struct raw *r, uint32_t n, uint64_t size);
/* Pulls the descriptors of the session's layout from rank `first` to n. */
void raw_pull(struct raw *r, uint32_t first, uint32_t n, int *ret_fds);
/* Publishes, and ends the session. */
void raw_publish(struct raw *r);
