// SPDX-License-Identifier: MIT
/*
 * Tensors: their types, what they cover, how they are written down, that nothing which a stranger wrote does harm; and what is
 * lent by DLPack, on a handle that has memory of the host and no daemon.
 */
#undef NDEBUG
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "../../libgmsclient/dlpack.h"
#include "../../libgmsclient/dtype.h"
#include "../../libgmsclient/handle.h"
#include "../../libgmsclient/tensor.h"

#define MOST INT64_MAX

/* ---- types */

/* As safetensors and DLPack's specification have them, written once more. */
static const struct {
        uint32_t dtype;
        const char *name;
        unsigned bits, code;
} types[] = {
        { GMS_DTYPE_BOOL, "BOOL", 8, 6 },     { GMS_DTYPE_U8, "U8", 8, 1 },    { GMS_DTYPE_I8, "I8", 8, 0 },
        { GMS_DTYPE_U16, "U16", 16, 1 },      { GMS_DTYPE_I16, "I16", 16, 0 }, { GMS_DTYPE_U32, "U32", 32, 1 },
        { GMS_DTYPE_I32, "I32", 32, 0 },      { GMS_DTYPE_U64, "U64", 64, 1 }, { GMS_DTYPE_I64, "I64", 64, 0 },
        { GMS_DTYPE_F16, "F16", 16, 2 },      { GMS_DTYPE_BF16, "BF16", 16, 4 }, { GMS_DTYPE_F32, "F32", 32, 2 },
        { GMS_DTYPE_F64, "F64", 64, 2 },      { GMS_DTYPE_C64, "C64", 64, 5 }, { GMS_DTYPE_F8_E4M3, "F8_E4M3", 8, 10 },
        { GMS_DTYPE_F8_E5M2, "F8_E5M2", 8, 12 }, { GMS_DTYPE_F8_E8M0, "F8_E8M0", 8, 14 },
        { GMS_DTYPE_F8_E4M3FNUZ, "F8_E4M3FNUZ", 8, 11 }, { GMS_DTYPE_F8_E5M2FNUZ, "F8_E5M2FNUZ", 8, 13 },
        { GMS_DTYPE_F4, "F4", 4, 17 },        { GMS_DTYPE_F6_E2M3, "F6_E2M3", 6, 15 },
        { GMS_DTYPE_F6_E3M2, "F6_E3M2", 6, 16 },
};

START_TEST(every_type) {
        uint32_t n = 0;
        for (uint32_t dtype = 0; dtype < 300; dtype++)
                n += dtype_get(dtype) != NULL;
        ck_assert_uint_eq(n, ARRAY_SIZE(types));
        for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
                ck_assert_uint_eq(types[i].dtype, i + 1);
                ck_assert_str_eq(gms_dtype_name(types[i].dtype), types[i].name);
                ck_assert_uint_eq(gms_dtype_find(types[i].name), types[i].dtype);
                ck_assert_uint_eq(gms_dtype_bits(types[i].dtype), types[i].bits);
                ck_assert_uint_eq(dtype_get(types[i].dtype)->code, types[i].code);
        }
        ck_assert_uint_eq(gms_dtype_find("bf16") + gms_dtype_find("") + gms_dtype_find(NULL) + gms_dtype_find("F128"), 0);
        ck_assert_uint_eq(gms_dtype_bits(0) + gms_dtype_bits(UINT32_MAX) + gms_dtype_bits(GMS_DTYPE_F6_E3M2 + 1), 0);
        ck_assert_ptr_null(gms_dtype_name(0));
        ck_assert_ptr_null(gms_dtype_name(UINT32_MAX));
}
END_TEST

/* ---- what they cover */

/* Dimensions, and strides if `strided`; shapes end with -9. */
#define END (-9)

static uint32_t rank_of(const int64_t *shape) {
        uint32_t rank = 0;
        while (shape[rank] != END)
                rank++;
        return rank;
}

