// SPDX-License-Identifier: MIT
/*
 * A libcuda.so.1 without a GPU: the driver's virtual memory management over files and mmap, with the rules that were
 * measured on a real one (tests/contract/ holds both to them). What a real driver does and nobody here asks for is
 * missing; what it was not seen to allow is refused.
 *
 * A device address is an address of this process: memory can be looked at by the CPU, and a write to what is mapped
 * read-only is a SIGSEGV, where a kernel's write would cost the context.
 */
#include "fake_memory.h"

#include <pthread.h>
#include <sys/stat.h>

#define PUBLIC __attribute__((visibility("default")))
#define DRIVER_VERSION 13000
#define CHUNK (UINT64_C(32) << 20) /* in which the driver takes addresses from the system */

#define DECLARE(name, args) PUBLIC CUresult name args;
CUDA_DRIVER_CALLS(DECLARE)
PUBLIC CUresult cuCtxGetCurrent(CUcontext *context);
PUBLIC CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total);

/* Every function: what is counted, what a knob says, and whether cuInit was there. */
#define ENTER(name)                                                             \
        do {                                                                    \
                int turned_ = fake_enter(FAKECUDA_##name);                      \
                if (turned_ != 0)                                               \
                        return (CUresult)turned_;                               \
                if (!initialised)                                               \
                        return CUDA_ERROR_NOT_INITIALIZED;                      \
        } while (0)

struct handle {
        struct handle *next;
        unsigned device; /* of the machine's, visible or not */
        uint64_t size;
        void *pages; /* without access; holds the memory */
        int fd;      /* to export; -1 for what was imported */
        CUmemAllocationHandleType types;
};

/* An interval of addresses: a chunk, a reservation in it, a mapping in that. Kept sorted, never overlapping. */
struct range {
        uint64_t start, size;
        int prot; /* of a mapping */
};

struct ranges {
        struct range *at;
        size_t n, room;
};

struct CUctx_st {
        unsigned retained;
};

static bool initialised, inherited;
static unsigned visible[FAKE_DEVICES_MAX], n_visible; /* ordinal → device of the machine */
static struct fake_memory *memory[FAKE_DEVICES_MAX];
static struct CUctx_st contexts[FAKE_DEVICES_MAX];
static struct handle *handles;
static struct ranges chunks, reservations, mappings;
static struct ranges registered; /* host memory */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static __thread CUcontext stack[32];
static __thread unsigned depth;

static void unlock_mutex(pthread_mutex_t **m) {
        pthread_mutex_unlock(*m);
}
#define LOCKED \
        _cleanup_(unlock_mutex) __attribute__((unused)) pthread_mutex_t *locked_ = (pthread_mutex_lock(&mutex), &mutex)

/* ---- ranges */

/* The first range that ends behind `address`: the one that contains it, or the next. */
static size_t ranges_find(const struct ranges *r, uint64_t address) {
        size_t low = 0, high = r->n;
        while (low < high) {
                size_t mid = low + (high - low) / 2;
                if (r->at[mid].start + r->at[mid].size > address)
                        high = mid;
                else
                        low = mid + 1;
        }
        return low;
}

static bool ranges_insert(struct ranges *r, struct range range) {
        if (r->n == r->room) {
                size_t room = r->room ? 2 * r->room : 64;
                struct range *at = realloc(r->at, room * sizeof(*at));
                if (!at)
                        return false;
                r->at = at;
                r->room = room;
        }
        size_t i = ranges_find(r, range.start);
        memmove(&r->at[i + 1], &r->at[i], (r->n - i) * sizeof(*r->at));
        r->at[i] = range;
        r->n++;
        return true;
}

static void ranges_remove(struct ranges *r, size_t i, size_t n) {
        memmove(&r->at[i], &r->at[i + n], (r->n - i - n) * sizeof(*r->at));
        r->n -= n;
}

static bool ranges_touch(const struct ranges *r, uint64_t start, uint64_t size) {
        size_t i = ranges_find(r, start);
        return i < r->n && r->at[i].start < start + size;
}

/* The ranges within this one, gaps or not: false if it cuts one of them. */
static bool ranges_within(const struct ranges *r, uint64_t start, uint64_t size, size_t *ret_first, size_t *ret_n) {
        size_t first = ranges_find(r, start), i = first;
        while (i < r->n && r->at[i].start < start + size) {
                if (r->at[i].start < start || r->at[i].start + r->at[i].size > start + size)
                        return false;
                i++;
        }
        *ret_first = first;
        *ret_n = i - first;
        return true;
}

/* Whether one range, or neighbours without a gap, cover this one. */
static bool ranges_cover(const struct ranges *r, uint64_t start, uint64_t size) {
        uint64_t at = start;
        for (size_t i = ranges_find(r, start); at - start < size; i++) {
                if (i == r->n || r->at[i].start > at)
                        return false;
                at = r->at[i].start + r->at[i].size;
        }
        return true;
}

static void *to_ptr(uint64_t address) {
        return (void *)(uintptr_t)address;
}

static bool whole_units(uint64_t size) {
        return size != 0 && size % FAKE_GRANULARITY == 0;
}

/* ---- the library and its devices */

static void in_child(void) {
        inherited = initialised;
        initialised = false;
}

/* As the driver reads it: ordinals and UUIDs, up to the first that is neither. */
static void read_visible(void) {
        const char *list = getenv("CUDA_VISIBLE_DEVICES");
        n_visible = 0;
        if (!list) {
                for (; n_visible < fake_count(); n_visible++)
                        visible[n_visible] = n_visible;
                return;
        }
        while (*list && n_visible < FAKE_DEVICES_MAX) {
                size_t len = strcspn(list, ",");
                char *end;
                long i = strtol(list, &end, 10);
                if (end == list || end != list + len)
                        i = fake_by_uuid(list, len);
                if (i < 0 || i >= (long)fake_count())
                        return;
                visible[n_visible++] = (unsigned)i;
                list += len + (list[len] == ',');
        }
}

CUresult cuInit(unsigned flags) {
        int turned = fake_enter(FAKECUDA_cuInit);
        if (turned != 0)
                return (CUresult)turned;
        LOCKED;
        if (flags != 0)
                return CUDA_ERROR_INVALID_VALUE;
        if (inherited) /* the child of a process that had initialised cannot */
                return CUDA_ERROR_NOT_INITIALIZED;
        if (initialised)
                return CUDA_SUCCESS;

        read_visible();
        if (n_visible == 0)
                return CUDA_ERROR_NO_DEVICE;
        for (unsigned i = 0; i < fake_count(); i++)
                if (!memory[i] && !(memory[i] = fake_memory_open(i)))
                        return CUDA_ERROR_OPERATING_SYSTEM;
        static bool prepared;
        if (!prepared)
                (void)pthread_atfork(NULL, NULL, in_child);
        prepared = initialised = true;
        return CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version) {
        *version = DRIVER_VERSION;
        return (CUresult)fake_enter(FAKECUDA_cuDriverGetVersion);
}

CUresult cuGetErrorName(CUresult result, const char **name) {
        (void)fake_enter(FAKECUDA_cuGetErrorName);
        *name = fakecuda_error_name(result);
        return *name ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuDeviceGetCount(int *n) {
        ENTER(cuDeviceGetCount);
        *n = (int)n_visible;
        return CUDA_SUCCESS;
}

static bool is_device(CUdevice device) {
        return device >= 0 && (unsigned)device < n_visible;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
        ENTER(cuDeviceGet);
        if (!is_device(ordinal))
                return CUDA_ERROR_INVALID_DEVICE;
        *device = ordinal;
        return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice device) {
        ENTER(cuDeviceGetUuid_v2);
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        fake_uuid(visible[device], uuid);
        return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
        ENTER(cuDeviceGetName);
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        if (size <= 0)
                return CUDA_ERROR_INVALID_VALUE;
        (void)snprintf(name, (size_t)size, "Fake GPU");
        return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
        ENTER(cuDeviceTotalMem_v2);
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        *bytes = fake_capacity();
        return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
        ENTER(cuDeviceGetAttribute);
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED:
        case CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED: /* says the real one too, and then does not permit it */
                *value = 1;
                return CUDA_SUCCESS;
        }
        return CUDA_ERROR_INVALID_VALUE;
}

/* ---- physical memory */

static CUresult check_prop(const CUmemAllocationProp *prop) {
        if (prop->type != CU_MEM_ALLOCATION_TYPE_PINNED)
                return CUDA_ERROR_INVALID_VALUE;
        if (prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE)
                return CUDA_ERROR_NOT_SUPPORTED;
        return is_device(prop->location.id) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_DEVICE;
}

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
                                       CUmemAllocationGranularity_flags option) {
        ENTER(cuMemGetAllocationGranularity);
        (void)option;
        *granularity = FAKE_GRANULARITY;
        return check_prop(prop);
}

