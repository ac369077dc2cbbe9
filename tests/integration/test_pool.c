// SPDX-License-Identifier: MIT
/* Pools: where pieces are, when slabs come and go, what others see of them, and PyTorch's allocator pair. */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "client.h"
#include "cuda_driver.h"
#include "raw.h"

#define KiB (UINT64_C(1) << 10)
#define MiB (UINT64_C(1) << 20)
#define GiB (UINT64_C(1) << 30)
#define SLAB (32 * MiB) /* the first ones */
#define SMALL .needs = NEEDS_SMALL, .memory = "64M"

static inline void pool_closep(struct gms_pool **p) {
        gms_pool_close(*p);
        *p = NULL;
}
#define _cleanup_pool_ _cleanup_(pool_closep) __attribute__((unused))

static struct gms_pool *pool_of(struct gms *g, uint64_t expected, uint64_t slab_max) {
        struct gms_pool *p;
        struct gms_pool_options o = GMS_INIT(struct gms_pool_options);
        o.expected = expected;
        o.slab_max = slab_max;
        ok(gms_pool_open(&p, g, &o));
        return p;
}

static struct gms_piece get(struct gms_pool *p, uint64_t bytes) {
        struct gms_piece piece = GMS_INIT(struct gms_piece);
        ok(gms_pool_allocate(p, bytes, 0, &piece));
        return piece;
}

static void put(struct gms_pool *p, struct gms_piece piece) {
        ok(gms_pool_free(p, piece.address));
}

static struct gms_pool_stats stats(struct gms_pool *p) {
        struct gms_pool_stats s = GMS_INIT(struct gms_pool_stats);
        ok(gms_pool_stats(p, &s));
        return s;
}

static uint64_t aligned(uint64_t bytes) {
        return (bytes + m.granularity - 1) / m.granularity * m.granularity;
}

/* The store's bytes become as many. */
static void held(const char *name, uint64_t bytes) {
        wait_for(look(name).bytes == bytes);
}

/* ---- pieces */

TEST(pool, pieces)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = NULL;
        ok(gms_pool_open(&p, g, NULL));
        ck_assert_uint_eq(stats(p).reserved, 0);
        ck_assert_uint_eq(look("w").bytes, 0);

        uint64_t end = 0;
        for (uint64_t alignment = 0; alignment <= 4 * KiB; alignment = alignment ? 2 * alignment : 1) {
                struct gms_piece a = GMS_INIT(struct gms_piece);
                ok(gms_pool_allocate(p, 1000 + alignment, alignment, &a));
                ck_assert_uint_eq(a.bytes, 1000 + alignment);
                ck_assert_uint_eq(a.slot, 0);
                ck_assert_uint_eq(a.offset % MAX(alignment, 256u), 0);
                ck_assert_uint_eq(a.address, client_find(g, 0).address + a.offset);
                ck_assert_uint_ge(a.offset, end);
                end = a.offset + a.bytes;
        }
        ck_assert_str_eq(client_find(g, 0).tag, "slab");
        struct gms_piece whole = GMS_INIT(struct gms_piece);
        ok(gms_pool_allocate(p, m.granularity, m.granularity, &whole));
        ck_assert_uint_eq(whole.address % m.granularity, 0);

        struct gms_pool_stats s = stats(p);
        ck_assert_uint_eq(s.slabs, 1);
        ck_assert_uint_eq(s.pieces, 15);
        ck_assert_uint_eq(s.reserved, SLAB);
        ck_assert_uint_eq(s.requested, 14 * 1000 + 8191 + m.granularity);
        ck_assert_uint_eq(s.requested_peak, s.requested);
        ck_assert_uint_eq(s.allocated % 256, 0);
        ck_assert(s.allocated > s.requested && s.allocated < s.requested + 15 * 256);
        ck_assert(s.largest_free <= SLAB - s.allocated);
        ck_assert_uint_eq(look("w").bytes, SLAB);
}

TEST(pool, what_can_never_be)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW), *r = client_publish("r", 1, 1, 1);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_pool *other = NULL;
        struct gms_pool_options o = GMS_INIT(struct gms_pool_options);
        struct gms_piece a = GMS_INIT(struct gms_piece), unset = {};
        fails(-EINVAL, "nowhere", gms_pool_open(NULL, g, NULL));
        fails(-EINVAL, "handle", gms_pool_open(&other, NULL, NULL));
        fails(-EINVAL, "GMS_INIT", gms_pool_open(&other, g, &(struct gms_pool_options){}));
        fails(-EACCES, "writers", gms_pool_open(&other, r, NULL));
        o.tag = "a tag with a line\n";
        fails(-EINVAL, "tag", gms_pool_open(&other, g, &o));
        o.tag = NULL;
        o.expected = UINT64_MAX;
        fails(-EINVAL, "expected", gms_pool_open(&other, g, &o));
        ck_assert_ptr_null(other);

        fails(-EINVAL, "gms_pool_open", gms_pool_allocate(NULL, 1, 0, &a));
        fails(-EINVAL, "GMS_INIT", gms_pool_allocate(p, 1, 0, &unset));
        fails(-EINVAL, "1 byte at least", gms_pool_allocate(p, 0, 0, &a));
        fails(-EINVAL, "power of two", gms_pool_allocate(p, 1, 3, &a));
        fails(-EINVAL, "power of two", gms_pool_allocate(p, 1, 2 * m.granularity, &a));
        fails(-EFBIG, NULL, gms_pool_allocate(p, UINT64_MAX, 0, &a));
        fails(-EFBIG, NULL, gms_pool_allocate(p, m.total + 1, 0, &a));
        fails(-ENOENT, "no piece", gms_pool_free(p, 0));
        a = get(p, 1000);
        fails(-ENOENT, "no piece", gms_pool_free(p, a.address + 256));
        put(p, a);
        fails(-ENOENT, "no piece", gms_pool_free(p, a.address));
        gms_pool_close(NULL);
}

