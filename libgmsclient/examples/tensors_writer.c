/* SPDX-License-Identifier: MIT */
/*
 * A writer of a model: its tensors lie in a few large allocations, and the layout says what and where they are.
 *
 *     GMS_SOCKET=/tmp/gms.sock example_tensors_writer host/model
 *
 * See tensors_reader.c for the other end, and writer.c for what is not about tensors.
 */
#include <gmsclient.h>
#include <stdio.h>
#include <stdlib.h>

#define LAYERS 200
#define WIDTH 64

static void check(int r, const char *what) {
        if (r < 0) {
                fprintf(stderr, "%s: %s\n", what, gms_last_error());
                exit(1);
        }
}

/* A piece of a slab, filled, and what a reader has to know of it. */
static void add(struct gms *g, struct gms_pool *pool, struct gms_tensor *t, const char *name, const int64_t *shape, float first) {
        float values[WIDTH * WIDTH];
        struct gms_piece piece = GMS_INIT(struct gms_piece);
        struct gms_allocation slab = GMS_INIT(struct gms_allocation);

        for (int i = 0; i < WIDTH * WIDTH; i++)
                values[i] = first + (float)i;
        check(gms_pool_allocate(pool, sizeof(values), 0, &piece), "piece");
        /* On a host store piece.address is a pointer, on a GPU a CUdeviceptr; gms_write() works for both. */
        check(gms_find(g, piece.slot, &slab), "find");
        check(gms_write(g, slab.id, piece.offset, values, sizeof(values)), "write");

        t->size = sizeof(*t);
        t->name = name;
        t->dtype = GMS_DTYPE_F32;
        t->rank = 2;
        t->shape = shape;
        t->slot = piece.slot;
        t->offset = piece.offset;
}

int main(int argc, char **argv) {
        const char *store = argc > 1 ? argv[1] : "host/model";
        static const int64_t shape[] = { WIDTH, WIDTH };
        static char names[LAYERS][32];
        static struct gms_tensor tensors[LAYERS + 1]; /* zeros where nothing else is said: strides C-contiguous, ... */

        struct gms *g;
        check(gms_open(&g, NULL, store), "open");
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_RW;
        options.deadline_ms = 10000;
        check(gms_connect(g, &options), "connect");

        /* Attaching costs a reader by the allocation, however small: so many tensors share few of them. */
        struct gms_pool *pool;
        struct gms_pool_options pooled = GMS_INIT(struct gms_pool_options);
        pooled.tag = "weights";
        pooled.expected = (uint64_t)LAYERS * WIDTH * WIDTH * sizeof(float); /* known here: the slabs will be full */
        check(gms_pool_open(&pool, g, &pooled), "pool");
        for (int i = 0; i < LAYERS; i++) {
                snprintf(names[i], sizeof(names[i]), "layers.%d.weight", i);
                add(g, pool, &tensors[i], names[i], shape, (float)i * 1000);
        }
        check(gms_pool_trim(pool), "trim");
        gms_pool_close(pool);

        /* Two names of one place: tied weights. */
        tensors[LAYERS] = tensors[0];
        tensors[LAYERS].name = "head.weight";
        check(gms_tensors_put(g, tensors, LAYERS + 1), "tensors");

        size_t slabs;
        check(gms_allocations(g, NULL, 0, &slabs), "allocations");
        check(gms_commit(g, "model@1", GMS_COMMIT_LEAVE), "commit");
        printf("%s: %d tensors in %lu allocation%s\n", store, LAYERS + 1, (unsigned long)slabs, slabs == 1 ? "" : "s");
        gms_close(g);
        return 0;
}
