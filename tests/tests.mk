# SPDX-License-Identifier: MIT
#
# Every test program is built from one file of tests/unit (with the objects of the tree) and run as check-unit-NAME.

UNIT_TESTS := $(patsubst tests/unit/test_%.c,%,$(sort $(wildcard tests/unit/test_*.c)))
LIBS_CHECK  = $(call pkg,--libs,check)

$(BUILD)/tests/unit_%: $(BUILD)/obj/tests/unit/test_%.o $(DAEMON_OBJS) $(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_CHECK) -ldl -lm

.PHONY: check $(UNIT_TESTS:%=check-unit-%)
$(UNIT_TESTS:%=check-unit-%): check-unit-%: $(BUILD)/tests/unit_%
	$(Q)$<
check: $(UNIT_TESTS:%=check-unit-%)

include tests/fakecuda/rules.mk
include tests/client/rules.mk
include libgmsclient/examples/rules.mk
include tests/contract/rules.mk
include tests/demo/rules.mk
include tests/cli/rules.mk
include tests/keeper/rules.mk
include tests/systemd/rules.mk
include tests/integration/rules.mk
include tests/bench/rules.mk
include tests/fuzz/rules.mk
include tests/model/rules.mk

.PRECIOUS: $(BUILD)/obj/%.o