/* ---- slabs come */

TEST(pool, growth)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        for (unsigned i = 0; i < 65; i++) {
                struct gms_piece a = get(p, MiB);
                ck_assert_uint_eq(a.slot, i / 32);
                ck_assert_uint_eq(a.offset, i % 32 * MiB);
        }
        ck_assert_uint_eq(look("w").bytes, 3 * SLAB);
        ck_assert_uint_eq(stats(p).slabs, 3);
}

/* Each is at most an eighth of what was there before, so few hold much, and little is wasted on the way. */
TEST(pool, growth_of_many, .needs = NEEDS_FAKE, .memory = "64G")
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        uint64_t before = 0;
        for (uint64_t bytes = 0; bytes < 48 * GiB; bytes += 2 * MiB) {
                (void)get(p, 2 * MiB);
                struct gms_pool_stats s = stats(p);
                uint64_t taken = s.reserved - before, most = MIN(MAX(SLAB, before / 8 + 2 * MiB), 2 * GiB);
                ck_assert(taken == 0 || (taken <= most && taken + 2 * MiB >= most));
                ck_assert_uint_le(s.reserved, s.requested + most);
                before = s.reserved;
        }
        ck_assert_uint_le(stats(p).slabs, 64);
        ck_assert_uint_eq(client_find(g, stats(p).slabs - 1).aligned, 2 * GiB);
}

TEST(pool, expected)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW), *h = client("v", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 50 * MiB + 1, 0), *q = pool_of(h, 50 * MiB, 20 * MiB);
        for (unsigned i = 0; i < 50; i++)
                (void)get(p, MiB);
        (void)get(p, 1);
        ck_assert_uint_eq(look("w").bytes, aligned(50 * MiB + 1)); /* in one, of just that size */
        ck_assert_uint_eq(stats(p).slabs, 1);
        (void)get(p, 8 * MiB); /* beyond what was expected */
        ck_assert_uint_eq(look("w").bytes, aligned(50 * MiB + 1) + SLAB);

        for (unsigned i = 0; i < 25; i++)
                (void)get(q, 2 * MiB);
        ck_assert_uint_eq(stats(q).slabs, 3);
        ck_assert_uint_eq(client_find(h, 1).aligned, 20 * MiB);
        ck_assert_uint_eq(client_find(h, 2).aligned, 10 * MiB);
}

/* Small pieces count as what they take. */
TEST(pool, expected_of_small_ones)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 8 * MiB, 0);
        for (unsigned i = 0; i < 8 * MiB / 256; i++)
                (void)get(p, 100);
        ck_assert_uint_eq(look("w").bytes, 8 * MiB);
        (void)get(p, 100);
        ck_assert_uint_eq(look("w").bytes, 8 * MiB + SLAB);
}

/* What comes then is small again, whatever was there before. */
TEST(pool, beyond_what_was_expected, .needs = NEEDS_FAKE)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 4 * GiB, 0);
        (void)get(p, 4 * GiB);
        ck_assert_uint_eq(get(p, MiB).slot, 1);
        ck_assert_uint_eq(client_find(g, 1).aligned, SLAB);
}

TEST(pool, a_slab_of_its_own)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)get(p, 1);
        struct gms_piece a = get(p, 40 * MiB + 5);
        ck_assert_uint_eq(a.slot, 1);
        ck_assert_uint_eq(a.offset, 0);
        ck_assert_uint_eq(client_find(g, 1).aligned, aligned(40 * MiB + 5));
        held("w", SLAB + aligned(40 * MiB + 5));
        put(p, a); /* it is larger than any that would be taken ahead, and than a quarter of all, so it is not kept */
        held("w", SLAB);
}

/* ---- slabs go */

/* A quarter of all may be empty: what comes and goes in every step is not made anew each time. */
TEST(pool, what_comes_and_goes_is_kept, .needs = NEEDS_FAKE, .memory = "1G")
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        for (unsigned i = 0; i < 4; i++)
                (void)get(p, 64 * MiB);
        struct gms_piece b = get(p, 64 * MiB), c = get(p, 40 * MiB);
        put(p, b);
        held("w", 360 * MiB); /* 64 of 360 */
        put(p, c); /* 104 of 360: the one that is enough goes */
        held("w", 320 * MiB);
        struct gms_piece again = get(p, 64 * MiB);
        ck_assert_uint_eq(again.address, b.address);
        held("w", 320 * MiB);
}

