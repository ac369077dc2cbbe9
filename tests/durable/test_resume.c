// SPDX-License-Identifier: MIT
/* What clients see of a death, beyond its steps: things that happen while there is no daemon, and more than one at once. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "people.h"

static void publish_and_leave(int line, void *arg) {
        (void)line, (void)arg;
        gms_close(client_publish("w", 1, m.granularity, 1));
}

/* ---- who is away when the daemon is */

static void seal_and_stay(int line, void *arg) {
        (void)arg;
        struct gms *g = client_build("s", 1, m.granularity, 6);
        ok(gms_seal(g));
        say(line, 's');
        park();
}

static void kill_child(void *arg) {
        child_kill(arg, SIGKILL);
}

/* A writer that sealed dies while nobody could see it: its fence must not stand for ever. */
TEST(resume, sealer_dies_meanwhile, .no_daemon = true, .memory = "64M")
{
        struct child c;
        world_start(&(struct world_options){});
        child_start(&c, seal_and_stay, NULL);
        child_wait(&c, 's');
        _cleanup_raw_ struct raw r;
        raw_queue(&r, "s", GMS__MODE__ADOPT, FOREVER, 1);
        world_kill_and(kill_child, &c);
        granted_mode(&r, raw_answer(&r, PATIENCE_MS), RW);
        ck_assert_uint_eq(r.reply->welcome->layout->allocations, 1);
        raw_close(&r);
        world_stop();
}

static void read_and_stay(int line, void *arg) {
        (void)arg;
        struct gms *g = client_attach("w");
        client_verify(g, 1);
        say(line, 'r');
        park();
}

static void wait_and_stay(int line, void *arg) {
        (void)arg;
        struct gms *g = client_open("w");
        say(line, 'w');
        ok(client_connect(g, GMS_MODE_RW, GMS_FOREVER, NULL));
        park();
}

static void kill_two(void *arg) {
        struct child **both = arg;
        child_kill(both[0], SIGKILL);
        child_kill(both[1], SIGKILL);
}

/* A reader and the waiter behind it: the one behind both is granted. */
TEST(resume, holder_and_waiter_die_meanwhile, .no_daemon = true, .memory = "64M")
{
        struct child reader, waiter;
        world_start(&(struct world_options){});
        child_start(&reader, publish_and_leave, NULL);
        child_end(&reader);
        child_start(&reader, read_and_stay, NULL);
        child_wait(&reader, 'r');
        child_start(&waiter, wait_and_stay, NULL);
        child_wait(&waiter, 'w');
        wait_for(waiters("w") == 1);
        _cleanup_raw_ struct raw r;
        raw_queue(&r, "w", GMS__MODE__RW, FOREVER, 2);
        struct child *both[] = { &reader, &waiter };
        world_kill_and(kill_two, both);
        granted_mode(&r, raw_answer(&r, PATIENCE_MS), RW);
        ck_assert_uint_eq(look("w").readers, 0);
        ck_assert_uint_eq(look("w").bytes, m.granularity);
        raw_close(&r);
        world_stop();
}

/* A deadline runs on while there is no daemon. */
static void let_pass(void *arg) {
        struct timespec t = { .tv_nsec = 300000000 };
        (void)arg;
        (void)nanosleep(&t, NULL);
}

TEST(resume, deadline_passes_meanwhile, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        struct raw holds = RAW, r = RAW;
        raw_join(&holds, "w", GMS__MODE__RW);
        raw_queue(&r, "w", GMS__MODE__RW, 250, 1);
        world_kill_and(let_pass, NULL);
        refused(&r, raw_answer(&r, PATIENCE_MS), TIMED_OUT, "deadline has passed");
        ended(&r);
        ck_assert_uint_eq(look("w").writers, 1);
        ck_assert_uint_ge(world_about()->away_ms, 250);
        raw_close(&r);
        raw_close(&holds);
        world_stop();
}

/* ---- who comes while there is none */

static void come_late(int line, void *arg) {
        (void)arg;
        struct gms *g = client_open("w");
        say(line, 'o');
        (void)hear(line);
        say(line, 'c');
        ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL));
        ok(gms_attach(g));
        client_verify(g, 1);
        gms_close(g);
}

static void go(void *arg) {
        struct child *c = arg;
        say(c->fd, 'g');
        child_wait(c, 'c');
}

TEST(resume, come_meanwhile, .no_daemon = true, .memory = "64M")
{
        struct child c;
        world_start(&(struct world_options){});
        child_start(&c, publish_and_leave, NULL);
        child_end(&c);
        child_start(&c, come_late, NULL);
        child_wait(&c, 'o');
        world_kill_and(go, &c);
        child_end(&c);
        world_stop();
}

/* A handle that only looks comes again by itself; its clear is not made twice. */
TEST(resume, looking, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        struct gms *g = client_open(NULL);
        ok(client_connect(g, GMS_MODE_NONE, PATIENCE_MS, NULL));
        for (unsigned i = 0; i < 3; i++) {
                struct gms_daemon d = GMS_INIT(struct gms_daemon);
                ok(gms_query_daemon(g, &d));
                ck_assert_uint_eq(d.pid, (uint64_t)m.gmsd);
                world_kill();
        }
        fails(-ENOENT, "no store", gms_clear(g, store("none"), 0));
        gms_close(g);
        world_stop();
}

