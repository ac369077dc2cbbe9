// SPDX-License-Identifier: MIT
#include "memory.h"

#include <inttypes.h>
#include <stdio.h>

#include "bench.h"

#define UNIT (UINT64_C(64) << 10) /* a multiple of any page */

static uint64_t available(void) {
        unsigned long long kib = 0;
        char line[128];
        FILE *f = fopen("/proc/meminfo", "re");
        while (f && kib == 0 && fgets(line, sizeof(line), f))
                (void)sscanf(line, "MemAvailable: %llu kB", &kib);
        if (f)
                (void)fclose(f);
        if (kib == 0)
                bench_die("/proc/meminfo has no MemAvailable");
        return kib * 1024;
}

struct memory memory_plan(void) {
        struct memory m = { .size = MIN(MEMORY_SIZE, available() / 2 / MEMORY_N / UNIT * UNIT) };
        if (m.size == 0)
                bench_die("too little memory is available");
        if (m.size == MEMORY_SIZE)
                (void)snprintf(m.text, sizeof(m.text), "2 MiB");
        else
                (void)snprintf(m.text, sizeof(m.text), "%" PRIu64 " KiB (for want of memory)", m.size >> 10);
        return m;
}
