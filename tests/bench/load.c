// SPDX-License-Identifier: MIT
/*
 * Loading a model file, once from the page cache and once from the disk.
 *
 * From the page cache against the bare copy: as many threads copy as many bytes through stages of the same size, in pieces of
 * the same size, from memory in which the bytes lie already. What loading adds is reading them there and hashing them. From
 * the disk against as many threads that read the same pieces with O_DIRECT, into memory of the same kind, and do nothing else.
 *
 * Into a GPU's memory the link copies while the processor does the rest. Into host memory the processor does that as well, and
 * makes the pages present first, so there the ratios have no goal.
 *
 * One file without a name in the build folder, of tensors as a model has them: 256 MiB on host; on a GPU 32 GiB from the page
 * cache, which are a hole, and 8 GiB from the disk.
 */
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "../weights/weights.h"
#include "gmsclient.h"
#include "gmsd.h"
#include "samples.h"
#include "vmm.h"

#define MIB (UINT64_C(1) << 20)
#define STAGE (8 * MIB)
#define PIECE (7 * MIB)
#define THREADS_MIN 8
#define THREADS_MAX 16
#define LAYER 12 /* tensors */

static void check(int r, const char *what) {
        if (r < 0)
                bench_die("%s: %s", what, gms_last_error());
}

/* As many as gmsctl takes. */
static unsigned threads(void) {
        cpu_set_t set;
        unsigned n = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : THREADS_MIN;
        return MIN(MAX(n, THREADS_MIN), THREADS_MAX);
}

/* Runs `work` in all of them; how long that took. */
static double in_threads(void *(*work)(void *), void *arg) {
        pthread_t t[THREADS_MAX];
        double since = now_us();
        for (unsigned i = 0; i < threads(); i++)
                if (pthread_create(&t[i], NULL, work, arg) != 0)
                        bench_die("a thread cannot be started");
        for (unsigned i = 0; i < threads(); i++)
                (void)pthread_join(t[i], NULL);
        return now_us() - since;
}

/* ---- the file */

struct file {
        int fd;
        char path[64]; /* for this process */
        uint64_t bytes;
};

/* A layer: large and small ones, as in a transformer of that size, 64 MiB in all. */
static void fill_layer(struct weight *w, unsigned layer) {
        static const int64_t rows[LAYER] = { 1, 1536, 384, 384, 1536, 1, 1, 4096, 4096, 4096, 1, 0 };
        for (unsigned i = 0; i < LAYER; i++) {
                w[i] = (struct weight){ .dtype = "BF16", .rank = 2, .shape = { rows[i], 2048 } };
                (void)snprintf(w[i].name, sizeof(w[i].name), "model.layers.%u.%u.weight", layer, i);
        }
}

static void file_make(struct file *f, const struct bench *b, unsigned layers, bool hollow) {
        struct weight *weights = calloc((size_t)layers * LAYER, sizeof(*weights));
        char name[sizeof(b->build) + 16];
        struct stat st;
        (void)snprintf(name, sizeof(name), "%s/load-XXXXXX", b->build);
        f->fd = mkostemp(name, O_CLOEXEC);
        if (!weights || f->fd < 0 || unlink(name) < 0)
                bench_die("%s: %s", name, strerror(errno));
        (void)snprintf(f->path, sizeof(f->path), "/proc/self/fd/%d", f->fd);
        for (unsigned i = 0; i < layers; i++)
                fill_layer(weights + (size_t)i * LAYER, i);
        (hollow ? weights_write_hollow : weights_write)(f->path, weights, (size_t)layers * LAYER);
        if (fsync(f->fd) < 0 || fstat(f->fd, &st) < 0)
                bench_die("%s: %s", b->build, strerror(errno));
        f->bytes = (uint64_t)st.st_size;
        free(weights);
}

static void file_cache(const struct file *f) {
        static char buffer[1 << 20];
        for (uint64_t at = 0; at < f->bytes; at += sizeof(buffer))
                if (pread(f->fd, buffer, sizeof(buffer), (off_t)at) < 0)
                        bench_die("reading: %s", strerror(errno));
}

static void file_drop(const struct file *f) {
        if (posix_fadvise(f->fd, 0, 0, POSIX_FADV_DONTNEED) != 0)
                bench_die("posix_fadvise");
}

/* ---- loading it */

