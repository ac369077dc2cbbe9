# SPDX-License-Identifier: MIT
#
# One folder that runs on a GPU machine without development packages: build/gpu-bundle/run

$(BUILD)/tests/takeover: $(BUILD)/obj/tests/gpu/takeover.o $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $< -L$(BUILD) -lgmsclient

BUNDLE := $(BUILD)/gpu-bundle
BUNDLE_BIN := $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(BUILD)/tests/takeover $(BUILD)/tests/contract $(BUILD)/tests/unit_vmm $(BUILD)/tests/integration $(BUILD)/tests/demo/demo \
	$(BUILD)/tests/bench/bench

.PHONY: gpu-bundle
gpu-bundle: all $(BUNDLE_BIN) $(FAKECUDA_LIBS) tests/gpu/run
	$(Q)rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/bin $(BUNDLE)/lib
	$(Q)cp $(BUNDLE_BIN) $(BUNDLE)/bin && cp tests/gpu/run $(BUNDLE) && cp -P $(BUILD)/libgmsclient.so* $(BUNDLE)/lib
	$(Q)mkdir -p $(BUNDLE)/bin/tests/fakecuda && cp $(FAKECUDA_LIBS) $(BUNDLE)/bin/tests/fakecuda && cp $(BUILD)/libgmsclient.so $(BUNDLE)/bin
	$(Q)LD_LIBRARY_PATH=$(BUILD) ldd $(filter-out %.so.1,$(BUNDLE_BIN)) | awk '$$2 == "=>" && $$3 ~ /^\// { print $$3 }' | sort -u | \
		grep -vE '/(ld-linux|libc|libm|libdl|libpthread|librt|libgmsclient|libcuda|libnvidia)[-.0-9a-z]*\.so' | xargs -r cp -Lt $(BUNDLE)/lib
	$(Q)strip --strip-debug $(addprefix $(BUNDLE)/bin/,$(notdir $(BUNDLE_BIN))) $(BUNDLE)/lib/*.so*
	$(Q)du -sh $(BUNDLE)
