// SPDX-License-Identifier: MIT
/* The lock alone: tables of who may hold what, and short stories of who is granted when. */
#undef NDEBUG
#include <check.h>
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "lock.h"

static const enum lock_want want_of_mode[_LOCK_MODE_MAX] = {
        [LOCK_MODE_RO] = LOCK_WANT_RO, [LOCK_MODE_UPDATE] = LOCK_WANT_UPDATE, [LOCK_MODE_RW] = LOCK_WANT_RW,
};

static const struct lock_facts published = { .published = true };

static struct lock_entry entry(enum lock_want want, uint64_t process) {
        return (struct lock_entry){ .want = want, .process = process };
}

/* ---- tables */

static const bool may_be_together[_LOCK_MODE_MAX][_LOCK_MODE_MAX] = {
        /*                 RO     UPDATE  RW */
        [LOCK_MODE_RO] =      { true,  true,   false },
        [LOCK_MODE_UPDATE] =  { true,  false,  false },
        [LOCK_MODE_RW] =      { false, false,  false },
};

START_TEST(held_against_asked) {
        enum lock_mode held = (enum lock_mode)(_i / _LOCK_MODE_MAX), asks = (enum lock_mode)(_i % _LOCK_MODE_MAX);
        bool together = may_be_together[held][asks];
        struct lock lock;
        lock_init(&lock);

        struct lock_entry a = entry(want_of_mode[held], 1), b = entry(want_of_mode[asks], 2);
        lock_ask(&lock, &a);
        ck_assert_ptr_eq(lock_grant(&lock, &published), &a);
        lock_ask(&lock, &b);
        ck_assert_int_eq(lock_in_the_way(&a, &b, &published), !together);
        ck_assert_ptr_eq(lock_grant(&lock, &published), together ? &b : NULL);
        ck_assert_ptr_null(lock_grant(&lock, &published));
        ck_assert_int_eq(a.mode, held);
        ck_assert_uint_eq(lock.waiting, together ? 0 : 1);

        lock_leave(&lock, &a);
        ck_assert_ptr_eq(lock_grant(&lock, &published), together ? NULL : &b);
        ck_assert(b.held);
        ck_assert_int_eq(b.mode, asks);
        ck_assert_uint_eq(lock.held[asks], 1);
        ck_assert_uint_eq(lock.waiting, 0);
}
END_TEST

/* The same matrix between two who wait: the second goes with the first, or after it. */
START_TEST(waiting_against_behind) {
        enum lock_mode first = (enum lock_mode)(_i / _LOCK_MODE_MAX), second = (enum lock_mode)(_i % _LOCK_MODE_MAX);
        struct lock lock;
        lock_init(&lock);

        struct lock_entry writer = entry(LOCK_WANT_RW, 1);
        struct lock_entry a = entry(want_of_mode[first], 2), b = entry(want_of_mode[second], 3);
        lock_ask(&lock, &writer);
        ck_assert_ptr_eq(lock_grant(&lock, &published), &writer);
        lock_ask(&lock, &a);
        lock_ask(&lock, &b);
        ck_assert_ptr_null(lock_grant(&lock, &published));

        lock_leave(&lock, &writer);
        ck_assert_ptr_eq(lock_grant(&lock, &published), &a);
        ck_assert_ptr_eq(lock_grant(&lock, &published), may_be_together[first][second] ? &b : NULL);
        lock_leave(&lock, &a);
        (void)lock_grant(&lock, &published);
        ck_assert(b.held);
}
END_TEST

/*
 * What each want is granted in a free lock: r, u, w, or - for a wait. Columns: published no, yes; in each sealed no, yes;
 * in each the fence none, the own process, another.
 */
static const char *const turns[_LOCK_WANT_MAX] = {
        [LOCK_WANT_RO] =       "------rrrrrr",
        [LOCK_WANT_UPDATE] =   "uuuuuuuuuuuu",
        [LOCK_WANT_RW] =       "wwwwwwwwwwww",
        [LOCK_WANT_RW_OR_RO] = "wwwwwwrrrrrr",
        [LOCK_WANT_ADOPT] =    "wwwww-wwwww-",
};
static const char mode_letters[_LOCK_MODE_MAX] = { [LOCK_MODE_RO] = 'r', [LOCK_MODE_UPDATE] = 'u', [LOCK_MODE_RW] = 'w' };

static struct lock_facts facts_of_column(int column, uint64_t own, uint64_t other) {
        return (struct lock_facts){
                .published = column / 6, .sealed = column / 3 % 2, .fence = (uint64_t[]){ 0, own, other }[column % 3],
        };
}

