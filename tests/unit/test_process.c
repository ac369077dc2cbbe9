// SPDX-License-Identifier: MIT
/* Who is at the other end of a socket, and when that process has exited. The peers are real children. */
#undef NDEBUG
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "process.h"

#define PATIENCE_MS 10000

static int fds_before, listener = -1;
static struct sockaddr_un address = { .sun_family = AF_UNIX };

static int count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;
        ck_assert_ptr_nonnull(d);
        while (readdir(d))
                n++;
        (void)closedir(d);
        return n;
}

static void setup(void) {
        fds_before = count_fds();
        /* an abstract address that nobody else has */
        (void)snprintf(address.sun_path + 1, sizeof(address.sun_path) - 1, "gms-test-process-%d", getpid());
        listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        ck_assert_int_ge(listener, 0);
        ck_assert_int_eq(bind(listener, (struct sockaddr *)&address, sizeof(address)), 0);
        ck_assert_int_eq(listen(listener, 8), 0);
}

static void teardown(void) {
        listener = close_fd(listener);
        ck_assert_int_eq(count_fds(), fds_before);
}

/* Forks a client that connects, calls `also` and waits to be killed or told to go. Returns the accepted socket. */
static int client(pid_t *ret_pid, void (*also)(int fd)) {
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                char byte;
                int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
                if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
                        _exit(1);
                if (also)
                        also(fd);
                (void)!read(fd, &byte, 1);
                _exit(0);
        }
        struct pollfd p = { .fd = listener, .events = POLLIN };
        ck_assert_int_eq(poll(&p, 1, PATIENCE_MS), 1);
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        *ret_pid = pid;
        return fd;
}

static bool readable(int fd, int ms) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        return poll(&p, 1, ms) == 1 && (p.revents & POLLIN);
}

static void reap(pid_t pid) {
        ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
}

START_TEST(identity_of_a_peer) {
        struct process_identity id, again, own, other;
        pid_t pid, pid2;
        int pair[2];
        _cleanup_close_ int fd = client(&pid, NULL), fd2 = client(&pid2, NULL);

        ck_assert_int_eq(process_identify(fd, &id), 0);
        ck_assert_int_eq(id.pid, pid);
        ck_assert_uint_eq(id.uid, getuid());
        ck_assert_uint_ne(id.key, 0);
        ck_assert_int_eq(process_identify(fd, &again), 0);
        ck_assert_uint_eq(again.key, id.key);

        ck_assert_int_eq(process_identify(fd2, &other), 0);
        ck_assert_uint_ne(other.key, id.key);
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
        ck_assert_int_eq(process_identify(pair[0], &own), 0);
        ck_assert_int_eq(own.pid, getpid());
        ck_assert_uint_ne(own.key, id.key);
        (void)close(pair[0]);
        (void)close(pair[1]);
        fd = close_fd(fd);
        fd2 = close_fd(fd2);
        reap(pid);
        reap(pid2);
}
END_TEST

/* The name of a process may hold anything, also what looks like the rest of its line. */
static void take_a_bad_name(int fd) {
        char done = 1;
        (void)prctl(PR_SET_NAME, "a) R 1 (b c");
        (void)!write(fd, &done, 1);
}

