// SPDX-License-Identifier: MIT
#pragma once
/*
 * Says how a layout differs from the one that a handle knows, for people who must find out who changed it.
 */
#include "handle.h"

/* Whether the daemon's allocation needs the same place as the mapping: the sizes are compared as aligned. */
bool stale_same(const struct mapping *m, const Gms__Allocation *a);

/*
 * Reads the structure of `generation` (0: what the session works on), compares and writes the text. `now` is what the
 * daemon says of that layout. -ESTALE, or why it could not be read.
 */
int stale_explain(struct gms *g, uint64_t generation, const struct layout_id *now);
