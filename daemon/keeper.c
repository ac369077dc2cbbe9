// SPDX-License-Identifier: MIT
/*
 * gms-keeper: starts one service, keeps its descriptors, and starts it again with them when it dies. See --help.
 *
 * It speaks systemd's contract (sd_notify and LISTEN_FDS) as far as a service can see it. The service is a session of its
 * own, so that what it leaves behind ends with it. If the keeper dies, the service is left running with all that it holds.
 *
 * Names of descriptors are 1 to 255 characters without ":"; several may have one name. The kernel limits the
 * string LISTEN_FDNAMES to 128 KiB: 4,000 names of 31 characters, 8,000 of 15. What is over that is not kept, and a line
 * says so. An open file that is kept already under that name is not kept twice where kcmp() may tell (a container may
 * not) and while the name has few; systemd searches all that it keeps. Closing the last descriptor of device memory
 * takes the driver's time, 50 ms for a GPU; it is taken here, and delays the service only if it asks for a barrier.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <linux/kcmp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>

#include "log.h"

#define BACKOFF_FIRST_MS 100u
#define BACKOFF_MAX_MS 5000u
#define SETTLED_MS 10000u    /* a service that ran so long is started again at once */
#define ABORT_GRACE_MS 2000u /* from SIGABRT to SIGKILL */
#define UNREADY_MAX 5u       /* deaths in a row before READY=1 */
#define STATUS_USAGE 2
#define FD_MAX 8000u         /* with names of 15 characters they fit LISTEN_FDNAMES */
#define FDS_SPARE 320u       /* the keeper's own, and one message's */
#define MESSAGE_MAX 4096u    /* bytes, as systemd has it */
#define MESSAGE_FDS 253u     /* the kernel's SCM_MAX_FD */
#define NAMES_MAX (131072u - sizeof("LISTEN_FDNAMES="))
#define COMPARED_MAX 16u     /* descriptors, to see whether one is kept already */
#define AT_ONCE_MAX 65536u   /* messages: more than a queue has, so that a stranger's flood holds nothing up */
#define HEADS 65536u
#define NEVER UINT64_MAX

static const char help[] =
        "gms-keeper [OPTION]... [--] COMMAND [ARG]...\n"
        "\n"
        "Runs COMMAND, keeps the descriptors that it stores (sd_notify), and runs it again\n"
        "with them when it dies. For containers: it works as PID 1.\n"
        "\n"
        "  --watchdog SECONDS  end a command that has not fed its watchdog for so long\n"
        "  --fd-max N          keep at most N descriptors. Default: 8000\n"
        "  --version, --help\n"
        "\n"
        "TERM, INT and QUIT are passed on and end both; HUP, USR1 and USR2 are passed on.\n"
        "Ends with COMMAND when that ends with 0 and, while nothing is kept, when it ends\n"
        "with 2 (usage) or dies five times in a row before it is ready.\n";

struct kept {
        char *name; /* NULL: nothing of this number is kept */
        int next;   /* number, with the same hash; 0: none */
        bool polled;
};

static struct service {
        char **argv;
        int epoll, signals, socket;
        char address[16]; /* of the socket, for NOTIFY_SOCKET */
        struct kept *kept; /* by number */
        int room;
        int heads[HEADS];  /* by the name's hash; 0: none, since standard descriptors are never kept */
        size_t n_kept, kept_max, name_bytes; /* each with its ":" */
        pid_t pid; /* 0: not running */
        bool ready, ending, ended;
        uint64_t watchdog_ms, interval_ms; /* as asked for, of this process; 0: none */
        uint64_t started, start_at, watchdog_at, kill_at;
        unsigned quick, unready; /* deaths in a row, each soon after the start; before READY=1 */
        int code;                /* of the last death */
} service;

static uint64_t now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- descriptors by name */

static int *head_of(struct service *s, const char *name) {
        uint32_t h = 2166136261u; /* FNV-1a */
        for (; *name; name++)
                h = (h ^ (unsigned char)*name) * 16777619u;
        return &s->heads[h % HEADS];
}

