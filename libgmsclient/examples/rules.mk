# SPDX-License-Identifier: MIT
#
# The examples see what a user sees: the public header and -lgmsclient, as plain C99.

EXAMPLES := $(BUILD)/tests/example_writer $(BUILD)/tests/example_reader

$(EXAMPLES): $(BUILD)/tests/example_%: libgmsclient/examples/%.c libgmsclient/gmsclient.h $(BUILD)/libgmsclient.so
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) -std=c99 -pedantic -Wall -Wextra -Werror $(CFLAGS) $(ALL_LDFLAGS) -Ilibgmsclient \
		-Wl,-rpath,'$$ORIGIN/..' -o $@ $< -L$(BUILD) -lgmsclient

# A writer that is gone, and then a reader of what it left.
.PHONY: check-examples
check-examples: $(EXAMPLES) $(BUILD)/gmsd
	$(Q)sh libgmsclient/examples/run $(BUILD)
check: check-examples
tests: $(EXAMPLES)
