// SPDX-License-Identifier: MIT
/* Allocations, metadata and publications: what is refused, and that nothing is half done. */
#include <stdio.h>
#include <string.h>

#include "raw.h"

/* ---- sizes */

static int allocate_two(struct raw *r, uint64_t size, uint32_t n, uint64_t size2, uint32_t n2) {
        Gms__Allocate__Item item[2] = { GMS__ALLOCATE__ITEM__INIT, GMS__ALLOCATE__ITEM__INIT }, *items[] = { &item[0], &item[1] };
        item[0].size = size;
        item[0].count = n;
        item[1].size = size2;
        item[1].count = n2;
        return ask(r, ALLOCATE, allocate, b.n_items = n2 ? 2 : 1, b.items = items);
}

TEST(layout, sizes)
{
        const uint64_t g = m.granularity, total = m.total, top = UINT64_MAX;
        const struct {
                uint64_t a;
                uint32_t n;
                uint64_t b;
                uint32_t k;
                int status;
        } cases[] = {
                { 0, 1, 0, 0, GMS__STATUS__INVALID },
                { top, 1, 0, 0, GMS__STATUS__INVALID },             /* -1 */
                { top - g + 2, 1, 0, 0, GMS__STATUS__INVALID },     /* rounding overflows, by one */
                { top - g + 1, 1, 0, 0, GMS__STATUS__TOO_LARGE },   /* it does not */
                { UINT64_C(1) << 63, 1, 0, 0, GMS__STATUS__TOO_LARGE },
                { total + 1, 1, 0, 0, GMS__STATUS__TOO_LARGE },
                { total / 2 + g, 2, 0, 0, GMS__STATUS__TOO_LARGE },
                { g, UINT32_MAX, 0, 0, GMS__STATUS__TOO_LARGE },
                { UINT64_C(1) << 33, 1u << 31, 0, 0, GMS__STATUS__TOO_LARGE }, /* the product overflows, to 0 */
                { total, 1, 1, 1, GMS__STATUS__TOO_LARGE },
                { UINT64_C(1) << 63, 1, UINT64_C(1) << 63, 1, GMS__STATUS__TOO_LARGE }, /* so does the sum */
                { g, 1, 0, 1, GMS__STATUS__INVALID },               /* one is good */
                { 1, 16385, 0, 0, GMS__STATUS__TOO_LARGE },         /* too many at once */
        };
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                int status = allocate_two(&r, cases[i].a, cases[i].n, cases[i].b, cases[i].k);
                raw_check(&r, status, cases[i].status, "allocate: ", __FILE__, __LINE__);
                ck_assert_uint_eq(look("w").building, 0);
        }
        refused(&r, ask(&r, ALLOCATE, allocate), INVALID, "no items");
        granted(&r, raw_allocate(&r, 1, 0, 0)); /* no count is one */
        ck_assert_uint_eq(r.reply->allocated->aligned_sizes[0], g);
        ck_assert_uint_eq(r.fds->n, 1);
        granted(&r, raw_allocate(&r, g + 1, 2, 0));
        ck_assert_uint_eq(r.reply->allocated->aligned_sizes[0], 2 * g);
        ck_assert_uint_eq(look("w").building, 5 * g);
}

TEST(layout, tags)
{
        _cleanup_raw_ struct raw r = RAW;
        static const struct {
                const char *tag;
                int status;
        } cases[] = {
                { "0123456789012345678901234567890123456789012345678901234567890123", GMS__STATUS__OK },
                { "01234567890123456789012345678901234567890123456789012345678901234", GMS__STATUS__INVALID },
                { "a\nb", GMS__STATUS__INVALID },
        };
        raw_join(&r, "w", GMS__MODE__RW);
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
                item.size = 1;
                item.tag = (char *)cases[i].tag;
                int status = ask(&r, ALLOCATE, allocate, b.n_items = 1, b.items = items);
                raw_check(&r, status, cases[i].status, "tag", __FILE__, __LINE__);
        }
}

/* ---- things that are not there */