static void keep_consume(struct service *s, const char *name, int fd, bool polled) {
        _cleanup_close_ int own = fd;
        int *head = head_of(s, name);
        unsigned compared = 0;
        for (long i = *head; i != 0 && compared++ < COMPARED_MAX; i = s->kept[i].next)
                if (syscall(SYS_kcmp, getpid(), getpid(), KCMP_FILE, i, (long)own) == 0)
                        return;
        _cleanup_free_ char *copy = strdup(name);
        if (!copy || own >= s->room || s->n_kept >= s->kept_max || s->name_bytes + strlen(name) + 1 > NAMES_MAX) {
                log_error("gms-keeper: cannot keep \"%s\": %zu descriptors of at most %zu are kept, with %zu bytes of names "
                          "of at most %zu", name, s->n_kept, s->kept_max, s->name_bytes, (size_t)NAMES_MAX);
                return;
        }
        /* Hang-ups and errors are told without being asked for. Files that cannot be polled have none. */
        struct epoll_event none = { .data.fd = own };
        polled = polled && epoll_ctl(s->epoll, EPOLL_CTL_ADD, own, &none) == 0;
        s->kept[own] = (struct kept){ .name = steal_ptr(&copy), .next = *head, .polled = polled };
        s->n_kept++;
        s->name_bytes += strlen(name) + 1;
        *head = steal_fd(&own);
}

/* All of that name, or (not 0) only the one of that number. */
static void drop(struct service *s, const char *name, int number) {
        for (int *link = head_of(s, name), fd; (fd = *link) != 0;) {
                struct kept *e = &s->kept[fd];
                if (number != 0 ? fd != number : strcmp(e->name, name) != 0) {
                        link = &e->next;
                        continue;
                }
                *link = e->next;
                if (e->polled) /* the service has the same open file: closing ours would not end the watch */
                        (void)epoll_ctl(s->epoll, EPOLL_CTL_DEL, fd, NULL);
                s->n_kept--;
                s->name_bytes -= strlen(e->name) + 1;
                free(e->name);
                *e = (struct kept){};
                close_fd(fd);
        }
}

static void on_hangup(struct service *s, int fd) {
        struct pollfd p = { .fd = fd }; /* looked at again: the number may be another descriptor's by now */
        if (!s->kept[fd].polled || poll(&p, 1, 0) != 1)
                return;
        log_info("gms-keeper: the other end of \"%s\" is gone: not kept any more", s->kept[fd].name);
        drop(s, s->kept[fd].name, fd);
}

static void set_number(const char *name, uint64_t value) {
        char text[24];
        (void)snprintf(text, sizeof(text), "%" PRIu64, value);
        (void)setenv(name, text, 1);
}

/* In the child. Whatever else of these variables is inherited names another process and does not count. */
static int hand_over(struct service *s) {
        _cleanup_free_ char *names = malloc(s->name_bytes + 1);
        char *end = names;
        int to = STDERR_FILENO + 1;
        if (!names || setenv("NOTIFY_SOCKET", s->address, 1) < 0)
                return -ENOMEM;
        set_number("FDSTORE", s->kept_max);
        if (s->watchdog_ms > 0) {
                set_number("WATCHDOG_USEC", s->watchdog_ms * 1000);
                set_number("WATCHDOG_PID", (uint64_t)getpid());
        }
        if (s->n_kept == 0)
                return 0;
        /* By rising number: the place of each is below its own (the keeper's sockets are lower), and was copied already. */
        for (int fd = to; fd < s->room; fd++) {
                if (!s->kept[fd].name)
                        continue;
                if (dup2(fd, to) < 0)
                        return -errno;
                to++;
                end = stpcpy(stpcpy(end, end > names ? ":" : ""), s->kept[fd].name);
        }
        set_number("LISTEN_FDS", s->n_kept);
        set_number("LISTEN_PID", (uint64_t)getpid());
        return setenv("LISTEN_FDNAMES", names, 1) < 0 ? -errno : 0;
}

/* ---- starting */

static _Noreturn void become_service(struct service *s) {
        sigset_t none;
        (void)setsid();
        (void)signal(SIGPIPE, SIG_DFL);
        (void)sigemptyset(&none);
        int r = hand_over(s);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        if (r == 0 && execvp(s->argv[0], s->argv) < 0)
                r = -errno;
        log_error("gms-keeper: cannot run %s: %s", s->argv[0], strerror(-r));
        _exit(127); /* as shells do */
}

