// SPDX-License-Identifier: MIT
#include "store.h"

#include <string.h>

/* ---- references */

static struct layout *layout_ref(struct layout *l) {
        l->refs++;
        return l;
}

/* Drops a reference; the layout is released with the last. */
static void layout_drop(struct layout **l, struct effects *fx) {
        struct layout *gone = steal_ptr(l);
        if (!gone || --gone->refs > 0)
                return;
        list_unlink(&gone->link);
        list_append(&fx->released, &gone->link);
}

static void claim_news(struct claim *c, enum news news, struct effects *fx) {
        if (c->news == 0)
                list_append(&fx->news, &c->news_link);
        c->news |= news;
}

void effects_init(struct effects *fx) {
        list_init(&fx->released);
        list_init(&fx->news);
}

/* ---- life */

int store_new(struct store **ret_store, const char *name, void *device, uint64_t epoch) {
        struct store *s = calloc(1, sizeof(*s));
        if (!s)
                return -ENOMEM;
        s->name = strdup(name);
        if (!s->name) {
                free(s);
                return -ENOMEM;
        }
        s->device = device;
        s->epoch = epoch;
        lock_init(&s->lock);
        list_init(&s->claims);
        list_init(&s->layouts);
        *ret_store = s;
        return 0;
}

struct store *store_free(struct store *s) {
        if (!s)
                return NULL;
        assert(store_idle(s));
        free(s->name);
        free(s);
        return NULL;
}

bool store_idle(const struct store *s) {
        return list_empty(&s->claims) && list_empty(&s->layouts);
}

static struct lock_facts store_facts(const struct store *s) {
        return (struct lock_facts){ .published = s->published, .sealed = s->sealed, .fence = s->sealed ? s->fence : 0 };
}

static void store_check(const struct store *s) {
        unsigned writers = s->lock.held[LOCK_MODE_RW] + s->lock.held[LOCK_MODE_UPDATE];
        assert(!(s->published && s->sealed));
        assert((s->draft != NULL) == (writers == 1));
        assert(!s->published || s->published->generation == s->generation);
}

/* ---- granting */

static void grant_writer(struct store *s, struct claim *c) {
        assert(!s->draft);
        if (c->lock.want == LOCK_WANT_ADOPT && s->sealed) {
                s->draft = steal_ptr(&s->sealed);
                s->fence = 0;
        } else {
                s->draft = steal_ptr(&c->spare);
                list_append(&s->layouts, &s->draft->link);
        }
        c->view = layout_ref(s->draft);
}

/* Who was granted just now hears of those who wait for it already. */
static void tell_granted(struct store *s, struct effects *fx) {
        struct lock_facts facts = store_facts(s);
        list_for(c, &fx->news, struct claim, news_link) {
                if (!(c->news & NEWS_GRANTED) || !c->lock.held)
                        continue;
                list_for(e, &s->lock.queue, struct lock_entry, link)
                        if (lock_in_the_way(&c->lock, e, &facts))
                                c->news |= NEWS_WANTED;
        }
}

static void grant_waiting(struct store *s, struct effects *fx) {
        for (;;) {
                struct lock_facts facts = store_facts(s);
                struct lock_entry *e = lock_grant(&s->lock, &facts);
                if (!e)
                        break;
                struct claim *c = container_of(e, struct claim, lock);
                if (lock_mode_writes(e->mode))
                        grant_writer(s, c);
                else
                        c->view = layout_ref(s->published);
                c->spare = layout_free(c->spare);
                claim_news(c, NEWS_GRANTED, fx);
        }
        store_check(s);
        tell_granted(s, fx);
}

/* Ends what a claim holds or waits for. A writer's draft is freed, unless it is sealed: then the store rests on it. */
static void claim_let_go(struct store *s, struct claim *c, struct effects *fx) {
        bool wrote = c->lock.held && lock_mode_writes(c->lock.mode);
        lock_leave(&s->lock, &c->lock);
        layout_drop(&c->view, fx);
        layout_drop(&c->next, fx);
        c->spare = layout_free(c->spare);
        if (!wrote)
                return;

        if (!s->draft->sealed) {
                layout_drop(&s->draft, fx);
                return;
        }
        layout_drop(&s->sealed, fx);
        s->sealed = steal_ptr(&s->draft);
        s->fence = c->lock.process;
}

