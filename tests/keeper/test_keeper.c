// SPDX-License-Identifier: MIT
/* gms-keeper against systemd's contract, with a puppet for a service. */
#undef NDEBUG
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#include "stage.h"

#define MANY 4000
#define STORE_UNPOLLED "FDSTORE=1\nFDPOLL=0\nFDNAME="

static int make_memfd(const char *text) {
        int fd = memfd_create("test", MFD_CLOEXEC);
        ck_assert_int_eq(pwrite(fd, text, strlen(text), 0), strlen(text));
        return fd;
}

static void assert_contains(int fd, const char *text) {
        char found[64] = "";
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(pread(fd, found, sizeof(found) - 1, 0), strlen(text));
        ck_assert_str_eq(found, text);
        close_fd(fd);
}

/* Stores a memfd that contains `text`. */
static void store(const char *message, const char *text) {
        _cleanup_close_ int fd = make_memfd(text);
        ck_assert_str_eq(ask_with(&fd, 1, "notify %s", message), "ok 1");
}

static void notify(const char *text) {
        ck_assert_str_eq(ask("notify %s", text), "ok 1");
}

/* Whatever was said is done. */
static void barrier(void) {
        ck_assert_str_eq(ask("barrier"), "ok 1");
}

static long kill_and_wait(void) {
        stage_kill();
        return stage_next();
}

static void assert_logged(const char *text) {
        for (int ms = 0; ms < 5000 && !strstr(stage_log(), text); ms++)
                (void)usleep(1000);
        ck_assert_msg(strstr(stage_log(), text) != NULL, "no \"%s\" in:\n%s", text, stage_log());
}

static unsigned count(const char *text, const char *what) {
        unsigned n = 0;
        for (const char *p = text; (p = strstr(p, what)); p += strlen(what))
                n++;
        return n;
}

/* ---- descriptors */

START_TEST(restored_by_name) {
        stage_start(NULL);
        store(STORE_UNPOLLED "alpha", "first");
        store(STORE_UNPOLLED "beta", "second");
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 2);
        assert_contains(ask_fd("alpha"), "first");
        assert_contains(ask_fd("beta"), "second");
        kill_and_wait(); /* they stay, until they are removed */
        assert_contains(ask_fd("alpha"), "first");
        ck_assert_str_eq(ask("env LISTEN_FDS"), "ok 2");
}
END_TEST

START_TEST(same_memory) {
        stage_start(NULL);
        _cleanup_close_ int fd = make_memfd("before");
        ck_assert_str_eq(ask_with(&fd, 1, "notify " STORE_UNPOLLED "x"), "ok 1");
        kill_and_wait();
        ck_assert_int_eq(pwrite(fd, "AFTER!", 6, 0), 6);
        assert_contains(ask_fd("x"), "AFTER!");
}
END_TEST

START_TEST(removed) {
        stage_start(NULL);
        unsigned before = stage_keeper_fds();
        store(STORE_UNPOLLED "alpha", "1");
        store(STORE_UNPOLLED "alpha", "2");
        store(STORE_UNPOLLED "beta", "3");
        notify("FDSTOREREMOVE=1\nFDNAME=alpha");
        barrier();
        ck_assert_uint_eq(stage_keeper_fds(), before + 1);
        notify("FDSTOREREMOVE=1\nFDNAME=nothing");
        notify("FDSTOREREMOVE=1");
        kill_and_wait();
        ck_assert_str_eq(ask("names"), "ok beta");
        notify("FDSTOREREMOVE=1\nFDNAME=beta");
        barrier();
        ck_assert_uint_eq(stage_keeper_fds(), before);
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 0);
        ck_assert_str_eq(ask("env LISTEN_FDS"), "ok ");
}
END_TEST

