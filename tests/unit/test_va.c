// SPDX-License-Identifier: MIT
/* The client library's addresses and mappings, over a kind of memory that only keeps books and fails when told to. */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "../../libgmsclient/layout.h"
#include "../../libgmsclient/space.h"

#define UNIT UINT64_C(0x1000)
#define BASE UINT64_C(0x100000)

/* ---- memory that is not there */

#define UNITS 256

static struct {
        uint64_t next;                /* where the next reservation goes */
        unsigned reserved;            /* reservations that were not given back */
        bool mapped[UNITS];           /* by unit from BASE */
        enum vmm_access access[UNITS];
        unsigned calls;               /* of protect and unmap */
        unsigned fail_at;             /* which of them fails; 0: none */
} fake;

static size_t unit_of(uint64_t address) {
        return (size_t)((address - BASE) / UNIT);
}

static int fake_reserve(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address) {
        (void)v;
        if (address == 1 * UNIT)
                return VMM_E_TAKEN;
        *ret_address = fake.next;
        fake.next += size + UNIT; /* never touching, as far as addresses go */
        fake.reserved++;
        return 0;
}

static void fake_unreserve(struct vmm *v, uint64_t address, uint64_t size) {
        (void)v;
        for (size_t i = 0; i < size / UNIT; i++)
                ck_assert(!fake.mapped[unit_of(address) + i]);
        fake.reserved--;
}

static int fake_attach(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access,
                       uint64_t *ret_address) {
        (void)v;
        (void)fd;
        for (size_t i = 0; i < size / UNIT; i++) {
                ck_assert(!fake.mapped[unit_of(address) + i]);
                fake.mapped[unit_of(address) + i] = true;
                fake.access[unit_of(address) + i] = access;
        }
        *ret_address = address;
        return 0;
}

static int refuse(struct vmm *v) {
        if (++fake.calls != fake.fail_at)
                return 0;
        (void)snprintf(v->text, sizeof(v->text), "told to");
        return VMM_E_REFUSED;
}

static int fake_protect(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access) {
        int r = refuse(v);
        for (size_t i = 0; r == 0 && i < size / UNIT; i++) {
                ck_assert(fake.mapped[unit_of(address) + i]);
                fake.access[unit_of(address) + i] = access;
        }
        return r;
}

static int fake_unmap(struct vmm *v, uint64_t address, uint64_t size) {
        int r = refuse(v);
        for (size_t i = 0; r == 0 && i < size / UNIT; i++) {
                ck_assert(fake.mapped[unit_of(address) + i]);
                fake.mapped[unit_of(address) + i] = false;
        }
        return r;
}

static const struct vmm_ops fake_ops = {
        .reserve = fake_reserve,
        .unreserve = fake_unreserve,
        .attach = fake_attach,
        .protect = fake_protect,
        .unmap = fake_unmap,
};

static struct vmm vmm;
static struct space space;

static void setup(void) {
        memset(&fake, 0, sizeof(fake));
        fake.next = BASE;
        vmm = (struct vmm){ .ops = &fake_ops, .device.granularity = UNIT };
        space_init(&space);
}

/* n mappings of `units` units each, placed as one batch. */
static void place(struct mapping *m, size_t n, uint64_t units) {
        struct region *rest = NULL;
        memset(m, 0, n * sizeof(*m));
        for (size_t i = 0; i < n; i++) {
                m[i].bytes = m[i].aligned = units * UNIT;
                ck_assert_int_eq(space_place(&space, &vmm, &m[i], &rest, n * units * UNIT), 0);
        }
}

static void attach(struct mapping *m, size_t n, uint32_t access) {
        for (size_t i = 0; i < n; i++)
                ck_assert_int_eq(mapping_attach(&vmm, &m[i], 0, access), 0);
}

/* ---- addresses */

START_TEST(a_batch_is_one_region) {
        struct mapping a[4], b[2];
        place(a, 4, 2);
        place(b, 2, 1);
        ck_assert_uint_eq(fake.reserved, 2);
        for (size_t i = 1; i < 4; i++)
                ck_assert_uint_eq(a[i].address, a[i - 1].address + 2 * UNIT);

        space_take(&vmm, a, 3);
        ck_assert_uint_eq(fake.reserved, 2);
        space_take(&vmm, &a[3], 1);
        ck_assert_uint_eq(fake.reserved, 1);
        space_take(&vmm, a, 4); /* has none left to take */
        space_done(&space, &vmm);
        ck_assert_uint_eq(fake.reserved, 0);
}
END_TEST

