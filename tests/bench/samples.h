// SPDX-License-Identifier: MIT
#pragma once
/* Measurements of one thing, of which a percentile is asked. */
#include "base.h"

struct samples {
        double *at;
        size_t n, room;
};

void samples_add(struct samples *s, double value);
/* The value below which `percent` of them lie: 50 is the median, 100 the greatest. Sorts them. */
double samples_percentile(struct samples *s, unsigned percent);
void samples_done(struct samples *s);

static inline double samples_median(struct samples *s) {
        return samples_percentile(s, 50);
}

/* What the thing costs by itself: the machine's other work only ever adds to it, so the lower quartile of many rounds. */
static inline double samples_cost(struct samples *s) {
        return samples_percentile(s, 25);
}

#define _cleanup_samples_ _cleanup_(samples_done)