TEST(pool, empty_slabs_go_back)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece a[6];
        for (unsigned i = 0; i < 6; i++)
                a[i] = get(p, 16 * MiB);
        held("w", 3 * SLAB);
        put(p, a[0]);
        put(p, a[3]);
        held("w", 3 * SLAB);
        put(p, a[2]);
        held("w", 3 * SLAB); /* one may be empty, and is used again */
        struct gms_piece again = get(p, SLAB);
        ck_assert_uint_eq(again.slot, 1);
        put(p, again);
        put(p, a[1]);
        held("w", 2 * SLAB);
        put(p, a[5]);
        put(p, a[4]);
        held("w", SLAB);
        ck_assert_uint_eq(stats(p).slabs, 1);
        ck_assert_uint_eq(stats(p).reserved_peak, 3 * SLAB);
        ok(gms_pool_trim(p));
        held("w", 0);
        ok(gms_pool_trim(p));
        (void)get(p, 1);
        held("w", SLAB);
}

static void fail_to_unmap(int line, void *arg) {
        (void)line, (void)arg;
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)get(p, 1);
        struct gms_piece a = get(p, 40 * MiB);
        fakecuda_fail(m.knobs, "cuMemUnmap", CUDA_ERROR_UNKNOWN, 1);
        put(p, a);
        fakecuda_clear(m.knobs);
        ck_assert_uint_eq(stats(p).slabs, 1);
        a = get(p, 40 * MiB);
        ck_assert_uint_eq(client_find(g, a.slot).address, a.address);
        put(p, a); /* others still go back */
        held("w", SLAB);

        put(p, get(p, SLAB));
        fakecuda_fail(m.knobs, "cuMemUnmap", CUDA_ERROR_UNKNOWN, 1);
        fails(-EIO, "stays mapped", gms_pool_trim(p));
        fakecuda_clear(m.knobs);
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).slabs, 1);
}

/* What the layout has no more, the pool does not hand out. The mappings go with the child. */
TEST(pool, a_slab_that_stays_mapped, .needs = NEEDS_FAKE)
{
        struct child c;
        child_start(&c, fail_to_unmap, NULL);
        child_end(&c);
        wait_for(strcmp(state_of("w"), "") == 0);
}

/* ---- short of memory: the device has 64 MiB, and the bystander a little of it */

/* What a slab of 32 MiB does not fit into any more; the pool has none yet. */
static uint64_t leave(struct gms *g, uint64_t bytes) {
        struct gms_allocation a = GMS_INIT(struct gms_allocation);
        uint64_t room = m.total - look_device(0).owned;
        ok(gms_allocate(g, room - bytes, "hog", &a));
        return a.id;
}

TEST(pool, smaller_slabs_when_short, SMALL)
{
        _cleanup_gms_ struct gms *hog = client("hog", GMS_MODE_RW), *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)leave(hog, 14 * MiB);
        uint64_t before = now_ms();
        (void)get(p, MiB);
        held("w", 8 * MiB);
        (void)get(p, 5 * MiB);
        held("w", 8 * MiB);
        (void)get(p, 5 * MiB); /* half and half again would be 4, but 5 are needed */
        held("w", 8 * MiB + aligned(5 * MiB));
        ck_assert_uint_lt(now_ms(), before + 2000); /* none of which was waited for */

        struct gms_piece a = GMS_INIT(struct gms_piece);
        ok(gms_set_deadline(g, 200));
        before = now_ms();
        fails(-ENOMEM, "piece of 3145728 bytes", gms_pool_allocate(p, 3 * MiB, 0, &a));
        ck_assert_uint_ge(now_ms(), before + 200);
        ok(gms_set_deadline(g, 0));
        before = now_ms();
        fails(-ENOMEM, "are free", gms_pool_allocate(p, 30 * MiB, 0, &a));
        ck_assert_uint_lt(now_ms(), before + 2000);
        (void)get(p, 2 * MiB); /* what there is can be had */
}

/* An empty slab that is kept is of no use to somebody who needs more than that. */
TEST(pool, kept_slab_goes_when_short, SMALL)
{
        _cleanup_gms_ struct gms *hog = client("hog", GMS_MODE_RW), *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)leave(hog, 44 * MiB);
        put(p, get(p, 1));
        held("w", SLAB);
        ok(gms_set_deadline(g, 0));
        ck_assert_uint_eq(get(p, 40 * MiB).offset, 0);
        held("w", 40 * MiB);
}

/* Room is found wherever it is before anything is refused: behind many blocks of about the size that have none. */
TEST(pool, room_among_many, SMALL)
{
        _cleanup_gms_ struct gms *hog = client("hog", GMS_MODE_RW), *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)leave(hog, SLAB);
        ok(gms_set_deadline(g, 0));
        struct gms_piece a[9], more = GMS_INIT(struct gms_piece);
        for (unsigned i = 0; i < 9; i++) {
                a[i] = get(p, 2 * MiB + (i == 0 ? 48 : 16) * KiB);
                (void)get(p, 1);
        }
        (void)get(p, stats(p).largest_free);
        for (unsigned i = 0; i < 9; i++)
                put(p, a[i]);
        fails(-ENOMEM, "in pieces of at most 2146304", gms_pool_allocate(p, 2 * MiB + 56 * KiB, 0, &more));
        more = get(p, 2 * MiB + 32 * KiB);
        ck_assert_uint_eq(more.address, a[0].address);
        put(p, more);
        ok(gms_seal(g));
        ck_assert_uint_eq(get(p, 2 * MiB + 32 * KiB).address, a[0].address);
        fails(-EBUSY, "in pieces of at most 2113536", gms_pool_allocate(p, 2 * MiB + 32 * KiB, 0, &more));
}

