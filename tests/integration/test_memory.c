// SPDX-License-Identifier: MIT
/* A device that is full: who waits, for how long, what ends the wait, and who may pass. The device has 64 MiB. */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "raw.h"
#include "vmm.h"

#define MiB (UINT64_C(1) << 20)
#define SMALL .needs = NEEDS_SMALL, .memory = "64M"

static void post_allocate(struct raw *r, uint64_t size, uint64_t deadline_ms) {
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        deadline.ms = deadline_ms; /* absent is five seconds, not for ever */
        item.size = size;
        post(r, ALLOCATE, allocate, b.n_items = 1, b.items = items, b.deadline = &deadline);
}

static uint64_t waiting(void) {
        return look_device(0).waiting;
}

/* Somebody has 48 MiB. */
static void fill(struct raw *r, const char *name) {
        raw_join(r, name, GMS__MODE__RW);
        granted(r, raw_allocate(r, 48 * MiB, 1, PATIENCE_MS));
}

/* Somebody else wants 32 MiB. */
static void want(struct raw *r, const char *name, uint64_t deadline_ms) {
        raw_join(r, name, GMS__MODE__RW);
        post_allocate(r, 32 * MiB, deadline_ms);
        wait_for(waiting() >= 1);
}

TEST(memory, deadlines, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        char asked[32], total[32];
        fill(&a, "a");
        raw_join(&r, "b", GMS__MODE__RW);
        (void)snprintf(asked, sizeof(asked), "%" PRIu64, 32 * MiB);
        (void)snprintf(total, sizeof(total), "%" PRIu64, m.total);
        static const uint64_t deadlines[] = { 0, 150, 1 };
        for (size_t i = 0; i < ARRAY_SIZE(deadlines); i++) {
                uint64_t before = now_ms();
                int status = raw_allocate(&r, 32 * MiB, 1, deadlines[i]);
                uint64_t took = now_ms() - before;
                refused(&r, status, NO_MEMORY, asked);
                refused(&r, status, NO_MEMORY, total);
                refused(&r, status, NO_MEMORY, "are free");
                ck_assert_msg(took + 50 >= deadlines[i] && took < deadlines[i] + 2000, "%lu ms took %lu", deadlines[i], took);
        }
        ck_assert_uint_eq(waiting(), 0);
        granted(&r, raw_allocate(&r, 8 * MiB, 1, 0)); /* what there is can be had */
}

/* ---- what ends the wait */

static void frees(struct raw *a) {
        granted(a, ask(a, FREE, free, b.n_ids = 1, b.ids = &a->first_id));
}

static void leaves(struct raw *a) {
        raw_close(a);
}

TEST(memory, wait_until_freed, SMALL)
{
        void (*const ends[])(struct raw *) = { frees, leaves };
        for (size_t i = 0; i < ARRAY_SIZE(ends); i++) {
                _cleanup_raw_ struct raw a = RAW, r = RAW;
                fill(&a, "a");
                want(&r, "b", PATIENCE_MS);
                ck_assert(raw_waits(&r));
                uint64_t before = now_ms();
                ends[i](&a);
                granted(&r, raw_answer(&r, PATIENCE_MS));
                ck_assert_uint_lt(now_ms() - before, 2000);
                ck_assert_uint_eq(r.fds->n, 1);
        }
}

static void fill_and_park(int line, void *arg) {
        struct raw r = RAW;
        fill(&r, arg);
        say(line, 'f');
        park();
}

TEST(memory, wait_until_killed, SMALL)
{
        _cleanup_raw_ struct raw r = RAW;
        struct child c;
        child_start(&c, fill_and_park, (void *)"a");
        child_wait(&c, 'f');
        want(&r, "b", FOREVER);
        child_kill(&c, SIGKILL);
        granted(&r, raw_answer(&r, PATIENCE_MS));
}

/* Published memory goes when it is cleared, or when its writer discards it. */
TEST(memory, wait_until_cleared, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        fill(&a, "a");
        granted(&a, raw_commit(&a, NULL, true));
        raw_close(&a);
        want(&r, "b", PATIENCE_MS);
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("a")));
        granted(&r, raw_answer(&r, PATIENCE_MS));
}

TEST(memory, room_of_the_old_for_the_new, SMALL)
{
        _cleanup_raw_ struct raw r = RAW;
        fill(&r, "w");
        granted(&r, raw_commit(&r, NULL, true));
        raw_close(&r);
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, raw_allocate(&r, 48 * MiB, 1, 0), NO_MEMORY, "discard");
        granted(&r, ask(&r, DISCARD, discard));
        granted(&r, raw_allocate(&r, 48 * MiB, 1, PATIENCE_MS));
}

/* The memory of a reader's generation comes free when the reader leaves. */
TEST(memory, wait_until_drained, SMALL)
{
        _cleanup_raw_ struct raw reader = RAW, w = RAW;
        fill(&reader, "w");
        granted(&reader, raw_commit(&reader, NULL, false));
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, ask(&w, DISCARD, discard));
        post_allocate(&w, 32 * MiB, PATIENCE_MS);
        wait_for(waiting() == 1);
        ck_assert(raw_waits(&w));
        raw_close(&reader);
        granted(&w, raw_answer(&w, PATIENCE_MS));
}

