// SPDX-License-Identifier: MIT
#include "heap.h"

#define LOOKS 4u        /* free blocks tried in a bin of which not all have room */
#define PLACES_BITS 11u /* the smallest table's */
#define CACHE_LINE 64u
#define CHUNK 63u       /* blocks that are made at a time */

#define unlikely(x) __builtin_expect(!!(x), 0)

/* ---- bins: sizes below 64 units have one each; above, 32 share what is between two powers of two */

static inline unsigned bin_shift(uint64_t units) {
        return (unsigned)(63 ^ __builtin_clzll(units | 32)) - 5;
}

static inline unsigned bin_of(uint64_t bytes) {
        uint64_t units = bytes / HEAP_UNIT;
        unsigned shift = bin_shift(units);
        return (shift << 5) + (unsigned)(units >> shift);
}

/* Whether no block in its bin is smaller. */
static inline bool bin_begins(uint64_t bytes) {
        uint64_t units = bytes / HEAP_UNIT;
        return (units & ((UINT64_C(1) << bin_shift(units)) - 1)) == 0;
}

/* The first bin from this one on that is not empty; HEAP_BINS: none is. */
static inline unsigned bin_filled(const struct heap *h, unsigned bin) {
        unsigned word = bin / 64;
        uint64_t bits = h->words[word] & (UINT64_MAX << bin % 64);
        if (!bits) {
                uint64_t words = h->words_filled & (UINT64_MAX << word << 1);
                if (!words)
                        return HEAP_BINS;
                word = (unsigned)__builtin_ctzll(words);
                bits = h->words[word];
        }
        return word * 64 + (unsigned)__builtin_ctzll(bits);
}

static inline struct block *bin_first(const struct heap *h, unsigned bin) {
        return list_entry(h->bins[bin].next, struct block, link);
}

/* The last to come is the first to go: it is in the cache. */
static inline void bin_put(struct heap *h, struct block *b, unsigned bin) {
        b->bin = bin;
        list_append(h->bins[bin].next, &b->link);
        h->words[bin / 64] |= UINT64_C(1) << bin % 64;
        h->words_filled |= UINT64_C(1) << bin / 64;
}

static inline void bin_take(struct heap *h, struct block *b) {
        unsigned bin = b->bin;
        list_unlink(&b->link);
        if (!list_empty(&h->bins[bin]))
                return;
        h->words[bin / 64] &= ~(UINT64_C(1) << bin % 64);
        if (!h->words[bin / 64])
                h->words_filled &= ~(UINT64_C(1) << bin / 64);
}

/* A free block grows or shrinks. A large one seldom changes its bin over a small piece. */
static inline void bin_resize(struct heap *h, struct block *b, uint64_t address, uint64_t bytes) {
        unsigned bin = bin_of(bytes);
        b->address = address;
        b->bytes = bytes;
        if (unlikely(bin != b->bin)) {
                bin_take(h, b);
                bin_put(h, b, bin);
        }
}

/* ---- places */

static inline size_t place_home(const struct heap *h, uint64_t address) {
        return (size_t)((address / HEAP_UNIT * UINT64_C(0x9e3779b97f4a7c15)) >> h->places_shift);
}

static inline size_t place_next(const struct heap *h, size_t i) {
        return (i + 1) & h->places_mask;
}

static inline void place_put(struct heap *h, struct block *b) {
        size_t i = place_home(h, b->address);
        while (unlikely(h->places[i]))
                i = place_next(h, i);
        h->places[i] = b;
}

/* Where the block that begins there is, or a place that is nobody's. */
static inline size_t place_find(const struct heap *h, uint64_t address) {
        size_t i = place_home(h, address);
        while (h->places[i] && unlikely(h->places[i]->address != address))
                i = place_next(h, i);
        return i;
}

/* Whoever is behind the gap, and is looked for from the gap or from before it, moves up. */
static inline void place_take(struct heap *h, size_t gap) {
        for (size_t i = place_next(h, gap); unlikely(h->places[i]); i = place_next(h, i)) {
                size_t home = place_home(h, h->places[i]->address);
                if (((i - home) & h->places_mask) < ((i - gap) & h->places_mask))
                        continue;
                h->places[gap] = h->places[i];
                gap = i;
        }
        h->places[gap] = NULL;
}

