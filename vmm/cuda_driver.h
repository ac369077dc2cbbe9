// SPDX-License-Identifier: MIT
#pragma once
/*
 * The CUDA driver's and NVML's symbols that we call, found at run time: no toolkit is needed to build, and a machine
 * without GPU runs the same binaries. Nothing here decides anything; vmm_cuda.c does.
 *
 * The types are our own declarations of the driver's ABI, under its names. Where a real cuda.h has been included before,
 * its types are used instead: that is how tests/contract/cuda_header.c compares the two.
 */
#include "base.h"

#ifndef CUDA_VERSION

typedef int CUdevice;
typedef unsigned long long CUdeviceptr;
typedef unsigned long long CUmemGenericAllocationHandle;
typedef struct CUctx_st *CUcontext;
typedef struct CUstream_st *CUstream;
typedef struct CUevent_st *CUevent;
typedef struct CUgraph_st *CUgraph;

typedef struct CUuuid_st {
        char bytes[16];
} CUuuid;

typedef enum cudaError_enum {
        CUDA_SUCCESS = 0,
        CUDA_ERROR_INVALID_VALUE = 1,
        CUDA_ERROR_OUT_OF_MEMORY = 2,
        CUDA_ERROR_NOT_INITIALIZED = 3,
        CUDA_ERROR_NO_DEVICE = 100,
        CUDA_ERROR_INVALID_DEVICE = 101,
        CUDA_ERROR_INVALID_CONTEXT = 201,
        CUDA_ERROR_OPERATING_SYSTEM = 304,
        CUDA_ERROR_INVALID_HANDLE = 400,
        CUDA_ERROR_NOT_READY = 600,
        CUDA_ERROR_ILLEGAL_ADDRESS = 700,
        CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED = 712,
        CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED = 713,
        CUDA_ERROR_NOT_PERMITTED = 800,
        CUDA_ERROR_NOT_SUPPORTED = 801,
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900,
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901,
        CUDA_ERROR_CAPTURED_EVENT = 907,
        CUDA_ERROR_UNKNOWN = 999,
} CUresult;

typedef enum CUdevice_attribute_enum {
        CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED = 102,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED = 103,
        CU_DEVICE_ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED = 110,
        CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED = 128,
} CUdevice_attribute;

typedef enum CUmemAllocationType_enum {
        CU_MEM_ALLOCATION_TYPE_PINNED = 0x1,
        CU_MEM_ALLOCATION_TYPE_MAX = 0x7FFFFFFF,
} CUmemAllocationType;

typedef enum CUmemAllocationHandleType_enum {
        CU_MEM_HANDLE_TYPE_NONE = 0x0,
        CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR = 0x1,
        CU_MEM_HANDLE_TYPE_FABRIC = 0x8,
        CU_MEM_HANDLE_TYPE_MAX = 0x7FFFFFFF,
} CUmemAllocationHandleType;

typedef enum CUmemLocationType_enum {
        CU_MEM_LOCATION_TYPE_DEVICE = 0x1,
        CU_MEM_LOCATION_TYPE_MAX = 0x7FFFFFFF,
} CUmemLocationType;

typedef enum CUmemAccess_flags_enum {
        CU_MEM_ACCESS_FLAGS_PROT_NONE = 0x0,
        CU_MEM_ACCESS_FLAGS_PROT_READ = 0x1,
        CU_MEM_ACCESS_FLAGS_PROT_READWRITE = 0x3,
        CU_MEM_ACCESS_FLAGS_PROT_MAX = 0x7FFFFFFF,
} CUmemAccess_flags;

typedef enum CUmemAllocationGranularity_flags_enum {
        CU_MEM_ALLOC_GRANULARITY_MINIMUM = 0x0,
        CU_MEM_ALLOC_GRANULARITY_RECOMMENDED = 0x1,
} CUmemAllocationGranularity_flags;

