// SPDX-License-Identifier: MIT
/*
 * gmsctl: looks at gmsd, and puts files into stores and gets them out. Here: the command line, help, and the one way to
 * fail. What the commands do is in one file each.
 */
#include "gmsctl.h"

#include <getopt.h>
#include <locale.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct command *const commands[] = {
        &command_status, &command_list,    &command_show,  &command_sessions,
        &command_clear,  &command_publish, &command_fetch, &command_load, &command_verify,
};

enum { OPT_SOCKET = 256, OPT_JSON, OPT_FORCE, OPT_IDENTITY, OPT_WAIT, OPT_UPDATE, OPT_TAG, OPT_THREADS, OPT_VERSION };

static const struct option long_options[] = {
        { "socket", required_argument, NULL, OPT_SOCKET },
        { "json", no_argument, NULL, OPT_JSON },
        { "force", no_argument, NULL, OPT_FORCE },
        { "identity", required_argument, NULL, OPT_IDENTITY },
        { "output", required_argument, NULL, 'o' },
        { "wait", required_argument, NULL, OPT_WAIT },
        { "update", no_argument, NULL, OPT_UPDATE },
        { "tag", required_argument, NULL, OPT_TAG },
        { "threads", required_argument, NULL, OPT_THREADS },
        { "version", no_argument, NULL, OPT_VERSION },
        { "help", no_argument, NULL, 'h' },
        { 0 },
};

static const char common_help[] =
        "Options of every command\n"
        "  --socket PATH  where gmsd listens. Default: $GMS_SOCKET, else\n"
        "                 /run/gms/gmsd.sock, or $XDG_RUNTIME_DIR/gms/gmsd.sock when not\n"
        "                 root\n"
        "  --json         one JSON document on stdout: sizes in bytes, times in\n"
        "                 milliseconds, hashes as hexadecimal text (\"\" for none). Keys\n"
        "                 may be added, never renamed\n"
        "  --help         this text, or that of a command\n"
        "  --version      the version\n"
        "\n"
        "Exit codes\n"
        "  0  done\n"
        "  1  refused or failed; one line on stderr says why and what to do\n"
        "  2  the command line is wrong\n";

volatile sig_atomic_t ctl_interrupted;

_printf_(1, 0) static void complain(const char *format, va_list ap) {
        _cleanup_free_ char *text = NULL, *escaped = NULL;

        if (vasprintf(&text, format, ap) < 0)
                text = NULL;
        if (text)
                escaped = text_escape(text, strlen(text), 0, NULL);
        progress_hide();
        fprintf(stderr, "gmsctl: %s\n", escaped ? escaped : "out of memory");
}

int ctl_fail(const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        complain(format, ap);
        va_end(ap);
        return CTL_FAILED;
}

int ctl_usage(const char *format, ...) {
        va_list ap;
        va_start(ap, format);
        complain(format, ap);
        va_end(ap);
        return CTL_USAGE;
}

const char *ctl_why(int r) {
        const char *text = gms_last_error();
        return text[0] ? text : strerror(-r);
}

int ctl_look(const struct ctl *ctl, struct gms **ret_handle) {
        _cleanup_gms_ struct gms *g = NULL;
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = GMS_MODE_NONE;
        options.label = "gmsctl";

        int r = gms_open(&g, ctl->socket, NULL);
        if (r >= 0)
                r = gms_connect(g, &options);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));
        *ret_handle = steal_ptr(&g);
        return CTL_OK;
}

int ctl_connect(const struct ctl *ctl, uint32_t mode, uint64_t wait_ms, struct gms **ret_handle) {
        _cleanup_gms_ struct gms *g = NULL;
        struct gms_connect_options options = GMS_INIT(struct gms_connect_options);
        options.mode = mode;
        options.label = "gmsctl";
        options.deadline_ms = ctl->given & OPTION_WAIT ? ctl->wait_ms : wait_ms;

        int r = gms_open(&g, ctl->socket, ctl->argv[0]);
        if (r >= 0)
                r = gms_connect(g, &options);
        if (r >= 0)
                *ret_handle = steal_ptr(&g);
        return r;
}

