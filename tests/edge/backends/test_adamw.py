import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the torch extra")
pytest.importorskip("llama_cpp", reason="needs the llama extra")

from edge.backends.adamw import AdamW  # noqa: E402

pytestmark = [pytest.mark.llama, pytest.mark.torch]


@pytest.mark.parametrize("clip_norm", [0.0, 0.5, 100.0])
def test_its_steps_are_torchs(clip_norm):
    random = np.random.default_rng(0)
    values = random.normal(size=100).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(values.copy()))
    theirs = torch.optim.AdamW([parameter], weight_decay=0.1)
    ours = AdamW(values, weight_decay=0.1, clip_norm=clip_norm)
    for step in range(20):
        gradient = (random.normal(size=100) * 10.0 ** random.integers(-6, 2, 100)).astype(np.float32)
        parameter.grad = torch.from_numpy(gradient.copy())
        if clip_norm:
            torch.nn.utils.clip_grad_norm_([parameter], clip_norm)
        theirs.param_groups[0]["lr"] = 0.01 * (step + 1)
        theirs.step()
        ours.step(gradient, 0.01 * (step + 1))
    np.testing.assert_allclose(values, parameter.detach().numpy(), atol=2e-6)


def test_it_goes_on_from_a_snapshot_bit_for_bit():
    random = np.random.default_rng(0)
    values, gradients = np.zeros(9, np.float32), random.normal(size=(6, 9)).astype(np.float32)
    ours = AdamW(values, weight_decay=0.0, clip_norm=0.0)
    for gradient in gradients[:3]:
        ours.step(gradient.copy(), 0.1)
    snapshot, held = ours.snapshot(), values.copy()
    for gradient in gradients[3:]:
        ours.step(gradient.copy(), 0.1)
    again = AdamW(held, weight_decay=0.0, clip_norm=0.0)
    again.restore(snapshot)
    for gradient in gradients[3:]:
        again.step(gradient.copy(), 0.1)
    assert np.array_equal(held, values)
