// SPDX-License-Identifier: MIT
#include "events.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

int events_init(struct events *e) {
        *e = (struct events){ .epoll_fd = -1, .event_fd = -1 };
        e->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
        if (e->epoll_fd < 0)
                return -errno;
        e->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        int r = e->event_fd < 0 ? -errno : events_watch(e, e->event_fd);
        if (r < 0)
                events_done(e);
        return r;
}

void events_done(struct events *e) {
        e->epoll_fd = close_fd(e->epoll_fd);
        e->event_fd = close_fd(e->event_fd);
}

int events_watch(struct events *e, int fd) {
        struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };
        return epoll_ctl(e->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0 ? -errno : 0;
}

/* Closing alone is not enough: a forked child may hold the socket, and then epoll goes on watching it. */
void events_unwatch(struct events *e, int fd) {
        (void)epoll_ctl(e->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* The eventfd counts 1 while anything waits, else 0; neither call can block or fail then. */
static void events_signal(struct events *e, bool on) {
        eventfd_t value = 1;
        if (on)
                (void)eventfd_write(e->event_fd, value);
        else
                (void)eventfd_read(e->event_fd, &value);
}

void events_push(struct events *e, uint32_t kind, uint64_t generation, const char *text) {
        unsigned i = 0;
        while (i < e->n && e->waiting[i].kind != kind)
                i++;
        assert(i < EVENTS_MAX);
        if (i == e->n && e->n++ == 0)
                events_signal(e, true);

        e->waiting[i] = (struct gms_event){ .size = sizeof(e->waiting[i]), .kind = kind, .generation = generation };
        (void)snprintf(e->waiting[i].text, sizeof(e->waiting[i].text), "%s", text);
}

bool events_pop(struct events *e, struct gms_event *ret_event) {
        if (e->n == 0)
                return false;
        *ret_event = e->waiting[0];
        memmove(&e->waiting[0], &e->waiting[1], --e->n * sizeof(e->waiting[0]));
        if (e->n == 0)
                events_signal(e, false);
        return true;
}

void events_clear(struct events *e) {
        if (e->n > 0)
                events_signal(e, false);
        e->n = 0;
}
