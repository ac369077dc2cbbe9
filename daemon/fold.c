// SPDX-License-Identifier: MIT
#include "fold.h"

#include "image.h"

#include <stdio.h>
#include <string.h>

struct client *client_free(struct client *c) {
        if (!c)
                return NULL;
        list_unlink(&c->link);
        free(c->label);
        free(c->identity);
        free(c);
        return NULL;
}

void folded_init(struct folded *f) {
        *f = (struct folded){};
        list_init(&f->clients);
}

void folded_done(struct folded *f) {
        for (size_t i = 0; i < f->n_stores; i++) {
                image_store_free(f->stores[i]);
                free(f->store_devices[i]);
        }
        list_for_safe(c, &f->clients, struct client, link)
                client_free(c);
        free(f->stores);
        free(f->store_devices);
        free(f->devices);
        folded_init(f);
}

/* ---- finding */

static struct client *find_client(const struct folded *f, uint64_t id) {
        list_for(c, &f->clients, struct client, link)
                if (c->id == id)
                        return c;
        return NULL;
}

static struct store **find_store(const struct folded *f, const char *name) {
        for (size_t i = 0; i < f->n_stores; i++)
                if (strcmp(f->stores[i]->name, name) == 0)
                        return &f->stores[i];
        return NULL;
}

static int add_store(struct folded *f, struct store *s, const char *device) {
        struct store **stores = reallocarray(f->stores, f->n_stores + 1, sizeof(*stores));
        if (stores)
                f->stores = stores;
        char **devices = reallocarray(f->store_devices, f->n_stores + 1, sizeof(*devices));
        if (devices)
                f->store_devices = devices;
        char *uuid = strdup(device);
        if (!stores || !devices || !uuid) {
                free(uuid);
                return -ENOMEM;
        }
        size_t at = f->n_stores;
        while (at > 0 && strcmp(f->stores[at - 1]->name, s->name) > 0)
                at--;
        memmove(&f->stores[at + 1], &f->stores[at], (f->n_stores - at) * sizeof(*f->stores));
        memmove(&f->store_devices[at + 1], &f->store_devices[at], (f->n_stores - at) * sizeof(*f->store_devices));
        f->stores[at] = s;
        f->store_devices[at] = uuid;
        f->n_stores++;
        return 0;
}

/* ---- clients */

static int make_client(struct folded *f, const Gmsj__Client *from, struct client **ret_client) {
        if (from->session <= f->last_session && find_client(f, from->session))
                return -EBADMSG;
        struct client *c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        list_init(&c->link);
        c->id = from->session;
        c->asked = from->asked;
        c->pid = from->pid;
        c->uid = from->uid;
        c->process = from->process;
        c->since = from->since_ms;
        c->deadline = from->deadline_ms;
        c->hello = from->hello;
        if (from->answer) {
                c->answered = from->answer->serial;
                c->first_id = from->answer->first_id;
                c->first_slot = from->answer->first_slot;
        }
        c->label = strdup(from->label);
        c->identity = *from->identity ? strdup(from->identity) : NULL;
        if (!c->label || (*from->identity && !c->identity)) {
                client_free(c);
                return -ENOMEM;
        }
        list_append(&f->clients, &c->link);
        f->last_session = MAX(f->last_session, c->id);
        *ret_client = c;
        return 0;
}

/* A client of the snapshot finds its claim in the store it names. */
static int fold_client(struct folded *f, const Gmsj__Client *from) {
        struct client *c;
        int r = make_client(f, from, &c);
        if (r < 0)
                return r;
        struct store **s = find_store(f, from->store);
        if (!s)
                return -EBADMSG;
        c->store = *s;
        list_for(claim, &c->store->claims, struct claim, link) {
                if (claim->id == c->id) {
                        c->claim = claim;
                        claim->owner = c;
                        return 0;
                }
        }
        return -EBADMSG;
}

/* ---- changes */

/* What a change brings about has happened when it was recorded; the fold only keeps the state. */
static void drop_effects(struct effects *fx) {
        while (!list_empty(&fx->released))
                layout_free(list_first(&fx->released, struct layout, link));
        while (!list_empty(&fx->news)) {
                struct claim *c = list_first(&fx->news, struct claim, news_link);
                list_unlink(&c->news_link);
                c->news = 0;
        }
}

static int apply(struct store *s, struct change *c) {
        struct effects fx;
        effects_init(&fx);
        int r = store_apply(s, c, &fx);
        drop_effects(&fx);
        return r > 0 ? -EBADMSG : r;
}

