// SPDX-License-Identifier: MIT
#pragma once
/*
 * The fake's devices, as the environment describes them, and its knobs as the fake itself turns them. What libcuda.so.1
 * and libnvidia-ml.so.1 have in common, save the memory (fake_memory.h).
 */
#include "fakecuda.h"

#define FAKE_DEVICES_MAX 16
#define FAKE_GRANULARITY (UINT64_C(2) << 20)

/* $FAKECUDA_DIR, or /dev/shm/fakecuda-UID; made when it is not there. */
const char *fake_dir(void);
/* $FAKECUDA_DEVICES and $FAKECUDA_MEMORY. */
unsigned fake_count(void);
uint64_t fake_capacity(void);
void fake_uuid(unsigned index, CUuuid *ret_uuid);
/* The device with this text as its UUID, or as the beginning of it; -1 if there is none. */
int fake_by_uuid(const char *text, size_t len);

/*
 * In every function: counts the call and does what the knob says. Returns the result to fail with, 0 to go on. May not
 * return.
 */
int fake_enter(enum fakecuda_function f);
