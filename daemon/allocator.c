// SPDX-License-Identifier: MIT
#include "allocator.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "log.h"

#define FAULTED_AFTER 3u      /* failures in a row; then requests fail at once while there is no worker */
#define JOB_ATTEMPTS_MAX 3u   /* workers one job may cost */
#define SILENCE_MAX 30000u    /* ms without an answer until a worker counts as hung; a create of 126 GiB takes 290 ms */
#define FREES_AT_ONCE 8u      /* batches of 253 with the worker: bounds the descriptors in flight */
#define ROOM_EVERY 1000u      /* ms between looks at the free memory */
#define ROOM_EVERY_WAITING 100u

enum state {
        STATE_DOWN,     /* no worker until `respawn` */
        STATE_STARTING, /* the worker opens its device */
        STATE_READY,
        STATE_OFF,      /* not to be used, for a reason that does not pass */
};

/* Descriptors on their way to the worker, in one frame. */
struct batch {
        struct list link;
        struct fdset *fds; /* until sent */
        uint64_t bytes;
};

struct allocator {
        struct device_info info;
        uint64_t capacity;
        uint64_t device_total;  /* what info.total would be without the cap */
        enum state state;
        bool answered;
        uint64_t descriptors;   /* of physical memory, not yet with the worker */
        bool queried;           /* a look at the free memory is under way */
        bool retry;             /* something changed: try the waiting when the room is known */
        unsigned failures;      /* of workers, since one was last useful */
        char text[320];         /* why the last one failed */
        uint64_t respawn;       /* absolute, when down */
        uint64_t heard;         /* last frame from the worker, or when it was given work */
        uint64_t next_room;
        uint64_t serial;
        struct worker *worker;
        uint64_t owned;         /* bytes whose descriptors exist: stores' and those being freed */

        struct list ready;      /* jobs for the worker, in order; the first one is with it if `busy` */
        bool busy;
        struct list waiting;    /* jobs that found no room */
        size_t n_waiting;
        struct list finished;

        struct list unsent;     /* batches to free */
        struct list sent;       /* batches with the worker, in order */
        unsigned n_sent;

        uint8_t buf[CHANNEL_FRAME_MAX];
};

/* ---- jobs */

int job_new(struct job **ret_job, size_t n_runs) {
        struct job *job = calloc(1, sizeof(*job));
        if (!job)
                return -ENOMEM;
        list_init(&job->link);
        job->runs = calloc(n_runs ? n_runs : 1, sizeof(*job->runs));
        if (!job->runs) {
                free(job);
                return -ENOMEM;
        }
        job->n_runs = n_runs;
        *ret_job = job;
        return 0;
}

int job_prepare(struct job *job) {
        job->n = 0;
        for (size_t i = 0; i < job->n_runs; i++)
                job->n += job->runs[i].count;
        job->fds = malloc((job->n ? job->n : 1) * sizeof(*job->fds));
        if (!job->fds)
                return -ENOMEM;
        for (uint32_t i = 0; i < job->n; i++)
                job->fds[i] = -1;
        return 0;
}

struct job *job_free(struct job *job) {
        if (!job)
                return NULL;
        list_unlink(&job->link);
        for (uint32_t i = 0; job->fds && i < job->n; i++)
                close_fd(job->fds[i]);
        for (size_t i = 0; i < job->n_runs; i++)
                free(job->runs[i].tag);
        free(job->fds);
        free(job->runs);
        free(job);
        return NULL;
}

/* The aligned size of descriptor `i` of a job. */
static uint64_t job_size(const struct job *job, uint32_t i) {
        for (size_t r = 0; r < job->n_runs; r++) {
                if (i < job->runs[r].count)
                        return job->runs[r].aligned;
                i -= job->runs[r].count;
        }
        abort();
}

/* Gives back what was made for a job that does not get all of it. */
static void job_undo(struct allocator *a, struct job *job) {
        for (uint32_t i = 0; i < job->done; i++)
                allocator_release_consume(a, steal_fd(&job->fds[i]), job_size(job, i));
        job->done = 0;
}

static void job_finish(struct allocator *a, struct job *job, Gms__Status status, const char *text) {
        list_unlink(&job->link);
        if (status != GMS__STATUS__OK || !job->owner)
                job_undo(a, job);
        if (!job->owner) {
                job_free(job);
                return;
        }
        job->status = status;
        (void)snprintf(job->text, sizeof(job->text), "%s", text ? text : "");
        list_append(&a->finished, &job->link);
}

