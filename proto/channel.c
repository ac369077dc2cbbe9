// SPDX-License-Identifier: MIT
#include "channel.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

struct channel_frame {
        struct list link;
        uint8_t *bytes;
        size_t len;
        struct fdset *fds; /* owning, or NULL */
};

union fd_cmsg {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(FDSET_MAX * sizeof(int))];
};

/* Gathers the descriptors of every control message, so that none is lost whatever the peer sent. */
static int collect_fds(struct msghdr *msg, struct fdset **ret_fds) {
        *ret_fds = NULL;
        unsigned n = 0;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS)
                        n += (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        if (n == 0)
                return 0;

        struct fdset *set = NULL;
        int r = fdset_new(&set, n, true);
        for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
                if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
                        continue;
                size_t here = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
                for (size_t i = 0; i < here; i++) {
                        int fd;
                        memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
                        if (r < 0)
                                close_fd(fd);
                        else
                                fdset_add(set, fd);
                }
        }
        if (r < 0)
                return r;
        *ret_fds = set;
        return 0;
}

int channel_recv(int fd, uint8_t *buf, size_t *ret_len, struct fdset **ret_fds) {
        union fd_cmsg control;
        struct iovec iov = { .iov_base = buf, .iov_len = CHANNEL_FRAME_MAX };
        struct msghdr msg = {
                .msg_iov = &iov,
                .msg_iovlen = 1,
                .msg_control = &control,
                .msg_controllen = sizeof(control),
        };

        ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);
        if (n < 0) {
                if (errno == EAGAIN || errno == EWOULDBLOCK)
                        return CHANNEL_E_AGAIN;
                return errno == ECONNRESET ? CHANNEL_E_EOF : -errno;
        }

        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        int r = collect_fds(&msg, &fds);
        if (r < 0)
                return r;
        if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
                return CHANNEL_E_BROKEN;
        if (n == 0) /* an empty frame looks like the end, and no frame is empty */
                return CHANNEL_E_EOF;

        *ret_len = (size_t)n;
        *ret_fds = steal_ptr(&fds);
        return 0;
}

int channel_send(int fd, const uint8_t *bytes, size_t len, const struct fdset *fds) {
        union fd_cmsg control;
        struct iovec iov = { .iov_base = (void *)bytes, .iov_len = len };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

        if (fds && fds->n > 0) {
                msg.msg_control = &control;
                msg.msg_controllen = CMSG_SPACE(fds->n * sizeof(int));
                struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
                c->cmsg_level = SOL_SOCKET;
                c->cmsg_type = SCM_RIGHTS;
                c->cmsg_len = CMSG_LEN(fds->n * sizeof(int));
                memcpy(CMSG_DATA(c), fds->fds, fds->n * sizeof(int));
        }

        if (sendmsg(fd, &msg, MSG_NOSIGNAL) >= 0)
                return 0;
        switch (errno) {
        case EAGAIN:
                return CHANNEL_E_AGAIN;
        case ETOOMANYREFS:
                return CHANNEL_E_REFS;
        case EPIPE:
        case ECONNRESET:
        case ENOTCONN:
                return CHANNEL_E_EOF;
        default:
                return -errno;
        }
}

static struct channel_frame *frame_free(struct channel_frame *f) {
        if (!f)
                return NULL;
        list_unlink(&f->link);
        free(f->bytes);
        fdset_free(f->fds);
        free(f);
        return NULL;
}

void channel_init_consume(struct channel *ch, int fd) {
        *ch = (struct channel){ .fd = fd };
        list_init(&ch->queue);
}

void channel_done(struct channel *ch) {
        list_for_safe(f, &ch->queue, struct channel_frame, link)
                frame_free(f);
        ch->queued = 0;
        ch->held = 0;
        ch->fd = close_fd(ch->fd);
}

/* Replaces a borrowing set by one that owns duplicates. */
static int fdset_own(struct fdset **set) {
        if (!*set || (*set)->owned)
                return 0;

        _cleanup_(fdset_freep) struct fdset *own = NULL;
        int r = fdset_new(&own, (*set)->n, true);
        if (r < 0)
                return r;
        for (unsigned i = 0; i < (*set)->n; i++) {
                int fd = fcntl((*set)->fds[i], F_DUPFD_CLOEXEC, 3);
                if (fd < 0)
                        return -errno;
                fdset_add(own, fd);
        }
        fdset_free(*set);
        *set = steal_ptr(&own);
        return 0;
}

int channel_post_consume(struct channel *ch, uint8_t *bytes, size_t len, struct fdset *fds, unsigned spare) {
        _cleanup_free_ uint8_t *b = bytes;
        _cleanup_(fdset_freep) struct fdset *s = fds;

        if (channel_idle(ch)) {
                int r = channel_send(ch->fd, b, len, s);
                if (r != CHANNEL_E_AGAIN && r != CHANNEL_E_REFS)
                        return r;
        }

        if (s && !s->owned && s->n > spare)
                return -EMFILE;
        int r = fdset_own(&s);
        if (r < 0)
                return r;
        struct channel_frame *f = malloc(sizeof(*f));
        if (!f)
                return -ENOMEM;
        *f = (struct channel_frame){ .bytes = steal_ptr(&b), .len = len, .fds = steal_ptr(&s) };
        list_append(&ch->queue, &f->link);
        ch->queued += len;
        ch->held += f->fds ? f->fds->n : 0;
        return 0;
}

int channel_flush(struct channel *ch) {
        list_for_safe(f, &ch->queue, struct channel_frame, link) {
                int r = channel_send(ch->fd, f->bytes, f->len, f->fds);
                if (r != 0)
                        return r;
                ch->queued -= f->len;
                ch->held -= f->fds ? f->fds->n : 0;
                frame_free(f);
        }
        return 0;
}