START_TEST(the_users_region_first) {
        uint64_t at;
        ck_assert_int_eq(space_reserve(&space, &vmm, UNIT, UNIT, &at), -EEXIST);
        ck_assert_int_eq(space_reserve(&space, &vmm, 0, 4 * UNIT, &at), 0);

        struct mapping a[3], b[3];
        place(a, 3, 1);
        place(b, 3, 1); /* one fits, two go elsewhere */
        ck_assert_uint_eq(a[0].address, at);
        ck_assert_uint_eq(b[0].address, at + 3 * UNIT);
        ck_assert_uint_ge(b[1].address, at + 4 * UNIT);
        ck_assert_ptr_ne(b[1].region, b[0].region);
        ck_assert_ptr_eq(b[1].region, b[2].region);

        /* What is freed at the end is used again; a hole is not. */
        space_take(&vmm, &b[0], 1);
        space_take(&vmm, &a[0], 1);
        place(b, 1, 1);
        ck_assert_uint_eq(b[0].address, at + 3 * UNIT);
        /* Empty, it begins anew, and is still the user's. */
        space_take(&vmm, a, 3);
        space_take(&vmm, b, 1);
        place(a, 1, 4);
        ck_assert_uint_eq(a[0].address, at);
        space_done(&space, &vmm);
        ck_assert_uint_eq(fake.reserved, 0);
}
END_TEST

START_TEST(filled_anew_and_back) {
        uint64_t at;
        struct mapping old[2], new[3], again[1];
        ck_assert_int_eq(space_reserve(&space, &vmm, 0, 8 * UNIT, &at), 0);
        place(old, 2, 1);

        space_restart(&space);
        place(new, 3, 2);
        ck_assert_uint_eq(new[0].address, at);
        space_restart_end(&space, &vmm, false, new, 3);
        place(again, 1, 1); /* goes on where the old ones end */
        ck_assert_uint_eq(again[0].address, at + 2 * UNIT);
        space_take(&vmm, again, 1);

        space_restart(&space);
        place(new, 3, 2);
        space_restart_end(&space, &vmm, true, old, 2);
        place(again, 1, 1);
        ck_assert_uint_eq(again[0].address, at + 6 * UNIT);
        space_done(&space, &vmm);
        ck_assert_uint_eq(fake.reserved, 0);
}
END_TEST

/* A daemon that sends more than it announced does not make the library map beside its reservation. */
START_TEST(more_than_announced) {
        struct mapping m[2] = { { .aligned = UNIT }, { .aligned = UNIT } };
        struct region *rest = NULL;
        ck_assert_int_eq(space_place(&space, &vmm, &m[0], &rest, UNIT), 0);
        ck_assert_int_eq(space_place(&space, &vmm, &m[1], &rest, UNIT), -EPROTO);
        ck_assert_ptr_null(m[1].region);
        space_done(&space, &vmm);
}
END_TEST

/* ---- access */

START_TEST(neighbours_in_one_call) {
        struct mapping m[10];
        place(m, 10, 1);
        attach(m, 10, GMS_ACCESS_READ_WRITE);
        for (size_t i = 0; i < 10; i++)
                m[i].want = GMS_ACCESS_READ;
        ck_assert_int_eq(mappings_apply(&vmm, m, 10), 0);
        ck_assert_uint_eq(fake.calls, 1);
        ck_assert_int_eq(mappings_apply(&vmm, m, 10), 0); /* nothing to do */
        ck_assert_uint_eq(fake.calls, 1);

        m[4].want = GMS_ACCESS_NONE;
        ck_assert_int_eq(mappings_apply(&vmm, m, 10), 0);
        ck_assert_uint_eq(fake.calls, 2);
        for (size_t i = 0; i < 10; i++)
                ck_assert_uint_eq(fake.access[unit_of(m[i].address)], i == 4 ? VMM_ACCESS_NONE : VMM_ACCESS_READ);

        /* A run ends at an unmapped one, and at the end of a region. */
        ck_assert_int_eq(mappings_unmap(&vmm, &m[5], 1), 0);
        ck_assert_uint_eq(mappings_mapped(m, 10), 9);
        fake.calls = 0;
        ck_assert_int_eq(mappings_unmap(&vmm, m, 10), 0);
        ck_assert_uint_eq(fake.calls, 2);
        ck_assert_uint_eq(mappings_mapped(m, 10), 0);
        space_done(&space, &vmm);
}
END_TEST

START_TEST(regions_are_not_crossed) {
        struct mapping m[2];
        fake.next = BASE;
        place(&m[0], 1, 1);
        fake.next = BASE + UNIT; /* another reservation, right behind the first */
        place(&m[1], 1, 1);
        ck_assert_uint_eq(m[1].address, m[0].address + UNIT);
        attach(m, 2, GMS_ACCESS_READ_WRITE);
        m[0].want = m[1].want = GMS_ACCESS_READ;
        ck_assert_int_eq(mappings_apply(&vmm, m, 2), 0);
        ck_assert_uint_eq(fake.calls, 2);
        mappings_undo(&vmm, m, 2);
        space_done(&space, &vmm);
}
END_TEST

