// SPDX-License-Identifier: MIT
/*
 * Deaths of workers, and drivers that are slow, stuck or broken: requests succeed or fail cleanly, what is published
 * stays, nothing is lost, and nobody else notices.
 */
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "raw.h"

#define MANY 600 /* allocations: three frames of descriptors */

static void post_allocate(struct raw *r, uint32_t count) {
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        item.size = 1;
        item.count = count;
        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = 60000;
        post(r, ALLOCATE, allocate, b.n_items = 1, b.items = items, b.deadline = &deadline);
}

static bool quiet(void) {
        uint64_t rounds, worst;
        wait_for((worst = bystander_worst_ms(&rounds), rounds >= 3));
        return worst < 250;
}

/* ---- killed at work; the fake driver says when it is */

TEST(worker, killed_while_it_creates, .needs = NEEDS_FAKE, .respawns = true)
{
        _cleanup_raw_ struct raw r = RAW;
        pid_t worker = worker_ready();
        raw_join(&r, "w", GMS__MODE__RW);
        uint32_t calls = fakecuda_calls(m.knobs, "cuMemCreate");
        fakecuda_delay(m.knobs, "cuMemCreate", 300000, 1);
        post_allocate(&r, 3);
        wait_for(fakecuda_calls(m.knobs, "cuMemCreate") >= (calls + 1));
        ck_assert_int_eq(kill(worker, SIGKILL), 0);
        granted(&r, raw_answer(&r, PATIENCE_MS)); /* by the next worker */
        ck_assert_uint_eq(r.fds->n, 3);
        ck_assert_int_ne(worker_ready(), worker);
        ck_assert_uint_eq(look("w").building, 3 * m.granularity);
}

/* In the middle of many: what the dead one had sent is kept, what it had not is made again. */
TEST(worker, killed_among_many, .needs = NEEDS_FAKE, .respawns = true)
{
        for (uint32_t after = 1; after <= MANY; after += 149) {
                _cleanup_raw_ struct raw r = RAW;
                pid_t worker = worker_ready();
                raw_join(&r, "w", GMS__MODE__RW);
                uint32_t calls = fakecuda_calls(m.knobs, "cuMemCreate");
                fakecuda_delay(m.knobs, "cuMemCreate", 200, FAKECUDA_ALWAYS);
                post_allocate(&r, MANY);
                wait_for(fakecuda_calls(m.knobs, "cuMemCreate") >= (calls + after));
                ck_assert_int_eq(kill(worker, SIGKILL), 0);
                fakecuda_clear(m.knobs);
                granted(&r, raw_answer(&r, PATIENCE_MS));
                ck_assert_uint_eq(r.reply->allocated->count, MANY);
                ck_assert_uint_eq(look("w").building, MANY * m.granularity);
                raw_close(&r);
                wait_for(look_device(0).owned == 2 * m.granularity); /* the bystander's */
        }
}

/* Freeing is closing. */
TEST(worker, killed_while_it_frees, .needs = NEEDS_FAKE, .respawns = true, .close_knob = true)
{
        _cleanup_raw_ struct raw r = RAW;
        pid_t worker = worker_ready();
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, MANY, PATIENCE_MS));
        uint32_t calls = fakecuda_calls(m.knobs, "close");
        fakecuda_delay(m.knobs, "close", 300000, 1);
        bystander_reset();
        raw_close(&r);
        wait_for(fakecuda_calls(m.knobs, "close") >= (calls + 1));
        ck_assert_int_eq(kill(worker, SIGKILL), 0);
        wait_for(look_device(0).owned == 2 * m.granularity);
        ck_assert(quiet());
        raw_join(&r, "w", GMS__MODE__RW); /* and the next one works */
        granted(&r, raw_allocate(&r, 1, MANY, PATIENCE_MS));
}