static const struct {
        uint32_t dtype;
        int64_t shape[6], strides[6]; /* no strides: { END } */
        uint64_t offset;
        int64_t bytes; /* -1: it cannot be, and this is in the text */
        const char *fault;
} shapes[] = {
        { GMS_DTYPE_F32, { END }, { END }, 0, 4, NULL },                       /* a scalar */
        { GMS_DTYPE_F32, { 3, 4, END }, { END }, 8, 48, NULL },
        { GMS_DTYPE_F32, { 3, 4, END }, { 4, 1, END }, 8, 48, NULL },
        { GMS_DTYPE_F32, { 3, 4, END }, { 1, 3, END }, 8, 48, NULL },          /* transposed */
        { GMS_DTYPE_F32, { 3, 4, END }, { 100, 2, END }, 8, 4 * 207, NULL },   /* steps */
        { GMS_DTYPE_F32, { 3, 4, END }, { 0, 1, END }, 8, 16, NULL },          /* broadcast */
        { GMS_DTYPE_F32, { 1 << 20, 1 << 20, END }, { 0, 0, END }, 0, 4, NULL },
        { GMS_DTYPE_F32, { 1, 4, 1, END }, { 77, 1, 99, END }, 0, 16, NULL },  /* strides of one step say nothing */
        { GMS_DTYPE_F32, { 0, END }, { END }, 0, 0, NULL },
        { GMS_DTYPE_F32, { 5, 0, 7, END }, { 1000, 1, MOST, END }, 4, 0, NULL },
        { GMS_DTYPE_U8, { MOST / 8, END }, { END }, 0, MOST / 8, NULL },
        { GMS_DTYPE_U8, { 2, END }, { MOST / 8 - 1, END }, 0, MOST / 8, NULL },
        { GMS_DTYPE_C64, { 2, END }, { END }, 8, 16, NULL },
        { GMS_DTYPE_F4, { 3, 4, END }, { END }, 1, 6, NULL },
        { GMS_DTYPE_F4, { 3, 4, END }, { 4, 1, END }, 1, 6, NULL },
        { GMS_DTYPE_F6_E2M3, { 4, END }, { END }, 1, 3, NULL },
        { GMS_DTYPE_F6_E3M2, { 0, 3, END }, { END }, 1, 0, NULL },

        { 0, { 1, END }, { END }, 0, -1, "type" },
        { GMS_DTYPE_F6_E3M2 + 1, { 1, END }, { END }, 0, -1, "type" },
        { UINT32_MAX, { 1, END }, { END }, 0, -1, "type" },
        { GMS_DTYPE_F32, { -1, END }, { END }, 0, -1, "negative" },
        { GMS_DTYPE_F32, { INT64_MIN, END }, { END }, 0, -1, "negative" },
        { GMS_DTYPE_F32, { 2, END }, { -1, END }, 0, -1, "negative" },
        { GMS_DTYPE_F32, { 0, -1, END }, { END }, 0, -1, "negative" },
        { GMS_DTYPE_F32, { MOST, END }, { END }, 0, -1, "shape" },
        { GMS_DTYPE_U8, { MOST / 8 + 1, END }, { END }, 0, -1, "shape" },
        { GMS_DTYPE_U8, { INT64_C(1) << 32, INT64_C(1) << 32, END }, { END }, 0, -1, "shape" }, /* the product is 0 */
        { GMS_DTYPE_U8, { INT64_C(1) << 32, INT64_C(1) << 32, END }, { 0, 0, END }, 0, -1, "shape" },
        { GMS_DTYPE_U8, { 0, MOST, MOST, END }, { END }, 0, -1, "shape" },
        { GMS_DTYPE_U8, { 3, END }, { MOST, END }, 0, -1, "strides" },
        { GMS_DTYPE_U8, { 2, END }, { MOST, END }, 0, -1, "strides" },
        { GMS_DTYPE_U8, { 2, 2, END }, { MOST, MOST, END }, 0, -1, "strides" },
        { GMS_DTYPE_F64, { 2, END }, { MOST / 4, END }, 0, -1, "strides" },
        { GMS_DTYPE_F4, { 3, END }, { END }, 0, -1, "whole bytes" },
        { GMS_DTYPE_F4, { END }, { END }, 0, -1, "whole bytes" },
        { GMS_DTYPE_F6_E2M3, { 6, END }, { END }, 0, -1, "whole bytes" },
        { GMS_DTYPE_F4, { 2, 2, END }, { 1, 2, END }, 0, -1, "contiguous" },
        { GMS_DTYPE_F6_E3M2, { 4, END }, { 2, END }, 0, -1, "contiguous" },
        { GMS_DTYPE_BF16, { 2, END }, { END }, 3, -1, "aligned" },
        { GMS_DTYPE_C64, { 2, END }, { END }, 4, -1, "aligned" },
};

