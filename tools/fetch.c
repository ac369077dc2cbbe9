// SPDX-License-Identifier: MIT
/*
 * gmsctl fetch: what a key names, into a file or to stdout. A file appears under its name when it is whole, and not
 * before: it is written beside it and renamed. What is no regular file (a device, a pipe) is written to directly.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "gmsctl.h"

#define CHUNK (16u << 20)

struct target {
        const char *name; /* for messages */
        char *path;       /* where the file is to be, links followed; NULL: written to directly */
        char *temporary;  /* the file that is written, until it is renamed */
        int fd;
};

static void target_done(struct target *t) {
        if (t->temporary)
                (void)unlink(t->temporary);
        if (t->fd != STDOUT_FILENO)
                t->fd = close_fd(t->fd);
        free(t->temporary);
        free(t->path);
        *t = (struct target){ .fd = -1 };
}

static int target_fail(const struct target *t) {
        return ctl_fail("%s: %s", t->name, errno == EPIPE ? "nobody reads it any more" : strerror(errno));
}

static mode_t new_file_mode(void) {
        mode_t mask = umask(0);
        (void)umask(mask);
        return 0666 & ~mask;
}

/* A new file beside `t->path`, with the permissions that the file there has or would have. */
static int open_temporary(struct target *t, mode_t mode) {
        const char *slash = strrchr(t->path, '/');
        int dir = slash ? (int)(slash + 1 - t->path) : 0;

        if (asprintf(&t->temporary, "%.*s.gmsctl-XXXXXX", dir, t->path) < 0) {
                t->temporary = NULL;
                errno = ENOMEM;
                return target_fail(t);
        }
        t->fd = mkostemp(t->temporary, O_CLOEXEC);
        if (t->fd < 0) {
                int saved = errno;
                free(steal_ptr(&t->temporary)); /* there is none to remove */
                errno = saved;
                return target_fail(t);
        }
        return fchmod(t->fd, mode) < 0 ? target_fail(t) : CTL_OK;
}

static int target_open(struct target *t, const char *name) {
        struct stat st;

        *t = (struct target){ .name = name, .fd = -1 };
        if (!name || strcmp(name, "-") == 0) {
                t->name = "standard output";
                t->fd = STDOUT_FILENO;
                return CTL_OK;
        }
        if (stat(name, &st) < 0) {
                if (errno != ENOENT)
                        return target_fail(t);
                t->path = strdup(name);
                return t->path ? open_temporary(t, new_file_mode()) : target_fail(t);
        }
        if (S_ISREG(st.st_mode)) {
                t->path = realpath(name, NULL); /* a link stays a link */
                return t->path ? open_temporary(t, st.st_mode & 07777) : target_fail(t);
        }
        t->fd = open(name, O_WRONLY | O_CLOEXEC);
        return t->fd < 0 ? target_fail(t) : CTL_OK;
}

static int target_write(const struct target *t, const char *bytes, size_t n) {
        while (n > 0) {
                if (ctl_interrupted)
                        return ctl_fail("interrupted; %s is not written", t->name);
                ssize_t w = write(t->fd, bytes, n);
                if (w < 0 && errno == EINTR)
                        continue;
                if (w < 0)
                        return target_fail(t);
                bytes += w;
                n -= (size_t)w;
        }
        return CTL_OK;
}

/* Bytes that could not be stored may show only here, so they are pushed out before the name is taken. */
static int target_finish(struct target *t) {
        if (!t->path)
                return CTL_OK;
        if (fsync(t->fd) < 0)
                return target_fail(t);
        int fd = steal_fd(&t->fd);
        if (close(fd) < 0)
                return target_fail(t);
        if (ctl_interrupted)
                return ctl_fail("interrupted; %s is not written", t->name);
        if (rename(t->temporary, t->path) < 0)
                return target_fail(t);
        free(steal_ptr(&t->temporary));
        return CTL_OK;
}

struct range {
        uint64_t id, slot, offset, bytes;
};

