// SPDX-License-Identifier: MIT
#include "config.h"

#include <ctype.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/un.h>

#include "log.h"

static const char help[] =
        "gmsd [OPTION]...\n"
        "\n"
        "Owns GPU memory for other processes, so that it outlives them.\n"
        "\n"
        "  --socket PATH   listen here. Default: $GMS_SOCKET, else /run/gms/gmsd.sock,\n"
        "                  or $XDG_RUNTIME_DIR/gms/gmsd.sock when not root\n"
        "  --device SPEC   serve this device; may be given more than once:\n"
        "                    cuda              every GPU the driver shows\n"
        "                    cuda:N            the GPU with this ordinal\n"
        "                    cuda:GPU-<uuid>   the GPU with this UUID\n"
        "                    host[:SIZE]       memory of the host; SIZE (K, M, G, T) caps it\n"
        "                    host[:SIZE],huge  the same in 2 MiB pages where there are any\n"
        "                  Default: every GPU, and host\n"
        "  --config FILE   read \"key = value\" lines: socket, socket-mode (octal, 0660),\n"
        "                  device (may be given more than once). The command line wins.\n"
        "  --version, --help\n";

static int replace(char **to, const char *value) {
        char *copy = strdup(value);
        if (!copy)
                return -ENOMEM;
        free(*to);
        *to = copy;
        return 0;
}

/* "16G" and the like. */
static bool parse_size(const char *text, size_t len, uint64_t *ret_bytes) {
        static const char units[] = "KMGT";
        uint64_t value = 0;
        size_t i = 0;
        for (; i < len && isdigit((unsigned char)text[i]); i++)
                if (__builtin_mul_overflow(value, 10, &value) ||
                    __builtin_add_overflow(value, (uint64_t)(text[i] - '0'), &value))
                        return false;
        if (i == 0)
                return false;
        if (i < len) {
                const char *unit = strchr(units, toupper((unsigned char)text[i]));
                if (!unit || !*unit || i + 1 != len)
                        return false;
                unsigned shift = 10u * (unsigned)(unit - units + 1);
                if (value > UINT64_MAX >> shift)
                        return false;
                value <<= shift;
        }
        *ret_bytes = value;
        return value > 0;
}

/* host[:SIZE][,huge] */
static bool parse_host(const char *spec, struct config_device *d) {
        const char *p = spec + strlen("host");
        const char *comma = strchr(p, ',');
        size_t len = comma ? (size_t)(comma - p) : strlen(p);
        if (comma && strcmp(comma, ",huge") != 0)
                return false;
        if (len > 0 && (*p != ':' || !parse_size(p + 1, len - 1, &d->capacity)))
                return false;
        (void)snprintf(d->spec, sizeof(d->spec), "host%s", comma ? ",huge" : "");
        return true;
}

static bool parse_cuda(const char *spec, struct config_device *d) {
        const char *p = spec + strlen("cuda");
        if (*p == ':') {
                p++;
                bool uuid = strncmp(p, "GPU-", 4) == 0;
                size_t good = uuid ? 4 + strspn(p + 4, "0123456789abcdef-") : strspn(p, "0123456789");
                if (p[good] != 0 || good < (uuid ? 40u : 1u) || good > (uuid ? 40u : 4u))
                        return false;
        } else if (*p != 0) {
                return false;
        }
        (void)snprintf(d->spec, sizeof(d->spec), "%s", spec);
        return true;
}

int config_add_device(struct config *c, const char *spec, bool optional) {
        struct config_device d = { .optional = optional };
        bool ok = strncmp(spec, "host", 4) == 0 ? parse_host(spec, &d)
                  : strncmp(spec, "cuda", 4) == 0 && strlen(spec) < sizeof(d.spec) ? parse_cuda(spec, &d)
                  : false;
        if (!ok) {
                log_error("device \"%s\": not cuda, cuda:N, cuda:GPU-<uuid>, host or host:SIZE; see gmsd --help", spec);
                return CONFIG_E_USAGE;
        }
        for (size_t i = 0; i < c->n_devices; i++) {
                if (strncmp(c->devices[i].spec, d.spec, 4) == 0 &&
                    (strcmp(c->devices[i].spec, d.spec) == 0 || strncmp(spec, "host", 4) == 0)) {
                        log_error("device \"%s\": given twice; name each device once", spec);
                        return CONFIG_E_USAGE;
                }
        }
        struct config_device *devices = reallocarray(c->devices, c->n_devices + 1, sizeof(*devices));
        if (!devices)
                return -ENOMEM;
        c->devices = devices;
        c->devices[c->n_devices++] = d;
        return 0;
}

/* Where `socket` and `devices` may be set: the command line goes first, and a file only fills what it left open. */
struct open_keys {
        bool socket, devices;
};

static char *trim(char *text) {
        while (isspace((unsigned char)*text))
                text++;
        size_t len = strlen(text);
        while (len > 0 && isspace((unsigned char)text[len - 1]))
                text[--len] = 0;
        return text;
}

