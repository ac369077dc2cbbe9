// SPDX-License-Identifier: MIT
#include "conn.h"

#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include "channel.h"
#include "error.h"

uint64_t conn_now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t deadline_after(uint64_t ms) {
        uint64_t deadline;
        return ms == CONN_FOREVER || __builtin_add_overflow(conn_now_ms(), ms, &deadline) ? CONN_FOREVER : deadline;
}

void conn_init(struct conn *c, struct events *events) {
        *c = (struct conn){ .fd = -1, .events = events };
}

/* The session's serials go with it. */
static void conn_forget(struct conn *c) {
        free(steal_ptr(&c->request));
        free(steal_ptr(&c->buf));
        c->serial = 0;
        c->fd = close_fd(c->fd);
}

void conn_done(struct conn *c) {
        conn_forget(c);
}

void conn_close(struct conn *c) {
        if (!conn_is_open(c))
                return;
        events_unwatch(c->events, c->fd);
        (void)shutdown(c->fd, SHUT_RDWR);
        conn_forget(c);
}

/* The connection is of no use any more, and the owner has not asked for that. */
static void conn_lose(struct conn *c) {
        char why[sizeof(c->events->waiting[0].text)];
        (void)snprintf(why, sizeof(why), "%s", gms_last_error());
        conn_close(c);
        events_push(c->events, GMS_EVENT_CLOSED, 0, why);
}

/* ---- opening */

static int connect_error(int error, const char *path) {
        switch (error) {
        case -ENOENT:
                return error_set(error, "connect to %s: no such socket; is gmsd running, and on this socket?", path);
        case -ECONNREFUSED:
                return error_set(error, "connect to %s: nobody listens there; gmsd has died, start it again", path);
        case -EACCES:
        case -EPERM:
                return error_set(-EACCES, "connect to %s: this user may not use the socket; ask for access to it", path);
        case -EPROTOTYPE:
                return error_set(-EPROTO, "connect to %s: that is another kind of socket, not gmsd's", path);
        case -EAGAIN:
                return error_set(-ETIMEDOUT, "connect to %s: gmsd did not take the connection in time", path);
        case -EINTR:
                return error_set(error, "connect to %s: interrupted by a signal", path);
        default:
                return error_errno(error, path);
        }
}

static int bound_wait(int fd, int option, uint64_t ms) {
        struct timeval tv = { .tv_sec = (time_t)(ms / 1000), .tv_usec = (suseconds_t)(ms % 1000 * 1000) };
        return setsockopt(fd, SOL_SOCKET, option, &tv, sizeof(tv)) < 0 ? -errno : 0;
}

/*
 * A Unix socket connects at once, or waits for room in the listener's queue: SO_SNDTIMEO bounds that wait. The socket stays
 * blocking, since to wait in recvmsg() is one system call less in every round trip; each wait is short, and the deadline is
 * looked at in between.
 */
static int connect_within(int fd, const struct sockaddr_un *address, uint64_t timeout_ms) {
        int r = timeout_ms != CONN_FOREVER ? bound_wait(fd, SO_SNDTIMEO, timeout_ms) : 0;
        if (r == 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0)
                r = -errno;
        if (r == 0)
                r = bound_wait(fd, SO_SNDTIMEO, CONN_TICK_MS);
        return r == 0 ? bound_wait(fd, SO_RCVTIMEO, CONN_TICK_MS) : r;
}

int conn_check_path(const char *path) {
        size_t len = strlen(path), room = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
        if (len == 0)
                return error_set(-EINVAL, "the socket's path is empty; NULL stands for the default");
        if (len > room)
                return error_set(-ENAMETOOLONG, "the socket's path has %zu bytes and at most %zu fit: %s", len, room, path);
        return 0;
}