struct want {
        struct gms_pool *p;
        uint64_t bytes;
        struct gms_piece got;
        pthread_t thread;
        atomic_bool done;
};

static void *want_thread(void *arg) {
        struct want *w = arg;
        w->got = get(w->p, w->bytes);
        w->done = true;
        return NULL;
}

static void want_start(struct want *w, struct gms_pool *p, uint64_t bytes) {
        *w = (struct want){ .p = p, .bytes = bytes };
        must(pthread_create(&w->thread, NULL, want_thread, w) == 0, "no thread");
}

static void want_end(struct want *w) {
        must(pthread_join(w->thread, NULL) == 0, "no end");
}

/* While threads wait for the device the others go on, and make the room that is waited for. */
TEST(pool, room_is_made_meanwhile, SMALL)
{
        _cleanup_gms_ struct gms *hog = client("hog", GMS_MODE_RW), *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        uint64_t id = leave(hog, SLAB);
        struct gms_piece a = get(p, 16 * MiB), b = get(p, 10 * MiB);
        ok(gms_set_deadline(g, GMS_FOREVER));

        struct want w[3];
        want_start(&w[0], p, 12 * MiB);
        want_start(&w[1], p, 11 * MiB);
        wait_for(look_device(0).waiting == 1); /* one asks, the other waits for him */
        uint64_t before = now_ms();
        for (unsigned i = 0; i < 100; i++)
                put(p, get(p, 4 * MiB));
        ck_assert_uint_lt(now_ms(), before + 300);
        put(p, a);
        wait_for(w[0].done || w[1].done);
        put(p, b);
        want_end(&w[0]);
        want_end(&w[1]);
        ck_assert_uint_eq(stats(p).slabs, 1);
        ck_assert_uint_eq(w[0].got.slot, w[1].got.slot);

        /* By somebody else: now it comes from the device. */
        want_start(&w[2], p, 20 * MiB);
        wait_for(look_device(0).waiting == 1);
        ok(gms_free(hog, id));
        want_end(&w[2]);
        ck_assert_uint_eq(stats(p).slabs, 2);
}

/* However long it has been waited for already. */
TEST(pool, room_is_made_late, SMALL, .seconds = 30)
{
        _cleanup_gms_ struct gms *hog = client("hog", GMS_MODE_RW), *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        (void)leave(hog, SLAB);
        struct gms_piece a = get(p, 31 * MiB);
        struct want w;
        ok(gms_set_deadline(g, GMS_FOREVER));
        want_start(&w, p, 20 * MiB);
        (void)usleep(4000000);
        uint64_t before = now_ms();
        put(p, a);
        want_end(&w);
        ck_assert_uint_lt(now_ms(), before + 1000);
}

struct rival {
        char name[16];
        pthread_t thread;
        atomic_bool *enough;
};

static void *rival_thread(void *arg) {
        struct rival *rival = arg;
        struct gms *g = client(rival->name, GMS_MODE_RW);
        while (!*rival->enough)
                ok(gms_allocate(g, 1, NULL, NULL));
        gms_close(g);
        return NULL;
}

/* Among others who keep the worker busy the turn comes, too. */
TEST(pool, busy_worker, .needs = NEEDS_FAKE, .seconds = 30)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct rival rivals[4];
        atomic_bool enough = false;
        fakecuda_delay(m.knobs, "cuMemCreate", 200000, FAKECUDA_ALWAYS);
        for (unsigned i = 0; i < ARRAY_SIZE(rivals); i++) {
                rivals[i].enough = &enough;
                (void)snprintf(rivals[i].name, sizeof(rivals[i].name), "rival%u", i);
                must(pthread_create(&rivals[i].thread, NULL, rival_thread, &rivals[i]) == 0, "no thread");
        }
        (void)usleep(500000);
        (void)get(p, 1);
        enough = true;
        for (unsigned i = 0; i < ARRAY_SIZE(rivals); i++)
                must(pthread_join(rivals[i].thread, NULL) == 0, "no end");
        fakecuda_clear(m.knobs);
}

static uint64_t addresses(void) {
        unsigned long pages = 0;
        FILE *f = fopen("/proc/self/statm", "re");
        must(f && fscanf(f, "%lu", &pages) == 1, "no statm");
        (void)fclose(f);
        return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

/* What this process lacks is not waited for. */
TEST(pool, no_addresses, .needs = NEEDS_HOST)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece a = GMS_INIT(struct gms_piece);
        struct rlimit before, tight;
        ok(gms_set_deadline(g, 3000));
        must(getrlimit(RLIMIT_AS, &before) == 0, "no limit");
        tight = (struct rlimit){ .rlim_cur = addresses() + 100 * MiB, .rlim_max = before.rlim_max };
        must(setrlimit(RLIMIT_AS, &tight) == 0, "no limit");
        uint64_t began = now_ms();
        fails(-ENOMEM, "address", gms_pool_allocate(p, 200 * MiB, 0, &a));
        ck_assert_uint_lt(now_ms(), began + 1000);
        must(setrlimit(RLIMIT_AS, &before) == 0, "no limit");
        (void)get(p, 200 * MiB);
}

