// SPDX-License-Identifier: MIT
#pragma once
/*
 * What a handle knows of a layout: its mappings in slot order, and which publication it was. It stays known over
 * unmapping and disconnecting, so that the same structure can come back to the same addresses, and another is found out.
 */
#include "mapping.h"
#include "wire.h"

/* Which publication. Generations compare within one epoch of a store only. */
struct layout_id {
        bool known; /* false: still being built */
        uint64_t epoch;
        uint64_t generation; /* 0: sealed, not published */
        uint8_t hash[GMS_HASH_SIZE]; /* of the structure */
};

struct layout {
        struct mapping *at;
        size_t n, room;
        struct layout_id id;
        bool current; /* it is what the connected session works on, with these ids and slots */
};

/* Frees the array; memory and addresses behind it were taken care of. */
void layout_done(struct layout *l);

/* Makes room for n more mappings. -ENOMEM with a text. */
int layout_grow(struct layout *l, size_t n);
void layout_remove(struct layout *l, struct mapping *m);

struct mapping *layout_find_id(const struct layout *l, uint64_t id);
struct mapping *layout_find_slot(const struct layout *l, uint64_t slot);

/* What the wire says. -EPROTO with a text. */
int layout_id_from(struct layout_id *id, const Gms__Layout *layout);
/* The hash that the wire gives, published or not; all 0 when it gives none. */
void layout_hash_from(uint8_t ret_hash[GMS_HASH_SIZE], const Gms__Layout *layout);
/* Same publication, so the same bytes behind it. A sealed layout is none: its bytes change. */
bool layout_id_equal(const struct layout_id *a, const struct layout_id *b);
/* Both known, and of the same structure. */
bool layout_id_same(const struct layout_id *a, const struct layout_id *b);
