// SPDX-License-Identifier: MIT
#include "layout.h"

#include <endian.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* the state lives on the stack */
#include <xxhash.h>

int layout_new(struct layout **ret_layout) {
        struct layout *l = calloc(1, sizeof(*l));
        if (!l)
                return -ENOMEM;
        list_init(&l->link);
        l->refs = 1;
        l->listing.fd = -1;
        *ret_layout = l;
        return 0;
}

struct layout *layout_free(struct layout *l) {
        if (!l)
                return NULL;
        list_unlink(&l->link);
        for (size_t i = 0; i < l->n_allocations; i++)
                free(l->allocations[i].tag);
        for (size_t i = 0; i < l->n_metadata; i++)
                free(l->metadata[i]);
        free(l->allocations);
        free(l->metadata);
        free(l->identity);
        free(l);
        return NULL;
}

/* Grows an array to hold n elements of `size`, by half each time. */
static int grow(void **array, size_t *room, size_t n, size_t size) {
        if (n <= *room)
                return 0;
        size_t more = MAX(n, *room + *room / 2 + 4);
        void *p = reallocarray(*array, more, size);
        if (!p)
                return -ENOMEM;
        *array = p;
        *room = more;
        return 0;
}

int layout_reserve(struct layout *l, size_t n) {
        return grow((void **)&l->allocations, &l->room_allocations, l->n_allocations + n, sizeof(*l->allocations));
}

void layout_append(struct layout *l, uint64_t id, uint64_t size, uint64_t aligned, char *tag, int fd) {
        assert(l->n_allocations < l->room_allocations);
        l->allocations[l->n_allocations++] = (struct allocation){
                .id = id, .slot = l->next_slot++, .size = size, .aligned = aligned, .tag = tag, .fd = fd,
        };
        l->bytes += aligned;
        l->hashed = false;
}

static int compare_id(const void *id, const void *a) {
        uint64_t x = *(const uint64_t *)id, y = ((const struct allocation *)a)->id;
        return (x > y) - (x < y);
}

static int compare_slot(const void *slot, const void *a) {
        uint64_t x = *(const uint64_t *)slot, y = ((const struct allocation *)a)->slot;
        return (x > y) - (x < y);
}

struct allocation *layout_find_id(const struct layout *l, uint64_t id) {
        return l->n_allocations ? bsearch(&id, l->allocations, l->n_allocations, sizeof(*l->allocations), compare_id) : NULL;
}

struct allocation *layout_find_slot(const struct layout *l, uint64_t slot) {
        return l->n_allocations ? bsearch(&slot, l->allocations, l->n_allocations, sizeof(*l->allocations), compare_slot)
                                : NULL;
}

void layout_move(struct layout *l, const uint64_t *ids, size_t n, struct layout *to) {
        for (size_t i = 0; i < n; i++) {
                struct allocation *a = layout_find_id(l, ids[i]);
                if (a)
                        a->leaving = true;
        }

        size_t kept = 0;
        for (size_t i = 0; i < l->n_metadata; i++) {
                struct metadata *m = l->metadata[i];
                if (!layout_find_slot(l, m->slot)->leaving) {
                        l->metadata[kept++] = m;
                        continue;
                }
                l->metadata_bytes -= m->key_size + m->value_size;
                free(m);
        }
        l->n_metadata = kept;

        kept = 0;
        for (size_t i = 0; i < l->n_allocations; i++) {
                struct allocation *a = &l->allocations[i];
                if (!a->leaving) {
                        l->allocations[kept++] = *a;
                        continue;
                }
                assert(to->n_allocations < to->room_allocations);
                a->leaving = false;
                to->allocations[to->n_allocations++] = *a;
                to->bytes += a->aligned;
                l->bytes -= a->aligned;
        }
        l->n_allocations = kept;
        l->hashed = false;
}

const void *metadata_value(const struct metadata *m) {
        return m->key + m->key_size + 1;
}

int metadata_new(struct metadata **ret_entry, const char *key, uint64_t slot, uint64_t offset, const void *value,
                 size_t value_size) {
        size_t key_size = strlen(key);
        struct metadata *m = malloc(sizeof(*m) + key_size + 1 + value_size);
        if (!m)
                return -ENOMEM;
        *m = (struct metadata){ .slot = slot, .offset = offset, .value_size = value_size, .key_size = (uint32_t)key_size };
        memcpy(m->key, key, key_size + 1);
        if (value_size)
                memcpy(m->key + key_size + 1, value, value_size);
        *ret_entry = m;
        return 0;
}

/* Among the first `n` entries. */
static size_t find_key(const struct layout *l, size_t n, const char *key, bool *ret_found) {
        size_t low = 0, high = n;
        *ret_found = false;
        while (low < high) {
                size_t mid = low + (high - low) / 2;
                int c = strcmp(l->metadata[mid]->key, key);
                if (c < 0) {
                        low = mid + 1;
                } else {
                        high = mid;
                        *ret_found = *ret_found || c == 0;
                }
        }
        return low;
}

