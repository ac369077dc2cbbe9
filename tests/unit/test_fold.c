// SPDX-License-Identifier: MIT
/*
 * Fold equals life: random changes go to stores that live and, as records, to a fold; after each change both have the
 * same image, and every client the same place, mode and last answer. Now and then all of it is put into a journal as a
 * snapshot, which is folded from its start, and goes on from there.
 *
 * FOLD_EVENTS, FOLD_SEED in the environment: how many (120,000), and which.
 */
#undef NDEBUG
#include <check.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "fold.h"
#include "image.h"
#include "journal.h"

#define STORES 4
#define CLIENTS 40
#define DEVICE "GPU-0123"

static uint64_t seed = 1;

static uint64_t any(uint64_t below) {
        seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
        return (seed >> 33) % below;
}

/* ---- records */

static struct journal *journal;

static void append(uint8_t *bytes, size_t len) {
        ck_assert_int_eq(journal_append(journal, bytes, len), 0);
}

static void append_record(Gmsj__Record *record) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        ck_assert_int_eq(fold_pack(record, &bytes, &len), 0);
        append(bytes, len);
}

#define RECORD(name, CASE, field, message)                                                                           \
        Gmsj__Record name = GMSJ__RECORD__INIT;                                                                      \
        name.fact_case = GMSJ__RECORD__FACT_##CASE;                                                                  \
        name.field = (message)

/* ---- life */

struct life {
        struct store *stores[STORES]; /* NULL: forgotten */
        struct client clients[CLIENTS]; /* id 0: none */
        uint64_t last_session, last_allocation, epochs;
        unsigned long done, refused;
};

static void life_effects(struct effects *fx) {
        while (!list_empty(&fx->released))
                layout_free(list_first(&fx->released, struct layout, link));
        while (!list_empty(&fx->news)) {
                struct claim *c = list_first(&fx->news, struct claim, news_link);
                list_unlink(&c->news_link);
                c->news = 0;
        }
}

static const char *store_name(size_t i) {
        static const char *const names[STORES] = { "host/a", "host/b", "host/c", "host/d" };
        return names[i];
}

static struct client *any_client(struct life *l) {
        for (unsigned tries = 0; tries < 4; tries++) {
                struct client *c = &l->clients[any(CLIENTS)];
                if (c->id != 0)
                        return c;
        }
        return NULL;
}

/* One that writes, most often: the others are refused nearly everything. */
static struct client *any_writer(struct life *l) {
        for (size_t i = 0, at = any(CLIENTS); i < CLIENTS && any(10) != 0; i++) {
                struct client *c = &l->clients[(at + i) % CLIENTS];
                if (c->id != 0 && c->claim->lock.held && lock_mode_writes(c->claim->lock.mode))
                        return c;
        }
        return any_client(l);
}

static const char *any_text(void) {
        static const char *const texts[] = { "", "x", "model.weights", "ü", "a longer text, of some forty characters" };
        return texts[any(ARRAY_SIZE(texts))];
}

static char *any_key(void) {
        static char keys[16][16];
        static unsigned next;
        char *key = keys[next++ % ARRAY_SIZE(keys)];
        (void)snprintf(key, sizeof(keys[0]), "key%" PRIu64, any(6));
        return key;
}

/* ---- one change */

/* Packed, applied, recorded: as the server does it. True when it was applied. */
static bool change(struct life *l, struct folded *f, struct store *s, struct change *c, struct client *who) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        struct effects fx;
        uint64_t serial = who && c->type != CHANGE_ASK && c->type != CHANGE_LEAVE ? who->answered + 1 + any(3) : 0;
        ck_assert_int_eq(fold_pack_change(s, DEVICE, c, serial, who, &bytes, &len), 0);
        effects_init(&fx);
        int r = store_apply(s, c, &fx);
        life_effects(&fx);
        ck_assert_int_ge(r, 0);
        if (r != 0) {
                l->refused++;
                return false;
        }
        l->done++;
        append(bytes, len);
        ck_assert_int_eq(fold(f, bytes, len), 0);
        if (serial) {
                who->answered = serial;
                who->first_id = c->type == CHANGE_ALLOCATE ? c->allocate.first_id
                                : c->type == CHANGE_COMMIT ? who->store->generation
                                                           : 0;
                who->first_slot = c->type == CHANGE_ALLOCATE ? c->allocate.first_slot : 0;
        }
        return true;
}