START_TEST(all_or_none_is_protected) {
        struct mapping m[6];
        place(m, 6, 1);
        attach(m, 6, GMS_ACCESS_READ_WRITE);
        /* Three runs: to read, stays, to none; the last call fails. */
        m[0].want = m[1].want = GMS_ACCESS_READ;
        m[3].want = GMS_ACCESS_NONE;
        m[5].want = GMS_ACCESS_READ;
        fake.fail_at = 3;
        ck_assert_int_eq(mappings_apply(&vmm, m, 6), -EIO);
        ck_assert_str_eq(gms_last_error(), "set the access of a mapping: told to");
        for (size_t i = 0; i < 6; i++) {
                ck_assert_uint_eq(m[i].access, GMS_ACCESS_READ_WRITE);
                ck_assert_uint_eq(m[i].want, GMS_ACCESS_READ_WRITE);
                ck_assert_uint_eq(fake.access[unit_of(m[i].address)], VMM_ACCESS_READ_WRITE);
        }

        fake.fail_at = 0;
        mappings_undo(&vmm, m, 6);
        ck_assert_uint_eq(mappings_mapped(m, 6), 0);
        space_done(&space, &vmm);
}
END_TEST

START_TEST(unmapping_goes_on_after_a_failure) {
        struct mapping a[2], b[2], m[4];
        place(a, 2, 1);
        place(b, 2, 1);
        memcpy(m, a, sizeof(a));
        memcpy(&m[2], b, sizeof(b));
        attach(m, 4, GMS_ACCESS_READ);
        fake.fail_at = 1;
        ck_assert_int_eq(mappings_unmap(&vmm, m, 4), -EIO);
        ck_assert_uint_eq(mappings_mapped(m, 4), 2);
        ck_assert(m[0].mapped && m[0].access == GMS_ACCESS_READ && !m[2].mapped && m[2].access == GMS_ACCESS_NONE);
        mappings_undo(&vmm, m, 4);
        space_done(&space, &vmm);
}
END_TEST

/* ---- what is known */

START_TEST(finding) {
        struct layout l = {};
        ck_assert_int_eq(layout_grow(&l, 100), 0);
        for (; l.n < 100; l.n++)
                l.at[l.n] = (struct mapping){ .slot = 3 * l.n, .id = 1000 + l.n };
        for (uint64_t i = 0; i < 100; i++) {
                ck_assert_ptr_eq(layout_find_slot(&l, 3 * i), &l.at[i]);
                ck_assert_ptr_null(layout_find_slot(&l, 3 * i + 1));
                ck_assert_ptr_eq(layout_find_id(&l, 1000 + i), &l.at[i]);
        }
        ck_assert_ptr_null(layout_find_id(&l, 999));
        l.at[50].id = 5; /* ids need not be in order */
        ck_assert_ptr_eq(layout_find_id(&l, 5), &l.at[50]);

        layout_remove(&l, &l.at[50]);
        ck_assert_uint_eq(l.n, 99);
        ck_assert_ptr_null(layout_find_id(&l, 5));
        ck_assert_ptr_eq(layout_find_slot(&l, 153), &l.at[50]);
        ck_assert_int_eq(layout_grow(&l, SIZE_MAX), -ENOMEM);
        layout_done(&l);
        ck_assert_ptr_null(layout_find_slot(&l, 0));
}
END_TEST

START_TEST(publications) {
        uint8_t hash[GMS_HASH_SIZE] = { 1, 2, 3 };
        Gms__Layout wire = GMS__LAYOUT__INIT;
        struct layout_id a, b;

        ck_assert_int_eq(layout_id_from(&a, NULL), 0);
        ck_assert(!a.known);
        wire.hash = (ProtobufCBinaryData){ .len = sizeof(hash), .data = hash };
        ck_assert_int_eq(layout_id_from(&a, &wire), 0); /* a draft has a hash as well, and it still changes */
        ck_assert(!a.known && !layout_id_same(&a, &a) && !layout_id_equal(&a, &a));

        wire.generation = 7;
        wire.epoch = 1;
        ck_assert_int_eq(layout_id_from(&a, &wire), 0);
        wire.epoch = 2; /* the store was forgotten in between */
        ck_assert_int_eq(layout_id_from(&b, &wire), 0);
        ck_assert(layout_id_same(&a, &b) && !layout_id_equal(&a, &b) && layout_id_equal(&a, &a));
        hash[0]++;
        ck_assert_int_eq(layout_id_from(&b, &wire), 0);
        ck_assert(!layout_id_same(&a, &b));

        wire.generation = 0;
        wire.sealed = true; /* known, but its bytes may have changed */
        ck_assert_int_eq(layout_id_from(&a, &wire), 0);
        ck_assert(a.known && layout_id_same(&a, &a) && !layout_id_equal(&a, &a));
        wire.hash.len = 3;
        ck_assert_int_eq(layout_id_from(&a, &wire), -EPROTO);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("va");
        TCase *tc = tcase_create("va");
        tcase_add_checked_fixture(tc, setup, NULL);
        tcase_add_test(tc, a_batch_is_one_region);
        tcase_add_test(tc, the_users_region_first);
        tcase_add_test(tc, filled_anew_and_back);
        tcase_add_test(tc, more_than_announced);
        tcase_add_test(tc, neighbours_in_one_call);
        tcase_add_test(tc, regions_are_not_crossed);
        tcase_add_test(tc, all_or_none_is_protected);
        tcase_add_test(tc, unmapping_goes_on_after_a_failure);
        tcase_add_test(tc, finding);
        tcase_add_test(tc, publications);
        suite_add_tcase(suite, tc);

        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
