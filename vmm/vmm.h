// SPDX-License-Identifier: MIT
#pragma once
/*
 * What one kind of memory can do: make physical memory that is a descriptor, and map such a descriptor.
 *
 * A worker creates; a client process reserves, imports, maps, protects. Both open a struct vmm for one device. Nothing
 * here knows of stores, locks or sockets. One file a kind: vmm_host.c (memfd), vmm_cuda.c (the CUDA driver).
 *
 * Sizes and addresses are bytes and multiples of device.granularity, unless said otherwise. Not thread-safe: the owner
 * of a struct vmm serialises its calls, but for stages and fences. On failure vmm->text says what the driver said.
 */
#include "base.h"

enum vmm_access { VMM_ACCESS_NONE, VMM_ACCESS_READ, VMM_ACCESS_READ_WRITE };

enum {
        _VMM_E_SUCCESS,
        VMM_E_NO_DRIVER, /* libcuda.so.1 is not there, or has no device */
        VMM_E_NO_DEVICE, /* the driver shows no such device */
        VMM_E_NO_MEMORY, /* the device has no room */
        VMM_E_TAKEN,     /* the address asked for is in use */
        VMM_E_REFUSED,   /* the driver refused; vmm->text has its words */
};

struct vmm_device {
        char name[32];  /* cuda:0 (ordinal as this process sees it), host */
        char uuid[48];  /* GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx; host */
        char model[96]; /* what the driver calls it */
        uint64_t total; /* bytes; 0 when unknown */
        uint64_t granularity;
};

struct vmm {
        const struct vmm_ops *ops;
        struct vmm_device device;
        char text[200];
};

/* An imported allocation, meaningful to its vmm only. */
typedef uint64_t vmm_handle;

struct vmm_stage;

struct vmm_ops {
        struct vmm *(*free)(struct vmm *v);
        int (*create)(struct vmm *v, uint64_t size, int *ret_fd);
        int (*room)(struct vmm *v, uint64_t *ret_total, uint64_t *ret_free);
        int (*reserve)(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address);
        void (*unreserve)(struct vmm *v, uint64_t address, uint64_t size);
        int (*import)(struct vmm *v, int fd, uint64_t size, vmm_handle *ret_handle);
        void (*release)(struct vmm *v, vmm_handle handle, uint64_t size);
        int (*map)(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size);
        int (*attach)(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access,
                      uint64_t *ret_address);
        void (*vacate)(struct vmm *v, uint64_t address, uint64_t size); /* NULL: nothing is gained by it */
        int (*attach_vacant)(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access);
        int (*protect)(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access);
        int (*unmap)(struct vmm *v, uint64_t address, uint64_t size);
        int (*copy_in)(struct vmm *v, uint64_t address, const void *from, uint64_t size);
        int (*copy_out)(struct vmm *v, uint64_t address, void *to, uint64_t size);
        int (*stage_open)(struct vmm_stage *s); /* NULL: ordinary memory will do */
        void (*stage_close)(struct vmm_stage *s);
        int (*stage_copy)(struct vmm_stage *s, uint64_t address, void *memory, uint64_t size, bool in);
        int (*stage_wait)(struct vmm_stage *s);
        int (*fence_record)(struct vmm *v, void *stream, uint64_t *ret_fence); /* NULL: nothing is ever under way */
        bool (*fence_passed)(struct vmm *v, uint64_t fence);
        void (*fence_free)(struct vmm *v, uint64_t fence);
};

/*
 * The CUDA devices this process sees, in the driver's order. Fills at most `room` and returns their number in *ret_n.
 * `text` gets a sentence on failure. 0, VMM_E_NO_DRIVER, VMM_E_REFUSED.
 */
int vmm_probe(struct vmm_device *devices, size_t room, size_t *ret_n, char *text, size_t text_size);

/*
 * Opens a device: "cuda:N" (ordinal), "cuda:GPU-<uuid>", "GPU-<uuid>", "host", or "host,huge" (2 MiB pages: the
 * granularity is 2 MiB, and memory comes from the kernel's pool of huge pages while that has any, from ordinary pages
 * after). `text` gets a sentence on failure. 0, VMM_E_NO_DRIVER, VMM_E_NO_DEVICE, VMM_E_REFUSED, -EINVAL (not a
 * device name), -ENOMEM.
 */
int vmm_open(struct vmm **ret_vmm, const char *device, char *text, size_t text_size);
struct vmm *vmm_free(struct vmm *v);

/*
 * Physical memory as a descriptor: the descriptor alone keeps it; closing the last one frees it. Zeroed, committed (no
 * later fault for want of memory), cannot shrink. Asks the device for its free room first where it can, since a create
 * that fails costs the driver 360 ms on an H200 (driver facts, 2026-11-21).
 * 0, VMM_E_NO_MEMORY, VMM_E_REFUSED, -EINVAL (size is 0 or not aligned), -EMFILE, other negative errno.
 */
int vmm_create(struct vmm *v, uint64_t size, int *ret_fd);

/* Total and free bytes of the device now. 0, or VMM_E_REFUSED when this process cannot tell. */
int vmm_room(struct vmm *v, uint64_t *ret_total, uint64_t *ret_free);

