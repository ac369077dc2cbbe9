// SPDX-License-Identifier: MIT
/* Metadata that is too much for a frame: in one round trip where the layout is settled, in frames where it is not. */
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "client.h"
#include "listing.h"
#include "proxy.h"
#include "raw.h"

/* n keys "PREFIX/000000" and on, with values of `size` bytes that say which, in the store's only allocation. */
static void put(struct gms *g, const char *prefix, size_t n, uint32_t size) {
        struct gms_metadata *entries = calloc(n, sizeof(*entries));
        char (*keys)[48] = calloc(n, sizeof(*keys));
        uint8_t *values = calloc(n, size);
        for (size_t i = 0; i < n; i++) {
                (void)snprintf(keys[i], sizeof(keys[i]), "%s/%06zu", prefix, i);
                memset(values + i * size, (int)(i % 251), size);
                entries[i] = (struct gms_metadata){
                        .size = sizeof(*entries), .key = keys[i], .value = values + i * size, .value_size = size,
                        .offset = i % 100,
                };
        }
        ok(gms_metadata_put(g, entries, n));
        free(entries);
        free(keys);
        free(values);
}

static struct gms *writer(const char *name) {
        struct gms *g = client(name, GMS_MODE_RW);
        ok(gms_allocate(g, 100, NULL, NULL));
        return g;
}

static void check(const struct gms_metadata_list *list, size_t first, const char *prefix, size_t n, uint32_t size) {
        char key[48];
        for (size_t i = 0; i < n; i++) {
                const struct gms_metadata *e = &list->entries[first + i];
                (void)snprintf(key, sizeof(key), "%s/%06zu", prefix, i);
                must(strcmp(e->key, key) == 0, "entry %zu has the key %s, not %s", first + i, e->key, key);
                must(e->value_size == size && e->slot == 0 && e->offset == i % 100, "of %s", key);
                must((uintptr_t)e->value % 8 == 0, "of %s", key);
                for (uint32_t k = 0; k < size; k++)
                        must(((const uint8_t *)e->value)[k] == i % 251, "a byte of %s", key);
        }
}

static void check_list(struct gms *g, const char *prefix, size_t n, uint32_t size) {
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        ok(gms_metadata_list(g, prefix, &list));
        must(list.n == n, "%u entries of %s, not %zu", list.n, prefix, n);
        check(&list, 0, prefix, n, size);
        gms_metadata_free(&list);
}

/* One request and one descriptor for a reader, one and one for who looks; nothing for what fits a frame. */
TEST(listing, one_round_trip)
{
        enum { N = 3000 };
        struct proxy p;
        struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
        client_warm_up();
        proxy_start(&p);
        _cleanup_gms_ struct gms *w = writer("w"), *r = NULL, *look = NULL;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        put(w, "few", 10, 30);
        put(w, "many", N, 70);
        ok(gms_commit(w, NULL, 0));

        ok(gms_open(&r, p.path, store("w")));
        ok(client_connect(r, GMS_MODE_RO, PATIENCE_MS, NULL));
        uint32_t requests = p.line->requests;
        unsigned fds = count_fds(m.gmsd);
        check_list(r, "many", N, 70);
        ck_assert_uint_eq(p.line->requests - requests, 1);
        ck_assert_uint_eq(p.line->descriptors, 1);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 1);
        check_list(r, "few", 10, 30);
        ck_assert_uint_eq(p.line->requests - requests, 2);
        ck_assert_uint_eq(p.line->descriptors, 1);
        check_list(r, "none", 0, 0);

        ok(gms_open(&look, p.path, NULL));
        ok(gms_connect(look, &o));
        requests = p.line->requests;
        ok(gms_query_metadata(look, store("w"), &list));
        ck_assert_uint_eq(p.line->requests - requests, 1);
        ck_assert_uint_eq(p.line->descriptors, 2);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 2); /* the session's; there is one listing */
        ck_assert_uint_eq(list.n, N + 10);
        check(&list, 0, "few", 10, 30);
        check(&list, 10, "many", N, 70);
        gms_metadata_free(&list);
        proxy_stop(&p);
}

