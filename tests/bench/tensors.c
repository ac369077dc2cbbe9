// SPDX-License-Identifier: MIT
/*
 * 3,000 tensors, as a large model has them, made usable in PyTorch by a process that comes new: from gms.attach() to the last
 * torch.Tensor, in the interpreter that $PYTHON names (python3), with torch, gms and the GPU's context there already. Left out
 * where that has no torch.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gmsclient.h"
#include "gmsd.h"
#include "samples.h"

#define N 3000
#define N_TEXT "3000"
#define ELEMENTS 4096 /* of each, BF16 */
#define ROUNDS 9
#define LIMIT_MS 50.0

static const char script[] =
        "import sys, time\n"
        "try:\n"
        "    import torch\n"
        "except ImportError:\n"
        "    print('none'); sys.exit(0)\n"
        "import gms\n"
        "if sys.argv[1].startswith('cuda'):\n"
        "    torch.zeros(1, device='cuda')\n"
        "start = time.perf_counter()\n"
        "session = gms.attach(sys.argv[1], socket=sys.argv[2])\n"
        "attached = time.perf_counter()\n"
        "tensors = session.tensors()\n"
        "end = time.perf_counter()\n"
        "assert len(tensors) == " N_TEXT " and tensors['layers.2999.weight'].dtype == torch.bfloat16\n"
        "print((attached - start) * 1e3, (end - attached) * 1e3)\n";

static void publish(const struct gmsd *d, const char *store) {
        static char names[N][32];
        static struct gms_tensor tensors[N];
        static const int64_t shape[] = { ELEMENTS / 64, 64 };
        struct gms *g;
        struct gms_pool *p;
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = GMS_MODE_RW;
        o.label = "bench";
        int r = gms_open(&g, d->socket, store);
        if (r == 0)
                r = gms_connect(g, &o);
        if (r == 0)
                r = gms_pool_open(&p, g, NULL);
        for (int i = 0; r == 0 && i < N; i++) {
                struct gms_piece piece = GMS_INIT(struct gms_piece);
                r = gms_pool_allocate(p, 2 * ELEMENTS, 0, &piece);
                (void)snprintf(names[i], sizeof(names[i]), "layers.%d.weight", i);
                tensors[i] = (struct gms_tensor){
                        .size = sizeof(tensors[i]), .dtype = GMS_DTYPE_BF16, .rank = 2, .name = names[i], .shape = shape,
                        .slot = piece.slot, .offset = piece.offset,
                };
        }
        if (r == 0)
                r = gms_tensors_put(g, tensors, N);
        if (r == 0)
                r = gms_commit(g, NULL, GMS_COMMIT_LEAVE);
        if (r < 0)
                bench_die("%d tensors: %s", N, gms_last_error());
        gms_pool_close(p);
        gms_close(g);
}

/* False: the interpreter has no torch, or there is none. */
static bool measure(const struct gmsd *d, const char *store, double *ret_attach, double *ret_tensors) {
        const char *python = getenv("PYTHON");
        char command[sizeof(script) + 512], line[200] = "";
        (void)snprintf(command, sizeof(command), "%s -c \"%s\" %s %s", python ? python : "python3", script, store, d->socket);
        FILE *f = popen(command, "re");
        if (!f)
                bench_die("%s: %s", python, strerror(errno));
        char *answer = fgets(line, sizeof(line), f);
        int status = pclose(f);
        if (status == 127 << 8 || strncmp(line, "none", 4) == 0)
                return false;
        if (status != 0 || !answer || sscanf(line, "%lf %lf", ret_attach, ret_tensors) != 2)
                bench_die("the Python process failed: status %#x, '%s'", (unsigned)status, line);
        return true;
}

void tensors_run(struct bench *b) {
        struct gmsd d;
        char store[64];
        _cleanup_samples_ struct samples attach = {}, tensors = {};
        gmsd_start(&d, b, b->device, NULL, NULL);
        (void)snprintf(store, sizeof(store), "%s/tensors", d.device);
        publish(&d, store);
        double a, t;
        for (int i = 0; i < ROUNDS && measure(&d, store, &a, &t); i++) {
                samples_add(&attach, a);
                samples_add(&tensors, t);
        }
        if (tensors.n > 0) {
                bench_row(b, "tensors_3000", "ms", samples_cost(&tensors), LIMIT_MS, 1.0,
                          "%d tensors usable in torch, over the attach, against 50 ms", N);
                bench_row(b, "tensors_3000_attach", "ms", samples_cost(&attach), NONE, NONE, "gms.attach() before that");
        } else {
                (void)fprintf(stderr, " (skipped: no torch)");
        }
        gmsd_stop(&d);
}
