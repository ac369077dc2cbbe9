// SPDX-License-Identifier: MIT
/*
 * What gmsd costs, against what the same work costs without it, measured in one run: a table, and BUILD/bench.json.
 *
 *   bench [--device SPEC] [--build DIR] [--part NAME]
 *
 * A missed goal is said, and fails the run only with BENCH_STRICT=1: a machine with other work to do is not a failure.
 * With --part only that part runs, and no JSON is written.
 */
#include "bench.h"

#include <ftw.h>
#include <getopt.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const struct {
        const char *name;
        void (*run)(struct bench *b);
} parts[] = {
        { "rtt", rtt_run }, { "attach", attach_run }, { "alloc", alloc_run }, { "busy", busy_run }, { "herd", herd_run },
        { "durable", durable_run }, { "suballoc", suballoc_run }, { "slabs", slabs_run }, { "tensors", tensors_run },
        { "load", load_run },
};

static struct bench bench;
static pid_t first;
static volatile sig_atomic_t interrupted;

/* ---- processes */

void bench_die(const char *format, ...) {
        va_list args;
        (void)fputs("bench: ", stderr);
        va_start(args, format);
        (void)vfprintf(stderr, format, args);
        va_end(args);
        (void)fputs(interrupted ? " (interrupted)\n" : "\n", stderr);
        if (getpid() != first)
                _exit(2);
        exit(2);
}

struct helper bench_fork(void (*run)(int fd, void *arg), void *arg) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
                bench_die("socketpair: %s", strerror(errno));
        (void)fflush(NULL);
        pid_t parent = getpid(), pid = fork();
        if (pid < 0)
                bench_die("fork: %s", strerror(errno));
        if (pid == 0) {
                close_fd(ends[0]);
                (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
                if (getppid() == parent)
                        run(ends[1], arg);
                _exit(0);
        }
        close_fd(ends[1]);
        return (struct helper){ .pid = pid, .fd = ends[0] };
}

void bench_join(struct helper *h) {
        int status;
        (void)shutdown(h->fd, SHUT_RDWR); /* helpers that were forked later hold it too */
        h->fd = close_fd(h->fd);
        if (waitpid(h->pid, &status, 0) != h->pid || status != 0)
                bench_die("a helper process failed: status %#x", (unsigned)status);
}

/* ---- rows */

void bench_row(struct bench *b, const char *name, const char *unit, double value, double floor, double goal, const char *what,
               ...) {
        assert(b->n_rows < ARRAY_SIZE(b->rows));
        struct row *r = &b->rows[b->n_rows++];
        *r = (struct row){ .value = value, .floor = floor, .goal = goal };
        (void)snprintf(r->name, sizeof(r->name), "%s", name);
        (void)snprintf(r->unit, sizeof(r->unit), "%s", unit);
        va_list args;
        va_start(args, what);
        (void)vsnprintf(r->what, sizeof(r->what), what, args);
        va_end(args);
}

static double row_ratio(const struct row *r) {
        return r->value / r->floor; /* not a number without floor */
}

/* A row that has no goal cannot miss it. */
static bool row_ok(const struct row *r) {
        return isnan(r->goal) || row_ratio(r) <= r->goal;
}

static void print_number(double value, int width, int decimals) {
        if (isnan(value))
                printf(" %*s", width, "-");
        else
                printf(" %*.*f", width, decimals, value);
}

static size_t print_table(const struct bench *b) {
        size_t missed = 0;
        printf("%-24s %12s %-5s %12s %7s %6s %-6s  %s\n", "name", "value", "unit", "floor", "ratio", "goal", "", "what is measured");
        for (size_t i = 0; i < b->n_rows; i++) {
                const struct row *r = &b->rows[i];
                printf("%-24s", r->name);
                print_number(r->value, 12, 1);
                printf(" %-5s", r->unit);
                print_number(r->floor, 12, 1);
                print_number(row_ratio(r), 7, 3);
                print_number(r->goal, 6, 2);
                printf(" %-6s  %s\n", isnan(r->goal) ? "" : row_ok(r) ? "ok" : "MISSED", r->what);
                missed += !row_ok(r);
        }
        return missed;
}

