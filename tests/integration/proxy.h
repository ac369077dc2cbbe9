// SPDX-License-Identifier: MIT
#pragma once
/*
 * A process between clients and the daemon: it passes frames and descriptors on, counts them, and can cut the line at a
 * chosen place.
 */
#include "harness.h"

struct proxy_line {
        _Atomic uint32_t requests, replies, descriptors; /* passed on so far; events are no replies */
        _Atomic uint32_t cut_after; /* this many more replies the line is cut; 0: never */
};

struct proxy {
        struct child child;
        const char *path; /* clients connect here */
        struct proxy_line *line;
};

void proxy_start(struct proxy *p);
void proxy_stop(struct proxy *p);
