// SPDX-License-Identifier: MIT
/* Tensors from a writer to readers: all at once, where they are, and whoever wrote them. */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "../../libgmsclient/dlpack.h"
#include "client.h"
#include "proxy.h"
#include "raw.h"

#define LIST(name) struct gms_tensor_list name = GMS_INIT(struct gms_tensor_list)

static struct gms_tensor tensor(const char *name, uint32_t dtype, uint32_t rank, const int64_t *shape, uint64_t offset) {
        return (struct gms_tensor){
                .size = sizeof(struct gms_tensor), .name = name, .dtype = dtype, .rank = rank, .shape = shape, .offset = offset,
        };
}

/* A writer with one allocation of `bytes`, which has bytes in it. */
static struct gms *writer(const char *name, uint64_t bytes) {
        return client_build(name, 1, bytes, 1);
}

static uint8_t byte_at(struct gms *g, uint64_t offset) {
        uint8_t byte;
        ok(gms_read(g, client_find(g, 0).id, offset, &byte, 1));
        return byte;
}

#define SIDE 16 /* a tensor of the many is SIDE × SIDE of BF16 */

/* 3,000 tensors, as a large model has them: one request more than none. */
TEST(tensors, many)
{
        enum { N = 3000 };
        static const int64_t shape[] = { SIDE, SIDE };
        static char names[N][32];
        struct proxy p;
        client_warm_up();
        proxy_start(&p);
        _cleanup_gms_ struct gms *w = writer("w", (uint64_t)N * SIDE * SIDE * 2), *r = NULL;
        struct gms_tensor *tensors = calloc(N, sizeof(*tensors));
        for (size_t i = 0; i < N; i++) {
                size_t k = (i * 7) % N; /* in no order */
                (void)snprintf(names[k], sizeof(names[k]), "layers.%zu.weight", k);
                tensors[i] = tensor(names[k], GMS_DTYPE_BF16, 2, shape, k * SIDE * SIDE * 2);
        }
        ok(gms_tensors_put(w, tensors, N));
        free(tensors);
        ok(gms_commit(w, NULL, 0));

        ok(gms_open(&r, p.path, store("w")));
        ok(client_connect(r, GMS_MODE_RO, PATIENCE_MS, NULL));
        ok(gms_attach(r));
        uint32_t requests = p.line->requests;
        LIST(list);
        ok(gms_tensors_list(r, &list));
        ck_assert_uint_eq(p.line->requests - requests, 1);
        ck_assert_uint_eq(list.n, N);
        uint64_t address = client_find(r, 0).address;
        for (size_t i = 0; i < N; i++) {
                const struct gms_tensor *t = gms_tensors_find(&list, names[i]);
                must(t, "%s is missing", names[i]);
                must(i == 0 || strcmp(list.tensors[i - 1].name, list.tensors[i].name) < 0, "not in order at %zu", i);
                must(t->dtype == GMS_DTYPE_BF16 && t->kind == GMS_TENSOR_PARAMETER, "%s", t->name);
                must(t->rank == 2 && t->slot == 0, "%s", t->name);
                must(t->shape[0] == SIDE && t->shape[1] == SIDE && t->strides[0] == SIDE && t->strides[1] == 1, "%s", t->name);
                must(t->offset == i * SIDE * SIDE * 2 && t->bytes == SIDE * SIDE * 2, "%s", t->name);
                must(t->storage_offset == t->offset && t->storage_bytes == t->bytes, "%s", t->name);
                must(t->address == address + t->offset, "%s", t->name);
        }
        ck_assert_ptr_null(gms_tensors_find(&list, "layers.3000.weight"));
        gms_tensors_free(&list);

        _cleanup_gms_ struct gms *look = client_open(NULL);
        ok(client_connect(look, GMS_MODE_NONE, 0, NULL));
        ok(gms_query_tensors(look, store("w"), &list));
        ck_assert_uint_eq(list.n, N);
        ck_assert_uint_eq(list.tensors[N - 1].address, 0);
        gms_tensors_free(&list);
        proxy_stop(&p);
}

