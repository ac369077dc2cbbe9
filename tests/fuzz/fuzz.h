// SPDX-License-Identifier: MIT
#pragma once
/* What libFuzzer, or replay.c without it, calls. */
#include "base.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
