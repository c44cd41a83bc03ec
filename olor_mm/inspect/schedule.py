"""Follows the schedules of a run without training."""

from mmengine.runner import EpochBasedTrainLoop, Runner

from .libraries import named
from .report import RollbackReport


def walk_schedule(runner: Runner, report: RollbackReport) -> list[list[dict]]:
    """Options of every parameter group at the first iteration, that of the highest learning rate, and the last."""
    optimizer, loop = runner.optim_wrapper.optimizer, runner.train_loop
    report.iterations = loop.max_iters
    groups = optimizer.param_groups
    kinds = [(group['lr'], group.get('weight_decay')) for group in groups]
    firsts = dict(zip(kinds, groups))  # groups with equal rates change alike, so one of them is stepped
    optimizer.param_groups = list(firsts.values())
    with named('param_scheduler'):
        schedulers = runner.build_param_scheduler(runner.param_schedulers or [])
    optimizer.param_groups = groups
    runner.message_hub.update_info_dict(dict(max_iters=loop.max_iters, max_epochs=loop.max_epochs))
    try:  # the start of training settles the initial rates, or refuses the config
        runner.optim_wrapper.initialize_count_status(runner.model, 0, loop.max_iters)
        with runner.optim_wrapper.optim_context(runner.model):
            pass
    except ValueError as error:
        report.warnings.append(f'Training would stop before its first step: {error}')
    optimizer.param_groups = list(firsts.values())

    def options() -> dict[tuple, dict]:
        return {kind: {key: value for key, value in group.items() if key != 'params'} for kind, group in firsts.items()}

    def highest_rate() -> float:
        return max(group['lr'] for group in firsts.values())

    start = top = options()
    top_rate = highest_rate()
    epoch = len(runner.train_dataloader) if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
    last_change = max((s.end for s in schedulers if not s.by_epoch), default=0)
    for iteration in range(1, loop.max_iters):
        is_epoch = iteration % epoch == 0
        if not is_epoch and iteration >= last_change:
            continue
        for scheduler in schedulers:
            if is_epoch if scheduler.by_epoch else iteration < scheduler.end:
                scheduler.step()
        if highest_rate() > top_rate * (1 + 1e-9):
            top_rate, top, report.top_iteration = highest_rate(), options(), iteration
    points = (start, top, options())
    optimizer.param_groups = groups
    if max((s.begin for s in schedulers), default=0) >= loop.max_iters or last_change > loop.max_iters:
        report.warnings.append(
            f'The schedule is longer than the run of {loop.max_iters:,} iterations: param_scheduler goes on until '
            f'iteration {last_change:,}, so warm-up or decay is cut off.'
        )
    own = [{key: group[key] for key in ('rollback', 'rollback_rule')} for group in groups]
    return [[{**now[kind], **options} for kind, options in zip(kinds, own)] for now in points]