static bool claim_writes(const struct claim *c) {
        return c->lock.held && lock_mode_writes(c->lock.mode);
}

/* Whether the claim may change the shape of what it builds. */
static int claim_may_shape(const struct claim *c) {
        if (c->gone)
                return STORE_E_GONE;
        if (!claim_writes(c))
                return STORE_E_NOT_WRITER;
        return c->view->sealed ? STORE_E_SEALED : 0;
}

/* ---- one function a change */

static int apply_ask(struct store *s, struct change *ch, struct effects *fx) {
        struct claim *c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        if (ch->ask.want != LOCK_WANT_RO && layout_new(&c->spare) < 0) {
                free(c);
                return -ENOMEM;
        }
        c->lock.want = ch->ask.want;
        c->lock.process = ch->ask.process;
        c->id = ch->ask.id;
        c->owner = ch->ask.owner;
        list_init(&c->news_link);
        list_append(&s->claims, &c->link);
        lock_ask(&s->lock, &c->lock);
        ch->ask.claim = c;

        grant_waiting(s, fx);
        if (c->lock.held)
                return 0;
        struct lock_facts facts = store_facts(s);
        list_for(e, &s->lock.holders, struct lock_entry, link)
                if (lock_in_the_way(e, &c->lock, &facts))
                        claim_news(container_of(e, struct claim, lock), NEWS_WANTED, fx);
        return 0;
}

static int apply_leave(struct store *s, struct change *ch, struct effects *fx) {
        struct claim *c = ch->claim;
        claim_let_go(s, c, fx);
        list_unlink(&c->news_link);
        list_unlink(&c->link);
        free(c);
        grant_waiting(s, fx);
        return 0;
}

static int apply_allocate(struct store *s, struct change *ch, struct effects *fx) {
        (void)s, (void)fx;
        int r = claim_may_shape(ch->claim);
        if (r != 0)
                return r;
        struct layout *l = ch->claim->view;
        size_t n = ch->allocate.n;
        if (n > LAYOUT_ALLOCATIONS_MAX - l->n_allocations)
                return STORE_E_LIMIT;
        r = layout_reserve(l, n);
        if (r < 0)
                return r;

        _cleanup_free_ char **tags = calloc(n ? n : 1, sizeof(*tags));
        if (!tags)
                return -ENOMEM;
        for (size_t i = 0; i < n && r == 0; i++) {
                const char *tag = ch->allocate.items[i].tag;
                if (tag && *tag && !(tags[i] = strdup(tag)))
                        r = -ENOMEM;
        }
        if (r < 0) {
                for (size_t i = 0; i < n; i++)
                        free(tags[i]);
                return r;
        }

        ch->allocate.first_slot = l->next_slot;
        for (size_t i = 0; i < n; i++) {
                const struct change_allocation *a = &ch->allocate.items[i];
                layout_append(l, ch->allocate.first_id + i, a->size, a->aligned, tags[i], a->fd);
        }
        return 0;
}

static int apply_free(struct store *s, struct change *ch, struct effects *fx) {
        (void)s;
        int r = claim_may_shape(ch->claim);
        if (r != 0)
                return r;
        struct layout *l = ch->claim->view;
        for (ch->failed = 0; ch->failed < ch->free.n; ch->failed++)
                if (!layout_find_id(l, ch->free.ids[ch->failed]))
                        return STORE_E_NO_ALLOCATION;

        /* What is freed leaves as a layout of its own, so that there is one way out for descriptors. */
        _cleanup_(layout_freep) struct layout *out = NULL;
        r = layout_new(&out);
        if (r == 0)
                r = layout_reserve(out, ch->free.n);
        if (r < 0)
                return r;
        layout_move(l, ch->free.ids, ch->free.n, out);
        list_append(&fx->released, &steal_ptr(&out)->link);
        return 0;
}

