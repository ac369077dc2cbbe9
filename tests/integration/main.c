// SPDX-License-Identifier: MIT
/*
 * integration [PATTERN]...: runs the cases whose names contain one of the patterns, on the device $GMS_TEST_DEVICE
 * (host:1G), with the daemon $GMSD (../gmsd from here). The fake driver is the one in use when $FAKECUDA_DIR is set.
 * Ends with 77 when there is no GPU to run on.
 */
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>

#include "harness.h"
#include "vmm.h"

static struct test *tests, **last = &tests;

void test_add(struct test *t) {
        *last = t;
        last = &t->next;
}

static const struct test *by_index(int i) {
        const struct test *t = tests;
        while (i-- > 0)
                t = t->next;
        return t;
}

START_TEST(run) {
        machine_run(by_index(_i));
}
END_TEST

/* Why it cannot be run here; NULL: it can. */
static const char *obstacle(const struct test *t, bool cuda, bool fake) {
        if ((t->needs & NEEDS_FAKE) && !fake)
                return "needs the fake driver";
        if ((t->needs & NEEDS_CUDA) && !cuda)
                return "no GPU";
        if ((t->needs & NEEDS_HOST) && cuda)
                return "needs a store in host memory";
        if ((t->needs & NEEDS_SMALL) && cuda && !fake)
                return "needs a device of a chosen size: host, or the fake driver";
        if ((t->needs & NEEDS_ROOT) && geteuid() != 0)
                return "needs root";
        return NULL;
}

static bool wanted(const struct test *t, int argc, char **argv) {
        bool any = argc <= 1;
        for (int i = 1; i < argc; i++)
                any = any || strstr(t->name, argv[i]);
        return any;
}

/* Asked in a child: this process stays one that has not called the driver. */
static bool gpu_there(void) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0) {
                struct vmm_device device;
                char text[256];
                size_t n = 0;
                _exit(vmm_probe(&device, 1, &n, text, sizeof(text)) == 0 && n > 0 ? 0 : 1);
        }
        return waitpid(pid, &status, 0) == pid && status == 0;
}

int main(int argc, char **argv) {
        const char *device = getenv("GMS_TEST_DEVICE"), *dir = getenv("FAKECUDA_DIR");
        bool cuda = device && strncmp(device, "cuda", 4) == 0, fake = cuda && dir && *dir;
        Suite *suite = suite_create(!cuda ? "integration, host" : fake ? "integration, fake GPU" : "integration, GPU");
        unsigned skipped = 0;
        int i = 0;

        if (cuda && !gpu_there()) {
                printf("integration: skipped: no GPU\n");
                return 77;
        }
        for (const struct test *t = tests; t; t = t->next, i++) {
                const char *why = obstacle(t, cuda, fake);
                if (!wanted(t, argc, argv))
                        continue;
                if (why) {
                        printf("%s: skipped: %s\n", t->name, why);
                        skipped++;
                        continue;
                }
                TCase *tc = tcase_create(t->name);
                tcase_add_unchecked_fixture(tc, machine_make_directory, machine_clean_up);
                tcase_set_timeout(tc, t->seconds ? t->seconds + 5 : 35);
                tcase_add_loop_test(tc, run, i, i + 1);
                suite_add_tcase(suite, tc);
        }
        (void)fflush(stdout);
        SRunner *runner = srunner_create(suite);
        srunner_run_all(runner, CK_ENV);
        int run_ = srunner_ntests_run(runner), failed = srunner_ntests_failed(runner);
        printf("%s: %d run, %d failed, %u skipped\n", device ? device : "host:1G", run_, failed, skipped);
        srunner_free(runner);
        return failed > 0 || (run_ == 0 && skipped == 0);
}
