# SPDX-License-Identifier: MIT
#
# The daemon's own death, at every step of everything it does, with a manager that keeps its descriptors: on the harness
# of the integration tests, on host memory and on a GPU of the fake driver. Some cases alone: make check-durable T=crash/
#
#   make soak [SECONDS=600] [SEED=1]   random clients, random deaths

DURABLE      := $(BUILD)/tests/durable
DURABLE_OBJS := $(call objs,$(filter-out tests/durable/soak.c,$(sort $(wildcard tests/durable/*.c))) \
	$(filter-out tests/integration/test_%,$(sort $(wildcard tests/integration/*.c))))
$(BUILD)/obj/tests/durable/%.o: ALL_CPPFLAGS += -Itests/fakecuda -Itests/integration

# The daemon with its crash points: only the files that have some are compiled again.
CRASH_SRCS := daemon/crash.c $(shell grep -l 'crash_point."' daemon/*.c)
CRASH_OBJS := $(CRASH_SRCS:%.c=$(BUILD)/obj/crash/%.o)
$(BUILD)/obj/crash/%.o: %.c $(BUILD)/.flags | $(GENERATED)
	$(call say,CC,$< (crash))mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) -DGMS_CRASH_POINTS $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/gmsd-crash: $(BUILD)/obj/daemon/main.o $(filter-out $(call objs,$(CRASH_SRCS)),$(DAEMON_OBJS)) $(CRASH_OBJS) \
		$(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_DAEMON) -ldl

# All of their names, so that the test can tell when one is never reached.
$(BUILD)/tests/crash_points.h: $(CRASH_SRCS)
	$(Q)mkdir -p $(@D) && sed -n 's/.*crash_point.\("[^"]*"\).*/\1,/p' $^ | sort -u >$@
$(BUILD)/obj/tests/durable/test_crash.o: ALL_CPPFLAGS += -I$(BUILD)/tests
$(BUILD)/obj/tests/durable/test_crash.o: $(BUILD)/tests/crash_points.h

$(DURABLE): $(DURABLE_OBJS) $(call objs,daemon/journal.c) $(BUILD)/obj/journal.pb-c.o $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $(filter %.o,$^) \
		-L$(BUILD) -lgmsclient $(LIBS_PROTO) $(LIBS_CHECK) $(call pkg,--libs,jansson libxxhash) -ldl -lpthread

DURABLE_NEEDS := $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(BUILD)/tests/gmsd-crash

.PHONY: check-durable check-soak soak
check-durable: $(DURABLE_NEEDS) $(DURABLE) $(FAKECUDA_LIBS)
	$(Q)GMS_TEST_DEVICE=host:64M $(DURABLE) $(T)
	$(Q)$(call with_fakecuda,GMS_TEST_DEVICE=cuda:0 $(DURABLE) $(T))
check: check-durable

# The deaths once more, with the real systemd for a manager.
.PHONY: check-durable-systemd
check-durable-systemd: $(DURABLE_NEEDS) $(DURABLE) systemd-root
	$(Q)GMS_MANAGER=systemd GMS_TEST_DEVICE=host:64M tests/systemd/run $(SYSTEMD_ROOT) $(abspath $(DURABLE)) crash/ || \
		{ status=$$?; [ $$status = 77 ] && [ -z "$$SYSTEMD_REQUIRED" ] || exit $$status; }
check: check-durable-systemd

$(BUILD)/tests/soak: $(BUILD)/obj/tests/durable/soak.o $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $< \
		-L$(BUILD) -lgmsclient

soak: SECONDS ?= 600
soak: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/soak
	$(Q)$(BUILD)/tests/soak $(SECONDS) $(SEED)

check-soak: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/soak
	$(Q)$(BUILD)/tests/soak $(or $(SECONDS),60) $(SEED)
check: check-soak