/* Those who need a slab at the same moment share one. */
TEST(pool, one_slab_for_all)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct want w[16];
        for (unsigned i = 0; i < 16; i++)
                want_start(&w[i], p, 2 * MiB);
        for (unsigned i = 0; i < 16; i++)
                want_end(&w[i]);
        ck_assert_uint_eq(stats(p).slabs, 1);
        ck_assert_uint_eq(look("w").bytes, SLAB);
}

/* ---- published, sealed, left */

#define PIECES 40u
#define PIECE_BYTES(i) (3000 + 700 * (uint64_t)(i))

static void write_piece(struct gms *g, const struct gms_piece *a, uint32_t seed) {
        _cleanup_free_ char *bytes = malloc(a->bytes);
        pattern_fill(bytes, seed, a->offset, a->bytes);
        ok(gms_write(g, client_find(g, a->slot).id, a->offset, bytes, a->bytes));
}

static void verify_piece(struct gms *g, uint64_t slot, uint64_t offset, uint64_t n, uint32_t seed) {
        _cleanup_free_ char *bytes = malloc(n);
        ok(gms_read(g, client_find(g, slot).id, offset, bytes, n));
        must(pattern_is(bytes, seed, offset, n), "slot %lu, offset %lu has other bytes", slot, offset);
}

TEST(pool, published)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece gone[4], a[PIECES];
        for (unsigned i = 0; i < 4; i++)
                gone[i] = get(p, 16 * MiB);
        for (unsigned i = 0; i < PIECES; i++) {
                a[i] = get(p, PIECE_BYTES(i));
                write_piece(g, &a[i], i);
                char key[16];
                (void)snprintf(key, sizeof(key), "piece/%02u", i);
                struct gms_metadata e = { .size = sizeof(e), .key = key, .slot = a[i].slot, .offset = a[i].offset };
                ok(gms_metadata_put(g, &e, 1));
        }
        for (unsigned i = 0; i < 4; i++)
                put(p, gone[i]);
        ok(gms_pool_trim(p));
        ok(gms_commit(g, "pieces", 0));
        held("w", SLAB);

        _cleanup_gms_ struct gms *r = client_attach("w");
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        ok(gms_metadata_list(r, "piece/", &list));
        ck_assert_uint_eq(list.n, PIECES);
        for (unsigned i = 0; i < PIECES; i++)
                verify_piece(r, list.entries[i].slot, list.entries[i].offset, PIECE_BYTES(i), i);
        gms_metadata_free(&list);

        /* Its slabs are everybody's now. */
        struct gms_piece more = GMS_INIT(struct gms_piece);
        fails(-EACCES, "published", gms_pool_allocate(p, 1, 0, &more));
        for (unsigned i = 0; i < PIECES; i++)
                put(p, a[i]);
        ck_assert_uint_eq(stats(p).pieces, 0);
        fails(-EACCES, "published", gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).slabs, 1);
        ck_assert_uint_eq(look("w").bytes, SLAB);
        for (unsigned i = 0; i < PIECES; i++)
                verify_piece(r, a[i].slot, a[i].offset, a[i].bytes, i);

        ok(gms_disconnect(g));
        fails(-ENOTCONN, "connect", gms_pool_allocate(p, 1, 0, &more));
        ok(gms_unmap_all(g));
        ok(client_connect(g, GMS_MODE_UPDATE, 0, NULL));
        fails(-ENOTCONN, "another pool", gms_pool_allocate(p, 1, 0, &more));
        _cleanup_pool_ struct gms_pool *next = pool_of(g, 0, 0);
        (void)get(next, 1);
        fails(-ENOENT, "no piece", gms_pool_free(p, a[0].address));
}

TEST(pool, sealed)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece a = get(p, 20 * MiB), b = get(p, 20 * MiB), more = GMS_INIT(struct gms_piece);
        ok(gms_seal(g));
        struct gms_piece c = get(p, 10 * MiB);
        fails(-EBUSY, "seal", gms_pool_allocate(p, 16 * MiB, 0, &more));
        put(p, a);
        put(p, b);
        put(p, c);
        ck_assert_uint_eq(stats(p).reserved, 2 * SLAB);
        ck_assert_uint_eq(look("w").bytes, 2 * SLAB);
        fails(-EBUSY, "seal", gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).reserved, 2 * SLAB);
        put(p, get(p, SLAB));
}

/* Without having published: what was built is freed in the daemon, and nothing of it is handed out any more. */
TEST(pool, left)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece a = get(p, 1000), more = GMS_INIT(struct gms_piece);
        ok(gms_disconnect(g));
        fails(-ENOTCONN, "connect", gms_pool_allocate(p, 1, 0, &more));
        put(p, a);
        fails(-ENOTCONN, "connect", gms_pool_trim(p));
        wait_for(strcmp(state_of("w"), "") == 0);
}