static int places_grow(struct heap *h) {
        struct block **old = h->places;
        size_t n = old ? h->places_mask + 1 : 0;
        unsigned bits = old ? 64 - h->places_shift + 1 : PLACES_BITS;
        struct block **places = calloc((size_t)1 << bits, sizeof(*places));
        if (!places)
                return -ENOMEM;
        h->places = places;
        h->places_mask = ((size_t)1 << bits) - 1;
        h->places_shift = 64 - bits;
        for (size_t i = 0; i < n; i++)
                if (old[i])
                        place_put(h, old[i]);
        free(old);
        return 0;
}

/* ---- blocks */

struct chunk {
        struct block blocks[CHUNK]; /* first, so that each is a cache line and not halves of two */
        struct chunk *next;
        char rest[sizeof(struct block) - sizeof(struct chunk *)];
};
_Static_assert(sizeof(struct block) == CACHE_LINE, "a block is a cache line");

static inline void block_drop(struct heap *h, struct block *b) {
        b->next = h->spare;
        h->spare = b;
}

static inline struct block *block_new(struct heap *h, struct slab *s, uint64_t address, uint64_t bytes) {
        struct block *b = h->spare;
        h->spare = b->next;
        b->slab = s;
        b->address = address;
        b->bytes = bytes;
        return b;
}

static int blocks_grow(struct heap *h) {
        struct chunk *c = aligned_alloc(CACHE_LINE, sizeof(*c));
        if (!c)
                return -ENOMEM;
        c->next = h->chunks;
        h->chunks = c;
        for (size_t i = CHUNK; i-- > 0;)
                block_drop(h, &c->blocks[i]);
        return 0;
}

/* What one change needs at most: two blocks and a place. */
static inline int ensure(struct heap *h) {
        int r = 0;
        if (unlikely(!h->spare || !h->spare->next))
                r = blocks_grow(h);
        if (unlikely((h->n_pieces + 1) * 4 > h->places_mask))
                r = r < 0 ? r : places_grow(h);
        return r;
}

static inline void join(struct block *left, struct block *right) {
        left->right = right;
        right->left = left;
}

/* ---- pieces */

static inline uint64_t round_up(uint64_t bytes) {
        return (bytes + HEAP_UNIT - 1) & ~(HEAP_UNIT - 1);
}

static inline uint64_t gap_before(const struct block *b, uint64_t alignment) {
        return -b->address & (alignment - 1);
}

/* The first few of a bin, of which some may have room. */
static inline struct block *look(const struct heap *h, unsigned bin, size_t looks, uint64_t bytes, uint64_t alignment) {
        for (const struct list *l = h->bins[bin].next; l != &h->bins[bin] && looks-- > 0; l = l->next) {
                struct block *b = list_entry(l, struct block, link);
                if (b->bytes >= bytes && b->bytes - bytes >= gap_before(b, alignment))
                        return b;
        }
        return NULL;
}

static inline struct block *find(const struct heap *h, uint64_t bytes, uint64_t alignment) {
        unsigned bin = bin_filled(h, bin_of(bytes));
        if (alignment > HEAP_UNIT || !bin_begins(bytes)) {
                uint64_t enough = bytes + alignment - HEAP_UNIT;
                unsigned sure = bin_of(enough) + !bin_begins(enough);
                if (bin < sure) {
                        struct block *b = look(h, bin, LOOKS, bytes, alignment);
                        if (b)
                                return b;
                        bin = bin_filled(h, sure);
                }
        }
        return bin < HEAP_BINS ? bin_first(h, bin) : NULL;
}

static struct block *find_any(const struct heap *h, uint64_t bytes, uint64_t alignment) {
        struct block *b = NULL;
        for (unsigned bin = bin_of(bytes); !b && (bin = bin_filled(h, bin)) < HEAP_BINS; bin++)
                b = look(h, bin, SIZE_MAX, bytes, alignment);
        return b;
}

/* Two free blocks of one; the second is about to be cut. */
static __attribute__((__noinline__)) struct block *part(struct heap *h, struct block *first, uint64_t bytes) {
        struct block *second = block_new(h, first->slab, first->address + bytes, first->bytes - bytes);
        join(second, first->right);
        join(first, second);
        bin_resize(h, first, first->address, bytes);
        bin_put(h, second, bin_of(second->bytes));
        return second;
}

/* A block to be used, out of a free one; what is before it and behind stays free. */
static inline __attribute__((__always_inline__)) struct block *cut(struct heap *h, struct block *from, uint64_t before,
                                                                   uint64_t bytes) {
        uint64_t behind = from->bytes - before - bytes;
        if (unlikely(from->left == from->right))
                h->n_empty--;
        if (unlikely(before > 0))
                from = part(h, from, before);
        if (behind == 0) {
                bin_take(h, from);
                return from;
        }
        struct block *b = block_new(h, from->slab, from->address, bytes);
        join(from->left, b);
        join(b, from);
        bin_resize(h, from, from->address + bytes, behind);
        return b;
}

