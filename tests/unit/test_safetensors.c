// SPDX-License-Identifier: MIT
/* Headers of safetensors files and indexes: what is in them, and what is refused, where and why. */
#undef NDEBUG
#include <check.h>
#include <stdio.h>
#include <string.h>

#include "../../libgmsclient/safetensors.h"
#include "base.h"

#define PREFIX SAFETENSORS_PREFIX

static struct safetensors parsed(const char *header, uint64_t data) {
        struct safetensors s;
        size_t n = strlen(header);
        int r = safetensors_parse(&s, "file", header, n, PREFIX + n + data);
        ck_assert_msg(r == 0, "%s: %s", header, gms_last_error());
        ck_assert_uint_eq(s.begin, PREFIX + n);
        return s;
}

/* Refused with a text that names the byte and has `words` in it. */
static void check_refused(int r, uint64_t byte, const char *words, const char *what) {
        char at[64];
        ck_assert_msg(r == -EBADMSG, "%s: %d", what, r);
        (void)snprintf(at, sizeof(at), "file: byte %llu: ", (unsigned long long)byte);
        ck_assert_msg(strncmp(gms_last_error(), at, strlen(at)) == 0, "%s: '%s' was expected in: %s", what, at, gms_last_error());
        ck_assert_msg(strstr(gms_last_error(), words) != NULL, "%s: '%s' was expected in: %s", what, words, gms_last_error());
}

static void refuse_sized(const char *header, size_t n, uint64_t data, uint64_t byte, const char *words) {
        struct safetensors s;
        memset(&s, 0x5a, sizeof(s)); /* written on success only */
        check_refused(safetensors_parse(&s, "file", header, n, PREFIX + n + data), byte, words, header);
}

static void refuse(const char *header, uint64_t data, uint64_t byte, const char *words) {
        refuse_sized(header, strlen(header), data, byte, words);
}

/* ---- what is right */

START_TEST(one) {
        struct safetensors s = parsed("{\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24);
        ck_assert_uint_eq(s.n, 1);
        ck_assert_str_eq(s.tensors[0].name, "a.weight");
        ck_assert_uint_eq(s.tensors[0].dtype, GMS_DTYPE_F32);
        ck_assert_uint_eq(s.tensors[0].rank, 2);
        ck_assert_int_eq(s.tensors[0].shape[0], 2);
        ck_assert_int_eq(s.tensors[0].shape[1], 3);
        ck_assert_uint_eq(s.tensors[0].begin, s.begin);
        ck_assert_uint_eq(s.tensors[0].end, s.begin + 24);
        safetensors_done(&s);
}
END_TEST

/* As the header names them is not as they lie. */
START_TEST(order) {
        struct safetensors s = parsed("{\"c\":{\"dtype\":\"U8\",\"shape\":[5],\"data_offsets\":[3,8]},"
                                      "\"__metadata__\":{\"format\":\"pt\",\"\":\"\"},"
                                      "\"e\":{\"dtype\":\"I64\",\"shape\":[7,0,9],\"data_offsets\":[3,3]},"
                                      "\"a\":{\"shape\":[3],\"more\":[{}],\"data_offsets\":[0,3],\"dtype\":\"I8\"},"
                                      "\"z\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":[8,9]},"
                                      "\"y\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[9,9]}}", 9);
        static const char *const names[] = { "a", "e", "c", "z", "y" };
        ck_assert_uint_eq(s.n, 5);
        for (size_t i = 0; i < 5; i++)
                ck_assert_str_eq(s.tensors[i].name, names[i]);
        ck_assert_uint_eq(s.tensors[1].begin, s.tensors[1].end);
        ck_assert_uint_eq(s.tensors[1].rank, 3);
        ck_assert_int_eq(s.tensors[1].shape[2], 9);
        ck_assert_uint_eq(s.tensors[3].rank, 0);
        ck_assert_uint_eq(s.tensors[3].end, s.begin + 9);
        safetensors_done(&s);
}
END_TEST

