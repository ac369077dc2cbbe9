# SPDX-License-Identifier: MIT
#
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
