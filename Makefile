# SPDX-License-Identifier: MIT
#
# One file, no recursion; everything it makes is below $(BUILD).
#
#   make deps                 install what building and testing needs (Debian's apt; root or sudo)
#   make                      gmsd, gms-keeper, gmsctl, libgmsclient.so
#   make check                every test; one program alone: make check-unit-store, make check-integration T=pattern
#   make demo [DEVICE=cuda:0] the story, with real processes and real bytes
#   make bench                ratios in one run: a table, and build/bench.json
#   make install [DESTDIR=] [PREFIX=/usr/local]
#   make gpu-bundle           a folder that runs all of it on a GPU machine without development packages
#   make lint                 cppcheck and clang-tidy
#   make fuzz [SECONDS=60]    the wire decoder under libFuzzer
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
	libsystemd-dev check libxxhash-dev libjansson-dev systemd spin

PACKAGES := libevent_core:libevent-dev libprotobuf-c:libprotobuf-c-dev libsystemd:libsystemd-dev \
	libxxhash:libxxhash-dev jansson:libjansson-dev check:check
NEED_NOTHING := deps clean help
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
		-o $@ $(filter %.o,$^) $(LIBS_PROTO) -ldl -lpthread
	$(Q)ln -sf libgmsclient.so $(BUILD)/$(SONAME)

# Finds the library beside itself in the build tree, and in ../lib where it is installed.
$(BUILD)/gmsctl: $(CTL_OBJS) $(BUILD)/libgmsclient.so
	$(call say,LD,$@)$(CC) $(ALL_CFLAGS) $(ALL_LDFLAGS) -Wl,-rpath,'$$ORIGIN:$$ORIGIN/../lib' -o $@ $(CTL_OBJS) \
		-L$(BUILD) -lgmsclient $(call pkg,--libs,jansson)

# ---- tests

include tests/tests.mk

# ---- installing, dependencies

.PHONY: deps install clean
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
deps:
	$(SUDO) apt-get update -qq
	DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(DEPS_APT)

install: all
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include
	install -m 755 $(BUILD)/gmsd $(BUILD)/gms-keeper $(BUILD)/gmsctl $(DESTDIR)$(PREFIX)/bin
	install -m 755 $(BUILD)/libgmsclient.so $(DESTDIR)$(PREFIX)/lib/libgmsclient.so.$(VERSION)
	ln -sf libgmsclient.so.$(VERSION) $(DESTDIR)$(PREFIX)/lib/$(SONAME)
	ln -sf $(SONAME) $(DESTDIR)$(PREFIX)/lib/libgmsclient.so
	install -m 644 libgmsclient/gmsclient.h $(DESTDIR)$(PREFIX)/include
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@VERSION@|$(VERSION)|' libgmsclient/gmsclient.pc.in \
		>$(DESTDIR)$(PREFIX)/lib/pkgconfig/gmsclient.pc
	install -d $(addprefix $(DESTDIR)$(PREFIX)/lib/,systemd/system sysusers.d tmpfiles.d)
	for unit in gmsd.socket gmsd.service; do \
		sed 's|@PREFIX@|$(PREFIX)|' systemd/$$unit.in >$(DESTDIR)$(PREFIX)/lib/systemd/system/$$unit || exit 1; done
	install -m 644 systemd/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/gmsd.conf
	install -m 644 systemd/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/gmsd.conf

clean:
	rm -rf build

-include $(shell find $(BUILD) -type f -name '*.d' 2>/dev/null)
