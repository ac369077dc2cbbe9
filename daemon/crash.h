// SPDX-License-Identifier: MIT
#pragma once
/*
 * Points at which a test may kill the daemon: before and after each durable action. Only in a build with -DGMS_CRASH_POINTS;
 * nothing otherwise. The file that $GMS_CRASH names holds the name of one point, and goes when that point is reached, so
 * that the next daemon lives.
 */
#ifdef GMS_CRASH_POINTS
void crash_point(const char *name);
#else
static inline void crash_point(const char *name) {
        (void)name;
}
#endif
