// SPDX-License-Identifier: MIT
#include "dispatch.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "listing.h"
#include "log.h"

#define ALLOCATE_DEADLINE_MS 5000u
#define LIST_PAGE 64u /* devices, stores or sessions in one answer: each is below 1 KiB */

#define DEADLINE_MAX_MS (UINT64_MAX / 4) /* a deadline above this is for ever */

/* ---- saying what is */

void dispatch_fill_layout(Gms__Layout *to, const struct store *store, struct layout *l) {
        gms__layout__init(to);
        to->epoch = store->epoch;
        if (!l)
                return;
        to->generation = l->generation;
        to->hash = (ProtobufCBinaryData){ .len = LAYOUT_HASH_SIZE, .data = (uint8_t *)layout_hash(l) };
        if (l->identity)
                to->identity = l->identity;
        to->allocations = l->n_allocations;
        to->bytes = l->bytes;
        to->sealed = l->sealed;
}

static void fill_device(Gms__Device *to, const struct allocator *a) {
        const struct device_info *i = allocator_info(a);
        uint64_t owned = allocator_owned(a);
        gms__device__init(to);
        to->name = (char *)i->name;
        to->uuid = (char *)i->uuid;
        to->model = (char *)i->model;
        to->state = (char *)allocator_state(a);
        to->text = (char *)allocator_text(a);
        to->total = i->total;
        to->free = MIN(i->free, i->total > owned ? i->total - owned : 0);
        to->owned = owned;
        to->granularity = i->granularity;
        to->waiting = allocator_waiting(a);
}

static unsigned writers(const struct store *store) {
        return store->lock.held[LOCK_MODE_RW] + store->lock.held[LOCK_MODE_UPDATE];
}

/* "host/w is RO: 3 readers, 1 writers, 2 waiting" */
static const char *describe_lock(const struct store *store, unsigned waiting) {
        static char text[WIRE_STORE_MAX + 128];
        (void)snprintf(text, sizeof(text), "%s is %s: %u readers, %u writers, %u waiting", store->name, store_state(store),
                       store->lock.held[LOCK_MODE_RO], writers(store), waiting);
        return text;
}

static const char *describe_store(const struct store *store) {
        return describe_lock(store, store->lock.waiting);
}

static Gms__Mode mode_of(const struct claim *c) {
        static const Gms__Mode modes[_LOCK_MODE_MAX] = {
                [LOCK_MODE_RO] = GMS__MODE__RO, [LOCK_MODE_UPDATE] = GMS__MODE__UPDATE, [LOCK_MODE_RW] = GMS__MODE__RW,
        };
        return c && c->lock.held ? modes[c->lock.mode] : GMS__MODE__NONE;
}

static const char *mode_name(Gms__Mode mode) {
        const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(&gms__mode__descriptor, mode);
        return v ? v->name : "?";
}

/* What the store refused, in words. `what` names the request. */
static void refuse_change(struct session *s, int r, const char *what, size_t item) {
        const char *store = s->store ? s->store->name : "";
        switch (r) {
        case STORE_E_GONE:
                session_refuse(s, GMS__STATUS__REVOKED, "%s: this session holds nothing in %s any more; connect again", what,
                               store);
                break;
        case STORE_E_NOT_WRITER:
                session_refuse(s, GMS__STATUS__NOT_PERMITTED,
                               "%s: needs a writer, and this session has %s on %s; connect with RW or UPDATE", what,
                               mode_name(mode_of(s->claim)), store);
                break;
        case STORE_E_NOT_READER:
                session_refuse(s, GMS__STATUS__NOT_PERMITTED,
                               "%s: needs a reader, and this session has %s on %s; connect with RO", what,
                               mode_name(mode_of(s->claim)), store);
                break;
        case STORE_E_SEALED:
                session_refuse(s, GMS__STATUS__CONFLICT,
                               "%s: the layout is sealed, so its shape is fixed; build another one with RW", what);
                break;
        case STORE_E_PUBLISHED:
                session_refuse(s, GMS__STATUS__CONFLICT,
                               "%s: %s has generation %" PRIu64 " published; discard it first, or seal in another store", what,
                               store, s->store->generation);
                break;
        case STORE_E_UNPUBLISHED:
                session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: nothing is published in %s any more; stay, or connect again",
                               what, store);
                break;
        case STORE_E_HELD:
                session_refuse(s, GMS__STATUS__CONFLICT, "%s: refused, %s; wait for them, or use force", what,
                               describe_store(s->store));
                break;
        case STORE_E_NO_ALLOCATION:
                session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: item %zu names no allocation of this layout; list it", what,
                               item);
                break;
        case STORE_E_NO_SLOT:
                session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: item %zu names a slot that this layout does not have; list it",
                               what, item);
                break;
        case STORE_E_NO_KEY:
                session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: item %zu names a key that this layout does not have; list it",
                               what, item);
                break;
        case STORE_E_OFFSET:
                session_refuse(s, GMS__STATUS__OUT_OF_RANGE,
                               "%s: the offset of item %zu is not inside its allocation; offsets count bytes from its start",
                               what, item);
                break;
        case STORE_E_NO_GENERATION:
                session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: this session does not hold that generation; refresh again",
                               what);
                break;
        case STORE_E_LIMIT:
                session_refuse(s, GMS__STATUS__LIMIT,
                               "%s: a layout may have %u allocations, %u keys and %u MiB of metadata; use more stores", what,
                               LAYOUT_ALLOCATIONS_MAX, LAYOUT_METADATA_MAX, LAYOUT_METADATA_BYTES_MAX >> 20);
                break;
        default:
                log_error("%s: %s: %s", session_name(s), what, strerror(-r));
                session_refuse(s, GMS__STATUS__INTERNAL, "%s: the daemon has no memory for this; try again", what);
        }
}

/* Applies a change that answers Done. */
static void change_and_answer(struct session *s, struct change *change, const char *what) {
        int r = server_change(s->server, s->store, change);
        if (r == 0)
                session_done(s);
        else
                refuse_change(s, r, what, change->failed);
}

/* ---- hello */

static const char *text_fault(const Gms__Hello *h) {
        if (!wire_text_ok(h->label, WIRE_LABEL_MAX))
                return "the label is over 64 bytes or has control characters";
        if (!wire_text_ok(h->identity, WIRE_IDENTITY_MAX))
                return "the identity is over 512 bytes or has control characters";
        return NULL;
}

