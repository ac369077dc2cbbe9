// SPDX-License-Identifier: MIT
/* Model files and the threads that work on them. What is done with them, load.c and verify.c say. */
#include <pthread.h>
#include <sched.h>
#include <time.h>

#include "gmsctl.h"

#define TICK_NS 50000000 /* how soon a signal is noticed, and how often progress is looked at */

int weights_open(struct weights *w, const struct ctl *ctl) {
        return gms_checkpoint_open(&w->checkpoint, (const char *const *)ctl->argv + 1, (size_t)ctl->argc - 1);
}

void weights_done(struct weights *w) {
        gms_checkpoint_close(w->checkpoint);
        w->checkpoint = NULL;
}

/* A disk wants several requests at once however few the processors are; sixteen have more than a link takes. */
static unsigned default_threads(void) {
        cpu_set_t set;
        unsigned n = sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 8;
        return MIN(MAX(n, 8u), 16u);
}

static void *work(void *checkpoint) {
        (void)gms_checkpoint_work(checkpoint); /* gms_checkpoint_finish() tells what became of it */
        return NULL;
}

static void look(struct weights *w, struct progress *progress) {
        uint64_t before = w->totals.done;
        if (ctl_interrupted)
                gms_checkpoint_cancel(w->checkpoint);
        w->totals = (struct gms_checkpoint_progress)GMS_INIT(struct gms_checkpoint_progress);
        (void)gms_checkpoint_progress(w->checkpoint, &w->totals);
        progress_add(progress, w->totals.done - before);
}

static void join(pthread_t thread, struct weights *w, struct progress *progress) {
        struct timespec until;
        do {
                look(w, progress);
                (void)clock_gettime(CLOCK_REALTIME, &until);
                until.tv_nsec += TICK_NS;
                until.tv_sec += until.tv_nsec / 1000000000;
                until.tv_nsec %= 1000000000;
        } while (pthread_timedjoin_np(thread, NULL, &until) != 0);
}

int weights_work(struct weights *w, const struct ctl *ctl) {
        pthread_t threads[64];
        struct progress progress;
        unsigned n = 0, wanted = ctl->threads ? ctl->threads : default_threads();

        look(w, &(struct progress){ 0 });
        progress_start(&progress, w->totals.total, false);
        while (n < wanted && pthread_create(&threads[n], NULL, work, w->checkpoint) == 0)
                n++;
        if (n == 0)
                (void)work(w->checkpoint);
        while (n > 0)
                join(threads[--n], w, &progress);
        look(w, &progress);
        w->seconds = MAX(progress_seconds(&progress), 1e-6);
        progress_end(&progress);
        return gms_checkpoint_finish(w->checkpoint, w->identity);
}
