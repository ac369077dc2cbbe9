// SPDX-License-Identifier: MIT
#pragma once
/*
 * The identity of a checkpoint's content, as gms_checkpoint_finish() defines it: leaves are hashed where they lie, by whoever
 * has them, and the rest is made of their digests.
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