static struct gms_tensor shaped(size_t i) {
        return (struct gms_tensor){
                .size = sizeof(struct gms_tensor), .dtype = shapes[i].dtype, .rank = rank_of(shapes[i].shape), .name = "x",
                .shape = shapes[i].shape, .strides = shapes[i].strides[0] == END ? NULL : shapes[i].strides,
                .offset = shapes[i].offset,
        };
}

START_TEST(shape) {
        struct gms_tensor t = shaped((size_t)_i);
        const char *fault = tensor_fault(&t, &t.bytes);
        if (shapes[_i].bytes >= 0) {
                ck_assert_msg(!fault, "%s", fault);
                ck_assert_int_eq((int64_t)t.bytes, shapes[_i].bytes);
        } else {
                ck_assert_ptr_nonnull(fault);
                ck_assert_msg(strstr(fault, shapes[_i].fault) != NULL, "%s", fault);
        }
}
END_TEST

START_TEST(rank_and_kind) {
        int64_t ones[GMS_RANK_MAX + 1];
        uint64_t bytes;
        for (size_t i = 0; i < ARRAY_SIZE(ones); i++)
                ones[i] = 1;
        struct gms_tensor t = { .dtype = GMS_DTYPE_U8, .rank = GMS_RANK_MAX, .shape = ones, .kind = GMS_TENSOR_BUFFER };
        ck_assert_ptr_null(tensor_fault(&t, &bytes));
        t.rank++;
        ck_assert_ptr_nonnull(tensor_fault(&t, &bytes));
        t.rank = 1;
        t.kind = GMS_TENSOR_BUFFER + 1;
        ck_assert_ptr_nonnull(tensor_fault(&t, &bytes));
}
END_TEST

static const struct {
        uint64_t offset, bytes, storage_offset, storage_bytes, size;
        const char *fault;
} places[] = {
        { 8, 8, 8, 8, 16, NULL },          { 8, 8, 0, 16, 16, NULL },      { 16, 0, 16, 0, 16, NULL },
        { 8, 8, 8, 8, 15, "end of its" },  { 16, 8, 0, 16, 99, "storage" }, { 0, 8, 8, 8, 99, "storage" },
        { 8, 8, 0, 16, 15, "end of its" }, { 8, 8, 4, 16, 16, "end of its" }, { UINT64_MAX - 7, 8, 0, 9, MOST, "end of its" },
        { 8, 8, 8, UINT64_MAX - 7, MOST, "storage" }, { 8, 8, 0, UINT64_MAX, MOST, "storage" },
        { 8, 4, 2, 10, 16, "aligned" },    { 8, 4, 4, 8, 16, NULL },
};

START_TEST(place) {
        struct gms_tensor t = {
                .dtype = GMS_DTYPE_F32, .offset = places[_i].offset, .bytes = places[_i].bytes,
                .storage_offset = places[_i].storage_offset, .storage_bytes = places[_i].storage_bytes,
        };
        const char *fault = tensor_place_fault(&t, places[_i].size);
        ck_assert_msg(!fault == !places[_i].fault && (!fault || strstr(fault, places[_i].fault)), "%s", fault);
}
END_TEST

/* ---- written down */

static int64_t read_shape[GMS_RANK_MAX], read_strides[GMS_RANK_MAX];

/* What is read of what was written; the caller frees the value. */
static struct gms_metadata write_down(struct gms_tensor *t) {
        Gms__Tensor message;
        ck_assert_ptr_null(tensor_fault(t, &t->bytes));
        tensor_message(t, &message);
        size_t size = gms__tensor__get_packed_size(&message);
        uint8_t *value = malloc(size + 1);
        ck_assert_uint_eq(gms__tensor__pack(&message, value), size);
        return (struct gms_metadata){
                .size = sizeof(struct gms_metadata), .key = "tensor/x", .slot = t->slot, .offset = t->offset, .value = value,
                .value_size = (uint32_t)size,
        };
}

