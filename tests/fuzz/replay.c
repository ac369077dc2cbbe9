// SPDX-License-Identifier: MIT
/* A fuzz target without the fuzzer: each file and each folder's files once, so that any compiler tests the corpus. */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

#define INPUT_MAX (1u << 20)

static int replay_file(const char *path) {
        static uint8_t buf[INPUT_MAX];
        FILE *f = fopen(path, "re");
        if (!f) {
                (void)fprintf(stderr, "%s: %s\n", path, strerror(errno));
                return -1;
        }
        size_t n = fread(buf, 1, sizeof(buf), f);
        (void)fclose(f);
        uint8_t *exact = malloc(n ? n : 1); /* so that a sanitizer sees a read behind it */
        if (!exact)
                return -1;
        memcpy(exact, buf, n);
        (void)LLVMFuzzerTestOneInput(exact, n);
        free(exact);
        return 1;
}

static int replay(const char *path) {
        struct stat st;
        struct dirent **entries;
        if (stat(path, &st) < 0 || !S_ISDIR(st.st_mode))
                return replay_file(path);
        int n = scandir(path, &entries, NULL, alphasort), played = 0;
        for (int i = 0; i < n; i++) {
                char file[1024];
                (void)snprintf(file, sizeof(file), "%s/%s", path, entries[i]->d_name);
                if (entries[i]->d_name[0] != '.' && played >= 0)
                        played = replay_file(file) < 0 ? -1 : played + 1;
                free(entries[i]);
        }
        if (n >= 0)
                free(entries);
        return n < 0 ? -1 : played;
}

int main(int argc, char **argv) {
        int total = 0;
        (void)LLVMFuzzerInitialize(&argc, &argv);
        for (int i = 1; i < argc; i++) {
                int n = replay(argv[i]);
                if (n < 0)
                        return 1;
                total += n;
        }
        (void)printf("%s: %d inputs\n", argv[0], total);
        return total > 0 ? 0 : 1;
}