int conn_open(struct conn *c, const char *path, uint64_t timeout_ms) {
        assert(!conn_is_open(c));

        struct sockaddr_un address = { .sun_family = AF_UNIX };
        int r = conn_check_path(path);
        if (r < 0)
                return r;
        memcpy(address.sun_path, path, strlen(path) + 1);

        _cleanup_free_ uint8_t *buf = malloc(CHANNEL_FRAME_MAX);
        if (!buf)
                return error_errno(-ENOMEM, "connect");
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (fd < 0)
                return error_errno(-errno, "connect");
        r = connect_within(fd, &address, timeout_ms);
        if (r < 0)
                return connect_error(r, path);
        r = events_watch(c->events, fd);
        if (r < 0)
                return error_errno(r, "connect");

        c->fd = steal_fd(&fd);
        c->buf = steal_ptr(&buf);
        return 0;
}

/* ---- frames */

/* After a call on the socket came back without a result: whether to go on. -EINTR only where the call may be interrupted. */
static int conn_go_on(const struct conn *c, int r, uint64_t deadline) {
        if (r == -EINTR && c->interruptible)
                return error_set(-EINTR, "interrupted by a signal while waiting for the daemon");
        if (deadline != CONN_FOREVER && conn_now_ms() >= deadline)
                return error_set(-ETIMEDOUT, "the daemon did not answer; disconnected. Is it stopped, or stuck?");
        return 0;
}

static int conn_gone(void) {
        return error_set(-ECONNRESET, "the daemon has gone; mappings stay valid, the lock is lost; connect again");
}

static int conn_send(struct conn *c, uint64_t deadline) {
        for (;;) {
                int r = channel_send(c->fd, c->request, c->request_len, NULL);
                if (r == 0 || r == CHANNEL_E_EOF)
                        return 0; /* what a peer said before it went is still to be read, then the end */
                if (r < 0 && r != -EINTR)
                        return error_errno(r, "send to the daemon");
                r = conn_go_on(c, r, deadline);
                if (r < 0)
                        return r;
        }
}

static bool conn_readable(const struct conn *c) {
        struct pollfd p = { .fd = c->fd, .events = POLLIN };
        return poll(&p, 1, 0) > 0;
}

/* One frame: waited for while a request is outstanding, else one that has arrived. CHANNEL_E_AGAIN, -EINTR: none yet. */
static int conn_recv(struct conn *c, Gms__Frame **ret_frame, struct fdset **ret_fds) {
        size_t len;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        if (!c->request && !conn_readable(c))
                return CHANNEL_E_AGAIN;

        int r = channel_recv(c->fd, c->buf, &len, &fds);
        switch (r) {
        case 0:
                break;
        case CHANNEL_E_AGAIN:
        case -EINTR:
                return r;
        case CHANNEL_E_EOF:
                return conn_gone();
        case CHANNEL_E_BROKEN:
                return error_set(-EMFILE, "the daemon sent descriptors and this process could not take all of them; "
                                          "disconnected. Raise its limit (ulimit -n, RLIMIT_NOFILE) and connect again");
        default:
                return error_errno(r, "receive from the daemon");
        }

        if (wire_unpack(c->buf, len, fds ? fds->n : 0, ret_frame) != 0)
                return error_set(-EPROTO, "the daemon sent what is no frame of this protocol; disconnected");
        *ret_fds = steal_ptr(&fds);
        return 0;
}

static int conn_event(struct conn *c, const Gms__Frame *frame, uint64_t deadline) {
        static const uint32_t kinds[] = {
                [GMS__EVENT__KIND__LOCK_WANTED] = GMS_EVENT_LOCK_WANTED,
                [GMS__EVENT__KIND__PUBLISHED] = GMS_EVENT_PUBLISHED,
                [GMS__EVENT__KIND__LOCK_REVOKED] = GMS_EVENT_REVOKED,
                [GMS__EVENT__KIND__RESUMED] = GMS_EVENT_RESUMED,
        };
        if (frame->body_case != GMS__FRAME__BODY_EVENT)
                return error_set(-EPROTO, "the daemon sent something unasked that is no event; disconnected");

        const Gms__Event *event = frame->event;
        size_t kind = (size_t)event->kind;
        if (kind < ARRAY_SIZE(kinds) && kinds[kind] != 0) /* kinds of a later daemon are passed over */
                events_push(c->events, kinds[kind], event->layout ? event->layout->generation : 0, event->text);
        if (event->kind == GMS__EVENT__KIND__RESUMED && c->request)
                return conn_send(c, deadline);
        return 0;
}

