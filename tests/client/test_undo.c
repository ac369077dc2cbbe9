// SPDX-License-Identifier: MIT
/*
 * All or nothing: with the real daemon on host memory, each call that maps is run with its first system call failing,
 * then with its second, and so on until none fails. After every failure everything must be as it was before: what is
 * known, where it is, which bytes are there, how much is mapped, how many descriptors are open.
 *
 *     test_undo GMSD
 */
#undef NDEBUG
#include <check.h>
#include <dirent.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include "daemon.h"

#define N 12

/* ---- the kernel, on a bad day: the library finds these before libc's */

static bool armed;
static bool lasting; /* what has begun to fail goes on failing */
static unsigned countdown;
static bool fired;

static bool fails(void) {
        if (!armed || (fired && !lasting))
                return false;
        if (!fired && countdown-- > 0)
                return false;
        fired = true;
        errno = ENOMEM;
        return true;
}

static void arm(unsigned nth) {
        countdown = nth;
        fired = false;
        armed = true;
}

__attribute__((visibility("default"))) void *mmap(void *address, size_t length, int prot, int flags, int fd, off_t offset) {
        bool ours = fd >= 0 || (flags & MAP_NORESERVE); /* and not what malloc asks for */
        if (ours && fails())
                return MAP_FAILED;
        return (void *)syscall(SYS_mmap, address, length, prot, flags, fd, offset);
}

__attribute__((visibility("default"))) void *mremap(void *address, size_t old_length, size_t length, int flags, ...) {
        va_list args;
        va_start(args, flags);
        void *to = flags & MREMAP_FIXED ? va_arg(args, void *) : NULL;
        va_end(args);
        if ((flags & MREMAP_FIXED) && fails())
                return MAP_FAILED;
        return (void *)syscall(SYS_mremap, address, old_length, length, flags, to);
}

__attribute__((visibility("default"))) int mprotect(void *address, size_t length, int prot) {
        return fails() ? -1 : (int)syscall(SYS_mprotect, address, length, prot);
}

/* ---- handles */

static struct gms *open_session(uint32_t mode) {
        return daemon_session("host/undo", mode);
}

/* ---- everything that must not change */

struct scene {
        size_t n;
        struct gms_allocation at[N];
        unsigned mappings; /* of host memory, in this process */
        unsigned descriptors;
};

static unsigned count_mappings(void) {
        FILE *f = fopen("/proc/self/maps", "re");
        ck_assert_ptr_nonnull(f);
        char line[512];
        unsigned n = 0;
        while (fgets(line, sizeof(line), f))
                n += strstr(line, "memfd:gms") != NULL;
        (void)fclose(f);
        return n;
}

static unsigned count_descriptors(void) {
        DIR *d = opendir("/proc/self/fd");
        ck_assert_ptr_nonnull(d);
        unsigned n = 0;
        while (readdir(d))
                n++;
        (void)closedir(d);
        return n;
}

static void look(struct gms *g, struct scene *s) {
        memset(s, 0, sizeof(*s));
        for (size_t i = 0; i < N; i++)
                s->at[i].size = sizeof(s->at[i]);
        OK(gms_allocations(g, s->at, N, &s->n));
        s->mappings = count_mappings();
        s->descriptors = count_descriptors();
}

static void assert_as_before(struct gms *g, const struct scene *before) {
        struct scene now;
        look(g, &now);
        ck_assert_mem_eq(&now, before, sizeof(now));
}

static void assert_bytes(struct gms *g, char fill) {
        struct scene s;
        look(g, &s);
        ck_assert_uint_eq(s.n, N);
        for (size_t i = 0; i < N; i++) {
                char c;
                OK(gms_read(g, s.at[i].id, 100, &c, 1));
                ck_assert_int_eq(c, fill);
                ck_assert_int_eq(*(const char *)(uintptr_t)(s.at[i].address + 100), fill);
        }
}

/* The same structure every time: sizes and tags alternate. */
static int allocate(struct gms *g) {
        uint64_t bytes[N];
        const char *tags[N];
        for (size_t i = 0; i < N; i++) {
                bytes[i] = i % 2 ? 4096 : 5000;
                tags[i] = i % 3 ? "a" : "b";
        }
        return gms_allocate_many(g, N, bytes, tags, NULL);
}

static void fill(struct gms *g, char with) {
        struct scene s;
        char bytes[200];
        memset(bytes, with, sizeof(bytes));
        look(g, &s);
        for (size_t i = 0; i < s.n; i++)
                OK(gms_write(g, s.at[i].id, 0, bytes, sizeof(bytes)));
}

static void publish(uint32_t mode, char with) {
        struct gms *w = open_session(mode);
        OK(allocate(w));
        fill(w, with);
        OK(gms_commit(w, NULL, GMS_COMMIT_LEAVE));
        gms_close(w);
}

