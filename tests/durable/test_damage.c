// SPDX-License-Identifier: MIT
/* What the next daemon makes of a journal that is damaged, of another version, or gone; and of a manager that is full. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "fold.h"
#include "journal.h"
#include "people.h"

#define PAGE 4096

/* ---- damages: done to the journal while there is no daemon */

static int open_journal(off_t *ret_size) {
        struct stat st;
        const char *path = world_journal();
        ck_assert_ptr_nonnull(path);
        int fd = open(path, O_RDWR | O_CLOEXEC);
        ck_assert_int_ge(fd, 0);
        ck_assert_int_eq(fstat(fd, &st), 0);
        *ret_size = st.st_size;
        return fd;
}

static void flip(int fd, off_t at) {
        char byte;
        ck_assert_int_eq(pread(fd, &byte, 1, at), 1);
        byte ^= 0x10;
        ck_assert_int_eq(pwrite(fd, &byte, 1, at), 1);
}

static off_t remembered; /* where the journal ended at some time */

static void flip_last(void *arg) {
        off_t size;
        _cleanup_close_ int fd = open_journal(&size);
        (void)arg;
        flip(fd, size - 1);
}

static void cut_last(void *arg) {
        off_t size;
        _cleanup_close_ int fd = open_journal(&size);
        (void)arg;
        ck_assert_int_eq(ftruncate(fd, size - 1), 0);
}

static void flip_remembered(void *arg) {
        off_t size;
        _cleanup_close_ int fd = open_journal(&size);
        (void)arg;
        flip(fd, remembered + 30);
}

static void flip_first(void *arg) {
        off_t size;
        _cleanup_close_ int fd = open_journal(&size);
        (void)arg;
        flip(fd, PAGE + 30);
}

static void remember(void) {
        close_fd(open_journal(&remembered));
}

/* ---- the tail: one change less, and nobody had been told */

static void tail(void (*damage)(void *arg)) {
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1), *update = client("w", GMS_MODE_UPDATE);
        client_verify(g, 1);
        _cleanup_free_ char *before = world_state();
        ok(gms_allocate(update, m.granularity, NULL, NULL));
        world_kill_and(damage, NULL);
        world_state_is(before, "the state before the last change");
        client_verify(g, 1);
        ck_assert_uint_eq(world_about()->orphans, 1);
        ck_assert_uint_eq(control.reply->daemon->unaccounted, 0);
        ok(gms_allocate(update, m.granularity, NULL, NULL)); /* asked anew: the last answer is not known any more */
        world_kill();
        client_verify(g, 1);
        ck_assert_uint_eq(world_about()->allocations, 3);
        ck_assert_uint_eq(control.reply->daemon->restarts, 2);
        gms_close(update);
        gms_close(g);
        world_stop();
}

TEST(damage, tail_flipped, .no_daemon = true, .memory = "64M")
{
        tail(flip_last);
}

TEST(damage, tail_cut, .no_daemon = true, .memory = "64M")
{
        tail(cut_last);
}

/* ---- the middle: what is certain is served, nobody's session is believed, and no memory is freed or given twice */

TEST(damage, middle, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        ok(gms_disconnect(g));
        wait_for(strcmp(state_of("w"), "COMMITTED") == 0);
        remember();
        struct gms *lost = client_build("x", 3, m.granularity, 2);
        world_kill_and(flip_remembered, NULL);
        ck_assert_uint_eq(world_about()->unaccounted, 3);
        ck_assert_uint_eq(control.reply->daemon->sessions, 1);
        fails(-ECONNRESET, "connect again", gms_allocate(lost, 1, NULL, NULL));
        (void)client_event(lost, GMS_EVENT_CLOSED);
        client_verify(lost, 2); /* mappings stay */
        gms_close(lost);

        ok(client_connect(g, GMS_MODE_RO, PATIENCE_MS, NULL)); /* without having been unmapped */
        client_verify(g, 1);
        /* New memory is not taken for what is kept under old names: not now, nor by the daemon after next. */
        struct gms *fresh = client_build("n", 3, m.granularity, 3);
        for (unsigned i = 0; i < 2; i++) {
                world_kill();
                ok(gms_unmap_all(fresh));
                ok(gms_remap_all(fresh, NULL));
                client_verify(fresh, 3);
                ck_assert_uint_eq(world_about()->unaccounted, 3); /* still left alone */
        }
        gms_close(fresh);
        gms_close(g);
        world_stop();
}

