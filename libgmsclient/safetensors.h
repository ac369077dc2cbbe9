// SPDX-License-Identifier: MIT
#pragma once
/*
 * The header of a safetensors file, and the index of a sharded one: bytes in, tensors out. Reads no file.
 *
 * A file is the header's length (8 bytes, little-endian), the header (a JSON object: tensor -> type, shape, place) and the
 * tensors' bytes, which follow each other without gaps up to the end of the file. What the reference implementation refuses is
 * refused here: huggingface/safetensors 0.8, whose rules these are. Beyond it: names that no store can have, more than
 * GMS_RANK_MAX dimensions, and duplicate names, which the format forbids and the reference lets pass.
 *
 * All functions return 0, -ENOMEM or -EBADMSG, whose text says which file, where in it (byte offset) and why.
 */
#include <jansson.h>

#include "gmsclient.h"

#define SAFETENSORS_PREFIX 8u                /* bytes before the header */
#define SAFETENSORS_HEADER_MAX 100000000u    /* as the reference has it; an index is held to the same */
#define SAFETENSORS_NAME_MAX 505u

struct safetensors_tensor {
        const char *name;
        const int64_t *shape;
        uint32_t dtype; /* GMS_DTYPE_* */
        uint32_t rank;
        uint64_t begin; /* its bytes in the file */
        uint64_t end;
};

struct safetensors {
        struct safetensors_tensor *tensors; /* as they lie in the file; empty ones before what begins in the same place */
        size_t n;
        uint64_t begin; /* of the first tensor's bytes: behind the header */
        int64_t *shapes;
        json_t *names;  /* keeps them */
};

/* The header's length, from the first bytes of a file; `prefix` has as many of SAFETENSORS_PREFIX as the file. */
int safetensors_header_size(const char *path, const uint8_t *prefix, uint64_t file_size, size_t *ret_size);

/* The header itself. `path` is for the texts. */
int safetensors_parse(struct safetensors *ret, const char *path, const char *header, size_t size, uint64_t file_size);
void safetensors_done(struct safetensors *s);

/*
 * The map {tensor: file} of an index: files are plain names, to be looked for beside the index. A reference that the caller
 * gives back by json_decref().
 */
int safetensors_parse_index(json_t **ret_map, const char *path, const char *index, size_t size);
