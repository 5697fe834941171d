"""What the gates of an LSTM did: a description of the network, not an explanation of the decision."""

import torch
from torch import nn

GATES = "input", "forget", "output"


def lstm_gates(lstm: nn.LSTM, inputs_TH: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Recompute an `nn.LSTM` from its weights; return the mean of each gate of the last layer and the states.

    The gates are float [T] by names such as `input, backwards`; the states [T,H], those of `nn.LSTM`."""
    gates: dict[str, torch.Tensor] = {}
    layer_TH = inputs_TH
    for layer in range(lstm.num_layers):
        states = []
        for direction in ["", "_reverse"][: 1 + lstm.bidirectional]:
            weights = [getattr(lstm, f"{name}_l{layer}{direction}") for name in ("weight_ih", "weight_hh")]
            bias = sum(getattr(lstm, f"{name}_l{layer}{direction}") for name in ("bias_ih", "bias_hh"))
            steps = layer_TH.flip(0) if direction else layer_TH
            opened_3T, states_TH = _run(steps @ weights[0].T + bias, weights[1])
            if direction:
                opened_3T, states_TH = opened_3T.flip(1), states_TH.flip(0)
            name = "backwards" if direction else "forwards"
            gates |= {f"{gate}, {name}": opened_T for gate, opened_T in zip(GATES, opened_3T, strict=True)}
            states.append(states_TH)
        layer_TH = torch.cat(states, 1)
    return gates, layer_TH


def _run(inputs_T4H: torch.Tensor, weight_4HH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one direction of one layer; return the mean of input, forget and output gate [3,T], and the states."""
    state = cell = inputs_T4H.new_zeros(weight_4HH.shape[1])
    opened, states = [], []
    for step_4H in inputs_T4H:
        take, forget, candidate, give = (step_4H + weight_4HH @ state).chunk(4)  # PyTorch's order.
        take, forget, give = take.sigmoid(), forget.sigmoid(), give.sigmoid()
        cell = forget * cell + take * candidate.tanh()
        state = give * cell.tanh()
        opened.append(torch.stack([take.mean(), forget.mean(), give.mean()]))
        states.append(state)
    return torch.stack(opened, 1), torch.stack(states)
