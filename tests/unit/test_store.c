// SPDX-License-Identifier: MIT
/*
 * The store alone: the table of its states event by event, every refusal, what each change releases and tells; then
 * random events against a model.
 */
#undef NDEBUG
#include <check.h>
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "../fuzz/store_model.h"

/* ---- a store, and what is known of its descriptors */

#define FIRST_FD 1000000 /* numbers, not descriptors: closing one would be an error */
#define FDS_MAX 512

static struct store *store;
static struct claim *claims[26];
static unsigned heard[26]; /* enum news, since the last change */
static bool live[FDS_MAX];
static int next_fd, released_now;
static uint64_t next_id;

static void setup(void) {
        ck_assert_int_eq(store_new(&store, "host/test", NULL, 5), 0);
        ck_assert(store_idle(store));
}

static void take_effects(struct effects *fx) {
        released_now = 0;
        memset(heard, 0, sizeof(heard));
        while (!list_empty(&fx->released)) {
                struct layout *l = list_first(&fx->released, struct layout, link);
                for (size_t i = 0; i < l->n_allocations; i++) {
                        int n = l->allocations[i].fd - FIRST_FD;
                        ck_assert_msg(n >= 0 && n < next_fd && live[n], "descriptor %d released, and was not held", n);
                        live[n] = false;
                        released_now++;
                }
                layout_free(l);
        }
        while (!list_empty(&fx->news)) {
                struct claim *c = list_first(&fx->news, struct claim, news_link);
                heard[(const char *)c->owner - (const char *)heard] = c->news;
                list_unlink(&c->news_link);
                c->news = 0;
        }
}

/* All of a store that can be seen, as text. */
static char *dump(void) {
        char *text = NULL;
        size_t size;
        FILE *f = open_memstream(&text, &size);
        ck_assert_ptr_nonnull(f);
        (void)fprintf(f, "%s generation %lu fence %lu epoch %lu published %p sealed %p draft %p\n", store_state(store),
                      store->generation, store->fence, store->epoch, (void *)store->published, (void *)store->sealed,
                      (void *)store->draft);
        list_for(c, &store->claims, struct claim, link)
                (void)fprintf(f, "claim %p want %d held %d mode %d process %lu gone %d news %u view %p next %p spare %p\n", (void *)c,
                              c->lock.want, c->lock.held, c->lock.held ? (int)c->lock.mode : -1, c->lock.process, c->gone, c->news,
                              (void *)c->view, (void *)c->next, (void *)c->spare);
        list_for(e, &store->lock.holders, struct lock_entry, link)
                (void)fprintf(f, "holds %p\n", (void *)e);
        list_for(e, &store->lock.queue, struct lock_entry, link)
                (void)fprintf(f, "waits %p\n", (void *)e);
        list_for(l, &store->layouts, struct layout, link) {
                (void)fprintf(f, "layout %p refs %u generation %lu sealed %d identity %s bytes %lu next %lu metadata %zu\n",
                              (void *)l, l->refs, l->generation, l->sealed, l->identity ? l->identity : "", l->bytes, l->next_slot,
                              l->metadata_bytes);
                for (size_t i = 0; i < l->n_allocations; i++) {
                        const struct allocation *a = &l->allocations[i];
                        (void)fprintf(f, " %lu %lu %lu %lu %d %s\n", a->id, a->slot, a->size, a->aligned, a->fd, a->tag ? a->tag : "");
                }
                for (size_t i = 0; i < l->n_metadata; i++)
                        (void)fprintf(f, " %s %lu %lu %zu\n", l->metadata[i]->key, l->metadata[i]->slot, l->metadata[i]->offset,
                                      l->metadata[i]->value_size);
        }
        ck_assert_int_eq(fclose(f), 0);
        return text;
}

/* Applies a change; one that is refused must have changed and told nothing. */
static int apply(struct change *c) {
        struct effects fx;
        char *before = dump();
        effects_init(&fx);
        int r = store_apply(store, c, &fx);
        if (r != 0) {
                char *after = dump();
                ck_assert_str_eq(before, after);
                ck_assert(list_empty(&fx.released) && list_empty(&fx.news));
                free(after);
        }
        free(before);
        take_effects(&fx);
        return r;
}

static int ask(char who, enum lock_want want, uint64_t process) {
        /* the owner says who it is by where it points */
        struct change c = { .type = CHANGE_ASK, .ask = { .want = want, .process = process, .owner = (char *)heard + (who - 'A') } };
        int r = apply(&c);
        claims[who - 'A'] = c.ask.claim;
        return r;
}

static int leave(char who) {
        struct change c = { .type = CHANGE_LEAVE, .claim = claims[who - 'A'] };
        claims[who - 'A'] = NULL;
        return apply(&c);
}

static int allocate(char who, size_t n, uint64_t size, const char *tag, uint64_t *ret_first_slot) {
        struct change_allocation items[16];
        ck_assert_uint_le(n, ARRAY_SIZE(items));
        ck_assert_int_le(next_fd + (int)n, FDS_MAX);
        for (size_t i = 0; i < n; i++)
                items[i] = (struct change_allocation){ .size = size, .aligned = (size + 4095) / 4096 * 4096, .tag = tag,
                                                       .fd = FIRST_FD + next_fd + (int)i };
        struct change c = { .type = CHANGE_ALLOCATE, .claim = claims[who - 'A'],
                            .allocate = { .first_id = next_id + 1, .items = items, .n = n } };
        int r = apply(&c);
        for (size_t i = 0; r == 0 && i < n; i++)
                live[next_fd++] = true;
        next_id += r == 0 ? n : 0;
        if (ret_first_slot)
                *ret_first_slot = c.allocate.first_slot;
        return r;
}

