// SPDX-License-Identifier: MIT
/* The first words, and all that can be wrong with bytes, descriptors and the order of requests. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "raw.h"

/* ---- frames that are none */

#define BYTES(text) .bytes = (text), .len = sizeof(text) - 1

static const struct {
        const char *what;
        const char *bytes;
        size_t len;
        Gms__Frame__BodyCase body; /* with no bytes: an empty message of this kind, under serial 1 */
} bad_frames[] = {
        { "a byte of zero", BYTES("\0") },
        { "text", BYTES("GET / HTTP/1.1\r\n\r\n") },
        { "every bit", BYTES("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") },
        { "a length beyond the end", BYTES("\x10\x01\x52\x7f\x08\x01") },
        { "a length beyond any end", BYTES("\x10\x01\x52\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01") },
        { "a number that does not end", BYTES("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01") },
        { "a group, which the format no longer has", BYTES("\x13\x14") },
        { "no body", BYTES("\x10\x01") },
        { "only fields that nobody knows", BYTES("\x10\x01\xfa\x3e\x03xyz") },
        { "a body of the wrong wire type", BYTES("\x10\x01\x50\x01") },
        { "a status and no body", BYTES("\x10\x01\x18\x03\x22\x02hi") },
        { "a reply", .body = GMS__FRAME__BODY_DONE },
        { "a welcome", .body = GMS__FRAME__BODY_WELCOME },
        { "an event", .body = GMS__FRAME__BODY_EVENT },
        { "a worker's request", .body = GMS__FRAME__BODY_WORK_FREE },
        { "a worker's answer", .body = GMS__FRAME__BODY_WORK_CREATED },
};

/* An empty message of any kind. The caller frees it. */
static void *empty_body(Gms__Frame *f, Gms__Frame__BodyCase body) {
        const ProtobufCFieldDescriptor *field = protobuf_c_message_descriptor_get_field(&gms__frame__descriptor, body);
        ck_assert_ptr_nonnull(field);
        const ProtobufCMessageDescriptor *d = field->descriptor;
        void *message = calloc(1, d->sizeof_message);
        protobuf_c_message_init(d, message);
        f->body_case = body;
        f->hello = message; /* the union's pointers share their place */
        return message;
}

static void post_empty(struct raw *r, Gms__Frame__BodyCase body) {
        Gms__Frame f = GMS__FRAME__INIT;
        void *message = empty_body(&f, body);
        raw_post(r, &f);
        free(message);
}

/* A connection, with a session or without. */
static void connected(struct raw *r, bool session) {
        if (session)
                raw_join(r, "w", GMS__MODE__RW);
        else
                raw_connect(r);
}

TEST(hello, garbage)
{
        for (size_t i = 0; i < 2 * ARRAY_SIZE(bad_frames); i++) {
                _cleanup_raw_ struct raw r = RAW;
                connected(&r, i & 1);
                if (bad_frames[i / 2].bytes)
                        ck_assert_int_eq(raw_send(&r, bad_frames[i / 2].bytes, bad_frames[i / 2].len, NULL, 0), 0);
                else
                        post_empty(&r, bad_frames[i / 2].body);
                refused(&r, raw_answer(&r, PATIENCE_MS), MALFORMED, "the connection ends");
                ended(&r);
        }
}

/* A frame without bytes looks like the end of a connection, and is taken for it. */
TEST(hello, empty)
{
        for (int session = 0; session < 2; session++) {
                _cleanup_raw_ struct raw r = RAW;
                connected(&r, session);
                ck_assert_int_eq(raw_send(&r, "", 0, NULL, 0), 0);
                ended(&r);
        }
}

