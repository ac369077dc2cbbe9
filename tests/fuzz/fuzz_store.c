// SPDX-License-Identifier: MIT
/* Any bytes as changes of a few stores, against the model. */
#undef NDEBUG
#include "fuzz.h"
#include "store_model.h"

int LLVMFuzzerInitialize(int *argc, char ***argv) {
        (void)argc, (void)argv;
        return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
        struct source source = { data, data + size };
        struct model *m = model_new();
        while (model_step(m, &source))
                ;
        model_end(m, NULL);
        return 0;
}
