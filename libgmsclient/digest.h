// SPDX-License-Identifier: MIT
#pragma once
/*
 * What a checkpoint's content is called: a digest of names, types, shapes and bytes, the same however the tensors are ordered,
 * spread over files, or read. It finds accidents, not forgers.
 *
 * XXH3-128 throughout, with seed 0, each result as its 16 bytes in canonical order (big-endian):
 *
 *      leaf     of each 1,048,576 bytes of a tensor, the last one shorter; a tensor without bytes has none
 *      tensor   of its leaves, one behind the other
 *      content  of "gms checkpoint 1\n" and then, for all tensors ascending by the bytes of their names:
 *                       u32 length of the name, the name
 *                       u32 length of the type's name, as in safetensors ("BF16"), that name
 *                       u32 number of dimensions, u64 size of each
 *                       16 bytes, the tensor's digest
 *               numbers little-endian
 *
 * and the identity is "xxh3-128:" and the content's digest in 32 lower-case hexadecimal digits.
 */
#include <xxhash.h>

#include "gmsclient.h"

#define DIGEST_LEAF (UINT64_C(1) << 20)

/* A leaf's. Thread-safe. */
XXH128_canonical_t digest_leaf(const void *bytes, size_t n);

static inline size_t digest_leaves(uint64_t bytes) {
        return (size_t)(bytes / DIGEST_LEAF + (bytes % DIGEST_LEAF != 0));
}

/* The content's, tensor by tensor in their order. digest_begin() returns NULL without memory; digest_end() frees it. */
XXH3_state_t *digest_begin(void);
void digest_tensor(XXH3_state_t *d, const char *name, uint32_t dtype, uint32_t rank, const int64_t *shape,
                   const XXH128_canonical_t *leaves, size_t n_leaves);
void digest_end(XXH3_state_t *d, char identity[GMS_IDENTITY_SIZE]);
