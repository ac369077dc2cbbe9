// SPDX-License-Identifier: MIT
/* Waiting, other processes, and what /proc says of them. */
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>

#include "harness.h"

/* ---- time */

uint64_t now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Between two looks at a condition: short at first, so that what is there soon is seen soon. */
bool until_(uint64_t deadline, unsigned *step) {
        struct timespec t = { .tv_nsec = MIN(100000L << MIN((*step)++, 6u), 5000000L) };
        if (now_ms() >= deadline)
                return false;
        (void)nanosleep(&t, NULL);
        return true;
}

/* ---- children */

void child_start(struct child *c, void (*body)(int line, void *arg), void *arg) {
        int pair[2];
        pid_t parent = getpid();
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        c->pid = fork();
        ck_assert_int_ge(c->pid, 0);
        if (c->pid == 0) {
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() != parent)
                        _exit(1);
                (void)close(pair[0]);
                body(pair[1], arg);
                _exit(0);
        }
        (void)close(pair[1]);
        c->fd = pair[0];
}

void say(int line, int what) {
        char byte = (char)what;
        ck_assert_int_eq(send(line, &byte, 1, MSG_NOSIGNAL), 1);
}

int hear(int line) {
        struct pollfd readable = { .fd = line, .events = POLLIN };
        char byte;
        ck_assert_msg(poll(&readable, 1, PATIENCE_MS) == 1, "nothing heard of the other process");
        return recv(line, &byte, 1, 0) == 1 ? byte : -1;
}

void child_wait(struct child *c, int what) {
        int heard = hear(c->fd);
        if (heard == what)
                return;
        if (heard < 0)
                ck_abort_msg("a child has ended with status %d before it said '%c'", process_end(c->pid), what);
        ck_abort_msg("a child said '%c' instead of '%c'", heard, what);
}

static void child_done(struct child *c) {
        c->fd = close_fd(c->fd);
        c->pid = 0;
}

void child_kill(struct child *c, int signal) {
        ck_assert_int_eq(kill(c->pid, signal), 0);
        ck_assert_int_eq(process_end(c->pid), 128 + signal);
        child_done(c);
}

void child_end(struct child *c) {
        int status = process_end(c->pid);
        ck_assert_msg(status == 0, "a child ended with status %d", status);
        child_done(c);
}

void park(void) {
        for (;;)
                (void)pause();
}

int process_end(pid_t pid) {
        int status = 0;
        pid_t r;
        wait_for((r = waitpid(pid, &status, WNOHANG)) != 0);
        ck_assert_int_eq(r, pid);
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- /proc */

unsigned count_fds(pid_t pid) {
        char path[64];
        unsigned n = 0;
        (void)snprintf(path, sizeof(path), "/proc/%d/fd", pid);
        DIR *d = opendir(path);
        for (struct dirent *e; d && (e = readdir(d));)
                n += isdigit((unsigned char)e->d_name[0]) != 0;
        if (d)
                (void)closedir(d);
        return pid == getpid() ? n - 1 : n; /* less the one that reads them */
}

uint64_t resident_kib(pid_t pid) {
        char path[64];
        (void)snprintf(path, sizeof(path), "/proc/%d/status", pid);
        _cleanup_free_ char *text = read_text(path);
        const char *at = strstr(text, "VmRSS:");
        ck_assert_ptr_nonnull(at);
        return strtoull(at + 6, NULL, 10);
}

unsigned worker_pids(pid_t *pids, unsigned room) {
        unsigned n = 0;
        DIR *d = opendir("/proc");
        ck_assert_ptr_nonnull(d);
        for (struct dirent *e; (e = readdir(d));) {
                char path[300], stat[512], state;
                int parent;
                if (!isdigit((unsigned char)e->d_name[0]))
                        continue;
                (void)snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
                _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
                ssize_t got = fd < 0 ? -1 : read(fd, stat, sizeof(stat) - 1);
                if (got <= 0)
                        continue;
                stat[got] = '\0';
                const char *behind = strrchr(stat, ')');
                if (behind && sscanf(behind, ") %c %d", &state, &parent) == 2 && parent == m.gmsd && state != 'Z' && n < room)
                        pids[n++] = atoi(e->d_name);
        }
        (void)closedir(d);
        return n;
}

char *read_text(const char *path) {
        char *text = calloc(1, 1);
        size_t len = 0;
        FILE *f = fopen(path, "re");
        ck_assert_ptr_nonnull(text);
        if (!f)
                return text;
        for (size_t n = 1; n > 0; len += n) {
                text = realloc(text, len + 4097);
                ck_assert_ptr_nonnull(text);
                n = fread(text + len, 1, 4096, f);
        }
        text[len] = '\0';
        (void)fclose(f);
        return text;
}
