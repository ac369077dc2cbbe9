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
include tests/durable/rules.mk
include tests/bench/rules.mk
include tests/fuzz/rules.mk
include tests/gpu/rules.mk

# Every program that tests, demonstrates or measures: built, not run.
tests: $(UNIT_TESTS:%=$(BUILD)/tests/unit_%) $(BUILD)/tests/contract $(BUILD)/tests/integration $(BUILD)/tests/durable \
	$(BUILD)/tests/gmsd-crash $(BUILD)/tests/soak $(BUILD)/tests/cli/test_cli $(BUILD)/tests/keeper/test_keeper \
	$(BUILD)/tests/keeper/puppet $(BUILD)/tests/demo/demo $(BUILD)/tests/bench/bench $(BUILD)/tests/takeover \
	$(FUZZ_TARGETS:%=$(BUILD)/tests/replay_%) fakecuda

.PRECIOUS: $(BUILD)/obj/%.o