START_TEST(wants_and_facts) {
        enum lock_want want = (enum lock_want)(_i / 12);
        char expected = turns[want][_i % 12];
        struct lock_facts facts = facts_of_column(_i % 12, 7, 8);
        struct lock lock;
        lock_init(&lock);

        struct lock_entry e = entry(want, 7);
        lock_ask(&lock, &e);
        struct lock_entry *granted = lock_grant(&lock, &facts);
        ck_assert_int_eq(granted ? mode_letters[granted->mode] : '-', expected);
        ck_assert_int_eq(e.held, expected != '-');
        ck_assert_uint_eq(lock.waiting, expected == '-');

        /* Unknown processes are never taken for the one that is fenced off. */
        struct lock_entry unknown = entry(want, 0);
        lock_leave(&lock, &e);
        lock_ask(&lock, &unknown);
        granted = lock_grant(&lock, &facts);
        bool fenced = want == LOCK_WANT_ADOPT && facts.sealed && facts.fence != 0;
        ck_assert_int_eq(granted ? mode_letters[granted->mode] : '-', fenced ? '-' : expected);
}
END_TEST

/* Who waits only for a publication waits for no holder; everybody else waits for those it is not compatible with. */
START_TEST(in_the_way) {
        enum lock_mode held = (enum lock_mode)(_i / (_LOCK_WANT_MAX * 12));
        enum lock_want want = (enum lock_want)(_i / 12 % _LOCK_WANT_MAX);
        struct lock_facts facts = facts_of_column(_i % 12, 7, 8);
        struct lock_entry holder = { .mode = held, .held = true }, waiter = { .want = want, .process = 7 };
        char turn = turns[want][_i % 12];
        bool expected;

        if (want == LOCK_WANT_RO && !facts.published)
                expected = false;
        else if (turn == 'r')
                expected = held == LOCK_MODE_RW;
        else if (turn == 'u')
                expected = held != LOCK_MODE_RO;
        else
                expected = true;
        ck_assert_int_eq(lock_in_the_way(&holder, &waiter, &facts), expected);
}
END_TEST

/* ---- stories */

/*
 * A story is steps with spaces between: an upper case letter is a session, and
 *   A+r A+u A+w A+o A+a   asks RO, UPDATE, RW, RW_OR_RO, ADOPT; a digit behind it is its process, else each has its own
 *   A-                    leaves the queue or the holders
 *   Av                    the writer becomes a reader
 *   +p -p +s -s           published, sealed, or no more
 *   f0..f9                the fence
 * Behind "=" stand those who must be granted after the step, in order: "B-=CD".
 */
struct story {
        const char *name, *steps;
};

static const struct story stories[] = {
        { "first come, first served", "A+w=A B+w C+w D+w A-=B B-=C C-=D D-" },
        { "neighbours that are compatible go in together", "+p A+w=A B+r C+r D+u E+r F+w G+r A-=BCDE B- C- D- E-=F F-=G" },
        { "two updates are not neighbours", "+p A+w=A B+u C+u D+r A-=BD B-=C" },
        { "a waiting writer holds back later readers", "+p A+r=A B+w C+r D+r A-=B B-=CD" },
        { "and later updates", "+p A+r=A B+w C+u A-=B B-=C" },
        { "readers come and go beside an update", "+p A+u=A B+r=B C+r=C B- D+r=D" },
        { "a reader passes a waiting update that it does not conflict with", "+p A+u=A B+u C+r=C A-=B D+r=D" },
        { "an update passes nobody it conflicts with", "+p A+r=A B+w C+u D+r A-=B B-=CD" },
        { "a writer that gives up lets the readers behind it in", "+p A+r=A B+w C+r D+r B-=CD" },
        { "a reader without a publication holds back nobody", "A+r B+w=B C+r B- D+u=D E+w D-=E +p E-=AC" },
        { "readers that wait for a publication go in their order", "A+r B+r C+w=C +p Cv=AB" },
        { "a publication lets in who waits for it, also behind a writer that came later", "A+r B+w=B C+w +p Bv=A B- A-=C" },
        { "without a publication a reader does not pass it on to the writer before it", "A+w=A B+w C+r A-=B B- +p=C" },
        { "RW_OR_RO is decided at its turn", "A+w=A B+o C+o A-=B B-=C" },
        { "RW_OR_RO reads what was published meanwhile", "A+w=A B+o C+o +p Av=BC" },
        { "RW_OR_RO that will write holds back", "A+u=A B+o C+u D+r A-=B +p B-=CD" },
        { "RW_OR_RO that would read passes a waiting update", "+p A+u=A B+u C+o=C" },
        { "an adopter behind the fence keeps its place", "+s f1 A+a2 B+w C+u f0=A A-=B B-=C" },
        { "an adopter steps aside for the process it waits for", "+s f1 A+a2 B+w C+u D+a1=B B-=C C-=D D- f0=A" },
        { "and holds back readers", "+s +p f1 A+a2 B+r f0=A A-=B" },
        { "a process may adopt what it sealed itself", "+s f1 A+a1=A A-" },
        { "the fence of a layout that is not sealed stops nobody", "f1 A+a2=A" },
        { "what is sealed goes while the adopter waits", "+s f1 A+a2 B+w -s=A" },
        { "adopters one after the other", "+s A+a=A B+a C+a A-=B B-=C" },
        { "an adopter waits for readers", "+p A+r=A B+a C+r A-=B B-=C" },
        { "downgrade lets in readers and an update", "A+w=A B+r C+u D+r +p Av=BCD" },
        { "downgrade of an update lets in the next update", "+p A+u=A B+u C+r=C Av=B" },
        { "downgrade keeps a writer out", "A+w=A B+w +p Av A-=B" },
        { "leaving twice is harmless", "A+w=A A- A- B+w=B C+w C- C- B-" },
        { "who left asks again behind the others", "A+w=A B+w C+w B- B+w A-=C C-=B" },
};