/* Finds or makes the store that is asked for. True, or refused. */
static bool hello_store(struct session *s) {
        const char *name = s->wanted;
        int r = server_find_store(s->server, name, true, &s->store, &s->device);
        if (r == STORE_NAME_INVALID)
                session_refuse_and_close(s, GMS__STATUS__INVALID,
                                         "store \"%s\": not DEVICE/NAME with a name of printable characters, 192 bytes in all",
                                         wire_text_ok(name, WIRE_STORE_MAX) ? name : "?");
        else if (r == STORE_NAME_NO_DEVICE)
                session_refuse_and_close(s, GMS__STATUS__NO_DEVICE,
                                         "store %s: this daemon serves no such device; see gmsctl status", name);
        else if (r == STORE_NAME_LIMIT)
                session_refuse_and_close(s, GMS__STATUS__LIMIT, "store %s: the daemon has as many stores as it may have",
                                         name);
        else if (r != 0)
                session_refuse_and_close(s, GMS__STATUS__INTERNAL, "the daemon has no memory for this; try again");
        else if (!*allocator_info(s->device->allocator)->uuid)
                session_refuse_and_close(s, GMS__STATUS__FAULTED, "store %s: the device is %s: %s", name,
                                         allocator_state(s->device->allocator), allocator_text(s->device->allocator));
        else
                return true;
        s->store = NULL;
        return false;
}

static void hello_ask(struct session *s) {
        static const enum lock_want wants[] = {
                [GMS__MODE__RO] = LOCK_WANT_RO,
                [GMS__MODE__UPDATE] = LOCK_WANT_UPDATE,
                [GMS__MODE__RW] = LOCK_WANT_RW,
                [GMS__MODE__RW_OR_RO] = LOCK_WANT_RW_OR_RO,
                [GMS__MODE__ADOPT] = LOCK_WANT_ADOPT,
        };
        struct change ask = {
                .type = CHANGE_ASK,
                .ask = { .want = wants[s->asked], .process = s->peer.key, .id = s->id, .owner = s },
        };
        int r = server_change(s->server, s->store, &ask);
        if (r != 0) {
                refuse_change(s, r, "hello", 0);
                session_end(s);
                return;
        }
        if (s->state != SESSION_STRANGER)
                return; /* granted, and answered; or refused for its identity */
        s->claim = ask.ask.claim;
        if (s->wait == 0)
                dispatch_timed_out(s);
        else
                session_wait(s, s->wait);
}

/* Whoever seals, or adopts what is sealed, will have a successor that must know when it has exited. */
#define NOT_WATCHED "gmsd cannot see the process that connected (it has exited, or is in another PID namespace on a kernel " \
                    "before 6.9), and could not tell a successor when its work has stopped; connect from the process that works"

/* Hello, second half: the manager has the session's socket, so that the lock it may get outlives the daemon. */
void dispatch_hello_kept(struct session *s) {
        if (!hello_store(s))
                return;
        if (server_watch_process(s->server, s->channel.fd, s->peer.key, s->peer.pid) != 0)
                s->peer.key = 0; /* it has exited, and left its socket to somebody: nobody would lift its fence */
        if (s->asked == GMS__MODE__ADOPT && s->peer.key == 0)
                session_refuse_and_close(s, GMS__STATUS__NOT_PERMITTED, "adopt: " NOT_WATCHED);
        else
                hello_ask(s);
}

static void on_hello(struct session *s, const Gms__Frame *f) {
        const Gms__Hello *h = f->hello;
        if (h->protocol_min > WIRE_PROTOCOL_MAX || h->protocol_max < WIRE_PROTOCOL_MIN) {
                session_refuse_and_close(s, GMS__STATUS__VERSION,
                                         "the client speaks protocol versions %u to %u and gmsd %s speaks %u to %u; upgrade the "
                                         "older one",
                                         h->protocol_min, h->protocol_max, GMS_VERSION, WIRE_PROTOCOL_MIN, WIRE_PROTOCOL_MAX);
                return;
        }
        const char *fault = text_fault(h);
        if (!fault && (h->mode < GMS__MODE__NONE || h->mode > GMS__MODE__ADOPT))
                fault = "there is no such mode; RO, UPDATE, RW, RW_OR_RO and ADOPT are, and NONE to look only";
        if (!fault && (h->mode == GMS__MODE__NONE) != (*h->store == 0))
                fault = "a store goes with a mode, and mode NONE goes without a store";
        if (fault) {
                session_refuse_and_close(s, GMS__STATUS__INVALID, "hello: %s", fault);
                return;
        }
        if (server_descriptors_left(s->server, h->mode != GMS__MODE__NONE) < 2) {
                session_refuse_and_close(s, GMS__STATUS__LIMIT,
                                         "the daemon has %" PRIu64 " descriptors and all are in use; raise its LimitNOFILE",
                                         s->server->descriptor_limit);
                return;
        }
        s->asked = h->mode;
        s->hello_serial = f->serial;
        s->wait = !h->deadline || h->deadline->ms > DEADLINE_MAX_MS ? UINT64_MAX : h->deadline->ms;
        s->deadline = s->wait == UINT64_MAX ? 0 : now_ms() + s->wait;
        s->label = strdup(h->label);
        s->wanted = strdup(h->store);
        s->identity = *h->identity ? strdup(h->identity) : NULL;
        if (!s->label || !s->wanted || (*h->identity && !s->identity)) {
                session_refuse_and_close(s, GMS__STATUS__INTERNAL, "the daemon has no memory for this; try again");
                return;
        }
        server_session_known(s->server, s);
        if (h->mode == GMS__MODE__NONE) {
                dispatch_granted(s);
                return;
        }
        s->kept_by_manager = durable_records(&s->server->durable);
        if (durable_keep_session(&s->server->durable, s) < 0)
                session_refuse_and_close(s, GMS__STATUS__LIMIT, "the daemon has no descriptors left; raise its LimitNOFILE");
        else
                session_park(s);
}

