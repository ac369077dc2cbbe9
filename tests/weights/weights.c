// SPDX-License-Identifier: MIT
#include "weights.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base.h"

#define CHUNK (1u << 20)

static _Noreturn void die(const char *what) {
        perror(what);
        abort();
}

uint64_t weight_bytes(const struct weight *w) {
        uint64_t n = 1;
        for (uint32_t i = 0; i < w->rank; i++)
                n *= (uint64_t)w->shape[i];
        return n * gms_dtype_bits(gms_dtype_find(w->dtype)) / 8;
}

/* ---- bytes: words of a generator that can begin anywhere */

static uint64_t word_at(uint64_t seed, uint64_t i) {
        uint64_t x = seed + i * 0x9e3779b97f4a7c15u;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
        return x ^ (x >> 27);
}

void weights_fill(const char *name, uint64_t offset, void *to, size_t n) {
        uint64_t seed = 0xcbf29ce484222325u, word;
        for (const char *p = name; *p; p++)
                seed = (seed ^ (unsigned char)*p) * 0x100000001b3u;
        for (size_t done = 0, step; done < n; done += step) {
                size_t within = (size_t)((offset + done) % sizeof(word));
                step = MIN(sizeof(word) - within, n - done);
                word = word_at(seed, (offset + done) / sizeof(word));
                memcpy((char *)to + done, (const char *)&word + within, step);
        }
}

/* ---- files */

static void put(FILE *f, const char *path, const void *bytes, size_t n) {
        if (fwrite(bytes, 1, n, f) != n)
                die(path);
}

static FILE *begin(const char *path, const char *header, size_t n) {
        uint8_t prefix[8];
        FILE *f = fopen(path, "we");
        if (!f)
                die(path);
        for (size_t i = 0; i < sizeof(prefix); i++)
                prefix[i] = (uint8_t)((uint64_t)n >> 8 * i);
        put(f, path, prefix, sizeof(prefix));
        put(f, path, header, n);
        return f;
}

static void end(FILE *f, const char *path) {
        if (fclose(f) != 0)
                die(path);
}

/* As writers do it: padded, so that what follows lies at a multiple of 8. */
static char *header_of(const struct weight *weights, size_t n, size_t *ret_size) {
        char *text = NULL;
        uint64_t at = 0;
        FILE *f = open_memstream(&text, ret_size);
        if (!f)
                die("a header");
        (void)fprintf(f, "{\"__metadata__\":{\"format\":\"pt\"}");
        for (size_t i = 0; i < n; i++) {
                (void)fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", weights[i].name, weights[i].dtype);
                for (uint32_t k = 0; k < weights[i].rank; k++)
                        (void)fprintf(f, "%s%" PRId64, k ? "," : "", weights[i].shape[k]);
                (void)fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + weight_bytes(&weights[i]));
                at += weight_bytes(&weights[i]);
        }
        (void)fprintf(f, "}");
        for (long size = ftell(f); size % 8 != 0; size++)
                (void)fputc(' ', f);
        end(f, "a header");
        return text;
}

void weights_write(const char *path, const struct weight *weights, size_t n) {
        _cleanup_free_ char *chunk = malloc(CHUNK);
        size_t size;
        _cleanup_free_ char *header = header_of(weights, n, &size);
        if (!chunk)
                die(path);
        FILE *f = begin(path, header, size);
        for (size_t i = 0; i < n; i++) {
                uint64_t bytes = weight_bytes(&weights[i]);
                for (uint64_t at = 0; at < bytes; at += CHUNK) {
                        size_t step = (size_t)MIN(bytes - at, CHUNK);
                        weights_fill(weights[i].name, at, chunk, step);
                        put(f, path, chunk, step);
                }
        }
        end(f, path);
}

void weights_write_hollow(const char *path, const struct weight *weights, size_t n) {
        size_t size;
        uint64_t bytes = 0;
        _cleanup_free_ char *header = header_of(weights, n, &size);
        for (size_t i = 0; i < n; i++)
                bytes += weight_bytes(&weights[i]);
        FILE *f = begin(path, header, size);
        if (fflush(f) != 0 || ftruncate(fileno(f), (off_t)(8 + size + bytes)) < 0)
                die(path);
        end(f, path);
}

void weights_write_raw(const char *path, const char *header, uint64_t bytes) {
        FILE *f = begin(path, header, strlen(header));
        while (bytes-- > 0)
                (void)fputc('x', f);
        end(f, path);
}

void weights_write_index(const char *dir, const struct weight *weights, const char *const *files, size_t n) {
        char path[512];
        (void)snprintf(path, sizeof(path), "%s/model.safetensors.index.json", dir);
        FILE *f = fopen(path, "we");
        if (!f)
                die(path);
        (void)fprintf(f, "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
        for (size_t i = 0; i < n; i++)
                (void)fprintf(f, "%s\"%s\":\"%s\"", i ? "," : "", weights[i].name, files[i]);
        (void)fprintf(f, "}}\n");
        end(f, path);
}