static int free_ids(char who, const uint64_t *ids, size_t n, size_t *ret_failed) {
        struct change c = { .type = CHANGE_FREE, .claim = claims[who - 'A'], .free = { .ids = ids, .n = n } };
        int r = apply(&c);
        if (ret_failed)
                *ret_failed = c.failed;
        return r;
}

struct put {
        const char *key;
        uint64_t slot, offset;
        const char *value;
};

static int put(char who, const struct put *puts, size_t n, size_t *ret_failed) {
        struct metadata *entries[8];
        ck_assert_uint_le(n, ARRAY_SIZE(entries));
        for (size_t i = 0; i < n; i++)
                ck_assert_int_eq(metadata_new(&entries[i], puts[i].key, puts[i].slot, puts[i].offset, puts[i].value,
                                              strlen(puts[i].value)), 0);
        struct change c = { .type = CHANGE_PUT, .claim = claims[who - 'A'], .put = { .entries = entries, .n = n } };
        int r = apply(&c);
        for (size_t i = 0; i < n; i++) {
                ck_assert_int_eq(entries[i] == NULL, r == 0);
                free(entries[i]);
        }
        if (ret_failed)
                *ret_failed = c.failed;
        return r;
}

static int delete(char who, char **keys, size_t n, size_t *ret_failed) {
        struct change c = { .type = CHANGE_DELETE, .claim = claims[who - 'A'], .delete = { .keys = keys, .n = n } };
        int r = apply(&c);
        if (ret_failed)
                *ret_failed = c.failed;
        return r;
}

static int change(char who, enum change_type type) {
        struct change c = { .type = type, .claim = claims[who - 'A'] };
        return apply(&c);
}

static int commit(char who, const char *identity, bool leaves) {
        struct change c = { .type = CHANGE_COMMIT, .claim = claims[who - 'A'], .commit = { identity, leaves } };
        return apply(&c);
}

static int settle(char who, uint64_t generation) {
        struct change c = { .type = CHANGE_SETTLE, .claim = claims[who - 'A'], .settle = { generation } };
        return apply(&c);
}

static int clear(bool force) {
        struct change c = { .type = CHANGE_CLEAR, .clear = { force } };
        return apply(&c);
}

static int exited(uint64_t process) {
        struct change c = { .type = CHANGE_EXITED, .exited = { process } };
        return apply(&c);
}

/* Everybody goes, and what is left is cleared: then every descriptor was released, once. */
static void teardown(void) {
        for (char who = 'A'; who <= 'Z'; who++)
                if (claims[who - 'A'])
                        ck_assert_int_eq(leave(who), 0);
        ck_assert_int_eq(clear(false), 0);
        ck_assert(store_idle(store));
        for (int i = 0; i < next_fd; i++)
                ck_assert_msg(!live[i], "descriptor %d was never released", i);
        store = store_free(store);
        ck_assert_ptr_null(store);
}

/* ---- stories */

/*
 * A story is steps with spaces between. An upper case letter is a session, and
 *   A+r A+u A+w A+o A+a   asks RO, UPDATE, RW, RW_OR_RO, ADOPT; a digit behind it is its process, else each has its own
 *   A-  Aa  Af  Ap  Ak    leaves; allocates one; frees the newest; puts a key at the newest; deletes that key
 *   As  Ad  Ac  Al        seals; discards; commits and reads on; commits and leaves the lock
 *   Ar  At1               refreshes; settles on generation 1
 *   clear  force  x3      the administrator; process 3 exits
 * What must come of it stands behind, in this order, and what does not stand there must not come:
 *   !WORD                 refused: the end of a STORE_E_ name
 *   =BC                   granted, whatever the order   ?B  told that it is wanted
 *   *B                    told of a new generation      %B  revoked
 *   ^2                    descriptors released
 *   :STATE                the state afterwards, always said
 */
struct story {
        const char *name, *steps;
};

/* One line of the table of design section 4 after the other, each cell as it is reached. */
static const struct story state_table[] = {
        { "EMPTY, RW asked", "A+w=A:RW" },
        { "EMPTY, RO asked", "A+r:EMPTY" },
        { "EMPTY, clear", "clear:EMPTY force:EMPTY" },
        { "RW, RW asked", "A+w=A:RW B+w?A:RW" },
        { "RW, RO asked", "A+w=A:RW B+r:RW" },
        { "RW, commits", "A+w=A:RW Aa:RW Ac:RO" },
        { "RW, commits and leaves", "A+w=A:RW Aa:RW Al:COMMITTED" },
        { "RW, commits nothing", "A+w=A:RW Ac:RO A-:COMMITTED" },
        { "RW, lost over nothing", "A+w=A:RW Aa:RW Aa:RW A-^2:EMPTY" },
        { "RW, lost over a publication", "A+w=A:RW Aa:RW Al:COMMITTED B+w=B:RW Ba:RW B-^1:COMMITTED" },
        { "RW, lost over a sealed layout", "A+w=A:RW Aa:RW As:RW A-:SEALED B+w=B:RW Ba:RW B-^1:SEALED" },
        { "RW, clear", "A+w=A:RW Aa:RW clear!HELD:RW" },
        { "RW, clear by force", "A+w=A:RW Aa:RW force%A^1:EMPTY" },
        { "COMMITTED, RW asked", "A+w=A:RW Al:COMMITTED B+w=B:RW" },
        { "COMMITTED, RO asked", "A+w=A:RW Al:COMMITTED B+r=B:RO" },
        { "COMMITTED, clear", "A+w=A:RW Aa:RW Al:COMMITTED clear^1:EMPTY" },
        { "RO, RW asked", "A+w=A:RW Ac:RO B+w?A:RO" },
        { "RO, RO asked", "A+w=A:RW Ac:RO B+r=B:RO" },
        { "RO, RO asked behind a writer", "A+w=A:RW Ac:RO B+w?A:RO C+r:RO" },
        { "RO, last reader leaves", "A+w=A:RW Ac:RO B+r=B:RO A-:RO B-:COMMITTED" },
        { "RO, clear", "A+w=A:RW Ac:RO clear!HELD:RO" },
        { "RO, clear by force", "A+w=A:RW Aa:RW Ac:RO B+r=B:RO force%AB^1:EMPTY" },
        { "SEALED, RW asked", "A+w=A:RW Aa:RW As:RW A-:SEALED B+w=B:RW" },
        { "SEALED, RO asked", "A+w=A:RW Aa:RW As:RW A-:SEALED B+r:SEALED" },
        { "SEALED, clear", "A+w=A:RW Aa:RW As:RW A-:SEALED clear^1:EMPTY" },
};