void dispatch_granted(struct session *s) {
        struct layout *view = s->claim ? s->claim->view : NULL;
        const char *published = view && view->identity ? view->identity : "";
        if (s->identity && view && mode_of(s->claim) == GMS__MODE__RO && strcmp(published, s->identity) != 0) {
                session_refuse_and_close(s, GMS__STATUS__IDENTITY,
                                         "%s: asked for identity \"%s\", and generation %" PRIu64 " has \"%s\"; demand that one, "
                                         "or publish the other",
                                         s->store->name, s->identity, view->generation, published);
                return;
        }

        Gms__Welcome body = GMS__WELCOME__INIT;
        Gms__Layout layout;
        Gms__Device device;
        body.protocol = WIRE_PROTOCOL_MAX;
        body.session = s->id;
        body.mode = mode_of(s->claim);
        body.daemon_version = (char *)GMS_VERSION;
        if (s->store) {
                fill_device(&device, s->device->allocator);
                dispatch_fill_layout(&layout, s->store, view);
                body.device = &device;
                body.layout = &layout;
        }
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WELCOME;
        f.welcome = &body;
        s->welcomed = true;
        session_opened(s);
        session_reply(s, &f, NULL);
}

void dispatch_timed_out(struct session *s) {
        bool at_once = s->state == SESSION_STRANGER;
        const struct store *store = s->store;
        const char *why = s->asked == GMS__MODE__RO && !store->published ? ", and nothing is published"
                          : s->asked == GMS__MODE__ADOPT && store->sealed && store->fence
                                  ? ", and the process that sealed it has not exited"
                                  : "";
        session_refuse_and_close(s, at_once ? GMS__STATUS__WOULD_WAIT : GMS__STATUS__TIMED_OUT,
                                 "asked for %s %s: %s%s; ask again, or wait longer", mode_name(s->asked),
                                 at_once ? "at once" : "and the deadline has passed",
                                 describe_lock(store, store->lock.waiting - 1), why);
}

/* ---- allocations */

static int fill_run(struct session *s, struct job_run *run, const Gms__Allocate__Item *item, size_t i) {
        const struct device_info *d = allocator_info(s->device->allocator);
        run->size = item->size;
        run->count = item->count ? item->count : 1;
        if (item->size == 0 || !align_up(item->size, d->granularity, &run->aligned)) {
                session_refuse(s, GMS__STATUS__INVALID,
                               "allocate: item %zu asks for %" PRIu64 " bytes; a size is above 0 and fits the device", i,
                               item->size);
                return -1;
        }
        if (!wire_text_ok(item->tag, WIRE_TAG_MAX)) {
                session_refuse(s, GMS__STATUS__INVALID,
                               "allocate: the tag of item %zu is over %u bytes or has control characters", i, WIRE_TAG_MAX);
                return -1;
        }
        if (*item->tag && !(run->tag = strdup(item->tag))) {
                session_refuse(s, GMS__STATUS__INTERNAL, "allocate: the daemon has no memory for this; try again");
                return -1;
        }
        return 0;
}

/* Turns the request into a job. NULL when refused. */
static struct job *make_job(struct session *s, const Gms__Allocate *request) {
        const struct device_info *d = allocator_info(s->device->allocator);
        struct job *job = NULL;
        uint64_t n = 0;

        if (request->n_items == 0) {
                session_refuse(s, GMS__STATUS__INVALID, "allocate: the request has no items");
                return NULL;
        }
        if (job_new(&job, request->n_items) < 0)
                goto no_memory;
        for (size_t i = 0; i < request->n_items; i++) {
                struct job_run *run = &job->runs[i];
                uint64_t bytes;
                if (fill_run(s, run, request->items[i], i) < 0)
                        return job_free(job);
                n += run->count;
                if (__builtin_mul_overflow(run->aligned, run->count, &bytes) ||
                    __builtin_add_overflow(job->bytes, bytes, &job->bytes) || job->bytes > d->total) {
                        session_refuse(s, GMS__STATUS__TOO_LARGE,
                                       "allocate: asked for more than the %" PRIu64 " bytes that %s has in all; ask for less",
                                       d->total, d->name);
                        return job_free(job);
                }
        }
        if (n > WIRE_BATCH_MAX) {
                session_refuse(s, GMS__STATUS__TOO_LARGE, "allocate: asked for %" PRIu64 " allocations at once, and %u may be",
                               n, WIRE_BATCH_MAX);
                return job_free(job);
        }
        if (n > server_descriptors_left(s->server, true)) {
                session_refuse(s, GMS__STATUS__LIMIT,
                               "allocate: needs %" PRIu64 " descriptors, and the daemon has %" PRIu64 " of %" PRIu64
                               " left; make fewer and larger allocations, or raise its LimitNOFILE",
                               n, server_descriptors_left(s->server, true), s->server->descriptor_limit);
                return job_free(job);
        }
        if (job_prepare(job) < 0)
                goto no_memory;
        return job;

no_memory:
        session_refuse(s, GMS__STATUS__INTERNAL, "allocate: the daemon has no memory for this; try again");
        return job_free(job);
}

static void on_allocate(struct session *s, const Gms__Frame *f) {
        if (s->claim->view->sealed) {
                refuse_change(s, STORE_E_SEALED, "allocate", 0);
                return;
        }
        struct job *job = make_job(s, f->allocate);
        if (!job)
                return;
        uint64_t wait = f->allocate->deadline ? MIN(f->allocate->deadline->ms, DEADLINE_MAX_MS) : ALLOCATE_DEADLINE_MS;
        job->owner = s;
        job->deadline = now_ms() + wait;
        s->job = job;
        allocator_submit(s->device->allocator, job, now_ms());
        device_update(s->device);
}

static int apply_job(struct session *s, struct job *job, struct change *ret_change) {
        _cleanup_free_ struct change_allocation *items = calloc(job->n, sizeof(*items));
        if (!items)
                return -ENOMEM;
        size_t k = 0;
        for (size_t i = 0; i < job->n_runs; i++)
                for (uint32_t c = 0; c < job->runs[i].count; c++, k++)
                        items[k] = (struct change_allocation){
                                .size = job->runs[i].size,
                                .aligned = job->runs[i].aligned,
                                .tag = job->runs[i].tag,
                                .fd = job->fds[k],
                        };
        *ret_change = (struct change){
                .type = CHANGE_ALLOCATE,
                .claim = s->claim,
                .allocate = { .first_id = job->first_id, .items = items, .n = job->n },
        };
        int r = server_change(s->server, s->store, ret_change);
        ret_change->allocate.items = NULL;
        if (r != 0)
                return r;
        for (uint32_t i = 0; i < job->n; i++)
                job->fds[i] = -1; /* the store's now */
        return 0;
}

