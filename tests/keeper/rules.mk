# SPDX-License-Identifier: MIT
#
# gms-keeper with a service that does as the test says. One test case alone: make check-keeper T=messages

$(BUILD)/tests/keeper/puppet: $(call objs,tests/keeper/puppet.c)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(call pkg,--libs,libsystemd)

$(BUILD)/tests/keeper/test_keeper: $(call objs,tests/keeper/test_keeper.c tests/keeper/stage.c)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_CHECK)

.PHONY: check-keeper
check-keeper: $(BUILD)/gms-keeper $(BUILD)/tests/keeper/puppet $(BUILD)/tests/keeper/test_keeper
	$(Q)$(if $(T),CK_RUN_CASE=$(T) )$(BUILD)/tests/keeper/test_keeper
check: check-keeper