static const struct story stories[] = {
        /* publishing */
        { "a reader that waits gets the first publication", "A+w=A:RW B+r:RW Aa:RW Ac=B:RO A-:RO B-:COMMITTED" },
        { "no writer slips in between commit and reading", "A+w=A:RW B+w?A:RW Ac:RO A-=B:RW" },
        { "one slips in when the writer leaves", "A+w=A:RW B+w?A:RW Al=B:RW" },
        { "the next publication frees the one before", "A+w=A:RW Aa:RW Al:COMMITTED B+w=B:RW Ba:RW Ba:RW Bl^1:COMMITTED clear^2:EMPTY" },
        { "a waiting writer is let in by the last reader", "A+w=A:RW Ac:RO B+r=B:RO C+w?AB:RO A-:RO B-=C:RW" },
        { "who left at commit holds nothing", "A+w=A:RW Al:COMMITTED Aa!GONE:COMMITTED Ac!GONE:COMMITTED Ar!GONE:COMMITTED" },
        { "commit of a sealed layout publishes it", "A+w=A:RW Aa:RW As:RW Ac:RO Aa!NOT_WRITER:RO" },
        { "RW_OR_RO attaches, or builds", "A+o=A:RW B+o?A:RW Ac=B:RO" },

        /* updates */
        { "an update beside readers", "A+w=A:RW Aa:RW Ac:RO B+r=B:RO U+u=U:RO Ua:RO Uc*AB:RO A-:RO B-^1:RO U-:COMMITTED" },
        { "an update alone on a publication", "A+w=A:RW Aa:RW Al:COMMITTED U+u=U:COMMITTED Ua:COMMITTED U-^1:COMMITTED" },
        { "an update without a publication", "U+u=U:RW B+r:RW Ua:RW Uc=B:RO" },
        { "an update that dies leaves the readers theirs", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ua:RO U-^1:RO" },
        { "the second update waits, and a reader passes it", "A+w=A:RW Ac:RO U+u=U:RO V+u?U:RO B+r=B:RO U-=V:RO" },
        { "three generations drain", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ua:RO Uc*A:RO V+u=V:RO Va:RO Vc*AU:RO A-^1:RO U-^1:RO" },
        { "and the last who has one frees it", "A+w=A:RW Aa:RW Ac:RO B+r=B:RO U+u=U:RO Uc*AB:RO B-:RO A-^1:RO" },

        /* moving to the newest */
        { "refresh pins both, settle keeps one",
          "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ua:RO Uc*A:RO Ar:RO V+u=V:RO Va:RO Vc*AU:RO U-:RO At2^1:RO A-^1:RO" },
        { "settle on the old one", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ul*A:RO Ar:RO At1:RO At2!NO_GENERATION:RO A-^1:COMMITTED" },
        { "refresh again takes the newest", "A+w=A:RW Ac:RO U+u=U:RO Ua:RO Ul*A:RO Ar:RO V+u=V:RO Va:RO Vl*A^0:RO Ar^1:RO At3:RO" },
        { "refresh without anything new", "A+w=A:RW Ac:RO Ar:RO At1:RO At2!NO_GENERATION:RO" },
        { "a reader that leaves in the middle of it", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ua:RO Ul*A:RO Ar:RO A-^1:COMMITTED clear^1:EMPTY" },
        { "refresh of what was discarded", "A+w=A:RW Ac:RO U+u=U:RO Ud:RW Ar!UNPUBLISHED:RW At1:RW" },
        { "a writer does not refresh", "A+w=A:RW Ar!NOT_READER:RW At0!NOT_READER:RW" },
        { "nor does who waits", "A+w=A:RW B+w?A:RW Br!NOT_READER:RW Ba!NOT_WRITER:RW Bc!NOT_WRITER:RW" },

        /* discarding */
        { "discard makes room and cannot be taken back", "A+w=A:RW Aa:RW Al:COMMITTED B+w=B:RW Bd^1:RW B-:EMPTY" },
        { "discard beside readers drains", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ud:RW A-^1:RW U-:EMPTY" },
        { "readers of what was discarded hear of what replaces it", "A+w=A:RW Ac:RO U+u=U:RO Ud:RW Uc*A:RO" },
        { "who asks after a discard waits for the next", "A+w=A:RW Ac:RO U+u=U:RO Ud:RW B+r:RW Uc=B*A:RO" },
        { "discard of nothing", "A+w=A:RW Ad:RW Ad:RW" },
        { "discard of a sealed layout", "A+w=A:RW Aa:RW As:RW A-:SEALED B+w=B:RW Bd^1:RW B-:EMPTY" },
        { "a reader does not discard", "A+w=A:RW Ac:RO Ad!NOT_WRITER:RO As!NOT_WRITER:RO" },

        /* sealing and adopting */
        { "what is sealed has its shape", "A+w=A:RW Aa:RW Ap:RW As:RW Aa!SEALED:RW Af!SEALED:RW Ap!SEALED:RW Ak!SEALED:RW As:RW" },
        { "and keeps it when it is adopted", "A+w=A:RW Aa:RW As:RW A-:SEALED xA:SEALED B+a=B:RW Ba!SEALED:RW" },
        { "it outlives writer, adopter, adopter",
          "A+w=A:RW Aa:RW As:RW A-:SEALED xA:SEALED B+a=B:RW B-:SEALED xB:SEALED C+a=C:RW C-:SEALED clear^1:EMPTY" },
        { "adopting waits until the writer before has exited", "A+w1=A:RW As:RW A-:SEALED B+a:SEALED x2:SEALED x1=B:RW" },
        { "adopter after adopter waits for each", "A+w1=A:RW As:RW A-:SEALED x1:SEALED B+a2=B:RW C+a3?B:RW B-:SEALED x1:SEALED x2=C:RW" },
        { "the own process may at once", "A+w1=A:RW As:RW A-:SEALED B+a1=B:RW B-:SEALED C+a2:SEALED" },
        { "a process that nobody knows is not waited for", "A+w0=A:RW As:RW A-:SEALED B+a1=B:RW" },
        { "the writer's process exits before its session ends", "A+w1=A:RW As:RW x1:RW A-:SEALED B+a2=B:RW" },
        { "so does the adopter's", "A+w1=A:RW As:RW A-:SEALED x1:SEALED B+a2=B:RW x2:RW B-:SEALED C+a3=C:RW" },
        { "the adopter keeps its place", "A+w1=A:RW As:RW A-:SEALED B+a2:SEALED C+w3:SEALED x1=B:RW B-=C:RW" },
        { "a writer before it may replace what is sealed", "A+w1=A:RW Aa:RW As:RW B+w2?A:RW C+a3?A:RW A-=B:RW Ba:RW Bl^1=C:RW" },
        { "ADOPT with nothing sealed builds", "A+a=A:RW Aa:RW A-^1:EMPTY" },
        { "ADOPT over a publication builds too", "A+w=A:RW Al:COMMITTED B+a=B:RW Ba:RW B-^1:COMMITTED" },
        { "sealing over a publication is refused, after a discard not",
          "A+w=A:RW Aa:RW Al:COMMITTED B+w=B:RW Ba:RW Bs!PUBLISHED:RW Bd^1:RW Bs:RW B-:SEALED" },
        { "sealing again replaces what was sealed", "A+w=A:RW Aa:RW As:RW A-:SEALED B+w=B:RW Ba:RW Bs:RW B-^1:SEALED clear^1:EMPTY" },
        { "publishing replaces what was sealed", "A+w=A:RW Aa:RW As:RW A-:SEALED B+w=B:RW Bc^1:RO" },
        { "an adopted layout can be published", "A+w0=A:RW Aa:RW As:RW A-:SEALED B+a=B:RW Bc:RO C+r=C:RO" },

        /* the administrator */
        { "force takes all, and those who wait go on", "A+w=A:RW Aa:RW B+w?A:RW C+r:RW force=B%A^1:RW Aa!GONE:RW Ar!GONE:RW" },
        { "force on a writer over a publication", "A+w=A:RW Aa:RW Al:COMMITTED B+w=B:RW Ba:RW force%B^2:EMPTY" },
        { "force on what drains", "A+w=A:RW Aa:RW Ac:RO U+u=U:RO Ua:RO Uc*A:RO Ar:RO force%AU^2:EMPTY" },
        { "force on a sealed draft", "A+w=A:RW Aa:RW As:RW force%A^1:EMPTY" },
        { "clear with only waiters", "A+r:EMPTY clear:EMPTY B+w=B:RW Bc=A:RO" },
        { "a store goes on after it was cleared", "A+w=A:RW Al:COMMITTED clear:EMPTY B+w=B:RW Bc:RO" },

        /* leaving */
        { "who waits can leave", "A+w=A:RW B+w?A:RW C+r:RW B-:RW Ac=C:RO" },
        { "a waiting writer that leaves lets in who stood behind", "A+w=A:RW Ac:RO B+w?A:RO C+r:RO B-=C:RO" },
        { "frees are released one by one", "A+w=A:RW Aa:RW Aa:RW Af^1:RW Af^1:RW Af!NO_ALLOCATION:RW" },
        { "keys", "A+w=A:RW Ap!NO_SLOT:RW Aa:RW Ak!NO_KEY:RW Ap:RW Ap:RW Ak:RW Ak!NO_KEY:RW" },
};

static const struct {
        const char *name;
        int code;
} refusals[] = {
        { "GONE", STORE_E_GONE }, { "NOT_WRITER", STORE_E_NOT_WRITER }, { "NOT_READER", STORE_E_NOT_READER },
        { "SEALED", STORE_E_SEALED }, { "PUBLISHED", STORE_E_PUBLISHED }, { "UNPUBLISHED", STORE_E_UNPUBLISHED },
        { "HELD", STORE_E_HELD }, { "NO_ALLOCATION", STORE_E_NO_ALLOCATION }, { "NO_SLOT", STORE_E_NO_SLOT },
        { "NO_KEY", STORE_E_NO_KEY }, { "NO_GENERATION", STORE_E_NO_GENERATION },
};

static uint64_t process_named(char c) {
        return isdigit((unsigned char)c) ? (uint64_t)(c - '0') : (uint64_t)c;
}

static int play(const char *step) {
        static const char want_letters[] = "ruwoa";
        char who = step[0];
        const struct claim *c = isupper((unsigned char)who) ? claims[who - 'A'] : NULL;
        const struct layout *view = c ? c->view : NULL;
        const struct allocation *newest = view && view->n_allocations ? &view->allocations[view->n_allocations - 1] : NULL;

        if (strncmp(step, "clear", 5) == 0 || strncmp(step, "force", 5) == 0)
                return clear(*step == 'f');
        if (who == 'x')
                return exited(process_named(step[1]));
        switch (step[1]) {
        case '+': {
                const char *want = strchr(want_letters, step[2]);
                ck_assert_ptr_nonnull(want);
                return ask(who, (enum lock_want)(want - want_letters), process_named(isdigit((unsigned char)step[3]) ? step[3] : who));
        }
        case '-':
                return leave(who);
        case 'a':
                return allocate(who, 1, 100, "t", NULL);
        case 'f':
                return free_ids(who, (uint64_t[]){ newest ? newest->id : 0 }, 1, NULL);
        case 'p':
                return put(who, (struct put[]){ { "key", newest ? newest->slot : 0, 0, "value" } }, 1, NULL);
        case 'k':
                return delete(who, (char *[]){ (char *)"key" }, 1, NULL);
        case 's':
                return change(who, CHANGE_SEAL);
        case 'd':
                return change(who, CHANGE_DISCARD);
        case 'c':
        case 'l':
                return commit(who, "v1", step[1] == 'l');
        case 'r':
                return change(who, CHANGE_REFRESH);
        case 't':
                return settle(who, (uint64_t)(step[2] - '0'));
        default:
                ck_abort_msg("not a step: %s", step);
        }
}

/* The letters behind `mark` in a step. */
static void named(const char *step, char mark, char *ret_names) {
        const char *p = strchr(step, mark);
        size_t n = p ? strspn(p + 1, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") : 0;
        memcpy(ret_names, p ? p + 1 : "", n);
        ret_names[n] = 0;
}

static void check_news(const struct story *s, const char *step, char mark, unsigned news) {
        char expected[27], got[27];
        size_t n = 0;
        named(step, mark, expected);
        for (int i = 0; i < 26; i++)
                if (heard[i] & news)
                        got[n++] = (char)('A' + i);
        got[n] = 0;
        ck_assert_msg(strcmp(got, expected) == 0, "%s: %s: \"%s\" behind %c", s->name, step, got, mark);
}

static void play_story(const struct story *s) {
        char steps[512], *save;
        (void)snprintf(steps, sizeof(steps), "%s", s->steps);
        for (char *step = strtok_r(steps, " ", &save); step; step = strtok_r(NULL, " ", &save)) {
                const char *refusal = strchr(step, '!'), *state = strchr(step, ':'), *count = strchr(step, '^');
                int expected = 0;
                for (size_t i = 0; refusal && i < ARRAY_SIZE(refusals); i++)
                        if (strncmp(refusal + 1, refusals[i].name, strcspn(refusal + 1, "=?*%^:")) == 0 &&
                            strlen(refusals[i].name) == strcspn(refusal + 1, "=?*%^:"))
                                expected = refusals[i].code;
                int r = play(step);
                ck_assert_msg(r == expected && (!refusal || expected), "%s: %s: got %d", s->name, step, r);
                ck_assert_msg(state && strcmp(store_state(store), state + 1) == 0, "%s: %s: is %s", s->name, step, store_state(store));
                ck_assert_msg(released_now == (count ? atoi(count + 1) : 0), "%s: %s: released %d", s->name, step, released_now);
                check_news(s, step, '=', NEWS_GRANTED);
                check_news(s, step, '*', NEWS_PUBLISHED);
                check_news(s, step, '%', NEWS_REVOKED);
                if (step[1] == '+') /* later is told too where somebody is found to be in the way */
                        check_news(s, step, '?', NEWS_WANTED);
        }
}

START_TEST(state_by_event) {
        play_story(&state_table[_i]);
}
END_TEST

START_TEST(story) {
        play_story(&stories[_i]);
}
END_TEST

/* ---- one change at a time */

START_TEST(allocations) {
        uint64_t first;
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 3, 5000, "w", &first), 0);
        ck_assert_uint_eq(first, 0);
        ck_assert_int_eq(allocate('A', 2, 1, "", &first), 0);
        ck_assert_uint_eq(first, 3);
        ck_assert_int_eq(allocate('A', 0, 1, NULL, &first), 0);
        ck_assert_uint_eq(first, 5);
        const struct layout *l = claims[0]->view;
        ck_assert_uint_eq(l->n_allocations, 5);
        ck_assert_uint_eq(l->bytes, 3 * 8192 + 2 * 4096);
        ck_assert_uint_eq(claim_bytes(claims[0]), l->bytes);
        for (uint64_t i = 0; i < 5; i++) {
                ck_assert_uint_eq(l->allocations[i].id, i + 1);
                ck_assert_uint_eq(l->allocations[i].slot, i);
                ck_assert_int_eq(l->allocations[i].fd, FIRST_FD + (int)i);
        }
        ck_assert_str_eq(l->allocations[0].tag, "w");
        ck_assert_ptr_null(l->allocations[3].tag);
        struct store_totals t = store_totals(store);
        ck_assert_uint_eq(t.bytes, l->bytes);
        ck_assert_uint_eq(t.building, l->bytes);
        ck_assert_uint_eq(t.allocations, 5);

        size_t failed;
        ck_assert_int_eq(free_ids('A', (uint64_t[]){ 1, 9, 2 }, 3, &failed), STORE_E_NO_ALLOCATION);
        ck_assert_uint_eq(failed, 1);
        ck_assert_int_eq(free_ids('A', (uint64_t[]){ 2, 4, 2 }, 3, NULL), 0); /* named twice: freed once */
        ck_assert_int_eq(released_now, 2);
        ck_assert_int_eq(free_ids('A', (uint64_t[]){ 2 }, 1, &failed), STORE_E_NO_ALLOCATION);
        ck_assert_uint_eq(failed, 0);
        ck_assert_int_eq(free_ids('A', NULL, 0, NULL), 0);
        ck_assert_int_eq(allocate('A', 1, 1, NULL, &first), 0);
        ck_assert_uint_eq(first, 5); /* a slot is used once */
}
END_TEST

START_TEST(metadata) {
        size_t failed;
        bool found;
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 3, 10, NULL, NULL), 0);
        const struct put good[] = { { "a", 0, 0, "1" }, { "b", 1, 9, "22" }, { "c", 2, 5, "" }, { "a", 2, 1, "333" } };
        ck_assert_int_eq(put('A', good, 4, NULL), 0);
        const struct layout *l = claims[0]->view;
        ck_assert_uint_eq(l->n_metadata, 3); /* "a" was put twice: the last counts */
        ck_assert_uint_eq(l->metadata[0]->slot, 2);
        ck_assert_uint_eq(l->metadata[0]->value_size, 3);

        const struct put bad_slot[] = { { "d", 0, 0, "" }, { "e", 3, 0, "" } };
        ck_assert_int_eq(put('A', bad_slot, 2, &failed), STORE_E_NO_SLOT);
        ck_assert_uint_eq(failed, 1);
        const struct put bad_offset[] = { { "d", 0, 9, "" }, { "e", 0, 10, "" } }; /* the size asked for, not as aligned */
        ck_assert_int_eq(put('A', bad_offset, 2, &failed), STORE_E_OFFSET);
        ck_assert_uint_eq(failed, 1);
        ck_assert_int_eq(put('A', (struct put[]){ { "e", 0, UINT64_MAX, "" } }, 1, NULL), STORE_E_OFFSET);
        ck_assert_int_eq(delete('A', (char *[]){ (char *)"a", (char *)"x" }, 2, &failed), STORE_E_NO_KEY);
        ck_assert_uint_eq(failed, 1);

        /* a freed allocation takes its entries with it, and no others */
        ck_assert_int_eq(free_ids('A', (uint64_t[]){ 3 }, 1, NULL), 0);
        ck_assert_uint_eq(l->n_metadata, 1);
        ck_assert_uint_eq(layout_find_key(l, "b", &found), 0);
        ck_assert(found);
        ck_assert_uint_eq(l->metadata_bytes, 3);
        ck_assert_int_eq(put('A', (struct put[]){ { "e", 2, 0, "" } }, 1, NULL), STORE_E_NO_SLOT);
        ck_assert_int_eq(delete('A', (char *[]){ (char *)"b", (char *)"b" }, 2, NULL), 0); /* named twice: deleted once */
        ck_assert_uint_eq(l->n_metadata + l->metadata_bytes, 0);
}
END_TEST

/* Two ways to the same structure, one of them over allocations that were freed. */
START_TEST(gaps_are_not_in_the_hash) {
        uint8_t plain[LAYOUT_HASH_SIZE];
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 2, 5000, "w", NULL), 0);
        ck_assert_int_eq(put('A', (struct put[]){ { "k", 1, 7, "v" } }, 1, NULL), 0);
        ck_assert_int_eq(commit('A', "one", true), 0);
        memcpy(plain, layout_hash(store->published), sizeof(plain));

        ck_assert_int_eq(ask('B', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('B', 4, 4097, "w", NULL), 0); /* 3 to 6; also another size of the same pages */
        ck_assert_int_eq(put('B', (struct put[]){ { "gone", 0, 0, "" }, { "k", 3, 7, "v" } }, 2, NULL), 0);
        ck_assert_int_eq(free_ids('B', (uint64_t[]){ 3, 5 }, 2, NULL), 0);
        ck_assert_int_eq(commit('B', "two", false), 0);
        ck_assert_mem_eq(layout_hash(store->published), plain, sizeof(plain));
        ck_assert_uint_eq(store->published->generation, 2);
        ck_assert_str_eq(store->published->identity, "two");
        ck_assert_uint_eq(store->epoch, 5);
}
END_TEST

/* An identity belongs to one generation; committing without one leaves none. */
START_TEST(identity) {
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 0), 0);
        ck_assert_int_eq(change('A', CHANGE_SEAL), 0);
        ck_assert_int_eq(commit('A', "one", true), 0);
        ck_assert_str_eq(store->published->identity, "one");
        ck_assert(!store->published->sealed);
        static const char *const none[] = { NULL, "" };
        for (size_t i = 0; i < 2; i++) {
                ck_assert_int_eq(ask('B', LOCK_WANT_UPDATE, 0), 0);
                ck_assert_int_eq(commit('B', none[i], true), 0);
                ck_assert_ptr_null(store->published->identity);
                ck_assert_int_eq(leave('B'), 0);
        }
        ck_assert_uint_eq(store->published->generation, 3);
}
END_TEST

