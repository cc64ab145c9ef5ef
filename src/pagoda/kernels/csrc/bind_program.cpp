#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include "bind_matrix.hpp"
#include "bind_sides.hpp"
#include "program.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace pagoda {

namespace {

NormArgs norm_of(int64_t dim, int64_t parts, uintptr_t weight, uintptr_t bias, int64_t weight_stride, float eps, float offset,
                 bool centred, bool round_first) {
  NormArgs a;
  a.dim = dim, a.parts = parts, a.weight = at<void>(weight), a.bias = at<void>(bias), a.weight_stride = weight_stride;
  a.eps = eps, a.offset = offset, a.centred = centred, a.round_first = round_first;
  return a;
}

// Tables by number, made once for all steps that use them.
struct Rotary {
  std::vector<RotaryTableRef> tables;
};

// What tokens bring to a step, beside where KV lies.
void bring(StepArrays& s, int64_t num_tokens, const int64_t* positions, const Rotary& rotary) {
  s.num_tokens = num_tokens, s.positions = positions, s.rotary = rotary.tables.data();
}

// A program, and room for the lists that Python hands to a step.
struct BoundProgram : Program {
  using Program::Program;
  std::vector<int64_t> ids, positions, wanted, chosen;
};

const int64_t* read(const nb::list& numbers, std::vector<int64_t>& room) {
  room.clear();
  for (nb::handle number : numbers) room.push_back(nb::cast<int64_t>(number));
  return room.data();
}

// Addresses in the order of kernels/step.py's PageChoice.
PageChoice choice_of(const std::vector<uintptr_t>& arrays, int64_t count) {
  PageChoice c;
  c.count = count;
  c.seqs = at<int32_t>(arrays.at(0)), c.rules = at<PageRule>(arrays.at(1)), c.alike = at<float>(arrays.at(2));
  c.persist = at<float>(arrays.at(3)), c.marks = at<int64_t>(arrays.at(4)), c.room = at<int64_t>(arrays.at(5));
  c.given = at<int64_t>(arrays.at(6)), c.num_given = at<int32_t>(arrays.at(7)), c.turn = at<int64_t>(arrays.at(8));
  c.outliers = at<int32_t>(arrays.at(9)), c.full = at<int32_t>(arrays.at(10)), c.keep = at<int32_t>(arrays.at(11));
  c.scores = at<int64_t>(arrays.at(12)), c.fresh = at<uint8_t>(arrays.at(13)), c.turns = at<int64_t>(arrays.at(14));
  c.query = at<int64_t>(arrays.at(15)), c.noted = at<int64_t>(arrays.at(16)), c.weights = at<int64_t>(arrays.at(17));
  c.metric = at<int64_t>(arrays.at(18)), c.freq = at<int64_t>(arrays.at(19));
  return c;
}

void bind_step_arrays(nb::module_& m) {
  nb::class_<StepArrays>(m, "StepArrays", "Where a step's KV lies (kernels/step.py); its arrays must outlive it.")
      .def("__init__", [](StepArrays* self, int64_t num_tokens, uintptr_t pages, int64_t num_pages, int store, int64_t page_size,
                          int64_t k_dim, int64_t v_dim, int64_t num_seqs, uintptr_t rows, int64_t rows_stride, int64_t num_rows, int64_t max_pages,
                          uintptr_t row_of, uintptr_t offset, uintptr_t kv_lens, int64_t lens_stride, uintptr_t q_starts,
                          uintptr_t are_wide, uintptr_t page_ids, uintptr_t slots, int64_t writes_stride, const std::vector<uintptr_t>& choice,
                          int64_t num_choosing, const std::vector<uintptr_t>& sums, const std::vector<uintptr_t>& queries,
                          const std::vector<CodedSides*>& coded_sides, const std::vector<uintptr_t>& raw, const std::vector<uintptr_t>& weights) {
        StepArrays s;
        s.num_tokens = num_tokens;
        s.pages = at<char>(pages), s.num_pages = num_pages, s.shape = PageShape(Store(store), page_size, k_dim, v_dim);
        s.num_seqs = num_seqs, s.rows = at<int32_t>(rows), s.rows_stride = rows_stride, s.num_rows = num_rows;
        s.max_pages = max_pages, s.row_of = at<int32_t>(row_of), s.offset = at<int32_t>(offset);
        s.kv_lens = at<int32_t>(kv_lens), s.lens_stride = lens_stride, s.q_starts = at<int32_t>(q_starts), s.are_wide = at<uint8_t>(are_wide);
        s.page_ids = at<int32_t>(page_ids), s.slots = at<int32_t>(slots), s.writes_stride = writes_stride;
        if (num_choosing > 0) s.choice = choice_of(choice, num_choosing);
        if (!sums.empty()) {  // in the order of kernels/step.py's SlotSums
          s.sums = at<int64_t>(sums.at(0)), s.counts = at<int64_t>(sums.at(1));
          s.sum_widths = at<int64_t>(sums.at(2)), s.count_widths = at<int64_t>(sums.at(3)), s.sum_last = at<int64_t>(sums.at(4));
        }
        if (!queries.empty())  // in the order of QueryRings
          s.queries = {at<int64_t>(queries.at(0)), at<int64_t>(queries.at(1)), at<int64_t>(queries.at(2)), at<int64_t>(queries.at(3))};
        if (!coded_sides.empty()) {  // beside them: keys, values, first slots, room, encoded ones, as kernels/program.py gives them
          const CodedSides& sides = *coded_sides[0];
          s.coded = {sides.of.data(), sides.page_bytes, at<int64_t>(raw.at(0)), at<int64_t>(raw.at(1)), at<int64_t>(raw.at(2)),
                     at<int64_t>(raw.at(3)), at<int64_t>(raw.at(4))};
          s.shape.page_bytes = sides.page_bytes;
        }
        if (!weights.empty()) s.weights = at<int64_t>(weights.at(0)), s.weight_widths = at<int64_t>(weights.at(1));
        new (self) StepArrays(std::move(s));
      });
}

}  // namespace

