// SPDX-License-Identifier: MIT
/* What the daemon is told: devices and their sizes, the command line, the file below it, the defaults below that. */
#undef NDEBUG
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "config.h"

static int fds_before;
static struct config config;
static char dir[] = "/tmp/gms-config-XXXXXX";

static int count_fds(void) {
        DIR *d = opendir("/proc/self/fd");
        int n = 0;
        ck_assert_ptr_nonnull(d);
        while (readdir(d))
                n++;
        (void)closedir(d);
        return n;
}

static const char *path_of(const char *name) {
        static char path[128];
        (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
        return path;
}

static void setup(void) {
        ck_assert_ptr_nonnull(mkdtemp(dir));
        (void)unsetenv("GMS_SOCKET");
        (void)unsetenv("XDG_RUNTIME_DIR");
        fds_before = count_fds();
}

static void teardown(void) {
        config_done(&config);
        ck_assert_int_eq(count_fds(), fds_before);
        (void)unlink(path_of("file"));
        (void)rmdir(dir);
}

/* ---- SPEC */

#define UUID "GPU-01234567-89ab-cdef-0123-456789abcdef"

static const struct {
        const char *text;
        const char *spec; /* NULL: refused */
        uint64_t capacity;
} specs[] = {
        { "cuda", "cuda", 0 },
        { "cuda:0", "cuda:0", 0 },
        { "cuda:15", "cuda:15", 0 },
        { "cuda:" UUID, "cuda:" UUID, 0 },
        { "host", "host", 0 },
        { "host,huge", "host,huge", 0 },
        { "host:1", "host", 1 },
        { "host:4096", "host", 4096 },
        { "host:1K", "host", 1ull << 10 },
        { "host:3m", "host", 3ull << 20 },
        { "host:16G", "host", 16ull << 30 },
        { "host:2T,huge", "host,huge", 2ull << 40 },
        { "host:0016k", "host", 16ull << 10 },
        { "host:18446744073709551615", "host", UINT64_MAX },
        { "host:16777215T", "host", 16777215ull << 40 },
        { "host:18446744073709551616", NULL, 0 },
        { "host:99999999999999999999999", NULL, 0 },
        { "host:16777216T", NULL, 0 },
        { "host:16777217T", NULL, 0 }, /* what is left of it is above 0 */
        { "host:18014398509481984K", NULL, 0 },
        { "host:18014398509481983K", "host", 18014398509481983ull << 10 },
        { "host:0", NULL, 0 },
        { "host:0G", NULL, 0 },
        { "host:", NULL, 0 },
        { "host:G", NULL, 0 },
        { "host:-1", NULL, 0 },
        { "host:+1", NULL, 0 },
        { "host: 1", NULL, 0 },
        { "host:1 ", NULL, 0 },
        { "host:1.5G", NULL, 0 },
        { "host:0x10", NULL, 0 },
        { "host:1GB", NULL, 0 },
        { "host:1P", NULL, 0 },
        { "host:1G,", NULL, 0 },
        { "host:1G,hug", NULL, 0 },
        { "host:1G,huge,huge", NULL, 0 },
        { "host,", NULL, 0 },
        { "hostile", NULL, 0 },
        { "host1G", NULL, 0 },
        { "hos", NULL, 0 },
        { "HOST", NULL, 0 },
        { "", NULL, 0 },
        { "cuda:", NULL, 0 },
        { "cuda0", NULL, 0 },
        { "cuda:-1", NULL, 0 },
        { "cuda:0,huge", NULL, 0 },
        { "cuda:12345", NULL, 0 },
        { "cuda:0x1", NULL, 0 },
        { "cuda:GPU-", NULL, 0 },
        { "cuda:GPU-0123", NULL, 0 },
        { "cuda:" UUID "0", NULL, 0 },
        { "cuda:" UUID "/", NULL, 0 },
        { "cuda:GPU-g1234567-89ab-cdef-0123-456789abcdef", NULL, 0 },
        { "cuda:GPU-0123456789012345678901234567890123456789012345678901234567890123456789", NULL, 0 },
        { "rocm:0", NULL, 0 },
};

START_TEST(spec) {
        int r = config_add_device(&config, specs[_i].text, _i % 2);
        if (!specs[_i].spec) {
                ck_assert_msg(r == CONFIG_E_USAGE, "\"%s\" was taken", specs[_i].text);
                ck_assert_uint_eq(config.n_devices, 0);
                return;
        }
        ck_assert_int_eq(r, 0);
        ck_assert_uint_eq(config.n_devices, 1);
        ck_assert_str_eq(config.devices[0].spec, specs[_i].spec);
        ck_assert_uint_eq(config.devices[0].capacity, specs[_i].capacity);
        ck_assert_int_eq(config.devices[0].optional, _i % 2);
}
END_TEST

/* ---- command lines */

#define ARGS_MAX 8

struct line {
        const char *name;
        const char *args[ARGS_MAX];
        const char *file;         /* what the file holds; NULL: there is none. "@" among the args is its path */
        const char *environment;  /* GMS_SOCKET */
        int outcome;
        const char *socket;
        const char *devices;      /* with spaces between; "?" behind an optional one */
        mode_t mode;              /* 0: the default */
};

static const struct line lines[] = {
        { "nothing said", {}, .environment = "/e", .socket = "/e", .devices = "cuda? host?" },
        { "a device said: no others", { "--device", "host:1G" }, .environment = "/e", .socket = "/e", .devices = "host" },
        { "in the order given", { "--device=cuda:1", "--device", "host", "--device", "cuda:0" },
          .environment = "/e", .socket = "/e", .devices = "cuda:1 host cuda:0" },
        { "every GPU, said: no host", { "--device", "cuda" }, .environment = "/e", .socket = "/e", .devices = "cuda" },
        { "the socket of the command line", { "--socket", "/a" }, .environment = "/e", .socket = "/a", .devices = "cuda? host?" },
        { "the last socket", { "--socket", "/a", "--socket", "/b" }, .socket = "/b", .devices = "cuda? host?" },
        { "twice the same device", { "--device", "cuda:0", "--device", "cuda:0" }, .outcome = CONFIG_E_USAGE },
        { "host twice, with other words", { "--device", "host:1G", "--device", "host,huge" }, .outcome = CONFIG_E_USAGE },
        { "a bad device", { "--device", "tape" }, .outcome = CONFIG_E_USAGE },
        { "no such option", { "--sockets", "/a" }, .outcome = CONFIG_E_USAGE },
        { "no short options", { "-s", "/a" }, .outcome = CONFIG_E_USAGE },
        { "an option without its value", { "--socket" }, .outcome = CONFIG_E_USAGE },
        { "something that is no option", { "--socket", "/a", "start" }, .outcome = CONFIG_E_USAGE },
        { "an empty socket", { "--socket", "" }, .outcome = CONFIG_E_USAGE },
        { "an empty socket in the environment is none", { "--device", "host" }, .environment = "", .socket = "/run/gms/gmsd.sock",
          .devices = "host" },

        { "an empty file", { "--config", "@" }, "", "/e", .socket = "/e", .devices = "cuda? host?" },
        { "a whole file", { "--config", "@" },
          "# gmsd\n\n  socket = /f  \nsocket-mode=0600\ndevice = host:1G\n\tdevice\t=\tcuda:0\t\n", "/e", .socket = "/f",
          .devices = "host cuda:0", .mode = 0600 },
        { "no line end at the end", { "--config", "@" }, "socket = /f", "/e", .socket = "/f", .devices = "cuda? host?" },
        { "the command line wins", { "--config", "@", "--socket", "/a", "--device", "host" },
          "socket = /f\ndevice = cuda:0\nsocket-mode = 0666\n", "/e", .socket = "/a", .devices = "host", .mode = 0666 },
        { "each for itself", { "--device", "host", "--config", "@" }, "socket = /f\ndevice = cuda:0\n", "/e", .socket = "/f",
          .devices = "host" },
        { "the last socket of a file", { "--config", "@" }, "socket = /f\nsocket = /g\n", .socket = "/g", .devices = "cuda? host?" },
        { "an equals sign in a value", { "--config", "@" }, "socket = /f=g\n", .socket = "/f=g", .devices = "cuda? host?" },
        { "an unknown key", { "--config", "@" }, "sockets = /f\n", .outcome = CONFIG_E_USAGE },
        { "no key", { "--config", "@" }, "= /f\n", .outcome = CONFIG_E_USAGE },
        { "no equals sign", { "--config", "@" }, "socket /f\n", .outcome = CONFIG_E_USAGE },
        { "a bad device in a file", { "--config", "@" }, "device = tape\n", .outcome = CONFIG_E_USAGE },
        { "a device twice in a file", { "--config", "@" }, "device = host\ndevice = host:1G\n", .outcome = CONFIG_E_USAGE },
        { "an empty socket in a file", { "--config", "@" }, "socket =\n", .outcome = CONFIG_E_USAGE },
        { "a mode that is not octal", { "--config", "@" }, "socket-mode = 0680\n", .outcome = CONFIG_E_USAGE },
        { "a mode that is too large", { "--config", "@" }, "socket-mode = 01777\n", .outcome = CONFIG_E_USAGE },
        { "a negative mode", { "--config", "@" }, "socket-mode = -1\n", .outcome = CONFIG_E_USAGE },
        { "no mode", { "--config", "@" }, "socket-mode =\n", .outcome = CONFIG_E_USAGE },
        { "a fault behind good lines", { "--config", "@" }, "socket = /f\nnonsense\n", .outcome = CONFIG_E_USAGE },
        { "no such file", { "--config", "@/none" }, .outcome = CONFIG_E_USAGE },
        { "a directory for a file", { "--config", "/tmp" }, "", "/e", .outcome = CONFIG_E_USAGE },
};

static int parse(const struct line *l) {
        char *argv[ARGS_MAX + 2] = { (char *)"gmsd" };
        int argc = 1;
        for (size_t i = 0; i < ARGS_MAX && l->args[i]; i++)
                argv[argc++] = (char *)(l->args[i][0] == '@' ? path_of("file") : l->args[i]);
        if (l->environment)
                (void)setenv("GMS_SOCKET", l->environment, 1);
        if (l->file) {
                FILE *f = fopen(path_of("file"), "we");
                ck_assert_ptr_nonnull(f);
                (void)fputs(l->file, f);
                (void)fclose(f);
        }
        optind = 0; /* start anew, says getopt(3) */
        return config_parse(&config, argc, argv);
}

START_TEST(command_line) {
        const struct line *l = &lines[_i];
        char devices[256] = "";
        ck_assert_msg(parse(l) == l->outcome, "%s: not the outcome %d", l->name, l->outcome);
        if (l->outcome != 0)
                return;
        if (!l->environment && !l->socket)
                ck_abort_msg("%s: says no socket", l->name);
        for (size_t i = 0; i < config.n_devices; i++) {
                size_t n = strlen(devices);
                (void)snprintf(devices + n, sizeof(devices) - n, "%s%s%s", i ? " " : "", config.devices[i].spec,
                               config.devices[i].optional ? "?" : "");
        }
        if (geteuid() == 0 || strcmp(l->socket, "/run/gms/gmsd.sock") != 0)
                ck_assert_str_eq(config.socket, l->socket);
        ck_assert_str_eq(devices, l->devices);
        ck_assert_uint_eq(config.socket_mode, l->mode ? l->mode : 0660);
        ck_assert(!config.worker);
}
END_TEST

/* ---- the rest */

START_TEST(worker) {
        ck_assert_int_eq(parse(&(struct line){ .args = { "--worker", "cuda:0" } }), 0);
        ck_assert(config.worker);
}
END_TEST

/* Questions are answered on stdout, and are not failures. */
START_TEST(questions) {
        static const struct {
                const char *arg, *says;
        } asked[] = { { "--version", "gmsd " GMS_VERSION "\n" }, { "--help", "--device SPEC" } };
        char text[4096];
        _cleanup_close_ int out = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600), saved = dup(STDOUT_FILENO);
        ck_assert_int_ge(out, 0);
        ck_assert_int_ge(dup2(out, STDOUT_FILENO), 0);
        int r = parse(&(struct line){ .args = { asked[_i].arg, "--device", "tape" } });
        (void)fflush(stdout);
        ck_assert_int_ge(dup2(saved, STDOUT_FILENO), 0);
        ck_assert_int_eq(r, CONFIG_E_EXIT);
        ssize_t n = pread(out, text, sizeof(text) - 1, 0);
        ck_assert_int_gt(n, 0);
        text[n] = 0;
        ck_assert_ptr_nonnull(strstr(text, asked[_i].says));
}
END_TEST