START_TEST(totals) {
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 2, 4096, NULL, NULL), 0);
        ck_assert_int_eq(commit('A', NULL, false), 0);
        ck_assert_int_eq(ask('U', LOCK_WANT_UPDATE, 1), 0);
        ck_assert_int_eq(allocate('U', 3, 4096, NULL, NULL), 0);
        struct store_totals t = store_totals(store);
        ck_assert_uint_eq(t.bytes, 5 * 4096);
        ck_assert_uint_eq(t.building, 3 * 4096);
        ck_assert_uint_eq(t.draining, 0);
        ck_assert_int_eq(commit('U', NULL, true), 0);
        t = store_totals(store);
        ck_assert_uint_eq(t.bytes, 5 * 4096);
        ck_assert_uint_eq(t.building, 0);
        ck_assert_uint_eq(t.draining, 2 * 4096);
        ck_assert_uint_eq(t.draining_layouts, 1);
        ck_assert_int_eq(change('A', CHANGE_REFRESH), 0);
        ck_assert_uint_eq(claim_bytes(claims[0]), 5 * 4096);
        ck_assert_ptr_eq(store_resting(store), store->published);
}
END_TEST

/* ---- limits */

static int put_many(size_t from, size_t n, size_t value_size) {
        struct metadata **entries = calloc(n, sizeof(*entries));
        uint8_t *value = calloc(1, value_size + 1);
        ck_assert(entries && value);
        for (size_t i = 0; i < n; i++) {
                char key[16];
                (void)snprintf(key, sizeof(key), "%08zx", from + i);
                ck_assert_int_eq(metadata_new(&entries[i], key, 0, 0, value, value_size), 0);
        }
        struct change c = { .type = CHANGE_PUT, .claim = claims[0], .put = { .entries = entries, .n = n } };
        int r = apply(&c);
        for (size_t i = 0; i < n; i++)
                free(entries[i]);
        free(entries);
        free(value);
        return r;
}

