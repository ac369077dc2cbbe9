// SPDX-License-Identifier: MIT
#undef NDEBUG
#include "store_model.h"

#include <stdio.h>
#include <string.h>

#define STORES 3
#define CLAIMS 10
#define ALLOCATIONS 24
#define KEYS 12
#define LAYOUTS (3 + 2 * CLAIMS)
#define PROCESSES 4
#define FIRST_FD 1000000 /* numbers, not descriptors: closing one would be an error */

/* ---- the model */

struct m_entry {
        char key[4];
        uint64_t slot, offset;
        char value[8];
};

struct m_layout {
        bool used;
        struct layout *real;
        uint64_t generation, next_slot;
        bool sealed;
        char identity[4];
        struct allocation a[ALLOCATIONS]; /* tags: static texts */
        size_t n;
        struct m_entry k[KEYS];
        size_t n_keys;
};

enum m_hold { WAITS, READS, UPDATES, WRITES, NOTHING };

struct m_claim {
        struct claim *real;
        enum lock_want want;
        uint64_t process;
        enum m_hold hold;
        struct m_layout *view, *next;
        unsigned news, news_possible; /* what it must hear of this event, and what it may */
};

struct m_store {
        struct store *real;
        struct m_layout layouts[LAYOUTS];
        struct m_layout *published, *sealed, *draft;
        uint64_t sealed_by, generation;
        struct m_claim claims[CLAIMS]; /* in order of arrival */
        size_t n;
};

struct model {
        struct m_store stores[STORES];
        uint64_t processes[PROCESSES], last_process, last_id;
        int last_fd;
        unsigned long events;
        struct model_tally tally;
};

