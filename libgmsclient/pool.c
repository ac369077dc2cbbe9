// SPDX-License-Identifier: MIT
#include "pool.h"

#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "allocate.h"
#include "torch.h"

#define MIB (UINT64_C(1) << 20)
#define SLAB_UNIT (2 * MIB)
#define SLAB_MIN (32 * MIB)
#define SLAB_SHARE 8u /* a slab is at most this part of what the pool has, if that is more than SLAB_MIN */
#define KEPT_SHARE 4u  /* empty slabs are kept up to this part of what the pool has, if that is more than one slab */
#define SLAB_MAX (2048 * MIB)
#define SLAB_MAX_EXPECTED (8 * SLAB_MAX)
#define TURN_NS 10000000 /* between looks at the heap of those who wait for their turn */
#define WAIT_MS UINT64_C(50) /* the first wait for memory; each is twice the one before */
#define WAIT_ROOM_MS UINT64_C(400) /* the longest for room; for a worker that is busy there is none */
#define LOOKS 8u         /* at pieces in limbo, in passing */
#define SETTLE_MS 100u   /* a fence that was recorded just now passes a little later, though there is no work */
#define SETTLE_STEP_NS 20000

/* ---- the heap */

static int try(struct gms_pool *p, uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        latch_take(&p->latch);
        int r = heap_allocate(&p->heap, bytes, alignment, ret);
        latch_drop(&p->latch);
        return r == -ENOMEM ? error_errno(r, "allocate from a pool") : r;
}

/* Short of memory: the latch is held for longer, and nobody has anything better to do. */
static int try_all(struct gms_pool *p, uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        latch_take(&p->latch);
        int r = heap_search(&p->heap, bytes, alignment, ret);
        latch_drop(&p->latch);
        return r == -ENOMEM ? error_errno(r, "allocate from a pool") : r;
}

/* How large a slab is taken ahead of demand now. */
static uint64_t ahead(const struct gms_pool *p) {
        uint64_t bytes = p->expected > p->heap.allocated ? p->expected - p->heap.allocated : 0;
        if (bytes == 0) {
                uint64_t beyond = p->heap.reserved > p->expected ? p->heap.reserved - p->expected : 0;
                bytes = (MAX(beyond / SLAB_SHARE, SLAB_MIN) + SLAB_UNIT - 1) & ~(SLAB_UNIT - 1);
        }
        bytes = MIN(bytes, p->slab_max);
        return (bytes + p->granularity - 1) & ~(p->granularity - 1);
}

/* ---- slabs that nothing is used of */

/*
 * What is empty is kept for the next allocations up to a share of all: a program that comes and goes with large pieces in
 * every step must not have the device make them anew each time (on an H200 that tripled the time of a whole trace).
 */
static uint64_t keeps(const struct gms_pool *p) {
        return MAX(ahead(p), p->heap.reserved / KEPT_SHARE);
}

/* One that goes: the smallest that is enough, or the largest. */
static struct slab *surplus(const struct gms_pool *p, bool all) {
        uint64_t empty = 0, keep = all ? 0 : keeps(p);
        struct slab *goes = NULL;
        list_for(s, &p->heap.slabs, struct slab, link)
                empty += slab_is_empty(s) ? s->bytes : 0;
        if (empty <= keep)
                return NULL;
        list_for(s, &p->heap.slabs, struct slab, link) {
                if (!slab_is_empty(s))
                        continue;
                bool enough = goes && goes->bytes >= empty - keep;
                if (!goes || (enough ? s->bytes < goes->bytes && s->bytes >= empty - keep : s->bytes > goes->bytes))
                        goes = s;
        }
        return goes;
}

static bool is_surplus(const struct gms_pool *p) {
        return !p->lasting && surplus(p, false);
}

/*
 * Gives back what is empty, or all of it but what is kept; with the turn. What the daemon does not take, as it was sealed or
 * published, stays in the heap. *ret_any may be NULL.
 */
static int give_back(struct gms_pool *p, bool all, bool *ret_any) {
        for (;;) {
                struct slab gone = {};
                latch_take(&p->latch);
                struct slab *s = surplus(p, all);
                if (s) {
                        gone = *s;
                        heap_remove(&p->heap, s);
                }
                latch_drop(&p->latch);
                if (!s)
                        return 0;

                bool is_gone;
                int r = allocate_return(p->gms, p->grant, gone.id, &is_gone);
                if (!is_gone) {
                        latch_take(&p->latch);
                        (void)heap_add(&p->heap, gone.id, gone.slot, gone.address, gone.bytes, &s);
                        p->lasting = true;
                        latch_drop(&p->latch);
                }
                if (r < 0)
                        return r;
                if (ret_any)
                        *ret_any = true;
        }
}

