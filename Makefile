# GNU make. `make` builds build/nibble and the library; `make check` installs what is missing, builds
# and runs every test; `make demo` shows the whole tool on a real model. No list of files anywhere:
# a new file is found by its place, its ISA by its suffix (_avx2, _avx512, ...).
SHELL := /bin/bash
BUILD ?= build
CC    ?= cc
NPROC := $(shell nproc)

WARN := -Wall -Wextra -Wshadow -Wvla -Wmissing-prototypes -Wstrict-prototypes -Wpointer-arith -Werror
OPT  ?= -O2
# C99 contraction rules and no -ffast-math: the scalar reference means what it says.
CFLAGS += -std=c11 $(OPT) -g -fopenmp -fno-math-errno -ffp-contract=off -fvisibility=hidden $(WARN)
CPPFLAGS += -D_POSIX_C_SOURCE=200809L -D_DEFAULT_SOURCE -Iinclude -MMD -MP
# Where plug-ins are looked for, beside what the system has.
LDFLAGS += -Wl,-rpath,'$$ORIGIN:$$ORIGIN/..:$$ORIGIN/../lib'
LDLIBS += -ldnnl -lxxhash -ljansson -lyaml -lpcre2-8 -lutf8proc -llapacke -lopenblas -lm
ifneq ($(SAN),)
# (clang says where checks keep a loop from becoming vector code)
CFLAGS += -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-pass-failed
LDFLAGS += -fsanitize=$(SAN)
BUILD := build/san
endif

