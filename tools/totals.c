// SPDX-License-Identifier: MIT
/* What the allocations of a layout come to, by tag: for list, and where there are too many to show each. */
#include <inttypes.h>
#include <string.h>

#include "gmsctl.h"

struct total {
        const char *tag;
        uint64_t allocations, bytes, aligned;
};

static int by_tag(const void *a, const void *b) {
        return strcmp(((const struct total *)a)->tag, ((const struct total *)b)->tag);
}

/* One total a tag, sorted by tag. The tags stay the layout's. NULL: no memory. */
static struct total *sum_by_tag(const struct layout *l, size_t *ret_n) {
        struct total *totals = calloc(MAX(l->n_allocations, 1u), sizeof(*totals));
        size_t n = 0;

        if (!totals)
                return NULL;
        for (size_t i = 0; i < l->n_allocations; i++) {
                const struct gms_allocation *a = &l->allocations[i];
                totals[i] = (struct total){ .tag = a->tag, .allocations = 1, .bytes = a->bytes, .aligned = a->aligned };
        }
        qsort(totals, l->n_allocations, sizeof(*totals), by_tag);
        for (size_t i = 0; i < l->n_allocations; i++) {
                if (n > 0 && strcmp(totals[n - 1].tag, totals[i].tag) == 0) {
                        totals[n - 1].allocations++;
                        totals[n - 1].bytes += totals[i].bytes;
                        totals[n - 1].aligned += totals[i].aligned;
                } else {
                        totals[n++] = totals[i];
                }
        }
        *ret_n = n;
        return totals;
}

json_t *totals_json(const struct layout *l) {
        size_t n = 0;
        _cleanup_free_ struct total *totals = sum_by_tag(l, &n);
        json_t *list = totals ? json_array() : NULL;
        for (size_t i = 0; list && i < n; i++) {
                const struct total *t = &totals[i];
                json_t *entry = json_pack("{s:o, s:I, s:I, s:I}", "tag", json_text(t->tag), "allocations",
                                          JSON_N(t->allocations), "bytes", JSON_N(t->bytes), "aligned", JSON_N(t->aligned));
                if (json_array_append_new(list, entry) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        return list;
}

int totals_print(const struct layout *l) {
        static const struct column columns[] = {
                { "TAG" },
                { "ALLOCATIONS", .right = true },
                { "SIZE", .right = true },
                { "PHYSICAL", .right = true },
        };
        size_t n = 0;
        _cleanup_free_ struct total *totals = sum_by_tag(l, &n);
        struct table t;

        if (!totals)
                return ctl_fail("out of memory");
        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                table_cell(&t, "%s", totals[i].tag);
                table_cell(&t, "%" PRIu64, totals[i].allocations);
                table_cell(&t, "%s", text_size(totals[i].bytes).s);
                table_cell(&t, "%s", text_size(totals[i].aligned).s);
        }
        return table_print(&t);
}
