// SPDX-License-Identifier: MIT
/*
 * The physical memory behind a layout: attach, give back, bring back, and move to a newer generation.
 *
 * Whatever brings memory in fills an array of mappings beside the one that is known, and only when all of it is in place
 * takes the other's place. So a failure leaves what was there.
 */
#include <inttypes.h>

#include "handle.h"
#include "pages.h"
#include "stale.h"

/* ---- bringing memory in */

/* The next mapping of `l`, as the daemon describes it, without address. */
static int append(struct layout *l, const Gms__Allocation *a, struct mapping **ret_mapping) {
        int r = layout_grow(l, 1);
        if (r < 0)
                return r;
        struct mapping *m = &l->at[l->n++];
        *m = (struct mapping){ .id = a->id, .slot = a->slot, .bytes = a->size, .aligned = a->aligned_size };
        memcpy(m->tag, a->tag, strlen(a->tag) + 1); /* pages.c checked its length */
        *ret_mapping = m;
        return 0;
}

/* Appends what must be the next of the known mappings, at its addresses. -ESTALE without a text when it is not. */
static int append_same(const struct layout *known, struct layout *fresh, const Gms__Allocation *a, struct mapping **ret_m) {
        const struct mapping *old = &known->at[fresh->n];
        if (fresh->n == known->n || !stale_same(old, a))
                return -ESTALE;
        struct mapping *m;
        int r = append(fresh, a, &m);
        if (r < 0)
                return r;
        m->address = old->address;
        m->region = old->region;
        *ret_m = m;
        return 0;
}

/*
 * Maps the session's layout into `fresh`, at new addresses. With `vacate` in a quicker way, in which another thread of the
 * program may take the addresses first: -EEXIST.
 */
static int bring_new(struct gms *g, struct layout *fresh, bool vacate, struct region **rest) {
        _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .descriptors = true, .end = PAGES_ALL };
        const Gms__Allocation *a;
        int fd, r;

        if (g->work.allocations == 0)
                return 0;
        r = layout_grow(fresh, g->work.allocations);
        if (r < 0)
                return r;
        while ((r = pages_next(&p, &a, &fd)) > 0) {
                struct mapping *m;
                r = append(fresh, a, &m);
                if (r == 0)
                        r = space_place(&g->space, g->vmm, m, rest, g->work.bytes);
                if (r == 0 && vacate && *rest && !(*rest)->vacant)
                        space_vacate(g->vmm, *rest);
                if (r == 0)
                        r = m->region->vacant ? mapping_attach_vacant(g->vmm, m, fd, handle_access(g))
                                              : mapping_attach(g->vmm, m, fd, handle_access(g));
                if (r < 0)
                        return r;
        }
        return r;
}

static int try_new(struct gms *g, bool vacate) {
        struct layout fresh = {};
        struct region *rest = NULL;
        space_restart(&g->space);
        int r = bring_new(g, &fresh, vacate, &rest);
        if (r == 0 && rest && rest->vacant)
                space_occupied(rest);
        if (r < 0) {
                if (rest && rest->vacant)
                        space_abandon(g->vmm, rest, fresh.at, fresh.n);
                mappings_undo(g->vmm, fresh.at, fresh.n);
                space_restart_end(&g->space, g->vmm, false, fresh.at, fresh.n);
                layout_done(&fresh);
                return r;
        }
        space_restart_end(&g->space, g->vmm, true, g->known.at, g->known.n);
        layout_done(&g->known);
        g->known = fresh;
        return 0;
}

static int attach_new(struct gms *g) {
        int r = try_new(g, true);
        return r == -EEXIST ? try_new(g, false) : r;
}

/* Brings what is unmapped of the known mappings into `fresh`, at their addresses. -ESTALE without a text. */
static int bring_same(struct gms *g, struct layout *fresh, uint64_t generation) {
        _cleanup_(pages_done) struct pages p = {
                .conn = &g->conn, .generation = generation, .descriptors = true, .end = PAGES_ALL,
        };
        const struct layout *known = &g->known;
        const Gms__Allocation *a;
        int fd, r = layout_grow(fresh, known->n);
        if (r < 0)
                return r;

        while ((r = pages_next(&p, &a, &fd)) > 0) {
                const struct mapping *old = &known->at[fresh->n];
                struct mapping *m;
                r = append_same(known, fresh, a, &m);
                if (r < 0)
                        return r;
                m->mapped = old->mapped;
                m->access = m->want = old->access;
                if (!m->mapped)
                        r = mapping_attach(g->vmm, m, fd, handle_access(g));
                if (r < 0)
                        return r;
        }
        return r == 0 && fresh->n < known->n ? -ESTALE : r;
}

