// SPDX-License-Identifier: MIT
#include "run.h"

#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

char run_dir[64], run_socket[96];
pid_t run_gmsd;
static unsigned fds_before;

static void pause_ms(long ms) {
        struct timespec ts = { .tv_nsec = ms * 1000000 };
        (void)nanosleep(&ts, NULL);
}

static unsigned count_entries(const char *path) {
        unsigned n = 0;
        DIR *d = opendir(path);
        ck_assert_ptr_nonnull(d);
        for (struct dirent *e; (e = readdir(d));)
                n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
        (void)closedir(d);
        return n;
}

/* $GMSD and $GMSCTL, else beside this program's folders: it is BUILD/tests/cli/test_cli, they are in BUILD. */
static void built(char *path, size_t room, const char *name, const char *variable) {
        if (getenv(variable)) {
                snprintf(path, room, "%s", getenv(variable));
                return;
        }
        ssize_t n = readlink("/proc/self/exe", path, room - 32);
        ck_assert_int_gt(n, 0);
        path[n] = '\0';
        for (unsigned up = 0; up < 3; up++)
                *strrchr(path, '/') = '\0';
        size_t len = strlen(path);
        snprintf(path + len, room - len, "/%s", name);
}

/* ---- the fixture */

const char *run_gpu(void) {
        const char *device = getenv("GMS_TEST_DEVICE");
        return device && device[0] && strcmp(device, "host") != 0 ? device : NULL;
}

