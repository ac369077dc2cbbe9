// SPDX-License-Identifier: MIT
#pragma once
/*
 * The fold: records in, state out. And its inverse for one step: a change of a store as a record.
 *
 * The daemon that runs and the daemon that comes back do the same thing with a change, store_apply(); so what is folded is
 * what was. Pure: descriptors are -1 here, and come back by the ids of sessions and allocations.
 */
#include "journal.pb-c.h"
#include "store.h"

#define FOLD_VERSION 1u /* of the records; an older one is read, a newer one is refused */

/* A session on a store, as far as it outlives the daemon. Those that only look do not: they come again. */
struct client {
        struct list link;     /* folded.clients, by id */
        uint64_t id;
        char *label;
        char *identity;       /* a reader's demand; NULL: none */
        unsigned asked;       /* Gms__Mode */
        uint64_t pid, uid, process;
        uint64_t since;       /* ms, as is the deadline; both CLOCK_MONOTONIC */
        uint64_t deadline;    /* 0: for ever */
        uint64_t hello;       /* serial */
        struct store *store;
        struct claim *claim;
        uint64_t answered;    /* serial of its last change, and what it takes to answer it again */
        uint64_t first_id, first_slot;
};

struct folded_device {
        char spec[64], name[32], uuid[48], model[96];
        uint64_t total, granularity;
};

struct folded {
        bool complete;          /* the snapshot is whole */
        uint64_t restarts, away, started;
        uint64_t last_session, last_allocation, uncertain;
        struct folded_device *devices;
        size_t n_devices;
        struct store **stores;  /* ascending by name */
        char **store_devices;   /* UUIDs, in the same order */
        size_t n_stores;
        struct list clients;
};

enum {
        _FOLD_E_SUCCESS,
        FOLD_E_NEWER, /* written by a newer daemon */
};

void folded_init(struct folded *f);
/* Frees stores and clients that were not taken out; closes nothing. */
void folded_done(struct folded *f);

/* Applies one record. 0, FOLD_E_NEWER, -EBADMSG (it does not follow from what came before), -ENOMEM. */
int fold(struct folded *f, const uint8_t *bytes, size_t len);

struct client *client_free(struct client *c);

/* Packs a record. -ENOMEM. */
int fold_pack(Gmsj__Record *record, uint8_t **ret_bytes, size_t *ret_len);
/* Packs a change of a store before it is applied. `client` goes with CHANGE_ASK. -ENOMEM. */
int fold_pack_change(const struct store *store, const char *device_uuid, const struct change *change, uint64_t serial,
                     const struct client *client, uint8_t **ret_bytes, size_t *ret_len);
/* Points into `c`. */
void fold_fill_client(Gmsj__Client *to, const struct client *c);
