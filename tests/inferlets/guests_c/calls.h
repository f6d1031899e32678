// Every handler behind one signature.  Generated from pieray.wit by build.py: do not edit.
#pragma once
#include "pieray.h"

#define OK 255
typedef struct { uint8_t code; uint64_t value; text message; } answer;

static float float_of(uint64_t bits) { union { uint32_t i; float f; } u = {(uint32_t)bits}; return u.f; }
static answer failed(error e) { return (answer){e.code, 0, e.message}; }
static answer of(const result *r, uint64_t value) {
  return r->is_err ? failed(r->error) : (answer){OK, value, {0, 0}};
}
static uint64_t first(const result *r) { return r->is_err || !r->numbers.count ? 0 : r->numbers.data[0]; }

static answer call_0(const uint64_t *a) { result r; tickets_wait((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], (int32_t)a[2], &r); return of(&r, first(&r)); }
static answer call_1(const uint64_t *a) { result r; tickets_take_none((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_2(const uint64_t *a) { result r; tickets_take_tokens((uint32_t)a[0], &r); return of(&r, first(&r)); }
static answer call_3(const uint64_t *a) { result r; tickets_take_floats((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_4(const uint64_t *a) { result r; tickets_take_text((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_5(const uint64_t *a) { result r; tickets_take_distribution((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_6(const uint64_t *a) { result r; tickets_cancel((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_7(const uint64_t *a) { result r; queues_create((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_8(const uint64_t *a) { result r; queues_set_priority((uint32_t)a[0], (int32_t)a[1], &r); return of(&r, 0); }
static answer call_9(const uint64_t *a) { result r; queues_set_reuse((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_10(const uint64_t *a) { result r; queues_flush((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_11(const uint64_t *a) { result r; queues_synchronize((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_12(const uint64_t *a) { result r; queues_close((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_13(const uint64_t *a) { return (answer){OK, kv_page_size(), {0, 0}}; }
static answer call_14(const uint64_t *a) { result r; kv_alloc((uint32_t)a[0], &r); return of(&r, first(&r)); }
static answer call_15(const uint64_t *a) { result r; kv_alloc_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, first(&r)); }
static answer call_16(const uint64_t *a) { result r; kv_reserve((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_17(const uint64_t *a) { result r; kv_reserve_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_18(const uint64_t *a) { result r; kv_free((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_19(const uint64_t *a) { result r; kv_fork((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, first(&r)); }
static answer call_20(const uint64_t *a) { result r; kv_copy((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (uint32_t)a[3], (uint32_t)a[4], (uint32_t)a[5], &r); return of(&r, r.value); }
static answer call_21(const uint64_t *a) { result r; kv_mask((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (uint32_t)a[3], &r); return of(&r, 0); }
static answer call_22(const uint64_t *a) { result r; kv_truncate((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_23(const uint64_t *a) { result r; kv_idle((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_24(const uint64_t *a) { result r; kv_pin(&r); return of(&r, 0); }
static answer call_25(const uint64_t *a) { result r; kv_unpin(&r); return of(&r, 0); }
static answer call_26(const uint64_t *a) { result r; kv_expect((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_27(const uint64_t *a) { result r; kv_expect_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_28(const uint64_t *a) { result r; kv_export_pages((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], (const char *)(uintptr_t)a[5], (uint32_t)a[6], (uint32_t)a[7], a[8], (uint32_t)a[9], (uint32_t)a[10], &r); return of(&r, r.value); }
static answer call_29(const uint64_t *a) { result r; kv_import_pages((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_30(const uint64_t *a) { result r; kv_import_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_31(const uint64_t *a) { result r; kv_unexport((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_32(const uint64_t *a) { result r; kv_unexport_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, r.value); }
static answer call_33(const uint64_t *a) { result r; kv_list_exports((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_34(const uint64_t *a) { result r; kv_list_exports_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_35(const uint64_t *a) { result r; embeds_text((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_36(const uint64_t *a) { result r; embeds_text_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_37(const uint64_t *a) { result r; embeds_put((const float *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_38(const uint64_t *a) { result r; embeds_put_for((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const float *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_39(const uint64_t *a) { result r; embeds_image((uint32_t)a[0], (const char *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_40(const uint64_t *a) { result r; embeds_image_rows((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_41(const uint64_t *a) { result r; embeds_size((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_42(const uint64_t *a) { result r; embeds_values((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_43(const uint64_t *a) { result r; embeds_free((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_44(const uint64_t *a) { result r; samplers_create(float_of(a[0]), (uint32_t)a[1], float_of(a[2]), float_of(a[3]), float_of(a[4]), a[5], &r); return of(&r, r.value); }
static answer call_45(const uint64_t *a) { result r; samplers_bias((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (const float *)(uintptr_t)a[3], (uint32_t)a[4], &r); return of(&r, 0); }
static answer call_46(const uint64_t *a) { result r; samplers_allow((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_47(const uint64_t *a) { result r; samplers_free((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_48(const uint64_t *a) { result r; forward_forward((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (uint32_t)a[3], (const uint32_t *)(uintptr_t)a[4], (uint32_t)a[5], (const uint32_t *)(uintptr_t)a[6], (uint32_t)a[7], (const uint32_t *)(uintptr_t)a[8], (uint32_t)a[9], &r); return of(&r, r.value); }
static answer call_49(const uint64_t *a) { result r; forward_forward_embeds((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (uint32_t)a[3], (const uint32_t *)(uintptr_t)a[4], (uint32_t)a[5], (const uint32_t *)(uintptr_t)a[6], (uint32_t)a[7], (const uint32_t *)(uintptr_t)a[8], (uint32_t)a[9], &r); return of(&r, r.value); }
static answer call_50(const uint64_t *a) { result r; forward_mask_runs((uint32_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, 0); }
static answer call_51(const uint64_t *a) { result r; forward_set_adapter((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_52(const uint64_t *a) { result r; forward_sample((uint32_t)a[0], (uint32_t)a[1], float_of(a[2]), (uint32_t)a[3], float_of(a[4]), float_of(a[5]), a[6], &r); return of(&r, r.value); }
static answer call_53(const uint64_t *a) { result r; forward_sample_with((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_54(const uint64_t *a) { result r; forward_distribution((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_55(const uint64_t *a) { result r; forward_logprobs((uint32_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_56(const uint64_t *a) { result r; forward_logits((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_57(const uint64_t *a) { result r; forward_entropy((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_58(const uint64_t *a) { result r; forward_hidden((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_59(const uint64_t *a) { result r; forward_verify((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (uint32_t)a[3], (const uint32_t *)(uintptr_t)a[4], (uint32_t)a[5], (const uint32_t *)(uintptr_t)a[6], (uint32_t)a[7], (const uint32_t *)(uintptr_t)a[8], (uint32_t)a[9], (uint32_t)a[10], (uint32_t)a[11], &r); return of(&r, r.value); }
static answer call_60(const uint64_t *a) { result r; plans_create((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (uint32_t)a[3], (const uint32_t *)(uintptr_t)a[4], (uint32_t)a[5], (uint32_t)a[6], (uint32_t)a[7], &r); return of(&r, r.value); }
static answer call_61(const uint64_t *a) { result r; plans_set_sampler((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_62(const uint64_t *a) { result r; plans_set_stop((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], (const text *)(uintptr_t)a[3], (uint32_t)a[4], &r); return of(&r, 0); }
static answer call_63(const uint64_t *a) { result r; plans_set_grammar((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_64(const uint64_t *a) { result r; plans_set_adapter((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_65(const uint64_t *a) { result r; plans_set_drafter((uint32_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, 0); }
static answer call_66(const uint64_t *a) { result r; plans_start((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_67(const uint64_t *a) { result r; plans_next((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_68(const uint64_t *a) { result r; plans_next_scored((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_69(const uint64_t *a) { result r; plans_score((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_70(const uint64_t *a) { result r; plans_read((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (int32_t)a[3], &r); return of(&r, 0); }
static answer call_71(const uint64_t *a) { result r; plans_watch((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_72(const uint64_t *a) { result r; plans_stream_text((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_73(const uint64_t *a) { result r; plans_pause((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_74(const uint64_t *a) { result r; plans_resume((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_75(const uint64_t *a) { result r; plans_truncate((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_76(const uint64_t *a) { result r; plans_state((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_77(const uint64_t *a) { result r; plans_cancel((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_78(const uint64_t *a) { result r; plans_close((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_79(const uint64_t *a) { result r; programs_create((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const float *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, r.value); }
static answer call_80(const uint64_t *a) { result r; programs_for_sampler((uint32_t)a[0], (uint32_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_81(const uint64_t *a) { result r; programs_for_pass((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_82(const uint64_t *a) { result r; programs_for_plan((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_83(const uint64_t *a) { result r; programs_states((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_84(const uint64_t *a) { result r; programs_counts((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_85(const uint64_t *a) { result r; programs_free((const uint32_t *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_86(const uint64_t *a) { result r; grammar_compile((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (const char *)(uintptr_t)a[3], (uint32_t)a[4], &r); return of(&r, r.value); }
static answer call_87(const uint64_t *a) { result r; grammar_fork((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_88(const uint64_t *a) { result r; grammar_accept((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_89(const uint64_t *a) { result r; grammar_rollback((uint32_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_90(const uint64_t *a) { result r; grammar_mask((uint32_t)a[0], &r); return of(&r, first(&r)); }
static answer call_91(const uint64_t *a) { result r; grammar_forced((uint32_t)a[0], &r); return of(&r, first(&r)); }
static answer call_92(const uint64_t *a) { result r; grammar_is_complete((uint32_t)a[0], &r); return of(&r, r.flag); }
static answer call_93(const uint64_t *a) { result r; grammar_free((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_94(const uint64_t *a) { texts t; adapters_names(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_95(const uint64_t *a) { result r; adapters_info((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_96(const uint64_t *a) { result r; adapters_open((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_97(const uint64_t *a) { result r; adapters_load((const char *)(uintptr_t)a[0], (uint32_t)a[1], float_of(a[2]), &r); return of(&r, r.value); }
static answer call_98(const uint64_t *a) { result r; adapters_digest((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_99(const uint64_t *a) { result r; adapters_close((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_100(const uint64_t *a) { texts t; model_names(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_101(const uint64_t *a) { result r; model_info((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_102(const uint64_t *a) { result r; model_tokenize((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, first(&r)); }
static answer call_103(const uint64_t *a) { result r; model_detokenize((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const uint32_t *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, 0); }
static answer call_104(const uint64_t *a) { result r; model_stop_tokens((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, first(&r)); }
static answer call_105(const uint64_t *a) { result r; model_stream_open((const char *)(uintptr_t)a[0], (uint32_t)a[1], (uint32_t)a[2], (const uint32_t *)(uintptr_t)a[3], (uint32_t)a[4], &r); return of(&r, r.value); }
static answer call_106(const uint64_t *a) { result r; model_stream_push((uint32_t)a[0], (const uint32_t *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_107(const uint64_t *a) { result r; model_stream_stop((uint32_t)a[0], (const text *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }
static answer call_108(const uint64_t *a) { result r; model_stream_stopped((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_109(const uint64_t *a) { result r; model_stream_rest((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_110(const uint64_t *a) { result r; model_stream_close((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_111(const uint64_t *a) { result r; chat_render((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (const char *)(uintptr_t)a[4], (uint32_t)a[5], (uint32_t)a[6], (const char *)(uintptr_t)a[7], (uint32_t)a[8], a[9], &r); return of(&r, 0); }
static answer call_112(const uint64_t *a) { result r; chat_parse((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, 0); }
static answer call_113(const uint64_t *a) { result r; session_send((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_114(const uint64_t *a) { result r; session_receive(&r); return of(&r, r.value); }
static answer call_115(const uint64_t *a) { result r; session_emit((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], &r); return of(&r, 0); }
static answer call_116(const uint64_t *a) { result r; session_send_file((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_117(const uint64_t *a) { result r; session_receive_file(&r); return of(&r, r.value); }
static answer call_118(const uint64_t *a) { result r; scratch_write((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, 0); }
static answer call_119(const uint64_t *a) { result r; scratch_read((const char *)(uintptr_t)a[0], (uint32_t)a[1], a[2], (uint32_t)a[3], &r); return of(&r, 0); }
static answer call_120(const uint64_t *a) { result64 r; scratch_size((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return r.is_err ? failed(r.error) : (answer){OK, r.value, {0, 0}}; }
static answer call_121(const uint64_t *a) { result r; scratch_names((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_122(const uint64_t *a) { result r; scratch_remove((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, 0); }
static answer call_123(const uint64_t *a) { result r; messaging_push((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, r.value); }
static answer call_124(const uint64_t *a) { result r; messaging_pull((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_125(const uint64_t *a) { result r; messaging_broadcast((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], &r); return of(&r, r.value); }
static answer call_126(const uint64_t *a) { result r; messaging_subscribe((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_127(const uint64_t *a) { result r; messaging_next((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_128(const uint64_t *a) { result r; messaging_unsubscribe((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_129(const uint64_t *a) { result r; children_launch((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (const char *)(uintptr_t)a[4], (uint32_t)a[5], (const char *)(uintptr_t)a[6], (uint32_t)a[7], (uint32_t)a[8], &r); return of(&r, r.value); }
static answer call_130(const uint64_t *a) { result r; children_id((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_131(const uint64_t *a) { result r; children_wait((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_132(const uint64_t *a) { result r; children_receive((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_133(const uint64_t *a) { result r; children_send((uint32_t)a[0], (const char *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_134(const uint64_t *a) { result r; children_cancel((uint32_t)a[0], (const char *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, r.value); }
static answer call_135(const uint64_t *a) { result r; children_detach((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_136(const uint64_t *a) { result r; children_close((uint32_t)a[0], &r); return of(&r, 0); }
static answer call_137(const uint64_t *a) { result r; http_request((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (const text *)(uintptr_t)a[4], (uint32_t)a[5], (const char *)(uintptr_t)a[6], (uint32_t)a[7], (uint32_t)a[8], (uint32_t)a[9], &r); return of(&r, r.value); }
static answer call_138(const uint64_t *a) { result r; store_get((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_139(const uint64_t *a) { result r; store_put((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], a[4], &r); return of(&r, r.value); }
static answer call_140(const uint64_t *a) { result r; store_put_if((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (uint32_t)a[4], (const char *)(uintptr_t)a[5], (uint32_t)a[6], &r); return of(&r, r.value); }
static answer call_141(const uint64_t *a) { result r; store_delete((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_142(const uint64_t *a) { result r; store_names((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_143(const uint64_t *a) { texts t; mcp_servers(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_144(const uint64_t *a) { result r; mcp_tools((const char *)(uintptr_t)a[0], (uint32_t)a[1], &r); return of(&r, r.value); }
static answer call_145(const uint64_t *a) { result r; mcp_call((const char *)(uintptr_t)a[0], (uint32_t)a[1], (const char *)(uintptr_t)a[2], (uint32_t)a[3], (const char *)(uintptr_t)a[4], (uint32_t)a[5], &r); return of(&r, r.value); }
static answer call_146(const uint64_t *a) { text t; runtime_version(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_147(const uint64_t *a) { text t; runtime_instance_id(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_148(const uint64_t *a) { text t; runtime_program(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_149(const uint64_t *a) { text t; runtime_user(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_150(const uint64_t *a) { text t; runtime_tenant(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_151(const uint64_t *a) { text t; runtime_parent(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_152(const uint64_t *a) { text t; runtime_input(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_153(const uint64_t *a) { text t; runtime_limits(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_154(const uint64_t *a) { text t; runtime_usage(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_155(const uint64_t *a) { text t; runtime_capabilities(&t); return (answer){OK, 0, {0, 0}}; }
static answer call_156(const uint64_t *a) { return (answer){OK, runtime_monotonic_now(), {0, 0}}; }
static answer call_157(const uint64_t *a) { return (answer){OK, runtime_wall_now(), {0, 0}}; }
static answer call_158(const uint64_t *a) { result r; runtime_sleep((uint32_t)a[0], &r); return of(&r, r.value); }
static answer call_159(const uint64_t *a) { return (answer){OK, runtime_random_u64(), {0, 0}}; }
static answer call_160(const uint64_t *a) { result r; runtime_seed(a[0], &r); return of(&r, 0); }
static answer call_161(const uint64_t *a) { result r; runtime_log((uint32_t)a[0], (const char *)(uintptr_t)a[1], (uint32_t)a[2], &r); return of(&r, 0); }

#define NUM_CALLS 162
static answer (*const CALLS[])(const uint64_t *) = {call_0, call_1, call_2, call_3, call_4, call_5, call_6, call_7, call_8, call_9, call_10, call_11, call_12, call_13, call_14, call_15, call_16, call_17, call_18, call_19, call_20, call_21, call_22, call_23, call_24, call_25, call_26, call_27, call_28, call_29, call_30, call_31, call_32, call_33, call_34, call_35, call_36, call_37, call_38, call_39, call_40, call_41, call_42, call_43, call_44, call_45, call_46, call_47, call_48, call_49, call_50, call_51, call_52, call_53, call_54, call_55, call_56, call_57, call_58, call_59, call_60, call_61, call_62, call_63, call_64, call_65, call_66, call_67, call_68, call_69, call_70, call_71, call_72, call_73, call_74, call_75, call_76, call_77, call_78, call_79, call_80, call_81, call_82, call_83, call_84, call_85, call_86, call_87, call_88, call_89, call_90, call_91, call_92, call_93, call_94, call_95, call_96, call_97, call_98, call_99, call_100, call_101, call_102, call_103, call_104, call_105, call_106, call_107, call_108, call_109, call_110, call_111, call_112, call_113, call_114, call_115, call_116, call_117, call_118, call_119, call_120, call_121, call_122, call_123, call_124, call_125, call_126, call_127, call_128, call_129, call_130, call_131, call_132, call_133, call_134, call_135, call_136, call_137, call_138, call_139, call_140, call_141, call_142, call_143, call_144, call_145, call_146, call_147, call_148, call_149, call_150, call_151, call_152, call_153, call_154, call_155, call_156, call_157, call_158, call_159, call_160, call_161};
