// SPDX-License-Identifier: MIT
/*
 * What it costs that gmsd outlives its own death: on each request that changes something (a record, and for memory a
 * descriptor with the manager), at a restart, and in the journal.
 *
 * Two daemons at once, one alone and one under gms-keeper, take the same requests in turn, in short rounds.
 */
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "fold.h"
#include "gmsd.h"
#include "raw.h"
#include "samples.h"

#define ROUNDS 30
#define REQUESTS 100 /* a round */
#define DEATHS 5
#define SESSIONS 100
#define ALLOCATIONS 100
#define LIMIT_RESTART_MS 50.0
#define RECORDS 10000

/* ---- a request that changes something */

static void put_one(struct raw *r, unsigned i) {
        char key[32];
        (void)snprintf(key, sizeof(key), "layer.%u", i % 50);
        Gms__MetaEntry entry = GMS__META_ENTRY__INIT, *entries[] = { &entry };
        entry.key = key;
        entry.value = (ProtobufCBinaryData){ .len = sizeof(key), .data = (uint8_t *)key };
        Gms__MetaPut body = GMS__META_PUT__INIT;
        body.n_entries = 1;
        body.entries = entries;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_META_PUT;
        f.meta_put = &body;
        raw_drop(raw_call(r, &f, NULL));
}

static void allocate_one(struct raw *r, unsigned i) {
        (void)i;
        (void)raw_allocate(r, 1, 1, NULL);
}

static double round_of(struct raw *r, void (*request)(struct raw *r, unsigned i)) {
        _cleanup_samples_ struct samples s = {};
        for (unsigned i = 0; i < REQUESTS; i++) {
                double since = now_us();
                request(r, i);
                samples_add(&s, now_us() - since);
        }
        return samples_median(&s);
}

static void compare(struct raw *alone, struct raw *kept, void (*request)(struct raw *r, unsigned i), double *ret_value,
                    double *ret_floor) {
        _cleanup_samples_ struct samples value = {}, floor = {};
        for (int i = 0; i < ROUNDS; i++) {
                samples_add(&floor, round_of(alone, request));
                samples_add(&value, round_of(kept, request));
        }
        *ret_value = samples_cost(&value);
        *ret_floor = samples_cost(&floor);
}

static void requests_run(struct bench *b) {
        struct gmsd alone, kept;
        struct raw a, k;
        char store[64];
        double value, floor;
        /* All on one CPU, which what is started here inherits: waking another one up may cost more than the request. */
        cpu_set_t all, one;
        if (sched_getaffinity(0, sizeof(all), &all) < 0)
                bench_die("sched_getaffinity: %s", strerror(errno));
        CPU_ZERO(&one);
        for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
                if (CPU_ISSET(cpu, &all))
                        CPU_SET(cpu, &one);
        (void)sched_setaffinity(0, sizeof(one), &one);
        gmsd_start(&alone, b, "host", NULL, NULL);
        gmsd_start_kept(&kept, b, "host");
        (void)snprintf(store, sizeof(store), "%s/durable", alone.device);
        raw_open(&a, alone.socket), raw_open(&k, kept.socket);
        raw_hello(&a, store, GMS__MODE__RW), raw_hello(&k, store, GMS__MODE__RW);
        allocate_one(&a, 0), allocate_one(&k, 0);

        compare(&a, &k, put_one, &value, &floor);
        bench_row(b, "durable_ratio", "us", value, floor, 1.5, "a request that changes something (metadata), with a manager and without");
        compare(&a, &k, allocate_one, &value, &floor);
        bench_row(b, "durable_allocate", "us", value, floor, NONE, "an allocation of one page, its descriptor kept by the manager, and without");
        raw_close(&a), raw_close(&k);
        gmsd_stop(&alone);
        gmsd_stop(&kept);
        (void)sched_setaffinity(0, sizeof(all), &all);
}

/* ---- a restart */

static pid_t daemon_pid(struct raw *r) {
        Gms__About body = GMS__ABOUT__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_ABOUT;
        f.about = &body;
        Gms__Frame *answer = raw_call(r, &f, NULL);
        pid_t pid = (pid_t)answer->daemon->pid;
        raw_drop(answer);
        return pid;
}

static double death(struct bench *b) {
        static struct raw readers[SESSIONS];
        struct gmsd kept;
        struct raw writer;
        char store[64];
        gmsd_start_kept(&kept, b, "host");
        (void)snprintf(store, sizeof(store), "%s/restart", kept.device);
        raw_open(&writer, kept.socket);
        raw_hello(&writer, store, GMS__MODE__RW);
        (void)raw_allocate(&writer, ALLOCATIONS, 1, NULL);
        raw_publish(&writer);
        for (int i = 0; i < SESSIONS; i++) {
                raw_open(&readers[i], kept.socket);
                raw_hello(&readers[i], store, GMS__MODE__RO);
        }
        pid_t pid = daemon_pid(&readers[0]);
        double since = now_us();
        (void)kill(pid, SIGKILL);
        raw_state(&readers[0]); /* the session that was there before */
        double ms = (now_us() - since) / 1e3;
        for (int i = 0; i < SESSIONS; i++) {
                raw_state(&readers[i]);
                raw_close(&readers[i]);
        }
        gmsd_stop(&kept);
        return ms;
}