TEST(layout, unknown)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_allocate(&w, 1, 2, 0));

        uint64_t ids[] = { w.first_id, w.first_id + 2 };
        refused(&w, ask(&w, FREE, free, b.n_ids = 2, b.ids = ids), NOT_FOUND, "item 1");
        ck_assert_uint_eq(look("w").building, 2 * m.granularity); /* not the first of them either */
        ids[0] = 0;
        refused(&w, ask(&w, FREE, free, b.n_ids = 1, b.ids = ids), NOT_FOUND, "free");

        char *keys[] = { (char *)"known", (char *)"unknown" };
        refused(&w, raw_put(&w, "k", w.first_slot + 2, 0), NOT_FOUND, "slot");
        granted(&w, raw_put(&w, "known", w.first_slot, 0));
        refused(&w, ask(&w, META_GET, meta_get, b.n_keys = 2, b.keys = keys), NOT_FOUND, "unknown");
        refused(&w, ask(&w, META_DELETE, meta_delete, b.n_keys = 2, b.keys = keys), NOT_FOUND, "item 1");
        granted(&w, ask(&w, META_GET, meta_get, b.n_keys = 1, b.keys = keys));
        refused(&w, ask(&w, PAGE, page, b.count = 1, b.generation = 5), NOT_FOUND, "generation");

        const char *nothing = store("nothing");
        refused(&w, ask(&w, PAGE, page, b.count = 1, b.store = (char *)nothing), NOT_FOUND, nothing);
        refused(&w, ask(&w, META_LIST, meta_list, b.store = (char *)nothing), NOT_FOUND, nothing);
        refused(&w, ask(&w, LIST_STORES, list_stores, b.store = (char *)nothing), NOT_FOUND, nothing);
        refused(&w, ask(&w, CLEAR, clear, b.store = (char *)nothing), NOT_FOUND, nothing);
        refused(&w, ask(&w, CLEAR, clear, b.store = (char *)"\033"), NOT_FOUND, "no store");
        refused(&w, ask(&w, PAGE, page, b.count = 1, b.store = (char *)store("w")), NOT_FOUND, "no layout");

        raw_publish(&r, "r", 0, NULL);
        refused(&r, ask(&r, SETTLE, settle, b.generation = 2), NOT_FOUND, "generation");
        refused(&r, ask(&r, META_LIST, meta_list, b.generation = 2), NOT_FOUND, "generation");
}

/* ---- metadata */

TEST(layout, offsets)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 100, 1, 0));
        granted(&r, raw_put(&r, "first", r.first_slot, 0));
        granted(&r, raw_put(&r, "last", r.first_slot, 99));
        refused(&r, raw_put(&r, "behind", r.first_slot, 100), OUT_OF_RANGE, "not inside its allocation");
        refused(&r, raw_put(&r, "in the padding", r.first_slot, m.granularity - 1), OUT_OF_RANGE, "offset");
        refused(&r, raw_put(&r, "far", r.first_slot, UINT64_MAX), OUT_OF_RANGE, "offset");

        Gms__MetaEntry e[2] = { GMS__META_ENTRY__INIT, GMS__META_ENTRY__INIT }, *entries[] = { &e[0], &e[1] };
        e[0].key = (char *)"good";
        e[1].key = (char *)"bad";
        e[0].slot = e[1].slot = r.first_slot;
        e[1].offset = 100;
        refused(&r, ask(&r, META_PUT, meta_put, b.n_entries = 2, b.entries = entries), OUT_OF_RANGE, "item 1");
        granted(&r, ask(&r, META_LIST, meta_list));
        ck_assert_uint_eq(r.reply->metadata->n_entries, 2);
        ck_assert_str_eq(r.reply->metadata->entries[0]->key, "first");
        ck_assert_str_eq(r.reply->metadata->entries[1]->key, "last");
}