START_TEST(dtypes) {
        static const struct {
                const char *name;
                uint32_t dtype;
                unsigned bytes; /* of 8 elements */
        } all[] = {
                { "BOOL", GMS_DTYPE_BOOL, 8 },
                { "U8", GMS_DTYPE_U8, 8 },
                { "I8", GMS_DTYPE_I8, 8 },
                { "U16", GMS_DTYPE_U16, 16 },
                { "I16", GMS_DTYPE_I16, 16 },
                { "U32", GMS_DTYPE_U32, 32 },
                { "I32", GMS_DTYPE_I32, 32 },
                { "U64", GMS_DTYPE_U64, 64 },
                { "I64", GMS_DTYPE_I64, 64 },
                { "F16", GMS_DTYPE_F16, 16 },
                { "BF16", GMS_DTYPE_BF16, 16 },
                { "F32", GMS_DTYPE_F32, 32 },
                { "F64", GMS_DTYPE_F64, 64 },
                { "C64", GMS_DTYPE_C64, 64 },
                { "F8_E4M3", GMS_DTYPE_F8_E4M3, 8 },
                { "F8_E5M2", GMS_DTYPE_F8_E5M2, 8 },
                { "F8_E8M0", GMS_DTYPE_F8_E8M0, 8 },
                { "F8_E4M3FNUZ", GMS_DTYPE_F8_E4M3FNUZ, 8 },
                { "F8_E5M2FNUZ", GMS_DTYPE_F8_E5M2FNUZ, 8 },
                { "F4", GMS_DTYPE_F4, 4 },
                { "F6_E2M3", GMS_DTYPE_F6_E2M3, 6 },
                { "F6_E3M2", GMS_DTYPE_F6_E3M2, 6 },
        };
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                char header[200];
                (void)snprintf(header, sizeof(header), "{\"t\":{\"dtype\":\"%s\",\"shape\":[2,4],\"data_offsets\":[0,%u]}}",
                               all[i].name, all[i].bytes);
                struct safetensors s = parsed(header, all[i].bytes);
                ck_assert_uint_eq(s.tensors[0].dtype, all[i].dtype);
                safetensors_done(&s);
        }
        ck_assert_uint_eq(ARRAY_SIZE(all), GMS_DTYPE_F6_E3M2); /* none is missing */
        refuse("{\"t\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, PREFIX + 1,
               "12 bits of F4 are no whole bytes");
        refuse("{\"t\":{\"dtype\":\"bf16\",\"shape\":[1],\"data_offsets\":[0,2]}}", 2, PREFIX + 1, "type 'bf16' is not known");
        refuse("{\"t\":{\"dtype\":16,\"shape\":[1],\"data_offsets\":[0,2]}}", 2, PREFIX + 1, "it has no type");
        refuse("{\"t\":{\"shape\":[1],\"data_offsets\":[0,2]}}", 2, PREFIX + 1, "it has no type");
}
END_TEST

/* Nothing at all; and padding at either end, which writers use to align what follows. */
START_TEST(nothing) {
        static const char *const headers[] = { "{}", "{}      ", " \t\r\n{}\r\n", "{\"__metadata__\":{}}" };
        for (size_t i = 0; i < ARRAY_SIZE(headers); i++) {
                struct safetensors s = parsed(headers[i], 0);
                ck_assert_uint_eq(s.n, 0);
                safetensors_done(&s);
        }
}
END_TEST

