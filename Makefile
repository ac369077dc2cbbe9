# SPDX-License-Identifier: MIT
#
# One file, no recursion; everything it makes is below $(BUILD).
#
#   make deps                 install what building and testing needs (Debian's apt; root or sudo)
#   make                      gmsd, gms-keeper, gmsctl, libgmsclient.so
#   make check                every test; one program alone: make check-unit-store, make check-integration T=pattern
#   make demo [DEVICE=cuda:0] the story, with real processes and real bytes
#   make bench                ratios in one run: a table, and build/bench.json
#   make soak [SECONDS=600]   random clients, random deaths of everybody
#   make deps-python          PyTorch for the tests, into build/python (PyPI; 5 GB)
#   make install [DESTDIR=] [PREFIX=/usr/local]
#   make gpu-bundle           a folder that runs all of it on a GPU machine without development packages
#   make lint                 cppcheck and clang-tidy
#   make fuzz [SECONDS=60]    the wire decoder, the store, a whole server, model files: under libFuzzer, each for so long
#
# SANITIZE=address,undefined (or thread) builds another tree. WERROR=1, V=1. CC, CFLAGS, LDFLAGS are yours.

VERSION := 1.0.0
SONAME  := libgmsclient.so.1

comma := ,
SANITIZE ?=
BUILD    ?= build$(if $(SANITIZE),/$(subst $(comma),-,$(SANITIZE)))
PREFIX   ?= /usr/local
CFLAGS   ?= -O2 -g
PROTOC_C ?= protoc-c
PKG_CONFIG ?= pkg-config

.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := all

Q = $(if $(V),,@)
say = $(if $(V),,@printf '  %-8s %s\n' '$(1)' '$(2)';)

# ---- flags

DEPS_APT := git make gcc clang libc6-dev pkg-config protobuf-c-compiler libprotobuf-c-dev libevent-dev \
	libsystemd-dev check libxxhash-dev libjansson-dev systemd spin python3 python3-venv

PACKAGES := libevent_core:libevent-dev libprotobuf-c:libprotobuf-c-dev libsystemd:libsystemd-dev \
	libxxhash:libxxhash-dev jansson:libjansson-dev check:check
NEED_NOTHING := deps deps-python clean help
ifneq ($(filter-out $(NEED_NOTHING),$(or $(MAKECMDGOALS),all)),)
ifeq ($(filter deps,$(MAKECMDGOALS)),)
missing := $(strip $(foreach p,$(PACKAGES),$(shell $(PKG_CONFIG) --exists $(word 1,$(subst :, ,$(p))) 2>/dev/null || echo $(word 2,$(subst :, ,$(p))))))
ifneq ($(missing),)
$(error missing: $(missing). Install with: make deps)
endif
endif
endif
pkg = $(shell $(PKG_CONFIG) $(1) $(2))

ALL_CPPFLAGS = -D_GNU_SOURCE -DGMS_VERSION='"$(VERSION)"' -Iproto -Ivmm -Idaemon -Ilibgmsclient -I$(BUILD)/proto $(CPPFLAGS)
ALL_CFLAGS = -std=gnu11 -fPIC -fvisibility=hidden -fno-strict-aliasing -Wall -Wextra -Wshadow -Wstrict-prototypes \
	-Wmissing-prototypes -Wvla -Wno-missing-field-initializers -Wformat=2 -Wundef $(if $(WERROR),-Werror) \
	$(if $(SANITIZE),-fsanitize=$(SANITIZE) -fno-omit-frame-pointer -fno-sanitize-recover=all) $(CFLAGS)
ALL_LDFLAGS = $(if $(SANITIZE),-fsanitize=$(SANITIZE)) -Wl,--as-needed $(LDFLAGS)

# Everything is rebuilt when the way to build it changes.
$(shell mkdir -p $(BUILD)/proto)
FLAGS := $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) $(ALL_LDFLAGS)
$(if $(filter-out $(file <$(BUILD)/.flags),$(FLAGS))$(filter-out $(FLAGS),$(file <$(BUILD)/.flags)),$(file >$(BUILD)/.flags,$(FLAGS)))

# ---- what is built

objs = $(patsubst %.c,$(BUILD)/obj/%.o,$(1))

