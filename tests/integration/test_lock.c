// SPDX-License-Identifier: MIT
/* The lock as its holders and waiters see it: every mode beside every other, the queue, deadlines, deaths. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "raw.h"

/* ---- the tables */

enum { EMPTY, PUBLISHED, SEALED };

static void make_resting(int resting) {
        _cleanup_raw_ struct raw r = RAW;
        if (resting == EMPTY)
                return;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, 1, 0));
        if (resting == PUBLISHED)
                granted(&r, raw_commit(&r, NULL, true));
        else
                granted(&r, ask(&r, SEAL, seal));
        raw_close(&r);
        wait_for(look("w").readers + look("w").writers == 0);
}

#define WAIT (-1)
#define HELD(m) GMS__MODE__##m

/* What is granted at once to the second, beside the first. */
static const struct {
        int resting;
        Gms__Mode held;
        int asked[6]; /* RO, UPDATE, RW, RW_OR_RO, ADOPT */
        const char *state; /* with the first alone */
} table[] = {
        { EMPTY, HELD(NONE), { WAIT, HELD(UPDATE), HELD(RW), HELD(RW), HELD(RW) }, "" },
        { EMPTY, HELD(UPDATE), { WAIT, WAIT, WAIT, WAIT, WAIT }, "RW" },
        { EMPTY, HELD(RW), { WAIT, WAIT, WAIT, WAIT, WAIT }, "RW" },
        { PUBLISHED, HELD(NONE), { HELD(RO), HELD(UPDATE), HELD(RW), HELD(RO), HELD(RW) }, "COMMITTED" },
        { PUBLISHED, HELD(RO), { HELD(RO), HELD(UPDATE), WAIT, HELD(RO), WAIT }, "RO" },
        { PUBLISHED, HELD(UPDATE), { HELD(RO), WAIT, WAIT, HELD(RO), WAIT }, "COMMITTED" },
        { PUBLISHED, HELD(RW), { WAIT, WAIT, WAIT, WAIT, WAIT }, "RW" },
        { SEALED, HELD(NONE), { WAIT, HELD(UPDATE), HELD(RW), HELD(RW), HELD(RW) }, "SEALED" },
};

static void cell(size_t row, unsigned column) {
        _cleanup_raw_ struct raw first = RAW, second = RAW;
        Gms__Mode held = table[row].held, asked = (Gms__Mode)(GMS__MODE__RO + (int)column);
        make_resting(table[row].resting);
        if (held != GMS__MODE__NONE)
                raw_join(&first, "w", held);
        ck_assert_str_eq(state_of("w"), table[row].state);

        int status = raw_hello(&second, "w", asked, 0, NULL), wanted = table[row].asked[column];
        if (wanted == WAIT) {
                refused(&second, status, WOULD_WAIT, "");
                ended(&second);
        } else {
                granted(&second, status);
                ck_assert_msg((int)second.reply->welcome->mode == wanted, "row %zu, column %u: mode %d", row, column,
                              second.reply->welcome->mode);
        }
        raw_close(&first);
        raw_close(&second);
        wait_for(look("w").readers + look("w").writers == 0);
        (void)ask(&control, CLEAR, clear, b.store = (char *)store("w"));
}

TEST(lock, every_mode_beside_every_other)
{
        for (size_t row = 0; row < ARRAY_SIZE(table); row++)
                for (unsigned column = 0; column < 5; column++)
                        cell(row, column);
}

