/* SPDX-License-Identifier: MIT */
/*
 * A writer: builds a layout of two allocations, fills it, and publishes it under an identity. Run a gmsd first:
 *
 *     gmsd --socket /tmp/gms.sock --device host &
 *     GMS_SOCKET=/tmp/gms.sock example_writer host/example
 *
 * Then this process may end: the bytes stay. See reader.c.
 */
#include <gmsclient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(int r, const char *what) {
        if (r < 0) {
                fprintf(stderr, "%s: %s\n", what, gms_last_error());
                exit(1);
        }
}

int main(int argc, char **argv) {
        const char *store = argc > 1 ? argv[1] : "host/example";

        /* A handle on the store. Connecting asks for its lock and waits, here at most ten seconds. */
        struct gms *g;
        check(gms_open(&g, NULL, store), "open");
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_RW;
        options.deadline_ms = 10000;
        check(gms_connect(g, &options), "connect");

        /* Physical memory, mapped read-write. On a host store `address` is a pointer; on a GPU, a CUdeviceptr. */
        struct gms_allocation weights = GMS_INIT(struct gms_allocation);
        struct gms_allocation biases = GMS_INIT(struct gms_allocation);
        check(gms_allocate(g, 1 << 20, "weights", &weights), "allocate");
        check(gms_allocate(g, 4096, "weights", &biases), "allocate");

        /* gms_write() works for both kinds. Kernels and copies of your own do as well, at `address`. */
        float *values = malloc(1 << 20);
        if (!values)
                return 1;
        for (int i = 0; i < (1 << 20) / 4; i++)
                values[i] = (float)i;
        check(gms_write(g, weights.id, 0, values, 1 << 20), "write");
        check(gms_write(g, biases.id, 0, values, 4096), "write");
        free(values);

        /* Metadata says what lies where: key, slot, offset, and bytes that mean something to the reader. */
        const char shape[] = "float32 512x512";
        struct gms_metadata entries[] = {
                GMS_INIT(struct gms_metadata),
                GMS_INIT(struct gms_metadata),
        };
        entries[0].key = "layer0.weight";
        entries[0].slot = weights.slot;
        entries[0].value = shape;
        entries[0].value_size = sizeof(shape);
        entries[1].key = "layer0.bias";
        entries[1].slot = biases.slot;
        check(gms_metadata_put(g, entries, 2), "metadata");

        /* One atomic step: everything becomes visible to readers, and read-only here. The lock goes back with it. */
        check(gms_commit(g, "example@1", GMS_COMMIT_LEAVE), "commit");
        printf("%s: published as example@1\n", store);

        gms_close(g);
        return 0;
}