START_TEST(limit_of_keys) {
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 1, 1, NULL, NULL), 0);
        ck_assert_int_eq(put_many(0, LAYOUT_METADATA_MAX + 1, 0), STORE_E_LIMIT);
        ck_assert_int_eq(put_many(0, LAYOUT_METADATA_MAX - 1, 0), 0);
        ck_assert_int_eq(put_many(LAYOUT_METADATA_MAX, 2, 0), STORE_E_LIMIT);
        ck_assert_int_eq(put_many(LAYOUT_METADATA_MAX, 1, 0), 0);
        ck_assert_int_eq(put_many(LAYOUT_METADATA_MAX + 1, 1, 0), STORE_E_LIMIT);
        ck_assert_uint_eq(claims[0]->view->n_metadata, LAYOUT_METADATA_MAX);
}
END_TEST

/* A full layout takes no more keys; those it has can be given other values. */
START_TEST(replace_at_the_limit) {
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 1, 1, NULL, NULL), 0);
        ck_assert_int_eq(put_many(0, LAYOUT_METADATA_MAX, 0), 0);
        ck_assert_int_eq(put_many(7, 100, 8), 0);
        ck_assert_uint_eq(claims[0]->view->n_metadata, LAYOUT_METADATA_MAX);
}
END_TEST

