# SPDX-License-Identifier: MIT
#
# What things cost, against what they could cost: a table, and $(BUILD)/bench.json. It speaks the protocol itself where the
# library would hide what is measured, so it links the objects of proto/ and vmm/ beside the public library.
#
#   make bench [DEVICE=cuda:0] [PART=attach] [BENCH_STRICT=1]

DEVICE ?= host
BENCH_OBJS := $(call objs,$(sort $(wildcard tests/bench/*.c)))
$(BENCH_OBJS): ALL_CPPFLAGS += -Itests/fakecuda

# The fold is measured in this process.
BENCH_FOLD := $(call objs,$(addprefix daemon/,fold.c image.c store.c layout.c lock.c)) $(BUILD)/obj/journal.pb-c.o

$(BUILD)/tests/bench/bench: $(BENCH_OBJS) $(BENCH_FOLD) $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ \
		$(filter %.o,$^) -L$(BUILD) -lgmsclient $(LIBS_PROTO) $(call pkg,--libs,libxxhash) -ldl

.PHONY: bench
bench: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/bench/bench $(FAKECUDA_LIBS)
	$(Q)$(BUILD)/tests/bench/bench --device $(DEVICE) --build $(BUILD) $(if $(PART),--part $(PART))
