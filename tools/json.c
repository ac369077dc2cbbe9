// SPDX-License-Identifier: MIT
/*
 * The parts of a JSON document that jansson does not make by itself. Constructors return NULL without memory, json_pack()
 * hands that on, and json_print_consume() reports it: one check a document.
 */
#include <stdio.h>
#include <string.h>

#include "gmsctl.h"

json_t *json_text(const char *s) {
        json_t *j = json_string(s); /* NULL also when it is not UTF-8 */
        if (j)
                return j;
        _cleanup_free_ char *escaped = text_escape(s, strlen(s), 0, NULL);
        return escaped ? json_string(escaped) : NULL;
}

json_t *json_hash(const uint8_t hash[GMS_HASH_SIZE]) {
        return json_string(text_hash(hash, 2 * GMS_HASH_SIZE).s);
}

json_t *json_bytes(const void *bytes, size_t n) {
        _cleanup_free_ char *hex = malloc(2 * n + 1);
        if (!hex)
                return NULL;
        hex[0] = '\0';
        for (size_t i = 0; i < n; i++)
                sprintf(hex + 2 * i, "%02x", ((const uint8_t *)bytes)[i]);
        return json_string(hex);
}

int json_print_consume(json_t *document) {
        if (!document)
                return ctl_fail("out of memory");
        /* The order of keys is that of json_pack(); ASCII alone, so that no terminal or locale matters. */
        int r = json_dumpf(document, stdout, JSON_INDENT(2) | JSON_ENSURE_ASCII);
        json_decref(document);
        if (r == 0)
                putchar('\n');
        return CTL_OK; /* a failed write is seen where stdout is closed */
}
