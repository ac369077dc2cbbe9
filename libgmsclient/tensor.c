// SPDX-License-Identifier: MIT
#include "tensor.h"

#include <string.h>

#include "dtype.h"

/* ---- shapes */

bool tensor_shape_fits(const int64_t *shape, uint32_t rank, uint32_t bits, uint64_t *ret_elements) {
        int64_t most = bits;
        bool none = false;
        for (uint32_t i = 0; i < rank; i++) {
                none = none || shape[i] == 0;
                if (shape[i] > 0 && __builtin_mul_overflow(most, shape[i], &most))
                        return false;
        }
        *ret_elements = none ? 0 : (uint64_t)most / bits;
        return true;
}

void tensor_contiguous(const int64_t *shape, uint32_t rank, int64_t *ret_strides) {
        int64_t stride = 1;
        for (uint32_t i = rank; i-- > 0;) {
                ret_strides[i] = stride;
                stride *= MAX(shape[i], 1);
        }
}

/* Whether its elements follow each other in C order; where there is one step or none, its stride says nothing. */
static bool is_contiguous(const struct gms_tensor *t) {
        int64_t stride = 1;
        bool contiguous = true;
        for (uint32_t i = t->rank; t->strides && i-- > 0;) {
                if (t->shape[i] == 0)
                        return true;
                contiguous = contiguous && (t->shape[i] == 1 || t->strides[i] == stride);
                stride *= t->shape[i];
        }
        return contiguous;
}

/* Elements from the first to the last, both included, of a shape that has some. */
static bool extent_fits(const struct gms_tensor *t, uint64_t *ret_elements) {
        int64_t last = 0;
        for (uint32_t i = 0; i < t->rank; i++) {
                int64_t step;
                if (__builtin_mul_overflow(t->shape[i] - 1, t->strides[i], &step) || __builtin_add_overflow(last, step, &last))
                        return false;
        }
        return !__builtin_add_overflow((uint64_t)last, 1, ret_elements);
}

const char *tensor_fault(const struct gms_tensor *t, uint64_t *ret_bytes) {
        const struct dtype *d = dtype_get(t->dtype);
        if (!d)
                return "its type is none that this library knows";
        if (t->kind > GMS_TENSOR_BUFFER)
                return "it is neither parameter nor buffer";
        if (t->rank > GMS_RANK_MAX)
                return "it has more dimensions than 64";
        for (uint32_t i = 0; i < t->rank; i++)
                if (t->shape[i] < 0 || (t->strides && t->strides[i] < 0))
                        return "a dimension or a stride is negative";
        uint64_t elements, bits;
        if (!tensor_shape_fits(t->shape, t->rank, d->bits, &elements))
                return "its shape is more than can be addressed";
        bool packed = d->bits % 8 != 0;
        if (packed && !is_contiguous(t))
                return "elements of less than a byte can be C-contiguous only";
        if (elements > 0 && t->strides && !packed && !extent_fits(t, &elements))
                return "its strides are more than can be addressed";
        if (__builtin_mul_overflow(elements, d->bits, &bits))
                return "its strides are more than can be addressed";
        if (bits % 8 != 0)
                return "its elements do not fill whole bytes";
        if (!packed && t->offset % (d->bits / 8) != 0)
                return "it is not aligned to the size of its elements";
        *ret_bytes = bits / 8;
        return NULL;
}

const char *tensor_place_fault(const struct gms_tensor *t, uint64_t size) {
        const struct dtype *d = dtype_get(t->dtype);
        uint64_t end, storage_end;
        if (__builtin_add_overflow(t->offset, t->bytes, &end) || end > size)
                return "it reaches beyond the end of its allocation";
        if (__builtin_add_overflow(t->storage_offset, t->storage_bytes, &storage_end) || storage_end > size)
                return "its storage reaches beyond the end of its allocation";
        if (t->storage_offset > t->offset || end > storage_end)
                return "it reaches out of its storage";
        if (d->bits % 8 == 0 && (t->offset - t->storage_offset) % (d->bits / 8) != 0)
                return "it is not aligned to the size of its elements in its storage";
        return NULL;
}

/* ---- as metadata */

void tensor_message(const struct gms_tensor *t, Gms__Tensor *ret_message) {
        gms__tensor__init(ret_message);
        ret_message->dtype = t->dtype;
        ret_message->kind = t->kind ? t->kind : GMS_TENSOR_PARAMETER;
        ret_message->n_shape = t->rank;
        ret_message->shape = (uint64_t *)(uintptr_t)t->shape;
        if (!is_contiguous(t)) {
                ret_message->n_strides = t->rank;
                ret_message->strides = (uint64_t *)(uintptr_t)t->strides;
        }
        if (t->storage_bytes != t->bytes) { /* else it begins where the tensor does */
                ret_message->storage_before = t->offset - t->storage_offset;
                ret_message->storage_bytes = t->storage_bytes;
        }
}

static const char *read_message(const Gms__Tensor *m, struct gms_tensor *t, int64_t *shape, int64_t *strides) {
        if (m->n_shape > GMS_RANK_MAX || (m->n_strides != 0 && m->n_strides != m->n_shape))
                return "it has too many dimensions, or not a stride for each";
        if (m->n_shape > 0)
                memcpy(shape, m->shape, m->n_shape * sizeof(*shape));
        if (m->n_strides > 0)
                memcpy(strides, m->strides, m->n_strides * sizeof(*strides));
        t->dtype = m->dtype;
        t->kind = m->kind ? m->kind : GMS_TENSOR_PARAMETER;
        t->rank = (uint32_t)m->n_shape;
        t->shape = shape;
        t->strides = m->n_strides > 0 ? strides : NULL;
        const char *fault = tensor_fault(t, &t->bytes);
        if (fault)
                return fault;
        if (!t->strides)
                tensor_contiguous(shape, t->rank, strides);
        t->strides = strides;
        if (m->storage_before > t->offset)
                return "its storage begins before its allocation";
        t->storage_offset = t->offset - m->storage_before;
        t->storage_bytes = m->storage_bytes ? m->storage_bytes : t->bytes;
        return tensor_place_fault(t, INT64_MAX);
}

const char *tensor_read(const struct gms_metadata *e, struct gms_tensor *ret_tensor, int64_t *ret_shape, int64_t *ret_strides) {
        *ret_tensor = (struct gms_tensor){ .size = sizeof(*ret_tensor), .slot = e->slot, .offset = e->offset };
        Gms__Tensor *m = gms__tensor__unpack(NULL, e->value_size, e->value);
        if (!m)
                return "its value is no tensor";
        const char *fault = read_message(m, ret_tensor, ret_shape, ret_strides);
        gms__tensor__free_unpacked(m, NULL);
        return fault;
}
