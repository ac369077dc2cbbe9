// SPDX-License-Identifier: MIT
/* A layout: order, metadata, and above all a hash that must never change its meaning unnoticed. */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#include "layout.h"

/* ---- building one */

static struct layout *layout_make(void) {
        struct layout *l;
        ck_assert_int_eq(layout_new(&l), 0);
        return l;
}

static void add(struct layout *l, uint64_t size, uint64_t aligned, const char *tag) {
        char *copy = tag ? strdup(tag) : NULL;
        ck_assert_int_eq(layout_reserve(l, 1), 0);
        layout_append(l, 100 + l->next_slot, size, aligned, copy, -1);
}

static void put(struct layout *l, const char *key, uint64_t slot, uint64_t offset, const void *value, size_t size) {
        struct metadata *m;
        ck_assert_int_eq(metadata_new(&m, key, slot, offset, value, size), 0);
        ck_assert_int_eq(layout_reserve_metadata(l, 1), 0);
        layout_put(l, &m, 1);
        ck_assert_ptr_null(m);
}

/* Takes the allocation of a slot out, as a free does. */
static void take(struct layout *l, uint64_t slot) {
        struct layout *out = layout_make();
        ck_assert_int_eq(layout_reserve(out, 1), 0);
        layout_move(l, &layout_find_slot(l, slot)->id, 1, out);
        layout_free(out);
}

static const char *hex(const uint8_t *hash) {
        static char text[2][2 * LAYOUT_HASH_SIZE + 1];
        static int turn;
        char *t = text[turn ^= 1];
        for (int i = 0; i < LAYOUT_HASH_SIZE; i++)
                (void)snprintf(t + 2 * i, 3, "%02x", hash[i]);
        return t;
}

static struct layout *sample(void) {
        struct layout *l = layout_make();
        add(l, 1, 2 << 20, "weights");
        add(l, 3 << 20, 4 << 20, NULL);
        add(l, 7, 2 << 20, "kv");
        put(l, "model.embed", 0, 0, "f16", 3);
        put(l, "model.head", 2, 4096, "", 0);
        put(l, "a", 1, 1, "\0\1\2", 3);
        return l;
}

/* ---- the hash */

/* If one of these changes, readers of an older version take every layout for a stale one: it needs a new protocol. */
START_TEST(golden) {
        struct layout *l = layout_make();
        ck_assert_str_eq(hex(layout_hash(l)), "e5189a9599e3f86205ea23ef06e28b2d");
        layout_free(l);
        l = sample();
        ck_assert_str_eq(hex(layout_hash(l)), "da0ea719acc488f1f11516b0fe3eb384");
        layout_free(l);
}
END_TEST

/* The encoding as layout.h states it, written a second time into one piece of memory. */
struct encoding {
        uint8_t bytes[65536];
        size_t n;
};

static void encode_number(struct encoding *e, uint64_t value) {
        for (int i = 0; i < 8; i++)
                e->bytes[e->n++] = (uint8_t)(value >> 8 * i);
}

static void encode_string(struct encoding *e, const void *bytes, size_t n) {
        encode_number(e, n);
        memcpy(e->bytes + e->n, bytes, n);
        e->n += n;
}

START_TEST(as_stated) {
        static struct encoding e;
        struct layout *l = sample();
        encode_number(&e, 3);
        encode_number(&e, 2 << 20);
        encode_string(&e, "weights", 7);
        encode_number(&e, 4 << 20);
        encode_string(&e, "", 0);
        encode_number(&e, 2 << 20);
        encode_string(&e, "kv", 2);
        encode_number(&e, 3);
        static const struct {
                const char *key, *value;
                uint64_t rank, offset;
                size_t value_size;
        } entries[] = { { "a", "\0\1\2", 1, 1, 3 }, { "model.embed", "f16", 0, 0, 3 }, { "model.head", "", 2, 4096, 0 } };
        for (size_t i = 0; i < ARRAY_SIZE(entries); i++) {
                encode_string(&e, entries[i].key, strlen(entries[i].key));
                encode_number(&e, entries[i].rank);
                encode_number(&e, entries[i].offset);
                encode_string(&e, entries[i].value, entries[i].value_size);
        }
        XXH128_canonical_t expected;
        XXH128_canonicalFromHash(&expected, XXH3_128bits(e.bytes, e.n));
        ck_assert_str_eq(hex(layout_hash(l)), hex(expected.digest));
        layout_free(l);
}
END_TEST