/* The states that people see, one event after the other. */
TEST(lock, states)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        ck_assert_str_eq(state_of("w"), "");
        raw_join(&a, "w", GMS__MODE__RW);
        ck_assert_str_eq(state_of("w"), "RW");
        granted(&a, raw_commit(&a, NULL, false));
        ck_assert_str_eq(state_of("w"), "RO");
        raw_join(&r, "w", GMS__MODE__RO);
        raw_close(&a);
        wait_for(look("w").readers == 1);
        ck_assert_str_eq(state_of("w"), "RO");
        raw_close(&r); /* the last reader */
        wait_for(strcmp(state_of("w"), "COMMITTED") == 0);
        raw_join(&a, "w", GMS__MODE__RW);
        ck_assert_str_eq(state_of("w"), "RW");
        raw_close(&a); /* lost: what was before */
        wait_for(strcmp(state_of("w"), "COMMITTED") == 0);
        raw_join(&a, "w", GMS__MODE__RW);
        granted(&a, raw_commit(&a, NULL, true));
        ck_assert_str_eq(state_of("w"), "COMMITTED");
        raw_close(&a);
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w")));
        wait_for(strcmp(state_of("w"), "") == 0);
        make_resting(SEALED);
        ck_assert_str_eq(state_of("w"), "SEALED");
        raw_join(&a, "w", GMS__MODE__RW);
        ck_assert_str_eq(state_of("w"), "RW");
        raw_close(&a);
        wait_for(strcmp(state_of("w"), "SEALED") == 0);
        granted(&control, ask(&control, CLEAR, clear, b.store = (char *)store("w")));
        wait_for(strcmp(state_of("w"), "") == 0);
}

/* RW over a sealed layout does not touch it before it commits. */
TEST(lock, rw_over_sealed)
{
        _cleanup_raw_ struct raw r = RAW;
        make_resting(SEALED);
        raw_join(&r, "w", GMS__MODE__RW);
        ck_assert_uint_eq(look("w").bytes, m.granularity);
        granted(&r, raw_commit(&r, NULL, true));
        ck_assert_uint_eq(look("w").bytes, 0);
        ck_assert_str_eq(state_of("w"), "COMMITTED");
}

/* ---- the queue */

/* Who comes first is served first, and neighbours that can be together go together. */
TEST(lock, fifo)
{
        _cleanup_raw_ struct raw w = RAW, ro1 = RAW, rw = RAW, ro2 = RAW, ro3 = RAW, upd = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        raw_queue(&ro1, "w", GMS__MODE__RO, FOREVER, 1);
        raw_queue(&rw, "w", GMS__MODE__RW, FOREVER, 2);
        raw_queue(&ro2, "w", GMS__MODE__RO, FOREVER, 3);
        raw_queue(&ro3, "w", GMS__MODE__RW_OR_RO, FOREVER, 4);
        raw_queue(&upd, "w", GMS__MODE__UPDATE, FOREVER, 5);
        granted(&w, raw_commit(&w, NULL, true));
        granted_mode(&ro1, raw_answer(&ro1, PATIENCE_MS), RO);
        ck_assert_uint_eq(waiters("w"), 4);
        raw_close(&ro1);
        granted_mode(&rw, raw_answer(&rw, PATIENCE_MS), RW);
        ck_assert_uint_eq(waiters("w"), 3);
        raw_close(&rw);
        granted_mode(&ro2, raw_answer(&ro2, PATIENCE_MS), RO);
        granted_mode(&ro3, raw_answer(&ro3, PATIENCE_MS), RO);
        granted_mode(&upd, raw_answer(&upd, PATIENCE_MS), UPDATE);
        ck_assert_uint_eq(waiters("w"), 0);
}

/* Twenty writers, one after the other, in the order they came. */
TEST(lock, fifo_of_many)
{
        struct raw r[20];
        raw_join(&r[0], "w", GMS__MODE__RW);
        for (unsigned i = 1; i < ARRAY_SIZE(r); i++)
                raw_queue(&r[i], "w", GMS__MODE__RW, FOREVER, i);
        for (unsigned i = 1; i < ARRAY_SIZE(r); i++) {
                raw_close(&r[i - 1]);
                granted(&r[i], raw_answer(&r[i], PATIENCE_MS));
                for (unsigned k = i + 1; k < ARRAY_SIZE(r); k++)
                        ck_assert(raw_waits(&r[k]));
        }
        raw_close(&r[ARRAY_SIZE(r) - 1]);
}

