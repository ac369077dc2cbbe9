// SPDX-License-Identifier: MIT
/* Writes the seeds of the corpus: every message of the protocol, and the ways that clients really go. */
#undef NDEBUG
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "sample.h"

static void save(const char *dir, const char *target, const char *name, const uint8_t *bytes, size_t n) {
        char path[512];
        (void)snprintf(path, sizeof(path), "%s/%s", dir, target);
        (void)mkdir(path, 0777);
        (void)snprintf(path, sizeof(path), "%s/%s/%s", dir, target, name);
        FILE *f = fopen(path, "we");
        if (!f || fwrite(bytes, 1, n, f) != n || fclose(f) != 0) {
                perror(path);
                exit(1);
        }
}

/* ---- wire: a byte for the number of descriptors, and the frame */

static void save_frame(const char *dir, const char *name, Gms__Frame *frame, unsigned n_fds) {
        uint8_t *bytes;
        size_t len;
        assert(wire_pack(frame, n_fds, &bytes, &len) == 0);
        uint8_t *input = malloc(len + 1);
        assert(input);
        input[0] = (uint8_t)n_fds;
        memcpy(input + 1, bytes, len);
        save(dir, "wire", name, input, len + 1);
        free(input);
        free(bytes);
}

static void save_wire(const char *dir) {
        for (size_t kind = 0; kind < sample_kinds(); kind++) {
                _cleanup_frame_ Gms__Frame *frame = sample_frame(kind, 1 + kind % 2);
                const ProtobufCFieldDescriptor *field =
                        protobuf_c_message_descriptor_get_field(&gms__frame__descriptor, (unsigned)frame->body_case);
                save_frame(dir, field->name, frame, kind % 3 == 0 ? 253 : 0);
        }
        Gms__Frame refusal = GMS__FRAME__INIT;
        refusal.serial = 7;
        refusal.status = GMS__STATUS__CONFLICT;
        refusal.text = (char *)"asked for this, it is that, do the other";
        save_frame(dir, "refusal", &refusal, 0);
}

/* ---- store: pairs of bytes as store_model.c reads them, from a generator */

static void save_store(const char *dir) {
        uint64_t state = 0x2545f4914f6cdd1du;
        for (int i = 0; i < 12; i++) {
                uint8_t bytes[400];
                char name[16];
                for (size_t k = 0; k < sizeof(bytes); k++) {
                        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                        bytes[k] = (uint8_t)(state >> 24);
                }
                (void)snprintf(name, sizeof(name), "random%02d", i);
                save(dir, "store", name, bytes, sizeof(bytes));
        }
}

/* ---- server: steps as fuzz_server.c reads them */

enum { NOBODY_MODE, RO, UPDATE, RW, RW_OR_RO, ADOPT };
enum { AT_ONCE = 0x10, WITH_IDENTITY = 0x20, OTHER_STORE = 0x08 };
enum { A, B, C, D };

#define HELLO(who, how) (who), (how)
#define REQUEST(who, kind) (1 << 2 | (who)), (kind)
#define CLOSE(who) (4 << 2 | (who))
#define READ(who) (5 << 2 | (who))
#define WAIT (6 << 2)

/* Kinds count from the first body of Frame; behind a kind stand the choices for its fields, in order. */
enum { K_HELLO, K_ALLOCATE, K_FREE, K_PAGE, K_PUT, K_GET, K_LIST, K_DELETE, K_SEAL, K_DISCARD, K_COMMIT, K_REFRESH, K_SETTLE,
       K_STATE, K_ABOUT, K_DEVICES, K_STORES, K_SESSIONS, K_CLEAR };
#define ALLOCATE(who) REQUEST(who, K_ALLOCATE), 1, 10, 1, 2, 0 /* one item: 4096 bytes, tag "a", count 2; no deadline */
#define PUT(who) REQUEST(who, K_PUT), 1, 1, 0, 2, 3            /* one entry: "a", slot 0, offset 2, 3 bytes */
#define COMMIT(who, leave) REQUEST(who, K_COMMIT), 3, (leave)  /* identity "v1" */
#define PAGE(who) REQUEST(who, K_PAGE), 0, 8, 1, 0, 0          /* from 0, 253, with descriptors */
#define REFRESH(who) REQUEST(who, K_REFRESH), 0, 0

