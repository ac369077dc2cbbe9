// SPDX-License-Identifier: MIT
/*
 * The tensors of a layout: many at once, as metadata. What one is, tensor.c knows.
 */
#include <inttypes.h>

#include "handle.h"
#include "metadata.h"
#include "tensor.h"

/* ---- putting */

/* The caller's i-th, whole, with what it left out. */
static int take(const struct gms *g, const struct gms_tensor *tensors, size_t i, struct gms_tensor *ret) {
        sized_load(ret, sizeof(*ret), sized_at(tensors, i));
        struct gms_tensor *t = ret;
        if (!t->name || *t->name == '\0' || !wire_text_ok(t->name, TENSOR_NAME_MAX))
                return error_set(-EINVAL,
                                 "tensors: the name of item %zu must be 1 to %zu bytes of UTF-8 without control characters", i,
                                 TENSOR_NAME_MAX);
        if (t->rank > 0 && !t->shape)
                return error_set(-EINVAL, "tensors: '%s' has %u dimensions and no shape", t->name, t->rank);
        const char *fault = tensor_fault(t, &t->bytes);
        if (fault)
                return error_set(-EINVAL, "tensors: '%s' cannot be: %s", t->name, fault);
        if (t->storage_bytes == 0) {
                t->storage_offset = t->offset;
                t->storage_bytes = t->bytes;
        }
        /* Of slots it does not know the daemon judges. */
        const struct mapping *m = handle_is_current(g) ? layout_find_slot(&g->known, t->slot) : NULL;
        fault = tensor_place_fault(t, m ? m->bytes : INT64_MAX);
        if (fault)
                return error_set(-ERANGE, "tensors: '%s' at byte %" PRIu64 " of slot %" PRIu64 ", of %" PRIu64 " bytes: %s",
                                 t->name, t->offset, t->slot, t->bytes, fault);
        return 0;
}

static size_t key_size(const struct gms_tensor *t) {
        return TENSOR_PREFIX_SIZE + strlen(t->name) + 1;
}

/* All of them are checked before the first is sent. */
static int measure(const struct gms *g, const struct gms_tensor *tensors, size_t n, size_t *ret_bytes) {
        size_t bytes = 0;
        for (size_t i = 0; i < n; i++) {
                struct gms_tensor t;
                Gms__Tensor message;
                int r = take(g, tensors, i, &t);
                if (r < 0)
                        return r;
                tensor_message(&t, &message);
                bytes += key_size(&t) + gms__tensor__get_packed_size(&message);
        }
        *ret_bytes = bytes;
        return 0;
}

int gms_tensors_put(struct gms *g, const struct gms_tensor *tensors, size_t n) {
        _cleanup_handle_ struct gms *held = NULL;
        size_t size = 0;
        int r = handle_enter_holder(g, &held);
        if (r == 0 && n > 0)
                r = sized_check(tensors, "struct gms_tensor");
        if (r == 0)
                r = measure(g, tensors, n, &size);
        if (r < 0 || n == 0)
                return r;

        _cleanup_free_ struct gms_metadata *entries = calloc(n, sizeof(*entries));
        _cleanup_free_ uint8_t *bytes = malloc(size ? size : 1);
        if (!entries || !bytes)
                return error_errno(-ENOMEM, "tensors");
        uint8_t *at = bytes;
        for (size_t i = 0; i < n; i++) {
                struct gms_tensor t;
                Gms__Tensor message;
                r = take(g, tensors, i, &t);
                assert(r == 0);
                tensor_message(&t, &message);
                struct gms_metadata *e = &entries[i];
                *e = (struct gms_metadata){ .size = sizeof(*e), .slot = t.slot, .offset = t.offset };
                e->key = memcpy(at, TENSOR_PREFIX, TENSOR_PREFIX_SIZE);
                memcpy(at + TENSOR_PREFIX_SIZE, t.name, strlen(t.name) + 1);
                at += key_size(&t);
                e->value = at;
                e->value_size = (uint32_t)gms__tensor__pack(&message, at);
                at += e->value_size;
        }
        return metadata_put(g, entries, n);
}

/* ---- listing */

static void metadata_done(struct gms_metadata_list *list) {
        gms_metadata_free(list);
}

static int bad(const struct gms_metadata *e, const char *fault) {
        return error_set(-EBADMSG, "the entry '%s' is no tensor: %s; its writer has to put it again, or delete it", e->key,
                         fault);
}

/* What an entry says, and where that is in this process. `g` is NULL for what is not its layout. */
static int read_entry(const struct gms *g, const struct gms_metadata *e, struct gms_tensor *t, int64_t *shape, int64_t *strides) {
        const char *fault = e->key[TENSOR_PREFIX_SIZE] ? tensor_read(e, t, shape, strides) : "it has no name";
        const struct mapping *m = g && handle_is_current(g) ? layout_find_slot(&g->known, e->slot) : NULL;
        if (!fault && m)
                fault = tensor_place_fault(t, m->bytes);
        if (fault)
                return bad(e, fault);
        t->address = m && m->mapped ? m->address + t->offset : 0;
        return 0;
}