static void job_finish_no_room(struct allocator *a, struct job *job) {
        char text[320];
        (void)snprintf(text, sizeof(text),
                       "%s: asked for %" PRIu64 " bytes, and of %" PRIu64 " bytes %" PRIu64 " are free; free or discard "
                       "something, ask for less, or wait longer",
                       a->info.name, job->bytes, a->info.total,
                       MIN(a->info.free, a->info.total > a->owned ? a->info.total - a->owned : 0));
        job_finish(a, job, GMS__STATUS__NO_MEMORY, text);
}

static void job_finish_faulted(struct allocator *a, struct job *job) {
        char text[320];
        (void)snprintf(text, sizeof(text), "%.31s is faulted: %.200s; see gmsctl status, and try again when it is ready",
                       a->info.name, a->text);
        job_finish(a, job, GMS__STATUS__FAULTED, text);
}

/* Its turn has not come within its deadline: the worker is slow, or away. */
static void job_finish_late(struct allocator *a, struct job *job) {
        char text[320];
        (void)snprintf(text, sizeof(text),
                       "%.31s is %s and has not taken the request within its deadline; wait longer, or see gmsctl status",
                       a->info.name, a->busy ? "busy" : allocator_state(a));
        job_finish(a, job, GMS__STATUS__TIMED_OUT, text);
}

/* ---- the worker's life */

static void allocator_down(struct allocator *a, const char *why, uint64_t now) {
        static const uint64_t back_off[] = { 10, 100, 1000, 10000, 30000 };

        a->worker = worker_free(a->worker);
        a->state = STATE_DOWN;
        a->answered = true;
        a->queried = false;
        a->respawn = now + back_off[MIN(a->failures, ARRAY_SIZE(back_off) - 1)];
        a->failures++;
        (void)snprintf(a->text, sizeof(a->text), "%s", why);
        log_line(a->failures <= FAULTED_AFTER ? 4 : 6, "%s: %s; starting another worker in %" PRIu64 " ms", a->info.spec, why,
                 a->respawn - now);
        if (a->failures == FAULTED_AFTER)
                log_error("%s: faulted: its worker failed %u times in a row", a->info.spec, a->failures);

        /* What the worker was to close is closed: its death did that. */
        list_for_safe(b, &a->sent, struct batch, link) {
                a->owned -= b->bytes;
                list_unlink(&b->link);
                free(b);
        }
        a->n_sent = 0;
        a->retry = true;

        struct job *job = a->busy ? list_first(&a->ready, struct job, link) : NULL;
        a->busy = false;
        if (job && ++job->attempts >= JOB_ATTEMPTS_MAX)
                job_finish_faulted(a, job);
        if (a->failures >= FAULTED_AFTER)
                list_for_safe(j, &a->ready, struct job, link)
                        job_finish_faulted(a, j);
}

static void allocator_send(struct allocator *a, Gms__Frame *frame, struct fdset *fds, uint64_t now) {
        frame->serial = ++a->serial;
        if (list_empty(&a->sent) && !a->busy && !a->queried)
                a->heard = now;
        if (worker_send_consume(a->worker, frame, fds) != 0)
                allocator_down(a, "the worker does not take requests", now);
}

/* Sends the batches that may go. They go first to a new worker: closing needs no open device. */
static void send_frees(struct allocator *a, uint64_t now) {
        while (a->worker && a->n_sent < FREES_AT_ONCE && !list_empty(&a->unsent)) {
                struct batch *b = list_first(&a->unsent, struct batch, link);
                Gms__WorkFree body = GMS__WORK_FREE__INIT;
                Gms__Frame f = GMS__FRAME__INIT;
                f.body_case = GMS__FRAME__BODY_WORK_FREE;
                f.work_free = &body;
                list_unlink(&b->link);
                struct fdset *fds = steal_ptr(&b->fds);
                a->descriptors -= fds->n;
                list_append(&a->sent, &b->link);
                a->n_sent++;
                allocator_send(a, &f, fds, now);
                /* Only now are our copies closed. Were the worker told to close its own before, ours could be the last ones. */
                if (a->worker)
                        allocator_send(a, &f, NULL, now);
        }
}