/* Memory of the GPU that another process had, one the daemon knows nothing of. */
static void take_outside(int line, void *arg) {
        struct vmm *v;
        char text[256];
        int fd;
        (void)arg;
        ck_assert_int_eq(vmm_open(&v, m.device, text, sizeof(text)), 0);
        ck_assert_int_eq(vmm_create(v, 48 * MiB, &fd), 0);
        say(line, 't');
        park();
}

TEST(memory, taken_by_others, .needs = NEEDS_FAKE, .memory = "64M")
{
        _cleanup_raw_ struct raw r = RAW;
        struct child c;
        child_start(&c, take_outside, NULL);
        child_wait(&c, 't');
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, raw_allocate(&r, 32 * MiB, 1, 0), NO_MEMORY, "free");
        post_allocate(&r, 32 * MiB, PATIENCE_MS);
        wait_for(waiting() == 1);
        uint32_t creates = fakecuda_calls(m.knobs, "cuMemCreate"), looks = fakecuda_calls(m.knobs, "nvmlDeviceGetMemoryInfo");
        wait_for(fakecuda_calls(m.knobs, "nvmlDeviceGetMemoryInfo") >= (looks + 5));
        ck_assert_uint_eq(fakecuda_calls(m.knobs, "cuMemCreate"), creates); /* never blindly */
        ck_assert(raw_waits(&r));
        child_kill(&c, SIGKILL);
        granted(&r, raw_answer(&r, PATIENCE_MS));
}

/* ---- the queue */

/* What fits passes what does not; and the large one still gets its turn. */
TEST(memory, small_passes_large, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, large = RAW, small = RAW;
        fill(&a, "a");
        want(&large, "b", PATIENCE_MS);
        raw_join(&small, "c", GMS__MODE__RW);
        uint64_t before = now_ms();
        granted(&small, raw_allocate(&small, 4 * MiB, 1, PATIENCE_MS));
        ck_assert_uint_lt(now_ms() - before, 1000);
        ck_assert(raw_waits(&large));
        frees(&a);
        granted(&large, raw_answer(&large, PATIENCE_MS));
}

/* Several wait, and all are served as room comes. */
TEST(memory, several_wait, SMALL)
{
        _cleanup_raw_ struct raw a = RAW;
        struct raw r[3];
        static const char *const names[] = { "x", "y", "z" };
        fill(&a, "a");
        for (unsigned i = 0; i < 3; i++) {
                raw_join(&r[i], names[i], GMS__MODE__RW);
                post_allocate(&r[i], 24 * MiB, PATIENCE_MS);
                wait_for(waiting() == i + 1);
        }
        raw_close(&a);
        for (unsigned i = 0; i < 2; i++)
                granted(&r[i], raw_answer(&r[i], PATIENCE_MS));
        ck_assert_uint_eq(waiting(), 1);
        raw_close(&r[0]);
        granted(&r[2], raw_answer(&r[2], PATIENCE_MS));
        raw_close(&r[1]);
        raw_close(&r[2]);
}

/* ---- who goes away meanwhile */

static void want_and_park(int line, void *arg) {
        struct raw r = RAW;
        raw_join(&r, arg, GMS__MODE__RW);
        post_allocate(&r, 32 * MiB, FOREVER);
        say(line, 'w');
        park();
}

TEST(memory, waiters_that_die, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        struct child c;
        fill(&a, "a");
        child_start(&c, want_and_park, (void *)"b");
        wait_for(waiting() == 1);
        want(&r, "c", PATIENCE_MS);
        wait_for(waiting() == 2);
        child_kill(&c, SIGKILL);
        wait_for(waiting() == 1);
        ck_assert_uint_eq(look("b").writers, 0);
        frees(&a);
        granted(&r, raw_answer(&r, PATIENCE_MS));
}

/* With something unread its end is an error of the socket, and not only an end. */
TEST(memory, waiter_that_dies_with_an_event_unread, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, next = RAW;
        struct child c;
        fill(&a, "a");
        child_start(&c, want_and_park, (void *)"b");
        wait_for(waiting() == 1);
        raw_queue(&next, "b", GMS__MODE__RW, FOREVER, 1); /* LOCK_WANTED goes to the child, which does not look */
        child_kill(&c, SIGKILL);
        granted(&next, raw_answer(&next, PATIENCE_MS));
        wait_for(waiting() == 0);
}

/* A lock that is taken away while its holder waits for memory. */
TEST(memory, waiter_is_revoked, SMALL)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        fill(&a, "a");
        want(&r, "b", PATIENCE_MS);
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("b"), b.force = true));
        frees(&a);
        refused(&r, raw_answer(&r, PATIENCE_MS), REVOKED, "connect again");
        wait_for(look_device(0).waiting == 0);
}

/* All or nothing, also when it is the last that does not fit. */
TEST(memory, all_or_nothing, SMALL)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 10 * MiB, 1, 0));
        refused(&r, raw_allocate(&r, 10 * MiB, 6, 0), NO_MEMORY, "free");
        ck_assert_uint_eq(look("w").building, 10 * MiB);
        granted(&r, raw_allocate(&r, 10 * MiB, 5, PATIENCE_MS));
}
