// SPDX-License-Identifier: MIT
#pragma once
/*
 * The store against a second, simple one. Bytes from anywhere become events over a few stores; each event goes to the
 * real store and to the model, and then all that can be seen of both is compared, together with the invariants that must
 * hold whatever happens. A difference is said on stderr and aborts.
 *
 * The model counts nothing and links nothing: a layout lives while somebody can be found who has it, and who may be
 * granted is looked up among all who hold and wait.
 */
#include "sample.h"
#include "store.h"

/* How often each kind of event was done, and refused. */
struct model_tally {
        unsigned long done[_CHANGE_MAX], refused[_CHANGE_MAX], granted[_LOCK_MODE_MAX], adopted, fenced;
};

struct model;

struct model *model_new(void);
/* One event. False when the source has no bytes left for one. */
bool model_step(struct model *m, struct source *source);
/* Everybody leaves and every store is cleared: what is left then is a leak, and aborts. Adds to `tally` (or NULL). */
void model_end(struct model *m, struct model_tally *tally);