/* The pool keeps the handle, and the handle the lock. */
TEST(pool, outlives_the_handle)
{
        struct gms *g = client("w", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0);
        gms_close(g);
        put(p, get(p, 40 * MiB));
        ck_assert_str_eq(state_of("w"), "RW");
        gms_pool_close(p);
        wait_for(strcmp(state_of("w"), "") == 0);
}

static void die_with_pieces(int line, void *arg) {
        (void)arg;
        struct gms *g = client("w", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0);
        for (unsigned i = 0; i < 5; i++)
                (void)get(p, 10 * MiB);
        say(line, 'p');
        park();
}

TEST(pool, writer_killed)
{
        struct child c;
        child_start(&c, die_with_pieces, NULL);
        child_wait(&c, 'p');
        ck_assert_uint_eq(look("w").bytes, 2 * SLAB);
        child_kill(&c, 9);
        wait_for(strcmp(state_of("w"), "") == 0);
}

/* ---- fork */

static void use_inherited(int line, void *arg) {
        struct gms_pool *p = ((void **)arg)[0], *other;
        struct gms *g = ((void **)arg)[1];
        struct gms_piece a = GMS_INIT(struct gms_piece);
        struct gms_pool_stats s = GMS_INIT(struct gms_pool_stats);
        (void)line;
        fails(-ECHILD, "fork", gms_pool_allocate(p, 1, 0, &a));
        fails(-ECHILD, "fork", gms_pool_free(p, 1));
        fails(-ECHILD, "fork", gms_pool_trim(p));
        fails(-ECHILD, "fork", gms_pool_stats(p, &s));
        fails(-ECHILD, "fork", gms_pool_open(&other, g, NULL));
        fails(-ECHILD, "fork", gms_torch_use(p));
        fails(-ECHILD, "fork", gms_torch_clear(p));
        gms_torch_free((void *)1, 1, 0, NULL);
        gms_pool_close(p);
        gms_close(g);
}

TEST(pool, fork)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        struct gms_piece a = get(p, 100);
        write_piece(g, &a, 3);
        struct child c;
        child_start(&c, use_inherited, (void *[]){ p, g });
        child_end(&c);
        verify_piece(g, a.slot, a.offset, a.bytes, 3);
        put(p, a);
        (void)get(p, 100);
}

/* ---- threads */

#define THREADS 6
#define TURNS 3000
#define LIVE 24

/* Whose a piece is, stands at its beginning and at its end as long as it is his. */
struct mark {
        uint64_t *first, *last;
        uint64_t address;
};

static void mark(struct mark *k, uint64_t value) {
        *k->first = *k->last = value;
}

static void *hammer(void *arg) {
        struct gms_pool *p = arg;
        struct mark live[LIVE] = {};
        uint64_t x = (uintptr_t)live | 1;
        for (unsigned turn = 0; turn < TURNS; turn++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                struct mark *k = &live[x % LIVE];
                if (k->address) {
                        must(*k->first == k->address && *k->last == k->address, "a piece is two threads'");
                        mark(k, 0);
                        ok(gms_pool_free(p, k->address));
                        k->address = 0;
                } else {
                        uint64_t bytes = 16 + (x >> 8) % (x % 5 ? 8 * KiB : 4 * MiB) / 8 * 8;
                        struct gms_piece a = get(p, bytes);
                        *k = (struct mark){ (void *)(uintptr_t)a.address, (void *)(uintptr_t)(a.address + bytes - 8), a.address };
                        mark(k, k->address);
                }
        }
        for (unsigned i = 0; i < LIVE; i++)
                if (live[i].address)
                        ok(gms_pool_free(p, live[i].address));
        return NULL;
}

static bool touchable(void) {
        return !m.cuda || m.fake; /* a device address is one of the CPU's */
}

TEST(pool, threads, .seconds = 60)
{
        if (!touchable())
                return;
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        pthread_t threads[THREADS];
        for (unsigned i = 0; i < THREADS; i++)
                must(pthread_create(&threads[i], NULL, hammer, p) == 0, "no thread");
        for (unsigned i = 0; i < THREADS; i++)
                must(pthread_join(threads[i], NULL) == 0, "no end");
        struct gms_pool_stats s = stats(p);
        ck_assert_uint_eq(s.pieces, 0);
        ck_assert_uint_eq(s.allocated, 0);
        ck_assert_uint_eq(s.slabs, 1);
        ck_assert_uint_eq(s.largest_free, s.reserved);
        held("w", s.reserved);
}

/* ---- PyTorch's allocator pair */

static uint64_t talloc(uint64_t bytes) {
        return (uintptr_t)gms_torch_alloc((ptrdiff_t)bytes, 0, NULL);
}

static void tfree(uint64_t address) {
        gms_torch_free((void *)(uintptr_t)address, 1, 0, NULL);
}

TEST(torch, not_for_host_memory, .needs = NEEDS_HOST)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        fails(-ENODEV, "host", gms_torch_use(p));
        fails(-ENOENT, "not in use", gms_torch_clear(p));
        ck_assert_uint_eq(talloc(512), 0);
        tfree(0);
}

