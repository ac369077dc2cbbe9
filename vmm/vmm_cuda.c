// SPDX-License-Identifier: MIT
/*
 * Device memory, through the CUDA driver's virtual memory management. Works after cuInit alone: no context is made,
 * save for a copy.
 *
 * The exported descriptor is the allocation: the handle it came from is released at once, and a handle that was imported
 * could not be exported again (the driver refuses). Handles are mapped whole, at offset 0; ranges are unmapped and
 * protected by whole mappings (the driver refuses the rest).
 */
#include "cuda_driver.h"
#include "vmm_kinds.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define ROOM_VALID_MS 10
#define RESERVE_TRIES 32

struct vmm_cuda {
        struct vmm vmm;
        const struct cuda_driver *driver;
        CUdevice device;
        CUmemAllocationProp prop;
        CUcontext context; /* the primary one, retained by what first needs it, in whatever thread */

        const struct nvml *nvml; /* NULL: nobody tells the free memory */
        struct nvml_device *nvml_device;
        uint64_t room; /* what NVML said at room_asked, less what was created since */
        uint64_t room_asked;
};

static struct vmm_cuda *to_cuda(struct vmm *v) {
        return container_of(v, struct vmm_cuda, vmm);
}

/* A CUDA_SUCCESS is 0: most operations are one call and end in this. */
static int result(struct vmm_cuda *c, const char *call, CUresult r) {
        return r == CUDA_SUCCESS ? 0
                                 : vmm_fail(&c->vmm, VMM_E_REFUSED, "%s: %s", call, cuda_driver_error(c->driver, r));
}

static struct vmm *cuda_free(struct vmm *v) {
        struct vmm_cuda *c = to_cuda(v);
        if (c->context)
                (void)c->driver->cuDevicePrimaryCtxRelease_v2(c->device);
        free(c);
        return NULL;
}

/* ---- making memory */

static int cuda_room(struct vmm *v, uint64_t *ret_total, uint64_t *ret_free) {
        struct vmm_cuda *c = to_cuda(v);
        struct nvml_memory memory;
        if (!c->nvml || c->nvml->nvmlDeviceGetMemoryInfo(c->nvml_device, &memory) != 0)
                return vmm_fail(v, VMM_E_REFUSED, "NVML does not tell the free memory of %s", v->device.uuid);
        *ret_total = memory.total;
        *ret_free = memory.free;
        return 0;
}