size_t layout_find_key(const struct layout *l, const char *key, bool *ret_found) {
        return find_key(l, l->n_metadata, key, ret_found);
}

int layout_reserve_metadata(struct layout *l, size_t n) {
        return grow((void **)&l->metadata, &l->room_metadata, l->n_metadata + n, sizeof(*l->metadata));
}

static size_t metadata_bytes(const struct metadata *m) {
        return m->key_size + m->value_size;
}

static int compare_entry(const void *a, const void *b) {
        const struct metadata *x = *(struct metadata *const *)a, *y = *(struct metadata *const *)b;
        int c = strcmp(x->key, y->key);
        return c ? c : (x->order > y->order) - (x->order < y->order);
}

/* The entries in order of their keys, each key once, as it was named last; how many. */
static size_t sort_entries(struct metadata **entries, size_t n) {
        size_t kept = 0;
        for (size_t i = 0; i < n; i++)
                entries[i]->order = (uint32_t)i;
        if (n > 0)
                qsort(entries, n, sizeof(*entries), compare_entry);
        for (size_t i = 0; i < n; i++) {
                if (kept > 0 && strcmp(entries[kept - 1]->key, entries[i]->key) == 0)
                        free(entries[--kept]);
                entries[kept++] = entries[i];
        }
        return kept;
}

/* Puts those in place whose keys are there; moves the others to the front; how many these are. */
static size_t replace_entries(struct layout *l, struct metadata **entries, size_t n) {
        size_t fresh = 0;
        for (size_t i = 0; i < n; i++) {
                bool found;
                size_t at = layout_find_key(l, entries[i]->key, &found);
                l->metadata_bytes += metadata_bytes(entries[i]);
                if (!found) {
                        entries[fresh++] = entries[i];
                        continue;
                }
                l->metadata_bytes -= metadata_bytes(l->metadata[at]);
                free(l->metadata[at]);
                l->metadata[at] = entries[i];
        }
        return fresh;
}

void layout_put(struct layout *l, struct metadata **entries, size_t n) {
        assert(l->listing.fd < 0);
        size_t fresh = replace_entries(l, entries, sort_entries(entries, n));
        size_t end = l->n_metadata, to = end + fresh; /* from the back: what lies above an entry moves there, then the entry */
        assert(to <= l->room_metadata);
        l->n_metadata = to;
        while (fresh > 0) {
                bool found;
                struct metadata *m = entries[--fresh];
                size_t at = find_key(l, end, m->key, &found);
                to -= end - at;
                memmove(&l->metadata[to], &l->metadata[at], (end - at) * sizeof(*l->metadata));
                end = at;
                l->metadata[--to] = m;
        }
        for (size_t i = 0; i < n; i++)
                entries[i] = NULL;
        l->hashed = false;
}

void layout_delete(struct layout *l, const size_t *indexes, size_t n) {
        assert(l->listing.fd < 0);
        size_t kept = n > 0 ? indexes[0] : l->n_metadata;
        for (size_t i = 0; i < n; i++) {
                size_t at = indexes[i], next = i + 1 < n ? indexes[i + 1] : l->n_metadata;
                assert(at <= next && at < l->n_metadata);
                if (at == next)
                        continue;
                l->metadata_bytes -= metadata_bytes(l->metadata[at]);
                free(l->metadata[at]);
                memmove(&l->metadata[kept], &l->metadata[at + 1], (next - at - 1) * sizeof(*l->metadata));
                kept += next - at - 1;
        }
        l->n_metadata = kept;
        l->hashed = false;
}

static void hash_number(XXH3_state_t *state, uint64_t value) {
        uint64_t le = htole64(value);
        XXH3_128bits_update(state, &le, sizeof(le));
}

static void hash_bytes(XXH3_state_t *state, const void *bytes, size_t n) {
        hash_number(state, n);
        if (n)
                XXH3_128bits_update(state, bytes, n);
}

const uint8_t *layout_hash(struct layout *l) {
        if (l->hashed)
                return l->hash;

        XXH3_state_t state;
        XXH3_128bits_reset(&state);
        hash_number(&state, l->n_allocations);
        for (size_t i = 0; i < l->n_allocations; i++) {
                const struct allocation *a = &l->allocations[i];
                hash_number(&state, a->aligned);
                hash_bytes(&state, a->tag, a->tag ? strlen(a->tag) : 0);
        }
        hash_number(&state, l->n_metadata);
        for (size_t i = 0; i < l->n_metadata; i++) {
                const struct metadata *m = l->metadata[i];
                const struct allocation *a = layout_find_slot(l, m->slot);
                assert(a);
                hash_bytes(&state, m->key, m->key_size);
                hash_number(&state, (uint64_t)(a - l->allocations));
                hash_number(&state, m->offset);
                hash_bytes(&state, metadata_value(m), m->value_size);
        }

        XXH128_canonical_t canonical;
        XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
        static_assert(sizeof(canonical.digest) == LAYOUT_HASH_SIZE, "128 bits");
        memcpy(l->hash, canonical.digest, LAYOUT_HASH_SIZE);
        l->hashed = true;
        return l->hash;
}
