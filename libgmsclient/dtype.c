// SPDX-License-Identifier: MIT
#include "dtype.h"

#include <string.h>

#include "dlpack.h"
#include "gmsclient.h"

static const struct dtype dtypes[] = {
        [GMS_DTYPE_BOOL] = { "BOOL", 8, DLPACK_BOOL },
        [GMS_DTYPE_U8] = { "U8", 8, DLPACK_UINT },
        [GMS_DTYPE_I8] = { "I8", 8, DLPACK_INT },
        [GMS_DTYPE_U16] = { "U16", 16, DLPACK_UINT },
        [GMS_DTYPE_I16] = { "I16", 16, DLPACK_INT },
        [GMS_DTYPE_U32] = { "U32", 32, DLPACK_UINT },
        [GMS_DTYPE_I32] = { "I32", 32, DLPACK_INT },
        [GMS_DTYPE_U64] = { "U64", 64, DLPACK_UINT },
        [GMS_DTYPE_I64] = { "I64", 64, DLPACK_INT },
        [GMS_DTYPE_F16] = { "F16", 16, DLPACK_FLOAT },
        [GMS_DTYPE_BF16] = { "BF16", 16, DLPACK_BFLOAT },
        [GMS_DTYPE_F32] = { "F32", 32, DLPACK_FLOAT },
        [GMS_DTYPE_F64] = { "F64", 64, DLPACK_FLOAT },
        [GMS_DTYPE_C64] = { "C64", 64, DLPACK_COMPLEX },
        [GMS_DTYPE_F8_E4M3] = { "F8_E4M3", 8, DLPACK_F8_E4M3FN },
        [GMS_DTYPE_F8_E5M2] = { "F8_E5M2", 8, DLPACK_F8_E5M2 },
        [GMS_DTYPE_F8_E8M0] = { "F8_E8M0", 8, DLPACK_F8_E8M0FNU },
        [GMS_DTYPE_F8_E4M3FNUZ] = { "F8_E4M3FNUZ", 8, DLPACK_F8_E4M3FNUZ },
        [GMS_DTYPE_F8_E5M2FNUZ] = { "F8_E5M2FNUZ", 8, DLPACK_F8_E5M2FNUZ },
        [GMS_DTYPE_F4] = { "F4", 4, DLPACK_F4_E2M1FN },
        [GMS_DTYPE_F6_E2M3] = { "F6_E2M3", 6, DLPACK_F6_E2M3FN },
        [GMS_DTYPE_F6_E3M2] = { "F6_E3M2", 6, DLPACK_F6_E3M2FN },
};

const struct dtype *dtype_get(uint32_t dtype) {
        return dtype < ARRAY_SIZE(dtypes) && dtypes[dtype].name ? &dtypes[dtype] : NULL;
}

const char *gms_dtype_name(uint32_t dtype) {
        const struct dtype *d = dtype_get(dtype);
        return d ? d->name : NULL;
}

uint32_t gms_dtype_find(const char *name) {
        for (uint32_t i = 0; name && i < ARRAY_SIZE(dtypes); i++)
                if (dtypes[i].name && strcmp(dtypes[i].name, name) == 0)
                        return i;
        return 0;
}

uint32_t gms_dtype_bits(uint32_t dtype) {
        const struct dtype *d = dtype_get(dtype);
        return d ? d->bits : 0;
}
