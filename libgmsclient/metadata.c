// SPDX-License-Identifier: MIT
#include "metadata.h"

#include <fcntl.h>
#include <inttypes.h>

#include "handle.h"
#include "listing.h"

#define ENTRY_COST 40u   /* bytes of an entry or key on the wire beside its key and value */
#define LIST_ATTEMPTS 8u /* at a layout that is replaced while it is read; a session's own is not */

/* ---- the list that callers get */

void gather_done(struct gather *g) {
        free(g->entries);
        free(g->bytes);
        *g = (struct gather){};
}

static int grow(void **array, size_t *room, size_t need, size_t element) {
        if (need <= *room)
                return 0;
        size_t more = MAX(need, *room + *room / 2 + 16);
        void *p = reallocarray(*array, more, element);
        if (!p)
                return error_errno(-ENOMEM, "metadata");
        *array = p;
        *room = more;
        return 0;
}

/* An entry's bytes are its value, aligned for whatever the caller keeps in it, and its key. */
static size_t value_at(size_t used) {
        return (used + 7) & ~(size_t)7;
}

static int gather_entry(struct gather *g, const struct listing_entry *e) {
        size_t key_size = (size_t)e->key_size + 1;
        if (e->value_size > GMS_VALUE_MAX || key_size > GMS_KEY_SIZE)
                return error_set(-EPROTO, "the daemon sent a metadata entry that is over the limits");
        int r = grow((void **)&g->entries, &g->room, g->n + 1, sizeof(*g->entries));
        if (r == 0)
                r = grow((void **)&g->bytes, &g->bytes_room, value_at(g->used) + e->value_size + key_size, 1);
        if (r < 0)
                return r;
        assert(g->entries && g->bytes);

        size_t at = value_at(g->used);
        if (e->value_size > 0)
                memcpy(g->bytes + at, e->value, e->value_size);
        memcpy(g->bytes + at + e->value_size, e->key, key_size);
        g->entries[g->n++] = (struct gms_metadata){
                .size = sizeof(*g->entries), .value_size = e->value_size, .slot = e->slot, .offset = e->offset,
        };
        g->used = at + e->value_size + key_size;
        g->last_key = at + e->value_size;
        return 0;
}

int gather_add(struct gather *g, const Gms__Metadata *reply) {
        int r = 0;
        for (size_t i = 0; r == 0 && i < reply->n_entries; i++) {
                const Gms__MetaEntry *from = reply->entries[i];
                struct listing_entry e = {
                        .slot = from->slot,
                        .offset = from->offset,
                        .key_size = (uint32_t)MIN(strlen(from->key), UINT32_MAX),
                        .value_size = (uint32_t)MIN(from->value.len, UINT32_MAX),
                        .key = from->key,
                        .value = from->value.data,
                };
                r = gather_entry(g, &e);
        }
        return r;
}

int gather_add_listed(struct gather *g, const Gms__Metadata *reply, const struct fdset *fds, const char *prefix,
                      const char *after) {
        if (!reply->listing != !(fds && fds->n == 1))
                return error_set(-EPROTO, "the daemon sent a listing without its descriptor, or descriptors without a listing");
        if (!reply->listing)
                return gather_add(g, reply);

        _cleanup_(listing_unmap) struct listing l = {};
        struct listing_entry e;
        size_t prefix_size = strlen(prefix);
        bool more = true;
        int r = listing_map(&l, fds->fds[0], reply->listing);
        while (r == 0 && (r = listing_next(&l, &e, &more)) == 0 && more)
                if (strncmp(e.key, prefix, prefix_size) == 0 && strcmp(e.key, after) > 0)
                        r = gather_entry(g, &e);
        if (r == LISTING_E_MALFORMED)
                return error_set(-EPROTO, "the daemon sent a listing of metadata that is none");
        return r < 0 && !l.bytes ? error_errno(r, "metadata") : r;
}

int gather_finish(struct gather *g, struct gms_metadata_list *ret) {
        if (g->n > UINT32_MAX)
                return error_set(-ENOBUFS, "more metadata than one list can hold");
        size_t entries_size = g->n * sizeof(*g->entries);
        struct gms_metadata_list list = { .size = sizeof(list), .n = (uint32_t)g->n };
        if (g->n > 0) {
                list.entries = malloc(entries_size + g->used);
                if (!list.entries)
                        return error_errno(-ENOMEM, "metadata");
                memcpy(list.entries, g->entries, entries_size);
                char *bytes = (char *)list.entries + entries_size;
                memcpy(bytes, g->bytes, g->used);
                for (size_t i = 0, at = 0; i < g->n; i++) {
                        struct gms_metadata *e = &list.entries[i];
                        e->value = bytes + value_at(at);
                        e->key = bytes + value_at(at) + e->value_size;
                        at = value_at(at) + e->value_size + strlen(e->key) + 1;
                }
        }
        sized_store(ret, ret->size, &list, sizeof(list));
        return 0;
}

void gms_metadata_free(struct gms_metadata_list *list) {
        if (!list)
                return;
        free(list->entries);
        list->entries = NULL;
        list->n = 0;
}