#define MUST(x)                                                                                                  \
        do {                                                                                                     \
                if (!(x)) {                                                                                      \
                        (void)fprintf(stderr, "%s:%d: event %lu: %s\n", __FILE__, __LINE__, now->events, #x);    \
                        abort();                                                                                 \
                }                                                                                                \
        } while (0)

static struct model *now; /* for MUST */

static bool alive(uint64_t process) {
        for (int i = 0; i < PROCESSES; i++)
                if (now->processes[i] == process)
                        return true;
        return false;
}

static bool holds(const struct m_claim *c) {
        return c->hold == READS || c->hold == UPDATES || c->hold == WRITES;
}

static bool conflict(enum m_hold a, enum m_hold b) {
        if (a == WRITES || b == WRITES)
                return true;
        return a == UPDATES && b == UPDATES;
}

/* What a waiter would hold; WAITS when it is for somebody else to publish first. */
static enum m_hold would_hold(const struct m_store *s, const struct m_claim *c) {
        switch (c->want) {
        case LOCK_WANT_RO:
                return s->published ? READS : WAITS;
        case LOCK_WANT_UPDATE:
                return UPDATES;
        case LOCK_WANT_RW_OR_RO:
                return s->published ? READS : WRITES;
        default:
                return WRITES;
        }
}

static bool fenced(const struct m_store *s, const struct m_claim *c) {
        return c->want == LOCK_WANT_ADOPT && s->sealed && s->sealed_by != 0 && s->sealed_by != c->process && alive(s->sealed_by);
}

/* Who waits for a process to exit lets everybody pass while that process waits itself. */
static bool aside(const struct m_store *s, const struct m_claim *c) {
        if (!fenced(s, c))
                return false;
        for (size_t i = 0; i < s->n; i++)
                if (s->claims[i].hold == WAITS && s->claims[i].process == s->sealed_by)
                        return true;
        return false;
}

static bool may_go(const struct m_store *s, const struct m_claim *c) {
        enum m_hold hold = would_hold(s, c);
        if (hold == WAITS || fenced(s, c))
                return false;
        for (const struct m_claim *o = s->claims; o < s->claims + s->n; o++) {
                if (holds(o) && conflict(o->hold, hold))
                        return false;
                if (o->hold == WAITS && o < c && would_hold(s, o) != WAITS && !aside(s, o) && conflict(would_hold(s, o), hold))
                        return false;
        }
        return true;
}

static struct m_layout *new_layout(struct m_store *s) {
        for (size_t i = 0; i < LAYOUTS; i++)
                if (!s->layouts[i].used) {
                        s->layouts[i] = (struct m_layout){ .used = true };
                        return &s->layouts[i];
                }
        abort();
}

/* Whoever may go, goes: the first of them first. */
static void grant_all(struct m_store *s) {
        for (size_t i = 0; i < s->n;) {
                struct m_claim *c = &s->claims[i++];
                if (c->hold != WAITS)
                        continue;
                if (!may_go(s, c)) {
                        now->tally.fenced += fenced(s, c);
                        continue;
                }
                c->hold = would_hold(s, c);
                now->tally.granted[c->hold == READS ? LOCK_MODE_RO : c->hold == UPDATES ? LOCK_MODE_UPDATE : LOCK_MODE_RW]++;
                c->news |= NEWS_GRANTED;
                if (c->hold == READS) {
                        c->view = s->published;
                } else if (c->want == LOCK_WANT_ADOPT && s->sealed) {
                        now->tally.adopted++;
                        c->view = s->draft = s->sealed;
                        s->sealed = NULL;
                } else {
                        c->view = s->draft = new_layout(s);
                }
                i = 0; /* from the front */
        }
}

/* What a claim has, it has no more. */
static void let_go(struct m_store *s, struct m_claim *c) {
        if ((c->hold == UPDATES || c->hold == WRITES) && s->draft->sealed) {
                s->sealed = s->draft;
                s->sealed_by = c->process;
        }
        if (c->hold == UPDATES || c->hold == WRITES)
                s->draft = NULL;
        c->hold = NOTHING;
        c->view = c->next = NULL;
}

static bool in_use(const struct m_store *s, const struct m_layout *l) {
        if (l == s->published || l == s->sealed || l == s->draft)
                return true;
        for (size_t i = 0; i < s->n; i++)
                if (s->claims[i].view == l || s->claims[i].next == l)
                        return true;
        return false;
}

static const char *state_name(const struct m_store *s) {
        unsigned held[NOTHING + 1] = {};
        for (size_t i = 0; i < s->n; i++)
                held[s->claims[i].hold]++;
        if (held[WRITES] || (held[UPDATES] && !s->published))
                return "RW";
        if (s->published)
                return held[READS] ? "RO" : "COMMITTED";
        return s->sealed ? "SEALED" : "EMPTY";
}

/* ---- comparing */

static void compare_layout(struct m_layout *l, struct layout *real) {
        MUST((l == NULL) == (real == NULL));
        if (!l)
                return;
        if (!l->real)
                l->real = real;
        MUST(l->real == real);
        uint64_t bytes = 0;
        size_t metadata_bytes = 0;
        MUST(real->generation == l->generation && real->sealed == l->sealed);
        MUST(strcmp(real->identity ? real->identity : "", l->identity) == 0);
        MUST(real->n_allocations == l->n && real->n_metadata == l->n_keys && real->next_slot == l->next_slot);
        for (size_t i = 0; i < l->n; i++) {
                const struct allocation *a = &l->a[i], *b = &real->allocations[i];
                MUST(a->id == b->id && a->slot == b->slot && a->size == b->size && a->aligned == b->aligned && a->fd == b->fd);
                MUST(strcmp(a->tag, b->tag ? b->tag : "") == 0);
                bytes += a->aligned;
        }
        for (size_t i = 0; i < l->n_keys; i++) {
                const struct m_entry *e = &l->k[i];
                const struct metadata *d = real->metadata[i];
                MUST(strcmp(e->key, d->key) == 0 && e->slot == d->slot && e->offset == d->offset);
                MUST(d->value_size == strlen(e->value) && memcmp(metadata_value(d), e->value, d->value_size) == 0);
                metadata_bytes += strlen(e->key) + d->value_size;
        }
        MUST(real->bytes == bytes && real->metadata_bytes == metadata_bytes);
}

static struct m_claim *claim_of(struct m_store *s, const struct lock_entry *e) {
        for (size_t i = 0; i < s->n; i++)
                if (&s->claims[i].real->lock == e)
                        return &s->claims[i];
        return NULL;
}

/* What holds whatever happened, read from the real store alone. */
static void check_invariants(const struct store *r) {
        unsigned held[_LOCK_MODE_MAX] = {}, waiting = 0;
        list_for(e, &r->lock.holders, struct lock_entry, link)
                held[e->mode]++;
        list_for(e, &r->lock.queue, struct lock_entry, link)
                waiting++;
        MUST(memcmp(held, r->lock.held, sizeof(held)) == 0 && waiting == r->lock.waiting);
        MUST(held[LOCK_MODE_RW] + held[LOCK_MODE_UPDATE] <= 1);
        MUST(!held[LOCK_MODE_RW] || !held[LOCK_MODE_RO]);
        MUST(!r->published || !r->sealed);
        list_for(l, &r->layouts, struct layout, link) {
                unsigned refs = (l == r->published) + (l == r->sealed) + (l == r->draft);
                list_for(c, &r->claims, struct claim, link)
                        refs += (c->view == l) + (c->next == l);
                MUST(l->refs == refs && refs > 0);
        }
}

static void compare_store(struct m_store *s) {
        const struct store *r = s->real;
        size_t live = 0, n = 0;
        struct store_totals t = store_totals(r), expected = {};

        check_invariants(r);
        MUST(strcmp(store_state(r), state_name(s)) == 0);
        MUST(r->generation == s->generation);
        compare_layout(s->published, r->published);
        compare_layout(s->sealed, r->sealed);
        compare_layout(s->draft, r->draft);
        MUST(store_resting(r) == (s->published ? s->published->real : s->sealed ? s->sealed->real : NULL));
        for (size_t i = 0; i < s->n; i++) {
                struct m_claim *c = &s->claims[i];
                static const enum lock_mode modes[] = { [READS] = LOCK_MODE_RO, [UPDATES] = LOCK_MODE_UPDATE, [WRITES] = LOCK_MODE_RW };
                MUST(c->real->lock.held == holds(c));
                MUST(!holds(c) || c->real->lock.mode == modes[c->hold]);
                MUST(c->real->gone == (c->hold == NOTHING));
                MUST(c->real->owner == s);
                compare_layout(c->view, c->real->view);
                compare_layout(c->next, c->real->next);
                uint64_t pinned = (c->real->view ? c->real->view->bytes : 0) + (c->real->next ? c->real->next->bytes : 0);
                MUST(claim_bytes(c->real) == pinned);
        }
        /* The queue is in order of arrival, and nobody in it could go. */
        struct m_claim *last = NULL;
        list_for(e, &r->lock.queue, struct lock_entry, link) {
                struct m_claim *c = claim_of(s, e);
                MUST(c && c->hold == WAITS && (!last || c > last));
                MUST(!may_go(s, c));
                last = c;
        }
        for (size_t i = 0; i < LAYOUTS; i++) {
                struct m_layout *l = &s->layouts[i];
                if (!l->used)
                        continue;
                MUST(l->real);
                live++;
                expected.bytes += l->real->bytes;
                expected.allocations += l->n;
                if (l == s->draft) {
                        expected.building = l->real->bytes;
                } else if (l != s->published && l != s->sealed) {
                        expected.draining += l->real->bytes;
                        expected.draining_layouts++;
                }
        }
        list_for(l, &r->layouts, struct layout, link)
                n++;
        MUST(n == live);
        MUST(memcmp(&t, &expected, sizeof(t)) == 0);
        MUST(store_idle(r) == (s->n == 0 && live == 0));
}

/* Takes `fd` out of the expected ones. */
static void expect_fd(int *fds, size_t *n, int fd) {
        for (size_t i = 0; i < *n; i++)
                if (fds[i] == fd) {
                        fds[i] = fds[--*n];
                        return;
                }
        MUST(!"a descriptor was released that should not be");
}

/*
 * What has nobody any more must have come out as released, each descriptor once, and so must what was freed singly;
 * everybody has heard what it must hear, and nothing that is not so.
 */
static void carry_out(struct m_store *s, struct effects *fx, int *fds, size_t n) {
        for (size_t i = 0; i < LAYOUTS; i++) {
                struct m_layout *l = &s->layouts[i];
                if (!l->used || in_use(s, l))
                        continue;
                for (size_t k = 0; k < l->n; k++)
                        fds[n++] = l->a[k].fd;
                l->used = false;
        }
        while (!list_empty(&fx->released)) {
                struct layout *l = list_first(&fx->released, struct layout, link);
                for (size_t i = 0; i < l->n_allocations; i++)
                        expect_fd(fds, &n, l->allocations[i].fd);
                layout_free(l);
        }
        MUST(n == 0);

        unsigned told = 0;
        while (!list_empty(&fx->news)) {
                struct claim *r = list_first(&fx->news, struct claim, news_link);
                struct m_claim *c = NULL;
                for (size_t i = 0; i < s->n; i++)
                        c = s->claims[i].real == r ? &s->claims[i] : c;
                MUST(c);
                MUST((r->news & c->news) == c->news);
                MUST((r->news & ~(c->news | c->news_possible)) == 0);
                told += c->news != 0;
                list_unlink(&r->news_link);
                r->news = 0;
        }
        for (size_t i = 0; i < s->n; i++)
                told -= s->claims[i].news != 0;
        MUST(told == 0);
}

/* ---- events */

struct event {
        struct m_store *s;
        struct m_claim *c;
        struct source *in;
        struct change change;
        int fds[ALLOCATIONS * LAYOUTS]; /* that must be released besides layouts */
        size_t n_fds;
        /* what the change points at */
        struct change_allocation items[4];
        uint64_t ids[4];
        struct metadata *entries[4];
        char *keys[4], key_texts[4][4];
};

static const char *const tags[] = { "", "w", "kv" };
static const char *const key_names[] = { "a", "aa", "b", "ba", "c", "\xff" };

static size_t find_allocation(const struct m_layout *l, uint64_t id, uint64_t slot) {
        size_t i = 0;
        while (i < l->n && l->a[i].id != id && l->a[i].slot != slot)
                i++;
        return i;
}

static size_t find_entry(const struct m_layout *l, const char *key) {
        size_t i = 0;
        while (i < l->n_keys && strcmp(l->k[i].key, key) != 0)
                i++;
        return i;
}

static void remove_entry(struct m_layout *l, size_t i) {
        memmove(&l->k[i], &l->k[i + 1], (--l->n_keys - i) * sizeof(l->k[0]));
}

static int shape_fault(const struct m_claim *c) {
        if (c->hold == NOTHING)
                return STORE_E_GONE;
        if (c->hold != UPDATES && c->hold != WRITES)
                return STORE_E_NOT_WRITER;
        return c->view->sealed ? STORE_E_SEALED : 0;
}

static int reader_fault(const struct m_claim *c) {
        return c->hold == NOTHING ? STORE_E_GONE : c->hold == READS ? 0 : STORE_E_NOT_READER;
}

/* Each fills in the change and applies it to the model; the result is what the store must say. */

static int event_ask(struct event *e) {
        struct m_store *s = e->s;
        uint8_t b = source_byte(e->in);
        struct m_claim *c = &s->claims[s->n++];
        *c = (struct m_claim){ .want = (enum lock_want)(b % _LOCK_WANT_MAX) };
        c->process = b & 0x80 ? 0 : now->processes[b >> 5 & 3];
        e->c = c;
        e->change.ask.want = c->want;
        e->change.ask.process = c->process;
        e->change.ask.owner = s;
        grant_all(s);
        for (size_t i = 0; c->hold == WAITS && i < s->n; i++)
                if (holds(&s->claims[i]) && would_hold(s, c) != WAITS && conflict(s->claims[i].hold, would_hold(s, c)))
                        s->claims[i].news |= NEWS_WANTED;
        return 0;
}

static int event_leave(struct event *e) {
        struct m_store *s = e->s;
        let_go(s, e->c);
        memmove(e->c, e->c + 1, (size_t)(s->claims + --s->n - e->c) * sizeof(*e->c));
        grant_all(s);
        return 0;
}

static int event_allocate(struct event *e) {
        uint8_t b = source_byte(e->in);
        size_t n = b & 3;
        int r = shape_fault(e->c);
        if (r == 0)
                n = MIN(n, ALLOCATIONS - e->c->view->n);
        for (size_t i = 0; i < n; i++)
                e->items[i] = (struct change_allocation){
                        .size = 4 + (b >> 3), .aligned = 64, .tag = tags[(b >> 4) % 3], .fd = ++now->last_fd,
                };
        e->change.allocate.items = e->items;
        e->change.allocate.n = n;
        e->change.allocate.first_id = now->last_id + 1;
        if (r != 0)
                return r; /* the numbers stay with the caller */
        struct m_layout *l = e->c->view;
        for (size_t i = 0; i < n; i++)
                l->a[l->n++] = (struct allocation){ .id = ++now->last_id, .slot = l->next_slot++, .size = e->items[i].size,
                                                    .aligned = 64, .tag = (char *)e->items[i].tag, .fd = e->items[i].fd };
        return 0;
}

static int event_free(struct event *e) {
        uint8_t b = source_byte(e->in);
        struct m_layout *l = e->c->view;
        size_t n = 1 + (b & 3);
        int r = shape_fault(e->c);
        for (size_t i = 0; i < n; i++) /* also twice the same, also none that there is */
                e->ids[i] = l && l->n && b != 0xff ? l->a[(size_t)(b + i * (b >> 6)) % l->n].id : 1u << 30;
        e->change.free.ids = e->ids;
        e->change.free.n = n;
        if (r != 0)
                return r;
        for (size_t i = 0; i < n; i++)
                if (find_allocation(l, e->ids[i], UINT64_MAX) == l->n)
                        return STORE_E_NO_ALLOCATION;
        for (size_t i = 0; i < n; i++) {
                size_t at = find_allocation(l, e->ids[i], UINT64_MAX);
                if (at == l->n)
                        continue;
                e->fds[e->n_fds++] = l->a[at].fd;
                for (size_t k = l->n_keys; k-- > 0;)
                        if (l->k[k].slot == l->a[at].slot)
                                remove_entry(l, k);
                memmove(&l->a[at], &l->a[at + 1], (--l->n - at) * sizeof(l->a[0]));
        }
        return 0;
}

static int event_put(struct event *e) {
        uint8_t b = source_byte(e->in);
        struct m_layout *l = e->c->view;
        size_t n = 1 + (b >> 6);
        int r = shape_fault(e->c), refusal = r;
        struct m_layout result = l ? *l : (struct m_layout){};
        for (size_t i = 0; i < n; i++) {
                uint8_t d = source_byte(e->in);
                struct m_entry m = { .slot = (b & 0x38) && l && l->n ? l->a[(b + i) % l->n].slot : b, .offset = d >> 4 };
                (void)snprintf(m.key, sizeof(m.key), "%s", key_names[d % ARRAY_SIZE(key_names)]);
                (void)snprintf(m.value, sizeof(m.value), "%.*s", d >> 6, "xyz");
                MUST(metadata_new(&e->entries[i], m.key, m.slot, m.offset, m.value, strlen(m.value)) == 0);
                if (refusal != 0)
                        continue;
                size_t at = find_allocation(l, UINT64_MAX, m.slot), k = find_entry(&result, m.key);
                if (at == l->n)
                        refusal = STORE_E_NO_SLOT;
                else if (m.offset >= l->a[at].size)
                        refusal = STORE_E_OFFSET;
                if (k == result.n_keys) { /* into its place */
                        for (k = result.n_keys++; k > 0 && strcmp(result.k[k - 1].key, m.key) > 0; k--)
                                result.k[k] = result.k[k - 1];
                }
                result.k[k] = m;
        }
        e->change.put.entries = e->entries;
        e->change.put.n = n;
        if (refusal == 0)
                *l = result;
        return refusal;
}

static int event_delete(struct event *e) {
        uint8_t b = source_byte(e->in);
        size_t n = 1 + (b >> 7);
        int r = shape_fault(e->c);
        for (size_t i = 0; i < n; i++) {
                const struct m_layout *l = e->c->view;
                bool known = l && l->n_keys && b & 0x10; /* else one that there may not be */
                (void)snprintf(e->key_texts[i], sizeof(e->key_texts[i]), "%s",
                               known ? l->k[(b + i) % l->n_keys].key : key_names[(b + i) % ARRAY_SIZE(key_names)]);
                e->keys[i] = e->key_texts[i];
        }
        e->change.delete.keys = e->keys;
        e->change.delete.n = n;
        for (size_t i = 0; r == 0 && i < n; i++)
                if (find_entry(e->c->view, e->keys[i]) == e->c->view->n_keys)
                        r = STORE_E_NO_KEY;
        for (size_t i = 0; r == 0 && i < n; i++) {
                size_t at = find_entry(e->c->view, e->keys[i]);
                if (at < e->c->view->n_keys)
                        remove_entry(e->c->view, at);
        }
        return r;
}

static int event_seal(struct event *e) {
        int r = shape_fault(e->c);
        if (r != 0 && r != STORE_E_SEALED)
                return r;
        if (e->s->published)
                return STORE_E_PUBLISHED;
        e->c->view->sealed = true;
        return 0;
}

static int event_discard(struct event *e) {
        int r = shape_fault(e->c);
        if (r != 0 && r != STORE_E_SEALED)
                return r;
        e->s->published = e->s->sealed = NULL;
        return 0;
}

static int event_commit(struct event *e) {
        uint8_t b = source_byte(e->in);
        struct m_store *s = e->s;
        int r = shape_fault(e->c);
        e->change.commit.identity = (const char *[]){ NULL, "", "v1", "v2" }[b & 3];
        e->change.commit.leave = b & 4;
        if (r != 0 && r != STORE_E_SEALED)
                return r;
        s->sealed = NULL;
        s->published = s->draft;
        s->draft = NULL;
        s->published->sealed = false;
        s->published->generation = ++s->generation;
        (void)snprintf(s->published->identity, sizeof(s->published->identity), "%s",
                       e->change.commit.identity ? e->change.commit.identity : "");
        e->c->hold = READS;
        if (e->change.commit.leave)
                let_go(s, e->c);
        for (size_t i = 0; i < s->n; i++)
                if (holds(&s->claims[i]) && s->claims[i].view != s->published)
                        s->claims[i].news |= NEWS_PUBLISHED;
        grant_all(s);
        return 0;
}

static int event_refresh(struct event *e) {
        int r = reader_fault(e->c);
        if (r != 0)
                return r;
        if (!e->s->published)
                return STORE_E_UNPUBLISHED;
        e->c->next = e->s->published != e->c->view ? e->s->published : NULL;
        return 0;
}

static int event_settle(struct event *e) {
        uint8_t b = source_byte(e->in);
        struct m_claim *c = e->c;
        uint64_t g = b % 3 == 0 ? e->s->generation : b % 3 == 1 && c->view ? c->view->generation : b;
        int r = reader_fault(c);
        e->change.settle.generation = g;
        if (r != 0)
                return r;
        if (c->next && c->next->generation == g)
                c->view = c->next;
        else if (c->view->generation != g)
                return STORE_E_NO_GENERATION;
        c->next = NULL;
        return 0;
}

static int event_clear(struct event *e) {
        struct m_store *s = e->s;
        bool held = false;
        e->change.clear.force = source_byte(e->in) % 4 == 0;
        for (size_t i = 0; i < s->n; i++)
                held = held || holds(&s->claims[i]);
        if (held && !e->change.clear.force)
                return STORE_E_HELD;
        for (size_t i = 0; i < s->n; i++) {
                if (!holds(&s->claims[i]))
                        continue;
                let_go(s, &s->claims[i]);
                s->claims[i].news |= NEWS_REVOKED;
        }
        s->published = s->sealed = NULL;
        grant_all(s);
        return 0;
}

/* A process ends; another takes its place. Its sessions may outlive it, in a child that inherited them. */
static int event_exited(struct event *e) {
        int i = source_byte(e->in) % PROCESSES;
        e->change.exited.process = now->processes[i];
        now->processes[i] = ++now->last_process;
        grant_all(e->s);
        return 0;
}

struct kind {
        int (*make)(struct event *e);
        enum { NOBODY, ANYBODY, READER, WRITER } who;
        unsigned share; /* of 64 */
};

static const struct kind kinds[_CHANGE_MAX] = {
        [CHANGE_ASK] = { event_ask, NOBODY, 7 },           [CHANGE_LEAVE] = { event_leave, ANYBODY, 6 },
        [CHANGE_ALLOCATE] = { event_allocate, WRITER, 12 }, [CHANGE_FREE] = { event_free, WRITER, 4 },
        [CHANGE_PUT] = { event_put, WRITER, 9 },           [CHANGE_DELETE] = { event_delete, WRITER, 3 },
        [CHANGE_SEAL] = { event_seal, WRITER, 6 },         [CHANGE_DISCARD] = { event_discard, WRITER, 3 },
        [CHANGE_COMMIT] = { event_commit, WRITER, 5 },     [CHANGE_REFRESH] = { event_refresh, READER, 3 },
        [CHANGE_SETTLE] = { event_settle, READER, 2 },     [CHANGE_CLEAR] = { event_clear, NOBODY, 2 },
        [CHANGE_EXITED] = { event_exited, NOBODY, 2 },
};

static enum change_type pick(unsigned share) {
        enum change_type t = CHANGE_ASK;
        for (; share >= kinds[t].share; t++)
                share -= kinds[t].share;
        return t;
}

static bool suits(const struct m_claim *c, enum change_type t) {
        switch (kinds[t].who) {
        case WRITER:
                return c->hold == WRITES || c->hold == UPDATES;
        case READER:
                return c->hold == READS;
        default:
                return true;
        }
}

/* Applies the change to one store, as the model expects it to be answered, and compares. */
static void apply(struct event *e, int expected) {
        struct m_store *s = e->s;
        struct layout *published = s->real->published;
        enum change_type t = e->change.type;
        struct effects fx;

        for (size_t i = 0; i < s->n; i++) /* true of the state that the event leaves, so no lie */
                for (size_t k = 0; k < s->n; k++)
                        if (s->claims[k].hold == WAITS && holds(&s->claims[i]) && would_hold(s, &s->claims[k]) != WAITS &&
                            conflict(s->claims[i].hold, would_hold(s, &s->claims[k])))
                                s->claims[i].news_possible |= NEWS_WANTED;
        effects_init(&fx);
        int r = store_apply(s->real, &e->change, &fx);
        MUST(r == expected);
        now->tally.done[t] += r == 0;
        now->tally.refused[t] += r != 0;
        if (r != 0)
                MUST(list_empty(&fx.released) && list_empty(&fx.news));
        if (t == CHANGE_ASK)
                e->c->real = e->change.ask.claim;
        if (t == CHANGE_ALLOCATE && r == 0)
                MUST(e->change.allocate.first_slot == e->c->view->next_slot - e->change.allocate.n);
        MUST(s->real->published == published || t == CHANGE_COMMIT || t == CHANGE_DISCARD || t == CHANGE_CLEAR);
        carry_out(s, &fx, e->fds, e->n_fds);
        compare_store(s);
        for (size_t i = 0; i < s->n; i++)
                s->claims[i].news = s->claims[i].news_possible = 0;
}

static void event_on(struct m_store *s, enum change_type t, struct m_claim *c, struct source *in) {
        struct event e = { .s = s, .c = c, .in = in, .change = { .type = t, .claim = c ? c->real : NULL } };
        apply(&e, kinds[t].make(&e));
        for (size_t i = 0; i < ARRAY_SIZE(e.entries); i++)
                free(e.entries[i]);
}

bool model_step(struct model *m, struct source *in) {
        now = m;
        if (in->end - in->next < 2)
                return false;
        uint8_t what = source_byte(in), where = source_byte(in);
        enum change_type t = pick(what % 64);
        struct m_store *s = &m->stores[where % STORES];
        m->events++;
        if (kinds[t].who != NOBODY ? s->n == 0 : t == CHANGE_ASK && s->n == CLAIMS)
                return true;
        if (t == CHANGE_EXITED) { /* every store hears of it */
                struct event first = { .s = s, .in = in, .change = { .type = t } };
                apply(&first, event_exited(&first));
                for (struct m_store *o = m->stores; o < m->stores + STORES; o++) {
                        struct event e = { .s = o, .change = first.change };
                        if (o == s)
                                continue;
                        grant_all(o);
                        apply(&e, 0);
                }
                return true;
        }
        struct m_claim *c = NULL;
        if (kinds[t].who != NOBODY) {
                c = &s->claims[where / STORES % s->n];
                /* one in four is whoever it is, the others somebody who may, if there is one */
                for (size_t i = 0; what >= 64 && i < s->n && !suits(c, t); i++)
                        c = &s->claims[(where / STORES + i) % s->n];
        }
        event_on(s, t, c, in);
        return true;
}

struct model *model_new(void) {
        struct model *m = calloc(1, sizeof(*m));
        assert(m);
        now = m;
        m->last_fd = FIRST_FD;
        for (int i = 0; i < PROCESSES; i++)
                m->processes[i] = ++m->last_process;
        for (int i = 0; i < STORES; i++) {
                char name[16];
                (void)snprintf(name, sizeof(name), "host/%d", i);
                MUST(store_new(&m->stores[i].real, name, m, 77 + (uint64_t)i) == 0);
        }
        return m;
}

void model_end(struct model *m, struct model_tally *tally) {
        static const uint8_t zero[1];
        struct source none = { zero, zero };
        now = m;
        for (struct m_store *s = m->stores; s < m->stores + STORES; s++) {
                while (s->n > 0)
                        event_on(s, CHANGE_LEAVE, &s->claims[s->n - 1], &none);
                event_on(s, CHANGE_CLEAR, NULL, &none);
                MUST(store_idle(s->real));
                MUST(s->real->epoch == 77 + (uint64_t)(s - m->stores));
                s->real = store_free(s->real);
        }
        for (size_t t = 0; tally && t < _CHANGE_MAX; t++) {
                tally->done[t] += m->tally.done[t];
                tally->refused[t] += m->tally.refused[t];
        }
        for (size_t i = 0; tally && i < _LOCK_MODE_MAX; i++)
                tally->granted[i] += m->tally.granted[i];
        if (tally) {
                tally->adopted += m->tally.adopted;
                tally->fenced += m->tally.fenced;
        }
        free(m);
}
