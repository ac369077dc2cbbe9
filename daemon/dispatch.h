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
/* The manager keeps its socket: the second half of its Hello. */
void dispatch_hello_kept(struct session *s);
/* Its allocation request, session.job, is finished: the memory is given to the manager to keep, or the request refused. */
void dispatch_allocated_job(struct session *s, struct job *job);
/* The manager keeps it: it becomes part of the layout. Takes the job. */
void dispatch_allocated_consume(struct session *s, struct job *job);
/* The session ended in between. Takes the job, and frees its memory. */
void dispatch_retire_job_consume(struct session *s, struct job *job);

/* Fills a Layout message; `l` NULL leaves it empty. It points into `l`. */
void dispatch_fill_layout(Gms__Layout *to, const struct store *store, struct layout *l);
