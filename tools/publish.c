// SPDX-License-Identifier: MIT
/*
 * gmsctl publish: files into a store. One allocation a file, tagged "file"; the key is the file's base name and the value
 * says its exact size: {"bytes":N}. No allocation can be empty, so an empty file has one byte, and N is 0.
 *
 * All or nothing: until the commit at the end, whatever goes wrong leaves the store as it was.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "gmsctl.h"

#define CHUNK (16u << 20)

struct source {
        const char *path, *key;
        uint64_t bytes;
        struct stat stat; /* at the beginning */
        char value[40];
};

static int refuse(const char *why) {
        return ctl_fail("%s; nothing was published", why);
}

static int refuse_call(int r) {
        return refuse(ctl_interrupted ? "interrupted" : ctl_why(r));
}

static int refuse_source(const struct source *s, const char *why) {
        return ctl_fail("%s: %s; nothing was published", s->path, why);
}

/* Opens a file and looks at it. Descriptors are not kept: there may be more files than descriptors. */
static int source_open(const struct source *s, int *ret_fd, struct stat *ret_stat) {
        /* O_NONBLOCK: opening a pipe must not wait for its other end. */
        _cleanup_close_ int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (fd < 0 || fstat(fd, ret_stat) < 0)
                return refuse_source(s, strerror(errno));
        if (!S_ISREG(ret_stat->st_mode))
                return refuse_source(s, "not a regular file");
        *ret_fd = steal_fd(&fd);
        return CTL_OK;
}

static int sources_name(struct source *sources, size_t n, char **paths) {
        for (size_t i = 0; i < n; i++) {
                sources[i].path = paths[i];
                sources[i].key = basename(paths[i]);
                for (size_t j = 0; j < i; j++)
                        if (strcmp(sources[j].key, sources[i].key) == 0)
                                return ctl_usage("'%s' and '%s' would have the same key, %s; rename one", paths[j], paths[i],
                                                 sources[i].key);
        }
        return CTL_OK;
}

static int sources_measure(struct source *sources, size_t n, uint64_t *ret_total) {
        *ret_total = 0;
        for (size_t i = 0; i < n; i++) {
                struct source *s = &sources[i];
                _cleanup_close_ int fd = -1;
                int r = source_open(s, &fd, &s->stat);
                if (r != CTL_OK)
                        return r;
                s->bytes = (uint64_t)s->stat.st_size;
                snprintf(s->value, sizeof(s->value), "{\"bytes\":%" PRIu64 "}", s->bytes);
                *ret_total += s->bytes;
        }
        return CTL_OK;
}

/* All memory in one batch, so that what does not fit is refused before a byte is copied. */
static int allocate(struct gms *g, const struct source *sources, size_t n, struct gms_allocation *allocations) {
        _cleanup_free_ uint64_t *bytes = calloc(n, sizeof(*bytes));
        _cleanup_free_ const char **tags = calloc(n, sizeof(*tags));

        if (!bytes || !tags)
                return refuse("out of memory");
        for (size_t i = 0; i < n; i++) {
                bytes[i] = MAX(sources[i].bytes, 1u);
                tags[i] = "file";
                allocations[i] = (struct gms_allocation)GMS_INIT(struct gms_allocation);
        }
        int r = gms_allocate_many(g, n, bytes, tags, allocations);
        return r < 0 ? refuse_call(r) : CTL_OK;
}

static int put_metadata(struct gms *g, const struct source *sources, size_t n, const struct gms_allocation *allocations) {
        _cleanup_free_ struct gms_metadata *entries = calloc(n, sizeof(*entries));

        if (!entries)
                return refuse("out of memory");
        for (size_t i = 0; i < n; i++)
                entries[i] = (struct gms_metadata){
                        .size = sizeof(entries[i]),
                        .key = sources[i].key,
                        .value = sources[i].value,
                        .value_size = (uint32_t)strlen(sources[i].value),
                        .slot = allocations[i].slot,
                };
        int r = gms_metadata_put(g, entries, n);
        return r < 0 ? refuse_call(r) : CTL_OK;
}

/* Reads until `bytes` are there. A file that ends before is not the file that was measured. */
static int read_chunk(const struct source *s, int fd, char *to, size_t bytes) {
        for (size_t done = 0; done < bytes;) {
                if (ctl_interrupted)
                        return refuse("interrupted");
                ssize_t n = read(fd, to + done, bytes - done);
                if (n == 0)
                        return refuse_source(s, "ended early; it was changed while it was read");
                if (n < 0 && errno != EINTR)
                        return refuse_source(s, strerror(errno));
                done += n > 0 ? (size_t)n : 0;
        }
        return CTL_OK;
}

static bool same_file(const struct stat *a, const struct stat *b) {
        return a->st_dev == b->st_dev && a->st_ino == b->st_ino && a->st_size == b->st_size &&
               a->st_mtim.tv_sec == b->st_mtim.tv_sec && a->st_mtim.tv_nsec == b->st_mtim.tv_nsec;
}

static int copy(struct gms *g, const struct source *s, uint64_t id, char *buffer, struct progress *progress) {
        _cleanup_close_ int fd = -1;
        struct stat now;

        int r = source_open(s, &fd, &now);
        if (r != CTL_OK)
                return r;
        for (uint64_t offset = 0; offset < s->bytes;) {
                size_t n = (size_t)MIN(s->bytes - offset, CHUNK);
                r = read_chunk(s, fd, buffer, n);
                if (r != CTL_OK)
                        return r;
                r = gms_write(g, id, offset, buffer, n);
                if (r < 0)
                        return refuse_call(r);
                offset += n;
                progress_add(progress, n);
        }
        if (fstat(fd, &now) < 0 || !same_file(&now, &s->stat))
                return refuse_source(s, "was changed while it was read");
        return CTL_OK;
}

