// SPDX-License-Identifier: MIT
#pragma once
/*
 * The knobs of the fake CUDA driver, for tests: what its functions shall do instead of their work, in every process that
 * uses the same $FAKECUDA_DIR, from the next call on.
 *
 *      struct fakecuda *f = fakecuda_open(dir);
 *      fakecuda_delay(f, "cuMemCreate", 300000, FAKECUDA_ALWAYS);
 *      fakecuda_fail(f, "cuMemCreate", CUDA_ERROR_UNKNOWN, 3);       the next three calls, whoever makes them
 *      fakecuda_hang(f, "cuMemSetAccess", 1);                        until fakecuda_clear()
 *      fakecuda_crash(f, "cuMemCreate", 1);                          SIGKILL to itself, the memory just taken
 *      fakecuda_wait(f, "cuMemCreate", 5);                           until five calls have been entered, ever
 *      fakecuda_clear(f);                                            all of it, and what hangs goes on
 *
 * Functions are those of vmm/cuda_driver.h, CUDA's and NVML's, and "close" (see README.md). A shell does the same with
 * the program build/tests/fakecuda/fakecuda.
 *
 * The knobs are a file that all processes map, of zeroes when nothing is set: nothing to parse, and nothing to restart.
 */
#include "cuda_driver.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#define FAKECUDA_ALWAYS UINT32_MAX

enum fakecuda_function {
#define FAKECUDA_FUNCTION(name, args) FAKECUDA_##name,
        CUDA_DRIVER_CALLS(FAKECUDA_FUNCTION) NVML_CALLS(FAKECUDA_FUNCTION) FAKECUDA_close,
        _FAKECUDA_FUNCTION_MAX,
};

enum fakecuda_action { FAKECUDA_GO_ON, FAKECUDA_FAIL, FAKECUDA_HANG, FAKECUDA_CRASH };

struct fakecuda_knob {
        _Atomic uint32_t calls; /* entered so far; counted with knobs or without */
        _Atomic uint32_t times; /* calls left that the knob turns; 0: it is off */
        _Atomic uint32_t delay_us;
        _Atomic uint32_t action;
        _Atomic int32_t result; /* of FAIL */
};

struct fakecuda {
        _Atomic uint32_t cleared; /* a futex: those who hang wait on it */
        struct fakecuda_knob knobs[_FAKECUDA_FUNCTION_MAX];
};

static inline const char *fakecuda_name(enum fakecuda_function f) {
        static const char *const names[] = {
#define FAKECUDA_NAME(name, args) [FAKECUDA_##name] = #name,
                CUDA_DRIVER_CALLS(FAKECUDA_NAME) NVML_CALLS(FAKECUDA_NAME)[FAKECUDA_close] = "close",
        };
        return names[f];
}

#define FAKECUDA_ERRORS(X)                                                                                    \
        X(CUDA_SUCCESS)                                                                                       \
        X(CUDA_ERROR_INVALID_VALUE)                                                                           \
        X(CUDA_ERROR_OUT_OF_MEMORY)                                                                           \
        X(CUDA_ERROR_NOT_INITIALIZED)                                                                         \
        X(CUDA_ERROR_NO_DEVICE)                                                                               \
        X(CUDA_ERROR_INVALID_DEVICE)                                                                          \
        X(CUDA_ERROR_INVALID_CONTEXT)                                                                         \
        X(CUDA_ERROR_OPERATING_SYSTEM)                                                                        \
        X(CUDA_ERROR_INVALID_HANDLE)                                                                          \
        X(CUDA_ERROR_NOT_READY)                                                                               \
        X(CUDA_ERROR_ILLEGAL_ADDRESS)                                                                         \
        X(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED)                                                          \
        X(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED)                                                              \
        X(CUDA_ERROR_NOT_PERMITTED)                                                                           \
        X(CUDA_ERROR_NOT_SUPPORTED)                                                                           \
        X(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED)                                                              \
        X(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED)                                                              \
        X(CUDA_ERROR_CAPTURED_EVENT)                                                                          \
        X(CUDA_ERROR_UNKNOWN)