TEST(lock, deadlines)
{
        _cleanup_raw_ struct raw w = RAW, some = RAW, ever = RAW, none = RAW, huge = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        uint64_t before = now_ms();
        raw_queue(&some, "w", GMS__MODE__RW, 150, 1);
        raw_queue(&ever, "w", GMS__MODE__RW, FOREVER, 2);
        raw_queue(&huge, "w", GMS__MODE__RW, UINT64_MAX - 1, 3);
        refused(&none, raw_hello(&none, "w", GMS__MODE__RW, 0, NULL), WOULD_WAIT, "RW");
        ended(&none);
        refused(&some, raw_answer(&some, PATIENCE_MS), TIMED_OUT, "deadline");
        uint64_t took = now_ms() - before;
        ck_assert_msg(took >= 100 && took < 2000, "a deadline of 150 ms took %lu", took);
        ended(&some);
        ck_assert_uint_eq(waiters("w"), 2);
        raw_close(&w);
        granted(&ever, raw_answer(&ever, PATIENCE_MS));
        raw_close(&ever);
        granted(&huge, raw_answer(&huge, PATIENCE_MS));
}

/* A waiting writer holds back the readers that come after it; when it has had its time, they go in. */
TEST(lock, waiting_writer_holds_back_readers)
{
        static const Gms__Mode writers[] = { GMS__MODE__RW, GMS__MODE__ADOPT };
        for (size_t i = 0; i < ARRAY_SIZE(writers); i++) {
                _cleanup_raw_ struct raw r1 = RAW, w = RAW, r2 = RAW, now = RAW;
                if (i == 0)
                        raw_publish(&r1, "w", 1, NULL);
                else
                        raw_join(&r1, "w", GMS__MODE__RO);
                raw_queue(&w, "w", writers[i], 200, 1);
                refused(&now, raw_hello(&now, "w", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "1 waiting");
                raw_queue(&r2, "w", GMS__MODE__RO, FOREVER, 2);
                refused(&w, raw_answer(&w, PATIENCE_MS), TIMED_OUT, "1 readers");
                granted_mode(&r2, raw_answer(&r2, PATIENCE_MS), RO);
                ck_assert_uint_eq(r1.events[GMS__EVENT__KIND__LOCK_WANTED], 0); /* none taken yet */
                wait_for((raw_events(&r1), r1.events[GMS__EVENT__KIND__LOCK_WANTED] == 1));
                raw_close(&r1);
                raw_close(&r2);
                wait_for(look("w").readers == 0);
        }
}

/* Readers of what was never published wait behind nobody and in front of nobody. */
TEST(lock, readers_wait_for_the_first_publication)
{
        _cleanup_raw_ struct raw r1 = RAW, r2 = RAW, w = RAW;
        raw_queue(&r1, "w", GMS__MODE__RO, FOREVER, 1);
        raw_queue(&r2, "w", GMS__MODE__RO, FOREVER, 2);
        ck_assert_str_eq(state_of("w"), "EMPTY");
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_commit(&w, NULL, false));
        granted(&r1, raw_answer(&r1, PATIENCE_MS));
        granted(&r2, raw_answer(&r2, PATIENCE_MS));
        ck_assert_uint_eq(look("w").readers, 3);
}

/* Whichever is first possible, at its turn. */
TEST(lock, rw_or_ro)
{
        _cleanup_raw_ struct raw a = RAW, b = RAW, c = RAW;
        granted_mode(&a, raw_hello(&a, "w", GMS__MODE__RW_OR_RO, 0, NULL), RW);
        raw_queue(&b, "w", GMS__MODE__RW_OR_RO, FOREVER, 1);
        raw_queue(&c, "w", GMS__MODE__RW_OR_RO, FOREVER, 2);
        raw_close(&a); /* without a commit: b builds */
        granted_mode(&b, raw_answer(&b, PATIENCE_MS), RW);
        ck_assert(raw_waits(&c));
        granted(&b, raw_commit(&b, NULL, false));
        granted_mode(&c, raw_answer(&c, PATIENCE_MS), RO);
}

/* ---- deaths */

struct wish {
        const char *name;
        Gms__Mode mode;
};

static void wait_in_queue(int line, void *arg) {
        const struct wish *wish = arg;
        struct raw r = RAW;
        raw_hello_post(&r, wish->name, wish->mode, FOREVER);
        say(line, 'w');
        park();
}

