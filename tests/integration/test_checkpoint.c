// SPDX-License-Identifier: MIT
/* Checkpoints: safetensors files into a store and beside it, whatever their sizes, and whatever happens to them meanwhile. */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>

#include "../weights/weights.h"
#include "client.h"

#define LEAF (INT64_C(1) << 20)
#define UNIT (3 * LEAF) /* three leaves are what fits 4 MiB wherever it begins */

/* Every size around those at which something changes. */
static const struct weight borders[] = {
        { "empty.first", "F32", 2, { 0, 7 } },
        { "one", "U8", 1, { 1 } },
        { "scalar", "BF16", 0, { 0 } },
        { "piece-1", "U8", 1, { 255 } },
        { "piece", "I8", 2, { 16, 16 } },
        { "piece+1", "U8", 1, { 257 } },
        { "page", "F16", 2, { 2, 1024 } },
        { "leaf-1", "U8", 1, { LEAF - 1 } },
        { "leaf", "F32", 2, { 4, LEAF / 16 } },
        { "leaf+1", "BOOL", 1, { LEAF + 1 } },
        { "empty.between", "I64", 3, { 1, 0, 5 } },
        { "unit-1", "F8_E4M3", 1, { UNIT - 1 } },
        { "unit", "BF16", 2, { 3, LEAF / 2 } },
        { "unit+1", "U8", 1, { UNIT + 1 } },
        { "three units", "C64", 1, { (3 * UNIT + 5 * LEAF) / 8 } },
        { "packed", "F6_E2M3", 2, { 3, 4 } },
        { "last", "U8", 1, { 13 } },
        { "empty.last", "U8", 1, { 0 } },
};

/* ---- a checkpoint, by so many threads */

static int worked; /* by the thread that fared worst */
static char why[1024];

static void *work(void *c) {
        int r = gms_checkpoint_work(c);
        if (r < 0) {
                static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
                (void)pthread_mutex_lock(&mutex);
                worked = r;
                (void)snprintf(why, sizeof(why), "%s", gms_last_error());
                (void)pthread_mutex_unlock(&mutex);
        }
        return NULL;
}

static int work_in(struct gms_checkpoint *c, unsigned threads) {
        pthread_t t[16];
        worked = 0;
        for (unsigned i = 0; i < threads; i++)
                ck_assert_int_eq(pthread_create(&t[i], NULL, work, c), 0);
        for (unsigned i = 0; i < threads; i++)
                ck_assert_int_eq(pthread_join(t[i], NULL), 0);
        return worked;
}

static struct gms_checkpoint *files(const char *const *paths, size_t n) {
        struct gms_checkpoint *c = NULL;
        ok(gms_checkpoint_open(&c, paths, n));
        return c;
}

static struct gms_checkpoint *file(const char *path) {
        return files(&path, 1);
}

static struct gms_checkpoint_progress progress(struct gms_checkpoint *c) {
        struct gms_checkpoint_progress p = GMS_INIT(struct gms_checkpoint_progress);
        ok(gms_checkpoint_progress(c, &p));
        return p;
}

/* Loads and publishes it; the identity in a static buffer. */
static const char *load(const char *name, struct gms_checkpoint *c, unsigned threads) {
        static char identity[GMS_IDENTITY_SIZE];
        struct gms *g = client(name, GMS_MODE_RW);
        ok(gms_checkpoint_load(c, g, "weights"));
        ck_assert_msg(work_in(c, threads) == 0, "%s", why);
        ck_assert_uint_eq(progress(c).done, progress(c).total);
        ok(gms_checkpoint_finish(c, identity));
        gms_checkpoint_close(c);
        ok(gms_commit(g, identity, GMS_COMMIT_LEAVE));
        gms_close(g);
        return identity;
}