int ctl_connect_writer(const struct ctl *ctl, struct gms **ret_handle) {
        return ctl_connect(ctl, ctl->given & OPTION_UPDATE ? GMS_MODE_UPDATE : GMS_MODE_RW, 5000, ret_handle);
}

int ctl_check_store(const char *store) {
        const char *slash = strchr(store, '/');
        if (slash && slash != store && slash[1] != '\0' && strlen(store) < GMS_STORE_SIZE)
                return CTL_OK;
        return ctl_usage("'%s' is no store; a store is DEVICE/NAME, such as host/weights or cuda:0/weights", store);
}

/* Comes again every second: what is about to wait, or whose wait has just ended by itself, would miss it once. */
static void on_signal(int signal_number) {
        (void)signal_number;
        ctl_interrupted = 1;
        (void)alarm(1);
}

void ctl_catch_signals(void) {
        /* Without SA_RESTART: a call that waits has to come back. */
        struct sigaction action = { .sa_handler = on_signal }, old;
        (void)sigaction(SIGINT, &action, NULL);
        (void)sigaction(SIGTERM, &action, NULL);
        (void)sigaction(SIGALRM, &action, NULL);
        if (sigaction(SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup stays in force */
                (void)sigaction(SIGHUP, &action, NULL);
}

static int print_help(const struct command *c) {
        if (c) {
                printf("usage: gmsctl [--socket PATH] [--json] %s%s%s\n\n%s\n%s", c->name, c->synopsis[0] ? " " : "",
                       c->synopsis, c->help, common_help);
                return CTL_OK;
        }
        fputs("usage: gmsctl [--socket PATH] [--json] COMMAND ...\n\n"
              "Shows what gmsd keeps in GPU and host memory, and puts files into its stores and\n"
              "gets them out.\n\n"
              "Commands\n",
              stdout);
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                printf("  %s %s\n              %s\n", commands[i]->name, commands[i]->synopsis, commands[i]->summary);
        printf("\n"
               "STORE is DEVICE/NAME, such as host/weights or cuda:0/weights. gmsctl COMMAND --help\n"
               "says more about one command.\n\n"
               "%s",
               common_help);
        return CTL_OK;
}

static const struct command *find_command(const char *name) {
        for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
                if (strcmp(commands[i]->name, name) == 0)
                        return commands[i];
        return NULL;
}

static int parse_wait(const char *text, uint64_t *ret_ms) {
        char *end;
        errno = 0;
        double seconds = strtod(text, &end);
        if (errno != 0 || end == text || *end != '\0' || !(seconds >= 0 && seconds <= 1e9))
                return ctl_usage("--wait takes seconds, not '%s'", text);
        *ret_ms = (uint64_t)(seconds * 1000);
        return CTL_OK;
}

static int parse_threads(const char *text, unsigned *ret_threads) {
        char *end;
        errno = 0;
        unsigned long n = strtoul(text, &end, 10);
        if (errno != 0 || end == text || *end != '\0' || n < 1 || n > 64 || text[0] == '-')
                return ctl_usage("--threads takes a number from 1 to 64, not '%s'", text);
        *ret_threads = (unsigned)n;
        return CTL_OK;
}

/* The options of all commands are read in one pass, so that they may stand anywhere; which of them fit comes after. */
static int parse_options(struct ctl *ctl, int argc, char **argv, bool *ret_help, bool *ret_version) {
        int opt, r = CTL_OK;

        opterr = 0; /* its messages begin with argv[0] */
        while (r == CTL_OK && (opt = getopt_long(argc, argv, ":ho:", long_options, NULL)) != -1) {
                switch (opt) {
                case OPT_SOCKET:
                        ctl->socket = optarg;
                        break;
                case OPT_JSON:
                        ctl->json = true;
                        break;
                case OPT_FORCE:
                        ctl->given |= OPTION_FORCE;
                        break;
                case OPT_IDENTITY:
                        ctl->given |= OPTION_IDENTITY;
                        ctl->identity = optarg;
                        break;
                case 'o':
                        ctl->given |= OPTION_OUTPUT;
                        ctl->output = optarg;
                        break;
                case OPT_WAIT:
                        ctl->given |= OPTION_WAIT;
                        r = parse_wait(optarg, &ctl->wait_ms);
                        break;
                case OPT_UPDATE:
                        ctl->given |= OPTION_UPDATE;
                        break;
                case OPT_TAG:
                        ctl->given |= OPTION_TAG;
                        ctl->tag = optarg;
                        break;
                case OPT_THREADS:
                        ctl->given |= OPTION_THREADS;
                        r = parse_threads(optarg, &ctl->threads);
                        break;
                case OPT_VERSION:
                        *ret_version = true;
                        break;
                case 'h':
                        *ret_help = true;
                        break;
                case ':':
                        r = ctl_usage("%s needs a value; see gmsctl --help", argv[optind - 1]);
                        break;
                default:
                        if (optopt > 0 && optopt < 256)
                                r = ctl_usage("there is no option -%c; see gmsctl --help", optopt);
                        else
                                r = ctl_usage("no option %s; see gmsctl --help", argv[optind - 1]);
                }
        }
        return r;
}

static int check_command_line(const struct ctl *ctl, const struct command *c) {
        static const struct {
                unsigned option;
                const char *name;
        } names[] = {
                { OPTION_FORCE, "--force" },
                { OPTION_IDENTITY, "--identity" },
                { OPTION_OUTPUT, "-o" },
                { OPTION_WAIT, "--wait" },
                { OPTION_UPDATE, "--update" },
                { OPTION_TAG, "--tag" },
                { OPTION_THREADS, "--threads" },
        };

        for (size_t i = 0; i < ARRAY_SIZE(names); i++)
                if (ctl->given & names[i].option & ~c->options)
                        return ctl_usage("%s takes no %s; see gmsctl %s --help", c->name, names[i].name, c->name);
        if (ctl->argc < c->argc_min || ctl->argc > c->argc_max)
                return ctl_usage("usage: gmsctl %s%s%s", c->name, c->synopsis[0] ? " " : "", c->synopsis);
        return ctl->argc > 0 ? ctl_check_store(ctl->argv[0]) : CTL_OK; /* the first is a store wherever there is one */
}

static int run(int argc, char **argv) {
        struct ctl ctl = { 0 };
        bool help = false, version = false;

        int r = parse_options(&ctl, argc, argv, &help, &version);
        if (r != CTL_OK)
                return r;
        if (version)
                return printf("gmsctl " GMS_VERSION "\n"), CTL_OK;
        if (optind == argc)
                return help ? print_help(NULL) : ctl_usage("a command is missing; see gmsctl --help");

        const struct command *c = find_command(argv[optind]);
        if (!c)
                return ctl_usage("there is no command '%s'; see gmsctl --help", argv[optind]);
        if (help)
                return print_help(c);
        ctl.argc = argc - optind - 1;
        ctl.argv = argv + optind + 1;
        r = check_command_line(&ctl, c);
        return r == CTL_OK ? c->run(&ctl) : r;
}

int main(int argc, char **argv) {
        (void)setlocale(LC_CTYPE, ""); /* what is a printable character here */
        (void)signal(SIGPIPE, SIG_IGN); /* a write that fails is an error with a text, */
        (void)signal(SIGXFSZ, SIG_IGN); /* whatever it fails of */

        int r = run(argc, argv);
        if ((fflush(stdout) != 0 || ferror(stdout)) && r == CTL_OK)
                r = ctl_fail("standard output: %s", strerror(errno));
        return r;
}
