/* SPDX-License-Identifier: MIT */
/* What a user writes at the least, as C99 and as C++11. Compiled, not run. */
#include <gmsclient.h>
#include <gmsclient.h>

int example(struct gms *g);

int example(struct gms *g) {
        struct gms_state state = GMS_INIT(struct gms_state);
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        options.mode = GMS_MODE_RO;
        options.deadline_ms = GMS_FOREVER;
        (void)list;
        return gms_connect(g, &options) == 0 && gms_state(g, &state) == 0 && state.mode == GMS_MODE_RO;
}