LIB_SRC := $(wildcard src/*/*.c src/*/*/*.c)
ifeq ($(findstring x86_64,$(shell $(CC) -dumpmachine)),)
LIB_SRC := $(filter-out src/kernel/x86/%,$(LIB_SRC))
endif
CLI_SRC := $(wildcard cli/*.c)
LIB_OBJ := $(LIB_SRC:%.c=$(BUILD)/%.o)
CLI_OBJ := $(CLI_SRC:%.c=$(BUILD)/%.o)
TESTS   := $(patsubst tests/unit/%.c,$(BUILD)/tests/%,$(wildcard tests/unit/test_*.c))
BENCHES := $(patsubst bench/%.c,$(BUILD)/bench/%,$(wildcard bench/*.c))
FUZZERS := $(patsubst fuzz/%.c,$(BUILD)/fuzz/%,$(wildcard fuzz/fuzz_*.c))

.PHONY: all cuda check test unit demo deps fuzz bench lint clean install
all: $(BUILD)/nibble $(BUILD)/libnibble.a

# Foreign sizes are computed in these layers: no silent conversions there.
$(BUILD)/src/base/%.o $(BUILD)/src/io/%.o $(BUILD)/src/token/%.o: WARN += -Wconversion
# ISA by suffix. Base code stays at the baseline of the architecture.
$(BUILD)/%_avx2.o: ISA := -mavx2 -mfma -mf16c
$(BUILD)/%_avx512.o: ISA := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl
$(BUILD)/%_avx512vnni.o: ISA := -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
$(BUILD)/src/%.o: src/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -Isrc $(CFLAGS) $(ISA) -c $< -o $@
# The command sees the public header alone.
$(BUILD)/cli/%.o: cli/%.c
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) $(CFLAGS) -c $< -o $@
$(BUILD)/libnibble.a: $(LIB_OBJ)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/nibble: $(CLI_OBJ) $(BUILD)/libnibble.a
	$(CC) $(CFLAGS) $(LDFLAGS) $^ $(LDLIBS) -o $@
$(BUILD)/tests/%: tests/unit/%.c $(BUILD)/libnibble.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -Isrc -Itests/unit $(CFLAGS) $(LDFLAGS) $< $(BUILD)/libnibble.a -lcmocka $(LDLIBS) -o $@
$(BUILD)/bench/%: bench/%.c $(BUILD)/libnibble.a
	@mkdir -p $(@D)
	$(CC) $(CPPFLAGS) -Isrc $(CFLAGS) $(LDFLAGS) $< $(BUILD)/libnibble.a $(LDLIBS) -o $@

# The CUDA backend is a plug-in beside the command, built where nvcc is: `make cuda`. No fused
# products: what is rounded must be what the scalar reference rounds.
NVCC      ?= nvcc
CUDA_ARCH ?= sm_90
NVFLAGS   := -std=c++20 -arch=$(CUDA_ARCH) -O2 --extended-lambda -fmad=false -Werror all-warnings \
    -Xcompiler -fPIC,-fvisibility=hidden,-Wall,-Werror
CUDA_SRC  := $(wildcard src/op/cuda/*.cu)
CUDA_OBJ  := $(CUDA_SRC:%.cu=$(BUILD)/%.o)
$(BUILD)/src/op/cuda/%.o: src/op/cuda/%.cu
	@mkdir -p $(@D)
	$(NVCC) -Iinclude -Isrc -MMD -MP $(NVFLAGS) -c $< -o $@
$(BUILD)/libnibble-cuda.so: $(CUDA_OBJ)
	$(NVCC) -shared -arch=$(CUDA_ARCH) $^ -lcublas -o $@

# Fuzzers: libFuzzer is clang's, so the whole library is compiled a second time by it.
FUZZ_CC  ?= clang
FUZZ_SAN := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -Wno-pass-failed
FUZZ_OBJ := $(LIB_SRC:%.c=$(BUILD)/fuzz/obj/%.o)
$(BUILD)/fuzz/obj/%.o: %.c
	@mkdir -p $(@D)
	$(FUZZ_CC) $(CPPFLAGS) -Isrc $(CFLAGS) $(ISA) $(FUZZ_SAN) -fsanitize=fuzzer-no-link -c $< -o $@
$(BUILD)/fuzz/libnibble.a: $(FUZZ_OBJ)
	rm -f $@ && ar rcs $@ $^
$(BUILD)/fuzz/%: fuzz/%.c $(BUILD)/fuzz/libnibble.a
	$(FUZZ_CC) $(CPPFLAGS) -Isrc $(CFLAGS) $(FUZZ_SAN) -fsanitize=fuzzer $< $(BUILD)/fuzz/libnibble.a $(LDLIBS) -o $@

# ---- what people type ------------------------------------------------------------------------
deps:
	scripts/deps.sh
cuda: $(BUILD)/libnibble-cuda.so
# Unit and end-to-end tests; nothing is installed.
test: all $(TESTS)
	scripts/test.sh $(BUILD)
unit: $(TESTS)
	scripts/test.sh $(BUILD) unit
lint:
	scripts/check_layers.sh
	scripts/check_size.sh
	scripts/check_style.sh
	mandoc -Tlint -Wwarning docs/man/*.1
check: deps
	$(MAKE) -j$(NPROC) test
	$(MAKE) -j$(NPROC) bench
	$(MAKE) lint
demo:
	scripts/deps.sh build demo
	$(MAKE) -j$(NPROC) all
	scripts/demo.sh $(BUILD)/nibble
bench: $(BENCHES)
FUZZ_SECONDS ?= 20
fuzz: $(FUZZERS) $(TESTS)
	scripts/fuzz.sh $(BUILD) $(FUZZ_SECONDS)

PREFIX ?= /usr/local
install: all
	install -d $(addprefix $(DESTDIR)$(PREFIX)/,bin include lib share/man/man1 share/nibble/recipes share/bash-completion/completions)
	install $(BUILD)/nibble $(DESTDIR)$(PREFIX)/bin
	install -m 644 include/nibble.h $(DESTDIR)$(PREFIX)/include
	install -m 644 $(BUILD)/libnibble.a $(DESTDIR)$(PREFIX)/lib
	if [ -e $(BUILD)/libnibble-cuda.so ]; then install $(BUILD)/libnibble-cuda.so $(DESTDIR)$(PREFIX)/lib; fi
	install -m 644 docs/man/nibble.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 recipes/*.yaml $(DESTDIR)$(PREFIX)/share/nibble/recipes
	install -m 644 scripts/completion/nibble.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/nibble
clean:
	rm -rf build

-include $(LIB_OBJ:.o=.d) $(CUDA_OBJ:.o=.d) $(CLI_OBJ:.o=.d) $(TESTS:=.d) $(BENCHES:=.d) $(FUZZ_OBJ:.o=.d) $(FUZZERS:=.d)