TEST(torch, pair, .needs = NEEDS_CUDA)
{
        struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_gms_ struct gms *h = client("v", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0), *q = pool_of(h, 0, 0);
        ck_assert_uint_eq(talloc(512), 0);
        ck_assert_msg(strstr(gms_last_error(), "gms_torch_use"), "%s", gms_last_error());
        ok(gms_torch_use(p));
        ok(gms_torch_use(p));
        fails(-EBUSY, "gms_torch_clear", gms_torch_use(q));
        ck_assert_uint_eq(talloc(0), 0);
        ck_assert_ptr_null(gms_torch_alloc(512, 1, NULL));
        ck_assert_uint_eq(talloc(m.total + 1), 0);
        ck_assert_msg(strstr(gms_last_error(), "whole of"), "%s", gms_last_error());

        uint64_t a = talloc(2 * MiB), b = talloc(20 * MiB), c = talloc(1000);
        ck_assert_uint_eq(stats(p).pieces, 3);
        ck_assert_uint_eq((a | b | c) % 512, 0);
        ok(gms_torch_clear(p));
        fails(-ENOENT, "not in use", gms_torch_clear(p));
        ck_assert_uint_eq(talloc(512), 0);
        tfree(c);
        ok(gms_torch_use(q));
        uint64_t d = talloc(2 * MiB);
        ck_assert_uint_eq(stats(q).pieces, 1);
        tfree(b); /* of the pool that is not in use */
        tfree(a + 512); /* nobody's */
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).pieces, 1);
        gms_pool_close(p);
        gms_close(g);
        ck_assert_str_eq(state_of("w"), "RW"); /* as long as PyTorch has a piece */
        tfree(a);
        wait_for(strcmp(state_of("w"), "") == 0);
        tfree(a);

        tfree(d);
        ok(gms_pool_trim(q));
        held("v", 0);
        gms_pool_close(q); /* in use: no longer */
        ck_assert_uint_eq(talloc(512), 0);
}

/* Fences that there are. */
static uint32_t events(void) {
        return fakecuda_calls(m.knobs, "cuEventCreate") - fakecuda_calls(m.knobs, "cuEventDestroy_v2");
}

/* While its stream has work a piece is nobody's. */
TEST(torch, fence, .needs = NEEDS_FAKE)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0);
        ok(gms_torch_use(p));
        uint32_t before = events();
        uint64_t a = talloc(20 * MiB), b = talloc(20 * MiB);
        fakecuda_fail(m.knobs, "cuEventQuery", CUDA_ERROR_NOT_READY, FAKECUDA_ALWAYS);
        tfree(a);
        tfree(b);
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).pieces, 2);
        held("w", 2 * SLAB);
        uint64_t c = talloc(20 * MiB);
        ck_assert(c != a && c != b);
        held("w", 3 * SLAB);

        fakecuda_clear(m.knobs);
        uint64_t d = talloc(20 * MiB); /* that looks */
        ck_assert_uint_eq(stats(p).pieces, 2);
        ck_assert(d == a || d == b);
        held("w", 2 * SLAB); /* two were empty then */
        tfree(c);
        tfree(d);
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).pieces, 0);
        held("w", 0);
        ck_assert_uint_eq(events(), before);

        /* The handle is closed next: what is still worked on must not be unmapped then. */
        fakecuda_fail(m.knobs, "cuEventQuery", CUDA_ERROR_NOT_READY, 20);
        uint32_t looks = fakecuda_calls(m.knobs, "cuEventQuery");
        tfree(talloc(20 * MiB));
        gms_pool_close(p);
        ck_assert_uint_gt(fakecuda_calls(m.knobs, "cuEventQuery"), looks + 20);
        ck_assert_uint_eq(events(), before);
}

/*
 * A stream that is being captured takes no fence: only who has synchronised can say. What looks at the others' fences
 * meanwhile does the capture no harm.
 */
TEST(torch, captured, .needs = NEEDS_FAKE)
{
        const struct cuda_driver *d;
        CUcontext context;
        CUstream stream;
        CUgraph graph;
        char text[256];
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        ok(gms_torch_use(p));
        ok(cuda_driver_get(&d, text, sizeof(text)));
        ck_assert_int_eq(d->cuDevicePrimaryCtxRetain(&context, 0), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuCtxPushCurrent_v2(context), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), CUDA_SUCCESS);
        uint32_t before = events();
        uint64_t a = talloc(20 * MiB), x = talloc(20 * MiB);
        tfree(x);
        ck_assert_uint_eq(events(), before + 1);
        gms_torch_free((void *)(uintptr_t)a, 1, 0, stream);
        ck_assert_uint_eq(events(), before); /* that looked at the other, and left none of its own */
        uint64_t b = talloc(20 * MiB), c = talloc(20 * MiB);
        tfree(b);
        tfree(c);
        ck_assert(b != a && c != a);
        ck_assert_int_eq(d->cuStreamEndCapture(stream, &graph), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuGraphDestroy(graph), CUDA_SUCCESS);
        ck_assert_int_eq(d->cuStreamDestroy_v2(stream), CUDA_SUCCESS);

        b = talloc(20 * MiB);
        c = talloc(20 * MiB);
        ck_assert(b != a && c != a); /* of the graph it is a part, though that has ended */
        tfree(b);
        tfree(c);
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).pieces, 0);
        held("w", 0);
}

