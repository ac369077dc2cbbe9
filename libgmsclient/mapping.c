// SPDX-License-Identifier: MIT
#include "mapping.h"

#include "error.h"

static enum vmm_access to_vmm(uint8_t access) {
        static const enum vmm_access to[] = {
                [GMS_ACCESS_NONE] = VMM_ACCESS_NONE,
                [GMS_ACCESS_READ] = VMM_ACCESS_READ,
                [GMS_ACCESS_READ_WRITE] = VMM_ACCESS_READ_WRITE,
        };
        return to[access];
}

static int attached(struct vmm *v, struct mapping *m, uint32_t access, int r) {
        if (r == VMM_E_TAKEN)
                return error_set(-EEXIST, "map an allocation: %s", v->text);
        if (r != 0)
                return error_vmm(v, r, "map an allocation");
        m->mapped = true;
        m->access = m->want = (uint8_t)access;
        return 0;
}

int mapping_attach(struct vmm *v, struct mapping *m, int fd, uint32_t access) {
        assert(!m->mapped && m->address != 0);

        uint64_t address;
        return attached(v, m, access, vmm_attach(v, fd, m->address, m->aligned, to_vmm((uint8_t)access), &address));
}

int mapping_attach_vacant(struct vmm *v, struct mapping *m, int fd, uint32_t access) {
        assert(!m->mapped && m->address != 0);

        return attached(v, m, access, vmm_attach_vacant(v, fd, m->address, m->aligned, to_vmm((uint8_t)access)));
}

int mapping_place(struct vmm *v, struct mapping *m, vmm_handle handle) {
        assert(!m->mapped && m->address != 0);

        int r = vmm_map(v, handle, m->address, m->aligned);
        if (r != 0)
                return error_vmm(v, r, "map an allocation");
        m->mapped = true;
        m->access = GMS_ACCESS_NONE;
        return 0;
}

/* Whether `b` can be in one driver call with `a`, which lies before it. */
static bool touches(const struct mapping *a, const struct mapping *b) {
        return b->mapped && b->region == a->region && b->address == a->address + a->aligned;
}

/* Mappings [first, result) are a range for one protect call. */
static size_t protect_run(const struct mapping *m, size_t first, size_t n) {
        size_t i = first + 1;
        while (i < n && touches(&m[i - 1], &m[i]) && m[i].access == m[first].access && m[i].want == m[first].want)
                i++;
        return i;
}

static int protect(struct vmm *v, const struct mapping *m, size_t n, uint8_t access) {
        const struct mapping *last = &m[n - 1];
        return vmm_protect(v, m->address, last->address + last->aligned - m->address, to_vmm(access));
}

/* Brings the runs in [0, n) to what they want, or back to what they have. */
static int protect_runs(struct vmm *v, const struct mapping *m, size_t n, bool back, size_t *ret_done) {
        int r = 0;
        size_t i = 0;
        for (size_t end; i < n; i = end) {
                end = i + 1;
                if (!m[i].mapped || m[i].access == m[i].want)
                        continue;
                end = protect_run(m, i, n);
                r = protect(v, &m[i], end - i, back ? m[i].access : m[i].want);
                if (r != 0 && !back)
                        break;
        }
        *ret_done = i;
        return r;
}

int mappings_apply(struct vmm *v, struct mapping *m, size_t n) {
        size_t done;
        int r = protect_runs(v, m, n, false, &done);
        if (r != 0) {
                r = error_vmm(v, r, "set the access of a mapping");
                (void)protect_runs(v, m, done, true, &done);
                for (size_t i = 0; i < n; i++)
                        m[i].want = m[i].access;
                return r;
        }
        for (size_t i = 0; i < n; i++)
                m[i].access = m[i].want = m[i].mapped ? m[i].want : GMS_ACCESS_NONE;
        return 0;
}

int mappings_unmap(struct vmm *v, struct mapping *m, size_t n) {
        int first_error = 0;
        for (size_t i = 0, end; i < n; i = end) {
                end = i + 1;
                if (!m[i].mapped)
                        continue;
                while (end < n && touches(&m[end - 1], &m[end]))
                        end++;
                int r = vmm_unmap(v, m[i].address, m[end - 1].address + m[end - 1].aligned - m[i].address);
                if (r != 0) {
                        r = error_vmm(v, r, "unmap an allocation");
                        first_error = first_error ? first_error : r;
                        continue;
                }
                for (size_t j = i; j < end; j++) {
                        m[j].mapped = false;
                        m[j].access = m[j].want = GMS_ACCESS_NONE;
                }
        }
        return first_error;
}

void mappings_undo(struct vmm *v, struct mapping *m, size_t n) {
        struct error_saved why;
        error_save(&why);
        (void)mappings_unmap(v, m, n);
        error_restore(&why);
}

size_t mappings_mapped(const struct mapping *m, size_t n) {
        size_t mapped = 0;
        for (size_t i = 0; i < n; i++)
                mapped += m[i].mapped;
        return mapped;
}
