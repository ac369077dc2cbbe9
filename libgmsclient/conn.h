// SPDX-License-Identifier: MIT
#pragma once
/*
 * The connection to the daemon: a request out, its reply in, and whatever events come between put into the queue. It
 * knows serials, deadlines and the many ways a peer can go; it does not know what a request means.
 *
 * One request is outstanding at a time, and its packed bytes are kept until it is answered: when the daemon was restarted
 * in between (RESUMED) they are sent again under their serial, and the daemon answers each serial once.
 *
 * When the connection is lost the socket is closed, a CLOSED event is queued, and calls return -ENOTCONN from then on.
 */
#include "events.h"
#include "fdset.h"
#include "wire.h"

/*
 * A daemon that says nothing for so long, beyond any deadline of the request itself, is taken for dead. Sooner for the
 * first request, while there is no session to lose.
 */
#define CONN_PATIENCE_MS 60000u
#define CONN_PATIENCE_HELLO_MS 5000u
#define CONN_TICK_MS 500u /* between looks at the deadline */
#define CONN_FOREVER UINT64_MAX

struct conn {
        int fd;                /* -1 while not connected */
        uint64_t serial;       /* of the last request */
        uint8_t *request;      /* the outstanding one, packed; NULL: none */
        size_t request_len;
        bool interruptible;    /* the present call gives up with -EINTR when a signal arrives */
        uint8_t *buf;          /* one frame */
        struct events *events; /* the handle's */
};

/* The clock of all deadlines: CLOCK_MONOTONIC. */
uint64_t conn_now_ms(void);

void conn_init(struct conn *c, struct events *events);
/* Closes without a word to the daemon, so that a forked child does not end its parent's session. */
void conn_done(struct conn *c);

/* -EINVAL (empty), -ENAMETOOLONG, with a text. */
int conn_check_path(const char *path);

/*
 * Connects to the socket at `path`. Negative errno with a text: -ENOENT, -ECONNREFUSED, -EACCES, -ETIMEDOUT (nobody
 * accepted within `timeout_ms`), -EINTR, -ENAMETOOLONG, -EMFILE, -ENOMEM.
 */
int conn_open(struct conn *c, const char *path, uint64_t timeout_ms);
/* Ends the session, whoever else holds a copy of the socket. No event is queued. */
void conn_close(struct conn *c);

static inline bool conn_is_open(const struct conn *c) {
        return c->fd >= 0;
}

/*
 * Sends a request and waits for its reply, which has the body `expected` and is the caller's to wire_free(). *ret_fds
 * may be NULL when the reply cannot carry descriptors; else it is an owning set or NULL. `wait_ms` is how long the daemon
 * itself may take; its patience comes on top.
 * Negative errno with a text: what error_status() makes of a refusal; -ENOTCONN, -ECONNRESET, -ETIMEDOUT, -EPROTO,
 * -EMFILE (descriptors got lost on the way); after these and after -EINTR the connection is closed. -EFBIG (does not
 * fit one frame), -ENOMEM.
 */
int conn_call(struct conn *c, Gms__Frame *request, Gms__Frame__BodyCase expected, uint64_t wait_ms,
              Gms__Frame **ret_reply, struct fdset **ret_fds);

/* Moves the events that have arrived into the queue, without waiting. Negative errno with a text, and closed. */
int conn_drain(struct conn *c);