/* Runs `call` with its 1st, 2nd, ... system call failing. Returns how many failures were undone. */
static unsigned fail_at_every_step(struct gms *g, int (*call)(struct gms *g)) {
        struct scene before;
        look(g, &before);
        for (unsigned nth = 0; nth < 1000; nth++) {
                arm(nth);
                int r = call(g);
                armed = false;
                if (!fired) {
                        ck_assert_msg(r == 0, "%s", gms_last_error());
                        return nth;
                }
                ck_assert_int_eq(r, -ENOMEM);
                assert_as_before(g, &before);
        }
        ck_abort_msg("it fails for ever");
        return 0;
}

static int remap(struct gms *g) {
        return gms_remap_all(g, NULL);
}

static int refresh(struct gms *g) {
        return gms_refresh(g, NULL);
}

/* ---- the tests */

START_TEST(allocating) {
        struct gms *w = open_session(GMS_MODE_RW);
        ck_assert_uint_ge(fail_at_every_step(w, allocate), N);

        /* Nothing that failed was left behind in the daemon. */
        struct gms_state state = GMS_INIT(struct gms_state);
        OK(gms_state(w, &state));
        ck_assert_uint_eq(state.allocations, N);
        gms_close(w);
}
END_TEST

START_TEST(attaching_and_remapping) {
        publish(GMS_MODE_RW, '1');
        struct gms *r = open_session(GMS_MODE_RO);
        ck_assert_uint_ge(fail_at_every_step(r, gms_attach), N);
        assert_bytes(r, '1');

        struct scene before, after;
        look(r, &before);
        OK(gms_unmap_all(r));
        ck_assert_uint_ge(fail_at_every_step(r, remap), N);
        look(r, &after);
        ck_assert_mem_eq(&before, &after, sizeof(before));
        assert_bytes(r, '1');
        gms_close(r);
}
END_TEST

START_TEST(refreshing) {
        publish(GMS_MODE_RW, '1');
        struct gms *r = open_session(GMS_MODE_RO);
        OK(gms_attach(r));
        struct scene before, after;
        look(r, &before);
        publish(GMS_MODE_UPDATE, '2');
        ck_assert_uint_ge(fail_at_every_step(r, refresh), 2 * N);
        assert_bytes(r, '2');
        look(r, &after);
        for (size_t i = 0; i < N; i++)
                ck_assert_uint_eq(before.at[i].address, after.at[i].address);
        gms_close(r);
}
END_TEST

/* When the way back fails as well, the text says so, nothing lies about what is mapped, and attach repairs it. */
START_TEST(refreshing_without_a_way_back) {
        publish(GMS_MODE_RW, '1');
        struct gms *r = open_session(GMS_MODE_RO);
        OK(gms_attach(r));
        publish(GMS_MODE_UPDATE, '2');
        unsigned told = 0, nth = 0;
        lasting = true;
        for (int done = -1; done != 0; nth++) {
                arm(nth);
                done = refresh(r);
                armed = false;
                if (done == 0)
                        break;
                told += strstr(gms_last_error(), "could not all be mapped again") != NULL;
                OK(gms_attach(r));
                assert_bytes(r, '1');
        }
        lasting = false;
        ck_assert_uint_ge(told, N);
        assert_bytes(r, '2');
        gms_close(r);
}
END_TEST

/* Published is published: the failure to protect is told, and can be made good. */
START_TEST(committing) {
        struct gms *w = open_session(GMS_MODE_RW);
        OK(allocate(w));
        fill(w, '1');
        arm(0);
        int r = gms_commit(w, NULL, 0);
        armed = false;
        ck_assert_int_eq(r, -ENOMEM);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "IS published"));

        struct gms_state state = GMS_INIT(struct gms_state);
        OK(gms_state(w, &state));
        ck_assert_uint_eq(state.mode, GMS_MODE_RO);
        struct scene s;
        look(w, &s);
        ck_assert_uint_eq(s.at[0].access, GMS_ACCESS_READ_WRITE);
        OK(gms_protect(w, GMS_ALL, GMS_ACCESS_READ));
        ck_assert_int_eq(gms_write(w, s.at[0].id, 0, "x", 1), -EACCES);
        assert_bytes(w, '1');
        gms_close(w);
        ck_assert_uint_eq(count_mappings(), 0);
}
END_TEST

int main(int argc, char **argv) {
        daemon_program = argc > 1 ? argv[1] : "build/gmsd";
        Suite *suite = suite_create("undo");
        TCase *tc = tcase_create("undo");
        tcase_add_checked_fixture(tc, daemon_start, daemon_stop);
        tcase_add_test(tc, allocating);
        tcase_add_test(tc, attaching_and_remapping);
        tcase_add_test(tc, refreshing);
        tcase_add_test(tc, refreshing_without_a_way_back);
        tcase_add_test(tc, committing);
        suite_add_tcase(suite, tc);

        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
