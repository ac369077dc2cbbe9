// SPDX-License-Identifier: MIT
/* The daemon's beginning and end: its socket, its devices, and what it says when it cannot serve. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "client.h"
#include "raw.h"

#define ALONE .no_daemon = true

/* A daemon that ends by itself with this status, and says why in one line with this word. */
static void refuses(const struct gmsd_run *run, int status, const char *word) {
        struct gmsd_run r = *run;
        r.log = path_of("refusal.log");
        int is = process_end(gmsd_start(&r));
        _cleanup_free_ char *log = read_text(r.log);
        ck_assert_int_eq(unlink(r.log), 0);
        must(is == status, "ended with status %d: %s", is, log);
        const char *error = strncmp(log, "<3>", 3) == 0 ? log : strstr(log, "\n<3>");
        must(error && strstr(error, word) && strlen(error) > 30, "no \"%s\" in \"%s\"", word, log);
}

static pid_t serves(void) {
        pid_t pid = gmsd_start(&(struct gmsd_run){});
        gmsd_wait(m.socket);
        return pid;
}

static void end_well(pid_t pid, int signal) {
        ck_assert_int_eq(kill(pid, signal), 0);
        ck_assert_int_eq(process_end(pid), 0);
        ck_assert_int_ne(access(m.socket, F_OK), 0);
}

/* ---- the path */

TEST(socket, too_long, ALONE)
{
        char path[256];
        (void)snprintf(path, sizeof(path), "%s/%0*d", m.dir, 108 - (int)strlen(m.dir) - 1, 0);
        ck_assert_uint_eq(strlen(path), 108);
        refuses(&(struct gmsd_run){ .socket = path }, 2, "108 bytes");
        struct gms *g;
        fails(-ENAMETOOLONG, "108", gms_open(&g, path, NULL));

        path[107] = '\0'; /* just fits */
        pid_t pid = gmsd_start(&(struct gmsd_run){ .socket = path });
        gmsd_wait(path);
        ck_assert_int_eq(kill(pid, SIGTERM), 0);
        ck_assert_int_eq(process_end(pid), 0);
}

TEST(socket, not_writable, ALONE, .needs = NEEDS_ROOT)
{
        refuses(&(struct gmsd_run){ .uid = 65534 }, 1, m.socket); /* the directory is root's */
        ck_assert_int_eq(chmod(m.dir, 0755), 0);
        refuses(&(struct gmsd_run){ .uid = 65534 }, 1, "--socket");
        refuses(&(struct gmsd_run){ .socket = "/proc/gms/gmsd.sock" }, 1, "choose another path");
        refuses(&(struct gmsd_run){ .socket = path_of("no/such/gmsd.sock") }, 1, "choose another path");
}

TEST(socket, served_already)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 2, NULL);
        for (int i = 0; i < 3; i++)
                refuses(&(struct gmsd_run){}, 1, "another gmsd serves it");
        granted(&r, raw_page(&r, 0, 2, true));
        raw_close(&r);
        raw_join(&r, "w", GMS__MODE__RO);
}

/* Four that start at the same moment: one serves, the others give up. */
TEST(socket, race, ALONE)
{
        for (int i = 0; i < 5; i++) {
                pid_t pids[4];
                struct raw r = RAW;
                for (unsigned k = 0; k < 4; k++)
                        pids[k] = gmsd_start(&(struct gmsd_run){});
                gmsd_wait(m.socket);
                wait_for(raw_try(&r, m.socket));
                granted(&r, ask(&r, HELLO, hello, b.protocol_min = b.protocol_max = 1));
                granted(&r, ask(&r, ABOUT, about));
                pid_t winner = (pid_t)r.reply->daemon->pid;
                raw_close(&r);
                for (unsigned k = 0; k < 4; k++)
                        if (pids[k] != winner)
                                ck_assert_int_eq(process_end(pids[k]), 1);
                end_well(winner, SIGTERM);
        }
}