static void save_server(const char *dir) {
#define SEED(name, ...)                                                    \
        do {                                                               \
                static const uint8_t steps[] = { __VA_ARGS__ };            \
                save(dir, "server", name, steps, sizeof(steps));           \
        } while (0)
        SEED("publish-attach", HELLO(A, RW), ALLOCATE(A), WAIT, READ(A), PUT(A), COMMIT(A, 0), READ(A), HELLO(B, RO), READ(B), PAGE(B),
             READ(B), REQUEST(B, K_GET), 1, 1, 0, REQUEST(B, K_LIST), 0, 0, 0, 0, READ(B), CLOSE(A), CLOSE(B));
        SEED("update-refresh-settle", HELLO(A, RW), ALLOCATE(A), WAIT, COMMIT(A, 0), HELLO(B, UPDATE), ALLOCATE(B), WAIT, COMMIT(B, 1),
             READ(A), REFRESH(A), PAGE(A), REQUEST(A, K_SETTLE), 2, READ(A), READ(B));
        SEED("seal-adopt", HELLO(A, RW), ALLOCATE(A), WAIT, REQUEST(A, K_SEAL), READ(A), CLOSE(A), HELLO(B, ADOPT), READ(B), PAGE(B),
             READ(B), CLOSE(B));
        SEED("waiters", HELLO(A, RW), HELLO(B, RO), HELLO(C, RW), HELLO(D, RW_OR_RO), COMMIT(A, 0), READ(B), CLOSE(A), CLOSE(B), READ(C),
             COMMIT(C, 1), READ(D));
        SEED("now-or-never", HELLO(A, RW), HELLO(B, RW | AT_ONCE), READ(B), HELLO(C, RO | AT_ONCE), READ(C),
             HELLO(D, ADOPT | AT_ONCE | OTHER_STORE), READ(D));
        SEED("identity", HELLO(A, RW), COMMIT(A, 0), HELLO(B, RO | WITH_IDENTITY), READ(B), HELLO(C, UPDATE), REQUEST(C, K_COMMIT), 1, 1,
             HELLO(D, RO | WITH_IDENTITY), READ(D));
        SEED("discard-free-delete", HELLO(A, RW), ALLOCATE(A), WAIT, PUT(A), REQUEST(A, K_DELETE), 1, 1, REQUEST(A, K_FREE), 1, 1,
             COMMIT(A, 1), HELLO(B, RW), REQUEST(B, K_DISCARD), ALLOCATE(B), WAIT, READ(B));
        SEED("look", HELLO(A, NOBODY_MODE), REQUEST(A, K_ABOUT), REQUEST(A, K_DEVICES), REQUEST(A, K_STORES), 0, 0, REQUEST(A, K_SESSIONS),
             0, REQUEST(A, K_STATE), READ(A));
        SEED("clear", HELLO(A, RW), ALLOCATE(A), WAIT, COMMIT(A, 0), HELLO(B, NOBODY_MODE), REQUEST(B, K_CLEAR), 4, 0,
             REQUEST(B, K_CLEAR), 4, 1, READ(B), PAGE(A), READ(A));
        SEED("again", HELLO(A, RW), ALLOCATE(A), WAIT, REQUEST(A, K_ALLOCATE | 0x80), 1, 10, 1, 2, 0, READ(A), REQUEST(A, K_SEAL),
             REQUEST(A, K_SEAL | 0x80), READ(A));
        SEED("dies-allocating", HELLO(A, RW), ALLOCATE(A), CLOSE(A), HELLO(B, RW), ALLOCATE(B), ALLOCATE(B), CLOSE(B), WAIT);
        /* Requests behind one whose answer the worker is still to give: 253 allocations. */
        SEED("ahead-of-its-answer", HELLO(A, RW), REQUEST(A, K_ALLOCATE), 1, 10, 1, 8, 0, ALLOCATE(A), COMMIT(A, 0), WAIT, WAIT, READ(A));
        SEED("raw", HELLO(A, RW), (2 << 2 | A), 4, 0x10, 2, 0xba, 1, READ(A), (3 << 2 | B), K_HELLO, 1, 1, 0, 1, 4, 3, 0, 0, READ(B));
#undef SEED
}

/* ---- safetensors: which kind of text, for a header how many bytes are behind it, the text */

static void save_text(const char *dir, const char *name, uint8_t kind, unsigned data, const char *text) {
        uint8_t input[1024] = { kind, (uint8_t)data, (uint8_t)(data >> 8) };
        size_t head = kind == 2 ? 3 : 1, n = strlen(text);
        assert(head + n <= sizeof(input));
        memcpy(input + head, text, n);
        save(dir, "safetensors", name, input, head + n);
}

static void save_safetensors(const char *dir) {
        static const uint8_t file[] = "\0\x42\0\0\0\0\0\0\0{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}              data";
        save(dir, "safetensors", "file", file, sizeof(file) - 1);
        save_text(dir, "index", 1, 0, "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y.safetensors\"}}");
        save_text(dir, "index-outside", 1, 0, "{\"weight_map\":{\"a\":\"../x\"}}");
        save_text(dir, "empty", 2, 0, "{}  ");
        save_text(dir, "two", 2, 28, "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[16,28]},"
                                     "\"a\":{\"dtype\":\"F32\",\"shape\":[4],\"data_offsets\":[0,16]}}");
        save_text(dir, "zero", 2, 8, "{\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},\"z\":{\"dtype\":\"F16\",\"shape\":[0,9],\"data_offsets\":[8,8]}}");
        save_text(dir, "packed", 2, 9, "{\"p\":{\"dtype\":\"F6_E2M3\",\"shape\":[3,4],\"data_offsets\":[0,9]}}");
        save_text(dir, "hole", 2, 9, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[8,9]}}");
        save_text(dir, "overlap", 2, 9, "{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]},\"b\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[4,9]}}");
        save_text(dir, "cut", 2, 3, "{\"a\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[0,5]}}");
        save_text(dir, "overflow", 2, 3, "{\"a\":{\"dtype\":\"F64\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,3]}}");
        save_text(dir, "duplicate", 2, 2, "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}");
        save_text(dir, "nested", 2, 0, "{\"a\":[[[[[[[[{\"\\\"\":[[[]]]}]]]]]]]]}");
        save_text(dir, "text", 2, 1, "{\"\\u00e4\\\\\\\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}");
}

int main(int argc, char **argv) {
        if (argc != 2)
                return 2;
        (void)mkdir(argv[1], 0777);
        save_wire(argv[1]);
        save_store(argv[1]);
        save_server(argv[1]);
        save_safetensors(argv[1]);
        return 0;
}
