"""nerf/runtime/devices.py: device and precision of a run."""

import pytest
import torch

from nerf.runtime.devices import choose_device, choose_precision, constant, device_name, multiplies_bf16
from nerf.runtime.errors import UserError


def test_a_process_that_is_alone_takes_the_device_that_is_asked_for(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')  # ignored: the process is alone
    names = ('cpu', 'auto', 'cuda', 'cuda:1')
    assert [device_name(name, 2) for name in names] == ['cpu', 'cuda:0', 'cuda:0', 'cuda:1']
    assert device_name('auto', 0) == 'cpu'
    assert choose_device('cpu') == torch.device('cpu')


def test_each_of_several_processes_has_a_gpu_of_its_own(as_rank, monkeypatch):
    as_rank(3, 4)
    monkeypatch.setenv('LOCAL_RANK', '1')  # the second process on its machine
    assert [device_name(name, 2) for name in ('cpu', 'auto', 'cuda')] == ['cpu', 'cuda:1', 'cuda:1']
    with pytest.raises(UserError, match='device is cuda:1'):
        device_name('cuda:1', 2)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(UserError, match='2 GPUs here'):
        device_name('auto', 2)


@pytest.mark.slow
@pytest.mark.gpu
def test_the_gpu_becomes_the_current_one():
    assert choose_device('auto') == choose_device('cuda') == torch.device('cuda', 0)
    assert torch.cuda.current_device() == 0
    assert multiplies_bf16(torch.device('cuda')) == (torch.cuda.get_device_capability() >= (8, 0))
    assert torch.zeros(1, device=choose_device('cuda')).device == torch.device('cuda', 0)


def test_the_precision_that_is_asked_for_is_given():
    names = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    assert {name: choose_precision(name, torch.device('cpu')) for name in names} == names


def test_auto_is_bf16_on_a_cpu_that_multiplies_it():
    found = torch.cpu.get_capabilities()
    native = bool(found.get('avx512_bf16') or found.get('amx_bf16'))
    assert choose_precision('auto', torch.device('cpu')) == (torch.bfloat16 if native else torch.float32)


def test_a_constant_is_made_once():
    first, second = (constant((1.0, 2.0), torch.device('cpu')) for _ in range(2))
    assert first is second
    assert first.tolist() == [1.0, 2.0]
    with torch.inference_mode():
        assert not constant((3.0,), torch.device('cpu')).is_inference()