/* The store that is asked for, made if it is new. 0, -EBADMSG, -ENOMEM. */
static int ask_store(struct folded *f, const char *name, const Gmsj__Ask *ask, struct store **ret_store) {
        struct store **at = find_store(f, name), *s = at ? *at : NULL;
        int r = 0;
        if (s && s->epoch != ask->epoch) {
                /* Forgotten when it was idle, and made again. */
                if (!store_idle(s))
                        return -EBADMSG;
                r = store_new(&s, name, NULL, ask->epoch);
                if (r < 0)
                        return r;
                store_free(*at);
                *at = s;
        } else if (!s) {
                r = store_new(&s, name, NULL, ask->epoch);
                if (r == 0 && (r = add_store(f, s, ask->device)) < 0)
                        store_free(s);
        }
        if (r == 0)
                *ret_store = s;
        return r;
}

static int fold_ask(struct folded *f, const Gmsj__Change *ch) {
        const Gmsj__Ask *ask = ch->ask;
        struct client *c;
        if (!ask->client || ask->want >= _LOCK_WANT_MAX)
                return -EBADMSG;
        int r = make_client(f, ask->client, &c);
        if (r < 0)
                return r;
        struct change change = {
                .type = CHANGE_ASK,
                .ask = { .want = ask->want, .process = c->process, .id = c->id, .owner = c },
        };
        r = ask_store(f, ch->store, ask, &c->store);
        if (r == 0)
                r = apply(c->store, &change);
        if (r != 0) {
                client_free(c); /* it is with no store */
                return r;
        }
        c->claim = change.ask.claim;
        return 0;
}

static int fold_leave(struct client *c) {
        struct change change = { .type = CHANGE_LEAVE, .claim = c->claim };
        int r = apply(c->store, &change);
        client_free(c);
        return r;
}

static int fold_allocate(struct folded *f, struct client *c, const Gmsj__Allocate *a) {
        size_t n = 0, k = 0;
        for (size_t i = 0; i < a->n_runs; i++)
                n += a->runs[i]->count;
        if (n > LAYOUT_ALLOCATIONS_MAX)
                return -EBADMSG;
        _cleanup_free_ struct change_allocation *items = calloc(n ? n : 1, sizeof(*items));
        if (!items)
                return -ENOMEM;
        for (size_t i = 0; i < a->n_runs; i++)
                for (uint32_t j = 0; j < a->runs[i]->count; j++, k++)
                        items[k] = (struct change_allocation){
                                .size = a->runs[i]->size, .aligned = a->runs[i]->aligned, .tag = a->runs[i]->tag, .fd = -1,
                        };
        struct change change = {
                .type = CHANGE_ALLOCATE, .claim = c->claim, .allocate = { .first_id = a->first_id, .items = items, .n = n },
        };
        int r = apply(c->store, &change);
        f->last_allocation = MAX(f->last_allocation, a->first_id + n - 1);
        c->first_id = a->first_id;
        c->first_slot = change.allocate.first_slot;
        return r;
}

static int fold_put(struct client *c, const Gmsj__Put *p) {
        struct metadata **entries = calloc(p->n_entries + 1, sizeof(*entries));
        int r = entries ? 0 : -ENOMEM;
        for (size_t i = 0; r == 0 && i < p->n_entries; i++) {
                const Gmsj__Metadata *m = p->entries[i];
                r = metadata_new(&entries[i], m->key, m->slot, m->offset, m->value.data, m->value.len);
        }
        if (r == 0) {
                struct change change = {
                        .type = CHANGE_PUT, .claim = c->claim, .put = { .entries = entries, .n = p->n_entries },
                };
                r = apply(c->store, &change);
        }
        for (size_t i = 0; entries && i < p->n_entries; i++)
                free(entries[i]);
        free(entries);
        return r;
}

/* What nobody's session did. */
static int fold_anonymous(struct folded *f, const Gmsj__Change *ch) {
        struct store **s = find_store(f, ch->store);
        struct change change = {};
        if (!s)
                return -EBADMSG;
        if (ch->what_case == GMSJ__CHANGE__WHAT_CLEAR) {
                change.type = CHANGE_CLEAR;
                change.clear.force = ch->clear->force;
        } else if (ch->what_case == GMSJ__CHANGE__WHAT_EXITED) {
                change.type = CHANGE_EXITED;
                change.exited.process = ch->exited->process;
        } else {
                return -EBADMSG;
        }
        return apply(*s, &change);
}