/* NULL for a number the driver does not know either. */
static inline const char *fakecuda_error_name(int result) {
        switch (result) {
#define FAKECUDA_ERROR_CASE(name) \
        case name:                \
                return #name;
                FAKECUDA_ERRORS(FAKECUDA_ERROR_CASE)
        }
        return NULL;
}

/* Maps the knobs of a directory, which exists. NULL with errno. */
static inline struct fakecuda *fakecuda_open(const char *dir) {
        char path[4096];
        (void)snprintf(path, sizeof(path), "%s/knobs", dir);
        _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
        if (fd < 0 || ftruncate(fd, sizeof(struct fakecuda)) < 0)
                return NULL;
        void *p = mmap(NULL, sizeof(struct fakecuda), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        return p == MAP_FAILED ? NULL : p;
}

/* A misspelt function would be a test that tests nothing. */
static inline struct fakecuda_knob *fakecuda_knob(struct fakecuda *f, const char *function) {
        for (int i = 0; i < _FAKECUDA_FUNCTION_MAX; i++)
                if (strcmp(fakecuda_name((enum fakecuda_function)i), function) == 0)
                        return &f->knobs[i];
        fprintf(stderr, "fakecuda: no function '%s'\n", function);
        abort();
}

static inline long fakecuda_futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *timeout) {
        return syscall(SYS_futex, word, op, value, timeout, NULL, 0);
}

static inline void fakecuda_set(struct fakecuda *f, const char *function, enum fakecuda_action action, int result,
                                uint32_t delay_us, uint32_t times) {
        struct fakecuda_knob *k = fakecuda_knob(f, function);
        k->times = 0;
        k->action = action;
        k->result = result;
        k->delay_us = delay_us;
        k->times = times;
}

static inline void fakecuda_delay(struct fakecuda *f, const char *function, uint32_t delay_us, uint32_t times) {
        fakecuda_set(f, function, FAKECUDA_GO_ON, 0, delay_us, times);
}

static inline void fakecuda_fail(struct fakecuda *f, const char *function, int result, uint32_t times) {
        fakecuda_set(f, function, FAKECUDA_FAIL, result, 0, times);
}

static inline void fakecuda_hang(struct fakecuda *f, const char *function, uint32_t times) {
        fakecuda_set(f, function, FAKECUDA_HANG, 0, 0, times);
}

static inline void fakecuda_crash(struct fakecuda *f, const char *function, uint32_t times) {
        fakecuda_set(f, function, FAKECUDA_CRASH, 0, 0, times);
}

static inline void fakecuda_clear(struct fakecuda *f) {
        for (int i = 0; i < _FAKECUDA_FUNCTION_MAX; i++)
                f->knobs[i].times = 0;
        f->cleared++;
        (void)fakecuda_futex(&f->cleared, FUTEX_WAKE, INT32_MAX, NULL);
}

static inline uint32_t fakecuda_calls(struct fakecuda *f, const char *function) {
        return fakecuda_knob(f, function)->calls;
}

/* Waits until the function has been entered `calls` times in all: false after ten seconds without. */
static inline bool fakecuda_wait(struct fakecuda *f, const char *function, uint32_t calls) {
        struct fakecuda_knob *k = fakecuda_knob(f, function);
        struct timespec start, now;
        (void)clock_gettime(CLOCK_MONOTONIC, &start);
        do {
                uint32_t seen = k->calls;
                if (seen >= calls)
                        return true;
                (void)fakecuda_futex(&k->calls, FUTEX_WAIT, seen, &(struct timespec){ .tv_sec = 1 });
                (void)clock_gettime(CLOCK_MONOTONIC, &now);
        } while (now.tv_sec - start.tv_sec < 10);
        return k->calls >= calls;
}
