// SPDX-License-Identifier: MIT
#include "people.h"

#include <limits.h>
#include <signal.h>
#include <string.h>

struct people p;

/* How many descriptors each process has when nobody is there. */
static unsigned own_fds, gmsd_fds, keeper_fds;

/* ---- coming */

static void seal(int line, void *arg) {
        (void)arg;
        (void)hear(line);
        struct gms *g = client_build("s", 1, m.granularity, 6);
        ok(gms_seal(g));
        ok(gms_disconnect(g));
        say(line, 's');
        park();
}

static void post_hunger(void) {
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = UINT32_MAX;
        item.size = m.total - 2 * m.granularity;
        Gms__Allocate body = GMS__ALLOCATE__INIT;
        body.n_items = 1;
        body.items = items;
        body.deadline = &deadline;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_ALLOCATE;
        f.allocate = &body;
        f.serial = p.hungry_serial;
        raw_post(&p.hungry, &f);
        p.hungry_serial = f.serial;
}

static void put(struct gms *g, const char *key) {
        struct gms_metadata e = { .size = sizeof(e), .key = key, .value = "value", .value_size = 5 };
        ok(gms_metadata_put(g, &e, 1));
}

static void build_second_generation(struct gms *g, unsigned n, uint32_t seed) {
        for (unsigned i = 0; i < n; i++)
                ok(gms_allocate(g, m.granularity, i ? NULL : "part", NULL));
        client_fill(g, seed);
}

void people_come(void) {
        memset(&p, 0, sizeof(p));
        world_start(&(struct world_options){});
        child_start(&p.sealer, seal, NULL); /* before this process is a client of the GPU */
        gms_close(client_open("warm-up"));
        /* From here on the daemon watches this process, which has asked for a lock. */
        struct raw r = RAW;
        refused(&r, raw_hello(&r, "warm-up", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "nothing is published");
        raw_close(&r);
        wait_for(look("warm-up").state[0] == '\0' && world_about()->sessions == 1 && look_device(0).owned == 0);
        own_fds = count_fds(getpid()) - 1; /* the line to the sealer */
        gmsd_fds = keeper_fds = UINT_MAX; /* what is on its way out may still be there */
        unsigned step = 0;
        for (uint64_t end = now_ms() + 5; until_(end, &step);) {
                gmsd_fds = MIN(gmsd_fds, count_fds(m.gmsd));
                keeper_fds = MIN(keeper_fds, world_kept());
        }

        say(p.sealer.fd, 'g');
        child_wait(&p.sealer, 's');
        wait_for(strcmp(state_of("s"), "SEALED") == 0);
        p.first = client_publish("w", 3, 2 * m.granularity - 5, 1);
        p.second = client_attach("w");
        p.update = client("w", GMS_MODE_UPDATE);
        build_second_generation(p.update, 2, 2);
        put(p.update, "key");
        raw_queue(&p.waits_rw, "w", GMS__MODE__RW, FOREVER, 1);
        raw_queue(&p.waits_ro, "w", GMS__MODE__RO, FOREVER, 2);
        p.old = client_publish("d", 1, m.granularity, 3);
        p.fresh = client("d", GMS_MODE_UPDATE);
        build_second_generation(p.fresh, 1, 4);
        ok(gms_commit(p.fresh, "second", 0));
        p.alone = client_build("x", 3, m.granularity, 5);
        put(p.alone, "key");
        raw_queue(&p.adopts, "s", GMS__MODE__ADOPT, FOREVER, 1);
        raw_join(&p.hungry, "m", GMS__MODE__RW);
        post_hunger();
        wait_for(look_device(0).waiting == 1);
}

/* ---- a death later */

/* A raw client that has been told says its Hello again, under its serial. */
static void say_again(struct raw *r, const char *name, Gms__Mode mode) {
        if (r->fd < 0 || r->reply || !raw_waits(r) || r->events[GMS__EVENT__KIND__RESUMED] == 0)
                return;
        r->events[GMS__EVENT__KIND__RESUMED] = 0;
        Gms__Hello hello = GMS__HELLO__INIT;
        hello.protocol_min = WIRE_PROTOCOL_MIN;
        hello.protocol_max = WIRE_PROTOCOL_MAX;
        hello.mode = mode;
        hello.label = (char *)"raw";
        hello.store = (char *)store(name);
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_HELLO;
        f.hello = &hello;
        f.serial = 1;
        raw_post(r, &f);
}

void people_resume(void) {
        say_again(&p.waits_rw, "w", GMS__MODE__RW);
        say_again(&p.waits_ro, "w", GMS__MODE__RO);
        say_again(&p.adopts, "s", GMS__MODE__ADOPT);
        if (raw_waits(&p.hungry) && p.hungry.events[GMS__EVENT__KIND__RESUMED] > 0) {
                p.hungry.events[GMS__EVENT__KIND__RESUMED] = 0;
                post_hunger();
        }
        wait_for(look_device(0).waiting == 1);
}

void people_verify(void) {
        client_verify(p.first, 1);
        client_verify(p.second, 1);
        client_verify(p.fresh, 4);
        client_verify_some(p.update, 0, 2, m.granularity); /* what came later has no bytes yet */
        client_verify_some(p.update, 1, 2, m.granularity);
        client_verify_some(p.alone, 1, 5, m.granularity);
}

void people_sealer_exits(void) {
        child_kill(&p.sealer, SIGKILL);
}

/* ---- going */

static void adopted_bytes(void) {
        raw_close(&p.adopts);
        wait_for(strcmp(state_of("s"), "SEALED") == 0);
        struct gms *g = client("s", GMS_MODE_ADOPT);
        ok(gms_attach(g));
        client_verify(g, 6);
        gms_close(g);
        wait_for(strcmp(state_of("s"), "SEALED") == 0);
}

void people_go(void) {
        if (p.sealer.pid)
                people_sealer_exits();
        granted_mode(&p.adopts, p.adopts.reply ? (int)p.adopts.reply->status : raw_answer(&p.adopts, PATIENCE_MS), RW);
        adopted_bytes();
        gms_close(p.update);
        ck_assert(raw_waits(&p.waits_rw) && raw_waits(&p.waits_ro));
        gms_close(p.first);
        gms_close(p.second);
        granted_mode(&p.waits_rw, raw_answer(&p.waits_rw, PATIENCE_MS), RW);
        ck_assert(raw_waits(&p.waits_ro));
        granted(&p.waits_rw, raw_commit(&p.waits_rw, NULL, false));
        granted_mode(&p.waits_ro, raw_answer(&p.waits_ro, PATIENCE_MS), RO);
        raw_close(&p.waits_rw);
        raw_close(&p.waits_ro);
        gms_close(p.old);
        gms_close(p.fresh);
        gms_close(p.alone);
        static const char *const names[] = { "w", "d", "s", "x" };
        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                wait_for((ask(&control, CLEAR, clear, b.store = (char *)store(names[i])) == GMS__STATUS__NOT_FOUND));
        granted(&p.hungry, raw_answer(&p.hungry, PATIENCE_MS));
        ck_assert_uint_eq(p.hungry.reply->serial, p.hungry_serial);
        ck_assert_uint_eq(world_about()->allocations, 1);
        ck_assert_uint_eq(p.hungry.fds->n, 1);
        raw_close(&p.hungry);
        wait_for(world_about()->sessions == 1 && control.reply->daemon->bytes == 0);
        wait_for(look_device(0).owned == 0);
        world_fds_are(m.gmsd, gmsd_fds);
        world_kept_is(keeper_fds);
        ck_assert_uint_eq(count_fds(getpid()), own_fds);
        world_stop();
}