void dispatch_retire_job_consume(struct session *s, struct job *job) {
        struct retired_item *items = calloc(job->n, sizeof(*items));
        uint32_t k = 0;
        for (size_t i = 0; i < job->n_runs; i++) {
                for (uint32_t c = 0; c < job->runs[i].count; c++, k++) {
                        struct retired_item one = {
                                .id = job->first_id + k, .fd = steal_fd(&job->fds[k]), .bytes = job->runs[i].aligned,
                        };
                        if (items)
                                items[k] = one;
                        else
                                server_retire_consume(s->server, s->device, &one, 1);
                }
        }
        if (items)
                server_retire_consume(s->server, s->device, items, job->n);
        free(items);
        job_free(job);
}

/* The memory is there, or is not: has the manager keep it before anything else. */
void dispatch_allocated_job(struct session *s, struct job *job) {
        if (job->status != GMS__STATUS__OK) {
                s->job = NULL;
                session_refuse(s, job->status, "allocate: %s", job->text);
                job_free(job);
                return;
        }
        int r = 0;
        job->first_id = s->server->last_allocation + 1;
        s->server->last_allocation += job->n;
        for (uint32_t i = 0; r == 0 && i < job->n; i++)
                r = durable_keep_allocation(&s->server->durable, job->first_id + i, job->fds[i]);
        if (r < 0) {
                s->job = NULL;
                dispatch_retire_job_consume(s, job);
                session_refuse(s, GMS__STATUS__LIMIT, "allocate: the daemon has no descriptors left; raise its LimitNOFILE");
                return;
        }
        session_park(s);
}

/* Answers with allocations from `first_id` on: one aligned size an item, and the first descriptors. */
static void reply_allocated(struct session *s, uint64_t first_id, uint64_t first_slot, uint64_t *aligned, size_t n_items,
                            uint32_t count) {
        Gms__Allocated body = GMS__ALLOCATED__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        const struct layout *l = s->claim->view;
        const struct allocation *first = l ? layout_find_id(l, first_id) : NULL;
        unsigned n = MIN(count, FDSET_MAX);
        if (!first || (size_t)(first - l->allocations) + count > l->n_allocations || fdset_new(&fds, n, false) < 0) {
                session_end(s); /* it has memory it cannot be told of */
                return;
        }
        for (unsigned i = 0; i < n; i++)
                fdset_add(fds, first[i].fd);
        body.first_id = first_id;
        body.first_slot = first_slot;
        body.n_aligned_sizes = n_items;
        body.aligned_sizes = aligned;
        body.count = count;
        f.body_case = GMS__FRAME__BODY_ALLOCATED;
        f.allocated = &body;
        session_reply(s, &f, steal_ptr(&fds));
}

void dispatch_allocated_consume(struct session *s, struct job *job) {
        struct change change;
        int r = apply_job(s, job, &change);
        if (r != 0) {
                dispatch_retire_job_consume(s, job);
                refuse_change(s, r, "allocate", 0);
                return;
        }
        _cleanup_free_ uint64_t *aligned = calloc(job->n_runs, sizeof(*aligned));
        for (size_t i = 0; aligned && i < job->n_runs; i++)
                aligned[i] = job->runs[i].aligned;
        if (aligned)
                reply_allocated(s, job->first_id, change.allocate.first_slot, aligned, job->n_runs, job->n);
        else
                session_end(s);
        job_free(job);
}

static void on_free(struct session *s, const Gms__Frame *f) {
        struct change c = {
                .type = CHANGE_FREE, .claim = s->claim, .free = { .ids = f->free->ids, .n = f->free->n_ids },
        };
        change_and_answer(s, &c, "free");
}

/* The layout that a request means: by generation the session's own, or with a store's name what that store rests on. */
static struct layout *find_layout(struct session *s, const char *store_name, uint64_t generation, const char *what) {
        if (*store_name) {
                struct store *store;
                struct layout *l = NULL;
                if (server_find_store(s->server, store_name, false, &store, NULL) != 0)
                        session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: there is no store %s; gmsctl list shows them", what,
                                       wire_text_ok(store_name, WIRE_STORE_MAX) ? store_name : "?");
                else if (!(l = store_resting(store)))
                        session_refuse(s, GMS__STATUS__NOT_FOUND, "%s: %s, and has no layout to look at", what,
                                       describe_store(store));
                return l;
        }
        struct claim *c = s->claim;
        if (!c) {
                session_refuse(s, GMS__STATUS__NOT_PERMITTED,
                               "%s: this session holds no layout; name a store, or connect with a mode", what);
                return NULL;
        }
        if (!c->lock.held) {
                refuse_change(s, STORE_E_GONE, what, 0);
                return NULL;
        }
        if (generation == 0 || c->view->generation == generation)
                return c->view;
        if (c->next && c->next->generation == generation)
                return c->next;
        refuse_change(s, STORE_E_NO_GENERATION, what, 0);
        return NULL;
}

/* No id is given twice, and the allocations of a settled layout stay. */
static uint64_t tell_apart(const struct layout *l) {
        return l->n_allocations > 0 ? l->allocations[0].id : 0;
}

static void on_page(struct session *s, const Gms__Frame *f) {
        const Gms__Page *p = f->page;
        if (p->descriptors && *p->store) {
                session_refuse(s, GMS__STATUS__NOT_PERMITTED, "page: descriptors go to sessions that hold the lock; connect");
                return;
        }
        struct layout *l = find_layout(s, p->store, p->generation, "page");
        if (!l)
                return;

        Gms__Allocation entries[FDSET_MAX], *pointers[FDSET_MAX];
        _cleanup_(fdset_freep) struct fdset *fds = NULL;
        size_t n = 0;
        if (p->first < l->n_allocations)
                n = MIN(MIN((size_t)p->count, FDSET_MAX), l->n_allocations - p->first);
        if (p->descriptors && fdset_new(&fds, (unsigned)n, false) < 0) {
                session_refuse(s, GMS__STATUS__INTERNAL, "page: the daemon has no memory for this; try again");
                return;
        }
        for (size_t i = 0; i < n; i++) {
                const struct allocation *a = &l->allocations[p->first + i];
                gms__allocation__init(&entries[i]);
                entries[i].id = a->id;
                entries[i].slot = a->slot;
                entries[i].size = a->size;
                entries[i].aligned_size = a->aligned;
                if (a->tag)
                        entries[i].tag = a->tag;
                pointers[i] = &entries[i];
                if (fds)
                        fdset_add(fds, a->fd);
        }
        static_assert(FDSET_MAX * (WIRE_TAG_MAX + 4 * 11 + 8) < WIRE_PAYLOAD_MAX, "a page of allocations fits a frame");

        Gms__Allocations body = GMS__ALLOCATIONS__INIT;
        body.n_allocations = n;
        body.allocations = pointers;
        body.total = l->n_allocations;
        body.generation = l->generation;
        body.layout = tell_apart(l);
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_ALLOCATIONS;
        out.allocations = &body;
        session_reply(s, &out, steal_ptr(&fds));
}

