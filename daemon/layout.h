// SPDX-License-Identifier: MIT
#pragma once
/*
 * A layout: ordered allocations, metadata over them, an identity. Counted: a store's published, sealed and unfinished
 * layouts hold one reference each, and so does every session that works on one.
 *
 * Pure, as store.c is: a descriptor is a number here, kept for whoever may use it. A layout whose last reference goes
 * still has its descriptors: it is put on a list, and the caller of the store gives them back to the device.
 */
#include "base.h"

#define LAYOUT_HASH_SIZE 16
#define LAYOUT_ALLOCATIONS_MAX (1u << 20)
#define LAYOUT_METADATA_MAX (1u << 18)          /* entries: models of 150,000 tensors are there (2026) */
#define LAYOUT_METADATA_BYTES_MAX (64u << 20)   /* keys and values */

struct allocation {
        uint64_t id;
        uint64_t slot;    /* ascends with id; gaps appear when allocations are freed */
        uint64_t size;    /* asked for */
        uint64_t aligned; /* physical bytes */
        int fd;           /* the physical memory itself */
        bool leaving;     /* inside layout_move() */
        char *tag;        /* NULL: none */
};

struct metadata {
        uint64_t slot;
        uint64_t offset;
        size_t value_size;
        uint32_t key_size; /* without the closing 0 */
        uint32_t order;    /* inside layout_put() */
        char key[];        /* then the value */
};

struct layout {
        struct list link;  /* in the store's layouts, or in effects.released */
        unsigned refs;
        uint64_t generation; /* 0 until published */
        bool sealed;
        char *identity;    /* NULL: none */
        uint64_t bytes;    /* physical */
        uint64_t next_slot;

        struct allocation *allocations; /* ascending by slot */
        size_t n_allocations, room_allocations;
        struct metadata **metadata;     /* ascending by key */
        size_t n_metadata, room_metadata;
        size_t metadata_bytes;

        struct {
                int fd;      /* kept for whoever may send it; -1: none was made */
                size_t n;    /* the first entries, so many, are in it */
                size_t size; /* bytes */
        } listing;

        bool hashed;
        uint8_t hash[LAYOUT_HASH_SIZE];
};

/* -ENOMEM. One reference, the caller's. */
int layout_new(struct layout **ret_layout);
/* Frees the memory of a layout; its descriptors must have been taken out (-1) or be somebody else's. */
struct layout *layout_free(struct layout *l);

static inline void layout_freep(struct layout **l) {
        *l = layout_free(*l);
}

/* Whether its structure stays what it is: published, or sealed. Only then it may have a listing. */
static inline bool layout_settled(const struct layout *l) {
        return l->generation != 0 || l->sealed;
}

/* Makes room for n more allocations, so that appending them cannot fail. -ENOMEM. */
int layout_reserve(struct layout *l, size_t n);
/* Appends at the next slot, into room reserved before. Takes `tag` and the descriptor. */
void layout_append(struct layout *l, uint64_t id, uint64_t size, uint64_t aligned, char *tag, int fd);

/* By id, by slot; NULL when there is none. */
struct allocation *layout_find_id(const struct layout *l, uint64_t id);
struct allocation *layout_find_slot(const struct layout *l, uint64_t slot);
/*
 * Moves the allocations of these ids to `to` (room for n reserved there) and drops the metadata that points at them; an id
 * that there is not is passed over. One look at each allocation and entry, however many are moved.
 */
void layout_move(struct layout *l, const uint64_t *ids, size_t n, struct layout *to);

const void *metadata_value(const struct metadata *m);
/* -ENOMEM. */
int metadata_new(struct metadata **ret_entry, const char *key, uint64_t slot, uint64_t offset, const void *value,
                 size_t value_size);

/* Index of the first entry whose key is not below `key`; whether it is that key. */
size_t layout_find_key(const struct layout *l, const char *key, bool *ret_found);
/* Makes room for n more entries. -ENOMEM. */
int layout_reserve_metadata(struct layout *l, size_t n);
/*
 * Puts n entries into reserved room, replacing those of the same keys; of one key named twice the last counts. Takes them: the
 * array is NULLs then. What was there moves once at most, however many are put.
 */
void layout_put(struct layout *l, struct metadata **entries, size_t n);
/* Deletes the entries of n indexes, which ascend and may repeat. What is left moves once at most. */
void layout_delete(struct layout *l, const size_t *indexes, size_t n);

/*
 * XXH3-128 over the structure: for each allocation in slot order its aligned size and tag, for each metadata entry in key
 * order the key, the rank of its slot, the offset and the value; every number 8 bytes little-endian, every string behind
 * its length, so that no two structures encode alike. Ranks, not slots: gaps from frees do not change the hash. Sizes as
 * aligned: two that need the same memory are the same structure. Contents, identity and generation are not in it.
 */
const uint8_t *layout_hash(struct layout *l);