TEST(layout, keys_and_values)
{
        _cleanup_raw_ struct raw r = RAW;
        char key[514] = "";
        static uint8_t value[32769];
        Gms__MetaEntry e = GMS__META_ENTRY__INIT, *entries[] = { &e };
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 100, 1, 0));

        refused(&r, raw_put(&r, "", r.first_slot, 0), INVALID, "key");
        refused(&r, raw_put(&r, "a\tb", r.first_slot, 0), INVALID, "key");
        memset(key, 'k', 513);
        refused(&r, raw_put(&r, key, r.first_slot, 0), INVALID, "512");
        key[512] = '\0';
        e.key = key;
        e.slot = r.first_slot;
        e.value = (ProtobufCBinaryData){ .data = value, .len = sizeof(value) };
        refused(&r, ask(&r, META_PUT, meta_put, b.n_entries = 1, b.entries = entries), INVALID, "32768");
        e.value.len--;
        for (int i = 0; i < 5; i++) { /* the largest there are: one a page */
                key[0] = (char)('a' + i);
                granted(&r, ask(&r, META_PUT, meta_put, b.n_entries = 1, b.entries = entries));
        }
        const char *after = "";
        char last[514];
        for (int i = 0; i < 5; i++) {
                granted(&r, ask(&r, META_LIST, meta_list, b.after = (char *)after));
                ck_assert_uint_eq(r.reply->metadata->n_entries, 1);
                ck_assert_uint_eq(r.reply->metadata->entries[0]->value.len, 32768);
                ck_assert_int_eq(r.reply->metadata->entries[0]->key[0], 'a' + i);
                ck_assert_int_eq(r.reply->metadata->more, i < 4);
                (void)snprintf(last, sizeof(last), "%s", r.reply->metadata->entries[0]->key);
                after = last;
        }
        granted(&r, ask(&r, META_LIST, meta_list, b.prefix = (char *)"c"));
        ck_assert_uint_eq(r.reply->metadata->n_entries, 1);
        ck_assert(!r.reply->metadata->more);
}

TEST(layout, free_drops_its_metadata)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 100, 2, 0));
        uint64_t id = r.first_id;
        granted(&r, raw_put(&r, "of the first", r.first_slot, 0));
        granted(&r, raw_put(&r, "of the second", r.first_slot + 1, 0));
        granted(&r, ask(&r, FREE, free, b.n_ids = 1, b.ids = &id));
        granted(&r, ask(&r, META_LIST, meta_list));
        ck_assert_uint_eq(r.reply->metadata->n_entries, 1);
        ck_assert_str_eq(r.reply->metadata->entries[0]->key, "of the second");
}

/* ---- who may */

TEST(layout, readers_write_nothing)
{
        _cleanup_raw_ struct raw r = RAW, none = RAW;
        raw_publish(&r, "w", 1, NULL);
        granted(&none, raw_hello(&none, NULL, GMS__MODE__NONE, 0, NULL));
        for (int i = 0; i < 2; i++) {
                struct raw *who = i ? &none : &r;
                const char *mode = i ? "looks only" : "RO";
                uint64_t id = r.first_id;
                char *keys[] = { (char *)"k" };
#define NEITHER(name, status)                                       \
        do {                                                        \
                refused(who, status, NOT_PERMITTED, name ": ");     \
                refused(who, status, NOT_PERMITTED, mode);          \
        } while (0)
                NEITHER("allocate", raw_allocate(who, 1, 1, 0));
                NEITHER("free", ask(who, FREE, free, b.n_ids = 1, b.ids = &id));
                NEITHER("put", raw_put(who, "k", 0, 0));
                NEITHER("delete", ask(who, META_DELETE, meta_delete, b.n_keys = 1, b.keys = keys));
                NEITHER("seal", ask(who, SEAL, seal));
                NEITHER("discard", ask(who, DISCARD, discard));
                NEITHER("commit", raw_commit(who, NULL, false));
        }
        refused(&none, ask(&none, REFRESH, refresh), NOT_PERMITTED, "refresh");
        refused(&none, ask(&none, SETTLE, settle), NOT_PERMITTED, "settle");
        refused(&none, ask(&none, META_GET, meta_get), NOT_PERMITTED, "get");
        refused(&none, raw_page(&none, 0, 1, true), NOT_PERMITTED, "page");
        refused(&none, ask(&none, PAGE, page, b.count = 1, b.store = (char *)store("w"), b.descriptors = true), NOT_PERMITTED,
                "descriptors");
        struct store_view v = look("w");
        ck_assert_uint_eq(v.generation, 1);
        ck_assert_uint_eq(v.allocations, 1);
}

TEST(layout, writers_do_not_refresh)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, ask(&r, REFRESH, refresh), NOT_PERMITTED, "refresh");
        refused(&r, ask(&r, SETTLE, settle), NOT_PERMITTED, "settle");
}

