// SPDX-License-Identifier: MIT
/*
 * Writers: allocating and freeing. A request names many allocations; the reply brings the first descriptors, pages bring
 * the rest, and each is mapped as it comes.
 */
#include <inttypes.h>

#include "allocate.h"
#include "pages.h"

#define ITEM_COST 24u      /* bytes of an item on the wire beside its tag */
#define FREE_MAX 4096u     /* ids in one request */
#define FOR_EVER (UINT64_C(1) << 40) /* milliseconds: what the wire has for it */

/* ---- one request */

/* What one request asks for: equal neighbours are one item. */
struct batch {
        size_t n; /* allocations */
        size_t n_items;
        Gms__Allocate__Item *items;
        Gms__Allocate__Item **pointers;
};

static void batch_done(struct batch *b) {
        free(b->items);
        free(b->pointers);
}

/* Takes as many of the mappings as fit one request. */
static int batch_fill(struct batch *b, const struct mapping *m, size_t n) {
        size_t room = MIN(n, (size_t)(WIRE_PAYLOAD_MAX / ITEM_COST)), cost = 0;
        b->items = calloc(room, sizeof(*b->items));
        b->pointers = calloc(room, sizeof(Gms__Allocate__Item *));
        if (!b->items || !b->pointers)
                return error_errno(-ENOMEM, "allocate");

        for (; b->n < MIN(n, (size_t)WIRE_BATCH_MAX); b->n++) {
                const struct mapping *a = &m[b->n];
                if (b->n > 0 && a->bytes == a[-1].bytes && strcmp(a->tag, a[-1].tag) == 0) {
                        b->items[b->n_items - 1].count++;
                        continue;
                }
                cost += ITEM_COST + strlen(a->tag);
                if (cost > WIRE_PAYLOAD_MAX)
                        break;
                Gms__Allocate__Item *item = &b->items[b->n_items];
                gms__allocate__item__init(item);
                item->size = a->bytes;
                item->tag = (char *)a->tag;
                item->count = 1;
                b->pointers[b->n_items++] = item;
        }
        return 0;
}

static int batch_check(const struct batch *b, const Gms__Allocated *reply, const struct fdset *fds,
                       const struct mapping *m) {
        bool right = reply->count == b->n && reply->n_aligned_sizes == b->n_items &&
                     (fds ? fds->n : 0) <= b->n;
        for (size_t i = 0, at = 0; right && i < b->n_items; at += b->items[i++].count)
                right = reply->aligned_sizes[i] == m[at].aligned;
        return right ? 0 : error_set(-EPROTO, "the daemon allocated something else than asked for");
}

/* The rest of a batch, of which the reply brought the first descriptors. `rank` is that of m[0]. */
static int batch_pull(struct gms *g, struct mapping *m, size_t have, size_t n, uint64_t rank) {
        _cleanup_(pages_done) struct pages p = {
                .conn = &g->conn, .descriptors = true, .next = rank + have, .end = rank + n,
        };
        const Gms__Allocation *a;
        int fd, r;
        size_t i = have;
        while ((r = pages_next(&p, &a, &fd)) > 0) {
                if (a->id != m[i].id)
                        return error_set(-EPROTO, "the daemon has other allocations at their place than those just made");
                r = mapping_attach(g->vmm, &m[i++], fd, GMS_ACCESS_READ_WRITE);
                if (r < 0)
                        return r;
        }
        if (r == 0 && i < n)
                r = error_set(-EPROTO, "the daemon has fewer allocations than were just made");
        return r;
}

static int batch_map(struct gms *g, struct mapping *m, size_t n, const struct fdset *fds, uint64_t rank) {
        size_t have = fds ? fds->n : 0;
        for (size_t i = 0; i < have; i++) {
                int r = mapping_attach(g->vmm, &m[i], fds->fds[i], GMS_ACCESS_READ_WRITE);
                if (r < 0)
                        return r;
        }
        return batch_pull(g, m, have, n, rank);
}

