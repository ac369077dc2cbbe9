// SPDX-License-Identifier: MIT
/* The journal's framing: what was appended is read, and whatever else a file may hold is told apart from it. */
#undef NDEBUG
#include <check.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "journal.h"

#define PAGE 4096u
#define HEAD 24u

static const char *const records[] = { "first", "", "the third one is longer than those before it", "4", "fifth" };

/* ---- files */

static struct journal *open_copy(const void *bytes, size_t len) {
        struct journal *j;
        int fd = memfd_create("copy", MFD_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(write(fd, bytes, len), (ssize_t)len);
        ck_assert_int_eq(journal_open_consume(&j, fd), 0);
        return j;
}

/* A journal of the records, as bytes; where each record begins, and the end. */
static size_t make(uint8_t *bytes, size_t room, size_t *starts) {
        struct journal *j;
        ck_assert_int_eq(journal_new(&j), 0);
        for (size_t i = 0; i < ARRAY_SIZE(records); i++) {
                starts[i] = j->end;
                ck_assert_int_eq(journal_append(j, (const uint8_t *)records[i], strlen(records[i])), 0);
                ck_assert_uint_eq(j->number, i + 1);
        }
        starts[ARRAY_SIZE(records)] = j->end;
        ck_assert_uint_le(j->end, room);
        ck_assert_int_eq(pread(j->fd, bytes, room, 0), (ssize_t)j->end);
        size_t len = j->end;
        journal_free(j);
        return len;
}

/* Reads until something else than a record comes, checks what was read, and says how many there were. */
static size_t read_records(struct journal *j, int *ret_r) {
        uint64_t at = 0;
        for (size_t n = 0;; n++) {
                _cleanup_free_ uint8_t *bytes = NULL;
                size_t len;
                *ret_r = journal_read(j, &at, &bytes, &len);
                if (*ret_r != 0)
                        return n;
                ck_assert_uint_lt(n, ARRAY_SIZE(records));
                ck_assert_uint_eq(len, strlen(records[n]));
                ck_assert_mem_eq(bytes, records[n], len);
                ck_assert_uint_eq(j->number, n + 1);
                ck_assert_uint_eq(j->end, at);
        }
}

/* ---- as it should be */

START_TEST(appended_is_read) {
        uint8_t bytes[PAGE * 2];
        size_t starts[ARRAY_SIZE(records) + 1], len = make(bytes, sizeof(bytes), starts);
        int r;
        struct journal *j = open_copy(bytes, len);
        ck_assert_uint_eq(read_records(j, &r), ARRAY_SIZE(records));
        ck_assert_int_eq(r, JOURNAL_E_END);
        /* and goes on where it ended */
        ck_assert_int_eq(journal_append(j, (const uint8_t *)"more", 4), 0);
        ck_assert_uint_eq(j->number, ARRAY_SIZE(records) + 1);
        journal_free(j);
}
END_TEST

START_TEST(empty) {
        struct journal *j;
        int r;
        ck_assert_int_eq(journal_new(&j), 0);
        ck_assert_uint_eq(read_records(j, &r), 0);
        ck_assert_int_eq(r, JOURNAL_E_END);
        ck_assert_uint_eq(journal_last_alive(j), 0);
        journal_alive(j, 77);
        struct journal *other;
        ck_assert_int_eq(journal_open_consume(&other, fcntl(j->fd, F_DUPFD_CLOEXEC, 3)), 0);
        ck_assert_uint_eq(journal_last_alive(other), 77); /* without a system call in between */
        journal_free(other);
        journal_free(j);
        ck_assert_ptr_null(journal_free(NULL));
}
END_TEST

/* ---- cut off */

START_TEST(cut_at_every_byte) {
        uint8_t bytes[PAGE * 2];
        size_t starts[ARRAY_SIZE(records) + 1], len = make(bytes, sizeof(bytes), starts);
        for (size_t cut = PAGE; cut <= len; cut++) {
                size_t whole = 0;
                int r;
                while (whole < ARRAY_SIZE(records) && starts[whole + 1] <= cut)
                        whole++;
                struct journal *j = open_copy(bytes, cut);
                ck_assert_uint_eq(read_records(j, &r), whole);
                ck_assert_int_eq(r, cut == starts[whole] ? JOURNAL_E_END : JOURNAL_E_TAIL);
                ck_assert_uint_eq(j->end, whole > 0 ? starts[whole] : PAGE);
                journal_free(j);
        }
}
END_TEST

/* What is appended behind a tail that was dropped takes its place. */
START_TEST(append_over_a_cut_tail) {
        uint8_t bytes[PAGE * 2];
        size_t starts[ARRAY_SIZE(records) + 1];
        int r;
        make(bytes, sizeof(bytes), starts);
        struct journal *j = open_copy(bytes, starts[4] + 3);
        ck_assert_uint_eq(read_records(j, &r), 4);
        ck_assert_int_eq(r, JOURNAL_E_TAIL);
        ck_assert_int_eq(journal_append(j, (const uint8_t *)records[4], strlen(records[4])), 0);
        ck_assert_uint_eq(read_records(j, &r), 5);
        ck_assert_int_eq(r, JOURNAL_E_END);
        journal_free(j);
}
END_TEST

/* ---- damaged */

START_TEST(every_bit_flipped) {
        uint8_t bytes[PAGE * 2];
        size_t starts[ARRAY_SIZE(records) + 1], len = make(bytes, sizeof(bytes), starts);
        for (size_t bit = PAGE * 8; bit < len * 8; bit++) {
                size_t hit = 0;
                int r;
                while (starts[hit + 1] <= bit / 8)
                        hit++;
                bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
                struct journal *j = open_copy(bytes, len);
                ck_assert_uint_eq(read_records(j, &r), hit);
                ck_assert_msg(r == (hit == ARRAY_SIZE(records) - 1 ? JOURNAL_E_TAIL : JOURNAL_E_MIDDLE),
                              "bit %zu, in record %zu: %d", bit, hit, r);
                journal_free(j);
                bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        }
}
END_TEST

/* A record that is missing, though all that is there is whole; and one that is there twice. */
START_TEST(missing_and_doubled) {
        uint8_t bytes[PAGE * 2], other[PAGE * 2];
        size_t starts[ARRAY_SIZE(records) + 1], len = make(bytes, sizeof(bytes), starts);
        int r;
        memcpy(other, bytes, starts[1]);
        memcpy(other + starts[1], bytes + starts[2], len - starts[2]);
        struct journal *j = open_copy(other, len - (starts[2] - starts[1]));
        ck_assert_uint_eq(read_records(j, &r), 1);
        ck_assert_int_eq(r, JOURNAL_E_MIDDLE);
        journal_free(j);

        memcpy(other, bytes, len);
        memcpy(other + len, bytes + starts[4], len - starts[4]);
        j = open_copy(other, len + len - starts[4]);
        ck_assert_uint_eq(read_records(j, &r), ARRAY_SIZE(records));
        ck_assert_int_eq(r, JOURNAL_E_TAIL);
        journal_free(j);
}
END_TEST

/* A large journal that is damaged at its beginning is judged in no time. */
START_TEST(large_and_damaged) {
        enum { SIZE = 60000, N = 1000 };
        static uint8_t bytes[SIZE];
        struct journal *j;
        uint64_t at = 0;
        uint8_t *read;
        size_t len;
        memset(bytes, 'C', sizeof(bytes)); /* a byte of the magic number */
        ck_assert_int_eq(journal_new(&j), 0);
        for (int i = 0; i < N; i++)
                ck_assert_int_eq(journal_append(j, bytes, SIZE), 0);
        ck_assert_int_eq(ftruncate(j->fd, (off_t)(PAGE + HEAD + SIZE)), 0); /* the others are zero now */
        ck_assert_int_eq(ftruncate(j->fd, (off_t)(PAGE + (HEAD + SIZE) * (uint64_t)N)), 0);
        ck_assert_int_eq(journal_read(j, &at, &read, &len), 0);
        free(read);
        ck_assert_int_eq(journal_read(j, &at, &read, &len), JOURNAL_E_TAIL);
        journal_free(j);
}
END_TEST

START_TEST(foreign_files) {
        struct journal *j;
        int pair[2];
        uint8_t bytes[PAGE] = {};
        int fd = memfd_create("foreign", MFD_CLOEXEC);
        ck_assert_int_eq(journal_open_consume(&j, fd), JOURNAL_E_FOREIGN); /* empty */
        ck_assert_int_eq(fcntl(fd, F_GETFD), -1);                          /* and taken all the same */

        fd = memfd_create("foreign", MFD_CLOEXEC);
        ck_assert_int_eq(write(fd, bytes, sizeof(bytes)), sizeof(bytes));
        ck_assert_int_eq(journal_open_consume(&j, fd), JOURNAL_E_FOREIGN);

        ck_assert_int_eq(pipe2(pair, O_CLOEXEC), 0);
        ck_assert_int_eq(journal_open_consume(&j, pair[0]), JOURNAL_E_FOREIGN);
        (void)close(pair[1]);
        ck_assert_int_eq(journal_open_consume(&j, open("/dev/null", O_RDWR | O_CLOEXEC)), JOURNAL_E_FOREIGN);
        ck_assert_int_lt(journal_open_consume(&j, 1000), 0);
}
END_TEST

/* ---- no room */

START_TEST(no_room) {
        static uint8_t bytes[PAGE + 100];
        struct journal *j;
        struct rlimit old, small = { PAGE * 2 + 100, RLIM_INFINITY };
        int r;
        (void)signal(SIGXFSZ, SIG_IGN);
        ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &old), 0);
        small.rlim_max = old.rlim_max;
        ck_assert_int_eq(journal_new(&j), 0);
        ck_assert_int_eq(journal_append(j, (const uint8_t *)records[0], strlen(records[0])), 0);
        uint64_t end = j->end;
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
        ck_assert_int_lt(journal_append(j, bytes, sizeof(bytes) + 100), 0); /* fits in part */
        ck_assert_int_lt(journal_append(j, bytes, sizeof(bytes) + 100), 0);
        ck_assert_uint_eq(j->end, end);
        ck_assert_uint_eq(j->number, 1);
        struct stat st;
        ck_assert_int_eq(fstat(j->fd, &st), 0);
        ck_assert_uint_eq((uint64_t)st.st_size, end); /* nothing of it is left */
        ck_assert_int_eq(journal_append(j, (const uint8_t *)records[1], strlen(records[1])), 0);
        ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
        ck_assert_int_eq(journal_append(j, (const uint8_t *)records[2], strlen(records[2])), 0);
        ck_assert_uint_eq(read_records(j, &r), 3);
        ck_assert_int_eq(r, JOURNAL_E_END);
        ck_assert_int_eq(journal_append(j, bytes, UINT32_MAX), -EMSGSIZE);
        journal_free(j);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("journal");
        TCase *tc = tcase_create("journal");
        const TTest *const tests[] = {
                appended_is_read,  empty,          cut_at_every_byte, append_over_a_cut_tail, every_bit_flipped,
                missing_and_doubled, large_and_damaged, foreign_files,  no_room,
        };
        for (size_t i = 0; i < ARRAY_SIZE(tests); i++)
                tcase_add_test(tc, tests[i]);
        tcase_set_timeout(tc, 20);
        suite_add_tcase(suite, tc);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed > 0;
}
