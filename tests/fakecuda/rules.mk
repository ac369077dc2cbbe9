# SPDX-License-Identifier: MIT
#
# The fake driver: libcuda.so.1 and libnvidia-ml.so.1 for LD_LIBRARY_PATH, and a program that turns its knobs. Never
# instrumented: a sanitized program loads them like any driver.

FAKECUDA      := $(BUILD)/tests/fakecuda
FAKECUDA_LIBS := $(FAKECUDA)/libcuda.so.1 $(FAKECUDA)/libnvidia-ml.so.1
FAKECUDA_CFLAGS = $(filter-out -fsanitize% -fno-sanitize%,$(ALL_CFLAGS))
FAKECUDA_COMMON := $(FAKECUDA)/obj/fake_device.o $(FAKECUDA)/obj/fake_memory.o

$(FAKECUDA)/obj/%.o: tests/fakecuda/%.c $(BUILD)/.flags
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) -Itests/fakecuda $(ALL_CPPFLAGS) $(FAKECUDA_CFLAGS) -MMD -MP -c -o $@ $<

$(FAKECUDA)/libcuda.so.1: $(FAKECUDA)/obj/libcuda.o
$(FAKECUDA)/libnvidia-ml.so.1: $(FAKECUDA)/obj/libnvml.o
$(FAKECUDA_LIBS): $(FAKECUDA_COMMON)
	$(call say,LD,$@)$(CC) $(FAKECUDA_CFLAGS) -Wl,--as-needed $(LDFLAGS) -shared -Wl,-soname,$(@F) -Wl,-z,defs -o $@ $^ -lpthread
$(FAKECUDA)/fakecuda: $(FAKECUDA)/obj/fakecuda.o $(FAKECUDA_COMMON)
	$(call say,LD,$@)$(CC) $(FAKECUDA_CFLAGS) -Wl,--as-needed $(LDFLAGS) -o $@ $^ -lpthread

.PHONY: fakecuda
fakecuda: $(FAKECUDA_LIBS) $(FAKECUDA)/fakecuda

# Runs what follows with fake devices of its own: $(call with_fakecuda,program)
with_fakecuda = dir=$$(mktemp -d /dev/shm/fakecuda.XXXXXX) && trap 'rm -rf "$$dir"' EXIT && \
	LD_LIBRARY_PATH=$(abspath $(FAKECUDA))$${LD_LIBRARY_PATH:+:$$LD_LIBRARY_PATH} FAKECUDA_DIR=$$dir $(1)

# This one looks for the fake beside itself.
$(BUILD)/obj/tests/unit/test_vmm.o: CPPFLAGS += -Itests/fakecuda
check-unit-vmm: $(FAKECUDA_LIBS)
