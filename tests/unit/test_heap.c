// SPDX-License-Identifier: MIT
/* The heap of pools: every rule alone, and long random lives beside a model that is too simple to be wrong. */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "../../libgmsclient/heap.h"

#define UNIT HEAP_UNIT
#define BASE (UINT64_C(1) << 32)
#define SLAB (UINT64_C(64) * 1024)

static struct heap heap;

static void check(void) {
        const char *what = heap_check(&heap);
        ck_assert_msg(!what, "no longer true: %s", what);
}

static void setup(void) {
        heap_init(&heap);
        check();
}

static void teardown(void) {
        check();
        heap_done(&heap);
}

static struct slab *add(uint64_t slot, uint64_t address, uint64_t bytes) {
        struct slab *s;
        ck_assert_int_eq(heap_add(&heap, 100 + slot, slot, address, bytes, &s), 0);
        check();
        return s;
}

static int try(uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        int r = heap_allocate(&heap, bytes, alignment, ret);
        check();
        return r;
}

static uint64_t get_aligned(uint64_t bytes, uint64_t alignment) {
        struct heap_piece p;
        ck_assert_int_eq(try(bytes, alignment, &p), 0);
        ck_assert_uint_eq(p.address % alignment, 0);
        return p.address;
}

static uint64_t get(uint64_t bytes) {
        return get_aligned(bytes, UNIT);
}

/* The slab, if it is empty now. */
static struct slab *put(uint64_t address) {
        struct slab *s;
        ck_assert(heap_has(&heap, address));
        ck_assert_int_eq(heap_free(&heap, address, &s), 0);
        check();
        return s;
}

static void full(uint64_t bytes, uint64_t alignment) {
        struct heap_piece p;
        ck_assert_int_eq(try(bytes, alignment, &p), HEAP_E_FULL);
}

static void unknown(uint64_t address) {
        struct slab *s;
        ck_assert(!heap_has(&heap, address));
        ck_assert_int_eq(heap_free(&heap, address, &s), HEAP_E_UNKNOWN);
        check();
}

/* ---- rules */

START_TEST(nothing_there) {
        full(1, UNIT);
        unknown(0);
        unknown(BASE);
        ck_assert_uint_eq(heap_largest(&heap), 0);
        (void)add(0, BASE, SLAB);
        unknown(BASE);
}
END_TEST

START_TEST(pieces_of_a_slab) {
        struct slab *s = add(7, BASE, SLAB);
        struct heap_piece p;
        ck_assert(slab_is_empty(s));
        ck_assert_uint_eq(heap.n_empty, 1);
        ck_assert_int_eq(try(1, 1, &p), 0);
        ck_assert_uint_eq(p.slot, 7);
        ck_assert_uint_eq(p.offset, 0);
        ck_assert_uint_eq(p.address, BASE);
        ck_assert(!slab_is_empty(s));
        ck_assert_uint_eq(heap.n_empty, 0);
        ck_assert_int_eq(try(257, UNIT, &p), 0);
        ck_assert_uint_eq(p.offset, UNIT);
        ck_assert_int_eq(try(UNIT, UNIT, &p), 0);
        ck_assert_uint_eq(p.offset, 3 * UNIT);
        ck_assert_uint_eq(heap.n_pieces, 3);
        ck_assert_uint_eq(heap.reserved, SLAB);
        ck_assert_uint_eq(heap.allocated, 4 * UNIT);
        ck_assert_uint_eq(heap.requested, 1 + 257 + UNIT);
        ck_assert_uint_eq(heap_largest(&heap), SLAB - 4 * UNIT);
        ck_assert_ptr_null(put(BASE));
        ck_assert_ptr_null(put(BASE + 3 * UNIT));
        ck_assert_ptr_eq(put(BASE + UNIT), s);
}
END_TEST

START_TEST(full_to_the_brim) {
        struct slab *s = add(0, BASE, SLAB);
        full(SLAB + 1, UNIT);
        full(UINT64_MAX, UNIT);
        full(UINT64_MAX, UINT64_C(1) << 63);
        full(1, UINT64_C(1) << 63);
        full(HEAP_MAX, UNIT);
        ck_assert_uint_eq(get(SLAB), BASE);
        full(1, UNIT);
        ck_assert_uint_eq(heap_largest(&heap), 0);
        ck_assert_ptr_eq(put(BASE), s);
        ck_assert_uint_eq(heap_largest(&heap), SLAB);
        for (unsigned i = 0; i < SLAB / UNIT; i++)
                ck_assert_uint_eq(get(UNIT), BASE + i * UNIT);
        full(1, UNIT);
}
END_TEST