static bool do_ask(struct life *l, struct folded *f, size_t *ret_store) {
        struct client *c = &l->clients[any(CLIENTS)];
        size_t i = *ret_store = any(STORES);
        if (c->id != 0)
                return false;
        if (!l->stores[i])
                ck_assert_int_eq(store_new(&l->stores[i], store_name(i), NULL, ++l->epochs * 7919), 0);
        *c = (struct client){
                .id = ++l->last_session, .label = (char *)any_text(), .identity = any(4) ? NULL : (char *)"identity",
                .asked = (unsigned)any(6), .pid = any(1000), .uid = any(3), .process = any(5), .since = any(1u << 20),
                .deadline = any(2) * any(1u << 20), .hello = 1, .store = l->stores[i],
        };
        struct change ask = {
                .type = CHANGE_ASK,
                .ask = { .want = (enum lock_want)any(_LOCK_WANT_MAX), .process = c->process, .id = c->id, .owner = c },
        };
        ck_assert(change(l, f, c->store, &ask, c));
        c->claim = ask.ask.claim;
        return true;
}

static bool do_leave(struct life *l, struct folded *f, struct client *c) {
        struct change leave = { .type = CHANGE_LEAVE, .claim = c->claim };
        ck_assert(change(l, f, c->store, &leave, c));
        *c = (struct client){};
        return true;
}

static bool do_allocate(struct life *l, struct folded *f, struct client *c) {
        struct change_allocation items[8];
        size_t n = 1 + any(ARRAY_SIZE(items));
        uint64_t size = 1 + any(5);
        const char *tag = any_text();
        for (size_t i = 0; i < n; i++) {
                if (any(3) == 0) {
                        size = 1 + any(5);
                        tag = any(5) ? any_text() : NULL;
                }
                items[i] = (struct change_allocation){ .size = size, .aligned = 8 * size, .tag = tag, .fd = -1 };
        }
        struct change allocate = {
                .type = CHANGE_ALLOCATE,
                .claim = c->claim,
                .allocate = { .first_id = l->last_allocation + 1, .items = items, .n = n },
        };
        l->last_allocation += n;
        return change(l, f, c->store, &allocate, c);
}

static bool do_free(struct life *l, struct folded *f, struct client *c) {
        uint64_t ids[4];
        size_t n = 1 + any(ARRAY_SIZE(ids));
        const struct layout *v = c->claim->view;
        for (size_t i = 0; i < n; i++)
                ids[i] = v && v->n_allocations > 0 && any(12) ? v->allocations[any(v->n_allocations)].id
                                                              : any(l->last_allocation + 2);
        struct change c_free = { .type = CHANGE_FREE, .claim = c->claim, .free = { .ids = ids, .n = n } };
        return change(l, f, c->store, &c_free, c);
}

static bool do_put(struct life *l, struct folded *f, struct client *c) {
        struct metadata *entries[3] = {};
        size_t n = 1 + any(ARRAY_SIZE(entries));
        const struct layout *v = c->claim->view;
        for (size_t i = 0; i < n; i++) {
                uint64_t slot = v && v->n_allocations > 0 ? v->allocations[any(v->n_allocations)].slot : any(9);
                ck_assert_int_eq(metadata_new(&entries[i], any_key(), slot, any(3), any_text(), any(2)), 0);
        }
        struct change put = { .type = CHANGE_PUT, .claim = c->claim, .put = { .entries = entries, .n = n } };
        bool done = change(l, f, c->store, &put, c);
        for (size_t i = 0; i < n; i++)
                free(entries[i]);
        return done;
}

static bool do_delete(struct life *l, struct folded *f, struct client *c) {
        char *keys[2] = { any_key(), any_key() };
        struct change delete = { .type = CHANGE_DELETE, .claim = c->claim, .delete = { .keys = keys, .n = 1 + any(2) } };
        return change(l, f, c->store, &delete, c);
}

static bool do_settle(struct life *l, struct folded *f, struct client *c) {
        struct change settle = { .type = CHANGE_SETTLE, .claim = c->claim };
        const struct layout *to = any(2) && c->claim->next ? c->claim->next : c->claim->view;
        settle.settle.generation = to && any(10) ? to->generation : any(4);
        return change(l, f, c->store, &settle, c);
}

static bool do_store(struct life *l, struct folded *f, size_t i, enum change_type type) {
        struct change c = { .type = type };
        if (!l->stores[i])
                return false;
        if (type == CHANGE_CLEAR)
                c.clear.force = any(4) == 0;
        else
                c.exited.process = any(5);
        if (!change(l, f, l->stores[i], &c, NULL))
                return false;
        return true;
}