/* ---- publishing */

TEST(layout, commit_of_nothing)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_publish(&w, "w", 0, NULL);
        ck_assert_uint_eq(w.reply->layout->generation, 1);
        ck_assert_uint_eq(w.reply->layout->allocations, 0);
        raw_join(&r, "w", GMS__MODE__RO);
        granted(&r, raw_page(&r, 0, 253, true));
        ck_assert_uint_eq(r.reply->allocations->total, 0);
        raw_close(&w);
        raw_close(&r);
        wait_for(strcmp(state_of("w"), "COMMITTED") == 0);
}

TEST(layout, identity)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_publish(&w, "w", 1, "llama, revision 7");
        ck_assert_str_eq(look("w").identity, "llama, revision 7");
        int status = raw_hello(&r, "w", GMS__MODE__RO, 0, "llama, revision 8");
        refused(&r, status, IDENTITY, "llama, revision 7");
        refused(&r, status, IDENTITY, "llama, revision 8");
        ended(&r);
        raw_close(&r);
        granted(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, "llama, revision 7"));
        raw_close(&r);
        granted(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, NULL));
        refused(&r, ask(&r, REFRESH, refresh, b.identity = (char *)"other"), IDENTITY, "llama, revision 7");

        raw_close(&w);
        raw_join(&w, "w", GMS__MODE__UPDATE);
        refused(&w, raw_commit(&w, "two\nlines", false), INVALID, "identity");
        granted(&w, raw_commit(&w, NULL, false));
        raw_close(&r);
        refused(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, "llama, revision 7"), IDENTITY, "generation 2");
}

/* A demand is met or not when there is something to meet it. */
TEST(layout, identity_waited_for)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        raw_join(&w, "w", GMS__MODE__RW);
        raw_connect(&r);
        post(&r, HELLO, hello, b.protocol_min = b.protocol_max = 1, b.mode = GMS__MODE__RO, b.store = (char *)store("w"),
             b.identity = (char *)"right");
        wait_for(waiters("w") == 1);
        granted(&w, raw_commit(&w, "wrong", false));
        refused(&r, raw_answer(&r, PATIENCE_MS), IDENTITY, "wrong");
        ended(&r);
        ck_assert_uint_eq(look("w").readers, 1);
}

static void hash_of(const char *name, uint8_t hash[16]) {
        struct store_view v = look(name);
        memcpy(hash, v.hash, 16);
}

/* Structure is: sizes, tags, order and metadata. It is neither ids, nor gaps, nor bytes. */
TEST(layout, hash)
{
        uint8_t first[16], other[16];
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 3, NULL);
        hash_of("w", first);
        raw_close(&r);

        static const struct {
                unsigned n;
                bool gap, larger, key;
                bool same;
        } cases[] = {
                { 3, false, false, false, true }, { 3, true, false, false, true },  { 2, false, false, false, false },
                { 4, false, false, false, false }, { 3, false, true, false, false }, { 3, false, false, true, false },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                raw_join(&r, "w", GMS__MODE__RW);
                if (cases[i].gap) {
                        granted(&r, raw_allocate(&r, 1, 1, 0));
                        granted(&r, ask(&r, FREE, free, b.n_ids = 1, b.ids = &r.first_id));
                }
                granted(&r, raw_allocate(&r, (cases[i].larger ? 2 : 1) * m.granularity, cases[i].n, 0));
                if (cases[i].key)
                        granted(&r, raw_put(&r, "k", r.first_slot, 0));
                granted(&r, raw_commit(&r, NULL, true));
                raw_close(&r);
                hash_of("w", other);
                ck_assert_msg((memcmp(first, other, 16) == 0) == cases[i].same, "case %zu", i);
                ck_assert_uint_eq(look("w").generation, i + 2);
        }
}