static int fold_change(struct folded *f, const Gmsj__Change *ch) {
        if (ch->what_case == GMSJ__CHANGE__WHAT_ASK)
                return fold_ask(f, ch);
        struct client *c = find_client(f, ch->session);
        if (c && ch->what_case == GMSJ__CHANGE__WHAT_CLEAR) {
                c->answered = ch->serial;
                c->first_id = c->first_slot = 0;
        }
        if (ch->session == 0 || ch->what_case == GMSJ__CHANGE__WHAT_CLEAR)
                return fold_anonymous(f, ch);
        if (!c || !c->claim)
                return -EBADMSG;
        if (ch->what_case == GMSJ__CHANGE__WHAT_LEAVE)
                return fold_leave(c);
        c->answered = ch->serial;
        c->first_id = c->first_slot = 0;

        struct change change = { .claim = c->claim };
        switch (ch->what_case) {
        case GMSJ__CHANGE__WHAT_ALLOCATE:
                return fold_allocate(f, c, ch->allocate);
        case GMSJ__CHANGE__WHAT_PUT:
                return fold_put(c, ch->put);
        case GMSJ__CHANGE__WHAT_FREE:
                change.type = CHANGE_FREE;
                change.free.ids = ch->free->ids;
                change.free.n = ch->free->n_ids;
                break;
        case GMSJ__CHANGE__WHAT_DELETE:
                change.type = CHANGE_DELETE;
                change.delete.keys = ch->delete_->keys;
                change.delete.n = ch->delete_->n_keys;
                break;
        case GMSJ__CHANGE__WHAT_SEAL:
                change.type = CHANGE_SEAL;
                break;
        case GMSJ__CHANGE__WHAT_DISCARD:
                change.type = CHANGE_DISCARD;
                break;
        case GMSJ__CHANGE__WHAT_COMMIT:
                change.type = CHANGE_COMMIT;
                change.commit.identity = ch->commit->identity;
                change.commit.leave = ch->commit->leave;
                break;
        case GMSJ__CHANGE__WHAT_REFRESH:
                change.type = CHANGE_REFRESH;
                break;
        case GMSJ__CHANGE__WHAT_SETTLE:
                change.type = CHANGE_SETTLE;
                change.settle.generation = ch->settle->generation;
                break;
        default:
                return -EBADMSG;
        }
        int r = apply(c->store, &change);
        if (r == 0 && change.type == CHANGE_COMMIT)
                c->first_id = c->store->generation;
        return r;
}

/* ---- records */

static int fold_begin(struct folded *f, const Gmsj__Begin *b) {
        if (b->version > FOLD_VERSION)
                return FOLD_E_NEWER;
        f->restarts = b->restarts;
        f->away = b->away_ms;
        f->started = b->started_ms;
        f->last_session = b->last_session;
        f->last_allocation = b->last_allocation;
        f->uncertain = b->uncertain;
        return 0;
}

/* One that was there from the start, or answered later. */
static int fold_device(struct folded *f, const Gmsj__DeviceImage *d) {
        if (d->granularity == 0)
                return -EBADMSG;
        for (size_t i = 0; i < f->n_devices; i++)
                if (strcmp(f->devices[i].uuid, d->uuid) == 0)
                        return 0;
        struct folded_device *devices = reallocarray(f->devices, f->n_devices + 1, sizeof(*devices));
        if (!devices)
                return -ENOMEM;
        f->devices = devices;
        struct folded_device *to = &f->devices[f->n_devices++];
        *to = (struct folded_device){ .total = d->total, .granularity = d->granularity };
        (void)snprintf(to->spec, sizeof(to->spec), "%s", d->spec);
        (void)snprintf(to->name, sizeof(to->name), "%s", d->name);
        (void)snprintf(to->uuid, sizeof(to->uuid), "%s", d->uuid);
        (void)snprintf(to->model, sizeof(to->model), "%s", d->model);
        return 0;
}

static int fold_store(struct folded *f, const Gmsj__StoreImage *image) {
        struct store *s;
        if (find_store(f, image->name))
                return -EBADMSG;
        int r = image_to_store(image, &s);
        if (r == 0 && (r = add_store(f, s, image->device)) < 0)
                image_store_free(s);
        return r;
}