/* ---- metadata */

static void entries_free(struct metadata **entries, size_t n) {
        for (size_t i = 0; entries && i < n; i++)
                free(entries[i]);
        free(entries);
}

static void on_meta_put(struct session *s, const Gms__Frame *f) {
        const Gms__MetaPut *put = f->meta_put;
        for (size_t i = 0; i < put->n_entries; i++) {
                const Gms__MetaEntry *e = put->entries[i];
                if (*e->key && wire_text_ok(e->key, WIRE_KEY_MAX) && e->value.len <= WIRE_VALUE_MAX)
                        continue;
                session_refuse(s, GMS__STATUS__INVALID,
                               "put: item %zu: a key has 1 to %u bytes and no control characters, a value at most %u bytes", i,
                               WIRE_KEY_MAX, WIRE_VALUE_MAX);
                return;
        }
        struct metadata **entries = calloc(put->n_entries + 1, sizeof(*entries));
        int r = entries ? 0 : -ENOMEM;
        for (size_t i = 0; r == 0 && i < put->n_entries; i++) {
                const Gms__MetaEntry *e = put->entries[i];
                r = metadata_new(&entries[i], e->key, e->slot, e->offset, e->value.data, e->value.len);
        }
        if (r == 0) {
                struct change c = {
                        .type = CHANGE_PUT, .claim = s->claim, .put = { .entries = entries, .n = put->n_entries },
                };
                change_and_answer(s, &c, "put");
        } else {
                refuse_change(s, r, "put", 0);
        }
        entries_free(entries, put->n_entries);
}

/* What an entry adds to a frame: its strings, three numbers, and the framing of each. */
static size_t entry_weight(const struct metadata *m) {
        return m->key_size + m->value_size + 48;
}

/* Collects entries for one answer, as many as fit. */
struct meta_page {
        Gms__MetaEntry *entries;
        Gms__MetaEntry **pointers;
        size_t n, room, bytes;
};

static bool meta_page_add(struct meta_page *p, const struct metadata *m) {
        if (p->n == p->room || p->bytes + entry_weight(m) > WIRE_PAYLOAD_MAX)
                return false;
        Gms__MetaEntry *e = &p->entries[p->n];
        gms__meta_entry__init(e);
        e->key = (char *)m->key;
        e->slot = m->slot;
        e->offset = m->offset;
        e->value = (ProtobufCBinaryData){ .len = m->value_size, .data = (uint8_t *)metadata_value(m) };
        p->pointers[p->n++] = e;
        p->bytes += entry_weight(m);
        return true;
}

static bool meta_page_init(struct meta_page *p, struct session *s, size_t room) {
        *p = (struct meta_page){ .room = MIN(room, (size_t)WIRE_PAYLOAD_MAX / 48) };
        p->entries = calloc(p->room + 1, sizeof(*p->entries));
        p->pointers = calloc(p->room + 1, sizeof(struct Gms__MetaEntry *));
        if (p->entries && p->pointers)
                return true;
        session_refuse(s, GMS__STATUS__INTERNAL, "metadata: the daemon has no memory for this; try again");
        return false;
}

static void meta_page_done(struct meta_page *p) {
        free(p->entries);
        free(p->pointers);
}

/* Says whose metadata it is, too. `fds` goes with it; NULL: none. */
static void reply_metadata(struct session *s, const struct layout *l, Gms__Metadata *body, bool more, struct fdset *fds) {
        body->more = more;
        body->generation = l->generation;
        body->layout = tell_apart(l);
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_METADATA;
        f.metadata = body;
        session_reply(s, &f, fds);
}

static void meta_page_reply(struct meta_page *p, struct session *s, const struct layout *l, bool more) {
        Gms__Metadata body = GMS__METADATA__INIT;
        body.n_entries = p->n;
        body.entries = p->pointers;
        reply_metadata(s, l, &body, more, NULL);
}

static void on_meta_get(struct session *s, const Gms__Frame *f) {
        const Gms__MetaGet *get = f->meta_get;
        struct layout *l = find_layout(s, "", get->generation, "get");
        if (!l)
                return;
        _cleanup_(meta_page_done) struct meta_page page = {};
        if (!meta_page_init(&page, s, get->n_keys))
                return;
        for (size_t i = 0; i < get->n_keys; i++) {
                bool found;
                size_t at = layout_find_key(l, get->keys[i], &found);
                if (!found) {
                        session_refuse(s, GMS__STATUS__NOT_FOUND, "get: there is no key \"%.256s\"; list them",
                                       wire_text_ok(get->keys[i], WIRE_KEY_MAX) ? get->keys[i] : "?");
                        return;
                }
                if (!meta_page_add(&page, l->metadata[at]))
                        break;
        }
        meta_page_reply(&page, s, l, page.n < get->n_keys);
}

/* Makes the listing of a settled layout: its first entries, as many as a listing takes. Without it they go in frames. */
static void make_listing(struct server *server, struct layout *l) {
        size_t size = 0, n = 0;
        for (; n < l->n_metadata; n++) {
                size_t more = listing_size(l->metadata[n]->key_size, l->metadata[n]->value_size);
                if (size + more > LISTING_MAX)
                        break;
                size += more;
        }
        _cleanup_free_ uint8_t *bytes = malloc(size ? size : 1);
        if (!bytes || server_descriptors_left(server, false) < 1)
                return;
        for (size_t i = 0, at = 0; i < n; i++) {
                const struct metadata *m = l->metadata[i];
                struct listing_entry e = {
                        .slot = m->slot,
                        .offset = m->offset,
                        .key_size = m->key_size,
                        .value_size = (uint32_t)m->value_size,
                        .key = m->key,
                        .value = metadata_value(m),
                };
                at += listing_pack(bytes + at, &e);
        }
        if (listing_seal(bytes, size, &l->listing.fd) < 0)
                return;
        l->listing.n = n;
        l->listing.size = size;
        server->n_listings++;
}