START_TEST(names) {
        stage_start(NULL);
        store("FDSTORE=1", "a");
        store("FDSTORE=1\nFDNAME=", "b");
        store("FDSTORE=1\nFDNAME=not:good", "c");
        store("FDSTORE=1\nFDNAME=a b/c@d", "d");
        store("READY=1\nFDNAME=unasked", "e"); /* no FDSTORE=1 */
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 4);
        ck_assert_uint_eq(count(ask("names"), "stored"), 3);
        assert_contains(ask_fd("a b/c@d"), "d");
}
END_TEST

START_TEST(many_in_a_message) {
        int fds[PUPPET_FDS_MAX];
        stage_start(NULL);
        for (unsigned i = 0; i < PUPPET_FDS_MAX; i++)
                fds[i] = make_memfd("batch");
        ck_assert_str_eq(ask_with(fds, PUPPET_FDS_MAX, "notify " STORE_UNPOLLED "batch"), "ok 1");
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), PUPPET_FDS_MAX);
        ck_assert_int_eq(ask_number("verify"), PUPPET_FDS_MAX);
        for (unsigned i = 0; i < PUPPET_FDS_MAX; i++)
                close_fd(fds[i]);
}
END_TEST

START_TEST(duplicates) {
        stage_start(NULL);
        _cleanup_close_ int fd = make_memfd("x");
        bool can_tell = syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, (long)fd, (long)fd) == 0;
        ck_assert_str_eq(ask_with(&fd, 1, "notify " STORE_UNPOLLED "x"), "ok 1");
        ck_assert_str_eq(ask_with(&fd, 1, "notify " STORE_UNPOLLED "x"), "ok 1");
        store(STORE_UNPOLLED "x", "x"); /* another file */
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), can_tell ? 2 : 3);
}
END_TEST

static void make_pair(int *pair) {
        ck_assert_int_eq(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
}

static void close_pair(int *pair) {
        pair[0] = close_fd(pair[0]);
        pair[1] = close_fd(pair[1]);
}

START_TEST(hung_up) {
        int ends[2], stays[2], unwatched[2];
        stage_start(NULL);
        unsigned before = stage_keeper_fds();
        make_pair(ends);
        make_pair(stays);
        make_pair(unwatched);
        ck_assert_str_eq(ask_with(&ends[0], 1, "notify FDSTORE=1\nFDNAME=watched"), "ok 1");
        ck_assert_str_eq(ask_with(&stays[0], 1, "notify FDSTORE=1\nFDNAME=watched"), "ok 1");
        ck_assert_str_eq(ask_with(&unwatched[0], 1, "notify " STORE_UNPOLLED "unwatched"), "ok 1");
        barrier();
        ck_assert_uint_eq(stage_keeper_fds(), before + 3);
        close_pair(ends);
        close_pair(unwatched);
        for (int ms = 0; ms < 5000 && stage_keeper_fds() > before + 2; ms++)
                (void)usleep(1000);
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 2);
        close_fd(ask_fd("watched"));
        ck_assert_int_ge(ask_fd("unwatched"), 0);
        close_pair(stays);
}
END_TEST

static unsigned long ticks_of(pid_t pid) {
        char path[64], line[512] = "";
        unsigned long user = 0, system = 0;
        (void)snprintf(path, sizeof(path), "/proc/%d/stat", pid);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ck_assert_int_gt(read(fd, line, sizeof(line) - 1), 0);
        ck_assert_int_eq(sscanf(strrchr(line, ')'), ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &system), 2);
        return user + system;
}

/* A file that was removed, and lives on elsewhere, is not watched any more. */
START_TEST(hung_up_after_removal) {
        int pair[2];
        stage_start(NULL);
        make_pair(pair);
        ck_assert_str_eq(ask_with(&pair[0], 1, "notify FDSTORE=1\nFDNAME=x"), "ok 1");
        notify("FDSTOREREMOVE=1\nFDNAME=x");
        barrier();
        unsigned long before = ticks_of(stage.keeper);
        pair[1] = close_fd(pair[1]);
        (void)usleep(500000);
        ck_assert_uint_lt(ticks_of(stage.keeper), before + 10);
        close_pair(pair);
}
END_TEST

