// SPDX-License-Identifier: MIT
#pragma once
/*
 * Gathers the entries of many replies into the one list the caller gets: a single block of memory, the entries and behind
 * them all keys and values.
 */
#include "gmsclient.h"
#include "wire.h"

struct gather {
        struct gms_metadata *entries; /* without keys and values, until the end */
        size_t n, room;
        char *bytes;                  /* values and keys, entry after entry */
        size_t used, bytes_room;
};

void gather_done(struct gather *g);
/* Adds a reply's entries. -ENOMEM, -EPROTO, with a text. */
int gather_add(struct gather *g, const Gms__Metadata *reply);
/* Makes the list; release with gms_metadata_free(). -ENOMEM, -ENOBUFS with a text. */
int gather_finish(struct gather *g, struct gms_metadata_list *ret);
