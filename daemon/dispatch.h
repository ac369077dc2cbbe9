// SPDX-License-Identifier: MIT
#pragma once
/*
 * What requests mean. One table says for each request who may make it; what passes comes to its handler, which answers
 * now, or leaves the session busy until the answer is known. Everything a client can get wrong ends in a refusal with a
 * text here; nothing it sends is a failure of the daemon.
 */
#include "session.h"

/* One frame from a client. `n_fds` descriptors came with it: there should be none. */
void dispatch(struct session *s, const Gms__Frame *frame, unsigned n_fds);

/* The session's lock was granted: says welcome. */
void dispatch_granted(struct session *s);
/* The wait for the lock is over without it. */
void dispatch_timed_out(struct session *s);
/* A finished allocation request: becomes part of the layout, or is refused. Takes the job. */
void dispatch_allocated_consume(struct session *s, struct job *job);

/* Fills a Layout message; `l` NULL leaves it empty. It points into `l`. */
void dispatch_fill_layout(Gms__Layout *to, const struct store *store, struct layout *l);