int fold(struct folded *f, const uint8_t *bytes, size_t len) {
        Gmsj__Record *record = gmsj__record__unpack(NULL, len, bytes);
        if (!record)
                return -EBADMSG;
        int r;
        bool snapshot = !f->complete;
        switch (record->fact_case) {
        case GMSJ__RECORD__FACT_BEGIN:
                r = snapshot ? fold_begin(f, record->begin) : -EBADMSG;
                break;
        case GMSJ__RECORD__FACT_DEVICE:
                r = fold_device(f, record->device);
                break;
        case GMSJ__RECORD__FACT_STORE:
                r = snapshot ? fold_store(f, record->store) : -EBADMSG;
                break;
        case GMSJ__RECORD__FACT_CLIENT:
                r = snapshot ? fold_client(f, record->client) : -EBADMSG;
                break;
        case GMSJ__RECORD__FACT_COMPLETE:
                f->complete = true;
                r = 0;
                break;
        case GMSJ__RECORD__FACT_CHANGE:
                r = snapshot ? -EBADMSG : fold_change(f, record->change);
                break;
        default:
                r = -EBADMSG;
        }
        gmsj__record__free_unpacked(record, NULL);
        return r;
}

/* ---- packing */

int fold_pack(Gmsj__Record *record, uint8_t **ret_bytes, size_t *ret_len) {
        size_t len = gmsj__record__get_packed_size(record);
        uint8_t *bytes = malloc(len ? len : 1);
        if (!bytes)
                return -ENOMEM;
        *ret_len = gmsj__record__pack(record, bytes);
        *ret_bytes = bytes;
        return 0;
}

void fold_fill_client(Gmsj__Client *to, const struct client *c) {
        gmsj__client__init(to);
        to->session = c->id;
        to->label = c->label;
        if (c->identity)
                to->identity = c->identity;
        to->asked = c->asked;
        to->pid = c->pid;
        to->uid = c->uid;
        to->process = c->process;
        to->since_ms = c->since;
        to->deadline_ms = c->deadline;
        to->hello = c->hello;
        to->store = c->store->name;
}

static int pack_change(Gmsj__Change *change, uint8_t **ret_bytes, size_t *ret_len) {
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_CHANGE;
        record.change = change;
        return fold_pack(&record, ret_bytes, ret_len);
}

static int pack_allocate(Gmsj__Change *out, const struct change *c, uint8_t **ret_bytes, size_t *ret_len) {
        size_t n = c->allocate.n;
        _cleanup_free_ Gmsj__Allocate__Run *runs = calloc(n ? n : 1, sizeof(*runs));
        _cleanup_free_ Gmsj__Allocate__Run **pointers = calloc(n ? n : 1, sizeof(*pointers));
        if (!runs || !pointers)
                return -ENOMEM;
        Gmsj__Allocate body = GMSJ__ALLOCATE__INIT;
        body.first_id = c->allocate.first_id;
        body.runs = pointers;
        for (size_t i = 0; i < n; i++) {
                const struct change_allocation *a = &c->allocate.items[i];
                Gmsj__Allocate__Run *last = body.n_runs ? pointers[body.n_runs - 1] : NULL;
                const char *tag = a->tag ? a->tag : "";
                if (last && last->size == a->size && last->aligned == a->aligned && strcmp(last->tag, tag) == 0) {
                        last->count++;
                        continue;
                }
                Gmsj__Allocate__Run *run = &runs[body.n_runs];
                gmsj__allocate__run__init(run);
                run->size = a->size;
                run->aligned = a->aligned;
                run->tag = (char *)tag;
                run->count = 1;
                pointers[body.n_runs++] = run;
        }
        out->what_case = GMSJ__CHANGE__WHAT_ALLOCATE;
        out->allocate = &body;
        return pack_change(out, ret_bytes, ret_len);
}

static int pack_put(Gmsj__Change *out, const struct change *c, uint8_t **ret_bytes, size_t *ret_len) {
        size_t n = c->put.n;
        _cleanup_free_ Gmsj__Metadata *entries = calloc(n ? n : 1, sizeof(*entries));
        _cleanup_free_ Gmsj__Metadata **pointers = calloc(n ? n : 1, sizeof(*pointers));
        if (!entries || !pointers)
                return -ENOMEM;
        Gmsj__Put body = GMSJ__PUT__INIT;
        body.entries = pointers;
        body.n_entries = n;
        for (size_t i = 0; i < n; i++) {
                struct metadata *m = c->put.entries[i];
                gmsj__metadata__init(&entries[i]);
                entries[i].key = m->key;
                entries[i].slot = m->slot;
                entries[i].offset = m->offset;
                entries[i].value = (ProtobufCBinaryData){ .len = m->value_size, .data = (uint8_t *)metadata_value(m) };
                pointers[i] = &entries[i];
        }
        out->what_case = GMSJ__CHANGE__WHAT_PUT;
        out->put = &body;
        return pack_change(out, ret_bytes, ret_len);
}

