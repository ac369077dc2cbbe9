// SPDX-License-Identifier: MIT
/*
 * gmsd: owns GPU memory for other processes. See --help, and README.md.
 */
#include <string.h>
#include <sys/resource.h>

#include "config.h"
#include "log.h"
#include "server.h"
#include "worker.h"

/* The daemon is descriptors: it takes all that it may have. */
static void raise_descriptor_limit(void) {
        struct rlimit l;
        if (getrlimit(RLIMIT_NOFILE, &l) < 0)
                return;
        l.rlim_cur = l.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &l) < 0)
                log_warning("cannot raise the limit of open files: %s", strerror(errno));
}

static int serve(struct config *config) {
        struct server *server = NULL;
        raise_descriptor_limit();
        if (server_new(&server, config) < 0)
                return 1;
        int status = server_run(server);
        server_free(server);
        return status;
}

int main(int argc, char **argv) {
        struct config config;
        int status;

        switch (config_parse(&config, argc, argv)) {
        case 0:
                status = config.worker ? worker_main() : serve(&config);
                break;
        case CONFIG_E_EXIT:
                status = 0;
                break;
        case CONFIG_E_USAGE:
                status = 2;
                break;
        default:
                log_error("out of memory");
                status = 1;
        }
        config_done(&config);
        return status;
}
