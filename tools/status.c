// SPDX-License-Identifier: MIT
/* gmsctl status: the daemon, its devices and its stores. */
#include <inttypes.h>
#include <stdio.h>

#include "gmsctl.h"

static json_t *daemon_json(const struct gms_daemon *d) {
        return json_pack("{s:o, s:I, s:I, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "version", json_text(d->version), "pid", JSON_N(d->pid),
                         "uptime_ms", JSON_N(d->uptime_ms), "durable", (int)d->durable, "sessions", JSON_N(d->sessions),
                         "allocations", JSON_N(d->allocations), "bytes", JSON_N(d->bytes), "draining_bytes",
                         JSON_N(d->draining_bytes), "restarts", JSON_N(d->restarts), "away_ms", JSON_N(d->away_ms),
                         "orphans", JSON_N(d->orphans), "unaccounted", JSON_N(d->unaccounted));
}

static json_t *device_json(const struct gms_device *d) {
        return json_pack("{s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:I, s:I, s:I}", "name", json_text(d->name), "uuid",
                         json_text(d->uuid), "model", json_text(d->model), "state", json_text(d->state), "text",
                         json_text(d->text), "total", JSON_N(d->total), "free", JSON_N(d->free), "owned", JSON_N(d->owned),
                         "granularity", JSON_N(d->granularity), "waiting", JSON_N(d->waiting));
}

static json_t *devices_json(const struct gms_device *devices, size_t n) {
        json_t *list = json_array();
        for (size_t i = 0; list && i < n; i++)
                if (json_array_append_new(list, device_json(&devices[i])) < 0) {
                        json_decref(list);
                        return NULL;
                }
        return list;
}

static int devices_print(const struct gms_device *devices, size_t n) {
        static const struct column columns[] = {
                { "DEVICE" },
                { "STATE" },
                { "TOTAL", .right = true },
                { "FREE", .right = true },
                { "OWNED", .right = true },
                { "WAITING", .right = true },
                { "MODEL" },
                { "UUID" },
        };
        struct table t;

        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                const struct gms_device *d = &devices[i];
                table_cell(&t, "%s", d->name);
                table_cell(&t, "%s", d->state);
                table_cell(&t, "%s", text_size(d->total).s);
                table_cell(&t, "%s", text_size(d->free).s);
                table_cell(&t, "%s", text_size(d->owned).s);
                table_cell(&t, "%" PRIu64, d->waiting);
                table_cell(&t, "%s", d->model);
                table_cell(&t, "%s", d->uuid);
        }
        return table_print(&t);
}

/* Why a device does not serve is too long for a column. */
static int troubles_print(const struct gms_device *devices, size_t n) {
        static const struct column columns[] = { { "DEVICE" }, { "TROUBLE" } };
        struct table t;
        bool any = false;

        for (size_t i = 0; i < n; i++)
                any |= devices[i].text[0] != '\0';
        if (!any)
                return CTL_OK;
        putchar('\n');
        table_init(&t, columns, ARRAY_SIZE(columns));
        for (size_t i = 0; i < n; i++) {
                if (devices[i].text[0] == '\0')
                        continue;
                table_cell(&t, "%s", devices[i].name);
                table_cell(&t, "%s", devices[i].text);
        }
        return table_print(&t);
}

static void daemon_print(const struct gms_daemon *d) {
        printf("gmsd %s, pid %" PRIu64 ", up %s: %" PRIu64 " session%s, %" PRIu64 " allocation%s, %s", d->version, d->pid,
               text_age(d->uptime_ms).s, d->sessions, d->sessions == 1 ? "" : "s", d->allocations,
               d->allocations == 1 ? "" : "s", text_size(d->bytes).s);
        if (d->draining_bytes > 0)
                printf(" (%s draining)", text_size(d->draining_bytes).s);
        printf("\n%s\n", d->durable ? "a service manager keeps the memory if gmsd dies"
                                      : "no service manager keeps the memory: it dies with gmsd");
        if (d->restarts > 0)
                printf("%" PRIu64 " restart%s survived, away for %" PRIu64 " ms in all\n", d->restarts, d->restarts == 1 ? "" : "s",
                       d->away_ms);
        if (d->unaccounted > 0)
                printf("%" PRIu64 " allocation%s kept that a damaged journal does not account for; stop gmsd to free\n", d->unaccounted,
                       d->unaccounted == 1 ? " is" : "s are");
        putchar('\n');
}

static int run(const struct ctl *ctl) {
        _cleanup_gms_ struct gms *g = NULL;
        _cleanup_array_ struct gms_device *devices = NULL;
        _cleanup_array_ struct gms_store *stores = NULL;
        struct gms_daemon d = GMS_INIT(struct gms_daemon);
        size_t n_devices = 0, n_stores = 0;

        int r = ctl_look(ctl, &g);
        if (r != CTL_OK)
                return r;
        r = gms_query_daemon(g, &d);
        if (r >= 0)
                r = gms_query_devices(g, &devices, &n_devices);
        if (r >= 0)
                r = gms_query_stores(g, NULL, &stores, &n_stores);
        if (r < 0)
                return ctl_fail("%s", ctl_why(r));

        if (ctl->json)
                return json_print_consume(json_pack("{s:o, s:o, s:o}", "daemon", daemon_json(&d), "devices",
                                                    devices_json(devices, n_devices), "stores",
                                                    stores_json(stores, n_stores)));
        daemon_print(&d);
        r = devices_print(devices, n_devices);
        if (r == CTL_OK)
                r = troubles_print(devices, n_devices);
        putchar('\n');
        return r == CTL_OK ? stores_print(stores, n_stores) : r;
}

const struct command command_status = {
        .name = "status",
        .synopsis = "",
        .summary = "the daemon, its devices and stores",
        .help = "Shows the daemon, each device with the memory that stores own on it, and each\n"
                "store: its state, who holds and who waits for its lock, and what is published\n"
                "in it. SIZE is all that the store holds: published, being built, and draining.\n"
                "A device that does not serve is shown with the reason.\n"
                "\n"
                "JSON\n"
                "  {\"daemon\":  {\"version\", \"pid\", \"uptime_ms\", \"durable\", \"sessions\",\n"
                "               \"allocations\", \"bytes\", \"draining_bytes\", \"restarts\",\n"
                "               \"away_ms\", \"orphans\", \"unaccounted\"},\n"
                "   \"devices\": [{\"name\", \"uuid\", \"model\", \"state\", \"text\", \"total\", \"free\",\n"
                "                \"owned\", \"granularity\", \"waiting\"}],\n"
                "   \"stores\":  [{\"name\", \"state\", \"sealed\", \"readers\", \"writers\", \"waiters\",\n"
                "                \"bytes\", \"building_bytes\", \"draining_bytes\",\n"
                "                \"draining_layouts\", \"allocations\", \"generation\", \"hash\",\n"
                "                \"identity\"}]}\n",
        .run = run,
};