static int apply_put(struct store *s, struct change *ch, struct effects *fx) {
        (void)s, (void)fx;
        int r = claim_may_shape(ch->claim);
        if (r != 0)
                return r;
        struct layout *l = ch->claim->view;
        size_t bytes = l->metadata_bytes, more = 0; /* at most: what shrinks does not count */
        for (ch->failed = 0; ch->failed < ch->put.n; ch->failed++) {
                const struct metadata *m = ch->put.entries[ch->failed];
                const struct allocation *a = layout_find_slot(l, m->slot);
                if (!a)
                        return STORE_E_NO_SLOT;
                if (m->offset >= a->size)
                        return STORE_E_OFFSET;
                bool found;
                size_t at = layout_find_key(l, m->key, &found);
                size_t had = found ? l->metadata[at]->key_size + l->metadata[at]->value_size : 0;
                bytes += MAX(m->key_size + m->value_size, had) - had;
                more += !found;
        }
        if (more > LAYOUT_METADATA_MAX - l->n_metadata || bytes > LAYOUT_METADATA_BYTES_MAX)
                return STORE_E_LIMIT;
        r = layout_reserve_metadata(l, ch->put.n);
        if (r < 0)
                return r;
        layout_put(l, ch->put.entries, ch->put.n);
        return 0;
}

static int compare_index(const void *a, const void *b) {
        size_t x = *(const size_t *)a, y = *(const size_t *)b;
        return (x > y) - (x < y);
}

static int apply_delete(struct store *s, struct change *ch, struct effects *fx) {
        (void)s, (void)fx;
        int r = claim_may_shape(ch->claim);
        if (r != 0)
                return r;
        struct layout *l = ch->claim->view;
        size_t n = ch->delete.n;
        _cleanup_free_ size_t *indexes = calloc(n ? n : 1, sizeof(*indexes));
        if (!indexes)
                return -ENOMEM;
        for (ch->failed = 0; ch->failed < n; ch->failed++) {
                bool found;
                indexes[ch->failed] = layout_find_key(l, ch->delete.keys[ch->failed], &found);
                if (!found)
                        return STORE_E_NO_KEY;
        }
        qsort(indexes, n, sizeof(*indexes), compare_index);
        layout_delete(l, indexes, n);
        return 0;
}

static int apply_seal(struct store *s, struct change *ch, struct effects *fx) {
        (void)fx;
        if (ch->claim->gone)
                return STORE_E_GONE;
        if (!claim_writes(ch->claim))
                return STORE_E_NOT_WRITER;
        if (s->published)
                return STORE_E_PUBLISHED;
        s->draft->sealed = true;
        return 0;
}

static int apply_discard(struct store *s, struct change *ch, struct effects *fx) {
        if (ch->claim->gone)
                return STORE_E_GONE;
        if (!claim_writes(ch->claim))
                return STORE_E_NOT_WRITER;
        layout_drop(&s->published, fx);
        layout_drop(&s->sealed, fx);
        return 0;
}

static int apply_commit(struct store *s, struct change *ch, struct effects *fx) {
        struct claim *c = ch->claim;
        if (c->gone)
                return STORE_E_GONE;
        if (!claim_writes(c))
                return STORE_E_NOT_WRITER;
        char *identity = NULL;
        if (ch->commit.identity && *ch->commit.identity && !(identity = strdup(ch->commit.identity)))
                return -ENOMEM;

        layout_drop(&s->published, fx);
        layout_drop(&s->sealed, fx);
        s->published = steal_ptr(&s->draft);
        s->published->generation = ++s->generation;
        s->published->sealed = false;
        free(s->published->identity);
        s->published->identity = identity;

        if (ch->commit.leave) {
                lock_leave(&s->lock, &c->lock);
                layout_drop(&c->view, fx);
                c->gone = true;
        } else {
                lock_downgrade(&s->lock, &c->lock);
        }
        list_for(e, &s->lock.holders, struct lock_entry, link) {
                struct claim *reader = container_of(e, struct claim, lock);
                if (reader->view != s->published)
                        claim_news(reader, NEWS_PUBLISHED, fx);
        }
        grant_waiting(s, fx);
        return 0;
}

static int claim_reads(const struct claim *c) {
        if (c->gone)
                return STORE_E_GONE;
        return c->lock.held && !lock_mode_writes(c->lock.mode) ? 0 : STORE_E_NOT_READER;
}

static int apply_refresh(struct store *s, struct change *ch, struct effects *fx) {
        struct claim *c = ch->claim;
        int r = claim_reads(c);
        if (r != 0)
                return r;
        if (!s->published)
                return STORE_E_UNPUBLISHED;
        layout_drop(&c->next, fx);
        if (s->published != c->view)
                c->next = layout_ref(s->published);
        return 0;
}

