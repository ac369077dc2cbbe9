// SPDX-License-Identifier: MIT
/* The files of a checkpoint: which they are, what is in them, and how that is cut into work. */
#include "checkpoint.h"

#include <dirent.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "handle.h"
#include "heap.h"
#include "sized.h"

#define SUFFIX ".safetensors"
#define INDEX_SUFFIX ".safetensors.index.json"

/* ---- one file */

static int read_text(const struct reader *r, uint64_t offset, size_t n, char **ret_text) {
        _cleanup_free_ char *text = malloc(n + 1);
        if (!text)
                return error_errno(-ENOMEM, r->path);
        int e = reader_read(r, text, offset, n);
        if (e == 0)
                *ret_text = steal_ptr(&text);
        return e;
}

static int file_open(struct checkpoint_file *f, const char *path) {
        _cleanup_free_ char *header = NULL;
        uint8_t prefix[SAFETENSORS_PREFIX];
        size_t size;
        int r = reader_open(&f->reader, path);
        if (r == 0)
                r = reader_read(&f->reader, prefix, 0, (size_t)MIN(f->reader.size, sizeof(prefix)));
        if (r == 0)
                r = safetensors_header_size(path, prefix, f->reader.size, &size);
        if (r == 0)
                r = read_text(&f->reader, sizeof(prefix), size, &header);
        return r == 0 ? safetensors_parse(&f->header, path, header, size, f->reader.size) : r;
}

static int files_open(struct gms_checkpoint *c, const char *const *paths, size_t n) {
        c->files = calloc(n + 1, sizeof(*c->files));
        if (!c->files)
                return error_errno(-ENOMEM, "checkpoint");
        for (size_t i = 0; i < n; i++) {
                c->n_files++;
                int r = file_open(&c->files[i], paths[i]);
                if (r < 0)
                        return r;
        }
        return 0;
}

/* ---- all tensors */

static int compare_names(const void *a, const void *b) {
        const struct checkpoint_tensor *const *x = a, *const *y = b;
        return strcmp((*x)->is->name, (*y)->is->name);
}

static int list_tensors(struct gms_checkpoint *c) {
        size_t n = 0;
        for (size_t i = 0; i < c->n_files; i++)
                n += c->files[i].header.n;
        c->tensors = calloc(n + 1, sizeof(*c->tensors));
        c->by_name = calloc(n + 1, sizeof(*c->by_name));
        if (!c->tensors || !c->by_name)
                return error_errno(-ENOMEM, "checkpoint");
        for (size_t i = 0; i < c->n_files; i++) {
                for (size_t k = 0; k < c->files[i].header.n; k++) {
                        struct checkpoint_tensor *t = &c->tensors[c->n_tensors];
                        *t = (struct checkpoint_tensor){ .is = &c->files[i].header.tensors[k],
                                                         .file = &c->files[i],
                                                         .leaf = c->n_leaves };
                        c->by_name[c->n_tensors++] = t;
                        c->n_leaves += digest_leaves(checkpoint_bytes(t));
                        c->total += checkpoint_bytes(t); /* no more than the files have */
                }
                if (c->total > HEAP_MAX) /* a hole in a file makes this; nothing is made for every MiB of it */
                        return error_set(-EFBIG,
                                         "%.300s: its tensors and those of the files before it have %" PRIu64
                                         " bytes, and a store takes %" PRIu64 " at most",
                                         c->files[i].reader.path, c->total, HEAP_MAX);
        }
        qsort(c->by_name, n, sizeof(*c->by_name), compare_names);
        for (size_t i = 1; i < n; i++)
                if (strcmp(c->by_name[i - 1]->is->name, c->by_name[i]->is->name) == 0)
                        return error_set(-EEXIST, "tensor '%.200s' is in %.300s and in %.300s; name the files of one checkpoint",
                                         c->by_name[i]->is->name, c->by_name[i - 1]->file->reader.path,
                                         c->by_name[i]->file->reader.path);
        return 0;
}

/* Leaf after leaf, into a unit as long as they fit. With `units` NULL they are only counted. */
static size_t cut(const struct gms_checkpoint *c, struct checkpoint_unit *units) {
        struct checkpoint_unit u = { 0 };
        size_t n = 0;
        for (const struct checkpoint_tensor *t = c->tensors; t < c->tensors + c->n_tensors; t++) {
                for (uint64_t at = t->is->begin, end; at < t->is->end; at = end) {
                        end = MIN(at + DIGEST_LEAF, t->is->end);
                        if (!u.tensor || u.tensor->file != t->file || end - u.begin > CHECKPOINT_UNIT) {
                                bool beside = u.tensor && u.tensor->file == t->file;
                                u = (struct checkpoint_unit){ .tensor = t, .begin = at, .turn = beside ? u.turn + 1 : 0 };
                                n++;
                        }
                        u.end = end;
                        if (units)
                                units[n - 1] = u;
                }
        }
        return n;
}