/* A random change. False: nothing came of it. */
static bool step(struct life *l, struct folded *f, size_t *ret_store) {
        unsigned what = (unsigned)any(100);
        struct client *c = what < 12 ? any_client(l) : any_writer(l);
        if (what >= 97)
                return do_store(l, f, *ret_store = any(STORES), what == 97 ? CHANGE_CLEAR : CHANGE_EXITED);
        if (what >= 85 || !c)
                return do_ask(l, f, ret_store);
        for (size_t i = 0; i < STORES; i++)
                if (l->stores[i] == c->store)
                        *ret_store = i;
        struct change plain = { .claim = c->claim, .commit = { .identity = any_text(), .leave = any(3) == 0 } };
        struct client *reader = any_client(l);
        switch (what) {
        case 0 ... 11:
                return do_leave(l, f, c);
        case 12 ... 35:
                return do_allocate(l, f, c);
        case 36 ... 44:
                return do_free(l, f, c);
        case 45 ... 60:
                return do_put(l, f, c);
        case 61 ... 66:
                return do_delete(l, f, c);
        case 67:
                plain.type = CHANGE_SEAL;
                return change(l, f, c->store, &plain, c);
        case 68:
                plain.type = CHANGE_DISCARD;
                return change(l, f, c->store, &plain, c);
        case 69 ... 74:
                plain.type = CHANGE_COMMIT;
                return change(l, f, c->store, &plain, c);
        default:
                if (!reader)
                        return false;
                for (size_t i = 0; i < STORES; i++)
                        if (l->stores[i] == reader->store)
                                *ret_store = i;
                if (any(2))
                        return do_settle(l, f, reader);
                plain.type = CHANGE_REFRESH;
                plain.claim = reader->claim;
                return change(l, f, reader->store, &plain, reader);
        }
}

/* ---- comparing */

static uint8_t *pack_store(const struct store *s, size_t *ret_len) {
        Gmsj__StoreImage *image;
        ck_assert_int_eq(image_of_store(s, DEVICE, &image), 0);
        RECORD(record, STORE, store, image);
        uint8_t *bytes;
        ck_assert_int_eq(fold_pack(&record, &bytes, ret_len), 0);
        image_free(image);
        return bytes;
}

static const struct store *find_store(const struct folded *f, const char *name) {
        for (size_t i = 0; i < f->n_stores; i++)
                if (strcmp(f->stores[i]->name, name) == 0)
                        return f->stores[i];
        return NULL;
}

static void same_store(const struct life *l, const struct folded *f, size_t i) {
        const struct store *a = l->stores[i], *b = find_store(f, store_name(i));
        size_t len_a, len_b;
        if (!a) {
                ck_assert(!b || store_idle(b)); /* forgotten, sooner or later */
                return;
        }
        if (!b) {
                ck_assert(store_idle(a));
                return;
        }
        _cleanup_free_ uint8_t *bytes_a = pack_store(a, &len_a), *bytes_b = pack_store(b, &len_b);
        ck_assert_msg(len_a == len_b && memcmp(bytes_a, bytes_b, len_a) == 0, "%s: life and fold differ", store_name(i));
        ck_assert_str_eq(store_state(a), store_state(b));
        ck_assert_mem_eq(&a->lock.held, &b->lock.held, sizeof(a->lock.held));
        ck_assert_uint_eq(a->lock.waiting, b->lock.waiting);
}

static void same_client(const struct client *a, const struct client *b) {
        ck_assert_uint_eq(a->id, b->id);
        ck_assert_str_eq(a->label, b->label);
        ck_assert_pstr_eq(a->identity, b->identity);
        ck_assert(a->asked == b->asked && a->pid == b->pid && a->uid == b->uid && a->process == b->process);
        ck_assert(a->since == b->since && a->deadline == b->deadline && a->hello == b->hello);
        ck_assert_str_eq(a->store->name, b->store->name);
        ck_assert_uint_eq(a->claim->id, b->claim->id);
        ck_assert_ptr_eq(b->claim->owner, b);
        ck_assert_int_eq(a->claim->lock.held, b->claim->lock.held);
        ck_assert_uint_eq(a->answered, b->answered);
        ck_assert_uint_eq(a->first_id, b->first_id);
        ck_assert_uint_eq(a->first_slot, b->first_slot);
}

static void same_clients(const struct life *l, const struct folded *f) {
        size_t n = 0;
        list_for(b, &f->clients, struct client, link) {
                const struct client *a = NULL;
                for (size_t i = 0; i < CLIENTS; i++)
                        if (l->clients[i].id == b->id)
                                a = &l->clients[i];
                ck_assert_msg(a, "client %" PRIu64 " is in the fold and not in life", b->id);
                same_client(a, b);
                n++;
        }
        for (size_t i = 0; i < CLIENTS; i++)
                n -= l->clients[i].id != 0;
        ck_assert_uint_eq(n, 0);
}