/* Names are text, escaped or not, and as long as a store can have them. */
START_TEST(names) {
        char name[SAFETENSORS_NAME_MAX + 2], header[1000];
        struct safetensors s = parsed("{\"\\u00fc\\\"\\\\b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1);
        ck_assert_str_eq(s.tensors[0].name, "ü\"\\b");
        safetensors_done(&s);

        memset(name, 'n', sizeof(name));
        name[SAFETENSORS_NAME_MAX + 1] = '\0';
        (void)snprintf(header, sizeof(header), "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name + 1);
        s = parsed(header, 1);
        ck_assert_str_eq(s.tensors[0].name, name + 1);
        safetensors_done(&s);
        (void)snprintf(header, sizeof(header), "{ \"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
        refuse(header, 1, PREFIX + 2, "1 to 505 bytes");
        refuse("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, PREFIX + 1, "1 to 505 bytes");
        refuse("{\"a\\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, PREFIX + 1, "control");
        refuse("{\"a\\u0000\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, PREFIX + 10, "NUL");
}
END_TEST

/* ---- what is wrong: the prefix */

START_TEST(prefix) {
        static const struct {
                uint8_t bytes[PREFIX];
                uint64_t file_size;
                const char *words; /* NULL: it is right */
                size_t size;
        } all[] = {
                { { 0 }, 0, "the file has 0 bytes", 0 },
                { { 2 }, 7, "the file has 7 bytes", 0 },
                { { 2 }, 9, "ends at byte 9", 0 },
                { { 2 }, 10, NULL, 2 },
                { { 0, 1 }, 1000, NULL, 256 },
                { { 0 }, 8, NULL, 0 },
                { { 0x00, 0xe1, 0xf5, 0x05 }, UINT64_MAX, NULL, 100000000 },
                { { 0x01, 0xe1, 0xf5, 0x05 }, UINT64_MAX, "100000000 is the most", 0 },
                { { 0, 0, 0, 0, 0, 0, 0, 0x80 }, UINT64_MAX, "is the most", 0 },
                { { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff }, 100, "18446744073709551615", 0 },
        };
        for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
                size_t size = 12345;
                int r = safetensors_header_size("file", all[i].bytes, all[i].file_size, &size);
                if (all[i].words)
                        check_refused(r, 0, all[i].words, "prefix");
                else
                        ck_assert_int_eq(r, 0);
                ck_assert_uint_eq(size, all[i].words ? 12345 : all[i].size);
        }
}
END_TEST

/* ---- what is wrong: JSON */

START_TEST(json) {
        refuse("", 0, PREFIX, "'{' was expected");
        refuse("    ", 0, PREFIX + 4, "'{' was expected");
        refuse("[]", 0, PREFIX, "'{' was expected");
        refuse("  \"x\"", 0, PREFIX + 2, "'{' was expected");
        refuse("\xef\xbb\xbf{}", 0, PREFIX, "'{' was expected");
        refuse("{\"a\":}", 0, PREFIX + 6, "");
        refuse("{\"a\":{}", 0, PREFIX + 7, "");
        refuse("{} x", 0, PREFIX + 4, "end of file");
        refuse("{\"a\xff\":{}}", 0, PREFIX + 3, "unable to decode byte 0xff");
        refuse("{\"a\":1e400}", 0, PREFIX + 10, "");
        refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,1]}}", 1, PREFIX + 47, "");
        refuse_sized("{}\0", 3, 0, PREFIX + 3, "");
}
END_TEST

START_TEST(duplicates) {
        refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
               "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2, PREFIX + 56, "duplicate");
        refuse("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1, PREFIX + 26, "duplicate");
}
END_TEST

/* As deep as a header can be; the parser's stack is not. */
START_TEST(nesting) {
        static const char *const pairs[] = { "[]", "{}" };
        size_t n = 1000000;
        char *header = malloc(n + 1);
        for (size_t k = 0; k < 2; k++) {
                memcpy(header, "{\"a\":", 5);
                for (size_t i = 5; i < n; i += k ? 5 : 1)
                        memcpy(header + i, k ? "{\"a\":" : "[", k ? 5 : 1);
                struct safetensors s;
                int r = safetensors_parse(&s, "file", header, n, PREFIX + n);
                ck_assert_msg(r == -EBADMSG && strstr(gms_last_error(), "depth"), "%s: %s", pairs[k], gms_last_error());
        }
        free(header);
}
END_TEST

START_TEST(metadata) {
        refuse("{\"__metadata__\":7}", 0, PREFIX + 1, "__metadata__ is no object");
        refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"__metadata__\":{\"k\":\"v\",\"n\":1}}", 1,
               PREFIX + 53, "'n' is no text");
}
END_TEST

/* ---- what is wrong: tensors. Each is the second one, so that its offset is its own. */

#define FIRST "{\"__metadata__\":{\"a\\\"}b\":\"{,\\\\\"}, \"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}, "
#define SECOND (PREFIX + sizeof(FIRST) - 1)

START_TEST(shapes) {
        char header[2000] = FIRST "\"b\":{\"dtype\":\"U8\",\"data_offsets\":[4,5],\"shape\":[1";
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"data_offsets\":[4,5]}}", 5, SECOND, "no list");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":7,\"data_offsets\":[4,5]}}", 5, SECOND, "no list");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":{},\"data_offsets\":[4,5]}}", 5, SECOND, "no list");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1,-1],\"data_offsets\":[4,5]}}", 5, SECOND, "size 1 of its shape");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[4,5]}}", 5, SECOND, "size 0 of its shape");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[4,5]}}", 5, SECOND, "size 0 of its shape");
        refuse(FIRST "\"b\":7}", 5, SECOND, "it has no type");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[4,5]}}", 5, SECOND,
               "more elements");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807],\"data_offsets\":[4,5]}}", 5, SECOND,
               "more elements");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[9223372036854775807,3,0],\"data_offsets\":[4,4]}}", 4, SECOND,
               "more elements");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[0,9223372036854775807,3],\"data_offsets\":[4,4]}}", 4, SECOND,
               "more elements"); /* wherever the 0 stands: no tensor of a store can have it */
        refuse(FIRST "\"b\":{\"dtype\":\"F32\",\"shape\":[0,1152921504606846976],\"data_offsets\":[4,4]}}", 4, SECOND,
               "more elements");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[4,5]}}", 5, SECOND,
               "1 bytes apart; its type and shape make 2");
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[4,5]}}", 5, SECOND, "shape make 0");

        for (int i = 1; i < GMS_RANK_MAX; i++)
                strcat(header, ",1");
        size_t n = strlen(header);
        strcpy(header + n, "]}}");
        struct safetensors s = parsed(header, 5);
        ck_assert_uint_eq(s.tensors[1].rank, GMS_RANK_MAX);
        safetensors_done(&s);
        strcpy(header + n, ",1]}}");
        refuse(header, 5, SECOND, "at most 64");
}
END_TEST