START_TEST(name_of_a_peer) {
        struct process_identity plain, named;
        pid_t pid;
        unsigned long long ticks;
        char path[64], stat[1024], done;
        _cleanup_close_ int fd = client(&pid, take_a_bad_name);
        ck_assert_int_eq(read(fd, &done, 1), 1);
        ck_assert_int_eq(process_identify(fd, &named), 0);

        /* where it is in the line, counted from the end of the name */
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
        FILE *f = fopen(path, "re");
        ck_assert_ptr_nonnull(f);
        ck_assert_ptr_nonnull(fgets(stat, sizeof(stat), f));
        (void)fclose(f);
        char *rest = strstr(stat, "a) R 1 (b c) ");
        ck_assert_ptr_nonnull(rest);
        ck_assert_int_eq(sscanf(rest + strlen("a) R 1 (b c) "),
                                "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &ticks),
                         1);
        ck_assert_uint_eq(named.key, ticks << 22 | (uint64_t)pid);

        plain = named;
        _cleanup_close_ int pidfd = -1;
        ck_assert_int_eq(process_open(fd, &plain, &pidfd), 0);
        fd = close_fd(fd);
        reap(pid);
}
END_TEST

START_TEST(exit_is_seen) {
        struct process_identity id;
        pid_t pid;
        _cleanup_close_ int fd = client(&pid, NULL), pidfd = -1;
        ck_assert_int_eq(process_identify(fd, &id), 0);
        ck_assert_int_eq(process_open(fd, &id, &pidfd), 0);
        ck_assert_int_eq(fcntl(pidfd, F_GETFD), FD_CLOEXEC);
        ck_assert(!readable(pidfd, 0));
        if (_i == 0)
                ck_assert_int_eq(kill(pid, SIGKILL), 0);
        else
                fd = close_fd(fd);
        ck_assert(readable(pidfd, PATIENCE_MS));
        reap(pid);
        ck_assert(readable(pidfd, 0));
}
END_TEST

/* The connection ends; the process does not: that is not an exit. */
static void close_it(int fd) {
        (void)close(fd);
        for (;;)
                (void)pause();
}

START_TEST(hanging_up_is_not_exiting) {
        struct process_identity id;
        pid_t pid;
        _cleanup_close_ int fd = client(&pid, close_it), pidfd = -1;
        struct pollfd p = { .fd = fd };
        ck_assert_int_eq(poll(&p, 1, PATIENCE_MS), 1);
        ck_assert(p.revents & POLLHUP);
        ck_assert_int_eq(process_identify(fd, &id), 0);
        ck_assert_int_eq(id.pid, pid);
        ck_assert_int_eq(process_open(fd, &id, &pidfd), 0);
        ck_assert(!readable(pidfd, 0));
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
        ck_assert(readable(pidfd, PATIENCE_MS));
        reap(pid);
}
END_TEST

/* Exited before anybody asked: as a zombie, and when nothing is left of it. Nothing is opened. */
START_TEST(exited_before) {
        struct process_identity id;
        siginfo_t info;
        pid_t pid;
        _cleanup_close_ int fd = client(&pid, NULL), pidfd = -1;
        ck_assert_int_eq(process_identify(fd, &id), 0);
        ck_assert_int_eq(kill(pid, SIGKILL), 0);
        ck_assert_int_eq(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
        if (_i == 1)
                reap(pid);
        int before = count_fds();
        ck_assert_int_eq(process_open(fd, &id, &pidfd), -ESRCH);
        ck_assert_int_eq(pidfd, -1);
        ck_assert_int_eq(count_fds(), before);
        if (_i == 1) {
                /* It cannot be identified any more either, beyond what the socket remembers. */
                ck_assert_int_eq(process_identify(fd, &id), 0);
                ck_assert_int_eq(id.pid, pid);
                ck_assert_uint_eq(id.key, 0);
        } else {
                reap(pid);
        }
}
END_TEST

/* The pid was used again: another process, not the one that was identified. */
START_TEST(another_with_its_pid) {
        struct process_identity id;
        pid_t pid;
        _cleanup_close_ int fd = client(&pid, NULL), pidfd = -1;
        ck_assert_int_eq(process_identify(fd, &id), 0);
        id.key += 1u << 22; /* it started one tick later */
        int before = count_fds();
        ck_assert_int_eq(process_open(fd, &id, &pidfd), -ESRCH);
        ck_assert_int_eq(count_fds(), before);
        fd = close_fd(fd);
        reap(pid);
}
END_TEST

/* A child that inherited the connection keeps it open; the process that is known is the one that connected. */
static void leave_a_child(int fd) {
        char byte;
        if (fork() == 0) {
                (void)!read(fd, &byte, 1);
                _exit(0);
        }
        (void)!write(fd, "x", 1);
        _exit(0);
}

START_TEST(inherited_connection) {
        struct process_identity id;
        struct pollfd p;
        pid_t pid;
        char byte;
        _cleanup_close_ int fd = client(&pid, leave_a_child), pidfd = -1;
        ck_assert_int_eq(read(fd, &byte, 1), 1);
        reap(pid);
        p = (struct pollfd){ .fd = fd, .events = POLLIN };
        ck_assert_int_eq(poll(&p, 1, 0), 0); /* still open */
        ck_assert_int_eq(process_identify(fd, &id), 0);
        ck_assert_int_eq(id.pid, pid);
        ck_assert_int_eq(process_open(fd, &id, &pidfd), -ESRCH);
}
END_TEST

START_TEST(not_a_socket) {
        struct process_identity id;
        _cleanup_close_ int null = open("/dev/null", O_RDWR | O_CLOEXEC);
        ck_assert_int_eq(process_identify(null, &id), -ENOTSOCK);
        ck_assert_int_eq(process_identify(-1, &id), -EBADF);
}
END_TEST

int main(void) {
        Suite *s = suite_create("process");
        TCase *t = tcase_create("peers");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, identity_of_a_peer);
        tcase_add_test(t, name_of_a_peer);
        tcase_add_loop_test(t, exit_is_seen, 0, 2);
        tcase_add_test(t, hanging_up_is_not_exiting);
        tcase_add_loop_test(t, exited_before, 0, 2);
        tcase_add_test(t, another_with_its_pid);
        tcase_add_test(t, inherited_connection);
        tcase_add_test(t, not_a_socket);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
