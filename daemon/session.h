// SPDX-License-Identifier: MIT
#pragma once
/*
 * One client connection. It reads one request at a time and does not read on before that one is answered: so what a
 * client can make the daemon keep is one reply and one event of each kind, and requests are answered in order.
 *
 * The open session is the lock: when it ends, however, its claim on the store ends.
 */
#include "channel.h"
#include "process.h"
#include "server.h"
#include "wire.h"

enum session_state {
        SESSION_STRANGER, /* has not said Hello */
        SESSION_WAITING,  /* for its lock */
        SESSION_OPEN,
        SESSION_CLOSING,  /* what is queued goes out, then it ends */
        SESSION_DEAD,
        _SESSION_STATE_MAX,
};

struct session {
        struct list link;
        struct server *server;
        struct channel channel;
        struct event *event;
        short events;
        struct event *timer;    /* the deadline of a wait for the lock */
        bool stalled;           /* too many descriptors in flight: the timer tries again */
        enum session_state state;

        uint64_t id;
        struct process_identity peer;
        char *label;
        char *identity;         /* a reader's demand; NULL: none */
        Gms__Mode asked;
        uint64_t since;         /* ms */
        struct store *store;    /* NULL: looks only */
        struct device *device;
        struct claim *claim;

        uint64_t serial;        /* of the request being answered */
        bool busy;              /* it is not answered yet */
        bool changes;           /* its answer is kept, to be repeated */
        uint64_t kept_serial;
        bool kept_refusal;
        uint8_t *kept;
        size_t kept_len;
        uint64_t kept_first_id; /* allocations whose descriptors go with the kept answer; or the generation in it */
        uint32_t kept_fds;
        uint64_t kept_first_slot;
        struct job *job;        /* with the allocator, or parked */
        struct list parked;     /* server.parked: goes on when the manager has `ticket` */
        uint64_t ticket;
        bool kept_by_manager;   /* its socket is */
        bool resumed;           /* from the daemon before this one */
        bool welcomed;          /* by this daemon */
        char *wanted;           /* the store of its Hello, until it is found */
        uint64_t hello_serial;
        uint64_t wait;          /* ms that its Hello would wait for the lock; UINT64_MAX */
        uint64_t deadline;      /* absolute, of the wait under way; 0: none */
        unsigned owed;          /* events (1 << kind) that wait for the queue to drain */
};

/* Takes the socket. 0, negative errno. */
int session_new_consume(struct session **ret_session, struct server *server, int fd);
struct session *session_free(struct session *s);

/* Gives back what it holds or waits for. */
void session_let_go(struct session *s);
/* Ends the session now: gives back what it holds. It is freed later, outside its callbacks. */
void session_end(struct session *s);

/* Answers the request at hand; takes `fds`. */
void session_reply(struct session *s, Gms__Frame *frame, struct fdset *fds);
void session_done(struct session *s);
/* Answers it with a refusal: what was asked, what is, what to do. */
void session_refuse(struct session *s, Gms__Status status, const char *format, ...) _printf_(3, 4);
/* Refuses, and ends the session once that is sent. */
void session_refuse_and_close(struct session *s, Gms__Status status, const char *format, ...) _printf_(3, 4);
/* The lock is not free yet: wait for it, `ms` long or UINT64_MAX. */
void session_wait(struct session *s, uint64_t ms);
/* The wait is over. */
void session_opened(struct session *s);
/* Sends a kept answer again. False when its descriptors are gone. */
bool session_repeat(struct session *s);

/* A session of the daemon before this one. Takes the socket; `client` stays the caller's. 0, -ENOMEM, negative errno. */
int session_restore_consume(struct session **ret_session, struct server *server, const struct client *client, int fd);
/* What of it outlives the daemon; points into the session. */
struct client session_client(const struct session *s);
/* Goes on when the manager has what was queued for it. */
void session_park(struct session *s);
void session_unpark(struct session *s);
/* Tells that the daemon is another one now. */
void session_resumed(struct session *s);

/* Its claim has news (enum news). */
void session_news(struct session *s, unsigned news);
/* Its allocation request is done, or failed: job is its own again. */
void session_allocated(struct session *s, struct job *job);

/* For logs: "session 7 (label, pid 12)". Static buffer. */
const char *session_name(const struct session *s);