static void allocator_start(struct allocator *a, uint64_t now) {
        int r = worker_spawn(&a->worker, a->info.spec);
        if (r < 0) {
                allocator_down(a, strerror(-r), now);
                return;
        }
        a->state = STATE_STARTING;
        a->heard = now;
        send_frees(a, now);
        if (!a->worker)
                return;
        Gms__WorkOpen body = GMS__WORK_OPEN__INIT;
        body.device = a->info.spec;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_OPEN;
        f.work_open = &body;
        allocator_send(a, &f, NULL, now);
}

/* ---- creating */

/* What the account allows. What the device has beside that, the worker looks at. */
static bool fits_account(const struct allocator *a, const struct job *job) {
        uint64_t left = a->info.total > a->owned ? a->info.total - a->owned : 0;
        return job->bytes <= left;
}

static void job_wait(struct allocator *a, struct job *job, uint64_t now) {
        list_unlink(&job->link);
        job_undo(a, job);
        if (!job->owner || job->deadline <= now) {
                job_finish_no_room(a, job);
                return;
        }
        job->not_before = now + (ROOM_EVERY_WAITING << MIN(job->refusals++, 5u));
        list_append(&a->waiting, &job->link);
        a->n_waiting++;
        a->next_room = MIN(a->next_room, now + ROOM_EVERY_WAITING);
}

/* Asks the worker for what the job still lacks: what a worker that died had delivered, stays delivered. */
static void job_send(struct allocator *a, struct job *job, uint64_t now) {
        Gms__WorkCreate__Run *runs = calloc(job->n_runs, sizeof(*runs));
        Gms__WorkCreate__Run **pointers = calloc(job->n_runs, sizeof(*pointers));
        if (!runs || !pointers) {
                job_finish(a, job, GMS__STATUS__INTERNAL, "the daemon has no memory for this request");
        } else {
                Gms__WorkCreate body = GMS__WORK_CREATE__INIT;
                uint32_t skip = job->done;
                body.runs = pointers;
                for (size_t i = 0; i < job->n_runs; i++) {
                        uint32_t had = MIN(skip, job->runs[i].count);
                        skip -= had;
                        if (had == job->runs[i].count)
                                continue;
                        gms__work_create__run__init(&runs[i]);
                        runs[i].size = job->runs[i].aligned;
                        runs[i].count = job->runs[i].count - had;
                        pointers[body.n_runs++] = &runs[i];
                }
                Gms__Frame f = GMS__FRAME__INIT;
                f.body_case = GMS__FRAME__BODY_WORK_CREATE;
                f.work_create = &body;
                allocator_send(a, &f, NULL, now);
                if (a->worker)
                        a->busy = true;
        }
        free(runs);
        free(pointers);
}

/* Gives the worker its next job. */
static void run_jobs(struct allocator *a, uint64_t now) {
        while (a->state == STATE_READY && !a->busy && !list_empty(&a->ready)) {
                struct job *job = list_first(&a->ready, struct job, link);
                if (!job->owner)
                        job_finish(a, job, GMS__STATUS__OK, NULL);
                else if (job->done == 0 && !fits_account(a, job))
                        job_wait(a, job, now);
                else
                        job_send(a, job, now);
        }
}

/* The room is known (or cannot be known): whoever could fit is tried again. */
static void retry_waiting(struct allocator *a, bool known, uint64_t now) {
        uint64_t left = a->info.free;
        list_for_safe(job, &a->waiting, struct job, link) {
                if (!fits_account(a, job) || (known && job->bytes > left) || (!a->retry && now < job->not_before))
                        continue;
                left -= known ? job->bytes : 0;
                list_unlink(&job->link);
                a->n_waiting--;
                list_append(&a->ready, &job->link);
        }
        a->retry = false;
        run_jobs(a, now);
}

static void query_room(struct allocator *a, uint64_t now) {
        if (a->state != STATE_READY || a->queried)
                return;
        Gms__WorkQuery body = GMS__WORK_QUERY__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        f.body_case = GMS__FRAME__BODY_WORK_QUERY;
        f.work_query = &body;
        allocator_send(a, &f, NULL, now);
        a->queried = a->worker != NULL;
}

/* ---- what the worker says */

