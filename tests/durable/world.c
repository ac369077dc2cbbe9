// SPDX-License-Identifier: MIT
#include "world.h"

#include <dirent.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

struct world w;

/* ---- starting, ending */

/* This program is BUILD/tests/durable. */
static const char *in_build(const char *name) {
        static char paths[4][1024];
        static unsigned next;
        char *path = paths[next++ % ARRAY_SIZE(paths)];
        ssize_t n = readlink("/proc/self/exe", path, sizeof(paths[0]) - 64);
        ck_assert_int_gt(n, 0);
        path[n] = '\0';
        for (unsigned up = 0; up < 2; up++)
                *strrchr(path, '/') = '\0';
        return strcat(strcat(path, "/"), name);
}

static _Noreturn void keeper_exec(const struct world_options *o) {
        const char *argv[16] = { "gms-keeper" };
        unsigned n = 1;
        if (o->fd_max) {
                argv[n++] = "--fd-max";
                argv[n++] = o->fd_max;
        }
        argv[n++] = "--";
        if (o->no_word) {
                argv[n++] = "env";
                argv[n++] = "--unset=FDSTORE";
        }
        argv[n++] = in_build(o->gmsd ? o->gmsd : "tests/gmsd-crash");
        argv[n++] = "--socket";
        argv[n++] = m.socket;
        argv[n++] = "--device";
        argv[n++] = o->device ? o->device : m.spec;
        (void)setenv("GMS_CRASH", w.crash, 1);
        int log = open(m.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        (void)dup2(log, STDERR_FILENO);
        (void)setsid(); /* Check kills the group of a case that has failed, and then nobody would end the daemon */
        (void)prctl(PR_SET_PDEATHSIG, SIGTERM);
        execv(in_build("gms-keeper"), (char *const *)argv);
        _exit(127);
}

static char *output_of(const char *line) {
        char *text = NULL, bytes[4096];
        size_t size, n;
        FILE *f = popen(line, "re"), *to = open_memstream(&text, &size);
        ck_assert(f && to);
        while ((n = fread(bytes, 1, sizeof(bytes), f)) > 0)
                (void)fwrite(bytes, 1, n, to);
        (void)fclose(to);
        int status = pclose(f);
        ck_assert_msg(status == 0, "%s: status %d: %s", line, status, text);
        return text;
}

/* A unit for this daemon alone: the installed ones say nothing of crashing (tests/systemd/units tries those). */
static void systemd_start(void) {
        static unsigned n;
        char line[4096];
        (void)snprintf(w.unit, sizeof(w.unit), "gms-test-%d-%u", (int)getpid(), n++);
        (void)snprintf(line, sizeof(line),
                       "systemd-run --quiet --user --collect --unit=%s -p Type=notify -p FileDescriptorStoreMax=4096 "
                       "-p Restart=always -p RestartSec=0 -p StartLimitIntervalSec=0 -p StandardError=append:%s -E GMS_CRASH=%s -E LD_LIBRARY_PATH "
                       "-E FAKECUDA_DIR -E FAKECUDA_MEMORY -E FAKECUDA_DEVICES %s --socket %s --device %s 2>&1",
                       w.unit, m.log, w.crash, in_build("tests/gmsd-crash"), m.socket, m.spec);
        free(output_of(line));
}

unsigned world_kept(void) {
        char line[256];
        if (w.keeper)
                return count_fds(w.keeper);
        (void)snprintf(line, sizeof(line), "systemctl --user show --value -p NFileDescriptorStore %s", w.unit);
        _cleanup_free_ char *text = output_of(line);
        return (unsigned)atoi(text);
}

static bool by_systemd(void) {
        const char *manager = getenv("GMS_MANAGER");
        return manager && strcmp(manager, "systemd") == 0;
}

static void keeper_start(const struct world_options *o) {
        w.keeper = fork();
        ck_assert_int_ge(w.keeper, 0);
        if (w.keeper == 0)
                keeper_exec(o);
}

void world_start(const struct world_options *o) {
        (void)snprintf(w.crash, sizeof(w.crash), "%s/crash", m.dir);
        if (by_systemd())
                systemd_start();
        else
                keeper_start(o);
        world_next(0);
        wait_for(w.keeper ? world_journal() != NULL : world_kept() >= 2); /* it reads in its own time */
        m.granularity = look_device(0).granularity;
        m.total = look_device(0).total;
}

/* It dies only when it is killed: else the keeper hides what the test is to find. */
static void check_deaths(void) {
        static const char said[] = "ended with status ";
        _cleanup_free_ char *log = read_text(m.log);
        for (const char *at = log; (at = strstr(at, said)); at++) {
                int status = atoi(at + strlen(said));
                ck_assert_msg(status == 0 || status == 128 + SIGKILL, "the daemon has died by itself: status %d", status);
        }
}

void world_stop(void) {
        char line[128];
        raw_close(&control);
        (void)snprintf(line, sizeof(line), "systemctl --user stop %s 2>&1", w.unit);
        if (w.keeper) {
                ck_assert_int_eq(kill(w.keeper, SIGTERM), 0);
                ck_assert_int_eq(process_end(w.keeper), 0);
        } else {
                free(output_of(line));
        }
        w.keeper = 0;
        m.gmsd = 0;
        check_deaths();
}

/* ---- deaths */

void world_arm(unsigned n) {
        char text[16];
        (void)snprintf(text, sizeof(text), "%u\n", n);
        const char *tmp = path_of("crash.new");
        FILE *f = fopen(tmp, "we");
        ck_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
        ck_assert_int_eq(rename(tmp, w.crash), 0);
}

char *world_steps(void) {
        char *text = read_text(w.crash);
        (void)unlink(w.crash);
        char *names = strchr(text, '\n');
        memmove(text, names ? names + 1 : "", names ? strlen(names) : 1);
        return text;
}

bool world_armed(void) {
        return access(w.crash, F_OK) == 0;
}

static bool connect_control(void) {
        raw_close(&control);
        if (!raw_try(&control, m.socket))
                return false;
        if (ask(&control, HELLO, hello, b.protocol_min = 1, b.protocol_max = 1, b.label = (char *)"control") != GMS__STATUS__OK)
                return false;
        return ask(&control, ABOUT, about) == GMS__STATUS__OK;
}

void world_next(pid_t was) {
        wait_for(connect_control() && (pid_t)control.reply->daemon->pid != was);
        m.gmsd = (pid_t)control.reply->daemon->pid;
}

void world_look(void) {
        world_next(0);
}

void world_kill(void) {
        pid_t was = m.gmsd;
        ck_assert_int_eq(kill(was, SIGKILL), 0);
        world_next(was);
}

static bool gone(pid_t pid) {
        char path[64];
        (void)snprintf(path, sizeof(path), "/proc/%d/fd/0", pid);
        return access(path, F_OK) < 0; /* a zombie has no descriptors */
}

void world_kill_and(void (*meanwhile)(void *arg), void *arg) {
        pid_t was = m.gmsd;
        ck_assert_int_eq(kill(w.keeper, SIGSTOP), 0);
        ck_assert_int_eq(kill(was, SIGKILL), 0);
        wait_for(gone(was));
        meanwhile(arg);
        ck_assert_int_eq(kill(w.keeper, SIGCONT), 0);
        world_next(was);
}

/* ---- looking */

Gms__Daemon *world_about(void) {
        granted(&control, ask(&control, ABOUT, about));
        return control.reply->daemon;
}

char *world_gmsctl(const char *arguments) {
        char line[2048];
        (void)snprintf(line, sizeof(line), "%s --socket %s %s", in_build("gmsctl"), m.socket, arguments);
        return output_of(line);
}

static json_t *gmsctl(const char *command, const char *store_name) {
        char arguments[512];
        (void)snprintf(arguments, sizeof(arguments), "--json %s %s", command, store_name);
        _cleanup_free_ char *text = world_gmsctl(arguments);
        json_t *j = json_loads(text, 0, NULL);
        ck_assert_ptr_nonnull(j);
        return j;
}

static bool looks_only(const json_t *session) {
        const char *mode = json_string_value(json_object_get(session, "mode"));
        return mode && strcasecmp(mode, "none") == 0;
}

/* Takes away what may differ. */
static void strip(json_t *j) {
        static const char *const keys[] = { "uptime_ms", "age_ms", "restarts", "away_ms", "orphans", "id", "free" };
        const char *key;
        json_t *v;
        size_t i;
        void *next;
        if (json_is_array(j)) {
                for (i = json_array_size(j); i-- > 0;) {
                        strip(json_array_get(j, i));
                        if (looks_only(json_array_get(j, i)))
                                (void)json_array_remove(j, i);
                }
        }
        if (!json_is_object(j))
                return;
        for (i = 0; i < ARRAY_SIZE(keys); i++)
                (void)json_object_del(j, keys[i]);
        if (json_integer_value(json_object_get(j, "pid")) == getpid())
                (void)json_object_set_new(j, "pid", json_string("the test's"));
        if (json_object_get(j, "version"))
                (void)json_object_del(j, "pid");
        json_object_foreach_safe(j, next, key, v)
                strip(v);
}

static void dump(FILE *f, json_t *j) {
        strip(j);
        (void)json_dumpf(j, f, JSON_INDENT(1) | JSON_SORT_KEYS);
        (void)fputc('\n', f);
        json_decref(j);
}

char *world_state(void) {
        char *text = NULL;
        size_t size, i;
        json_t *one;
        FILE *f = open_memstream(&text, &size);
        ck_assert_ptr_nonnull(f);
        json_t *status = gmsctl("status", "");
        json_array_foreach(json_object_get(status, "stores"), i, one) {
                const char *state = json_string_value(json_object_get(one, "state"));
                (void)fprintf(f, "%s\n", state);
                if (json_integer_value(json_object_get(one, "generation")) > 0 || json_is_true(json_object_get(one, "sealed")))
                        dump(f, gmsctl("show", json_string_value(json_object_get(one, "name"))));
        }
        dump(f, status);
        dump(f, gmsctl("sessions", ""));
        ck_assert_int_eq(fclose(f), 0);
        return text;
}

void world_state_is(const char *wanted, const char *what) {
        unsigned step = 0;
        for (uint64_t deadline = now_ms() + 3000;;) {
                _cleanup_free_ char *is = world_state();
                if (strcmp(is, wanted) == 0)
                        return;
                if (until_(deadline, &step))
                        continue;
                size_t at = 0;
                while (is[at] == wanted[at])
                        at++;
                at = at < 300 ? 0 : at - 300;
                ck_abort_msg("%s: the state is another. Wanted:\n%.900s\nis:\n%.900s", what, wanted + at, is + at);
        }
}

/* The next descriptor of a process, and what it is. False at the end. */
static bool next_fd(DIR *d, pid_t pid, char *path, size_t room, char *link, size_t link_room) {
        struct dirent *e;
        while ((e = readdir(d))) {
                (void)snprintf(path, room, "/proc/%d/fd/%s", pid, e->d_name);
                ssize_t n = readlink(path, link, link_room - 1);
                if (n <= 0)
                        continue;
                link[n] = '\0';
                return true;
        }
        (void)closedir(d);
        return false;
}

static DIR *open_fds(pid_t pid) {
        char dir[64];
        (void)snprintf(dir, sizeof(dir), "/proc/%d/fd", pid);
        DIR *d = opendir(dir);
        ck_assert_ptr_nonnull(d);
        return d;
}

void world_kept_is(unsigned n) {
        if (w.keeper)
                world_fds_are(w.keeper, n);
        else
                wait_for(world_kept() == n);
}

void world_fds_are(pid_t pid, unsigned n) {
        char path[400], link[256];
        unsigned step = 0;
        for (uint64_t deadline = now_ms() + PATIENCE_MS / 2; count_fds(pid) != n;) {
                if (until_(deadline, &step))
                        continue;
                for (DIR *d = open_fds(pid); next_fd(d, pid, path, sizeof(path), link, sizeof(link));)
                        fprintf(stderr, "%s %s\n", path, link);
                ck_abort_msg("process %d has %u descriptors, and should have %u", pid, count_fds(pid), n);
        }
}

const char *world_journal(void) {
        static char found[400];
        char path[400], link[256];
        found[0] = '\0';
        for (DIR *d = open_fds(w.keeper); next_fd(d, w.keeper, path, sizeof(path), link, sizeof(link));)
                if (strncmp(link, "/memfd:gmsd-journal", 19) == 0)
                        memcpy(found, path, sizeof(found));
        return found[0] ? found : NULL;
}
