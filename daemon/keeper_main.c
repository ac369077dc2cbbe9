// SPDX-License-Identifier: MIT
/*
 * gms-keeper: starts one service, keeps its descriptors, and starts it again with them when it dies. See --help.
 *
 * The loop: messages and deaths, signals to pass on, and three deadlines (start again, watchdog, kill). The service is a
 * session of its own, so that what it leaves behind can be ended with it, as systemd ends a control group.
 *
 * The keeper is what must not die. If it does, the service is left running, and with it all that it holds.
 */
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/wait.h>
#include <time.h>

#include "keeper.h"
#include "log.h"

#define BACKOFF_FIRST_MS 100u
#define BACKOFF_MAX_MS 5000u
#define SETTLED_MS 10000u   /* having run that long, a death is no failure to start */
#define ABORT_GRACE_MS 2000u /* from SIGABRT to SIGKILL */
#define UNREADY_MAX 5u      /* deaths in a row before READY=1 */
#define STATUS_USAGE 2
#define STATUS_EXEC 127
#define FD_MAX 65536u
#define FDS_SPARE 320u      /* the keeper's own, and one message's */
#define AT_ONCE_MAX 65536u  /* messages: more than any queue has, so that a flood of a stranger holds nothing up */
#define NEVER UINT64_MAX

static const char help[] =
        "gms-keeper [OPTION]... [--] COMMAND [ARG]...\n"
        "\n"
        "Runs COMMAND, keeps the descriptors that it stores (sd_notify), and runs it again\n"
        "with them when it dies. For containers: it works as PID 1.\n"
        "\n"
        "  --watchdog SECONDS  end a command that has not fed its watchdog for so long\n"
        "  --fd-max N          keep at most N descriptors. Default: 65536\n"
        "  --version, --help\n"
        "\n"
        "TERM, INT and QUIT are passed on and end both; HUP, USR1 and USR2 are passed on.\n"
        "Ends with COMMAND's status when that ends with 0, and, while nothing is kept, when\n"
        "it ends with 2 (usage) or dies five times in a row before it is ready.\n";

struct service {
        struct keeper keeper;
        char **argv;
        int signals; /* signalfd */
        uint64_t watchdog_ms;

        pid_t pid; /* 0: not running */
        bool ready;
        uint64_t interval_ms; /* of this process's watchdog; 0: none */
        uint64_t started, start_at, watchdog_at, kill_at;
        char last_status[256];

        unsigned quick;   /* deaths in a row, each soon after the start */
        unsigned unready; /* deaths in a row before READY=1 */
        bool ending, ended;
        int code; /* of the last death */
};

static uint64_t now_ms(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_MONOTONIC, &t);
        return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* ---- starting */

static void set_number(const char *name, uint64_t value) {
        char text[24];
        (void)snprintf(text, sizeof(text), "%" PRIu64, value);
        (void)setenv(name, text, 1);
}

/* The variables of whoever started the keeper are not the service's. */
static int set_environment(struct service *s) {
        static const char *const theirs[] = { "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID" };
        for (size_t i = 0; i < ARRAY_SIZE(theirs); i++)
                (void)unsetenv(theirs[i]);
        if (setenv("NOTIFY_SOCKET", s->keeper.address, 1) < 0)
                return -errno;
        if (s->watchdog_ms > 0) {
                set_number("WATCHDOG_USEC", s->watchdog_ms * 1000);
                set_number("WATCHDOG_PID", (uint64_t)getpid());
        }
        if (s->keeper.n == 0)
                return 0;
        _cleanup_free_ char *names = NULL;
        int r = keeper_hand_over(&s->keeper, &names);
        if (r < 0)
                return r;
        set_number("LISTEN_FDS", s->keeper.n);
        set_number("LISTEN_PID", (uint64_t)getpid());
        return setenv("LISTEN_FDNAMES", names, 1) < 0 ? -errno : 0;
}

static _Noreturn void become_service(struct service *s) {
        sigset_t none;
        (void)setsid();
        int r = set_environment(s);
        (void)signal(SIGPIPE, SIG_DFL);
        (void)sigemptyset(&none);
        (void)sigprocmask(SIG_SETMASK, &none, NULL);
        if (r == 0) {
                (void)execvp(s->argv[0], s->argv);
                r = -errno;
        }
        log_error("gms-keeper: cannot run %s: %s", s->argv[0], strerror(-r));
        _exit(STATUS_EXEC);
}

static void service_schedule(struct service *s) {
        uint64_t wait = s->quick == 0 ? 0 : BACKOFF_FIRST_MS << MIN(s->quick - 1, 10u);
        s->start_at = now_ms() + MIN(wait, (uint64_t)BACKOFF_MAX_MS);
        s->quick++;
}