static void on_ready(struct allocator *a, const Gms__Device *d, uint64_t now) {
        (void)snprintf(a->info.name, sizeof(a->info.name), "%s", d->name);
        (void)snprintf(a->info.uuid, sizeof(a->info.uuid), "%s", d->uuid);
        (void)snprintf(a->info.model, sizeof(a->info.model), "%s", d->model);
        a->device_total = d->total;
        a->info.total = a->capacity ? MIN(a->capacity, d->total) : d->total;
        a->info.free = d->free;
        a->info.granularity = d->granularity;
        a->state = STATE_READY;
        a->answered = true;
        a->text[0] = 0;
        a->next_room = now + ROOM_EVERY;
        log_info("%s: ready: %s, %s, %" PRIu64 " MiB", a->info.name, a->info.uuid, a->info.model, a->info.total >> 20);
        if (a->retry || a->n_waiting)
                query_room(a, now);
        run_jobs(a, now);
}

static void on_created(struct allocator *a, bool last, struct fdset *fds, uint64_t now) {
        struct job *job = a->busy ? list_first(&a->ready, struct job, link) : NULL;
        unsigned n = fds ? fds->n : 0;
        if (!job || n > job->n - job->done || (last && job->done + n != job->n)) {
                allocator_down(a, "the worker answered what it was not asked", now);
                return;
        }
        for (unsigned i = 0; i < n; i++) {
                a->owned += job_size(job, job->done);
                a->descriptors++;
                job->fds[job->done++] = fdset_steal(fds, i);
        }
        if (!last)
                return;
        a->busy = false;
        a->failures = 0;
        job_finish(a, job, GMS__STATUS__OK, NULL);
        run_jobs(a, now);
}

static void on_freed(struct allocator *a, uint64_t now) {
        struct batch *b = list_first(&a->sent, struct batch, link);
        if (!b) {
                allocator_down(a, "the worker answered what it was not asked", now);
                return;
        }
        list_unlink(&b->link);
        a->owned -= b->bytes;
        free(b);
        a->n_sent--;
        a->failures = 0;
        send_frees(a, now);
        if (a->n_waiting) {
                a->retry = true;
                query_room(a, now);
        }
}

static void on_room(struct allocator *a, const Gms__WorkRoom *room, uint64_t now) {
        a->queried = false;
        a->next_room = now + (a->n_waiting ? ROOM_EVERY_WAITING : ROOM_EVERY);
        if (room)
                a->info.free = room->free;
        /* Who cannot know the room tries when something has changed, and only then. */
        if (room || a->retry)
                retry_waiting(a, room != NULL, now);
}

static void on_error(struct allocator *a, const Gms__Frame *f, uint64_t now) {
        if (a->state == STATE_STARTING) {
                allocator_down(a, f->text, now);
                return;
        }
        if (f->status == GMS__STATUS__INTERNAL && a->queried) {
                on_room(a, NULL, now);
                return;
        }
        struct job *job = a->busy ? list_first(&a->ready, struct job, link) : NULL;
        if (!job) {
                allocator_down(a, f->text, now);
                return;
        }
        a->busy = false;
        if (f->status == GMS__STATUS__NO_MEMORY) {
                job_wait(a, job, now);
        } else {
                char text[320];
                (void)snprintf(text, sizeof(text), "%.31s: %.256s", a->info.name, f->text);
                job_finish(a, job, f->status, text);
        }
        run_jobs(a, now);
}

static void on_frame(struct allocator *a, const Gms__Frame *f, struct fdset *fds, uint64_t now) {
        a->heard = now;
        if (f->status != GMS__STATUS__OK)
                on_error(a, f, now);
        else if (f->body_case == GMS__FRAME__BODY_WORK_READY && f->work_ready->device && a->state == STATE_STARTING &&
                 f->work_ready->device->granularity > 0)
                on_ready(a, f->work_ready->device, now);
        else if (f->body_case == GMS__FRAME__BODY_WORK_CREATED)
                on_created(a, f->work_created->last, fds, now);
        else if (f->body_case == GMS__FRAME__BODY_WORK_FREED)
                on_freed(a, now);
        else if (f->body_case == GMS__FRAME__BODY_WORK_ROOM)
                on_room(a, f->work_room, now);
        else
                allocator_down(a, "the worker answered what it was not asked", now);
}