START_TEST(said_before_death) {
        stage_start(NULL);
        store(STORE_UNPOLLED "early", "1");
        barrier();
        /* The keeper finds the messages and the death together, and looks at its signals first. */
        ck_assert_int_eq(kill(stage.keeper, SIGSTOP), 0);
        ck_assert_int_eq(kill(stage.keeper, SIGCHLD), 0);
        store(STORE_UNPOLLED "late", "2");
        notify("FDSTOREREMOVE=1\nFDNAME=early");
        stage_kill();
        (void)usleep(20000);
        ck_assert_int_eq(kill(stage.keeper, SIGCONT), 0);
        (void)stage_next();
        ck_assert_str_eq(ask("names"), "ok late");
        assert_contains(ask_fd("late"), "2");
}
END_TEST

START_TEST(strangers) {
        stage_start(NULL);
        unsigned before = stage_keeper_fds();
        const char *path = ask("env NOTIFY_SOCKET") + strlen("ok ");
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        ck_assert_int_eq(*path, '@');
        memcpy(address.sun_path + 1, path + 1, strlen(path) - 1);
        socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path));

        _cleanup_close_ int fd = make_memfd("x"), s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } cmsg = { .align = { .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) } };
        char text[] = STORE_UNPOLLED "mine";
        struct iovec iov = { .iov_base = text, .iov_len = strlen(text) };
        struct msghdr msg = { .msg_name = &address, .msg_namelen = len, .msg_iov = &iov, .msg_iovlen = 1,
                              .msg_control = &cmsg, .msg_controllen = sizeof(cmsg) };
        memcpy(CMSG_DATA(&cmsg.align), &fd, sizeof(fd));
        ck_assert_int_eq(sendmsg(s, &msg, 0), strlen(text));
        ck_assert_str_eq(ask_with(&fd, 1, "fork-notify " STORE_UNPOLLED "child"), "ok 1");
        barrier();
        ck_assert_uint_eq(stage_keeper_fds(), before);
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 0);
}
END_TEST

START_TEST(broken_messages) {
        static char text[6000];
        stage_start(NULL);
        unsigned before = stage_keeper_fds();
        _cleanup_close_ int fd = make_memfd("x");
        memset(text, 'x', sizeof(text) - 1);
        memcpy(text, "FDSTORE=1\n", 10);
        ck_assert_str_eq(ask_with(&fd, 1, "notify %s", text), "ok 1");
        notify("\n\n=\nFDNAME\nWATCHDOG_USEC=\nMAINPID=1\nERRNO=7");
        barrier();
        ck_assert_uint_eq(stage_keeper_fds(), before);
        assert_logged("too long");
}
END_TEST

/* Room for twice as many as are kept: the puppet has its own. */
static bool can_have(rlim_t wanted) {
        struct rlimit l;
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &l), 0);
        if (l.rlim_max < wanted)
                (void)printf("skipped: the limit of open files is %ju\n", (uintmax_t)l.rlim_max);
        return l.rlim_max >= wanted;
}

START_TEST(thousands) {
        if (!can_have(2 * MANY + 400))
                return;
        stage_start(NULL);
        unsigned before = stage_keeper_fds();
        long us = ask_number("many gms.allocation.%06d- %d", 0, MANY);
        ck_assert_int_gt(us, 0);
        ck_assert_uint_eq(stage_keeper_fds(), before + MANY);
        long back = kill_and_wait();
        ck_assert_int_eq(ask_number("verify"), MANY);
        (void)printf("%d descriptors: stored in %.1f ms, service back with them %.1f ms after SIGKILL\n", MANY, (double)us / 1e3,
                     (double)back / 1e3);

        long begin = now_us();
        for (int i = 0; i < MANY; i++)
                (void)ask("notify FDSTOREREMOVE=1\nFDNAME=gms.allocation.000000-%d", i);
        barrier();
        (void)printf("%d descriptors: removed in %.1f ms\n", MANY, (double)(now_us() - begin) / 1e3);
        ck_assert_uint_eq(stage_keeper_fds(), before);
}
END_TEST

