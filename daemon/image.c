// SPDX-License-Identifier: MIT
#include "image.h"

#include <string.h>

/* ---- to an image */

/*
 * Room for n messages and for the pointers to them, as protobuf-c wants repeated fields. The first pointer owns the messages
 * from the start, so that image_free() finds them whatever fails.
 */
static bool new_messages(size_t n, size_t size, void **ret_messages, void ***ret_pointers) {
        *ret_messages = NULL;
        *ret_pointers = calloc(n + 1, sizeof(**ret_pointers));
        if (!*ret_pointers)
                return false;
        if (n > 0 && !(**ret_pointers = *ret_messages = calloc(n, size)))
                return false;
        return true;
}

#define NEW_MESSAGES(n, messages, pointers) \
        new_messages((n), sizeof(*(messages)), (void **)&(messages), (void ***)&(pointers))

static bool fill_layout(Gmsj__LayoutImage *to, const struct layout *l) {
        Gmsj__Allocation *allocations;
        Gmsj__Metadata *metadata;
        gmsj__layout_image__init(to);
        to->generation = l->generation;
        if (l->identity)
                to->identity = l->identity;
        to->sealed = l->sealed;
        to->next_slot = l->next_slot;
        if (!NEW_MESSAGES(l->n_allocations, allocations, to->allocations))
                return false;
        for (size_t i = 0; i < l->n_allocations; i++) {
                const struct allocation *a = &l->allocations[i];
                gmsj__allocation__init(&allocations[i]);
                allocations[i].id = a->id;
                allocations[i].slot = a->slot;
                allocations[i].size = a->size;
                allocations[i].aligned = a->aligned;
                if (a->tag)
                        allocations[i].tag = a->tag;
                to->allocations[i] = &allocations[i];
        }
        to->n_allocations = l->n_allocations;
        if (!NEW_MESSAGES(l->n_metadata, metadata, to->metadata))
                return false;
        for (size_t i = 0; i < l->n_metadata; i++) {
                struct metadata *m = l->metadata[i];
                gmsj__metadata__init(&metadata[i]);
                metadata[i].key = m->key;
                metadata[i].slot = m->slot;
                metadata[i].offset = m->offset;
                metadata[i].value = (ProtobufCBinaryData){ .len = m->value_size, .data = (uint8_t *)metadata_value(m) };
                to->metadata[i] = &metadata[i];
        }
        to->n_metadata = l->n_metadata;
        return true;
}

/* Index from 1 of a layout among the store's; 0 for none. */
static uint32_t layout_number(const struct store *s, const struct layout *l) {
        uint32_t i = 0;
        if (!l)
                return 0;
        list_for(one, &s->layouts, struct layout, link) {
                i++;
                if (one == l)
                        return i;
        }
        abort();
}

static void add_claim(Gmsj__StoreImage *image, Gmsj__ClaimImage *to, const struct store *s, const struct claim *c) {
        gmsj__claim_image__init(to);
        to->session = c->id;
        to->want = c->lock.want;
        to->process = c->lock.process;
        to->held = c->lock.held;
        to->mode = c->lock.held ? c->lock.mode : 0;
        to->gone = c->gone;
        to->revoked = c->revoked;
        to->view = layout_number(s, c->view);
        to->next = layout_number(s, c->next);
        image->claims[image->n_claims++] = to;
}

static size_t list_length(const struct list *head) {
        size_t n = 0;
        for (const struct list *l = head->next; l != head; l = l->next)
                n++;
        return n;
}

int image_of_store(const struct store *s, const char *device_uuid, Gmsj__StoreImage **ret_image) {
        Gmsj__StoreImage *image = malloc(sizeof(*image));
        if (!image)
                return -ENOMEM;
        gmsj__store_image__init(image);
        image->name = s->name;
        image->device = (char *)device_uuid;
        image->epoch = s->epoch;
        image->generation = s->generation;
        image->fence = s->fence;

        size_t n_layouts = list_length(&s->layouts), n_claims = list_length(&s->claims);
        Gmsj__LayoutImage *layouts;
        Gmsj__ClaimImage *claims;
        if (!NEW_MESSAGES(n_layouts, layouts, image->layouts) || !NEW_MESSAGES(n_claims, claims, image->claims))
                goto no_memory;
        list_for(l, &s->layouts, struct layout, link) {
                Gmsj__LayoutImage *to = &layouts[image->n_layouts];
                image->layouts[image->n_layouts++] = to;
                if (!fill_layout(to, l))
                        goto no_memory;
        }
        image->published = layout_number(s, s->published);
        image->sealed = layout_number(s, s->sealed);
        image->draft = layout_number(s, s->draft);

        list_for(e, &s->lock.holders, struct lock_entry, link)
                add_claim(image, &claims[image->n_claims], s, container_of(e, struct claim, lock));
        list_for(e, &s->lock.queue, struct lock_entry, link)
                add_claim(image, &claims[image->n_claims], s, container_of(e, struct claim, lock));
        list_for(c, &s->claims, struct claim, link)
                if (c->gone)
                        add_claim(image, &claims[image->n_claims], s, c);
        assert(image->n_claims == n_claims);
        *ret_image = image;
        return 0;

no_memory:
        image_free(image);
        return -ENOMEM;
}

/* What NEW_MESSAGES() made. */
static void free_messages(void *pointers) {
        if (pointers)
                free(*(void **)pointers);
        free(pointers);
}

Gmsj__StoreImage *image_free(Gmsj__StoreImage *image) {
        if (!image)
                return NULL;
        for (size_t i = 0; i < image->n_layouts; i++) {
                free_messages(image->layouts[i]->allocations);
                free_messages(image->layouts[i]->metadata);
        }
        free_messages(image->layouts);
        free_messages(image->claims);
        free(image);
        return NULL;
}

