// SPDX-License-Identifier: MIT
/*
 * A death of the daemon at every step of everything it does. Each action is done once without a death, which says what
 * comes of it and which steps it takes; then as often as it takes steps, with a death at each: the caller must not see
 * a difference, nor may anybody else, and what comes of it is the same.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "people.h"

/* ---- actions */

static void allocate(void) {
        ok(gms_allocate(p.update, m.granularity + 1, "more", NULL));
}

static void allocate_many(void) {
        uint64_t bytes[] = { 1, m.granularity, m.granularity };
        ok(gms_allocate_many(p.update, 3, bytes, NULL, NULL));
}

static void free_one(void) {
        ok(gms_free(p.alone, client_find(p.alone, 0).id));
}

static void put(void) {
        struct gms_metadata e[] = {
                { .size = sizeof(e[0]), .key = "a", .value = "value", .value_size = 5 },
                { .size = sizeof(e[0]), .key = "key", .value = "other", .value_size = 5, .slot = 1 },
        };
        ok(gms_metadata_put(p.update, e, 2));
}

static void delete(void) {
        const char *key = "key";
        ok(gms_metadata_delete(p.alone, &key, 1));
}

static void seal(void) {
        ok(gms_seal(p.alone));
}

static void discard(void) {
        ok(gms_discard(p.update));
}

static void commit(void) {
        ok(gms_commit(p.update, "next", 0));
}

static void commit_leave(void) {
        ok(gms_commit(p.update, "next", GMS_COMMIT_LEAVE));
}

static void refresh(void) {
        int changed = 0;
        ok(gms_refresh(p.old, &changed));
        ck_assert_int_eq(changed, 1);
        client_verify(p.old, 4);
}

static struct gms *comes;

static void come_to_read(void) {
        comes = client_open("d");
        ok(client_connect(comes, GMS_MODE_RO, PATIENCE_MS, NULL));
        ok(gms_attach(comes));
        client_verify(comes, 4);
}

static void come_to_write(void) {
        comes = client_open("n");
        ok(client_connect(comes, GMS_MODE_RW_OR_RO, PATIENCE_MS, NULL));
}

static void come_and_time_out(void) {
        comes = client_open("w");
        fails(-ETIMEDOUT, NULL, client_connect(comes, GMS_MODE_RW, 150, NULL));
}

static void leave(void) {
        ok(gms_disconnect(p.second));
}

static void leave_unpublished(void) {
        ok(gms_disconnect(p.alone));
}

static void killed(void) {
        people_sealer_exits();
        wait_for((world_look(), look("s").writers == 1));
}

/* Who only looks has no session that lives on, and asks again on a new one. */
static void clear(void) {
        int status;
        while ((status = ask(&control, CLEAR, clear, b.store = (char *)store("d"), b.force = true)) == RAW_ENDED)
                world_look();
        ck_assert(status == GMS__STATUS__OK || status == GMS__STATUS__NOT_FOUND);
}

static void restart(void) {
        world_kill();
}

static void compact(void) {
        static char value[GMS_VALUE_MAX];
        struct gms_metadata e = { .size = sizeof(e), .key = "large", .value = value, .value_size = sizeof(value) };
        for (unsigned i = 0; i < 40; i++) {
                memset(value, (int)i, sizeof(value));
                ok(gms_metadata_put(p.update, &e, 1));
        }
}

static const struct action {
        const char *name;
        void (*act)(void);
        const char *only; /* of its steps, those whose names begin so */
        bool clears;      /* the stores that somebody reads */
} actions[] = {
        { "allocate", allocate },
        { "allocate_many", allocate_many },
        { "free", free_one },
        { "put", put },
        { "delete", delete },
        { "seal", seal },
        { "discard", discard },
        { "commit", commit },
        { "commit_leave", commit_leave },
        { "refresh", refresh },
        { "come_to_read", come_to_read },
        { "come_to_write", come_to_write },
        { "come_and_time_out", come_and_time_out },
        { "leave", leave },
        { "leave_unpublished", leave_unpublished },
        { "killed", killed },
        { "clear", clear, .clears = true },
        { "restart", restart },
        { "compact", compact, .only = "snapshot" },
};

/* ---- once without, then at each step */

/* Does it; `n` is the step at which the daemon dies, 0: none. The steps, if it does not; the caller frees them. */
static char *run(const struct action *a, unsigned n, char **state) {
        char what[128], *steps = NULL;
        (void)snprintf(what, sizeof(what), "%s, step %u", a->name, n);
        comes = NULL;
        people_come();
        pid_t was = m.gmsd;
        world_arm(n);
        a->act();
        if (n > 0) {
                wait_for(!world_armed());
                world_next(was);
        } else {
                steps = world_steps();
                world_look();
        }
        people_resume();
        if (n > 0)
                world_state_is(*state, what);
        else
                *state = world_state();
        if (!a->clears)
                people_verify();
        gms_close(comes);
        people_go();
        return steps;
}

static void mark(const char *names[], bool *reached, size_t n, const char *name) {
        for (size_t i = 0; i < n; i++)
                if (strcmp(names[i], name) == 0)
                        reached[i] = true;
}

TEST(crash, every_step, .no_daemon = true, .memory = "64M", .seconds = 120)
{
        static const char *points[] = {
#include "crash_points.h"
        };
        bool reached[ARRAY_SIZE(points)] = {};
        const char *only = getenv("GMS_CRASH_ACTION");
        unsigned deaths = 0;
        for (size_t i = 0; i < ARRAY_SIZE(actions); i++) {
                const struct action *a = &actions[i];
                _cleanup_free_ char *state = NULL;
                char *rest;
                if (only && strcmp(only, a->name) != 0)
                        continue;
                _cleanup_free_ char *steps = run(a, 0, &state);
                unsigned n = 0;
                for (char *name = strtok_r(steps, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
                        n++;
                        mark(points, reached, ARRAY_SIZE(points), name);
                        if (a->only && strncmp(name, a->only, strlen(a->only)) != 0)
                                continue;
                        if (only)
                                fprintf(stderr, "%s: step %u: %s\n", a->name, n, name);
                        (void)run(a, n, &state);
                        deaths++;
                }
                ck_assert_msg(n > 0, "%s takes no step", a->name);
        }
        for (size_t i = 0; i < ARRAY_SIZE(points); i++)
                ck_assert_msg(reached[i] || only, "no action comes to the point %s", points[i]);
        printf("crash: %zu actions, %u deaths\n", ARRAY_SIZE(actions), deaths);
}