START_TEST(largest_slab) {
        (void)add(0, UINT64_C(1) << 56, HEAP_MAX);
        full(HEAP_MAX, UNIT);
        (void)get(HEAP_MAX - UNIT);
        ck_assert_uint_eq(heap_largest(&heap), UNIT);
}
END_TEST

START_TEST(only_what_begins_there) {
        (void)add(0, BASE, SLAB);
        uint64_t a = get(1000), b = get(1000);
        unknown(a + 1);
        unknown(a + UNIT);
        unknown(b + 1024);
        unknown(0);
        unknown(UINT64_MAX);
        (void)put(a);
        unknown(a);
        (void)put(b);
        unknown(b);
}
END_TEST

/* Of three pieces in a row, each order of giving them back; what is between them and the end is free or not. */
START_TEST(neighbours_join) {
        static const unsigned orders[6][3] = { { 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 }, { 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 } };
        struct slab *s = add(0, BASE, SLAB);
        for (int i = 0; i < 12; i++) {
                uint64_t last = i >= 6 ? get(SLAB - 6 * UNIT) : 0, p[3];
                uint64_t before = heap_largest(&heap);
                for (unsigned k = 0; k < 3; k++)
                        p[k] = get((k + 1) * UNIT);
                for (unsigned k = 0; k < 3; k++)
                        ck_assert_ptr_eq(put(p[orders[i % 6][k]]), k == 2 && !last ? s : NULL);
                ck_assert_uint_eq(heap_largest(&heap), before);
                if (last)
                        ck_assert_ptr_eq(put(last), s);
                ck_assert_uint_eq(heap_largest(&heap), SLAB);
        }
        ck_assert_uint_eq(heap.n_empty, 1);
        ck_assert_uint_eq(s->bytes, SLAB);
}
END_TEST

/* Addresses of two slabs may touch; they are two allocations all the same. */
START_TEST(slabs_do_not_join) {
        struct slab *a = add(0, BASE, SLAB), *b = add(1, BASE + SLAB, SLAB);
        full(2 * SLAB, UNIT);
        full(SLAB + 1, UNIT);
        uint64_t x = get(SLAB), y = get(SLAB);
        struct slab *of_x = put(x), *of_y = put(y);
        ck_assert((of_x == a && of_y == b) || (of_x == b && of_y == a));
        ck_assert_uint_eq(heap.n_empty, 2);
        ck_assert_uint_eq(heap_largest(&heap), SLAB);
        heap_remove(&heap, a);
        check();
        ck_assert_uint_eq(heap.reserved, SLAB);
        ck_assert_uint_eq(heap.reserved_peak, 2 * SLAB);
        ck_assert_uint_eq(get(1), BASE + SLAB);
}
END_TEST

START_TEST(aligned) {
        (void)add(0, BASE, SLAB);
        ck_assert_uint_eq(get(1), BASE);
        ck_assert_uint_eq(get_aligned(1, 4096), BASE + 4096);
        ck_assert_uint_eq(get(4096 - UNIT), BASE + UNIT); /* the gap is not lost, and fits exactly */
        ck_assert_uint_eq(get_aligned(1, 32768), BASE + 32768);
        full(1, 65536);
        full(32768, 1024);
        ck_assert_uint_eq(get_aligned(32768 - 1024, 1024), BASE + 32768 + 1024);
        ck_assert_uint_eq(get(28672 - UNIT), BASE + 4096 + UNIT);
        ck_assert_uint_eq(heap_largest(&heap), 1024 - UNIT);
}
END_TEST

/* A block that is just as large, and begins at the right place, will do. */
START_TEST(aligned_exactly) {
        (void)add(0, BASE, SLAB);
        ck_assert_uint_eq(get_aligned(SLAB, SLAB), BASE);
        (void)put(BASE);
        (void)add(1, BASE + SLAB + UNIT, SLAB); /* comes first, and begins wrong */
        ck_assert_uint_eq(get_aligned(SLAB, SLAB), BASE);
        full(SLAB, SLAB);
}
END_TEST

