// SPDX-License-Identifier: MIT
#pragma once
/* Makes safetensors files, for tests and measurements: bytes that can be told apart, by the tensor's name and the place in it. */
#include "gmsclient.h"

struct weight {
        char name[64];
        const char *dtype; /* "BF16" */
        uint32_t rank;
        int64_t shape[3];
};

uint64_t weight_bytes(const struct weight *w);

/* The bytes of a tensor from `offset` on. */
void weights_fill(const char *name, uint64_t offset, void *to, size_t n);

/* One file with these tensors, in this order. What goes wrong ends the process. */
void weights_write(const char *path, const struct weight *weights, size_t n);

/* The same with a hole for the bytes: no disk has to hold them, and the page cache holds zeros as it holds anything. */
void weights_write_hollow(const char *path, const struct weight *weights, size_t n);

/* A file with this header and so many bytes after it, whether that makes sense or not. */
void weights_write_raw(const char *path, const char *header, uint64_t bytes);

/* An index "DIR/model.safetensors.index.json"; tensor i of `weights` is in files[i]. */
void weights_write_index(const char *dir, const struct weight *weights, const char *const *files, size_t n);