static void restart_run(struct bench *b) {
        _cleanup_samples_ struct samples s = {};
        for (int i = 0; i < DEATHS; i++)
                samples_add(&s, death(b));
        bench_row(b, "restart_ms", "ms", samples_median(&s), LIMIT_RESTART_MS, 1.0,
                  "from SIGKILL to an answer of the next gmsd, its start by gms-keeper included: %d allocations, %d sessions; limit 50 ms",
                  ALLOCATIONS, SESSIONS);
}

/* ---- the journal */

struct record {
        uint8_t *bytes;
        size_t len;
};

static void keep(struct record *r, struct store *s, struct change *c, struct client *client) {
        struct effects fx;
        if (fold_pack_change(s, "host", c, 1, client, &r->bytes, &r->len) < 0)
                bench_die("no memory");
        effects_init(&fx);
        if (store_apply(s, c, &fx) != 0)
                bench_die("a change was refused");
        while (!list_empty(&fx.released))
                layout_free(list_first(&fx.released, struct layout, link));
        list_init(&fx.news);
}

static void keep_plain(struct record *r, Gmsj__Record *record) {
        if (fold_pack(record, &r->bytes, &r->len) < 0)
                bench_die("no memory");
}

static void fold_run(struct bench *b) {
        static struct record records[RECORDS];
        size_t n = 0, session_bytes = 0, allocation_bytes = 0, allocations = 0;
        struct client clients[SESSIONS];
        struct store *stores[SESSIONS];
        struct claim *claims[SESSIONS];
        Gmsj__Begin begin = GMSJ__BEGIN__INIT;
        Gmsj__Complete complete = GMSJ__COMPLETE__INIT;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        begin.version = FOLD_VERSION;
        record.fact_case = GMSJ__RECORD__FACT_BEGIN;
        record.begin = &begin;
        keep_plain(&records[n++], &record);
        record.fact_case = GMSJ__RECORD__FACT_COMPLETE;
        record.complete = &complete;
        keep_plain(&records[n++], &record);

        for (int i = 0; i < SESSIONS; i++) {
                char name[32];
                (void)snprintf(name, sizeof(name), "host/store%d", i);
                if (store_new(&stores[i], name, NULL, (uint64_t)i + 1) < 0)
                        bench_die("no memory");
                clients[i] = (struct client){ .id = (uint64_t)i + 1, .label = (char *)"vllm-worker", .asked = GMS__MODE__RW,
                                              .pid = 100000, .process = 1u << 30, .since = 123456789, .hello = 1, .store = stores[i] };
                struct change ask = { .type = CHANGE_ASK, .ask = { .want = LOCK_WANT_RW, .id = clients[i].id } };
                keep(&records[n], stores[i], &ask, &clients[i]);
                session_bytes += records[n++].len;
                claims[i] = ask.ask.claim;
                claims[i]->news = 0;
                list_init(&claims[i]->news_link);
        }
        for (unsigned k = 0; n < RECORDS; k++) {
                struct change_allocation item = { .size = 100 << 20, .aligned = 100 << 20, .tag = "weights", .fd = -1 };
                struct change allocate = {
                        .type = CHANGE_ALLOCATE, .claim = claims[k % SESSIONS], .allocate = { .first_id = k + 1, .items = &item, .n = 1 },
                };
                keep(&records[n], stores[k % SESSIONS], &allocate, NULL);
                allocation_bytes += records[n++].len;
                allocations++;
        }

        _cleanup_samples_ struct samples s = {};
        for (int round = 0; round < 9; round++) {
                struct folded f;
                folded_init(&f);
                double since = now_us();
                for (size_t i = 0; i < n; i++)
                        if (fold(&f, records[i].bytes, records[i].len) != 0)
                                bench_die("record %zu does not fold", i);
                samples_add(&s, now_us() - since);
                folded_done(&f);
        }
        bench_row(b, "journal_fold", "us", samples_cost(&s), NONE, NONE, "the fold of %d records: %d sessions, %zu allocations", RECORDS,
                  SESSIONS, allocations);
        bench_row(b, "journal_session", "B", (double)session_bytes / SESSIONS + 24, NONE, NONE, "of journal for a session, the record's head included");
        bench_row(b, "journal_allocation", "B", (double)allocation_bytes / (double)allocations + 24, NONE, NONE,
                  "of journal for an allocation by itself; neighbours of one size and tag share a record");
        for (size_t i = 0; i < n; i++)
                free(records[i].bytes);
}

void durable_run(struct bench *b) {
        requests_run(b);
        restart_run(b);
        fold_run(b);
}