TEST(layout, pages)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, 600, PATIENCE_MS));
        ck_assert_uint_eq(r.reply->allocated->count, 600);
        ck_assert_uint_eq(r.fds->n, 253); /* the rest is pulled */
        uint64_t id = r.first_id + 300;
        granted(&r, ask(&r, FREE, free, b.n_ids = 1, b.ids = &id));
        granted(&r, raw_commit(&r, NULL, false));
        uint64_t seen = 0, last = 0;
        while (seen < 599) {
                granted(&r, raw_page(&r, seen, UINT32_MAX, true));
                const Gms__Allocations *p = r.reply->allocations;
                ck_assert_uint_eq(p->total, 599);
                ck_assert_uint_eq(p->generation, 1);
                ck_assert_uint_eq(p->n_allocations, MIN(253u, 599 - seen));
                ck_assert_uint_eq(r.fds->n, p->n_allocations);
                for (size_t i = 0; i < p->n_allocations; i++) {
                        ck_assert(seen + i == 0 || p->allocations[i]->slot > last);
                        last = p->allocations[i]->slot;
                }
                seen += p->n_allocations;
        }
        ck_assert_uint_eq(last, r.first_slot + 599);
        static const struct {
                uint64_t first;
                uint32_t count, n;
        } edges[] = { { 0, 0, 0 }, { 598, 9, 1 }, { 599, 9, 0 }, { UINT64_MAX, 9, 0 }, { 3, 1, 1 } };
        for (size_t i = 0; i < ARRAY_SIZE(edges); i++) {
                granted(&r, raw_page(&r, edges[i].first, edges[i].count, true));
                ck_assert_uint_eq(r.reply->allocations->n_allocations, edges[i].n);
        }
}

/* ---- seal and discard */

TEST(layout, sealed_keeps_its_shape)
{
        _cleanup_raw_ struct raw w = RAW, r = RAW;
        char *keys[] = { (char *)"k" };
        raw_join(&w, "w", GMS__MODE__RW);
        granted(&w, raw_allocate(&w, 100, 2, 0));
        granted(&w, raw_put(&w, "k", w.first_slot, 0));
        granted(&w, ask(&w, SEAL, seal));
        granted(&w, ask(&w, SEAL, seal)); /* it is */
        refused(&w, raw_allocate(&w, 1, 1, 0), CONFLICT, "sealed");
        refused(&w, ask(&w, FREE, free, b.n_ids = 1, b.ids = &w.first_id), CONFLICT, "sealed");
        refused(&w, raw_put(&w, "k", w.first_slot, 0), CONFLICT, "sealed");
        refused(&w, ask(&w, META_DELETE, meta_delete, b.n_keys = 1, b.keys = keys), CONFLICT, "sealed");
        granted(&w, raw_page(&w, 0, 253, true));
        ck_assert_uint_eq(w.fds->n, 2);
        refused(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "nothing is published");
        raw_close(&r);

        /* It survives its writer, is there to look at, and is not readable. */
        raw_close(&w);
        wait_for(strcmp(state_of("w"), "SEALED") == 0);
        granted(&control, ask(&control, PAGE, page, b.count = 9, b.store = (char *)store("w")));
        ck_assert_uint_eq(control.reply->allocations->total, 2);
        refused(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "SEALED");

        /* Adopted and committed it is published, and can be sealed no more. */
        raw_join(&w, "w", GMS__MODE__ADOPT);
        ck_assert(w.reply->welcome->layout->sealed);
        ck_assert_uint_eq(w.reply->welcome->layout->allocations, 2);
        granted(&w, raw_commit(&w, NULL, true));
        ck_assert_str_eq(state_of("w"), "COMMITTED");
        raw_close(&r);
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, ask(&r, SEAL, seal), CONFLICT, "discard");
        granted(&r, ask(&r, DISCARD, discard));
        granted(&r, ask(&r, SEAL, seal));
}

/* A writer that needs the room of what is published says so; nobody else loses it. */
TEST(layout, discard)
{
        _cleanup_raw_ struct raw w = RAW, reader = RAW, r = RAW;
        raw_publish(&reader, "w", 2, NULL);
        raw_join(&w, "w", GMS__MODE__UPDATE);
        granted(&w, ask(&w, DISCARD, discard));
        granted(&w, ask(&w, DISCARD, discard)); /* nothing is left to */
        struct store_view v = look("w");
        ck_assert_uint_eq(v.generation, 0);
        ck_assert_uint_eq(v.draining, 2 * m.granularity);
        granted(&reader, raw_page(&reader, 0, 253, true)); /* its reader keeps it */
        ck_assert_uint_eq(reader.fds->n, 2);
        refused(&reader, ask(&reader, REFRESH, refresh), NOT_FOUND, "nothing is published");
        refused(&r, raw_hello(&r, "w", GMS__MODE__RO, 0, NULL), WOULD_WAIT, "nothing is published");
        raw_close(&reader);
        wait_for(look("w").bytes == 0);
        raw_close(&w);
        wait_for(strcmp(state_of("w"), "") == 0); /* a store with nothing in it is forgotten */
}