/* Answers with the listing; `more` when entries behind it are wanted too. False: it could not be made. */
static bool reply_listing(struct session *s, struct layout *l, bool more) {
        struct fdset *fds;
        if (fdset_new(&fds, 1, false) < 0)
                return false;
        fdset_add(fds, l->listing.fd);
        Gms__Metadata body = GMS__METADATA__INIT;
        body.listing = l->listing.size;
        reply_metadata(s, l, &body, more, fds);
        return true;
}

static bool has_prefix(const struct metadata *m, const char *prefix) {
        return strncmp(m->key, prefix, strlen(prefix)) == 0;
}

static void on_meta_list(struct session *s, const Gms__Frame *f) {
        const Gms__MetaList *list = f->meta_list;
        struct layout *l = find_layout(s, list->store, list->generation, "list");
        if (!l)
                return;
        _cleanup_(meta_page_done) struct meta_page page = {};
        if (!meta_page_init(&page, s, l->n_metadata))
                return;
        bool found, more = false;
        bool resume = strcmp(list->after, list->prefix) >= 0 && *list->after;
        size_t i = layout_find_key(l, resume ? list->after : list->prefix, &found);
        size_t first = i += resume && found;
        for (; i < l->n_metadata && has_prefix(l->metadata[i], list->prefix) && !more; i++)
                more = !meta_page_add(&page, l->metadata[i]);

        if (more && list->listing && layout_settled(l)) {
                if (l->listing.fd < 0)
                        make_listing(s->server, l);
                bool behind = l->listing.n < l->n_metadata && has_prefix(l->metadata[l->listing.n], list->prefix);
                if (l->listing.fd >= 0 && first < l->listing.n && reply_listing(s, l, behind))
                        return;
        }
        meta_page_reply(&page, s, l, more);
}

static void on_meta_delete(struct session *s, const Gms__Frame *f) {
        struct change c = {
                .type = CHANGE_DELETE,
                .claim = s->claim,
                .delete = { .keys = f->meta_delete->keys, .n = f->meta_delete->n_keys },
        };
        change_and_answer(s, &c, "delete");
}

/* ---- publishing */

static void on_seal(struct session *s, const Gms__Frame *f) {
        (void)f;
        if (s->peer.key == 0) {
                session_refuse(s, GMS__STATUS__NOT_PERMITTED, "seal: " NOT_WATCHED);
                return;
        }
        struct change c = { .type = CHANGE_SEAL, .claim = s->claim };
        change_and_answer(s, &c, "seal");
}

static void on_discard(struct session *s, const Gms__Frame *f) {
        (void)f;
        struct change c = { .type = CHANGE_DISCARD, .claim = s->claim };
        change_and_answer(s, &c, "discard");
}

static void reply_layout(struct session *s, struct layout *l) {
        Gms__Layout body;
        dispatch_fill_layout(&body, s->store, l);
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_LAYOUT;
        f.layout = &body;
        session_reply(s, &f, NULL);
}

static void on_commit(struct session *s, const Gms__Frame *f) {
        const Gms__Commit *commit = f->commit;
        if (!wire_text_ok(commit->identity, WIRE_IDENTITY_MAX)) {
                session_refuse(s, GMS__STATUS__INVALID, "commit: the identity is over %u bytes or has control characters",
                               WIRE_IDENTITY_MAX);
                return;
        }
        struct change c = {
                .type = CHANGE_COMMIT,
                .claim = s->claim,
                .commit = { .identity = commit->identity, .leave = commit->leave },
        };
        int r = server_change(s->server, s->store, &c);
        if (r != 0) {
                refuse_change(s, r, "commit", 0);
                return;
        }
        struct layout *l = s->store->published;
        log_info("%s: generation %" PRIu64 " published by %s: %zu allocations, %" PRIu64 " bytes", s->store->name,
                 l->generation, session_name(s), l->n_allocations, l->bytes);
        reply_layout(s, l);
}

static void on_refresh(struct session *s, const Gms__Frame *f) {
        const Gms__Refresh *refresh = f->refresh;
        struct layout *l = s->store->published;
        const char *identity = l && l->identity ? l->identity : "";
        if (l && *refresh->identity && strcmp(identity, refresh->identity) != 0) {
                session_refuse(s, GMS__STATUS__IDENTITY,
                               "refresh: asked for identity \"%.512s\", and generation %" PRIu64 " has \"%s\"; demand that one",
                               wire_text_ok(refresh->identity, WIRE_IDENTITY_MAX) ? refresh->identity : "?", l->generation,
                               identity);
                return;
        }
        if (l && refresh->hash.len > 0 &&
            (refresh->hash.len != LAYOUT_HASH_SIZE || memcmp(refresh->hash.data, layout_hash(l), LAYOUT_HASH_SIZE) != 0)) {
                session_refuse(s, GMS__STATUS__STALE,
                               "refresh: generation %" PRIu64 " has another structure; unmap, free the addresses and attach anew",
                               l->generation);
                return;
        }
        struct change c = { .type = CHANGE_REFRESH, .claim = s->claim };
        int r = server_change(s->server, s->store, &c);
        if (r != 0)
                refuse_change(s, r, "refresh", 0);
        else
                reply_layout(s, s->store->published);
}

static void on_settle(struct session *s, const Gms__Frame *f) {
        struct change c = {
                .type = CHANGE_SETTLE, .claim = s->claim, .settle = { .generation = f->settle->generation },
        };
        change_and_answer(s, &c, "settle");
}

/* ---- looking */

static void on_state(struct session *s, const Gms__Frame *f) {
        (void)f;
        Gms__SessionState body = GMS__SESSION_STATE__INIT;
        Gms__Layout layout, published;
        body.session = s->id;
        body.mode = mode_of(s->claim);
        if (s->store) {
                body.store_state = (char *)store_state(s->store);
                body.waiters = s->store->lock.waiting;
                dispatch_fill_layout(&layout, s->store, s->claim->view);
                body.layout = &layout;
        }
        if (s->store && s->store->published) {
                dispatch_fill_layout(&published, s->store, s->store->published);
                body.published = &published;
        }
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_SESSION_STATE;
        out.session_state = &body;
        session_reply(s, &out, NULL);
}