static int copy_all(struct gms *g, const struct source *sources, size_t n, const struct gms_allocation *allocations,
                    struct progress *progress) {
        _cleanup_free_ char *buffer = malloc(CHUNK);
        int r = buffer ? CTL_OK : refuse("out of memory");
        for (size_t i = 0; r == CTL_OK && i < n; i++)
                r = copy(g, &sources[i], allocations[i].id, buffer, progress);
        return r;
}

static int build(struct gms *g, const struct source *sources, size_t n, struct gms_allocation *allocations,
                 struct progress *progress) {
        int r = allocate(g, sources, n, allocations);
        if (r == CTL_OK)
                r = put_metadata(g, sources, n, allocations);
        return r == CTL_OK ? copy_all(g, sources, n, allocations, progress) : r;
}

static json_t *files_json(const struct source *sources, size_t n, const struct gms_allocation *allocations) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < n; i++) {
                json_t *entry = json_pack("{s:o, s:o, s:I, s:I}", "key", json_text(sources[i].key), "file",
                                          json_text(sources[i].path), "bytes", JSON_N(sources[i].bytes), "slot",
                                          JSON_N(allocations[i].slot));
                if (json_array_append_new(list, entry) < 0) {
                        json_decref(list);
                        return NULL;
                }
        }
        return list;
}

static int publish(const struct ctl *ctl, const struct source *sources, size_t n, struct gms_allocation *allocations,
                   struct progress *progress) {
        _cleanup_gms_ struct gms *g = NULL;

        int r = ctl_connect_writer(ctl, &g);
        if (r < 0)
                return refuse_call(r);
        progress_start(progress, progress->total, false);
        r = build(g, sources, n, allocations, progress);
        progress_end(progress);
        if (r != CTL_OK)
                return r;
        if (ctl_interrupted)
                return refuse("interrupted");
        r = gms_commit(g, ctl->identity, GMS_COMMIT_LEAVE);
        return r < 0 ? refuse_call(r) : CTL_OK;
}

static int report(const struct ctl *ctl, struct gms *look, const struct source *sources, size_t n,
                  const struct gms_allocation *allocations, const struct progress *progress) {
        _cleanup_array_ struct gms_store *stores = NULL;
        double seconds = MAX(progress_seconds(progress), 1e-6);
        size_t n_stores = 0;

        int r = gms_query_stores(look, ctl->argv[0], &stores, &n_stores);
        if (r < 0 || n_stores == 0)
                return ctl_fail("%s is published, but: %s", ctl->argv[0], ctl_why(r));
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:I, s:o}", "store", store_json(stores), "bytes",
                                                    JSON_N(progress->total), "files", files_json(sources, n, allocations)));
        printf("%s: published %zu file%s, %s in %.3f s (%s/s), as generation %" PRIu64 "\n", stores->name, n,
               n == 1 ? "" : "s", text_size(progress->total).s, seconds,
               text_size((uint64_t)((double)progress->total / seconds)).s, stores->generation);
        return CTL_OK;
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *look = NULL;
        size_t n = (size_t)ctl->argc - 1;
        _cleanup_free_ struct source *sources = calloc(n, sizeof(*sources));
        _cleanup_free_ struct gms_allocation *allocations = calloc(n, sizeof(*allocations));
        struct progress progress = { 0 };

        if (!sources || !allocations)
                return refuse("out of memory");
        int r = sources_name(sources, n, ctl->argv + 1);
        if (r == CTL_OK)
                r = sources_measure(sources, n, &progress.total);
        if (r == CTL_OK)
                r = ctl_look(ctl, &look); /* before anything is published: what comes after should not fail */
        if (r != CTL_OK)
                return r;
        ctl_catch_signals();
        r = publish(ctl, sources, n, allocations, &progress);
        return r == CTL_OK ? report(ctl, look, sources, n, allocations, &progress) : r;
}

const struct command command_publish = {
        .name = "publish",
        .synopsis = "STORE FILE... [--identity TEXT] [--update] [--wait SECONDS]",
        .summary = "put files into a store",
        .help = "Puts the bytes of each FILE into the store and publishes them as one layout,\n"
                "in place of what was there. Each file becomes one allocation with the tag\n"
                "\"file\"; its key is the file's base name, and its value {\"bytes\":N}.\n"
                "\n"
                "All or nothing: when a file cannot be read whole, changes meanwhile or does\n"
                "not fit, or when the command is interrupted, nothing is published, and what\n"
                "was published before stays. Both versions are in memory until the new one is\n"
                "published; 'gmsctl clear STORE' beforehand makes room.\n"
                "\n"
                "  --identity TEXT  what the content is (a checkpoint's name, revision,\n"
                "                   digest); readers may demand it\n"
                "  --update         beside the readers of what is published, who learn of it;\n"
                "                   otherwise nobody else may be in the store\n"
                "  --wait SECONDS   how long to wait for others to leave the store. Default: 5\n"
                "\n"
                "JSON\n"
                "  {\"store\": {...},                        as in status\n"
                "   \"bytes\", \"files\": [{\"key\", \"file\", \"bytes\", \"slot\"}]}\n",
        .argc_min = 2,
        .argc_max = INT_MAX,
        .options = OPTION_IDENTITY | OPTION_UPDATE | OPTION_WAIT,
        .run = run,
};
