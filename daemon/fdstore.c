// SPDX-License-Identifier: MIT
#include "fdstore.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>

#include "log.h"

struct message {
        struct list link;
        int fd; /* -1: none */
        char text[];
};

struct fdstore {
        int socket; /* connected to the manager; -1: none */
        uint64_t max;
        struct list queue;
        uint64_t queued, sent;
        bool stalled;
};

static struct message *message_free(struct message *m) {
        list_unlink(&m->link);
        close_fd(m->fd);
        free(m);
        return NULL;
}

/* $NOTIFY_SOCKET: a path, or an abstract name behind '@'. */
static int connect_manager(const char *name, int *ret_fd) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        size_t len = strlen(name);
        if (len >= sizeof(address.sun_path) || (name[0] != '/' && name[0] != '@'))
                return -EINVAL;
        memcpy(address.sun_path, name, len);
        if (name[0] == '@')
                address.sun_path[0] = 0;
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (fd < 0)
                return -errno;
        socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len + (name[0] == '/'));
        if (connect(fd, (const struct sockaddr *)&address, size) < 0)
                return -errno;
        *ret_fd = steal_fd(&fd);
        return 0;
}

int fdstore_new(struct fdstore **ret_store) {
        struct fdstore *s = calloc(1, sizeof(*s));
        const char *name = getenv("NOTIFY_SOCKET"), *max = getenv("FDSTORE");
        if (!s)
                return -ENOMEM;
        s->socket = -1;
        s->max = max ? strtoull(max, NULL, 10) : UINT64_MAX; /* systemd 254 and gms-keeper say it */
        list_init(&s->queue);
        if (name && *name) {
                int r = connect_manager(name, &s->socket);
                if (r < 0)
                        log_warning("cannot reach the service manager at %s: %s", name, strerror(-r));
        }
        *ret_store = s;
        return 0;
}

struct fdstore *fdstore_free(struct fdstore *s) {
        if (!s)
                return NULL;
        list_for_safe(m, &s->queue, struct message, link)
                message_free(m);
        close_fd(s->socket);
        free(s);
        return NULL;
}

bool fdstore_durable(const struct fdstore *s) {
        return s->socket >= 0 && s->max > 0;
}

uint64_t fdstore_max(const struct fdstore *s) {
        return s->max;
}

/* ---- what was kept */

int fdstore_take(struct kept_list *ret_kept) {
        char **names = NULL;
        *ret_kept = (struct kept_list){};
        int n = sd_listen_fds_with_names(1, &names);
        if (n <= 0)
                return n;
        struct kept *items = calloc((size_t)n, sizeof(*items));
        for (int i = 0; i < n; i++) {
                if (items)
                        items[i] = (struct kept){ .name = names[i], .fd = SD_LISTEN_FDS_START + i };
                else
                        free(names[i]);
        }
        free(names);
        if (!items)
                return -ENOMEM;
        *ret_kept = (struct kept_list){ .items = items, .n = (size_t)n };
        return 0;
}

void kept_done(struct kept_list *k) {
        for (size_t i = 0; i < k->n; i++) {
                free(k->items[i].name);
                close_fd(k->items[i].fd);
        }
        free(k->items);
        *k = (struct kept_list){};
}

int kept_steal(struct kept_list *k, const char *name) {
        for (size_t i = 0; i < k->n; i++)
                if (k->items[i].fd >= 0 && strcmp(k->items[i].name, name) == 0)
                        return steal_fd(&k->items[i].fd);
        return -1;
}

/* ---- telling the manager */

/* 0, -EAGAIN (no room), -ENOBUFS (too much in flight: polling would not tell when that has passed), or what ended it. */
static int send_message(int socket, const char *text, int fd) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } control = {};
        struct iovec iov = { .iov_base = (void *)text, .iov_len = strlen(text) };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        if (fd >= 0) {
                msg.msg_control = &control;
                msg.msg_controllen = sizeof(control.bytes);
                struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(sizeof(int));
                memcpy(CMSG_DATA(c), &fd, sizeof(fd));
        }
        if (sendmsg(socket, &msg, MSG_NOSIGNAL) >= 0)
                return 0;
        return errno == ENOBUFS || errno == ETOOMANYREFS || errno == EINTR ? -ENOBUFS : -errno;
}

/* The manager is gone for good: nothing is kept from now on, and nobody waits for it. */
static void lose_manager(struct fdstore *s, int error) {
        log_error("the service manager does not take messages any more: %s; the memory dies with this process", strerror(-error));
        s->socket = close_fd(s->socket);
        list_for_safe(m, &s->queue, struct message, link)
                message_free(m);
        s->sent = s->queued;
}

static bool passes(int r) {
        return r == -EAGAIN || r == -ENOBUFS;
}

void fdstore_flush(struct fdstore *s) {
        s->stalled = false;
        list_for_safe(m, &s->queue, struct message, link) {
                int r = send_message(s->socket, m->text, m->fd);
                s->stalled = r == -ENOBUFS;
                if (passes(r))
                        return;
                if (r < 0) {
                        lose_manager(s, r);
                        return;
                }
                s->sent++;
                message_free(m);
        }
}

/* Sends, or queues with a duplicate of the descriptor. */
static int post(struct fdstore *s, const char *text, int fd) {
        if (s->socket < 0 || (s->max == 0 && fd >= 0))
                return 0;
        if (list_empty(&s->queue)) {
                int r = send_message(s->socket, text, fd);
                s->stalled = r == -ENOBUFS;
                if (r == 0) {
                        s->queued++;
                        s->sent++;
                        return 0;
                }
                if (!passes(r)) {
                        lose_manager(s, r);
                        return 0;
                }
        }
        _cleanup_close_ int copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 3) : -1;
        if (fd >= 0 && copy < 0)
                return -errno;
        size_t len = strlen(text) + 1;
        struct message *m = malloc(sizeof(*m) + len);
        if (!m)
                return -ENOMEM;
        m->fd = steal_fd(&copy);
        memcpy(m->text, text, len);
        list_append(&s->queue, &m->link);
        s->queued++;
        return 0;
}

int fdstore_put(struct fdstore *s, const char *name, int fd) {
        char text[128];
        /* FDPOLL=0: a descriptor that hangs up is ours to judge, not the manager's */
        (void)snprintf(text, sizeof(text), "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", name);
        return post(s, text, fd);
}

void fdstore_remove(struct fdstore *s, const char *name) {
        char text[128];
        (void)snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
        (void)post(s, text, -1); /* lost for want of memory: an orphan at the next start, freed then */
}

void fdstore_say(struct fdstore *s, const char *message) {
        (void)post(s, message, -1);
}

int fdstore_barrier(struct fdstore *s) {
        int pair[2];
        if (s->socket < 0 || pipe2(pair, O_CLOEXEC | O_NONBLOCK) < 0)
                return -1;
        _cleanup_close_ int ours = pair[0], theirs = pair[1];
        if (post(s, "BARRIER=1", theirs) < 0 || s->socket < 0)
                return -1;
        return steal_fd(&ours);
}

uint64_t fdstore_ticket(const struct fdstore *s) {
        return s->queued;
}

bool fdstore_sent(const struct fdstore *s, uint64_t ticket) {
        return s->sent >= ticket;
}

int fdstore_fd(const struct fdstore *s) {
        return s->socket;
}

bool fdstore_stalled(const struct fdstore *s) {
        return s->stalled;
}

bool fdstore_wants_write(const struct fdstore *s) {
        return !list_empty(&s->queue);
}
