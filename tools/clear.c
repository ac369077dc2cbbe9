// SPDX-License-Identifier: MIT
/* gmsctl clear: frees what a store rests on. */
#include <stdio.h>

#include "gmsctl.h"

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        const char *store = ctl->argv[0];

        int r = ctl_look(ctl, &g);
        if (r != CTL_OK)
                return r;
        r = gms_clear(g, store, ctl->given & OPTION_FORCE ? GMS_CLEAR_FORCE : 0);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:b}", "store", json_text(store), "cleared", 1));
        printf("%s is cleared\n", store);
        return CTL_OK;
}

const struct command command_clear = {
        .name = "clear",
        .synopsis = "STORE [--force]",
        .summary = "free what is published or sealed in a store",
        .help = "Frees what is published (else sealed) in the store. Refused while sessions\n"
                "hold its lock.\n"
                "\n"
                "  --force        take the lock away from all of them first. They are told, and\n"
                "                 what they have mapped is freed when they let go of it. For\n"
                "                 root and the daemon's own user.\n"
                "\n"
                "JSON\n"
                "  {\"store\", \"cleared\": true}\n",
        .argc_min = 1,
        .argc_max = 1,
        .options = OPTION_FORCE,
        .run = run,
};