/* Tied weights, and views of one storage. */
TEST(tensors, tied)
{
        static const int64_t shape[] = { 4, 8 }, turned[] = { 8, 4 }, strides[] = { 1, 8 };
        _cleanup_gms_ struct gms *w = writer("w", 4096);
        LIST(list);
        struct gms_tensor t[] = {
                tensor("head", GMS_DTYPE_F32, 2, shape, 256),
                tensor("embed", GMS_DTYPE_F32, 2, shape, 256),
                tensor("embed.T", GMS_DTYPE_F32, 2, turned, 256),
                tensor("row", GMS_DTYPE_F32, 1, shape + 1, 256 + 64),
                tensor("count", GMS_DTYPE_I64, 0, NULL, 2048),
        };
        t[2].strides = strides;
        t[3].storage_offset = 256;
        t[3].storage_bytes = 128;
        t[4].kind = GMS_TENSOR_BUFFER;
        ok(gms_tensors_put(w, t, ARRAY_SIZE(t)));
        ok(gms_commit(w, NULL, 0));
        ok(gms_tensors_list(w, &list));
        ck_assert_uint_eq(list.n, 5);
        const struct gms_tensor *head = gms_tensors_find(&list, "head"), *embed = gms_tensors_find(&list, "embed");
        const struct gms_tensor *view = gms_tensors_find(&list, "embed.T"), *row = gms_tensors_find(&list, "row");
        ck_assert_uint_eq(head->address, embed->address);
        ck_assert_uint_eq(view->address, embed->address);
        ck_assert_int_eq(view->strides[1], 8);
        ck_assert_uint_eq(view->bytes, 128);
        ck_assert_uint_eq(view->storage_bytes, 128);
        ck_assert_uint_eq(row->address, embed->address + 64);
        ck_assert_uint_eq(row->bytes, 32);
        ck_assert_uint_eq(row->storage_offset, embed->storage_offset);
        ck_assert_uint_eq(row->storage_bytes, embed->storage_bytes);
        ck_assert_uint_eq(gms_tensors_find(&list, "count")->kind, GMS_TENSOR_BUFFER);
        ck_assert_uint_eq(gms_tensors_find(&list, "count")->bytes, 8);
        gms_tensors_free(&list);
}

TEST(tensors, refused)
{
        static const int64_t shape[] = { 4, 8 }, large[] = { 1024, 2 };
        char name[600];
        _cleanup_gms_ struct gms *w = writer("w", 4096), *r = NULL;
        LIST(list);
        struct gms_tensor t[2] = { tensor("good", GMS_DTYPE_F32, 2, shape, 0), tensor("bad", GMS_DTYPE_F32, 2, shape, 0) };
        fails(-EINVAL, "struct", gms_tensors_put(w, NULL, 1));
        ok(gms_tensors_put(w, NULL, 0));
        t[1].name = NULL;
        fails(-EINVAL, "item 1", gms_tensors_put(w, t, 2));
        t[1].name = "";
        fails(-EINVAL, "item 1", gms_tensors_put(w, t, 2));
        t[1].name = "a\nb";
        fails(-EINVAL, "item 1", gms_tensors_put(w, t, 2));
        memset(name, 'n', sizeof(name));
        name[506] = 0;
        t[1].name = name;
        fails(-EINVAL, "505", gms_tensors_put(w, t, 2));
        t[1].name = "bad";
        t[1].dtype = 0;
        fails(-EINVAL, "'bad'", gms_tensors_put(w, t, 2));
        t[1].dtype = GMS_DTYPE_F32;
        t[1].shape = NULL;
        fails(-EINVAL, "no shape", gms_tensors_put(w, t, 2));
        t[1].shape = large;
        fails(-ERANGE, "'bad'", gms_tensors_put(w, t, 2));
        t[1].shape = shape;
        t[1].offset = 4096 - 124;
        fails(-ERANGE, "end of its allocation", gms_tensors_put(w, t, 2));
        t[1].offset = 2;
        fails(-EINVAL, "aligned", gms_tensors_put(w, t, 2));
        t[1].offset = 0;
        t[1].storage_bytes = 64;
        fails(-ERANGE, "storage", gms_tensors_put(w, t, 2));
        t[1].storage_bytes = 0;
        t[1].slot = 5;
        fails(-ENOENT, NULL, gms_tensors_put(w, t, 2));
        ok(gms_tensors_list(w, &list)); /* nothing of all that was put */
        ck_assert_uint_eq(list.n, 0);
        ck_assert_ptr_null(list.tensors);

        name[505] = 0;
        t[0].name = name;
        ok(gms_tensors_put(w, t, 1));
        ok(gms_tensors_list(w, &list));
        ck_assert_str_eq(list.tensors[0].name, name);
        gms_tensors_free(&list);
        fails(-EINVAL, "struct", gms_tensors_list(w, NULL));
        ok(gms_seal(w));
        fails(-EBUSY, "sealed", gms_tensors_put(w, t, 1));
        ok(gms_commit(w, NULL, 0));
        fails(-EACCES, NULL, gms_tensors_put(w, t, 1));

        r = client_open(NULL);
        fails(-ENOTCONN, NULL, gms_tensors_list(r, &list));
        ok(client_connect(r, GMS_MODE_NONE, 0, NULL));
        fails(-EACCES, NULL, gms_tensors_list(r, &list));
        fails(-EINVAL, "store", gms_query_tensors(r, "", &list));
        fails(-ENOENT, "none", gms_query_tensors(r, store("none"), &list));
}

