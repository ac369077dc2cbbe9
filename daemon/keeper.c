// SPDX-License-Identifier: MIT
#include "keeper.h"

#include <fcntl.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "log.h"

#define MESSAGE_MAX 4096u  /* bytes, as systemd has it */
#define MESSAGE_FDS 253u   /* the kernel's SCM_MAX_FD */
#define NAME_MAX_LEN 255u
#define NAMES_MAX (131072u - sizeof("LISTEN_FDNAMES="))
#define COMPARED_MAX 16    /* of one name */

/* Requests about descriptors, beside the KEEPER_… that are the caller's. */
enum {
        SAYS_STORE = 1 << 16,
        SAYS_REMOVE = 1 << 17,
        SAYS_UNPOLLED = 1 << 18,
};

/* ---- descriptors by name */

static int *head_of(struct keeper *k, const char *name) {
        uint32_t h = 2166136261u; /* FNV-1a */
        for (; *name; name++)
                h = (h ^ (unsigned char)*name) * 16777619u;
        return &k->heads[h % KEEPER_HEADS];
}

static bool name_ok(const char *name) {
        size_t len = 0;
        for (; name[len]; len++)
                if (name[len] < ' ' || name[len] > '~' || name[len] == ':')
                        return false;
        return len > 0 && len <= NAME_MAX_LEN;
}

static bool is_kept(struct keeper *k, const char *name, int fd) {
        pid_t self = getpid();
        int compared = 0;
        for (int i = *head_of(k, name); i != 0 && compared < COMPARED_MAX; i = k->kept[i].next) {
                if (strcmp(k->kept[i].name, name) != 0)
                        continue;
                if (syscall(SYS_kcmp, self, self, KCMP_FILE, (unsigned long)i, (unsigned long)fd) == 0)
                        return true;
                compared++;
        }
        return false;
}

static int make_room(struct keeper *k, int fd) {
        if (fd < k->room)
                return 0;
        int room = fd + fd / 2 + 64;
        struct kept *more = reallocarray(k->kept, (size_t)room, sizeof(*more));
        if (!more)
                return -ENOMEM;
        memset(more + k->room, 0, (size_t)(room - k->room) * sizeof(*more));
        k->kept = more;
        k->room = room;
        return 0;
}

static void keep_consume(struct keeper *k, const char *name, int fd, bool polled) {
        _cleanup_close_ int own = fd;
        if (is_kept(k, name, own))
                return;
        if (k->n >= k->max || k->name_bytes + strlen(name) + 1 > NAMES_MAX) {
                log_error("gms-keeper: cannot keep \"%s\": %zu descriptors are kept and %zu may be, with %zu bytes of names and %zu",
                          name, k->n, k->max, k->name_bytes, (size_t)NAMES_MAX);
                return;
        }
        _cleanup_free_ char *copy = strdup(name);
        if (!copy || make_room(k, own) < 0) {
                log_error("gms-keeper: cannot keep \"%s\": out of memory", name);
                return;
        }
        /* Without events hang-ups and errors are told all the same. Files that cannot be polled have none. */
        struct epoll_event none = { .data.fd = own };
        if (polled)
                polled = epoll_ctl(k->epoll, EPOLL_CTL_ADD, own, &none) == 0;

        int *head = head_of(k, name);
        k->kept[own] = (struct kept){ .name = steal_ptr(&copy), .next = *head, .polled = polled };
        k->n++;
        k->name_bytes += strlen(name) + 1;
        *head = steal_fd(&own);
}

/* `link` is where the number to drop is written: a head, or the one before. */
static void drop(struct keeper *k, int *link) {
        int fd = *link;
        struct kept *e = &k->kept[fd];
        *link = e->next;
        /* The service has the same open file, so that closing ours would not end the watch. */
        if (e->polled)
                (void)epoll_ctl(k->epoll, EPOLL_CTL_DEL, fd, NULL);
        k->n--;
        k->name_bytes -= strlen(e->name) + 1;
        free(e->name);
        *e = (struct kept){};
        close_fd(fd);
}

static void drop_name(struct keeper *k, const char *name) {
        for (int *link = head_of(k, name); *link != 0;) {
                if (strcmp(k->kept[*link].name, name) == 0)
                        drop(k, link);
                else
                        link = &k->kept[*link].next;
        }
}

static void drop_fd(struct keeper *k, int fd) {
        int *link = head_of(k, k->kept[fd].name);
        while (*link != fd)
                link = &k->kept[*link].next;
        drop(k, link);
}

void keeper_check(struct keeper *k, int fd) {
        /* Looked at again: the number may be another descriptor's by now. */
        struct pollfd p = { .fd = fd };
        if (fd >= k->room || !k->kept[fd].polled || poll(&p, 1, 0) != 1)
                return;
        log_info("gms-keeper: the other end of \"%s\" is gone: not kept any more", k->kept[fd].name);
        drop_fd(k, fd);
}

/* By rising number: the place of each is at or below its number, and whoever was there has been copied already. */
int keeper_hand_over(struct keeper *k, char **ret_names) {
        char *names = malloc(k->name_bytes + 1), *end = names;
        int to = STDERR_FILENO + 1;
        if (!names)
                return -ENOMEM;
        for (int fd = to; fd < k->room; fd++) {
                if (!k->kept[fd].name)
                        continue;
                if ((fd == to ? fcntl(fd, F_SETFD, 0) : dup2(fd, to)) < 0) {
                        free(names);
                        return -errno;
                }
                end = stpcpy(end, k->kept[fd].name);
                *end++ = ':';
                to++;
        }
        end[end == names ? 0 : -1] = 0;
        *ret_names = names;
        return 0;
}

/* ---- messages */