/* The hole that fits is taken, not the large rest, also where a bin has several sizes. */
START_TEST(best_fit) {
        static const uint64_t sizes[] = { UNIT, 5 * UNIT, 63 * UNIT, 64 * UNIT, 65 * UNIT, 16200 * UNIT, 50001 * UNIT };
        (void)add(0, BASE, UINT64_C(1) << 30);
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                uint64_t a = get(sizes[i]), wall = get(1), b = get(2 * sizes[i]), end = get(1);
                (void)put(b);
                (void)put(a);
                ck_assert_uint_eq(get(sizes[i]), a);
                (void)put(a);
                ck_assert_uint_eq(get(sizes[i] - UNIT / 2), a);
                (void)put(a);
                (void)put(wall);
                (void)put(end);
        }
}
END_TEST

/* The one that has room is behind many of its bin that have not, and then its beginning is not aligned. */
START_TEST(search) {
        enum { N = 9 };
        struct heap_piece p;
        uint64_t at[N];
        (void)add(0, BASE, UINT64_C(1) << 30);
        for (unsigned i = 0; i < N; i++) {
                at[i] = get((i == 0 ? 1036 : 1032) * UNIT);
                (void)get(1);
        }
        (void)get(heap_largest(&heap));
        for (unsigned i = 0; i < N; i++)
                (void)put(at[i]);
        ck_assert_int_eq(heap_search(&heap, 1037 * UNIT, UNIT, &p), HEAP_E_FULL);
        check();
        ck_assert_int_eq(heap_search(&heap, 1034 * UNIT, UNIT, &p), 0);
        check();
        ck_assert_uint_eq(p.address, at[0]);
        (void)put(p.address);
        for (unsigned i = 0; i < N; i++) {
                ck_assert_int_eq(heap_search(&heap, 1020 * UNIT, 8 * UNIT, &p), 0);
                check();
                ck_assert_uint_eq(p.address % (8 * UNIT), 0);
        }
        ck_assert_int_eq(heap_search(&heap, 1020 * UNIT, 8 * UNIT, &p), HEAP_E_FULL);
        ck_assert_int_eq(heap_search(&heap, UINT64_MAX, UNIT, &p), HEAP_E_FULL);
}
END_TEST

START_TEST(first_of_a_slab) {
        (void)add(0, BASE, SLAB);
        struct slab *s = add(1, BASE + 2 * SLAB, SLAB);
        struct heap_piece p;
        ck_assert_int_eq(heap_allocate_first(&heap, s, 1000, &p), 0);
        check();
        ck_assert_uint_eq(p.slot, 1);
        ck_assert_uint_eq(p.address, BASE + 2 * SLAB);
        ck_assert_uint_eq(heap.n_empty, 1);
        (void)put(p.address);
        ck_assert_int_eq(heap_allocate_first(&heap, s, SLAB, &p), 0);
        check();
        ck_assert_uint_eq(p.offset, 0);
}
END_TEST

START_TEST(peaks) {
        struct slab *s = add(0, BASE, SLAB);
        (void)put(get(1000));
        (void)put(get(300));
        ck_assert_uint_eq(heap.requested, 0);
        ck_assert_uint_eq(heap.requested_peak, 1000);
        heap_remove(&heap, s);
        ck_assert_uint_eq(heap.reserved_peak, SLAB);
        ck_assert_uint_eq(heap.reserved, 0);
}
END_TEST

/* The table of places grows, and keeps everybody while they leave in another order. */
START_TEST(many) {
        enum { N = 20000 };
        static uint64_t at[N];
        (void)add(0, BASE, N * UNIT);
        for (unsigned i = 0; i < N; i++) {
                struct heap_piece p;
                ck_assert_int_eq(heap_allocate(&heap, 1, UNIT, &p), 0);
                at[i] = p.address;
        }
        check();
        for (unsigned i = 0; i < N; i++) {
                unsigned k = (unsigned)((uint64_t)i * 7919 % N);
                struct slab *s;
                ck_assert_int_eq(heap_free(&heap, at[k], &s), 0);
                ck_assert((s != NULL) == (i == N - 1));
                ck_assert_int_eq(heap_free(&heap, at[k], &s), HEAP_E_UNKNOWN);
                if (i % 1000 == 0)
                        check();
        }
}
END_TEST