/*
 * Layouts in a few letters, one step each with spaces between:
 *   4T   allocation of 4 bytes, aligned to 8, tag T          4:16T   the same, aligned to 16
 *   -1   slot 1 is freed
 *   k@1+2=v   key k: slot 1, offset 2, value v               !k      key k is deleted
 */
static struct layout *build(const char *text) {
        struct layout *l = layout_make();
        char steps[256], *save;
        (void)snprintf(steps, sizeof(steps), "%s", text);
        for (char *s = strtok_r(steps, " ", &save); s; s = strtok_r(NULL, " ", &save)) {
                char *at = strchr(s, '@'), *end;
                bool found;
                if (at) {
                        *at = 0;
                        uint64_t slot = strtoull(at + 1, &end, 10), offset = strtoull(end + 1, &end, 10);
                        put(l, s, slot, offset, end + 1, strlen(end + 1));
                } else if (*s == '-') {
                        take(l, strtoull(s + 1, NULL, 10));
                } else if (*s == '!') {
                        size_t i = layout_find_key(l, s + 1, &found);
                        ck_assert(found);
                        layout_delete(l, &i, 1);
                } else {
                        uint64_t size = strtoull(s, &end, 10), aligned = (size + 7) / 8 * 8;
                        if (*end == ':')
                                aligned = strtoull(end + 1, &end, 10);
                        add(l, size, aligned, end);
                }
        }
        return l;
}

static const struct {
        const char *name, *a, *b;
        bool same;
} pairs[] = {
        { "the same twice", "4T 8 k@0+0=v", "4T 8 k@0+0=v", true },
        { "sizes count as aligned", "1", "8", true },
        { "sizes that are aligned to another number", "8", "8:16", false },
        { "no tag and an empty one", "8", "8", true },
        { "tags", "8a", "8b", false },
        { "tags: where one ends and the next begins", "8ab 8", "8a 8b", false },
        { "tags: the other way", "8 8ab", "8a 8b", false },
        { "which allocation has the tag", "8a 8", "8 8a", false },
        { "order of allocations", "8 16", "16 8", false },
        { "one large, two small", "16", "8 8", false },
        { "a tag that looks like a size", "8 8", "8\x08", false },
        { "nothing and an allocation of nothing", "", "0", false },
        { "gaps from frees", "8 8a 16 -1", "8 16", true },
        { "gaps from frees, with metadata behind them", "8 8 16 -1 k@2+0=v", "8 16 k@1+0=v", true },
        { "a free in the middle is not one at the end", "8 16 24 -1", "8 16 24 -2", false },
        { "metadata of a freed allocation", "8 8 k@1+0=v -1", "8", true },
        { "key and value: where one ends and the other begins", "8 kv@0+0=x", "8 k@0+0=vx", false },
        { "two entries and one", "8 a@0+0=x b@0+0=y", "8 a@0+0=xb", false },
        { "value here or there", "8 a@0+0=x b@0+0=", "8 a@0+0= b@0+0=x", false },
        { "keys", "8 a@0+0=x", "8 b@0+0=x", false },
        { "values", "8 a@0+0=x", "8 a@0+0=y", false },
        { "offsets", "8 a@0+0=x", "8 a@0+1=x", false },
        { "slots", "8 8 a@0+0=x", "8 8 a@1+0=x", false },
        { "slot and offset swapped", "8 8 a@0+1=x", "8 8 a@1+0=x", false },
        { "order in which keys were put", "8 a@0+0=x b@0+0=y", "8 b@0+0=y a@0+0=x", true },
        { "a key put twice", "8 a@0+0=x a@0+1=y", "8 a@0+1=y", true },
        { "a key deleted", "8 a@0+0=x b@0+0=y !a", "8 b@0+0=y", true },
        { "a tag or a key", "8a", "8 a@0+0=", false },
};

