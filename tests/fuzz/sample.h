// SPDX-License-Identifier: MIT
#pragma once
/*
 * Good frames of every kind, made from the protocol's own description: a message that is added to gms.proto is tested and
 * fuzzed without a line here.
 */
#include "wire.h"

/* How many kinds of body a frame can have. */
size_t sample_kinds(void);
/*
 * A frame of that kind with every field set; lists and texts get `size` elements, 0 leaves everything out. Release it
 * with wire_free(). Aborts without memory.
 */
Gms__Frame *sample_frame(size_t kind, unsigned size);

/* Bytes that decide something, one after another. */
struct source {
        const uint8_t *next, *end;
};

static inline uint8_t source_byte(struct source *s) {
        return s->next < s->end ? *s->next++ : 0;
}

/* The same, with fields that the bytes choose: numbers at the edges, names that exist and names that cannot. */
Gms__Frame *sample_chosen(size_t kind, struct source *in);
