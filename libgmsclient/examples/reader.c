/* SPDX-License-Identifier: MIT */
/*
 * A reader: attaches to what writer.c published, without a copy, reads it, sleeps, and wakes up at the same addresses.
 *
 *     GMS_SOCKET=/tmp/gms.sock example_reader host/example
 */
#include <gmsclient.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static void check(int r, const char *what) {
        if (r < 0) {
                fprintf(stderr, "%s: %s\n", what, gms_last_error());
                exit(1);
        }
}

int main(int argc, char **argv) {
        const char *store = argc > 1 ? argv[1] : "host/example";

        /* Reading is shared. Should nothing be published yet, connecting waits for it. Other content is refused. */
        struct gms *g;
        check(gms_open(&g, NULL, store), "open");
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_RO;
        options.deadline_ms = 10000;
        options.identity = "example@1";
        check(gms_connect(g, &options), "connect");

        /* Maps everything, read-only, in a few milliseconds for a whole GPU. */
        check(gms_attach(g), "attach");

        /* Where is the weight of layer 0? */
        const char *key = "layer0.weight";
        struct gms_metadata_list found = GMS_INIT(struct gms_metadata_list);
        struct gms_allocation weights = GMS_INIT(struct gms_allocation);
        check(gms_metadata_get(g, &key, 1, &found), "metadata");
        check(gms_find(g, found.entries[0].slot, &weights), "find");
        printf("%s: %s at 0x%" PRIx64 ", %" PRIu64 " bytes\n", key, (const char *)found.entries[0].value, weights.address,
               weights.bytes);
        gms_metadata_free(&found);

        float value;
        check(gms_read(g, weights.id, 42 * sizeof(value), &value, sizeof(value)), "read");
        printf("element 42 is %.1f\n", (double)value);

        /* Asleep: no physical memory is held by these mappings, and every address is kept. */
        check(gms_unmap_all(g), "unmap");
        /* Awake: the same addresses. If somebody published new bytes of the same structure meanwhile, `changed` tells. */
        int changed;
        check(gms_remap_all(g, &changed), "remap");
        printf("awake again, contents %s\n", changed ? "changed" : "as before");

        /* Is there something newer? A service would poll gms_get_fd() in its loop and do this on GMS_EVENT_PUBLISHED. */
        struct gms_event event = GMS_INIT(struct gms_event);
        while (gms_dispatch(g, &event) > 0)
                if (event.kind == GMS_EVENT_PUBLISHED)
                        check(gms_refresh(g, &changed), "refresh");

        gms_close(g); /* unmaps, and gives the lock back */
        return 0;
}