/* The next frame that answers the outstanding request; CHANNEL_E_AGAIN, -EINTR when nothing more has arrived. */
static int conn_take(struct conn *c, uint64_t deadline, Gms__Frame **ret_frame, struct fdset **ret_fds) {
        for (;;) {
                _cleanup_frame_ Gms__Frame *frame = NULL;
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                int r = conn_recv(c, &frame, &fds);
                if (r != 0)
                        return r;
                if (frame->serial == 0) {
                        r = conn_event(c, frame, deadline);
                        if (r < 0)
                                return r;
                } else if (c->request && frame->serial == c->serial) {
                        *ret_frame = steal_ptr(&frame);
                        *ret_fds = steal_ptr(&fds);
                        return 0;
                } else if (frame->serial > c->serial) {
                        return error_set(-EPROTO, "the daemon answered a request that was not made; disconnected");
                } /* else a second answer to a request that was sent twice */
        }
}

static int conn_exchange(struct conn *c, uint64_t deadline, Gms__Frame **ret_frame, struct fdset **ret_fds) {
        int r = conn_send(c, deadline);
        while (r == 0) {
                r = conn_take(c, deadline, ret_frame, ret_fds);
                if (r != CHANNEL_E_AGAIN && r != -EINTR)
                        break;
                r = conn_go_on(c, r, deadline);
        }
        return r;
}

int conn_call(struct conn *c, Gms__Frame *request, Gms__Frame__BodyCase expected, uint64_t wait_ms,
              Gms__Frame **ret_reply, struct fdset **ret_fds) {
        if (!conn_is_open(c))
                return error_set(-ENOTCONN, "not connected; gms_connect() first");

        request->serial = c->serial + 1;
        int r = wire_pack(request, 0, &c->request, &c->request_len);
        if (r == WIRE_E_TOO_LARGE)
                return error_set(-EFBIG, "the request does not fit one frame of %u bytes", CHANNEL_FRAME_MAX);
        if (r < 0)
                return error_errno(r, "request");
        c->serial++;

        uint64_t patience = c->serial == 1 ? CONN_PATIENCE_HELLO_MS : CONN_PATIENCE_MS;
        if (__builtin_add_overflow(wait_ms, patience, &patience))
                patience = CONN_FOREVER;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        r = conn_exchange(c, deadline_after(patience), &reply, &fds);
        free(steal_ptr(&c->request));
        if (r == 0 && reply->status != GMS__STATUS__OK)
                return error_status(reply->status, reply->text);
        if (r == 0 && (reply->body_case != expected || (fds && !ret_fds)))
                r = error_set(-EPROTO, "the daemon answered with another message than asked for; disconnected");
        if (r < 0) {
                conn_lose(c);
                return r;
        }

        *ret_reply = steal_ptr(&reply);
        if (ret_fds)
                *ret_fds = steal_ptr(&fds);
        return 0;
}

int conn_drain(struct conn *c) {
        if (!conn_is_open(c))
                return 0;

        Gms__Frame *frame;
        struct fdset *fds;
        int r = conn_take(c, CONN_FOREVER, &frame, &fds);
        if (r == CHANNEL_E_AGAIN || r == -EINTR)
                return 0;
        assert(r < 0); /* nothing is outstanding, so nothing is an answer */
        conn_lose(c);
        return r;
}