START_TEST(limit_of_metadata) {
        const size_t entry = 8 + 30000, n = LAYOUT_METADATA_BYTES_MAX / entry;
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        ck_assert_int_eq(allocate('A', 1, 1, NULL, NULL), 0);
        ck_assert_int_eq(put_many(0, n + 1, 30000), STORE_E_LIMIT);
        ck_assert_int_eq(put_many(0, n, 30000), 0);
        ck_assert_int_eq(put_many(n, 1, LAYOUT_METADATA_BYTES_MAX - n * entry - 8 + 1), STORE_E_LIMIT);
        ck_assert_int_eq(put_many(n, 1, LAYOUT_METADATA_BYTES_MAX - n * entry - 8), 0);
        ck_assert_uint_eq(claims[0]->view->metadata_bytes, LAYOUT_METADATA_BYTES_MAX);
}
END_TEST

START_TEST(limit_of_allocations) {
        size_t n = LAYOUT_ALLOCATIONS_MAX;
        struct change_allocation *items = calloc(n + 1, sizeof(*items));
        struct effects fx;
        ck_assert_ptr_nonnull(items);
        for (size_t i = 0; i <= n; i++)
                items[i] = (struct change_allocation){ .size = 1, .aligned = 1, .fd = -1 };
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        struct change c = { .type = CHANGE_ALLOCATE, .claim = claims[0], .allocate = { .first_id = 1, .items = items, .n = n + 1 } };
        effects_init(&fx);
        ck_assert_int_eq(store_apply(store, &c, &fx), STORE_E_LIMIT);
        c.allocate.n = n;
        ck_assert_int_eq(store_apply(store, &c, &fx), 0);
        c.allocate.n = 1;
        ck_assert_int_eq(store_apply(store, &c, &fx), STORE_E_LIMIT);
        ck_assert_uint_eq(claims[0]->view->n_allocations, n);
        /* they have no descriptors here, so that nothing is to be accounted for */
        claims[0]->view->n_allocations = 0;
        claims[0]->view->bytes = 0;
        free(items);
}
END_TEST

