// SPDX-License-Identifier: MIT
/*
 * Any bytes as a model file, as a header of one, or as an index. What is taken for one tiles its file; what is not is refused in
 * words, with a place that is inside.
 */
#undef NDEBUG
#include <stdio.h>
#include <string.h>

#include "../../libgmsclient/safetensors.h"
#include "base.h"
#include "fuzz.h"

enum { A_FILE, AN_INDEX, A_HEADER };

int LLVMFuzzerInitialize(int *argc, char ***argv) {
        (void)argc, (void)argv;
        return 0;
}

static void check_refusal(int r, uint64_t last) {
        unsigned long long byte = 0;
        assert(r == -EBADMSG);
        assert(strncmp(gms_last_error(), "f: ", 3) == 0 && strlen(gms_last_error()) > 20);
        assert(sscanf(gms_last_error(), "f: byte %llu: ", &byte) == 0 || byte <= last);
}

static void check_tensor(const struct safetensors_tensor *t) {
        uint64_t bits = gms_dtype_bits(t->dtype);
        assert(bits > 0 && t->rank <= GMS_RANK_MAX && *t->name && strlen(t->name) <= SAFETENSORS_NAME_MAX);
        for (uint32_t i = 0; i < t->rank; i++) {
                assert(t->shape[i] >= 0);
                bits *= (uint64_t)t->shape[i];
        }
        assert(bits == (t->end - t->begin) * 8);
}

static void parse(const char *header, size_t n, uint64_t file_size) {
        struct safetensors s;
        int r = safetensors_parse(&s, "f", header, n, file_size);
        if (r != 0) {
                check_refusal(r, MAX(file_size, n + SAFETENSORS_PREFIX));
                return;
        }
        uint64_t at = s.begin;
        assert(at == n + SAFETENSORS_PREFIX);
        for (size_t i = 0; i < s.n; i++) {
                assert(s.tensors[i].begin == at);
                check_tensor(&s.tensors[i]);
                at = s.tensors[i].end;
        }
        assert(at == file_size);
        safetensors_done(&s);
}

static void parse_file(const uint8_t *data, size_t size) {
        size_t n;
        int r = safetensors_header_size("f", data, size, &n);
        if (r != 0) {
                check_refusal(r, 0);
                return;
        }
        assert(n <= size - SAFETENSORS_PREFIX);
        char *header = malloc(n ? n : 1); /* so that a sanitizer sees a read behind it */
        assert(header);
        memcpy(header, data + SAFETENSORS_PREFIX, n);
        parse(header, n, size);
        free(header);
}

static void parse_index(const char *text, size_t n) {
        json_t *map, *file;
        const char *name;
        int r = safetensors_parse_index(&map, "f", text, n);
        if (r != 0) {
                check_refusal(r, n);
                return;
        }
        json_object_foreach(map, name, file)
                assert(json_is_string(file) && !strchr(json_string_value(file), '/') && *json_string_value(file));
        json_decref(map);
}

/* The first byte says which; before a header, the next two say how many bytes of data are behind it. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        if (size < 3)
                return 0;
        if (data[0] == A_FILE)
                parse_file(data + 1, size - 1);
        else if (data[0] == AN_INDEX)
                parse_index((const char *)data + 1, size - 1);
        else if (data[0] == A_HEADER)
                parse((const char *)data + 3, size - 3, SAFETENSORS_PREFIX + size - 3 + data[1] + 256u * data[2]);
        return 0;
}
