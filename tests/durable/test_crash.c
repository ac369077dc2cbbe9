// SPDX-License-Identifier: MIT
/*
 * A death of the daemon at every step of everything it does. Each action is done once without a death, which says what
 * comes of it and which steps it takes; then as often as it takes steps, with a death at each: the caller must not see
 * a difference, nor may anybody else, and what comes of it is the same.
 */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

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
        wait_for((world_look(), look("w").readers == 1));
}

static void leave_unpublished(void) {
        ok(gms_disconnect(p.alone));
        wait_for((world_look(), look("x").writers == 0));
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
        bool many;        /* records: a death at each of the other steps will do */
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
        { "compact", compact, .many = true },
};

/* ---- once without, then at each step */

struct try {
        const struct action *action;
        unsigned death; /* at which step the daemon dies; 0: at none */
};

static void write_text(const char *name, const char *text) {
        FILE *f = fopen(path_of(name), "we");
        ck_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

/* In a process of its own, as that of a GPU's client must be. Without a death it writes down the steps and what came of it. */
static void try(int line, void *arg) {
        const struct try *t = arg;
        char what[128];
        (void)line;
        (void)snprintf(what, sizeof(what), "%s, step %u", t->action->name, t->death);
        people_come();
        pid_t was = m.gmsd;
        world_arm(t->death);
        t->action->act();
        if (t->death > 0) {
                wait_for(!world_armed());
                world_next(was);
        } else {
                _cleanup_free_ char *steps = world_steps();
                write_text("steps", steps);
                world_look();
        }
        people_resume();
        if (t->death > 0) {
                _cleanup_free_ char *wanted = read_text(path_of("state"));
                world_state_is(wanted, what);
        } else {
                _cleanup_free_ char *state = world_state();
                write_text("state", state);
        }
        if (!t->action->clears)
                people_verify();
        gms_close(comes);
        people_go();
}

static void run(const struct action *a, unsigned death) {
        struct child c;
        struct try t = { a, death };
        child_start(&c, try, &t);
        int status = 0;
        ck_assert_int_eq(waitpid(c.pid, &status, 0), c.pid);
        ck_assert_msg(status == 0, "%s, step %u: status %d", a->name, death, status);
        (void)close(c.fd);
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
                char *rest;
                if (only && strcmp(only, a->name) != 0)
                        continue;
                run(a, 0);
                _cleanup_free_ char *steps = read_text(path_of("steps"));
                unsigned n = 0;
                for (char *name = strtok_r(steps, "\n", &rest); name; name = strtok_r(NULL, "\n", &rest)) {
                        n++;
                        mark(points, reached, ARRAY_SIZE(points), name);
                        if (a->many && strncmp(name, "record", 6) == 0)
                                continue;
                        if (only)
                                fprintf(stderr, "%s: step %u: %s\n", a->name, n, name);
                        run(a, n);
                        deaths++;
                }
                ck_assert_msg(n > 0, "%s takes no step", a->name);
        }
        for (size_t i = 0; i < ARRAY_SIZE(points); i++)
                ck_assert_msg(reached[i] || only, "no action comes to the point %s", points[i]);
        printf("crash: %zu actions, %u deaths, with %s\n", ARRAY_SIZE(actions), deaths,
               getenv("GMS_MANAGER") ? "systemd" : "gms-keeper");
}
