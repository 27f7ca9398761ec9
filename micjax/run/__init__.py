"""Plans and runs: from a YAML file or a command line to a run folder with a result and a report.

A problem module enters the registry of the command line by its functions alone:

    problem(**options) -> InverseProblem        options with defaults, of kinds that JSON knows
    example(key) -> (truth, x, y)               made-up data; may take options as well
    load(file, **options) -> (problem_options, x, y)                                    optional
    stages(problem, x, y, **engine) -> [Stage | Search | errors]                        optional
    conclude(solution, x, y) -> Solution                                                optional
    figures(solution, x, y, truth=None) -> {title: matplotlib Figure}                   optional
    compare(solution, x, y, truth) -> rows                                              optional

docs/plans.md tells what each of them may expect.
"""
