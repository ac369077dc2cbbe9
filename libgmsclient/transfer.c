// SPDX-License-Identifier: MIT
/* The work on a checkpoint: its tensors' bytes to the places that were made for them, or beside those that are there. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "checkpoint.h"
#include "handle.h"

/* ---- beginning */

static int enter(const struct gms_checkpoint *c) {
        if (!c)
                return error_set(-EINVAL, "no checkpoint given; gms_checkpoint_open() makes one");
        if (c->pid != getpid())
                return error_set(-ECHILD, "the checkpoint was inherited over fork() and works in process %d only", (int)c->pid);
        return 0;
}

static int enter_idle(const struct gms_checkpoint *c) {
        int r = enter(c);
        if (r == 0 && c->purpose != CHECKPOINT_IDLE)
                r = error_set(-EBUSY, "the checkpoint is being %s already; open it once more",
                              c->purpose == CHECKPOINT_LOADS ? "loaded" : "verified");
        return r;
}

/* From here on threads may work. */
static void begin(struct gms_checkpoint *c, struct gms *g, enum checkpoint_purpose purpose) {
        c->gms = handle_ref(g);
        c->vmm = g->vmm;
        c->purpose = purpose;
}

static int place_tensors(struct gms_checkpoint *c) {
        for (size_t i = 0; i < c->n_tensors; i++) {
                struct checkpoint_tensor *t = &c->tensors[i];
                struct gms_piece piece = GMS_INIT(struct gms_piece);
                /* One without bytes has a place, too. */
                int r = gms_pool_allocate(c->pool, MAX(checkpoint_bytes(t), 1u), 0, &piece);
                if (r < 0)
                        return r;
                t->address = piece.address;
                t->slot = piece.slot;
                t->offset = piece.offset;
        }
        return 0;
}

void checkpoint_unplace(struct gms_checkpoint *c) {
        struct error_saved saved;
        error_save(&saved);
        for (size_t i = 0; i < c->n_tensors; i++) {
                if (c->tensors[i].address != 0)
                        (void)gms_pool_free(c->pool, c->tensors[i].address);
                c->tensors[i].address = 0;
        }
        (void)gms_pool_trim(c->pool);
        gms_pool_close(steal_ptr(&c->pool));
        error_restore(&saved);
}

#define PIECE_ALIGN 256u /* gms_pool_allocate()'s */

int gms_checkpoint_load(struct gms_checkpoint *c, struct gms *g, const char *tag) {
        struct gms_pool_options o = GMS_INIT(struct gms_pool_options);
        int r = enter_idle(c);
        if (r < 0)
                return r;
        o.tag = tag;
        for (size_t i = 0; i < c->n_tensors; i++)
                o.expected += MAX(checkpoint_bytes(&c->tensors[i]) + PIECE_ALIGN - 1, PIECE_ALIGN) / PIECE_ALIGN * PIECE_ALIGN;
        r = gms_pool_open(&c->pool, g, &o);
        if (r < 0)
                return r;
        r = place_tensors(c);
        if (r < 0)
                checkpoint_unplace(c);
        else
                begin(c, g, CHECKPOINT_LOADS);
        return r;
}

static bool is_contiguous(const struct gms_tensor *t) {
        int64_t expected = 1;
        for (uint32_t i = t->rank; i-- > 0;) {
                if (t->shape[i] == 0)
                        return true;
                if (t->shape[i] > 1 && t->strides[i] != expected)
                        return false;
                expected *= t->shape[i]; /* no more than its bytes */
        }
        return true;
}

static const char *difference(const struct checkpoint_tensor *t, const struct gms_tensor *there) {
        if (there->dtype != t->is->dtype)
                return "type";
        if (there->rank != t->is->rank || memcmp(there->shape, t->is->shape, t->is->rank * sizeof(*t->is->shape)) != 0)
                return "shape";
        return is_contiguous(there) ? NULL : "order in memory";
}

/* Both are ascending by name. */
static int match_tensors(struct gms_checkpoint *c, const struct gms_tensor_list *list) {
        size_t k = 0;
        for (size_t i = 0; i < c->n_tensors; i++, k++) {
                struct checkpoint_tensor *t = c->by_name[i];
                const struct gms_tensor *there = k < list->n ? &list->tensors[k] : NULL;
                int order = there ? strcmp(there->name, t->is->name) : 1;
                if (order < 0)
                        break;
                if (order > 0)
                        return error_set(-ENOENT, "tensor '%.505s' of %.300s is not in the store", t->is->name,
                                         t->file->reader.path);
                const char *what = difference(t, there);
                if (what)
                        return error_set(-EBADMSG, "tensor '%.505s' has another %s in the store than in %.300s", t->is->name,
                                         what, t->file->reader.path);
                if (there->address == 0)
                        return error_set(-EACCES, "tensor '%.505s' is not mapped; gms_attach() first", t->is->name);
                t->address = there->address;
        }
        if (k < list->n)
                return error_set(-EBADMSG, "tensor '%.505s' of the store is not in the files", list->tensors[k].name);
        return 0;
}