TEST(damage, beginning, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        world_kill_and(flip_first, NULL);
        ck_assert_uint_eq(world_about()->unaccounted, 2);
        ck_assert_uint_eq(control.reply->daemon->bytes, 0);
        fails(-ECONNRESET, NULL, gms_refresh(g, NULL)); /* at once, not after a minute */
        client_verify(g, 1);
        gms_close(g);
        struct gms *fresh = client_publish("w", 2, m.granularity, 4);
        world_kill();
        ok(gms_unmap_all(fresh));
        ok(gms_remap_all(fresh, NULL));
        client_verify(fresh, 4);
        ck_assert_uint_eq(world_about()->unaccounted, 2);
        gms_close(fresh);
        world_stop();
}

/* ---- other versions */

/* A journal of one record of `version`, over the one that is kept. */
static void other_version(void *arg) {
        off_t size;
        _cleanup_close_ int fd = open_journal(&size);
        struct journal *j;
        uint8_t bytes[4096];
        Gmsj__Begin begin = GMSJ__BEGIN__INIT;
        begin.version = *(const uint32_t *)arg;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_BEGIN;
        record.begin = &begin;
        ck_assert_int_eq(journal_new(&j), 0);
        size_t len = gmsj__record__pack(&record, bytes);
        ck_assert_int_eq(journal_append(j, bytes, len), 0);
        ssize_t n = pread(j->fd, bytes, sizeof(bytes), PAGE);
        ck_assert_int_eq(pwrite(fd, bytes, (size_t)n, PAGE), n);
        ck_assert_int_eq(ftruncate(fd, PAGE + n), 0);
        journal_free(j);
}

/* Of daemons that would not start. */
static unsigned deaths_said(void) {
        _cleanup_free_ char *log = read_text(m.log);
        unsigned n = 0;
        for (const char *at = log; (at = strstr(at, "ended with status 1 ")); at++)
                n++;
        return n;
}

TEST(damage, newer_version, .no_daemon = true, .memory = "64M")
{
        uint32_t version = FOLD_VERSION + 1;
        world_start(&(struct world_options){});
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        raw_close(&control);
        ck_assert_int_eq(kill(w.keeper, SIGSTOP), 0);
        ck_assert_int_eq(kill(m.gmsd, SIGKILL), 0);
        other_version(&version);
        off_t size;
        struct stat st;
        int fd = open_journal(&size);
        ck_assert_int_eq(kill(w.keeper, SIGCONT), 0);
        wait_for(deaths_said() == 1);
        unsigned keeper_fds = count_fds(w.keeper);
        wait_for(deaths_said() == 3);
        ck_assert_uint_eq(count_fds(w.keeper), keeper_fds); /* nothing was touched */
        ck_assert_int_eq(fstat(fd, &st), 0);
        ck_assert(st.st_size == size);
        client_verify(g, 1);
        (void)close(fd);
        gms_close(g);
        (void)kill(w.keeper, SIGTERM);
        ck_assert_int_ge(process_end(w.keeper), 0);
}

/* ---- a manager that keeps too little */

TEST(damage, full_manager, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){ .fd_max = "16" });
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        struct gms *many = client("x", GMS_MODE_RW);
        int r = 0;
        unsigned n = 0;
        while ((r = gms_allocate(many, m.granularity, NULL, NULL)) == 0)
                n++;
        ck_assert_int_eq(r, -ENOBUFS); /* refused from the start: what was answered is kept */
        ck_assert_uint_ge(n, 4);
        for (unsigned i = 0; i < 2; i++) {
                world_kill();
                client_verify(g, 1);
                ck_assert_uint_eq(client_state(many).allocations, n);
        }
        struct gms_allocation first = client_find(many, 0);
        ok(gms_free(many, first.id));
        wait_for(gms_allocate(many, m.granularity, NULL, NULL) == 0); /* once the manager has let go */
        gms_close(many);
        gms_close(g);
        world_stop();
}

/* One that does not say how much it keeps, and keeps too little: what lacks memory is given up, the rest goes on. */
TEST(damage, memory_not_kept, .no_daemon = true, .memory = "64M")
{
        world_start(&(struct world_options){ .fd_max = "14", .no_word = true });
        struct gms *g = client_publish("w", 2, m.granularity, 1);
        struct gms *many = client_build("x", 12, m.granularity, 2);
        world_kill();
        client_verify(g, 1);
        ck_assert_uint_eq(look("w").generation, 1);
        fails(-ECONNRESET, NULL, gms_allocate(many, 1, NULL, NULL));
        client_verify(many, 2);
        wait_for(look("x").bytes == 0);
        gms_close(many);
        struct gms *fresh = client_attach("w");
        client_verify(fresh, 1);
        gms_close(fresh);
        gms_close(g);
        world_stop();
}
