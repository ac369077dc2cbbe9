// SPDX-License-Identifier: MIT
/* Limits of the daemon and of its clients: connections, descriptors, replies that nobody reads. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "client.h"
#include "raw.h"

static void set_files(uint64_t n) {
        struct rlimit l;
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &l), 0);
        l.rlim_cur = MIN(n, l.rlim_max);
        ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &l), 0);
}

/* ---- connections that say nothing */

TEST(limits, silent_connections)
{
        enum { MANY = 10000 };
        static struct raw silent[MANY];
        struct rlimit l;
        set_files(UINT64_MAX);
        (void)getrlimit(RLIMIT_NOFILE, &l);
        unsigned n = (unsigned)MIN((uint64_t)MANY, l.rlim_cur - 100);
        if (n < MANY)
                fprintf(stderr, "limits/silent_connections: %u of %u, for the limit of open files is %lu\n", n, MANY,
                        (unsigned long)l.rlim_cur);
        unsigned before = count_fds(m.gmsd);
        for (unsigned i = 0; i < n; i++)
                raw_connect(&silent[i]);

        /* Others are served as before, newcomers too. */
        uint64_t at = now_ms();
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 3, NULL);
        granted(&r, raw_page(&r, 0, 253, true));
        ck_assert_uint_lt(now_ms() - at, 2000);
        ck_assert_uint_lt(count_fds(m.gmsd), before + 1100);

        /* The oldest had to make room, and was told; the newest may still speak. */
        refused(&silent[0], raw_answer(&silent[0], PATIENCE_MS), LIMIT, "hello");
        ended(&silent[0]);
        granted(&silent[n - 1], ask(&silent[n - 1], HELLO, hello, b.protocol_min = b.protocol_max = 1));
        for (unsigned i = 0; i < n; i++)
                raw_close(&silent[i]);
}

/* Who says nothing for ten seconds is asked to leave. */
TEST(limits, silence)
{
        _cleanup_raw_ struct raw silent = RAW, speaks = RAW;
        uint64_t before = now_ms();
        raw_connect(&silent);
        raw_connect(&speaks);
        granted(&speaks, ask(&speaks, HELLO, hello, b.protocol_min = b.protocol_max = 1));
        refused(&silent, raw_answer(&silent, 2 * PATIENCE_MS), TIMED_OUT, "hello");
        ended(&silent);
        ck_assert_uint_ge(now_ms() - before, 9500);
        granted(&speaks, ask(&speaks, STATE, state));
}

/* ---- replies that nobody reads */

/* Sends requests until the socket takes no more; how many. */
static unsigned stuff(struct raw *r, bool descriptors) {
        unsigned n = 0;
        ck_assert_int_eq(fcntl(r->fd, F_SETFL, O_RDWR | O_NONBLOCK), 0);
        for (;; n++) {
                Gms__Page page = GMS__PAGE__INIT;
                Gms__Frame f = GMS__FRAME__INIT;
                page.count = 253;
                page.descriptors = descriptors;
                f.serial = ++r->serial;
                f.body_case = GMS__FRAME__BODY_PAGE;
                f.page = &page;
                _cleanup_free_ uint8_t *bytes = NULL;
                size_t len;
                ck_assert_int_eq(wire_pack(&f, 0, &bytes, &len), 0);
                int e = raw_send(r, bytes, len, NULL, 0);
                if (e == EAGAIN) {
                        struct pollfd room = { .fd = r->fd, .events = POLLOUT };
                        if (poll(&room, 1, 200) == 0)
                                break;
                        r->serial--;
                        n--;
                        continue;
                }
                ck_assert_int_eq(e, 0);
        }
        r->serial--;
        return n;
}

TEST(limits, replies_never_read)
{
        for (int descriptors = 0; descriptors < 2; descriptors++) {
                _cleanup_raw_ struct raw r = RAW, w = RAW;
                raw_join(&r, "w", GMS__MODE__RW);
                granted(&r, raw_allocate(&r, 1, 253, PATIENCE_MS));
                granted(&r, raw_commit(&r, NULL, false));
                uint64_t kib = resident_kib(m.gmsd), first = r.serial + 1;
                unsigned fds = count_fds(m.gmsd);
                bystander_reset();
                unsigned n = stuff(&r, descriptors);
                ck_assert_uint_gt(n, 10);
                for (int i = 0; i < 20; i++) { /* events to it, too */
                        raw_join(&w, "w", GMS__MODE__UPDATE);
                        granted(&w, raw_commit(&w, NULL, true));
                        raw_close(&w);
                }
                ck_assert_uint_lt(resident_kib(m.gmsd), kib + 4096);
                ck_assert_uint_le(count_fds(m.gmsd), fds + 253 + 2);
                ck_assert_uint_lt(bystander_worst_ms(NULL), 500);

                /* Should it read after all, everything is there, in order, and the news once. */
                for (unsigned i = 0; i < n; i++) {
                        granted(&r, raw_answer(&r, PATIENCE_MS));
                        ck_assert_uint_eq(r.reply->serial, first + i);
                        ck_assert_uint_eq(r.fds ? r.fds->n : 0, descriptors ? 253 : 0);
                }
                wait_for((raw_events(&r), r.events[GMS__EVENT__KIND__PUBLISHED] >= 1));
                ck_assert_uint_le(r.events[GMS__EVENT__KIND__PUBLISHED], 2);
                (void)ask(&control, CLEAR, clear, b.store = (char *)store("w"), b.force = true);
        }
}

