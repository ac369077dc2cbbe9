// SPDX-License-Identifier: MIT
/*
 * The story of gmsd in acts, with real processes and real bytes. Each act says what happens and checks it; the first that
 * fails ends the demo with 1.
 *
 *   demo [--device SPEC] [--gmsd PATH]
 *
 * gmsd runs under gms-keeper, which is found beside it.
 */
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "stage.h"

#define MIB(bytes) ((double)(bytes) / 1048576.0)
#define IDENTITY_1 "demo model, first version"
#define IDENTITY_2 "demo model, second version"
#define IDENTITY_3 "another model"
#define IDENTITY_4 "built across a death"

/* The cast: two readers who stay from the second act on. */
struct cast {
        struct process *anna, *ben;
        uint64_t physical;  /* bytes that one version takes on the device */
        uint64_t addresses; /* of Anna's pieces, from her first attach on */
};

static struct answer ask(struct process *p, enum verb verb) {
        return actor_ask(p, &(struct order){ .verb = verb });
}

static struct answer ask_version(struct process *p, enum verb verb, uint32_t version) {
        return actor_ask(p, &(struct order){ .verb = verb, .version = version, .n = PIECES });
}

static struct answer ask_lock(struct process *p, uint32_t mode) {
        return actor_ask(p, &(struct order){ .verb = CONNECT, .mode = mode });
}

static struct answer ask_commit(struct process *p, const char *identity) {
        struct order o = { .verb = COMMIT };
        snprintf(o.text, sizeof(o.text), "%s", identity);
        return actor_ask(p, &o);
}

/* Every byte, read by the actor itself. */
static bool check_bytes(struct stage *s, struct process *p, uint32_t version) {
        struct answer a = ask_version(p, VERIFY, version);
        if (a.result != 0)
                return stage_check(s, false, "%s reads version %u: %s", p->name, version, a.text);
        return stage_check(s, true, "%s verifies all %.0f MiB of version %u (%.0f ms)", p->name, MIB(version_bytes(version)),
                           version, a.ms);
}

/* A writer's whole life: lock, memory, bytes, commit, gone. */
static bool publish(struct stage *s, uint32_t mode, uint32_t version, const char *identity) {
        struct process *w = actor_start(s, "writer");
        struct answer lock = ask_lock(w, mode);
        if (lock.result != 0)
                return stage_check(s, false, "the writer gets the lock: %s", lock.text);
        struct answer build = ask_version(w, BUILD, version);
        struct answer fill = build.result == 0 ? ask_version(w, FILL, version) : build;
        struct answer commit = fill.result == 0 ? ask_commit(w, identity) : fill;
        if (commit.result != 0)
                return stage_check(s, false, "the writer publishes version %u: %s", version, commit.text);
        stage_check(s, true, "the writer (pid %d) allocates %u pieces, %.0f MiB, in %.1f ms and fills them in %.0f ms",
                    (int)w->pid, PIECES, MIB(version_bytes(version)), build.ms, fill.ms);
        stage_check(s, true, "it publishes them in %.2f ms as \"%s\"", commit.ms, identity);
        actor_end(s, w);
        return s->failed == 0;
}

static void act_publish(struct stage *s, struct cast *c) {
        if (!publish(s, GMS_MODE_RW, 1, IDENTITY_1))
                return;
        struct gms_store store = stage_store(s);
        c->physical = store.bytes;
        stage_check(s, strcmp(store.state, "COMMITTED") == 0 && store.generation == 1 && store.bytes >= version_bytes(1),
                    "the writer has exited; %s is %s, generation %llu, and holds %.0f MiB", s->store, store.state,
                    (unsigned long long)store.generation, MIB(store.bytes));
}