static void *work(void *checkpoint) {
        check(gms_checkpoint_work(checkpoint), "gms_checkpoint_work");
        return NULL;
}

struct load {
        double work, all; /* the threads' part; from connecting until it is ready to be published */
        uint64_t bytes, direct;
};

static struct load load(const struct gmsd *d, const char *store, const struct file *f) {
        const char *path = f->path;
        struct gms *g;
        struct gms_checkpoint *c;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        struct gms_checkpoint_progress p = GMS_INIT(struct gms_checkpoint_progress);
        struct load l;
        o.mode = GMS_MODE_RW;
        o.label = "bench";
        double since = now_us();
        check(gms_open(&g, d->socket, store), "gms_open");
        check(gms_connect(g, &o), "connect");
        check(gms_checkpoint_open(&c, &path, 1), "gms_checkpoint_open");
        check(gms_checkpoint_load(c, g, NULL), "gms_checkpoint_load");
        l.work = in_threads(work, c);
        check(gms_checkpoint_finish(c, NULL), "gms_checkpoint_finish");
        l.all = now_us() - since;
        check(gms_checkpoint_progress(c, &p), "gms_checkpoint_progress");
        l.bytes = p.total;
        l.direct = p.direct;
        gms_checkpoint_close(c);
        gms_close(g);
        gmsd_settle(d);
        return l;
}

/* ---- the bare copy */

struct copy {
        struct vmm *vmm;
        uint64_t address, bytes, next;
        unsigned shift; /* of the memory that is copied from */
        pthread_barrier_t ready;
};

static void *copy_work(void *arg) {
        struct copy *c = arg;
        struct vmm_stage *stages[2] = { NULL };
        char text[200];
        for (unsigned i = 0; i < 2; i++)
                if (vmm_stage_open(&stages[i], c->vmm, STAGE, text, sizeof(text)) != 0)
                        bench_die("vmm_stage_open: %s", text);
        (void)pthread_barrier_wait(&c->ready);
        uint64_t at;
        for (unsigned i = 0; (at = __atomic_fetch_add(&c->next, PIECE, __ATOMIC_RELAXED)) < c->bytes; i ^= 1)
                if (vmm_stage_wait(stages[i]) != 0 ||
                    vmm_stage_copy_in(stages[i], c->address + at, (char *)vmm_stage_memory(stages[i]) + c->shift,
                                      MIN(PIECE, c->bytes - at)) != 0)
                        bench_die("copy: %s", vmm_stage_text(stages[i]));
        for (unsigned i = 0; i < 2; i++)
                if (vmm_stage_wait(stages[i]) != 0)
                        bench_die("copy: %s", vmm_stage_text(stages[i]));
        (void)pthread_barrier_wait(&c->ready);
        for (unsigned i = 0; i < 2; i++)
                (void)vmm_stage_free(stages[i]);
        return NULL;
}

/* From when all stages are open until all copies are done. */
static double bare_copy(struct vmm *v, uint64_t bytes, unsigned shift) {
        struct copy c = { .vmm = v, .bytes = bytes, .shift = shift };
        pthread_t t[THREADS_MAX];
        uint64_t size;
        int fd;
        (void)align_up(bytes, v->device.granularity, &size);
        if (vmm_create(v, size, &fd) != 0 || vmm_attach(v, fd, 0, size, VMM_ACCESS_READ_WRITE, &c.address) != 0)
                bench_die("memory to copy to: %s", v->text);
        close_fd(fd);
        (void)pthread_barrier_init(&c.ready, NULL, threads() + 1);
        for (unsigned i = 0; i < threads(); i++)
                if (pthread_create(&t[i], NULL, copy_work, &c) != 0)
                        bench_die("a thread cannot be started");
        (void)pthread_barrier_wait(&c.ready);
        double since = now_us();
        (void)pthread_barrier_wait(&c.ready);
        double took = now_us() - since;
        for (unsigned i = 0; i < threads(); i++)
                (void)pthread_join(t[i], NULL);
        (void)pthread_barrier_destroy(&c.ready);
        if (vmm_unmap(v, c.address, size) != 0)
                bench_die("unmap: %s", v->text);
        vmm_unreserve(v, c.address, size);
        return took;
}

/* ---- the bare read */

struct reading {
        struct vmm *vmm; /* the same kind of memory is read to */
        int fd;
        uint64_t bytes, next;
};

