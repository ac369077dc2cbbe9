// SPDX-License-Identifier: MIT
/* What a caller does with the allocations that a handle knows: look at them, protect them, copy bytes, pass them on. */
#include <inttypes.h>

#include "handle.h"
#include "pages.h"

static struct mapping *find(struct gms *g, uint64_t id) {
        struct mapping *m = layout_find_id(&g->known, id);
        if (!m)
                (void)error_set(-ENOENT, "this handle knows no allocation with id %" PRIu64 " (of %zu)", id, g->known.n);
        return m;
}

/* ---- looking */

int gms_allocations(struct gms *g, struct gms_allocation *ret, size_t room, size_t *ret_n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r == 0 && room > 0)
                r = sized_check(ret, "struct gms_allocation");
        if (r < 0)
                return r;

        for (size_t i = 0; i < MIN(room, g->known.n); i++) {
                struct gms_allocation a;
                handle_describe(&g->known.at[i], &a);
                sized_store((void *)sized_at(ret, i), sized_size(ret), &a, sizeof(a));
        }
        if (ret_n)
                *ret_n = g->known.n;
        return 0;
}

int gms_find(struct gms *g, uint64_t slot, struct gms_allocation *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r == 0)
                r = sized_check(ret, "struct gms_allocation");
        if (r < 0)
                return r;

        const struct mapping *m = layout_find_slot(&g->known, slot);
        if (!m)
                return error_set(-ENOENT,
                                 "this handle knows no allocation in slot %" PRIu64 " (of %zu); gms_attach() first?",
                                 slot, g->known.n);
        struct gms_allocation a;
        handle_describe(m, &a);
        sized_store(ret, ret->size, &a, sizeof(a));
        return 0;
}

/* ---- addresses and access */

int gms_reserve(struct gms *g, uint64_t address, uint64_t bytes, uint64_t *ret_address) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r < 0)
                return r;
        if (!g->vmm)
                return error_set(-ENODEV, "reserve: the device is not known before the first connection with a lock");

        uint64_t unit = g->device.granularity, got;
        if (bytes == 0 || bytes % unit != 0 || address % unit != 0)
                return error_set(-EINVAL,
                                 "reserve: %" PRIu64 " bytes at 0x%" PRIx64 " were asked for; both must be multiples of "
                                 "the device's granularity, %" PRIu64,
                                 bytes, address, unit);
        r = space_reserve(&g->space, g->vmm, address, bytes, &got);
        if (r == 0 && ret_address)
                *ret_address = got;
        return r;
}

static int may_protect(const struct gms *g, const struct mapping *m, uint32_t access) {
        if (access <= m->access)
                return 0;
        if (!conn_is_open(&g->conn))
                return error_set(-ENOTCONN, "protect: not connected, so access can be lowered only");
        if (access == GMS_ACCESS_READ_WRITE && !(handle_writes(g) && g->known.current))
                return error_set(-EACCES,
                                 "protect: this session reads only, so allocation %" PRIu64 " cannot be made writable",
                                 m->id);
        return 0;
}

int gms_protect(struct gms *g, uint64_t id, uint32_t access) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r < 0)
                return r;
        if (access > GMS_ACCESS_READ_WRITE)
                return error_set(-EINVAL, "protect: %u is no access; GMS_ACCESS_NONE, _READ and _READ_WRITE are", access);

        struct mapping *m = id == GMS_ALL ? g->known.at : find(g, id);
        size_t n = id == GMS_ALL ? g->known.n : 1;
        if (!m && n > 0)
                return -ENOENT;
        if (id != GMS_ALL && !m->mapped)
                return error_set(-ENOENT, "protect: allocation %" PRIu64 " is not mapped; gms_remap_all() first", id);
        for (size_t i = 0; i < n; i++) {
                r = m[i].mapped ? may_protect(g, &m[i], access) : 0;
                if (r < 0)
                        return r;
        }
        for (size_t i = 0; i < n; i++)
                m[i].want = (uint8_t)access;
        return mappings_apply(g->vmm, m, n);
}

/* ---- copying */

static int may_copy(const struct mapping *m, uint64_t offset, const void *other, uint64_t bytes, uint32_t access,
                    const char *what) {
        if (!other && bytes > 0)
                return error_set(-EINVAL, "%s: no memory of the caller's was given", what);
        if (offset > m->bytes || bytes > m->bytes - offset)
                return error_set(-ERANGE,
                                 "%s: %" PRIu64 " bytes at offset %" PRIu64 " of allocation %" PRIu64
                                 ", which has %" PRIu64,
                                 what, bytes, offset, m->id, m->bytes);
        if (!m->mapped)
                return error_set(-EACCES, "%s: allocation %" PRIu64 " is not mapped; gms_remap_all() first", what, m->id);
        if (m->access < access)
                return error_set(-EACCES, "%s: allocation %" PRIu64 " is mapped %s", what, m->id,
                                 m->access == GMS_ACCESS_READ ? "read-only" : "without access");
        return 0;
}

int gms_write(struct gms *g, uint64_t id, uint64_t offset, const void *from, uint64_t bytes) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r < 0)
                return r;
        const struct mapping *m = find(g, id);
        r = m ? may_copy(m, offset, from, bytes, GMS_ACCESS_READ_WRITE, "write") : -ENOENT;
        if (r < 0 || bytes == 0)
                return r;
        r = vmm_copy_in(g->vmm, m->address + offset, from, bytes);
        return r == 0 ? 0 : error_vmm(g->vmm, r, "write");
}

int gms_read(struct gms *g, uint64_t id, uint64_t offset, void *to, uint64_t bytes) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter(g, &held);
        if (r < 0)
                return r;
        const struct mapping *m = find(g, id);
        r = m ? may_copy(m, offset, to, bytes, GMS_ACCESS_READ, "read") : -ENOENT;
        if (r < 0 || bytes == 0)
                return r;
        r = vmm_copy_out(g->vmm, m->address + offset, to, bytes);
        return r == 0 ? 0 : error_vmm(g->vmm, r, "read");
}

/* ---- passing on */

/* The rank of an allocation in the session's layout, attached or not. */
static int find_rank(struct gms *g, uint64_t id, uint64_t *ret_rank) {
        const struct mapping *m = handle_is_current(g) ? layout_find_id(&g->known, id) : NULL;
        if (m) {
                *ret_rank = (uint64_t)(m - g->known.at);
                return 0;
        }
        _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .end = PAGES_ALL };
        const Gms__Allocation *a;
        int r;
        while ((r = pages_next(&p, &a, NULL)) > 0)
                if (a->id == id) {
                        *ret_rank = p.next - 1;
                        return 0;
                }
        return r < 0 ? r : error_set(-ENOENT, "export: the session's layout has no allocation with id %" PRIu64, id);
}

int gms_export(struct gms *g, uint64_t id, int *ret_fd) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0 && !ret_fd)
                r = error_set(-EINVAL, "export: nowhere to put the descriptor");
        uint64_t rank = 0;
        if (r == 0)
                r = find_rank(g, id, &rank);
        if (r < 0)
                return r;

        _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .descriptors = true, .next = rank, .end = rank + 1 };
        const Gms__Allocation *a;
        r = pages_next(&p, &a, NULL);
        if (r < 0)
                return r;
        if (r == 0 || a->id != id)
                return error_set(-EPROTO, "export: the daemon has another allocation in the place of %" PRIu64, id);
        *ret_fd = pages_steal(&p);
        return 0;
}
