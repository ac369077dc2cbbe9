// SPDX-License-Identifier: MIT
/* gmsctl load: model files into a store. All or nothing, as publish. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#include "gmsctl.h"

static int refuse(int r) {
        return ctl_fail("%s; nothing was published", ctl_interrupted ? "interrupted" : ctl_why(r));
}

static int load(struct weights *w, const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;

        int r = ctl_connect_writer(ctl, &g);
        if (r >= 0)
                r = gms_checkpoint_load(w->checkpoint, g, ctl->tag ? ctl->tag : "weights");
        if (r >= 0)
                r = weights_work(w, ctl);
        if (r < 0 || ctl_interrupted)
                return refuse(r);
        r = gms_commit(g, ctl->identity ? ctl->identity : w->identity, GMS_COMMIT_LEAVE);
        return r < 0 ? refuse(r) : CTL_OK;
}

static int report(const struct weights *w, const struct ctl *ctl, struct gms *look) {
        _cleanup_array_ struct gms_store *stores = NULL;
        const struct gms_checkpoint_progress *p = &w->totals;
        size_t n = 0;

        int r = gms_query_stores(look, ctl->argv[0], &stores, &n);
        if (r < 0 || n == 0)
                return ctl_fail("%s is published, but: %s", ctl->argv[0], ctl_why(r));
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:I, s:I, s:I, s:I, s:I, s:o}", "store", store_json(stores), "files",
                                                    JSON_N(p->files), "tensors", JSON_N(p->tensors), "bytes", JSON_N(p->total),
                                                    "direct", JSON_N(p->direct), "ms", JSON_N(w->seconds * 1000), "digest",
                                                    json_text(w->identity)));
        printf("%s: loaded %" PRIu64 " tensor%s of %" PRIu32 " file%s, %s in %.3f s (%s/s), as generation %" PRIu64 ", %s\n",
               stores->name, p->tensors, p->tensors == 1 ? "" : "s", p->files, p->files == 1 ? "" : "s", text_size(p->total).s,
               w->seconds, text_size((uint64_t)((double)p->total / w->seconds)).s, stores->generation, w->identity);
        return CTL_OK;
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *look = NULL;
        _cleanup_(weights_done) struct weights w = { 0 };

        int r = weights_open(&w, ctl);
        if (r < 0)
                return refuse(r);
        r = ctl_look(ctl, &look); /* before anything is published: what comes after should not fail */
        if (r != CTL_OK)
                return r;
        ctl_catch_signals();
        r = load(&w, ctl);
        return r == CTL_OK ? report(&w, ctl, look) : r;
}

const struct command command_load = {
        .name = "load",
        .synopsis = "STORE FILE...|DIR [--identity TEXT] [--tag TEXT] [--threads N] [--update] [--wait SECONDS]",
        .summary = "load model files (safetensors) into a store",
        .help = "Loads safetensors files, or those of a directory (the ones its\n"
                "*.safetensors.index.json names; without one, all *.safetensors), and publishes\n"
                "their tensors as one layout, in place of what was there.\n"
                "\n"
                "All or nothing: when a file is not what it should be, changes meanwhile or does\n"
                "not fit, or when the command is interrupted, nothing is published, and what was\n"
                "published before stays. Both versions are in memory until the new one is\n"
                "published; 'gmsctl clear STORE' beforehand makes room.\n"
                "\n"
                "What the page cache has is read from there, the rest from the disk past it.\n"
                "\n"
                "  --identity TEXT  what the content is; readers may demand it. Default: a digest\n"
                "                   of names, types, shapes and bytes, the same however the\n"
                "                   tensors are spread over files\n"
                "  --tag TEXT       of the allocations. Default: weights\n"
                "  --threads N      how many read and copy. Default: as suits the machine\n"
                "  --update         beside the readers of what is published, who learn of it;\n"
                "                   otherwise nobody else may be in the store\n"
                "  --wait SECONDS   how long to wait for others to leave the store. Default: 5\n"
                "\n"
                "JSON\n"
                "  {\"store\": {...},                        as in status\n"
                "   \"files\", \"tensors\", \"bytes\",           how many\n"
                "   \"direct\",                              bytes that came past the page cache\n"
                "   \"ms\", \"digest\"}\n",
        .argc_min = 2,
        .argc_max = INT_MAX,
        .options = OPTION_IDENTITY | OPTION_TAG | OPTION_THREADS | OPTION_UPDATE | OPTION_WAIT,
        .run = run,
};