static int verify(const char *name, struct gms_checkpoint *c, unsigned threads, char *identity) {
        _cleanup_gms_ struct gms *g = client_attach(name);
        int r = gms_checkpoint_verify(c, g);
        if (r < 0)
                (void)snprintf(why, sizeof(why), "%s", gms_last_error());
        if (r == 0)
                r = work_in(c, threads);
        if (r == 0)
                ok(gms_checkpoint_finish(c, identity));
        gms_checkpoint_close(c);
        return r;
}

/* ---- what is in a store, without the checkpoint's help */

static void check_store(const char *name, const struct weight *weights, size_t n) {
        _cleanup_gms_ struct gms *g = client_attach(name);
        struct gms_tensor_list list = GMS_INIT(struct gms_tensor_list);
        ok(gms_tensors_list(g, &list));
        ck_assert_uint_eq(list.n, n);
        for (size_t i = 0; i < n; i++) {
                const struct gms_tensor *t = gms_tensors_find(&list, weights[i].name);
                size_t bytes = (size_t)weight_bytes(&weights[i]);
                _cleanup_free_ char *is = malloc(bytes + 1), *should = malloc(bytes + 1);
                ck_assert_msg(t != NULL, "%s", weights[i].name);
                ck_assert_str_eq(gms_dtype_name(t->dtype), weights[i].dtype);
                ck_assert_uint_eq(t->rank, weights[i].rank);
                ck_assert_mem_eq(t->shape, weights[i].shape, t->rank * sizeof(*t->shape));
                ck_assert_uint_eq(t->bytes, bytes);
                ck_assert_uint_eq(t->offset % 256, 0);
                ok(gms_read(g, client_find(g, t->slot).id, t->offset, is, bytes));
                weights_fill(weights[i].name, 0, should, bytes);
                ck_assert_msg(memcmp(is, should, bytes) == 0, "%s", weights[i].name);
        }
        gms_tensors_free(&list);
}

TEST(checkpoint, borders)
{
        const char *path = strdupa(path_of("borders.safetensors"));
        char identity[GMS_IDENTITY_SIZE], first[GMS_IDENTITY_SIZE] = "";
        weights_write(path, borders, ARRAY_SIZE(borders));
        for (unsigned threads = 1; threads <= 8; threads += 7) {
                (void)snprintf(identity, sizeof(identity), "%s", load("w", file(path), threads));
                ck_assert_msg(strncmp(identity, "xxh3-128:", 9) == 0 && strlen(identity) == 41, "%s", identity);
                ck_assert_msg(!*first || strcmp(first, identity) == 0, "%s, %s", first, identity);
                strcpy(first, identity);
                check_store("w", borders, ARRAY_SIZE(borders));
                ck_assert_msg(verify("w", file(path), threads, identity) == 0, "%s", why);
                ck_assert_str_eq(first, identity);
        }
        _cleanup_gms_ struct gms *r = client_attach("w");
        ck_assert_str_eq(client_state(r).identity, first);
        ck_assert_uint_le(client_state(r).allocations, 2); /* slabs, not tensors */
}

TEST(checkpoint, nothing_in_it)
{
        const char *path = strdupa(path_of("nothing.safetensors"));
        char identity[GMS_IDENTITY_SIZE];
        weights_write(path, NULL, 0);
        ck_assert_str_eq(load("w", file(path), 2), "xxh3-128:2c40783034f3b75950184c0cafd42388");
        check_store("w", NULL, 0);
        ck_assert_int_eq(verify("w", file(path), 2, identity), 0);
        weights_write(path, borders, 1); /* and a tensor without bytes */
        (void)load("w", file(path), 1);
        check_store("w", borders, 1);
}

