// SPDX-License-Identifier: MIT
#include "process.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif
#ifndef PID_FS_MAGIC
#define PID_FS_MAGIC 0x50494446u
#endif

#define INODE_KEY (UINT64_C(1) << 63) /* keys of pidfds; those of pids and times are below */

/* Ticks since boot at which a process started: field 22 of its stat, counted behind the name, which may hold anything. */
static int start_time(pid_t pid, uint64_t *ret_ticks) {
        char path[64], stat[1024];
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
                return -errno;
        ssize_t n = read(fd, stat, sizeof(stat) - 1);
        if (n <= 0)
                return -ESRCH;
        stat[n] = 0;
        char *p = strrchr(stat, ')');
        for (int field = 2; p && field < 22; field++)
                p = strchr(p + 1, ' ');
        return p && sscanf(p, " %" SCNu64, ret_ticks) == 1 ? 0 : -ESRCH;
}

/* Pids are below 2^22 (PID_MAX_LIMIT of the kernel). */
static uint64_t make_key(pid_t pid, uint64_t ticks) {
        return ticks << 22 | (uint64_t)pid;
}

/*
 * A pidfd of the peer tells it apart also where its pid is not to be seen (another PID namespace, hidepid): since Linux 6.9 its
 * inode number is never used again. 0: not to be had.
 */
static uint64_t pidfd_key(int pidfd) {
        struct statfs fs;
        struct stat st;
        if (fstatfs(pidfd, &fs) < 0 || (uint32_t)fs.f_type != PID_FS_MAGIC || fstat(pidfd, &st) < 0)
                return 0;
        return INODE_KEY | (uint64_t)st.st_ino;
}

static bool has_exited(int pidfd) {
        struct pollfd p = { .fd = pidfd, .events = POLLIN };
        return poll(&p, 1, 0) == 1;
}

static int peer_pidfd(int socket) {
        int pidfd = -1;
        socklen_t len = sizeof(pidfd);
        return getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) < 0 ? -1 : pidfd;
}

int process_identify(int socket, struct process_identity *ret_identity) {
        struct ucred cred;
        socklen_t len = sizeof(cred);
        if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
                return -errno;

        uint64_t ticks = 0;
        *ret_identity = (struct process_identity){ .pid = cred.pid, .uid = cred.uid };
        if (cred.pid > 0 && start_time(cred.pid, &ticks) == 0) {
                ret_identity->key = make_key(cred.pid, ticks);
        } else {
                _cleanup_close_ int pidfd = peer_pidfd(socket);
                if (pidfd >= 0 && !has_exited(pidfd))
                        ret_identity->key = pidfd_key(pidfd);
        }
        return 0;
}

int process_open(int socket, const struct process_identity *identity, int *ret_pidfd) {
        int got = peer_pidfd(socket);
        if (got < 0) {
                got = identity->pid > 0 ? (int)syscall(SYS_pidfd_open, identity->pid, 0) : -1;
                if (got < 0)
                        return identity->pid > 0 ? -errno : -ESRCH;
        }

        _cleanup_close_ int pidfd = got;
        if (has_exited(pidfd))
                return -ESRCH;
        /* Still alive, so the pid is not used again: if it started when we said, it is the one we identified. */
        uint64_t ticks = 0;
        if (identity->key & INODE_KEY) {
                if (pidfd_key(pidfd) != identity->key)
                        return -ESRCH;
        } else if (identity->key != 0 &&
                   (start_time(identity->pid, &ticks) < 0 || make_key(identity->pid, ticks) != identity->key))
                return -ESRCH;
        *ret_pidfd = steal_fd(&pidfd);
        return 0;
}
