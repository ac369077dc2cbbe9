// SPDX-License-Identifier: MIT
#pragma once
/*
 * A listing: metadata entries one behind the other in a memfd, for what is too much for a frame. The daemon makes it once
 * of a layout that does not change any more and gives the same descriptor to every reader; sealed, it stays what it was
 * when the reader looked.
 *
 * An entry is its head, its key with the closing 0, its value, and zeros up to a multiple of 8. Numbers are the machine's
 * own: both ends run on it.
 */
#include "base.h"

#define LISTING_MAX (1u << 20) /* bytes of one, some 9,000 tensors: what is behind it comes in frames. It takes 0.7 ms to make */

enum {
        _LISTING_E_SUCCESS,
        LISTING_E_MALFORMED, /* not sealed, shorter than was said, or no entries are in it */
};

struct listing_entry {
        uint64_t slot;
        uint64_t offset;
        uint32_t key_size; /* without the closing 0 */
        uint32_t value_size;
        const char *key;
        const void *value;
};

/* Bytes of an entry in a listing. */
size_t listing_size(size_t key_size, size_t value_size);
/* Writes an entry to `at`, which has room for it; returns its bytes. */
size_t listing_pack(uint8_t *at, const struct listing_entry *e);
/* A sealed memfd of these bytes, the caller's. Negative errno. */
int listing_seal(const uint8_t *bytes, size_t size, int *ret_fd);

struct listing {
        const uint8_t *bytes; /* NULL: none */
        size_t size;
        size_t next;          /* where the next entry begins */
};

/* Maps what a peer calls a listing of `size` bytes; the descriptor stays the caller's. 0, LISTING_E_MALFORMED, negative errno. */
int listing_map(struct listing *ret_listing, int fd, uint64_t size);
void listing_unmap(struct listing *l);
/* The next entry, which lives as long as the mapping. *ret_more false: there was none. 0, LISTING_E_MALFORMED. */
int listing_next(struct listing *l, struct listing_entry *ret, bool *ret_more);
