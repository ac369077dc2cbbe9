// SPDX-License-Identifier: MIT
#pragma once
/*
 * Points at which a test may kill the daemon: before and after each durable action. Only in a build with -DGMS_CRASH_POINTS;
 * nothing otherwise. The file that $GMS_CRASH names holds a number: N > 0 kills at the Nth point that is reached from then
 * on, and the file goes, so that the next daemon lives; 0 appends the name of each point that is reached to the file.
 */
#ifdef GMS_CRASH_POINTS
void crash_point(const char *name);
#else
static inline void crash_point(const char *name) {
        (void)name;
}
#endif