static int compare_turns(const void *a, const void *b) {
        const struct checkpoint_unit *x = a, *y = b;
        if (x->turn != y->turn)
                return x->turn < y->turn ? -1 : 1;
        return x->tensor->file != y->tensor->file ? (x->tensor->file < y->tensor->file ? -1 : 1) : 0;
}

static int cut_units(struct gms_checkpoint *c) {
        c->n_units = cut(c, NULL);
        c->units = calloc(c->n_units + 1, sizeof(*c->units));
        c->leaves = calloc(c->n_leaves + 1, sizeof(*c->leaves));
        if (!c->units || !c->leaves)
                return error_errno(-ENOMEM, "checkpoint");
        (void)cut(c, c->units);
        qsort(c->units, c->n_units, sizeof(*c->units), compare_turns);
        return 0;
}

/* ---- a directory */

struct names {
        char **at; /* paths */
        size_t n;
};

static void names_done(struct names *names) {
        for (size_t i = 0; i < names->n; i++)
                free(names->at[i]);
        free(names->at);
}

static int names_add(struct names *names, const char *dir, const char *name) {
        char **at = reallocarray(names->at, names->n + 1, sizeof(*at));
        if (!at)
                return error_errno(-ENOMEM, dir);
        names->at = at;
        if (asprintf(&at[names->n], "%s/%s", dir, name) < 0)
                return error_errno(-ENOMEM, dir);
        names->n++;
        return 0;
}