START_TEST(pair) {
        struct layout *a = build(pairs[_i].a), *b = build(pairs[_i].b);
        bool same = memcmp(layout_hash(a), layout_hash(b), LAYOUT_HASH_SIZE) == 0;
        ck_assert_msg(same == pairs[_i].same, "%s: %s", pairs[_i].name, same ? "taken for the same" : "told apart");
        layout_free(a);
        layout_free(b);
}
END_TEST

START_TEST(not_in_the_hash) {
        struct layout *a = sample(), *b = sample();
        b->generation = 7;
        b->sealed = true;
        b->identity = strdup("model v2");
        for (size_t i = 0; i < b->n_allocations; i++) {
                b->allocations[i].id += 1000;
                b->allocations[i].fd = 5;
                b->allocations[i].size++;
        }
        ck_assert_mem_eq(layout_hash(a), layout_hash(b), LAYOUT_HASH_SIZE);
        layout_free(a);
        layout_free(b);
}
END_TEST

/* The hash is kept; every change of the structure must make it anew. */
START_TEST(never_an_old_hash) {
        static const char *const grown[] = {
                "8",
                "8 8",
                "8 8 k@1+0=v",
                "8 8 k@1+0=w",
                "8 8 k@1+3=w",
                "8 8 k@1+3=w l@0+0=",
        };
        struct layout *l = layout_make();
        for (size_t i = 0; i < ARRAY_SIZE(grown); i++) {
                struct layout *fresh = build(grown[i]);
                if (i < 2)
                        add(l, 8, 8, NULL);
                else
                        put(l, i < 5 ? "k" : "l", i < 5, i == 4 ? 3 : 0, i == 2 ? "v" : i < 5 ? "w" : "", i < 5);
                ck_assert_str_eq(hex(layout_hash(l)), hex(layout_hash(fresh)));
                layout_free(fresh);
        }
        layout_delete(l, (size_t[]){ 1 }, 1);
        struct layout *fresh = build("8 8 k@1+3=w");
        ck_assert_str_eq(hex(layout_hash(l)), hex(layout_hash(fresh)));
        layout_free(fresh);
        take(l, 1);
        fresh = build("8");
        ck_assert_str_eq(hex(layout_hash(l)), hex(layout_hash(fresh)));
        layout_free(fresh);
        layout_free(l);
}
END_TEST

/* ---- finding */

START_TEST(find_among_gaps) {
        struct layout *l = layout_make(), *out = layout_make();
        ck_assert_ptr_null(layout_find_id(l, 0));
        ck_assert_ptr_null(layout_find_slot(l, 0));
        for (int i = 0; i < 100; i++)
                add(l, 1, 4096, NULL);
        ck_assert_int_eq(layout_reserve(out, 50), 0);
        for (uint64_t slot = 0; slot < 100; slot += 2)
                layout_move(l, &layout_find_slot(l, slot)->id, 1, out);
        ck_assert_uint_eq(l->bytes, 50 * 4096);
        ck_assert_uint_eq(out->bytes, 50 * 4096);
        for (uint64_t slot = 0; slot < 102; slot++) {
                struct allocation *by_slot = layout_find_slot(l, slot), *by_id = layout_find_id(l, 100 + slot);
                ck_assert_ptr_eq(by_slot, by_id);
                ck_assert_int_eq(by_slot != NULL, slot % 2 == 1 && slot < 100);
        }
        add(l, 1, 4096, NULL);
        ck_assert_uint_eq(l->allocations[50].slot, 100); /* a slot is used once */
        layout_free(l);
        layout_free(out);
}
END_TEST

