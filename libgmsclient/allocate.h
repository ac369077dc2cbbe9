// SPDX-License-Identifier: MIT
#pragma once
/*
 * What a pool asks of its handle: one allocation more, and one less, in the session that the pool was opened in. That is
 * known by its number among the handle's (handle.h, grants): another one has another layout.
 *
 * All of them: -ENOTCONN that session has ended; -EACCES it has published its layout; and as gms_allocate(), gms_free().
 */
#include "handle.h"

int allocate_slab(struct gms *g, uint64_t grant, uint64_t bytes, const char *tag, uint64_t deadline_ms,
                  struct gms_allocation *ret);
/* *ret_gone, always: the layout has it no more. That is so after some failures, too, as when it could not be unmapped. */
int allocate_return(struct gms *g, uint64_t grant, uint64_t id, bool *ret_gone);

/* No more than whether these may be asked for. */
int allocate_check(struct gms *g, uint64_t grant);
