// SPDX-License-Identifier: MIT
/* Bytes to message and back: every kind of message, and every way in which bytes can be wrong. */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "../fuzz/sample.h"
#include "channel.h"

/* Unpacks from memory of exactly that size, so that a sanitizer sees a read behind it. */
static int unpack(const uint8_t *bytes, size_t len, unsigned n_fds, Gms__Frame **ret_frame) {
        uint8_t *copy = malloc(len ? len : 1);
        ck_assert_ptr_nonnull(copy);
        memcpy(copy, bytes, len);
        int r = wire_unpack(copy, len, n_fds, ret_frame);
        free(copy);
        return r;
}

struct packed {
        uint8_t *bytes;
        size_t len;
};

static struct packed pack(Gms__Frame *frame, unsigned n_fds) {
        struct packed p;
        ck_assert_int_eq(wire_pack(frame, n_fds, &p.bytes, &p.len), 0);
        return p;
}

static struct packed packed_sample(int kind, unsigned size, unsigned n_fds) {
        _cleanup_frame_ Gms__Frame *frame = sample_frame((size_t)kind, size);
        return pack(frame, n_fds);
}

/* ---- every kind of message */

START_TEST(there_and_back) {
        for (unsigned size = 0; size <= 3; size++) {
                _cleanup_frame_ Gms__Frame *out = NULL;
                struct packed p = packed_sample(_i, size, 253);
                ck_assert_int_eq(unpack(p.bytes, p.len, 253, &out), 0);
                ck_assert_uint_eq(out->serial, (uint64_t)_i + 1);
                ck_assert_uint_eq(out->fds, 253);
                ck_assert_uint_eq(out->base.n_unknown_fields, 0);
                struct packed again = pack(out, 253);
                ck_assert_uint_eq(again.len, p.len);
                ck_assert_mem_eq(again.bytes, p.bytes, p.len);
                free(p.bytes);
                free(again.bytes);
        }
}
END_TEST

/* Without a body nothing is a frame, and the body comes last: so no beginning of a frame passes for one. */
START_TEST(cut_anywhere) {
        struct packed p = packed_sample(_i, 2, 0);
        for (size_t len = 0; len < p.len; len++) {
                Gms__Frame *out = NULL;
                ck_assert_msg(unpack(p.bytes, len, 0, &out) == WIRE_E_MALFORMED, "%zu of %zu bytes passed", len, p.len);
                ck_assert_ptr_null(out);
        }
        free(p.bytes);
}
END_TEST

/* What passes with a bit turned is a frame like any other: packed again it says the same. */
START_TEST(one_bit_turned) {
        struct packed p = packed_sample(_i, 2, 0);
        size_t refused = 0;
        for (size_t bit = 0; bit < p.len * 8; bit++) {
                _cleanup_frame_ Gms__Frame *out = NULL, *twice = NULL;
                p.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
                int r = unpack(p.bytes, p.len, 0, &out);
                p.bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
                refused += r == WIRE_E_MALFORMED;
                if (r != 0)
                        continue;
                ck_assert_uint_eq(out->fds, 0);
                struct packed one = pack(out, 0);
                ck_assert_int_eq(unpack(one.bytes, one.len, 0, &twice), 0);
                struct packed two = pack(twice, 0);
                ck_assert_uint_eq(one.len, two.len);
                ck_assert_mem_eq(one.bytes, two.bytes, one.len);
                free(one.bytes);
                free(two.bytes);
        }
        ck_assert_uint_gt(refused, 0);
        free(p.bytes);
}
END_TEST

/* ---- descriptors, bodies, sizes */

START_TEST(number_of_descriptors) {
        static const unsigned counts[] = { 0, 1, 2, 253 };
        for (size_t said = 0; said < ARRAY_SIZE(counts); said++) {
                struct packed p = packed_sample(0, 1, counts[said]);
                for (size_t came = 0; came < ARRAY_SIZE(counts); came++) {
                        _cleanup_frame_ Gms__Frame *out = NULL;
                        ck_assert_int_eq(unpack(p.bytes, p.len, counts[came], &out), said == came ? 0 : WIRE_E_MALFORMED);
                }
                free(p.bytes);
        }
}
END_TEST

