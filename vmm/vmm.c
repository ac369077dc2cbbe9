// SPDX-License-Identifier: MIT
#include "vmm_kinds.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int vmm_fail(struct vmm *v, int code, const char *format, ...) {
        va_list args;
        va_start(args, format);
        (void)vsnprintf(v->text, sizeof(v->text), format, args);
        va_end(args);
        return code;
}

int vmm_fail_errno(struct vmm *v, int error, const char *what) {
        return vmm_fail(v, -error, "%s: %s", what, strerror(error));
}

int vmm_probe(struct vmm_device *devices, size_t room, size_t *ret_n, char *text, size_t text_size) {
        return vmm_cuda_probe(devices, room, ret_n, text, text_size);
}

int vmm_open(struct vmm **ret_vmm, const char *device, char *text, size_t text_size) {
        if (strcmp(device, "host") == 0)
                return vmm_host_open(ret_vmm, false);
        if (strcmp(device, "host,huge") == 0)
                return vmm_host_open(ret_vmm, true);

        const char *name = strncmp(device, "cuda:", 5) == 0 ? device + 5 : device;
        bool ordinal = name != device && name[0] != '\0' && strspn(name, "0123456789") == strlen(name);
        if (ordinal || strncmp(name, "GPU-", 4) == 0)
                return vmm_cuda_open(ret_vmm, name, text, text_size);

        (void)snprintf(text, text_size, "'%.60s' is no device: cuda:N, cuda:GPU-<uuid>, host and host,huge are", device);
        return -EINVAL;
}

struct vmm *vmm_free(struct vmm *v) {
        return v ? v->ops->free(v) : NULL;
}

/* A range that an operation may touch: not empty, aligned, without wrapping around. */
static int check_range(struct vmm *v, uint64_t address, uint64_t size) {
        uint64_t unit = v->device.granularity, end;
        if (size == 0 || size % unit != 0 || address % unit != 0 || __builtin_add_overflow(address, size, &end))
                return vmm_fail(v, -EINVAL, "%llu bytes at 0x%llx: not a range of whole units of %llu",
                                (unsigned long long)size, (unsigned long long)address, (unsigned long long)unit);
        return 0;
}

static int check_import(struct vmm *v, int fd, uint64_t address, uint64_t size) {
        return fd < 0 ? vmm_fail_errno(v, EBADF, "import") : check_range(v, address, size);
}

int vmm_create(struct vmm *v, uint64_t size, int *ret_fd) {
        int r = check_range(v, 0, size);
        return r != 0 ? r : v->ops->create(v, size, ret_fd);
}

int vmm_room(struct vmm *v, uint64_t *ret_total, uint64_t *ret_free) {
        return v->ops->room(v, ret_total, ret_free);
}

int vmm_reserve(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address) {
        int r = check_range(v, address, size);
        return r != 0 ? r : v->ops->reserve(v, address, size, ret_address);
}

void vmm_unreserve(struct vmm *v, uint64_t address, uint64_t size) {
        v->ops->unreserve(v, address, size);
}

int vmm_import(struct vmm *v, int fd, uint64_t size, vmm_handle *ret_handle) {
        int r = check_import(v, fd, 0, size);
        return r != 0 ? r : v->ops->import(v, fd, size, ret_handle);
}

void vmm_release(struct vmm *v, vmm_handle handle, uint64_t size) {
        v->ops->release(v, handle, size);
}

int vmm_map(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size) {
        int r = check_range(v, address, size);
        return r != 0 ? r : v->ops->map(v, handle, address, size);
}

int vmm_attach(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access, uint64_t *ret_address) {
        int r = check_import(v, fd, address, size);
        return r != 0 ? r : v->ops->attach(v, fd, address, size, access, ret_address);
}

bool vmm_vacate(struct vmm *v, uint64_t address, uint64_t size) {
        if (v->ops->vacate)
                v->ops->vacate(v, address, size);
        return v->ops->vacate != NULL;
}

int vmm_attach_vacant(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access) {
        int r = check_import(v, fd, address, size);
        if (r != 0)
                return r;
        return v->ops->attach_vacant(v, fd, address, size, access);
}

int vmm_protect(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access) {
        int r = check_range(v, address, size);
        return r != 0 ? r : v->ops->protect(v, address, size, access);
}

int vmm_unmap(struct vmm *v, uint64_t address, uint64_t size) {
        int r = check_range(v, address, size);
        return r != 0 ? r : v->ops->unmap(v, address, size);
}

int vmm_copy_in(struct vmm *v, uint64_t address, const void *from, uint64_t size) {
        return size == 0 ? 0 : v->ops->copy_in(v, address, from, size);
}

int vmm_copy_out(struct vmm *v, uint64_t address, void *to, uint64_t size) {
        return size == 0 ? 0 : v->ops->copy_out(v, address, to, size);
}

int vmm_fence_record(struct vmm *v, void *stream, uint64_t *ret_fence) {
        *ret_fence = 0;
        return v->ops->fence_record ? v->ops->fence_record(v, stream, ret_fence) : 0;
}

bool vmm_fence_passed(struct vmm *v, uint64_t fence) {
        return fence == 0 || v->ops->fence_passed(v, fence);
}

void vmm_fence_free(struct vmm *v, uint64_t fence) {
        if (fence != 0)
                v->ops->fence_free(v, fence);
}
