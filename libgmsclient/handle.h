// SPDX-License-Identifier: MIT
#pragma once
/*
 * The handle behind struct gms: a connection to one store, the device it is on, the addresses reserved there and what is
 * known of the layout. Every public call enters it, which takes its mutex and refuses a handle inherited over fork().
 */
#include <pthread.h>

#include "conn.h"
#include "gmsclient.h"
#include "layout.h"
#include "sized.h"
#include "space.h"

/* What the session works on, as the daemon last said. */
struct work {
        struct layout_id id;
        uint64_t allocations;
        uint64_t bytes; /* physical */
};

struct device {
        char uuid[sizeof(((struct gms_state *)0)->device)];
        uint64_t total; /* 0: unknown */
        uint64_t granularity;
};

struct gms {
        unsigned refs; /* the caller's, and one for each thing that outlives gms_close(): a pool, an exported tensor */
        pthread_mutex_t mutex;
        pid_t pid; /* whose handle it is */
        char *socket;
        char *store; /* NULL: looks only */
        uint64_t deadline_ms; /* for allocations */
        struct events events;

        /* the session, while conn is open */
        struct conn conn;
        uint32_t mode; /* granted */
        bool looks;    /* connected with mode NONE: has nothing to lose, and comes again when the daemon is another one */
        char label[GMS_LABEL_SIZE];
        uint64_t session;
        char identity[GMS_IDENTITY_SIZE]; /* demanded */
        struct work work;
        struct device device;
        uint64_t grants; /* sessions so far */
        uint64_t writer; /* which of them builds a layout now; 0: none. Atomic: pools look without entering */

        /* stays over disconnecting */
        struct vmm *vmm; /* opened by the first session that holds a lock */
        bool keeps_mappings; /* atomic */
        struct space space;
        struct layout known;
};

/* -EINVAL, -ECHILD. On success *ret_held is released by _cleanup_handle_. */
int handle_enter(struct gms *g, struct gms **ret_held);
void handle_leave(struct gms **held);
#define _cleanup_handle_ _cleanup_(handle_leave)

/*
 * What uses the handle's session and mappings by itself keeps it open. The last unref closes it; in a forked child it frees
 * the child's copy only. Any thread, with the handle not entered.
 */
struct gms *handle_ref(struct gms *g);
struct gms *handle_unref(struct gms *g);

/* For when nobody can say whether a GPU still works on them: closing the handle leaves its mappings to the process. */
static inline void handle_keep_mappings(struct gms *g) {
        __atomic_store_n(&g->keeps_mappings, true, __ATOMIC_RELAXED);
}

/* Enters, and demands a session: -ENOTCONN. */
int handle_enter_session(struct gms *g, struct gms **ret_held);
/* Enters, and demands a session that holds or held a lock: -ENOTCONN, -EACCES. */
int handle_enter_holder(struct gms *g, struct gms **ret_held);

/* Whether what is known is what the session works on. */
static inline bool handle_is_current(const struct gms *g) {
        return conn_is_open(&g->conn) && g->known.current;
}

static inline bool handle_writes(const struct gms *g) {
        return g->mode == GMS_MODE_RW || g->mode == GMS_MODE_UPDATE;
}

static inline void handle_set_writer(struct gms *g, uint64_t grant) {
        __atomic_store_n(&g->writer, grant, __ATOMIC_RELAXED);
}

/* The access that the session's mode gives to its mappings. */
static inline uint32_t handle_access(const struct gms *g) {
        return handle_writes(g) ? GMS_ACCESS_READ_WRITE : GMS_ACCESS_READ;
}

/* Takes in what the daemon says the session works on; NULL: a layout not yet published. -EPROTO. */
int handle_work(struct gms *g, const Gms__Layout *layout);

/* A request whose reply carries no descriptors; conn_call() has the errors. */
int handle_call(struct gms *g, Gms__Frame *request, Gms__Frame__BodyCase expected, Gms__Frame **ret_reply);
/* The same for one whose reply may: an owning set, or NULL. */
int handle_call_fds(struct gms *g, Gms__Frame *request, Gms__Frame__BodyCase expected, Gms__Frame **ret_reply,
                    struct fdset **ret_fds);
/* The same for replies that say no more than that it was done. */
int handle_do(struct gms *g, Gms__Frame *request);

/* The public view of a mapping. */
void handle_describe(const struct mapping *m, struct gms_allocation *ret);