START_TEST(limits) {
        char prefix[256];
        stage_start("--fd-max", "600", NULL);
        memset(prefix, 'x', 250);
        prefix[250] = 0;
        ck_assert_int_gt(ask_number("many %s 530", prefix), 0); /* 128 KiB hold 515 of them */
        assert_logged("cannot keep \"xxx");
        kill_and_wait();
        unsigned n = stage_names();
        ck_assert_uint_ge(n, 505);
        ck_assert_uint_lt(n, 530);
        ck_assert_int_eq(ask_number("verify"), n);
        ck_assert_int_gt(ask_number("many y 200"), 0);
        kill_and_wait();
        ck_assert_uint_le(stage_names(), 600);
}
END_TEST

START_TEST(fd_max) {
        stage_start("--fd-max", "3", NULL);
        ck_assert_int_gt(ask_number("many n 5"), 0);
        assert_logged("cannot keep \"n3\": 3 descriptors of at most 3 are kept");
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 3);
}
END_TEST

START_TEST(limit_of_open_files) {
        struct rlimit l = { .rlim_cur = 64, .rlim_max = 400 };
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &l), 0);
        stage_start(NULL);
        assert_logged("keeps at most 80 descriptors");
        ck_assert_str_eq(ask("env FDSTORE"), "ok 80");
        ck_assert_int_gt(ask_number("many n 100"), 0);
        kill_and_wait();
        ck_assert_uint_eq(stage_names(), 80);
        ck_assert_int_eq(ask_number("verify"), 80);
}
END_TEST

/* ---- the service's life */

START_TEST(environment) {
        (void)setenv("NOTIFY_SOCKET", "/nowhere", 1);
        (void)setenv("LISTEN_FDS", "7", 1);
        (void)setenv("LISTEN_PID", "1", 1);
        (void)setenv("WATCHDOG_USEC", "7", 1);
        (void)setenv("WATCHDOG_PID", "1", 1);
        stage_start("--watchdog", "20", NULL);
        ck_assert_int_eq(ask("env NOTIFY_SOCKET")[3], '@');
        ck_assert_str_eq(ask("env WATCHDOG_USEC"), "ok 20000000");
        ck_assert_int_eq(ask_number("env WATCHDOG_PID"), stage.puppet_pid);
        ck_assert_str_eq(ask("env FDSTORE"), "ok 8000");
        ck_assert_uint_eq(stage_names(), 0);
        store(STORE_UNPOLLED "x", "x");
        kill_and_wait();
        ck_assert_int_eq(ask_number("env WATCHDOG_PID"), stage.puppet_pid);
        ck_assert_int_eq(ask_number("env LISTEN_PID"), stage.puppet_pid);
        ck_assert_str_eq(ask("env LISTEN_FDNAMES"), "ok x");
}
END_TEST

START_TEST(watchdog) {
        stage_start("--watchdog", "1", NULL);
        notify("WATCHDOG=1");
        (void)usleep(1300000); /* not counted before it is ready */
        notify("READY=1\nSTATUS=well");
        assert_logged("puppet: well");
        for (int i = 0; i < 5; i++) {
                (void)usleep(400000);
                notify("WATCHDOG=1");
        }
        long us = stage_next();
        ck_assert_int_gt(us, 900000);
        ck_assert_int_lt(us, 1900000);
        assert_logged("status 134");
        notify("READY=1"); /* and never fed */
        us = stage_next();
        ck_assert_int_gt(us, 900000);
        ck_assert_int_lt(us, 1900000);
        notify("READY=1\nWATCHDOG_USEC=200000");
        us = stage_next();
        ck_assert_int_lt(us, 900000);
        ask("notify READY=1\nWATCHDOG=trigger"); /* it may not live to answer */
        ck_assert_int_lt(stage_next(), 900000);
}
END_TEST

START_TEST(watchdog_kills) {
        stage_start(NULL);
        ck_assert_str_eq(ask("ignore %d", SIGABRT), "ok");
        notify("READY=1\nWATCHDOG_USEC=100000");
        long us = stage_next();
        ck_assert_int_gt(us, 1500000);
        assert_logged("status 137");
}
END_TEST

