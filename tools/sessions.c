// SPDX-License-Identifier: MIT
/* gmsctl sessions: who is connected, holds or waits for a lock, and keeps how much memory. */
#include <inttypes.h>

#include "gmsctl.h"

static bool is_holding(const struct gms_session *s) {
        return !s->waiting && s->mode != GMS_MODE_NONE;
}

static int print_json(const struct gms_session *sessions, size_t n) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < n; i++) {
                const struct gms_session *s = &sessions[i];
                json_t *entry = json_pack("{s:I, s:o, s:I, s:I, s:s, s:o, s:b, s:b, s:I, s:I, s:I}", "id", JSON_N(s->id),
                                          "label", json_text(s->label), "pid", JSON_N(s->pid), "uid", JSON_N(s->uid), "mode",
                                          s->mode == GMS_MODE_NONE ? "NONE" : text_mode(s->mode), "store",
                                          json_text(s->store), "waiting", (int)s->waiting, "holding", (int)is_holding(s),
                                          "age_ms", JSON_N(s->age_ms), "bytes", JSON_N(s->bytes), "generation",
                                          JSON_N(s->generation));
                if (json_array_append_new(list, entry) < 0) {
                        json_decref(list);
                        list = NULL;
                }
        }
        return json_print_consume(json_pack("{s:o}", "sessions", list));
}

static int print_table(const struct gms_session *sessions, size_t n) {
        static const struct column columns[] = {
                { "ID", .right = true },
                { "PID", .right = true },
                { "UID", .right = true },
                { "MODE" },
                { "LOCK" },
                { "STORE" },
                { "GENERATION", .right = true },
                { "PINS", .right = true },
                { "AGE", .right = true },
                { "LABEL" },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                const struct gms_session *s = &sessions[i];
                table_cell(&t, "%" PRIu64, s->id);
                table_cell(&t, "%" PRIu64, s->pid);
                table_cell(&t, "%" PRIu64, s->uid);
                table_cell(&t, "%s", text_mode(s->mode));
                table_cell(&t, "%s", s->waiting ? "waiting" : is_holding(s) ? "holding" : "");
                table_cell(&t, "%s", s->store);
                table_cell(&t, "%" PRIu64, s->generation);
                table_cell(&t, "%s", text_size(s->bytes).s);
                table_cell(&t, "%s", text_age(s->age_ms).s);
                table_cell(&t, "%s", s->label);
        }
        return table_print(&t);
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        _cleanup_array_ struct gms_session *sessions = NULL;
        size_t n = 0;

        int r = ctl_look(ctl, &g);
        if (r != CTL_OK)
                return r;
        r = gms_query_sessions(g, &sessions, &n);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));
        return ctl->json ? print_json(sessions, n) : print_table(sessions, n);
}

const struct command command_sessions = {
        .name = "sessions",
        .synopsis = "",
        .summary = "who is connected, and what each holds or waits for",
        .help = "Shows each session: its process and user, the lock it holds or waits for, its\n"
                "age, and the physical memory it keeps from being freed (PINS). This command's\n"
                "own session is among them.\n"
                "\n"
                "JSON\n"
                "  {\"sessions\": [{\"id\", \"label\", \"pid\", \"uid\", \"mode\", \"store\", \"waiting\",\n"
                "                 \"holding\", \"age_ms\", \"bytes\", \"generation\"}]}\n"
                "  \"mode\" is NONE, RO, UPDATE, RW, RW_OR_RO or ADOPT: what is asked for while\n"
                "  waiting, else what is held.\n",
        .run = run,
};