static struct handle **find_handle(CUmemGenericAllocationHandle handle) {
        struct handle **at = &handles;
        while (*at && (uintptr_t)*at != handle)
                at = &(*at)->next;
        return at;
}

static void free_handle(struct handle *h) {
        if (h->pages)
                (void)munmap(h->pages, h->size);
        close_fd(h->fd);
        free(h);
}

/* Takes the descriptor, mapped at `offset` of its arena. */
static CUresult new_handle(struct handle values, uint64_t offset, int fd, CUmemGenericAllocationHandle *ret_handle) {
        struct handle *h = malloc(sizeof(*h));
        if (!h)
                return CUDA_ERROR_OUT_OF_MEMORY;
        *h = values;
        h->pages = mmap(NULL, h->size, PROT_NONE, MAP_SHARED, fd, (off_t)offset);
        if (h->pages == MAP_FAILED) {
                free(h);
                return CUDA_ERROR_OPERATING_SYSTEM;
        }
        h->next = handles;
        handles = h;
        *ret_handle = (uintptr_t)h;
        return CUDA_SUCCESS;
}

static CUresult take_memory(size_t size, const CUmemAllocationProp *prop, int *ret_fd, uint64_t *ret_offset) {
        if (!initialised)
                return CUDA_ERROR_NOT_INITIALIZED;
        CUresult cr = check_prop(prop);
        if (cr != CUDA_SUCCESS)
                return cr;
        if (!whole_units(size))
                return CUDA_ERROR_INVALID_VALUE;
        if (prop->requestedHandleTypes & CU_MEM_HANDLE_TYPE_FABRIC)
                return CUDA_ERROR_NOT_PERMITTED;
        LOCKED;
        int r = fake_memory_create(memory[visible[prop->location.id]], size, ret_fd, ret_offset);
        if (r != 0)
                return r == -ENOMEM ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_ERROR_OPERATING_SYSTEM;
        return CUDA_SUCCESS;
}