static void stuff_and_stop(int line, void *arg) {
        struct raw r = RAW;
        (void)arg;
        raw_join(&r, "w", GMS__MODE__RO);
        (void)stuff(&r, true);
        say(line, 's');
        (void)raise(SIGSTOP);
        park();
}

TEST(limits, stopped_with_replies_unread)
{
        _cleanup_raw_ struct raw w = RAW;
        struct child c;
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_allocate(&w, 1, 253, PATIENCE_MS));
        granted(&w, raw_commit(&w, NULL, true));
        raw_close(&w);
        child_start(&c, stuff_and_stop, NULL);
        child_wait(&c, 's');
        ck_assert_int_eq(waitpid(c.pid, NULL, WUNTRACED), c.pid);
        raw_queue(&w, "w", GMS__MODE__RW, FOREVER, 1);
        child_kill(&c, SIGKILL);
        granted(&w, raw_answer(&w, PATIENCE_MS));
}

/* ---- the daemon's descriptors */

TEST(limits, descriptors_of_the_daemon, .files = 200)
{
        _cleanup_raw_ struct raw r = RAW, other = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, raw_allocate(&r, 1, 1000, PATIENCE_MS), LIMIT, "200");
        unsigned n = 0;
        int status;
        while ((status = raw_allocate(&r, 1, 1, PATIENCE_MS)) == GMS__STATUS__OK)
                n++;
        refused(&r, status, LIMIT, "LimitNOFILE");
        ck_assert_uint_ge(n, 50);
        ck_assert_uint_eq(look("w").building, n * m.granularity);
        refused(&other, raw_hello(&other, "other", GMS__MODE__RW, 0, NULL), LIMIT, "LimitNOFILE");
        ended(&other);
        raw_close(&other);
        granted(&r, raw_page(&r, 0, 253, true)); /* who is in goes on */
        ck_assert_uint_eq(r.fds->n, n);
        granted(&r, raw_commit(&r, NULL, true));
        raw_close(&r);
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w")));
        wait_for(raw_hello(&other, "other", GMS__MODE__RW, 0, NULL) == GMS__STATUS__OK || (raw_close(&other), false));
        granted(&other, raw_allocate(&other, 1, 50, PATIENCE_MS));
}

/* More sessions than it has descriptors: those that are too many are told, or wait at the door. */
TEST(limits, sessions, .files = 120)
{
        struct raw r[150];
        unsigned in = 0, told = 0;
        for (unsigned i = 0; i < ARRAY_SIZE(r); i++) {
                raw_connect(&r[i]);
                int status = ask(&r[i], HELLO, hello, b.protocol_min = b.protocol_max = 1);
                if (status == GMS__STATUS__OK) {
                        in++;
                        continue;
                }
                refused(&r[i], status, LIMIT, "LimitNOFILE");
                told++;
        }
        ck_assert_uint_ge(in, 20);
        ck_assert_uint_ge(told, 20);
        for (unsigned i = 0; i < in; i++)
                granted(&r[i], ask(&r[i], STATE, state));
        for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
                raw_close(&r[i]);
        wait_for(raw_hello(&r[0], "w", GMS__MODE__RW, 0, NULL) == GMS__STATUS__OK || (raw_close(&r[0]), false));
        raw_close(&r[0]);
}

/* As many sockets as it has descriptors, of which none has said a word: they keep nobody out. */
TEST(limits, silent_connections_of_a_small_daemon, .files = 120)
{
        struct raw r[300];
        for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
                raw_connect(&r[i]);
        _cleanup_raw_ struct raw w = RAW;
        raw_publish(&w, "w", 3, NULL);
        for (unsigned i = 0; i < ARRAY_SIZE(r); i++)
                raw_close(&r[i]);
}

