// SPDX-License-Identifier: MIT
#pragma once
/*
 * Events that wait for gms_dispatch(): at most one of a kind, in order of arrival, so the queue is bounded and nothing is
 * said twice. An eventfd is readable while it holds any; gms_get_fd() is an epoll descriptor over that and the socket.
 *
 * Not thread-safe: the handle's mutex covers it.
 */
#include "base.h"
#include "gmsclient.h"

#define EVENTS_MAX (GMS_EVENT_CLOSED + 1)

struct events {
        int epoll_fd;
        int event_fd;
        unsigned n;
        struct gms_event waiting[EVENTS_MAX]; /* oldest first */
};

/* Negative errno. */
int events_init(struct events *e);
void events_done(struct events *e);

/* The socket belongs to the conn; it is watched while it is open. Negative errno. */
int events_watch(struct events *e, int fd);
void events_unwatch(struct events *e, int fd);

void events_push(struct events *e, uint32_t kind, uint64_t generation, const char *text);
/* False when there is none. */
bool events_pop(struct events *e, struct gms_event *ret_event);
void events_clear(struct events *e);
