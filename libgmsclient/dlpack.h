// SPDX-License-Identifier: MIT
#pragma once
/*
 * The binary interface of DLPack, by which frameworks lend each other tensors: as its specification 1.1 states it, written
 * down here so that nothing of it is needed to build. tests/unit/test_tensors.c holds it against the numbers.
 */
#include <stdint.h>

/* What a major version is laid out like does not change; minor ones add numbers. */
#define DLPACK_MAJOR 1u
#define DLPACK_MINOR 1u

enum {
        DLPACK_CPU = 1,
        DLPACK_CUDA = 2
};

enum {
        DLPACK_INT = 0,
        DLPACK_UINT = 1,
        DLPACK_FLOAT = 2, /* IEEE */
        DLPACK_BFLOAT = 4,
        DLPACK_COMPLEX = 5,
        DLPACK_BOOL = 6,
        DLPACK_F8_E4M3FN = 10,
        DLPACK_F8_E4M3FNUZ = 11,
        DLPACK_F8_E5M2 = 12,
        DLPACK_F8_E5M2FNUZ = 13,
        DLPACK_F8_E8M0FNU = 14,
        DLPACK_F6_E2M3FN = 15,
        DLPACK_F6_E3M2FN = 16,
        DLPACK_F4_E2M1FN = 17
};

/* Without flags, elements of less than a byte are packed, the first in the lowest bits. */
#define DLPACK_FLAG_READ_ONLY 1u

struct dlpack_tensor {
        void *data;           /* NULL when there are no elements */
        struct {
                int32_t type; /* DLPACK_CPU, DLPACK_CUDA */
                int32_t id;   /* ordinal */
        } device;
        int32_t rank;
        struct {
                uint8_t code;
                uint8_t bits;
                uint16_t lanes; /* 1: no vectors */
        } dtype;
        int64_t *shape;
        int64_t *strides;     /* elements */
        uint64_t byte_offset; /* from data to the first element */
};

/* Who is lent one calls the deleter, once, with the struct itself. */
struct dlpack_managed {
        struct dlpack_tensor tensor;
        void *context; /* the lender's */
        void (*deleter)(struct dlpack_managed *self);
};

struct dlpack_versioned {
        uint32_t major, minor;
        void *context;
        void (*deleter)(struct dlpack_versioned *self);
        uint64_t flags;
        struct dlpack_tensor tensor;
};