static bool attach(struct stage *s, struct process *p, struct answer *ret) {
        struct answer lock = ask_lock(p, GMS_MODE_RO);
        *ret = lock.result == 0 ? ask(p, ATTACH) : lock;
        if (ret->result != 0)
                return stage_check(s, false, "%s attaches: %s", p->name, ret->text);
        return stage_check(s, ret->mapped == 1 && ret->allocations == PIECES,
                           "%s (pid %d) is connected in %.2f ms and attached to %.0f MiB in %.2f ms", p->name, (int)p->pid,
                           lock.ms, MIB(ret->bytes), ret->ms);
}

static void act_attach(struct stage *s, struct cast *c) {
        struct answer anna, ben;
        uint64_t owned;

        c->anna = actor_start(s, "Anna");
        c->ben = actor_start(s, "Ben");
        if (!attach(s, c->anna, &anna) || !attach(s, c->ben, &ben))
                return;
        c->addresses = anna.addresses;
        check_bytes(s, c->anna, 1);
        check_bytes(s, c->ben, 1);
        bool once = stage_settles(s, c->physical, 0, &owned);
        stage_check(s, once, "the device still owns %.0f MiB: two processes have it, and it is there once", MIB(owned));
        if (!s->host)
                return;
        anna = ask(c->anna, LOOK);
        ben = ask(c->ben, LOOK);
        stage_check(s, anna.inode != 0 && anna.inode == ben.inode, "both map the same memory object (inode %llu)",
                    (unsigned long long)anna.inode);
        /* Each has all of it in its page tables; the kernel's shares of both add up to it once. */
        stage_check(s,
                    anna.rss >= version_bytes(1) && ben.rss >= version_bytes(1) &&
                            anna.pss + ben.pss <= c->physical * 11 / 10,
                    "each sees %.0f MiB (Rss); shared out they have %.0f + %.0f MiB (Pss)", MIB(anna.rss), MIB(anna.pss),
                    MIB(ben.pss));
}

static void act_sleep(struct stage *s, struct cast *c) {
        struct answer sleep = ask(c->anna, SLEEP), look = ask(c->anna, LOOK);
        stage_check(s, sleep.result == 0 && look.mapped == 0 && look.rss == 0, "Anna gives her mappings back in %.2f ms%s%s",
                    sleep.ms, sleep.text[0] ? ": " : "", sleep.text);
        check_bytes(s, c->ben, 1);
        struct answer wake = ask(c->anna, WAKE);
        stage_check(s, wake.result == 0 && wake.mapped == 1 && wake.changed == 0, "Anna wakes in %.2f ms%s%s", wake.ms,
                    wake.text[0] ? ": " : "", wake.text);
        stage_check(s, wake.addresses == c->addresses, "every piece is where it was, the first at %#llx",
                    (unsigned long long)wake.address);
        check_bytes(s, c->anna, 1);
}

static void act_kill(struct stage *s, struct cast *c) {
        struct process *w = actor_start(s, "writer");
        struct answer a = ask_lock(w, GMS_MODE_UPDATE);
        uint64_t owned;

        if (a.result == 0)
                a = ask_version(w, BUILD, 2);
        if (a.result == 0)
                a = actor_ask(w, &(struct order){ .verb = FILL, .version = 2, .n = PIECES / 2 });
        struct gms_store store = stage_store(s);
        if (!stage_check(s, a.result == 0 && store.building_bytes == c->physical,
                         "a second writer has half of version 2 written: %.0f MiB being built%s%s", MIB(store.building_bytes),
                         a.text[0] ? ": " : "", a.text))
                return;
        actor_tell(w, &(struct order){ .verb = FILL, .version = 2, .first = PIECES / 2, .n = PIECES / 2 });
        actor_kill(s, w); /* while it writes */
        bool freed = stage_settles(s, c->physical, 0, &owned);
        stage_check(s, freed, "what it built is freed; the device owns %.0f MiB", MIB(owned));
        store = stage_store(s);
        stage_check(s, store.generation == 1 && strcmp(store.identity, IDENTITY_1) == 0,
                    "generation %llu, \"%s\", is still what is published", (unsigned long long)store.generation,
                    store.identity);
        check_bytes(s, c->anna, 1);

        struct process *late = actor_start(s, "Carl");
        if (attach(s, late, &a))
                check_bytes(s, late, 1);
        if (s->failed == 0)
                actor_end(s, late);
}

