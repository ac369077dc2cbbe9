// SPDX-License-Identifier: MIT
#pragma once
/*
 * Lines to stderr in systemd's form, "<6>text": the journal reads the level, a person reads past it.
 */
#include "base.h"

void log_line(int level, const char *format, ...) _printf_(2, 3);

#define log_error(...) log_line(3, __VA_ARGS__)
#define log_warning(...) log_line(4, __VA_ARGS__)
#define log_notice(...) log_line(5, __VA_ARGS__)
#define log_info(...) log_line(6, __VA_ARGS__)
