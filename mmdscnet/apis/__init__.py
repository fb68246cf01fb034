"""Whole jobs in one call."""

from mmdscnet.apis.judgement import Judgement, judge, train_and_judge

__all__ = ['Judgement', 'judge', 'train_and_judge']