/* Shapes and strides of tensors read so far, one behind the other. */
struct numbers {
        int64_t *at;
        size_t n, room;
};

static void numbers_done(struct numbers *p) {
        free(p->at);
}

static int numbers_add(struct numbers *p, const int64_t *numbers, size_t n) {
        if (p->n + n > p->room) {
                size_t room = p->room + p->room / 2 + 2 * GMS_RANK_MAX;
                int64_t *at = reallocarray(p->at, room, sizeof(*at));
                if (!at)
                        return error_errno(-ENOMEM, "tensors");
                p->at = at;
                p->room = room;
        }
        if (n > 0)
                memcpy(p->at + p->n, numbers, n * sizeof(*numbers));
        p->n += n;
        return 0;
}

static int read_entries(const struct gms *g, const struct gms_metadata_list *entries, struct gms_tensor *tensors,
                        struct numbers *numbers) {
        int64_t shape[GMS_RANK_MAX], strides[GMS_RANK_MAX];
        int r = 0;
        for (size_t i = 0; r == 0 && i < entries->n; i++) {
                r = read_entry(g, &entries->entries[i], &tensors[i], shape, strides);
                if (r == 0)
                        r = numbers_add(numbers, shape, tensors[i].rank);
                if (r == 0)
                        r = numbers_add(numbers, strides, tensors[i].rank);
        }
        return r;
}

/* One block of memory: the tensors, then the numbers, then the names. */
static int make_list(const struct gms *g, const struct gms_metadata_list *entries, struct gms_tensor_list *ret) {
        struct gms_tensor_list list = { .size = sizeof(list), .n = entries->n };
        _cleanup_(numbers_done) struct numbers numbers = {};
        _cleanup_free_ struct gms_tensor *tensors = calloc(entries->n ? entries->n : 1, sizeof(*tensors));
        if (!tensors)
                return error_errno(-ENOMEM, "tensors");
        int r = read_entries(g, entries, tensors, &numbers);
        if (r < 0)
                return r;

        size_t names = 0;
        for (size_t i = 0; i < entries->n; i++)
                names += strlen(entries->entries[i].key) + 1 - TENSOR_PREFIX_SIZE;
        if (list.n > 0) {
                list.tensors = malloc(list.n * sizeof(*tensors) + numbers.n * sizeof(*numbers.at) + names);
                if (!list.tensors)
                        return error_errno(-ENOMEM, "tensors");
                int64_t *number = (int64_t *)(list.tensors + list.n);
                char *name = (char *)(number + numbers.n);
                memcpy(list.tensors, tensors, list.n * sizeof(*tensors));
                if (numbers.n > 0)
                        memcpy(number, numbers.at, numbers.n * sizeof(*number));
                for (size_t i = 0; i < list.n; i++) {
                        struct gms_tensor *t = &list.tensors[i];
                        t->shape = number;
                        t->strides = number + t->rank;
                        number += 2 * (size_t)t->rank;
                        t->name = name;
                        name = stpcpy(name, entries->entries[i].key + TENSOR_PREFIX_SIZE) + 1;
                }
        }
        sized_store(ret, ret->size, &list, sizeof(list));
        return 0;
}

static int check_list(const struct gms_tensor_list *list) {
        int r = sized_check(list, "struct gms_tensor_list");
        if (r == 0 && list->size < sizeof(*list))
                r = error_set(-EINVAL, "struct gms_tensor_list: its size is %u, at least %zu are needed", list->size,
                              sizeof(*list));
        return r;
}

int gms_tensors_list(struct gms *g, struct gms_tensor_list *ret) {
        _cleanup_(metadata_done) struct gms_metadata_list entries = GMS_INIT(struct gms_metadata_list);
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0)
                r = check_list(ret);
        if (r == 0)
                r = metadata_list(g, "", TENSOR_PREFIX, &entries);
        return r < 0 ? r : make_list(g, &entries, ret);
}

int gms_query_tensors(struct gms *g, const char *store, struct gms_tensor_list *ret) {
        _cleanup_(metadata_done) struct gms_metadata_list entries = GMS_INIT(struct gms_metadata_list);
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r == 0)
                r = check_list(ret);
        if (r == 0 && (!store || !*store))
                r = error_set(-EINVAL, "query: no store was named");
        if (r == 0)
                r = metadata_list(g, store, TENSOR_PREFIX, &entries);
        return r < 0 ? r : make_list(NULL, &entries, ret);
}

static int compare_name(const void *name, const void *t) {
        return strcmp(name, ((const struct gms_tensor *)t)->name);
}

const struct gms_tensor *gms_tensors_find(const struct gms_tensor_list *list, const char *name) {
        if (!list || !name || list->n == 0)
                return NULL;
        return bsearch(name, list->tensors, list->n, sizeof(*list->tensors), compare_name);
}

void gms_tensors_free(struct gms_tensor_list *list) {
        if (!list)
                return;
        free(list->tensors);
        list->tensors = NULL;
        list->n = 0;
}
