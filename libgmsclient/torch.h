// SPDX-License-Identifier: MIT
#pragma once
/* The pools that PyTorch's allocator pair knows. */
#include "pool.h"

/* Its owner has closed it: no more comes from it. */
void torch_close(struct gms_pool *p);

/* It goes: the pair does not know it any more. */
void torch_forget(struct gms_pool *p);
