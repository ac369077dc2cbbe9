// SPDX-License-Identifier: MIT
/*
 * Looking at the daemon: itself, its devices, stores, sessions, and any store's resting layout; and the one thing an
 * administrator does to it, clear. Replies become arrays of public structs that the caller frees.
 */
#include <stdio.h>

#include "handle.h"
#include "pages.h"

#define TEXT(to, from) ((void)snprintf((to), sizeof(to), "%s", (from)))

/* An array that grows by pages. */
struct array {
        void *at;
        size_t n, room, element;
};

static void array_done(struct array *a) {
        free(a->at);
}

/* Room for one more element, zeroed and with its size set. -ENOMEM. */
static int array_add(struct array *a, void **ret_element) {
        if (a->n == a->room) {
                size_t room = a->room + a->room / 2 + 8;
                void *at = reallocarray(a->at, room, a->element);
                if (!at)
                        return error_errno(-ENOMEM, "query");
                a->at = at;
                a->room = room;
        }
        *ret_element = (char *)a->at + a->n++ * a->element;
        memset(*ret_element, 0, a->element);
        uint32_t size = (uint32_t)a->element;
        memcpy(*ret_element, &size, sizeof(size));
        return 0;
}

static int enter(struct gms *g, const void *ret, const void *ret_n, struct gms **ret_held) {
        int r = handle_enter_session(g, ret_held);
        if (r == 0 && (!ret || !ret_n))
                r = error_set(-EINVAL, "query: nowhere to put the answer");
        return r;
}

/* ---- the daemon and its devices */

int gms_query_daemon(struct gms *g, struct gms_daemon *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r == 0)
                r = sized_check(ret, "struct gms_daemon");
        if (r < 0)
                return r;

        Gms__About about = GMS__ABOUT__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_ABOUT;
        request.about = &about;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        r = handle_call(g, &request, GMS__FRAME__BODY_DAEMON, &reply);
        if (r < 0)
                return r;

        const Gms__Daemon *d = reply->daemon;
        struct gms_daemon daemon = {
                .size = sizeof(daemon),
                .durable = d->durable,
                .pid = d->pid,
                .uptime_ms = d->uptime_ms,
                .sessions = d->sessions,
                .allocations = d->allocations,
                .bytes = d->bytes,
                .draining_bytes = d->draining_bytes,
                .restarts = d->restarts,
                .away_ms = d->away_ms,
                .orphans = d->orphans,
                .unaccounted = d->unaccounted,
        };
        TEXT(daemon.version, d->version);
        sized_store(ret, ret->size, &daemon, sizeof(daemon));
        return 0;
}

static int add_device(struct array *to, const Gms__Device *from) {
        struct gms_device *d;
        int r = array_add(to, (void **)&d);
        if (r < 0)
                return r;
        TEXT(d->name, from->name);
        TEXT(d->uuid, from->uuid);
        TEXT(d->model, from->model);
        TEXT(d->state, from->state);
        TEXT(d->text, from->text);
        d->total = from->total;
        d->free = from->free;
        d->owned = from->owned;
        d->granularity = from->granularity;
        d->waiting = from->waiting;
        return 0;
}

int gms_query_devices(struct gms *g, struct gms_device **ret, size_t *ret_n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter(g, ret, ret_n, &held);
        if (r < 0)
                return r;

        Gms__ListDevices all = GMS__LIST_DEVICES__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_LIST_DEVICES;
        request.list_devices = &all;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        r = handle_call(g, &request, GMS__FRAME__BODY_DEVICES, &reply);

        _cleanup_(array_done) struct array devices = { .element = sizeof(**ret) };
        for (size_t i = 0; r == 0 && i < reply->devices->n_devices; i++)
                r = add_device(&devices, reply->devices->devices[i]);
        if (r < 0)
                return r;
        *ret = steal_ptr(&devices.at);
        *ret_n = devices.n;
        return 0;
}

/* ---- stores */

static int add_store(struct array *to, const Gms__Store *from) {
        struct gms_store *s;
        int r = array_add(to, (void **)&s);
        if (r < 0)
                return r;
        TEXT(s->name, from->name);
        TEXT(s->state, from->state);
        s->readers = from->readers;
        s->writers = from->writers;
        s->waiters = from->waiters;
        s->bytes = from->bytes;
        s->building_bytes = from->building_bytes;
        s->draining_bytes = from->draining_bytes;
        s->draining_layouts = from->draining_layouts;

        if (!from->layout)
                return 0;
        layout_hash_from(s->hash, from->layout);
        TEXT(s->identity, from->layout->identity);
        s->sealed = from->layout->sealed;
        s->allocations = from->layout->allocations;
        s->generation = from->layout->generation;
        return 0;
}