TEST(socket, left_by_a_dead_daemon, ALONE)
{
        for (int i = 0; i < 2; i++) {
                pid_t pid = serves();
                ck_assert_int_eq(kill(pid, SIGKILL), 0);
                ck_assert_int_eq(process_end(pid), 128 + SIGKILL);
                ck_assert_int_eq(access(m.socket, F_OK), 0);
                struct gms *g;
                ok(gms_open(&g, m.socket, NULL));
                fails(-ECONNREFUSED, "nobody listens", client_connect(g, GMS_MODE_NONE, 0, NULL));
                gms_close(g);
        }
        end_well(serves(), SIGTERM);
        _cleanup_free_ char *log = read_text(m.log);
        ck_assert_ptr_nonnull(strstr(log, "replacing that of a daemon that has died"));
}

TEST(socket, something_else_is_there, ALONE)
{
        FILE *f = fopen(m.socket, "we");
        ck_assert(f && fputs("precious", f) >= 0 && fclose(f) == 0);
        refuses(&(struct gmsd_run){}, 1, "no socket is there");
        _cleanup_free_ char *text = read_text(m.socket);
        ck_assert_str_eq(text, "precious");
        ck_assert_int_eq(symlink(m.socket, path_of("link")), 0);
        refuses(&(struct gmsd_run){ .socket = path_of("link") }, 1, "no socket is there");
        ck_assert_int_eq(mkdir(path_of("dir"), 0755), 0);
        refuses(&(struct gmsd_run){ .socket = path_of("dir") }, 1, "no socket is there");

        /* A socket of another kind, that somebody listens on. */
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path_of("stream"));
        _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
        ck_assert_int_eq(listen(fd, 1), 0);
        refuses(&(struct gmsd_run){ .socket = path_of("stream") }, 1, "stream");
        ck_assert_int_eq(access(path_of("stream"), F_OK), 0);
        struct gms *g;
        ok(gms_open(&g, path_of("stream"), NULL));
        fails(-EPROTO, "another kind of socket", client_connect(g, GMS_MODE_NONE, 0, NULL));
        gms_close(g);
}

/* ---- the end */

/* In the middle of everything: with a writer, a reader, one that waits, and one that has said nothing. */
TEST(socket, ends_on_signals)
{
        _cleanup_raw_ struct raw w = RAW, waiter = RAW, reader = RAW, silent = RAW;
        raw_publish(&reader, "r", 2, NULL);
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_allocate(&w, 1, 300, PATIENCE_MS));
        raw_queue(&waiter, "w", GMS__MODE__RW, FOREVER, 1);
        raw_connect(&silent);
        machine_stop(SIGTERM);
        struct raw *all[] = { &w, &waiter, &reader, &silent };
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                int status;
                while ((status = raw_answer(all[i], PATIENCE_MS)) == GMS__STATUS__OK)
                        ; /* the lock of who went before it, for a moment */
                ck_assert_int_eq(status, RAW_ENDED);
                raw_close(all[i]);
        }
}

TEST(socket, ends_on_interrupt, ALONE)
{
        end_well(serves(), SIGINT);
        end_well(serves(), SIGTERM);
}

/* ---- ready */

/* Reads until the service manager is told this. */
static void told(int notify, const char *what) {
        char text[4096];
        ssize_t n;
        do {
                struct pollfd readable = { .fd = notify, .events = POLLIN };
                must(poll(&readable, 1, PATIENCE_MS) == 1, "the service manager was not told %s", what);
                n = recv(notify, text, sizeof(text) - 1, 0); /* descriptors that come along are closed */
                text[MAX(n, 0)] = '\0';
        } while (!strstr(text, what));
}