START_TEST(stopping_ends_the_watchdog) {
        stage_start(NULL);
        notify("READY=1\nWATCHDOG_USEC=100000");
        notify("STOPPING=1");
        (void)usleep(400000);
        barrier();
}
END_TEST

START_TEST(back_off) {
        static const long least[] = { 0, 100, 200, 400, 800 };
        stage_start(NULL);
        for (size_t i = 0; i < ARRAY_SIZE(least); i++) {
                notify("READY=1");
                long us = kill_and_wait();
                (void)printf("death %zu: service back after %.1f ms\n", i + 1, (double)us / 1e3);
                ck_assert_int_ge(us, least[i] * 1000 - 2000);
                ck_assert_int_le(us, least[i] * 1000 + 500000);
        }
}
END_TEST

START_TEST(left_behind) {
        stage_start(NULL);
        pid_t pid = (pid_t)ask_number("linger");
        ck_assert_int_eq(kill(pid, 0), 0);
        kill_and_wait();
        for (int ms = 0; ms < 5000 && kill(pid, 0) == 0; ms++)
                (void)usleep(1000);
        ck_assert_int_eq(kill(pid, 0), -1);
}
END_TEST

/* ---- ends */

START_TEST(signals) {
        static const int all[] = { SIGHUP, SIGUSR1, SIGUSR2, SIGINT, SIGQUIT, SIGTERM };
        stage_start(NULL);
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                char text[16];
                (void)snprintf(text, sizeof(text), "signal %d", all[i]);
                ck_assert_int_eq(kill(stage.keeper, all[i]), 0);
                ck_assert_str_eq(hear(), text);
        }
        ask("exit 7");
        ck_assert_int_eq(stage_status(), 7);
}
END_TEST

/* It may take its time to end. */
START_TEST(ending_ends_the_watchdog) {
        stage_start(NULL);
        notify("READY=1\nWATCHDOG_USEC=200000");
        ck_assert_int_eq(kill(stage.keeper, SIGTERM), 0);
        ck_assert_str_eq(hear(), "signal 15");
        notify("WATCHDOG=1");
        (void)usleep(500000);
        ask("exit 0");
        ck_assert_int_eq(stage_status(), 0);
}
END_TEST

START_TEST(reload_is_no_end) {
        stage_start(NULL);
        ck_assert_int_eq(kill(stage.keeper, SIGHUP), 0);
        ck_assert_str_eq(hear(), "signal 1");
        notify("READY=1");
        kill_and_wait();
        barrier();
}
END_TEST

START_TEST(ends_with_the_service) {
        stage_start(NULL);
        store(STORE_UNPOLLED "x", "x");
        ask("exit 0");
        ck_assert_int_eq(stage_status(), 0);
}
END_TEST

START_TEST(ends_while_waiting) {
        stage_start(NULL);
        for (int i = 0; i < 4; i++) {
                notify("READY=1");
                kill_and_wait();
        }
        stage_kill();
        (void)usleep(50000);
        ck_assert_int_eq(kill(stage.keeper, SIGTERM), 0);
        ck_assert_int_eq(stage_status(), 128 + SIGKILL);
}
END_TEST

START_TEST(gives_up) {
        ck_assert_int_eq(stage_run("sh", "-c", "exit 3", NULL), 3);
        ck_assert_uint_eq(count(stage_log(), "ended with status 3"), 5);
        ck_assert_int_eq(stage_run("--", "/does/not/exist", NULL), 127);
        ck_assert_uint_eq(count(stage_log(), "cannot run /does/not/exist: No such file"), 5);
        ck_assert_int_eq(stage_run("sh", "-c", "exit 2", NULL), 2);
        ck_assert_uint_eq(count(stage_log(), "ended with status 2"), 1);
        ck_assert_int_eq(stage_run("true", NULL), 0);
}
END_TEST

