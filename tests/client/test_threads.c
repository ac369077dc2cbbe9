// SPDX-License-Identifier: MIT
/*
 * Many threads on one handle, and on handles of their own, with the real daemon. Its worth is under SANITIZE=thread:
 * make SANITIZE=thread check-threads
 *
 *     test_threads GMSD
 */
#undef NDEBUG
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "daemon.h"

#define N 8
#define ROUNDS 200

static struct gms *shared;
static uint64_t ids[N]; /* in the shared layout */
static atomic_bool over;

/* libcheck's assertions are for one thread. */
#define MUST(condition)                                                                                  \
        do {                                                                                             \
                if (!(condition)) {                                                                      \
                        fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #condition, gms_last_error()); \
                        abort();                                                                         \
                }                                                                                        \
        } while (0)

/* Each thread has an allocation of its own: what it writes is what it reads. */
static void *write_and_read(void *arg) {
        size_t i = (size_t)(uintptr_t)arg;
        for (unsigned round = 0; round < ROUNDS; round++) {
                uint64_t in = round * N + i, out;
                MUST(gms_write(shared, ids[i], 8 * i, &in, sizeof(in)) == 0);
                MUST(gms_read(shared, ids[i], 8 * i, &out, sizeof(out)) == 0);
                MUST(in == out);
        }
        return NULL;
}

static void *allocate_and_free(void *arg) {
        (void)arg;
        for (unsigned round = 0; round < ROUNDS; round++) {
                struct gms_allocation a = GMS_INIT(struct gms_allocation), found = GMS_INIT(struct gms_allocation);
                MUST(gms_allocate(shared, 5000, "passing", &a) == 0);
                MUST(gms_find(shared, a.slot, &found) == 0 && found.address == a.address);
                MUST(gms_free(shared, a.id) == 0);
        }
        return NULL;
}

/* The text of a failure is the thread's own. */
static void *fail_and_tell(void *arg) {
        uint64_t id = 1000000 + (uint64_t)(uintptr_t)arg;
        char expected[32], byte;
        (void)snprintf(expected, sizeof(expected), "%llu", (unsigned long long)id);
        for (unsigned round = 0; round < ROUNDS; round++) {
                MUST(gms_read(shared, id, 0, &byte, 1) == -ENOENT);
                MUST(strstr(gms_last_error(), expected) != NULL);
        }
        return NULL;
}

static void *ask(void *arg) {
        (void)arg;
        for (unsigned round = 0; round < ROUNDS; round++) {
                struct gms_state state = GMS_INIT(struct gms_state);
                MUST(gms_state(shared, &state) == 0 && state.mode == GMS_MODE_RW);
        }
        return NULL;
}

static void *listen_to_events(void *arg) {
        unsigned *wanted = arg;
        while (!over) {
                struct gms_event event = GMS_INIT(struct gms_event);
                struct pollfd p = { .fd = gms_get_fd(shared), .events = POLLIN };
                (void)poll(&p, 1, 10);
                int r = gms_dispatch(shared, &event);
                MUST(r >= 0);
                *wanted += r == 1 && event.kind == GMS_EVENT_LOCK_WANTED;
        }
        return NULL;
}

/* A handle of one's own, in a store that everybody reads. */
static void *read_elsewhere(void *arg) {
        (void)arg;
        for (unsigned round = 0; round < ROUNDS / 10; round++) {
                struct gms *g = daemon_session("host/read", GMS_MODE_RO);
                struct gms_allocation a = GMS_INIT(struct gms_allocation);
                char text[6];
                MUST(gms_attach(g) == 0);
                MUST(gms_find(g, 0, &a) == 0);
                MUST(gms_unmap_all(g) == 0);
                MUST(gms_remap_all(g, NULL) == 0);
                MUST(gms_read(g, a.id, 0, text, sizeof(text)) == 0 && strcmp(text, "hello") == 0);
                gms_close(g);
        }
        return NULL;
}

static void publish(void) {
        struct gms *w = daemon_session("host/read", GMS_MODE_RW);
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        OK(gms_allocate(w, 4096, NULL, &a));
        OK(gms_write(w, a.id, 0, "hello", 6));
        OK(gms_commit(w, NULL, GMS_COMMIT_LEAVE));
        gms_close(w);
}

