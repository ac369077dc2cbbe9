// SPDX-License-Identifier: MIT
#include "safetensors.h"

#include <inttypes.h>
#include <string.h>

#include "error.h"
#include "tensor.h"
#include "wire.h"

#define METADATA "__metadata__"

/* What is being read, for the texts. */
struct source {
        const char *path;
        const char *header;
        size_t size;
        uint64_t file_size;
};

int safetensors_header_size(const char *path, const uint8_t *prefix, uint64_t file_size, size_t *ret_size) {
        uint64_t n = 0;
        if (file_size < SAFETENSORS_PREFIX)
                return error_set(-EBADMSG, "%.300s: byte 0: the file has %" PRIu64 " bytes, and a safetensors file begins with 8 "
                                 "that say how long its header is", path, file_size);
        for (unsigned i = SAFETENSORS_PREFIX; i-- > 0;)
                n = n << 8 | prefix[i];
        if (n > SAFETENSORS_HEADER_MAX)
                return error_set(-EBADMSG,
                                 "%.300s: byte 0: a header of %" PRIu64 " bytes is announced, and %u is the most that there "
                                 "can be: no safetensors file?",
                                 path, n, SAFETENSORS_HEADER_MAX);
        if (n > file_size - SAFETENSORS_PREFIX)
                return error_set(-EBADMSG,
                                 "%.300s: byte 0: a header of %" PRIu64 " bytes is announced, and the file ends at byte %" PRIu64
                                 ": cut short, or no safetensors file",
                                 path, n, file_size);
        *ret_size = (size_t)n;
        return 0;
}

/* ---- JSON */