/* Allocates and maps the first of the mappings; *ret_n says how many exist in the daemon now, even on failure. */
static int batch_run(struct gms *g, struct mapping *m, size_t n, uint64_t rank, uint64_t deadline_ms,
                     size_t *ret_n) {
        _cleanup_(batch_done) struct batch b = {};
        int r = batch_fill(&b, m, n);
        if (r < 0)
                return r;

        Gms__Deadline deadline = GMS__DEADLINE__INIT;
        deadline.ms = MIN(deadline_ms, FOR_EVER);
        Gms__Allocate allocate = GMS__ALLOCATE__INIT;
        allocate.n_items = b.n_items;
        allocate.items = b.pointers;
        allocate.deadline = &deadline;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_ALLOCATE;
        request.allocate = &allocate;

        _cleanup_frame_ Gms__Frame *reply = NULL;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        r = conn_call(&g->conn, &request, GMS__FRAME__BODY_ALLOCATED, deadline_ms, &reply, &fds);
        if (r < 0)
                return r;
        for (size_t i = 0; i < b.n; i++) {
                m[i].id = reply->allocated->first_id + i;
                m[i].slot = reply->allocated->first_slot + i;
        }
        *ret_n = b.n;
        r = batch_check(&b, reply->allocated, fds, m);
        return r < 0 ? r : batch_map(g, m, b.n, fds, rank);
}

/* ---- all of them */

static int free_ids(struct gms *g, uint64_t *ids, size_t n) {
        Gms__Free free_them = GMS__FREE__INIT;
        free_them.n_ids = n;
        free_them.ids = ids;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_FREE;
        request.free = &free_them;
        return handle_do(g, &request);
}

/* Undoes what was allocated before something failed. Should that fail too, the session's end frees them. */
static void take_back(struct gms *g, struct mapping *m, size_t allocated, size_t n) {
        struct error_saved why;
        error_save(&why);
        (void)mappings_unmap(g->vmm, m, n);
        space_take(g->vmm, m, n);

        uint64_t ids[FREE_MAX];
        for (size_t i = 0; i < allocated && conn_is_open(&g->conn);) {
                size_t count = 0;
                while (i < allocated && count < FREE_MAX)
                        ids[count++] = m[i++].id;
                (void)free_ids(g, ids, count);
        }
        error_restore(&why);
}

/* Sizes, tags and addresses of n new mappings at m. */
static int prepare(struct gms *g, struct mapping *m, size_t n, const uint64_t *bytes, const char *const *tags) {
        uint64_t total = 0;
        for (size_t i = 0; i < n; i++) {
                const char *tag = tags && tags[i] ? tags[i] : "";
                m[i] = (struct mapping){ .bytes = bytes[i] };
                if (bytes[i] == 0)
                        return error_set(-EINVAL, "allocate: size 0 was asked for; at least 1 byte can be had");
                if (!wire_text_ok(tag, WIRE_TAG_MAX))
                        return error_set(-EINVAL, "allocate: a tag is at most %u bytes of UTF-8, without control characters",
                                         WIRE_TAG_MAX);
                memcpy(m[i].tag, tag, strlen(tag) + 1);
                if (!align_up(bytes[i], g->device.granularity, &m[i].aligned) ||
                    __builtin_add_overflow(total, m[i].aligned, &total) || (g->device.total > 0 && total > g->device.total))
                        return error_set(-EFBIG,
                                         "allocate: %" PRIu64 " bytes%s were asked for; the whole of %s has %" PRIu64,
                                         bytes[i], n > 1 ? " and more" : "", g->device.uuid, g->device.total);
        }

        struct region *rest = NULL;
        int r = 0;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = space_place(&g->space, g->vmm, &m[i], &rest, total);
        if (r < 0)
                space_take(g->vmm, m, n);
        return r;
}

/* What is known of an earlier layout makes room for the one that is built now. */
static int begin_layout(struct gms *g) {
        if (handle_is_current(g))
                return 0;
        if (mappings_mapped(g->known.at, g->known.n) > 0)
                return error_set(-EBUSY, "allocate: this handle still has an earlier layout of %zu allocations mapped; "
                                         "gms_unmap_all() first, or build with another handle", g->known.n);
        if (g->work.allocations > 0)
                return error_set(-EBUSY, "allocate: the session took over a sealed layout, whose shape is fixed; build "
                                         "another one with GMS_MODE_RW");
        space_take(g->vmm, g->known.at, g->known.n);
        g->known.n = 0;
        g->known.id = (struct layout_id){};
        g->known.current = true;
        return 0;
}