static void service_start(struct service *s) {
        s->start_at = s->watchdog_at = s->kill_at = NEVER;
        s->started = now_ms();
        s->ready = false;
        s->interval_ms = s->watchdog_ms;
        s->pid = fork();
        if (s->pid == 0)
                become_service(s);
        if (s->pid < 0) {
                log_error("gms-keeper: cannot start %s: %s", s->argv[0], strerror(errno));
                s->pid = 0;
                s->start_at = s->started + BACKOFF_MAX_MS;
        }
}

/* ---- messages */

struct message {
        bool store, remove, unpolled, ready, feeds, hangs;
        const char *name;
};

static void parse_line(struct service *s, const char *line, struct message *m) {
        m->store |= strcmp(line, "FDSTORE=1") == 0;
        m->remove |= strcmp(line, "FDSTOREREMOVE=1") == 0;
        m->unpolled |= strcmp(line, "FDPOLL=0") == 0;
        m->ready |= strcmp(line, "READY=1") == 0;
        m->feeds |= strcmp(line, "WATCHDOG=1") == 0;
        m->hangs |= strcmp(line, "WATCHDOG=trigger") == 0;
        if (strncmp(line, "FDNAME=", 7) == 0)
                m->name = line + 7;
        if (strncmp(line, "STATUS=", 7) == 0)
                log_info("gms-keeper: %s: %s", s->argv[0], line + 7);
        bool stops = strcmp(line, "STOPPING=1") == 0;
        if (stops || strncmp(line, "WATCHDOG_USEC=", 14) == 0) {
                s->interval_ms = stops ? 0 : strtoull(line + 14, NULL, 10) / 1000;
                m->feeds = true;
        }
        /* BARRIER=1 asks to close what came with it, as everything is that is not kept; MAINPID and others: not for us */
}

static void obey(struct service *s, char *text, int *fds, size_t n_fds) {
        struct message m = {};
        char *rest;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
                parse_line(s, line, &m);
        bool named = m.name && *m.name && strlen(m.name) <= 255 && !strchr(m.name, ':');
        if (m.remove && named)
                drop(s, m.name, 0);
        for (size_t i = 0; m.store && !m.remove && i < n_fds; i++)
                keep_consume(s, named ? m.name : "stored", steal_fd(&fds[i]), !m.unpolled);
        if (m.ready && !s->ready) {
                s->ready = m.feeds = true;
                log_notice("gms-keeper: %s (pid %d) is ready after %" PRIu64 " ms; %zu descriptors are kept", s->argv[0],
                           s->pid, now_ms() - s->started, s->n_kept);
        }
        if (s->ready && !s->ending && s->kill_at == NEVER && (m.feeds || m.hangs))
                s->watchdog_at = m.hangs ? now_ms() : s->interval_ms > 0 ? now_ms() + s->interval_ms : NEVER;
}

/* Without room for descriptors: a stranger's are never received, since closing one of a file system in user space may
 * take for ever. False when no message is waiting; pid 0 for a sender of another PID namespace. */
static bool peek_sender(struct service *s, pid_t *ret_pid) {
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct ucred))];
        struct msghdr msg = { .msg_control = control, .msg_controllen = sizeof(control) };
        struct ucred sender = {};
        if (recvmsg(s->socket, &msg, MSG_PEEK | MSG_DONTWAIT) < 0)
                return false;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_CREDENTIALS)
                memcpy(&sender, CMSG_DATA(c), sizeof(sender));
        *ret_pid = sender.pid;
        return true;
}

static void receive_one(struct service *s) {
        _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(struct ucred)) + CMSG_SPACE(MESSAGE_FDS * sizeof(int))];
        char text[MESSAGE_MAX + 1];
        int fds[MESSAGE_FDS];
        size_t n = 0;
        struct iovec iov = { .iov_base = text, .iov_len = MESSAGE_MAX };
        struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof(control) };
        ssize_t len = recvmsg(s->socket, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (len < 0)
                return;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
                if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) /* the kernel makes one of all */
                        memcpy(fds, CMSG_DATA(c), n = c->cmsg_len - CMSG_LEN(0));
        n /= sizeof(int);
        text[len] = 0;
        if (msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC))
                log_error("gms-keeper: a message is ignored: %s", msg.msg_flags & MSG_TRUNC ? "it is too long"
                          : "no more descriptors may be open here");
        else
                obey(s, text, fds, n);
        for (size_t i = 0; i < n; i++)
                close_fd(fds[i]);
}