static void service_start(struct service *s) {
        s->start_at = s->watchdog_at = s->kill_at = NEVER;
        s->started = now_ms();
        s->ready = false;
        s->interval_ms = s->watchdog_ms;
        s->last_status[0] = 0;
        s->keeper.stranger_seen = false;
        s->pid = fork();
        if (s->pid == 0)
                become_service(s);
        if (s->pid < 0) {
                log_error("gms-keeper: cannot start %s: %s", s->argv[0], strerror(errno));
                s->pid = 0;
                service_schedule(s);
        }
}

/* ---- messages */

static void service_says(struct service *s, const struct keeper_message *m) {
        if (m->says & KEEPER_STATUS && strcmp(m->status, s->last_status) != 0) {
                log_info("gms-keeper: %s: %s", s->argv[0], m->status);
                (void)snprintf(s->last_status, sizeof(s->last_status), "%s", m->status);
        }
        if (m->says & KEEPER_INTERVAL)
                s->interval_ms = m->watchdog_us / 1000;
        if (m->says & KEEPER_READY && !s->ready) {
                s->ready = true;
                log_notice("gms-keeper: %s (pid %d) is ready after %" PRIu64 " ms; %zu descriptors are kept", s->argv[0],
                           s->pid, now_ms() - s->started, s->keeper.n);
        }
        if (m->says & KEEPER_STOPPING)
                s->interval_ms = 0;
        if (m->says & KEEPER_HANGS && s->kill_at == NEVER)
                s->watchdog_at = now_ms();
        else if (s->ready && s->kill_at == NEVER && m->says & (KEEPER_READY | KEEPER_FED | KEEPER_INTERVAL | KEEPER_STOPPING))
                s->watchdog_at = s->interval_ms > 0 ? now_ms() + s->interval_ms : NEVER;
}

static void service_receive(struct service *s) {
        struct keeper_message m;
        for (unsigned i = 0; i < AT_ONCE_MAX && keeper_receive(&s->keeper, s->pid, &m) == 0; i++)
                service_says(s, &m);
}

/* ---- deaths */

static void service_end(struct service *s, const char *why) {
        s->ended = true;
        log_notice("gms-keeper: ending with status %d: %s; %zu descriptors were kept", s->code, why, s->keeper.n);
}

static void service_died(struct service *s) {
        int status = 0;
        service_receive(s);                /* what it said before it died counts */
        (void)kill(-s->pid, SIGKILL);      /* its pid is its session's until it is reaped */
        (void)waitpid(s->pid, &status, 0);
        uint64_t ran = now_ms() - s->started;
        bool killed = WIFSIGNALED(status);
        s->code = killed ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
        s->watchdog_at = s->kill_at = NEVER;
        s->quick = ran >= SETTLED_MS ? 0 : s->quick;
        s->unready = s->ready ? 0 : s->unready + 1;
        log_notice("gms-keeper: %s (pid %d) %s %d after %" PRIu64 " ms; %zu descriptors are kept", s->argv[0], s->pid,
                   killed ? "was ended by signal" : "ended with status", killed ? WTERMSIG(status) : s->code, ran, s->keeper.n);
        s->pid = 0;

        if (s->ending || s->code == 0)
                service_end(s, "the command has ended");
        else if (s->keeper.n == 0 && s->code == STATUS_USAGE)
                service_end(s, "the command was not understood");
        else if (s->keeper.n == 0 && s->unready >= UNREADY_MAX)
                service_end(s, "the command died before it was ready, again and again");
        else
                service_schedule(s);
}

/* The service's death, and as PID 1 everybody's. */
static void reap(struct service *s) {
        for (;;) {
                siginfo_t info = {};
                if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0)
                        return;
                if (info.si_pid == s->pid)
                        service_died(s);
                else
                        (void)waitpid(info.si_pid, NULL, 0);
        }
}

/* ---- the loop */

static void on_signal(struct service *s) {
        struct signalfd_siginfo info;
        if (read(s->signals, &info, sizeof(info)) != sizeof(info))
                return;
        int sig = (int)info.ssi_signo;
        if (sig == SIGCHLD) {
                reap(s);
                return;
        }
        if (sig == SIGTERM || sig == SIGINT || sig == SIGQUIT) {
                s->ending = true;
                s->interval_ms = 0;
                s->watchdog_at = NEVER;
        }
        if (s->pid > 0)
                (void)kill(s->pid, sig);
        else if (s->ending && !s->ended)
                service_end(s, "asked to while the command was not running");
}

static void on_time(struct service *s) {
        uint64_t now = now_ms();
        if (s->start_at <= now)
                service_start(s);
        if (s->watchdog_at <= now) {
                log_error("gms-keeper: %s (pid %d) has not fed its watchdog: SIGABRT", s->argv[0], s->pid);
                (void)kill(s->pid, SIGABRT);
                s->watchdog_at = NEVER;
                s->kill_at = now + ABORT_GRACE_MS;
        }
        if (s->kill_at <= now) {
                log_error("gms-keeper: %s (pid %d) lives on: SIGKILL", s->argv[0], s->pid);
                (void)kill(s->pid, SIGKILL);
                s->kill_at = NEVER;
        }
}