/* ---- lives beside a model */

/* What is used, by address; and the slabs, of which it knows no more than where they are. */
struct used {
        uint64_t address, bytes, requested;
};
static struct used used[4096];
static size_t n_used;
static struct slab *slabs[8];
#define STRIDE (UINT64_C(1) << 24)

static uint64_t random_state;

static uint64_t draw(uint64_t below) {
        random_state ^= random_state << 13;
        random_state ^= random_state >> 7;
        random_state ^= random_state << 17;
        return random_state % below;
}

/* The first used one that does not begin before the address. */
static size_t model_find(uint64_t address) {
        size_t i = 0;
        while (i < n_used && used[i].address < address)
                i++;
        return i;
}

static struct slab *model_slab(uint64_t address, uint64_t bytes) {
        for (size_t i = 0; i < ARRAY_SIZE(slabs); i++)
                if (slabs[i] && address >= slabs[i]->address && address + bytes <= slabs[i]->address + slabs[i]->bytes)
                        return slabs[i];
        return NULL;
}

static bool model_uses(const struct slab *s) {
        size_t i = model_find(s->address);
        return i < n_used && used[i].address < s->address + s->bytes;
}

/* The largest gap between used ones in any slab. */
static uint64_t model_largest(void) {
        uint64_t largest = 0;
        for (size_t i = 0; i < ARRAY_SIZE(slabs); i++) {
                if (!slabs[i])
                        continue;
                uint64_t at = slabs[i]->address, end = at + slabs[i]->bytes;
                for (size_t k = model_find(at); k < n_used && used[k].address < end; k++) {
                        largest = MAX(largest, used[k].address - at);
                        at = used[k].address + used[k].bytes;
                }
                largest = MAX(largest, end - at);
        }
        return largest;
}

/* Whether there is a gap with room between used ones in any slab. */
static bool model_has_room(uint64_t bytes, uint64_t alignment) {
        for (size_t i = 0; i < ARRAY_SIZE(slabs); i++) {
                if (!slabs[i])
                        continue;
                uint64_t at = slabs[i]->address, end = at + slabs[i]->bytes;
                for (size_t k = model_find(at); at < end; k++) {
                        uint64_t next = k < n_used ? MIN(used[k].address, end) : end;
                        uint64_t begin = (at + alignment - 1) / alignment * alignment;
                        if (begin <= next && next - begin >= bytes)
                                return true;
                        at = next < end ? next + used[k].bytes : end;
                }
        }
        return false;
}

static void life_allocate(void) {
        uint64_t bytes = 1 + draw(UINT64_C(1) << (4 + draw(18))), alignment = UINT64_C(1) << (draw(4) ? 8 : draw(18));
        struct heap_piece p;
        int r = heap_allocate(&heap, bytes, alignment, &p);
        uint64_t rounded = (bytes + UNIT - 1) / UNIT * UNIT, enough = rounded + MAX(alignment, UNIT) - UNIT;
        if (r == HEAP_E_FULL) {
                /* A bin's width may be missed, a 32nd; but not by who looks at all. */
                ck_assert_uint_lt(model_largest(), enough + enough / 32 + 1);
                r = heap_search(&heap, bytes, alignment, &p);
                ck_assert_int_eq(r, model_has_room(rounded, MAX(alignment, UNIT)) ? 0 : HEAP_E_FULL);
        }
        if (r == HEAP_E_FULL)
                return;
        ck_assert_int_eq(r, 0);
        struct slab *s = model_slab(p.address, rounded);
        ck_assert_msg(s, "a piece is inside of a slab");
        ck_assert_uint_eq(p.slot, s->slot);
        ck_assert_uint_eq(p.offset, p.address - s->address);
        ck_assert_uint_eq(p.address % alignment, 0);
        size_t i = model_find(p.address);
        ck_assert_msg(i == n_used || p.address + rounded <= used[i].address, "it is nobody's behind");
        ck_assert_msg(i == 0 || used[i - 1].address + used[i - 1].bytes <= p.address, "it is nobody's before");
        ck_assert_uint_lt(n_used, ARRAY_SIZE(used));
        memmove(&used[i + 1], &used[i], (n_used++ - i) * sizeof(*used));
        used[i] = (struct used){ p.address, rounded, bytes };
}

