// SPDX-License-Identifier: MIT
#include "pattern.h"

#include <string.h>

/* The finaliser of splitmix64: any word is reached directly, at the speed of memory. */
static inline uint64_t mix(uint64_t x) {
        x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
        return x ^ (x >> 31);
}

static inline uint64_t word(uint64_t key, uint64_t index) {
        return mix(key + (index + 1) * UINT64_C(0x9e3779b97f4a7c15));
}

static uint64_t key_of(uint32_t version, uint64_t slot) {
        return mix(((uint64_t)version << 40) + slot + 1);
}

void pattern_fill(void *to, uint32_t version, uint64_t slot, uint64_t offset, uint64_t bytes) {
        uint64_t key = key_of(version, slot), first = offset / 8, n = bytes / 8;
        char *p = to;

        for (uint64_t i = 0; i < n; i++) {
                uint64_t w = word(key, first + i);
                memcpy(p + 8 * i, &w, 8);
        }
        uint64_t last = word(key, first + n);
        memcpy(p + 8 * n, &last, bytes % 8);
}

uint64_t pattern_verify(const void *from, uint32_t version, uint64_t slot, uint64_t offset, uint64_t bytes) {
        uint64_t key = key_of(version, slot), first = offset / 8, n = bytes / 8;
        const char *p = from;

        for (uint64_t i = 0; i < n; i++) {
                uint64_t w;
                memcpy(&w, p + 8 * i, 8);
                if (w != word(key, first + i))
                        return offset + 8 * i;
        }
        uint64_t last = word(key, first + n);
        return memcmp(p + 8 * n, &last, bytes % 8) == 0 ? PATTERN_OK : offset + 8 * n;
}