/* ---- turns */

static bool turn_try(struct gms_pool *p) {
        return pthread_mutex_trylock(&p->turn) == 0;
}

/* For a moment; false: others have it. */
static bool turn_wait(struct gms_pool *p) {
        struct timespec until;
        (void)clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += TURN_NS;
        until.tv_sec += until.tv_nsec / 1000000000;
        until.tv_nsec %= 1000000000;
        return pthread_mutex_timedlock(&p->turn, &until) == 0;
}

/* What was emptied while the turn was taken was left to whoever had it. */
static void turn_end(struct gms_pool *p) {
        bool again;
        do {
                if (!p->lasting)
                        (void)give_back(p, false, NULL);
                (void)pthread_mutex_unlock(&p->turn);
                latch_take(&p->latch);
                again = is_surplus(p);
                latch_drop(&p->latch);
        } while (again && turn_try(p));
}

/* ---- giving pieces back */

/* Its slab may go with it, unless somebody has the turn: that may be for long, and then the slab is of use to him. */
static int put(struct gms_pool *p, uint64_t address) {
        struct slab *emptied = NULL;
        latch_take(&p->latch);
        int r = heap_free(&p->heap, address, &emptied);
        bool goes = emptied && is_surplus(p);
        latch_drop(&p->latch);
        if (goes && turn_try(p))
                turn_end(p);
        return r;
}

/* Those whose fence has passed; `quiet`: also those that have none. */
static void look(struct gms_pool *p, bool quiet, size_t looks) {
        uint64_t address;
        while (limbo_take(&p->limbo, p->vmm, quiet, &looks, &address))
                (void)put(p, address);
}

void pool_look(struct gms_pool *p) {
        look(p, false, LOOKS);
}

bool pool_has(struct gms_pool *p, uint64_t address) {
        latch_take(&p->latch);
        bool has = heap_has(&p->heap, address);
        latch_drop(&p->latch);
        return has;
}

void pool_free_behind(struct gms_pool *p, uint64_t address, void *stream) {
        pool_look(p);
        limbo_add(&p->limbo, p->vmm, address, stream);
}

/* ---- growing */

/* Adds a slab, and takes the piece from it that it was taken for. */
static int add(struct gms_pool *p, const struct gms_allocation *a, uint64_t bytes, struct heap_piece *ret) {
        struct slab *s = NULL;
        latch_take(&p->latch);
        int r = heap_add(&p->heap, a->id, a->slot, a->address, a->aligned, &s);
        if (r == 0)
                r = heap_allocate_first(&p->heap, s, bytes, ret);
        latch_drop(&p->latch);
        if (!s)
                (void)allocate_return(p->gms, p->grant, a->id, &(bool){ false });
        return r < 0 ? error_errno(r, "allocate from a pool") : 0;
}

static int deadline(struct gms_pool *p, uint64_t began, uint64_t *ret_end) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(p->gms, &held);
        if (r == 0 && __builtin_add_overflow(began, held->deadline_ms, ret_end))
                *ret_end = UINT64_MAX;
        return r;
}

static int no_memory(struct gms_pool *p, int r, uint64_t bytes) {
        latch_take(&p->latch);
        uint64_t left = p->heap.reserved - p->heap.allocated, largest = heap_largest(&p->heap);
        latch_drop(&p->latch);
        return error_add(r, "; it was for a piece of %" PRIu64 " bytes, and the pool has %" PRIu64 " free, in pieces of at most %"
                         PRIu64, bytes, left, largest);
}

/*
 * Takes a slab, with the turn: of what is taken ahead, or, short of memory, half of that, and half again, down to what is
 * needed. Only for that one it waits, in steps: a request that waits keeps everybody off the handle, and what becomes free
 * meanwhile in the pool would not be seen. But who asks anew is the last in the daemon's queue: so where that is what takes the
 * time, the steps grow on. One that fails before its time is not short of the device's memory, but of this
 * process's: nothing will change that.
 */