START_TEST(all_at_once) {
        publish();
        shared = daemon_session("host/shared", GMS_MODE_RW);
        for (size_t i = 0; i < N; i++) {
                struct gms_allocation a = GMS_INIT(struct gms_allocation);
                OK(gms_allocate(shared, 4096, "lasting", &a));
                ids[i] = a.id;
        }

        pthread_t listener, threads[5 * N];
        unsigned wanted = 0, n = 0;
        ck_assert_int_eq(pthread_create(&listener, NULL, listen_to_events, &wanted), 0);
        for (uintptr_t i = 0; i < N; i++) {
                void *(*const work[])(void *) = { write_and_read, allocate_and_free, fail_and_tell, ask, read_elsewhere };
                for (size_t k = 0; k < ARRAY_SIZE(work); k++)
                        ck_assert_int_eq(pthread_create(&threads[n++], NULL, work[k], (void *)i), 0);
        }
        /* Somebody who wants the lock, and must go without. */
        struct gms *other = daemon_handle("host/shared");
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RW;
        o.deadline_ms = 50;
        ck_assert_int_eq(gms_connect(other, &o), -ETIMEDOUT);
        gms_close(other);
        for (unsigned i = 0; i < n; i++)
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);

        over = true;
        ck_assert_int_eq(pthread_join(listener, NULL), 0);
        ck_assert_uint_ge(wanted, 1);
        size_t known;
        OK(gms_allocations(shared, NULL, 0, &known));
        ck_assert_uint_eq(known, N);
        gms_close(shared);
}
END_TEST

/* ---- one pool */

static struct gms_pool *pool;

/* What a thread has it alone has: its first and last word are its own until it is given back. */
static void *allocate_pieces(void *arg) {
        struct {
                uint64_t *first, *last;
        } live[16] = {};
        uint64_t x = (uintptr_t)arg * 77 + 1;
        for (unsigned round = 0; round < 20 * ROUNDS; round++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                uint64_t **first = &live[x % 16].first, **last = &live[x % 16].last;
                if (*first) {
                        MUST(**first == (uintptr_t)arg && **last == (uintptr_t)arg);
                        MUST(gms_pool_free(pool, (uintptr_t)*first) == 0);
                        *first = NULL;
                        continue;
                }
                struct gms_piece piece = GMS_INIT(struct gms_piece);
                uint64_t bytes = 16 + 8 * ((x >> 8) % (x % 7 ? 1000 : 200000));
                MUST(gms_pool_allocate(pool, bytes, 0, &piece) == 0);
                *first = (uint64_t *)(uintptr_t)piece.address;
                *last = *first + bytes / 8 - 1;
                **first = **last = (uintptr_t)arg;
        }
        for (unsigned i = 0; i < 16; i++)
                MUST(!live[i].first || gms_pool_free(pool, (uintptr_t)live[i].first) == 0);
        return NULL;
}

static void *trim_and_look(void *arg) {
        (void)arg;
        while (!over) {
                struct gms_pool_stats stats = GMS_INIT(struct gms_pool_stats);
                MUST(gms_pool_trim(pool) == 0);
                MUST(gms_pool_stats(pool, &stats) == 0);
                MUST(stats.requested <= stats.allocated && stats.allocated <= stats.reserved);
                MUST(gms_pool_free(pool, 256) == -ENOENT);
                MUST(gms_set_deadline(shared, 10000) == 0);
        }
        return NULL;
}

START_TEST(in_one_pool) {
        pthread_t threads[N], other;
        over = false;
        shared = daemon_session("host/pool", GMS_MODE_RW);
        OK(gms_pool_open(&pool, shared, NULL));
        ck_assert_int_eq(pthread_create(&other, NULL, trim_and_look, NULL), 0);
        for (uintptr_t i = 0; i < N; i++)
                ck_assert_int_eq(pthread_create(&threads[i], NULL, allocate_pieces, (void *)(i + 1)), 0);
        for (unsigned i = 0; i < N; i++)
                ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
        over = true;
        ck_assert_int_eq(pthread_join(other, NULL), 0);

        struct gms_pool_stats stats = GMS_INIT(struct gms_pool_stats);
        OK(gms_pool_trim(pool));
        OK(gms_pool_stats(pool, &stats));
        ck_assert_uint_eq(stats.pieces, 0);
        ck_assert_uint_eq(stats.reserved, 0);
        gms_pool_close(pool);
        gms_close(shared);
}
END_TEST

int main(int argc, char **argv) {
        if (argc > 1)
                daemon_program = argv[1];
        Suite *suite = suite_create("threads");
        TCase *tc = tcase_create("threads");
        tcase_set_timeout(tc, 120);
        tcase_add_checked_fixture(tc, daemon_start, daemon_stop);
        tcase_add_test(tc, all_at_once);
        tcase_add_test(tc, in_one_pool);
        suite_add_tcase(suite, tc);

        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
