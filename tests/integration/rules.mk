# SPDX-License-Identifier: MIT
#
# The whole system: the real daemon on a private socket, real clients, real deaths. Once on host memory and once on a GPU
# of the fake driver; the same program runs on a real one (GMS_TEST_DEVICE=cuda:0). Some cases alone:
# make check-integration T=lock/

INTEGRATION      := $(BUILD)/tests/integration
INTEGRATION_OBJS := $(call objs,$(sort $(wildcard tests/integration/*.c)))

$(INTEGRATION): $(INTEGRATION_OBJS) $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $(filter %.o,$^) \
		-L$(BUILD) -lgmsclient $(LIBS_PROTO) $(LIBS_CHECK) -ldl -lpthread

.PHONY: check-integration
check-integration: $(BUILD)/gmsd $(INTEGRATION) $(FAKECUDA_LIBS)
	$(Q)status=0; GMS_TEST_DEVICE=host:1G $(INTEGRATION) $(T) || status=1; \
		($(call with_fakecuda,GMS_TEST_DEVICE=cuda:0 $(INTEGRATION) $(T))) || status=1; exit $$status
check: check-integration

$(BUILD)/obj/tests/integration/%.o: ALL_CPPFLAGS += -Itests/fakecuda
