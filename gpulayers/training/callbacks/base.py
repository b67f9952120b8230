"""What all callbacks share: `Callback`, and the list of them that a trainer goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from gpulayers.errors import CheckpointError, ParameterError
from gpulayers.training.history import Epoch

if TYPE_CHECKING:
    from gpulayers.training.trainer import Trainer

__all__ = ["Callback", "Callbacks"]


class Callback:
    """Base class: override the methods for the moments of interest.

    What a callback must remember for an interrupted run to go on as if nothing had happened, it
    returns from `state_dict`; a checkpoint keeps it. The checkpoint after an epoch is written
    behind `on_epoch_end`, so it knows of that epoch.
    """

    early = False  # True: before the other callbacks, in whatever order they are given
    holds_weights = False  # True while the network has other weights than those that are trained

    def on_fit_begin(self, trainer: Trainer) -> None:
        """`fit` begins or goes on; called in reverse order."""

    def on_step_end(self, trainer: Trainer) -> None:
        """A batch is done and the parameters are updated."""

    def on_validation_begin(self, trainer: Trainer) -> None:
        """The epoch's batches are done."""

    def on_epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        """The epoch is recorded, not yet saved; the network has the weights that were evaluated."""

    def on_validation_end(self, trainer: Trainer) -> None:
        """Behind `on_epoch_end`; called in reverse order."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """All epochs are done, or one of the callbacks stopped the run."""

    def on_close(self, trainer: Trainer) -> None:
        """`fit` is left, in whatever way: close files."""

    def state_dict(self) -> dict[str, Any]:
        """What must be remembered: plain values, lists, dictionaries, arrays; ``{}`` if nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class Callbacks:
    """The callbacks of one trainer.

    Parameters
    ----------
    callbacks : iterable of Callback, or of functions ``f(trainer, epoch_record)``
        A function is called after each epoch, behind the checkpoint.

    Raises
    ------
    ParameterError
        If something else is among them, or one object twice.
    """

    def __init__(self, callbacks: Iterable[Callback | Callable[..., Any]] | Callback) -> None:
        if isinstance(callbacks, Callback):
            given: list[Any] = [callbacks]
        elif isinstance(callbacks, type) or not isinstance(callbacks, Iterable):
            raise _none_of_ours(callbacks)
        else:
            given = list(callbacks)
        for one in given:
            if isinstance(one, type) or not (isinstance(one, Callback) or callable(one)):
                raise _none_of_ours(one)
        if len({id(one) for one in given}) != len(given):
            raise ParameterError("Trainer: one callback object is given twice")
        hooked = [one for one in given if isinstance(one, Callback)]
        self.hooked = sorted(hooked, key=lambda one: not one.early)
        self.functions: list[Any] = [one for one in given if not isinstance(one, Callback)]
        plain = Callback.on_step_end
        self._steppers = [one for one in self.hooked if type(one).on_step_end is not plain]

    def fit_begin(self, trainer: Trainer) -> None:
        for one in reversed(self.hooked):
            one.on_fit_begin(trainer)

    def step_end(self, trainer: Trainer) -> None:
        for one in self._steppers:
            one.on_step_end(trainer)

    @property
    def watch_steps(self) -> bool:
        """Whether one of them is called after each batch."""
        return bool(self._steppers)

    def validation_begin(self, trainer: Trainer) -> None:
        for one in self.hooked:
            one.on_validation_begin(trainer)

    def epoch_end(self, trainer: Trainer, record: Epoch) -> None:
        for one in self.hooked:
            one.on_epoch_end(trainer, record)

    def validation_end(self, trainer: Trainer) -> None:
        for one in reversed(self.hooked):
            one.on_validation_end(trainer)

    def saved(self, trainer: Trainer, record: Epoch) -> None:
        """The epoch's checkpoint is written: the functions' turn."""
        for function in self.functions:
            function(trainer, record)

    def fit_end(self, trainer: Trainer) -> None:
        for one in self.hooked:
            one.on_fit_end(trainer)

    def close(self, trainer: Trainer) -> None:
        for one in self.hooked:
            one.on_close(trainer)

    @property
    def hold_weights(self) -> bool:
        """Whether one of them gave the network other weights than those that are trained."""
        return any(one.holds_weights for one in self.hooked)

    def state(self) -> list[dict[str, Any]]:
        """The state of each that has one, for a checkpoint."""
        states = [(type(one).__name__, one.state_dict()) for one in self.hooked]
        return [{"name": name, "state": state} for name, state in states if state]

    def load(self, states: list[dict[str, Any]], where: str) -> None:
        """Give each the state it had.

        Raises
        ------
        ParameterError
            If those with a state are others than in the checkpoint.
        CheckpointError
            If a state does not fit.
        """
        ours = [one for one in self.hooked if one.state_dict()]
        names = [type(one).__name__ for one in ours]
        saved = [entry["name"] for entry in states]
        if names != saved:
            raise ParameterError(
                f"resume: the callbacks that keep something are {', '.join(names) or 'none'}, but "
                f"the run in {where} has {', '.join(saved) or 'none'}; going on needs the same"
            )
        for one, entry in zip(ours, states, strict=True):
            try:
                one.load_state_dict(entry["state"])
            except (KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(
                    f"the state of the callback {entry['name']} in {where} does not fit ({error!r})"
                ) from error


def _none_of_ours(given: Any) -> ParameterError:
    return ParameterError(
        "Trainer: callbacks must be Callback objects or functions "
        f"callback(trainer, epoch_record), in a list, got {given!r}"
    )
