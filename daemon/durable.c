// SPDX-License-Identifier: MIT
#include "durable.h"

#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "crash.h"
#include "image.h"
#include "log.h"
#include "server.h"
#include "session.h"

#define JOURNAL_SMALL (1u << 20) /* below this a journal is not worth beginning anew */
#define JOURNAL_MOSTLY_DEAD 4u   /* times its snapshot */

/* The number behind a name's letter, as in "a12". */
static bool numbered(const char *name, char letter, uint64_t *ret_number) {
        char *end;
        if (name[0] != letter || name[1] < '0' || name[1] > '9')
                return false;
        *ret_number = strtoull(name + 1, &end, 10);
        return *end == 0;
}

/* ---- reading what was */

enum damage { DAMAGE_NONE, DAMAGE_TAIL, DAMAGE_MIDDLE };

/* Folds one journal. 0, FOLD_E_NEWER, -ENOMEM, -EIO. */
static int fold_journal(struct journal *j, struct folded *f, enum damage *ret_damage) {
        uint64_t at = 0;
        *ret_damage = DAMAGE_NONE;
        for (;;) {
                _cleanup_free_ uint8_t *bytes = NULL;
                size_t len;
                int r = journal_read(j, &at, &bytes, &len);
                if (r == JOURNAL_E_END)
                        return 0;
                if (r == JOURNAL_E_TAIL || r == JOURNAL_E_MIDDLE) {
                        *ret_damage = r == JOURNAL_E_TAIL ? DAMAGE_TAIL : DAMAGE_MIDDLE;
                        return 0;
                }
                if (r == 0)
                        r = fold(f, bytes, len);
                if (r == -EBADMSG) {
                        /* Whole, and yet it makes no sense here: something before it is missing. */
                        *ret_damage = DAMAGE_MIDDLE;
                        return 0;
                }
                if (r != 0)
                        return r;
        }
}

/* The highest journal that is whole; a lower one if the higher was not finished. */
static int find_journal(struct durable *d, enum damage *ret_damage, uint64_t *ret_last_alive) {
        for (;;) {
                struct kept *best = NULL;
                uint64_t best_number = 0, number;
                for (size_t i = 0; i < d->kept.n; i++) {
                        if (d->kept.items[i].fd >= 0 && numbered(d->kept.items[i].name, 'j', &number) && number >= best_number) {
                                best = &d->kept.items[i];
                                best_number = number;
                        }
                }
                if (!best)
                        return 0;
                d->number = MAX(d->number, best_number);
                struct journal *j;
                int r = journal_open_consume(&j, steal_fd(&best->fd));
                if (r < 0)
                        return r;
                if (r == JOURNAL_E_FOREIGN)
                        continue;
                folded_done(&d->folded);
                r = fold_journal(j, &d->folded, ret_damage);
                *ret_last_alive = journal_last_alive(j);
                journal_free(j);
                if (r == FOLD_E_NEWER)
                        return -EPROTONOSUPPORT;
                if (r != 0)
                        return r;
                if (d->folded.complete) {
                        d->restored = true;
                        return 0;
                }
        }
}

static void find_highest(struct durable *d) {
        uint64_t number;
        for (size_t i = 0; i < d->kept.n; i++) {
                if (numbered(d->kept.items[i].name, 's', &number))
                        d->kept_session = MAX(d->kept_session, number);
                else if (numbered(d->kept.items[i].name, 'a', &number))
                        d->kept_allocation = MAX(d->kept_allocation, number);
        }
}

int durable_init(struct durable *d) {
        enum damage damage = DAMAGE_NONE;
        uint64_t last_alive = 0;
        *d = (struct durable){};
        folded_init(&d->folded);
        int r = fdstore_new(&d->manager);
        if (r == 0)
                r = fdstore_take(&d->kept);
        if (r == 0)
                r = find_journal(d, &damage, &last_alive);
        if (r == -EPROTONOSUPPORT)
                log_error("the journal was written by a newer gmsd than " GMS_VERSION "; nothing was touched: run that version");
        else if (r < 0)
                log_error("cannot read what the last daemon left: %s", strerror(-r));
        if (r < 0)
                return r;
        find_highest(d);
        if (!d->restored) {
                folded_done(&d->folded);
                d->damaged = d->kept_session > 0 || d->kept_allocation > 0;
                d->uncertain = d->kept_allocation;
                if (d->damaged)
                        log_error("descriptors were kept and no journal that can be read: starting without any store, ending all "
                                  "sessions, keeping the descriptors");
                return 0;
        }

        uint64_t now = now_ms();
        d->restarts = d->folded.restarts + 1;
        d->away = d->folded.away + (now > last_alive ? now - last_alive : 0);
        if (damage == DAMAGE_TAIL)
                log_warning("the end of the journal is damaged: its last change is dropped, and was not answered");
        if (damage == DAMAGE_MIDDLE) {
                log_error("the journal is damaged in the middle: serving what is certain, ending all sessions, keeping the rest of the "
                          "descriptors");
                d->damaged = true;
        }
        d->uncertain = d->damaged ? d->kept_allocation : d->folded.uncertain;
        return 0;
}

