// SPDX-License-Identifier: MIT
/* gmsctl show: one store, its layout, its tensors and its metadata. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "gmsctl.h"

#define HEX_SHOWN 16u         /* bytes of a value that is no text */
#define ALLOCATIONS_SHOWN 24u /* more are shown by tag */

/* Tensors are entries too, and shown as what they are. */
static bool is_tensor(const struct layout *l, const struct gms_metadata *m) {
        return !l->tensors_fault && strncmp(m->key, "tensor/", 7) == 0;
}

/* {"value": text} or {"value_hex": hex}: a value is any bytes. */
static json_t *entry_json(const struct gms_metadata *m) {
        json_t *text = memchr(m->value, '\0', m->value_size) ? NULL : json_stringn(m->value, m->value_size);
        const char *key = text ? "value" : "value_hex";
        if (!text)
                text = json_bytes(m->value, m->value_size);
        return json_pack("{s:o, s:I, s:I, s:I, s:o}", "key", json_text(m->key), "slot", JSON_N(m->slot), "offset",
                         JSON_N(m->offset), "value_size", JSON_N(m->value_size), key, text);
}

static json_t *metadata_json(const struct layout *l) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < l->metadata.n; i++)
                if (!is_tensor(l, &l->metadata.entries[i]) &&
                    json_array_append_new(list, entry_json(&l->metadata.entries[i])) < 0) {
                        json_decref(list);
                        return NULL;
                }
        return list;
}

static void value_cell(struct table *t, const struct gms_metadata *m) {
        if (text_printable(m->value, m->value_size)) {
                table_cell(t, "%.*s", (int)m->value_size, (const char *)m->value);
                return;
        }
        char hex[2 * HEX_SHOWN + 1] = "";
        for (size_t i = 0; i < MIN(m->value_size, HEX_SHOWN); i++)
                snprintf(hex + 2 * i, 3, "%02x", ((const uint8_t *)m->value)[i]);
        table_cell(t, "0x%s%s", hex, m->value_size > HEX_SHOWN ? "..." : "");
}

static int metadata_print(const struct layout *l) {
        static const struct column columns[] = {
                { "KEY" },
                { "SLOT", .right = true },
                { "OFFSET", .right = true },
                { "BYTES", .right = true },
                { "VALUE", .columns = 60 },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < l->metadata.n; i++) {
                const struct gms_metadata *m = &l->metadata.entries[i];
                if (is_tensor(l, m))
                        continue;
                table_cell(&t, "%s", m->key);
                table_cell(&t, "%" PRIu64, m->slot);
                table_cell(&t, "%" PRIu64, m->offset);
                table_cell(&t, "%" PRIu32, m->value_size);
                value_cell(&t, m);
        }
        return table_print(&t);
}

static int store_print(const struct layout *l) {
        const struct gms_store *s = &l->store;
        static const struct column columns[] = { { NULL }, { NULL } };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        table_cell(&t, "store");
        table_cell(&t, "%s", s->name);
        table_cell(&t, "state");
        table_cell(&t, "%s", s->state);
        table_cell(&t, "lock");
        table_cell(&t, "%" PRIu64 " reading, %" PRIu64 " writing, %" PRIu64 " waiting", s->readers, s->writers, s->waiters);
        table_cell(&t, "generation");
        table_cell(&t, "%" PRIu64, s->generation);
        table_cell(&t, "hash");
        table_cell(&t, "%s", text_hash(s->hash, 2 * GMS_HASH_SIZE).s);
        table_cell(&t, "identity");
        table_cell(&t, "%s", s->identity);
        table_cell(&t, "size");
        table_cell(&t, "%s", text_size(s->bytes).s);
        table_cell(&t, "allocations");
        table_cell(&t, "%zu", l->n_allocations);
        if (l->tensors.n > 0) {
                table_cell(&t, "tensors");
                table_cell(&t, "%" PRIu32, l->tensors.n);
        }
        if (s->building_bytes > 0) {
                table_cell(&t, "being built");
                table_cell(&t, "%s", text_size(s->building_bytes).s);
        }
        if (s->draining_layouts > 0) {
                table_cell(&t, "draining");
                table_cell(&t, "%s in %" PRIu64 " older layout%s", text_size(s->draining_bytes).s, s->draining_layouts,
                           s->draining_layouts == 1 ? "" : "s");
        }
        return table_print(&t);
}

static int print(const struct layout *l) {
        int r = store_print(l);
        if (r == CTL_OK && l->n_allocations > 0)
                putchar('\n'), r = l->n_allocations > ALLOCATIONS_SHOWN ? totals_print(l) : allocations_print(l);
        if (r == CTL_OK && l->tensors.n > 0)
                putchar('\n'), r = tensors_print(&l->tensors);
        if (r == CTL_OK && l->metadata.n > l->tensors.n)
                putchar('\n'), r = metadata_print(l);
        return r;
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        _cleanup_(layout_done) struct layout l = { 0 };

        int r = ctl_look(ctl, &g);
        if (r == CTL_OK)
                r = layout_read(&l, g, ctl->argv[0], true);
        if (r != CTL_OK)
                return r;
        r = ctl->json ? json_print_consume(json_pack("{s:o, s:o, s:o, s:o}", "store", store_json(&l.store), "allocations",
                                                     allocations_json(&l), "tensors", tensors_json(&l.tensors), "metadata",
                                                     metadata_json(&l)))
                      : print(&l);
        return r == CTL_OK && l.tensors_fault ? ctl_fail("%s", l.tensors_fault) : r;
}

const struct command command_show = {
        .name = "show",
        .synopsis = "STORE",
        .summary = "one store: its layout, tensors and metadata",
        .help = "Shows a store, the allocations of what is published (else sealed) in it (if\n"
                "there are many, their totals by tag: gmsctl list STORE shows each), its\n"
                "tensors: name, type, shape, bytes, the slot and the offset where it is; and\n"
                "its other metadata: key, the slot and offset it points at, the size of the\n"
                "value, and the value: as text when it is printable, else its first bytes in\n"
                "hexadecimal. Looking takes no lock and disturbs nobody.\n"
                "\n"
                "JSON\n"
                "  {\"store\": {...},                        as in status\n"
                "   \"allocations\": [...],                  as in list STORE\n"
                "   \"tensors\": [{\"name\", \"dtype\", \"kind\", \"shape\", \"strides\", \"bytes\", \"slot\",\n"
                "                \"offset\", \"storage_offset\", \"storage_bytes\"}],\n"
                "   \"metadata\": [{\"key\", \"slot\", \"offset\", \"value_size\", \"value\"}]}\n"
                "  An entry has \"value_hex\" in place of \"value\" when that is no UTF-8 text.\n"
                "  Strides count elements; the storage is what a tensor is a view of, in bytes of\n"
                "  the allocation. Names with the same place are tied.\n",
        .argc_min = 1,
        .argc_max = 1,
        .run = run,
};
