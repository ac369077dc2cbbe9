# SPDX-License-Identifier: MIT
#
#   make check-contract      the driver contract, on the fake driver
#   make check-cuda-header   our declarations of the driver's ABI, against a real cuda.h where one is installed
#
# On a GPU machine: build/tests/contract, with the real driver where the loader finds it.

$(BUILD)/tests/contract: $(BUILD)/obj/tests/contract/contract.o $(VMM_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_CHECK) -ldl

.PHONY: check-contract
check-contract: $(BUILD)/tests/contract $(FAKECUDA_LIBS)
	$(Q)$(call with_fakecuda,$<)

CUDA_H := $(firstword $(wildcard $(addsuffix /cuda.h,$(CUDA_HOME)/include /usr/local/cuda/include /usr/include)))

$(BUILD)/obj/tests/contract/cuda_header_real.o: tests/contract/cuda_header.c $(BUILD)/.flags
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) -DREAL -isystem $(dir $(CUDA_H)) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/cuda_header: $(call objs,tests/contract/cuda_header.c) $(BUILD)/obj/tests/contract/cuda_header_real.o
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^

.PHONY: check-cuda-header
ifneq ($(CUDA_H),)
check-cuda-header: $(BUILD)/tests/cuda_header
	$(Q)$<
else
check-cuda-header:
	@echo 'cuda-header: skipped: no cuda.h'
endif

check: check-contract check-cuda-header
