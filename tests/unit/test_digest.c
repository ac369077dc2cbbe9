// SPDX-License-Identifier: MIT
/*
 * The identity of a content. The expected ones were computed from the words of gmsclient.h by another program, in another
 * language, with another implementation of XXH3: should one of them change, no published identity is worth anything any more.
 */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "../../libgmsclient/digest.h"
#include "../weights/weights.h"
#include "base.h"

static void add(XXH3_state_t *d, const char *name, const char *dtype, uint32_t rank, const int64_t *shape, const void *bytes,
                size_t n) {
        XXH128_canonical_t leaves[4];
        size_t n_leaves = digest_leaves(n);
        ck_assert_uint_le(n_leaves, ARRAY_SIZE(leaves));
        for (size_t i = 0; i < n_leaves; i++)
                leaves[i] = digest_leaf((const char *)bytes + i * DIGEST_LEAF, MIN(n - i * DIGEST_LEAF, DIGEST_LEAF));
        digest_tensor(d, name, gms_dtype_find(dtype), rank, shape, leaves, n_leaves);
}

static void expect(XXH3_state_t *d, const char *identity) {
        char got[GMS_IDENTITY_SIZE];
        digest_end(d, got);
        ck_assert_str_eq(got, identity);
}

static void *bytes_of(const char *name, size_t n) {
        void *bytes = malloc(n);
        ck_assert_ptr_nonnull(bytes);
        weights_fill(name, 0, bytes, n);
        return bytes;
}

START_TEST(golden) {
        XXH3_state_t *d = digest_begin();
        expect(d, "xxh3-128:2c40783034f3b75950184c0cafd42388");

        d = digest_begin();
        add(d, "a", "U8", 1, (int64_t[]){ 0 }, "", 0);
        expect(d, "xxh3-128:3bcde2a712e3ca0fdcdbb1626af3b4d5");

        d = digest_begin();
        add(d, "a", "U8", 0, NULL, "\0", 1);
        expect(d, "xxh3-128:ea0dcde286887589718754e0371b6133");

        _cleanup_free_ void *w = bytes_of("w", 30);
        d = digest_begin();
        add(d, "w", "BF16", 2, (int64_t[]){ 3, 5 }, w, 30);
        expect(d, "xxh3-128:086cfe5b8f7ac22c3befa82163a3b20b");

        /* A leaf, a leaf and a byte, bytes that are not ASCII. */
        _cleanup_free_ void *a = bytes_of("a", DIGEST_LEAF), *b = bytes_of("b.weight", 24);
        _cleanup_free_ void *c = bytes_of("c", DIGEST_LEAF + 1), *u = bytes_of("ü", 3);
        d = digest_begin();
        add(d, "a", "U8", 1, (int64_t[]){ DIGEST_LEAF }, a, DIGEST_LEAF);
        add(d, "b.weight", "F32", 2, (int64_t[]){ 2, 3 }, b, 24);
        add(d, "c", "U8", 1, (int64_t[]){ DIGEST_LEAF + 1 }, c, DIGEST_LEAF + 1);
        add(d, "ü", "F4", 2, (int64_t[]){ 3, 2 }, u, 3);
        expect(d, "xxh3-128:020a98a43af2db2db53789760139ee5f");
}
END_TEST

/* Whatever processor it is, and wherever the bytes lie. */
START_TEST(any_place) {
        _cleanup_free_ char *bytes = bytes_of("x", DIGEST_LEAF + 64);
        for (size_t n = 0; n < 3000; n += 7) {
                XXH128_canonical_t expected, got = digest_leaf(bytes + n % 64, n);
                XXH128_canonicalFromHash(&expected, XXH3_128bits(bytes + n % 64, n));
                ck_assert_mem_eq(&got, &expected, sizeof(got));
        }
}
END_TEST

START_TEST(leaves) {
        ck_assert_uint_eq(digest_leaves(0), 0);
        ck_assert_uint_eq(digest_leaves(1), 1);
        ck_assert_uint_eq(digest_leaves(DIGEST_LEAF), 1);
        ck_assert_uint_eq(digest_leaves(DIGEST_LEAF + 1), 2);
        ck_assert_uint_eq(digest_leaves(UINT64_MAX), (UINT64_MAX >> 20) + 1);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("digest");
        TCase *t = tcase_create("digest");
        tcase_add_test(t, golden);
        tcase_add_test(t, any_place);
        tcase_add_test(t, leaves);
        suite_add_tcase(suite, t);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