TEST(lock, dead_waiters_are_gone_at_once)
{
        _cleanup_raw_ struct raw w = RAW, behind = RAW;
        struct child dead[3];
        struct wish wish = { "w", GMS__MODE__RW };
        raw_join(&w, "w", GMS__MODE__RW);
        for (unsigned i = 0; i < ARRAY_SIZE(dead); i++) {
                child_start(&dead[i], wait_in_queue, &wish);
                wait_for(waiters("w") == i + 1);
        }
        raw_queue(&behind, "w", GMS__MODE__RO, FOREVER, 4);
        for (unsigned i = 0; i < ARRAY_SIZE(dead); i++)
                child_kill(&dead[i], SIGKILL);
        wait_for(waiters("w") == 1);
        granted(&w, raw_commit(&w, NULL, true));
        granted_mode(&behind, raw_answer(&behind, PATIENCE_MS), RO);
}

/* The death of a waiting writer lets the readers behind it in, though the lock has not moved. */
TEST(lock, dead_waiter_holds_nobody_back)
{
        _cleanup_raw_ struct raw r1 = RAW, r2 = RAW;
        struct child dead;
        struct wish wish = { "w", GMS__MODE__RW };
        raw_publish(&r1, "w", 1, NULL);
        child_start(&dead, wait_in_queue, &wish);
        wait_for(waiters("w") == 1);
        raw_queue(&r2, "w", GMS__MODE__RO, FOREVER, 2);
        child_kill(&dead, SIGKILL);
        granted_mode(&r2, raw_answer(&r2, PATIENCE_MS), RO);
}

/* A waiter that is stopped, not dead, is granted in its turn; and what it holds is free when it dies. */
TEST(lock, stopped_waiter)
{
        _cleanup_raw_ struct raw w = RAW, next = RAW;
        struct child stopped;
        struct wish wish = { "w", GMS__MODE__RW };
        raw_join(&w, "w", GMS__MODE__RW);
        child_start(&stopped, wait_in_queue, &wish);
        wait_for(waiters("w") == 1);
        ck_assert_int_eq(kill(stopped.pid, SIGSTOP), 0);
        ck_assert_int_eq(waitpid(stopped.pid, NULL, WUNTRACED), stopped.pid);
        raw_close(&w);
        wait_for(waiters("w") == 0 && look("w").writers == 1);
        raw_queue(&next, "w", GMS__MODE__RW, FOREVER, 1);
        child_kill(&stopped, SIGKILL);
        granted_mode(&next, raw_answer(&next, PATIENCE_MS), RW);
}

/* A grant destroys nothing: a writer that dies leaves what was there, hash and generation and all. */
TEST(lock, grant_destroys_nothing)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 3, "kept");
        raw_close(&r);
        wait_for(look("w").readers == 0);
        struct store_view before = look("w");
        static const Gms__Mode modes[] = { GMS__MODE__RW, GMS__MODE__UPDATE, GMS__MODE__ADOPT };
        for (size_t i = 0; i < ARRAY_SIZE(modes); i++) {
                raw_join(&r, "w", modes[i]);
                granted(&r, raw_allocate(&r, 1, 5, 0));
                raw_close(&r);
                wait_for(look("w").writers == 0);
                struct store_view after = look("w");
                ck_assert_mem_eq(&after, &before, sizeof(after));
        }
}

/* ---- commit and what comes after */

/* A writer that becomes a reader leaves no gap: who waits to write waits on, until it leaves. */
TEST(lock, downgrade_has_no_gap)
{
        static const Gms__Mode writers[] = { GMS__MODE__RW, GMS__MODE__UPDATE };
        for (size_t i = 0; i < 2; i++) {
                _cleanup_raw_ struct raw w = RAW, rw = RAW, ro = RAW;
                raw_join(&w, "w", writers[i]);
                raw_queue(&rw, "w", GMS__MODE__RW, FOREVER, 1);
                raw_queue(&ro, "w", GMS__MODE__RO, FOREVER, 2);
                granted(&w, raw_commit(&w, NULL, false));
                granted(&w, ask(&w, STATE, state));
                ck_assert_int_eq(w.reply->session_state->mode, GMS__MODE__RO);
                ck_assert_uint_eq(w.reply->session_state->waiters, 2); /* the reader came behind the writer */
                ck_assert(raw_waits(&rw) && raw_waits(&ro));
                raw_close(&w);
                granted_mode(&rw, raw_answer(&rw, PATIENCE_MS), RW);
                ck_assert(raw_waits(&ro));
                raw_close(&rw);
                granted_mode(&ro, raw_answer(&ro, PATIENCE_MS), RO);
                raw_close(&ro);
                wait_for(look("w").readers == 0);
        }
}