static bool is_space(char c) {
        return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* `offset`: where the text begins in its file. */
static int parse_object(json_t **ret_object, const char *path, const char *text, size_t size, uint64_t offset) {
        json_error_t error;
        size_t first = 0;
        while (first < size && is_space(text[first])) /* which the reference's writers may pad with, at either end */
                first++;
        if (first == size || text[first] != '{')
                return error_set(-EBADMSG,
                                 "%.300s: byte %" PRIu64 ": a '{' was expected: the JSON object that says what is in the file",
                                 path, offset + first);
        json_t *object = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
        if (!object)
                return json_error_code(&error) == json_error_out_of_memory
                               ? error_errno(-ENOMEM, path)
                               : error_set(-EBADMSG, "%.300s: byte %" PRIu64 ": %s", path,
                                           offset + (uint64_t)MAX(error.position, 0), error.text);
        *ret_object = object;
        return 0;
}

/* Where key number `index` of the outermost object stands, in text that is known to be right. */
static size_t key_offset(const char *text, size_t size, size_t index) {
        unsigned depth = 0;
        bool key = false; /* what comes next */
        for (size_t i = 0; i < size; i++) {
                if (text[i] == '{' || text[i] == '[')
                        key = ++depth == 1;
                else if (text[i] == '}' || text[i] == ']')
                        depth--;
                else if (text[i] == ',')
                        key = depth == 1;
                if (text[i] != '"')
                        continue;
                if (key && index-- == 0)
                        return i;
                key = false;
                while (text[++i] != '"')
                        i += text[i] == '\\';
        }
        return 0;
}

#define refuse_key(s, index, format, ...)                                                                                  \
        error_set(-EBADMSG, "%.300s: byte %zu: " format, (s)->path,                                                        \
                  SAFETENSORS_PREFIX + key_offset((s)->header, (s)->size, index), ##__VA_ARGS__)

/* ---- tensors */

static int check_metadata(const struct source *s, size_t index, json_t *metadata) {
        const char *key;
        json_t *value;
        if (!json_is_object(metadata))
                return refuse_key(s, index, METADATA " is no object");
        json_object_foreach(metadata, key, value)
                if (!json_is_string(value))
                        return refuse_key(s, index, METADATA ": '%.200s' is no text, and no other values are allowed there", key);
        return 0;
}

static int parse_shape(const struct source *s, size_t index, json_t *shape, struct safetensors_tensor *t, int64_t *dims,
                       uint64_t *ret_bytes) {
        uint64_t elements, bits;
        if (!json_is_array(shape) || json_array_size(shape) > GMS_RANK_MAX)
                return refuse_key(s, index, "tensor '%s': its shape is no list of at most %d sizes", t->name, GMS_RANK_MAX);
        t->shape = dims;
        t->rank = (uint32_t)json_array_size(shape);
        for (uint32_t i = 0; i < t->rank; i++) {
                json_t *size = json_array_get(shape, i);
                if (!json_is_integer(size) || json_integer_value(size) < 0)
                        return refuse_key(s, index, "tensor '%s': size %u of its shape is no number of elements", t->name, i);
                dims[i] = json_integer_value(size);
        }
        if (!tensor_shape_fits(dims, t->rank, gms_dtype_bits(t->dtype), &elements))
                return refuse_key(s, index, "tensor '%s': its shape has more elements than a file can hold", t->name);
        bits = elements * gms_dtype_bits(t->dtype);
        if (bits % 8 != 0)
                return refuse_key(s, index, "tensor '%s': %" PRIu64 " bits of %s are no whole bytes", t->name, bits,
                                  gms_dtype_name(t->dtype));
        *ret_bytes = bits / 8;
        return 0;
}

static int parse_place(const struct source *s, size_t index, json_t *place, struct safetensors_tensor *t, uint64_t bytes) {
        json_t *begin = json_array_get(place, 0), *end = json_array_get(place, 1);
        if (json_array_size(place) != 2 || !json_is_integer(begin) || !json_is_integer(end) || json_integer_value(begin) < 0 ||
            json_integer_value(end) < json_integer_value(begin))
                return refuse_key(s, index, "tensor '%s': its data_offsets are not [begin, end]", t->name);
        t->begin = (uint64_t)json_integer_value(begin);
        t->end = (uint64_t)json_integer_value(end);
        if (t->end - t->begin != bytes)
                return refuse_key(s, index,
                                  "tensor '%s': its data_offsets are %" PRIu64 " bytes apart; its type and shape make %" PRIu64,
                                  t->name, t->end - t->begin, bytes);
        t->begin += SAFETENSORS_PREFIX + s->size; /* at most 2^63 and a header: it fits */
        t->end += SAFETENSORS_PREFIX + s->size;
        return 0;
}

static int parse_tensor(const struct source *s, size_t index, const char *name, json_t *entry, struct safetensors_tensor *t,
                        int64_t *dims) {
        const char *dtype = json_string_value(json_object_get(entry, "dtype"));
        uint64_t bytes;
        t->name = name;
        if (*name == '\0' || !wire_text_ok(name, SAFETENSORS_NAME_MAX))
                return refuse_key(s, index, "tensor '%.100s'%s: a name is 1 to %u bytes of text without control characters", name,
                                  strlen(name) > 100 ? "..." : "", SAFETENSORS_NAME_MAX);
        if (!dtype || (t->dtype = gms_dtype_find(dtype)) == 0)
                return refuse_key(s, index, "tensor '%s': %s%.40s%s", name, dtype ? "its type '" : "it has no type",
                                  dtype ? dtype : "", dtype ? "' is not known" : "");
        int r = parse_shape(s, index, json_object_get(entry, "shape"), t, dims, &bytes);
        return r < 0 ? r : parse_place(s, index, json_object_get(entry, "data_offsets"), t, bytes);
}

static size_t count_dimensions(json_t *header) {
        const char *name;
        json_t *entry;
        size_t n = 0;
        json_object_foreach(header, name, entry)
                n += MIN(json_array_size(json_object_get(entry, "shape")), (size_t)GMS_RANK_MAX);
        return n;
}

static int parse_tensors(struct safetensors *ret, const struct source *s) {
        size_t index = 0;
        int64_t *dims;
        const char *name;
        json_t *entry;
        int r = 0;
        ret->tensors = calloc(json_object_size(ret->names) + 1, sizeof(*ret->tensors));
        ret->shapes = dims = calloc(count_dimensions(ret->names) + 1, sizeof(*ret->shapes));
        if (!ret->tensors || !ret->shapes)
                return error_errno(-ENOMEM, s->path);
        json_object_foreach(ret->names, name, entry) {
                if (strcmp(name, METADATA) == 0) {
                        r = check_metadata(s, index, entry);
                } else {
                        struct safetensors_tensor *t = &ret->tensors[ret->n++];
                        r = parse_tensor(s, index, name, entry, t, dims);
                        dims += t->rank;
                }
                if (r < 0)
                        return r;
                index++;
        }
        return 0;
}

/* ---- the file as a whole */

static int compare_places(const void *a, const void *b) {
        const struct safetensors_tensor *x = a, *y = b;
        if (x->begin != y->begin)
                return x->begin < y->begin ? -1 : 1;
        return x->end != y->end ? (x->end < y->end ? -1 : 1) : strcmp(x->name, y->name);
}

/* One tensor behind the other, from the header to the end of the file. */
static int check_places(const struct safetensors *f, const struct source *s) {
        uint64_t at = f->begin;
        for (size_t i = 0; i < f->n; i++) {
                const struct safetensors_tensor *t = &f->tensors[i];
                if (t->begin > at)
                        return error_set(-EBADMSG, "%.300s: byte %" PRIu64 ": up to '%.505s', which begins at byte %" PRIu64
                                         ", the bytes belong to no tensor", s->path, at, t->name, t->begin);
                if (t->begin < at)
                        return error_set(-EBADMSG,
                                         "%.300s: byte %" PRIu64 ": '%.200s' begins inside of '%.200s', which ends at %" PRIu64,
                                         s->path, t->begin, t->name, f->tensors[i - 1].name, at);
                at = t->end;
                if (at > s->file_size)
                        return error_set(-EBADMSG, "%.300s: byte %" PRIu64 ": the file ends here, and '%.505s' at byte %" PRIu64
                                         ": it is cut short", s->path, s->file_size, t->name, at);
        }
        if (at < s->file_size)
                return error_set(-EBADMSG, "%.300s: byte %" PRIu64 ": from here to the end of the file, byte %" PRIu64
                                 ", the bytes belong to no tensor", s->path, at, s->file_size);
        return 0;
}

int safetensors_parse(struct safetensors *ret, const char *path, const char *header, size_t size, uint64_t file_size) {
        struct source s = { .path = path, .header = header, .size = size, .file_size = file_size };
        struct safetensors f = { .begin = SAFETENSORS_PREFIX + size };
        int r = parse_object(&f.names, path, header, size, SAFETENSORS_PREFIX);
        if (r == 0)
                r = parse_tensors(&f, &s);
        if (r == 0) {
                qsort(f.tensors, f.n, sizeof(*f.tensors), compare_places);
                r = check_places(&f, &s);
        }
        if (r < 0) {
                safetensors_done(&f);
                return r;
        }
        *ret = f;
        return 0;
}

void safetensors_done(struct safetensors *s) {
        free(s->tensors);
        free(s->shapes);
        json_decref(s->names);
        *s = (struct safetensors){ 0 };
}

/* ---- the index */

int safetensors_parse_index(json_t **ret_map, const char *path, const char *index, size_t size) {
        const char *name;
        json_t *root, *file;
        int r = parse_object(&root, path, index, size, 0);
        if (r < 0)
                return r;
        json_t *map = json_incref(json_object_get(root, "weight_map"));
        json_decref(root);
        if (!json_is_object(map))
                r = error_set(-EBADMSG, "%.300s: it has no \"weight_map\": the object that says which tensor is in which file",
                              path);
        json_object_foreach(map, name, file) {
                const char *s = json_string_value(file);
                if (!s || *s == '\0' || strchr(s, '/') || strcmp(s, ".") == 0 || strcmp(s, "..") == 0) {
                        r = error_set(-EBADMSG,
                                      "%.300s: tensor '%.200s' is said to be in '%.200s', which is no name of a file beside it",
                                      path, name, s ? s : "");
                        break;
                }
        }
        if (r < 0) {
                json_decref(map);
                return r;
        }
        *ret_map = map;
        return 0;
}
