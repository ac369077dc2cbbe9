// SPDX-License-Identifier: MIT
#pragma once
/* The pools that PyTorch's allocator pair knows. */
#include "pool.h"

/* It goes: the pair does not know it any more. */
void torch_forget(struct gms_pool *p);
