// SPDX-License-Identifier: MIT
#include "cuda_driver.h"

#include "vmm.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

struct symbol {
        const char *name;
        size_t offset; /* of its pointer in the table */
};

static const struct symbol cuda_symbols[] = {
#define CUDA_DRIVER_SYMBOL(name, args) { #name, offsetof(struct cuda_driver, name) },
        CUDA_DRIVER_CALLS(CUDA_DRIVER_SYMBOL)
};

static const struct symbol nvml_symbols[] = {
#define NVML_SYMBOL(name, args) { #name, offsetof(struct nvml, name) },
        NVML_CALLS(NVML_SYMBOL)
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Fills a table of pointers. A library that lacks a symbol is as good as none; what is wrong with it is dlerror's. */
static bool load(const char *library, const struct symbol *symbols, size_t n, void *table) {
        void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
        if (!handle)
                return false;
        for (size_t i = 0; i < n; i++) {
                void **at = (void **)((char *)table + symbols[i].offset);
                *at = dlsym(handle, symbols[i].name);
                if (!*at)
                        return false;
        }
        return true;
}

const char *cuda_driver_error(const struct cuda_driver *d, CUresult result) {
        const char *name = NULL;
        return d->cuGetErrorName(result, &name) == CUDA_SUCCESS && name ? name : "an unknown CUDA error";
}

int cuda_driver_get(const struct cuda_driver **ret_driver, char *text, size_t text_size) {
        static struct cuda_driver driver;
        static bool loaded;

        pthread_mutex_lock(&lock);
        if (!loaded)
                loaded = load("libcuda.so.1", cuda_symbols, ARRAY_SIZE(cuda_symbols), &driver);
        bool ok = loaded;
        if (!ok)
                (void)snprintf(text, text_size, "no CUDA driver: %s", dlerror());
        pthread_mutex_unlock(&lock);
        if (!ok)
                return VMM_E_NO_DRIVER;

        /* Costs nothing when done before, and finds out that this process is the child of one that had done it. */
        CUresult r = driver.cuInit(0);
        if (r != CUDA_SUCCESS) {
                (void)snprintf(text, text_size, "cuInit: %s", cuda_driver_error(&driver, r));
                return r == CUDA_ERROR_NO_DEVICE ? VMM_E_NO_DRIVER : VMM_E_REFUSED;
        }
        *ret_driver = &driver;
        return 0;
}

const struct nvml *nvml_get(void) {
        static struct nvml nvml;
        static enum { UNTRIED, MISSING, READY } state;

        pthread_mutex_lock(&lock);
        if (state == UNTRIED)
                state = load("libnvidia-ml.so.1", nvml_symbols, ARRAY_SIZE(nvml_symbols), &nvml) &&
                                        nvml.nvmlInit_v2() == 0
                                ? READY
                                : MISSING;
        const struct nvml *ret = state == READY ? &nvml : NULL;
        pthread_mutex_unlock(&lock);
        return ret;
}
