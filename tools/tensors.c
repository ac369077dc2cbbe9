// SPDX-License-Identifier: MIT
/* How tensors look in tables and JSON. */
#include <inttypes.h>
#include <stdio.h>

#include "gmsctl.h"

static const char *kind_name(uint32_t kind) {
        return kind == GMS_TENSOR_BUFFER ? "buffer" : "parameter";
}

/* ---- JSON */

static json_t *numbers_json(const int64_t *numbers, uint32_t n) {
        json_t *list = json_array();
        for (uint32_t i = 0; list && i < n; i++)
                if (json_array_append_new(list, json_integer(JSON_N(numbers[i]))) < 0) {
                        json_decref(list);
                        return NULL;
                }
        return list;
}

static json_t *tensor_json(const struct gms_tensor *t) {
        return json_pack("{s:o, s:s, s:s, s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "name", json_text(t->name), "dtype",
                         gms_dtype_name(t->dtype), "kind", kind_name(t->kind), "shape", numbers_json(t->shape, t->rank),
                         "strides", numbers_json(t->strides, t->rank), "bytes", JSON_N(t->bytes), "slot", JSON_N(t->slot),
                         "offset", JSON_N(t->offset), "storage_offset", JSON_N(t->storage_offset), "storage_bytes",
                         JSON_N(t->storage_bytes));
}

json_t *tensors_json(const struct gms_tensor_list *tensors) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < tensors->n; i++)
                if (json_array_append_new(list, tensor_json(&tensors->tensors[i])) < 0) {
                        json_decref(list);
                        return NULL;
                }
        return list;
}

/* ---- a table */

/* "[2, 3]" */
static size_t append_numbers(char *to, size_t room, const int64_t *numbers, uint32_t n) {
        size_t used = (size_t)snprintf(to, room, "[");
        for (uint32_t i = 0; i < n; i++)
                used += (size_t)snprintf(to + used, room - used, "%s%" PRId64, i > 0 ? ", " : "", numbers[i]);
        return used + (size_t)snprintf(to + used, room - used, "]");
}

/* Its elements follow each other in C order, or there are none. */
static bool is_contiguous(const struct gms_tensor *t) {
        int64_t stride = 1;
        bool contiguous = true;
        for (uint32_t i = t->rank; i-- > 0; stride *= t->shape[i]) {
                if (t->shape[i] == 0)
                        return true;
                contiguous = contiguous && (t->shape[i] == 1 || t->strides[i] == stride);
        }
        return contiguous;
}

static void shape_cell(struct table *table, const struct gms_tensor *t) {
        char text[2 * (GMS_RANK_MAX * 22 + 2) + 10];
        size_t used = append_numbers(text, sizeof(text), t->shape, t->rank);
        if (!is_contiguous(t)) {
                used += (size_t)snprintf(text + used, sizeof(text) - used, " strides ");
                (void)append_numbers(text + used, sizeof(text) - used, t->strides, t->rank);
        }
        table_cell(table, "%s", text);
}

int tensors_print(const struct gms_tensor_list *tensors) {
        static const struct column columns[] = {
                { "TENSOR" },
                { "DTYPE" },
                { "SHAPE" },
                { "SIZE", .right = true },
                { "SLOT", .right = true },
                { "OFFSET", .right = true },
                { "KIND" },
        };
        struct table table;

        table_init(&table, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < tensors->n; i++) {
                const struct gms_tensor *t = &tensors->tensors[i];
                table_cell(&table, "%s", t->name);
                table_cell(&table, "%s", gms_dtype_name(t->dtype));
                shape_cell(&table, t);
                table_cell(&table, "%s", text_size(t->bytes).s);
                table_cell(&table, "%" PRIu64, t->slot);
                table_cell(&table, "%" PRIu64, t->offset);
                table_cell(&table, "%s", kind_name(t->kind));
        }
        return table_print(&table);
}