/* Only the service's own count, as with NotifyAccess=main. */
static void receive(struct service *s) {
        pid_t sender;
        for (unsigned i = 0; i < AT_ONCE_MAX && peek_sender(s, &sender); i++) {
                if (s->pid > 0 && sender == s->pid)
                        receive_one(s);
                else
                        (void)recv(s->socket, NULL, 0, MSG_DONTWAIT);
        }
}

/* ---- ending */

static void service_died(struct service *s) {
        int status = 0;
        receive(s);                   /* what it said before it died counts */
        (void)kill(-s->pid, SIGKILL); /* what it leaves behind; the number is its session's until it is reaped */
        (void)waitpid(s->pid, &status, 0);
        uint64_t ran = now_ms() - s->started;
        s->code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        log_notice("gms-keeper: %s (pid %d) ended with status %d%s after %" PRIu64 " ms; %zu descriptors are kept", s->argv[0],
                   s->pid, s->code, WIFSIGNALED(status) ? " (128 and a signal)" : "", ran, s->n_kept);
        s->pid = 0;
        s->watchdog_at = s->kill_at = NEVER;
        s->quick = ran >= SETTLED_MS ? 0 : s->quick;
        s->unready = s->ready ? 0 : s->unready + 1;
        const char *why = s->ending || s->code == 0 ? "it has ended"
                          : s->n_kept > 0 ? NULL /* what is kept is not given up */
                          : s->code == STATUS_USAGE ? "it was not understood"
                          : s->unready >= UNREADY_MAX ? "it dies before it is ready, again and again" : NULL;
        s->ended = why != NULL;
        if (why)
                log_notice("gms-keeper: ending with that status: %s", why);
        else
                s->start_at = now_ms() + MIN(s->quick ? BACKOFF_FIRST_MS << MIN(s->quick - 1, 10u) : 0, BACKOFF_MAX_MS);
        s->quick++;
}

/* The service's death, and as PID 1 everybody's. */
static void reap(struct service *s) {
        siginfo_t info = {};
        while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0) {
                if (info.si_pid == s->pid)
                        service_died(s);
                else
                        (void)waitpid(info.si_pid, NULL, 0);
                info.si_pid = 0;
        }
}

/* ---- the loop */

static void on_signal(struct service *s) {
        struct signalfd_siginfo info;
        if (read(s->signals, &info, sizeof(info)) != sizeof(info))
                return;
        int sig = (int)info.ssi_signo;
        s->ending |= sig == SIGTERM || sig == SIGINT || sig == SIGQUIT;
        if (s->ending)
                s->watchdog_at = NEVER;
        if (sig == SIGCHLD)
                reap(s);
        else if (s->pid > 0)
                (void)kill(s->pid, sig);
        else
                s->ended = s->ending;
}

static void end_hanging(struct service *s, int sig, uint64_t next) {
        log_error("gms-keeper: %s (pid %d) has not fed its watchdog: %s", s->argv[0], s->pid, strsignal(sig));
        (void)kill(s->pid, sig);
        s->watchdog_at = NEVER;
        s->kill_at = next;
}

static void on_time(struct service *s) {
        uint64_t now = now_ms();
        if (s->start_at <= now)
                service_start(s);
        if (s->watchdog_at <= now)
                end_hanging(s, SIGABRT, now + ABORT_GRACE_MS);
        if (s->kill_at <= now)
                end_hanging(s, SIGKILL, NEVER);
}

static int service_run(struct service *s) {
        service_start(s);
        while (!s->ended) {
                struct epoll_event events[64];
                uint64_t next = MIN(s->start_at, MIN(s->watchdog_at, s->kill_at)), now = now_ms();
                int left = next == NEVER ? -1 : next > now ? (int)MIN(next - now, (uint64_t)INT32_MAX) : 0;
                int n = epoll_wait(s->epoll, events, ARRAY_SIZE(events), left);
                for (int i = 0; i < n && !s->ended; i++) {
                        if (events[i].data.fd == s->socket)
                                receive(s);
                        else if (events[i].data.fd == s->signals)
                                on_signal(s);
                        else
                                on_hangup(s, events[i].data.fd);
                }
                if (!s->ended)
                        on_time(s);
        }
        return s->code;
}