/* Who is not root has a directory of its own, or must say where. */
START_TEST(not_root) {
        if (geteuid() == 0)
                ck_assert_int_eq(seteuid(54321), 0);
        int r = parse(&(struct line){ .args = { "--device", "host" } });
        int with_dir = setenv("XDG_RUNTIME_DIR", "/run/user/54321", 1);
        ck_assert_int_eq(r, CONFIG_E_USAGE);
        ck_assert_int_eq(with_dir, 0);
        config_done(&config);
        r = parse(&(struct line){ .args = { "--device", "host" } });
        if (getuid() == 0)
                ck_assert_int_eq(seteuid(0), 0);
        ck_assert_int_eq(r, 0);
        ck_assert_str_eq(config.socket, "/run/user/54321/gms/gmsd.sock");
}
END_TEST

/* What a socket's address has room for, and one byte more. */
START_TEST(length_of_the_socket) {
        char path[109];
        memset(path, 'p', sizeof(path));
        path[0] = '/';
        path[107] = 0;
        ck_assert_int_eq(parse(&(struct line){ .args = { "--socket", path } }), 0);
        config_done(&config);
        path[107] = 'p';
        path[108] = 0;
        ck_assert_int_eq(parse(&(struct line){ .args = { "--socket", path } }), CONFIG_E_USAGE);
}
END_TEST

int main(void) {
        Suite *s = suite_create("config");
        TCase *t = tcase_create("devices");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_loop_test(t, spec, 0, (int)ARRAY_SIZE(specs));
        suite_add_tcase(s, t);
        t = tcase_create("lines");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_loop_test(t, command_line, 0, (int)ARRAY_SIZE(lines));
        tcase_add_test(t, worker);
        tcase_add_loop_test(t, questions, 0, 2);
        tcase_add_test(t, not_root);
        tcase_add_test(t, length_of_the_socket);
        suite_add_tcase(s, t);

        /* It says on stderr what is wrong; here that is only in the way. */
        if (!getenv("V"))
                (void)!freopen("/dev/null", "w", stderr);
        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
