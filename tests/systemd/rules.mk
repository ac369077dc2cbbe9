# SPDX-License-Identifier: MIT
#
# The installed units under a real systemd: see run. Skipped where there is none, or no root; a failure then with
# SYSTEMD_REQUIRED=1.

SYSTEMD_ROOT := $(BUILD)/tests/systemd/root

.PHONY: systemd-root check-systemd
systemd-root: all
	$(Q)rm -rf $(SYSTEMD_ROOT) && $(MAKE) --no-print-directory -s install DESTDIR=$(abspath $(SYSTEMD_ROOT)) PREFIX=/run/installed >/dev/null
check-systemd: systemd-root
	$(Q)tests/systemd/run $(SYSTEMD_ROOT) tests/systemd/units || { status=$$?; [ $$status = 77 ] && [ -z "$$SYSTEMD_REQUIRED" ] || exit $$status; }
check: check-systemd