int gms_checkpoint_verify(struct gms_checkpoint *c, struct gms *g) {
        struct gms_tensor_list list = GMS_INIT(struct gms_tensor_list);
        int r = enter_idle(c);
        if (r == 0)
                r = gms_tensors_list(g, &list);
        if (r < 0)
                return r;
        r = match_tensors(c, &list);
        gms_tensors_free(&list);
        if (r == 0)
                begin(c, g, CHECKPOINT_VERIFIES);
        return r;
}

/* ---- taking part */

/* NULL: none is left that anybody still wants done. */
static const struct checkpoint_unit *take(struct gms_checkpoint *c) {
        size_t i = __atomic_fetch_add(&c->next, 1, __ATOMIC_RELAXED);
        return i < c->n_units ? &c->units[i] : NULL;
}

/* A failure ends what comes after it. What comes before is done, so that it is always the first one that is told. */
static bool is_wanted(const struct gms_checkpoint *c, const struct checkpoint_unit *u) {
        return !__atomic_load_n(&c->cancelled, __ATOMIC_RELAXED) &&
               (size_t)(u - c->units) < __atomic_load_n(&c->failed, __ATOMIC_RELAXED);
}

static void fail(struct gms_checkpoint *c, size_t unit, int error) {
        (void)pthread_mutex_lock(&c->mutex);
        if (unit < c->failed) {
                __atomic_store_n(&c->failed, unit, __ATOMIC_RELAXED);
                c->error = error;
                error_save(&c->text);
        }
        (void)pthread_mutex_unlock(&c->mutex);
}

/* What became of the work as a whole, so far. */
static int outcome(struct gms_checkpoint *c) {
        if (__atomic_load_n(&c->cancelled, __ATOMIC_RELAXED))
                return error_set(-ECANCELED, "the work on the checkpoint was cancelled");
        (void)pthread_mutex_lock(&c->mutex);
        int r = c->error;
        if (r < 0)
                error_restore(&c->text);
        (void)pthread_mutex_unlock(&c->mutex);
        return r;
}

/* The part of a unit that is one tensor's, or one of its leaves. */
struct part {
        const struct checkpoint_tensor *tensor;
        uint64_t begin, end; /* in the file */
};

/* The next one, as long as there is one; the first when `p` is all 0. */
static bool part_next(struct part *p, const struct checkpoint_unit *u, uint64_t most) {
        if (!p->tensor)
                *p = (struct part){ .tensor = u->tensor, .end = u->begin };
        p->begin = p->end;
        if (p->begin == u->end)
                return false;
        while (p->tensor->is->end == p->begin) /* those without bytes, too */
                p->tensor++;
        p->end = MIN(MIN(p->begin + most, p->tensor->is->end), u->end);
        return true;
}

static uint64_t part_address(const struct part *p) {
        return p->tensor->address + (p->begin - p->tensor->is->begin);
}

/* A unit's bytes on their way into a stage, where they lie as in the file's pages. */
struct fetch {
        const struct checkpoint_unit *unit;
        const struct reader *reader;
        char *memory;
        uint64_t have; /* up to here, in the file */
        bool cached;   /* as far as is known */
};

static char *fetch_at(const struct fetch *f, uint64_t offset) {
        return f->memory + (offset - f->unit->begin / READER_ALIGN * READER_ALIGN);
}

static int fetch_begin(struct fetch *f, const struct checkpoint_unit *u, char *memory) {
        *f = (struct fetch){ .unit = u, .reader = &u->tensor->file->reader, .memory = memory, .have = u->begin };
        int r = reader_try(f->reader, fetch_at(f, u->begin), u->begin, 1);
        f->cached = r > 0;
        return MIN(r, 0);
}