TEST(hello, sizes)
{
        static const struct {
                size_t len;
                bool fits;
        } sizes[] = { { CHANNEL_FRAME_MAX, true }, { CHANNEL_FRAME_MAX + 1, false }, { 150000, false } };
        for (size_t i = 0; i < 2 * ARRAY_SIZE(sizes); i++) {
                _cleanup_raw_ struct raw r = RAW;
                size_t len = sizes[i / 2].len;
                connected(&r, i & 1);
                /* An About, drawn out by a field that nobody knows (16, bytes), to just this length. */
                _cleanup_free_ uint8_t *frame = malloc(len);
                memset(frame, 'x', len);
                size_t rest = len - 10;
                const uint8_t begin[] = {
                        0x10, 0x09, 0xc2, 0x01, 0x00, 0x82, 0x01,
                        (uint8_t)(0x80 | (rest & 0x7f)), (uint8_t)(0x80 | (rest >> 7 & 0x7f)), (uint8_t)(rest >> 14),
                };
                memcpy(frame, begin, sizeof(begin));
                ck_assert_int_eq(raw_send(&r, frame, len, NULL, 0), 0);
                if (!sizes[i / 2].fits)
                        refused(&r, raw_answer(&r, PATIENCE_MS), MALFORMED, "64 KiB");
                else if (i & 1)
                        granted(&r, raw_answer(&r, PATIENCE_MS));
                else
                        refused(&r, raw_answer(&r, PATIENCE_MS), CONFLICT, "before hello");
        }
}

/* A good frame, cut at every place. */
TEST(hello, truncated)
{
        Gms__Hello hello = GMS__HELLO__INIT;
        Gms__Frame f = GMS__FRAME__INIT;
        hello.protocol_min = hello.protocol_max = 1;
        hello.label = (char *)"a client whose frames are cut";
        hello.mode = GMS__MODE__RW;
        hello.store = (char *)store("cut");
        f.serial = 1;
        f.body_case = GMS__FRAME__BODY_HELLO;
        f.hello = &hello;
        _cleanup_free_ uint8_t *bytes = NULL;
        size_t len;
        ck_assert_int_eq(wire_pack(&f, 0, &bytes, &len), 0);
        for (size_t cut = 1; cut < len; cut++) {
                _cleanup_raw_ struct raw r = RAW;
                raw_connect(&r);
                ck_assert_int_eq(raw_send(&r, bytes, cut, NULL, 0), 0);
                refused(&r, raw_answer(&r, PATIENCE_MS), MALFORMED, "the connection ends");
                ended(&r);
        }
}

/* ---- descriptors, which clients never send */

TEST(hello, descriptors)
{
        static const struct {
                unsigned sent, stated;
        } cases[] = { { 1, 0 }, { 1, 1 }, { 0, 1 }, { 3, 1 }, { 1, 3 }, { 253, 253 }, { 253, 0 }, { 0, UINT32_MAX } };
        int fds[FDSET_MAX];
        _cleanup_close_ int fd = memfd_create("unasked", MFD_CLOEXEC);
        for (unsigned i = 0; i < FDSET_MAX; i++)
                fds[i] = fd;
        for (size_t i = 0; i < 2 * ARRAY_SIZE(cases); i++) {
                _cleanup_raw_ struct raw r = RAW;
                Gms__Frame f = GMS__FRAME__INIT;
                void *message = empty_body(&f, GMS__FRAME__BODY_ABOUT);
                _cleanup_free_ uint8_t *bytes = NULL;
                size_t len;
                connected(&r, i & 1);
                f.serial = 9;
                ck_assert_int_eq(wire_pack(&f, cases[i / 2].stated, &bytes, &len), 0);
                free(message);
                ck_assert_int_eq(raw_send(&r, bytes, len, fds, cases[i / 2].sent), 0);
                refused(&r, raw_answer(&r, PATIENCE_MS), MALFORMED, "descriptors");
                ended(&r);
        }
}

TEST(hello, descriptors_over_253_cannot_be_sent)
{
        int fds[FDSET_MAX + 1];
        for (unsigned i = 0; i < ARRAY_SIZE(fds); i++)
                fds[i] = STDERR_FILENO;
        _cleanup_raw_ struct raw r = RAW;
        raw_connect(&r);
        ck_assert_int_eq(raw_send(&r, "x", 1, fds, FDSET_MAX + 1), EINVAL);
}