static void on_about(struct session *s, const Gms__Frame *f) {
        (void)f;
        const struct server *server = s->server;
        Gms__Daemon body = GMS__DAEMON__INIT;
        body.version = (char *)GMS_VERSION;
        body.pid = (uint64_t)getpid();
        body.uptime_ms = now_ms() - server->started;
        body.sessions = server->n_sessions;
        body.durable = durable_records(&server->durable) && fdstore_durable(server->durable.manager);
        body.restarts = server->durable.restarts;
        body.away_ms = server->durable.away;
        body.orphans = server->durable.orphans;
        body.unaccounted = server->durable.unaccounted;
        for (size_t i = 0; i < server->n_stores; i++) {
                struct store_totals t = store_totals(server->stores[i]);
                body.bytes += t.bytes;
                body.draining_bytes += t.draining;
                body.allocations += t.allocations;
        }
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_DAEMON;
        out.daemon = &body;
        session_reply(s, &out, NULL);
}

static void on_list_devices(struct session *s, const Gms__Frame *f) {
        (void)f;
        Gms__Device devices[LIST_PAGE], *pointers[LIST_PAGE];
        size_t n = MIN(s->server->n_devices, (size_t)LIST_PAGE);
        for (size_t i = 0; i < n; i++) {
                fill_device(&devices[i], s->server->devices[i].allocator);
                pointers[i] = &devices[i];
        }
        Gms__Devices body = GMS__DEVICES__INIT;
        body.n_devices = n;
        body.devices = pointers;
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_DEVICES;
        out.devices = &body;
        session_reply(s, &out, NULL);
}

static void fill_store(Gms__Store *to, Gms__Layout *layout, const struct store *store) {
        struct store_totals t = store_totals(store);
        gms__store__init(to);
        to->name = store->name;
        to->state = (char *)store_state(store);
        to->readers = store->lock.held[LOCK_MODE_RO];
        to->writers = writers(store);
        to->waiters = store->lock.waiting;
        to->bytes = t.bytes;
        to->building_bytes = t.building;
        to->draining_bytes = t.draining;
        to->draining_layouts = t.draining_layouts;
        dispatch_fill_layout(layout, store, store_resting(store));
        to->layout = layout;
}

static void on_list_stores(struct session *s, const Gms__Frame *f) {
        const struct server *server = s->server;
        Gms__Store stores[LIST_PAGE], *pointers[LIST_PAGE];
        Gms__Layout layouts[LIST_PAGE];
        size_t n = 0, i = server_store_after(server, f->list_stores->after);
        if (*f->list_stores->store) {
                struct store *one;
                if (server_find_store(s->server, f->list_stores->store, false, &one, NULL) != 0) {
                        session_refuse(s, GMS__STATUS__NOT_FOUND, "there is no store %s; gmsctl list shows them",
                                       wire_text_ok(f->list_stores->store, WIRE_STORE_MAX) ? f->list_stores->store : "?");
                        return;
                }
                fill_store(&stores[n], &layouts[n], one);
                pointers[n] = &stores[n];
                n++;
                i = server->n_stores;
        }
        for (; i < server->n_stores && n < LIST_PAGE; i++, n++) {
                fill_store(&stores[n], &layouts[n], server->stores[i]);
                pointers[n] = &stores[n];
        }
        static_assert(LIST_PAGE * (WIRE_STORE_MAX + WIRE_IDENTITY_MAX + 200) < WIRE_PAYLOAD_MAX, "a page of stores fits");
        Gms__Stores body = GMS__STORES__INIT;
        body.n_stores = n;
        body.stores = pointers;
        body.more = i < server->n_stores;
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_STORES;
        out.stores = &body;
        session_reply(s, &out, NULL);
}

static void fill_session(Gms__Session *to, const struct session *from) {
        gms__session__init(to);
        to->id = from->id;
        to->label = from->label;
        to->pid = (uint64_t)from->peer.pid;
        to->uid = from->peer.uid;
        to->waiting = from->state == SESSION_WAITING;
        to->mode = to->waiting ? from->asked : mode_of(from->claim);
        to->age_ms = now_ms() - from->since;
        if (from->store)
                to->store = from->store->name;
        if (from->claim)
                to->bytes = claim_bytes(from->claim);
        if (from->claim && from->claim->view)
                to->generation = from->claim->view->generation;
}

static void on_list_sessions(struct session *s, const Gms__Frame *f) {
        Gms__Session sessions[LIST_PAGE], *pointers[LIST_PAGE];
        size_t n = 0;
        bool more = false;
        list_for(one, &s->server->sessions, struct session, link) {
                if (one->id <= f->list_sessions->after)
                        continue;
                if (n == LIST_PAGE) {
                        more = true;
                        break;
                }
                fill_session(&sessions[n], one);
                pointers[n] = &sessions[n];
                n++;
        }
        Gms__Sessions body = GMS__SESSIONS__INIT;
        body.n_sessions = n;
        body.sessions = pointers;
        body.more = more;
        Gms__Frame out = GMS__FRAME__INIT;
        out.body_case = GMS__FRAME__BODY_SESSIONS;
        out.sessions = &body;
        session_reply(s, &out, NULL);
}

/* ---- administration */

static void on_clear(struct session *s, const Gms__Frame *f) {
        const Gms__Clear *clear = f->clear;
        struct store *store;
        if (clear->force && s->peer.uid != 0 && s->peer.uid != geteuid()) {
                session_refuse(s, GMS__STATUS__NOT_PERMITTED,
                               "clear: force takes locks away, so it is for root and the daemon's own user; you are uid %u",
                               s->peer.uid);
                return;
        }
        if (server_find_store(s->server, clear->store, false, &store, NULL) != 0) {
                session_refuse(s, GMS__STATUS__NOT_FOUND, "clear: there is no store %s; gmsctl list shows them",
                               wire_text_ok(clear->store, WIRE_STORE_MAX) ? clear->store : "?");
                return;
        }
        struct change c = { .type = CHANGE_CLEAR, .clear = { .force = clear->force, .by = s->claim } };
        int r = server_change(s->server, store, &c);
        if (r == STORE_E_HELD) {
                session_refuse(s, GMS__STATUS__CONFLICT, "clear: refused, %s; wait for them to leave, or use force",
                               describe_store(store));
                return;
        }
        if (r != 0) {
                refuse_change(s, r, "clear", 0);
                return;
        }
        log_notice("%s: cleared%s by %s, uid %u", store->name, clear->force ? " by force" : "", session_name(s), s->peer.uid);
        session_done(s);
}

