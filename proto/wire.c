// SPDX-License-Identifier: MIT
#include "wire.h"

#include <string.h>

#include "channel.h"

int wire_pack(Gms__Frame *frame, unsigned n_fds, uint8_t **ret_bytes, size_t *ret_len) {
        frame->fds = n_fds;
        size_t len = gms__frame__get_packed_size(frame);
        if (len > CHANNEL_FRAME_MAX)
                return WIRE_E_TOO_LARGE;

        uint8_t *bytes = malloc(len ? len : 1);
        if (!bytes)
                return -ENOMEM;
        *ret_len = gms__frame__pack(frame, bytes);
        *ret_bytes = bytes;
        return 0;
}

int wire_unpack(const uint8_t *bytes, size_t len, unsigned n_fds, Gms__Frame **ret_frame) {
        _cleanup_frame_ Gms__Frame *frame = gms__frame__unpack(NULL, len, bytes);
        if (!frame || frame->fds != n_fds)
                return WIRE_E_MALFORMED;
        if (frame->body_case == GMS__FRAME__BODY__NOT_SET && frame->status == GMS__STATUS__OK)
                return WIRE_E_MALFORMED;

        *ret_frame = steal_ptr(&frame);
        return 0;
}

void wire_free(Gms__Frame **frame) {
        if (*frame)
                gms__frame__free_unpacked(*frame, NULL);
        *frame = NULL;
}

/* Bytes of the UTF-8 character at `p` that a terminal shows; 0 for a control character and for what is no UTF-8. */
static size_t text_character(const unsigned char *p) {
        if (p[0] < 0x80)
                return p[0] >= 0x20 && p[0] != 0x7f;
        size_t len = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
        uint32_t c = p[0] & (0x7fu >> len), least = len == 2 ? 0x80 : len == 3 ? 0x800 : 0x10000;
        if (p[0] < 0xc2 || p[0] > 0xf4)
                return 0;
        for (size_t i = 1; i < len; i++) {
                if ((p[i] & 0xc0) != 0x80)
                        return 0;
                c = c << 6 | (p[i] & 0x3fu);
        }
        bool control = c < 0xa0, surrogate = c >= 0xd800 && c <= 0xdfff;
        bool direction = (c >= 0x202a && c <= 0x202e) || (c >= 0x2066 && c <= 0x2069);
        return c < least || c > 0x10ffff || control || surrogate || direction ? 0 : len;
}

bool wire_text_ok(const char *text, size_t max) {
        size_t len = strlen(text);
        if (len > max)
                return false;
        for (size_t i = 0, n; i < len; i += n) {
                n = text_character((const unsigned char *)text + i);
                if (n == 0)
                        return false;
        }
        return true;
}
