// SPDX-License-Identifier: MIT
/* A table on stdout: titles, rows, columns as wide as their widest cell. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "gmsctl.h"

struct table_cell {
        char *text; /* escaped */
        unsigned width;
};

void table_init(struct table *t, const struct column *columns, size_t n_columns) {
        *t = (struct table){ .columns = columns, .n_columns = n_columns };
        for (size_t i = 0; columns[0].title && i < n_columns; i++)
                table_cell(t, "%s", columns[i].title);
}

static int add_cell(struct table *t, const char *text) {
        if (!text[0])
                text = "-"; /* a hole in a row is hard to read */
        if ((t->n_cells & (t->n_cells - 1)) == 0) { /* full at each power of two */
                struct table_cell *more = realloc(t->cells, MAX(2 * t->n_cells, 1u) * sizeof(*more));
                if (!more)
                        return -ENOMEM;
                t->cells = more;
        }
        struct table_cell *c = &t->cells[t->n_cells];
        c->text = text_escape(text, strlen(text), t->columns[t->n_cells % t->n_columns].columns, &c->width);
        if (!c->text)
                return -ENOMEM;
        t->n_cells++;
        return 0;
}

void table_cell(struct table *t, const char *format, ...) {
        _cleanup_free_ char *text = NULL;
        va_list ap;

        va_start(ap, format);
        int r = vasprintf(&text, format, ap);
        va_end(ap);
        if (r < 0)
                text = NULL;
        if (!text || add_cell(t, text) < 0)
                t->failed = true;
}

static unsigned column_width(const struct table *t, size_t column) {
        unsigned width = 0;
        for (size_t i = column; i < t->n_cells; i += t->n_columns)
                width = MAX(width, t->cells[i].width);
        return width;
}

static void print_row(const struct table *t, const struct table_cell *row, const unsigned *widths) {
        for (size_t i = 0; i < t->n_columns; i++) {
                int pad = (int)(widths[i] - row[i].width);
                bool last = i + 1 == t->n_columns;
                if (t->columns[i].right)
                        printf("%*s%s", pad, "", row[i].text);
                else
                        printf("%s%*s", row[i].text, last ? 0 : pad, ""); /* no blanks at the end of a line */
                fputs(last ? "\n" : "  ", stdout);
        }
}

int table_print(struct table *t) {
        _cleanup_free_ unsigned *widths = calloc(t->n_columns, sizeof(*widths));
        bool failed = t->failed || !widths;

        for (size_t i = 0; !failed && i < t->n_columns; i++)
                widths[i] = column_width(t, i);
        for (size_t i = 0; !failed && i < t->n_cells; i += t->n_columns)
                print_row(t, t->cells + i, widths);

        for (size_t i = 0; i < t->n_cells; i++)
                free(t->cells[i].text);
        free(t->cells);
        *t = (struct table){ 0 };
        return failed ? ctl_fail("out of memory") : CTL_OK;
}