struct cast {
        struct lock lock;
        struct lock_facts facts;
        struct lock_entry entries[26];
};

static void play(struct cast *c, const char *step) {
        static const char want_letters[] = "ruwoa";
        struct lock_entry *e = isupper((unsigned char)step[0]) ? &c->entries[step[0] - 'A'] : NULL;

        if (e && step[1] == '+') {
                const char *want = strchr(want_letters, step[2]);
                ck_assert_ptr_nonnull(want);
                e->want = (enum lock_want)(want - want_letters);
                e->process = isdigit((unsigned char)step[3]) ? (uint64_t)(step[3] - '0') : (uint64_t)step[0];
                lock_ask(&c->lock, e);
        } else if (e && step[1] == '-') {
                lock_leave(&c->lock, e);
                ck_assert(!e->held);
        } else if (e && step[1] == 'v') {
                lock_downgrade(&c->lock, e);
                ck_assert(e->held && e->mode == LOCK_MODE_RO);
        } else if (step[1] == 'p') {
                c->facts.published = step[0] == '+';
        } else if (step[1] == 's') {
                c->facts.sealed = step[0] == '+';
        } else if (step[0] == 'f') {
                c->facts.fence = (uint64_t)(step[1] - '0');
        } else {
                ck_assert_msg(step[0] == '=', "not a step: %s", step);
        }
}

/* The counts are those of the lists, and the holders are compatible. */
static void check_lock(const struct lock *lock) {
        unsigned held[_LOCK_MODE_MAX] = {}, waiting = 0;
        list_for(e, &lock->holders, struct lock_entry, link) {
                ck_assert(e->held);
                held[e->mode]++;
                list_for(other, &lock->holders, struct lock_entry, link)
                        ck_assert(other == e || may_be_together[e->mode][other->mode]);
        }
        list_for(e, &lock->queue, struct lock_entry, link) {
                ck_assert(!e->held);
                waiting++;
        }
        ck_assert_mem_eq(held, lock->held, sizeof(held));
        ck_assert_uint_eq(waiting, lock->waiting);
}

START_TEST(story) {
        const struct story *s = &stories[_i];
        struct cast cast = {};
        char steps[512], granted[27], *save;

        lock_init(&cast.lock);
        for (size_t i = 0; i < ARRAY_SIZE(cast.entries); i++)
                list_init(&cast.entries[i].link);
        (void)snprintf(steps, sizeof(steps), "%s", s->steps);
        for (char *step = strtok_r(steps, " ", &save); step; step = strtok_r(NULL, " ", &save)) {
                const char *expected = strchr(step, '=');
                struct lock_entry *e;
                size_t n = 0;
                play(&cast, step);
                while ((e = lock_grant(&cast.lock, &cast.facts)))
                        granted[n++] = (char)('A' + (e - cast.entries));
                granted[n] = 0;
                ck_assert_msg(strcmp(granted, expected ? expected + 1 : "") == 0, "%s: after %s granted \"%s\"", s->name, step,
                              granted);
                check_lock(&cast.lock);
        }
}
END_TEST

/* ---- what must never be asked of it */

START_TEST(downgrade_of_a_reader) {
        struct lock lock;
        lock_init(&lock);
        struct lock_entry e = { .want = LOCK_WANT_RO };
        lock_ask(&lock, &e);
        (void)lock_grant(&lock, &published);
        lock_downgrade(&lock, &e);
}
END_TEST

int main(void) {
        Suite *s = suite_create("lock");
        TCase *t = tcase_create("tables");
        tcase_add_loop_test(t, held_against_asked, 0, _LOCK_MODE_MAX * _LOCK_MODE_MAX);
        tcase_add_loop_test(t, waiting_against_behind, 0, _LOCK_MODE_MAX * _LOCK_MODE_MAX);
        tcase_add_loop_test(t, wants_and_facts, 0, _LOCK_WANT_MAX * 12);
        tcase_add_loop_test(t, in_the_way, 0, _LOCK_MODE_MAX * _LOCK_WANT_MAX * 12);
        suite_add_tcase(s, t);
        t = tcase_create("stories");
        tcase_add_loop_test(t, story, 0, (int)ARRAY_SIZE(stories));
        suite_add_tcase(s, t);
        t = tcase_create("misuse");
        tcase_add_test_raise_signal(t, downgrade_of_a_reader, SIGABRT);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
