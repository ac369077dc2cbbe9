// SPDX-License-Identifier: MIT
#undef NDEBUG
#include "stage.h"

#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_MS 10000
#define ARGS_MAX 12

struct stage stage;
static char packet[PUPPET_PACKET_MAX];
static int packet_fd = -1;

long now_us(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Programs lie beside this one: build/tests/keeper/test_keeper. */
static const char *program(const char *name) {
        static char path[2][4096];
        static unsigned turn;
        char *p = path[turn++ % 2];
        ssize_t n = readlink("/proc/self/exe", p, 3900);
        ck_assert(n > 0);
        p[n] = 0;
        strcpy(strrchr(p, '/') + 1, name);
        return p;
}

void stage_open(void) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        stage = (struct stage){ .listening = -1, .puppet = -1 };
        strcpy(stage.dir, "/tmp/keeper.XXXXXX");
        ck_assert(mkdtemp(stage.dir) != NULL);
        (void)snprintf(stage.socket, sizeof(stage.socket), "%s/puppet.sock", stage.dir);
        (void)snprintf(stage.log, sizeof(stage.log), "%s/log", stage.dir);
        (void)setrlimit(RLIMIT_CORE, &(struct rlimit){}); /* puppets are aborted on purpose */
        stage.listening = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", stage.socket);
        ck_assert_int_eq(bind(stage.listening, (struct sockaddr *)&address, sizeof(address)), 0);
        ck_assert_int_eq(listen(stage.listening, 16), 0);
}

void stage_close(void) {
        if (stage.keeper > 0) {
                (void)kill(stage.keeper, SIGKILL);
                (void)waitpid(stage.keeper, NULL, 0);
        }
        close_fd(stage.puppet);
        close_fd(stage.listening);
        close_fd(packet_fd);
        (void)unlink(stage.socket);
        (void)unlink(stage.log);
        (void)rmdir(stage.dir);
}

static _Noreturn void become_keeper(char **argv) {
        int log = open(stage.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)dup2(log, STDERR_FILENO);
        (void)execv(program("../../gms-keeper"), argv);
        _exit(99);
}

/* Everything of `args`, then "-- puppet PATH" when `puppet`. */
static void start(const char *first, va_list args, bool puppet, unsigned long flags) {
        char *argv[ARGS_MAX + 4] = { "gms-keeper" };
        unsigned n = 1;
        for (const char *a = first; a; a = va_arg(args, const char *)) {
                ck_assert_uint_lt(n, ARGS_MAX);
                argv[n++] = (char *)a;
        }
        if (puppet) {
                argv[n++] = "--";
                argv[n++] = (char *)program("puppet");
                argv[n++] = stage.socket;
        }
        (void)fflush(NULL);
        stage.keeper = (pid_t)syscall(SYS_clone, flags | SIGCHLD, NULL, NULL, NULL, 0);
        if (stage.keeper == 0)
                become_keeper(argv);
}

void stage_start(const char *option, ...) {
        va_list args;
        va_start(args, option);
        start(option, args, true, 0);
        va_end(args);
        ck_assert_int_gt(stage.keeper, 0);
        (void)stage_next();
}

static void start_in(unsigned long flags, const char *option, ...) {
        va_list args;
        va_start(args, option);
        start(option, args, true, flags);
        va_end(args);
}

bool stage_start_as_init(void) {
        start_in(CLONE_NEWPID, NULL);
        if (stage.keeper < 0)
                return false;
        (void)stage_next();
        return true;
}

int stage_run(const char *arg, ...) {
        va_list args;
        va_start(args, arg);
        start(arg, args, false, 0);
        va_end(args);
        return stage_status();
}

int stage_status(void) {
        int status;
        for (int ms = 0; ms < PATIENCE_MS; ms++) {
                if (waitpid(stage.keeper, &status, WNOHANG) == stage.keeper) {
                        stage.keeper = 0;
                        ck_assert_msg(WIFEXITED(status), "the keeper was killed: %d", status);
                        return WEXITSTATUS(status);
                }
                (void)usleep(1000);
        }
        ck_abort_msg("the keeper does not end");
}