void gms_array_free(void *array) {
        free(array);
}

static int check_list(const struct gms_metadata_list *list) {
        int r = sized_check(list, "struct gms_metadata_list");
        if (r == 0 && list->size < sizeof(*list))
                r = error_set(-EINVAL, "struct gms_metadata_list: its size is %u, at least %zu are needed", list->size,
                              sizeof(*list));
        return r;
}

/* ---- putting */

static int check_key(const char *key) {
        if (!key || *key == '\0')
                return error_set(-EINVAL, "metadata: an entry has no key");
        if (strlen(key) > WIRE_KEY_MAX)
                return error_set(-EFBIG, "metadata: a key has %zu bytes, %u are allowed: %.64s...", strlen(key),
                                 WIRE_KEY_MAX, key);
        if (!wire_text_ok(key, WIRE_KEY_MAX))
                return error_set(-EINVAL, "metadata: a key is no UTF-8, or contains control characters");
        return 0;
}

static int check_entry(const struct gms *g, const struct gms_metadata *e) {
        int r = check_key(e->key);
        if (r < 0)
                return r;
        if (e->value_size > GMS_VALUE_MAX)
                return error_set(-EFBIG,
                                 "metadata: the value of '%s' has %u bytes, %d are allowed; put large things into an "
                                 "allocation",
                                 e->key, e->value_size, GMS_VALUE_MAX);
        if (e->value_size > 0 && !e->value)
                return error_set(-EINVAL, "metadata: the value of '%s' is missing", e->key);

        const struct mapping *m = handle_is_current(g) ? layout_find_slot(&g->known, e->slot) : NULL;
        if (m && e->offset >= m->bytes)
                return error_set(-ERANGE,
                                 "metadata: '%s' is to point at byte %" PRIu64 " of slot %" PRIu64 ", which has %" PRIu64,
                                 e->key, e->offset, e->slot, m->bytes);
        return 0; /* of slots it does not know the daemon judges */
}

static size_t entry_cost(const struct gms_metadata *e) {
        return ENTRY_COST + strlen(e->key) + e->value_size;
}

/* Sends the first of the entries, as many as fit one frame. */
static int put_some(struct gms *g, const struct gms_metadata *entries, size_t n, size_t *ret_put) {
        struct gms_metadata e;
        size_t count = 0, cost = 0;
        for (; count < n; count++) {
                sized_load(&e, sizeof(e), sized_at(entries, count));
                cost += entry_cost(&e);
                if (cost > WIRE_PAYLOAD_MAX)
                        break;
        }

        assert(count > 0); /* the limits let one through */
        _cleanup_free_ Gms__MetaEntry *on_wire = calloc(count, sizeof(*on_wire));
        _cleanup_free_ Gms__MetaEntry **pointers = calloc(count, sizeof(Gms__MetaEntry *));
        if (!on_wire || !pointers)
                return error_errno(-ENOMEM, "metadata");
        for (size_t i = 0; i < count; i++) {
                sized_load(&e, sizeof(e), sized_at(entries, i));
                gms__meta_entry__init(&on_wire[i]);
                on_wire[i].key = (char *)e.key;
                on_wire[i].slot = e.slot;
                on_wire[i].offset = e.offset;
                on_wire[i].value = (ProtobufCBinaryData){ .len = e.value_size, .data = (uint8_t *)(uintptr_t)e.value };
                pointers[i] = &on_wire[i];
        }

        Gms__MetaPut put = GMS__META_PUT__INIT;
        put.n_entries = count;
        put.entries = pointers;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_META_PUT;
        request.meta_put = &put;
        *ret_put = count;
        return handle_do(g, &request);
}

int metadata_put(struct gms *g, const struct gms_metadata *entries, size_t n) {
        int r = n > 0 ? sized_check(entries, "struct gms_metadata") : 0;
        for (size_t i = 0; r == 0 && i < n; i++) {
                struct gms_metadata e;
                sized_load(&e, sizeof(e), sized_at(entries, i));
                r = check_entry(g, &e);
        }
        for (size_t done = 0, put = 0; r == 0 && done < n; done += put)
                r = put_some(g, sized_at(entries, done), n - done, &put);
        return r;
}

int gms_metadata_put(struct gms *g, const struct gms_metadata *entries, size_t n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        return r < 0 ? r : metadata_put(g, entries, n);
}

/* ---- by keys */

static int check_keys(const char *const *keys, size_t n) {
        int r = n > 0 && !keys ? error_set(-EINVAL, "metadata: no keys given") : 0;
        for (size_t i = 0; r == 0 && i < n; i++)
                r = check_key(keys[i]);
        return r;
}

/* How many of the keys fit one request. */
static size_t keys_that_fit(const char *const *keys, size_t n) {
        size_t count = 0;
        for (size_t cost = 0; count < n; count++) {
                cost += ENTRY_COST + strlen(keys[count]);
                if (cost > WIRE_PAYLOAD_MAX)
                        break;
        }
        return count;
}