START_TEST(offsets) {
        static const char *const none[] = { "7", "[4]", "[4,5,6]", "[\"4\",5]", "[4,5.0]", "[-1,0]", "[5,4]", "null" };
        char header[300];
        for (size_t i = 0; i < ARRAY_SIZE(none); i++) {
                (void)snprintf(header, sizeof(header), FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":%s}}",
                               none[i]);
                refuse(header, 5, SECOND, "not [begin, end]");
        }
        refuse(FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1]}}", 5, SECOND, "not [begin, end]");
}
END_TEST

/* The byte is one of the data now. */
START_TEST(places) {
        static const char hole[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[6,7]}}";
        static const char overlap[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[3,6]}}";
        static const char twice[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
        static const char inside[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]}}";
        static const char late[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}";
        static const char right[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[4,7]}}";
        static const char far[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,"
                                        "9223372036854775807]}}";
        static const char wide[] = FIRST "\"b\":{\"dtype\":\"U8\",\"shape\":[1152921504606846972],\"data_offsets\":[4,"
                                         "1152921504606846976]}}";
        const uint64_t data = PREFIX - 1; /* and the size of the header, with its 0 */
        refuse(hole, 7, sizeof(hole) + data + 4, "up to 'b', which begins at byte");
        refuse(overlap, 6, sizeof(overlap) + data + 3, "'b' begins inside of 'a'");
        refuse(twice, 4, sizeof(twice) + data, "'b' begins inside of 'a'");
        refuse(inside, 4, sizeof(inside) + data + 2, "'b' begins inside of 'a'");
        refuse(late, 2, sizeof(late) + data, "up to 'a'");
        refuse(right, 6, sizeof(right) + data + 6, "the file ends here, and 'b'");
        refuse(right, 0, sizeof(right) + data, "the file ends here, and 'a'");
        refuse(right, 8, sizeof(right) + data + 7, "from here to the end of the file");
        refuse("{}", 1, PREFIX + 2, "from here to the end of the file");
        refuse(far, 7, sizeof(far) + data + 4, "up to 'b'");
        refuse(wide, 7, sizeof(wide) + data + 7, "cut short");
        struct safetensors s = parsed(right, 7);
        safetensors_done(&s);
}
END_TEST

