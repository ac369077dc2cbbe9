// SPDX-License-Identifier: MIT
/* SIGKILL of clients of the library, at every step: what was published stays, what was not is gone, all of it. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>

#include "client.h"
#include "raw.h"

/* Stops here, for its end. */
static void at(int line, int step, const void *arg) {
        if (*(const char *)arg != step)
                return;
        say(line, step);
        park();
}

/* ---- a writer */

static void write_steps(int line, void *arg) {
        struct gms *g = client_open("w");
        at(line, 'o', arg);
        ok(client_connect(g, GMS_MODE_RW, PATIENCE_MS, NULL));
        at(line, 'c', arg);
        for (int i = 0; i < 3; i++)
                ok(gms_allocate(g, 3 * m.granularity, "part", NULL));
        at(line, 'a', arg);
        client_fill(g, 1);
        at(line, 'f', arg);
        struct gms_metadata e = { .size = sizeof(e), .key = "k", .slot = 0 };
        ok(gms_metadata_put(g, &e, 1));
        at(line, 'p', arg);
        ok(gms_commit(g, "committed", 0));
        at(line, 'C', arg);
        ok(gms_unmap_all(g));
        at(line, 'u', arg);
        ok(gms_remap_all(g, NULL));
        client_verify(g, 1);
        at(line, 'm', arg);
        ok(gms_disconnect(g));
        at(line, 'd', arg);
}

TEST(kill, writer_at_each_step)
{
        uint64_t generation = 0;
        for (const char *step = "ocafpCumd"; *step; step++) {
                struct child c;
                struct store_view before = look("w");
                child_start(&c, write_steps, (void *)step);
                child_wait(&c, *step);
                child_kill(&c, SIGKILL);
                wait_for(look("w").readers + look("w").writers == 0);
                struct store_view after = look("w");
                if (strchr("ocafp", *step)) {
                        ck_assert_mem_eq(&after, &before, sizeof(after));
                        continue;
                }
                ck_assert_uint_eq(after.generation, ++generation);
                ck_assert_str_eq(after.state, "COMMITTED");
                ck_assert_str_eq(after.identity, "committed");
                ck_assert_uint_eq(after.bytes, 9 * m.granularity);
        }
}

/* What a dead writer had committed is whole. */
TEST(kill, writer_after_commit_leaves_its_bytes)
{
        struct child c;
        child_start(&c, write_steps, (void *)"C");
        child_wait(&c, 'C');
        child_kill(&c, SIGKILL);
        _cleanup_gms_ struct gms *g = client_attach("w");
        client_verify(g, 1);
}

/* ---- a reader */

static void read_steps(int line, void *arg) {
        struct gms *g = client("w", GMS_MODE_RO);
        at(line, 'c', arg);
        ok(gms_attach(g));
        client_verify(g, 5);
        at(line, 'a', arg);
        ok(gms_unmap_all(g));
        at(line, 'u', arg);
        ok(gms_remap_all(g, NULL));
        client_verify(g, 5);
        at(line, 'm', arg);
        say(line, 'w'); /* for the next generation */
        (void)hear(line);
        int changed;
        ok(gms_refresh(g, &changed));
        ck_assert_int_eq(changed, 1);
        client_verify(g, 6);
        at(line, 'r', arg);
}

static void publish(int line, void *arg) {
        struct gms *g = client("w", GMS_MODE_UPDATE);
        (void)line;
        for (int i = 0; i < 3; i++)
                ok(gms_allocate(g, m.granularity, "part", NULL));
        client_fill(g, *(const uint32_t *)arg);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        gms_close(g);
}

static void publish_by_child(uint32_t seed) {
        struct child c;
        child_start(&c, publish, &seed);
        child_end(&c);
}

TEST(kill, reader_at_each_step)
{
        publish_by_child(5);
        for (const char *step = "caumr"; *step; step++) {
                struct child c;
                child_start(&c, read_steps, (void *)step);
                if (*step == 'r') {
                        child_wait(&c, 'w');
                        publish_by_child(6);
                        say(c.fd, 'n');
                }
                child_wait(&c, *step);
                ck_assert_uint_eq(look("w").readers, 1);
                child_kill(&c, SIGKILL);
                wait_for(look("w").readers == 0);
                ck_assert_uint_eq(look("w").bytes, 3 * m.granularity);
        }
}

/* Between a refresh and its settling it holds two generations. */
static void refresh_half(int line, void *arg) {
        struct raw r = RAW;
        (void)arg;
        raw_join(&r, "w", GMS__MODE__RO);
        say(line, 'j');
        (void)hear(line);
        granted(&r, ask(&r, REFRESH, refresh));
        granted(&r, ask(&r, PAGE, page, b.count = 9, b.descriptors = true, b.generation = 2));
        say(line, 'r');
        park();
}

TEST(kill, reader_in_refresh)
{
        struct child c;
        _cleanup_raw_ struct raw w = RAW;
        raw_publish(&w, "w", 2, NULL);
        child_start(&c, refresh_half, NULL);
        child_wait(&c, 'j');
        raw_close(&w);
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, raw_allocate(&w, 1, 3, 0));
        granted(&w, raw_commit(&w, NULL, true));
        say(c.fd, 'n');
        child_wait(&c, 'r');
        ck_assert_uint_eq(look("w").bytes, 5 * m.granularity);
        child_kill(&c, SIGKILL);
        wait_for(look("w").bytes == 3 * m.granularity);
        ck_assert_uint_eq(look("w").draining_layouts, 0);
}