static int attach_same(struct gms *g) {
        struct layout fresh = {};
        int r = bring_same(g, &fresh, 0);
        if (r < 0) {
                for (size_t i = 0; i < fresh.n; i++)
                        if (g->known.at[i].mapped)
                                fresh.at[i].mapped = false; /* it was there before and stays */
                mappings_undo(g->vmm, fresh.at, fresh.n);
                layout_done(&fresh);
                return r == -ESTALE ? stale_explain(g, 0, &g->work.id) : r;
        }
        /* The addresses have gone over to `fresh`. Whether it is the session's, and which publication, is the caller's. */
        fresh.id = g->known.id;
        fresh.current = g->known.current;
        layout_done(&g->known);
        g->known = fresh;
        return 0;
}

/* What is known is now what the session works on. */
static void settle(struct gms *g) {
        g->known.id = g->work.id;
        g->known.current = true;
}

/* ---- attach, unmap, remap */

static int attach(struct gms *g) {
        struct layout *known = &g->known;
        size_t mapped = mappings_mapped(known->at, known->n);
        if (known->current)
                return mapped == known->n ? 0 : attach_same(g);
        if (handle_writes(g) && g->work.allocations == 0)
                return 0; /* nothing is built yet */

        int r = 0;
        if (mapped > 0 && !layout_id_equal(&known->id, &g->work.id))
                return error_set(-EBUSY, "attach: %zu mappings of another generation or layout are still in place; "
                                         "gms_unmap_all() first", mapped);
        if (mapped == 0 && !layout_id_same(&known->id, &g->work.id))
                r = attach_new(g);
        else if (mapped == 0 || mapped < known->n)
                r = attach_same(g);
        if (r == 0)
                settle(g);
        return r;
}

int gms_attach(struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        return r < 0 ? r : attach(g);
}

int gms_unmap_all(struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r < 0 || !g->vmm)
                return r;
        r = mappings_unmap(g->vmm, g->known.at, g->known.n);
        if (r < 0)
                r = error_add(r, "; %zu of %zu are still mapped", mappings_mapped(g->known.at, g->known.n), g->known.n);
        return r;
}

int gms_remap_all(struct gms *g, int *ret_changed) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r < 0)
                return r;

        size_t mapped = mappings_mapped(g->known.at, g->known.n);
        if (mapped > 0)
                return error_set(-EBUSY,
                                 "remap: %zu of %zu allocations are still mapped; gms_unmap_all() first, or gms_attach() "
                                 "to map the others",
                                 mapped, g->known.n);
        const struct layout_id *then = &g->known.id, *now = &g->work.id;
        if (then->known && now->known && !layout_id_same(then, now))
                return stale_explain(g, 0, now);

        /* A layout that is being built has no generation; it is the same one as long as it is this session's. */
        bool changed = then->known || now->known ? !layout_id_equal(then, now) : !g->known.current;
        r = attach_same(g);
        if (r < 0)
                return r;
        settle(g);
        if (ret_changed)
                *ret_changed = changed;
        return 0;
}

/* ---- refresh */

struct handles {
        struct vmm *vmm;
        vmm_handle *at;
        const struct mapping *m; /* of the same index */
        size_t n;
};

static void handles_done(struct handles *h) {
        for (size_t i = 0; i < h->n; i++)
                vmm_release(h->vmm, h->at[i], h->m[i].aligned);
        free(h->at);
}

/* Imports all of a pinned generation, for the places of what is known. Nothing is mapped yet. -ESTALE without a text. */
static int import_all(struct gms *g, uint64_t generation, struct layout *fresh, struct handles *h) {
        _cleanup_(pages_done) struct pages p = {
                .conn = &g->conn, .generation = generation, .descriptors = true, .end = PAGES_ALL,
        };
        const struct layout *known = &g->known;
        const Gms__Allocation *a;
        int fd, r = layout_grow(fresh, known->n);
        if (r < 0)
                return r;
        h->at = calloc(known->n, sizeof(*h->at));
        if (!h->at)
                return error_errno(-ENOMEM, "refresh");
        h->m = fresh->at;

        while ((r = pages_next(&p, &a, &fd)) > 0) {
                struct mapping *m;
                r = append_same(known, fresh, a, &m);
                if (r < 0)
                        return r;
                r = vmm_import(g->vmm, fd, m->aligned, &h->at[h->n]);
                if (r != 0)
                        return error_vmm(g->vmm, r, "import an allocation");
                h->n++;
        }
        return r == 0 && fresh->n < known->n ? -ESTALE : r;
}