static void *read_work(void *arg) {
        struct reading *r = arg;
        struct vmm_stage *stage;
        char text[200];
        uint64_t at;
        if (vmm_stage_open(&stage, r->vmm, STAGE, text, sizeof(text)) != 0)
                bench_die("vmm_stage_open: %s", text);
        while ((at = __atomic_fetch_add(&r->next, PIECE, __ATOMIC_RELAXED)) < r->bytes)
                if (pread(r->fd, vmm_stage_memory(stage), PIECE, (off_t)at) <= 0)
                        bench_die("reading with O_DIRECT: %s", strerror(errno));
        (void)vmm_stage_free(stage);
        return NULL;
}

static double bare_read(struct vmm *v, const struct file *f) {
        struct reading r = { .vmm = v, .fd = open(f->path, O_RDONLY | O_CLOEXEC | O_DIRECT), .bytes = f->bytes };
        if (r.fd < 0)
                return NONE; /* no disk is behind it */
        double took = in_threads(read_work, &r);
        close_fd(r.fd);
        return took;
}

/* ---- rows */

static double gigabytes(const struct load *l, double us) {
        return (double)l->bytes / us / 1e3;
}

static void from_cache(struct bench *b, const struct gmsd *d, struct vmm *v, const struct file *f, const char *store, bool host) {
        _cleanup_samples_ struct samples loads = {}, alls = {}, copies = {}, shifted = {};
        struct load l = { 0 };
        file_cache(f);
        for (int round = 0; round < 6; round++) {
                l = load(d, store, f);
                if (l.direct > 0)
                        file_cache(f);
                double copy = bare_copy(v, l.bytes, 0), as_they_lie = bare_copy(v, l.bytes, 8);
                if (round == 0)
                        continue; /* to warm up */
                samples_add(&loads, l.work);
                samples_add(&alls, l.all);
                samples_add(&copies, copy);
                samples_add(&shifted, as_they_lie);
        }
        double us = samples_cost(&loads), bare = samples_cost(&copies);
        bench_row(b, "load", "us", us, bare, host ? NONE : 1 / 0.85,
                  "gms_checkpoint_work() of %" PRIu64 " MiB, %.0f%% in the page cache, %u threads: %.1f GB/s; bare stage copies: %.1f",
                  l.bytes / MIB, 100 - 100 * (double)l.direct / (double)l.bytes, threads(), gigabytes(&l, us), gigabytes(&l, bare));
        bench_row(b, "load_copy_shifted", "us", samples_cost(&shifted), bare, NONE,
                  "bare stage copies from addresses that are multiples of 8 only, as tensors' bytes lie in files");
        bench_row(b, "load_all", "us", samples_cost(&alls), NONE, NONE, "the same from gms_connect() until it can be published");
}

static void from_disk(struct bench *b, const struct gmsd *d, struct vmm *v, const struct file *f, const char *store, bool host) {
        _cleanup_samples_ struct samples loads = {}, reads = {};
        struct load l = { 0 };
        for (int round = 0; round < 3; round++) {
                file_drop(f);
                l = load(d, store, f);
                samples_add(&loads, l.work);
                file_drop(f);
                samples_add(&reads, bare_read(v, f));
        }
        double us = samples_cost(&loads), bare = samples_cost(&reads);
        bench_row(b, "load_disk", "us", us, bare, host ? NONE : 1 / 0.9,
                  "the same from disk (%.0f%% O_DIRECT): %.2f GB/s; the same threads reading alone: %.2f",
                  100 * (double)l.direct / (double)l.bytes, gigabytes(&l, us), gigabytes(&l, bare));
}

void load_run(struct bench *b) {
        struct gmsd d;
        struct file f;
        struct vmm *v;
        char text[200], store[64];
        gmsd_start(&d, b, b->device, NULL, NULL);
        if (vmm_open(&v, d.device, text, sizeof(text)) != 0)
                bench_die("%s: %s", d.device, text);
        bool host = strcmp(d.device, "host") == 0;
        (void)snprintf(store, sizeof(store), "%s/load", d.device);
        file_make(&f, b, host ? 4 : 512, !host);
        from_cache(b, &d, v, &f, store, host);
        close_fd(f.fd);
        file_make(&f, b, host ? 4 : 128, false);
        from_disk(b, &d, v, &f, store, host);
        close_fd(f.fd);
        vmm_free(v);
        gmsd_stop(&d);
}
