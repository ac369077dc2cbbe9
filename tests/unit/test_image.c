// SPDX-License-Identifier: MIT
/*
 * A store as a message and back, in each of its states: the second image is the first, byte for byte. And images that no
 * store has made, which must make none. Random stores: test_fold.c.
 */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "image.h"

#define UUID "GPU-0123"

static struct store *store;
static uint64_t ids;

static struct claim *change(struct change *c) {
        struct effects fx;
        effects_init(&fx);
        ck_assert_int_eq(store_apply(store, c, &fx), 0);
        while (!list_empty(&fx.released))
                layout_free(list_first(&fx.released, struct layout, link));
        while (!list_empty(&fx.news)) {
                struct claim *one = list_first(&fx.news, struct claim, news_link);
                list_unlink(&one->news_link);
                one->news = 0;
        }
        return c->type == CHANGE_ASK ? c->ask.claim : NULL;
}

static struct claim *ask(enum lock_want want) {
        uint64_t id = ++ids;
        return change(&(struct change){ .type = CHANGE_ASK, .ask = { .want = want, .process = 70 + id, .id = id } });
}

static void plain(enum change_type type, struct claim *c) {
        (void)change(&(struct change){ .type = type, .claim = c, .commit = { .identity = "identity" } });
}

static void build(struct claim *c) {
        struct change_allocation items[] = {
                { .size = 10, .aligned = 16, .tag = "tag", .fd = -1 },
                { .size = 20, .aligned = 32, .fd = -1 },
                { .size = 30, .aligned = 32, .tag = "third", .fd = -1 },
        };
        static uint64_t last;
        (void)change(&(struct change){
                .type = CHANGE_ALLOCATE, .claim = c, .allocate = { .first_id = last + 1, .items = items, .n = 3 } });
        last += 3;
        struct metadata *entries[2];
        ck_assert_int_eq(metadata_new(&entries[0], "key", 1, 19, "a\0b", 3), 0);
        ck_assert_int_eq(metadata_new(&entries[1], "empty", 0, 0, NULL, 0), 0);
        (void)change(&(struct change){ .type = CHANGE_PUT, .claim = c, .put = { .entries = entries, .n = 2 } });
        /* the last one, so that the next slot is not behind the last there is */
        (void)change(&(struct change){ .type = CHANGE_FREE, .claim = c, .free = { .ids = &last, .n = 1 } });
}

/* ---- states */

static void empty(void) {
}

static void building(void) {
        build(ask(LOCK_WANT_RW));
}

static void published(void) {
        struct claim *c = ask(LOCK_WANT_RW);
        build(c);
        plain(CHANGE_COMMIT, c);
        plain(CHANGE_LEAVE, c);
}

static void reading(void) {
        published();
        (void)ask(LOCK_WANT_RO);
        (void)ask(LOCK_WANT_RW_OR_RO);
}

static void updating(void) {
        reading();
        build(ask(LOCK_WANT_UPDATE));
}

static void draining(void) {
        reading();
        struct claim *c = ask(LOCK_WANT_UPDATE);
        build(c);
        plain(CHANGE_COMMIT, c);
}

static void refreshing(void) {
        draining();
        plain(CHANGE_REFRESH, list_first(&store->claims, struct claim, link));
}

static void left_at_commit(void) {
        struct claim *c = ask(LOCK_WANT_RW);
        (void)change(&(struct change){ .type = CHANGE_COMMIT, .claim = c, .commit = { .leave = true } });
}

static void revoked(void) {
        reading();
        (void)change(&(struct change){ .type = CHANGE_CLEAR, .clear = { .force = true } });
}

static void discarded(void) {
        updating();
        plain(CHANGE_DISCARD, store->draft ? list_entry(store->claims.prev, struct claim, link) : NULL);
}

static void sealing(void) {
        struct claim *c = ask(LOCK_WANT_RW);
        build(c);
        plain(CHANGE_SEAL, c);
}

static void sealed(void) {
        sealing();
        plain(CHANGE_LEAVE, list_first(&store->claims, struct claim, link));
}

static void fenced(void) {
        sealed();
        (void)ask(LOCK_WANT_ADOPT);
        ck_assert_uint_eq(store->lock.waiting, 1);
}

static void adopted(void) {
        fenced();
        (void)change(&(struct change){ .type = CHANGE_EXITED, .exited = { .process = store->fence } });
        ck_assert_uint_eq(store->lock.waiting, 0);
}

static void queue(void) {
        building();
        for (int want = 0; want < _LOCK_WANT_MAX; want++)
                (void)ask((enum lock_want)want);
}

static const struct {
        const char *name, *state;
        void (*make)(void);
} states[] = {
        { "empty", "EMPTY", empty },
        { "building", "RW", building },
        { "published", "COMMITTED", published },
        { "reading", "RO", reading },
        { "updating", "RO", updating },
        { "draining", "RO", draining },
        { "refreshing", "RO", refreshing },
        { "left at commit", "COMMITTED", left_at_commit },
        { "revoked", "EMPTY", revoked },
        { "discarded", "RW", discarded },
        { "sealing", "RW", sealing },
        { "sealed", "SEALED", sealed },
        { "fenced", "SEALED", fenced },
        { "adopted", "RW", adopted },
        { "queue", "RW", queue },
};

static void make_state(size_t i) {
        ck_assert_int_eq(store_new(&store, "host/test", NULL, 5), 0);
        ids = 0;
        states[i].make();
}