/* ---- to a store */

static int make_layout(const Gmsj__LayoutImage *from, struct layout **ret_layout) {
        _cleanup_(layout_freep) struct layout *l = NULL;
        int r = layout_new(&l);
        if (r == 0)
                r = layout_reserve(l, from->n_allocations);
        if (r == 0)
                r = layout_reserve_metadata(l, from->n_metadata);
        if (r < 0)
                return r;
        l->refs = 0; /* counted as its references are found */
        l->generation = from->generation;
        l->sealed = from->sealed;
        if (*from->identity && !(l->identity = strdup(from->identity)))
                return -ENOMEM;
        for (size_t i = 0; i < from->n_allocations; i++) {
                const Gmsj__Allocation *a = from->allocations[i];
                char *tag = NULL;
                if (a->slot < l->next_slot)
                        return -EBADMSG;
                if (*a->tag && !(tag = strdup(a->tag)))
                        return -ENOMEM;
                l->next_slot = a->slot;
                layout_append(l, a->id, a->size, a->aligned, tag, -1);
        }
        if (from->next_slot < l->next_slot)
                return -EBADMSG;
        l->next_slot = from->next_slot;
        for (size_t i = 0; i < from->n_metadata; i++) {
                const Gmsj__Metadata *m = from->metadata[i];
                struct metadata *entry;
                if (!layout_find_slot(l, m->slot))
                        return -EBADMSG;
                r = metadata_new(&entry, m->key, m->slot, m->offset, m->value.data, m->value.len);
                if (r < 0)
                        return r;
                layout_put(l, &entry, 1);
        }
        *ret_layout = steal_ptr(&l);
        return 0;
}

/* A reference by number. */
static int refer(struct store *s, uint32_t number, struct layout **ret_layout) {
        if (number == 0)
                return 0;
        list_for(l, &s->layouts, struct layout, link) {
                if (--number == 0) {
                        l->refs++;
                        *ret_layout = l;
                        return 0;
                }
        }
        return -EBADMSG;
}

/* In the order in which they asked, as they were: the image has those that hold and wait first. */
static void insert_claim(struct store *s, struct claim *c) {
        struct list *after = s->claims.prev;
        while (after != &s->claims && container_of(after, struct claim, link)->id > c->id)
                after = after->prev;
        list_append(after->next, &c->link);
}

static int make_claim(struct store *s, const Gmsj__ClaimImage *from) {
        if (from->want >= _LOCK_WANT_MAX || from->mode >= _LOCK_MODE_MAX)
                return -EBADMSG;
        struct claim *c = calloc(1, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->id = from->session;
        c->gone = from->gone;
        c->revoked = from->revoked;
        c->lock.want = from->want;
        c->lock.process = from->process;
        list_init(&c->lock.link);
        list_init(&c->news_link);
        insert_claim(s, c);
        int r = refer(s, from->view, &c->view);
        if (r == 0)
                r = refer(s, from->next, &c->next);
        if (r == 0 && from->held) {
                c->lock.held = true;
                c->lock.mode = from->mode;
                list_append(&s->lock.holders, &c->lock.link);
                s->lock.held[c->lock.mode]++;
        } else if (r == 0 && !from->gone) {
                lock_ask(&s->lock, &c->lock);
                if (c->lock.want != LOCK_WANT_RO)
                        r = layout_new(&c->spare);
        }
        return r == 0 && c->lock.held && !c->view ? -EBADMSG : r;
}

/* What store.c would never have made, a daemon must not begin with. */
static bool plausible(const struct store *s) {
        unsigned writers = s->lock.held[LOCK_MODE_RW] + s->lock.held[LOCK_MODE_UPDATE];
        bool ok = writers <= 1 && (s->draft != NULL) == (writers == 1) && !(s->published && s->sealed) &&
                  (s->lock.held[LOCK_MODE_RW] == 0 || s->lock.held[LOCK_MODE_RO] == 0) &&
                  (!s->published || s->published->generation == s->generation);
        list_for(l, &s->layouts, struct layout, link)
                ok = ok && l->refs > 0;
        return ok;
}

int image_to_store(const Gmsj__StoreImage *image, struct store **ret_store) {
        struct store *s;
        int r = store_new(&s, image->name, NULL, image->epoch);
        if (r < 0)
                return r;
        s->generation = image->generation;
        s->fence = image->fence;
        for (size_t i = 0; r == 0 && i < image->n_layouts; i++) {
                struct layout *l;
                r = make_layout(image->layouts[i], &l);
                if (r == 0)
                        list_append(&s->layouts, &l->link);
        }
        if (r == 0)
                r = refer(s, image->published, &s->published);
        if (r == 0)
                r = refer(s, image->sealed, &s->sealed);
        if (r == 0)
                r = refer(s, image->draft, &s->draft);
        for (size_t i = 0; r == 0 && i < image->n_claims; i++)
                r = make_claim(s, image->claims[i]);
        if (r == 0 && !plausible(s))
                r = -EBADMSG;
        if (r < 0) {
                image_store_free(s);
                return r;
        }
        *ret_store = s;
        return 0;
}

struct store *image_store_free(struct store *s) {
        if (!s)
                return NULL;
        list_for_safe(c, &s->claims, struct claim, link) {
                layout_free(c->spare);
                list_unlink(&c->news_link);
                free(c);
        }
        list_for_safe(l, &s->layouts, struct layout, link)
                layout_free(l);
        list_init(&s->claims);
        return store_free(s);
}
