// SPDX-License-Identifier: MIT
/*
 * Stages: memory to copy through, and a queue of copies. What page-locking and queueing mean is the kind's matter.
 *
 * The memory is mapped and populated here, in huge pages where the kernel has them, and page-locked as it lies: on an H200's
 * machine that is an eighth of what the driver takes to allocate page-locked memory itself (52 against 400 ms a GiB).
 */
#include "vmm_kinds.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define HUGE_PAGE (UINT64_C(2) << 20)

static int map_memory(struct vmm_stage *s) {
        void *memory = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED)
                return -ENOMEM;
        s->memory = memory;
        (void)madvise(memory, s->size, MADV_HUGEPAGE);
        (void)madvise(memory, s->size, MADV_DONTFORK); /* a child that writes must not take the pages from the device */
        (void)madvise(memory, s->size, MADV_POPULATE_WRITE); /* else they come as they are touched */
        return 0;
}

static struct vmm_stage *stage_discard(struct vmm_stage *s) {
        if (s->memory)
                (void)munmap(s->memory, s->size);
        free(s);
        return NULL;
}

int vmm_stage_open(struct vmm_stage **ret_stage, struct vmm *v, uint64_t size, char *text, size_t text_size) {
        uint64_t unit = size >= HUGE_PAGE ? HUGE_PAGE : (uint64_t)sysconf(_SC_PAGESIZE);
        struct vmm_stage *s = calloc(1, sizeof(*s));
        int r = s && align_up(size, unit, &s->size) && s->size > 0 ? 0 : -ENOMEM;
        if (r == 0) {
                s->vmm = v;
                r = map_memory(s);
        }
        if (r != 0) {
                (void)snprintf(text, text_size, "no memory for a stage of %llu bytes", (unsigned long long)size);
        } else if (v->ops->stage_open) {
                r = v->ops->stage_open(s);
                (void)snprintf(text, text_size, "%s", s->text);
        }
        if (r != 0) {
                if (s)
                        (void)stage_discard(s);
                return r;
        }
        *ret_stage = s;
        return 0;
}

struct vmm_stage *vmm_stage_free(struct vmm_stage *s) {
        if (s && s->vmm->ops->stage_close)
                s->vmm->ops->stage_close(s);
        return s ? stage_discard(s) : NULL;
}

void *vmm_stage_memory(const struct vmm_stage *s) {
        return s->memory;
}

const char *vmm_stage_text(const struct vmm_stage *s) {
        return s->text;
}

static int copy(struct vmm_stage *s, uint64_t address, void *memory, uint64_t size, bool in) {
        assert(memory >= s->memory && size <= s->size && (char *)memory + size <= (char *)s->memory + s->size);
        return size == 0 ? 0 : s->vmm->ops->stage_copy(s, address, memory, size, in);
}

int vmm_stage_copy_in(struct vmm_stage *s, uint64_t address, const void *from, uint64_t size) {
        return copy(s, address, (void *)(uintptr_t)from, size, true);
}

int vmm_stage_copy_out(struct vmm_stage *s, uint64_t address, void *to, uint64_t size) {
        return copy(s, address, to, size, false);
}

int vmm_stage_wait(struct vmm_stage *s) {
        return s->vmm->ops->stage_wait ? s->vmm->ops->stage_wait(s) : 0;
}