/* The same memfd for everybody, with the layout and not a moment longer; and only for who asks for it. */
TEST(listing, one_for_all)
{
        _cleanup_gms_ struct gms *w = writer("w");
        _cleanup_raw_ struct raw one = RAW, two = RAW, old = RAW;
        struct stat of_one, of_two;
        put(w, "k", 3000, 10);
        ok(gms_commit(w, NULL, 0));
        raw_join(&one, "w", GMS__MODE__RO);
        raw_join(&two, "w", GMS__MODE__RO);
        raw_join(&old, "w", GMS__MODE__RO);
        unsigned fds = count_fds(m.gmsd);

        granted(&old, ask(&old, META_LIST, meta_list));
        ck_assert_ptr_null(old.fds);
        ck_assert_uint_gt(old.reply->metadata->n_entries, 100);
        ck_assert_uint_eq(old.reply->metadata->listing, 0);
        ck_assert(old.reply->metadata->more);
        ck_assert_uint_eq(count_fds(m.gmsd), fds);

        granted(&one, ask(&one, META_LIST, meta_list, b.listing = true, b.prefix = (char *)"k/00"));
        ck_assert_uint_eq(one.reply->metadata->n_entries, 0);
        ck_assert(!one.reply->metadata->more);
        ck_assert_ptr_nonnull(one.fds);
        ck_assert_uint_eq(one.fds->n, 1);
        ck_assert_int_eq(fstat(one.fds->fds[0], &of_one), 0);
        ck_assert_uint_eq((uint64_t)of_one.st_size, one.reply->metadata->listing);
        granted(&two, ask(&two, META_LIST, meta_list, b.listing = true, b.after = (char *)"k/000100"));
        ck_assert_ptr_nonnull(two.fds);
        ck_assert_int_eq(fstat(two.fds->fds[0], &of_two), 0);
        ck_assert_uint_eq(of_one.st_ino, of_two.st_ino);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 1);

        /* A new generation; readers of the old one keep it, and its listing. */
        _cleanup_gms_ struct gms *next = client("w", GMS_MODE_UPDATE);
        ok(gms_commit(next, NULL, 0));
        gms_close(steal_ptr(&next));
        wait_for(count_fds(m.gmsd) == fds + 1);
        gms_close(steal_ptr(&w));
        raw_close(&one);
        raw_close(&old);
        granted(&two, ask(&two, META_LIST, meta_list, b.listing = true));
        ck_assert_ptr_nonnull(two.fds);
        raw_close(&two);
        wait_for(count_fds(m.gmsd) == fds - 5); /* four sockets and the memory */
}

/* What may still change has none; what is sealed has. */
TEST(listing, settled)
{
        _cleanup_gms_ struct gms *w = writer("w");
        put(w, "k", 3000, 10);
        unsigned fds = count_fds(m.gmsd);
        check_list(w, "k", 3000, 10);
        ck_assert_uint_eq(count_fds(m.gmsd), fds);
        put(w, "k", 4000, 20);
        check_list(w, "k", 4000, 20);
        ok(gms_seal(w));
        check_list(w, "k", 4000, 20);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 1);
        ok(gms_commit(w, NULL, 0));
        check_list(w, "k", 4000, 20);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 1);
}

/* More than one takes: its end comes in frames, and so does what begins behind it. */
TEST(listing, beyond, .seconds = 60)
{
        enum { N = 30000 };
        struct proxy p;
        client_warm_up();
        proxy_start(&p);
        _cleanup_gms_ struct gms *w = writer("w"), *r = NULL;
        put(w, "a", N, 40);
        put(w, "b", 2000, 40);
        ok(gms_commit(w, NULL, 0));
        ok(gms_open(&r, p.path, store("w")));
        ok(client_connect(r, GMS_MODE_RO, PATIENCE_MS, NULL));
        check_list(r, "a", N, 40);
        ck_assert_uint_eq(p.line->descriptors, 1);
        uint32_t requests = p.line->requests;
        check_list(r, "b", 2000, 40);
        ck_assert_uint_eq(p.line->descriptors, 1);
        ck_assert_uint_gt(p.line->requests - requests, 2);
        proxy_stop(&p);
}

#define REPLACED 12000u /* more than one listing, so that it takes several answers */

