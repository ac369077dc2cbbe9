// SPDX-License-Identifier: MIT
#include "samples.h"

#include "bench.h"

void samples_add(struct samples *s, double value) {
        if (s->n == s->room) {
                s->room = s->room * 2 + 64;
                s->at = reallocarray(s->at, s->room, sizeof(*s->at));
                if (!s->at)
                        bench_die("out of memory");
        }
        s->at[s->n++] = value;
}

static int compare(const void *a, const void *b) {
        double x = *(const double *)a, y = *(const double *)b;
        return (x > y) - (x < y);
}

double samples_percentile(struct samples *s, unsigned percent) {
        if (s->n == 0)
                bench_die("nothing was measured");
        qsort(s->at, s->n, sizeof(*s->at), compare);
        size_t rank = (s->n * percent + 99) / 100;
        return s->at[rank > 0 ? rank - 1 : 0];
}

void samples_done(struct samples *s) {
        free(s->at);
        *s = (struct samples){};
}
