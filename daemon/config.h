// SPDX-License-Identifier: MIT
#pragma once
/*
 * What the daemon was told: the command line, and a file of "key = value" lines below it.
 */
#include <sys/types.h>

#include "base.h"

struct config_device {
        char spec[64];     /* cuda (all), cuda:N, cuda:GPU-…, host, host,huge */
        uint64_t capacity; /* bytes; 0: what the device has */
        bool optional;     /* a default: nobody asked for it by name */
};

struct config {
        char *socket;
        mode_t socket_mode;
        struct config_device *devices;
        size_t n_devices;
        bool worker; /* this process is a worker */
        int argc;    /* to be read again */
        char **argv;
};

enum {
        _CONFIG_E_SUCCESS,
        CONFIG_E_EXIT,  /* --help or --version was answered */
        CONFIG_E_USAGE, /* said what is wrong */
};

/* 0, CONFIG_E_*, -ENOMEM. */
int config_parse(struct config *c, int argc, char **argv);
void config_done(struct config *c);

/* Adds a device. 0, CONFIG_E_USAGE (not a SPEC), -ENOMEM. */
int config_add_device(struct config *c, const char *spec, bool optional);
