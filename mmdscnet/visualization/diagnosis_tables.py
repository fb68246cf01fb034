"""The numbers of a diagnosis as tables: text of the same rows for Markdown and for a page."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

UNKNOWN = '\N{EN DASH}'


class Table(NamedTuple):
    """A table of text.

    Attributes:
        heading: Its heading.
        note: What it is about, and in which composition it was measured.
        columns: Headings of the columns, the first that of the names.
        rows: One text a column and row.
    """

    heading: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Measure(NamedTuple):
    """A number of a diagnosis.

    Attributes:
        name: What the table calls it.
        path: Its keys, joined by dots.
        form: Its format.
        reading: How to read it, one sentence.
    """

    name: str
    path: str
    form: str
    reading: str


GROUPS = (
    Measure(
        'purity, background', 'groups.purity.background', '.3f',
        "Share of the background group's pixels that are of its most frequent true class; 1 is a "
        'group of one thing.',
    ),
    Measure(
        'purity, foreground', 'groups.purity.foreground', '.3f',
        'The same of class groups, each group one vote; high purity with low agreement is a class '
        'group full of background.',
    ),
    Measure(
        'agreement, background', 'groups.agreement.background', '.3f',
        "Share of the background group's pixels that are truly background.",
    ),
    Measure(
        'agreement, foreground', 'groups.agreement.foreground', '.3f',
        "Share of a class group's pixels that are truly of the class: what PGCL calls the class is "
        'right to this degree.',
    ),
    Measure(
        'agreement of CAM labels, foreground', 'pseudo_labels.agreement.foreground', '.3f',
        "The same of the regions that the plain CAM labels at the head's threshold, the keys of "
        'SGCL: the groups earn their clustering where theirs is higher.',
    ),
    Measure(
        'mIoU of groups (%)', 'groups.miou', '.2f',
        'The groups taken as a segmentation, at the size of the features.',
    ),
    Measure(
        'mIoU of CAM labels (%)', 'pseudo_labels.miou', '.2f',
        "The plain CAM's labels at the head's threshold on the same pixels: above that of the "
        'groups, clustering has lost what the CAM knew.',
    ),
)  # fmt: skip
PLACE = (
    Measure(
        'variance of embeddings by place', 'place.share', '.3f',
        'Share of the variance of the pixel embeddings that the place in the image explains by '
        'itself, the same in all images: what padding leaves at the borders, and groups may follow '
        'it.',
    ),
)  # fmt: skip
SIMILARITY = (
    Measure(
        'groups: positives', 'similarity.groups.positives.mean', '.3f',
        'Mean cosine of groups of the same class in two images: PGCL pulls it towards 1.',
    ),
    Measure(
        'groups: negatives', 'similarity.groups.negatives.mean', '.3f',
        'Mean cosine of groups of two classes: what matters is the distance to the positives.',
    ),
    Measure(
        'groups: background', 'similarity.groups.background.mean', '.3f',
        'Mean cosine of a class group and a background group: near the positives, the groups do '
        'not separate object and surroundings.',
    ),
    Measure(
        'nodes and keys: positives', 'similarity.nodes.positives.mean', '.3f',
        'Mean cosine of a class node and the pseudo-labelled region of the class in another image, '
        'as in SGCL.',
    ),
    Measure(
        'nodes and keys: own image', 'similarity.nodes.own.mean', '.3f',
        'The same within one image: much above the other positives, SGCL is satisfied by its image '
        'alone.',
    ),
    Measure(
        'nodes and keys: negatives', 'similarity.nodes.negatives.mean', '.3f',
        'Mean cosine of a class node and a region of another class.',
    ),
    Measure(
        'nodes and keys: background', 'similarity.nodes.background.mean', '.3f',
        'Mean cosine of a class node and a background region.',
    ),
)  # fmt: skip
ENRICHED = (
    Measure(
        'variation, enriched to features', 'enriched.std_ratio', '.3f',
        'Standard deviation within the image of the enriched part of the evidence to that of the '
        'feature part: 0 means that the dual stream locates nothing, above 1 that it decides.',
    ),
    Measure(
        'level, enriched to features', 'enriched.mean_ratio', '.3f',
        'The same of the absolute means over the image: a bias that moves the image score and no '
        'border; far above the ratio of variations, the dual stream mostly scores the image.',
    ),
    Measure(
        'location by the plain evidence', 'enriched.location.plain', '.3f',
        "Correlation over the image's pixels of the plain classifier's evidence with the true mask "
        'of the class.',
    ),
    Measure(
        'location by the refined evidence', 'enriched.location.refined', '.3f',
        'The same of the refined evidence: above the plain, refining helps to locate.',
    ),
    Measure(
        'location by its feature part', 'enriched.location.feature', '.3f',
        'The same of what the refined classifier makes of the features.',
    ),
    Measure(
        'location by its enriched part', 'enriched.location.enriched', '.3f',
        'The same of the enriched part: below that of the features, to weigh it more does harm.',
    ),
    Measure(
        'attention: entropy', 'attention.entropy', '.3f',
        'Of Eq. 10, as a share of the largest: 1 reads all groups alike (a bias), 0 is a hard '
        'choice of a group.',
    ),
    Measure(
        'attention: agreement, foreground', 'attention.agreement.foreground', '.3f',
        'Share of the pixels that read a class most which are truly of it; as low as that of the '
        'groups where the attention only repeats them.',
    ),
    Measure(
        'attention: mIoU (%)', 'attention.miou', '.2f',
        'The most read group taken as a segmentation.',
    ),
)  # fmt: skip
AREAS = (
    Measure(
        'mIoU of plain CAMs (%)', 'areas.plain.miou', '.2f',
        'At the threshold that is best on these very images, so it is optimistic, and equally so '
        'for both.',
    ),
    Measure('threshold of plain CAMs', 'areas.plain.bg_thr', '.2f', 'That threshold.'),
    Measure(
        'mIoU of refined CAMs (%)', 'areas.refined.miou', '.2f',
        'Likewise at its own best threshold.',
    ),
    Measure(
        'mIoU of the feature part alone (%)', 'areas.feature_part.miou', '.2f',
        'CAMs of what the refined classifier makes of the features, without the enriched: above '
        'the refined, the dual stream blurs what the second classifier knows.',
    ),
    Measure(
        'mIoU of the enriched part alone (%)', 'areas.enriched_part.miou', '.2f',
        'CAMs of the enriched part without the features.',
    ),
    Measure('threshold of refined CAMs', 'areas.refined.bg_thr', '.2f', 'That threshold.'),
    Measure(
        'pixels mended (%)', 'areas.mended', '.2f',
        'Share of all pixels that are wrong before and right after refining.',
    ),
    Measure(
        'pixels spoiled (%)', 'areas.spoiled', '.2f',
        'Share that is right before and wrong after: above the mended, refining does harm.',
    ),
    Measure(
        'foreground gained rightly (%)', 'areas.foreground.gained_right', '.2f',
        'Share of all pixels that a class newly covers, and is there.',
    ),
    Measure(
        'foreground gained wrongly (%)', 'areas.foreground.gained_wrong', '.2f',
        'Share that a class newly covers, and is not there.',
    ),
    Measure(
        'foreground lost rightly (%)', 'areas.foreground.lost_right', '.2f',
        'Share that a class gives up, and is not there.',
    ),
    Measure(
        'foreground lost wrongly (%)', 'areas.foreground.lost_wrong', '.2f',
        'Share that a class gives up, and is there.',
    ),
)  # fmt: skip
LEAKAGE = (
    Measure(
        'loss_cls', 'leakage.loss_cls', '.4f',
        'Of the plain classifier, which knows no label.',
    ),
    Measure(
        'loss_cls_refined, labels given', 'leakage.loss_refined_given', '.4f',
        'As in training: far below loss_cls, labels reach the scores through the nodes.',
    ),
    Measure(
        'loss_cls_refined, labels predicted', 'leakage.loss_refined_predicted', '.4f',
        'The graph is told what the plain classifier predicts: the distance to the line above is '
        'what the given labels are worth to the loss.',
    ),
    Measure(
        "loss_cls_refined, another image's labels", 'leakage.loss_refined_permuted', '.4f',
        'The graph is told the labels of the next image, the target is the true ones: equal to '
        'the line of given labels, the graph adds nothing to the score.',
    ),
    Measure(
        'plain score, present', 'leakage.scores_plain.present_told', '.3f',
        'Mean image-level logit of present classes.',
    ),
    Measure(
        'plain score, absent', 'leakage.scores_plain.absent_untold', '.3f',
        'Mean image-level logit of absent classes.',
    ),
    Measure(
        'refined score, present and told', 'leakage.scores_given.present_told', '.3f',
        'With given labels, as in training.',
    ),
    Measure(
        'refined score, present and not told', 'leakage.scores_permuted.present_untold', '.3f',
        "With another image's labels: the distance to the line above is what the node of a "
        'class that is there adds to its score.',
    ),
    Measure(
        'refined score, absent and told', 'leakage.scores_permuted.absent_told', '.3f',
        'A class that is not there, but the graph was told so.',
    ),
    Measure(
        'refined score, absent and not told', 'leakage.scores_permuted.absent_untold', '.3f',
        'The distance to the line above is pure leakage: what a node adds without any evidence.',
    ),
)  # fmt: skip
TRAINING = (
    'Measured in training composition: the graph joins the images of a batch and the class memory; '
    'batch norm uses its running statistics.'
)
INFERENCE = 'Measured at inference: each image has its own nodes and the class memory.'
ALONE = 'Each image by itself, labels given.'
OVERVIEWS = (
    ('Groups against masks', ALONE, GROUPS + PLACE),
    ('Similarity of pairs', TRAINING, SIMILARITY),
    ('Use of the enriched features', f'{TRAINING} Labelled classes only.', ENRICHED),
    ('Gains and losses of area', f'{INFERENCE} Labels given.', AREAS),
    ('Labels in the scores', TRAINING, LEAKAGE),
)


def tabulate(diagnoses: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """Make the tables of a diagnosis.

    Args:
        diagnoses: Numbers of ``mmdscnet.apis.diagnosis.diagnose`` by the name of the checkpoint, in
            the order of training. Tables by class are those of the last.

    Returns:
        The tables; measures that no checkpoint has are left out.

    Raises:
        ValueError: If there is no diagnosis.
    """
    if not diagnoses:
        raise ValueError('diagnoses is empty: give the numbers of at least one checkpoint')
    tables = [_compare(heading, note, measures, diagnoses) for heading, note, measures in OVERVIEWS]
    name, last = list(diagnoses.items())[-1]
    tables.append(_list_classes(name, last))
    if 'by_class' in last['areas']:
        tables.append(_list_changes(name, last))
    return [table for table in tables if table.rows]


def as_markdown(table: Table) -> str:
    """Write a table as Markdown.

    Args:
        table: The table.

    Returns:
        Text that ends in a line break.
    """
    lines = [f'## {table.heading}', '', table.note, '']
    for row in (table.columns, ['---'] * len(table.columns), *table.rows):
        lines.append('| ' + ' | '.join(text.replace('|', '\\|') for text in row) + ' |')
    return '\n'.join(lines) + '\n'


def as_html(table: Table) -> str:
    """Write a table as HTML, without its heading.

    Args:
        table: The table.

    Returns:
        Note and ``<table>``; its text is escaped.
    """
    head, *body = (
        ''.join(f'<{tag}>{escape(text)}</{tag}>' for text in row)
        for tag, row in (('th', table.columns), *(('td', row) for row in table.rows))
    )
    rows = ''.join(f'<tr>{row}</tr>\n' for row in body)
    return (
        f'<p class="note">{escape(table.note)}</p>\n<div class="wide"><table>\n'
        f'<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody>\n</table></div>\n'
    )


def look_up(numbers: Mapping[str, Any], path: str) -> float | None:
    """Find a number of a diagnosis.

    Args:
        numbers: The diagnosis.
        path: Keys, joined by dots.

    Returns:
        The number; None where the diagnosis has none.
    """
    found: Any = numbers
    for key in path.split('.'):
        found = None if found is None else found.get(key)
    return found


def _compare(
    heading: str,
    note: str,
    measures: Sequence[Measure],
    diagnoses: Mapping[str, Mapping[str, Any]],
) -> Table:
    rows = []
    for measure in measures:
        values = [look_up(numbers, measure.path) for numbers in diagnoses.values()]
        if any(value is not None for value in values):
            texts = [_spell(value, measure.form) for value in values]
            rows.append([measure.name, *texts, measure.reading])
    return Table(heading, note, ['measure', *diagnoses, 'how to read it'], rows)


def _list_classes(name: str, numbers: Mapping[str, Any]) -> Table:
    rows = [
        [
            class_name,
            str(groups['slots']),
            *(_spell(groups[key], '.3f') for key in ('purity', 'agreement', 'empty')),
            _spell(groups['iou'], '.1f'),
            _spell(numbers['pseudo_labels']['by_class'][class_name]['iou'], '.1f'),
        ]
        for class_name, groups in numbers['groups']['by_class'].items()
    ]
    columns = ['class', 'groups', 'purity', 'agreement', 'empty', 'IoU (%)', 'CAM label IoU (%)']
    note = f'{ALONE} Checkpoint {name}. Empty is the share of groups that no pixel joined.'
    return Table('Groups by class', note, columns, rows)


def _list_changes(name: str, numbers: Mapping[str, Any]) -> Table:
    rows = [
        [class_name, *(_spell(share, '.3f') for share in changes.values())]
        for class_name, changes in numbers['areas']['by_class'].items()
    ]
    columns = ['class', 'gained rightly', 'gained wrongly', 'lost rightly', 'lost wrongly']
    note = (
        f'{INFERENCE} Checkpoint {name}. In per cent of all pixels, from plain to refined CAMs, '
        'each at its best threshold: a class gains rightly where it is truly there, and loses '
        'rightly where it is not.'
    )
    return Table('Gains and losses by class', note, columns, rows)


def _spell(value: float | None, form: str) -> str:
    return UNKNOWN if value is None else format(value, form)