/* A slow driver is slow for those who need it. */
TEST(worker, slow, .needs = NEEDS_FAKE, .close_knob = true)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        uint32_t calls = fakecuda_calls(m.knobs, "cuMemCreate");
        fakecuda_delay(m.knobs, "cuMemCreate", 400000, 1);
        bystander_reset();
        post_allocate(&w, 1);
        wait_for(fakecuda_calls(m.knobs, "cuMemCreate") >= (calls + 1));
        uint64_t before = now_ms();
        raw_join(&r, "other", GMS__MODE__RW);
        granted(&r, raw_commit(&r, NULL, false));
        ck_assert_uint_lt(now_ms() - before, 300);
        granted(&w, raw_answer(&w, PATIENCE_MS));

        calls = fakecuda_calls(m.knobs, "close");
        fakecuda_delay(m.knobs, "close", 400000, 1);
        raw_close(&w);
        wait_for(fakecuda_calls(m.knobs, "close") >= (calls + 1));
        before = now_ms();
        granted(&r, ask(&r, STATE, state));
        raw_close(&r);
        raw_join(&r, "other", GMS__MODE__RO);
        ck_assert_uint_lt(now_ms() - before, 300);
        ck_assert(quiet());
}

/* A driver that does not come back; its client does not wait for it. */
TEST(worker, stuck, .needs = NEEDS_FAKE)
{
        _cleanup_raw_ struct raw w = RAW, next = RAW, r = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        uint32_t calls = fakecuda_calls(m.knobs, "cuMemCreate");
        fakecuda_hang(m.knobs, "cuMemCreate", 1);
        bystander_reset();
        post_allocate(&w, 2);
        wait_for(fakecuda_calls(m.knobs, "cuMemCreate") >= (calls + 1));
        raw_queue(&next, "w", GMS__MODE__RW, FOREVER, 1);
        raw_events(&w);
        raw_close(&w); /* its lock is free at once, its memory when the driver has answered */
        granted(&next, raw_answer(&next, PATIENCE_MS));
        post_allocate(&next, 2);
        raw_publish(&r, "other", 0, NULL);
        ck_assert(quiet() && raw_waits(&next));
        fakecuda_clear(m.knobs);
        granted(&next, raw_answer(&next, PATIENCE_MS));
}

/* ---- a driver that refuses */

TEST(worker, create_fails, .needs = NEEDS_FAKE)
{
        static const struct {
                int result;
                Gms__Status status;
        } cases[] = {
                { CUDA_ERROR_UNKNOWN, GMS__STATUS__FAULTED },
                { CUDA_ERROR_INVALID_VALUE, GMS__STATUS__FAULTED },
                { CUDA_ERROR_OUT_OF_MEMORY, GMS__STATUS__NO_MEMORY },
        };
        static const char *const functions[] = { "cuMemCreate", "cuMemExportToShareableHandle" };
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
                if ((i & 1) && cases[i / 2].status == GMS__STATUS__NO_MEMORY)
                        continue; /* that is the host's */
                fakecuda_fail(m.knobs, functions[i & 1], cases[i / 2].result, FAKECUDA_ALWAYS);
                raw_check(&r, raw_allocate(&r, 1, 5, 0), cases[i / 2].status, m.device, __FILE__, __LINE__);
                fakecuda_clear(m.knobs);
                granted(&r, raw_allocate(&r, 1, 5, PATIENCE_MS));
        }
        ck_assert_uint_eq(look("w").building, 25 * m.granularity);
}

/* ---- one that crashes */

TEST(worker, crashes_and_recovers, .needs = NEEDS_FAKE, .respawns = true)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        for (uint32_t times = 1; times <= 2; times++) {
                fakecuda_crash(m.knobs, "cuMemCreate", times);
                granted(&r, raw_allocate(&r, 1, 3, PATIENCE_MS));
        }
        fakecuda_crash(m.knobs, "cuMemCreate", 3); /* no request is worth more workers than that */
        refused(&r, raw_allocate(&r, 1, 3, PATIENCE_MS), FAULTED, m.device);
        (void)worker_ready();
        granted(&r, raw_allocate(&r, 1, 3, PATIENCE_MS));
        ck_assert_uint_eq(look("w").building, 9 * m.granularity);
}

