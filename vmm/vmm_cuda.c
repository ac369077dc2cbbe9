// SPDX-License-Identifier: MIT
#include "vmm_kinds.h"

#include <stdio.h>

int vmm_cuda_open(struct vmm **ret_vmm, const char *name, char *text, size_t text_size) {
        (void)ret_vmm;
        (void)snprintf(text, text_size, "cuda:%s: this build has no CUDA", name);
        return VMM_E_NO_DRIVER;
}

int vmm_cuda_probe(struct vmm_device *devices, size_t room, size_t *ret_n, char *text, size_t text_size) {
        (void)devices;
        (void)room;
        (void)ret_n;
        (void)snprintf(text, text_size, "this build has no CUDA");
        return VMM_E_NO_DRIVER;
}