/* Thousands of small ones in one file, and files in thousands of pieces, are no different. */
TEST(checkpoint, many_small_ones)
{
        static struct weight small[3000];
        const char *path = strdupa(path_of("small.safetensors"));
        for (size_t i = 0; i < ARRAY_SIZE(small); i++) {
                small[i] = (struct weight){ .dtype = "BF16", .rank = 2, .shape = { (int64_t)(i % 7), (int64_t)(i * 37 % 1001) } };
                (void)snprintf(small[i].name, sizeof(small[i].name), "layers.%zu.weight", i);
        }
        weights_write(path, small, ARRAY_SIZE(small));
        (void)load("w", file(path), 4);
        check_store("w", small, ARRAY_SIZE(small));
}

/* ---- how tensors are spread over files is nobody's business */

TEST(checkpoint, identity_is_of_the_content)
{
        const size_t n = ARRAY_SIZE(borders), third = n / 3;
        const char *one = strdupa(path_of("one.safetensors")), *dir = strdupa(path_of("sharded"));
        char paths[3][300], identity[GMS_IDENTITY_SIZE];
        const char *names[ARRAY_SIZE(borders)], *const shards[] = { paths[0], paths[1], paths[2] };
        struct weight turned[ARRAY_SIZE(borders)];

        weights_write(one, borders, n);
        ck_assert_int_eq(mkdir(dir, 0700), 0);
        for (size_t i = 0; i < n; i++) {
                turned[i] = borders[n - 1 - i];
                names[i] = i < third ? "b.safetensors" : i < 2 * third ? "a.safetensors" : "c.safetensors";
        }
        for (size_t i = 0; i < 3; i++) {
                (void)snprintf(paths[i], sizeof(paths[i]), "%s/%s", dir, names[i * third]);
                weights_write(paths[i], turned + i * third, i < 2 ? third : n - 2 * third);
        }
        (void)snprintf(identity, sizeof(identity), "%s", load("w", file(one), 3));
        ck_assert_str_eq(load("w", files(shards, 3), 1), identity);
        ck_assert_str_eq(load("w", file(dir), 5), identity); /* all that is there */
        weights_write_index(dir, turned, names, n);
        ck_assert_str_eq(load("w", file(dir), 2), identity); /* what the index says */
        check_store("w", borders, n);
        ck_assert_msg(verify("w", file(dir), 3, identity) == 0, "%s", why);

        /* One byte, one size, one name: each is another content. */
        turned[0] = borders[1];
        strcpy(turned[0].name, "two");
        weights_write(one, turned, 1);
        ck_assert_str_ne(load("w", file(one), 1), identity);
}

/* ---- files that are wrong: what the parser refuses has its own tests */

TEST(checkpoint, wrong_files)
{
        const char *a = strdupa(path_of("a.safetensors")), *b = strdupa(path_of("b.safetensors")), *dir = strdupa(path_of("dir"));
        const char *const both[] = { a, b }, *const twice[] = { "x.safetensors", "x.safetensors" };
        char path[300], other[300];
        struct gms_checkpoint *c = (struct gms_checkpoint *)7;
        struct weight two[] = { { "t", "U8", 1, { 3 } }, { "u", "U8", 1, { 4 } } };

        fails(-EINVAL, NULL, gms_checkpoint_open(&c, both, 0));
        fails(-ENOENT, "a.safetensors", gms_checkpoint_open(&c, both, 2));
        fails(-EBADMSG, "not a regular file", gms_checkpoint_open(&c, (const char *const[]){ "/dev/null" }, 1));
        weights_write(a, two, 2);
        weights_write_raw(b, "{\"v\":{\"dtype\":\"U8\",\"shape\":[9],\"data_offsets\":[0,9]}}", 8);
        fails(-EBADMSG, "b.safetensors: byte 69: the file ends here", gms_checkpoint_open(&c, both, 2));
        weights_write(b, two + 1, 1);
        fails(-EEXIST, "'u' is in ", gms_checkpoint_open(&c, both, 2));

        ck_assert_int_eq(mkdir(dir, 0700), 0);
        fails(-ENOENT, "no *.safetensors", gms_checkpoint_open(&c, &dir, 1));
        (void)snprintf(path, sizeof(path), "%s/x.safetensors", dir);
        weights_write_index(dir, two, twice, 2);
        fails(-ENOENT, "x.safetensors", gms_checkpoint_open(&c, &dir, 1));
        weights_write(path, two, 1);
        fails(-EBADMSG, "'u' is said to be in x.safetensors, and is not", gms_checkpoint_open(&c, &dir, 1));
        weights_write(path, two, 2);
        weights_write_index(dir, two, twice, 1);
        fails(-EBADMSG, "does not name tensor 'u'", gms_checkpoint_open(&c, &dir, 1));
        (void)snprintf(other, sizeof(other), "%s/other.safetensors", dir);
        weights_write(other, two + 1, 1); /* in no index: not looked at */
        weights_write_index(dir, two, twice, 2);
        gms_checkpoint_close(file(dir));
        (void)snprintf(other, sizeof(other), "%s/other.safetensors.index.json", dir);
        weights_write_raw(other, "{", 0);
        fails(-EEXIST, "several indexes", gms_checkpoint_open(&c, &dir, 1));
        ck_assert_ptr_eq(c, (struct gms_checkpoint *)7);
}