int fold_pack_change(const struct store *store, const char *device_uuid, const struct change *c, uint64_t serial,
                     const struct client *client, uint8_t **ret_bytes, size_t *ret_len) {
        Gmsj__Change out = GMSJ__CHANGE__INIT;
        Gmsj__Client who;
        Gmsj__Ask ask = GMSJ__ASK__INIT;
        Gmsj__Leave leave = GMSJ__LEAVE__INIT;
        Gmsj__Free freed = GMSJ__FREE__INIT;
        Gmsj__Delete deleted = GMSJ__DELETE__INIT;
        Gmsj__Seal seal = GMSJ__SEAL__INIT;
        Gmsj__Discard discard = GMSJ__DISCARD__INIT;
        Gmsj__Commit commit = GMSJ__COMMIT__INIT;
        Gmsj__Refresh refresh = GMSJ__REFRESH__INIT;
        Gmsj__Settle settle = GMSJ__SETTLE__INIT;
        Gmsj__Clear clear = GMSJ__CLEAR__INIT;
        Gmsj__Exited exited = GMSJ__EXITED__INIT;

        out.store = store->name;
        out.session = c->claim ? c->claim->id : 0;
        out.serial = serial;
        switch (c->type) {
        case CHANGE_ASK:
                fold_fill_client(&who, client);
                out.session = client->id;
                ask.client = &who;
                ask.device = (char *)device_uuid;
                ask.epoch = store->epoch;
                ask.want = c->ask.want;
                out.what_case = GMSJ__CHANGE__WHAT_ASK;
                out.ask = &ask;
                break;
        case CHANGE_LEAVE:
                out.what_case = GMSJ__CHANGE__WHAT_LEAVE;
                out.leave = &leave;
                break;
        case CHANGE_ALLOCATE:
                return pack_allocate(&out, c, ret_bytes, ret_len);
        case CHANGE_FREE:
                freed.ids = (uint64_t *)c->free.ids;
                freed.n_ids = c->free.n;
                out.what_case = GMSJ__CHANGE__WHAT_FREE;
                out.free = &freed;
                break;
        case CHANGE_PUT:
                return pack_put(&out, c, ret_bytes, ret_len);
        case CHANGE_DELETE:
                deleted.keys = c->delete.keys;
                deleted.n_keys = c->delete.n;
                out.what_case = GMSJ__CHANGE__WHAT_DELETE;
                out.delete_ = &deleted;
                break;
        case CHANGE_SEAL:
                out.what_case = GMSJ__CHANGE__WHAT_SEAL;
                out.seal = &seal;
                break;
        case CHANGE_DISCARD:
                out.what_case = GMSJ__CHANGE__WHAT_DISCARD;
                out.discard = &discard;
                break;
        case CHANGE_COMMIT:
                commit.identity = (char *)(c->commit.identity ? c->commit.identity : "");
                commit.leave = c->commit.leave;
                out.what_case = GMSJ__CHANGE__WHAT_COMMIT;
                out.commit = &commit;
                break;
        case CHANGE_REFRESH:
                out.what_case = GMSJ__CHANGE__WHAT_REFRESH;
                out.refresh = &refresh;
                break;
        case CHANGE_SETTLE:
                settle.generation = c->settle.generation;
                out.what_case = GMSJ__CHANGE__WHAT_SETTLE;
                out.settle = &settle;
                break;
        case CHANGE_CLEAR:
                clear.force = c->clear.force;
                out.session = c->clear.by ? c->clear.by->id : 0;
                out.what_case = GMSJ__CHANGE__WHAT_CLEAR;
                out.clear = &clear;
                break;
        case CHANGE_EXITED:
                exited.process = c->exited.process;
                out.what_case = GMSJ__CHANGE__WHAT_EXITED;
                out.exited = &exited;
                break;
        default:
                abort();
        }
        return pack_change(&out, ret_bytes, ret_len);
}