/* ---- snapshots */

static void snapshot(const struct life *l) {
        journal_free(journal);
        ck_assert_int_eq(journal_new(&journal), 0);
        Gmsj__Begin begin = GMSJ__BEGIN__INIT;
        begin.version = FOLD_VERSION;
        begin.last_session = l->last_session;
        begin.last_allocation = l->last_allocation;
        begin.restarts = 3;
        RECORD(first, BEGIN, begin, &begin);
        append_record(&first);
        for (size_t i = 0; i < STORES; i++) {
                size_t len;
                _cleanup_free_ uint8_t *bytes = l->stores[i] ? pack_store(l->stores[i], &len) : NULL;
                if (bytes)
                        append(bytes, len);
        }
        for (uint64_t id = 1; id <= l->last_session; id++) {
                const struct client *c = NULL;
                for (size_t i = 0; i < CLIENTS; i++)
                        if (l->clients[i].id == id)
                                c = &l->clients[i];
                if (!c)
                        continue;
                Gmsj__Client body;
                Gmsj__Answer answer = GMSJ__ANSWER__INIT;
                fold_fill_client(&body, c);
                answer.serial = c->answered;
                answer.first_id = c->first_id;
                answer.first_slot = c->first_slot;
                body.answer = &answer;
                RECORD(record, CLIENT, client, &body);
                append_record(&record);
        }
        Gmsj__Complete complete = GMSJ__COMPLETE__INIT;
        RECORD(last, COMPLETE, complete, &complete);
        append_record(&last);
}

/* The journal, from its start. */
static void refold(struct folded *f) {
        uint64_t at = 0;
        folded_done(f);
        for (;;) {
                _cleanup_free_ uint8_t *bytes = NULL;
                size_t len;
                int r = journal_read(journal, &at, &bytes, &len);
                if (r == JOURNAL_E_END)
                        break;
                ck_assert_int_eq(r, 0);
                ck_assert_int_eq(fold(f, bytes, len), 0);
        }
        ck_assert(f->complete);
        ck_assert_uint_eq(f->restarts, 3);
}

static void same_all(const struct life *l, const struct folded *f) {
        for (size_t i = 0; i < STORES; i++)
                same_store(l, f, i);
        same_clients(l, f);
        ck_assert_uint_ge(f->last_session, l->last_session);
}

static void forget_idle(struct life *l) {
        for (size_t i = 0; i < STORES; i++)
                if (l->stores[i] && store_idle(l->stores[i]))
                        l->stores[i] = store_free(l->stores[i]);
}

static uint64_t number_from(const char *name, uint64_t otherwise) {
        const char *text = getenv(name);
        return text && *text ? strtoull(text, NULL, 0) : otherwise;
}

START_TEST(equals_life) {
        static struct life l;
        struct folded f;
        size_t at = 0;
        uint64_t events = number_from("FOLD_EVENTS", 120000), snapshots = 0;
        seed = number_from("FOLD_SEED", 20240229);
        folded_init(&f);
        snapshot(&l);
        refold(&f);
        while (l.done < events) {
                if (step(&l, &f, &at)) {
                        same_store(&l, &f, at);
                        if (l.done % 16 == 0)
                                same_clients(&l, &f);
                }
                if (any(16) == 0)
                        forget_idle(&l);
                if (any(500) != 0)
                        continue;
                refold(&f); /* what has been written since the last snapshot */
                same_all(&l, &f);
                if (any(2) == 0) {
                        snapshot(&l);
                        snapshots++;
                        refold(&f);
                        same_all(&l, &f);
                }
        }
        printf("fold: %lu changes and %lu refusals, %" PRIu64 " snapshots\n", l.done, l.refused, snapshots);
        ck_assert_uint_gt(snapshots, 20);
        for (size_t i = 0; i < CLIENTS; i++)
                if (l.clients[i].id)
                        do_leave(&l, &f, &l.clients[i]);
        for (size_t i = 0; i < STORES; i++)
                (void)do_store(&l, &f, i, CHANGE_CLEAR);
        same_all(&l, &f);
        forget_idle(&l);
        for (size_t i = 0; i < STORES; i++)
                ck_assert_ptr_null(l.stores[i]);
        folded_done(&f);
        journal = journal_free(journal);
}
END_TEST

/* ---- what is no journal of ours */

static int fold_record(struct folded *f, Gmsj__Record *record) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        ck_assert_int_eq(fold_pack(record, &bytes, &len), 0);
        return fold(f, bytes, len);
}