void allocator_dispatch(struct allocator *a, uint64_t now) {
        if (a->worker && channel_flush(&a->worker->channel) == CHANNEL_E_EOF) {
                allocator_down(a, "the worker has died", now);
                return;
        }
        while (a->worker) {
                _cleanup_frame_ Gms__Frame *frame = NULL;
                _cleanup_(fdset_freep) struct fdset *fds = NULL;
                int r = worker_receive(a->worker, a->buf, &frame, &fds);
                if (r == CHANNEL_E_AGAIN || r == -EINTR)
                        return;
                if (r != 0) {
                        allocator_down(a, r < 0 ? strerror(-r) : "the worker has died", now);
                        return;
                }
                on_frame(a, frame, fds, now);
        }
}

/* ---- for the server */

int allocator_new(struct allocator **ret_allocator, const char *spec, uint64_t capacity, uint64_t now) {
        struct allocator *a = calloc(1, sizeof(*a));
        if (!a)
                return -ENOMEM;
        (void)snprintf(a->info.spec, sizeof(a->info.spec), "%s", spec);
        (void)snprintf(a->info.name, sizeof(a->info.name), "%s", spec);
        a->capacity = capacity;
        a->next_room = ALLOCATOR_NEVER;
        list_init(&a->ready);
        list_init(&a->waiting);
        list_init(&a->finished);
        list_init(&a->unsent);
        list_init(&a->sent);
        allocator_start(a, now);
        *ret_allocator = a;
        return 0;
}

static void batches_free(struct list *batches) {
        list_for_safe(b, batches, struct batch, link) {
                fdset_free(b->fds);
                list_unlink(&b->link);
                free(b);
        }
}

static void jobs_free(struct list *jobs) {
        list_for_safe(job, jobs, struct job, link)
                job_free(job);
}

struct allocator *allocator_free(struct allocator *a) {
        if (!a)
                return NULL;
        a->worker = worker_free(a->worker);
        jobs_free(&a->ready);
        jobs_free(&a->waiting);
        jobs_free(&a->finished);
        batches_free(&a->unsent);
        batches_free(&a->sent);
        free(a);
        return NULL;
}

void allocator_submit(struct allocator *a, struct job *job, uint64_t now) {
        list_append(&a->ready, &job->link);
        if (a->state == STATE_DOWN && a->failures >= FAULTED_AFTER)
                job_finish_faulted(a, job);
        run_jobs(a, now);
}

void allocator_cancel(struct allocator *a, struct job *job) {
        struct job *first = a->busy ? list_first(&a->ready, struct job, link) : NULL;
        job->owner = NULL;
        if (job == first)
                return; /* its answer is on the way */
        bool waits = false;
        list_for(j, &a->waiting, struct job, link)
                waits = waits || j == job;
        a->n_waiting -= waits;
        job_finish(a, job, GMS__STATUS__OK, NULL);
}

struct job *allocator_finished(struct allocator *a) {
        struct job *job = list_first(&a->finished, struct job, link);
        if (job)
                list_unlink(&job->link);
        return job;
}

void allocator_release_consume(struct allocator *a, int fd, uint64_t bytes) {
        struct batch *last = list_empty(&a->unsent) ? NULL : list_entry(a->unsent.prev, struct batch, link);
        if (!last || last->fds->n == FDSET_MAX) {
                struct batch *b = malloc(sizeof(*b));
                if (!b || ({ *b = (struct batch){}; fdset_new(&b->fds, FDSET_MAX, true); }) < 0) {
                        /* Without memory to free politely: the close may block, but nothing leaks. */
                        free(b);
                        close_fd(fd);
                        a->owned -= bytes;
                        a->descriptors--;
                        return;
                }
                list_append(&a->unsent, &b->link);
                last = b;
        }
        fdset_add(last->fds, fd);
        last->bytes += bytes;
}

void allocator_remember(struct allocator *a, const struct device_info *info) {
        char spec[sizeof(a->info.spec)];
        memcpy(spec, a->info.spec, sizeof(spec));
        a->info = *info;
        memcpy(a->info.spec, spec, sizeof(spec));
}

void allocator_account(struct allocator *a, uint64_t bytes, uint64_t descriptors) {
        a->owned += bytes;
        a->descriptors += descriptors;
}