START_TEST(does_not_give_up_what_it_keeps) {
        stage_start(NULL);
        store(STORE_UNPOLLED "x", "precious");
        for (int i = 0; i < 3; i++)
                kill_and_wait();
        for (int i = 0; i < 3; i++) {
                ask("exit 2");
                (void)stage_next();
        }
        assert_contains(ask_fd("x"), "precious");
}
END_TEST

START_TEST(usage) {
        ck_assert_int_eq(stage_run(NULL), 2);
        ck_assert_int_eq(stage_run("--nonsense", NULL), 2);
        ck_assert_int_eq(stage_run("--watchdog", "soon", "true", NULL), 2);
        ck_assert_int_eq(stage_run("--fd-max", "0", "true", NULL), 2);
        ck_assert_int_eq(stage_run("--", NULL), 2);
}
END_TEST

/* ---- as PID 1 */

static unsigned zombies_of(pid_t parent) {
        unsigned n = 0;
        DIR *d = opendir("/proc");
        for (struct dirent *e; (e = readdir(d));) {
                char path[300], line[400] = "", state = 0;
                int ppid = 0;
                (void)snprintf(path, sizeof(path), "/proc/%s/stat", e->d_name);
                _cleanup_close_ int fd = e->d_name[0] > '0' && e->d_name[0] <= '9' ? open(path, O_RDONLY | O_CLOEXEC) : -1;
                if (fd >= 0 && read(fd, line, sizeof(line) - 1) > 0 && strrchr(line, ')') &&
                    sscanf(strrchr(line, ')'), ") %c %d", &state, &ppid) == 2)
                        n += state == 'Z' && ppid == parent;
        }
        (void)closedir(d);
        return n;
}

START_TEST(init_of_a_container) {
        if (!stage_start_as_init()) {
                (void)printf("skipped: no PID namespace may be made (not root)\n");
                return;
        }
        ck_assert_int_eq(ask_number("env LISTEN_PID"), 0);
        store(STORE_UNPOLLED "x", "kept");
        ask("orphan");
        (void)usleep(200000);
        ck_assert_uint_eq(zombies_of(stage.keeper), 0);
        barrier();
        kill_and_wait();
        assert_contains(ask_fd("x"), "kept");
        ck_assert_int_eq(kill(stage.keeper, SIGTERM), 0);
        ck_assert_str_eq(hear(), "signal 15");
        ask("exit 0");
        ck_assert_int_eq(stage_status(), 0);
}
END_TEST

static void add(Suite *s, const char *name, const TTest *const *tests, size_t n) {
        TCase *c = tcase_create(name);
        tcase_add_checked_fixture(c, stage_open, stage_close);
        tcase_set_timeout(c, 60);
        for (size_t i = 0; i < n; i++)
                tcase_add_test(c, tests[i]);
        suite_add_tcase(s, c);
}

int main(void) {
        const TTest *const descriptors[] = { restored_by_name, same_memory, removed, names, many_in_a_message, duplicates, hung_up,
                                             hung_up_after_removal, said_before_death };
        const TTest *const messages[] = { strangers, broken_messages };
        const TTest *const size[] = { thousands, limits, fd_max, limit_of_open_files };
        const TTest *const life[] = { environment, watchdog, watchdog_kills, stopping_ends_the_watchdog, back_off, left_behind };
        const TTest *const end[] = { signals, ending_ends_the_watchdog, reload_is_no_end, ends_with_the_service, ends_while_waiting, gives_up,
                                     does_not_give_up_what_it_keeps, usage };
        const TTest *const init[] = { init_of_a_container };
        Suite *s = suite_create("keeper");
        add(s, "descriptors", descriptors, ARRAY_SIZE(descriptors));
        add(s, "messages", messages, ARRAY_SIZE(messages));
        add(s, "size", size, ARRAY_SIZE(size));
        add(s, "life", life, ARRAY_SIZE(life));
        add(s, "end", end, ARRAY_SIZE(end));
        add(s, "init", init, ARRAY_SIZE(init));
        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_NORMAL);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed != 0;
}
