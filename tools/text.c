// SPDX-License-Identifier: MIT
/* How numbers and foreign text look to people. What clients and files bring may hold anything; a terminal obeys it. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>

#include "gmsctl.h"

struct text text_size(uint64_t bytes) {
        static const char *const units[] = { "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
        struct text t;

        if (bytes < 1024) {
                snprintf(t.s, sizeof(t.s), "%u B", (unsigned)bytes);
                return t;
        }
        double value = (double)bytes / 1024;
        size_t unit = 0;
        for (; value >= 1023.95 && unit + 1 < ARRAY_SIZE(units); unit++) /* would print as 1024.0 */
                value /= 1024;
        snprintf(t.s, sizeof(t.s), "%.1f %s", value, units[unit]);
        return t;
}

struct text text_age(uint64_t milliseconds) {
        uint64_t s = milliseconds / 1000, m = s / 60, h = m / 60, d = h / 24;
        struct text t;

        if (d > 0)
                snprintf(t.s, sizeof(t.s), "%" PRIu64 "d %uh", d, (unsigned)(h % 24));
        else if (h > 0)
                snprintf(t.s, sizeof(t.s), "%uh %um", (unsigned)h, (unsigned)(m % 60));
        else if (m > 0)
                snprintf(t.s, sizeof(t.s), "%um %us", (unsigned)m, (unsigned)(s % 60));
        else
                snprintf(t.s, sizeof(t.s), "%us", (unsigned)s);
        return t;
}

struct text text_hash(const uint8_t hash[GMS_HASH_SIZE], unsigned digits) {
        static const uint8_t none[GMS_HASH_SIZE];
        struct text t = { "" };

        if (memcmp(hash, none, GMS_HASH_SIZE) == 0)
                return t;
        for (unsigned i = 0; i < GMS_HASH_SIZE; i++)
                snprintf(t.s + 2 * (size_t)i, 3, "%02x", hash[i]);
        t.s[MIN(digits, 2u * GMS_HASH_SIZE)] = '\0';
        return t;
}

const char *text_mode(uint32_t mode) {
        static const char *const names[] = {
                [GMS_MODE_NONE] = "-",   [GMS_MODE_RO] = "RO",
                [GMS_MODE_UPDATE] = "UPDATE", [GMS_MODE_RW] = "RW",
                [GMS_MODE_RW_OR_RO] = "RW_OR_RO", [GMS_MODE_ADOPT] = "ADOPT",
        };
        return mode < ARRAY_SIZE(names) ? names[mode] : "?";
}

/*
 * The next character: its bytes and the columns it takes. 0 columns: one byte that must be escaped. Whatever has no
 * width could hide or reorder what stands beside it, so it counts as not printable.
 */
static unsigned text_next(const char *s, size_t n, size_t *ret_bytes) {
        mbstate_t state = { 0 };
        wchar_t c;
        size_t len = mbrtowc(&c, s, n, &state);
        int width = len > 0 && len <= n ? wcwidth(c) : 0;

        *ret_bytes = width > 0 ? len : 1;
        return width > 0 ? (unsigned)width : 0;
}

bool text_printable(const char *s, size_t n) {
        for (size_t i = 0, len; i < n; i += len)
                if (text_next(s + i, n - i, &len) == 0)
                        return false;
        return true;
}

char *text_escape(const char *s, size_t n, unsigned columns, unsigned *ret_width) {
        char *out = malloc(4 * n + 4); /* \xNN for each byte, and "..." */
        if (!out)
                return NULL;

        size_t end = 0, cut = 0;
        unsigned width = 0, cut_width = 0;
        for (size_t i = 0, len; i < n; i += len) {
                unsigned w = text_next(s + i, n - i, &len);
                if (w == 0)
                        w = (unsigned)sprintf(out + end, "\\x%02x", (unsigned char)s[i]), end += w;
                else if (s[i] == '\\')
                        w = (unsigned)sprintf(out + end, "\\\\"), end += w;
                else
                        memcpy(out + end, s + i, len), end += len;
                width += w;
                if (columns > 0 && width > columns) {
                        memcpy(out + cut, "...", 3);
                        width = cut_width + 3;
                        end = cut + 3;
                        break;
                }
                if (width + 3 <= columns)
                        cut = end, cut_width = width;
        }
        out[end] = '\0';
        if (ret_width)
                *ret_width = width;
        return out;
}
