// SPDX-License-Identifier: MIT
#pragma once
/*
 * A store: one lock and the layouts under it. At rest it has one layout, published or sealed, or none. A writer builds
 * another beside it; readers of earlier generations keep theirs until they leave ("draining").
 *
 * Everything durable happens through store_apply(): a change goes in as data, effects come out as data. Pure: no socket,
 * no clock, no descriptor call; the same changes in the same order make the same store. Nothing in effects can fail, so
 * a change is applied whole or refused whole.
 */
#include "layout.h"
#include "lock.h"

enum {
        _STORE_E_SUCCESS,
        STORE_E_GONE,          /* the claim holds nothing: revoked, or it left at commit */
        STORE_E_NOT_WRITER,
        STORE_E_NOT_READER,
        STORE_E_SEALED,        /* the shape is fixed */
        STORE_E_PUBLISHED,     /* cannot seal over a published generation */
        STORE_E_UNPUBLISHED,   /* nothing is published any more */
        STORE_E_HELD,          /* sessions hold the lock */
        STORE_E_NO_ALLOCATION, /* item .failed of the change names none */
        STORE_E_NO_SLOT,
        STORE_E_NO_KEY,
        STORE_E_OFFSET,        /* not inside its allocation */
        STORE_E_NO_GENERATION, /* not one that this claim pins */
        STORE_E_LIMIT,         /* more than a layout may have */
};

enum news {
        NEWS_GRANTED = 1 << 0,   /* the wait is over; the mode is in the lock entry */
        NEWS_WANTED = 1 << 1,    /* somebody waits for what this claim holds */
        NEWS_PUBLISHED = 1 << 2, /* a newer generation than this claim's */
        NEWS_REVOKED = 1 << 3,   /* the claim holds nothing any more */
};

/* What one session has to do with a store: it waits, holds, or has nothing left. */
struct claim {
        struct lock_entry lock;
        struct list link;      /* store.claims */
        struct list news_link; /* effects.news */
        unsigned news;         /* enum news */
        bool gone;
        bool revoked;          /* gone because an administrator took it away */
        uint64_t id;           /* of the session, unique for ever */
        void *owner;           /* the caller's */
        struct layout *view;   /* what it works on: the draft, or the generation it reads */
        struct layout *next;   /* pinned by refresh, until settled */
        struct layout *spare;  /* a writer's draft, made when it asked so that a grant cannot fail */
};

struct store {
        char *name;      /* DEVICE/NAME */
        void *device;    /* the caller's */
        uint64_t epoch;  /* tells this store from an earlier one of the same name */
        struct lock lock;
        struct list claims;
        struct list layouts; /* all of them: published, sealed, draft, draining */
        struct layout *published, *sealed, *draft;
        uint64_t generation; /* of the last publication */
        uint64_t fence;      /* process that may still write to the sealed layout; 0: none */
};

struct effects {
        struct list released; /* of layout.link: give the descriptors back to the device, then layout_free() */
        struct list news;     /* of claim.news_link: tell the owner, then news = 0 */
};

enum change_type {
        CHANGE_ASK,      /* a new claim joins the queue */
        CHANGE_LEAVE,    /* the claim ends: session over, deadline passed, gave up. Frees it */
        CHANGE_ALLOCATE,
        CHANGE_FREE,
        CHANGE_PUT,
        CHANGE_DELETE,
        CHANGE_SEAL,
        CHANGE_DISCARD,
        CHANGE_COMMIT,
        CHANGE_REFRESH,
        CHANGE_SETTLE,
        CHANGE_CLEAR,    /* no claim: the administrator */
        CHANGE_EXITED,   /* no claim: a process is gone */
        _CHANGE_MAX,
};

struct change_allocation {
        uint64_t size, aligned;
        const char *tag;
        int fd; /* the store's when applied */
};

struct change {
        enum change_type type;
        struct claim *claim;
        union {
                struct {
                        enum lock_want want;
                        uint64_t process;
                        uint64_t id;
                        void *owner;
                        struct claim *claim; /* out */
                } ask;
                struct {
                        uint64_t first_id;
                        const struct change_allocation *items;
                        size_t n;
                        uint64_t first_slot; /* out */
                } allocate;
                struct {
                        const uint64_t *ids;
                        size_t n;
                } free;
                struct {
                        struct metadata **entries; /* taken out (NULL) when applied */
                        size_t n;
                } put;
                struct {
                        char **keys;
                        size_t n;
                } delete;
                struct {
                        const char *identity;
                        bool leave;
                } commit;
                struct {
                        uint64_t generation;
                } settle;
                struct {
                        bool force;
                        struct claim *by; /* who asked, of any store; NULL: nobody with a claim. For the record only */
                } clear;
                struct {
                        uint64_t process;
                } exited;
        };
        size_t failed; /* out: which item was refused */
};

/* -ENOMEM. */
int store_new(struct store **ret_store, const char *name, void *device, uint64_t epoch);
/* Only for an idle store. */
struct store *store_free(struct store *s);
/* Whether nothing would be lost if the store were forgotten. */
bool store_idle(const struct store *s);

void effects_init(struct effects *fx);

/*
 * The only way to change a store. 0, or STORE_E_*, or -ENOMEM: then nothing has changed. Effects are added to `fx`.
 * At most one of an item is named twice in one change: a key put twice ends with the last value.
 */
int store_apply(struct store *s, struct change *c, struct effects *fx);

/* The state as people know it, derived from facts. */
const char *store_state(const struct store *s);
/* What the store rests on: published, else sealed, else NULL. */
struct layout *store_resting(const struct store *s);

struct store_totals {
        uint64_t bytes, building, draining;
        size_t draining_layouts;
        size_t allocations;
};
struct store_totals store_totals(const struct store *s);

/* What a claim would have been told by now (enum news): for an owner that may have missed it. */
unsigned store_standing_news(const struct store *s, const struct claim *c);

/* Whether CHANGE_EXITED of this process would change anything. */
bool store_knows_process(const struct store *s, uint64_t process);

/* Physical bytes that a claim keeps from being freed. */
uint64_t claim_bytes(const struct claim *c);
