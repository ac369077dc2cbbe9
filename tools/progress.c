// SPDX-License-Identifier: MIT
/* Progress of a copy: how much, how fast, how long still. It is redrawn ten times a second and gone at the end. */
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "gmsctl.h"

#define REDRAW_NS 100000000u

static bool drawn; /* the cursor stands behind a line of ours */

static uint64_t now_ns(void) {
        struct timespec ts;
        (void)clock_gettime(CLOCK_MONOTONIC, &ts);
        return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

double progress_seconds(const struct progress *p) {
        return (double)(now_ns() - p->start_ns) / 1e9;
}

static unsigned terminal_columns(void) {
        struct winsize size;
        return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void draw(const struct progress *p) {
        double seconds = progress_seconds(p), share = p->total ? (double)p->done / (double)p->total : 1;
        double rate = seconds > 0 ? (double)p->done / seconds : 0;
        char numbers[224], left[64] = "";
        char bar[41] = "";

        if (rate > 0 && seconds > 0.5) /* earlier it would jump about */
                snprintf(left, sizeof(left), "  %s left", text_age((uint64_t)((double)(p->total - p->done) / rate * 1000)).s);
        int len = snprintf(numbers, sizeof(numbers), "%3u%%  %s of %s  %s/s%s", (unsigned)(share * 100), text_size(p->done).s,
                           text_size(p->total).s, text_size((uint64_t)rate).s, left);

        /* A line that wraps cannot be redrawn: the bar takes what is left, and without room there is none. */
        int columns = (int)terminal_columns() - 1, room = MIN(columns - len - 4, 40);
        if (room >= 10) {
                int full = (int)(share * room);
                memset(bar, '#', (size_t)full);
                memset(bar + full, '.', (size_t)(room - full));
                fprintf(stderr, "\r\033[K[%.*s]  %s", room, bar, numbers);
        } else {
                fprintf(stderr, "\r\033[K%.*s", MAX(columns, 0), numbers);
        }
        fflush(stderr);
        drawn = true;
}

void progress_start(struct progress *p, uint64_t total, bool quiet) {
        *p = (struct progress){ .shown = !quiet && isatty(STDERR_FILENO), .total = total, .start_ns = now_ns() };
        if (p->shown)
                draw(p);
}

void progress_add(struct progress *p, uint64_t bytes) {
        p->done += bytes;
        if (!p->shown || now_ns() - p->drawn_ns < REDRAW_NS)
                return;
        p->drawn_ns = now_ns();
        draw(p);
}

void progress_hide(void) {
        if (drawn)
                fputs("\r\033[K", stderr);
        drawn = false;
}

void progress_end(struct progress *p) {
        progress_hide();
        p->shown = false;
}