static int apply_settle(struct store *s, struct change *ch, struct effects *fx) {
        (void)s;
        struct claim *c = ch->claim;
        int r = claim_reads(c);
        if (r != 0)
                return r;
        if (c->next && c->next->generation == ch->settle.generation) {
                layout_drop(&c->view, fx);
                c->view = steal_ptr(&c->next);
        } else if (c->view->generation == ch->settle.generation) {
                layout_drop(&c->next, fx);
        } else {
                return STORE_E_NO_GENERATION;
        }
        return 0;
}

static int apply_clear(struct store *s, struct change *ch, struct effects *fx) {
        if (!list_empty(&s->lock.holders) && !ch->clear.force)
                return STORE_E_HELD;
        while (!list_empty(&s->lock.holders)) {
                struct lock_entry *e = list_first(&s->lock.holders, struct lock_entry, link);
                struct claim *c = container_of(e, struct claim, lock);
                claim_let_go(s, c, fx);
                c->gone = c->revoked = true;
                claim_news(c, NEWS_REVOKED, fx);
        }
        layout_drop(&s->published, fx);
        layout_drop(&s->sealed, fx);
        grant_waiting(s, fx);
        return 0;
}

static int apply_exited(struct store *s, struct change *ch, struct effects *fx) {
        if (s->fence == ch->exited.process)
                s->fence = 0;
        /* A session can outlive its process, in a child that inherited it: when it goes, there is nobody to wait for. */
        list_for(c, &s->claims, struct claim, link)
                if (c->lock.process == ch->exited.process)
                        c->lock.process = 0;
        grant_waiting(s, fx);
        return 0;
}

int store_apply(struct store *s, struct change *c, struct effects *fx) {
        static int (*const apply[_CHANGE_MAX])(struct store *, struct change *, struct effects *) = {
                [CHANGE_ASK] = apply_ask,         [CHANGE_LEAVE] = apply_leave,   [CHANGE_ALLOCATE] = apply_allocate,
                [CHANGE_FREE] = apply_free,       [CHANGE_PUT] = apply_put,       [CHANGE_DELETE] = apply_delete,
                [CHANGE_SEAL] = apply_seal,       [CHANGE_DISCARD] = apply_discard, [CHANGE_COMMIT] = apply_commit,
                [CHANGE_REFRESH] = apply_refresh, [CHANGE_SETTLE] = apply_settle, [CHANGE_CLEAR] = apply_clear,
                [CHANGE_EXITED] = apply_exited,
        };
        assert(c->type < _CHANGE_MAX && apply[c->type]);
        return apply[c->type](s, c, fx);
}

/* ---- looking */

struct layout *store_resting(const struct store *s) {
        return s->published ? s->published : s->sealed;
}

const char *store_state(const struct store *s) {
        if (s->lock.held[LOCK_MODE_RW] > 0 || (s->lock.held[LOCK_MODE_UPDATE] > 0 && !s->published))
                return "RW";
        if (s->published)
                return s->lock.held[LOCK_MODE_RO] > 0 ? "RO" : "COMMITTED";
        /* Readers of a discarded or replaced generation may be left; nobody new can read. */
        return s->sealed ? "SEALED" : "EMPTY";
}

struct store_totals store_totals(const struct store *s) {
        struct store_totals t = {};
        list_for(l, &s->layouts, struct layout, link) {
                t.bytes += l->bytes;
                t.allocations += l->n_allocations;
                if (l == s->draft) {
                        t.building += l->bytes;
                } else if (l != s->published && l != s->sealed) {
                        t.draining += l->bytes;
                        t.draining_layouts++;
                }
        }
        return t;
}

unsigned store_standing_news(const struct store *s, const struct claim *c) {
        struct lock_facts facts = store_facts(s);
        unsigned news = c->revoked ? NEWS_REVOKED : 0;
        if (!c->lock.held)
                return news;
        if (!lock_mode_writes(c->lock.mode) && s->published && c->view != s->published && c->next != s->published)
                news |= NEWS_PUBLISHED;
        list_for(e, &s->lock.queue, struct lock_entry, link)
                if (lock_in_the_way(&c->lock, e, &facts))
                        news |= NEWS_WANTED;
        return news;
}

bool store_knows_process(const struct store *s, uint64_t process) {
        bool known = s->fence == process;
        list_for(c, &s->claims, struct claim, link)
                known = known || c->lock.process == process;
        return known;
}

uint64_t claim_bytes(const struct claim *c) {
        return (c->view ? c->view->bytes : 0) + (c->next ? c->next->bytes : 0);
}
