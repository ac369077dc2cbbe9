// SPDX-License-Identifier: MIT
#include "worker.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>

extern char **environ;

/* The child gets its socket as WORKER_FD and nothing else: everything of the daemon's is close-on-exec. */
static int spawn_child(const char *name, int fd, pid_t *ret_pid) {
        posix_spawn_file_actions_t actions;
        posix_spawnattr_t attr;
        sigset_t none, all;

        /* dup2() onto itself would leave close-on-exec set */
        _cleanup_close_ int above = fcntl(fd, F_DUPFD_CLOEXEC, WORKER_FD + 1);
        if (above < 0)
                return -errno;
        if (posix_spawn_file_actions_init(&actions) != 0)
                return -ENOMEM;
        if (posix_spawnattr_init(&attr) != 0) {
                posix_spawn_file_actions_destroy(&actions);
                return -ENOMEM;
        }
        sigemptyset(&none);
        sigfillset(&all);
        posix_spawnattr_setsigmask(&attr, &none);
        posix_spawnattr_setsigdefault(&attr, &all);
        posix_spawnattr_setflags(&attr, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);

        /* The image that runs now, not the file that may have been replaced by a newer one since. */
        char *argv[] = { "gmsd", "--worker", (char *)name, NULL };
        int r = posix_spawn_file_actions_adddup2(&actions, above, WORKER_FD);
        if (r == 0)
                r = posix_spawn(ret_pid, "/proc/self/exe", &actions, &attr, argv, environ);
        posix_spawnattr_destroy(&attr);
        posix_spawn_file_actions_destroy(&actions);
        return -r;
}

int worker_spawn(struct worker **ret_worker, const char *name) {
        int pair[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
                return -errno;
        _cleanup_close_ int ours = pair[0], theirs = pair[1];
        if (fcntl(ours, F_SETFL, O_NONBLOCK) < 0)
                return -errno;

        _cleanup_free_ struct worker *w = calloc(1, sizeof(*w));
        if (!w)
                return -ENOMEM;
        int r = spawn_child(name, theirs, &w->pid);
        if (r < 0)
                return r;
        channel_init_consume(&w->channel, steal_fd(&ours));
        *ret_worker = steal_ptr(&w);
        return 0;
}

struct worker *worker_free(struct worker *w) {
        if (!w)
                return NULL;
        (void)kill(w->pid, SIGKILL);
        channel_done(&w->channel);
        free(w);
        return NULL;
}

int worker_send_consume(struct worker *w, Gms__Frame *frame, struct fdset *fds) {
        uint8_t *bytes;
        size_t len;
        int r = wire_pack(frame, fds ? fds->n : 0, &bytes, &len);
        if (r != 0) {
                fdset_free(fds);
                return r < 0 ? r : -EMSGSIZE;
        }
        return channel_post_consume(&w->channel, bytes, len, fds, FDSET_MAX);
}

int worker_receive(struct worker *w, uint8_t *buf, Gms__Frame **ret_frame, struct fdset **ret_fds) {
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        size_t len;
        int r = channel_recv(w->channel.fd, buf, &len, &fds);
        if (r != 0)
                return r == CHANNEL_E_BROKEN ? CHANNEL_E_EOF : r;
        if (wire_unpack(buf, len, fds ? fds->n : 0, ret_frame) != 0)
                return CHANNEL_E_EOF;
        *ret_fds = steal_ptr(&fds);
        return 0;
}
