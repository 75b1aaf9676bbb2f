// C++ side of a pretended GPU: functions that torch calls before and around a device's kernels. They do no work.
// Without them autograd, the random generator and device guards fail in a build of torch without CUDA.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/GeneratorImpl.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstring>
#include <utility>

namespace pretended {

inline c10::Device gpu() { return c10::Device(c10::DeviceType::CUDA, 0); }

// There is one device with one stream: a change of either does nothing.
struct DeviceGuard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device getDevice() const override { return gpu(); }
  c10::Device exchangeDevice(c10::Device) const override { return gpu(); }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, gpu()); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(gpu()); }
};

// A seed, and an offset that counts the draws: the two numbers that CUDA's generator has. pretended.py draws by them.
struct Generator final : c10::GeneratorImpl {
  Generator() : GeneratorImpl(gpu(), c10::DispatchKeySet(c10::DispatchKey::CUDA)) {}
  std::pair<uint64_t, uint64_t> numbers{c10::default_rng_seed_val, 0};

  void set_current_seed(uint64_t seed) override { numbers = {seed, 0}; }
  uint64_t current_seed() const override { return numbers.first; }
  uint64_t seed() override { return numbers.first; }
  void set_offset(uint64_t offset) override { numbers.second = offset; }
  uint64_t get_offset() const override { return numbers.second; }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    auto state = at::detail::empty_cpu({16}, at::kByte, false, std::nullopt);
    std::memcpy(state.mutable_data_ptr(), &numbers, 16);
    return state.getIntrusivePtr();
  }
  void set_state(const c10::TensorImpl& state) override { std::memcpy(&numbers, state.data(), 16); }
  GeneratorImpl* clone_impl() const override {
    auto copy = new Generator();
    copy->numbers = numbers;
    return copy;
  }
};

DeviceGuard device_guard;
c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &device_guard);

}  // namespace pretended

namespace at {

struct CUDAHooks final : CUDAHooksInterface {  // torch looks for hooks of this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  Generator getNewGenerator(DeviceIndex) const override { return make_generator<pretended::Generator>(); }
};
REGISTER_CUDA_HOOKS(CUDAHooks)

}  // namespace at