/* While it is broken its device is faulted, says why, and refuses at once; the others and all that is published go on. */
TEST(worker, faulted, .needs = NEEDS_FAKE, .also = "host:64M", .respawns = true)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW, h = RAW;
        raw_publish(&r, "r", 3, NULL);
        raw_join(&w, "w", GMS__MODE__RW);
        fakecuda_crash(m.knobs, "cuMemCreate", FAKECUDA_ALWAYS);
        fakecuda_fail(m.knobs, "cuInit", CUDA_ERROR_UNKNOWN, FAKECUDA_ALWAYS);
        bystander_reset();
        refused(&w, raw_allocate(&w, 1, 3, PATIENCE_MS), FAULTED, m.device);
        wait_for(strcmp(look_device(0).state, "faulted") == 0);
        ck_assert_uint_ge(strlen(look_device(0).text), 10);
        uint64_t before = now_ms();
        refused(&w, raw_allocate(&w, 1, 1, PATIENCE_MS), FAULTED, "faulted");
        ck_assert_uint_lt(now_ms() - before, 500);

        granted(&r, raw_page(&r, 0, 253, true));
        ck_assert_uint_eq(r.fds->n, 3);
        raw_close(&r);
        raw_join(&r, "r", GMS__MODE__RO);
        granted(&r, raw_page(&r, 0, 253, true));
        ck_assert_str_eq(look_device(1).state, "ready");
        raw_connect(&h);
        granted(&h, ask(&h, HELLO, hello, b.protocol_min = b.protocol_max = 1, b.mode = GMS__MODE__RW, b.store = (char *)"host/w"));
        granted(&h, raw_allocate(&h, 1, 3, PATIENCE_MS));
        ck_assert(quiet());

        fakecuda_clear(m.knobs);
        wait_for(strcmp(look_device(0).state, "ready") == 0);
        ck_assert_str_eq(look_device(0).text, "");
        granted(&w, raw_allocate(&w, 1, 3, PATIENCE_MS));
}

/* The same without knobs: whoever kills a worker each time it is there. */
TEST(worker, faulted_by_kills, .respawns = true, .seconds = 40)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        pid_t pids[8];
        raw_publish(&r, "r", 3, NULL);
        raw_join(&w, "w", GMS__MODE__RW);
        while (strcmp(look_device(0).state, "faulted") != 0)
                if (worker_pids(pids, 8) > 0)
                        (void)kill(pids[0], SIGKILL);
        refused(&w, raw_allocate(&w, 1, 1, 0), FAULTED, "faulted");
        granted(&r, raw_page(&r, 0, 253, true));
        ck_assert_uint_eq(r.fds->n, 3);
        (void)worker_ready();
        granted(&w, raw_allocate(&w, 1, 1, PATIENCE_MS));
}

/* ---- at any moment */

static void pause_ms(unsigned ms) {
        struct timespec t = { .tv_nsec = (long)ms * 1000000 };
        (void)nanosleep(&t, NULL);
}

static void kill_workers(int line, void *arg) {
        const unsigned *kills = arg;
        for (unsigned i = 0; i < *kills; i++) {
                pid_t pids[8];
                pause_ms(i * 7 % 16);
                if (worker_pids(pids, 8) > 0)
                        (void)kill(pids[0], SIGKILL);
                pause_ms(m.cuda && !m.fake ? 600 : 40); /* long enough to be of use, now and then */
        }
        say(line, 'd');
}

TEST(worker, killed_at_any_moment, .respawns = true, .seconds = 60)
{
        unsigned kills = m.cuda && !m.fake ? 8 : 25, done = 0, refusals = 0; /* a real driver takes its time to begin */
        struct child killer;
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        child_start(&killer, kill_workers, &kills);
        for (bool over = false; !over; done++) {
                int status = raw_allocate(&r, 1, 20, PATIENCE_MS);
                if (status == GMS__STATUS__FAULTED) {
                        refused(&r, status, FAULTED, m.device);
                        refusals++;
                } else {
                        granted(&r, status);
                        ck_assert_uint_eq(r.fds->n, 20);
                        uint64_t ids[20];
                        for (unsigned i = 0; i < 20; i++)
                                ids[i] = r.first_id + i;
                        granted(&r, ask(&r, FREE, free, b.n_ids = 20, b.ids = ids));
                }
                ck_assert_uint_eq(look("w").building, 0);
                struct pollfd said = { .fd = killer.fd, .events = POLLIN };
                over = poll(&said, 1, 0) == 1;
        }
        child_wait(&killer, 'd');
        child_end(&killer);
        ck_assert_msg(refusals < done, "every one of %u requests was refused", done);
        (void)worker_ready();
        granted(&r, raw_allocate(&r, 1, 20, PATIENCE_MS));
}
