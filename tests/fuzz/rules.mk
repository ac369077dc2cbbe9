# SPDX-License-Identifier: MIT
#
# What the unit tests share with the fuzz targets.
$(BUILD)/tests/unit_wire: $(BUILD)/obj/tests/fuzz/sample.o