void durable_done(struct durable *d) {
        folded_done(&d->folded);
        kept_done(&d->kept);
        d->journal = journal_free(d->journal);
        d->next = journal_free(d->next);
        d->manager = fdstore_free(d->manager);
}

/* ---- giving it back to the server */

int durable_restore_devices(struct durable *d, struct server *s) {
        for (size_t i = 0; i < d->folded.n_devices; i++) {
                const struct folded_device *from = &d->folded.devices[i];
                struct device_info info = { .total = from->total, .free = from->total, .granularity = from->granularity };
                memcpy(info.name, from->name, sizeof(info.name));
                memcpy(info.uuid, from->uuid, sizeof(info.uuid));
                memcpy(info.model, from->model, sizeof(info.model));
                int r = server_add_device(s, from->spec, &info);
                if (r < 0)
                        return r;
        }
        return 0;
}

static struct device *device_by_uuid(struct server *s, const char *uuid) {
        for (size_t i = 0; i < s->n_devices; i++)
                if (strcmp(allocator_info(s->devices[i].allocator)->uuid, uuid) == 0)
                        return &s->devices[i];
        return NULL;
}

/* Descriptors by name, for thousands of them: sorted once. */
static int compare_kept(const void *a, const void *b) {
        return strcmp(((const struct kept *)a)->name, ((const struct kept *)b)->name);
}

static struct kept *find_kept(const struct durable *d, char letter, uint64_t number) {
        char name[32];
        (void)snprintf(name, sizeof(name), "%c%" PRIu64, letter, number);
        struct kept key = { .name = name };
        return d->kept.n ? bsearch(&key, d->kept.items, d->kept.n, sizeof(key), compare_kept) : NULL;
}

/* Gives the allocations of a layout their descriptors; those that were not kept stay -1. */
static void restore_layout(struct durable *d, struct device *device, struct layout *l) {
        for (size_t i = 0; i < l->n_allocations; i++) {
                struct allocation *a = &l->allocations[i];
                struct kept *k = find_kept(d, 'a', a->id);
                a->fd = k ? steal_fd(&k->fd) : -1;
                if (a->fd >= 0)
                        allocator_account(device->allocator, a->aligned, 1);
        }
}

static bool layout_whole(const struct layout *l) {
        for (size_t i = 0; i < l->n_allocations; i++)
                if (l->allocations[i].fd < 0)
                        return false;
        return true;
}

/* Ends a session as if it had left. Its socket is dropped with the orphans. */
static void end_client(struct durable *d, struct server *s, struct client *c) {
        struct change leave = { .type = CHANGE_LEAVE, .claim = c->claim };
        struct kept *k = find_kept(d, 's', c->id);
        if (k && k->fd >= 0) {
                (void)shutdown(k->fd, SHUT_RDWR);
                k->fd = close_fd(k->fd);
        }
        (void)server_change(s, c->store, &leave);
        client_free(c);
}

/* A layout that lacks memory is of no use to anybody. */
static void give_up_layout(struct durable *d, struct server *s, struct store *store, const struct layout *l) {
        bool resting = l == store_resting(store);
        log_error("%s: memory of generation %" PRIu64 " was not kept (is the manager's limit of descriptors too low?): it is "
                  "given up",
                  store->name, l->generation);
        list_for_safe(c, &d->folded.clients, struct client, link)
                if (c->store == store && (resting || c->claim->view == l || c->claim->next == l))
                        end_client(d, s, c);
        struct change clear = { .type = CHANGE_CLEAR };
        if (resting)
                (void)server_change(s, store, &clear);
}