START_TEST(value_of_an_entry) {
        struct metadata *m;
        ck_assert_int_eq(metadata_new(&m, "key", 3, 4, "a\0b", 3), 0);
        ck_assert_str_eq(m->key, "key");
        ck_assert_uint_eq(m->key_size, 3);
        ck_assert_uint_eq(m->value_size, 3);
        ck_assert_mem_eq(metadata_value(m), "a\0b", 3);
        free(m);
        ck_assert_int_eq(metadata_new(&m, "", 0, 0, NULL, 0), 0);
        ck_assert_uint_eq(m->key_size + m->value_size, 0);
        free(m);
}
END_TEST

/* ---- many */

#define MANY 60000

static int by_text(const void *a, const void *b) {
        return strcmp(*(char *const *)a, *(char *const *)b);
}

#ifdef __has_feature /* clang's way to say it */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define SLOWER 50 /* memmove is watched byte by byte */
#else
#define SLOWER 1
#endif

/* Of this process: others may be running. */
static double seconds(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Keys of any bytes in any order; the limit is ten times what it took here. */
START_TEST(many_keys) {
        char **keys = calloc(MANY, sizeof(*keys));
        struct layout *l = layout_make();
        uint64_t state = 88172645463325252u;
        size_t bytes = 0;
        add(l, MANY, MANY, NULL);
        for (size_t i = 0; i < MANY; i++) {
                char key[48];
                state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                int n = snprintf(key, sizeof(key), "%016llx/%zu", (unsigned long long)state, i);
                key[0] = (char)(state % 255 + 1); /* also bytes above 127: order is that of unsigned bytes */
                keys[i] = strdup(key);
                bytes += (size_t)n + 8;
        }

        double start = seconds();
        for (size_t i = 0; i < MANY; i++)
                put(l, keys[i], 0, i, &i, 8);
        (void)layout_hash(l);
        double took = seconds() - start;
        ck_assert_msg(took < 5 * SLOWER, "%d keys took %.2f s", MANY, took);
        ck_assert_uint_eq(l->n_metadata, MANY);
        ck_assert_uint_eq(l->metadata_bytes, bytes);

        qsort(keys, MANY, sizeof(*keys), by_text);
        for (size_t i = 0; i < MANY; i++) {
                bool found;
                ck_assert_str_eq(l->metadata[i]->key, keys[i]);
                ck_assert_uint_eq(layout_find_key(l, keys[i], &found), i);
                ck_assert(found);
        }
        for (size_t i = MANY; i-- > 0;) {
                if (i % 3)
                        layout_delete(l, &i, 1);
                free(keys[i]);
        }
        ck_assert_uint_eq(l->n_metadata, MANY / 3);
        take(l, 0);
        ck_assert_uint_eq(l->n_metadata, 0);
        ck_assert_uint_eq(l->metadata_bytes, 0);
        ck_assert_uint_eq(l->bytes, 0);
        free(keys);
        layout_free(l);
}
END_TEST

/* Batches of any size and order, keys named twice among them, against one put or delete at a time. */
START_TEST(batches) {
        enum { ROUNDS = 300, BATCH = 40, KEYS = 60 };
        struct layout *one = layout_make(), *many = layout_make();
        srand(7);
        add(one, 1000, 1000, NULL);
        add(many, 1000, 1000, NULL);
        for (int round = 0; round < ROUNDS; round++) {
                struct metadata *entries[BATCH];
                size_t indexes[BATCH], n = (size_t)rand() % (BATCH + 1), deleted = 0;
                ck_assert_int_eq(layout_reserve_metadata(many, n), 0);
                for (size_t i = 0; i < n; i++) {
                        char key[8];
                        (void)snprintf(key, sizeof(key), "%d", rand() % KEYS);
                        ck_assert_int_eq(metadata_new(&entries[i], key, 0, i, &round, (size_t)rand() % sizeof(round)), 0);
                        put(one, key, 0, i, &round, entries[i]->value_size);
                }
                layout_put(many, entries, n);
                for (size_t i = 0; i < n; i++)
                        ck_assert_ptr_null(entries[i]);
                for (size_t i = 0; i < many->n_metadata && deleted < BATCH; i++)
                        for (int times = rand() % 4 - 1; times > 0 && deleted < BATCH; times--)
                                indexes[deleted++] = i;
                layout_delete(many, indexes, deleted);
                while (deleted-- > 0)
                        if (deleted == 0 || indexes[deleted] != indexes[deleted - 1])
                                layout_delete(one, &indexes[deleted], 1);
                ck_assert_uint_eq(many->n_metadata, one->n_metadata);
                ck_assert_uint_eq(many->metadata_bytes, one->metadata_bytes);
                ck_assert_mem_eq(layout_hash(many), layout_hash(one), LAYOUT_HASH_SIZE);
                for (size_t i = 1; i < many->n_metadata; i++)
                        ck_assert_int_lt(strcmp(many->metadata[i - 1]->key, many->metadata[i]->key), 0);
        }
        layout_free(one);
        layout_free(many);
}
END_TEST

/* What one frame can put into, or delete from, a full layout at most: its loop must not stand still for it. */
START_TEST(batch_descending) {
        enum { BATCH = 8000 };
        struct layout *l = layout_make();
        struct metadata **entries = calloc(MANY, sizeof(*entries));
        size_t *indexes = calloc(BATCH, sizeof(*indexes));
        ck_assert(entries && indexes);
        add(l, 1, 1, NULL);
        ck_assert_int_eq(layout_reserve_metadata(l, MANY), 0);
        for (size_t i = 0; i < MANY; i++) {
                char key[8];
                bool last = i >= MANY - BATCH; /* before all others, and in descending order */
                (void)snprintf(key, sizeof(key), last ? "a%05zu" : "b%05zu", last ? MANY - i : i);
                ck_assert_int_eq(metadata_new(&entries[i], key, 0, 0, "", 0), 0);
        }
        layout_put(l, entries, MANY - BATCH);
        double start = seconds();
        layout_put(l, entries + MANY - BATCH, BATCH);
        for (size_t i = 0; i < BATCH; i++)
                indexes[i] = 2 * i;
        layout_delete(l, indexes, BATCH);
        double took = seconds() - start;
        ck_assert_msg(took < 0.05, "%d keys put and deleted took %.3f s", BATCH, took);
        ck_assert_uint_eq(l->n_metadata, MANY - BATCH);
        ck_assert_str_eq(l->metadata[0]->key, "a00002");
        ck_assert_str_eq(l->metadata[BATCH / 2]->key, "b00001");
        free(entries);
        free(indexes);
        layout_free(l);
}
END_TEST

/* Index of the first key not below: between keys, before and behind them all. */
START_TEST(find_key_between) {
        static const struct {
                const char *key;
                size_t index;
                bool found;
        } looks[] = {
                { "", 0, false }, { "a", 0, false }, { "b", 0, true },  { "b.", 1, false }, { "bb", 1, true },
                { "c", 2, false }, { "d", 2, true }, { "\xff", 3, true }, { "\xff\xff", 4, false },
        };
        struct layout *l = build("8 d@0+0= b@0+0= \xff@0+0= bb@0+0=");
        for (size_t i = 0; i < ARRAY_SIZE(looks); i++) {
                bool found;
                ck_assert_uint_eq(layout_find_key(l, looks[i].key, &found), looks[i].index);
                ck_assert_int_eq(found, looks[i].found);
        }
        layout_free(l);
}
END_TEST

int main(void) {
        Suite *s = suite_create("layout");
        TCase *t = tcase_create("hash");
        tcase_add_test(t, golden);
        tcase_add_test(t, as_stated);
        tcase_add_loop_test(t, pair, 0, (int)ARRAY_SIZE(pairs));
        tcase_add_test(t, not_in_the_hash);
        tcase_add_test(t, never_an_old_hash);
        suite_add_tcase(s, t);
        t = tcase_create("finding");
        tcase_add_test(t, find_among_gaps);
        tcase_add_test(t, value_of_an_entry);
        tcase_add_test(t, find_key_between);
        suite_add_tcase(s, t);
        t = tcase_create("many");
        tcase_set_timeout(t, 30);
        tcase_add_test(t, many_keys);
        tcase_add_test(t, batches);
        tcase_add_test(t, batch_descending);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