/* ---- order */

static const struct {
        Gms__Frame__BodyCase body;
        const char *name;
} requests[] = {
        { GMS__FRAME__BODY_ALLOCATE, "allocate" },   { GMS__FRAME__BODY_FREE, "free" },
        { GMS__FRAME__BODY_PAGE, "page" },           { GMS__FRAME__BODY_META_PUT, "put" },
        { GMS__FRAME__BODY_META_GET, "get" },        { GMS__FRAME__BODY_META_LIST, "list" },
        { GMS__FRAME__BODY_META_DELETE, "delete" },  { GMS__FRAME__BODY_SEAL, "seal" },
        { GMS__FRAME__BODY_DISCARD, "discard" },     { GMS__FRAME__BODY_COMMIT, "commit" },
        { GMS__FRAME__BODY_REFRESH, "refresh" },     { GMS__FRAME__BODY_SETTLE, "settle" },
        { GMS__FRAME__BODY_STATE, "state" },         { GMS__FRAME__BODY_ABOUT, "about" },
        { GMS__FRAME__BODY_LIST_DEVICES, "devices" }, { GMS__FRAME__BODY_LIST_STORES, "stores" },
        { GMS__FRAME__BODY_LIST_SESSIONS, "sessions" }, { GMS__FRAME__BODY_CLEAR, "clear" },
};

TEST(hello, comes_first)
{
        for (size_t i = 0; i < ARRAY_SIZE(requests); i++) {
                _cleanup_raw_ struct raw r = RAW;
                raw_connect(&r);
                post_empty(&r, requests[i].body);
                refused(&r, raw_answer(&r, PATIENCE_MS), CONFLICT, requests[i].name);
                ended(&r);
        }
}

TEST(hello, comes_once)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        refused(&r, ask(&r, HELLO, hello, b.protocol_min = b.protocol_max = 1), CONFLICT, "second hello");
        granted(&r, ask(&r, STATE, state));
        ck_assert_int_eq(r.reply->session_state->mode, GMS__MODE__RW);
}

/* A session that waits for its lock says nothing more until it has it; what it says meanwhile is answered after. */
TEST(hello, requests_while_waiting)
{
        _cleanup_raw_ struct raw holder = RAW, r = RAW;
        raw_join(&holder, "w", GMS__MODE__RW);
        raw_queue(&r, "w", GMS__MODE__RW, FOREVER, 1);
        for (int i = 0; i < 3; i++)
                post(&r, STATE, state);
        granted(&holder, ask(&holder, STATE, state));
        ck_assert(raw_waits(&r));
        raw_close(&holder);
        granted_mode(&r, raw_answer(&r, PATIENCE_MS), RW);
        for (int i = 0; i < 3; i++)
                granted(&r, raw_answer(&r, PATIENCE_MS));
        ck_assert_uint_eq(r.reply->serial, r.serial);
}

/* ---- what Hello says */