void allocator_forget(struct allocator *a, uint64_t bytes) {
        a->owned -= bytes;
        a->descriptors--;
}

void allocator_disable(struct allocator *a, const char *why) {
        assert(list_empty(&a->ready) && list_empty(&a->waiting) && list_empty(&a->unsent) && list_empty(&a->sent));
        a->worker = worker_free(a->worker);
        a->state = STATE_OFF;
        a->info.total = a->info.free = 0;
        a->failures = FAULTED_AFTER;
        a->info.uuid[0] = 0;
        (void)snprintf(a->info.name, sizeof(a->info.name), "%.31s", a->info.spec);
        (void)snprintf(a->text, sizeof(a->text), "%s", why);
}

void allocator_set_capacity(struct allocator *a, uint64_t capacity, uint64_t now) {
        a->capacity = capacity;
        if (a->state == STATE_READY)
                a->info.total = capacity ? MIN(capacity, a->device_total) : a->device_total;
        allocator_kick(a, now);
}

void allocator_kick(struct allocator *a, uint64_t now) {
        if (!a->n_waiting)
                return;
        a->retry = true;
        query_room(a, now);
}

int allocator_fd(const struct allocator *a) {
        return a->worker ? a->worker->channel.fd : -1;
}

bool allocator_wants_write(const struct allocator *a) {
        return a->worker && !channel_idle(&a->worker->channel);
}

/* A worker that was given something and says nothing. */
static bool worker_owes(const struct allocator *a) {
        return a->worker && (a->state == STATE_STARTING || a->busy || a->queried || a->n_sent > 0);
}

void allocator_tick(struct allocator *a, uint64_t now) {
        if (worker_owes(a) && now >= a->heard + SILENCE_MAX)
                allocator_down(a, "the worker has not answered for 30 s", now);
        if (a->state == STATE_DOWN && now >= a->respawn)
                allocator_start(a, now);
        send_frees(a, now);
        if (now >= a->next_room) {
                a->next_room = now + (a->n_waiting ? ROOM_EVERY_WAITING : ROOM_EVERY);
                query_room(a, now);
        }
        list_for_safe(job, &a->waiting, struct job, link) {
                if (job->deadline <= now) {
                        a->n_waiting--;
                        job_finish_no_room(a, job);
                }
        }
        list_for_safe(j, &a->ready, struct job, link) {
                bool with_worker = a->busy && &j->link == a->ready.next;
                if (!with_worker && j->deadline <= now)
                        job_finish_late(a, j);
        }
}

uint64_t allocator_wake(const struct allocator *a) {
        if (a->worker && a->n_sent < FREES_AT_ONCE && !list_empty(&a->unsent))
                return 0; /* at once, when the events at hand are done: that makes large batches */
        uint64_t wake = a->state == STATE_DOWN ? a->respawn : ALLOCATOR_NEVER;
        if (a->state == STATE_READY)
                wake = MIN(wake, a->next_room);
        if (worker_owes(a))
                wake = MIN(wake, a->heard + SILENCE_MAX);
        list_for(job, &a->waiting, struct job, link)
                wake = MIN(wake, job->deadline);
        list_for(job, &a->ready, struct job, link)
                if (!a->busy || &job->link != a->ready.next)
                        wake = MIN(wake, job->deadline);
        return wake;
}

const char *allocator_state(const struct allocator *a) {
        if (a->state == STATE_READY)
                return "ready";
        return a->failures >= FAULTED_AFTER ? "faulted" : "starting";
}

bool allocator_answered(const struct allocator *a) {
        return a->answered;
}

bool allocator_ready(const struct allocator *a) {
        return a->state == STATE_READY;
}

const char *allocator_text(const struct allocator *a) {
        return a->state == STATE_READY ? "" : a->text;
}

const struct device_info *allocator_info(const struct allocator *a) {
        return &a->info;
}

uint64_t allocator_owned(const struct allocator *a) {
        return a->owned;
}

uint64_t allocator_descriptors(const struct allocator *a) {
        uint64_t n = a->descriptors;
        list_for(job, &a->ready, struct job, link)
                n += job->n - job->done;
        list_for(job, &a->waiting, struct job, link)
                n += job->n;
        return n;
}

size_t allocator_waiting(const struct allocator *a) {
        return a->n_waiting;
}
