// SPDX-License-Identifier: MIT
/* gmsctl verify: whether a store has what model files have, byte for byte. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#include "gmsctl.h"

static int verify(struct weights *w, const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;

        int r = weights_open(w, ctl);
        ctl_catch_signals(); /* reading headers ends by them as they come */
        if (r >= 0)
                r = ctl_connect(ctl, GMS_MODE_RO, 0, &g);
        if (r >= 0)
                r = gms_attach(g);
        if (r >= 0)
                r = gms_checkpoint_verify(w->checkpoint, g);
        return r < 0 ? r : weights_work(w, ctl);
}

static int run(const struct ctl *ctl) {
        _cleanup_(weights_done) struct weights w = { 0 };
        const struct gms_checkpoint_progress *p = &w.totals;

        int r = verify(&w, ctl);
        if (r < 0)
                return ctl_fail("%s", ctl_interrupted ? "interrupted" : ctl_why(r));
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:I, s:I, s:I, s:I, s:o}", "store", json_text(ctl->argv[0]), "files",
                                                    JSON_N(p->files), "tensors", JSON_N(p->tensors), "bytes", JSON_N(p->total),
                                                    "ms", JSON_N(w.seconds * 1000), "digest", json_text(w.identity)));
        printf("%s: every byte is as in the files: %" PRIu64 " tensor%s, %s, in %.3f s (%s/s), %s\n", ctl->argv[0], p->tensors,
               p->tensors == 1 ? "" : "s", text_size(p->total).s, w.seconds,
               text_size((uint64_t)((double)p->total / w.seconds)).s, w.identity);
        return CTL_OK;
}

const struct command command_verify = {
        .name = "verify",
        .synopsis = "STORE FILE...|DIR [--threads N] [--wait SECONDS]",
        .summary = "compare a store with model files, byte for byte",
        .help = "Compares the published layout with safetensors files, or those of a directory,\n"
                "as load takes them: names, types, shapes, and every byte. Fails with the first\n"
                "difference: which tensor, and where in it and in the file.\n"
                "\n"
                "  --threads N     how many read and compare. Default: as suits the machine\n"
                "  --wait SECONDS  how long to wait for a first publication, or for a writer to\n"
                "                  be done. Default: 0\n"
                "\n"
                "JSON\n"
                "  {\"store\",\n"
                "   \"files\", \"tensors\", \"bytes\",           how many\n"
                "   \"ms\", \"digest\"}\n",
        .argc_min = 2,
        .argc_max = INT_MAX,
        .options = OPTION_THREADS | OPTION_WAIT,
        .run = run,
};