TEST(layout, generations_go_on)
{
        _cleanup_raw_ struct raw w = RAW;
        for (unsigned i = 1; i <= 3; i++) {
                raw_publish(&w, "w", i, NULL);
                ck_assert_uint_eq(w.reply->layout->generation, i);
                ck_assert_uint_eq(look("w").bytes, i * m.granularity); /* the one before is gone */
                raw_close(&w);
                wait_for(look("w").readers == 0);
        }
}

/* ---- clear */

TEST(layout, clear)
{
        _cleanup_raw_ struct raw r = RAW;
        char *w = (char *)store("w");
        raw_publish(&r, "w", 2, NULL);
        refused(&control, ask(&control, CLEAR, clear, b.store = w), CONFLICT, "1 readers");
        ck_assert_uint_eq(look("w").allocations, 2);
        raw_close(&r);
        wait_for(look("w").readers == 0);
        granted(&control, ask(&control, CLEAR, clear, b.store = w));
        wait_for(strcmp(state_of("w"), "") == 0);
}

TEST(layout, clear_by_force)
{
        _cleanup_raw_ struct raw reader = RAW, writer = RAW, waiter = RAW;
        char *w = (char *)store("w");
        raw_publish(&reader, "w", 2, NULL);
        raw_join(&writer, "w", GMS__MODE__UPDATE);
        granted(&writer, raw_allocate(&writer, 1, 3, 0));
        raw_queue(&waiter, "w", GMS__MODE__RW, FOREVER, 1);
        granted(&control, ask(&control, CLEAR, clear, b.store = w, b.force = true));

        /* The holders hear of it, and hold nothing; who waited has it. */
        struct raw *revoked[] = { &reader, &writer };
        for (int i = 0; i < 2; i++) {
                struct raw *r = revoked[i];
                wait_for((raw_events(r), r->events[GMS__EVENT__KIND__LOCK_REVOKED] == 1));
                refused(r, raw_page(r, 0, 1, true), REVOKED, "connect again");
                refused(r, raw_commit(r, NULL, false), REVOKED, "connect again");
                refused(r, ask(r, REFRESH, refresh), REVOKED, "connect again");
                granted(r, ask(r, STATE, state));
                ck_assert_int_eq(r->reply->session_state->mode, GMS__MODE__NONE);
        }
        granted_mode(&waiter, raw_answer(&waiter, PATIENCE_MS), RW);
        ck_assert_uint_eq(look("w").bytes, 0);
        ck_assert_uint_eq(look("w").writers, 1);
}

/* By a user who is neither root nor the daemon's. */
static void clear_as_nobody(int line, void *arg) {
        _cleanup_raw_ struct raw r = RAW;
        char *w = (char *)store("w");
        (void)arg;
        ck_assert_int_eq(setresuid(65534, 65534, 65534), 0);
        granted(&r, raw_hello(&r, NULL, GMS__MODE__NONE, 0, NULL));
        refused(&r, ask(&r, CLEAR, clear, b.store = w, b.force = true), NOT_PERMITTED, "65534");
        refused(&r, ask(&r, CLEAR, clear, b.store = w), CONFLICT, "1 readers");
        say(line, 'd');
}

TEST(layout, clear_by_force_is_not_for_everybody, .needs = NEEDS_ROOT, .open_to_all = true)
{
        struct child c;
        _cleanup_raw_ struct raw r = RAW;
        raw_publish(&r, "w", 2, NULL);
        child_start(&c, clear_as_nobody, NULL);
        child_wait(&c, 'd');
        child_end(&c);
        granted(&r, raw_page(&r, 0, 2, true));
        ck_assert_uint_eq(r.events[GMS__EVENT__KIND__LOCK_REVOKED], 0);
}
