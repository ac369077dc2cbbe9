// SPDX-License-Identifier: MIT
#include "space.h"

#include <inttypes.h>

#include "error.h"

static int region_new(struct space *s, struct vmm *v, uint64_t address, uint64_t size, struct region **ret_region) {
        _cleanup_free_ struct region *region = malloc(sizeof(*region));
        if (!region)
                return error_errno(-ENOMEM, "reserve addresses");

        *region = (struct region){ .size = size };
        int r = vmm_reserve(v, address, size, &region->address);
        if (r == VMM_E_TAKEN)
                return error_set(-EEXIST,
                                 "reserve %" PRIu64 " bytes at 0x%" PRIx64 ": addresses there are in use; choose others",
                                 size, address);
        if (r != 0)
                return error_vmm(v, r, "reserve addresses");
        list_append(&s->regions, &region->link);
        *ret_region = steal_ptr(&region);
        return 0;
}

static void region_free(struct region *region, struct vmm *v) {
        if (v && !region->vacant)
                vmm_unreserve(v, region->address, region->size);
        list_unlink(&region->link);
        free(region);
}

static bool region_fits(const struct region *region, uint64_t size) {
        return size <= region->size - region->used;
}

static void region_give(struct region *region, struct mapping *m) {
        m->region = region;
        m->address = region->address + region->used;
        region->used += m->aligned;
        region->live++;
}

static void region_drop(struct region *region, struct vmm *v) {
        if (--region->live > 0)
                return;
        if (region->kept)
                region->used = 0;
        else
                region_free(region, v);
}

void space_init(struct space *s) {
        list_init(&s->regions);
}

void space_done(struct space *s, struct vmm *v) {
        list_for_safe(region, &s->regions, struct region, link)
                region_free(region, v);
}

int space_reserve(struct space *s, struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address) {
        struct region *region;
        int r = region_new(s, v, address, size, &region);
        if (r < 0)
                return r;
        region->kept = true;
        *ret_address = region->address;
        return 0;
}

int space_place(struct space *s, struct vmm *v, struct mapping *m, struct region **rest, uint64_t rest_size) {
        list_for(region, &s->regions, struct region, link)
                if (region->kept && region_fits(region, m->aligned)) {
                        region_give(region, m);
                        return 0;
                }

        if (!*rest) {
                int r = region_new(s, v, 0, rest_size, rest);
                if (r < 0)
                        return r;
        }
        if (!region_fits(*rest, m->aligned))
                return error_set(-EPROTO, "the daemon sent allocations of more bytes than it announced");
        region_give(*rest, m);
        return 0;
}

void space_vacate(struct vmm *v, struct region *region) {
        region->vacant = vmm_vacate(v, region->address, region->size);
}

void space_occupied(struct region *region) {
        region->size = region->used; /* what is behind belongs to nobody */
        region->vacant = false;
}

void space_abandon(struct vmm *v, struct region *region, struct mapping *m, size_t n) {
        for (size_t i = 0; i < n; i++) {
                if (m[i].region != region || !m[i].mapped)
                        continue;
                (void)vmm_unmap(v, m[i].address, m[i].aligned);
                vmm_unreserve(v, m[i].address, m[i].aligned);
                m[i].mapped = false;
        }
}

void space_take(struct vmm *v, struct mapping *m, size_t n) {
        /* Backwards, so that a whole tail goes. */
        for (size_t i = n; i-- > 0;) {
                struct region *region = m[i].region;
                if (!region)
                        continue;
                if (m[i].address + m[i].aligned == region->address + region->used)
                        region->used -= m[i].aligned;
                m[i].region = NULL;
                m[i].address = 0;
                region_drop(region, v);
        }
}

void space_restart(struct space *s) {
        list_for(region, &s->regions, struct region, link)
                if (region->kept) {
                        region->before = region->used;
                        region->used = 0;
                }
}

void space_restart_end(struct space *s, struct vmm *v, bool keep, struct mapping *loser, size_t n) {
        for (size_t i = 0; i < n; i++)
                if (loser[i].region) {
                        region_drop(loser[i].region, v);
                        loser[i].region = NULL;
                }
        list_for(region, &s->regions, struct region, link)
                if (region->kept && !keep)
                        region->used = region->before;
}