static void move_on(struct stage *s, struct process *p, uint64_t addresses) {
        struct answer event = ask(p, AWAIT);
        if (!stage_check(s, event.result == 0 && event.generation == 2, "an event tells %s of generation %llu%s%s", p->name,
                         (unsigned long long)event.generation, event.result ? ": " : "", event.result ? event.text : ""))
                return;
        check_bytes(s, p, 1); /* until the reader itself moves, nothing changes under it */
        struct answer moved = ask(p, REFRESH);
        stage_check(s, moved.result == 0 && moved.changed == 1 && moved.generation == 2, "%s moves to it in %.2f ms%s%s",
                    p->name, moved.ms, moved.text[0] ? ": " : "", moved.text);
        stage_check(s, moved.addresses == addresses, "every piece is where it was");
        check_bytes(s, p, 2);
}

static void act_update(struct stage *s, struct cast *c) {
        uint64_t bens = ask(c->ben, LOOK).addresses, owned;

        if (!publish(s, GMS_MODE_UPDATE, 2, IDENTITY_2))
                return;
        bool both = stage_settles(s, 2 * c->physical, c->physical, &owned);
        stage_check(s, both, "both versions are there while the first has readers: the device owns %.0f MiB", MIB(owned));
        move_on(s, c->anna, c->addresses);
        if (s->failed == 0)
                move_on(s, c->ben, bens);
        bool freed = stage_settles(s, c->physical, 0, &owned);
        stage_check(s, freed, "the first has no reader any more and is freed; the device owns %.0f MiB", MIB(owned));
}

static void act_stale(struct stage *s, struct cast *c) {
        if (!publish(s, GMS_MODE_UPDATE, 3, IDENTITY_3))
                return;
        struct answer a = ask(c->anna, REFRESH);
        stage_check(s, a.result == -ESTALE, "Anna's move to it is refused as stale:");
        stage_quote(s, a.text);
        stage_check(s, a.addresses == c->addresses && a.mapped == 1, "she keeps what she has");
        check_bytes(s, c->anna, 2);

        a = ask(c->ben, SLEEP);
        if (a.result == 0)
                a = ask(c->ben, DISCONNECT);
        if (a.result == 0)
                a = ask_lock(c->ben, GMS_MODE_RO);
        if (!stage_check(s, a.result == 0, "Ben sleeps, leaves and comes back%s%s", a.text[0] ? ": " : "", a.text))
                return;
        a = ask(c->ben, WAKE);
        stage_check(s, a.result == -ESTALE && a.mapped == 0 && a.rss == 0,
                    "his old addresses are not mapped to a new structure:");
        stage_quote(s, a.text);
        a = ask(c->ben, ATTACH); /* as the text says */
        if (stage_check(s, a.result == 0 && a.mapped == 1, "he takes the new one in %.2f ms%s%s", a.ms,
                        a.text[0] ? ": " : "", a.text))
                check_bytes(s, c->ben, 3);
}

