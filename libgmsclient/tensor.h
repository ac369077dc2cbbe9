// SPDX-License-Identifier: MIT
#pragma once
/*
 * One tensor: whether it can be, what it covers, and the metadata value that says so. Pure; lists of them are tensors.c.
 *
 * All sizes are checked for overflow here: what passed covers `bytes` from its first element on, and they can be added up.
 */
#include "gmsclient.h"
#include "wire.h"

#define TENSOR_PREFIX "tensor/"
#define TENSOR_PREFIX_SIZE (sizeof(TENSOR_PREFIX) - 1)
#define TENSOR_NAME_MAX (WIRE_KEY_MAX - TENSOR_PREFIX_SIZE)

/*
 * What is wrong with a tensor's type, kind, shape, strides or alignment, in words; NULL: nothing. Strides may be NULL.
 * *ret_bytes: from its first element to the end of its last.
 */
const char *tensor_fault(const struct gms_tensor *t, uint64_t *ret_bytes);
/* The same for where it lies: its bytes in its storage, that in an allocation of `size` bytes. For t->bytes as they are. */
const char *tensor_place_fault(const struct gms_tensor *t, uint64_t size);

/*
 * Whether no product of dimensions overflows, in elements, bytes or bits, whatever is multiplied in which order: a dimension
 * of 0 counts as 1, as it does for strides. None may be negative.
 */
bool tensor_shape_fits(const int64_t *shape, uint32_t rank, uint32_t bits, uint64_t *ret_elements);
/* C-contiguous strides of a shape that has no fault. */
void tensor_contiguous(const int64_t *shape, uint32_t rank, int64_t *ret_strides);

/*
 * The message of a tensor without fault, t->bytes set; it points into `t`. What means the same is the same message: strides
 * are left out where they are C-contiguous, and the storage where it is just the tensor.
 */
void tensor_message(const struct gms_tensor *t, Gms__Tensor *ret_message);
/*
 * Back: everything of a tensor but its name and address, from an entry that anybody may have written. `ret_shape` and
 * `ret_strides` have room for GMS_RANK_MAX and are what the tensor points at. Returns what is wrong, NULL: nothing.
 */
const char *tensor_read(const struct gms_metadata *e, struct gms_tensor *ret_tensor, int64_t *ret_shape, int64_t *ret_strides);