/* ---- at any moment */

static void pause_us(unsigned us) {
        struct timespec t = { .tv_nsec = (long)us * 1000 };
        (void)nanosleep(&t, NULL);
}

static void write_and_read(int line, void *arg) {
        (void)line, (void)arg;
        for (;;) {
                struct gms *g = client("w", GMS_MODE_RW);
                for (int i = 0; i < 3; i++)
                        ok(gms_allocate(g, m.granularity, "part", NULL));
                client_fill(g, 5);
                ok(gms_commit(g, NULL, 0));
                ok(gms_unmap_all(g));
                ok(gms_remap_all(g, NULL));
                client_verify(g, 5);
                gms_close(g);
        }
}

TEST(kill, at_any_moment, .seconds = 60)
{
        uint64_t generation = 0;
        for (unsigned i = 0; i < (m.cuda && !m.fake ? 15 : 60); i++) { /* a real context takes its time */
                struct child c;
                child_start(&c, write_and_read, NULL);
                pause_us(i * 7919 % 20000);
                child_kill(&c, SIGKILL);
                wait_for(look("w").readers + look("w").writers == 0);
                struct store_view v = look("w");
                ck_assert_uint_ge(v.generation, generation);
                ck_assert_uint_eq(v.bytes, v.generation ? 3 * m.granularity : 0);
                generation = v.generation;
        }
        /* Whatever is there now is whole. */
        if (generation == 0)
                publish_by_child(5);
        _cleanup_gms_ struct gms *g = client_attach("w");
        client_verify(g, 5);
}

/* ---- sealed memory outlives its writers */

struct tenure {
        uint32_t found, left; /* seeds; 0: builds it */
};

static void adopt(int line, void *arg) {
        const struct tenure *t = arg;
        struct gms *g = client("kv", GMS_MODE_ADOPT);
        if (t->found == 0) {
                for (int i = 0; i < 3; i++)
                        ok(gms_allocate(g, m.granularity, "kv", NULL));
                ok(gms_seal(g));
        } else {
                ck_assert(client_state(g).sealed);
                ok(gms_attach(g));
                client_verify(g, t->found);
        }
        client_fill(g, t->left);
        say(line, 'w');
        park();
}

TEST(kill, sealed_writers_one_after_the_other)
{
        static struct tenure tenures[] = { { 0, 1 }, { 1, 2 }, { 2, 3 }, { 3, 4 } };
        uint64_t bytes = 0;
        for (size_t i = 0; i < ARRAY_SIZE(tenures); i++) {
                struct child c;
                child_start(&c, adopt, &tenures[i]);
                child_wait(&c, 'w');
                ck_assert_str_eq(state_of("kv"), "RW");
                child_kill(&c, SIGKILL);
                wait_for(strcmp(state_of("kv"), "SEALED") == 0);
                bytes = bytes ? bytes : look("kv").bytes;
                ck_assert_uint_eq(look("kv").bytes, bytes); /* the same, never a copy */
        }
        ck_assert_uint_eq(bytes, 3 * m.granularity);
}

/* The next one waits in line while the one before is still alive. */
TEST(kill, sealed_writer_with_an_heir)
{
        static struct tenure tenures[] = { { 0, 1 }, { 1, 2 } };
        struct child first, heir;
        child_start(&first, adopt, &tenures[0]);
        child_wait(&first, 'w');
        child_start(&heir, adopt, &tenures[1]);
        wait_for(waiters("kv") == 1);
        child_kill(&first, SIGKILL);
        child_wait(&heir, 'w');
        child_kill(&heir, SIGKILL);
}

/* ---- stopped, not dead */

static void stop_itself(int line, void *arg) {
        struct raw r = RAW;
        if (*(const char *)arg == 'h') {
                raw_hello_post(&r, "w", GMS__MODE__RO, FOREVER);
        } else {
                raw_join(&r, "w", GMS__MODE__RO);
                granted(&r, raw_page(&r, 0, 253, true));
                post(&r, PAGE, page, b.first = 253, b.count = 253, b.descriptors = true);
        }
        (void)line;
        (void)raise(SIGSTOP);
        park();
}

/* In the middle of Hello, and of an attach: it holds its lock, and nothing else. */
TEST(kill, stopped_in_the_middle)
{
        for (const char *where = "ha"; *where; where++) {
                _cleanup_raw_ struct raw w = RAW, next = RAW, reader = RAW;
                struct child c;
                raw_join(&w, "w", GMS__MODE__RW);
                granted(&w, raw_allocate(&w, 1, 300, PATIENCE_MS));
                granted(&w, raw_commit(&w, NULL, true));
                child_start(&c, stop_itself, (void *)where);
                ck_assert_int_eq(waitpid(c.pid, NULL, WUNTRACED), c.pid);
                wait_for(look("w").readers == 1);
                raw_join(&reader, "w", GMS__MODE__RO);
                granted(&reader, raw_page(&reader, 0, 253, true));
                raw_close(&reader);
                refused(&next, raw_hello(&next, "w", GMS__MODE__RW, 50, NULL), TIMED_OUT, "readers");
                raw_close(&next);
                raw_queue(&next, "w", GMS__MODE__RW, FOREVER, 1);
                child_kill(&c, SIGKILL);
                granted(&next, raw_answer(&next, PATIENCE_MS));
                raw_close(&next);
                wait_for(look("w").writers == 0);
        }
}