/* Whoever wrote it: a reader is told which entry is no tensor, and reads the others' metadata. */
TEST(tensors, strangers)
{
        static const struct {
                const char *value;
                uint32_t size;
                const char *word;
        } entries[] = {
                { "garbage", 7, "no tensor" }, { "", 0, "type" }, { "\x08\x63", 2, "type" },
                { "\x08\x0c\x1a\x01\x05\x22\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 17, "negative" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
                _cleanup_gms_ struct gms *w = writer("w", 4096);
                LIST(list);
                struct gms_metadata e = {
                        .size = sizeof(e), .key = "tensor/strange", .value = entries[i].value, .value_size = entries[i].size,
                };
                ok(gms_metadata_put(w, &e, 1));
                fails(-EBADMSG, "'tensor/strange'", gms_tensors_list(w, &list));
                fails(-EBADMSG, entries[i].word, gms_tensors_list(w, &list));
                e.key = "tensor/";
                ok(gms_metadata_put(w, &e, 1));
                fails(-EBADMSG, "name", gms_tensors_list(w, &list));
        }
        /* One that reaches out of its allocation is seen by those who know that. */
        _cleanup_gms_ struct gms *w = writer("w", 4096), *r = NULL;
        LIST(list);
        struct gms_metadata e = {
                .size = sizeof(e), .key = "tensor/long", .value = "\x08\x02\x1a\x02\x81\x20", .value_size = 6, /* U8 [4097] */
        };
        ok(gms_metadata_put(w, &e, 1));
        fails(-EBADMSG, "'tensor/long'", gms_tensors_list(w, &list));
        ok(gms_commit(w, NULL, 0));
        r = client("w", GMS_MODE_RO);
        ok(gms_tensors_list(r, &list));
        ck_assert_uint_eq(list.n, 1);
        ck_assert_uint_eq(list.tensors[0].bytes, 4097);
        ck_assert_uint_eq(list.tensors[0].address, 0);
        void *managed;
        ok(gms_attach(r));
        fails(-ERANGE, "4097", gms_dlpack(r, list.tensors, 1, &managed));
        gms_tensors_free(&list);
        fails(-EBADMSG, "end of its allocation", gms_tensors_list(r, &list));
}

/* Names, types, shapes and places are structure; how one says them is not. */
TEST(tensors, in_the_hash)
{
        static const int64_t shape[] = { 4, 8 }, strides[] = { 8, 1 }, other[] = { 8, 4 };
        const struct {
                struct gms_tensor t;
                bool same;
        } builds[] = {
                { tensor("a", GMS_DTYPE_F32, 2, shape, 64), true },
                { tensor("a", GMS_DTYPE_F32, 2, shape, 64), true },
                { tensor("b", GMS_DTYPE_F32, 2, shape, 64), false },
                { tensor("a", GMS_DTYPE_I32, 2, shape, 64), false },
                { tensor("a", GMS_DTYPE_F32, 2, other, 64), false },
                { tensor("a", GMS_DTYPE_F32, 1, shape, 64), false },
                { tensor("a", GMS_DTYPE_F32, 2, shape, 128), false },
                { tensor("a", GMS_DTYPE_F32, 2, shape, 64), false },
        };
        _cleanup_gms_ struct gms *r = NULL;
        uint8_t first[GMS_HASH_SIZE];
        for (size_t i = 0; i < ARRAY_SIZE(builds); i++) {
                struct gms *w = client("w", GMS_MODE_UPDATE);
                struct gms_tensor t = builds[i].t;
                ok(gms_allocate(w, 4096, NULL, NULL));
                if (i == 1) { /* all of it said aloud */
                        t.strides = strides;
                        t.kind = GMS_TENSOR_PARAMETER;
                        t.storage_offset = 64;
                        t.storage_bytes = 128;
                }
                if (i == 7)
                        t.kind = GMS_TENSOR_BUFFER;
                ok(gms_tensors_put(w, &t, 1));
                ok(gms_commit(w, NULL, 0));
                struct gms_state s = client_state(w);
                gms_close(w);
                if (i == 0) {
                        memcpy(first, s.hash, sizeof(first));
                        r = client_attach("w");
                        continue;
                }
                must((memcmp(s.hash, first, sizeof(first)) == 0) == builds[i].same, "build %zu", i);
                if (builds[i].same)
                        ok(gms_refresh(r, NULL));
                else
                        fails(-ESTALE, NULL, gms_refresh(r, NULL));
        }
}

/* Unmapped they have no address; mapped again they have the same; and a list is the caller's, in a child too. */
TEST(tensors, come_and_go)
{
        static const int64_t shape[] = { 32 };
        _cleanup_gms_ struct gms *w = writer("w", 4096), *r = NULL;
        struct gms_tensor t = tensor("x", GMS_DTYPE_U8, 1, shape, 100);
        LIST(before);
        LIST(list);
        ok(gms_tensors_put(w, &t, 1));
        ok(gms_tensors_list(w, &list));
        ck_assert_uint_eq(list.tensors[0].address, client_find(w, 0).address + 100);
        gms_tensors_free(&list);
        ok(gms_commit(w, NULL, 0));

        r = client("w", GMS_MODE_RO);
        ok(gms_tensors_list(r, &before));
        ck_assert_uint_eq(before.tensors[0].address, 0);
        ok(gms_attach(r));
        ok(gms_tensors_list(r, &list));
        uint64_t address = list.tensors[0].address;
        ck_assert_uint_eq(address, client_find(r, 0).address + 100);
        struct dlpack_versioned *early, *now;
        ok(gms_dlpack(r, before.tensors, 1, (void **)&early));
        ok(gms_dlpack(r, list.tensors, 1, (void **)&now));
        ck_assert_ptr_eq(early->tensor.data, now->tensor.data);
        early->deleter(early);
        now->deleter(now);

        gms_tensors_free(&before);
        ok(gms_unmap_all(r));
        ok(gms_tensors_list(r, &before));
        ck_assert_uint_eq(before.tensors[0].address, 0);
        ok(gms_remap_all(r, NULL));
        gms_tensors_free(&before);
        ok(gms_tensors_list(r, &before));
        ck_assert_uint_eq(before.tensors[0].address, address);

        pid_t pid = fork();
        if (pid == 0) {
                int error = gms_tensors_list(r, &list);
                int found = strcmp(gms_tensors_find(&before, "x")->name, "x");
                gms_tensors_free(&before);
                _exit(error == -ECHILD && found == 0 ? 0 : 1);
        }
        ck_assert_int_eq(process_end(pid), 0);
        gms_tensors_free(&before);
        gms_tensors_free(&list);
}

/* What is lent keeps lock and memory, whoever closes the handle. */
TEST(tensors, lent)
{
        static const int64_t shape[] = { 64 };
        _cleanup_gms_ struct gms *w = writer("w", 4096);
        struct gms *r;
        struct gms_tensor t = tensor("x", GMS_DTYPE_U8, 1, shape, 128);
        struct dlpack_versioned *lent;
        struct dlpack_managed *old;
        LIST(list);
        ok(gms_tensors_put(w, &t, 1));
        ok(gms_dlpack(w, &t, 1, (void **)&lent));
        ck_assert_uint_eq(lent->flags, 0); /* a writer's */
        lent->deleter(lent);
        ok(gms_commit(w, NULL, GMS_COMMIT_LEAVE));
        gms_close(steal_ptr(&w));

        r = client_attach("w");
        ok(gms_tensors_list(r, &list));
        ok(gms_dlpack(r, list.tensors, 1, (void **)&lent));
        ok(gms_dlpack(r, list.tensors, 0, (void **)&old));
        gms_tensors_free(&list);
        ck_assert_uint_eq(lent->flags, DLPACK_FLAG_READ_ONLY);
        ck_assert_int_eq(lent->tensor.device.type, m.cuda ? DLPACK_CUDA : DLPACK_CPU);
        ck_assert_int_eq(lent->tensor.device.id, 0);
        ck_assert_uint_eq((uint64_t)lent->tensor.data, client_find(r, 0).address + 128);
        uint8_t wanted = byte_at(r, 128 + 7);
        gms_close(r);
        ck_assert_uint_eq(look("w").readers, 1);
        lent->deleter(lent);
        ck_assert_uint_eq(look("w").readers, 1);
        if (!m.cuda)
                ck_assert_uint_eq(((const uint8_t *)old->tensor.data)[7], wanted);
        old->deleter(old);
        wait_for(look("w").readers == 0);
        ck_assert_str_eq(state_of("w"), "COMMITTED");
}