/* Whether `line` is KEY=…; the rest of it. */
static const char *value_of(const char *line, const char *key) {
        size_t len = strlen(key);
        return strncmp(line, key, len) == 0 ? line + len : NULL;
}

static void parse_line(const char *line, struct keeper_message *m, const char **name) {
        static const struct {
                const char *line;
                unsigned says;
        } plain[] = {
                { "READY=1", KEEPER_READY },     { "STOPPING=1", KEEPER_STOPPING },    { "WATCHDOG=1", KEEPER_FED },
                { "FDSTORE=1", SAYS_STORE },     { "FDSTOREREMOVE=1", SAYS_REMOVE },   { "FDPOLL=0", SAYS_UNPOLLED },
                { "WATCHDOG=trigger", KEEPER_HANGS },
        };
        for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
                if (strcmp(line, plain[i].line) == 0)
                        m->says |= plain[i].says;

        const char *value = value_of(line, "FDNAME=");
        if (value)
                *name = value;
        if ((value = value_of(line, "STATUS="))) {
                m->says |= KEEPER_STATUS;
                (void)snprintf(m->status, sizeof(m->status), "%s", value);
        }
        if ((value = value_of(line, "WATCHDOG_USEC=")) && *value >= '0' && *value <= '9') {
                m->says |= KEEPER_INTERVAL;
                m->watchdog_us = strtoull(value, NULL, 10);
        }
        /* BARRIER=1 asks that what came with it be closed, as anything is that is not kept. The rest is not for us:
         * MAINPID, RELOADING and the like. */
}

static void handle(struct keeper *k, char *text, int *fds, size_t n_fds, struct keeper_message *m) {
        const char *name = NULL;
        char *rest;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
                parse_line(line, m, &name);

        bool ok = name && name_ok(name);
        if (name && !ok)
                log_warning("gms-keeper: \"%s\" is no name for a descriptor", name);
        if (m->says & SAYS_REMOVE) {
                if (ok)
                        drop_name(k, name);
        } else if (m->says & SAYS_STORE) {
                for (size_t i = 0; i < n_fds; i++)
                        keep_consume(k, ok ? name : "stored", steal_fd(&fds[i]), !(m->says & SAYS_UNPOLLED));
        }
}

/* The sender alone. There is no room for descriptors: those of a stranger are never received, since closing one may
 * take for ever (of a file system in user space). */
static int peek_sender(struct keeper *k, pid_t *ret_pid) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(struct ucred))];
        } control;
        struct msghdr msg = { .msg_control = &control, .msg_controllen = sizeof(control) };
        struct ucred sender = {};
        if (recvmsg(k->socket, &msg, MSG_PEEK | MSG_DONTWAIT) < 0)
                return KEEPER_E_NOTHING;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS)
                memcpy(&sender, CMSG_DATA(c), sizeof(sender));
        *ret_pid = sender.pid; /* 0 for one of another PID namespace */
        return 0;
}

static size_t collect_fds(struct msghdr *msg, int *fds) {
        size_t n = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                memcpy(fds + n, CMSG_DATA(c), c->cmsg_len - CMSG_LEN(0));
                n += (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        }
        return n;
}

static void receive_from_service(struct keeper *k, struct keeper_message *m) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
        } control;
        char text[MESSAGE_MAX + 1];
        int fds[sizeof(control) / sizeof(int)];
        struct iovec iov = { .iov_base = text, .iov_len = MESSAGE_MAX };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control) };

        ssize_t len = recvmsg(k->socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (len < 0)
                return;
        size_t n_fds = collect_fds(&msg, fds);
        text[len] = 0;
        if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
                log_error("gms-keeper: a message is ignored: %s", msg.msg_flags & MSG_TRUNC ? "it is too long"
                          : "its descriptors are more than this process may have open");
        else
                handle(k, text, fds, n_fds, m);
        for (size_t i = 0; i < n_fds; i++)
                close_fd(fds[i]);
}

int keeper_receive(struct keeper *k, pid_t service, struct keeper_message *ret_message) {
        pid_t sender;
        *ret_message = (struct keeper_message){};
        int r = peek_sender(k, &sender);
        if (r != 0)
                return r;
        if (service > 0 && sender == service) {
                receive_from_service(k, ret_message);
                return 0;
        }
        (void)recv(k->socket, NULL, 0, MSG_DONTWAIT);
        if (!k->stranger_seen)
                log_warning("gms-keeper: messages of processes other than the service are ignored; pid %d sent one", sender);
        k->stranger_seen = true;
        return 0;
}

/* ---- life */

int keeper_init(struct keeper *k, int epoll, size_t max) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        socklen_t len = sizeof(sa_family_t); /* the kernel picks a free abstract name: no file to clean up */
        struct epoll_event readable = { .events = EPOLLIN };

        *k = (struct keeper){ .epoll = epoll, .max = max };
        k->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (k->socket < 0 || setsockopt(k->socket, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)) < 0 ||
            bind(k->socket, (struct sockaddr *)&address, len) < 0)
                return -errno;
        len = sizeof(address);
        if (getsockname(k->socket, (struct sockaddr *)&address, &len) < 0)
                return -errno;
        (void)snprintf(k->address, sizeof(k->address), "@%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path) - 1),
                       address.sun_path + 1);
        readable.data.fd = k->socket;
        return epoll_ctl(epoll, EPOLL_CTL_ADD, k->socket, &readable) < 0 ? -errno : 0;
}

void keeper_done(struct keeper *k) {
        for (int fd = 0; fd < k->room; fd++)
                if (k->kept[fd].name)
                        drop_fd(k, fd);
        free(k->kept);
        k->socket = close_fd(k->socket);
}