/* ---- there and back */

static uint8_t *pack(const struct store *s, size_t *ret_len) {
        Gmsj__StoreImage *image;
        ck_assert_int_eq(image_of_store(s, UUID, &image), 0);
        *ret_len = gmsj__store_image__get_packed_size(image);
        uint8_t *bytes = malloc(*ret_len + 1);
        ck_assert_ptr_nonnull(bytes);
        gmsj__store_image__pack(image, bytes);
        image_free(image);
        return bytes;
}

START_TEST(round_trip) {
        struct store *back;
        size_t len, len_back;
        make_state((size_t)_i);
        ck_assert_str_eq(store_state(store), states[_i].state);
        _cleanup_free_ uint8_t *bytes = pack(store, &len);
        Gmsj__StoreImage *image = gmsj__store_image__unpack(NULL, len, bytes);
        ck_assert_ptr_nonnull(image);
        ck_assert_str_eq(image->device, UUID);
        ck_assert_int_eq(image_to_store(image, &back), 0);
        gmsj__store_image__free_unpacked(image, NULL);

        _cleanup_free_ uint8_t *bytes_back = pack(back, &len_back);
        ck_assert_uint_eq(len, len_back);
        ck_assert_mem_eq(bytes, bytes_back, len);
        ck_assert_str_eq(store_state(store), store_state(back));
        struct store_totals a = store_totals(store), b = store_totals(back);
        ck_assert_mem_eq(&a, &b, sizeof(a));
        ck_assert_mem_eq(store->lock.held, back->lock.held, sizeof(back->lock.held));
        ck_assert_uint_eq(store->lock.waiting, back->lock.waiting);
        if (store_resting(store))
                ck_assert_mem_eq(layout_hash(store_resting(store)), layout_hash(store_resting(back)), LAYOUT_HASH_SIZE);
        list_for(l, &back->layouts, struct layout, link)
                for (size_t i = 0; i < l->n_allocations; i++)
                        ck_assert_int_eq(l->allocations[i].fd, -1);
        /* It goes on as a store does. */
        image_store_free(store);
        store = back;
        while (!list_empty(&store->claims))
                plain(CHANGE_LEAVE, list_first(&store->claims, struct claim, link));
        (void)change(&(struct change){ .type = CHANGE_CLEAR });
        ck_assert(store_idle(store));
        store_free(store);
}
END_TEST

/* ---- images of nothing */

static void two_writers(Gmsj__StoreImage *i) {
        i->claims[1]->held = true;
        i->claims[1]->mode = LOCK_MODE_UPDATE;
        i->claims[1]->view = i->claims[0]->view;
}
static void no_such_layout(Gmsj__StoreImage *i) {
        i->published = 9;
}
static void no_such_view(Gmsj__StoreImage *i) {
        i->claims[0]->view = 9;
}
static void holds_nothing(Gmsj__StoreImage *i) {
        i->claims[0]->view = 0;
}
static void draft_without_writer(Gmsj__StoreImage *i) {
        i->claims[0]->held = false;
}
static void no_such_want(Gmsj__StoreImage *i) {
        i->claims[0]->want = _LOCK_WANT_MAX;
}
static void no_such_mode(Gmsj__StoreImage *i) {
        i->claims[0]->mode = _LOCK_MODE_MAX;
}
static void nobodys_layout(Gmsj__StoreImage *i) {
        i->draft = 0;
        i->claims[0]->view = 0;
        i->claims[0]->held = false;
}
static void slots_fall(Gmsj__StoreImage *i) {
        i->layouts[0]->allocations[1]->slot = 0;
}
static void next_slot_taken(Gmsj__StoreImage *i) {
        i->layouts[0]->next_slot = 1;
}
static void metadata_of_nothing(Gmsj__StoreImage *i) {
        i->layouts[0]->metadata[0]->slot = 7;
}
static void both_at_rest(Gmsj__StoreImage *i) {
        i->published = i->sealed = i->draft;
}
static void other_generation(Gmsj__StoreImage *i) {
        i->published = i->draft;
        i->layouts[0]->generation = 3;
}

START_TEST(implausible) {
        static void (*const damages[])(Gmsj__StoreImage *) = {
                two_writers,  no_such_layout, no_such_view, holds_nothing,   draft_without_writer, no_such_want,     no_such_mode,
                nobodys_layout, slots_fall,   next_slot_taken, metadata_of_nothing, both_at_rest, other_generation,
        };
        size_t len;
        for (size_t i = 0; i < ARRAY_SIZE(states); i++)
                if (strcmp(states[i].name, "queue") == 0)
                        make_state(i);
        _cleanup_free_ uint8_t *bytes = pack(store, &len);
        for (size_t i = 0; i < ARRAY_SIZE(damages); i++) {
                struct store *none = NULL;
                Gmsj__StoreImage *image = gmsj__store_image__unpack(NULL, len, bytes);
                damages[i](image);
                ck_assert_msg(image_to_store(image, &none) == -EBADMSG, "damage %zu", i);
                ck_assert_ptr_null(none);
                gmsj__store_image__free_unpacked(image, NULL);
        }
        store = image_store_free(store);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("image");
        TCase *tc = tcase_create("image");
        tcase_add_loop_test(tc, round_trip, 0, ARRAY_SIZE(states));
        tcase_add_test(tc, implausible);
        suite_add_tcase(suite, tc);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed > 0;
}
