// SPDX-License-Identifier: MIT
/* A service that does what the test says over its socket: see puppet.h. Its argument is the socket's path. */
#undef NDEBUG
#include "puppet.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <time.h>

#include "base.h"

#define BARRIER_US (60u * 1000 * 1000)

static int control;
static int n_given;
static char **given; /* names of the descriptors from 3 on */

static void answer(int fd, const char *text) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } cmsg = { .align = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) } };
        struct iovec iov = { .iov_base = (char *)text, .iov_len = strlen(text) };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        if (fd >= 0) {
                memcpy(CMSG_DATA(&cmsg.align), &fd, sizeof(fd));
                msg.msg_control = &cmsg;
                msg.msg_controllen = sizeof(cmsg);
        }
        if (sendmsg(control, &msg, MSG_NOSIGNAL) < 0)
                _exit(9);
}

static void answer_number(long number) {
        char text[32];
        (void)snprintf(text, sizeof(text), "ok %ld", number);
        answer(-1, text);
}

static int read_command(char *text, int *fds, unsigned *ret_n) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(PUPPET_FDS_MAX * sizeof(int))];
        } cmsg;
        struct iovec iov = { .iov_base = text, .iov_len = PUPPET_PACKET_MAX - 1 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &cmsg, .msg_controllen = sizeof(cmsg) };
        ssize_t len = recvmsg(control, &msg, MSG_CMSG_CLOEXEC);
        if (len <= 0)
                return -1;
        text[len] = 0;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        *ret_n = c ? (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int)) : 0;
        if (c)
                memcpy(fds, CMSG_DATA(c), *ret_n * sizeof(int));
        return 0;
}

static long notify_by_child(const char *text, const int *fds, unsigned n) {
        int status;
        pid_t pid = fork();
        if (pid == 0)
                _exit(sd_pid_notify_with_fds(0, 0, text, fds, n) > 0 ? 1 : 0);
        return waitpid(pid, &status, 0) == pid ? WEXITSTATUS(status) : -1;
}

static long now_us(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static long store_many(const char *prefix, int n) {
        int *fds = calloc((size_t)n, sizeof(int));
        char name[300], text[400];
        for (int i = 0; i < n; i++) {
                int len = snprintf(name, sizeof(name), "%s%d", prefix, i);
                fds[i] = memfd_create("kept", MFD_CLOEXEC);
                if (pwrite(fds[i], name, (size_t)len, 0) != len)
                        return -1;
        }
        long start = now_us();
        for (int i = 0; i < n; i++) {
                (void)snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s%d", prefix, i);
                if (sd_pid_notify_with_fds(0, 0, text, &fds[i], 1) <= 0)
                        return -1;
        }
        long r = sd_notify_barrier(0, BARRIER_US) > 0 ? now_us() - start : -1;
        for (int i = 0; i < n; i++)
                close_fd(fds[i]);
        free(fds);
        return r;
}

static void names(void) {
        char text[PUPPET_PACKET_MAX], *end = stpcpy(text, "ok ");
        for (int i = 0; i < n_given; i++)
                end = stpcpy(stpcpy(end, i ? ":" : ""), given[i]);
        answer(-1, text);
}

static long verify(void) {
        long good = 0;
        for (int i = 0; i < n_given; i++) {
                char text[300];
                ssize_t len = pread(SD_LISTEN_FDS_START + i, text, sizeof(text), 0);
                good += len == (ssize_t)strlen(given[i]) && memcmp(text, given[i], (size_t)len) == 0;
        }
        return good;
}

static void hand_back(const char *name) {
        for (int i = 0; i < n_given; i++) {
                if (strcmp(given[i], name) == 0) {
                        answer(SD_LISTEN_FDS_START + i, "ok");
                        return;
                }
        }
        answer(-1, "none");
}

static long leave_behind(unsigned ms) {
        pid_t pid = fork();
        if (pid == 0) {
                (void)close(control);
                (void)usleep(ms * 1000);
                _exit(0);
        }
        return pid;
}

static void obey(char *command, const int *fds, unsigned n) {
        char *arg = strchr(command, ' ');
        if (arg)
                *arg++ = 0;
        if (strcmp(command, "notify") == 0) {
                answer_number(sd_pid_notify_with_fds(0, 0, arg, fds, n));
        } else if (strcmp(command, "fork-notify") == 0) {
                answer_number(notify_by_child(arg, fds, n));
        } else if (strcmp(command, "barrier") == 0) {
                answer_number(sd_notify_barrier(0, BARRIER_US));
        } else if (strcmp(command, "many") == 0) {
                char *count = strchr(arg, ' ');
                *count++ = 0;
                answer_number(store_many(arg, atoi(count)));
        } else if (strcmp(command, "names") == 0) {
                names();
        } else if (strcmp(command, "verify") == 0) {
                answer_number(verify());
        } else if (strcmp(command, "fd") == 0) {
                hand_back(arg);
        } else if (strcmp(command, "env") == 0) {
                char text[512];
                (void)snprintf(text, sizeof(text), "ok %s", getenv(arg) ? getenv(arg) : "");
                answer(-1, text);
        } else if (strcmp(command, "ignore") == 0) {
                (void)signal(atoi(arg), SIG_IGN);
                answer(-1, "ok");
        } else if (strcmp(command, "linger") == 0) {
                answer_number(leave_behind(60000));
        } else if (strcmp(command, "orphan") == 0) {
                int status;
                pid_t pid = fork();
                if (pid == 0)
                        _exit(leave_behind(50) < 0);
                (void)waitpid(pid, &status, 0);
                answer_number(WEXITSTATUS(status));
        } else {
                _exit(atoi(arg)); /* exit */
        }
}

static void report_signal(int fd) {
        struct signalfd_siginfo info;
        char text[32];
        if (read(fd, &info, sizeof(info)) != sizeof(info))
                _exit(9);
        (void)snprintf(text, sizeof(text), "signal %u", info.ssi_signo);
        answer(-1, text);
}

int main(int argc, char **argv) {
        static char command[PUPPET_PACKET_MAX];
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        sigset_t set;
        static const int signals[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 };

        if (argc != 2)
                return 9;
        n_given = sd_listen_fds_with_names(0, &given);
        (void)sigemptyset(&set);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
                (void)sigaddset(&set, signals[i]);
        (void)sigprocmask(SIG_BLOCK, &set, NULL);
        int caught = signalfd(-1, &set, SFD_CLOEXEC);
        control = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", argv[1]);
        if (n_given < 0 || connect(control, (struct sockaddr *)&address, sizeof(address)) < 0)
                return 9;

        struct pollfd polled[] = { { .fd = control, .events = POLLIN }, { .fd = caught, .events = POLLIN } };
        while (poll(polled, 2, -1) >= 0) {
                int fds[PUPPET_FDS_MAX];
                unsigned n;
                if (polled[1].revents)
                        report_signal(caught);
                if (!polled[0].revents)
                        continue;
                if (read_command(command, fds, &n) < 0)
                        return 9;
                obey(command, fds, n);
                for (unsigned i = 0; i < n; i++)
                        close_fd(fds[i]);
        }
        return 9;
}
