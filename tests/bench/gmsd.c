// SPDX-License-Identifier: MIT
#include "gmsd.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include "raw.h"

#define PATIENCE_MS 30000 /* a GPU's driver may need seconds to start */

static void show_log(const struct gmsd *g) {
        char line[512];
        FILE *f = fopen(g->log, "re");
        while (f && fgets(line, sizeof(line), f))
                (void)fprintf(stderr, "   | %s", line);
        if (f)
                (void)fclose(f);
}

__attribute__((__noreturn__)) static void exec_gmsd(const struct gmsd *g, const struct bench *b, const char *device,
                                                    const char *more, char *const environment[], bool kept) {
        char path[sizeof(b->build) + 16], keeper[sizeof(b->build) + 16];
        (void)snprintf(path, sizeof(path), "%s/gmsd", b->build);
        (void)snprintf(keeper, sizeof(keeper), "%s/gms-keeper", b->build);
        (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
        int log = open(g->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (log >= 0)
                (void)dup2(log, STDERR_FILENO);
        (void)unsetenv("NOTIFY_SOCKET");
        for (size_t i = 0; environment && environment[i]; i++)
                (void)putenv(environment[i]);
        char *argv[] = { keeper, (char *)"--", path, (char *)"--socket", (char *)g->socket, (char *)"--device", (char *)device,
                         (char *)(more ? "--device" : NULL), (char *)more, NULL };
        char **command = kept ? argv : argv + 2;
        (void)execv(command[0], command);
        (void)dprintf(STDERR_FILENO, "%s: %s\n", command[0], strerror(errno));
        _exit(127);
}

static void start(struct gmsd *g, const struct bench *b, const char *device, const char *more, char *const environment[],
                  bool kept) {
        *g = (struct gmsd){};
        (void)snprintf(g->dir, sizeof(g->dir), "%s", b->dir);
        (void)snprintf(g->socket, sizeof(g->socket), "%s/%s.sock", b->dir, kept ? "kept" : "gmsd");
        (void)snprintf(g->log, sizeof(g->log), "%s/gmsd.log", b->dir);
        (void)fflush(NULL);
        g->pid = fork();
        if (g->pid < 0)
                bench_die("fork: %s", strerror(errno));
        if (g->pid == 0)
                exec_gmsd(g, b, device, more, environment, kept);

        for (unsigned waited = 0; waited < PATIENCE_MS; waited += 5) {
                (void)usleep(5000);
                if (waitpid(g->pid, NULL, WNOHANG) == g->pid)
                        break;
                struct raw r;
                if (!raw_try_open(&r, g->socket))
                        continue;
                raw_hello(&r, NULL, GMS__MODE__NONE);
                raw_first_device(&r, g->device, sizeof(g->device), NULL);
                raw_close(&r);
                return;
        }
        show_log(g);
        bench_die("gmsd does not serve %s", device);
}

void gmsd_start(struct gmsd *g, const struct bench *b, const char *device, const char *more, char *const environment[]) {
        start(g, b, device, more, environment, false);
}

void gmsd_start_kept(struct gmsd *g, const struct bench *b, const char *device) {
        start(g, b, device, NULL, NULL, true);
}

void gmsd_stop(struct gmsd *g) {
        int status;
        (void)kill(g->pid, SIGTERM);
        if (waitpid(g->pid, &status, 0) == g->pid && status == 0)
                return;
        show_log(g);
        bench_die("gmsd ended badly: status %#x", (unsigned)status);
}

static double read_memory(const struct gmsd *g, const char *file, const char *field) {
        char path[64], line[256];
        double kib = -1;
        (void)snprintf(path, sizeof(path), "/proc/%d/%s", g->pid, file);
        FILE *f = fopen(path, "re");
        while (f && kib < 0 && fgets(line, sizeof(line), f))
                if (strncmp(line, field, strlen(field)) == 0)
                        kib = strtod(line + strlen(field), NULL);
        if (f)
                (void)fclose(f);
        if (kib < 0)
                bench_die("%s has no %s", path, field);
        return kib * 1024;
}

/* What `status` says of the present is behind by up to 64 pages a CPU. */
double gmsd_rss(const struct gmsd *g) {
        return read_memory(g, "smaps_rollup", "Rss:");
}

double gmsd_rss_peak(const struct gmsd *g) {
        return MAX(read_memory(g, "status", "VmHWM:"), gmsd_rss(g));
}

uint64_t gmsd_owned(const struct gmsd *g) {
        struct raw r;
        uint64_t owned;
        raw_open(&r, g->socket);
        raw_hello(&r, NULL, GMS__MODE__NONE);
        raw_first_device(&r, NULL, 0, &owned);
        raw_close(&r);
        return owned;
}

void gmsd_settle(const struct gmsd *g) {
        for (unsigned waited = 0; gmsd_owned(g) > 0; waited += 2) {
                if (waited > PATIENCE_MS)
                        bench_die("gmsd does not give memory back");
                (void)usleep(2000);
        }
}
