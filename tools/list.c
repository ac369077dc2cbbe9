// SPDX-License-Identifier: MIT
/* gmsctl list: the stores, or the allocations of one with totals by tag. */
#include <stdio.h>

#include "gmsctl.h"

static int list_store(const struct ctl *ctl, struct gms *g) {
        _cleanup_(layout_done) struct layout l = { 0 };

        int r = layout_read(&l, g, ctl->argv[0], false);
        if (r != CTL_OK)
                return r;
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:o, s:o}", "store", store_json(&l.store), "allocations",
                                                    allocations_json(&l), "tags", totals_json(&l)));
        if (l.n_allocations == 0)
                return printf("%s has no allocations: nothing is published in it, or nothing was in what is\n", l.store.name),
                       CTL_OK;
        r = allocations_print(&l);
        putchar('\n');
        return r == CTL_OK ? totals_print(&l) : r;
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
