// SPDX-License-Identifier: MIT
#include "stage.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#define PATIENCE_MS 60000 /* for an answer: a GPU's first call alone may take seconds */

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
        (void)number;
        interrupted = 1;
}

bool stage_interrupted(void) {
        return interrupted != 0;
}

static void pause_ms(long ms) {
        struct timespec ts = { .tv_nsec = ms * 1000000 };
        (void)nanosleep(&ts, NULL);
}

bool stage_check(struct stage *s, bool ok, const char *format, ...) {
        va_list ap;

        printf("   %-6s  ", ok ? "ok" : "FAILED");
        va_start(ap, format);
        vprintf(format, ap);
        va_end(ap);
        putchar('\n');
        (void)fflush(stdout);
        s->failed += !ok;
        return ok;
}

bool stage_quote(struct stage *s, const char *text) {
        const size_t columns = 88;

        if (!text[0])
                return stage_check(s, false, "a text says why");
        while (*text) {
                size_t n = strlen(text);
                if (n > columns) /* at the last blank that fits */
                        for (n = columns; n > 1 && text[n] != ' '; n--)
                                ;
                printf("           | %.*s\n", (int)n, text);
                text += n;
                text += strspn(text, " ");
        }
        return true;
}

/* ---- processes */

/*
 * Starts a process that cannot outlive this one: the kernel kills it when the demo dies, however that happens, and all of
 * them are in one group that is killed at the end. The terminal's Ctrl-C reaches the demo alone.
 */
static pid_t start(struct stage *s, char *const argv[], int keep_fd, int stderr_fd) {
        pid_t parent = getpid(), pid = fork();
        if (pid != 0) {
                if (pid > 0 && s->group == 0)
                        s->group = pid;
                if (pid > 0)
                        (void)setpgid(pid, s->group); /* here too: whoever comes first */
                return pid;
        }
        (void)setpgid(0, s->group);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) /* died before the line above */
                _exit(EXIT_FAILURE);
        if (keep_fd >= 0)
                (void)fcntl(keep_fd, F_SETFD, 0);
        if (stderr_fd >= 0)
                (void)dup2(stderr_fd, STDERR_FILENO);
        execv(argv[0], argv);
        dprintf(STDERR_FILENO, "%s: %s\n", argv[0], strerror(errno));
        _exit(127);
}

/* Waits for one process. -1: it did not end in time. */
static int await_exit(pid_t pid, unsigned ms) {
        int status;
        for (unsigned waited = 0; waited <= ms; waited += 5) {
                if (waitpid(pid, &status, WNOHANG) == pid)
                        return status;
                pause_ms(5);
        }
        return -1;
}

/* Any child, adopted ones included, still there after a moment? */
static bool anyone_left(void) {
        for (unsigned i = 0; i < 200; i++) {
                pid_t pid = waitpid(-1, NULL, WNOHANG);
                if (pid < 0 && errno == ECHILD)
                        return false;
                if (pid <= 0)
                        pause_ms(10);
        }
        return true;
}

struct process *actor_start(struct stage *s, const char *name) {
        struct process *p = NULL;
        int ends[2];
        char fd[16];

        for (size_t i = 0; i < STAGE_ACTORS && !p; i++)
                if (s->actors[i].pid == 0)
                        p = &s->actors[i];
        assert(p);
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0) {
                stage_check(s, false, "a pair of sockets: %s", strerror(errno));
                return p;
        }
        snprintf(p->name, sizeof(p->name), "%s", name);
        snprintf(fd, sizeof(fd), "%d", ends[1]);
        char *argv[] = { (char *)"/proc/self/exe", (char *)"--actor", fd, p->name, s->socket, s->store, NULL };
        p->fd = ends[0];
        p->pid = start(s, argv, ends[1], -1);
        close_fd(ends[1]);
        return p;
}

static void actor_forget(struct process *p) {
        p->fd = close_fd(p->fd);
        *p = (struct process){ .fd = -1 };
}

void actor_kill(struct stage *s, struct process *p) {
        (void)kill(p->pid, SIGKILL);
        int status = await_exit(p->pid, 5000);
        stage_check(s, status >= 0 && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "%s (pid %d) is killed by SIGKILL",
                    p->name, (int)p->pid);
        actor_forget(p);
}