START_TEST(there_and_back) {
        struct gms_tensor t = shaped((size_t)_i), back;
        if (shapes[_i].bytes < 0)
                return;
        for (int storage = 0; storage < 3; storage++) {
                t.slot = 7;
                t.kind = storage % 2 ? GMS_TENSOR_BUFFER : 0;
                ck_assert_ptr_null(tensor_fault(&t, &t.bytes));
                t.storage_offset = storage ? 0 : t.offset;
                t.storage_bytes = t.bytes + t.offset - t.storage_offset + (storage == 2 ? 64 : 0);
                struct gms_metadata e = write_down(&t);
                const char *fault = tensor_read(&e, &back, read_shape, read_strides);
                ck_assert_msg(!fault, "%s", fault);
                ck_assert_uint_eq(back.dtype, t.dtype);
                ck_assert_uint_eq(back.kind, storage % 2 ? GMS_TENSOR_BUFFER : GMS_TENSOR_PARAMETER);
                ck_assert_uint_eq(back.rank, t.rank);
                ck_assert_uint_eq(back.slot, 7);
                ck_assert_uint_eq(back.offset, t.offset);
                ck_assert_uint_eq(back.bytes, t.bytes);
                ck_assert_uint_eq(back.storage_offset, t.storage_offset);
                ck_assert_uint_eq(back.storage_bytes, t.storage_bytes);
                for (uint32_t k = 0; k < t.rank; k++) {
                        ck_assert_int_eq(back.shape[k], t.shape[k]);
                        if (t.strides && t.shape[k] > 1 && t.bytes > 0)
                                ck_assert_int_eq(back.strides[k], t.strides[k]);
                }
                free((void *)(uintptr_t)e.value);
        }
}
END_TEST

/* The hash of a layout must not depend on how one says the same. */
START_TEST(same_said_twice) {
        static const int64_t dims[] = { 2, 1, 3 }, strides[] = { 3, 555, 1 }, others[] = { 1, 1, 2 };
        struct gms_tensor a = { .dtype = GMS_DTYPE_F16, .rank = 3, .shape = dims, .offset = 4, .storage_offset = 4 }, b = a, c;
        ck_assert_ptr_null(tensor_fault(&a, &a.storage_bytes));
        b.storage_bytes = a.storage_bytes;
        b.strides = strides;
        b.kind = GMS_TENSOR_PARAMETER;
        c = b;
        c.strides = others;
        struct gms_metadata one = write_down(&a), two = write_down(&b), three = write_down(&c);
        ck_assert_uint_eq(one.value_size, two.value_size);
        ck_assert_mem_eq(one.value, two.value, one.value_size);
        ck_assert_uint_gt(three.value_size, one.value_size);
        free((void *)(uintptr_t)one.value);
        free((void *)(uintptr_t)two.value);
        free((void *)(uintptr_t)three.value);

        /* And it is what it was: stores that were published remember it. */
        static const uint8_t golden[] = { 0x08, 10, 0x10, 1, 0x1a, 3, 2, 1, 3, 0x22, 3, 1, 1, 2, 0x28, 4, 0x30, 100 };
        c.storage_offset = 0;
        c.storage_bytes = 100;
        three = write_down(&c);
        ck_assert_uint_eq(three.value_size, sizeof(golden));
        ck_assert_mem_eq(three.value, golden, sizeof(golden));
        free((void *)(uintptr_t)three.value);
}
END_TEST

/* ---- by strangers */

static void pack(const Gms__Tensor *m, struct gms_metadata *e) {
        size_t size = gms__tensor__get_packed_size(m);
        uint8_t *value = malloc(size + 1);
        e->value = value;
        e->value_size = (uint32_t)gms__tensor__pack(m, value);
}

static void refused(const Gms__Tensor *m, uint64_t offset, const char *word) {
        struct gms_metadata e = { .key = "tensor/x", .offset = offset };
        struct gms_tensor t;
        pack(m, &e);
        const char *fault = tensor_read(&e, &t, read_shape, read_strides);
        ck_assert_ptr_nonnull(fault);
        ck_assert_msg(strstr(fault, word) != NULL, "%s", fault);
        free((void *)(uintptr_t)e.value);
}