static inline void use(struct heap *h, struct block *b, uint64_t requested, struct heap_piece *ret) {
        b->bin = BIN_NONE;
        b->requested = requested;
        place_put(h, b);
        h->n_pieces++;
        h->allocated += b->bytes;
        h->requested += requested;
        h->requested_peak = MAX(h->requested_peak, h->requested);
        ret->slot = b->slab->slot;
        ret->offset = b->address - b->slab->address;
        ret->address = b->address;
}

static inline __attribute__((__always_inline__)) int
take(struct heap *h, struct block *(*from)(const struct heap *h, uint64_t bytes, uint64_t alignment), uint64_t bytes,
     uint64_t alignment, struct heap_piece *ret) {
        alignment = MAX(alignment, HEAP_UNIT);
        if (unlikely(alignment > HEAP_MAX || bytes > HEAP_MAX - alignment))
                return HEAP_E_FULL;
        struct block *b = from(h, round_up(bytes), alignment);
        if (unlikely(!b))
                return HEAP_E_FULL;
        int r = ensure(h);
        if (r == 0)
                use(h, cut(h, b, gap_before(b, alignment), round_up(bytes)), bytes, ret);
        return r;
}

int heap_allocate(struct heap *h, uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        return take(h, find, bytes, alignment, ret);
}

int heap_search(struct heap *h, uint64_t bytes, uint64_t alignment, struct heap_piece *ret) {
        return take(h, find_any, bytes, alignment, ret);
}

int heap_allocate_first(struct heap *h, struct slab *s, uint64_t bytes, struct heap_piece *ret) {
        assert(slab_is_empty(s) && bytes > 0 && bytes <= s->bytes);

        int r = ensure(h);
        if (r == 0)
                use(h, cut(h, s->end.right, 0, round_up(bytes)), bytes, ret);
        return r;
}

bool heap_has(const struct heap *h, uint64_t address) {
        return h->places && h->places[place_find(h, address)];
}

int heap_free(struct heap *h, uint64_t address, struct slab **ret_emptied) {
        if (unlikely(!h->places))
                return HEAP_E_UNKNOWN;
        size_t place = place_find(h, address);
        struct block *b = h->places[place];
        if (unlikely(!b))
                return HEAP_E_UNKNOWN;
        place_take(h, place);
        h->n_pieces--;
        h->allocated -= b->bytes;
        h->requested -= b->requested;

        struct block *left = b->left, *right = b->right;
        uint64_t bytes = b->bytes;
        if (right->bin != BIN_NONE) {
                join(left, right);
                block_drop(h, b);
                bytes += right->bytes;
                b = right; /* in its bin as it was, so far */
        }
        if (left->bin != BIN_NONE) {
                join(left, b->right);
                if (b->bin != BIN_NONE)
                        bin_take(h, b);
                block_drop(h, b);
                bin_resize(h, left, left->address, left->bytes + bytes);
                b = left;
        } else if (b->bin != BIN_NONE)
                bin_resize(h, b, address, bytes);
        else
                bin_put(h, b, bin_of(bytes));
        bool emptied = b->left == b->right;
        h->n_empty += emptied;
        *ret_emptied = emptied ? b->slab : NULL;
        return 0;
}

/* ---- slabs */

int heap_add(struct heap *h, uint64_t id, uint64_t slot, uint64_t address, uint64_t bytes, struct slab **ret_slab) {
        assert(address > 0 && address % HEAP_UNIT == 0 && bytes > 0 && bytes % HEAP_UNIT == 0 && bytes <= HEAP_MAX);

        struct slab *s = malloc(sizeof(*s));
        if (!s || ensure(h) < 0) {
                free(s);
                return -ENOMEM;
        }
        *s = (struct slab){ .id = id, .slot = slot, .address = address, .bytes = bytes, .end.bin = BIN_NONE };
        struct block *b = block_new(h, s, address, bytes);
        join(&s->end, b);
        join(b, &s->end);
        bin_put(h, b, bin_of(bytes));
        list_append(&h->slabs, &s->link);
        h->n_slabs++;
        h->n_empty++;
        h->reserved += bytes;
        h->reserved_peak = MAX(h->reserved_peak, h->reserved);
        *ret_slab = s;
        return 0;
}