/* Maps imported handles in the place of what is known, with the same access. */
static int put_in_place(struct gms *g, struct layout *fresh, const struct handles *h, const struct mapping *before) {
        int r = mappings_unmap(g->vmm, g->known.at, g->known.n);
        for (size_t i = 0; r == 0 && i < fresh->n; i++)
                r = mapping_place(g->vmm, &fresh->at[i], h->at[i]);
        for (size_t i = 0; i < fresh->n; i++)
                fresh->at[i].want = before[i].access;
        if (r == 0)
                r = mappings_apply(g->vmm, fresh->at, fresh->n);
        if (r < 0)
                mappings_undo(g->vmm, fresh->at, fresh->n);
        return r;
}

/* After a failure in the middle: the old generation is still pinned, and its descriptors can be had once more. */
static int put_back(struct gms *g, const struct mapping *before, int error) {
        struct error_saved why;
        error_save(&why);
        int r = attach_same(g);
        if (r == 0) {
                for (size_t i = 0; i < g->known.n; i++)
                        g->known.at[i].want = before[i].access;
                r = mappings_apply(g->vmm, g->known.at, g->known.n);
        }
        error_restore(&why);
        return r < 0 ? error_add(error, "; what was mapped before could not all be mapped again either: gms_attach() "
                                        "tries it anew") : error;
}

static int exchange(struct gms *g, uint64_t generation, const struct layout_id *now) {
        _cleanup_(layout_done) struct layout fresh = {};
        _cleanup_(handles_done) struct handles handles = { .vmm = g->vmm };
        int r = import_all(g, generation, &fresh, &handles);
        if (r < 0)
                return r == -ESTALE ? stale_explain(g, generation, now) : r;

        size_t bytes = g->known.n * sizeof(struct mapping);
        _cleanup_free_ struct mapping *before = malloc(bytes);
        if (!before)
                return error_errno(-ENOMEM, "refresh");
        memcpy(before, g->known.at, bytes);
        r = put_in_place(g, &fresh, &handles, before);
        if (r < 0)
                return put_back(g, before, r);

        /* The old array goes with `fresh`; its addresses have gone over. */
        struct layout old = g->known;
        g->known = fresh;
        fresh = old;
        return 0;
}

static int request_refresh(struct gms *g, Gms__Frame **ret_reply) {
        Gms__Refresh refresh = GMS__REFRESH__INIT; /* no hash: a difference is to be explained, not only refused */
        refresh.identity = g->identity;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_REFRESH;
        request.refresh = &refresh;
        return handle_call(g, &request, GMS__FRAME__BODY_LAYOUT, ret_reply);
}

/* Names the generation to keep. If the session is lost over it, so is the lock, and the next call says so. */
static void request_settle(struct gms *g, uint64_t generation) {
        struct error_saved why;
        error_save(&why);
        Gms__Settle keep = GMS__SETTLE__INIT;
        keep.generation = generation;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_SETTLE;
        request.settle = &keep;
        (void)handle_do(g, &request);
        error_restore(&why);
}

static int refresh_check(struct gms *g, size_t mapped) {
        if (handle_writes(g))
                return error_set(-EACCES, "refresh: this session builds a layout; only readers move to a newer one");
        if (mapped > 0 && mapped < g->known.n)
                return error_set(-EBUSY,
                                 "refresh: %zu of %zu allocations are mapped; gms_attach() or gms_unmap_all() first",
                                 mapped, g->known.n);
        if (mapped > 0 && !g->known.current && !layout_id_equal(&g->known.id, &g->work.id))
                return error_set(-EBUSY, "refresh: the mappings are of an earlier connection and another generation; "
                                         "gms_unmap_all() and gms_remap_all() first");
        return 0;
}

/* The newest generation is pinned beside the session's own. */
static int move(struct gms *g, const struct layout_id *now, size_t mapped) {
        if ((mapped > 0 || g->known.current) && !layout_id_same(&g->known.id, now))
                return stale_explain(g, now->generation, now);
        return mapped > 0 ? exchange(g, now->generation, now) : 0;
}

int gms_refresh(struct gms *g, int *ret_changed) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        size_t mapped = r < 0 ? 0 : mappings_mapped(g->known.at, g->known.n);
        if (r == 0)
                r = refresh_check(g, mapped);
        _cleanup_frame_ Gms__Frame *reply = NULL;
        if (r == 0)
                r = request_refresh(g, &reply);
        struct layout_id now;
        if (r == 0)
                r = layout_id_from(&now, reply->layout);
        if (r != 0)
                return r;

        bool newer = now.epoch != g->work.id.epoch || now.generation != g->work.id.generation;
        if (newer) {
                r = move(g, &now, mapped);
                request_settle(g, r == 0 ? now.generation : g->work.id.generation);
                if (r < 0)
                        return r;
                (void)handle_work(g, reply->layout);
                if (mapped > 0)
                        settle(g);
                else
                        g->known.current = false; /* what is asleep wakes up as the new generation: remap tells */
        }
        if (ret_changed)
                *ret_changed = newer;
        return 0;
}