/* How many bytes a key names: to the end of its allocation, unless it is a file of publish, which says it exactly. */
static uint64_t key_bytes(const struct gms_metadata *m, const struct gms_allocation *a) {
        uint64_t bytes = a->bytes - m->offset;

        if (strcmp(a->tag, "file") != 0)
                return bytes;
        json_t *value = json_loadb(m->value, m->value_size, 0, NULL);
        const json_t *exact = json_object_get(value, "bytes");
        if (json_is_integer(exact) && json_integer_value(exact) >= 0 && (uint64_t)json_integer_value(exact) < bytes)
                bytes = (uint64_t)json_integer_value(exact);
        json_decref(value);
        return bytes;
}

static int find(struct gms *g, const char *key, struct range *ret_range) {
        struct gms_metadata_list found = GMS_INIT(struct gms_metadata_list);
        struct gms_allocation a = GMS_INIT(struct gms_allocation);

        int r = gms_metadata_get(g, &key, 1, &found);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));
        const struct gms_metadata *m = &found.entries[0];
        r = gms_attach(g);
        if (r >= 0)
                r = gms_find(g, m->slot, &a);
        if (r >= 0)
                *ret_range = (struct range){ .id = a.id, .slot = a.slot, .offset = m->offset, .bytes = key_bytes(m, &a) };
        int result = r < 0 ? ctl_fail("%s", ctl_why(r)) : CTL_OK;
        gms_metadata_free(&found);
        return result;
}

static int copy(struct gms *g, const struct range *range, const struct target *t, struct progress *progress) {
        _cleanup_free_ char *buffer = malloc(CHUNK);

        if (!buffer)
                return ctl_fail("out of memory");
        for (uint64_t done = 0; done < range->bytes;) {
                size_t n = (size_t)MIN(range->bytes - done, CHUNK);
                int r = gms_read(g, range->id, range->offset + done, buffer, n);
                if (r < 0)
                        return ctl_fail("%s", ctl_why(r));
                r = target_write(t, buffer, n);
                if (r != CTL_OK)
                        return r;
                done += n;
                progress_add(progress, n);
        }
        return CTL_OK;
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        _cleanup_(target_done) struct target target = { .fd = -1 };
        const char *store = ctl->argv[0], *key = ctl->argv[1];
        struct progress progress;
        struct range range = { 0 };

        bool to_file = ctl->output && strcmp(ctl->output, "-") != 0;
        if (ctl->json && !to_file)
                return ctl_usage("fetch --json needs -o FILE: stdout cannot take both");

        ctl_catch_signals();
        int r = ctl_connect(ctl, GMS_MODE_RO, 0, &g);
        if (r < 0)
                return ctl_fail("%s", ctl_interrupted ? "interrupted" : ctl_why(r));
        r = find(g, key, &range);
        if (r == CTL_OK)
                r = target_open(&target, ctl->output);
        if (r != CTL_OK)
                return r;

        progress_start(&progress, range.bytes, !to_file && isatty(STDOUT_FILENO)); /* it would stand in the output */
        r = copy(g, &range, &target, &progress);
        progress_end(&progress);
        if (r == CTL_OK)
                r = target_finish(&target);
        if (r != CTL_OK || !to_file)
                return r;
        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:o, s:o, s:I, s:I, s:I}", "store", json_text(store), "key",
                                                    json_text(key), "file", json_text(ctl->output), "slot",
                                                    JSON_N(range.slot), "offset", JSON_N(range.offset), "bytes",
                                                    JSON_N(range.bytes)));
        return CTL_OK;
}

const struct command command_fetch = {
        .name = "fetch",
        .synopsis = "STORE KEY [-o FILE] [--wait SECONDS]",
        .summary = "write out what a key names",
        .help = "Writes the bytes that KEY names in the published layout to FILE, else to\n"
                "stdout: a published file exactly as it was; for other keys what lies between\n"
                "their offset and the end of their allocation.\n"
                "\n"
                "FILE appears when it is whole; until then, and after a failure, what was there\n"
                "stays. Other than regular files (pipes, devices) are written to directly.\n"
                "\n"
                "  -o, --output FILE  where to; - is stdout\n"
                "  --wait SECONDS     how long to wait for a first publication, or for a writer\n"
                "                     to be done. Default: 0\n"
                "\n"
                "JSON, with -o FILE\n"
                "  {\"store\", \"key\", \"file\", \"slot\", \"offset\", \"bytes\"}\n",
        .argc_min = 2,
        .argc_max = 2,
        .options = OPTION_OUTPUT | OPTION_WAIT,
        .run = run,
};