/* The next generation beside the readers of this one. */
TEST(lock, update_beside_readers)
{
        _cleanup_raw_ struct raw reader = RAW, w = RAW, late = RAW;
        raw_publish(&reader, "w", 2, "one");
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, raw_allocate(&w, 1, 3, 0));
        raw_join(&late, "w", GMS__MODE__RO); /* of the first, while the second is made */
        ck_assert_uint_eq(late.reply->welcome->layout->generation, 1);
        raw_close(&late);

        granted(&w, raw_commit(&w, "two", false));
        wait_for((raw_events(&reader), reader.published == 2));
        ck_assert_uint_eq(w.events[GMS__EVENT__KIND__PUBLISHED], 0); /* it knows */
        granted(&reader, raw_page(&reader, 0, 253, true));
        ck_assert_uint_eq(reader.reply->allocations->generation, 1);
        ck_assert_uint_eq(reader.fds->n, 2);
        struct store_view v = look("w");
        ck_assert_uint_eq(v.draining, 2 * m.granularity);
        ck_assert_uint_eq(v.draining_layouts, 1);
        ck_assert_uint_eq(v.generation, 2);
        raw_join(&late, "w", GMS__MODE__RO);
        ck_assert_uint_eq(late.reply->welcome->layout->generation, 2);

        /* Both are there until it has settled, and again if it stays. */
        for (int keep = 1; keep <= 2; keep++) {
                granted(&reader, ask(&reader, REFRESH, refresh));
                ck_assert_uint_eq(reader.reply->layout->generation, 2);
                for (uint64_t generation = 1; generation <= 2; generation++) {
                        granted(&reader, ask(&reader, PAGE, page, b.count = 9, b.descriptors = true, b.generation = generation));
                        ck_assert_uint_eq(reader.fds->n, generation + 1);
                }
                granted(&reader, ask(&reader, SETTLE, settle, b.generation = (uint64_t)keep));
        }
        wait_for(look("w").draining == 0);
        refused(&reader, ask(&reader, PAGE, page, b.count = 9, b.generation = 1), NOT_FOUND, "generation");
}

/* What refresh is told to expect. */
TEST(lock, refresh_of_another_structure)
{
        _cleanup_raw_ struct raw reader = RAW, w = RAW;
        raw_publish(&reader, "w", 2, NULL);
        struct store_view one = look("w");
        ProtobufCBinaryData hash = { .data = one.hash, .len = 16 }, cut = { .data = one.hash, .len = 15 };
        granted(&reader, ask(&reader, REFRESH, refresh, b.hash = hash)); /* there is none newer */
        ck_assert_uint_eq(reader.reply->layout->generation, 1);
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, raw_allocate(&w, 1, 3, 0));
        granted(&w, raw_commit(&w, NULL, false));
        refused(&reader, ask(&reader, REFRESH, refresh, b.hash = hash), STALE, "structure");
        refused(&reader, ask(&reader, REFRESH, refresh, b.hash = cut), STALE, "structure");
        ck_assert_uint_eq(look("w").draining, 2 * m.granularity); /* still on the first */
}

/* ---- adopting */

static void seal_and_stay(int line, void *arg) {
        struct raw r = RAW;
        (void)arg;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, 2, PATIENCE_MS));
        granted(&r, ask(&r, SEAL, seal));
        raw_close(&r);
        say(line, 's');
        park();
}