/* ---- beginning */

static bool watch(struct service *s, int fd) {
        struct epoll_event readable = { .events = EPOLLIN, .data.fd = fd };
        return epoll_ctl(s->epoll, EPOLL_CTL_ADD, fd, &readable) == 0;
}

/* The kernel picks a free abstract name: there is no file to clean up, and no directory to be writable. */
static bool open_socket(struct service *s) {
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        socklen_t len = sizeof(address);
        s->socket = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (setsockopt(s->socket, SOL_SOCKET, SO_PASSCRED, &(int){ 1 }, sizeof(int)) < 0 ||
            bind(s->socket, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 ||
            getsockname(s->socket, (struct sockaddr *)&address, &len) < 0)
                return false;
        (void)snprintf(s->address, sizeof(s->address), "@%.*s", (int)(len - sizeof(sa_family_t) - 1), address.sun_path + 1);
        return watch(s, s->socket);
}

static bool open_signals(struct service *s) {
        static const int signals[] = { SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 };
        sigset_t set;
        (void)sigemptyset(&set);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                (void)sigaddset(&set, signals[i]);
                (void)signal(signals[i], SIG_DFL); /* SIGCHLD inherited as ignored would hide deaths */
        }
        (void)signal(SIGPIPE, SIG_IGN); /* lines to a log that is gone */
        (void)sigprocmask(SIG_SETMASK, &set, NULL);
        s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        return watch(s, s->signals);
}

/* The lowest free number is used: none that is kept is beyond the table. */
static bool make_table(struct service *s) {
        struct rlimit l;
        (void)getrlimit(RLIMIT_NOFILE, &l);
        s->room = (int)MIN(l.rlim_max, s->kept_max + FDS_SPARE);
        l.rlim_cur = MAX(l.rlim_cur, (rlim_t)s->room);
        size_t most = (size_t)MAX(s->room - (int)FDS_SPARE, 0);
        if (most < s->kept_max)
                log_notice("gms-keeper: keeps at most %zu descriptors, by the limit of open files", most);
        s->kept_max = MIN(most, s->kept_max);
        s->kept = calloc((size_t)s->room, sizeof(*s->kept));
        return s->kept && setrlimit(RLIMIT_NOFILE, &l) == 0;
}

static bool service_init(struct service *s) {
        int fd;
        while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
                ; /* standard descriptors exist, so that none that is kept can be one */
        close_fd(fd);
        (void)close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
        s->epoll = epoll_create1(EPOLL_CLOEXEC);
        return make_table(s) && open_socket(s) && open_signals(s);
}

static uint64_t parse_number(const char *text, uint64_t most) {
        char *end;
        unsigned long long v = strtoull(text, &end, 10);
        if (*text >= '0' && *text <= '9' && *end == 0 && v > 0 && v <= most)
                return v;
        log_error("gms-keeper: \"%s\": not a number from 1 to %" PRIu64, text, most);
        exit(STATUS_USAGE);
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "watchdog", required_argument, NULL, 'w' }, { "fd-max", required_argument, NULL, 'n' },
                { "version", no_argument, NULL, 'v' },        { "help", no_argument, NULL, 'h' },
                {},
        };
        struct service *s = &service;
        s->kept_max = FD_MAX;
        int o;
        while ((o = getopt_long(argc, argv, "+", options, NULL)) >= 0) {
                if (o == 'w')
                        s->watchdog_ms = parse_number(optarg, 86400) * 1000;
                else if (o == 'n')
                        s->kept_max = parse_number(optarg, 1u << 20);
                else if (o == 'v')
                        return printf("gms-keeper %s\n", GMS_VERSION) < 0;
                else
                        return o == 'h' ? fputs(help, stdout) < 0 : STATUS_USAGE;
        }
        s->argv = argv + optind;
        if (optind == argc) {
                log_error("gms-keeper: no command; see gms-keeper --help");
                return STATUS_USAGE;
        }
        if (!service_init(s)) {
                log_error("gms-keeper: %s", strerror(errno));
                return 1;
        }
        return service_run(s);
}