void heap_remove(struct heap *h, struct slab *s) {
        assert(slab_is_empty(s));

        bin_take(h, s->end.right);
        block_drop(h, s->end.right);
        list_unlink(&s->link);
        h->n_slabs--;
        h->n_empty--;
        h->reserved -= s->bytes;
        free(s);
}

void heap_init(struct heap *h) {
        *h = (struct heap){};
        for (size_t i = 0; i < HEAP_BINS; i++)
                list_init(&h->bins[i]);
        list_init(&h->slabs);
}

void heap_done(struct heap *h) {
        list_for_safe(s, &h->slabs, struct slab, link)
                free(s);
        for (struct chunk *c = h->chunks, *next; c; c = next) {
                next = c->next;
                free(c);
        }
        free(h->places);
}

uint64_t heap_largest(const struct heap *h) {
        if (!h->words_filled)
                return 0;
        unsigned word = (unsigned)(63 ^ __builtin_clzll(h->words_filled));
        unsigned bin = word * 64 + (unsigned)(63 ^ __builtin_clzll(h->words[word]));
        uint64_t largest = 0;
        list_for(b, &h->bins[bin], const struct block, link)
                largest = MAX(largest, b->bytes);
        return largest;
}

/* ---- the check */

/* What one slab comes to. */
struct tally {
        size_t used, free;
        uint64_t allocated, requested;
};

static const char *check_block(const struct heap *h, const struct block *b, const struct slab *s, struct tally *t) {
        if (b->slab != s)
                return "a block knows its slab";
        if (b->bytes == 0 || b->address % HEAP_UNIT != 0 || b->bytes % HEAP_UNIT != 0)
                return "a block begins at a unit and has some, whole ones";
        if (b->left->right != b || b->right->left != b)
                return "neighbours know each other";
        if (b->bin == BIN_NONE) {
                if (b->requested == 0 || round_up(b->requested) != b->bytes)
                        return "a used block has the units that were asked for, and no more";
                if (h->places[place_find(h, b->address)] != b)
                        return "a used block is found by its address";
                t->used++;
                t->allocated += b->bytes;
                t->requested += b->requested;
                return NULL;
        }
        if (b->right->bin != BIN_NONE)
                return "no two neighbours are free";
        if (b->bin != bin_of(b->bytes))
                return "a free block is in the bin of its size";
        t->free++;
        return NULL;
}

static const char *check_slab(const struct heap *h, const struct slab *s, struct tally *t) {
        uint64_t at = s->address;
        const char *what = NULL;
        for (const struct block *b = s->end.right; !what && b != &s->end; b = b->right) {
                if (b->address != at)
                        return "blocks tile their slab";
                what = check_block(h, b, s, t);
                at += b->bytes;
        }
        if (!what && (at != s->address + s->bytes || s->end.bin != BIN_NONE))
                what = "blocks tile their slab, to its end";
        return what;
}

static const char *check_bins(const struct heap *h, size_t n_free) {
        size_t n = 0;
        for (unsigned i = 0; i < HEAP_BINS; i++) {
                if (list_empty(&h->bins[i]) == (h->words[i / 64] >> i % 64 & 1))
                        return "a bin's bit says whether it is filled";
                list_for(b, &h->bins[i], const struct block, link)
                        if (b->bin != i || ++n > n_free)
                                return "a bin has its blocks, and once";
        }
        for (unsigned i = 0; i < HEAP_WORDS; i++)
                if ((h->words[i] != 0) != (h->words_filled >> i & 1))
                        return "a word's bit says whether it is filled";
        return n == n_free ? NULL : "all free blocks are in bins";
}

const char *heap_check(const struct heap *h) {
        struct tally t = {};
        size_t slabs = 0, empty = 0, places = 0;
        uint64_t reserved = 0;
        list_for(s, &h->slabs, const struct slab, link) {
                const char *what = check_slab(h, s, &t);
                if (what)
                        return what;
                slabs++;
                empty += slab_is_empty(s);
                reserved += s->bytes;
        }
        for (size_t i = 0; h->places && i <= h->places_mask; i++)
                places += h->places[i] != NULL;
        if (slabs != h->n_slabs || empty != h->n_empty || t.used != h->n_pieces || places != h->n_pieces)
                return "slabs, empty ones, pieces and places are as many as counted";
        if (reserved != h->reserved || t.allocated != h->allocated || t.requested != h->requested)
                return "bytes reserved, allocated and requested are the sums";
        if (h->reserved > h->reserved_peak || h->requested > h->requested_peak)
                return "nothing is above its peak";
        return check_bins(h, t.free);
}