/* Asks for the first of the keys; the daemon answers with as many as fit its frame. */
static int get_some(struct gms *g, const char *const *keys, size_t n, struct gather *to, size_t *ret_got) {
        Gms__MetaGet get = GMS__META_GET__INIT;
        get.n_keys = keys_that_fit(keys, n);
        get.keys = (char **)(uintptr_t)keys;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_META_GET;
        request.meta_get = &get;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        int r = handle_call(g, &request, GMS__FRAME__BODY_METADATA, &reply);
        if (r < 0)
                return r;

        size_t got = reply->metadata->n_entries;
        if (got == 0 || got > get.n_keys || (got < get.n_keys && !reply->metadata->more))
                return error_set(-EPROTO, "the daemon sent %zu metadata entries for %zu keys", got, get.n_keys);
        *ret_got = got;
        return gather_add(to, reply->metadata);
}

int gms_metadata_get(struct gms *g, const char *const *keys, size_t n, struct gms_metadata_list *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0)
                r = check_list(ret);
        if (r == 0)
                r = check_keys(keys, n);

        _cleanup_(gather_done) struct gather found = {};
        for (size_t done = 0, got = 0; r == 0 && done < n; done += got)
                r = get_some(g, keys + done, n - done, &found, &got);
        return r < 0 ? r : gather_finish(&found, ret);
}

int gms_metadata_delete(struct gms *g, const char *const *keys, size_t n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0)
                r = check_keys(keys, n);
        for (size_t done = 0; r == 0 && done < n;) {
                Gms__MetaDelete delete = GMS__META_DELETE__INIT;
                delete.n_keys = keys_that_fit(keys + done, n - done);
                delete.keys = (char **)(uintptr_t)(keys + done);
                Gms__Frame request = GMS__FRAME__INIT;
                request.body_case = GMS__FRAME__BODY_META_DELETE;
                request.meta_delete = &delete;
                r = handle_do(g, &request);
                done += delete.n_keys;
        }
        return r;
}

/* ---- listing */

/* What was found so far, and of which layout. */
struct walk {
        struct gather found;
        char after[GMS_KEY_SIZE]; /* the last key */
        uint64_t generation, layout;
        bool started, more;
};

/* Whether a descriptor can be taken: one that arrives and cannot be costs the session, and with it the lock. */
static bool descriptor_left(const struct gms *g) {
        _cleanup_close_ int fd = fcntl(g->conn.fd, F_DUPFD_CLOEXEC, 0);
        return fd >= 0;
}

/* One answer. -EAGAIN: it is of another layout than those before. */
static int list_some(struct gms *g, const char *store, const char *prefix, struct walk *w) {
        Gms__MetaList page = GMS__META_LIST__INIT;
        page.prefix = (char *)prefix;
        page.after = w->after;
        page.store = (char *)store;
        page.listing = descriptor_left(g); /* else it goes in frames */
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_META_LIST;
        request.meta_list = &page;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        size_t before = w->found.n;
        int r = handle_call_fds(g, &request, GMS__FRAME__BODY_METADATA, &reply, &fds);
        if (r == 0 && w->started &&
            (reply->metadata->generation != w->generation || reply->metadata->layout != w->layout))
                r = error_set(-EAGAIN, "the layout of %s was replaced while its metadata was read; try again", store);
        if (r == 0)
                r = gather_add_listed(&w->found, reply->metadata, fds, prefix, w->after);
        if (r < 0)
                return r;
        w->generation = reply->metadata->generation;
        w->layout = reply->metadata->layout;
        w->started = true;
        w->more = reply->metadata->more && w->found.n > before;
        if (w->found.n > before)
                memcpy(w->after, w->found.bytes + w->found.last_key, w->found.used - w->found.last_key);
        return 0;
}

static int list_all(struct gms *g, const char *store, const char *prefix, struct gms_metadata_list *ret) {
        struct walk w = { .more = true };
        int r = 0;
        while (r == 0 && w.more)
                r = list_some(g, store, prefix, &w);
        if (r == 0)
                r = gather_finish(&w.found, ret);
        gather_done(&w.found);
        return r;
}

int metadata_list(struct gms *g, const char *store, const char *prefix, struct gms_metadata_list *ret) {
        int r = -EAGAIN;
        for (unsigned attempt = 0; r == -EAGAIN && attempt < LIST_ATTEMPTS; attempt++)
                r = list_all(g, store, prefix, ret);
        return r;
}

int gms_metadata_list(struct gms *g, const char *prefix, struct gms_metadata_list *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r == 0)
                r = check_list(ret);
        if (r == 0 && prefix && *prefix)
                r = check_key(prefix);
        return r < 0 ? r : metadata_list(g, "", prefix ? prefix : "", ret);
}

int gms_query_metadata(struct gms *g, const char *store, struct gms_metadata_list *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r == 0)
                r = check_list(ret);
        if (r == 0 && (!store || !*store))
                r = error_set(-EINVAL, "query: no store was named");
        return r < 0 ? r : metadata_list(g, store, "", ret);
}
