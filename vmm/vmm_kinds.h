// SPDX-License-Identifier: MIT
#pragma once
/*
 * What vmm.c and the kinds of memory share. For vmm/ only: everybody else sees vmm.h.
 *
 * A new kind brings a struct that begins with struct vmm, a table of operations, an opening function here, and its name
 * in vmm_open(). Arguments have been checked by vmm.c when an operation is called.
 */
#include "vmm.h"

struct vmm_stage {
        struct vmm *vmm;
        void *memory;
        uint64_t size;
        void *queue; /* the kind's */
        char text[200];
};

/* Writes the text of a failure and returns `code`, so that both fit into one return statement. */
_printf_(3, 4) int vmm_fail(struct vmm *v, int code, const char *format, ...);

/* "what: strerror(error)"; returns -error. */
int vmm_fail_errno(struct vmm *v, int error, const char *what);

/* `huge`: see vmm_open. -ENOMEM. */
int vmm_host_open(struct vmm **ret_vmm, bool huge);

/* `name`: "0", or "GPU-<uuid>". As vmm_open. */
int vmm_cuda_open(struct vmm **ret_vmm, const char *name, char *text, size_t text_size);
int vmm_cuda_probe(struct vmm_device *devices, size_t room, size_t *ret_n, char *text, size_t text_size);
