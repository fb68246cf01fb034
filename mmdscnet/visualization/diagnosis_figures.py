"""Curves over checkpoints and histograms of similarities, as PNG."""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdscnet.atomic_write import atomic_path
from mmdscnet.visualization.diagnosis_tables import look_up
from mmdscnet.visualization.threshold_curve import RUN_COLOURS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ('positives', 'negatives', 'background', 'own')
TITLES = {'groups': 'groups (PGCL)', 'nodes': 'nodes and keys (SGCL)'}
CURVES = {
    'groups against masks': {
        'purity, foreground': 'groups.purity.foreground',
        'agreement, foreground': 'groups.agreement.foreground',
        'agreement of CAM labels': 'pseudo_labels.agreement.foreground',
        'agreement, background': 'groups.agreement.background',
    },
    'cosine of groups': {kind: f'similarity.groups.{kind}.mean' for kind in KINDS if kind != 'own'},
    'cosine of nodes and keys': {kind: f'similarity.nodes.{kind}.mean' for kind in KINDS},
    'enriched part to feature part': {
        'variation in the image': 'enriched.std_ratio',
        'level': 'enriched.mean_ratio',
    },
    'mIoU (%)': {
        'plain CAMs': 'areas.plain.miou',
        'refined CAMs': 'areas.refined.miou',
        'feature part': 'areas.feature_part.miou',
        'groups': 'groups.miou',
        'attention': 'attention.miou',
    },
    'classification loss': {
        'plain': 'leakage.loss_cls',
        'refined, labels given': 'leakage.loss_refined_given',
        'refined, labels predicted': 'leakage.loss_refined_predicted',
        "refined, another image's": 'leakage.loss_refined_permuted',
    },
}


def draw_curves(path: str | os.PathLike[str], diagnoses: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the measures over the checkpoints, one panel a subject.

    Args:
        path: PNG to write; missing parent folders are made.
        diagnoses: Numbers by the name of the checkpoint, in the order of training.

    Raises:
        ValueError: If there is no diagnosis.
    """
    if not diagnoses:
        raise ValueError('diagnoses is empty: give the numbers of at least one checkpoint')
    figure = _make_figure((11, 7.2))
    places = np.arange(len(diagnoses))
    for axes, (title, lines) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        for number, (label, keys) in enumerate(lines.items()):
            found = [look_up(numbers, keys) for numbers in diagnoses.values()]
            values = np.array([np.nan if value is None else value for value in found])
            if np.isfinite(values).any():
                axes.plot(places, values, 'o-', ms=4, color=RUN_COLOURS[number], label=label)
        axes.set_title(title, fontsize=10)
        axes.set_xticks(places, diagnoses, fontsize=8)
        # Below the panel, where it covers no line.
        _finish_axes(axes, loc='upper center', bbox_to_anchor=(0.5, -0.1), ncols=2)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def draw_places(path: str | os.PathLike[str], place: Mapping[str, Any]) -> None:
    """Draw which share of each row and column is foreground, by the masks and by the groups.

    Groups that follow the objects have the form of the masks; a step near a border is padding.

    Args:
        path: PNG to write; missing parent folders are made.
        place: Shares ``mask_by_row``, ``groups_by_row``, ``mask_by_column`` and
            ``groups_by_column``, None where no pixel is judged.
    """
    figure = _make_figure((11, 3.2))
    for axes, name in zip(figure.subplots(1, 2), ('row', 'column'), strict=True):
        for number, kind in enumerate(('mask', 'groups')):
            found = place[f'{kind}_by_{name}']
            shares = [np.nan if share is None else share for share in found]
            axes.plot(range(len(shares)), shares, 'o-', ms=3, color=RUN_COLOURS[number], label=kind)
        axes.set(xlabel=f'{name} of the feature map', ylabel='share of foreground')
        axes.set_ylim(bottom=0)
        _finish_axes(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def draw_similarities(
    path: str | os.PathLike[str],
    similarity: Mapping[str, Mapping[str, Any]],
    edges: Sequence[float],
) -> None:
    """Draw how the cosines of the pairs are distributed, one panel a contrast.

    Args:
        path: PNG to write; missing parent folders are made.
        similarity: By contrast, ``groups`` or ``nodes``, and by kind of pair: ``histogram``, the
            number of pairs in each bin, and ``mean``, None without any pair.
        edges: Edges of the bins, ascending, one more than bins.

    Raises:
        ValueError: If a histogram does not fit the edges.
    """
    figure = _make_figure((11, 3.6))
    panels = figure.subplots(1, len(similarity), squeeze=False)[0]
    for axes, (name, kinds) in zip(panels, similarity.items(), strict=True):
        for number, kind in enumerate(KINDS):
            counts = np.asarray(kinds[kind]['histogram'], dtype=float)
            if len(counts) != len(edges) - 1:
                raise ValueError(
                    f'the histogram of {name} {kind} has {len(counts)} bins for {len(edges)} '
                    'edges; give one edge more than bins'
                )
            if counts.any():
                label = f'{kind}: mean {kinds[kind]["mean"]:.2f} of {counts.sum():.0f}'
                shares = counts / counts.sum() / np.diff(edges)
                axes.stairs(shares, edges, color=RUN_COLOURS[number], label=label, lw=1.6)
        axes.set_title(TITLES[name], fontsize=10)
        axes.set(xlabel='cosine similarity', ylabel='density')
        _finish_axes(axes)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png')


def _make_figure(size: tuple[float, float]) -> 'Figure':
    # Heavy, and not wanted by whoever only imports the package.
    from matplotlib.figure import Figure

    # Figure without pyplot: no global backend to set, no window, nothing to close.
    return Figure(figsize=size, dpi=130, layout='constrained')


def _finish_axes(axes: 'Axes', **legend: Any) -> None:
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    axes.spines[['top', 'right']].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=8, **legend)
    else:
        axes.text(0.5, 0.5, 'no value', ha='center', va='center', transform=axes.transAxes)
