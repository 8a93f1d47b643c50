"""From a run's configuration to Detectron2's: a recipe (the scale), a backbone, the schedule."""

from __future__ import annotations

from detectron2.config import CfgNode, get_cfg

from rio_bench.config import RunConfig, backbone_file, recipe_file
from rio_bench.scaling import warmup_iterations


def build_cfg(config: RunConfig, num_classes: int, device: str) -> CfgNode:
    """Detectron2's configuration of a run (frozen).

    Steps of the learning rate are fractions of the schedule (2/3 and 8/9: 60k and 80k of 90k iterations), so that a
    shorter schedule keeps its shape.
    """
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "SGD"
    cfg.SOLVER.STEP_FRACTIONS = []
    cfg.SOLVER.GRADIENT_NORM = None
    cfg.merge_from_file(str(recipe_file(config.recipe)))
    cfg.merge_from_file(str(backbone_file(config.backbone)))
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    if config.weights is None:
        use_norm_that_trains(cfg)
    cfg.SOLVER.IMS_PER_BATCH = config.batch_size
    cfg.SOLVER.MAX_ITER = config.iterations
    if config.learning_rate is not None:
        cfg.SOLVER.BASE_LR = config.learning_rate
    steps = [round(fraction * config.iterations) for fraction in cfg.SOLVER.STEP_FRACTIONS]
    cfg.SOLVER.STEPS = tuple(step for step in steps if step < config.iterations)  # of fewer than five some are none
    cfg.SOLVER.WARMUP_ITERS = warmup_iterations(config)
    cfg.freeze()
    return cfg


def use_norm_that_trains(cfg: CfgNode) -> None:
    """Frozen statistics and frozen stages fit ImageNet weights only: random weights need batch norm throughout."""
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    if cfg.MODEL.RESNETS.NORM == "FrozenBN":
        cfg.MODEL.RESNETS.NORM = "BN"