/* One page, after the last store of the array. */
static int list_stores(struct gms *g, const char *store, struct array *to, bool *ret_more) {
        const struct gms_store *last = to->n > 0 ? (const struct gms_store *)to->at + to->n - 1 : NULL;
        Gms__ListStores page = GMS__LIST_STORES__INIT;
        page.store = (char *)(store ? store : "");
        page.after = (char *)(last ? last->name : "");
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_LIST_STORES;
        request.list_stores = &page;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        int r = handle_call(g, &request, GMS__FRAME__BODY_STORES, &reply);
        for (size_t i = 0; r == 0 && i < reply->stores->n_stores; i++)
                r = add_store(to, reply->stores->stores[i]);
        if (r == 0)
                *ret_more = reply->stores->more && reply->stores->n_stores > 0;
        return r;
}

int gms_query_stores(struct gms *g, const char *store, struct gms_store **ret, size_t *ret_n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter(g, ret, ret_n, &held);
        _cleanup_(array_done) struct array stores = { .element = sizeof(**ret) };
        for (bool more = true; r == 0 && more;)
                r = list_stores(g, store, &stores, &more);
        if (r == 0 && store && stores.n == 0)
                r = error_set(-ENOENT, "query: there is no store %s", store);
        if (r < 0)
                return r;
        *ret = steal_ptr(&stores.at);
        *ret_n = stores.n;
        return 0;
}

/* ---- sessions */

static int add_session(struct array *to, const Gms__Session *from) {
        struct gms_session *s;
        int r = array_add(to, (void **)&s);
        if (r < 0)
                return r;
        s->id = from->id;
        s->pid = from->pid;
        s->uid = from->uid;
        s->mode = (uint32_t)from->mode;
        s->waiting = from->waiting;
        s->age_ms = from->age_ms;
        s->bytes = from->bytes;
        s->generation = from->generation;
        TEXT(s->label, from->label);
        TEXT(s->store, from->store);
        return 0;
}

static int list_sessions(struct gms *g, struct array *to, bool *ret_more) {
        Gms__ListSessions page = GMS__LIST_SESSIONS__INIT;
        page.after = to->n > 0 ? ((const struct gms_session *)to->at)[to->n - 1].id : 0;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_LIST_SESSIONS;
        request.list_sessions = &page;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        int r = handle_call(g, &request, GMS__FRAME__BODY_SESSIONS, &reply);
        for (size_t i = 0; r == 0 && i < reply->sessions->n_sessions; i++)
                r = add_session(to, reply->sessions->sessions[i]);
        if (r == 0)
                *ret_more = reply->sessions->more && reply->sessions->n_sessions > 0;
        return r;
}

int gms_query_sessions(struct gms *g, struct gms_session **ret, size_t *ret_n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter(g, ret, ret_n, &held);
        _cleanup_(array_done) struct array sessions = { .element = sizeof(**ret) };
        for (bool more = true; r == 0 && more;)
                r = list_sessions(g, &sessions, &more);
        if (r < 0)
                return r;
        *ret = steal_ptr(&sessions.at);
        *ret_n = sessions.n;
        return 0;
}

/* ---- a store's layout */

static int read_layout(struct gms *g, const char *store, struct array *to) {
        _cleanup_(pages_done) struct pages p = { .conn = &g->conn, .store = store, .end = PAGES_ALL };
        const Gms__Allocation *a;
        int r;
        while ((r = pages_next(&p, &a, NULL)) > 0) {
                struct gms_allocation *e;
                r = array_add(to, (void **)&e);
                if (r < 0)
                        return r;
                e->id = a->id;
                e->slot = a->slot;
                e->bytes = a->size;
                e->aligned = a->aligned_size;
                TEXT(e->tag, a->tag);
        }
        return r;
}

int gms_query_layout(struct gms *g, const char *store, struct gms_allocation **ret, size_t *ret_n) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = enter(g, ret, ret_n, &held);
        if (r == 0 && (!store || !*store))
                r = error_set(-EINVAL, "query: no store was named");
        if (r < 0)
                return r;

        _cleanup_(array_done) struct array all = { .element = sizeof(**ret) };
        /* A publication in the middle means starting again; one each time means that there is nothing stable to show. */
        for (unsigned attempt = 0; attempt < 8; attempt++) {
                all.n = 0;
                r = read_layout(g, store, &all);
                if (r != -EAGAIN)
                        break;
        }
        if (r < 0)
                return r;
        *ret = steal_ptr(&all.at);
        *ret_n = all.n;
        return 0;
}

/* ---- clear */

int gms_clear(struct gms *g, const char *store, uint32_t flags) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r < 0)
                return r;
        if (!store || !*store || (flags & ~GMS_CLEAR_FORCE))
                return error_set(-EINVAL, "clear: %s",
                                 store && *store ? "unknown flags; GMS_CLEAR_FORCE is one" : "no store was named");

        Gms__Clear clear = GMS__CLEAR__INIT;
        clear.store = (char *)store;
        clear.force = flags & GMS_CLEAR_FORCE;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_CLEAR;
        request.clear = &clear;
        r = handle_do(g, &request);
        return r == -EACCES ? -EPERM : r;
}
