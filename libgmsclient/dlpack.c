// SPDX-License-Identifier: MIT
/*
 * A tensor lent to a framework. What is lent keeps the handle open, and with it the lock and the mapping, until the
 * framework gives it back, in whatever thread.
 */
#include "dlpack.h"

#include <inttypes.h>
#include <stdio.h>

#include "dtype.h"
#include "handle.h"
#include "tensor.h"

struct loan {
        struct gms *handle;
        union {
                struct dlpack_managed managed;
                struct dlpack_versioned versioned;
        } as;
        int64_t numbers[]; /* shape, then strides */
};

static void give_back(struct loan *l) {
        struct gms *g = l->handle;
        free(l);
        (void)handle_unref(g);
}

static void managed_back(struct dlpack_managed *self) {
        give_back(self->context);
}

static void versioned_back(struct dlpack_versioned *self) {
        give_back(self->context);
}

/* The mapping that the tensor lies in, with access. */
static int find_mapping(const struct gms *g, const struct gms_tensor *t, const struct mapping **ret_mapping) {
        const struct mapping *m = layout_find_slot(&g->known, t->slot);
        if (!m)
                return error_set(-ENOENT, "dlpack: the handle knows no allocation with slot %" PRIu64 "; gms_attach() first",
                                 t->slot);
        if (!m->mapped)
                return error_set(-EACCES, "dlpack: slot %" PRIu64 " is not mapped; gms_remap_all() first", t->slot);
        if (m->access == GMS_ACCESS_NONE)
                return error_set(-EACCES, "dlpack: slot %" PRIu64 " is mapped without access", t->slot);
        /* Of another layout than what is mapped. A tensor listed before the mapping has no address, and says nothing. */
        if (t->address != 0 ? t->address != m->address + t->offset : !handle_is_current(g))
                return error_set(-ESTALE,
                                 "dlpack: the tensor is of another layout than is mapped at slot %" PRIu64 "; list them again",
                                 t->slot);
        *ret_mapping = m;
        return 0;
}

static int check_tensor(struct gms_tensor *t, const struct mapping *m) {
        const char *fault = t->rank > 0 && !t->shape ? "it has no shape" : tensor_fault(t, &t->bytes);
        if (fault)
                return error_set(-EINVAL, "dlpack: the tensor cannot be: %s", fault);
        t->storage_offset = 0; /* whatever it shares, it lies in the allocation */
        t->storage_bytes = m->bytes;
        fault = tensor_place_fault(t, m->bytes);
        return fault ? error_set(-ERANGE, "dlpack: %" PRIu64 " bytes at byte %" PRIu64 " of slot %" PRIu64 ": %s", t->bytes,
                                 t->offset, t->slot, fault)
                     : 0;
}

static void fill(struct dlpack_tensor *to, const struct gms *g, const struct gms_tensor *t, const struct mapping *m,
                 int64_t *numbers) {
        int ordinal = 0;
        bool cuda = sscanf(g->vmm->device.name, "cuda:%d", &ordinal) == 1;
        const struct dtype *d = dtype_get(t->dtype);
        *to = (struct dlpack_tensor){
                .data = t->bytes ? (void *)(uintptr_t)(m->address + t->offset) : NULL,
                .device = { .type = cuda ? DLPACK_CUDA : DLPACK_CPU, .id = ordinal },
                .rank = (int32_t)t->rank,
                .dtype = { .code = d->code, .bits = d->bits, .lanes = 1 },
                .shape = numbers,
                .strides = numbers + t->rank,
        };
        if (t->rank > 0)
                memcpy(to->shape, t->shape, t->rank * sizeof(*numbers));
        if (t->rank > 0 && t->strides)
                memcpy(to->strides, t->strides, t->rank * sizeof(*numbers));
        else
                tensor_contiguous(to->shape, t->rank, to->strides);
}

int gms_dlpack(struct gms *g, const struct gms_tensor *tensor, int versioned, void **ret_managed) {
        _cleanup_handle_ struct gms *held = NULL;
        const struct mapping *m = NULL;
        struct gms_tensor t;
        int r = handle_enter(g, &held);
        if (r == 0)
                r = sized_check(tensor, "struct gms_tensor");
        if (r == 0 && !ret_managed)
                r = error_set(-EINVAL, "dlpack: nowhere to put the tensor");
        if (r < 0)
                return r;
        sized_load(&t, sizeof(t), tensor);
        r = find_mapping(g, &t, &m);
        if (r == 0)
                r = check_tensor(&t, m);
        if (r < 0)
                return r;

        struct loan *l = malloc(sizeof(*l) + 2 * t.rank * sizeof(l->numbers[0]));
        if (!l)
                return error_errno(-ENOMEM, "dlpack");
        l->handle = handle_ref(g);
        if (versioned) {
                l->as.versioned = (struct dlpack_versioned){
                        .major = DLPACK_MAJOR,
                        .minor = DLPACK_MINOR,
                        .context = l,
                        .deleter = versioned_back,
                        .flags = m->access == GMS_ACCESS_READ ? DLPACK_FLAG_READ_ONLY : 0,
                };
                fill(&l->as.versioned.tensor, g, &t, m, l->numbers);
                *ret_managed = &l->as.versioned;
        } else {
                l->as.managed = (struct dlpack_managed){ .context = l, .deleter = managed_back };
                fill(&l->as.managed.tensor, g, &t, m, l->numbers);
                *ret_managed = &l->as.managed;
        }
        return 0;
}