/* READY=1 for the service manager, within 20 ms of the last worker's answer; the best of a few, on a busy machine. */
TEST(socket, ready_soon, ALONE)
{
        struct sockaddr_un address = { .sun_family = AF_UNIX };
        _cleanup_close_ int notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        (void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", path_of("notify"));
        ck_assert_int_eq(bind(notify, (struct sockaddr *)&address, sizeof(address)), 0);
        ck_assert_int_eq(setenv("NOTIFY_SOCKET", address.sun_path, 1), 0);
        ck_assert_int_eq(mkfifo(path_of("log"), 0600), 0);
        uint64_t best = UINT64_MAX;
        for (int i = 0; i < 10 && best >= 20; i++) {
                char text[4096];
                _cleanup_close_ int log = open(path_of("log"), O_RDWR | O_CLOEXEC);
                pid_t pid = gmsd_start(&(struct gmsd_run){ .log = path_of("log") });
                ssize_t n = read(log, text, sizeof(text) - 1); /* its first line: the device is ready */
                uint64_t answered = now_ms();
                ck_assert_int_gt(n, 0);
                text[n] = '\0';
                ck_assert_ptr_nonnull(strstr(text, ": ready: "));
                told(notify, "READY=1");
                best = MIN(best, now_ms() - answered);
                ck_assert_int_eq(kill(pid, SIGTERM), 0);
                told(notify, "STOPPING=1");
                ck_assert_int_eq(process_end(pid), 0);
        }
        ck_assert_msg(best < 20, "ready %lu ms after its workers' answers", best);
        (void)unsetenv("NOTIFY_SOCKET");
}

/* ---- devices */

TEST(socket, devices_that_are_none, ALONE)
{
        static const struct {
                const char *devices[3];
                int status;
                const char *word;
        } cases[] = {
                { { "cuda:77" }, 1, "none of the devices" },
                { { "cuda:GPU-00000000-0000-0000-0000-000000000000" }, 1, "none of the devices" },
                { { "cuda:x" }, 2, "cuda:x" },
                { { "cuda:GPU-1" }, 2, "cuda:GPU-1" },
                { { "disk" }, 2, "disk" },
                { { "host:0" }, 2, "host:0" },
                { { "host:99999999T" }, 2, "host:99999999T" },
                { { "host:1X" }, 2, "host:1X" },
                { { "host:1G", "host:2G" }, 2, "given twice" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++)
                refuses(&(struct gmsd_run){ .devices = cases[i].devices }, cases[i].status, cases[i].word);
}

/* One that cannot be opened does not keep the others from being served, and is shown for what it is. */
TEST(socket, a_device_that_does_not_open, .no_bystander = true, .also = "cuda:77", .respawns = true)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 2, NULL);
        ck_assert_str_eq(look_device(1).name, "cuda:77");
        ck_assert_str_ne(look_device(1).state, "ready");
        ck_assert_uint_ge(strlen(look_device(1).text), 10);
        _cleanup_raw_ struct raw other = RAW;
        raw_connect(&other);
        refused(&other, ask(&other, HELLO, hello, b.protocol_min = b.protocol_max = 1, b.mode = GMS__MODE__RW,
                            b.store = (char *)"cuda:77/w"), FAULTED, "cuda:77/w");
        ended(&other);
}

TEST(socket, a_gpu_by_two_names, ALONE, .needs = NEEDS_FAKE)
{
        const char *const twice[] = { "cuda:0", "cuda:GPU-fa4ecda0-0000-4000-8000-000000000000", NULL };
        refuses(&(struct gmsd_run){ .devices = twice }, 1, "the same GPU");
}

TEST(socket, every_gpu, ALONE, .needs = NEEDS_FAKE, .devices = "3")
{
        const char *const all[] = { "cuda", "host:64M", NULL };
        pid_t pid = gmsd_start(&(struct gmsd_run){ .devices = all });
        gmsd_wait(m.socket);
        raw_connect(&control);
        granted(&control, ask(&control, HELLO, hello, b.protocol_min = b.protocol_max = 1));
        ck_assert_str_eq(look_device(0).name, "cuda:0");
        ck_assert_str_eq(look_device(2).name, "cuda:2");
        ck_assert_str_eq(look_device(3).name, "host");
        ck_assert_uint_eq(look_device(3).total, 64 << 20);
        raw_close(&control);
        end_well(pid, SIGTERM);
}
