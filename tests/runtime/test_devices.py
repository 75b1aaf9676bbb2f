"""nerf/runtime/devices.py: where a run computes, and how precisely."""

import pytest
import torch

from nerf.runtime.devices import choose_device, choose_precision
from nerf.runtime.errors import UserError


def test_each_process_makes_its_gpu_the_current_one(as_rank, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', current.append)
    monkeypatch.setenv('LOCAL_RANK', '1')  # which counts for nothing where a process is alone
    assert [str(choose_device(name)) for name in ('cpu', 'auto', 'cuda', 'cuda:1')] == [
        'cpu', 'cuda:0', 'cuda:0', 'cuda:1']
    as_rank(3, 4)  # the second on its machine
    assert [str(choose_device(name)) for name in ('cpu', 'auto', 'cuda')] == ['cpu', 'cuda:1', 'cuda:1']
    assert current == [0, 0, 1, 1, 1]
    with pytest.raises(UserError, match='device is cuda:1'):
        choose_device('cuda:1')
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(UserError, match='2 GPUs here'):
        choose_device('auto')


def test_the_precision_that_is_asked_for_is_given():
    names = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}
    assert {name: choose_precision(name, torch.device('cpu')) for name in names} == names


@pytest.mark.parametrize(('found', 'dtype'), [
    ({}, torch.float32), ({'avx2': True, 'avx512_bf16': False}, torch.float32), ({'avx512_bf16': True}, torch.bfloat16),
    ({'avx512_bf16': False, 'amx_bf16': True}, torch.bfloat16)])
def test_auto_is_bf16_on_a_cpu_that_multiplies_it(monkeypatch, found, dtype):
    monkeypatch.setattr(torch.cpu, 'get_capabilities', lambda: found)
    assert choose_precision('auto', torch.device('cpu')) == dtype


@pytest.mark.parametrize(('capability', 'dtype'), [((7, 5), torch.float32), ((8, 0), torch.bfloat16),
                                                   ((9, 0), torch.bfloat16)])
def test_auto_is_bf16_on_a_gpu_that_multiplies_it(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    assert choose_precision('auto', torch.device('cuda', 0)) == dtype