static void close_untrimmed(int line, void *arg) {
        (void)arg;
        struct gms *g = client("w", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0);
        ok(gms_torch_use(p));
        uint64_t a = talloc(20 * MiB);
        fakecuda_fail(m.knobs, "cuEventRecord", CUDA_ERROR_NOT_SUPPORTED, 1);
        tfree(a);
        uint32_t before = fakecuda_calls(m.knobs, "cuMemUnmap");
        gms_pool_close(p);
        gms_close(g);
        ck_assert_uint_eq(fakecuda_calls(m.knobs, "cuMemUnmap"), before);
        memset((void *)(uintptr_t)a, 7, 20 * MiB);
        say(line, 'c');
        park();
}

/* Nobody has said that the work on it is done: it stays mapped, but the lock goes. */
TEST(torch, closed_untrimmed, .needs = NEEDS_FAKE)
{
        struct child c;
        child_start(&c, close_untrimmed, NULL);
        child_wait(&c, 'c');
        wait_for(strcmp(state_of("w"), "") == 0);
        child_kill(&c, 9);
}

/* Before more is taken, what has become free is looked for. */
TEST(torch, looks_before_it_grows, .needs = NEEDS_FAKE)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        uint64_t a[32];
        ok(gms_torch_use(p));
        for (unsigned i = 0; i < 32; i++)
                a[i] = talloc(MiB);
        fakecuda_fail(m.knobs, "cuEventQuery", CUDA_ERROR_NOT_READY, FAKECUDA_ALWAYS);
        for (unsigned i = 0; i < 32; i++)
                tfree(a[i]);
        fakecuda_clear(m.knobs);
        uint64_t b = talloc(SLAB);
        ck_assert_uint_ne(b, 0);
        ck_assert_uint_eq(stats(p).slabs, 1);
        tfree(b); /* what PyTorch has keeps its pool and the handle open */
}

/* What PyTorch has keeps pool, handle and mapping, until it is freed: and then until the work on it is done. */
TEST(torch, outlives_everybody, .needs = NEEDS_FAKE)
{
        struct gms *g = client("w", GMS_MODE_RW);
        struct gms_pool *p = pool_of(g, 0, 0);
        ok(gms_torch_use(p));
        uint64_t a = talloc(2 * MiB), b = talloc(2 * MiB);
        gms_pool_close(p);
        gms_close(g);
        ck_assert_uint_eq(talloc(512), 0);
        memset((void *)(uintptr_t)a, 7, 2 * MiB);
        tfree(b);
        ck_assert_int_eq(*(char *)(uintptr_t)a, 7);
        fakecuda_fail(m.knobs, "cuEventQuery", CUDA_ERROR_NOT_READY, 20);
        uint32_t looks = fakecuda_calls(m.knobs, "cuEventQuery");
        tfree(a);
        ck_assert_uint_gt(fakecuda_calls(m.knobs, "cuEventQuery"), looks + 20);
        held("w", 0);
}

static void *hammer_torch(void *arg) {
        struct mark live[8] = {};
        uint64_t x = (uintptr_t)arg * 77 + 1;
        for (unsigned turn = 0; turn < TURNS; turn++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                struct mark *k = &live[x % ARRAY_SIZE(live)];
                if (k->address) {
                        must(*k->first == (uintptr_t)arg && *k->last == (uintptr_t)arg, "a piece is two threads'");
                        tfree(k->address);
                        k->address = 0;
                        continue;
                }
                uint64_t bytes = 512 + (x >> 8) % MiB / 8 * 8;
                k->address = talloc(bytes);
                must(k->address != 0, "%s", gms_last_error());
                k->first = (uint64_t *)(uintptr_t)k->address;
                k->last = k->first + bytes / 8 - 1;
                mark(k, (uintptr_t)arg);
        }
        for (unsigned i = 0; i < ARRAY_SIZE(live); i++)
                if (live[i].address)
                        tfree(live[i].address);
        return NULL;
}

TEST(torch, threads, .needs = NEEDS_FAKE, .seconds = 60)
{
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        _cleanup_pool_ struct gms_pool *p = pool_of(g, 0, 0);
        pthread_t threads[THREADS];
        ok(gms_torch_use(p));
        uint32_t before = events();
        fakecuda_fail(m.knobs, "cuEventQuery", CUDA_ERROR_NOT_READY, 500);
        for (uintptr_t i = 0; i < THREADS; i++)
                must(pthread_create(&threads[i], NULL, hammer_torch, (void *)(i + 1)) == 0, "no thread");
        for (unsigned i = 0; i < THREADS; i++)
                must(pthread_join(threads[i], NULL) == 0, "no end");
        fakecuda_clear(m.knobs);
        ok(gms_pool_trim(p));
        ck_assert_uint_eq(stats(p).pieces, 0);
        ck_assert_uint_eq(events(), before);
        held("w", 0);
}
