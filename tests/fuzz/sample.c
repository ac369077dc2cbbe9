// SPDX-License-Identifier: MIT
#undef NDEBUG
#include "sample.h"

#include <string.h>

static const ProtobufCFieldDescriptor *body_field(size_t kind) {
        const ProtobufCMessageDescriptor *d = &gms__frame__descriptor;
        for (unsigned i = 0; i < d->n_fields; i++)
                if ((d->fields[i].flags & PROTOBUF_C_FIELD_FLAG_ONEOF) && kind-- == 0)
                        return &d->fields[i];
        return NULL;
}

size_t sample_kinds(void) {
        size_t n = 0;
        while (body_field(n))
                n++;
        return n;
}

static void *allocated(size_t size) {
        void *p = calloc(1, size ? size : 1);
        assert(p);
        return p;
}

static ProtobufCMessage *sample_message(const ProtobufCMessageDescriptor *d, unsigned size);

/* Sets the one value at `to`, a different one for every field and element. */
static void fill_value(void *to, const ProtobufCFieldDescriptor *f, unsigned element, unsigned size) {
        uint64_t number = (uint64_t)f->id * 1000003u + element + 1;
        switch (f->type) {
        case PROTOBUF_C_TYPE_UINT32:
                *(uint32_t *)to = (uint32_t)number;
                break;
        case PROTOBUF_C_TYPE_UINT64:
                *(uint64_t *)to = number << 24;
                break;
        case PROTOBUF_C_TYPE_BOOL:
                *(protobuf_c_boolean *)to = 1;
                break;
        case PROTOBUF_C_TYPE_ENUM: {
                const ProtobufCEnumDescriptor *e = f->descriptor;
                *(int *)to = e->values[e->n_values - 1].value;
                break;
        }
        case PROTOBUF_C_TYPE_STRING: {
                char *text = allocated(size + 1);
                memset(text, 'a' + (int)(f->id % 26), size);
                *(char **)to = text;
                break;
        }
        case PROTOBUF_C_TYPE_BYTES: {
                ProtobufCBinaryData *bytes = to;
                *bytes = (ProtobufCBinaryData){ .len = size, .data = allocated(size) };
                for (unsigned i = 0; i < size; i++)
                        bytes->data[i] = (uint8_t)(i * 37 + f->id);
                break;
        }
        case PROTOBUF_C_TYPE_MESSAGE:
                *(ProtobufCMessage **)to = sample_message(f->descriptor, size);
                break;
        default:
                abort(); /* a type that the protocol did not have: add it here */
        }
}

static size_t value_size(const ProtobufCFieldDescriptor *f) {
        switch (f->type) {
        case PROTOBUF_C_TYPE_UINT64:
                return sizeof(uint64_t);
        case PROTOBUF_C_TYPE_STRING:
        case PROTOBUF_C_TYPE_MESSAGE:
                return sizeof(void *);
        default:
                return sizeof(uint32_t);
        }
}

static ProtobufCMessage *sample_message(const ProtobufCMessageDescriptor *d, unsigned size) {
        ProtobufCMessage *m = allocated(d->sizeof_message);
        protobuf_c_message_init(d, m);
        for (unsigned i = 0; size > 0 && i < d->n_fields; i++) {
                const ProtobufCFieldDescriptor *f = &d->fields[i];
                if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
                        continue;
                char *at = (char *)m + f->offset;
                if (f->label == PROTOBUF_C_LABEL_REPEATED) {
                        char *list = allocated(size * value_size(f));
                        for (unsigned k = 0; k < size; k++)
                                fill_value(list + k * value_size(f), f, k, size);
                        *(void **)at = list;
                        *(size_t *)((char *)m + f->quantifier_offset) = size;
                } else {
                        fill_value(at, f, 0, size);
                }
        }
        return m;
}

Gms__Frame *sample_frame(size_t kind, unsigned size) {
        const ProtobufCFieldDescriptor *f = body_field(kind);
        assert(f);
        Gms__Frame *frame = (Gms__Frame *)sample_message(&gms__frame__descriptor, 0);
        frame->serial = kind + 1;
        frame->body_case = (Gms__Frame__BodyCase)f->id;
        *(ProtobufCMessage **)((char *)frame + f->offset) = sample_message(f->descriptor, size);
        return frame;
}
