// SPDX-License-Identifier: MIT
/* gmsctl list: the stores, or the allocations of one with totals by tag. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gmsctl.h"

struct total {
        const char *tag;
        uint64_t allocations, bytes, aligned;
};

static int by_tag(const void *a, const void *b) {
        return strcmp(((const struct total *)a)->tag, ((const struct total *)b)->tag);
}

/* One total a tag, sorted by tag. The tags stay the layout's. */
static int sum_by_tag(const struct layout *l, struct total **ret_totals, size_t *ret_n) {
        struct total *totals = calloc(MAX(l->n_allocations, 1u), sizeof(*totals));
        size_t n = 0;

        if (!totals)
                return ctl_fail("out of memory");
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
        *ret_totals = totals;
        *ret_n = n;
        return CTL_OK;
}

static json_t *totals_json(const struct total *totals, size_t n) {
        json_t *list = json_array();
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

static int totals_print(const struct total *totals, size_t n) {
        static const struct column columns[] = {
                { "TAG" },
                { "ALLOCATIONS", .right = true },
                { "SIZE", .right = true },
                { "PHYSICAL", .right = true },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                table_cell(&t, "%s", totals[i].tag);
                table_cell(&t, "%" PRIu64, totals[i].allocations);
                table_cell(&t, "%s", text_size(totals[i].bytes).s);
                table_cell(&t, "%s", text_size(totals[i].aligned).s);
        }
        return table_print(&t);
}

static int list_store(const struct ctl *ctl, struct gms *g) {
        _cleanup_(layout_done) struct layout l = { 0 };
        _cleanup_free_ struct total *totals = NULL;
        size_t n = 0;

        int r = layout_read(&l, g, ctl->argv[0], false);
        if (r == CTL_OK)
                r = sum_by_tag(&l, &totals, &n);
        if (r != CTL_OK)
                return r;
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:o, s:o}", "store", store_json(&l.store), "allocations",
                                                    allocations_json(&l), "tags", totals_json(totals, n)));
        if (l.n_allocations == 0)
                return printf("%s has no allocations: nothing is published in it, or nothing was in what is\n", l.store.name),
                       CTL_OK;
        r = allocations_print(&l);
        putchar('\n');
        return r == CTL_OK ? totals_print(totals, n) : r;
}

static int list_stores(const struct ctl *ctl, struct gms *g) {
        _cleanup_array_ struct gms_store *stores = NULL;
        size_t n = 0;

        int r = gms_query_stores(g, NULL, &stores, &n);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));
        return ctl->json ? json_print_consume(json_pack("{s:o}", "stores", stores_json(stores, n))) : stores_print(stores, n);
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        int r = ctl_look(ctl, &g);
        if (r != CTL_OK)
                return r;
        return ctl->argc > 0 ? list_store(ctl, g) : list_stores(ctl, g);
}

const struct command command_list = {
        .name = "list",
        .synopsis = "[STORE]",
        .summary = "the stores, or the allocations of one",
        .help = "Without STORE: all stores, as in status. With STORE: the allocations of what\n"
                "is published (else sealed) in it, in slot order, and totals by tag. SIZE is\n"
                "what the writer asked for, PHYSICAL what it takes. Looking takes no lock and\n"
                "disturbs nobody.\n"
                "\n"
                "JSON\n"
                "  {\"stores\": [...]}                       as in status\n"
                "  {\"store\": {...},                        with STORE\n"
                "   \"allocations\": [{\"slot\", \"id\", \"bytes\", \"aligned\", \"tag\"}],\n"
                "   \"tags\": [{\"tag\", \"allocations\", \"bytes\", \"aligned\"}]}\n",
        .argc_max = 1,
        .run = run,
};