#ifdef __has_feature /* clang's way to say it */
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define SLOWER 50 /* memmove is watched byte by byte */
#else
#define SLOWER 1
#endif

/* Of this process: others may be running. */
static double seconds(void) {
        struct timespec t;
        (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
        return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* As many frees as one frame can name, in a layout full of keys: the loop must not stand still for it. */
START_TEST(free_many) {
        enum { N = 16384 };
        struct change_allocation *items = calloc(N, sizeof(*items));
        struct metadata **entries = calloc(LAYOUT_METADATA_MAX, sizeof(*entries));
        uint64_t *ids = calloc(N, sizeof(*ids));
        struct effects fx;
        ck_assert(items && entries && ids);
        for (size_t i = 0; i < N; i++) {
                items[i] = (struct change_allocation){ .size = 1, .aligned = 4096, .fd = -1 };
                ids[i] = i + 1;
        }
        for (size_t i = 0; i < LAYOUT_METADATA_MAX; i++) {
                char key[16];
                (void)snprintf(key, sizeof(key), "%08zx", i);
                ck_assert_int_eq(metadata_new(&entries[i], key, i % (N / 2), 0, "", 0), 0);
        }
        ck_assert_int_eq(ask('A', LOCK_WANT_RW, 1), 0);
        struct change c = { .type = CHANGE_ALLOCATE, .claim = claims[0], .allocate = { .first_id = 1, .items = items, .n = N } };
        effects_init(&fx);
        ck_assert_int_eq(store_apply(store, &c, &fx), 0);
        c = (struct change){ .type = CHANGE_PUT, .claim = claims[0], .put = { .entries = entries, .n = LAYOUT_METADATA_MAX } };
        ck_assert_int_eq(store_apply(store, &c, &fx), 0);

        double start = seconds();
        c = (struct change){ .type = CHANGE_FREE, .claim = claims[0], .free = { .ids = ids + N / 2, .n = N / 2 } };
        ck_assert_int_eq(store_apply(store, &c, &fx), 0);
        double took = seconds() - start;
        ck_assert_uint_eq(claims[0]->view->n_metadata, LAYOUT_METADATA_MAX);
        c.free.ids = ids;
        c.free.n = N / 4;
        ck_assert_int_eq(store_apply(store, &c, &fx), 0);
        ck_assert_uint_eq(claims[0]->view->n_allocations, N / 4);
        ck_assert_uint_eq(claims[0]->view->n_metadata, LAYOUT_METADATA_MAX / 2);

        while (!list_empty(&fx.released))
                layout_free(list_first(&fx.released, struct layout, link));
        claims[0]->view->n_allocations = 0; /* as above */
        list_init(&fx.news);
        claims[0]->news = 0;
        list_init(&claims[0]->news_link);
        free(items);
        free(entries);
        free(ids);
        ck_assert_msg(took < 0.1 * SLOWER, "%d frees took %.3f s", N / 2, took);
}
END_TEST

/* ---- at random */

#define EVENTS 1000000

/* One model after another until there were enough events; what never happened would be a test of nothing. */
START_TEST(random_events) {
        uint64_t seed;
        const char *given = getenv("SEED");
        if (given)
                seed = strtoull(given, NULL, 0);
        else
                ck_assert_int_eq(getrandom(&seed, sizeof(seed), 0), sizeof(seed));
        seed |= 1;
        (void)fprintf(stderr, "store: random events, SEED=%#llx\n", (unsigned long long)seed);

        struct model_tally tally = {};
        unsigned long events = 0;
        while (events < EVENTS) {
                static uint8_t bytes[16384];
                for (size_t i = 0; i < sizeof(bytes); i++) {
                        seed ^= seed << 13, seed ^= seed >> 7, seed ^= seed << 17;
                        bytes[i] = (uint8_t)(seed >> 24);
                }
                struct source source = { bytes, bytes + sizeof(bytes) };
                struct model *m = model_new();
                while (model_step(m, &source))
                        events++;
                model_end(m, &tally);
        }

        for (enum change_type t = 0; t < _CHANGE_MAX; t++) {
                bool never_refused = t == CHANGE_ASK || t == CHANGE_LEAVE || t == CHANGE_EXITED;
                ck_assert_msg(tally.done[t] > 100, "change %d was done %lu times", t, tally.done[t]);
                ck_assert_msg(never_refused ? tally.refused[t] == 0 : tally.refused[t] > 100, "change %d was refused %lu times", t,
                              tally.refused[t]);
        }
        for (int i = 0; i < _LOCK_MODE_MAX; i++)
                ck_assert_uint_gt(tally.granted[i], 1000);
        ck_assert_uint_gt(tally.adopted, 100);
        ck_assert_uint_gt(tally.fenced, 100);
}
END_TEST

int main(void) {
        Suite *s = suite_create("store");
        TCase *t = tcase_create("states");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_loop_test(t, state_by_event, 0, (int)ARRAY_SIZE(state_table));
        tcase_add_loop_test(t, story, 0, (int)ARRAY_SIZE(stories));
        suite_add_tcase(s, t);
        t = tcase_create("changes");
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, allocations);
        tcase_add_test(t, metadata);
        tcase_add_test(t, gaps_are_not_in_the_hash);
        tcase_add_test(t, identity);
        tcase_add_test(t, totals);
        suite_add_tcase(s, t);
        t = tcase_create("limits");
        tcase_set_timeout(t, 60);
        tcase_add_checked_fixture(t, setup, teardown);
        tcase_add_test(t, limit_of_keys);
        tcase_add_test(t, replace_at_the_limit);
        tcase_add_test(t, limit_of_metadata);
        tcase_add_test(t, limit_of_allocations);
        tcase_add_test(t, free_many);
        suite_add_tcase(s, t);
        t = tcase_create("random");
        tcase_set_timeout(t, 120);
        tcase_add_test(t, random_events);
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