static int fold_begin(struct folded *f, uint32_t version) {
        Gmsj__Begin begin = GMSJ__BEGIN__INIT;
        begin.version = version;
        begin.last_session = 9;
        RECORD(record, BEGIN, begin, &begin);
        return fold_record(f, &record);
}

static void fold_complete(struct folded *f) {
        Gmsj__Complete complete = GMSJ__COMPLETE__INIT;
        RECORD(record, COMPLETE, complete, &complete);
        ck_assert_int_eq(fold_record(f, &record), 0);
}

START_TEST(versions) {
        struct folded f;
        folded_init(&f);
        ck_assert_int_eq(fold_begin(&f, FOLD_VERSION + 1), FOLD_E_NEWER);
        ck_assert(f.last_session == 0 && !f.complete);
        ck_assert_int_eq(fold_begin(&f, FOLD_VERSION), 0);
        ck_assert_uint_eq(f.last_session, 9);
        folded_done(&f);
        ck_assert_int_eq(fold_begin(&f, 0), 0); /* older than the first */
        folded_done(&f);
}
END_TEST

/* A change before the snapshot is whole, a snapshot after it, bytes that are no record. */
START_TEST(out_of_place) {
        struct folded f;
        folded_init(&f);
        Gmsj__Clear clear = GMSJ__CLEAR__INIT;
        Gmsj__Change ch = GMSJ__CHANGE__INIT;
        ch.store = (char *)"host/a";
        ch.what_case = GMSJ__CHANGE__WHAT_CLEAR;
        ch.clear = &clear;
        RECORD(record, CHANGE, change, &ch);
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG);
        fold_complete(&f);
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* no such store */
        ck_assert_int_eq(fold_begin(&f, FOLD_VERSION), -EBADMSG);
        ch.session = 5; /* no such session */
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG);
        ck_assert_int_eq(fold(&f, (const uint8_t *)"\377\377", 2), -EBADMSG);
        ck_assert_int_eq(fold(&f, NULL, 0), -EBADMSG);
        folded_done(&f);
}
END_TEST

/* An Ask that cannot be leaves nobody behind: every client of a fold has a store and a claim. */
START_TEST(refused_ask) {
        struct folded f;
        folded_init(&f);
        fold_complete(&f);
        Gmsj__Client client = GMSJ__CLIENT__INIT;
        Gmsj__Ask ask = GMSJ__ASK__INIT;
        Gmsj__Change ch = GMSJ__CHANGE__INIT;
        ch.store = (char *)"host/a";
        ch.what_case = GMSJ__CHANGE__WHAT_ASK;
        ch.ask = &ask;
        RECORD(record, CHANGE, change, &ch);
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* nobody asks */
        ask.client = &client;
        ask.epoch = 1;
        client.session = 1;
        ask.want = _LOCK_WANT_MAX;
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* for nothing there is */
        ck_assert(list_empty(&f.clients));
        ask.want = LOCK_WANT_RW;
        ck_assert_int_eq(fold_record(&f, &record), 0);
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* a second time */
        client.session = 2;
        ask.epoch = 2;
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* another store of that name, while this one is held */
        size_t n = 0;
        list_for(c, &f.clients, struct client, link) {
                ck_assert(c->id == 1 && c->store && c->claim);
                n++;
        }
        ck_assert_uint_eq(n, 1);
        folded_done(&f);
}
END_TEST

/* Devices may become known at any time, and are named once. */
START_TEST(devices) {
        struct folded f;
        folded_init(&f);
        Gmsj__DeviceImage device = GMSJ__DEVICE_IMAGE__INIT;
        device.uuid = (char *)DEVICE;
        RECORD(record, DEVICE, device, &device);
        ck_assert_int_eq(fold_record(&f, &record), -EBADMSG); /* memory of it comes in pieces of no size */
        folded_done(&f);
        device.granularity = 4096;
        ck_assert_int_eq(fold_record(&f, &record), 0);
        fold_complete(&f);
        device.uuid = (char *)"GPU-4567";
        ck_assert_int_eq(fold_record(&f, &record), 0);
        ck_assert_int_eq(fold_record(&f, &record), 0);
        ck_assert_uint_eq(f.n_devices, 2);
        ck_assert_str_eq(f.devices[1].uuid, "GPU-4567");
        folded_done(&f);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("fold");
        TCase *tc = tcase_create("fold");
        tcase_add_test(tc, equals_life);
        tcase_add_test(tc, versions);
        tcase_add_test(tc, out_of_place);
        tcase_add_test(tc, refused_ask);
        tcase_add_test(tc, devices);
        tcase_set_timeout(tc, 120);
        suite_add_tcase(suite, tc);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed > 0;
}
