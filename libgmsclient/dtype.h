// SPDX-License-Identifier: MIT
#pragma once
/*
 * The element types of tensors: one table of what they are called, how large they are and what DLPack calls them.
 */
#include "base.h"

struct dtype {
        const char *name; /* safetensors' */
        uint8_t bits;
        uint8_t code;     /* DLPack's */
};

/* NULL for what is no GMS_DTYPE_*. */
const struct dtype *dtype_get(uint32_t dtype);