static int grow(struct gms_pool *p, uint64_t bytes, uint64_t alignment, uint64_t began, struct heap_piece *ret) {
        uint64_t end = 0, need, want, wait = 0;
        int r = deadline(p, began, &end);
        if (r < 0)
                return r;
        if (!align_up(bytes, p->granularity, &need))
                return error_set(-EFBIG, "allocate from a pool: %" PRIu64 " bytes are more than any device has", bytes);
        latch_take(&p->latch);
        want = MAX(need, ahead(p));
        latch_drop(&p->latch);

        for (;;) {
                struct gms_allocation a;
                uint64_t asked = conn_now_ms();
                r = allocate_slab(p->gms, p->grant, want, p->tag, wait, &a);
                if (r == 0)
                        return add(p, &a, bytes, ret);
                if ((r == -ENOMEM || r == -EFBIG) && want > need) {
                        want = MAX(need, want / 2 & ~(p->granularity - 1));
                        wait = 0;
                        continue;
                }
                if (r != -ENOMEM && r != -ETIMEDOUT && r != -EBUSY)
                        return r;
                bool is_final = r == -EBUSY || conn_now_ms() - asked < wait / 2;

                struct error_saved why;
                error_save(&why);
                look(p, false, SIZE_MAX);
                int tried = try_all(p, bytes, alignment, ret);
                if (tried != HEAP_E_FULL)
                        return tried;
                bool gave = false; /* then that is waited for, which takes a worker a moment */
                if (r == -ENOMEM)
                        (void)give_back(p, true, &gave);
                uint64_t now = conn_now_ms();
                if ((is_final || now >= end) && !gave) {
                        error_restore(&why);
                        return no_memory(p, r, bytes);
                }
                wait = gave ? WAIT_MS : MIN(end - now, MIN(MAX(2 * wait, WAIT_MS), r == -ENOMEM ? WAIT_ROOM_MS : UINT64_MAX));
        }
}

/* One thread takes a slab, and the others look whether there is room in it. */
static int allocate(struct gms_pool *p, uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        uint64_t began = conn_now_ms();
        int r;
        do {
                look(p, false, SIZE_MAX);
                r = try(p, bytes, alignment, ret);
                if (r != HEAP_E_FULL)
                        return r;
        } while (!turn_wait(p));
        r = try(p, bytes, alignment, ret);
        if (r == HEAP_E_FULL)
                r = grow(p, bytes, alignment, began, ret);
        turn_end(p);
        return r;
}

/* ---- opening and closing */

int pool_refuse(const struct gms_pool *p) {
        return p ? error_set(-ECHILD, "the pool was inherited over fork() and works in the process that made it only")
                 : error_set(-EINVAL, "no pool given; gms_pool_open() makes one");
}

struct gms_pool *pool_ref(struct gms_pool *p) {
        (void)__atomic_add_fetch(&p->refs, 1, __ATOMIC_RELAXED);
        return p;
}

static void pool_freep(struct gms_pool **pool) {
        struct gms_pool *p = *pool;
        if (!p)
                return;
        bool here = p->here && *p->here;
        if (here)
                torch_forget(p);
        if (here && !limbo_wait(&p->limbo, p->vmm)) /* for soon the mappings may go, and nobody will know of the fences */
                handle_keep_mappings(p->gms);
        limbo_done(&p->limbo, here ? p->vmm : NULL);
        heap_done(&p->heap);
        if (here)
                (void)pthread_mutex_destroy(&p->turn);
        if (p->here)
                (void)munmap((void *)p->here, sizeof(*p->here));
        (void)handle_unref(p->gms);
        free(p);
}

struct gms_pool *pool_unref(struct gms_pool *p) {
        if (p && __atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL) == 0)
                pool_freep(&p);
        return NULL;
}

static int page_here(const unsigned **ret) {
        unsigned *page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (page == MAP_FAILED)
                return -errno;
        *page = 1;
        *ret = page;
        return madvise(page, (size_t)sysconf(_SC_PAGESIZE), MADV_WIPEONFORK) < 0 ? -errno : 0;
}

static int bind(struct gms_pool *p, struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r < 0)
                return r;
        if (!g->writer)
                return error_set(-EACCES, "a pool is for writers, and this session reads only; connect with GMS_MODE_RW or "
                                          "GMS_MODE_UPDATE");
        p->gms = handle_ref(g);
        p->vmm = g->vmm;
        p->grant = g->writer;
        p->granularity = g->device.granularity;
        return 0;
}

