// SPDX-License-Identifier: MIT
/* Listings: what goes in comes out, and what is none is refused before a byte outside of it is read. */
#undef NDEBUG
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "listing.h"
#include "wire.h"

/* Entries of all sizes; the k-th has key k and a value of so many bytes. */
static const size_t values[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 100, WIRE_VALUE_MAX };

static size_t fill(uint8_t *bytes) {
        static uint8_t value[WIRE_VALUE_MAX];
        size_t at = 0;
        for (size_t i = 0; i < ARRAY_SIZE(values); i++) {
                char key[WIRE_KEY_MAX + 1];
                (void)snprintf(key, sizeof(key), "%zu", i);
                if (i == 3) { /* the longest there is */
                        memset(key, 'k', WIRE_KEY_MAX);
                        key[WIRE_KEY_MAX] = 0;
                }
                memset(value, (int)i, values[i]);
                struct listing_entry e = {
                        .slot = i, .offset = i << 40, .key_size = (uint32_t)strlen(key), .value_size = (uint32_t)values[i],
                        .key = key, .value = values[i] ? value : NULL,
                };
                size_t size = listing_pack(bytes + at, &e);
                ck_assert_uint_eq(size, listing_size(strlen(key), values[i]));
                ck_assert_uint_eq(size % 8, 0);
                at += size;
        }
        return at;
}

/* Counts the entries; -1 when it is none. */
static int count(struct listing l) {
        static volatile uint8_t sum;
        struct listing_entry e;
        bool more = true;
        int n = 0;
        for (;; n++) {
                int r = listing_next(&l, &e, &more);
                ck_assert_int_ge(r, 0);
                if (r != 0)
                        return -1;
                if (!more)
                        return n;
                ck_assert_uint_eq(strlen(e.key), e.key_size);
                for (uint32_t i = 0; i < e.value_size; i++) /* for a sanitizer */
                        sum = (uint8_t)(sum + ((const uint8_t *)e.value)[i]);
        }
}

START_TEST(there_and_back) {
        static uint8_t bytes[65536];
        size_t size = fill(bytes), i = 0;
        int fd;
        ck_assert_int_eq(listing_seal(bytes, size, &fd), 0);
        struct listing l;
        struct listing_entry e;
        bool more;
        ck_assert_int_eq(listing_map(&l, fd, size), 0);
        for (; listing_next(&l, &e, &more) == 0 && more; i++) {
                ck_assert_uint_eq(e.slot, i);
                ck_assert_uint_eq(e.offset, (uint64_t)i << 40);
                ck_assert_uint_eq(e.value_size, values[i]);
                ck_assert_uint_eq(e.key_size, i == 3 ? WIRE_KEY_MAX : i < 10 ? 1 : 2);
                for (size_t k = 0; k < e.value_size; k++)
                        ck_assert_uint_eq(((const uint8_t *)e.value)[k], i);
        }
        ck_assert_uint_eq(i, ARRAY_SIZE(values));
        listing_unmap(&l);
        listing_unmap(&l); /* does nothing */

        /* nobody who holds it can change it */
        ck_assert_int_lt(pwrite(fd, "x", 1, 0), 0);
        ck_assert_int_lt(ftruncate(fd, 0), 0);
        ck_assert_ptr_eq(mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0), MAP_FAILED);
        ck_assert_int_lt(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
        ck_assert(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        close_fd(fd);
}
END_TEST

START_TEST(not_a_listing) {
        static uint8_t bytes[65536];
        struct listing l;
        size_t size = fill(bytes);
        int fd, pipes[2];
        ck_assert_int_eq(listing_seal(bytes, size, &fd), 0);
        ck_assert_int_eq(listing_map(&l, fd, 0), LISTING_E_MALFORMED);
        ck_assert_int_eq(listing_map(&l, fd, size + 1), LISTING_E_MALFORMED);
        ck_assert_int_eq(listing_map(&l, fd, LISTING_MAX + 1), LISTING_E_MALFORMED);
        ck_assert_int_eq(listing_map(&l, fd, UINT64_MAX), LISTING_E_MALFORMED);
        ck_assert_int_eq(listing_map(&l, -1, size), LISTING_E_MALFORMED);
        close_fd(fd);

        ck_assert_int_eq(pipe(pipes), 0);
        ck_assert_int_eq(listing_map(&l, pipes[0], 8), LISTING_E_MALFORMED);
        close_fd(pipes[0]);
        close_fd(pipes[1]);

        /* one that somebody may still shrink, or write */
        static const int seals[] = { 0, F_SEAL_SHRINK | F_SEAL_GROW, F_SEAL_WRITE | F_SEAL_GROW };
        for (size_t i = 0; i < ARRAY_SIZE(seals); i++) {
                fd = memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
                ck_assert_int_eq(ftruncate(fd, (off_t)size), 0);
                ck_assert_int_eq(fcntl(fd, F_ADD_SEALS, seals[i]), 0);
                ck_assert_int_eq(listing_map(&l, fd, size), LISTING_E_MALFORMED);
                close_fd(fd);
        }
}
END_TEST

static struct listing of(const void *bytes, size_t size) {
        return (struct listing){ .bytes = bytes, .size = size };
}

START_TEST(broken_entries) {
        uint8_t bytes[64] = {}, *copy;
        struct listing_entry e = { .key_size = 3, .value_size = 5, .key = "key", .value = "value" };
        size_t size = listing_pack(bytes, &e);
        ck_assert_uint_eq(size, 40);
        ck_assert_int_eq(count(of(bytes, size)), 1);
        for (size_t cut = 1; cut < size; cut++) { /* in memory of just that size, for a sanitizer */
                copy = malloc(cut);
                memcpy(copy, bytes, cut);
                ck_assert_int_eq(count(of(copy, cut)), -1);
                free(copy);
        }
        ck_assert_int_eq(count(of(bytes, 0)), 0);
        bytes[24 + 1] = 0; /* a key that ends early */
        ck_assert_int_eq(count(of(bytes, size)), -1);
        memcpy(bytes + 24, "keys", 4); /* and one that does not end */
        ck_assert_int_eq(count(of(bytes, size)), -1);
        static const uint32_t sizes[] = { WIRE_KEY_MAX + 1, INT32_MAX, UINT32_MAX - 24, UINT32_MAX };
        for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
                (void)listing_pack(bytes, &e);
                memcpy(bytes + 16, &sizes[i], 4);
                ck_assert_int_eq(count(of(bytes, size)), -1);
                (void)listing_pack(bytes, &e);
                memcpy(bytes + 20, &sizes[i], 4);
                ck_assert_int_eq(count(of(bytes, size)), -1);
        }
}
END_TEST

/* Any damage: what is read lies inside, which a sanitizer sees. */
START_TEST(damaged) {
        static uint8_t bytes[65536];
        size_t size = fill(bytes);
        uint8_t *copy = malloc(size);
        int refused = 0;
        srand(3);
        for (int round = 0; round < 3000; round++) {
                memcpy(copy, bytes, size);
                for (int k = rand() % 4; k >= 0; k--)
                        copy[(size_t)rand() % (rand() % 2 ? 400 : size)] = (uint8_t)rand();
                refused += count(of(copy, size)) < 0;
        }
        ck_assert_int_gt(refused, 300);
        ck_assert_int_lt(refused, 2900);
        free(copy);
}
END_TEST

int main(void) {
        Suite *s = suite_create("listing");
        TCase *t = tcase_create("listing");
        tcase_add_test(t, there_and_back);
        tcase_add_test(t, not_a_listing);
        tcase_add_test(t, broken_entries);
        tcase_add_test(t, damaged);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