START_TEST(hostile) {
        uint64_t many[4000] = {}, two[] = { 2, 3 }, huge[] = { UINT64_MAX, 1 };
        Gms__Tensor m = GMS__TENSOR__INIT;
        refused(&m, 0, "type");
        m.dtype = GMS_DTYPE_F32;
        m.n_shape = ARRAY_SIZE(many);
        m.shape = many;
        refused(&m, 0, "dimensions");
        m.n_shape = 2;
        m.shape = huge;
        refused(&m, 0, "negative");
        m.shape = two;
        m.n_strides = 1;
        m.strides = two;
        refused(&m, 0, "stride for each");
        m.n_strides = 2;
        m.strides = huge;
        refused(&m, 0, "negative");
        m.n_strides = 0;
        refused(&m, 2, "aligned");
        refused(&m, UINT64_MAX - 3, "allocation");
        refused(&m, (uint64_t)MOST - 3, "allocation");
        m.kind = 3;
        refused(&m, 0, "neither");
        m.kind = 0;
        m.storage_before = 4;
        refused(&m, 0, "before");
        refused(&m, 4, "storage"); /* a storage of 24 bytes that begins 4 before it */
        m.storage_bytes = 27;
        refused(&m, 4, "storage");
        m.storage_bytes = UINT64_MAX;
        refused(&m, 4, "storage");

        struct gms_metadata e = { .key = "tensor/x", .value = "\xff\xff\xff", .value_size = 3 };
        struct gms_tensor t;
        ck_assert_str_eq(tensor_read(&e, &t, read_shape, read_strides), "its value is no tensor");
}
END_TEST

/* Damage of every kind: what is taken for a tensor is one. */
START_TEST(damaged) {
        unsigned good = 0, rounds = 200000;
        srand(5);
        for (unsigned i = 0; i < rounds; i++) {
                static const int64_t dims[] = { 2, 3, 4 }, strides[] = { 100, 10, 1 };
                struct gms_tensor t = {
                        .dtype = 1 + (uint32_t)rand() % 20, .rank = (uint32_t)rand() % 4, .shape = dims,
                        .strides = rand() % 2 ? strides : NULL, .offset = 8, .storage_offset = 0, .storage_bytes = 5000,
                };
                if (tensor_fault(&t, &t.bytes))
                        continue;
                struct gms_metadata e = write_down(&t);
                uint8_t *value = (uint8_t *)(uintptr_t)e.value;
                for (int k = rand() % 4; k > 0; k--)
                        value[(size_t)rand() % e.value_size] = (uint8_t)rand();
                e.value_size -= rand() % 4 ? 0 : (uint32_t)rand() % e.value_size;
                value = realloc(value, e.value_size); /* just that, for a sanitizer */
                e.value = value;
                if (!tensor_read(&e, &t, read_shape, read_strides)) {
                        uint64_t bytes, size = (uint64_t)MOST;
                        good++;
                        ck_assert_ptr_null(tensor_fault(&t, &bytes));
                        ck_assert_uint_eq(bytes, t.bytes);
                        ck_assert_uint_le(t.storage_offset, t.offset);
                        ck_assert_uint_le(t.offset + t.bytes, t.storage_offset + t.storage_bytes);
                        ck_assert_uint_le(t.storage_offset + t.storage_bytes, size);
                        ck_assert(t.rank == 0 || (t.shape == read_shape && t.strides == read_strides));
                }
                free(value);
        }
        ck_assert_uint_gt(good, rounds / 10);
        ck_assert_uint_lt(good, rounds - rounds / 10);
}
END_TEST

/* ---- lists */

START_TEST(find) {
        struct gms_tensor tensors[] = {
                { .size = sizeof(struct gms_tensor), .name = "a" }, { .size = sizeof(struct gms_tensor), .name = "a.b" },
                { .size = sizeof(struct gms_tensor), .name = "b" }, { .size = sizeof(struct gms_tensor), .name = "\xc3\xb6" },
        };
        struct gms_tensor_list list = { .size = sizeof(list), .n = ARRAY_SIZE(tensors), .tensors = tensors }, none = {};
        for (size_t i = 0; i < ARRAY_SIZE(tensors); i++)
                ck_assert_ptr_eq(gms_tensors_find(&list, tensors[i].name), &tensors[i]);
        ck_assert_ptr_null(gms_tensors_find(&list, ""));
        ck_assert_ptr_null(gms_tensors_find(&list, "a."));
        ck_assert_ptr_null(gms_tensors_find(&list, "c"));
        ck_assert_ptr_null(gms_tensors_find(&list, "\xff"));
        ck_assert_ptr_null(gms_tensors_find(&list, NULL));
        ck_assert_ptr_null(gms_tensors_find(&none, "a"));
        ck_assert_ptr_null(gms_tensors_find(NULL, "a"));
        gms_tensors_free(&none);
        gms_tensors_free(NULL);
}
END_TEST