static void give_up_incomplete(struct durable *d, struct server *s, struct store *store) {
        for (bool again = true; again;) {
                again = false;
                list_for(l, &store->layouts, struct layout, link) {
                        if (!layout_whole(l)) {
                                give_up_layout(d, s, store, l);
                                again = true;
                                break;
                        }
                }
        }
}

static int restore_stores(struct durable *d, struct server *s) {
        struct folded *f = &d->folded;
        for (size_t i = 0; i < f->n_stores; i++) {
                struct store *store = f->stores[i];
                struct device *device = device_by_uuid(s, f->store_devices[i]);
                if (!device)
                        return -ENODEV;
                int r = server_adopt_store(s, store, device);
                if (r < 0)
                        return r;
                f->stores[i] = NULL;
                list_for(l, &store->layouts, struct layout, link)
                        restore_layout(d, device, l);
                give_up_incomplete(d, s, store);
        }
        return 0;
}

static void restore_sessions(struct durable *d, struct server *s) {
        size_t lost = 0;
        list_for_safe(c, &d->folded.clients, struct client, link) {
                struct kept *k = find_kept(d, 's', c->id);
                struct session *session;
                if (k && k->fd >= 0 && !d->damaged && session_restore_consume(&session, s, c, steal_fd(&k->fd)) == 0) {
                        client_free(c);
                        continue;
                }
                end_client(d, s, c);
                lost++;
        }
        if (lost > 0)
                log_warning("%zu sessions could not be kept and are ended", lost);
}

static bool session_lives(const struct server *s, uint64_t id) {
        list_for(session, &s->sessions, struct session, link)
                if (session->id == id)
                        return true;
        return false;
}

/* What nothing names was never answered for. Behind a damage it may have been: then memory stays. */
static void free_orphans(struct durable *d, struct server *s) {
        for (size_t i = 0; i < d->kept.n; i++) {
                struct kept *k = &d->kept.items[i];
                uint64_t number;
                if (numbered(k->name, 's', &number) && !session_lives(s, number)) {
                        if (k->fd >= 0)
                                (void)shutdown(k->fd, SHUT_RDWR);
                        durable_drop_session(d, number);
                } else if (k->fd >= 0 && numbered(k->name, 'a', &number)) {
                        if (number <= d->uncertain || s->n_devices == 0) {
                                d->unaccounted++;
                                continue;
                        }
                        struct retired_item item = { .id = number, .fd = steal_fd(&k->fd) };
                        allocator_account(s->devices[0].allocator, 0, 1);
                        server_retire_consume(s, &s->devices[0], &item, 1);
                        d->orphans++;
                }
        }
        if (d->orphans > 0)
                log_notice("%" PRIu64 " allocations were kept and not in the journal: freed", d->orphans);
        if (d->unaccounted > 0)
                log_error("%" PRIu64 " allocations are kept and not accounted for; stop gmsd to free them", d->unaccounted);
}

/* ---- writing */

static int append(struct journal *j, Gmsj__Record *record) {
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        int r = fold_pack(record, &bytes, &len);
        return r < 0 ? r : journal_append(j, bytes, len);
}

static int append_begin(struct journal *j, const struct durable *d, const struct server *s) {
        Gmsj__Begin body = GMSJ__BEGIN__INIT;
        body.version = FOLD_VERSION;
        body.daemon_version = (char *)GMS_VERSION;
        body.restarts = d->restarts;
        body.away_ms = d->away;
        body.last_session = s->last_session;
        body.last_allocation = s->last_allocation;
        body.started_ms = s->started;
        body.uncertain = d->uncertain;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_BEGIN;
        record.begin = &body;
        return append(j, &record);
}

static int append_device(struct journal *j, const struct device_info *info) {
        Gmsj__DeviceImage body = GMSJ__DEVICE_IMAGE__INIT;
        body.spec = (char *)info->spec;
        body.name = (char *)info->name;
        body.uuid = (char *)info->uuid;
        body.model = (char *)info->model;
        body.total = info->total;
        body.granularity = info->granularity;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_DEVICE;
        record.device = &body;
        return append(j, &record);
}

static int append_store(struct journal *j, const struct store *store) {
        const struct device *device = store->device;
        Gmsj__StoreImage *image;
        int r = image_of_store(store, allocator_info(device->allocator)->uuid, &image);
        if (r < 0)
                return r;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_STORE;
        record.store = image;
        r = append(j, &record);
        image_free(image);
        return r;
}