/* The knob comes last: whoever is killed or fails here has taken the memory, and has to lose it again. */
CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t size, const CUmemAllocationProp *prop,
                     unsigned long long flags) {
        _cleanup_close_ int fd = -1;
        uint64_t offset;
        CUresult r = flags == 0 ? take_memory(size, prop, &fd, &offset) : CUDA_ERROR_INVALID_VALUE;
        int turned = fake_enter(FAKECUDA_cuMemCreate);
        if (turned != 0 || r != CUDA_SUCCESS)
                return turned != 0 ? (CUresult)turned : r;

        LOCKED;
        unsigned device = visible[prop->location.id];
        r = new_handle((struct handle){ .device = device, .size = size, .fd = fd, .types = prop->requestedHandleTypes },
                       offset, fd, handle);
        if (r == CUDA_SUCCESS)
                (void)steal_fd(&fd);
        return r;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
        ENTER(cuMemRelease);
        LOCKED;
        struct handle **at = find_handle(handle), *h = *at;
        if (!h)
                return CUDA_ERROR_INVALID_VALUE;
        *at = h->next;
        free_handle(h);
        return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void *shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,
                                      unsigned long long flags) {
        ENTER(cuMemExportToShareableHandle);
        LOCKED;
        struct handle *h = *find_handle(handle);
        if (!h || flags != 0 || type != CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR || !(h->types & type) || h->fd < 0)
                return CUDA_ERROR_INVALID_VALUE;
        int fd = fcntl(h->fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
                return CUDA_ERROR_OPERATING_SYSTEM;
        *(int *)shareable = fd;
        return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(CUmemGenericAllocationHandle *handle, void *shareable,
                                        CUmemAllocationHandleType type) {
        ENTER(cuMemImportFromShareableHandle);
        LOCKED;
        int fd = (int)(intptr_t)shareable;
        uint64_t offset, size;
        if (type == CU_MEM_HANDLE_TYPE_FABRIC)
                return CUDA_ERROR_NOT_PERMITTED;
        for (unsigned i = 0; i < fake_count(); i++)
                if (fake_memory_find(memory[i], fd, &offset, &size))
                        return new_handle((struct handle){ .device = i, .size = size, .fd = -1 }, offset, fd, handle);
        return CUDA_ERROR_UNKNOWN;
}

CUresult cuMemGetAllocationPropertiesFromHandle(CUmemAllocationProp *prop, CUmemGenericAllocationHandle handle) {
        ENTER(cuMemGetAllocationPropertiesFromHandle);
        LOCKED;
        const struct handle *h = *find_handle(handle);
        if (!h)
                return CUDA_ERROR_INVALID_VALUE;
        *prop = (CUmemAllocationProp){
                .type = CU_MEM_ALLOCATION_TYPE_PINNED,
                .requestedHandleTypes = h->types,
                .location.type = CU_MEM_LOCATION_TYPE_DEVICE,
        };
        for (unsigned i = 0; i < n_visible; i++)
                if (visible[i] == h->device)
                        prop->location.id = (int)i;
        return CUDA_SUCCESS;
}

/* ---- addresses and mappings */

static bool reserve_pages(uint64_t address, uint64_t size, int flags) {
        return mmap(to_ptr(address), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | flags, -1, 0) ==
               to_ptr(address);
}

/* A new chunk that begins at `at`, or anywhere for 0. */
static uint64_t new_chunk(uint64_t at, uint64_t size) {
        uint64_t start = at;
        if (at != 0 && !reserve_pages(at, size, MAP_FIXED_NOREPLACE))
                return 0;
        if (at == 0) {
                void *p = mmap(NULL, size + CHUNK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                if (p == MAP_FAILED)
                        return 0;
                (void)align_up((uintptr_t)p, CHUNK, &start);
                if (start != (uintptr_t)p)
                        (void)munmap(p, start - (uintptr_t)p);
                if (start != (uintptr_t)p + CHUNK)
                        (void)munmap(to_ptr(start + size), (uintptr_t)p + CHUNK - start);
        }
        return ranges_insert(&chunks, (struct range){ .start = start, .size = size }) ? start : 0;
}

/* Room that chunks have left over, the highest one first. */
static uint64_t find_leftover(uint64_t size, uint64_t alignment) {
        for (size_t c = chunks.n; c-- > 0;) {
                uint64_t at = chunks.at[c].start, end = at + chunks.at[c].size;
                for (size_t i = ranges_find(&reservations, at); at < end; i++) {
                        bool more = i < reservations.n && reservations.at[i].start < end;
                        if (align_up(at, alignment, &at) && at + size <= (more ? reservations.at[i].start : end))
                                return at;
                        at = more ? reservations.at[i].start + reservations.at[i].size : end;
                }
        }
        return 0;
}

/* The wish counts only where nothing is left over. */
static uint64_t find_addresses(uint64_t wish, uint64_t size, uint64_t alignment) {
        uint64_t start = find_leftover(size, alignment), first = wish / CHUNK * CHUNK, end, room;
        if (start != 0)
                return start;
        if (wish != 0 && align_up(wish + size, CHUNK, &end) && new_chunk(first, end - first) != 0)
                return wish;
        if (!align_up(size + (alignment > CHUNK ? alignment : 0), CHUNK, &room))
                return 0;
        start = new_chunk(0, room);
        (void)align_up(start, alignment, &start);
        return start;
}

CUresult cuMemAddressReserve(CUdeviceptr *ptr, size_t size, size_t alignment, CUdeviceptr address, unsigned long long flags) {
        ENTER(cuMemAddressReserve);
        LOCKED;
        if (!whole_units(size) || (alignment & (alignment - 1)) != 0 || address % FAKE_GRANULARITY != 0 || flags != 0)
                return CUDA_ERROR_INVALID_VALUE;
        uint64_t start = find_addresses(address, size, MAX(alignment, FAKE_GRANULARITY));
        if (start == 0 || !ranges_insert(&reservations, (struct range){ .start = start, .size = size }))
                return CUDA_ERROR_OUT_OF_MEMORY;
        *ptr = start;
        return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr ptr, size_t size) {
        ENTER(cuMemAddressFree);
        LOCKED;
        size_t i = ranges_find(&reservations, ptr);
        if (i == reservations.n || reservations.at[i].start != ptr || reservations.at[i].size != size ||
            ranges_touch(&mappings, ptr, size))
                return CUDA_ERROR_INVALID_VALUE;
        ranges_remove(&reservations, i, 1);
        i = ranges_find(&chunks, ptr);
        if (!ranges_touch(&reservations, chunks.at[i].start, chunks.at[i].size)) {
                (void)munmap(to_ptr(chunks.at[i].start), chunks.at[i].size);
                ranges_remove(&chunks, i, 1);
        }
        return CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
        ENTER(cuMemMap);
        LOCKED;
        const struct handle *h = *find_handle(handle);
        if (!h || flags != 0 || !whole_units(size) || ptr % FAKE_GRANULARITY != 0)
                return CUDA_ERROR_INVALID_VALUE;
        if (offset != 0 || size != h->size)
                return CUDA_ERROR_NOT_SUPPORTED;
        if (!ranges_cover(&reservations, ptr, size) || ranges_touch(&mappings, ptr, size))
                return CUDA_ERROR_INVALID_VALUE;

        /* From length 0, mremap makes a second mapping of shared pages: the handle stays good for another. */
        if (mremap(h->pages, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, to_ptr(ptr)) == MAP_FAILED)
                return CUDA_ERROR_OPERATING_SYSTEM;
        if (!ranges_insert(&mappings, (struct range){ .start = ptr, .size = size, .prot = PROT_NONE }))
                return CUDA_ERROR_OUT_OF_MEMORY;
        return CUDA_SUCCESS;
}

CUresult cuMemUnmap(CUdeviceptr ptr, size_t size) {
        ENTER(cuMemUnmap);
        LOCKED;
        size_t first, n;
        if (!whole_units(size) || !ranges_cover(&reservations, ptr, size) ||
            !ranges_within(&mappings, ptr, size, &first, &n))
                return CUDA_ERROR_INVALID_VALUE;
        ranges_remove(&mappings, first, n);
        return reserve_pages(ptr, size, MAP_FIXED) ? CUDA_SUCCESS : CUDA_ERROR_OPERATING_SYSTEM;
}

static int to_prot(CUmemAccess_flags flags) {
        switch (flags) {
        case CU_MEM_ACCESS_FLAGS_PROT_NONE:
                return PROT_NONE;
        case CU_MEM_ACCESS_FLAGS_PROT_READ:
                return PROT_READ;
        case CU_MEM_ACCESS_FLAGS_PROT_READWRITE:
                return PROT_READ | PROT_WRITE;
        default:
                return -1;
        }
}

/* Access is one for all devices here: the last word counts. */
CUresult cuMemSetAccess(CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t n_desc) {
        ENTER(cuMemSetAccess);
        LOCKED;
        size_t first, n;
        if (!ranges_within(&mappings, ptr, size, &first, &n) || n == 0 || n_desc == 0)
                return CUDA_ERROR_INVALID_VALUE;
        const struct range *last = &mappings.at[first + n - 1];
        if (mappings.at[first].start != ptr || last->start + last->size != ptr + size)
                return CUDA_ERROR_INVALID_VALUE;
        for (size_t i = 0; i < n_desc; i++)
                if (desc[i].location.type != CU_MEM_LOCATION_TYPE_DEVICE || !is_device(desc[i].location.id) ||
                    to_prot(desc[i].flags) < 0)
                        return CUDA_ERROR_INVALID_VALUE;
        int prot = to_prot(desc[n_desc - 1].flags);
        uint64_t at = ptr; /* a gap is no error: what is behind it is silently left as it was */
        for (struct range *r = &mappings.at[first]; r <= last && r->start == at; r++) {
                if (r->prot != prot && mprotect(to_ptr(r->start), r->size, prot) < 0)
                        return CUDA_ERROR_OPERATING_SYSTEM;
                r->prot = prot;
                at += r->size;
        }
        return CUDA_SUCCESS;
}

/* ---- contexts and copies */

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
        ENTER(cuDevicePrimaryCtxRetain);
        LOCKED;
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        contexts[device].retained++;
        *context = &contexts[device];
        return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
        ENTER(cuDevicePrimaryCtxRelease_v2);
        LOCKED;
        if (!is_device(device))
                return CUDA_ERROR_INVALID_DEVICE;
        if (contexts[device].retained == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        contexts[device].retained--;
        return CUDA_SUCCESS;
}

CUresult cuCtxPushCurrent_v2(CUcontext context) {
        ENTER(cuCtxPushCurrent_v2);
        if (!context || context->retained == 0 || depth == ARRAY_SIZE(stack))
                return CUDA_ERROR_INVALID_CONTEXT;
        stack[depth++] = context;
        return CUDA_SUCCESS;
}

CUresult cuCtxPopCurrent_v2(CUcontext *context) {
        ENTER(cuCtxPopCurrent_v2);
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        *context = stack[--depth];
        return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context) {
        if (!initialised)
                return CUDA_ERROR_NOT_INITIALIZED;
        *context = depth ? stack[depth - 1] : NULL;
        return CUDA_SUCCESS;
}

CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
        LOCKED;
        if (!initialised)
                return CUDA_ERROR_NOT_INITIALIZED;
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        unsigned n;
        *free_bytes = fake_memory_room(memory[visible[stack[depth - 1] - contexts]], &n);
        *total = fake_capacity();
        return CUDA_SUCCESS;
}

/* Whether a copy may touch the range: mapped without a gap, and with this access. */
static CUresult check_access(uint64_t start, uint64_t size, int prot) {
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        uint64_t at = start;
        for (size_t i = ranges_find(&mappings, start); at - start < size; i++) {
                const struct range *r = &mappings.at[i];
                if (i == mappings.n || r->start > at || (r->prot & prot) != prot)
                        return CUDA_ERROR_INVALID_VALUE;
                at = r->start + r->size;
        }
        return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t size) {
        ENTER(cuMemcpyHtoD_v2);
        LOCKED;
        CUresult r = check_access(to, size, PROT_WRITE);
        if (r == CUDA_SUCCESS)
                memcpy(to_ptr(to), from, size);
        return r;
}

CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t size) {
        ENTER(cuMemcpyDtoH_v2);
        LOCKED;
        CUresult r = check_access(from, size, PROT_READ);
        if (r == CUDA_SUCCESS)
                memcpy(to, to_ptr(from), size);
        return r;
}

/*
 * ---- streams: copies from and to page-locked memory are done as late as can be, when somebody waits for them. Who does not,
 * and takes the memory for something else, finds other bytes there than on a real GPU on a good day.
 */

struct queued_copy {
        void *to;
        const void *from;
        size_t size;
        struct queued_copy *next;
};

struct CUstream_st {
        CUcontext context;
        struct queued_copy *first, **last;
};

static void stream_drain(CUstream stream) {
        for (struct queued_copy *c; stream && (c = stream->first); free(c)) {
                stream->first = c->next;
                memcpy(c->to, c->from, c->size);
        }
        if (stream)
                stream->last = &stream->first;
}

/* `host`: the side that is ordinary memory. */
static CUresult stream_copy(CUstream stream, void *to, const void *from, size_t size, const void *host) {
        size_t i = ranges_find(&registered, (uintptr_t)host);
        bool locked = i < registered.n && registered.at[i].start <= (uintptr_t)host;
        struct queued_copy *c = stream && locked ? malloc(sizeof(*c)) : NULL;
        if (!c) {
                stream_drain(stream);
                memcpy(to, from, size);
                return CUDA_SUCCESS;
        }
        *c = (struct queued_copy){ .to = to, .from = from, .size = size };
        *stream->last = c;
        stream->last = &c->next;
        return CUDA_SUCCESS;
}

struct CUevent_st {
        bool captured;
};

/* One stream at a time can be captured. What is not allowed meanwhile spoils the capture. */
struct CUgraph_st {
        CUstream stream;
};

static CUstream capturing;
static CUstreamCaptureMode capturing_mode;
static bool capture_spoilt;
static __thread CUstreamCaptureMode thread_mode;

/* What may be called beside a capture in the mode that PyTorch uses only by a thread that has said that it has no part in it. */
static CUresult check_capture(void) {
        if (!capturing || capturing_mode != CU_STREAM_CAPTURE_MODE_GLOBAL || thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED)
                return CUDA_SUCCESS;
        capture_spoilt = true;
        return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}

CUresult cuStreamSynchronize(CUstream stream) {
        ENTER(cuStreamSynchronize);
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        LOCKED;
        CUresult r = check_capture();
        if (r == CUDA_SUCCESS)
                stream_drain(stream);
        return r;
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
        ENTER(cuThreadExchangeStreamCaptureMode);
        CUstreamCaptureMode before = thread_mode;
        thread_mode = *mode;
        *mode = before;
        return CUDA_SUCCESS;
}

CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
        ENTER(cuStreamBeginCapture_v2);
        LOCKED;
        if (!stream || capturing)
                return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        capturing = stream;
        capturing_mode = mode;
        capture_spoilt = false;
        return CUDA_SUCCESS;
}

CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus *status) {
        ENTER(cuStreamIsCapturing);
        LOCKED;
        *status = !stream || stream != capturing ? CU_STREAM_CAPTURE_STATUS_NONE
                  : capture_spoilt               ? CU_STREAM_CAPTURE_STATUS_INVALIDATED
                                                 : CU_STREAM_CAPTURE_STATUS_ACTIVE;
        return CUDA_SUCCESS;
}

CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
        ENTER(cuStreamEndCapture);
        LOCKED;
        if (!stream || stream != capturing)
                return CUDA_ERROR_INVALID_VALUE;
        capturing = NULL;
        *graph = capture_spoilt ? NULL : malloc(sizeof(**graph));
        return capture_spoilt ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : *graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuGraphDestroy(CUgraph graph) {
        ENTER(cuGraphDestroy);
        free(graph);
        return CUDA_SUCCESS;
}

CUresult cuStreamCreate(CUstream *stream, unsigned flags) {
        ENTER(cuStreamCreate);
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        if (flags & ~(unsigned)CU_STREAM_NON_BLOCKING)
                return CUDA_ERROR_INVALID_VALUE;
        *stream = malloc(sizeof(**stream));
        if (!*stream)
                return CUDA_ERROR_OUT_OF_MEMORY;
        **stream = (struct CUstream_st){ .context = stack[depth - 1], .last = &(*stream)->first };
        return CUDA_SUCCESS;
}