typedef enum CUstream_flags_enum {
        CU_STREAM_NON_BLOCKING = 0x1,
} CUstream_flags;

typedef enum CUevent_flags_enum {
        CU_EVENT_DISABLE_TIMING = 0x2,
} CUevent_flags;

typedef enum CUstreamCaptureMode_enum {
        CU_STREAM_CAPTURE_MODE_GLOBAL = 0,
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1,
        CU_STREAM_CAPTURE_MODE_RELAXED = 2,
} CUstreamCaptureMode;

typedef enum CUstreamCaptureStatus_enum {
        CU_STREAM_CAPTURE_STATUS_NONE = 0,
        CU_STREAM_CAPTURE_STATUS_ACTIVE = 1,
        CU_STREAM_CAPTURE_STATUS_INVALIDATED = 2,
} CUstreamCaptureStatus;

typedef struct CUmemLocation_st {
        CUmemLocationType type;
        int id;
} CUmemLocation;

typedef struct CUmemAllocationProp_st {
        CUmemAllocationType type;
        CUmemAllocationHandleType requestedHandleTypes;
        CUmemLocation location;
        void *win32HandleMetaData;
        struct {
                unsigned char compressionType;
                unsigned char gpuDirectRDMACapable;
                unsigned short usage;
                unsigned char reserved[4];
        } allocFlags;
} CUmemAllocationProp;

typedef struct CUmemAccessDesc_st {
        CUmemLocation location;
        CUmemAccess_flags flags;
} CUmemAccessDesc;

#endif

