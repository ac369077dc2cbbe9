# SPDX-License-Identifier: MIT
#
# gmsctl against the real daemon. One test case alone: make check-cli T=copy

CLI_OBJS := $(call objs,$(sort $(wildcard tests/cli/*.c)))

$(BUILD)/tests/cli/test_cli: $(CLI_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(CLI_OBJS) \
		-L$(BUILD) -lgmsclient $(call pkg,--libs,jansson) $(LIBS_CHECK)

.PHONY: check-cli
check-cli: $(BUILD)/gmsd $(BUILD)/gmsctl $(BUILD)/tests/cli/test_cli $(FAKECUDA_LIBS)
	$(Q)$(call with_fakecuda,$(if $(T),CK_RUN_CASE=$(T)) GMS_TEST_DEVICE=cuda:0 $(BUILD)/tests/cli/test_cli)
check: check-cli
