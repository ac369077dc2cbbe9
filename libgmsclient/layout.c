// SPDX-License-Identifier: MIT
#include "layout.h"

#include <string.h>

#include "error.h"

void layout_done(struct layout *l) {
        free(l->at);
        *l = (struct layout){};
}

int layout_grow(struct layout *l, size_t n) {
        size_t need;
        if (__builtin_add_overflow(l->n, n, &need))
                return error_errno(-ENOMEM, "allocations");
        if (need <= l->room)
                return 0;

        size_t room = MAX(need, l->room + l->room / 2);
        struct mapping *at = reallocarray(l->at, room, sizeof(*at));
        if (!at)
                return error_errno(-ENOMEM, "allocations");
        l->at = at;
        l->room = room;
        return 0;
}

void layout_remove(struct layout *l, struct mapping *m) {
        size_t i = (size_t)(m - l->at);
        assert(i < l->n);
        memmove(m, m + 1, (--l->n - i) * sizeof(*m));
}

struct mapping *layout_find_slot(const struct layout *l, uint64_t slot) {
        size_t low = 0, high = l->n;
        while (low < high) {
                size_t mid = low + (high - low) / 2;
                if (l->at[mid].slot < slot)
                        low = mid + 1;
                else
                        high = mid;
        }
        return low < l->n && l->at[low].slot == slot ? &l->at[low] : NULL;
}

/* The daemon numbers both upwards, but promises order for slots only: ids are tried in order, then one by one. */
struct mapping *layout_find_id(const struct layout *l, uint64_t id) {
        size_t low = 0, high = l->n;
        while (low < high) {
                size_t mid = low + (high - low) / 2;
                if (l->at[mid].id < id)
                        low = mid + 1;
                else
                        high = mid;
        }
        if (low < l->n && l->at[low].id == id)
                return &l->at[low];
        for (size_t i = 0; i < l->n; i++)
                if (l->at[i].id == id)
                        return &l->at[i];
        return NULL;
}

int layout_id_from(struct layout_id *id, const Gms__Layout *layout) {
        *id = (struct layout_id){};
        if (!layout || (layout->generation == 0 && !layout->sealed)) /* still being built */
                return 0;
        if (layout->hash.len != GMS_HASH_SIZE)
                return error_set(-EPROTO, "the daemon sent a layout hash of %zu bytes; %d were expected", layout->hash.len,
                                 GMS_HASH_SIZE);
        id->known = true;
        id->epoch = layout->epoch;
        id->generation = layout->generation;
        layout_hash_from(id->hash, layout);
        return 0;
}

void layout_hash_from(uint8_t ret_hash[GMS_HASH_SIZE], const Gms__Layout *layout) {
        memset(ret_hash, 0, GMS_HASH_SIZE);
        if (layout->hash.len == GMS_HASH_SIZE)
                memcpy(ret_hash, layout->hash.data, GMS_HASH_SIZE);
}

bool layout_id_same(const struct layout_id *a, const struct layout_id *b) {
        return a->known && b->known && memcmp(a->hash, b->hash, GMS_HASH_SIZE) == 0;
}

bool layout_id_equal(const struct layout_id *a, const struct layout_id *b) {
        return layout_id_same(a, b) && a->epoch == b->epoch && a->generation == b->generation && a->generation > 0;
}
