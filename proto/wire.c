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

bool wire_text_ok(const char *text, size_t max) {
        size_t len = strlen(text);
        if (len > max)
                return false;
        for (size_t i = 0; i < len; i++)
                if ((unsigned char)text[i] < 0x20 || text[i] == 0x7f)
                        return false;
        return true;
}
