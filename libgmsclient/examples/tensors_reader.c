/* SPDX-License-Identifier: MIT */
/*
 * A reader of a model that tensors_writer.c published: goes through its tensors, finds one by its name and reads it where it
 * lies.
 *
 *     GMS_SOCKET=/tmp/gms.sock example_tensors_reader host/model
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
        const char *store = argc > 1 ? argv[1] : "host/model";

        struct gms *g;
        check(gms_open(&g, NULL, store), "open");
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_RO;
        options.deadline_ms = 10000;
        options.identity = "model@1";
        check(gms_connect(g, &options), "connect");
        check(gms_attach(g), "attach");

        /* All of them, in one round trip, ascending by name. Whoever wrote them, each lies inside its allocation. */
        struct gms_tensor_list list = GMS_INIT(struct gms_tensor_list);
        check(gms_tensors_list(g, &list), "tensors");
        uint64_t bytes = 0;
        for (uint32_t i = 0; i < list.n; i++)
                bytes += list.tensors[i].bytes;
        printf("%s: %" PRIu32 " tensors, %" PRIu64 " bytes with those that are shared\n", store, list.n, bytes);

        const struct gms_tensor *t = gms_tensors_find(&list, "layers.42.weight");
        const struct gms_tensor *head = gms_tensors_find(&list, "head.weight"), *first = gms_tensors_find(&list, "layers.0.weight");
        if (!t || !head || !first) {
                fprintf(stderr, "%s is another model\n", store);
                return 1;
        }
        printf("%s: %s [%" PRId64 ", %" PRId64 "] at 0x%" PRIx64 "\n", t->name, gms_dtype_name(t->dtype), t->shape[0], t->shape[1],
               t->address);
        printf("head.weight is %s\n", head->address == first->address ? "tied to layers.0.weight" : "a tensor of its own");

        /* Element [1][2]. A kernel reads it at t->address; gms_read() works for host stores and GPUs. */
        struct gms_allocation slab = GMS_INIT(struct gms_allocation);
        float value;
        uint64_t element = (uint64_t)(1 * t->strides[0] + 2 * t->strides[1]);
        check(gms_find(g, t->slot, &slab), "find");
        check(gms_read(g, slab.id, t->offset + element * sizeof(value), &value, sizeof(value)), "read");
        printf("element [1][2] is %.1f\n", (double)value);

        /* For a framework: gms_dlpack(g, t, 1, &managed) lends it without a copy. */
        gms_tensors_free(&list);
        gms_close(g);
        return 0;
}
