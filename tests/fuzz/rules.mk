# SPDX-License-Identifier: MIT
#
# Three targets under libFuzzer, each for SECONDS: make fuzz, or one: make fuzz-wire. What they find new goes below
# $(BUILD)/fuzz, where the inputs that fail are, too. `make check` plays the committed corpus without the fuzzer, with any
# compiler; `make fuzz-corpus` writes its seeds anew.

FUZZ_TARGETS := wire store server
FUZZ_CC      ?= clang
SECONDS      ?= 60
FUZZ         := $(BUILD)/fuzz
FUZZ_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZ_CFLAGS   = $(filter-out -fsanitize% -fno-sanitize% -Werror,$(ALL_CFLAGS)) -O1 -g $(FUZZ_SANITIZE)

# The units' share of it.
$(BUILD)/tests/unit_wire: $(BUILD)/obj/tests/fuzz/sample.o
$(BUILD)/tests/unit_store: $(BUILD)/obj/tests/fuzz/store_model.o

# What a target is made of; the server's has a log of its own.
fuzz_own_wire   := fuzz_wire
fuzz_own_store  := fuzz_store store_model
fuzz_own_server := fuzz_server sample
fuzz_tree_objs   = $(filter-out $(if $(filter server,$(1)),%/daemon/log.o),$(DAEMON_OBJS) $(VMM_OBJS) $(PROTO_OBJS))

# ---- the corpus, without the fuzzer

define replay_target
$(BUILD)/tests/replay_$(1): $(call objs,$(fuzz_own_$(1):%=tests/fuzz/%.c) tests/fuzz/replay.c) $(call fuzz_tree_objs,$(1))
	$$(call say,LD,$$@)mkdir -p $$(@D) && $$(CC) $$(ALL_CFLAGS) $$(ALL_LDFLAGS) -o $$@ $$^ $$(LIBS_DAEMON) -ldl
.PHONY: check-fuzz-$(1)
check-fuzz-$(1): $(BUILD)/tests/replay_$(1)
	$$(Q)$$< tests/fuzz/corpus/$(1)
check: check-fuzz-$(1)
endef
$(foreach t,$(FUZZ_TARGETS),$(eval $(call replay_target,$(t))))

# ---- the fuzzer

$(FUZZ)/obj/%.o: %.c $(BUILD)/.flags | $(GENERATED)
	$(call say,CC,$@)mkdir -p $(@D) && $(FUZZ_CC) $(ALL_CPPFLAGS) $(FUZZ_CFLAGS) -fsanitize=fuzzer-no-link -MMD -MP -c -o $@ $<
$(FUZZ)/obj/%.pb-c.o: $(BUILD)/proto/%.pb-c.c $(BUILD)/.flags
	$(call say,CC,$@)mkdir -p $(@D) && $(FUZZ_CC) $(ALL_CPPFLAGS) $(FUZZ_CFLAGS) -Wno-undef -Wno-shadow -MMD -MP -c -o $@ $<

define fuzz_target
$(FUZZ)/$(1): $(patsubst $(BUILD)/obj/%,$(FUZZ)/obj/%,$(call objs,$(fuzz_own_$(1):%=tests/fuzz/%.c)) $(call fuzz_tree_objs,$(1)))
	$$(call say,LD,$$@)$$(FUZZ_CC) $$(FUZZ_SANITIZE) -fsanitize=fuzzer -o $$@ $$^ $$(LIBS_DAEMON) -ldl
.PHONY: fuzz-$(1)
fuzz-$(1): $(FUZZ)/$(1)
	$$(Q)mkdir -p $(FUZZ)/found-$(1) && $$< -max_total_time=$$(SECONDS) -timeout=20 -max_len=4096 -print_final_stats=1 \
		-verbosity=0 -artifact_prefix=$(FUZZ)/$(1)- $(FUZZ)/found-$(1) tests/fuzz/corpus/$(1)
fuzz: fuzz-$(1)
endef
.PHONY: fuzz fuzz-corpus
$(foreach t,$(FUZZ_TARGETS),$(eval $(call fuzz_target,$(t))))

$(BUILD)/tests/fuzz_seed: $(call objs,tests/fuzz/seed.c tests/fuzz/sample.c) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_PROTO)
fuzz-corpus: $(BUILD)/tests/fuzz_seed
	$(Q)$< tests/fuzz/corpus