const char *stage_log(void) {
        static char text[64 * 1024];
        int fd = open(stage.log, O_RDONLY | O_CLOEXEC);
        ssize_t n = read(fd, text, sizeof(text) - 1);
        close_fd(fd);
        text[n > 0 ? n : 0] = 0;
        return text;
}

static void await_readable(int fd, const char *what) {
        struct pollfd p = { .fd = fd, .events = POLLIN };
        ck_assert_msg(poll(&p, 1, PATIENCE_MS) == 1, "%s; log:\n%s", what, stage_log());
}

long stage_next(void) {
        long begin = now_us();
        struct ucred peer;
        socklen_t len = sizeof(peer);
        await_readable(stage.listening, "no new puppet");
        close_fd(stage.puppet);
        stage.puppet = accept4(stage.listening, NULL, NULL, SOCK_CLOEXEC);
        ck_assert_int_ge(stage.puppet, 0);
        ck_assert_int_eq(getsockopt(stage.puppet, SOL_SOCKET, SO_PEERCRED, &peer, &len), 0);
        stage.puppet_pid = peer.pid;
        return now_us() - begin;
}

void stage_kill(void) {
        ck_assert_int_eq(kill(stage.puppet_pid, SIGKILL), 0);
}

static void _printf_(3, 0) say(const int *fds, unsigned n, const char *format, va_list args) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(PUPPET_FDS_MAX * sizeof(int))];
        } cmsg;
        struct iovec iov = { .iov_base = packet, .iov_len = (size_t)vsnprintf(packet, sizeof(packet), format, args) };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
        if (n > 0) {
                msg.msg_control = &cmsg;
                msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
                cmsg.align = (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS,
                                               .cmsg_len = CMSG_LEN(n * sizeof(int)) };
                memcpy(CMSG_DATA(&cmsg.align), fds, n * sizeof(int));
        }
        ck_assert_int_gt(sendmsg(stage.puppet, &msg, MSG_NOSIGNAL), 0);
}

const char *hear(void) {
        union {
                struct cmsghdr align;
                char bytes[CMSG_SPACE(sizeof(int))];
        } cmsg;
        struct iovec iov = { .iov_base = packet, .iov_len = sizeof(packet) - 1 };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &cmsg, .msg_controllen = sizeof(cmsg) };
        await_readable(stage.puppet, "the puppet is silent");
        ssize_t len = recvmsg(stage.puppet, &msg, MSG_CMSG_CLOEXEC);
        packet[len > 0 ? len : 0] = 0;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        packet_fd = close_fd(packet_fd);
        if (len > 0 && c)
                memcpy(&packet_fd, CMSG_DATA(c), sizeof(packet_fd));
        return packet;
}

const char *ask_with(const int *fds, unsigned n, const char *format, ...) {
        va_list args;
        va_start(args, format);
        say(fds, n, format, args);
        va_end(args);
        return hear();
}

long ask_number(const char *format, ...) {
        va_list args;
        va_start(args, format);
        say(NULL, 0, format, args);
        va_end(args);
        const char *answer = hear();
        ck_assert_msg(strncmp(answer, "ok ", 3) == 0, "%s", answer);
        return atol(answer + 3);
}

int ask_fd(const char *name) {
        (void)ask("fd %s", name);
        return steal_fd(&packet_fd);
}

unsigned stage_names(void) {
        const char *p = ask("names") + strlen("ok ");
        unsigned n = *p != 0;
        for (; *p; p++)
                n += *p == ':';
        return n;
}

unsigned stage_keeper_fds(void) {
        char path[64];
        unsigned n = 0;
        (void)snprintf(path, sizeof(path), "/proc/%d/fd", stage.keeper);
        DIR *d = opendir(path);
        ck_assert(d != NULL);
        for (struct dirent *e; (e = readdir(d));)
                n += e->d_name[0] != '.';
        (void)closedir(d);
        return n;
}
