// SPDX-License-Identifier: MIT
/* The fixture: a daemon in a directory of its own, from its start to its end. */
#include <fcntl.h>
#include <ftw.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "account.h"
#include "bystander.h"
#include "raw.h"

struct machine m;

/* ---- names */

static char *next_text(void) {
        static _Thread_local char texts[16][256];
        static _Thread_local unsigned next;
        return texts[next++ % ARRAY_SIZE(texts)];
}

const char *store(const char *name) {
        char *text = next_text();
        (void)snprintf(text, 256, "%s/%s", m.device, name);
        return text;
}

const char *path_of(const char *name) {
        char *text = next_text();
        (void)snprintf(text, 256, "%s/%s", m.dir, name);
        return text;
}

/* This program is BUILD/tests/integration, the daemon BUILD/gmsd. */
static const char *gmsd_path(void) {
        static char path[1024];
        const char *env = getenv("GMSD");
        if (env && *env)
                return env;
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 8);
        ck_assert_int_gt(n, 0);
        path[n] = '\0';
        for (unsigned up = 0; up < 2; up++)
                *strrchr(path, '/') = '\0';
        return strcat(path, "/gmsd");
}

/* ---- daemons */

/* The fake driver in front of everything, so that its close() is the one that is called. */
static void preload_fake(void) {
        char path[1024];
        const char *dir = getenv("LD_LIBRARY_PATH");
        (void)snprintf(path, sizeof(path), "%.*s/libcuda.so.1", (int)strcspn(dir, ":"), dir);
        (void)setenv("LD_PRELOAD", path, 1);
        const char *old = getenv("ASAN_OPTIONS");
        (void)snprintf(path, sizeof(path), "%s:verify_asan_link_order=0", old ? old : "");
        (void)setenv("ASAN_OPTIONS", path, 1);
}

static _Noreturn void gmsd_exec(const struct gmsd_run *run) {
        const char *argv[16] = { "gmsd", "--socket", run->socket ? run->socket : m.socket };
        unsigned n = 3;
        const char *own[] = { m.spec, m.test->also, NULL };
        for (const char *const *d = run->devices ? run->devices : own; *d; d++) {
                argv[n++] = "--device";
                argv[n++] = *d;
        }
        if (m.test->open_to_all) {
                argv[n++] = "--config";
                argv[n++] = path_of("gmsd.conf");
        }
        if (m.test->files > 0)
                (void)setrlimit(RLIMIT_NOFILE, &(struct rlimit){ m.test->files, m.test->files });
        if (m.test->close_knob)
                preload_fake();
        (void)close_range(3, ~0u, CLOSE_RANGE_CLOEXEC); /* Check's own */
        int gmsd = open(gmsd_path(), O_PATH | O_CLOEXEC); /* other users may not be let through to it */
        int log = open(run->log ? run->log : m.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        (void)dup2(log, STDERR_FILENO);
        if (run->uid != 0 && setresuid(run->uid, run->uid, run->uid) < 0)
                _exit(126);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* behind setresuid(), which forgets it */
        (void)fexecve(gmsd, (char *const *)argv, environ);
        _exit(127);
}

pid_t gmsd_start(const struct gmsd_run *run) {
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0)
                gmsd_exec(run);
        return pid;
}

void gmsd_wait(const char *socket) {
        struct raw r = RAW;
        wait_for(raw_try(&r, socket)); /* and waits in the backlog until the devices have answered */
        granted(&r, ask(&r, HELLO, hello, b.protocol_min = 1, b.protocol_max = 1, b.label = (char *)"ready?"));
        raw_close(&r);
}

pid_t worker_ready(void) {
        pid_t pids[ACCOUNT_WORKERS];
        wait_for(strcmp(look_device(0).state, "ready") == 0 && worker_pids(pids, ACCOUNT_WORKERS) > 0);
        return pids[0];
}

/* ---- beginning */

/* Ends it as a failure of its own, before Check does with less to say. */
static void on_alarm(int signal) {
        static const char text[] = "took too long\n";
        (void)signal;
        (void)!write(STDERR_FILENO, text, sizeof(text) - 1);
        _exit(1);
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
        (void)st, (void)kind, (void)ftw;
        return remove(path);
}