/* ---- DLPack: the numbers of the specification */

START_TEST(layout_of_structs) {
        ck_assert_uint_eq(sizeof(struct dlpack_tensor), 48);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, data), 0);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, device.type), 8);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, device.id), 12);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, rank), 16);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, dtype.code), 20);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, dtype.bits), 21);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, dtype.lanes), 22);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, shape), 24);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, strides), 32);
        ck_assert_uint_eq(offsetof(struct dlpack_tensor, byte_offset), 40);
        ck_assert_uint_eq(sizeof(struct dlpack_managed), 64);
        ck_assert_uint_eq(offsetof(struct dlpack_managed, context), 48);
        ck_assert_uint_eq(offsetof(struct dlpack_managed, deleter), 56);
        ck_assert_uint_eq(sizeof(struct dlpack_versioned), 80);
        ck_assert_uint_eq(offsetof(struct dlpack_versioned, context), 8);
        ck_assert_uint_eq(offsetof(struct dlpack_versioned, deleter), 16);
        ck_assert_uint_eq(offsetof(struct dlpack_versioned, flags), 24);
        ck_assert_uint_eq(offsetof(struct dlpack_versioned, tensor), 32);
}
END_TEST

/* ---- lending, from a handle with one mapping of a page: bytes 0, 1, 2 ... at slot 3 */

#define PAGE 4096u
static struct gms *g;
static uint64_t address;

static void setup(void) {
        char text[200];
        int fd;
        ck_assert_int_eq(gms_open(&g, "/nowhere", "host/t"), 0);
        ck_assert_int_eq(vmm_open(&g->vmm, "host", text, sizeof(text)), 0);
        ck_assert_int_eq(vmm_create(g->vmm, PAGE, &fd), 0);
        ck_assert_int_eq(vmm_reserve(g->vmm, 0, PAGE, &address), 0);
        ck_assert_int_eq(layout_grow(&g->known, 1), 0);
        g->known.at[g->known.n++] = (struct mapping){ .id = 1, .slot = 3, .bytes = PAGE, .aligned = PAGE, .address = address };
        ck_assert_int_eq(mapping_attach(g->vmm, &g->known.at[0], fd, GMS_ACCESS_READ_WRITE), 0);
        for (unsigned i = 0; i < PAGE; i++)
                ((uint8_t *)address)[i] = (uint8_t)i;
        close_fd(fd);
}

static bool is_mapped(void) {
        char line[300], wanted[40];
        (void)snprintf(wanted, sizeof(wanted), "%lx-", (unsigned long)address);
        FILE *f = fopen("/proc/self/maps", "re");
        bool found = false;
        while (fgets(line, sizeof(line), f))
                found = found || (strncmp(line, wanted, strlen(wanted)) == 0 && strstr(line, "/memfd:gms "));
        (void)fclose(f);
        return found;
}

static struct gms_tensor tensor(uint32_t dtype, uint32_t rank, const int64_t *dims, uint64_t offset) {
        return (struct gms_tensor){
                .size = sizeof(struct gms_tensor), .dtype = dtype, .rank = rank, .shape = dims, .slot = 3, .offset = offset,
                .address = address + offset,
        };
}

static struct dlpack_versioned *lend(const struct gms_tensor *t) {
        void *managed = NULL;
        int r = gms_dlpack(g, t, 1, &managed);
        ck_assert_msg(r == 0, "%s", gms_last_error());
        return managed;
}

static struct dlpack_managed *lend_old(const struct gms_tensor *t) {
        void *managed = NULL;
        ck_assert_int_eq(gms_dlpack(g, t, 0, &managed), 0);
        return managed;
}

