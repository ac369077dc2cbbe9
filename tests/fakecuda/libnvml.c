// SPDX-License-Identifier: MIT
/*
 * A libnvidia-ml.so.1 without a GPU: how much memory of a fake device is free. Sees every device of the machine,
 * whatever CUDA_VISIBLE_DEVICES says, as the real one does.
 */
#include "fake_memory.h"

#include <pthread.h>

#define DECLARE(name, args) __attribute__((visibility("default"))) int name args;
NVML_CALLS(DECLARE)

enum { SUCCESS, UNINITIALISED, INVALID_ARGUMENT, NOT_FOUND = 6, UNKNOWN = 999 };

static bool initialised;
static struct fake_memory *memory[FAKE_DEVICES_MAX];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

int nvmlInit_v2(void) {
        int r = fake_enter(FAKECUDA_nvmlInit_v2);
        if (r == SUCCESS)
                initialised = true;
        return r;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct nvml_device **device) {
        int r = fake_enter(FAKECUDA_nvmlDeviceGetHandleByUUID);
        if (r != SUCCESS)
                return r;
        if (!initialised)
                return UNINITIALISED;
        int i = fake_by_uuid(uuid, strlen(uuid));
        if (i < 0)
                return NOT_FOUND;
        pthread_mutex_lock(&mutex);
        if (!memory[i])
                memory[i] = fake_memory_open((unsigned)i);
        pthread_mutex_unlock(&mutex);
        *device = (struct nvml_device *)memory[i];
        return memory[i] ? SUCCESS : UNKNOWN;
}

int nvmlDeviceGetMemoryInfo(struct nvml_device *device, struct nvml_memory *ret_memory) {
        int r = fake_enter(FAKECUDA_nvmlDeviceGetMemoryInfo);
        if (r != SUCCESS)
                return r;
        if (!device)
                return INVALID_ARGUMENT;
        unsigned allocations;
        pthread_mutex_lock(&mutex);
        ret_memory->total = fake_capacity();
        ret_memory->free = fake_memory_room((struct fake_memory *)device, &allocations);
        ret_memory->used = ret_memory->total - ret_memory->free;
        pthread_mutex_unlock(&mutex);
        return SUCCESS;
}
