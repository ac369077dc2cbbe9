// SPDX-License-Identifier: MIT
#pragma once
/*
 * Public structs that may grow: they begin with their size as the caller was compiled. The library fills what the caller
 * has room for; what a newer caller has and this library does not know is 0.
 */
#include <string.h>

#include "error.h"

static inline uint32_t sized_size(const void *s) {
        uint32_t size;
        memcpy(&size, s, sizeof(size));
        return size;
}

/* -EINVAL with a text when `s` is missing or was not initialised. */
static inline int sized_check(const void *s, const char *name) {
        if (!s || sized_size(s) < sizeof(uint32_t))
                return error_set(-EINVAL, "%s: %s; initialise it with GMS_INIT", name,
                                 s ? "its size is 0" : "no struct given");
        return 0;
}

/* Fills the caller's struct of `size` bytes from a whole one. */
static inline void sized_store(void *to, uint32_t size, const void *from, size_t from_size) {
        size_t n = MIN((size_t)size, from_size);
        memcpy(to, from, n);
        memset((char *)to + n, 0, size - n);
        memcpy(to, &size, sizeof(size));
}

/* Reads the caller's struct into a whole one. */
static inline void sized_load(void *to, size_t to_size, const void *from) {
        memset(to, 0, to_size);
        memcpy(to, from, MIN((size_t)sized_size(from), to_size));
}

/* Element i of an array of the caller's structs: the first one's size is the step. */
static inline const void *sized_at(const void *array, size_t i) {
        return (const char *)array + i * sized_size(array);
}