/* Now and then of an address a unit behind: nothing begins there, or the next one does. */
static void life_free(void) {
        if (n_used == 0)
                return;
        uint64_t address = used[draw(n_used)].address + (draw(8) ? 0 : UNIT);
        size_t i = model_find(address);
        struct slab *s;
        int r = heap_free(&heap, address, &s);
        if (i == n_used || used[i].address != address) {
                ck_assert_int_eq(r, HEAP_E_UNKNOWN);
                return;
        }
        ck_assert_int_eq(r, 0);
        struct slab *of = model_slab(address, used[i].bytes);
        memmove(&used[i], &used[i + 1], (--n_used - i) * sizeof(*used));
        ck_assert_ptr_eq(s, model_uses(of) ? NULL : of);
}

/* Addresses of neighbours touch when the first is of full size. */
static void life_slabs(void) {
        size_t i = draw(ARRAY_SIZE(slabs));
        if (!slabs[i]) {
                uint64_t bytes = draw(4) ? UNIT * (1 + draw(STRIDE / UNIT)) : STRIDE;
                ck_assert_int_eq(heap_add(&heap, 100 + i, i, BASE + i * STRIDE, bytes, &slabs[i]), 0);
        } else if (!model_uses(slabs[i])) {
                heap_remove(&heap, slabs[i]);
                slabs[i] = NULL;
        }
}

static void compare(void) {
        uint64_t reserved = 0, allocated = 0, requested = 0;
        size_t n_slabs = 0, n_empty = 0;
        for (size_t i = 0; i < ARRAY_SIZE(slabs); i++)
                if (slabs[i]) {
                        n_slabs++;
                        reserved += slabs[i]->bytes;
                        n_empty += !model_uses(slabs[i]);
                        ck_assert(slab_is_empty(slabs[i]) == !model_uses(slabs[i]));
                }
        for (size_t i = 0; i < n_used; i++) {
                allocated += used[i].bytes;
                requested += used[i].requested;
        }
        ck_assert_uint_eq(heap.n_slabs, n_slabs);
        ck_assert_uint_eq(heap.n_empty, n_empty);
        ck_assert_uint_eq(heap.n_pieces, n_used);
        ck_assert_uint_eq(heap.reserved, reserved);
        ck_assert_uint_eq(heap.allocated, allocated);
        ck_assert_uint_eq(heap.requested, requested);
        ck_assert_uint_eq(heap_largest(&heap), model_largest());
}

/* It fills up and empties again, over and over. */
START_TEST(life) {
        random_state = UINT64_C(0x9e3779b97f4a7c15) * ((uint64_t)_i + 1);
        for (unsigned step = 0; step < 8000; step++) {
                unsigned mood = step / 500 % 2 ? 40 : 60, dice = (unsigned)draw(100);
                if (dice < 3)
                        life_slabs();
                else if (dice < mood)
                        life_allocate();
                else
                        life_free();
                check();
                compare();
        }
        while (n_used > 0)
                life_free();
        compare();
}
END_TEST

int main(void) {
        Suite *suite = suite_create("heap");
        TCase *tc = tcase_create("heap");
        tcase_set_timeout(tc, 120);
        tcase_add_checked_fixture(tc, setup, teardown);
        tcase_add_test(tc, nothing_there);
        tcase_add_test(tc, pieces_of_a_slab);
        tcase_add_test(tc, full_to_the_brim);
        tcase_add_test(tc, largest_slab);
        tcase_add_test(tc, only_what_begins_there);
        tcase_add_test(tc, neighbours_join);
        tcase_add_test(tc, slabs_do_not_join);
        tcase_add_test(tc, aligned);
        tcase_add_test(tc, aligned_exactly);
        tcase_add_test(tc, best_fit);
        tcase_add_test(tc, search);
        tcase_add_test(tc, first_of_a_slab);
        tcase_add_test(tc, peaks);
        tcase_add_test(tc, many);
        tcase_add_loop_test(tc, life, 0, 12);
        suite_add_tcase(suite, tc);

        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