static int compare_texts(const void *a, const void *b) {
        return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static bool ends_in(const char *name, const char *suffix) {
        size_t n = strlen(name), k = strlen(suffix);
        return n > k && name[0] != '.' && strcmp(name + n - k, suffix) == 0;
}

static int names_list(struct names *names, const char *dir, const char *suffix) {
        DIR *d = opendir(dir);
        if (!d)
                return error_errno(-errno, dir);
        int r = 0;
        for (struct dirent *e; r == 0 && (e = readdir(d));)
                if (ends_in(e->d_name, suffix))
                        r = names_add(names, dir, e->d_name);
        (void)closedir(d);
        if (names->n > 0)
                qsort(names->at, names->n, sizeof(*names->at), compare_texts);
        return r;
}

/* The files that an index names, each once. */
static int names_from_index(struct names *names, const char *dir, json_t *map) {
        _cleanup_free_ const char **files = calloc(json_object_size(map) + 1, sizeof(*files));
        const char *tensor;
        json_t *file;
        size_t n = 0;
        if (!files)
                return error_errno(-ENOMEM, dir);
        json_object_foreach(map, tensor, file)
                files[n++] = json_string_value(file);
        qsort(files, n, sizeof(*files), compare_texts);
        for (size_t i = 0; i < n; i++) {
                int r = i > 0 && strcmp(files[i - 1], files[i]) == 0 ? 0 : names_add(names, dir, files[i]);
                if (r < 0)
                        return r;
        }
        return 0;
}

static int read_index(json_t **ret_map, const char *path) {
        struct reader reader;
        _cleanup_free_ char *text = NULL;
        int r = reader_open(&reader, path);
        if (r == 0 && reader.size > SAFETENSORS_HEADER_MAX)
                r = error_set(-EBADMSG, "%.300s: it has %" PRIu64 " bytes, and %u is the most that an index can have", path,
                              reader.size, SAFETENSORS_HEADER_MAX);
        if (r == 0)
                r = read_text(&reader, 0, (size_t)reader.size, &text);
        if (r == 0)
                r = safetensors_parse_index(ret_map, path, text, (size_t)reader.size);
        reader_close(&reader);
        return r;
}

static const struct checkpoint_tensor *find_tensor(const struct gms_checkpoint *c, const char *name) {
        const struct safetensors_tensor is = { .name = name };
        const struct checkpoint_tensor key = { .is = &is }, *const p = &key;
        struct checkpoint_tensor **found = bsearch(&p, c->by_name, c->n_tensors, sizeof(*c->by_name), compare_names);
        return found ? *found : NULL;
}

/* The index and the files say the same. */
static int check_index(const struct gms_checkpoint *c, const char *path, json_t *map) {
        const char *name;
        json_t *file;
        json_object_foreach(map, name, file) {
                const struct checkpoint_tensor *t = find_tensor(c, name);
                if (!t || strcmp(strrchr(t->file->reader.path, '/') + 1, json_string_value(file)) != 0)
                        return error_set(-EBADMSG, "%.300s: tensor '%.200s' is said to be in %.200s, and is not%s%.200s", path,
                                         name, json_string_value(file), t ? ", but in " : "",
                                         t ? strrchr(t->file->reader.path, '/') + 1 : "");
        }
        for (size_t i = 0; c->n_tensors > json_object_size(map) && i < c->n_tensors; i++)
                if (!json_object_get(map, c->by_name[i]->is->name))
                        return error_set(-EBADMSG, "%.300s: it does not name tensor '%.200s', which is in %.200s; name the files "
                                         "themselves if they are right", path, c->by_name[i]->is->name,
                                         c->by_name[i]->file->reader.path);
        return 0;
}

static int open_indexed(struct gms_checkpoint *c, const char *dir, const char *index) {
        _cleanup_(names_done) struct names files = { 0 };
        json_auto_t *map = NULL;
        int r = read_index(&map, index);
        if (r == 0)
                r = names_from_index(&files, dir, map);
        if (r == 0)
                r = files_open(c, (const char *const *)files.at, files.n);
        if (r == 0)
                r = list_tensors(c);
        return r == 0 ? check_index(c, index, map) : r;
}

static int open_directory(struct gms_checkpoint *c, const char *dir) {
        _cleanup_(names_done) struct names indexes = { 0 }, files = { 0 };
        int r = names_list(&indexes, dir, INDEX_SUFFIX);
        if (r == 0 && indexes.n > 1)
                return error_set(-EEXIST,
                                 "%.300s has several indexes, %.200s and %.200s among them; name the files that are meant", dir,
                                 strrchr(indexes.at[0], '/') + 1, strrchr(indexes.at[1], '/') + 1);
        if (r == 0 && indexes.n == 1)
                return open_indexed(c, dir, indexes.at[0]);
        if (r == 0)
                r = names_list(&files, dir, SUFFIX);
        if (r == 0 && files.n == 0)
                r = error_set(-ENOENT, "%.300s has no *" SUFFIX " and no *" INDEX_SUFFIX, dir);
        if (r == 0)
                r = files_open(c, (const char *const *)files.at, files.n);
        return r == 0 ? list_tensors(c) : r;
}

/* ---- the public object */

static bool is_directory(const char *path) {
        struct stat st;
        return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static void checkpoint_freep(struct gms_checkpoint **c) {
        gms_checkpoint_close(*c);
}

int gms_checkpoint_open(struct gms_checkpoint **ret_checkpoint, const char *const *paths, size_t n) {
        if (!ret_checkpoint || !paths || n == 0)
                return error_set(-EINVAL, "gms_checkpoint_open: files or a directory are needed, and where to put it");
        _cleanup_(checkpoint_freep) struct gms_checkpoint *c = calloc(1, sizeof(*c));
        if (!c)
                return error_errno(-ENOMEM, "checkpoint");
        c->pid = getpid();
        c->failed = SIZE_MAX;
        (void)pthread_mutex_init(&c->mutex, NULL);

        int r;
        if (n == 1 && is_directory(paths[0])) {
                r = open_directory(c, paths[0]);
        } else {
                r = files_open(c, paths, n);
                if (r == 0)
                        r = list_tensors(c);
        }
        if (r == 0)
                r = cut_units(c);
        if (r == 0)
                *ret_checkpoint = steal_ptr(&c);
        return r;
}

void gms_checkpoint_close(struct gms_checkpoint *c) {
        if (!c)
                return;
        if (c->pool && c->pid == getpid())
                checkpoint_unplace(c);
        gms_pool_close(c->pool);
        (void)handle_unref(c->gms);
        for (size_t i = 0; i < c->n_files; i++) {
                reader_close(&c->files[i].reader);
                safetensors_done(&c->files[i].header);
        }
        (void)pthread_mutex_destroy(&c->mutex);
        free(c->files);
        free(c->tensors);
        free(c->by_name);
        free(c->units);
        free(c->leaves);
        free(c);
}

void gms_checkpoint_cancel(struct gms_checkpoint *c) {
        if (c)
                __atomic_store_n(&c->cancelled, true, __ATOMIC_RELAXED);
}

int gms_checkpoint_progress(struct gms_checkpoint *c, struct gms_checkpoint_progress *ret) {
        if (!c)
                return error_set(-EINVAL, "no checkpoint given; gms_checkpoint_open() makes one");
        int r = sized_check(ret, "struct gms_checkpoint_progress");
        if (r < 0)
                return r;
        struct gms_checkpoint_progress p = {
                .size = sizeof(p),
                .files = (uint32_t)c->n_files,
                .tensors = c->n_tensors,
                .total = c->total,
                .done = __atomic_load_n(&c->done, __ATOMIC_RELAXED),
                .direct = __atomic_load_n(&c->direct, __ATOMIC_RELAXED),
        };
        sized_store(ret, ret->size, &p, sizeof(p));
        return 0;
}