/* From the page cache leaf by leaf, as they are hashed; with the first that is missing there, all of the rest at once. */
static int fetch_until(struct fetch *f, uint64_t end, uint64_t *direct_bytes) {
        uint64_t last = f->unit->end, direct;
        if (end <= f->have)
                return 0;
        if (f->cached) {
                end = MIN(MAX(end, f->have + DIGEST_LEAF), last);
                int r = reader_try(f->reader, fetch_at(f, f->have), f->have, (size_t)(end - f->have));
                f->cached = r > 0;
                if (r != 0) {
                        f->have = end;
                        return MIN(r, 0);
                }
        }
        int r = reader_direct(f->reader, fetch_at(f, f->have), f->have, (size_t)(last - f->have), &direct);
        (void)__atomic_fetch_add(direct_bytes, direct, __ATOMIC_RELAXED);
        f->have = last;
        return r;
}

/* Reads a unit and hashes its leaves. 1: it is not wanted any more. */
static int read_unit(struct gms_checkpoint *c, const struct checkpoint_unit *u, struct fetch *f, char *memory) {
        int r = fetch_begin(f, u, memory);
        for (struct part leaf = { 0 }; r == 0 && part_next(&leaf, u, DIGEST_LEAF);) {
                if (!is_wanted(c, u))
                        return 1;
                r = fetch_until(f, leaf.end, &c->direct);
                if (r < 0)
                        break;
                c->leaves[leaf.tensor->leaf + (leaf.begin - leaf.tensor->is->begin) / DIGEST_LEAF] =
                        digest_leaf(fetch_at(f, leaf.begin), (size_t)(leaf.end - leaf.begin));
                (void)__atomic_fetch_add(&c->done, leaf.end - leaf.begin, __ATOMIC_RELAXED);
        }
        return r;
}

static int stage_failed(const struct vmm_stage *s, int r) {
        return r == 0 ? 0 : error_vmm_text(vmm_stage_text(s), r, "copy through page-locked memory");
}

/* Whatever is still under way in a stage ends first. */
static int stage_ready(struct gms_checkpoint *c, struct vmm_stage **stage) {
        char text[200] = "";
        if (*stage)
                return stage_failed(*stage, vmm_stage_wait(*stage));
        int r = vmm_stage_open(stage, c->vmm, CHECKPOINT_STAGE, text, sizeof(text));
        return r == 0 ? 0 : error_vmm_text(text, r, "page-locked memory");
}

/* What lies side by side in the file and in a slab is one copy. */
struct run {
        uint64_t slot, address, begin, end; /* the last two in the file */
};

static bool run_extend(struct run *run, const struct part *p) {
        bool beside = run->end == p->begin && run->slot == p->tensor->slot &&
                      run->address + (run->end - run->begin) == part_address(p);
        if (beside)
                run->end = p->end;
        return beside;
}

static int copy_run(struct vmm_stage *s, const struct run *run, const struct fetch *f) {
        return stage_failed(s, vmm_stage_copy_in(s, run->address, fetch_at(f, run->begin), run->end - run->begin));
}

static int load_unit(struct gms_checkpoint *c, struct vmm_stage **stage, const struct checkpoint_unit *u) {
        struct fetch f;
        struct run run = { .begin = u->begin, .end = u->begin };
        int r = stage_ready(c, stage);
        if (r == 0)
                r = read_unit(c, u, &f, vmm_stage_memory(*stage));
        for (struct part p = { 0 }; r == 0 && part_next(&p, u, CHECKPOINT_UNIT);) {
                if (run_extend(&run, &p))
                        continue;
                r = copy_run(*stage, &run, &f);
                run = (struct run){ p.tensor->slot, part_address(&p), p.begin, p.end };
        }
        return r == 0 ? copy_run(*stage, &run, &f) : r;
}

static int compare_part(const struct part *p, const char *file, const char *store) {
        size_t n = (size_t)(p->end - p->begin), i = 0;
        if (memcmp(file, store, n) == 0)
                return 0;
        while (file[i] == store[i])
                i++;
        return error_set(-EILSEQ,
                         "tensor '%.505s' differs at its byte %" PRIu64 ": 0x%02x in the store, 0x%02x in %.300s, byte %" PRIu64,
                         p->tensor->is->name, p->begin + i - p->tensor->is->begin, (unsigned char)store[i],
                         (unsigned char)file[i], p->tensor->file->reader.path, p->begin + i);
}