static int set_key(struct config *c, const char *key, const char *value, struct open_keys open) {
        if (strcmp(key, "socket") == 0)
                return open.socket ? replace(&c->socket, value) : 0;
        if (strcmp(key, "device") == 0)
                return open.devices ? config_add_device(c, value, false) : 0;
        if (strcmp(key, "socket-mode") == 0) {
                char *end;
                unsigned long mode = strtoul(value, &end, 8);
                if (*end || end == value || mode > 0777) {
                        log_error("socket-mode \"%s\": not an octal mode such as 0660", value);
                        return CONFIG_E_USAGE;
                }
                c->socket_mode = (mode_t)mode;
                return 0;
        }
        log_error("\"%s\": not a key; keys are socket, socket-mode and device", key);
        return CONFIG_E_USAGE;
}

static int read_file(struct config *c, const char *path, struct open_keys open) {
        FILE *f = fopen(path, "re");
        if (!f) {
                log_error("%s: %s", path, strerror(errno));
                return CONFIG_E_USAGE;
        }
        char *line = NULL;
        size_t room = 0;
        int r = 0, number = 0;
        while (r == 0 && getline(&line, &room, f) >= 0) {
                number++;
                char *key = trim(line);
                if (*key == 0 || *key == '#')
                        continue;
                char *equals = strchr(key, '=');
                if (equals) {
                        *equals = 0;
                        r = set_key(c, trim(key), trim(equals + 1), open);
                } else {
                        r = CONFIG_E_USAGE;
                }
                if (r == CONFIG_E_USAGE)
                        log_error("%s, line %d: expected \"key = value\" with a known key and a good value", path, number);
        }
        if (r == 0 && ferror(f)) {
                log_error("%s: %s", path, strerror(errno));
                r = CONFIG_E_USAGE;
        }
        free(line);
        (void)fclose(f);
        return r;
}

static int default_socket(struct config *c) {
        const char *env = getenv("GMS_SOCKET"), *dir = getenv("XDG_RUNTIME_DIR");
        if (env && *env)
                return replace(&c->socket, env);
        if (geteuid() == 0)
                return replace(&c->socket, "/run/gms/gmsd.sock");
        if (!dir || !*dir) {
                log_error("no socket: give --socket PATH, or set GMS_SOCKET or XDG_RUNTIME_DIR");
                return CONFIG_E_USAGE;
        }
        free(c->socket);
        c->socket = NULL;
        return asprintf(&c->socket, "%s/gms/gmsd.sock", dir) < 0 ? -ENOMEM : 0;
}

static int fill_defaults(struct config *c) {
        int r = c->socket ? 0 : default_socket(c);
        if (r == 0 && c->n_devices == 0)
                r = config_add_device(c, "cuda", true);
        if (r == 0 && c->n_devices == 1 && c->devices[0].optional)
                r = config_add_device(c, "host", true);
        if (r != 0)
                return r;
        size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
        if (!*c->socket) { /* the kernel would make up an address, one without permissions */
                log_error("socket: the path is empty; choose one with --socket");
                return CONFIG_E_USAGE;
        }
        if (strlen(c->socket) > max) {
                log_error("socket %s: the path has %zu bytes and may have %zu; choose a shorter one", c->socket,
                          strlen(c->socket), max);
                return CONFIG_E_USAGE;
        }
        return 0;
}

int config_parse(struct config *c, int argc, char **argv) {
        static const struct option options[] = {
                { "socket", required_argument, NULL, 's' }, { "device", required_argument, NULL, 'd' },
                { "config", required_argument, NULL, 'c' }, { "version", no_argument, NULL, 'v' },
                { "help", no_argument, NULL, 'h' },         { "worker", required_argument, NULL, 'w' },
                {},
        };
        const char *file = NULL;
        int r = 0, o;

        *c = (struct config){ .socket_mode = 0660, .argc = argc, .argv = argv };
        optind = 1;
        opterr = 0;
        while (r == 0 && (o = getopt_long(argc, argv, "", options, NULL)) >= 0) {
                switch (o) {
                case 's':
                        r = replace(&c->socket, optarg);
                        break;
                case 'd':
                        r = config_add_device(c, optarg, false);
                        break;
                case 'c':
                        file = optarg;
                        break;
                case 'v':
                        (void)printf("gmsd %s\n", GMS_VERSION);
                        return CONFIG_E_EXIT;
                case 'h':
                        (void)fputs(help, stdout);
                        return CONFIG_E_EXIT;
                case 'w':
                        c->worker = true;
                        return 0;
                default:
                        log_error("%s: not an option, or its value is missing; see gmsd --help", argv[optind - 1]);
                        return CONFIG_E_USAGE;
                }
        }
        if (r == 0 && optind < argc) {
                log_error("\"%s\": not an option; see gmsd --help", argv[optind]);
                r = CONFIG_E_USAGE;
        }
        struct open_keys open = { .socket = !c->socket, .devices = c->n_devices == 0 };
        if (r == 0 && file)
                r = read_file(c, file, open);
        return r == 0 ? fill_defaults(c) : r;
}

void config_done(struct config *c) {
        free(c->socket);
        free(c->devices);
        *c = (struct config){};
}
