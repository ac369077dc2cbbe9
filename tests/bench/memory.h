// SPDX-License-Identifier: MIT
#pragma once
/* How much is allocated: 2,048 times 2 MiB, or as much of that as the machine has to spare. */
#include "base.h"

#define MEMORY_N 2048
#define MEMORY_SIZE (UINT64_C(2) << 20)

struct memory {
        uint64_t size;  /* of each of the 2,048 */
        char text[48];  /* "2 MiB", "640 KiB" */
};

/* Looks at MemAvailable: memory of host stores is committed. Half of it is left to others. */
struct memory memory_plan(void);