void actor_end(struct stage *s, struct process *p) {
        p->fd = close_fd(p->fd); /* the end of its orders */
        int status = await_exit(p->pid, 10000);
        if (status != 0)
                stage_check(s, false, "%s (pid %d) ends by itself: status %#x", p->name, (int)p->pid, (unsigned)status);
        if (status != -1)
                actor_forget(p);
}

void actor_tell(struct process *p, const struct order *o) {
        (void)send(p->fd, o, sizeof(*o), MSG_NOSIGNAL);
}

struct answer actor_hear(struct process *p) {
        struct answer answer = { .result = -EPIPE };

        snprintf(answer.text, sizeof(answer.text), "%s does not answer", p->name);
        for (unsigned waited = 0; waited < PATIENCE_MS && !interrupted; waited += 100) {
                struct pollfd poll_fd = { .fd = p->fd, .events = POLLIN };
                if (poll(&poll_fd, 1, 100) <= 0)
                        continue;
                struct answer heard;
                return recv(p->fd, &heard, sizeof(heard), 0) == (ssize_t)sizeof(heard) ? heard : answer;
        }
        return answer;
}

struct answer actor_ask(struct process *p, const struct order *o) {
        actor_tell(p, o);
        return actor_hear(p);
}

/* ---- what the daemon shows */

struct gms_store stage_store(struct stage *s) {
        struct gms_store *stores = NULL, found = { 0 };
        size_t n = 0;

        if (gms_query_stores(s->look, s->store, &stores, &n) == 0 && n == 1)
                found = stores[0];
        gms_array_free(stores);
        return found;
}

struct gms_device stage_device(struct stage *s) {
        struct gms_device *devices = NULL, found = { 0 };
        size_t n = 0;

        if (gms_query_devices(s->look, &devices, &n) == 0 && n > 0)
                found = devices[0];
        gms_array_free(devices);
        return found;
}

static pid_t daemon_pid(struct stage *s) {
        struct gms_daemon d = GMS_INIT(struct gms_daemon);
        return gms_query_daemon(s->look, &d) == 0 ? (pid_t)d.pid : 0;
}

bool stage_settles(struct stage *s, uint64_t bytes, uint64_t draining, uint64_t *ret_owned) {
        for (unsigned waited = 0; waited < 5000 && !interrupted; waited += 5) {
                struct gms_store store = stage_store(s);
                *ret_owned = stage_device(s).owned;
                if (store.bytes == bytes && store.draining_bytes == draining && *ret_owned == bytes)
                        return true;
                pause_ms(5);
        }
        return false;
}

/* ---- up and down */

static bool connect_look(struct stage *s) {
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_NONE;
        options.label = "stage";

        if (!s->look && gms_open(&s->look, s->socket, NULL) < 0)
                return false;
        return gms_connect(s->look, &options) == 0;
}

/* Until gmsd answers and its device is ready; a driver may need seconds to start. */
static bool await_daemon(struct stage *s) {
        bool connected = false;

        for (unsigned waited = 0; waited < 30000 && !interrupted; waited += 5) {
                if (waitpid(s->keeper, NULL, WNOHANG) == s->keeper) {
                        s->keeper = 0;
                        return stage_check(s, false, "gmsd serves: it has ended instead");
                }
                if (!connected)
                        connected = connect_look(s);
                struct gms_device d = connected ? stage_device(s) : (struct gms_device){ 0 };
                if (strcmp(d.state, "ready") == 0) {
                        snprintf(s->store, sizeof(s->store), "%s/demo", d.name);
                        s->host = strcmp(d.name, "host") == 0;
                        return stage_check(s, true, "gmsd (pid %d) serves %s%s%s on %s", (int)daemon_pid(s), d.name,
                                           d.model[0] ? ", " : "", d.model, s->socket);
                }
                if (strcmp(d.state, "faulted") == 0)
                        return stage_check(s, false, "the device is ready: %s", d.text);
                pause_ms(5);
        }
        return stage_check(s, false, "gmsd serves: not within 30 s: %s", gms_last_error());
}

bool stage_kill_daemon(struct stage *s) {
        pid_t before = daemon_pid(s), after = 0;
        if (!stage_check(s, before > 1 && kill(before, SIGKILL) == 0, "gmsd (pid %d) is killed by SIGKILL", (int)before))
                return false;
        struct timespec start, now;
        double ms = 0;
        (void)clock_gettime(CLOCK_MONOTONIC, &start);
        while (ms < 10000 && !interrupted && (after <= 0 || after == before)) {
                (void)gms_disconnect(s->look);
                after = connect_look(s) ? daemon_pid(s) : 0;
                (void)clock_gettime(CLOCK_MONOTONIC, &now);
                ms = (double)(now.tv_sec - start.tv_sec) * 1e3 + (double)(now.tv_nsec - start.tv_nsec) / 1e6;
        }
        return stage_check(s, after > 0 && after != before, "another gmsd (pid %d) answers %.1f ms later", (int)after, ms);
}