static int time_left(const struct service *s) {
        uint64_t next = MIN(s->start_at, MIN(s->watchdog_at, s->kill_at)), now = now_ms();
        return next == NEVER ? -1 : next <= now ? 0 : (int)MIN(next - now, (uint64_t)INT32_MAX);
}

static void service_run(struct service *s) {
        service_start(s);
        while (!s->ended) {
                struct epoll_event events[64];
                int n = epoll_wait(s->keeper.epoll, events, ARRAY_SIZE(events), time_left(s));
                for (int i = 0; i < n && !s->ended; i++) {
                        if (events[i].data.fd == s->keeper.socket)
                                service_receive(s);
                        else if (events[i].data.fd == s->signals)
                                on_signal(s);
                        else
                                keeper_check(&s->keeper, events[i].data.fd);
                }
                if (!s->ended)
                        on_time(s);
        }
}

/* ---- beginning */

static int add_signals(struct service *s) {
        static const int signals[] = { SIGCHLD, SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 };
        sigset_t set;
        (void)sigemptyset(&set);
        for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
                (void)sigaddset(&set, signals[i]);
                (void)signal(signals[i], SIG_DFL); /* an ignored SIGCHLD, inherited, would hide deaths */
        }
        (void)signal(SIGPIPE, SIG_IGN); /* lines to a log that is gone */
        (void)sigprocmask(SIG_SETMASK, &set, NULL);
        s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
        struct epoll_event readable = { .events = EPOLLIN, .data.fd = s->signals };
        return s->signals < 0 || epoll_ctl(s->keeper.epoll, EPOLL_CTL_ADD, s->signals, &readable) < 0 ? -errno : 0;
}

/* How many descriptors can be kept, of those wanted. */
static size_t raise_descriptor_limit(size_t wanted) {
        struct rlimit l;
        if (getrlimit(RLIMIT_NOFILE, &l) < 0)
                return wanted;
        l.rlim_cur = l.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &l);
        size_t can = l.rlim_cur > FDS_SPARE ? l.rlim_cur - FDS_SPARE : 0;
        if (can < wanted)
                log_notice("gms-keeper: at most %zu descriptors can be kept: the limit of open files is %zu", can,
                           (size_t)l.rlim_cur);
        return MIN(can, wanted);
}

static int service_init(struct service *s, size_t fd_max) {
        int fd;
        while ((fd = open("/dev/null", O_RDWR | O_CLOEXEC)) >= 0 && fd <= STDERR_FILENO)
                ; /* standard descriptors exist, so that none of a message can be one */
        close_fd(fd);
        (void)close_range(STDERR_FILENO + 1, ~0u, CLOSE_RANGE_CLOEXEC);
        int epoll = epoll_create1(EPOLL_CLOEXEC);
        int r = epoll < 0 ? -errno : keeper_init(&s->keeper, epoll, raise_descriptor_limit(fd_max));
        return r < 0 ? r : add_signals(s);
}

static bool parse_number(const char *text, uint64_t most, uint64_t *ret_value) {
        char *end;
        unsigned long long v = strtoull(text, &end, 10);
        if (*text < '0' || *text > '9' || *end || v == 0 || v > most) {
                log_error("gms-keeper: \"%s\": not a number from 1 to %" PRIu64, text, most);
                return false;
        }
        *ret_value = v;
        return true;
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "watchdog", required_argument, NULL, 'w' }, { "fd-max", required_argument, NULL, 'n' },
                { "version", no_argument, NULL, 'v' },        { "help", no_argument, NULL, 'h' },
                {},
        };
        static struct service s;
        uint64_t watchdog = 0, fd_max = FD_MAX;
        int o;
        while ((o = getopt_long(argc, argv, "+", options, NULL)) >= 0) {
                switch (o) {
                case 'w':
                        if (!parse_number(optarg, 86400, &watchdog))
                                return STATUS_USAGE;
                        break;
                case 'n':
                        if (!parse_number(optarg, INT32_MAX, &fd_max))
                                return STATUS_USAGE;
                        break;
                case 'v':
                        return printf("gms-keeper %s\n", GMS_VERSION) < 0;
                case 'h':
                        return fputs(help, stdout) < 0;
                default:
                        return STATUS_USAGE;
                }
        }
        if (optind == argc) {
                log_error("gms-keeper: no command; see gms-keeper --help");
                return STATUS_USAGE;
        }
        s.argv = argv + optind;
        s.watchdog_ms = watchdog * 1000;
        int r = service_init(&s, fd_max);
        if (r < 0) {
                log_error("gms-keeper: %s", strerror(-r));
                return 1;
        }
        service_run(&s);
        keeper_done(&s.keeper);
        return s.code;
}
