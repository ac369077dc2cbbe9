// SPDX-License-Identifier: MIT
#pragma once
/*
 * What the server does to outlive itself. For anything durable the order is: descriptor to the service manager, record in
 * the journal, answer. So the journal never names a descriptor that is not kept; what is kept and not named was never
 * answered for, and is freed. The next daemon folds the journal, takes the descriptors back and serves the same sessions.
 *
 * Without a manager all of this does nothing.
 *
 * Names of kept descriptors: j<N> a journal (the highest whole one counts), s<ID> a session's socket, a<ID> an allocation,
 * "socket" the listening one if it is the daemon's own, "listen" if it is the manager's.
 */
#include "fdstore.h"
#include "fold.h"
#include "journal.h"

struct server;
struct session;
struct store;
struct change;

struct durable {
        struct fdstore *manager;
        struct journal *journal;   /* NULL: nothing is recorded */
        uint64_t journal_number, number; /* of the journal; the highest that was given */
        uint64_t live;             /* bytes of its snapshot: when it has grown to a multiple, a new one is begun */
        uint64_t restarts, away;   /* survived; ms in all without a daemon */
        uint64_t orphans;          /* kept descriptors that nothing named: freed */
        uint64_t unaccounted;      /* kept descriptors behind a damage in the journal: left alone */
        uint64_t uncertain;        /* up to this allocation one may be such; 0: none */
        uint64_t kept_session, kept_allocation; /* the highest numbers that are kept: they are not given again */
        bool restored;             /* there was a journal */
        bool damaged;              /* in its middle, or there is none */
        struct journal *next;      /* is to follow `journal`, once it is kept itself */
        uint64_t next_ticket;
        struct kept_list kept;
        struct folded folded;      /* what was, until it is served again */
};

/*
 * Takes what the manager kept and folds the journal. Touches nothing yet.
 * 0; -EPROTONOSUPPORT: the journal is a newer daemon's, and this one must not run; other negative errno.
 */
int durable_init(struct durable *d);
void durable_done(struct durable *d);

/* Gives the devices back to the server, known before their workers answer. 0, negative errno. */
int durable_restore_devices(struct durable *d, struct server *s);
/* Gives it the stores and sessions, and begins a journal of its own. 0, or negative errno after a line in the log. */
int durable_restore(struct durable *d, struct server *s);
/*
 * Begins a journal anew when the present one is mostly dead: has the manager keep an empty one, and goes on in that once
 * it is kept: durable_sent().
 */
void durable_compact(struct durable *d, struct server *s);
/* After messages went to the manager. */
void durable_sent(struct durable *d, struct server *s);

static inline bool durable_records(const struct durable *d) {
        return d->journal != NULL;
}

/* Packs a change before it is applied; *ret_record stays NULL when nothing is recorded. -ENOMEM. */
int durable_pack(struct durable *d, const struct store *store, const struct change *change, uint8_t **ret_record,
                 size_t *ret_len);
/* Writes what was packed, after it was applied. */
void durable_write(struct durable *d, struct server *s, const struct store *store, const uint8_t *record, size_t len);

/* Has the manager keep a session's socket, an allocation. The ticket tells when that is so: fdstore_sent(). */
int durable_keep_session(struct durable *d, const struct session *s);
int durable_keep_allocation(struct durable *d, uint64_t id, int fd);
void durable_drop_session(struct durable *d, uint64_t id);
void durable_drop_allocation(struct durable *d, uint64_t id);
