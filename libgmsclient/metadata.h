// SPDX-License-Identifier: MIT
#pragma once
/*
 * Gathers the entries of many replies into the one list the caller gets: a single block of memory, the entries and behind
 * them all keys and values.
 */
#include "fdset.h"
#include "gmsclient.h"
#include "wire.h"

struct gms;

struct gather {
        struct gms_metadata *entries; /* without keys and values, until the end */
        size_t n, room;
        char *bytes;                  /* values and keys, entry after entry */
        size_t used, bytes_room;
        size_t last_key; /* where the last entry's key begins */
};

void gather_done(struct gather *g);
/* Adds a reply's entries. -ENOMEM, -EPROTO, with a text. */
int gather_add(struct gather *g, const Gms__Metadata *reply);
/* Adds what a reply says of the keys after `after` that begin with `prefix`: in its frame, or in the listing that came along. */
int gather_add_listed(struct gather *g, const Gms__Metadata *reply, const struct fdset *fds, const char *prefix,
                      const char *after);
/* Makes the list; release with gms_metadata_free(). -ENOMEM, -ENOBUFS with a text. */
int gather_finish(struct gather *g, struct gms_metadata_list *ret);

/* For a handle that was entered: gms_metadata_put(), and all keys of a prefix, of the session's layout ("") or of a store. */
int metadata_put(struct gms *g, const struct gms_metadata *entries, size_t n);
int metadata_list(struct gms *g, const char *store, const char *prefix, struct gms_metadata_list *ret);
