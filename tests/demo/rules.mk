# SPDX-License-Identifier: MIT
#
# The demo is a client like any other: it links the public library and is run with the real daemon.

DEVICE ?= host
DEMO_OBJS := $(call objs,$(sort $(wildcard tests/demo/*.c)))

$(BUILD)/tests/demo/demo: $(DEMO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(DEMO_OBJS) \
		-L$(BUILD) -lgmsclient

.PHONY: demo
demo: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/demo/demo
	$(Q)$(BUILD)/tests/demo/demo --device $(DEVICE) --gmsd $(BUILD)/gmsd