/* ---- differences */

static void tamper(const char *name, const char *path, const struct weight *weights, const size_t *which, const uint64_t *at,
                   size_t n) {
        struct gms_checkpoint *c = file(path);
        struct gms *g = client(name, GMS_MODE_RW);
        struct gms_tensor_list list = GMS_INIT(struct gms_tensor_list);
        ok(gms_checkpoint_load(c, g, NULL));
        ck_assert_int_eq(work_in(c, 2), 0);
        ok(gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        ok(gms_tensors_list(g, &list));
        for (size_t i = 0; i < n; i++) {
                const struct gms_tensor *t = gms_tensors_find(&list, weights[which[i]].name);
                unsigned char byte;
                weights_fill(t->name, at[i], &byte, 1);
                byte ^= 0x10;
                ok(gms_write(g, client_find(g, t->slot).id, t->offset + at[i], &byte, 1));
        }
        gms_tensors_free(&list);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        gms_close(g);
}

/* Of several differences the first is told, however many threads look. */
TEST(checkpoint, differences)
{
        const char *path = strdupa(path_of("d.safetensors"));
        const size_t which[] = { 14, 9, 13 }; /* three units, leaf+1, unit+1 */
        const uint64_t at[] = { 3 * UNIT + 1, LEAF, 12345 };
        char words[200];
        struct stat st;
        weights_write(path, borders, ARRAY_SIZE(borders));
        for (size_t n = 3; n > 0; n--) {
                tamper("w", path, borders, which, at, n);
                size_t first = n >= 2 ? 1 : 0;
                (void)snprintf(words, sizeof(words), "'%s' differs at its byte %" PRIu64 ": 0x", borders[which[first]].name,
                               at[first]);
                for (unsigned threads = 1; threads <= 8; threads++) {
                        int r = verify("w", file(path), threads, NULL);
                        ck_assert_msg(r == -EILSEQ && strstr(why, words), "%d: '%s' was expected in: %s", r, words, why);
                }
        }
        ck_assert_int_eq(stat(path, &st), 0);
        (void)snprintf(words, sizeof(words), ", byte %" PRIu64, (uint64_t)st.st_size - 13 - 9 - (3 * UNIT + 5 * LEAF) + at[0]);
        ck_assert_msg(strstr(why, words), "'%s' was expected in: %s", words, why);
}

/* Files are read side by side, for each may have a disk of its own: the start of one comes before the end of another. */
TEST(checkpoint, side_by_side)
{
        const struct weight two[] = { { "a", "U8", 1, { 3 * UNIT } }, { "b", "U8", 1, { 3 * UNIT } } };
        const char *paths[] = { strdupa(path_of("1.safetensors")), strdupa(path_of("2.safetensors")) };
        const char *both = strdupa(path_of("both.safetensors"));
        const size_t which[] = { 0, 1 };
        const uint64_t last_and_first[] = { 3 * UNIT - 1, 0 }, same[] = { UNIT, UNIT };
        weights_write(both, two, 2);
        for (size_t i = 0; i < 2; i++)
                weights_write(paths[i], &two[i], 1);
        tamper("w", both, two, which, last_and_first, 2);
        for (unsigned threads = 1; threads <= 4; threads++) {
                ck_assert_int_eq(verify("w", files(paths, 2), threads, NULL), -EILSEQ);
                ck_assert_msg(strstr(why, "'b' differs at its byte 0:"), "%s", why);
        }
        tamper("v", both, two, which, same, 2);
        ck_assert_int_eq(verify("v", files(paths, 2), 4, NULL), -EILSEQ);
        ck_assert_msg(strstr(why, "'a' differs"), "%s", why);
}

TEST(checkpoint, other_tensors)
{
        const char *path = strdupa(path_of("o.safetensors"));
        struct weight three[] = { { "a", "U8", 2, { 2, 4 } }, { "b", "F16", 1, { 4 } }, { "c", "U8", 1, { 8 } } };
        weights_write(path, three, 3);
        (void)load("w", file(path), 1);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), 0);
        weights_write(path, three, 2);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(why, "'c' of the store is not in the files"));
        weights_write(path, three + 1, 2);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(why, "'a' of the store is not in the files"));
        three[1].dtype = "BF16";
        weights_write(path, three, 3);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(why, "'b' has another type"));
        three[0].shape[0] = 4, three[0].shape[1] = 2;
        weights_write(path, three, 3);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(why, "'a' has another shape"));
        strcpy(three[2].name, "bb");
        three[0].shape[0] = 2, three[0].shape[1] = 4;
        three[1].dtype = "F16";
        weights_write(path, three, 3);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -ENOENT);
        ck_assert_ptr_nonnull(strstr(why, "'bb' of "));
}