/* Publishes one generation after another, each with values that say which. */
static void publish_on(int line, void *arg) {
        (void)arg;
        for (uint32_t size = 8;; size = size == 8 ? 16 : 8) {
                struct gms *w = client("w", GMS_MODE_UPDATE);
                ok(gms_allocate(w, 100, NULL, NULL));
                put(w, "k", REPLACED, 100 + size);
                ok(gms_commit(w, NULL, GMS_COMMIT_LEAVE));
                gms_close(w);
                say(line, 'p');
        }
}

/* Seals one layout after another: they are of no generation. */
static void seal_on(int line, void *arg) {
        (void)arg;
        for (uint32_t size = 8;; size = size == 8 ? 16 : 8) {
                struct gms *w = client("w", GMS_MODE_RW);
                ok(gms_allocate(w, 100, NULL, NULL));
                put(w, "k", REPLACED, 100 + size);
                ok(gms_seal(w));
                gms_close(w);
                say(line, 's');
        }
}

/* Who only looks pins nothing: what it is told is of one layout all the same. */
static void look_while(void (*replace_on)(int line, void *arg), char first) {
        struct child c;
        child_start(&c, replace_on, NULL);
        child_wait(&c, first);
        _cleanup_gms_ struct gms *look = client_open(NULL);
        ok(client_connect(look, GMS_MODE_NONE, 0, NULL));
        unsigned whole = 0;
        for (unsigned i = 0; i < 60; i++) {
                struct gms_metadata_list list = GMS_INIT(struct gms_metadata_list);
                int r = gms_query_metadata(look, store("w"), &list);
                if (r == -EAGAIN || (r == -ENOENT && first == 's')) /* while it is built, nothing rests there */
                        continue;
                ok(r);
                ck_assert_uint_eq(list.n, REPLACED);
                check(&list, 0, "k", REPLACED, list.entries[0].value_size);
                gms_metadata_free(&list);
                whole++;
        }
        ck_assert_uint_gt(whole, 0);
        child_kill(&c, SIGKILL);
}

TEST(listing, replaced_meanwhile, .seconds = 60)
{
        look_while(publish_on, 'p');
}

TEST(listing, resealed_meanwhile, .seconds = 60)
{
        look_while(seal_on, 's');
}

/* Without descriptors to spare it goes as it always went. */
TEST(listing, no_descriptor_left, .files = 200)
{
        _cleanup_gms_ struct gms *w = writer("w"), *more = NULL;
        put(w, "k", 3000, 10);
        ok(gms_commit(w, NULL, 0));
        more = client("v", GMS_MODE_RW);
        int r = 0;
        for (unsigned n = 0; r == 0; n++) {
                must(n < 200, "200 descriptors were enough for 200 allocations");
                r = gms_allocate(more, 1, NULL, NULL);
        }
        ck_assert_int_eq(r, -ENOBUFS);
        unsigned fds = count_fds(m.gmsd);
        check_list(w, "k", 3000, 10);
        ck_assert_uint_eq(count_fds(m.gmsd), fds);
}

/* Nor does a client that can take none lose its session over it, or what it holds. */
TEST(listing, no_descriptor_left_in_the_client)
{
        struct rlimit before;
        ck_assert_int_eq(getrlimit(RLIMIT_NOFILE, &before), 0);
        _cleanup_gms_ struct gms *w = writer("w"), *r = NULL;
        put(w, "k", 3000, 10);
        ok(gms_seal(w));
        for (int i = 0; i < 2; i++) {
                struct rlimit none = { .rlim_cur = 3, .rlim_max = before.rlim_max }; /* the numbers up to 2 are taken */
                ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &none), 0);
                check_list(r ? r : w, "k", 3000, 10);
                ck_assert_int_eq(setrlimit(RLIMIT_NOFILE, &before), 0);
                if (!r) {
                        ok(gms_commit(w, NULL, 0));
                        r = client("w", GMS_MODE_RO);
                }
        }
        unsigned fds = count_fds(m.gmsd);
        check_list(r, "k", 3000, 10);
        ck_assert_uint_eq(count_fds(m.gmsd), fds + 1); /* nobody had one before */
}