static void json_number(FILE *f, const char *key, double value) {
        if (isnan(value))
                (void)fprintf(f, ", \"%s\": null", key);
        else
                (void)fprintf(f, ", \"%s\": %.4f", key, value);
}

static void write_json(const struct bench *b) {
        char path[sizeof(b->build) + 16];
        (void)snprintf(path, sizeof(path), "%s/bench.json", b->build);
        FILE *f = fopen(path, "we");
        if (!f)
                bench_die("%s: %s", path, strerror(errno));
        for (size_t i = 0; i < b->n_rows; i++) {
                const struct row *r = &b->rows[i];
                (void)fprintf(f, "%s{\"name\": \"%s\"", i ? ",\n " : "[", r->name);
                json_number(f, "value", r->value);
                (void)fprintf(f, ", \"unit\": \"%s\"", r->unit);
                json_number(f, "floor", r->floor);
                json_number(f, "ratio", row_ratio(r));
                json_number(f, "goal", r->goal);
                (void)fprintf(f, ", \"ok\": %s}", row_ok(r) ? "true" : "false");
        }
        (void)fputs("]\n", f);
        if (ferror(f) | fclose(f))
                bench_die("%s: cannot be written", path);
}

/* ---- a run */

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw) {
        (void)st, (void)type, (void)ftw;
        return remove(path);
}

static void clean_up(void) {
        if (getpid() == first)
                (void)nftw(bench.dir, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

/* Blocking calls return, what waits for them says so, and the run ends by exit(). */
static void on_signal(int number) {
        (void)number;
        interrupted = 1;
}

/* Of thousands of descriptors at once. */
static void raise_descriptor_limit(void) {
        struct rlimit l;
        if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
                l.rlim_cur = l.rlim_max;
                (void)setrlimit(RLIMIT_NOFILE, &l);
        }
}

static void prepare(void) {
        first = getpid();
        raise_descriptor_limit();
        struct sigaction action = { .sa_handler = on_signal };
        (void)sigaction(SIGINT, &action, NULL);
        (void)sigaction(SIGTERM, &action, NULL);
        (void)signal(SIGPIPE, SIG_IGN);
        /* The fake driver's memory is a file there: on tmpfs, or writing back its bytes costs time. */
        (void)snprintf(bench.dir, sizeof(bench.dir), "/dev/shm/gms-bench-XXXXXX");
        if (!mkdtemp(bench.dir))
                bench_die("a directory in /dev/shm: %s", strerror(errno));
        (void)atexit(clean_up);
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "device", required_argument, NULL, 'd' },
                { "build", required_argument, NULL, 'b' },
                { "part", required_argument, NULL, 'p' },
                {},
        };
        const char *build = "build", *part = NULL, *strict = getenv("BENCH_STRICT");
        bench.device = "host";
        for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                if (o == 'd')
                        bench.device = optarg;
                else if (o == 'b')
                        build = optarg;
                else if (o == 'p')
                        part = optarg;
                else
                        return 2;
        }
        if (!realpath(build, bench.build)) {
                (void)fprintf(stderr, "bench: %s: %s\n", build, strerror(errno));
                return 2;
        }

        prepare();
        double began = now_us();
        for (size_t i = 0; i < ARRAY_SIZE(parts); i++) {
                if (part && strcmp(part, parts[i].name) != 0)
                        continue;
                double since = now_us();
                (void)fprintf(stderr, "bench: %s ...", parts[i].name);
                parts[i].run(&bench);
                (void)fprintf(stderr, " %.1f s\n", (now_us() - since) / 1e6);
                if (interrupted)
                        bench_die("ended");
        }
        if (bench.n_rows == 0)
                bench_die("there is no part '%s'", part);

        size_t missed = print_table(&bench);
        printf("%zu goals missed; %s, %.0f s\n", missed, bench.device, (now_us() - began) / 1e6);
        if (!part)
                write_json(&bench);
        return missed > 0 && strict && strcmp(strict, "1") == 0 ? 1 : 0;
}
