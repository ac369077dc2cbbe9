// SPDX-License-Identifier: MIT
/* A writer's last steps: seal, discard, commit; and what state the session and its store are in. */
#include <inttypes.h>
#include <stdio.h>

#include "handle.h"

static int request_state(struct gms *g, Gms__Frame **ret_reply) {
        Gms__State state = GMS__STATE__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_STATE;
        request.state = &state;
        return handle_call(g, &request, GMS__FRAME__BODY_SESSION_STATE, ret_reply);
}

int gms_seal(struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r < 0)
                return r;

        Gms__Seal seal = GMS__SEAL__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_SEAL;
        request.seal = &seal;
        r = handle_do(g, &request);
        if (r < 0 || !g->known.current)
                return r;

        /* The shape is fixed: its hash tells, should the handle adopt the layout again. Not knowing it is no failure. */
        _cleanup_frame_ Gms__Frame *reply = NULL;
        if (request_state(g, &reply) == 0 && handle_work(g, reply->session_state->layout) == 0)
                g->known.id = g->work.id;
        return 0;
}

int gms_discard(struct gms *g) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r < 0)
                return r;
        Gms__Discard discard = GMS__DISCARD__INIT;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_DISCARD;
        request.discard = &discard;
        return handle_do(g, &request);
}

/* Published: from now on readers see the bytes, so nobody writes any more. */
static int write_protect(struct gms *g) {
        for (size_t i = 0; i < g->known.n; i++)
                g->known.at[i].want = MIN(g->known.at[i].access, (uint8_t)GMS_ACCESS_READ);
        int r = mappings_apply(g->vmm, g->known.at, g->known.n);
        if (r < 0)
                r = error_add(r,
                              "; generation %" PRIu64 " IS published, but its mappings here are still writable: do not "
                              "write to them, and try gms_protect(GMS_ALL, GMS_ACCESS_READ), or gms_unmap_all()",
                              g->known.id.generation);
        return r;
}

int gms_commit(struct gms *g, const char *identity, uint32_t flags) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_holder(g, &held);
        if (r < 0)
                return r;
        if (flags & ~GMS_COMMIT_LEAVE)
                return error_set(-EINVAL, "commit: flags 0x%x are not known; GMS_COMMIT_LEAVE is",
                                 flags & ~GMS_COMMIT_LEAVE);
        if (identity && !wire_text_ok(identity, WIRE_IDENTITY_MAX))
                return error_set(-EINVAL, "commit: the identity must be at most %u bytes of UTF-8, without control characters",
                                 WIRE_IDENTITY_MAX);

        bool leave = flags & GMS_COMMIT_LEAVE;
        Gms__Commit commit = GMS__COMMIT__INIT;
        commit.identity = (char *)(identity ? identity : "");
        commit.leave = leave;
        Gms__Frame request = GMS__FRAME__INIT;
        request.body_case = GMS__FRAME__BODY_COMMIT;
        request.commit = &commit;
        _cleanup_frame_ Gms__Frame *reply = NULL;
        r = handle_call(g, &request, GMS__FRAME__BODY_LAYOUT, &reply);
        if (r == 0)
                r = handle_work(g, reply->layout);
        if (r < 0)
                return r;

        g->mode = GMS_MODE_RO;
        handle_set_writer(g, 0);
        bool ours = g->known.current; /* else what is mapped is of an earlier layout */
        if (ours)
                g->known.id = g->work.id;
        if (leave) {
                conn_close(&g->conn);
                events_clear(&g->events);
                g->known.current = false;
        }
        return ours ? write_protect(g) : 0;
}

int gms_state(struct gms *g, struct gms_state *ret) {
        _cleanup_handle_ struct gms *held = NULL;
        int r = handle_enter_session(g, &held);
        if (r == 0)
                r = sized_check(ret, "struct gms_state");
        _cleanup_frame_ Gms__Frame *reply = NULL;
        if (r == 0)
                r = request_state(g, &reply);
        if (r != 0)
                return r;

        const Gms__SessionState *s = reply->session_state;
        struct gms_state state = {
                .size = sizeof(state),
                .mode = (uint32_t)s->mode,
                .session = s->session,
                .newest = s->published ? s->published->generation : 0,
                .waiters = s->waiters,
                .mapped = g->known.n > 0 && mappings_mapped(g->known.at, g->known.n) == g->known.n,
        };
        if (s->layout) {
                state.generation = s->layout->generation;
                state.allocations = s->layout->allocations;
                state.bytes = s->layout->bytes;
                state.sealed = s->layout->sealed;
                layout_hash_from(state.hash, s->layout);
                (void)snprintf(state.identity, sizeof(state.identity), "%s", s->layout->identity);
        }
        (void)snprintf(state.store_state, sizeof(state.store_state), "%s", s->store_state);
        if (g->mode != GMS_MODE_NONE) {
                state.granularity = g->device.granularity;
                (void)snprintf(state.device, sizeof(state.device), "%s", g->device.uuid);
        }
        sized_store(ret, ret->size, &state, sizeof(state));
        return 0;
}