static int append_client(struct journal *j, const struct session *session) {
        struct client client = session_client(session);
        Gmsj__Client body;
        Gmsj__Answer answer = GMSJ__ANSWER__INIT;
        fold_fill_client(&body, &client);
        answer.serial = client.answered;
        answer.first_id = client.first_id;
        answer.first_slot = client.first_slot;
        body.answer = &answer;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_CLIENT;
        record.client = &body;
        return append(j, &record);
}

static int append_snapshot(struct journal *j, const struct durable *d, const struct server *s) {
        int r = append_begin(j, d, s);
        for (size_t i = 0; r == 0 && i < s->n_devices; i++) {
                const struct device_info *info = allocator_info(s->devices[i].allocator);
                if (*info->uuid)
                        r = append_device(j, info);
        }
        for (size_t i = 0; r == 0 && i < s->n_stores; i++)
                r = append_store(j, s->stores[i]);
        if (r < 0)
                return r;
        list_for(session, &s->sessions, struct session, link) {
                if (session->claim && (r = append_client(j, session)) < 0)
                        return r;
        }
        Gmsj__Complete body = GMSJ__COMPLETE__INIT;
        Gmsj__Record record = GMSJ__RECORD__INIT;
        record.fact_case = GMSJ__RECORD__FACT_COMPLETE;
        record.complete = &body;
        return append(j, &record);
}

static void journal_name(char *name, size_t size, uint64_t number) {
        (void)snprintf(name, size, "j%" PRIu64, number);
}

/* An empty journal, which counts for nothing, goes to the manager. */
static int begin_next(struct durable *d) {
        char name[32];
        struct journal *j;
        int r = journal_new(&j);
        if (r < 0)
                return r;
        journal_name(name, sizeof(name), d->number + 1);
        crash_point("journal-keep-before");
        r = fdstore_put(d->manager, name, j->fd);
        crash_point("journal-keep-after");
        if (r < 0) {
                journal_free(j);
                return r;
        }
        d->number++;
        d->next = j;
        d->next_ticket = fdstore_ticket(d->manager);
        return 0;
}

static void drop_journal(struct durable *d, uint64_t number) {
        char name[32];
        journal_name(name, sizeof(name), number);
        fdstore_remove(d->manager, name);
}

/* The next journal is kept: it begins with all there is, and takes the place of the one before. */
static int use_next(struct durable *d, struct server *s) {
        struct journal *j = steal_ptr(&d->next);
        journal_alive(j, now_ms());
        crash_point("snapshot-before");
        int r = append_snapshot(j, d, s);
        crash_point("snapshot-after");
        if (r < 0) {
                journal_free(j);
                drop_journal(d, d->number);
                return r;
        }
        uint64_t number;
        for (size_t i = 0; i < d->kept.n; i++)
                if (numbered(d->kept.items[i].name, 'j', &number))
                        drop_journal(d, number);
        if (d->journal)
                drop_journal(d, d->journal_number);
        crash_point("journal-dropped");
        journal_free(d->journal);
        d->journal = j;
        d->journal_number = d->number;
        d->live = j->end;
        for (size_t i = 0; i < s->n_devices; i++)
                s->devices[i].recorded = *allocator_info(s->devices[i].allocator)->uuid;
        return 0;
}

/* At the start, when nobody is served yet, the manager is waited for. */
static int begin_journal(struct durable *d, struct server *s) {
        int r = begin_next(d);
        while (r == 0 && !fdstore_sent(d->manager, d->next_ticket)) {
                struct pollfd writable = { .fd = fdstore_fd(d->manager), .events = POLLOUT };
                if (poll(&writable, 1, -1) < 0 && errno != EINTR)
                        return -errno;
                fdstore_flush(d->manager);
        }
        return r < 0 ? r : use_next(d, s);
}

int durable_restore(struct durable *d, struct server *s) {
        int r = 0;
        if (!fdstore_durable(d->manager))
                return 0;
        if (d->kept.n > 0)
                qsort(d->kept.items, d->kept.n, sizeof(*d->kept.items), compare_kept);
        if (d->restored) {
                s->started = d->folded.started;
                s->restoring = true;
                r = restore_stores(d, s);
                if (r == 0)
                        restore_sessions(d, s);
                s->restoring = false;
        }
        s->last_session = MAX(s->last_session, MAX(d->folded.last_session, d->kept_session));
        s->last_allocation = MAX(s->last_allocation, MAX(d->folded.last_allocation, d->kept_allocation));
        /* Nothing is let go of before a journal says so that is kept itself. */
        if (r == 0)
                r = begin_journal(d, s);
        if (r == 0) {
                free_orphans(d, s);
                server_retire_pending(s);
        }
        if (r < 0)
                log_error("cannot take up what the last daemon left: %s", strerror(-r));
        kept_done(&d->kept);
        folded_done(&d->folded);
        return r;
}

