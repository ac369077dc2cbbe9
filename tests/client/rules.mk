# SPDX-License-Identifier: MIT
#
# The client library: its face (exported symbols, public header), its insides (tests/unit/test_client.c, test_va.c),
# what it leaves behind when the kernel fails it at any step, and its threads (both with the real daemon).

# ---- what a user may see is what the map says, and the map says what the header declares

.PHONY: check-exports check-header check-client
check-exports: $(BUILD)/libgmsclient.so
	$(Q)mkdir -p $(BUILD)/tests
	$(Q)sed -n 's/^ *\(gms_[a-z_]*\);.*/\1/p' libgmsclient/libgmsclient.map | sort >$(BUILD)/tests/symbols.map
	$(Q)nm -D --defined-only $< | awk '$$2 != "A" { sub(/@.*/, "", $$3); print $$3 }' | grep -v '^__\(asan\|ubsan\|tsan\|odr\)' | \
		sort >$(BUILD)/tests/symbols.so
	$(Q)sed -n 's/^GMS_PUBLIC .*[ *]\(gms_[a-z_]*\)(.*/\1/p' libgmsclient/gmsclient.h | sort >$(BUILD)/tests/symbols.header
	$(Q)diff -u $(BUILD)/tests/symbols.map $(BUILD)/tests/symbols.so
	$(Q)diff -u $(BUILD)/tests/symbols.map $(BUILD)/tests/symbols.header
	$(Q)nm -D --defined-only $< | grep -q ' gms_open@@GMSCLIENT_1.0$$'
	@echo "exports: ok ($$(wc -l <$(BUILD)/tests/symbols.map) symbols)"

# The header needs no C++ library, so either compiler will do.
CXX_ANY = $(firstword $(foreach c,$(CXX) clang++ g++,$(shell command -v $(c) 2>/dev/null)))
check-header:
	$(Q)mkdir -p $(BUILD)/tests
	$(Q)$(CC) -x c -std=c99 -pedantic -Wall -Wextra -Werror -fsyntax-only libgmsclient/gmsclient.h
	$(Q)$(CC) -std=c99 -pedantic -Wall -Wextra -Werror -Ilibgmsclient -fsyntax-only tests/client/header.c
	$(Q)$(CXX_ANY) -x c++ -std=c++11 -pedantic -Wall -Wextra -Werror -Ilibgmsclient -fsyntax-only tests/client/header.c
	@echo "header: ok (C99, C++11)"

# ---- the insides: the library's objects, and none of the daemon's (they share names, not meanings)

$(BUILD)/tests/unit_client $(BUILD)/tests/unit_va: $(BUILD)/tests/unit_%: $(BUILD)/obj/tests/unit/test_%.o $(LIB_OBJS) \
		$(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_PROTO) $(LIBS_CHECK) -ldl -lm -lpthread

# ---- failures at every step, and many threads

CLIENT_TESTS := $(BUILD)/tests/client/test_undo $(BUILD)/tests/client/test_threads

# -rdynamic: test_undo has its own mmap, mremap and mprotect, which the library then finds first.
$(CLIENT_TESTS): $(BUILD)/tests/client/%: $(BUILD)/obj/tests/client/%.o $(BUILD)/obj/tests/client/daemon.o \
		$(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -rdynamic -Wl,-rpath,'$$ORIGIN/../..' -o $@ \
		$(filter %.o,$^) -L$(BUILD) -lgmsclient $(LIBS_CHECK) -lpthread

.PHONY: check-undo check-threads tests
check-undo check-threads: check-%: $(BUILD)/gmsd $(BUILD)/tests/client/test_%
	$(Q)$(BUILD)/tests/client/test_$* $(BUILD)/gmsd
check-client: check-exports check-header check-undo check-threads
check: check-client
tests: $(CLIENT_TESTS) $(BUILD)/tests/unit_client $(BUILD)/tests/unit_va