/* ---- the index */

static int index_of(json_t **ret_map, const char *text) {
        return safetensors_parse_index(ret_map, "file", text, strlen(text));
}

START_TEST(index_right) {
        json_t *map;
        ck_assert_int_eq(index_of(&map, "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"a\":\"x.safetensors\",\"b\":\"y\"}}"), 0);
        ck_assert_uint_eq(json_object_size(map), 2);
        ck_assert_str_eq(json_string_value(json_object_get(map, "a")), "x.safetensors");
        json_decref(map);
}
END_TEST

START_TEST(index_wrong) {
        static const char *const files[] = { "\"../x\"", "\"/etc/passwd\"", "\"d/x\"", "\"..\"", "\".\"", "\"\"", "7", "null" };
        char text[200];
        json_t *map = NULL;
        check_refused(index_of(&map, "[]"), 0, "'{' was expected", "array");
        check_refused(index_of(&map, "{\"weight_map\":{\"a\":\"x\""), 22, "", "cut short");
        check_refused(index_of(&map, "{\"weight_map\":{\"a\":\"x\",\"a\":\"y\"}}"), 26, "duplicate", "twice");
        ck_assert_int_eq(index_of(&map, "{}"), -EBADMSG);
        ck_assert_ptr_nonnull(strstr(gms_last_error(), "no \"weight_map\""));
        ck_assert_int_eq(index_of(&map, "{\"weight_map\":[]}"), -EBADMSG);
        for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
                (void)snprintf(text, sizeof(text), "{\"weight_map\":{\"a\":\"x\",\"b\":%s}}", files[i]);
                ck_assert_int_eq(index_of(&map, text), -EBADMSG);
                ck_assert_msg(strstr(gms_last_error(), "'b'") && strstr(gms_last_error(), "no name of a file"), "%s",
                              gms_last_error());
        }
        ck_assert_ptr_null(map);
}
END_TEST

int main(void) {
        Suite *suite = suite_create("safetensors");
        TCase *right = tcase_create("right"), *wrong = tcase_create("wrong");
        tcase_add_test(right, one);
        tcase_add_test(right, order);
        tcase_add_test(right, dtypes);
        tcase_add_test(right, nothing);
        tcase_add_test(right, names);
        tcase_add_test(right, index_right);
        tcase_add_test(wrong, prefix);
        tcase_add_test(wrong, json);
        tcase_add_test(wrong, duplicates);
        tcase_add_test(wrong, nesting);
        tcase_add_test(wrong, metadata);
        tcase_add_test(wrong, shapes);
        tcase_add_test(wrong, offsets);
        tcase_add_test(wrong, places);
        tcase_add_test(wrong, index_wrong);
        suite_add_tcase(suite, right);
        suite_add_tcase(suite, wrong);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int failed = srunner_ntests_failed(runner);
        srunner_free(runner);
        return failed ? 1 : 0;
}