void run_setup(void) {
        fds_before = count_entries("/proc/self/fd");
        snprintf(run_dir, sizeof(run_dir), "/tmp/gms-cli-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(run_dir));
        snprintf(run_socket, sizeof(run_socket), "%s/gmsd.sock", run_dir);
        run_gmsd = 0;
}

static void start_gmsd(void) {
        char gmsd[1024];
        pid_t parent = getpid();

        built(gmsd, sizeof(gmsd), "gmsd", "GMSD");
        run_gmsd = fork();
        ck_assert_int_ge(run_gmsd, 0);
        if (run_gmsd > 0)
                return;
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails ends without teardown */
        if (getppid() != parent)
                _exit(1);
        int log = open(run_path("gmsd.log"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        (void)dup2(log, STDERR_FILENO);
        execl(gmsd, gmsd, "--socket", run_socket, "--device", "host", run_gpu() ? "--device" : NULL, run_gpu(), NULL);
        _exit(127);
}

static bool is_ready(void) {
        _cleanup_gms_ struct gms *g = NULL;
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        struct gms_device *devices = NULL;
        size_t n = 0;

        if (gms_open(&g, run_socket, NULL) < 0 || gms_connect(g, &options) < 0)
                return false;
        bool ready = gms_query_devices(g, &devices, &n) == 0 && n > 0;
        for (size_t i = 0; i < n; i++)
                ready &= strcmp(devices[i].state, "ready") == 0;
        gms_array_free(devices);
        return ready;
}

void run_setup_gmsd(void) {
        run_setup();
        start_gmsd();
        for (unsigned i = 0; i < 1000; i++) {
                if (is_ready())
                        return;
                pause_ms(5);
        }
        ck_abort_msg("gmsd does not serve: %s", gms_last_error());
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *ftw) {
        (void)st, (void)kind, (void)ftw;
        return remove(path);
}

void run_teardown(void) {
        if (run_gmsd > 0) {
                int status = -1;
                ck_assert_int_eq(kill(run_gmsd, SIGTERM), 0);
                ck_assert_int_eq(waitpid(run_gmsd, &status, 0), run_gmsd);
                ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == 0, "gmsd ended with status %#x", status);
                ck_assert_int_ne(access(run_socket, F_OK), 0);
        }
        ck_assert_int_eq(nftw(run_dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
        ck_assert_uint_eq(count_entries("/proc/self/fd"), fds_before);
}

/* ---- running gmsctl */

static int catcher(int wanted) {
        int fd = wanted >= 0 ? -1 : memfd_create("caught", MFD_CLOEXEC);
        ck_assert(wanted >= 0 || fd >= 0);
        return fd;
}

void spawn_start(struct spawn *s) {
        char gmsctl[1024];
        const char *argv[64] = { "gmsctl", "--socket", run_socket };

        for (size_t i = 0; s->args[i]; i++) {
                ck_assert_uint_lt(i, ARRAY_SIZE(argv) - 4);
                argv[i + 3] = s->args[i];
        }
        built(gmsctl, sizeof(gmsctl), "gmsctl", "GMSCTL");
        s->caught_out = catcher(s->out_fd);
        s->caught_err = catcher(s->err_fd);
        s->pid = fork();
        ck_assert_int_ge(s->pid, 0);
        if (s->pid > 0)
                return;
        if (s->file_limit > 0) {
                struct rlimit limit = { s->file_limit, s->file_limit };
                (void)setrlimit(RLIMIT_FSIZE, &limit);
        }
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        (void)setenv("LC_ALL", s->locale ? s->locale : "C.UTF-8", 1);
        (void)dup2(s->out_fd >= 0 ? s->out_fd : s->caught_out, STDOUT_FILENO);
        (void)dup2(s->err_fd >= 0 ? s->err_fd : s->caught_err, STDERR_FILENO);
        execv(gmsctl, (char *const *)argv);
        _exit(127);
}

static char *read_fd(int fd, size_t *ret_size) {
        struct stat st;
        ck_assert_int_eq(fstat(fd, &st), 0);
        char *bytes = malloc((size_t)st.st_size + 1);
        ck_assert_ptr_nonnull(bytes);
        ck_assert_int_eq(pread(fd, bytes, (size_t)st.st_size, 0), st.st_size);
        bytes[st.st_size] = '\0';
        *ret_size = (size_t)st.st_size;
        return bytes;
}

struct outcome spawn_end(struct spawn *s) {
        struct outcome o = { 0 };
        size_t err_size;
        int status;

        ck_assert_int_eq(waitpid(s->pid, &status, 0), s->pid);
        o.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        if (s->caught_out >= 0)
                o.out = read_fd(s->caught_out, &o.out_size);
        if (s->caught_err >= 0)
                o.err = read_fd(s->caught_err, &err_size);
        s->caught_out = close_fd(s->caught_out);
        s->caught_err = close_fd(s->caught_err);
        return o;
}

struct outcome run_ctl(const char *const *args) {
        struct spawn s = { .args = args, .out_fd = -1, .err_fd = -1 };
        spawn_start(&s);
        return spawn_end(&s);
}

void outcome_done(struct outcome *o) {
        free(o->out);
        free(o->err);
        *o = (struct outcome){ 0 };
}

json_t *outcome_json(const struct outcome *o) {
        json_error_t error;
        ck_assert_msg(o->code == 0, "exit code %d: %s", o->code, o->err);
        ck_assert_str_eq(o->err, "");
        json_t *document = json_loads(o->out, JSON_REJECT_DUPLICATES, &error);
        ck_assert_msg(document != NULL, "%s: %s", error.text, o->out);
        return document;
}

void outcome_refused(const struct outcome *o, int code) {
        ck_assert_msg(o->code == code, "exit code %d: %s%s", o->code, o->err, o->out);
        ck_assert_uint_eq(o->out_size, 0);
        ck_assert_msg(strncmp(o->err, "gmsctl: ", 8) == 0 && strlen(o->err) > 16, "stderr: %s", o->err);
        ck_assert_msg(strchr(o->err, '\n') == o->err + strlen(o->err) - 1, "not one line: %s", o->err);
}

void run_on_terminal(const char *const *args, unsigned short columns, char *shown, size_t room) {
        int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
        struct winsize size = { .ws_col = columns, .ws_row = 24 };
        size_t n = 0;

        ck_assert_int_ge(master, 0);
        ck_assert_int_eq(grantpt(master), 0);
        ck_assert_int_eq(unlockpt(master), 0);
        int slave = open(ptsname(master), O_RDWR | O_NOCTTY | O_CLOEXEC);
        ck_assert_int_ge(slave, 0);
        ck_assert_int_eq(ioctl(slave, TIOCSWINSZ, &size), 0);
        struct spawn s = { .args = args, .out_fd = -1, .err_fd = slave };
        spawn_start(&s);
        close_fd(slave);
        for (ssize_t r; n < room - 1 && (r = read(master, shown + n, room - 1 - n)) > 0;) /* EIO: the slave is closed */
                n += (size_t)r;
        shown[n] = '\0';
        close_fd(master);
        _cleanup_outcome_ struct outcome o = spawn_end(&s);
        ck_assert_int_eq(o.code, 0);
}

/* ---- files */

const char *run_path(const char *name) {
        static char paths[32][512]; /* one test needs no more */
        static unsigned next;
        char *path = paths[next++ % ARRAY_SIZE(paths)];
        snprintf(path, sizeof(paths[0]), "%s/%s", run_dir, name);
        return path;
}

static char byte_of(const char *name, size_t i) {
        return (char)((i * 2654435761u >> 7) + (i >> 12) + (unsigned char)name[0]);
}

void run_make_file(const char *name, size_t size) {
        _cleanup_free_ char *bytes = malloc(size + 1);
        FILE *f = fopen(run_path(name), "we");
        ck_assert(f && bytes);
        for (size_t i = 0; i < size; i++)
                bytes[i] = byte_of(name, i);
        ck_assert_uint_eq(fwrite(bytes, 1, size, f), size);
        ck_assert_int_eq(fclose(f), 0);
}

void *run_read_file(const char *path, size_t *ret_size) {
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ck_assert_msg(fd >= 0, "%s: %s", path, strerror(errno));
        return read_fd(fd, ret_size);
}

bool run_file_is(const char *name, const void *bytes, size_t size) {
        size_t n;
        _cleanup_free_ char *is = run_read_file(run_path(name), &n);
        return n == size && memcmp(is, bytes, n) == 0;
}

unsigned run_count_files(void) {
        return count_entries(run_dir);
}

/* ---- sessions of the test itself */

struct gms *run_connect(const char *store, uint32_t mode, const char *label) {
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        struct gms *g = NULL;

        options.mode = mode;
        options.deadline_ms = 5000;
        options.label = label;
        ck_assert_int_eq(gms_open(&g, run_socket, store), 0);
        int r = gms_connect(g, &options);
        ck_assert_msg(r == 0, "%d: %s", r, gms_last_error());
        return g;
}

struct gms_store run_store(const char *store) {
        _cleanup_gms_ struct gms *g = run_connect(NULL, GMS_MODE_NONE, "test");
        struct gms_store *stores = NULL, found = { 0 };
        size_t n = 0;

        if (gms_query_stores(g, store, &stores, &n) == 0 && n == 1)
                found = stores[0];
        gms_array_free(stores);
        return found;
}