/* ---- the table */

enum needs {
        NEEDS_NOTHING, /* a session that only looks may do it */
        NEEDS_CLAIM,
        NEEDS_READER,
        NEEDS_WRITER,
};

struct request {
        void (*handle)(struct session *s, const Gms__Frame *f);
        const char *name;
        enum needs needs;
        bool changes; /* its answer is kept, and repeated when it is asked again */
};

static const struct request requests[] = {
        [GMS__FRAME__BODY_HELLO] = { on_hello, "hello", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_ALLOCATE] = { on_allocate, "allocate", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_FREE] = { on_free, "free", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_PAGE] = { on_page, "page", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_META_PUT] = { on_meta_put, "put", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_META_GET] = { on_meta_get, "get", NEEDS_CLAIM, false },
        [GMS__FRAME__BODY_META_LIST] = { on_meta_list, "list", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_META_DELETE] = { on_meta_delete, "delete", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_SEAL] = { on_seal, "seal", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_DISCARD] = { on_discard, "discard", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_COMMIT] = { on_commit, "commit", NEEDS_WRITER, true },
        [GMS__FRAME__BODY_REFRESH] = { on_refresh, "refresh", NEEDS_READER, true },
        [GMS__FRAME__BODY_SETTLE] = { on_settle, "settle", NEEDS_READER, true },
        [GMS__FRAME__BODY_STATE] = { on_state, "state", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_ABOUT] = { on_about, "about", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_LIST_DEVICES] = { on_list_devices, "devices", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_LIST_STORES] = { on_list_stores, "stores", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_LIST_SESSIONS] = { on_list_sessions, "sessions", NEEDS_NOTHING, false },
        [GMS__FRAME__BODY_CLEAR] = { on_clear, "clear", NEEDS_NOTHING, true },
};

/* Whether the session may make the request. True, or refused. */
static bool allowed(struct session *s, const struct request *r) {
        if (r->needs == NEEDS_NOTHING)
                return true;
        if (!s->claim) {
                session_refuse(s, GMS__STATUS__NOT_PERMITTED, "%s: this session looks only; connect to a store with a mode",
                               r->name);
                return false;
        }
        int fault = 0;
        bool writes = s->claim->lock.held && lock_mode_writes(s->claim->lock.mode);
        if (s->claim->gone)
                fault = STORE_E_GONE;
        else if (r->needs == NEEDS_WRITER && !writes)
                fault = STORE_E_NOT_WRITER;
        else if (r->needs == NEEDS_READER && writes)
                fault = STORE_E_NOT_READER;
        if (fault)
                refuse_change(s, fault, r->name, 0);
        return !fault;
}

/* A commit's answer: by now the generation may be another's to know, when its writer had left. */
static void reply_published(struct session *s, struct layout *view) {
        struct layout *l = view ? view : s->store->published;
        Gms__Layout body;
        dispatch_fill_layout(&body, s->store, l && l->generation == s->kept_first_id ? l : NULL);
        body.generation = s->kept_first_id;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_LAYOUT;
        f.layout = &body;
        session_reply(s, &f, NULL);
}

/*
 * Answers a request again that the daemon before this one carried out: it died before its answer was sent, or before the
 * client had read it.
 */
static void answer_again(struct session *s, const Gms__Frame *f) {
        const struct claim *c = s->claim;
        uint64_t granularity = allocator_info(s->device->allocator)->granularity;
        if (f->body_case == GMS__FRAME__BODY_ALLOCATE) {
                size_t n = f->allocate->n_items;
                uint32_t count = 0;
                _cleanup_free_ uint64_t *aligned = calloc(n ? n : 1, sizeof(*aligned));
                for (size_t i = 0; aligned && i < n; i++) {
                        count += f->allocate->items[i]->count ? f->allocate->items[i]->count : 1;
                        (void)align_up(f->allocate->items[i]->size, granularity, &aligned[i]);
                }
                if (aligned)
                        reply_allocated(s, s->kept_first_id, s->kept_first_slot, aligned, n, count);
                else
                        session_end(s);
        } else if (f->body_case == GMS__FRAME__BODY_COMMIT) {
                reply_published(s, c->view);
        } else if (f->body_case == GMS__FRAME__BODY_REFRESH) {
                reply_layout(s, c->next ? c->next : c->view);
        } else {
                session_done(s);
        }
}

void dispatch(struct session *s, const Gms__Frame *f, unsigned n_fds) {
        const struct request *r = f->body_case < ARRAY_SIZE(requests) ? &requests[f->body_case] : NULL;

        s->serial = f->serial;
        if (n_fds > 0) {
                session_refuse_and_close(s, GMS__STATUS__MALFORMED, "clients send no descriptors; the connection ends");
                return;
        }
        if (!r || !r->handle || f->serial == 0) {
                session_refuse_and_close(s, GMS__STATUS__MALFORMED, "not a request of a client; the connection ends");
                return;
        }
        bool hello = r->handle == on_hello;
        if (s->state == SESSION_STRANGER && !hello) {
                session_refuse_and_close(s, GMS__STATUS__CONFLICT, "%s came before hello; the connection ends", r->name);
                return;
        }
        s->busy = true;
        if (s->resumed && hello && f->serial == s->hello_serial) {
                if (s->welcomed)
                        s->busy = false; /* it waited, and was told since */
                else
                        dispatch_granted(s); /* the daemon that granted it had no time to say so */
                return;
        }
        if (s->state != SESSION_STRANGER && hello) {
                session_refuse(s, GMS__STATUS__CONFLICT, "a second hello: this connection has its session; open another one");
                return;
        }
        if (f->serial <= s->kept_serial && r->changes) {
                if (s->resumed && f->serial == s->kept_serial && !s->kept)
                        answer_again(s, f);
                else if (f->serial < s->kept_serial || !session_repeat(s))
                        session_refuse(s, GMS__STATUS__INVALID, "%s: serial %" PRIu64 " was answered before; serials rise",
                                       r->name, f->serial);
                return;
        }
        if (!allowed(s, r))
                return;
        s->changes = r->changes;
        r->handle(s, f);
}
