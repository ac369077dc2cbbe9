// SPDX-License-Identifier: MIT
#undef NDEBUG
#include "daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

const char *daemon_program = "build/gmsd";

static char dir[64], socket_path[96];
static pid_t pid;

void daemon_start(void) {
        strcpy(dir, "/tmp/gms-client.XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(dir));
        (void)snprintf(socket_path, sizeof(socket_path), "%s/gms.sock", dir);
        pid = fork();
        ck_assert_int_ge(pid, 0);
        if (pid == 0) {
                int null = open("/dev/null", O_WRONLY);
                (void)dup2(null, STDERR_FILENO);
                (void)execl(daemon_program, daemon_program, "--socket", socket_path, "--device", "host:64M", (char *)NULL);
                _exit(127);
        }
        struct stat st;
        for (int i = 0; i < 1000 && stat(socket_path, &st) < 0; i++)
                (void)usleep(10000);
}

void daemon_stop(void) {
        int status;
        (void)kill(pid, SIGTERM);
        ck_assert_int_eq(waitpid(pid, &status, 0), pid);
        ck_assert_int_eq(status, 0);
        (void)rmdir(dir);
}

struct gms *daemon_handle(const char *store) {
        struct gms *g;
        OK(gms_open(&g, socket_path, store));
        return g;
}

struct gms *daemon_session(const char *store, uint32_t mode) {
        struct gms *g = daemon_handle(store);
        struct gms_connect_options o = GMS_INIT(struct gms_connect_options);
        o.mode = mode;
        o.deadline_ms = 5000;
        OK(gms_connect(g, &o));
        return g;
}