static uint64_t now_ms(void) {
        struct timespec now;
        (void)clock_gettime(CLOCK_MONOTONIC, &now);
        return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/*
 * A create that fails takes the driver 360 ms, so NVML is asked before; in a batch not for every one. Others may take the
 * memory in between: then the driver says no after all. Where nobody can tell, it is tried.
 */
static int check_room(struct vmm_cuda *c, uint64_t size) {
        uint64_t now = now_ms(), total;
        if (c->room < size || now - c->room_asked >= ROOM_VALID_MS) {
                if (cuda_room(&c->vmm, &total, &c->room) != 0)
                        return 0;
                c->room_asked = now;
        }
        if (c->room < size)
                return vmm_fail(&c->vmm, VMM_E_NO_MEMORY, "%llu MiB asked, %llu MiB free on %s",
                                (unsigned long long)size >> 20, (unsigned long long)c->room >> 20, c->vmm.device.name);
        c->room -= size;
        return 0;
}

static bool descriptors_exhausted(void) {
        _cleanup_close_ int fd = open("/", O_PATH | O_CLOEXEC);
        return fd < 0 && errno == EMFILE;
}

static int cuda_create(struct vmm *v, uint64_t size, int *ret_fd) {
        struct vmm_cuda *c = to_cuda(v);
        int r = check_room(c, size);
        if (r != 0)
                return r;

        CUmemGenericAllocationHandle handle;
        CUresult cr = c->driver->cuMemCreate(&handle, size, &c->prop, 0);
        r = result(c, "cuMemCreate", cr);
        if (r != 0) {
                c->room = 0; /* whatever was believed */
                return cr == CUDA_ERROR_OUT_OF_MEMORY ? VMM_E_NO_MEMORY : descriptors_exhausted() ? -EMFILE : r;
        }

        int fd = -1;
        r = result(c, "cuMemExportToShareableHandle",
                   c->driver->cuMemExportToShareableHandle(&fd, handle, CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0));
        (void)c->driver->cuMemRelease(handle);
        if (r != 0)
                return descriptors_exhausted() ? -EMFILE : r;
        (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
        *ret_fd = fd;
        return 0;
}

/* ---- addresses */

/*
 * To the driver an address is a hint, and it prefers room that it has left over from other reservations, which it makes in
 * steps of 32 MiB. So what comes instead is held while we ask again, until nothing is left over that is large enough.
 */
static int cuda_reserve(struct vmm *v, uint64_t address, uint64_t size, uint64_t *ret_address) {
        struct vmm_cuda *c = to_cuda(v);
        CUdeviceptr instead[RESERVE_TRIES], ptr;
        size_t n = 0;
        int r;
        for (;;) {
                r = result(c, "cuMemAddressReserve", c->driver->cuMemAddressReserve(&ptr, size, 0, address, 0));
                if (r != 0 || address == 0 || ptr == address)
                        break;
                instead[n++] = ptr;
                if (n == RESERVE_TRIES)
                        break;
        }
        for (size_t i = 0; i < n; i++)
                (void)c->driver->cuMemAddressFree(instead[i], size);
        if (n > 0 && (r != 0 || ptr != address))
                return vmm_fail(v, VMM_E_TAKEN, "0x%llx is in use", (unsigned long long)address);
        if (r == 0)
                *ret_address = ptr;
        return r;
}

static void cuda_unreserve(struct vmm *v, uint64_t address, uint64_t size) {
        (void)to_cuda(v)->driver->cuMemAddressFree(address, size);
}

/* ---- mapping */

static int cuda_import(struct vmm *v, int fd, uint64_t size, vmm_handle *ret_handle) {
        (void)size; /* the driver does not tell the size of a handle; it refuses to map another */
        struct vmm_cuda *c = to_cuda(v);
        CUmemGenericAllocationHandle handle;
        int r = result(c, "cuMemImportFromShareableHandle",
                       c->driver->cuMemImportFromShareableHandle(&handle, (void *)(intptr_t)fd,
                                                                 CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR));
        if (r == 0)
                *ret_handle = handle;
        return r;
}

static void cuda_release(struct vmm *v, vmm_handle handle, uint64_t size) {
        (void)size;
        (void)to_cuda(v)->driver->cuMemRelease(handle);
}

static int cuda_map(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size) {
        struct vmm_cuda *c = to_cuda(v);
        return result(c, "cuMemMap", c->driver->cuMemMap(address, size, 0, handle, 0));
}

static int cuda_protect(struct vmm *v, uint64_t address, uint64_t size, enum vmm_access access) {
        static const CUmemAccess_flags flags[] = {
                [VMM_ACCESS_NONE] = CU_MEM_ACCESS_FLAGS_PROT_NONE,
                [VMM_ACCESS_READ] = CU_MEM_ACCESS_FLAGS_PROT_READ,
                [VMM_ACCESS_READ_WRITE] = CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        assert((size_t)access < ARRAY_SIZE(flags));

        struct vmm_cuda *c = to_cuda(v);
        CUmemAccessDesc desc = { .location = c->prop.location, .flags = flags[access] };
        return result(c, "cuMemSetAccess", c->driver->cuMemSetAccess(address, size, &desc, 1));
}

static int cuda_unmap(struct vmm *v, uint64_t address, uint64_t size) {
        struct vmm_cuda *c = to_cuda(v);
        return result(c, "cuMemUnmap", c->driver->cuMemUnmap(address, size));
}

static int map_protected(struct vmm *v, vmm_handle handle, uint64_t address, uint64_t size, enum vmm_access access) {
        int r = cuda_map(v, handle, address, size);
        if (r != 0 || access == VMM_ACCESS_NONE)
                return r;
        r = cuda_protect(v, address, size, access);
        if (r != 0)
                (void)to_cuda(v)->driver->cuMemUnmap(address, size);
        return r;
}

static int cuda_attach(struct vmm *v, int fd, uint64_t address, uint64_t size, enum vmm_access access,
                       uint64_t *ret_address) {
        vmm_handle handle;
        int r = cuda_import(v, fd, size, &handle);
        if (r != 0)
                return r;

        uint64_t at = address;
        if (address == 0)
                r = cuda_reserve(v, 0, size, &at);
        if (r == 0) {
                r = map_protected(v, handle, at, size, access);
                if (r != 0 && address == 0)
                        cuda_unreserve(v, at, size);
        }
        cuda_release(v, handle, size);
        if (r == 0)
                *ret_address = at;
        return r;
}

/* ---- copying */

/* What failed is named in *ret_call. From any thread. */
static CUresult enter_context(struct vmm_cuda *c, const char **ret_call) {
        CUcontext context = __atomic_load_n(&c->context, __ATOMIC_ACQUIRE);
        if (!context) {
                *ret_call = "cuDevicePrimaryCtxRetain";
                CUresult r = c->driver->cuDevicePrimaryCtxRetain(&context, c->device);
                if (r != CUDA_SUCCESS)
                        return r;
                CUcontext before = NULL; /* another thread may have been here meanwhile: one retain is enough */
                if (!__atomic_compare_exchange_n(&c->context, &before, context, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
                        (void)c->driver->cuDevicePrimaryCtxRelease_v2(c->device);
        }
        *ret_call = "cuCtxPushCurrent";
        return c->driver->cuCtxPushCurrent_v2(context);
}

/* The thread may have a context of its own, and finds it again as it was. */
static void leave_context(struct vmm_cuda *c) {
        CUcontext ours;
        (void)c->driver->cuCtxPopCurrent_v2(&ours);
}

static int cuda_copy_in(struct vmm *v, uint64_t address, const void *from, uint64_t size) {
        struct vmm_cuda *c = to_cuda(v);
        const char *call;
        CUresult r = enter_context(c, &call);
        if (r != CUDA_SUCCESS)
                return result(c, call, r);
        r = c->driver->cuMemcpyHtoD_v2(address, from, size);
        call = "cuMemcpyHtoD";
        if (r == CUDA_SUCCESS) { /* it may return with the last bytes still on their way out of its staging buffer */
                r = c->driver->cuStreamSynchronize(NULL);
                call = "cuStreamSynchronize";
        }
        leave_context(c);
        return result(c, call, r);
}

static int cuda_copy_out(struct vmm *v, uint64_t address, void *to, uint64_t size) {
        struct vmm_cuda *c = to_cuda(v);
        const char *call;
        CUresult r = enter_context(c, &call);
        if (r != CUDA_SUCCESS)
                return result(c, call, r);
        r = c->driver->cuMemcpyDtoH_v2(to, address, size);
        leave_context(c);
        return result(c, "cuMemcpyDtoH", r);
}

/* ---- stages */

static int stage_result(struct vmm_stage *s, const char *call, CUresult r) {
        if (r == CUDA_SUCCESS)
                return 0;
        (void)snprintf(s->text, sizeof(s->text), "%s: %s", call, cuda_driver_error(to_cuda(s->vmm)->driver, r));
        return VMM_E_REFUSED;
}

static int cuda_stage_open(struct vmm_stage *s) {
        struct vmm_cuda *c = to_cuda(s->vmm);
        const char *call;
        CUstream stream = NULL;
        CUresult r = enter_context(c, &call);
        if (r != CUDA_SUCCESS)
                return stage_result(s, call, r);

        r = c->driver->cuMemHostRegister_v2(s->memory, s->size, 0);
        call = "cuMemHostRegister";
        if (r == CUDA_SUCCESS) {
                r = c->driver->cuStreamCreate(&stream, CU_STREAM_NON_BLOCKING);
                call = "cuStreamCreate";
                if (r != CUDA_SUCCESS)
                        (void)c->driver->cuMemHostUnregister(s->memory);
        }
        leave_context(c);
        s->queue = stream;
        return stage_result(s, call, r);
}

static void cuda_stage_close(struct vmm_stage *s) {
        struct vmm_cuda *c = to_cuda(s->vmm);
        const char *call;
        if (enter_context(c, &call) != CUDA_SUCCESS)
                return;
        (void)c->driver->cuStreamSynchronize(s->queue);
        (void)c->driver->cuStreamDestroy_v2(s->queue);
        (void)c->driver->cuMemHostUnregister(s->memory);
        leave_context(c);
}

static int cuda_stage_copy(struct vmm_stage *s, uint64_t address, void *memory, uint64_t size, bool in) {
        struct vmm_cuda *c = to_cuda(s->vmm);
        const char *call;
        CUresult r = enter_context(c, &call);
        if (r != CUDA_SUCCESS)
                return stage_result(s, call, r);
        r = in ? c->driver->cuMemcpyHtoDAsync_v2(address, memory, size, s->queue)
               : c->driver->cuMemcpyDtoHAsync_v2(memory, address, size, s->queue);
        leave_context(c);
        return stage_result(s, in ? "cuMemcpyHtoDAsync" : "cuMemcpyDtoHAsync", r);
}

static int cuda_stage_wait(struct vmm_stage *s) {
        struct vmm_cuda *c = to_cuda(s->vmm);
        const char *call;
        CUresult r = enter_context(c, &call);
        if (r != CUDA_SUCCESS)
                return stage_result(s, call, r);
        r = c->driver->cuStreamSynchronize(s->queue);
        leave_context(c);
        return stage_result(s, "cuStreamSynchronize", r);
}

/* ---- fences */

/*
 * While any thread captures a graph in the mode that PyTorch uses, calls such as cuEventQuery are refused in all of them, and
 * spoil the capture. What is done here has no part in it, and says so for its thread.
 */
static CUstreamCaptureMode capture_apart(struct vmm_cuda *c) {
        CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
        (void)c->driver->cuThreadExchangeStreamCaptureMode(&mode);
        return mode;
}

static void capture_as_before(struct vmm_cuda *c, CUstreamCaptureMode mode) {
        (void)c->driver->cuThreadExchangeStreamCaptureMode(&mode);
}

/* An event that is recorded while its stream is captured becomes a part of the graph, and never tells anything. */
static CUresult record(struct vmm_cuda *c, CUstream stream, CUevent *ret_event) {
        CUstreamCaptureStatus status;
        CUresult r = c->driver->cuStreamIsCapturing(stream, &status);
        if (r == CUDA_SUCCESS && status != CU_STREAM_CAPTURE_STATUS_NONE)
                return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        if (r == CUDA_SUCCESS)
                r = c->driver->cuEventCreate(ret_event, CU_EVENT_DISABLE_TIMING);
        if (r != CUDA_SUCCESS)
                return r;
        r = c->driver->cuEventRecord(*ret_event, stream);
        if (r != CUDA_SUCCESS)
                (void)c->driver->cuEventDestroy_v2(*ret_event);
        return r;
}

static int cuda_fence_record(struct vmm *v, void *stream, uint64_t *ret_fence) {
        struct vmm_cuda *c = to_cuda(v);
        const char *call;
        CUevent event;
        CUstreamCaptureMode mode = capture_apart(c);
        CUresult r = enter_context(c, &call);
        if (r == CUDA_SUCCESS) {
                r = record(c, stream, &event);
                leave_context(c);
        }
        capture_as_before(c, mode);
        if (r != CUDA_SUCCESS)
                return VMM_E_REFUSED;
        *ret_fence = (uintptr_t)event;
        return 0;
}

/* A context that was lost will do no more work, either; what a capture is in the way of is not known. */
static bool cuda_fence_passed(struct vmm *v, uint64_t fence) {
        struct vmm_cuda *c = to_cuda(v);
        CUstreamCaptureMode mode = capture_apart(c);
        CUresult r = c->driver->cuEventQuery((CUevent)(uintptr_t)fence);
        capture_as_before(c, mode);
        return r != CUDA_ERROR_NOT_READY && (r < CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED || r > CUDA_ERROR_CAPTURED_EVENT);
}

static void cuda_fence_free(struct vmm *v, uint64_t fence) {
        (void)to_cuda(v)->driver->cuEventDestroy_v2((CUevent)(uintptr_t)fence);
}

/* ---- opening */

static const struct vmm_ops cuda_ops = {
        .free = cuda_free,
        .create = cuda_create,
        .room = cuda_room,
        .reserve = cuda_reserve,
        .unreserve = cuda_unreserve,
        .import = cuda_import,
        .release = cuda_release,
        .map = cuda_map,
        .attach = cuda_attach,
        .protect = cuda_protect,
        .unmap = cuda_unmap,
        .copy_in = cuda_copy_in,
        .copy_out = cuda_copy_out,
        .stage_open = cuda_stage_open,
        .stage_close = cuda_stage_close,
        .stage_copy = cuda_stage_copy,
        .stage_wait = cuda_stage_wait,
        .fence_record = cuda_fence_record,
        .fence_passed = cuda_fence_passed,
        .fence_free = cuda_fence_free,
};

static void format_uuid(const CUuuid *uuid, char *text, size_t size) {
        const unsigned char *b = (const unsigned char *)uuid->bytes;
        (void)snprintf(text, size, "GPU-%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
                       b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* What every allocation of a device is: pinned, exportable, and open to network cards where the device can do that. */
static CUmemAllocationProp allocation_prop(const struct cuda_driver *d, CUdevice device) {
        int rdma = 0;
        (void)d->cuDeviceGetAttribute(&rdma, CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED, device);
        return (CUmemAllocationProp){
                .type = CU_MEM_ALLOCATION_TYPE_PINNED,
                .requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
                .location = { .type = CU_MEM_LOCATION_TYPE_DEVICE, .id = device },
                .allocFlags.gpuDirectRDMACapable = rdma != 0,
        };
}

static CUresult describe(const struct cuda_driver *d, int ordinal, struct vmm_device *ret_device) {
        CUdevice device;
        CUuuid uuid;
        size_t total, granularity;
        *ret_device = (struct vmm_device){ 0 };
        CUresult r = d->cuDeviceGet(&device, ordinal);
        if (r == CUDA_SUCCESS)
                r = d->cuDeviceGetUuid_v2(&uuid, device);
        if (r == CUDA_SUCCESS)
                r = d->cuDeviceGetName(ret_device->model, sizeof(ret_device->model), device);
        if (r == CUDA_SUCCESS)
                r = d->cuDeviceTotalMem_v2(&total, device);
        if (r != CUDA_SUCCESS)
                return r;
        CUmemAllocationProp prop = allocation_prop(d, device);
        r = d->cuMemGetAllocationGranularity(&granularity, &prop, CU_MEM_ALLOC_GRANULARITY_MINIMUM);
        if (r != CUDA_SUCCESS)
                return r;

        (void)snprintf(ret_device->name, sizeof(ret_device->name), "cuda:%d", ordinal);
        format_uuid(&uuid, ret_device->uuid, sizeof(ret_device->uuid));
        ret_device->total = total;
        ret_device->granularity = granularity;
        return CUDA_SUCCESS;
}

/* The driver's table and its devices; what fails is said in `text`. */
static int probe(const struct cuda_driver **ret_driver, struct vmm_device *devices, size_t room, size_t *ret_n, char *text,
                 size_t text_size) {
        const struct cuda_driver *d;
        int r = cuda_driver_get(&d, text, text_size), n;
        if (r != 0)
                return r;

        CUresult cr = d->cuDeviceGetCount(&n);
        for (int i = 0; cr == CUDA_SUCCESS && i < n && (size_t)i < room; i++)
                cr = describe(d, i, &devices[i]);
        if (cr != CUDA_SUCCESS) {
                (void)snprintf(text, text_size, "asking for the CUDA devices: %s", cuda_driver_error(d, cr));
                return VMM_E_REFUSED;
        }
        if (n == 0) {
                (void)snprintf(text, text_size, "the CUDA driver shows no device");
                return VMM_E_NO_DRIVER;
        }
        *ret_driver = d;
        *ret_n = MIN((size_t)n, room);
        return 0;
}

int vmm_cuda_probe(struct vmm_device *devices, size_t room, size_t *ret_n, char *text, size_t text_size) {
        const struct cuda_driver *d;
        return probe(&d, devices, room, ret_n, text, text_size);
}

int vmm_cuda_open(struct vmm **ret_vmm, const char *name, char *text, size_t text_size) {
        struct vmm_device devices[64];
        const struct cuda_driver *d;
        size_t n, i;
        int r = probe(&d, devices, ARRAY_SIZE(devices), &n, text, text_size);
        if (r != 0)
                return r;

        bool by_uuid = strncmp(name, "GPU-", 4) == 0;
        for (i = 0; i < n; i++)
                if (strcasecmp(name, by_uuid ? devices[i].uuid : devices[i].name + strlen("cuda:")) == 0)
                        break;
        if (i == n) {
                (void)snprintf(text, text_size, "no device cuda:%.60s among the %zu this process sees", name, n);
                return VMM_E_NO_DEVICE;
        }

        struct vmm_cuda *c = malloc(sizeof(*c));
        if (!c)
                return -ENOMEM;
        *c = (struct vmm_cuda){ .vmm = { .ops = &cuda_ops, .device = devices[i] }, .driver = d };
        (void)d->cuDeviceGet(&c->device, (int)i); /* has answered in probe() */
        c->prop = allocation_prop(d, c->device);
        c->nvml = nvml_get();
        if (c->nvml && c->nvml->nvmlDeviceGetHandleByUUID(devices[i].uuid, &c->nvml_device) != 0)
                c->nvml = NULL;
        *ret_vmm = &c->vmm;
        return 0;
}
