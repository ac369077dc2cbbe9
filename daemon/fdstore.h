// SPDX-License-Identifier: MIT
#pragma once
/*
 * The service manager, as far as the daemon knows it: it is told things (sd_notify), it keeps descriptors by name, and it gives
 * them back to the next daemon. systemd and gms-keeper are the same from here.
 *
 * Nothing here blocks: messages queue in order and go when the manager takes them. Whoever must not go on before the
 * manager has a descriptor takes a ticket, and waits until it is sent: a message that was sent is handled, also when
 * the sender is killed in the next instant. fdstore_barrier() tells when it has been handled.
 *
 * Without a manager ($NOTIFY_SOCKET not set) everything is accepted and nothing is kept.
 */
#include "base.h"

struct fdstore;

/* -ENOMEM, and errors of socket(). */
int fdstore_new(struct fdstore **ret_store);
struct fdstore *fdstore_free(struct fdstore *s);
/* Whether there is a manager that keeps descriptors. */
bool fdstore_durable(const struct fdstore *s);
/* How many descriptors it keeps at most, if it said so; UINT64_MAX. */
uint64_t fdstore_max(const struct fdstore *s);

/* What the manager kept, or passes by socket activation. */
struct kept {
        char *name;
        int fd;
};
struct kept_list {
        struct kept *items;
        size_t n;
};
/* Takes them, once; close-on-exec. Release with kept_done(), which closes what is left. 0, negative errno. */
int fdstore_take(struct kept_list *ret_kept);
void kept_done(struct kept_list *k);
/* Takes one out by name; -1. */
int kept_steal(struct kept_list *k, const char *name);

/* The store keeps a duplicate of `fd` under `name`. -ENOMEM, -EMFILE. */
int fdstore_put(struct fdstore *s, const char *name, int fd);
void fdstore_remove(struct fdstore *s, const char *name);
/* An sd_notify message: "READY=1". */
void fdstore_say(struct fdstore *s, const char *message);
/* A descriptor that polls readable when all before has been handled. -1: no manager, or none is left: do not wait. */
int fdstore_barrier(struct fdstore *s);

/* The number of the last message queued, and whether it and all before are sent. */
uint64_t fdstore_ticket(const struct fdstore *s);
bool fdstore_sent(const struct fdstore *s, uint64_t ticket);

int fdstore_fd(const struct fdstore *s);
bool fdstore_wants_write(const struct fdstore *s);
/* What waits must wait for a while: too many descriptors are in flight for this user. */
bool fdstore_stalled(const struct fdstore *s);
void fdstore_flush(struct fdstore *s);
