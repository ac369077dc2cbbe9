// SPDX-License-Identifier: MIT
/*
 * Compares our declarations of the driver's ABI with a real cuda.h. Compiled twice into one program: with -DREAL the types
 * and constants are those of cuda.h, without it ours; what the two make of the same list must be the same numbers. The
 * functions are compared by the compiler.
 */
#ifdef REAL
#include <cuda.h>
#endif

#include "cuda_driver.h"

#include <stdio.h>
#include <string.h>

struct fact {
        const char *what;
        uint64_t value;
};

#define VALUE(constant) { #constant, (uint64_t)(constant) }
#define SIZE(type) { "sizeof " #type, sizeof(type) }, { "_Alignof " #type, _Alignof(type) }
#define MEMBER(type, member)                                      \
        { "offset of " #type "." #member, offsetof(type, member) }, \
        { "size of " #type "." #member, sizeof(((type *)0)->member) }

#define FACTS                                                                   \
        SIZE(CUdevice),                                                         \
        SIZE(CUdeviceptr),                                                      \
        SIZE(CUmemGenericAllocationHandle),                                     \
        SIZE(CUcontext),                                                        \
        SIZE(CUstream),                                                         \
        SIZE(CUuuid),                                                           \
        MEMBER(CUuuid, bytes),                                                  \
        SIZE(CUresult),                                                         \
        SIZE(CUdevice_attribute),                                               \
        SIZE(CUmemAllocationType),                                              \
        SIZE(CUmemAllocationHandleType),                                        \
        SIZE(CUmemLocationType),                                                \
        SIZE(CUmemAccess_flags),                                                \
        SIZE(CUmemAllocationGranularity_flags),                                 \
        SIZE(CUmemLocation),                                                    \
        MEMBER(CUmemLocation, type),                                            \
        MEMBER(CUmemLocation, id),                                              \
        SIZE(CUmemAllocationProp),                                              \
        MEMBER(CUmemAllocationProp, type),                                      \
        MEMBER(CUmemAllocationProp, requestedHandleTypes),                      \
        MEMBER(CUmemAllocationProp, location),                                  \
        MEMBER(CUmemAllocationProp, win32HandleMetaData),                       \
        MEMBER(CUmemAllocationProp, allocFlags),                                \
        MEMBER(CUmemAllocationProp, allocFlags.compressionType),                \
        MEMBER(CUmemAllocationProp, allocFlags.gpuDirectRDMACapable),           \
        MEMBER(CUmemAllocationProp, allocFlags.usage),                          \
        MEMBER(CUmemAllocationProp, allocFlags.reserved),                       \
        SIZE(CUmemAccessDesc),                                                  \
        MEMBER(CUmemAccessDesc, location),                                      \
        MEMBER(CUmemAccessDesc, flags),                                         \
        VALUE(CUDA_SUCCESS),                                                    \
        VALUE(CUDA_ERROR_INVALID_VALUE),                                        \
        VALUE(CUDA_ERROR_OUT_OF_MEMORY),                                        \
        VALUE(CUDA_ERROR_NOT_INITIALIZED),                                      \
        VALUE(CUDA_ERROR_NO_DEVICE),                                            \
        VALUE(CUDA_ERROR_INVALID_DEVICE),                                       \
        VALUE(CUDA_ERROR_INVALID_CONTEXT),                                      \
        VALUE(CUDA_ERROR_OPERATING_SYSTEM),                                     \
        VALUE(CUDA_ERROR_INVALID_HANDLE),                                       \
        VALUE(CUDA_ERROR_ILLEGAL_ADDRESS),                                      \
        VALUE(CUDA_ERROR_NOT_PERMITTED),                                        \
        VALUE(CUDA_ERROR_NOT_SUPPORTED),                                        \
        VALUE(CUDA_ERROR_UNKNOWN),                                              \
        VALUE(CUDA_ERROR_NOT_READY),                                            \
        VALUE(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED),                       \
        VALUE(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED),                           \
        VALUE(CU_STREAM_NON_BLOCKING),                                          \
        VALUE(CU_EVENT_DISABLE_TIMING),                                         \
        VALUE(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),                           \
        VALUE(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED),                           \
        VALUE(CUDA_ERROR_CAPTURED_EVENT),                                       \
        VALUE(CU_STREAM_CAPTURE_MODE_GLOBAL),                                   \
        VALUE(CU_STREAM_CAPTURE_MODE_RELAXED),                                  \
        VALUE(CU_STREAM_CAPTURE_STATUS_NONE),                                   \
        SIZE(CUgraph),                                                          \
        SIZE(CUevent),                                                          \
        VALUE(CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED),         \
        VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED), \
        VALUE(CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED),     \
        VALUE(CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED),                \
        VALUE(CU_MEM_ALLOCATION_TYPE_PINNED),                                   \
        VALUE(CU_MEM_HANDLE_TYPE_NONE),                                         \
        VALUE(CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR),                        \
        VALUE(CU_MEM_HANDLE_TYPE_FABRIC),                                       \
        VALUE(CU_MEM_LOCATION_TYPE_DEVICE),                                     \
        VALUE(CU_MEM_ACCESS_FLAGS_PROT_NONE),                                   \
        VALUE(CU_MEM_ACCESS_FLAGS_PROT_READ),                                   \
        VALUE(CU_MEM_ACCESS_FLAGS_PROT_READWRITE),                              \
        VALUE(CU_MEM_ALLOC_GRANULARITY_MINIMUM),                                \
        VALUE(CU_MEM_ALLOC_GRANULARITY_RECOMMENDED)

extern const struct fact real_facts[];
extern const size_t n_real_facts;

#ifdef REAL

const struct fact real_facts[] = { FACTS };
const size_t n_real_facts = ARRAY_SIZE(real_facts);

#define SAME(name, args)                                                                                             \
        _Static_assert(__builtin_types_compatible_p(__typeof__(&name), __typeof__(((struct cuda_driver *)0)->name)), \
                       #name " is declared otherwise in cuda.h");
CUDA_DRIVER_CALLS(SAME)

#else

int main(void) {
        static const struct fact facts[] = { FACTS };
        int failed = ARRAY_SIZE(facts) != n_real_facts;
        for (size_t i = 0; !failed && i < ARRAY_SIZE(facts); i++)
                if (facts[i].value != real_facts[i].value) {
                        printf("cuda-header: %s: %llu, and in cuda.h %llu\n", facts[i].what,
                               (unsigned long long)facts[i].value, (unsigned long long)real_facts[i].value);
                        failed = 1;
                }
        printf("cuda-header: %zu facts compared with cuda.h: %s\n", ARRAY_SIZE(facts), failed ? "FAILED" : "the same");
        return failed;
}

#endif