/*
 * Reserves addresses. `address` 0: anywhere; else exactly there, or VMM_E_TAKEN and nothing is reserved. What another
 * part of the process gave back may stay taken: the CUDA driver keeps what is left of every 32 MiB until all of them are
 * free (H200, 580.159.04).
 * 0, VMM_E_TAKEN, VMM_E_REFUSED, -EINVAL, -ENOMEM.
 */
int vmm_reserve(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address);
/* Gives a whole reservation back; nothing in it is mapped any more. */
void vmm_unreserve(struct vmm *v, uint64_t address, uint64_t size);

/*
 * Makes the allocation behind `fd` known to this process. The caller keeps `fd` and may close it at once: the handle
 * holds the memory until released, and no descriptor. 0, VMM_E_REFUSED (not such a descriptor, or smaller than size;
 * the CUDA driver finds the latter out at vmm_map), negative errno.
 */
int vmm_import(struct vmm *v, int fd, uint64_t size, vmm_handle *ret_handle);
/* Releases a handle, mapped or not: a mapping keeps the memory by itself. */
void vmm_release(struct vmm *v, vmm_handle handle, uint64_t size);

/* Maps a whole handle inside a reservation, once, with no access yet. 0, VMM_E_REFUSED, negative errno. */
int vmm_map(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size);
/*
 * Import, map, protect and release in one, with nothing to undo when it fails: the cheapest way where no older mapping
 * is in the way. `address` 0: anywhere, and the addresses are reserved with it, to be given back by vmm_unreserve of
 * just this range once it is unmapped. Else inside a reservation of this process where nothing is mapped. On the host an
 * attach costs 1.2 times a bare mmap anywhere, 1.5 times inside a larger reservation; import, map, protect and release
 * cost 3 to 4 times. On CUDA both cost what the driver's calls cost. 0, VMM_E_REFUSED (as import and map), -EINVAL, -ENOMEM, other negative errno.
 */
int vmm_attach(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access, uint64_t *ret_address);
/*
 * For many fresh attaches: vmm_vacate() gives a reservation up where mapping over one is dear (host: 1.1 µs of 3.0, as the
 * kernel splits it), and vmm_attach_vacant() maps in its place, or answers VMM_E_TAKEN where somebody else was quicker. What
 * is mapped then counts as reserved, piece by piece; what is not does not. vmm_vacate() does nothing and returns false where that gains nothing.
 */
bool vmm_vacate(struct vmm *v, uint64_t address, uint64_t size);
int vmm_attach_vacant(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access);
/*
 * Sets the access of one mapping, or of a range of whole neighbouring ones. There is no gap in the range: the CUDA driver
 * would stop there and say nothing. 0, VMM_E_REFUSED, negative errno.
 */
int vmm_protect(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access);
/* Unmaps one mapping, or all in a reserved range that cuts none; the addresses stay reserved. 0, VMM_E_REFUSED. */
int vmm_unmap(struct vmm *v, uint64_t address, uint64_t size);

/*
 * Copies between ordinary memory of this process and mapped memory; any sizes and offsets. Returns when the bytes are
 * there. CUDA: uses the device's primary context, which costs 120 ms and 520 MiB of the GPU the first time unless the
 * process has it already. 0, VMM_E_REFUSED, negative errno.
 */
int vmm_copy_in(struct vmm *v, uint64_t address, const void *from, uint64_t size);
int vmm_copy_out(struct vmm *v, uint64_t address, void *to, uint64_t size);

/*
 * A stage: memory of this process from which and to which copies run in the background, at the full speed of the link (CUDA:
 * page-locked, with a stream of its own, in the primary context). What is queued on one stage is done in order. Different
 * stages of one vmm may be used by different threads at once, and beside its other calls; one stage by one thread at a
 * time. `size` is rounded up to pages. 0, VMM_E_REFUSED, negative errno, with a sentence in `text`.
 */
int vmm_stage_open(struct vmm_stage **ret_stage, struct vmm *v, uint64_t size, char *text, size_t text_size);
/* Waits for what is queued. */
struct vmm_stage *vmm_stage_free(struct vmm_stage *s);
void *vmm_stage_memory(const struct vmm_stage *s);
/* Queues a copy between mapped memory and a part of the stage's. 0, VMM_E_REFUSED. */
int vmm_stage_copy_in(struct vmm_stage *s, uint64_t address, const void *from, uint64_t size);
int vmm_stage_copy_out(struct vmm_stage *s, uint64_t address, void *to, uint64_t size);
/* Until all that was queued is done. 0, VMM_E_REFUSED: something of it failed. */
int vmm_stage_wait(struct vmm_stage *s);
/* What the last failure was. */
const char *vmm_stage_text(const struct vmm_stage *s);

/*
 * A fence: whether the work that a stream of this process had when it was recorded is done. Never waits. From any thread.
 * Host memory has no work under way: every fence is 0 and has passed. Recording: 0, VMM_E_REFUSED (a stream that is being
 * captured, say).
 */
int vmm_fence_record(struct vmm *v, void *stream, uint64_t *ret_fence);
bool vmm_fence_passed(struct vmm *v, uint64_t fence);
void vmm_fence_free(struct vmm *v, uint64_t fence);

static inline void vmm_stage_freep(struct vmm_stage **s) {
        *s = vmm_stage_free(*s);
}

static inline void vmm_freep(struct vmm **v) {
        *v = vmm_free(*v);
}
