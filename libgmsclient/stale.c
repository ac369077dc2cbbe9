// SPDX-License-Identifier: MIT
#include "stale.h"

#include <inttypes.h>
#include <stdio.h>

#include "pages.h"

bool stale_same(const struct mapping *m, const Gms__Allocation *a) {
        return m->aligned == a->aligned_size && strcmp(m->tag, a->tag) == 0;
}

struct hex {
        char s[2 * GMS_HASH_SIZE + 1];
};

static struct hex hex(const struct layout_id *id) {
        struct hex h = { "(not published)" };
        for (size_t i = 0; id->known && i < GMS_HASH_SIZE; i++)
                (void)snprintf(&h.s[2 * i], 3, "%02x", id->hash[i]);
        return h;
}

/* The first difference, as a clause. *ret_n: allocations there are now. */
static int first_difference(struct gms *g, uint64_t generation, char *text, size_t size, uint64_t *ret_n) {
        _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .generation = generation, .end = PAGES_ALL };
        const struct mapping *known = g->known.at;
        const size_t n = g->known.n;
        const Gms__Allocation *a;
        size_t rank = 0;
        int r;

        assert(known || n == 0);
        *text = '\0';
        while ((r = pages_next(&p, &a, NULL)) > 0) {
                const struct mapping *m = rank < n ? &known[rank] : NULL;
                if (!m)
                        (void)snprintf(text, size, "slot %" PRIu64 " (%" PRIu64 " bytes, tag '%s') was added", a->slot,
                                       a->aligned_size, a->tag);
                else if (!stale_same(m, a))
                        (void)snprintf(text, size,
                                       "slot %" PRIu64 " was %" PRIu64 " bytes with tag '%s' and is %" PRIu64
                                       " bytes with tag '%s'",
                                       a->slot, m->aligned, m->tag, a->aligned_size, a->tag);
                if (*text)
                        break;
                rank++;
        }
        if (r < 0)
                return r;
        if (!*text && rank < n) {
                const struct mapping *m = &known[rank];
                (void)snprintf(text, size, "slot %" PRIu64 " (%" PRIu64 " bytes, tag '%s') and all behind it are missing",
                               m->slot, m->aligned, m->tag);
        }
        if (!*text)
                (void)snprintf(text, size, "sizes and tags are the same, the metadata differs");
        *ret_n = p.total;
        return 0;
}

int stale_explain(struct gms *g, uint64_t generation, const struct layout_id *now) {
        char difference[400];
        uint64_t n;
        int r = first_difference(g, generation, difference, sizeof(difference), &n);
        if (r < 0)
                return r;
        return error_set(-ESTALE,
                         "the structure of %s changed: %zu allocations were known, %" PRIu64 " are there; %s; layout "
                         "hash was %s, is %s. To take the new one: %s",
                         g->store, g->known.n, n, difference, hex(&g->known.id).s, hex(now).s,
                         generation == 0 ? "gms_attach()" : "gms_unmap_all(), then connect anew and gms_attach()");
}