static void check_lent(const struct dlpack_tensor *d, uint32_t code, uint32_t bits) {
        ck_assert_ptr_eq(d->data, (void *)(address + 64));
        ck_assert_int_eq(d->device.type, 1);
        ck_assert_int_eq(d->device.id, 0);
        ck_assert_int_eq(d->rank, 2);
        ck_assert_uint_eq(d->dtype.code, code);
        ck_assert_uint_eq(d->dtype.bits, bits);
        ck_assert_uint_eq(d->dtype.lanes, 1);
        ck_assert_int_eq(d->shape[0], 3);
        ck_assert_int_eq(d->shape[1], 4);
        ck_assert_int_eq(d->strides[0], 4);
        ck_assert_int_eq(d->strides[1], 1);
        ck_assert_uint_eq(d->byte_offset, 0);
        ck_assert_uint_eq(((const uint8_t *)d->data)[5], 69);
}

static const int64_t three_by_four[] = { 3, 4 };

/* Every type, in both forms. */
START_TEST(every_type_lent) {
        for (size_t i = 0; i < ARRAY_SIZE(types); i++) {
                int64_t dims[] = { 3, 4 };
                struct gms_tensor t = tensor(types[i].dtype, 2, dims, 64);
                struct dlpack_versioned *v = lend(&t);
                struct dlpack_managed *old = lend_old(&t);
                memset(dims, 0, sizeof(dims)); /* the loan has its own */
                ck_assert_uint_eq(v->major, 1);
                ck_assert_uint_ge(v->minor, 1); /* fp8, fp6 and fp4 are of 1.1 */
                ck_assert_uint_eq(v->flags, 0);
                check_lent(&v->tensor, types[i].code, types[i].bits);
                check_lent(&old->tensor, types[i].code, types[i].bits);
                v->deleter(v);
                old->deleter(old);
        }
        gms_close(g);
        ck_assert(!is_mapped());
}
END_TEST

START_TEST(lent_shapes) {
        static const int64_t strides[] = { 1, 3 }, none[] = { 3, 0 };
        struct gms_tensor t = tensor(GMS_DTYPE_I16, 2, three_by_four, 64);
        t.strides = strides;
        struct dlpack_versioned *v = lend(&t);
        ck_assert_int_eq(v->tensor.strides[0], 1);
        ck_assert_int_eq(v->tensor.strides[1], 3);
        v->deleter(v);

        t = tensor(GMS_DTYPE_F64, 0, NULL, 8);
        v = lend(&t);
        ck_assert_int_eq(v->tensor.rank, 0);
        ck_assert_ptr_eq(v->tensor.data, (void *)(address + 8));
        v->deleter(v);

        t = tensor(GMS_DTYPE_F64, 2, none, 8);
        v = lend(&t);
        ck_assert_ptr_null(v->tensor.data);
        ck_assert_int_eq(v->tensor.shape[1], 0);
        v->deleter(v);
        gms_close(g);
}
END_TEST

START_TEST(lent_read_only) {
        struct gms_tensor t = tensor(GMS_DTYPE_U8, 2, three_by_four, 64);
        void *managed;
        ck_assert_int_eq(gms_protect(g, GMS_ALL, GMS_ACCESS_READ), 0);
        struct dlpack_versioned *v = lend(&t);
        ck_assert_uint_eq(v->flags, 1);
        check_lent(&v->tensor, 1, 8);
        v->deleter(v);
        ck_assert_int_eq(gms_protect(g, GMS_ALL, GMS_ACCESS_NONE), 0);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -EACCES);
        ck_assert_int_eq(gms_unmap_all(g), 0);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -EACCES);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "gms_remap_all"));
        gms_close(g);
}
END_TEST

