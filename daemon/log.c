// SPDX-License-Identifier: MIT
#include "log.h"

#include <stdarg.h>
#include <stdio.h>

void log_line(int level, const char *format, ...) {
        int saved = errno;
        char line[1024];
        int n = snprintf(line, sizeof(line), "<%d>", level);
        va_list args;
        va_start(args, format);
        int m = vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, args);
        va_end(args);
        size_t len = MIN((size_t)n + (size_t)MAX(m, 0), sizeof(line) - 2);
        line[len++] = '\n';
        /* One write a line, so that lines of the daemon and its workers do not mix. Nobody to tell if it fails. */
        ssize_t w = write(STDERR_FILENO, line, len);
        (void)w;
        errno = saved;
}
