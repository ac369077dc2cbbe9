// SPDX-License-Identifier: MIT
#include "proxy.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "raw.h"

#define LINES 8

/* Passes one frame on; false when the line is to end. */
static bool pass(struct proxy_line *line, int from, int to, bool reply) {
        static uint8_t buf[CHANNEL_FRAME_MAX];
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        _cleanup_frame_ Gms__Frame *f = NULL;
        size_t len;
        if (channel_recv(from, buf, &len, &fds) != 0 || wire_unpack(buf, len, fds ? fds->n : 0, &f) != 0)
                return false;
        if (reply && f->serial != 0) {
                if (line->cut_after > 0 && --line->cut_after == 0)
                        return false;
                line->replies++;
                line->descriptors += fds ? fds->n : 0;
        }
        line->requests += !reply;
        return channel_send(to, buf, len, fds) == 0;
}

static void serve(int told, void *arg) {
        struct proxy *p = arg;
        int listener = hear(told); /* its number; inherited */
        struct pollfd at[2 + 2 * LINES] = { { .fd = told, .events = POLLIN }, { .fd = listener, .events = POLLIN } };
        for (unsigned i = 2; i < ARRAY_SIZE(at); i++)
                at[i] = (struct pollfd){ .fd = -1, .events = POLLIN };
        for (;;) {
                (void)poll(at, ARRAY_SIZE(at), -1);
                if (at[0].revents)
                        return;
                for (unsigned i = 2; i < ARRAY_SIZE(at); i += 2) {
                        if (at[i].fd < 0 && at[1].revents) {
                                struct raw to = RAW;
                                at[i].fd = accept(listener, NULL, NULL);
                                must(raw_try(&to, m.socket), "no daemon behind the proxy");
                                at[i + 1].fd = to.fd;
                                at[1].revents = at[i].revents = at[i + 1].revents = 0;
                        }
                        bool on = true;
                        if (at[i].fd >= 0 && at[i].revents)
                                on = pass(p->line, at[i].fd, at[i + 1].fd, false);
                        if (at[i].fd >= 0 && on && at[i + 1].revents)
                                on = pass(p->line, at[i + 1].fd, at[i].fd, true);
                        if (!on) {
                                close_fdp(&at[i].fd);
                                close_fdp(&at[i + 1].fd);
                        }
                }
        }
}

void proxy_start(struct proxy *p) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        p->path = path_of("proxy");
        p->line = mmap(NULL, sizeof(*p->line), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        ck_assert(p->line != MAP_FAILED);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", p->path);
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        ck_assert_int_eq(listen(fd, LINES), 0);
        child_start(&p->child, serve, p);
        say(p->child.fd, fd);
}

void proxy_stop(struct proxy *p) {
        say(p->child.fd, 'e');
        child_end(&p->child);
        (void)munmap(p->line, sizeof(*p->line));
}