static void catch_signals(void) {
        struct sigaction action = { .sa_handler = on_signal };
        (void)sigaction(SIGINT, &action, NULL);
        (void)sigaction(SIGTERM, &action, NULL);
        (void)sigaction(SIGHUP, &action, NULL);
        (void)signal(SIGPIPE, SIG_IGN);
}

bool stage_open(struct stage *s, const char *device_spec, const char *gmsd) {
        _cleanup_close_ int log = -1;

        *s = (struct stage){ .device_spec = device_spec };
        for (size_t i = 0; i < STAGE_ACTORS; i++)
                s->actors[i].fd = -1;
        catch_signals();
        (void)prctl(PR_SET_CHILD_SUBREAPER, 1); /* what gmsd leaves behind would show as a child of ours */

        snprintf(s->gmsd, sizeof(s->gmsd), "%s", gmsd);
        snprintf(s->dir, sizeof(s->dir), "/tmp/gms-demo-XXXXXX");
        if (!mkdtemp(s->dir)) {
                s->dir[0] = '\0';
                return stage_check(s, false, "a directory in /tmp: %s", strerror(errno));
        }
        snprintf(s->socket, sizeof(s->socket), "%s/gmsd.sock", s->dir);
        snprintf(s->log, sizeof(s->log), "%s/gmsd.log", s->dir);
        log = open(s->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log < 0)
                return stage_check(s, false, "%s: %s", s->log, strerror(errno));

        const char *slash = strrchr(s->gmsd, '/');
        snprintf(s->keeper_path, sizeof(s->keeper_path), "%.*sgms-keeper", slash ? (int)(slash - s->gmsd) + 1 : 0, s->gmsd);
        char *argv[] = { s->keeper_path,       (char *)"--",       s->gmsd, (char *)"--socket", s->socket,
                         (char *)"--device", (char *)device_spec, NULL };
        s->keeper = start(s, argv, -1, log);
        return s->keeper > 0 ? await_daemon(s) : stage_check(s, false, "fork: %s", strerror(errno));
}

static void end_daemon(struct stage *s) {
        if (s->keeper <= 0)
                return;
        (void)kill(s->keeper, SIGTERM);
        int status = await_exit(s->keeper, 10000);
        stage_check(s, status == 0, "gmsd and gms-keeper end on SIGTERM%s", status == 0 ? "" : ": not within 10 s, or not with 0");
        stage_check(s, access(s->socket, F_OK) < 0 && errno == ENOENT, "its socket is removed");
        if (status != -1)
                s->keeper = 0;
}

static void show_log(const struct stage *s) {
        char line[512];
        FILE *f = fopen(s->log, "re");

        if (!f)
                return;
        printf("\n   gmsd's log:\n");
        while (fgets(line, sizeof(line), f))
                printf("   | %s", line);
        (void)fclose(f);
}

void stage_close(struct stage *s) {
        for (size_t i = 0; i < STAGE_ACTORS; i++)
                if (s->actors[i].pid > 0 && !interrupted && s->failed == 0)
                        actor_end(s, &s->actors[i]);
        gms_close(s->look);
        s->look = NULL;

        if (s->failed > 0 || interrupted) { /* actors may hang: they are not waited for, and gmsd sees them die */
                for (size_t i = 0; i < STAGE_ACTORS; i++)
                        if (s->actors[i].pid > 0)
                                (void)kill(s->actors[i].pid, SIGKILL);
        }
        end_daemon(s);
        bool left = s->group > 0 && s->failed == 0 && !interrupted && anyone_left();
        if (s->group > 0)
                (void)kill(-s->group, SIGKILL);
        bool stuck = anyone_left();
        if (s->group > 0)
                stage_check(s, !left && !stuck, "no process is left");

        if (s->failed > 0 && !interrupted)
                show_log(s);
        if (s->dir[0]) {
                (void)unlink(s->log);
                (void)unlink(s->socket);
                (void)rmdir(s->dir);
        }
}