/* What gmsctl says of it, to people and to programs. */
TEST(resume, shown, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        for (unsigned i = 0; i < 2; i++)
                world_kill();
        struct gms_daemon d = GMS_INIT(struct gms_daemon);
        struct gms *g = client_open(NULL);
        ok(client_connect(g, GMS_MODE_NONE, PATIENCE_MS, NULL));
        ok(gms_query_daemon(g, &d));
        ck_assert(d.durable == 1 && d.restarts == 2 && d.orphans == 0 && d.unaccounted == 0);
        _cleanup_free_ char *text = world_gmsctl("status");
        char wanted[64];
        (void)snprintf(wanted, sizeof(wanted), "2 restarts survived, away for %lu ms", d.away_ms);
        ck_assert_ptr_nonnull(strstr(text, wanted));
        _cleanup_free_ char *json = world_gmsctl("--json status");
        (void)snprintf(wanted, sizeof(wanted), "\"away_ms\": %lu", d.away_ms);
        ck_assert_ptr_nonnull(strstr(json, wanted));
        ck_assert_ptr_nonnull(strstr(json, "\"restarts\": 2"));
        gms_close(g);
        world_stop();
}

/* ---- more deaths than one */

TEST(resume, workers_die_too, .no_daemon = true, .memory = "64M")
{
        pid_t workers[8];
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1), *update = client("w", GMS_MODE_UPDATE);
        for (unsigned i = 0; i < 3; i++) {
                unsigned n = worker_pids(workers, ARRAY_SIZE(workers));
                for (unsigned k = 0; k < n; k++)
                        (void)kill(workers[k], SIGKILL);
                world_kill();
                ok(gms_allocate(update, m.granularity, NULL, NULL));
                client_verify(g, 1);
        }
        ck_assert_uint_eq(client_state(update).allocations, 3);
        ck_assert_uint_eq(world_about()->restarts, 3);
        gms_close(update);
        gms_close(g);
        world_stop();
}

/* Each death before the one after it was noticed by anybody. */
TEST(resume, deaths_in_a_row, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1), *update = client("w", GMS_MODE_UPDATE);
        for (unsigned i = 0; i < 4; i++)
                world_kill();
        ok(gms_allocate(update, m.granularity, NULL, NULL));
        client_fill(update, 2);
        ok(gms_commit(update, "next", 0));
        fails(-ESTALE, NULL, gms_refresh(g, NULL)); /* one allocation instead of two: the daemon knows */
        client_verify(g, 1);
        client_verify(update, 2);
        ck_assert_uint_eq(world_about()->restarts, 4);
        gms_close(update);
        gms_close(g);
        world_stop();
}

/* ---- a manager that is slow: what was answered must have been kept */

TEST(resume, manager_is_slow, .no_daemon = true, .memory = "64M", .seconds = 60)
{
        enum { MANY = 1500 };
        static struct raw rs[MANY];
        static char value[GMS_VALUE_MAX];
        struct gms_metadata e = { .size = sizeof(e), .key = "large", .value = value, .value_size = sizeof(value) };
        world_start(&(struct world_options){});
        struct gms *g = client_build("w", 2, m.granularity, 1);
        ok(gms_metadata_put(g, &e, 1));
        ck_assert_int_eq(kill(w.keeper, SIGSTOP), 0);
        for (unsigned i = 0; i < MANY; i++) /* more than the manager's socket takes */
                raw_hello_post(&rs[i], "q", GMS__MODE__RO, FOREVER);
        world_arm(0);
        for (unsigned i = 0; i < 60; i++) {
                memset(value, (int)i, sizeof(value));
                ok(gms_metadata_put(g, &e, 1)); /* needs no manager; the journal is begun anew meanwhile */
        }
        _cleanup_free_ char *steps = world_steps();
        ck_assert(strstr(steps, "journal-keep-after") && !strstr(steps, "snapshot-before"));
        pid_t was = m.gmsd;
        ck_assert_int_eq(kill(was, SIGKILL), 0);
        ck_assert_int_eq(kill(w.keeper, SIGCONT), 0);
        world_next(was);
        client_verify(g, 1);
        const char *key = "large";
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        ok(gms_metadata_get(g, &key, 1, &list));
        ck_assert_mem_eq(list.entries[0].value, value, sizeof(value)); /* the last that was answered */
        gms_metadata_free(&list);
        for (unsigned i = 0; i < MANY; i++)
                raw_close(&rs[i]);
        gms_close(g);
        wait_for(world_about()->sessions == 1);
        world_stop();
}

/* ---- without anybody who keeps anything */

TEST(resume, no_manager, .no_bystander = true)
{
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        struct gms *look_only = client_open(NULL);
        ok(client_connect(look_only, GMS_MODE_NONE, 0, NULL));
        machine_stop(SIGKILL);
        fails(-ECONNRESET, "connect again", gms_refresh(g, NULL));
        fails(-ENOTCONN, NULL, gms_refresh(g, NULL));
        struct gms_daemon d = GMS_INIT(struct gms_daemon);
        fails(-ENOTCONN, NULL, gms_query_daemon(look_only, &d));
        client_verify(g, 1); /* what is mapped stays */
        fails(-ECONNREFUSED, NULL, client_connect(g, GMS_MODE_RO, 100, NULL));
        gms_close(look_only);
        gms_close(g);
}