CUresult cuStreamDestroy_v2(CUstream stream) {
        ENTER(cuStreamDestroy_v2);
        stream_drain(stream);
        free(stream);
        return CUDA_SUCCESS;
}

CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t size, CUstream stream) {
        ENTER(cuMemcpyHtoDAsync_v2);
        LOCKED;
        CUresult r = check_access(to, size, PROT_WRITE);
        return r == CUDA_SUCCESS ? stream_copy(stream, to_ptr(to), from, size, from) : r;
}

CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t size, CUstream stream) {
        ENTER(cuMemcpyDtoHAsync_v2);
        LOCKED;
        CUresult r = check_access(from, size, PROT_READ);
        return r == CUDA_SUCCESS ? stream_copy(stream, to, to_ptr(from), size, to) : r;
}

CUresult cuEventCreate(CUevent *event, unsigned flags) {
        ENTER(cuEventCreate);
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        if (flags & ~(unsigned)CU_EVENT_DISABLE_TIMING)
                return CUDA_ERROR_INVALID_VALUE;
        *event = calloc(1, sizeof(**event));
        return *event ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuEventRecord(CUevent event, CUstream stream) {
        ENTER(cuEventRecord);
        if (!event)
                return CUDA_ERROR_INVALID_HANDLE;
        LOCKED;
        event->captured = stream && stream == capturing;
        if (!event->captured)
                stream_drain(stream);
        return CUDA_SUCCESS;
}

CUresult cuEventQuery(CUevent event) {
        ENTER(cuEventQuery);
        LOCKED;
        if (!event)
                return CUDA_ERROR_INVALID_HANDLE;
        if (event->captured)
                return CUDA_ERROR_CAPTURED_EVENT;
        return check_capture();
}

CUresult cuEventDestroy_v2(CUevent event) {
        ENTER(cuEventDestroy_v2);
        if (!event)
                return CUDA_ERROR_INVALID_HANDLE;
        free(event);
        return CUDA_SUCCESS;
}

/* ---- page-locked memory: what is registered is remembered, for the copies above */

CUresult cuMemHostRegister_v2(void *p, size_t size, unsigned flags) {
        ENTER(cuMemHostRegister_v2);
        LOCKED;
        if (depth == 0)
                return CUDA_ERROR_INVALID_CONTEXT;
        if (flags != 0 || size == 0)
                return CUDA_ERROR_INVALID_VALUE;
        if (ranges_touch(&registered, (uintptr_t)p, size))
                return CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED;
        struct range range = { .start = (uintptr_t)p, .size = size };
        return ranges_insert(&registered, range) ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemHostUnregister(void *p) {
        ENTER(cuMemHostUnregister);
        LOCKED;
        size_t i = ranges_find(&registered, (uintptr_t)p);
        if (i == registered.n || registered.at[i].start != (uintptr_t)p)
                return CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED;
        ranges_remove(&registered, i, 1);
        return CUDA_SUCCESS;
}

CUresult cuMemsetD8_v2(CUdeviceptr to, unsigned char value, size_t n) {
        ENTER(cuMemsetD8_v2);
        LOCKED;
        CUresult r = check_access(to, n, PROT_WRITE);
        if (r == CUDA_SUCCESS)
                memset(to_ptr(to), value, n);
        return r;
}

/* ---- closing */

/*
 * Freeing is closing, and on a real GPU it takes its time. Where this library is preloaded, and not only opened, this
 * stands before libc's close: the "close" knob turns it for descriptors of the fake's memory, in processes that called
 * cuInit.
 */
PUBLIC int close(int fd);
int close(int fd) {
        uint64_t offset, size;
        bool ours = false;
        for (unsigned i = 0; initialised && !ours && i < fake_count(); i++)
                ours = fake_memory_find(memory[i], fd, &offset, &size);
        if (ours)
                (void)fake_enter(FAKECUDA_close);
        return (int)syscall(SYS_close, fd);
}