START_TEST(no_body) {
        Gms__Frame frame = GMS__FRAME__INIT;
        Gms__Frame *out = NULL;
        frame.serial = 1;
        struct packed p = pack(&frame, 0);
        ck_assert_int_eq(unpack(p.bytes, p.len, 0, &out), WIRE_E_MALFORMED);
        ck_assert_int_eq(unpack(p.bytes, 0, 0, &out), WIRE_E_MALFORMED);
        ck_assert_ptr_null(out);
        free(p.bytes);

        frame.status = GMS__STATUS__CONFLICT;
        frame.text = (char *)"no";
        p = pack(&frame, 0);
        ck_assert_int_eq(unpack(p.bytes, p.len, 0, &out), 0);
        ck_assert_int_eq(out->status, GMS__STATUS__CONFLICT);
        ck_assert_str_eq(out->text, "no");
        wire_free(&out);
        ck_assert_ptr_null(out);
        wire_free(&out);
        free(p.bytes);
}
END_TEST

/* The last of two bodies counts, and the first leaks nothing (a leak checker sees to that). */
START_TEST(two_bodies) {
        struct packed a = packed_sample(0, 2, 0), b = packed_sample(1, 2, 0);
        uint8_t *both = malloc(a.len + b.len);
        ck_assert_ptr_nonnull(both);
        memcpy(both, a.bytes, a.len);
        memcpy(both + a.len, b.bytes, b.len);
        _cleanup_frame_ Gms__Frame *out = NULL;
        ck_assert_int_eq(unpack(both, a.len + b.len, 0, &out), 0);
        ck_assert_int_eq(out->body_case, GMS__FRAME__BODY_ALLOCATE);
        ck_assert_uint_eq(out->serial, 2);
        free(a.bytes);
        free(b.bytes);
        free(both);
}
END_TEST

/* A value that fills the frame to its last byte, and one that is a byte longer. */
START_TEST(largest_frame) {
        Gms__MetaEntry entry = GMS__META_ENTRY__INIT, *entries[] = { &entry };
        Gms__MetaPut put = GMS__META_PUT__INIT;
        Gms__Frame frame = GMS__FRAME__INIT, *out = NULL;
        static uint8_t value[CHANNEL_FRAME_MAX + 1];
        struct packed p = {};

        frame.serial = 1;
        frame.body_case = GMS__FRAME__BODY_META_PUT;
        frame.meta_put = &put;
        put.entries = entries;
        put.n_entries = 1;
        entry.value.data = value;
        entry.value.len = CHANNEL_FRAME_MAX - 100;
        entry.value.len += CHANNEL_FRAME_MAX - gms__frame__get_packed_size(&frame);
        p = pack(&frame, 0);
        ck_assert_uint_eq(p.len, CHANNEL_FRAME_MAX);
        ck_assert_int_eq(unpack(p.bytes, p.len, 0, &out), 0);
        ck_assert_uint_eq(out->meta_put->entries[0]->value.len, entry.value.len);
        wire_free(&out);
        free(p.bytes);

        entry.value.len++;
        uint8_t *bytes = NULL;
        size_t len = 0;
        ck_assert_int_eq(wire_pack(&frame, 0, &bytes, &len), WIRE_E_TOO_LARGE);
        ck_assert_ptr_null(bytes);
}
END_TEST

/* The limits of wire.h allow no message that does not fit: one entry of the largest kind, and a page of each. */
START_TEST(limits_fit) {
        static char key[WIRE_KEY_MAX + 1], tag[WIRE_TAG_MAX + 1];
        static uint8_t value[WIRE_VALUE_MAX];
        memset(key, 'k', WIRE_KEY_MAX);
        memset(tag, 't', WIRE_TAG_MAX);
        Gms__MetaEntry entry = GMS__META_ENTRY__INIT, *entries[] = { &entry };
        entry.key = key;
        entry.slot = entry.offset = UINT64_MAX;
        entry.value = (ProtobufCBinaryData){ .len = sizeof(value), .data = value };
        Gms__MetaPut put = GMS__META_PUT__INIT;
        put.entries = entries;
        put.n_entries = 1;
        Gms__Frame frame = GMS__FRAME__INIT;
        frame.serial = UINT64_MAX;
        frame.body_case = GMS__FRAME__BODY_META_PUT;
        frame.meta_put = &put;
        struct packed p = pack(&frame, 0);
        free(p.bytes);

        Gms__Allocation a = GMS__ALLOCATION__INIT, *page[FDSET_MAX];
        a.id = a.slot = a.size = a.aligned_size = UINT64_MAX;
        a.tag = tag;
        for (size_t i = 0; i < FDSET_MAX; i++)
                page[i] = &a;
        Gms__Allocations body = GMS__ALLOCATIONS__INIT;
        body.allocations = page;
        body.n_allocations = FDSET_MAX;
        body.total = body.generation = UINT64_MAX;
        frame.body_case = GMS__FRAME__BODY_ALLOCATIONS;
        frame.allocations = &body;
        p = pack(&frame, FDSET_MAX);
        ck_assert_uint_lt(p.len, WIRE_PAYLOAD_MAX);
        free(p.bytes);
}
END_TEST

