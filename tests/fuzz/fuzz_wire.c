// SPDX-License-Identifier: MIT
/* Any bytes as a frame. What is taken for one says the same when it is packed and unpacked again. */
#undef NDEBUG
#include <string.h>

#include "channel.h"
#include "fuzz.h"
#include "wire.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
        (void)argc, (void)argv;
        return 0;
}

static void check_text(const uint8_t *data, size_t size) {
        char *text = malloc(size + 1);
        assert(text);
        memcpy(text, data, size);
        text[size] = 0;
        size_t len = strlen(text);
        if (wire_text_ok(text, len)) {
                for (size_t i = 0; i < len; i++)
                        assert((unsigned char)text[i] >= 0x20 && text[i] != 0x7f);
                assert(len == 0 || !wire_text_ok(text, len - 1));
        }
        free(text);
}

/*
 * Takes out what this version of the protocol does not know. It is kept as it came, and one with the number 0, written in
 * more bytes than it needs, is read but not written again so that it could be read.
 */
static void drop_unknown(ProtobufCMessage *m) {
        for (unsigned i = 0; i < m->n_unknown_fields; i++)
                free(m->unknown_fields[i].data);
        free(m->unknown_fields);
        m->unknown_fields = NULL;
        m->n_unknown_fields = 0;
        for (unsigned i = 0; i < m->descriptor->n_fields; i++) {
                const ProtobufCFieldDescriptor *f = &m->descriptor->fields[i];
                char *at = (char *)m + f->offset;
                size_t n = 1;
                if (f->type != PROTOBUF_C_TYPE_MESSAGE)
                        continue;
                if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
                        n = *(uint32_t *)((char *)m + f->quantifier_offset) == f->id;
                else if (f->label == PROTOBUF_C_LABEL_REPEATED)
                        n = *(size_t *)((char *)m + f->quantifier_offset);
                ProtobufCMessage **members = f->label == PROTOBUF_C_LABEL_REPEATED ? *(ProtobufCMessage ***)at : (ProtobufCMessage **)at;
                for (size_t k = 0; k < n; k++)
                        if (members[k])
                                drop_unknown(members[k]);
        }
}

/* The first byte says how many descriptors came along. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        _cleanup_frame_ Gms__Frame *frame = NULL, *again = NULL;
        if (size < 1)
                return 0;
        check_text(data + 1, size - 1);
        if (size - 1 > CHANNEL_FRAME_MAX || wire_unpack(data + 1, size - 1, data[0], &frame) != 0)
                return 0;
        assert(frame->fds == data[0]);
        assert(frame->body_case != GMS__FRAME__BODY__NOT_SET || frame->status != GMS__STATUS__OK);

        drop_unknown(&frame->base);
        uint8_t *one = NULL, *two = NULL;
        size_t len_one, len_two;
        /* longer than it came: numbers and lists can be packed in more ways than one */
        if (wire_pack(frame, data[0], &one, &len_one) == WIRE_E_TOO_LARGE)
                return 0;
        assert(one && wire_unpack(one, len_one, data[0], &again) == 0);
        assert(wire_pack(again, data[0], &two, &len_two) == 0);
        assert(len_one == len_two && memcmp(one, two, len_one) == 0);
        free(one);
        free(two);
        return 0;
}
