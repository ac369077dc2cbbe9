// SPDX-License-Identifier: MIT
#pragma once
/*
 * The server: listens, owns sessions, devices and stores, and carries out what the pure rooms decide. One thread, one
 * loop; nothing here blocks.
 *
 * Every durable change goes through server_change(): that is where a journal has its place.
 */
#include <event2/event.h>

#include "allocator.h"
#include "config.h"
#include "durable.h"
#include "store.h"

struct session;

struct device {
        struct server *server;
        struct allocator *allocator;
        struct event *io;
        int io_fd;          /* what `io` watches, and for what: a new worker has a new socket */
        short io_events;
        struct event *timer;
        bool recorded;      /* the journal knows it */
};

struct server {
        struct event_base *base;
        struct config *config;
        int listen_fd;
        struct event *listening;
        struct event *resume_accept;
        bool accept_paused;         /* and said so */
        struct event *reap;
        struct event *silence;      /* the oldest connection that has not said anything has had its time */
        struct event *signals[4];
        struct event *manager;      /* the service manager takes messages again */
        struct event *manager_later;
        struct event *alive;        /* feeds its watchdog */
        uint64_t alive_every;       /* ms */
        bool listen_own;            /* bound here, not passed to us */

        struct device *devices;
        size_t n_devices;
        bool serving;
        bool restoring;             /* no session is there yet to be told anything, and nothing is let go of */
        bool compact;               /* the journal is mostly dead */

        struct store **stores;      /* ascending by name */
        size_t n_stores, room_stores;
        struct list sessions;       /* that said Hello, by id */
        struct list strangers;      /* that did not, oldest first */
        struct list dead;           /* freed by `reap` */
        size_t n_sessions, n_strangers;
        struct list processes;      /* of sessions, until they exit */
        size_t n_processes;

        struct durable durable;
        struct list parked;         /* sessions whose answer waits for the manager (session.parked) */
        struct list retired;        /* memory that the manager lets go of before it is freed */

        uint64_t last_session;
        uint64_t last_allocation;
        uint64_t started;           /* ms */
        uint64_t descriptor_limit;
        uint64_t n_listings;        /* descriptors of layouts' metadata */
        uint64_t duplicates;        /* descriptors in answers that wait for their clients to read */
        int status;                 /* of server_run() */
};

/* 0, or negative errno after a line in the log that says what to do. */
int server_new(struct server **ret_server, struct config *config);
struct server *server_free(struct server *s);
/* Serves until told to end. Exit status. */
int server_run(struct server *s);

uint64_t now_ms(void);

/* Applies a change and carries out its effects. Returns as store_apply(). */
int server_change(struct server *s, struct store *store, struct change *change);

/* DEVICE of "DEVICE/NAME", by ordinal or UUID; NULL when there is none. */
struct device *server_find_device(struct server *s, const char *store, size_t device_len);
/*
 * The store of a name, made if it is new and `ret_device` is not NULL; NULL when there is none. The name is made
 * canonical: by whatever name the device was called, it is the same store.
 * 0, STORE_NAME_* below, -ENOMEM.
 */
enum {
        _STORE_NAME_SUCCESS,
        STORE_NAME_INVALID,
        STORE_NAME_NO_DEVICE,
        STORE_NAME_UNKNOWN,
        STORE_NAME_LIMIT,
};
int server_find_store(struct server *s, const char *name, bool make, struct store **ret_store, struct device **ret_device);
/* Index of the first store whose name is after `name`. */
size_t server_store_after(const struct server *s, const char *name);

/*
 * Frees memory: the manager lets go of it first, so that the worker's is the last close, and the account is right. Takes the
 * descriptors. `items` are n allocations of a layout, or of a request that came to nothing.
 */
struct retired_item {
        uint64_t id;
        uint64_t bytes;
        int fd;
};
void server_retire_consume(struct server *s, struct device *d, struct retired_item *items, size_t n);
/* What was retired while restoring goes now. */
void server_retire_pending(struct server *s);

/* For restoring. 0, negative errno. */
int server_add_device(struct server *s, const char *spec, const struct device_info *known);
int server_adopt_store(struct server *s, struct store *store, struct device *device);

/* Sends what waits for the manager; then what waits for that. */
void server_flush_manager(struct server *s);

/* Descriptors this process can still take, by its own account; and have the manager keep. */
uint64_t server_descriptors_left(const struct server *s, bool kept_too);

/* Duplicates that answers may take which wait for their clients to read: an eighth of all descriptors, for all of them. */
unsigned server_duplicates_left(const struct server *s);

/*
 * Watches a session's process until it exits. `socket` may be -1. 0, SERVER_PROCESS_GONE (it has exited, or is not to be known
 * apart), negative errno: it may be alive and is not watched.
 */
enum { SERVER_PROCESS_GONE = 1 };
int server_watch_process(struct server *s, int socket, uint64_t key, pid_t pid);

/* A session that has said Hello; one that has ended. */
void server_session_known(struct server *s, struct session *session);
void server_session_dead(struct server *s, struct session *session);

/* After anything that gave an allocator something to do. */
void device_update(struct device *d);
