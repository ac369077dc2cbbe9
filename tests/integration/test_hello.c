// SPDX-License-Identifier: MIT
#include "raw.h"

TEST(hello, works)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
}