/* The same names, types and shapes, and bytes in another order. */
TEST(checkpoint, other_order)
{
        const char *path = strdupa(path_of("o.safetensors"));
        const struct weight w = { "a", "U8", 2, { 4, 4 } };
        const int64_t by_columns[] = { 1, 4 };
        struct gms_tensor t = {
                .size = sizeof(t), .dtype = GMS_DTYPE_U8, .rank = 2, .name = "a", .shape = w.shape, .strides = by_columns
        };
        struct gms *g = client("w", GMS_MODE_RW);
        ok(gms_allocate(g, 16, NULL, NULL));
        ok(gms_tensors_put(g, &t, 1));
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        gms_close(g);
        weights_write(path, &w, 1);
        ck_assert_int_eq(verify("w", file(path), 1, NULL), -EBADMSG);
        ck_assert_msg(strstr(why, "'a' has another order in memory"), "%s", why);
}

/* More than anything could take, in a hole: said at once, with the file. */
TEST(checkpoint, hole)
{
        static const char header[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[140737488355329],"
                                     "\"data_offsets\":[0,140737488355329]}}";
        const uint8_t prefix[8] = { sizeof(header) - 1 };
        char path[40];
        const char *const p = path;
        struct gms_checkpoint *c = NULL;
        _cleanup_close_ int fd = memfd_create("hole", MFD_CLOEXEC);
        (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        ck_assert_int_eq(pwrite(fd, prefix, sizeof(prefix), 0), sizeof(prefix));
        ck_assert_int_eq(pwrite(fd, header, sizeof(header) - 1, sizeof(prefix)), sizeof(header) - 1);
        ck_assert_int_eq(ftruncate(fd, (off_t)(sizeof(prefix) + sizeof(header) - 1 + 140737488355329)), 0);
        fails(-EFBIG, "have 140737488355329 bytes", gms_checkpoint_open(&c, &p, 1));
        fails(-EFBIG, path, gms_checkpoint_open(&c, &p, 1));
}

/* ---- files that change, work that ends early */

static struct gms_checkpoint *loading(struct gms **ret_handle, const char *path) {
        struct gms_checkpoint *c = file(path);
        *ret_handle = client("w", GMS_MODE_RW);
        ok(gms_checkpoint_load(c, *ret_handle, NULL));
        return c;
}

TEST(checkpoint, a_file_changes)
{
        const char *path = strdupa(path_of("c.safetensors"));
        struct gms_checkpoint *c;
        _cleanup_gms_ struct gms *g = NULL;
        weights_write(path, borders, ARRAY_SIZE(borders));
        c = loading(&g, path);
        ck_assert_int_eq(truncate(path, 9 * LEAF), 0);
        ck_assert_int_eq(work_in(c, 3), -EBADMSG);
        ck_assert_msg(strstr(why, "it ends at byte 9437184 now"), "%s", why);
        fails(-EBADMSG, "it ends at byte", gms_checkpoint_finish(c, NULL));
        fails(-EBADMSG, "it ends at byte", gms_checkpoint_work(c));
        gms_checkpoint_close(c);
        gms_close(steal_ptr(&g));

        weights_write(path, borders, ARRAY_SIZE(borders));
        c = loading(&g, path);
        ck_assert_int_eq(work_in(c, 3), 0);
        _cleanup_close_ int fd = open(path, O_WRONLY | O_CLOEXEC);
        ck_assert_int_eq(pwrite(fd, "x", 1, 9 * LEAF), 1);
        fails(-EBADMSG, "changed while it was read", gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
}

static void *cancel_soon(void *c) {
        while (progress(c).done == 0)
                (void)sched_yield();
        gms_checkpoint_cancel(c);
        return NULL;
}

TEST(checkpoint, cancelled)
{
        const char *path = strdupa(path_of("c.safetensors"));
        struct gms_checkpoint *c;
        _cleanup_gms_ struct gms *g = NULL;
        pthread_t other;
        weights_write(path, borders, ARRAY_SIZE(borders));
        (void)load("w", file(path), 1);

        c = loading(&g, path);
        ck_assert_int_eq(pthread_create(&other, NULL, cancel_soon, c), 0);
        int r = work_in(c, 4);
        ck_assert_int_eq(pthread_join(other, NULL), 0);
        ck_assert(r == -ECANCELED || progress(c).done == progress(c).total);
        fails(-ECANCELED, "cancelled", gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        gms_close(steal_ptr(&g));
        check_store("w", borders, ARRAY_SIZE(borders)); /* what was published stays */

        c = loading(&g, path);
        gms_checkpoint_cancel(c);
        ck_assert_int_eq(work_in(c, 2), -ECANCELED);
        ck_assert_uint_eq(progress(c).done, 0);
        gms_checkpoint_close(c);
        gms_checkpoint_cancel(NULL);
}

/* A load that came to nothing leaves nothing for the next one to publish. */
TEST(checkpoint, given_up)
{
        const char *path = strdupa(path_of("c.safetensors"));
        _cleanup_gms_ struct gms *g = NULL;
        weights_write(path, borders, ARRAY_SIZE(borders));
        struct gms_checkpoint *c = loading(&g, path);
        uint64_t slabs = client_state(g).allocations;
        gms_checkpoint_cancel(c);
        ck_assert_int_eq(work_in(c, 2), -ECANCELED);
        fails(-ECANCELED, "cancelled", gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "cancelled"));
        ck_assert_uint_eq(client_state(g).allocations, 0);

        c = file(path);
        ok(gms_checkpoint_load(c, g, NULL));
        ck_assert_int_eq(work_in(c, 2), 0);
        gms_checkpoint_close(c); /* not finished is given up, too */
        ck_assert_uint_eq(client_state(g).allocations, 0);

        c = file(path);
        ok(gms_checkpoint_load(c, g, NULL));
        ok(gms_disconnect(g));
        gms_checkpoint_close(c); /* what cannot be given back is gone */
        gms_close(steal_ptr(&g));

        c = loading(&g, path);
        ck_assert_int_eq(work_in(c, 2), 0);
        ok(gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        ck_assert_uint_eq(client_state(g).allocations, slabs);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        check_store("w", borders, ARRAY_SIZE(borders));
}

TEST(checkpoint, out_of_order)
{
        const char *path = strdupa(path_of("c.safetensors"));
        struct gms_checkpoint *c;
        weights_write(path, borders, ARRAY_SIZE(borders));
        c = file(path);
        fails(-EINVAL, "no work yet", gms_checkpoint_work(c));
        fails(-EBUSY, "work left", gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        fails(-EINVAL, "no checkpoint", gms_checkpoint_work(NULL));
        gms_checkpoint_close(NULL);

        _cleanup_gms_ struct gms *g = NULL;
        c = loading(&g, path);
        fails(-EBUSY, "being loaded already", gms_checkpoint_verify(c, g));
        fails(-EBUSY, "work left", gms_checkpoint_finish(c, NULL));
        gms_close(steal_ptr(&g)); /* the checkpoint keeps it */
        ck_assert_int_eq(work_in(c, 2), 0);
        ok(gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
}

/* What does not fit leaves nothing behind, and the writer goes on. */
TEST(checkpoint, too_large, .needs = NEEDS_SMALL, .memory = "64M")
{
        const char *path = strdupa(path_of("c.safetensors"));
        struct gms_checkpoint *c;
        struct weight large[] = { { "a", "U8", 2, { 40, LEAF } }, { "b", "U8", 2, { 40, LEAF } } },
                      small[] = { { "s", "U8", 1, { 9 } } };
        weights_write(path, large, 2);
        c = file(path);
        _cleanup_gms_ struct gms *g = client("w", GMS_MODE_RW);
        ok(gms_set_deadline(g, 0));
        int r = gms_checkpoint_load(c, g, NULL);
        ck_assert_msg(r == -ENOMEM || r == -EFBIG, "%d: %s", r, gms_last_error());
        ck_assert_uint_eq(client_state(g).allocations, 0);
        gms_checkpoint_close(c);
        weights_write(path, small, 1);
        c = file(path);
        ok(gms_checkpoint_load(c, g, NULL));
        ck_assert_int_eq(work_in(c, 1), 0);
        ok(gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
        check_store("w", small, 1);
}

/* The driver fails somewhere: all threads end and say what it was, and nothing is left behind. */
TEST(checkpoint, driver_fails, .needs = NEEDS_FAKE)
{
        static const char *const functions[] = { "cuMemHostRegister_v2", "cuStreamCreate", "cuMemcpyHtoDAsync_v2",
                                                 "cuStreamSynchronize" };
        const char *path = strdupa(path_of("c.safetensors"));
        weights_write(path, borders, ARRAY_SIZE(borders));
        (void)load("w", file(path), 2);
        for (size_t i = 0; i < ARRAY_SIZE(functions); i++) {
                _cleanup_gms_ struct gms *g = NULL;
                struct gms_checkpoint *c = loading(&g, path);
                fakecuda_fail(m.knobs, functions[i], CUDA_ERROR_UNKNOWN, FAKECUDA_ALWAYS);
                ck_assert_msg(work_in(c, 3) == -EIO, "%s: %d: %s", functions[i], worked, why);
                ck_assert_msg(strstr(why, "CUDA_ERROR_UNKNOWN"), "%s: %s", functions[i], why);
                fails(-EIO, "CUDA_ERROR_UNKNOWN", gms_checkpoint_finish(c, NULL));
                fakecuda_clear(m.knobs);
                gms_checkpoint_close(c);
        }
        fakecuda_fail(m.knobs, "cuMemcpyDtoHAsync_v2", CUDA_ERROR_UNKNOWN, FAKECUDA_ALWAYS);
        ck_assert_int_eq(verify("w", file(path), 3, NULL), -EIO);
        fakecuda_clear(m.knobs);
        ck_assert_msg(verify("w", file(path), 3, NULL) == 0, "%s", why);
}

/* Only the last wait of a thread fails. */
TEST(checkpoint, last_copy_fails, .needs = NEEDS_FAKE)
{
        const char *path = strdupa(path_of("c.safetensors"));
        _cleanup_gms_ struct gms *g = NULL;
        weights_write(path, borders, 7); /* one unit: nothing waits but the end */
        struct gms_checkpoint *c = loading(&g, path);
        fakecuda_fail(m.knobs, "cuStreamSynchronize", CUDA_ERROR_UNKNOWN, FAKECUDA_ALWAYS);
        ck_assert_int_eq(work_in(c, 1), -EIO);
        fakecuda_clear(m.knobs);
        gms_checkpoint_close(c);
}

/* ---- where the bytes come from */

/* Whether a file's bytes can be read past the page cache here, and the kernel says what is in that. */
static bool can_go_direct(int fd, const char *path) {
        char byte;
        struct iovec v = { &byte, 1 };
        _cleanup_close_ int direct = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
        return direct >= 0 && preadv2(fd, &v, 1, 4 * LEAF, RWF_NOWAIT) < 0 && errno == EAGAIN;
}

TEST(checkpoint, cold_files)
{
        const char *path = strdupa(path_of("c.safetensors"));
        struct gms_checkpoint *c;
        _cleanup_gms_ struct gms *g = NULL;
        weights_write(path, borders, ARRAY_SIZE(borders));
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        ck_assert_int_eq(fsync(fd), 0);
        for (unsigned warm = 0; warm < 2; warm++) {
                ck_assert_int_eq(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
                bool direct = can_go_direct(fd, path);
                for (int64_t at = 0; warm && at < 20 * LEAF; at += sizeof(why)) /* a part of it */
                        ck_assert_int_eq(pread(fd, why, sizeof(why), at), sizeof(why));
                c = loading(&g, path);
                ck_assert_int_eq(work_in(c, 4), 0);
                struct gms_checkpoint_progress p = progress(c);
                ck_assert_uint_eq(p.done, p.total);
                ck_assert_msg(!direct || (warm ? p.direct < p.total : p.direct > p.total / 2), "direct %" PRIu64 " of %" PRIu64,
                              p.direct, p.total);
                ok(gms_checkpoint_finish(c, NULL));
                gms_checkpoint_close(c);
                ok(gms_commit(g, NULL, GMS_COMMIT_LEAVE));
                gms_close(steal_ptr(&g));
                check_store("w", borders, ARRAY_SIZE(borders));
        }
}

static void child_cannot(int line, void *arg) {
        (void)line;
        fails(-ECHILD, "fork", gms_checkpoint_work(arg));
        fails(-ECHILD, "fork", gms_checkpoint_finish(arg, NULL));
        gms_checkpoint_close(arg);
}

TEST(checkpoint, inherited)
{
        const char *path = strdupa(path_of("c.safetensors"));
        _cleanup_gms_ struct gms *g = NULL;
        struct child child;
        weights_write(path, borders, ARRAY_SIZE(borders));
        struct gms_checkpoint *c = loading(&g, path);
        child_start(&child, child_cannot, c);
        child_end(&child);
        ck_assert_int_eq(work_in(c, 2), 0);
        ok(gms_checkpoint_finish(c, NULL));
        gms_checkpoint_close(c);
        ok(gms_commit(g, NULL, 0));
        check_store("w", borders, ARRAY_SIZE(borders));
}
