// SPDX-License-Identifier: MIT
/*
 * PyTorch's allocator pair. It names a device and a stream, and neither session nor pool: which pool serves a GPU is said
 * beside it. A piece is found again by its address, in whichever pool it is, used or not any more. Each keeps its pool, and so
 * the handle's mappings, until it is freed: PyTorch's tensors live as long as they like.
 */
#include "torch.h"

#include <stdio.h>

#include "error.h"
#include "handle.h"

#define ALIGNMENT 512u /* what PyTorch itself rounds to */

static struct {
        pthread_mutex_t mutex; /* held for looking up alone */
        pid_t pid;             /* 0: nobody's yet. A forked child leaves the mutex alone: it may have been taken then */
        struct list pools;     /* that are used, or were, and that are not gone */
} torch = { .mutex = PTHREAD_MUTEX_INITIALIZER, .pools = LIST_INIT(torch.pools) };

static bool torch_here(void) {
        pid_t pid = __atomic_load_n(&torch.pid, __ATOMIC_RELAXED);
        return pid == 0 || pid == getpid();
}

/* With the mutex. */
static struct gms_pool *find_used(int ordinal) {
        list_for(p, &torch.pools, struct gms_pool, torch_link)
                if (p->torch_used && p->torch_ordinal == ordinal)
                        return p;
        return NULL;
}

int gms_torch_use(struct gms_pool *p) {
        int ordinal, r = pool_check(p);
        if (r < 0)
                return r;
        if (!torch_here())
                return error_set(-ECHILD, "PyTorch's allocator was in use before fork(), and is not usable in the child");
        if (sscanf(p->vmm->device.name, "cuda:%d", &ordinal) != 1)
                return error_set(-ENODEV, "PyTorch's allocator: the pool is on %s, and only a GPU's can be used",
                                 p->vmm->device.name);

        (void)pthread_mutex_lock(&torch.mutex);
        __atomic_store_n(&torch.pid, getpid(), __ATOMIC_RELAXED);
        struct gms_pool *other = find_used(ordinal);
        if (other && other != p)
                r = error_set(-EBUSY, "PyTorch's allocator: another pool is in use for cuda:%d; gms_torch_clear() it first",
                              ordinal);
        else {
                p->torch_ordinal = ordinal;
                p->torch_used = true;
                list_unlink(&p->torch_link);
                list_append(&torch.pools, &p->torch_link);
        }
        (void)pthread_mutex_unlock(&torch.mutex);
        return r;
}

int gms_torch_clear(struct gms_pool *p) {
        int r = pool_check(p);
        if (r < 0)
                return r;
        (void)pthread_mutex_lock(&torch.mutex);
        if (!p->torch_used)
                r = error_set(-ENOENT, "PyTorch's allocator: this pool is not in use");
        p->torch_used = false;
        (void)pthread_mutex_unlock(&torch.mutex);
        return r;
}

void torch_close(struct gms_pool *p) {
        (void)pthread_mutex_lock(&torch.mutex);
        p->torch_used = false;
        (void)pthread_mutex_unlock(&torch.mutex);
}

void torch_forget(struct gms_pool *p) {
        (void)pthread_mutex_lock(&torch.mutex);
        list_unlink(&p->torch_link);
        (void)pthread_mutex_unlock(&torch.mutex);
}

void *gms_torch_alloc(ptrdiff_t bytes, int device, void *stream) {
        (void)stream; /* a piece is nobody's when it is handed out: no stream has work on it */
        if (!torch_here()) {
                (void)error_set(-ECHILD, "PyTorch's allocator was in use before fork(), and is not usable in the child");
                return NULL;
        }
        (void)pthread_mutex_lock(&torch.mutex);
        struct gms_pool *p = find_used(device);
        if (p)
                (void)pool_ref(p);
        (void)pthread_mutex_unlock(&torch.mutex);
        if (!p) {
                (void)error_set(-ENOENT, "PyTorch's allocator: no pool is in use for cuda:%d; gms_torch_use() says which",
                                device);
                return NULL;
        }

        struct gms_piece piece = GMS_INIT(struct gms_piece);
        pool_look(p);
        if (gms_pool_allocate(p, bytes > 0 ? (uint64_t)bytes : 0, ALIGNMENT, &piece) < 0) {
                (void)pool_unref(p);
                return NULL;
        }
        return (void *)(uintptr_t)piece.address; /* which has the reference */
}

static struct gms_pool *owner_ref(uint64_t address) {
        struct gms_pool *owner = NULL;
        (void)pthread_mutex_lock(&torch.mutex);
        list_for(p, &torch.pools, struct gms_pool, torch_link)
                if (pool_has(p, address)) {
                        owner = pool_ref(p);
                        break;
                }
        (void)pthread_mutex_unlock(&torch.mutex);
        return owner;
}

void gms_torch_free(void *address, ptrdiff_t bytes, int device, void *stream) {
        (void)bytes, (void)device; /* addresses are the process's: one says enough */
        struct gms_pool *p = torch_here() ? owner_ref((uintptr_t)address) : NULL;
        if (!p)
                return;
        pool_free_behind(p, (uintptr_t)address, stream);
        (void)pool_unref(p);
        (void)pool_unref(p); /* the piece's */
}