/* Anna reads the second version, which only she still holds; Ben the third; the writer is in the middle of the fourth. */
static void act_daemon_killed(struct stage *s, struct cast *c) {
        struct process *w = actor_start(s, "writer");
        uint64_t owned, all = c->physical + version_bytes(3) + version_bytes(4);
        struct answer a = ask_lock(w, GMS_MODE_UPDATE);

        if (a.result == 0)
                a = ask_version(w, BUILD, 4);
        if (!stage_check(s, a.result == 0 && stage_settles(s, all, c->physical, &owned),
                         "a writer builds a fourth version; Anna has the second and Ben the third: %.0f MiB in all%s%s",
                         MIB(all), a.text[0] ? ": " : "", a.text))
                return;
        actor_tell(w, &(struct order){ .verb = FILL, .version = 4, .n = PIECES });
        if (!stage_kill_daemon(s)) /* while it writes */
                return;
        a = actor_hear(w);
        stage_check(s, a.result == 0, "the writer has gone on writing%s%s", a.text[0] ? ": " : "", a.text);
        struct gms_store store = stage_store(s);
        stage_check(s, stage_settles(s, all, c->physical, &owned) && store.readers == 2 && store.writers == 1,
                    "the same memory, %.0f MiB, under the same locks: %llu readers, %llu writer", MIB(owned),
                    (unsigned long long)store.readers, (unsigned long long)store.writers);
        check_bytes(s, c->anna, 2);
        check_bytes(s, c->ben, 3);

        a = ask_commit(w, IDENTITY_4);
        if (!stage_check(s, a.result == 0, "the writer publishes what it began before, in %.2f ms%s%s", a.ms,
                         a.text[0] ? ": " : "", a.text))
                return;
        struct process *late = actor_start(s, "Carl");
        if (attach(s, late, &a))
                check_bytes(s, late, 4);
}

static const struct {
        const char *title;
        void (*play)(struct stage *s, struct cast *c);
} acts[] = {
        { "A writer publishes a model, and leaves.", act_publish },
        { "Two readers attach to it. Nothing is copied.", act_attach },
        { "A reader sleeps, and wakes at the same addresses.", act_sleep },
        { "A writer is killed while it builds the second version. Nobody notices.", act_kill },
        { "The second version is published beside the readers, and they move to it.", act_update },
        { "Another structure is published. Nobody takes it for the old one.", act_stale },
        { "gmsd itself is killed, under readers and a writer. They go on.", act_daemon_killed },
};

static double now_s(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_MONOTONIC, &ts);
        return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static int play(const char *device, const char *gmsd) {
        struct cast cast = { 0 };
        struct stage stage;
        double start = now_s();

        printf("0. gmsd is started.\n");
        if (stage_open(&stage, device, gmsd))
                for (size_t i = 0; i < ARRAY_SIZE(acts) && stage.failed == 0 && !stage_interrupted(); i++) {
                        printf("\n%zu. %s\n", i + 1, acts[i].title);
                        acts[i].play(&stage, &cast);
                }
        printf("\n%zu. The end.\n", ARRAY_SIZE(acts) + 1);
        stage_close(&stage);

        bool good = stage.failed == 0 && !stage_interrupted();
        printf("\n%s (%.1f s)\n", good ? "Everything was as promised." : stage_interrupted() ? "INTERRUPTED" : "FAILED",
               now_s() - start);
        return good ? EXIT_SUCCESS : EXIT_FAILURE;
}

/* gmsd lies two folders above: build/tests/demo/demo. */
static const char *default_gmsd(char *path, size_t room) {
        ssize_t n = readlink("/proc/self/exe", path, room - sizeof("/gmsd"));
        path[MAX(n, 0)] = '\0';
        for (unsigned up = 0; up < 3; up++) {
                char *slash = strrchr(path, '/');
                if (slash)
                        *slash = '\0';
        }
        size_t len = strlen(path);
        snprintf(path + len, room - len, "/gmsd");
        return path;
}

int main(int argc, char **argv) {
        static const struct option options[] = {
                { "device", required_argument, NULL, 'd' },
                { "gmsd", required_argument, NULL, 'g' },
                { 0 },
        };
        char path[1024];
        const char *device = "host", *gmsd = default_gmsd(path, sizeof(path));

        if (argc == 6 && strcmp(argv[1], "--actor") == 0)
                return actor_main(atoi(argv[2]), argv[3], argv[4], argv[5]);
        for (int opt; (opt = getopt_long(argc, argv, "", options, NULL)) != -1;) {
                if (opt == 'd')
                        device = optarg;
                else if (opt == 'g')
                        gmsd = optarg;
                else
                        return 2;
        }
        (void)setvbuf(stdout, NULL, _IOLBF, 0); /* in order with what others write, in a pipe too */
        return play(device, gmsd);
}