/* X(name of the symbol, arguments); all return CUresult. The last five are for the driver-contract tests. */
#define CUDA_DRIVER_CALLS(X)                                                                                           \
        X(cuInit, (unsigned flags))                                                                                    \
        X(cuDriverGetVersion, (int *version))                                                                          \
        X(cuGetErrorName, (CUresult result, const char **name))                                                        \
        X(cuDeviceGetCount, (int *n))                                                                                  \
        X(cuDeviceGet, (CUdevice * device, int ordinal))                                                               \
        X(cuDeviceGetUuid_v2, (CUuuid * uuid, CUdevice device))                                                        \
        X(cuDeviceGetName, (char *name, int size, CUdevice device))                                                    \
        X(cuDeviceTotalMem_v2, (size_t * bytes, CUdevice device))                                                      \
        X(cuDeviceGetAttribute, (int *value, CUdevice_attribute attribute, CUdevice device))                           \
        X(cuMemGetAllocationGranularity,                                                                               \
          (size_t * granularity, const CUmemAllocationProp *prop, CUmemAllocationGranularity_flags option))            \
        X(cuMemCreate,                                                                                                 \
          (CUmemGenericAllocationHandle * handle, size_t size, const CUmemAllocationProp *prop,                        \
           unsigned long long flags))                                                                                  \
        X(cuMemRelease, (CUmemGenericAllocationHandle handle))                                                         \
        X(cuMemExportToShareableHandle,                                                                                \
          (void *shareable, CUmemGenericAllocationHandle handle, CUmemAllocationHandleType type,                       \
           unsigned long long flags))                                                                                  \
        X(cuMemImportFromShareableHandle,                                                                              \
          (CUmemGenericAllocationHandle * handle, void *shareable, CUmemAllocationHandleType type))                    \
        X(cuMemAddressReserve,                                                                                         \
          (CUdeviceptr * ptr, size_t size, size_t alignment, CUdeviceptr address, unsigned long long flags))           \
        X(cuMemAddressFree, (CUdeviceptr ptr, size_t size))                                                            \
        X(cuMemMap,                                                                                                    \
          (CUdeviceptr ptr, size_t size, size_t offset, CUmemGenericAllocationHandle handle,                           \
           unsigned long long flags))                                                                                  \
        X(cuMemUnmap, (CUdeviceptr ptr, size_t size))                                                                  \
        X(cuMemSetAccess, (CUdeviceptr ptr, size_t size, const CUmemAccessDesc *desc, size_t n))                       \
        X(cuDevicePrimaryCtxRetain, (CUcontext * context, CUdevice device))                                            \
        X(cuDevicePrimaryCtxRelease_v2, (CUdevice device))                                                             \
        X(cuCtxPushCurrent_v2, (CUcontext context))                                                                    \
        X(cuCtxPopCurrent_v2, (CUcontext * context))                                                                   \
        X(cuStreamSynchronize, (CUstream stream))                                                                      \
        X(cuMemcpyHtoD_v2, (CUdeviceptr to, const void *from, size_t size))                                            \
        X(cuMemcpyDtoH_v2, (void *to, CUdeviceptr from, size_t size))                                                  \
        X(cuMemHostRegister_v2, (void *p, size_t size, unsigned flags))                                                \
        X(cuMemHostUnregister, (void *p))                                                                              \
        X(cuStreamCreate, (CUstream * stream, unsigned flags))                                                         \
        X(cuStreamDestroy_v2, (CUstream stream))                                                                       \
        X(cuMemcpyHtoDAsync_v2, (CUdeviceptr to, const void *from, size_t size, CUstream stream))                      \
        X(cuMemcpyDtoHAsync_v2, (void *to, CUdeviceptr from, size_t size, CUstream stream))                            \
        X(cuEventCreate, (CUevent * event, unsigned flags))                                                            \
        X(cuEventRecord, (CUevent event, CUstream stream))                                                             \
        X(cuEventQuery, (CUevent event))                                                                               \
        X(cuEventDestroy_v2, (CUevent event))                                                                          \
        X(cuStreamIsCapturing, (CUstream stream, CUstreamCaptureStatus * status))                                      \
        X(cuThreadExchangeStreamCaptureMode, (CUstreamCaptureMode * mode))                                             \
        X(cuStreamBeginCapture_v2, (CUstream stream, CUstreamCaptureMode mode))                                        \
        X(cuStreamEndCapture, (CUstream stream, CUgraph * graph))                                                      \
        X(cuGraphDestroy, (CUgraph graph))                                                                             \
        X(cuMemsetD8_v2, (CUdeviceptr to, unsigned char value, size_t n))                                              \
        X(cuMemGetAllocationPropertiesFromHandle, (CUmemAllocationProp * prop, CUmemGenericAllocationHandle handle))

struct cuda_driver {
#define CUDA_DRIVER_MEMBER(name, args) CUresult(*name) args;
        CUDA_DRIVER_CALLS(CUDA_DRIVER_MEMBER)
#undef CUDA_DRIVER_MEMBER
};

/* NVML: 0 is success everywhere. */
struct nvml_device;
struct nvml_memory {
        unsigned long long total, free, used;
};

#define NVML_CALLS(X)                                                                                                  \
        X(nvmlInit_v2, (void))                                                                                         \
        X(nvmlDeviceGetHandleByUUID, (const char *uuid, struct nvml_device **device))                                  \
        X(nvmlDeviceGetMemoryInfo, (struct nvml_device * device, struct nvml_memory *memory))

struct nvml {
#define NVML_MEMBER(name, args) int(*name) args;
        NVML_CALLS(NVML_MEMBER)
#undef NVML_MEMBER
};

/*
 * The driver's table, after a successful cuInit. Loaded once a process and never unloaded; any thread may ask.
 * 0, VMM_E_NO_DRIVER, VMM_E_REFUSED, with a sentence in `text`.
 */
int cuda_driver_get(const struct cuda_driver **ret_driver, char *text, size_t text_size);

/* "CUDA_ERROR_OUT_OF_MEMORY". */
const char *cuda_driver_error(const struct cuda_driver *d, CUresult result);

/* NVML's table, initialised; NULL where there is none. Any thread may ask. */
const struct nvml *nvml_get(void);