TEST(hello, versions)
{
        static const struct {
                uint32_t min, max;
                const char *said; /* NULL: accepted */
        } cases[] = {
                { 1, 1, NULL }, { 0, 1, NULL }, { 1, 99, NULL }, { 0, UINT32_MAX, NULL },
                { 2, 3, "2 to 3" }, { 0, 0, "0 to 0" }, { 1, 0, "1 to 0" }, { UINT32_MAX, UINT32_MAX, "4294967295" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                _cleanup_raw_ struct raw r = RAW;
                raw_connect(&r);
                int status = ask(&r, HELLO, hello, b.protocol_min = cases[i].min, b.protocol_max = cases[i].max);
                if (!cases[i].said) {
                        granted(&r, status);
                        ck_assert_uint_eq(r.reply->welcome->protocol, 1);
                        ck_assert_str_ne(r.reply->welcome->daemon_version, "");
                        continue;
                }
                refused(&r, status, VERSION, cases[i].said);
                refused(&r, status, VERSION, "1 to 1"); /* and what the daemon speaks */
                ended(&r);
        }
}

static void hello_refused(const char *store_name, Gms__Mode mode, const char *label, const char *identity, int status,
                          const char *word) {
        _cleanup_raw_ struct raw r = RAW;
        raw_connect(&r);
        int is = ask(&r, HELLO, hello, b.protocol_min = b.protocol_max = 1, b.mode = mode, b.store = (char *)store_name,
                     b.label = (char *)label, b.identity = (char *)identity);
        raw_check(&r, is, status, word, __FILE__, __LINE__);
        if (status != GMS__STATUS__OK)
                ended(&r);
}

#define X16 "xxxxxxxxxxxxxxxx"
#define X64 X16 X16 X16 X16
#define X192 X64 X64 X64
#define X512 X192 X192 X64 X64

TEST(hello, modes)
{
        const char *w = store("w");
        static const int unknown[] = { 6, 99, -1, INT32_MAX, INT32_MIN };
        for (size_t i = 0; i < ARRAY_SIZE(unknown); i++)
                hello_refused(w, (Gms__Mode)unknown[i], "", "", GMS__STATUS__INVALID, "no such mode");
        hello_refused(w, GMS__MODE__NONE, "", "", GMS__STATUS__INVALID, "store goes with a mode");
        hello_refused("", GMS__MODE__RO, "", "", GMS__STATUS__INVALID, "store goes with a mode");
}

TEST(hello, stores)
{
        static const struct {
                const char *form; /* @: the device */
                int status;
                const char *word;
        } cases[] = {
                { "@", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "/w", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "/", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { " ", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/a b", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/a\nb", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/\033[2J", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/\177", GMS__STATUS__INVALID, "DEVICE/NAME" },
                { "@/" X192, GMS__STATUS__INVALID, "192 bytes" },
                { "@/" X512 X512 X512, GMS__STATUS__INVALID, "192 bytes" },
                { "nowhere/w", GMS__STATUS__NO_DEVICE, "nowhere/w" },
                { "cuda:77/w", GMS__STATUS__NO_DEVICE, "cuda:77/w" },
                { "cuda:GPU-00000000-0000-0000-0000-000000000000/w", GMS__STATUS__NO_DEVICE, "no such device" },
                { "@@/w", GMS__STATUS__NO_DEVICE, "no such device" },
                { "@ /w", GMS__STATUS__NO_DEVICE, "no such device" },
                { "@/w/../../x", GMS__STATUS__OK, NULL },
                { "@/\xc3\xa4%s%n", GMS__STATUS__OK, NULL },
                { "@/\xc3", GMS__STATUS__INVALID, "DEVICE/NAME" },
        };
        for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
                char name[2048] = "";
                for (const char *c = cases[i].form; *c; c++)
                        (void)snprintf(name + strlen(name), sizeof(name) - strlen(name), *c == '@' ? "%s" : "%.1s",
                                       *c == '@' ? m.device : c);
                hello_refused(name, GMS__MODE__RW, "", "", cases[i].status, cases[i].word);
        }
}

TEST(hello, labels)
{
        const char *w = store("w");
        hello_refused(w, GMS__MODE__RW, X64, "", GMS__STATUS__OK, NULL);
        hello_refused(w, GMS__MODE__RW, X64 "x", "", GMS__STATUS__INVALID, "label");
        hello_refused(w, GMS__MODE__RW, "two\nlines", "", GMS__STATUS__INVALID, "label");
        hello_refused(w, GMS__MODE__RW, "\033[31mred", "", GMS__STATUS__INVALID, "label");
        hello_refused(w, GMS__MODE__RW, "", X512 "x", GMS__STATUS__INVALID, "identity");
        hello_refused(w, GMS__MODE__RW, "", "\r", GMS__STATUS__INVALID, "identity");
}

/* One store, whatever its device is called. */
TEST(hello, names_of_a_device, .needs = NEEDS_CUDA)
{
        _cleanup_raw_ struct raw a = RAW, r = RAW;
        char name[128];
        raw_publish(&a, "w", 1, NULL);
        granted(&control, ask(&control, LIST_DEVICES, list_devices));
        const char *uuid = control.reply->devices->devices[0]->uuid;
        for (int with = 0; with < 2; with++) {
                (void)snprintf(name, sizeof(name), "%s%s/w", with ? "cuda:" : "", uuid);
                raw_connect(&r);
                granted(&r, ask(&r, HELLO, hello, b.protocol_min = b.protocol_max = 1, b.mode = GMS__MODE__RO, b.store = name));
                ck_assert_uint_eq(r.reply->welcome->layout->generation, 1);
                raw_close(&r);
        }
}

/* ---- serials */

TEST(hello, serial_zero)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        const char about[] = "\xc2\x01\x00"; /* an About without serial */
        ck_assert_int_eq(raw_send(&r, about, sizeof(about) - 1, NULL, 0), 0);
        refused(&r, raw_answer(&r, PATIENCE_MS), MALFORMED, "not a request");
        ended(&r);
}

/* Asked again under the same serial: done once, answered as before, descriptors and all. */
TEST(hello, serial_repeated)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        item.size = m.granularity;
        item.count = 3;
        for (int again = 0; again < 3; again++) {
                granted(&r, ask_again(&r, 100, ALLOCATE, allocate, b.n_items = 1, b.items = items));
                if (again == 0)
                        r.first_id = r.reply->allocated->first_id;
                ck_assert_uint_eq(r.reply->allocated->first_id, r.first_id);
                ck_assert_uint_eq(r.reply->allocated->count, 3);
                ck_assert_uint_eq(r.fds->n, 3);
        }
        ck_assert_uint_eq(look("w").building, 3 * m.granularity);

        for (int again = 0; again < 2; again++)
                granted(&r, ask_again(&r, 101, FREE, free, b.n_ids = 1, b.ids = &r.first_id));
        refused(&r, ask_again(&r, 102, FREE, free, b.n_ids = 1, b.ids = &r.first_id), NOT_FOUND, "free");

        /* A refusal is an answer as well. */
        char *keys[] = { (char *)"none" };
        for (int again = 0; again < 2; again++)
                refused(&r, ask_again(&r, 103, META_DELETE, meta_delete, b.n_keys = 1, b.keys = keys), NOT_FOUND, "key");

        for (int again = 0; again < 2; again++)
                granted(&r, ask_again(&r, 104, COMMIT, commit));
        ck_assert_uint_eq(r.reply->layout->generation, 1);
        ck_assert_uint_eq(look("w").generation, 1);
}