START_TEST(not_lent) {
        static const int64_t negative[] = { -1, 4 }, large[] = { 64, 65 };
        struct gms_tensor t = tensor(GMS_DTYPE_U8, 2, three_by_four, 64);
        void *managed = &t;
        ck_assert_int_eq(gms_dlpack(NULL, &t, 1, &managed), -EINVAL);
        ck_assert_int_eq(gms_dlpack(g, NULL, 1, &managed), -EINVAL);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, NULL), -EINVAL);
        t.slot = 4;
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -ENOENT);
        t.slot = 3;
        t.address += PAGE; /* where it was in a layout before */
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -ESTALE);
        t.address = 0; /* listed when nothing was mapped; the handle is not connected */
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -ESTALE);
        t = tensor(GMS_DTYPE_U8, 2, negative, 64);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -EINVAL);
        t = tensor(GMS_DTYPE_U8, 2, NULL, 64);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -EINVAL);
        t = tensor(99, 2, three_by_four, 64);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -EINVAL);
        t = tensor(GMS_DTYPE_U8, 2, large, 0);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -ERANGE);
        t = tensor(GMS_DTYPE_U8, 2, three_by_four, PAGE - 11);
        ck_assert_int_eq(gms_dlpack(g, &t, 1, &managed), -ERANGE);
        t = tensor(GMS_DTYPE_U8, 2, three_by_four, PAGE - 12);
        struct dlpack_versioned *v = lend(&t);
        v->deleter(v);
        ck_assert_ptr_eq(managed, &t);
        gms_close(g);
        ck_assert(!is_mapped());
}
END_TEST

static void *give_back(void *lent) {
        struct dlpack_versioned *v = lent;
        v->deleter(v);
        return NULL;
}

/* The mapping lives until the handle is closed and the last loan is back, in any order and from any thread. */
START_TEST(any_order) {
        struct gms_tensor t = tensor(GMS_DTYPE_U8, 2, three_by_four, 64);
        struct dlpack_versioned *lent[3];
        for (size_t i = 0; i < 3; i++)
                lent[i] = lend(&t);
        size_t first = (size_t)_i % 3, second = (first + 1 + (size_t)_i / 3 % 2) % 3, last = 3 - first - second;
        if (_i < 6)
                gms_close(g);
        pthread_t threads[2];
        ck_assert_int_eq(pthread_create(&threads[0], NULL, give_back, lent[first]), 0);
        ck_assert_int_eq(pthread_create(&threads[1], NULL, give_back, lent[second]), 0);
        ck_assert_int_eq(pthread_join(threads[0], NULL) + pthread_join(threads[1], NULL), 0);
        ck_assert(is_mapped());
        check_lent(&lent[last]->tensor, 1, 8);
        give_back(lent[last]);
        ck_assert_int_eq(is_mapped(), _i >= 6);
        if (_i >= 6)
                gms_close(g);
        ck_assert(!is_mapped());
}
END_TEST

/* A child gives back what it inherited, and the parent's loan and mapping stay. */
START_TEST(forked) {
        struct gms_tensor t = tensor(GMS_DTYPE_U8, 2, three_by_four, 64);
        struct dlpack_versioned *lent = lend(&t);
        void *managed;
        int status;
        pid_t pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                int r = gms_dlpack(g, &t, 1, &managed);
                gms_close(g);
                bool there = lent->tensor.data && ((const uint8_t *)lent->tensor.data)[5] == 69;
                lent->deleter(lent);
                _exit(r == -ECHILD && there ? 0 : 1);
        }
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
        gms_close(g);
        check_lent(&lent->tensor, 1, 8);
        lent->deleter(lent);
        ck_assert(!is_mapped());
}
END_TEST

int main(void) {
        Suite *s = suite_create("tensors");
        TCase *t = tcase_create("one");
        tcase_add_test(t, every_type);
        tcase_add_loop_test(t, shape, 0, (int)ARRAY_SIZE(shapes));
        tcase_add_test(t, rank_and_kind);
        tcase_add_loop_test(t, place, 0, (int)ARRAY_SIZE(places));
        tcase_add_loop_test(t, there_and_back, 0, (int)ARRAY_SIZE(shapes));
        tcase_add_test(t, same_said_twice);
        tcase_add_test(t, find);
        suite_add_tcase(s, t);
        t = tcase_create("strangers");
        tcase_set_timeout(t, 60);
        tcase_add_test(t, hostile);
        tcase_add_test(t, damaged);
        suite_add_tcase(s, t);
        t = tcase_create("dlpack");
        tcase_add_checked_fixture(t, setup, NULL);
        tcase_add_test(t, layout_of_structs);
        tcase_add_test(t, every_type_lent);
        tcase_add_test(t, lent_shapes);
        tcase_add_test(t, lent_read_only);
        tcase_add_test(t, not_lent);
        tcase_add_loop_test(t, any_order, 0, 12);
        tcase_add_test(t, forked);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