static int allocate(struct gms *g, size_t n, const uint64_t *bytes, const char *const *tags, uint64_t deadline_ms) {
        if (!handle_writes(g))
                return error_set(-EACCES, "allocate: this session reads only; connect with GMS_MODE_RW or GMS_MODE_UPDATE");
        int r = begin_layout(g);
        if (r == 0)
                r = layout_grow(&g->known, n);
        if (r < 0)
                return r;

        struct mapping *m = &g->known.at[g->known.n];
        r = prepare(g, m, n, bytes, tags);
        if (r < 0)
                return r;
        size_t done = 0;
        while (r == 0 && done < n) {
                size_t made = 0;
                r = batch_run(g, &m[done], n - done, g->known.n + done, deadline_ms, &made);
                done += made;
        }
        if (r < 0) {
                take_back(g, m, done, n);
                return r;
        }
        g->known.n += n;
        return 0;
}

/* ---- public */

int gms_allocate_many(struct gms *g, size_t n, const uint64_t *bytes, const char *const *tags, struct gms_allocation *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0 && n > 0 && ret)
                r = sized_check(ret, "struct gms_allocation");
        if (r < 0 || n == 0)
                return r;
        if (!bytes)
                return error_set(-EINVAL, "allocate: no sizes given");

        r = allocate(g, n, bytes, tags, g->deadline_ms);
        for (size_t i = 0; r == 0 && ret && i < n; i++) {
                struct gms_allocation a;
                handle_describe(&g->known.at[g->known.n - n + i], &a);
                sized_store((void *)sized_at(ret, i), sized_size(ret), &a, sizeof(a));
        }
        return r;
}

int gms_allocate(struct gms *g, uint64_t bytes, const char *tag, struct gms_allocation *ret) {
        return gms_allocate_many(g, 1, &bytes, &tag, ret);
}

int gms_set_deadline(struct gms *g, uint64_t deadline_ms) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r == 0)
                g->deadline_ms = deadline_ms;
        return r;
}

static int free_one(struct gms *g, uint64_t id) {
        if (handle_writes(g) && handle_is_current(g) && !layout_find_id(&g->known, id))
                return error_set(-ENOENT, "free: the layout has no allocation with id %" PRIu64, id);
        /* The daemon first: it may refuse, and then nothing has changed here. */
        int r = free_ids(g, &id, 1);
        struct mapping *m = r == 0 && handle_is_current(g) ? layout_find_id(&g->known, id) : NULL;
        if (!m)
                return r;

        r = mappings_unmap(g->vmm, m, 1);
        if (r < 0)
                r = error_add(r,
                              "; allocation %" PRIu64 " is freed in the daemon, but its memory stays mapped here until "
                              "the handle is closed",
                              id);
        else
                space_take(g->vmm, m, 1);
        layout_remove(&g->known, m);
        return r;
}

int gms_free(struct gms *g, uint64_t id) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        return r < 0 ? r : free_one(g, id);
}

/* ---- for pools */

static int enter_grant(struct gms *g, uint64_t grant, struct gms **ret_held) {
        int r = handle_enter_holder(g, ret_held);
        if (r == 0 && g->grants != grant)
                r = error_set(-ENOTCONN, "the session that the pool was opened in has ended; open another pool");
        else if (r == 0 && g->writer != grant)
                r = error_set(-EACCES, "the layout of the pool is published, and nothing is changed in it any more");
        return r;
}

int allocate_slab(struct gms *g, uint64_t grant, uint64_t bytes, const char *tag, uint64_t deadline_ms,
                  struct gms_allocation *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter_grant(g, grant, &held);
        if (r == 0)
                r = allocate(g, 1, &bytes, &tag, deadline_ms);
        if (r == 0)
                handle_describe(&g->known.at[g->known.n - 1], ret);
        return r;
}

int allocate_return(struct gms *g, uint64_t grant, uint64_t id, bool *ret_gone) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter_grant(g, grant, &held);
        *ret_gone = false;
        if (r < 0)
                return r;
        r = free_one(g, id);
        *ret_gone = r == 0 || (handle_is_current(g) && !layout_find_id(&g->known, id));
        return r;
}

int allocate_check(struct gms *g, uint64_t grant) {
        _cleanup_handle_ struct gms *held = NULL;
        return enter_grant(g, grant, &held);
}
