// SPDX-License-Identifier: MIT
/*
 * The knobs and the state of the fake driver, for shells and people. Works on $FAKECUDA_DIR, as the driver does.
 */
#include "fake_memory.h"

static int usage(void) {
        fputs("usage: fakecuda status\n"
              "       fakecuda set FUNCTION [delay_us=N] [fail=CUDA_ERROR_NAME | hang | crash] [times=N]\n"
              "       fakecuda calls FUNCTION\n"
              "       fakecuda clear\n",
              stderr);
        return 2;
}

static bool parse_error(const char *name, int *ret_result) {
#define PARSE_ERROR(error) \
        if (strcmp(name, #error) == 0) \
                return *ret_result = (error), true;
        FAKECUDA_ERRORS(PARSE_ERROR)
        return false;
}

static bool parse_number(const char *text, uint32_t *ret_number) {
        char *end;
        unsigned long n = strtoul(text, &end, 10);
        *ret_number = (uint32_t)n;
        return end != text && *end == '\0' && n < FAKECUDA_ALWAYS;
}

static int set(struct fakecuda *f, char **args) {
        enum fakecuda_action action = FAKECUDA_GO_ON;
        uint32_t delay_us = 0, times = FAKECUDA_ALWAYS;
        int result = 0;
        const char *function = *args++;
        if (!function)
                return usage();
        for (; *args; args++) {
                if (strncmp(*args, "delay_us=", 9) == 0 && parse_number(*args + 9, &delay_us))
                        continue;
                if (strncmp(*args, "times=", 6) == 0 && parse_number(*args + 6, &times))
                        continue;
                if (strncmp(*args, "fail=", 5) == 0 && parse_error(*args + 5, &result))
                        action = FAKECUDA_FAIL;
                else if (strcmp(*args, "hang") == 0)
                        action = FAKECUDA_HANG;
                else if (strcmp(*args, "crash") == 0)
                        action = FAKECUDA_CRASH;
                else
                        return usage();
        }
        fakecuda_set(f, function, action, result, delay_us, times);
        return 0;
}

static int status(struct fakecuda *f) {
        for (unsigned i = 0; i < fake_count(); i++) {
                struct fake_memory *m = fake_memory_open(i);
                if (!m)
                        return 1;
                unsigned n;
                uint64_t room = fake_memory_room(m, &n);
                printf("gpu%u total=%llu free=%llu allocations=%u\n", i, (unsigned long long)fake_capacity(),
                       (unsigned long long)room, n);
        }
        for (int i = 0; i < _FAKECUDA_FUNCTION_MAX; i++) {
                struct fakecuda_knob *k = &f->knobs[i];
                static const char *const actions[] = { "go on", "fail", "hang", "crash" };
                if (k->calls || k->times)
                        printf("%-40s calls=%u", fakecuda_name((enum fakecuda_function)i), k->calls);
                if (k->times)
                        printf(" delay_us=%u then %s, times left=%d", k->delay_us, actions[k->action & 3], (int)k->times);
                if (k->calls || k->times)
                        printf("\n");
        }
        return 0;
}

int main(int argc, char **argv) {
        struct fakecuda *f = fakecuda_open(fake_dir());
        if (!f || argc < 2)
                return usage();
        if (strcmp(argv[1], "set") == 0)
                return set(f, argv + 2);
        if (strcmp(argv[1], "status") == 0 && argc == 2)
                return status(f);
        if (strcmp(argv[1], "calls") == 0 && argc == 3)
                return printf("%u\n", fakecuda_calls(f, argv[2])) < 0;
        if (strcmp(argv[1], "clear") == 0 && argc == 2)
                return fakecuda_clear(f), 0;
        return usage();
}