/* The session of the writer is over, its process is not: its GPU may still be writing. */
TEST(lock, adopt_waits_for_the_process)
{
        _cleanup_raw_ struct raw a = RAW, none = RAW, rw = RAW;
        struct child writer;
        child_start(&writer, seal_and_stay, NULL);
        child_wait(&writer, 's');
        wait_for(strcmp(state_of("w"), "SEALED") == 0);
        refused(&none, raw_hello(&none, "w", GMS__MODE__ADOPT, 0, NULL), WOULD_WAIT, "process");
        raw_queue(&a, "w", GMS__MODE__ADOPT, FOREVER, 1);
        raw_queue(&rw, "w", GMS__MODE__RW, FOREVER, 2); /* it keeps its place */
        child_kill(&writer, SIGKILL);
        granted_mode(&a, raw_answer(&a, PATIENCE_MS), RW);
        ck_assert(a.reply->welcome->layout->sealed);
        ck_assert_uint_eq(a.reply->welcome->layout->allocations, 2);
        ck_assert(raw_waits(&rw));
        raw_close(&a);
        granted_mode(&rw, raw_answer(&rw, PATIENCE_MS), RW);
}

TEST(lock, adopt_gives_up)
{
        _cleanup_raw_ struct raw a = RAW, rw = RAW;
        struct child writer;
        child_start(&writer, seal_and_stay, NULL);
        child_wait(&writer, 's');
        wait_for(strcmp(state_of("w"), "SEALED") == 0);
        raw_queue(&a, "w", GMS__MODE__ADOPT, 100, 1);
        raw_queue(&rw, "w", GMS__MODE__RW, FOREVER, 2);
        refused(&a, raw_answer(&a, PATIENCE_MS), TIMED_OUT, "process");
        granted_mode(&rw, raw_answer(&rw, PATIENCE_MS), RW);
        child_kill(&writer, SIGKILL);
}

/* It is no danger to itself. */
TEST(lock, adopt_by_the_same_process)
{
        _cleanup_raw_ struct raw a = RAW;
        raw_join(&a, "w", GMS__MODE__RW);
        granted(&a, raw_allocate(&a, 1, 2, 0));
        granted(&a, ask(&a, SEAL, seal));
        for (int i = 0; i < 3; i++) {
                raw_close(&a);
                wait_for(strcmp(state_of("w"), "SEALED") == 0);
                granted_mode(&a, raw_hello(&a, "w", GMS__MODE__ADOPT, 0, NULL), RW);
                ck_assert_uint_eq(a.reply->welcome->layout->allocations, 2);
        }
}

TEST(lock, adopt_of_nothing_is_rw)
{
        _cleanup_raw_ struct raw a = RAW;
        granted_mode(&a, raw_hello(&a, "w", GMS__MODE__ADOPT, 0, NULL), RW);
        ck_assert_uint_eq(a.reply->welcome->layout->allocations, 0);
        ck_assert(!a.reply->welcome->layout->sealed);
        granted(&a, raw_allocate(&a, 1, 1, 0));
}

/* Sessions have names, places and ages, for who looks. */
TEST(lock, sessions_are_shown)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_allocate(&w, 1, 2, 0));
        raw_queue(&r, "w", GMS__MODE__RO, FOREVER, 1);
        granted(&control, ask(&control, LIST_SESSIONS, list_sessions));
        const Gms__Sessions *all = control.reply->sessions;
        ck_assert_uint_ge(all->n_sessions, 3);
        const Gms__Session *writer = all->sessions[all->n_sessions - 2], *waiter = all->sessions[all->n_sessions - 1];
        ck_assert_str_eq(writer->store, store("w"));
        ck_assert_str_eq(writer->label, "raw");
        ck_assert_uint_eq(writer->pid, (uint64_t)getpid());
        ck_assert_uint_eq(writer->uid, getuid());
        ck_assert_int_eq(writer->mode, GMS__MODE__RW);
        ck_assert_uint_eq(writer->bytes, 2 * m.granularity);
        ck_assert(!writer->waiting && waiter->waiting);
        ck_assert_int_eq(waiter->mode, GMS__MODE__RO);
        ck_assert_uint_eq(waiter->bytes, 0);
}