static void remove_all(const char *dir) {
        (void)nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

/* The fake GPUs of this case alone. */
static const char *fake_machine(void) {
        char *text = next_text();
        const char *dir = getenv("FAKECUDA_DIR");
        (void)snprintf(text, 256, "%.200s/%s", dir ? dir : "", strrchr(m.dir, '-') + 1);
        return text;
}

/* In the process that outlives the case. */
void machine_make_directory(void) {
        const char *tmp = getenv("TMPDIR");
        m = (struct machine){};
        (void)snprintf(m.dir, sizeof(m.dir), "%.40s/gms-it-XXXXXX", tmp && *tmp ? tmp : "/tmp");
        if (!mkdtemp(m.dir)) {
                fprintf(stderr, "%s: %s\n", m.dir, strerror(errno));
                exit(1);
        }
        (void)snprintf(m.socket, sizeof(m.socket), "%s/gmsd.sock", m.dir);
        (void)snprintf(m.log, sizeof(m.log), "%s/gmsd.log", m.dir);
}

/* What a case that failed has left: its daemon's words. */
void machine_clean_up(void) {
        struct stat st;
        if (stat(m.dir, &st) < 0)
                return;
        _cleanup_free_ char *log = read_text(m.log);
        fprintf(stderr, "---- failed; what its daemon said:\n%s----\n", log);
        remove_all(fake_machine());
        remove_all(m.dir);
}

static void open_to_all(void) {
        ck_assert_int_eq(chmod(m.dir, 0777), 0);
        FILE *f = fopen(path_of("gmsd.conf"), "we");
        ck_assert(f && fputs("socket-mode = 0666\n", f) >= 0 && fclose(f) == 0);
}

static void choose_device(void) {
        const char *spec = getenv("GMS_TEST_DEVICE"), *fake = getenv("FAKECUDA_DIR");
        (void)snprintf(m.spec, sizeof(m.spec), "%s", spec && *spec ? spec : "host:1G");
        m.cuda = strncmp(m.spec, "cuda", 4) == 0;
        m.device = m.cuda ? m.spec : "host";
        m.fake = m.cuda && fake && *fake;
        if (!m.cuda && m.test->memory)
                (void)snprintf(m.spec, sizeof(m.spec), "host:%s", m.test->memory);
        if (!m.fake)
                return;
        const char *dir = fake_machine();
        (void)setenv("FAKECUDA_DIR", dir, 1);
        (void)mkdir(dir, 0777);
        (void)setenv("FAKECUDA_MEMORY", m.test->memory ? m.test->memory : "8G", 1);
        (void)setenv("FAKECUDA_DEVICES", m.test->devices ? m.test->devices : "1", 1);
        m.knobs = fakecuda_open(getenv("FAKECUDA_DIR"));
        ck_assert_ptr_nonnull(m.knobs);
}

static void begin(void) {
        raw_connect(&control);
        granted(&control, ask(&control, HELLO, hello, b.protocol_min = 1, b.protocol_max = 1, b.label = (char *)"control"));
        struct device_view d = look_device(0);
        m.granularity = d.granularity;
        m.total = d.total;
        if (!m.test->no_bystander)
                bystander_start();
        /* From here on the daemon watches this process, which has asked for a lock. */
        struct raw r = RAW;
        refused(&r, raw_hello(&r, "nothing", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "nothing is published");
        raw_close(&r);
        wait_for(strcmp(state_of("nothing"), "") == 0);
        account_begin();
}

/* ---- end */

void machine_stop(int signal) {
        bystander_stop();
        raw_close(&control);
        ck_assert_int_eq(kill(m.gmsd, signal), 0);
        int status = process_end(m.gmsd);
        ck_assert_msg(status == (signal == SIGTERM ? 0 : 128 + signal), "gmsd ended with status %d", status);
        ck_assert_int_eq(access(m.socket, F_OK) == 0, signal == SIGKILL);
        m.gmsd = 0;
        account_without_daemon();
}

/* What the daemon calls an error is one. */
static void check_log(void) {
        _cleanup_free_ char *log = read_text(m.log);
        const char *error = strncmp(log, "<3>", 3) == 0 ? log : strstr(log, "\n<3>");
        if (error && !m.test->respawns)
                ck_abort_msg("gmsd logged an error: %.*s", (int)strcspn(error + 1, "\n"), error + 1);
}

static void end(void) {
        if (m.gmsd > 0 && waitpid(m.gmsd, NULL, WNOHANG) != 0)
                ck_abort_msg("gmsd has died");
        account_settle();
        if (m.gmsd > 0)
                machine_stop(SIGTERM);
        check_log();
}

void machine_run(const struct test *t) {
        static const char *const of_a_service[] = { "NOTIFY_SOCKET", "FDSTORE", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES" };
        m.test = t;
        for (size_t i = 0; i < ARRAY_SIZE(of_a_service); i++)
                (void)unsetenv(of_a_service[i]); /* the daemons here have no manager */
        if (t->open_to_all)
                open_to_all();
        choose_device();
        (void)signal(SIGALRM, on_alarm);
        (void)alarm(t->seconds ? t->seconds : 30);
        if (!t->no_daemon) {
                m.gmsd = gmsd_start(&(struct gmsd_run){});
                gmsd_wait(m.socket);
                begin();
        }
        t->body();
        if (!t->no_daemon)
                end();
        if (m.fake)
                remove_all(getenv("FAKECUDA_DIR"));
        remove_all(m.dir);
}