void bind_program(nb::module_& m) {
  bind_step_arrays(m);
  nb::class_<Rotary>(m, "RotaryTables", "Of (cos, sin, dtype, pairs) each; addresses must outlive it.")
      .def("__init__", [](Rotary* self, const std::vector<std::tuple<uintptr_t, uintptr_t, int, int64_t>>& tables) {
        new (self) Rotary;
        for (const auto& [cos, sin, dtype, pairs] : tables) self->tables.push_back({at<void>(cos), at<void>(sin), Dtype(dtype), pairs});
      });
  nb::class_<BoundProgram>(m, "Program", "Instructions over registers; see csrc/program.hpp. Addresses must outlive it.")
      .def("__init__", [](BoundProgram* self, int dtype, std::vector<int64_t> widths, const std::vector<int>& passing) {
        new (self) BoundProgram(Dtype(dtype), std::move(widths), passing);
      })
      .def("__len__", [](const BoundProgram& p) { return p.size(); })
      .def("workspace_bytes", [](const BoundProgram& p, int64_t num_tokens) { return p.workspace_bytes(num_tokens); })
      .def("watch", [](BoundProgram& p, bool on) { p.watch(on); })
      .def("timings", [](const BoundProgram& p) {
        std::vector<std::tuple<std::string, int64_t, double>> found;
        for (const BoundProgram::Timing& t : p.timings()) found.emplace_back(t.name, t.calls, t.seconds);
        return found;
      }, "(name, calls, seconds) of every instruction, since they were first watched.")
      .def("norm", [](BoundProgram& p, int src, int dst, int64_t dim, uintptr_t weight, uintptr_t bias, float eps, float offset,
                      bool centred, bool round_first) {
        p.push(NormStep{src, dst, norm_of(dim, 1, weight, bias, 0, eps, offset, centred, round_first)});
      })
      .def("head_norm", [](BoundProgram& p, int reg, int64_t first, int64_t dim, int64_t parts, uintptr_t weight, uintptr_t bias,
                           int64_t weight_stride, float eps, float offset, bool centred, bool round_first) {
        p.push(HeadNormStep{reg, first, norm_of(dim, parts, weight, bias, weight_stride, eps, offset, centred, round_first)});
      })
      .def("linear", [](BoundProgram& p, int src, int dst, int format, int64_t outputs, int64_t inputs, int64_t group, uintptr_t data,
                        uintptr_t scales, uintptr_t zeros, bool wide_scales, uintptr_t bias, bool dynamic) {
        LinearStep s;
        s.src = src, s.dst = dst, s.bias = at<void>(bias), s.dynamic = dynamic;
        s.matrix = matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales);
        p.push(s);
      })
      .def("activation", [](BoundProgram& p, int src, int dst, bool gated, int kind, float alpha, float limit) {
        p.push(ActivationStep{src, dst, gated, Activation(kind), alpha, limit});
      })
      .def("add", [](BoundProgram& p, int src, int dst, float scale) { p.push(AddStep{src, dst, scale}); })
      .def("clip", [](BoundProgram& p, int reg, float bound) { p.push(ClipStep{reg, bound}); })
      .def("rotary", [](BoundProgram& p, int reg, int table, int64_t heads, int64_t dim, bool interleaved, int64_t first) {
        p.push(RotaryStep{reg, table, heads, dim, interleaved, first});
      })
      .def("latent", [](BoundProgram& p, int down, int queries, int dst, int64_t heads, int64_t nope, int64_t rope, int64_t rank, int64_t slot_at,
                        uintptr_t key_up) { p.push(LatentStep{down, queries, dst, heads, nope, rope, rank, slot_at, at<void>(key_up)}); })
      .def("head_products", [](BoundProgram& p, int src, int dst, int64_t heads, int64_t rows, int64_t columns, uintptr_t weight) {
        p.push(HeadProductStep{src, dst, heads, rows, columns, at<void>(weight)});
      })
      .def("attend", [](BoundProgram& p, int src, int dst, int layer, int64_t num_q_heads, int64_t num_kv_heads, int64_t dim,
                        float scale, float soft_cap, int64_t window, uintptr_t sinks, uintptr_t slopes, bool last, int64_t v_dim) {
        p.push(AttendStep{src, dst, layer, num_q_heads, num_kv_heads, dim, scale, soft_cap, window, at<float>(sinks), at<float>(slopes),
                          last, v_dim});
      })
      .def("logits", [](BoundProgram& p, int src, int64_t outputs, uintptr_t weight, uintptr_t bias, bool exact) {
        p.push(LogitsStep{src, outputs, at<void>(weight), at<void>(bias), exact});
      })
      .def("packed_logits", [](BoundProgram& p, int src, int format, int64_t outputs, int64_t inputs, int64_t group, uintptr_t data,
                               uintptr_t scales, uintptr_t zeros, bool wide_scales, uintptr_t bias, bool dynamic) {
        LogitsStep s{src, outputs, nullptr, at<void>(bias), false};
        s.matrix = matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales), s.dynamic = dynamic;
        p.push(s);
      })
      .def("route", [](BoundProgram& p, uintptr_t correction, int kind, int64_t experts, int64_t top_k, bool normalize, float scaling,
                       int64_t groups, int64_t topk_group) {
        p.push(RouteStep{at<float>(correction), {Router(kind), experts, top_k, normalize, scaling, groups, topk_group}});
      })
      .def("experts", [](BoundProgram& p, int src, int dst, const std::vector<BoundMatrix>& gate_up, const std::vector<BoundMatrix>& down,
                         const std::vector<std::tuple<bool, bool, int32_t>>& kinds, uintptr_t gate_up_bias, uintptr_t down_bias, int act, float alpha,
                         float limit, int64_t top_k) {
        ExpertsStep s{src, dst, {}, top_k};
        Experts& e = s.experts;
        for (size_t i = 0; i < gate_up.size(); ++i) {
          const auto& [up_dynamic, down_dynamic, alike] = kinds.at(i);
          e.each.push_back({std::apply(matrix_of, gate_up[i]), std::apply(matrix_of, down.at(i)), up_dynamic, down_dynamic, alike});
          e.num_alike = std::max(e.num_alike, alike + 1);
        }
        e.gate_up_bias = at<void>(gate_up_bias), e.down_bias = at<void>(down_bias);
        e.hidden = e.each.at(0).down.outputs, e.inner = e.each.at(0).down.inputs;
        e.kind = Activation(act), e.alpha = alpha, e.limit = limit;
        p.push(std::move(s));
      }, "gate_up, down: matrices by expert; kinds: (gate_up dynamic, down dynamic, number of those that are alike).")
      .def("gate", [](BoundProgram& p, int reg) { p.push(GateStep{reg}); })
      .def("embed", [](BoundProgram& p, int format, int64_t outputs, int64_t inputs, int64_t group, uintptr_t data, uintptr_t scales,
                       uintptr_t zeros, bool wide_scales) {
        p.push(EmbedStep{matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales)});
      })
      .def("head", [](BoundProgram& p, int format, int64_t outputs, int64_t inputs, int64_t group, uintptr_t data, uintptr_t scales,
                      uintptr_t zeros, bool wide_scales, uintptr_t bias, bool dynamic) {
        p.push(HeadStep{matrix_of(format, outputs, inputs, group, data, scales, zeros, wide_scales), at<void>(bias), dynamic});
        p.push(GreedyStep{outputs});
      })
      .def("run", [](BoundProgram& p, const StepArrays& arrays, uintptr_t x, int64_t num_tokens, uintptr_t positions,
                     const Rotary& rotary, uintptr_t wanted, int64_t num_wanted, uintptr_t workspace, int num_threads,
                     const std::string& isa) {
        StepArrays s = arrays;
        bring(s, num_tokens, at<int64_t>(positions), rotary);
        s.x = at<void>(x), s.wanted = at<int64_t>(wanted), s.num_wanted = num_wanted;
        nb::gil_scoped_release release;
        p.run(s, at<void>(workspace), num_threads, isa);
      })
      .def("step", [](BoundProgram& p, const StepArrays& arrays, const nb::list& ids, const nb::list& positions, const Rotary& rotary,
                      const std::optional<nb::list>& wanted, uintptr_t logits, bool likeliest, uintptr_t workspace, int num_threads,
                      const std::string& isa) {
        StepArrays s = arrays;
        s.ids = read(ids, p.ids), bring(s, static_cast<int64_t>(ids.size()), read(positions, p.positions), rotary);
        if (s.num_tokens != arrays.num_tokens || ids.size() != positions.size())
          throw std::invalid_argument(std::to_string(s.num_tokens) + " tokens with " + std::to_string(positions.size()) +
                                      " positions for a step of " + std::to_string(arrays.num_tokens));
        if (wanted) s.wanted = read(*wanted, p.wanted), s.num_wanted = static_cast<int64_t>(p.wanted.size());
        p.chosen.resize(likeliest ? (wanted ? p.wanted.size() : p.ids.size()) : 0);
        s.logits = at<float>(logits), s.likeliest = likeliest ? p.chosen.data() : nullptr;
        {
          nb::gil_scoped_release release;
          p.run(s, at<void>(workspace), num_threads, isa);
        }
        nb::list chosen;
        for (int64_t id : p.chosen) chosen.append(id);
        return chosen;
      }, "From ids to logits; the likeliest token of each row where they are asked for, else nothing.")
      .def("run_attending", [](BoundProgram& p, uintptr_t x, int64_t num_tokens, uintptr_t positions, const Rotary& rotary,
                               uintptr_t wanted, int64_t num_wanted, nb::callable attend, uintptr_t workspace, int num_threads,
                               const std::string& isa) {
        StepArrays s;
        bring(s, num_tokens, at<int64_t>(positions), rotary);
        s.x = at<void>(x), s.wanted = at<int64_t>(wanted), s.num_wanted = num_wanted;
        s.attend = [&attend](int layer, char* qkv, char* out) {
          nb::gil_scoped_acquire acquire;
          attend(layer, reinterpret_cast<uintptr_t>(qkv), reinterpret_cast<uintptr_t>(out));
        };
        nb::gil_scoped_release release;
        p.run(s, at<void>(workspace), num_threads, isa);
      }, "attend(layer, qkv, out): addresses of rows of every token.");
}

}  // namespace pagoda