/* ---- a client's descriptors */

static unsigned mapped(struct gms *g) {
        size_t n;
        unsigned is = 0;
        ok(gms_allocations(g, NULL, 0, &n));
        struct gms_allocation *a = calloc(n + 1, sizeof(*a));
        for (size_t i = 0; i < n; i++)
                a[i].size = sizeof(*a);
        ok(gms_allocations(g, a, n, &n));
        for (size_t i = 0; i < n; i++)
                is += a[i].access != GMS_ACCESS_NONE;
        free(a);
        return is;
}

/* The lock goes with the connection, when the library had to end it. */
static void connected_again(struct gms *g) {
        struct gms_state s = GMS_INIT(struct gms_state);
        if (gms_state(g, &s) < 0)
                ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL));
}

/* Room for `n` more descriptors: the limit is one of their numbers. */
static void few_files(unsigned n) {
        int next = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
        ck_assert_int_ge(next, 3);
        (void)close(next);
        set_files((unsigned)next + n);
}

#define SCARCE 60 /* of the 253 that come at once */

static void attach_with_few(int line, void *arg) {
        struct gms *g = client("w", GMS_MODE_RO);
        (void)line, (void)arg;
        for (int i = 0; i < 2; i++) {
                few_files(SCARCE);
                connected_again(g);
                unsigned fds = count_fds(getpid());
                fails(-EMFILE, "RLIMIT_NOFILE", gms_attach(g));
                ck_assert_uint_eq(mapped(g), 0);
                ck_assert_uint_le(count_fds(getpid()), fds);
        }
        set_files(UINT64_MAX);
        connected_again(g);
        ok(gms_attach(g));
        client_verify(g, 1);

        /* What was mapped once comes back at its place, all of it or nothing. */
        uint64_t address = client_find(g, 299).address;
        ok(gms_unmap_all(g));
        few_files(SCARCE);
        fails(-EMFILE, "RLIMIT_NOFILE", gms_remap_all(g, NULL));
        ck_assert_uint_eq(mapped(g), 0);
        set_files(UINT64_MAX);
        connected_again(g);
        ok(gms_remap_all(g, NULL));
        ck_assert_uint_eq(client_find(g, 299).address, address);
        client_verify(g, 1);
        gms_close(g);
}

static void publish_300(int line, void *arg) {
        struct gms *g = client("w", GMS_MODE_RW);
        uint64_t bytes[300];
        (void)line, (void)arg;
        for (unsigned i = 0; i < 300; i++)
                bytes[i] = 1000;
        ok(gms_allocate_many(g, 300, bytes, NULL, NULL));
        client_fill(g, 1);
        ok(gms_commit(g, NULL, 0));
        gms_close(g);
}

static void in_a_child(void (*body)(int line, void *arg)) {
        struct child c;
        child_start(&c, body, NULL);
        child_end(&c);
}

TEST(limits, descriptors_of_a_client)
{
        in_a_child(publish_300);
        in_a_child(attach_with_few);
}

/* A refresh that cannot take the new leaves the old in its place. */
static void refresh_with_few(int line, void *arg) {
        struct gms *g = client_attach("w");
        (void)arg;
        say(line, 'a');
        (void)hear(line);
        few_files(SCARCE);
        fails(-EMFILE, "RLIMIT_NOFILE", gms_refresh(g, NULL));
        ck_assert_uint_eq(mapped(g), 300);
        client_verify(g, 1);
        gms_close(g);
}

TEST(limits, descriptors_of_a_client_in_refresh)
{
        struct child c;
        in_a_child(publish_300);
        child_start(&c, refresh_with_few, NULL);
        child_wait(&c, 'a');
        _cleanup_raw_ struct raw w = RAW;
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, raw_allocate(&w, 1000, 300, PATIENCE_MS));
        granted(&w, raw_commit(&w, NULL, true));
        say(c.fd, 'n');
        child_end(&c);
}

/* None at all. */
static void none_at_all(int line, void *arg) {
        struct gms *g = client_open("w"), *other;
        (void)line, (void)arg;
        few_files(0);
        fails(-EMFILE, "RLIMIT_NOFILE", client_connect(g, GMS_MODE_RW, 0, NULL));
        fails(-EMFILE, "RLIMIT_NOFILE", gms_open(&other, m.socket, NULL));
        set_files(UINT64_MAX);
        ok(client_connect(g, GMS_MODE_RW, 0, NULL));
        gms_close(g);
}

TEST(limits, a_client_without_descriptors)
{
        in_a_child(none_at_all);
}
