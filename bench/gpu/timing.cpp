#include "bench/gpu/timing.h"

#include <utility>
#include <vector>

#include "bench/throughput.h"

namespace oq {
namespace {

constexpr int kWarmUps = 3, kRuns = 15;

/// An unmeasured run goes before each, so that the device is at work when `begin` gets there: what
/// the host takes to start a graph, 5 to 15 us, would stand between the two points otherwise.
double median_time(cuda::Stream& stream, const std::function<void()>& run) {
  std::vector<double> times;
  cuda::Event begin, end;
  for (int i = -kWarmUps; i < kRuns; ++i) {
    run();
    begin.record(stream);
    run();
    end.record(stream);
    end.wait();
    if (i >= 0) times.push_back(cuda::seconds_between(begin, end));
  }
  return median(std::move(times));
}

}  // namespace

double time_stream(cuda::Stream& stream, int launches, const std::function<void(int)>& launch) {
  return median_time(stream,
                     [&] {
                       for (int i = 0; i < launches; ++i) launch(i);
                     }) /
         launches;
}

double time_graph(cuda::Stream& stream, int launches, const std::function<void(int)>& launch) {
  launch(0);  // what is made on first use cannot be made while a stream records
  stream.synchronize();
  cuda::Recording recording(stream);
  for (int i = 0; i < launches; ++i) launch(i);
  const cuda::Graph graph = recording.finish();
  return median_time(stream, [&] { stream.replay(graph); }) / launches;
}

}  // namespace oq