/* What an answer named is gone: the repetition says so instead of naming it. */
TEST(hello, serial_repeated_too_late)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, 1, 0));
        granted(&r, ask(&r, FREE, free, b.n_ids = 1, b.ids = &r.first_id));
        Gms__Allocate__Item item = GMS__ALLOCATE__ITEM__INIT, *items[] = { &item };
        item.size = 1;
        refused(&r, ask_again(&r, r.serial - 1, ALLOCATE, allocate, b.n_items = 1, b.items = items), INVALID, "answered before");
        ck_assert_uint_eq(look("w").building, 0);
}

TEST(hello, serial_backwards)
{
        _cleanup_raw_ struct raw r = RAW;
        raw_join(&r, "w", GMS__MODE__RW);
        granted(&r, raw_allocate(&r, 1, 1, 0));
        granted(&r, raw_allocate(&r, 1, 1, 0));
        for (uint64_t serial = 1; serial < r.serial; serial++) {
                refused(&r, ask_again(&r, serial, COMMIT, commit), INVALID, "serials rise");
                granted(&r, ask_again(&r, serial, STATE, state)); /* changes nothing, so it may */
        }
        ck_assert_uint_eq(look("w").generation, 0);
        r.serial = UINT64_MAX - 1;
        granted(&r, raw_commit(&r, NULL, false));
}
