// SPDX-License-Identifier: MIT
/* Reads a store with its layout and metadata, and gives stores and allocations their one look in tables and JSON. */
#include <inttypes.h>
#include <string.h>

#include "gmsctl.h"

static int read_store(struct gms *g, const char *name, struct gms_store *ret_store) {
        _cleanup_array_ struct gms_store *stores = NULL;
        size_t n;
        int r = gms_query_stores(g, name, &stores, &n);
        if (r < 0)
                return r;
        if (n == 0)
                return -ENOENT;
        *ret_store = stores[0];
        return 0;
}

static int read_parts(struct layout *l, struct gms *g, const char *store, bool metadata) {
        /* Nothing rests: nothing to ask for, and no failure. */
        if (l->store.generation == 0 && !l->store.sealed)
                return 0;
        int r = gms_query_layout(g, store, &l->allocations, &l->n_allocations);
        if (r == 0 && metadata)
                r = gms_query_metadata(g, store, &l->metadata);
        if (r == 0 && metadata)
                r = gms_query_tensors(g, store, &l->tensors);
        if (r != -EBADMSG)
                return r;
        /* Somebody wrote what is no tensor: there is still all else to look at. */
        l->tensors_fault = strdup(ctl_why(r));
        return l->tensors_fault ? 0 : -ENOMEM;
}

int layout_read(struct layout *l, struct gms *g, const char *store, bool metadata) {
        *l = (struct layout){ .metadata = GMS_INIT(struct gms_metadata_list), .tensors = GMS_INIT(struct gms_tensor_list) };

        /* Several questions, and the store may be published, or cleared, in between: ask until it stood still. */
        for (unsigned attempt = 0; attempt < 20; attempt++) {
                struct gms_store after;
                layout_done(l);
                int r = read_store(g, store, &l->store);
                if (r < 0)
                        return ctl_fail("%s", ctl_why(r));
                int parts = read_parts(l, g, store, metadata);
                const char *why = parts < 0 ? ctl_why(parts) : "";
                _cleanup_free_ char *reason = strdup(why); /* the next call overwrites it */
                r = read_store(g, store, &after);
                if (r < 0)
                        return ctl_fail("%s", ctl_why(r));
                if (after.generation != l->store.generation || memcmp(after.hash, l->store.hash, GMS_HASH_SIZE) != 0)
                        continue;
                return parts < 0 ? ctl_fail("%s", reason ? reason : "out of memory") : CTL_OK;
        }
        return ctl_fail("%s changes faster than it can be read; try again", store);
}

void layout_done(struct layout *l) {
        gms_array_free(l->allocations);
        l->allocations = NULL;
        l->n_allocations = 0;
        gms_metadata_free(&l->metadata);
        gms_tensors_free(&l->tensors);
        free(steal_ptr(&l->tensors_fault));
}

json_t *store_json(const struct gms_store *s) {
        return json_pack("{s:o, s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:o}",
                         "name", json_text(s->name), "state", s->state, "sealed", (int)s->sealed,
                         "readers", JSON_N(s->readers), "writers", JSON_N(s->writers), "waiters", JSON_N(s->waiters),
                         "bytes", JSON_N(s->bytes), "building_bytes", JSON_N(s->building_bytes),
                         "draining_bytes", JSON_N(s->draining_bytes), "draining_layouts", JSON_N(s->draining_layouts),
                         "allocations", JSON_N(s->allocations), "generation", JSON_N(s->generation),
                         "hash", json_hash(s->hash), "identity", json_text(s->identity));
}

json_t *stores_json(const struct gms_store *stores, size_t n) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < n; i++)
                if (json_array_append_new(list, store_json(&stores[i])) < 0) {
                        json_decref(list);
                        return NULL;
                }
        return list;
}

json_t *allocations_json(const struct layout *l) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < l->n_allocations; i++) {
                const struct gms_allocation *a = &l->allocations[i];
                json_t *entry = json_pack("{s:I, s:I, s:I, s:I, s:o}", "slot", JSON_N(a->slot), "id", JSON_N(a->id), "bytes",
                                          JSON_N(a->bytes), "aligned", JSON_N(a->aligned), "tag", json_text(a->tag));
                if (json_array_append_new(list, entry) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        return list;
}

int stores_print(const struct gms_store *stores, size_t n) {
        static const struct column columns[] = {
                { "STORE" },
                { "STATE" },
                { "READERS", .right = true },
                { "WRITERS", .right = true },
                { "WAITERS", .right = true },
                { "SIZE", .right = true },
                { "GENERATION", .right = true },
                { "HASH" },
                { "IDENTITY", .columns = 40 },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                const struct gms_store *s = &stores[i];
                table_cell(&t, "%s", s->name);
                table_cell(&t, "%s", s->state);
                table_cell(&t, "%" PRIu64, s->readers);
                table_cell(&t, "%" PRIu64, s->writers);
                table_cell(&t, "%" PRIu64, s->waiters);
                table_cell(&t, "%s", text_size(s->bytes).s);
                table_cell(&t, "%" PRIu64, s->generation);
                table_cell(&t, "%s", text_hash(s->hash, 12).s);
                table_cell(&t, "%s", s->identity);
        }
        return table_print(&t);
}

int allocations_print(const struct layout *l) {
        static const struct column columns[] = {
                { "SLOT", .right = true },     { "ID", .right = true }, { "SIZE", .right = true },
                { "PHYSICAL", .right = true }, { "TAG" },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < l->n_allocations; i++) {
                const struct gms_allocation *a = &l->allocations[i];
                table_cell(&t, "%" PRIu64, a->slot);
                table_cell(&t, "%" PRIu64, a->id);
                table_cell(&t, "%s", text_size(a->bytes).s);
                table_cell(&t, "%s", text_size(a->aligned).s);
                table_cell(&t, "%s", a->tag);
        }
        return table_print(&t);
}