PROTO_OBJS  := $(call objs,$(sort $(wildcard proto/*.c))) $(BUILD)/obj/gms.pb-c.o
VMM_OBJS    := $(call objs,$(sort $(wildcard vmm/*.c)))
DAEMON_OBJS := $(call objs,$(sort $(filter-out daemon/main.c daemon/keeper%,$(wildcard daemon/*.c)))) $(BUILD)/obj/journal.pb-c.o
LIB_OBJS    := $(call objs,$(sort $(wildcard libgmsclient/*.c)))
CTL_OBJS    := $(call objs,$(sort $(wildcard tools/*.c)))

LIBS_PROTO  = $(call pkg,--libs,libprotobuf-c)
LIBS_CLIENT = $(LIBS_PROTO) $(call pkg,--libs,jansson libxxhash)
LIBS_DAEMON = $(LIBS_PROTO) $(call pkg,--libs,libevent_core libsystemd libxxhash)

PROGRAMS := $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(BUILD)/libgmsclient.so

.PHONY: all
all: $(PROGRAMS)

# The code that protoc makes of proto/gms.proto and daemon/journal.proto.
GENERATED := $(BUILD)/proto/gms.pb-c.h $(BUILD)/proto/journal.pb-c.h
vpath %.proto proto daemon
$(BUILD)/proto/%.pb-c.c: %.proto
	$(call say,PROTOC,$<)$(PROTOC_C) --proto_path=$(<D) --c_out=$(BUILD)/proto $<
$(BUILD)/proto/%.pb-c.h: $(BUILD)/proto/%.pb-c.c ;
.PRECIOUS: $(BUILD)/proto/%.pb-c.c $(BUILD)/proto/%.pb-c.h

$(BUILD)/obj/%.o: %.c $(BUILD)/.flags | $(GENERATED)
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/obj/%.pb-c.o: $(BUILD)/proto/%.pb-c.c $(BUILD)/.flags
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) $(ALL_CFLAGS) -Wno-undef -Wno-shadow -MMD -MP -c -o $@ $<

$(BUILD)/gmsd: $(BUILD)/obj/daemon/main.o $(DAEMON_OBJS) $(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_DAEMON) -ldl

$(BUILD)/gms-keeper: $(call objs,daemon/keeper.c daemon/log.c)
	$(call say,LD,$@)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^

$(BUILD)/libgmsclient.so: $(LIB_OBJS) $(VMM_OBJS) $(PROTO_OBJS) libgmsclient/libgmsclient.map
	$(call say,LD,$@)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -shared -Wl,-soname,$(SONAME) \
		-Wl,--version-script=libgmsclient/libgmsclient.map $(if $(SANITIZE),,-Wl,-z,defs) \
		-o $@ $(filter %.o,$^) $(LIBS_CLIENT) -ldl -lpthread
	$(Q)ln -sf libgmsclient.so $(BUILD)/$(SONAME)

# Finds the library beside itself in the build tree, and in ../lib where it is installed.
$(BUILD)/gmsctl: $(CTL_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(CTL_OBJS) \
		-L$(BUILD) -lgmsclient $(call pkg,--libs,jansson) -lpthread

# ---- tests: units

# Every test program is built from one file of tests/unit (with the objects of the tree) and run as check-unit-NAME.

UNIT_TESTS := $(patsubst tests/unit/test_%.c,%,$(sort $(wildcard tests/unit/test_*.c)))
LIBS_CHECK  = $(call pkg,--libs,check)

$(BUILD)/tests/unit_%: $(BUILD)/obj/tests/unit/test_%.o $(DAEMON_OBJS) $(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_DAEMON) $(LIBS_CHECK) -ldl -lm

.PHONY: check $(UNIT_TESTS:%=check-unit-%)
$(UNIT_TESTS:%=check-unit-%): check-unit-%: $(BUILD)/tests/unit_%
	$(Q)$<
check: $(UNIT_TESTS:%=check-unit-%)

# ---- tests: the fake driver

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

# ---- tests: the client library

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

LIB_UNIT_TESTS := client heap va safetensors digest tensors

$(LIB_UNIT_TESTS:%=$(BUILD)/tests/unit_%): $(BUILD)/tests/unit_%: $(BUILD)/obj/tests/unit/test_%.o $(LIB_OBJS) $(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_CLIENT) $(LIBS_CHECK) -ldl -lm -lpthread

# Files for tests: what makes them.
WEIGHTS_OBJ := $(BUILD)/obj/tests/weights/weights.o
$(BUILD)/tests/unit_digest: $(WEIGHTS_OBJ)

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
tests: $(CLIENT_TESTS) $(LIB_UNIT_TESTS:%=$(BUILD)/tests/unit_%)

# ---- tests: examples

# The examples see what a user sees: the public header and -lgmsclient, as plain C99.

EXAMPLES := $(patsubst libgmsclient/examples/%.c,$(BUILD)/tests/example_%,$(sort $(wildcard libgmsclient/examples/*.c)))

$(EXAMPLES): $(BUILD)/tests/example_%: libgmsclient/examples/%.c libgmsclient/gmsclient.h $(BUILD)/libgmsclient.so
	$(call say,CC,$<)mkdir -p $(@D) && $(CC) -std=c99 -pedantic -Wall -Wextra -Werror $(CFLAGS) $(ALL_LDFLAGS) -Ilibgmsclient \
		-Wl,-rpath,'$$ORIGIN/..' -o $@ $< -L$(BUILD) -lgmsclient

# Writers that are gone, and then readers of what they left.
.PHONY: check-examples
check-examples: $(EXAMPLES) $(BUILD)/gmsd
	$(Q)sh libgmsclient/examples/run $(BUILD)
check: check-examples
tests: $(EXAMPLES)

# ---- tests: the Python package

# libgmsclient/python/gms with the real daemon. Without torch what needs none is tested; a failure then with TORCH_REQUIRED=1.
# One test alone: make check-python T=test_torch.Into.test_module

PYTHON ?= $(if $(wildcard build/python/.complete),build/python/bin/python,python3)

.PHONY: deps-python check-python
deps-python: build/python/.complete
build/python/.complete:
	$(call say,VENV,$(@D))rm -rf build/python && python3 -m venv build/python && \
		build/python/bin/pip install -q --no-cache-dir --no-compile --disable-pip-version-check torch==2.15.0 && touch $@

check-python: $(BUILD)/gmsd $(BUILD)/libgmsclient.so $(FAKECUDA_LIBS)
	$(Q)BUILD=$(BUILD) PYTHONPYCACHEPREFIX=$(abspath $(BUILD))/pycache $(PYTHON) tests/python/run.py $(T)
check: $(if $(SANITIZE),,check-python)

# ---- tests: the driver contract

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

# ---- tests: the demo

# The demo is a client like any other: it links the public library and is run with the real daemon.

DEVICE ?= host
DEMO_OBJS := $(call objs,$(sort $(wildcard tests/demo/*.c)))

$(BUILD)/tests/demo/demo: $(DEMO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(DEMO_OBJS) \
		-L$(BUILD) -lgmsclient

.PHONY: demo
demo: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/demo/demo
	$(Q)$(BUILD)/tests/demo/demo --device $(DEVICE) --gmsd $(BUILD)/gmsd

# ---- tests: gmsctl

# gmsctl against the real daemon. One test case alone: make check-cli T=copy

CLI_OBJS := $(call objs,$(sort $(wildcard tests/cli/*.c))) $(WEIGHTS_OBJ)

$(BUILD)/tests/cli/test_cli: $(CLI_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ $(CLI_OBJS) \
		-L$(BUILD) -lgmsclient $(call pkg,--libs,jansson) $(LIBS_CHECK)

.PHONY: check-cli
check-cli: $(BUILD)/gmsd $(BUILD)/gmsctl $(BUILD)/tests/cli/test_cli $(FAKECUDA_LIBS)
	$(Q)$(call with_fakecuda,$(if $(T),CK_RUN_CASE=$(T)) GMS_TEST_DEVICE=cuda:0 $(BUILD)/tests/cli/test_cli)
check: check-cli

# ---- tests: gms-keeper

# gms-keeper with a service that does as the test says. One test case alone: make check-keeper T=messages

$(BUILD)/tests/keeper/puppet: $(call objs,tests/keeper/puppet.c)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(call pkg,--libs,libsystemd)

$(BUILD)/tests/keeper/test_keeper: $(call objs,tests/keeper/test_keeper.c tests/keeper/stage.c)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_CHECK)

.PHONY: check-keeper
check-keeper: $(BUILD)/gms-keeper $(BUILD)/tests/keeper/puppet $(BUILD)/tests/keeper/test_keeper
	$(Q)$(if $(T),CK_RUN_CASE=$(T) )$(BUILD)/tests/keeper/test_keeper
check: check-keeper

# ---- tests: the units under a real systemd

# The installed units under a real systemd: see run. Skipped where there is none, or no root; a failure then with
# SYSTEMD_REQUIRED=1.

SYSTEMD_ROOT := $(BUILD)/tests/systemd/root

.PHONY: systemd-root check-systemd
systemd-root: DESTDIR = $(abspath $(SYSTEMD_ROOT))
systemd-root: PREFIX = /run/installed
systemd-root: all
	$(Q)rm -rf $(SYSTEMD_ROOT)
	$(INSTALL)
check-systemd: systemd-root
	$(Q)tests/systemd/run $(SYSTEMD_ROOT) tests/systemd/units || { status=$$?; [ $$status = 77 ] && [ -z "$$SYSTEMD_REQUIRED" ] || exit $$status; }
check: $(if $(SANITIZE),,check-systemd)

# ---- tests: the whole system

# The whole system: the real daemon on a private socket, real clients, real deaths. Once on host memory and once on a GPU
# of the fake driver; the same program runs on a real one (GMS_TEST_DEVICE=cuda:0). Some cases alone:
# make check-integration T=lock/

INTEGRATION      := $(BUILD)/tests/integration
INTEGRATION_OBJS := $(call objs,$(sort $(wildcard tests/integration/*.c))) $(WEIGHTS_OBJ)

$(INTEGRATION): $(INTEGRATION_OBJS) $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $(filter %.o,$^) \
		-L$(BUILD) -lgmsclient $(LIBS_PROTO) $(LIBS_CHECK) -ldl -lpthread

.PHONY: check-integration
check-integration: $(BUILD)/gmsd $(INTEGRATION) $(FAKECUDA_LIBS)
	$(Q)status=0; GMS_TEST_DEVICE=host:1G $(INTEGRATION) $(T) || status=1; \
		($(call with_fakecuda,GMS_TEST_DEVICE=cuda:0 $(INTEGRATION) $(T))) || status=1; exit $$status
check: check-integration

$(BUILD)/obj/tests/integration/%.o: ALL_CPPFLAGS += -Itests/fakecuda

# ---- tests: gmsd's own death

# The daemon's own death, at every step of everything it does, with a manager that keeps its descriptors: on the harness
# of the integration tests, on host memory and on a GPU of the fake driver. Some cases alone: make check-durable T=crash/
#
#   make soak [SECONDS=600] [SEED=1]   random clients, random deaths

DURABLE      := $(BUILD)/tests/durable
DURABLE_OBJS := $(call objs,$(filter-out tests/durable/soak.c,$(sort $(wildcard tests/durable/*.c))) \
	$(filter-out tests/integration/test_%,$(sort $(wildcard tests/integration/*.c))))
$(BUILD)/obj/tests/durable/%.o: ALL_CPPFLAGS += -Itests/fakecuda -Itests/integration

# The daemon with its crash points: only the files that have some are compiled again.
CRASH_SRCS := daemon/crash.c $(shell grep -l 'crash_point."' daemon/*.c)
CRASH_OBJS := $(CRASH_SRCS:%.c=$(BUILD)/obj/crash/%.o)
$(BUILD)/obj/crash/%.o: %.c $(BUILD)/.flags | $(GENERATED)
	$(call say,CC,$< (crash))mkdir -p $(@D) && $(CC) $(ALL_CPPFLAGS) -DGMS_CRASH_POINTS $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/tests/gmsd-crash: $(BUILD)/obj/daemon/main.o $(filter-out $(call objs,$(CRASH_SRCS)),$(DAEMON_OBJS)) $(CRASH_OBJS) \
		$(VMM_OBJS) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_DAEMON) -ldl

# All of their names, so that the test can tell when one is never reached.
$(BUILD)/tests/crash_points.h: $(CRASH_SRCS)
	$(Q)mkdir -p $(@D) && sed -n 's/.*crash_point.\("[^"]*"\).*/\1,/p' $^ | sort -u >$@
$(BUILD)/obj/tests/durable/test_crash.o: ALL_CPPFLAGS += -I$(BUILD)/tests
$(BUILD)/obj/tests/durable/test_crash.o: $(BUILD)/tests/crash_points.h

$(DURABLE): $(DURABLE_OBJS) $(call objs,daemon/journal.c) $(BUILD)/obj/journal.pb-c.o $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $(filter %.o,$^) \
		-L$(BUILD) -lgmsclient $(LIBS_PROTO) $(LIBS_CHECK) $(call pkg,--libs,jansson libxxhash) -ldl -lpthread

DURABLE_NEEDS := $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(BUILD)/tests/gmsd-crash

.PHONY: check-durable check-soak soak
check-durable: $(DURABLE_NEEDS) $(DURABLE) $(FAKECUDA_LIBS)
	$(Q)GMS_TEST_DEVICE=host:64M $(DURABLE) $(T)
	$(Q)$(call with_fakecuda,GMS_TEST_DEVICE=cuda:0 $(DURABLE) $(T))
check: check-durable

# The deaths once more, with the real systemd for a manager.
.PHONY: check-durable-systemd
check-durable-systemd: $(DURABLE_NEEDS) $(DURABLE) systemd-root
	$(Q)GMS_MANAGER=systemd GMS_TEST_DEVICE=host:64M tests/systemd/run $(SYSTEMD_ROOT) $(abspath $(DURABLE)) crash/ || \
		{ status=$$?; [ $$status = 77 ] && [ -z "$$SYSTEMD_REQUIRED" ] || exit $$status; }
check: $(if $(SANITIZE),,check-durable-systemd)

$(BUILD)/tests/soak: $(BUILD)/obj/tests/durable/soak.o $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $< \
		-L$(BUILD) -lgmsclient

soak: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/soak
	$(Q)$(BUILD)/tests/soak $(call seconds,600) $(SEED)

check-soak: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/soak
	$(Q)$(BUILD)/tests/soak $(call seconds,20) $(SEED)
check: $(if $(SANITIZE),,check-soak)

# ---- tests: what things cost

# What things cost, against what they could cost: a table, and $(BUILD)/bench.json. It speaks the protocol itself where the
# library would hide what is measured, so it links the objects of proto/ and vmm/ beside the public library.
#
#   make bench [DEVICE=cuda:0] [PART=attach] [BENCH_STRICT=1]

DEVICE ?= host
BENCH_OBJS := $(call objs,$(sort $(wildcard tests/bench/*.c))) $(WEIGHTS_OBJ)
$(BENCH_OBJS): ALL_CPPFLAGS += -Itests/fakecuda

# The fold is measured in this process.
BENCH_FOLD := $(call objs,$(addprefix daemon/,fold.c image.c store.c layout.c lock.c)) $(BUILD)/obj/journal.pb-c.o

$(BUILD)/tests/bench/bench: $(BENCH_OBJS) $(BENCH_FOLD) $(VMM_OBJS) $(PROTO_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/../..' -o $@ \
		$(filter %.o,$^) -L$(BUILD) -lgmsclient $(LIBS_PROTO) $(call pkg,--libs,libxxhash) -ldl -lpthread

$(BUILD)/tests/bench/trace.gz: tests/bench/traces/torch-2.11-h200.gz
	$(Q)mkdir -p $(@D) && cp $< $@

.PHONY: bench
bench: $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/tests/bench/bench $(BUILD)/tests/bench/trace.gz $(FAKECUDA_LIBS)
	$(Q)PYTHON=$(PYTHON) PYTHONPATH=libgmsclient/python $(BUILD)/tests/bench/bench --device $(DEVICE) --build $(BUILD) $(if $(PART),--part $(PART))

# ---- tests: fuzzing

# Targets under libFuzzer, each for SECONDS: make fuzz, or one: make fuzz-wire. What they find new goes below
# $(BUILD)/fuzz, where the inputs that fail are, too. `make check` plays the committed corpus without the fuzzer, with any
# compiler; `make fuzz-corpus` writes its seeds anew.

FUZZ_TARGETS := wire store server safetensors
FUZZ_CC      ?= clang
# How long: SECONDS= on the command line, or what suits the target.
seconds       = $(if $(filter command%,$(origin SECONDS)),$(SECONDS),$(1))
FUZZ         := $(BUILD)/fuzz
FUZZ_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZ_CFLAGS   = $(filter-out -fsanitize% -fno-sanitize% -Werror,$(ALL_CFLAGS)) -O1 -g $(FUZZ_SANITIZE)

# The units' share of it.
$(BUILD)/tests/unit_wire: $(BUILD)/obj/tests/fuzz/sample.o
$(BUILD)/tests/unit_store: $(BUILD)/obj/tests/fuzz/store_model.o

# What a target is made of, beside the daemon or the library; the server's has a log of its own.
fuzz_own_wire   := fuzz_wire
fuzz_own_store  := fuzz_store store_model
fuzz_own_server := fuzz_server sample
fuzz_own_safetensors := fuzz_safetensors
fuzz_room        = $(if $(filter safetensors,$(1)),$(LIB_OBJS),$(DAEMON_OBJS))
fuzz_tree_objs   = $(filter-out $(if $(filter server,$(1)),%/daemon/log.o),$(call fuzz_room,$(1)) $(VMM_OBJS) $(PROTO_OBJS))

# ---- the corpus, without the fuzzer

define replay_target
$(BUILD)/tests/replay_$(1): $(call objs,$(fuzz_own_$(1):%=tests/fuzz/%.c) tests/fuzz/replay.c) $(call fuzz_tree_objs,$(1))
	$$(call say,LD,$$@)mkdir -p $$(@D) && $$(CC) $$(ALL_CFLAGS) $$(ALL_LDFLAGS) -o $$@ $$^ $$(LIBS_DAEMON) $$(LIBS_CLIENT) -ldl -lpthread
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
	$$(call say,LD,$$@)$$(FUZZ_CC) $$(FUZZ_SANITIZE) -fsanitize=fuzzer -o $$@ $$^ $$(LIBS_DAEMON) $$(LIBS_CLIENT) -ldl -lpthread
.PHONY: fuzz-$(1)
fuzz-$(1): $(FUZZ)/$(1)
	$$(Q)mkdir -p $(FUZZ)/found-$(1) && $$< -max_total_time=$$(call seconds,60) -timeout=20 -max_len=4096 -print_final_stats=1 \
		-verbosity=0 -artifact_prefix=$(FUZZ)/$(1)- $(FUZZ)/found-$(1) tests/fuzz/corpus/$(1)
fuzz: fuzz-$(1)
endef
.PHONY: fuzz fuzz-corpus
$(foreach t,$(FUZZ_TARGETS),$(eval $(call fuzz_target,$(t))))

$(BUILD)/tests/fuzz_seed: $(call objs,tests/fuzz/seed.c tests/fuzz/sample.c) $(PROTO_OBJS)
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -o $@ $^ $(LIBS_PROTO)
fuzz-corpus: $(BUILD)/tests/fuzz_seed
	$(Q)$< tests/fuzz/corpus

# ---- tests: the GPU bundle

# One folder that runs on a GPU machine without development packages: build/gpu-bundle/run

$(BUILD)/tests/takeover: $(BUILD)/obj/tests/gpu/takeover.o $(BUILD)/libgmsclient.so
	$(call say,LD,$@)mkdir -p $(@D) && $(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN/..' -o $@ $< -L$(BUILD) -lgmsclient

BUNDLE := $(BUILD)/gpu-bundle
BUNDLE_BIN := $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(BUILD)/tests/takeover $(BUILD)/tests/contract $(BUILD)/tests/unit_vmm $(BUILD)/tests/integration $(BUILD)/tests/demo/demo \
	$(BUILD)/tests/bench/bench

.PHONY: gpu-bundle
gpu-bundle: all $(BUNDLE_BIN) $(FAKECUDA_LIBS) $(BUILD)/tests/bench/trace.gz tests/gpu/run
	$(Q)rm -rf $(BUNDLE) && mkdir -p $(BUNDLE)/bin $(BUNDLE)/lib
	$(Q)cp $(BUNDLE_BIN) $(BUNDLE)/bin && cp tests/gpu/run $(BUNDLE) && cp -P $(BUILD)/libgmsclient.so* $(BUNDLE)/lib
	$(Q)mkdir -p $(BUNDLE)/bin/tests/fakecuda && cp $(FAKECUDA_LIBS) $(BUNDLE)/bin/tests/fakecuda && cp $(BUILD)/libgmsclient.so $(BUNDLE)/bin
	$(Q)mkdir -p $(BUNDLE)/bin/tests/bench && cp $(BUILD)/tests/bench/trace.gz $(BUNDLE)/bin/tests/bench
	$(Q)LD_LIBRARY_PATH=$(BUILD) ldd $(filter-out %.so.1,$(BUNDLE_BIN)) | awk '$$2 == "=>" && $$3 ~ /^\// { print $$3 }' | sort -u | \
		grep -vE '/(ld-linux|libc|libm|libdl|libpthread|librt|libgmsclient|libcuda|libnvidia)[-.0-9a-z]*\.so' | xargs -r cp -Lt $(BUNDLE)/lib
	$(Q)mkdir -p $(BUNDLE)/python/gms && cp libgmsclient/python/gms/*.py $(BUNDLE)/python/gms && \
		cp tests/python/process.py $(BUNDLE)/python && cp tests/gpu/torch_*.py $(BUNDLE)
	$(Q)strip --strip-debug $(addprefix $(BUNDLE)/bin/,$(notdir $(BUNDLE_BIN))) $(BUNDLE)/lib/*.so*
	$(Q)du -sh $(BUNDLE)


# Every program that tests, demonstrates or measures: built, not run.
tests: $(UNIT_TESTS:%=$(BUILD)/tests/unit_%) $(BUILD)/tests/contract $(BUILD)/tests/integration $(BUILD)/tests/durable \
	$(BUILD)/tests/gmsd-crash $(BUILD)/tests/soak $(BUILD)/tests/cli/test_cli $(BUILD)/tests/keeper/test_keeper \
	$(BUILD)/tests/keeper/puppet $(BUILD)/tests/demo/demo $(BUILD)/tests/bench/bench $(BUILD)/tests/takeover \
	$(FUZZ_TARGETS:%=$(BUILD)/tests/replay_%) fakecuda
# ---- tests: the model

#   make check-model         every instance of the model, and every defect that it must find
#   make check-model-NAME    one of them
#
# The model and its switches: lock.pml. An instance is searched to the end, in less than a minute and 1 GiB each.

MODEL_restart := -DN=2 -DMORTAL -DRESTARTS=1

# NAME, what is expected (words of the error), defines, formula
define model
.PHONY: check-model-$(1)
check-model-$(1):
	$$(Q)CC='$$(CC)' tests/model/run tests/model/lock.pml $$(BUILD)/tests/model/$(1) '$(2)' '$(3)' $(4)
check-model: check-model-$(1)
endef
holds = $(eval $(call model,$(1),ok,$(2),$(3)))
finds = $(eval $(call model,$(1),$(2),$(3),$(4)))

.PHONY: check-model
$(call holds,lock,-DN=3 -DMORTAL -DHEIR -DCLEAR)
$(call holds,lock-4,-DN=4 -DMORTAL -DFEW -DREADERS=8)
$(call holds,lock-fence,-DN=3 -DMORTAL -DHEIR -DFENCE_ASKS -DPATIENT=7)
$(call holds,restart,-DN=2 -DMORTAL -DHEIR -DRESTARTS=2)
$(call holds,restart-3,-DN=3 -DMORTAL -DRESTARTS=1 -DFEW -DREADERS=4)
$(call holds,live-fair,-DN=3 -DLIVE,fair)
$(call holds,live-readers,-DN=3 -DLIVE,readers)

$(call finds,break-fifo,acceptance cycle,-DN=3 -DLIVE -DBREAK_FIFO,fair)
$(call finds,break-queue,acceptance cycle,-DN=3 -DLIVE -DBREAK_QUEUE,readers)
$(call finds,break-matrix,live.draft,-DN=2 -DMORTAL -DBREAK_MATRIX)
$(call finds,break-reference,view[j]!=l,-DN=2 -DMORTAL -DBREAK_REFERENCE)
$(call finds,break-fence,writing[j],-DN=2 -DMORTAL -DBREAK_FENCE)
$(call finds,break-aside,invalid end state,-DN=2 -DMORTAL -DFENCE_ASKS -DPATIENT=3 -DBREAK_ASIDE)
$(call finds,break-watch,invalid end state,-DN=2 -DMORTAL -DHEIR -DBREAK_WATCH)
$(call finds,break-watch-restart,invalid end state,$(MODEL_restart) -DBREAK_WATCH)
$(call finds,break-order,memory[j]==live.memory,$(MODEL_restart) -DBREAK_ORDER)
$(call finds,break-keep,memory_kept[j],$(MODEL_restart) -DBREAK_KEEP)
$(call finds,break-drop,memory_kept[j],$(MODEL_restart) -DBREAK_DROP)
$(call finds,break-serial,live.memory[live.view[i]],$(MODEL_restart) -DBREAK_SERIAL)
$(call finds,break-drain,unanswered[i],-DN=2 -DMORTAL -DRESTARTS=2 -DBREAK_DRAIN)
$(call finds,break-orphans,socket_kept[j]==,$(MODEL_restart) -DBREAK_ORPHANS)

# There is nothing here for a sanitizer.
check: $(if $(SANITIZE),,check-model)


.PRECIOUS: $(BUILD)/obj/%.o

# ---- lint

LINT := $(sort $(wildcard proto/*.c vmm/*.c daemon/*.c libgmsclient/*.c libgmsclient/examples/*.c tools/*.c))
.PHONY: lint
lint: $(LINT:%=$(BUILD)/lint/%)
	$(Q)cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr --error-exitcode=1 \
		--suppress=memleak --suppress='preprocessorErrorDirective:$(BUILD)/*' $(filter -D% -I%,$(ALL_CPPFLAGS)) $(LINT)
$(BUILD)/lint/%: % .clang-tidy $(wildcard proto/*.h vmm/*.h daemon/*.h libgmsclient/*.h tools/*.h) | $(GENERATED)
	$(call say,LINT,$<)clang-tidy --quiet $< -- -std=gnu11 $(ALL_CPPFLAGS) 2>/dev/null && mkdir -p $(@D) && touch $@

# ---- installing, dependencies

.PHONY: deps install clean
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
deps:
	$(SUDO) apt-get update -qq
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(DEPS_APT)

# Where python3 looks for packages below $(PREFIX): on Debian .../lib/python3.N/dist-packages in /usr/local, and in /usr
# .../lib/python3/dist-packages.
PYTHONDIR ?= $(or $(shell $(firstword $(wildcard /usr/bin/python3) python3) -c 'import site; print(next(p for p in site.getsitepackages() if p.startswith("$(PREFIX)/lib")))' \
	2>/dev/null),$(PREFIX)/lib/python3/dist-packages)

# Into $(DESTDIR)$(PREFIX): for install, and for the tests of the units.
define INSTALL
	$(Q)install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	$(Q)install -m 755 $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(DESTDIR)$(PREFIX)/bin
	$(Q)install -m 755 $(BUILD)/libgmsclient.so $(DESTDIR)$(PREFIX)/lib/libgmsclient.so.$(VERSION)
	$(Q)ln -sf libgmsclient.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/$(SONAME)
	$(Q)ln -sf $(SONAME) $(DESTDIR)$(PREFIX)/lib/libgmsclient.so
	$(Q)install -m 644 libgmsclient/gmsclient.h $(DESTDIR)$(PREFIX)/include
	$(Q)sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' libgmsclient/gmsclient.pc.in \
		>$(DESTDIR)$(PREFIX)/lib/pkgconfig/gmsclient.pc
	$(Q)install -d $(DESTDIR)$(PYTHONDIR)/gms
	$(Q)install -m 644 $(addprefix libgmsclient/python/gms/,*.py py.typed) $(DESTDIR)$(PYTHONDIR)/gms
	$(Q)install -d $(addprefix $(DESTDIR)$(PREFIX)/lib/,systemd/system sysusers.d tmpfiles.d)
	$(Q)for unit in gmsd.socket gmsd.service; do \
		sed 's|@PREFIX@|$(PREFIX)|' systemd/$$unit.in >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; done
	$(Q)install -m 644 systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/gmsd.conf
	$(Q)install -m 644 systemd/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/gmsd.conf
	$(Q)$(if $(DESTDIR),,ldconfig 2>/dev/null || true)
endef

install: all
	$(INSTALL)

clean:
	rm -rf build $(BUILD)

-include $(shell find $(BUILD) -path build/python -prune -o -type f -name '*.d' -print 2>/dev/null)