START_TEST(garbage) {
        uint64_t state = 0x9e3779b97f4a7c15u;
        uint8_t bytes[512];
        for (int round = 0; round < 20000; round++) {
                for (size_t i = 0; i < sizeof(bytes); i++) {
                        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
                        bytes[i] = (uint8_t)state;
                }
                _cleanup_frame_ Gms__Frame *out = NULL;
                int r = unpack(bytes, (size_t)round % sizeof(bytes), 0, &out);
                ck_assert(r == WIRE_E_MALFORMED || (r == 0 && out));
        }
}
END_TEST

/* ---- texts */

static const struct {
        const char *text;
        size_t max;
        bool ok;
} texts[] = {
        { "", 0, true },
        { "", 10, true },
        { "a", 0, false },
        { "weights:v2 (bf16)", 17, true },
        { "weights:v2 (bf16)", 16, false },
        { "gr\xc3\xb6\xc3\x9f" "e", 7, true }, /* bytes are counted, not letters */
        { "gr\xc3\xb6\xc3\x9f" "e", 6, false },
        { "\xf0\x9f\x98\x80 \xed\x9f\xbf \xef\xbf\xbd", 20, true },
        { " ~", 2, true },
        { "a\nb", 9, false },
        { "a\tb", 9, false },
        { "\x1b[2J", 9, false },
        { "\x01", 9, false },
        { "\x1f", 9, false },
        { "\x7f", 9, false },
        /* the second set of control characters: a terminal takes 9b for an escape sequence */
        { "\xc2\x9b" "2J", 9, false },
        { "\xc2\x80", 9, false },
        { "\xc2\x9f", 9, false },
        { "\xc2\xa0", 9, true },
        /* what turns the direction of the rest of the line */
        { "\xe2\x80\xae", 9, false },
        { "\xe2\x81\xa6", 9, false },
        { "\xd7\x90", 9, true },
        /* not UTF-8, which a string of the protocol is: others could not read the message */
        { "\x9b" "2J", 9, false },
        { "\xff", 9, false },
        { "\xc3", 9, false },
        { "\xc3(", 9, false },
        { "\xe2\x82", 9, false },
        { "\xc0\xaf", 9, false },         /* longer than it need be */
        { "\xe0\x80\xaf", 9, false },
        { "\xed\xa0\x80", 9, false },     /* half of a surrogate pair */
        { "\xf4\x90\x80\x80", 9, false }, /* beyond the last character */
};

START_TEST(text) {
        ck_assert_int_eq(wire_text_ok(texts[_i].text, texts[_i].max), texts[_i].ok);
}
END_TEST

int main(void) {
        Suite *s = suite_create("wire");
        TCase *t = tcase_create("every kind");
        tcase_add_loop_test(t, there_and_back, 0, (int)sample_kinds());
        tcase_add_loop_test(t, cut_anywhere, 0, (int)sample_kinds());
        tcase_add_loop_test(t, one_bit_turned, 0, (int)sample_kinds());
        suite_add_tcase(s, t);
        t = tcase_create("frames");
        tcase_add_test(t, number_of_descriptors);
        tcase_add_test(t, no_body);
        tcase_add_test(t, two_bodies);
        tcase_add_test(t, largest_frame);
        tcase_add_test(t, limits_fit);
        tcase_add_test(t, garbage);
        suite_add_tcase(s, t);
        t = tcase_create("texts");
        tcase_add_loop_test(t, text, 0, (int)ARRAY_SIZE(texts));
        suite_add_tcase(s, t);

        SRunner *r = srunner_create(s);
        srunner_run_all(r, CK_ENV);
        int failed = srunner_ntests_failed(r);
        srunner_free(r);
        return failed ? 1 : 0;
}