int gms_pool_open(struct gms_pool **ret_pool, struct gms *g, const struct gms_pool_options *options) {
        struct gms_pool_options o = { .size = sizeof(o) };
        if (!ret_pool)
                return error_set(-EINVAL, "gms_pool_open: nowhere to put the pool");
        int r = options ? sized_check(options, "struct gms_pool_options") : 0;
        if (r < 0)
                return r;
        if (options)
                sized_load(&o, sizeof(o), options);
        if (!o.tag)
                o.tag = "slab";
        if (!wire_text_ok(o.tag, WIRE_TAG_MAX) || o.expected > HEAP_MAX || o.slab_max > HEAP_MAX)
                return error_set(-EINVAL, "gms_pool_open: a tag is at most %u bytes of UTF-8 without control characters, and "
                                          "expected and slab_max are at most %" PRIu64, WIRE_TAG_MAX, HEAP_MAX);

        _cleanup_(pool_freep) struct gms_pool *p = calloc(1, sizeof(*p));
        if (!p)
                return error_errno(-ENOMEM, "gms_pool_open");
        p->refs = 1;
        p->expected = o.expected;
        p->slab_max = o.slab_max ? o.slab_max : o.expected ? SLAB_MAX_EXPECTED : SLAB_MAX;
        memcpy(p->tag, o.tag, strlen(o.tag) + 1);
        (void)pthread_mutex_init(&p->turn, NULL);
        heap_init(&p->heap);
        limbo_init(&p->limbo);
        list_init(&p->torch_link);
        r = page_here(&p->here);
        if (r < 0)
                return error_errno(r, "gms_pool_open");
        r = bind(p, g);
        if (r < 0)
                return r;
        *ret_pool = steal_ptr(&p);
        return 0;
}

void gms_pool_close(struct gms_pool *p) {
        if (p && *p->here)
                torch_close(p);
        (void)pool_unref(p);
}

/* ---- pieces, in public */

int gms_pool_allocate(struct gms_pool *p, uint64_t bytes, uint64_t alignment, struct gms_piece *ret) {
        int r = pool_check(p);
        if (r == 0)
                r = sized_check(ret, "struct gms_piece");
        if (r < 0)
                return r;
        if (bytes == 0 || (alignment & (alignment - 1)) != 0 || alignment > p->granularity)
                return error_set(-EINVAL,
                                 "allocate from a pool: %" PRIu64 " bytes at a multiple of %" PRIu64 " were asked for; it is 1 "
                                 "byte at least, and a power of two up to %" PRIu64,
                                 bytes, alignment, p->granularity);
        if (__atomic_load_n(&p->gms->writer, __ATOMIC_RELAXED) != p->grant)
                r = allocate_check(p->gms, p->grant);
        struct heap_piece found;
        if (r == 0)
                r = try(p, bytes, alignment, &found);
        if (r == HEAP_E_FULL)
                r = allocate(p, bytes, alignment, &found);
        if (r != 0)
                return r;

        /* Into the caller's at once if it is as large as ours, member by member: both cost less than a copy. */
        struct gms_piece other = { .size = sizeof(other) }, *piece = ret->size == sizeof(*ret) ? ret : &other;
        piece->reserved = 0;
        piece->slot = found.slot;
        piece->offset = found.offset;
        piece->bytes = bytes;
        piece->address = found.address;
        if (piece != ret)
                sized_store(ret, ret->size, piece, sizeof(*piece));
        return 0;
}

int gms_pool_free(struct gms_pool *p, uint64_t address) {
        int r = pool_check(p);
        if (r == 0 && put(p, address) != 0)
                r = error_set(-ENOENT, "free in a pool: no piece begins at 0x%" PRIx64, address);
        return r;
}

int gms_pool_trim(struct gms_pool *p) {
        int r = pool_check(p);
        if (r < 0)
                return r;
        (void)pthread_mutex_lock(&p->turn);
        look(p, true, SIZE_MAX);
        for (uint64_t end = conn_now_ms() + SETTLE_MS; !limbo_is_empty(&p->limbo) && conn_now_ms() < end;) {
                (void)nanosleep(&(struct timespec){ .tv_nsec = SETTLE_STEP_NS }, NULL);
                look(p, true, SIZE_MAX);
        }
        r = give_back(p, true, NULL);
        turn_end(p);
        return r;
}

int gms_pool_stats(struct gms_pool *p, struct gms_pool_stats *ret) {
        int r = pool_check(p);
        if (r == 0)
                r = sized_check(ret, "struct gms_pool_stats");
        if (r < 0)
                return r;
        const struct heap *h = &p->heap;
        latch_take(&p->latch);
        struct gms_pool_stats stats = {
                .size = sizeof(stats),
                .slabs = (uint32_t)h->n_slabs,
                .reserved = h->reserved,
                .allocated = h->allocated,
                .requested = h->requested,
                .largest_free = heap_largest(h),
                .pieces = h->n_pieces,
                .reserved_peak = h->reserved_peak,
                .requested_peak = h->requested_peak,
        };
        latch_drop(&p->latch);
        sized_store(ret, ret->size, &stats, sizeof(stats));
        return 0;
}