/* A journal with a hole is worse than none, and what is kept without one is of no use to anybody. */
static void give_up(struct durable *d, struct server *s, int error) {
        log_error("cannot write the journal: %s; the memory dies with this process", strerror(-error));
        drop_journal(d, d->journal_number);
        if (d->next)
                drop_journal(d, d->number);
        d->journal = journal_free(d->journal);
        d->next = journal_free(d->next);
        list_for(session, &s->sessions, struct session, link)
                if (session->kept_by_manager)
                        durable_drop_session(d, session->id);
        for (size_t i = 0; i < s->n_stores; i++)
                list_for(l, &s->stores[i]->layouts, struct layout, link)
                        for (size_t k = 0; k < l->n_allocations; k++)
                                durable_drop_allocation(d, l->allocations[k].id);
}

int durable_pack(struct durable *d, const struct store *store, const struct change *change, uint8_t **ret_record,
                 size_t *ret_len) {
        if (!d->journal)
                return 0;
        const struct device *device = store->device;
        const struct session *session = change->type == CHANGE_ASK ? change->ask.owner
                                        : change->type == CHANGE_CLEAR ? (change->clear.by ? change->clear.by->owner : NULL)
                                        : change->claim                ? change->claim->owner
                                                                       : NULL;
        struct client client = session ? session_client(session) : (struct client){};
        return fold_pack_change(store, allocator_info(device->allocator)->uuid, change,
                                session && session->changes ? session->serial : 0, &client, ret_record, ret_len);
}

void durable_write(struct durable *d, struct server *s, const struct store *store, const uint8_t *record, size_t len) {
        struct device *device = store->device;
        int r = 0;
        if (!record)
                return;
        crash_point("record-before");
        if (!device->recorded) {
                r = append_device(d->journal, allocator_info(device->allocator)); /* it answered after the snapshot */
                device->recorded = true;
        }
        if (r == 0)
                r = journal_append(d->journal, record, len);
        crash_point("record-after");
        journal_alive(d->journal, now_ms());
        if (r == 0 && d->journal->end > JOURNAL_SMALL && d->journal->end > d->live * JOURNAL_MOSTLY_DEAD)
                s->compact = true;
        if (r < 0)
                give_up(d, s, r);
}

void durable_compact(struct durable *d, struct server *s) {
        if (!d->journal || d->next)
                return;
        int r = begin_next(d);
        if (r < 0)
                log_warning("cannot begin a new journal: %s; going on with the old one", strerror(-r));
        else
                durable_sent(d, s);
}

void durable_sent(struct durable *d, struct server *s) {
        if (!d->next || !d->journal || !fdstore_sent(d->manager, d->next_ticket))
                return;
        int r = use_next(d, s);
        if (r < 0)
                log_warning("cannot begin a new journal: %s; going on with the old one", strerror(-r));
}

/* ---- descriptors */

int durable_keep_session(struct durable *d, const struct session *s) {
        char name[32];
        if (!d->journal)
                return 0;
        (void)snprintf(name, sizeof(name), "s%" PRIu64, s->id);
        crash_point("keep-session-before");
        int r = fdstore_put(d->manager, name, s->channel.fd);
        crash_point("keep-session-after");
        return r;
}

int durable_keep_allocation(struct durable *d, uint64_t id, int fd) {
        char name[32];
        if (!d->journal)
                return 0;
        (void)snprintf(name, sizeof(name), "a%" PRIu64, id);
        crash_point("keep-allocation-before");
        int r = fdstore_put(d->manager, name, fd);
        crash_point("keep-allocation-after");
        return r;
}

static void drop(struct durable *d, char letter, uint64_t id) {
        char name[32];
        if (!fdstore_durable(d->manager))
                return;
        (void)snprintf(name, sizeof(name), "%c%" PRIu64, letter, id);
        crash_point("drop-before");
        fdstore_remove(d->manager, name);
        crash_point("drop-after");
}

void durable_drop_session(struct durable *d, uint64_t id) {
        drop(d, 's', id);
}

void durable_drop_allocation(struct durable *d, uint64_t id) {
        drop(d, 'a', id);
}
