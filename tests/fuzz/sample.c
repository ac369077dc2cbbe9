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

/* Where values come from: `in`, or without it from the field itself. */
struct taste {
        unsigned size;
        struct source *in;
};

static const uint64_t numbers[] = {
        0, 1, 2, 3, 5, 8, 100, 252, 253, 254, 4096, 4097, 1u << 21, (1u << 26) + 1, INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX,
};

static const char *const texts[] = {
        "", "a", "ab", "v1", "host/a", "host/b", "host/", "cuda:0/a", "no", "\x1b[2J", "\xc3\xb6", "\xff",
        "0123456789012345678901234567890123456789012345678901234567890123456789", /* longer than a label may be */
};

static uint64_t choose_number(const struct taste *t, uint64_t otherwise) {
        return t->in ? numbers[source_byte(t->in) % ARRAY_SIZE(numbers)] : otherwise;
}

static unsigned choose_size(const struct taste *t) {
        return t->in ? source_byte(t->in) % 4 : t->size;
}

static ProtobufCMessage *sample_message(const ProtobufCMessageDescriptor *d, const struct taste *t);

static char *sample_text(const ProtobufCFieldDescriptor *f, const struct taste *t) {
        if (t->in) {
                char *chosen = strdup(texts[source_byte(t->in) % ARRAY_SIZE(texts)]);
                assert(chosen);
                return chosen;
        }
        char *text = allocated(t->size + 1);
        memset(text, 'a' + (int)(f->id % 26), t->size);
        return text;
}

/* Sets the one value at `to`, a different one for every field and element. */
static void fill_value(void *to, const ProtobufCFieldDescriptor *f, unsigned element, const struct taste *t) {
        uint64_t number = (uint64_t)f->id * 1000003u + element + 1;
        switch (f->type) {
        case PROTOBUF_C_TYPE_UINT32:
                *(uint32_t *)to = (uint32_t)choose_number(t, number);
                break;
        case PROTOBUF_C_TYPE_UINT64:
                *(uint64_t *)to = choose_number(t, number << 24);
                break;
        case PROTOBUF_C_TYPE_BOOL:
                *(protobuf_c_boolean *)to = t->in ? source_byte(t->in) % 2 : 1;
                break;
        case PROTOBUF_C_TYPE_ENUM: {
                const ProtobufCEnumDescriptor *e = f->descriptor;
                *(int *)to = e->values[t->in ? source_byte(t->in) % e->n_values : e->n_values - 1].value;
                break;
        }
        case PROTOBUF_C_TYPE_STRING:
                *(char **)to = sample_text(f, t);
                break;
        case PROTOBUF_C_TYPE_BYTES: {
                ProtobufCBinaryData *bytes = to;
                unsigned n = t->in ? source_byte(t->in) % 18 : t->size;
                *bytes = (ProtobufCBinaryData){ .len = n, .data = allocated(n) };
                for (unsigned i = 0; i < n; i++)
                        bytes->data[i] = (uint8_t)(i * 37 + f->id);
                break;
        }
        case PROTOBUF_C_TYPE_MESSAGE:
                *(ProtobufCMessage **)to = sample_message(f->descriptor, t);
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

static ProtobufCMessage *sample_message(const ProtobufCMessageDescriptor *d, const struct taste *t) {
        ProtobufCMessage *m = allocated(d->sizeof_message);
        protobuf_c_message_init(d, m);
        for (unsigned i = 0; (t->size > 0 || t->in) && i < d->n_fields; i++) {
                const ProtobufCFieldDescriptor *f = &d->fields[i];
                if (f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF)
                        continue;
                char *at = (char *)m + f->offset;
                if (f->label == PROTOBUF_C_LABEL_REPEATED) {
                        unsigned n = choose_size(t);
                        char *list = allocated(n * value_size(f));
                        for (unsigned k = 0; k < n; k++)
                                fill_value(list + k * value_size(f), f, k, t);
                        *(void **)at = list;
                        *(size_t *)((char *)m + f->quantifier_offset) = n;
                } else if (f->type != PROTOBUF_C_TYPE_MESSAGE || choose_size(t) > 0) {
                        fill_value(at, f, 0, t);
                }
        }
        return m;
}

static Gms__Frame *frame_around(size_t kind, const struct taste *t) {
        const ProtobufCFieldDescriptor *f = body_field(kind);
        assert(f);
        Gms__Frame *frame = (Gms__Frame *)sample_message(&gms__frame__descriptor, &(struct taste){});
        frame->serial = kind + 1;
        frame->body_case = (Gms__Frame__BodyCase)f->id;
        *(ProtobufCMessage **)((char *)frame + f->offset) = sample_message(f->descriptor, t);
        return frame;
}

Gms__Frame *sample_frame(size_t kind, unsigned size) {
        return frame_around(kind, &(struct taste){ .size = size });
}

Gms__Frame *sample_chosen(size_t kind, struct source *in) {
        return frame_around(kind, &(struct taste){ .in = in });
}