/* While the store's bytes come into one stage, the file's are read into the other. Both lie there alike. */
static int compare_unit(struct gms_checkpoint *c, struct vmm_stage *stages[2], const struct checkpoint_unit *u) {
        struct fetch f;
        int r = stage_ready(c, &stages[0]);
        if (r == 0)
                r = stage_ready(c, &stages[1]);
        if (r < 0)
                return r;
        char *store = vmm_stage_memory(stages[0]), *file = vmm_stage_memory(stages[1]);
        for (struct part p = { 0 }; r == 0 && part_next(&p, u, CHECKPOINT_UNIT);)
                r = stage_failed(stages[0],
                                 vmm_stage_copy_out(stages[0], part_address(&p), store + (p.begin - u->begin), p.end - p.begin));
        if (r == 0)
                r = read_unit(c, u, &f, file);
        if (r == 0)
                r = stage_ready(c, &stages[0]);
        for (struct part p = { 0 }; r == 0 && part_next(&p, u, CHECKPOINT_UNIT);)
                r = compare_part(&p, fetch_at(&f, p.begin), store + (p.begin - u->begin));
        return r;
}

int gms_checkpoint_work(struct gms_checkpoint *c) {
        struct vmm_stage *stages[2] = { NULL };
        const struct checkpoint_unit *u;
        int r = enter(c);
        if (r == 0 && c->purpose == CHECKPOINT_IDLE)
                r = error_set(-EINVAL, "there is no work yet; gms_checkpoint_load() or gms_checkpoint_verify() begins it");
        if (r < 0)
                return r;

        (void)__atomic_fetch_add(&c->working, 1, __ATOMIC_ACQ_REL);
        for (unsigned i = 0; (u = take(c)) && is_wanted(c, u); i++) {
                r = c->purpose == CHECKPOINT_LOADS ? load_unit(c, &stages[i % 2], u) : compare_unit(c, stages, u);
                if (r < 0)
                        fail(c, (size_t)(u - c->units), r);
        }
        for (size_t i = 0; i < ARRAY_SIZE(stages); i++) {
                r = stages[i] ? stage_failed(stages[i], vmm_stage_wait(stages[i])) : 0;
                if (r < 0)
                        fail(c, c->n_units, r);
                stages[i] = vmm_stage_free(stages[i]);
        }
        (void)__atomic_fetch_sub(&c->working, 1, __ATOMIC_ACQ_REL);
        return outcome(c);
}

/* ---- ending */

static int put_tensors(struct gms_checkpoint *c) {
        _cleanup_free_ struct gms_tensor *tensors = calloc(c->n_tensors + 1, sizeof(*tensors));
        if (!tensors)
                return error_errno(-ENOMEM, "checkpoint");
        for (size_t i = 0; i < c->n_tensors; i++) {
                const struct checkpoint_tensor *t = c->by_name[i];
                tensors[i] = (struct gms_tensor){
                        .size = sizeof(tensors[i]),
                        .dtype = t->is->dtype,
                        .rank = t->is->rank,
                        .name = t->is->name,
                        .shape = t->is->shape,
                        .slot = t->slot,
                        .offset = t->offset,
                };
        }
        return c->n_tensors > 0 ? gms_tensors_put(c->gms, tensors, c->n_tensors) : 0;
}

static int write_identity(const struct gms_checkpoint *c, char *identity) {
        XXH3_state_t *d = digest_begin();
        if (!d)
                return error_errno(-ENOMEM, "checkpoint");
        for (size_t i = 0; i < c->n_tensors; i++) {
                const struct checkpoint_tensor *t = c->by_name[i];
                digest_tensor(d, t->is->name, t->is->dtype, t->is->rank, t->is->shape, &c->leaves[t->leaf],
                              digest_leaves(checkpoint_bytes(t)));
        }
        digest_end(d, identity);
        return 0;
}

int gms_checkpoint_finish(struct gms_checkpoint *c, char *identity) {
        int r = enter(c);
        if (r == 0)
                r = outcome(c);
        if (r < 0)
                return r;
        if (c->purpose == CHECKPOINT_IDLE || __atomic_load_n(&c->next, __ATOMIC_RELAXED) < c->n_units ||
            __atomic_load_n(&c->working, __ATOMIC_ACQUIRE) > 0)
                return error_set(-EBUSY, "the checkpoint has work left; gms_checkpoint_work() does it");
        for (size_t i = 0; i < c->n_files; i++) {
                r = reader_check(&c->files[i].reader);
                if (r < 0)
                        return r;
        }
        if (c->purpose == CHECKPOINT_LOADS)
                r = put_tensors(c);
        if (r == 0)
                gms_pool_close(steal_ptr(&c->pool)); /* from here on the slabs are the layout's alone */
        return r == 0 && identity ? write_identity(c, identity) : r;
}
