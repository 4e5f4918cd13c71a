"""`python -m evaluate.bench probe`: the linear probe against scikit-learn, its products, and a plain loop."""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

GOAL, POINTS = 10.0, 0.3  # times scikit-learn's speed; percent of accuracy that may be missing
REFERENCE_GAP, ITERATIONS = 1e-7, 2048  # of the float64 run; scikit-learn's largest number
TELLING, APART, MANNER, DECAY = 64, 0.45, 0.3, 0.5  # see made()
STEPS = 300  # of the plain loop


def probe(
    train: int = 40_320,
    test: int = 16_560,
    dims: int = 512,
    classes: int = 60,
    subjects: int = 40,
    gap: float = 1e-4,
    rounds: int = 3,
    epochs: int = 3,
    device: str = "cpu",
) -> int:
    """Fit the probe at NTU 60's size, and scikit-learn's at the same objective; exit 1 if a goal is missed.

    Features are made up, always the same for one size: classes of Gaussian clips whose means differ in 64
    directions of falling weight, each subject with a manner of its own in every class. Half of the subjects
    teach. The L2 strength is the one that scores best on held-out training subjects.

    Both solvers start from nothing and stop at the same gap to the optimum, (F - F*) / F*, F* from a float64
    run: scikit-learn at the first iteration that is within it (searched beforehand, untimed), ours when its
    own bound says so. scikit-learn gets standardised rows, in float64 and in float32, of which the faster
    counts; ours standardises within its time.

    Then CMVRA's protocol: an epoch of Adam in batches of 32, times 500, beside its matrix products alone and
    beside the plain torch loop.

    Args:
        train: Training clips.
        test: Test clips.
        dims: Feature dim.
        classes: Of the clips.
        subjects: Half of them teach.
        gap: Where both stop.
        rounds: Alternated; medians are printed.
        epochs: Of Adam, timed.
        device: Of our solver; scikit-learn and Adam run on the CPU.
    """
    from evaluate.logistic import choose_strength

    taught, asked = made(train, test, dims, classes, subjects)
    print(f"{train:,} + {test:,} x {dims}, {classes} classes, {subjects} subjects; {machine(device)}")
    began = time.perf_counter()
    features, labels, people = taught
    strength, means = choose_strength(features, labels, people, device=device)
    spent = time.perf_counter() - began
    print(
        f"strength {strength:g}, chosen among {len(means)} in {spent:.1f} s: "
        f"{means[strength]:.1%} on held-out training subjects\n"
    )
    reached = [*_convex(taught, asked, strength, gap, rounds, device)]
    _adam(taught, classes, epochs)
    print(f"\n{sum(reached)} of {len(reached)} goals reached")
    return 0 if all(reached) else 1


def made(train: int, test: int, dims: int, classes: int, subjects: int, seed: int = 0) -> "tuple[Any, Any]":
    """Training and test clips: features (n, D) float32, labels (n,), subjects (n,), which no two parts share.

    Direction k of a random basis has weight k^-DECAY (a real encoder's spectrum falls likewise). Within it a
    clip is a draw of deviation 1; class means differ by deviation APART in the first TELLING directions only,
    and every subject shifts every class by deviation MANNER in all.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    half, n = subjects // 2, train + test
    labels = np.concatenate([np.arange(part) % classes for part in (train, test)])
    people = np.arange(train) // classes % half, half + np.arange(test) // classes % (subjects - half)
    who = np.concatenate(people)
    turn = np.linalg.qr(rng.standard_normal((dims, dims)))[0].astype(np.float32)
    means = rng.standard_normal((classes, dims), np.float32) * APART
    means[:, TELLING:] = 0
    manner = rng.standard_normal((subjects * classes, dims), np.float32) * MANNER
    rows = rng.standard_normal((n, dims), np.float32)
    rows += means[labels]
    rows += manner[who * classes + labels]
    rows *= np.arange(1, dims + 1, dtype=np.float32) ** -DECAY
    rows = rows @ turn + rng.standard_normal(dims, np.float32)
    return (rows[:train], labels[:train], who[:train]), (rows[train:], labels[train:], who[train:])


def machine(device: str) -> str:
    """Threads and kernels that both sides have."""
    import torch
    from threadpoolctl import threadpool_info

    from evaluate.logistic_solver import native_bfloat16

    blas: dict[str, Any] = next((each for each in threadpool_info() if each["user_api"] == "blas"), {})
    kernels = f"{blas.get('internal_api')} {blas.get('architecture')}, {blas.get('num_threads')} threads"
    products = "bfloat16" if native_bfloat16(device) else "float32"
    return f"scikit-learn: {kernels}; ours: {products} on {device}, {torch.get_num_threads()} threads"


def _convex(taught: "Any", asked: "Any", strength: float, gap: float, rounds: int, device: str) -> list[bool]:
    """Both solvers in turn, and the table."""
    import numpy as np

    from evaluate.logistic import fit_logistic, standardised
    from evaluate.logistic_solver import solve_path

    features, labels, _ = taught
    rows, mean, scale = standardised(features)
    classes, targets = np.unique(labels, return_inverse=True)
    _say("the optimum, in float64")
    (best,) = solve_path(rows, targets, len(classes), [strength], REFERENCE_GAP, double=True)
    exact = rows.astype(np.float64)
    optimum = objective(exact, targets, best.weights, best.bias, strength) * (1 - best.gap)
    passes: dict[str, float] = {}
    fits: dict[str, Callable[[], Any]] = {
        "ours": lambda: fit_logistic(features, labels, strength, device, gap=gap)
    }
    for kind, given in (("float64", exact), ("float32", rows)):
        name = f"scikit-learn, {kind}"
        _say(f"iterations of {name}")
        count = _iterations(given, exact, targets, strength, optimum * (1 + gap))
        if count is None:
            print(f"  {name} does not come that near within {ITERATIONS} iterations")
            continue
        passes[name] = count
        fits[name] = partial(sklearn_fit, given, targets, strength, count)
    seconds, models = _in_turn(fits, rounds)
    passes["ours"] = models["ours"].passes
    print(f"{'':25}{'seconds':>9}{'passes':>8}{'gap':>10}{'test':>8}{'train':>8}")
    accuracy = {}
    tested = ((asked[0] - mean) * scale).astype(np.float64)
    for name, model in models.items():
        weights, bias = (model.weights, model.bias) if name == "ours" else (model.coef_.T, model.intercept_)
        above = objective(exact, targets, weights, bias, strength) / optimum - 1
        accuracy[name] = 100 * float(((tested @ weights + bias).argmax(axis=1) == asked[1]).mean())
        known = 100 * float(((exact @ weights + bias).argmax(axis=1) == targets).mean())
        shares = f"{accuracy[name]:>8.2f}{known:>8.2f}"
        print(f"  {name:<23}{seconds[name]:>9.3f}{passes[name]:>8g}{above:>10.1e}{shares}")
    _limit(rows, len(classes), seconds["ours"], passes["ours"], device)
    return _judged(seconds, accuracy)


def _in_turn(fits: "dict[str, Callable[[], Any]]", rounds: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds, and the last models."""
    seconds: dict[str, list[float]] = {name: [] for name in fits}
    models: dict[str, Any] = {}
    for number in range(rounds):
        for name in list(fits)[:: 1 if number % 2 else -1]:
            _say(f"round {number + 1} of {rounds}: {name}")
            began = time.perf_counter()
            models[name] = fits[name]()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(each) for name, each in seconds.items()}, {
        name: models[name] for name in fits
    }


def _judged(seconds: dict[str, float], accuracy: dict[str, float]) -> list[bool]:
    """Against the faster of scikit-learn's two."""
    rivals = sorted((name for name in seconds if name != "ours"), key=lambda name: seconds[name])
    rival = rivals[0]
    for slower in rivals[1:]:
        print(f"  ours: {seconds[slower] / seconds['ours']:.1f}x the speed of {slower}")
    ratio, points = seconds[rival] / seconds["ours"], accuracy["ours"] - accuracy[rival]
    return [
        _judge(f"{ratio:.1f}x the speed of {rival}", f"{GOAL:g}x", ratio >= GOAL),
        _judge(f"{points:+.2f} points of accuracy", f"-{POINTS:g}", points >= -POINTS),
    ]


def _iterations(
    rows: "np.ndarray", exact: "np.ndarray", targets: "np.ndarray", strength: float, most: float
) -> int | None:
    """The least number of lbfgs iterations after which scikit-learn's objective is at most ``most``."""

    def within(count: int) -> bool:
        model = sklearn_fit(rows, targets, strength, count)
        return objective(exact, targets, model.coef_.T, model.intercept_, strength) <= most

    high = 8
    while not within(high):
        high *= 2
        if high > ITERATIONS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if within(middle) else (middle, high)
    return high


def sklearn_fit(rows: "np.ndarray", targets: "np.ndarray", strength: float, iterations: int) -> "Any":
    """scikit-learn's default solver at the same objective, stopped by its number of iterations alone."""
    import warnings

    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1 / (len(rows) * strength), solver="lbfgs", tol=1e-12, max_iter=iterations)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged further
        return model.fit(rows, targets)


def objective(
    rows: "np.ndarray", targets: "np.ndarray", weights: "np.ndarray", bias: "np.ndarray", strength: float
) -> float:
    """Mean cross-entropy + strength / 2 ||weights||^2, in float64."""
    import numpy as np
    from scipy.special import logsumexp

    logits = rows @ weights.astype(np.float64) + bias
    own = logits[np.arange(len(rows)), targets]
    return float((logsumexp(logits, axis=1) - own).mean() + 0.5 * strength * np.square(weights).sum())


def _limit(rows: "np.ndarray", classes: int, seconds: float, passes: float, device: str) -> None:
    """Ours against the same products, alone."""
    import torch

    from evaluate.logistic_solver import native_bfloat16

    kind = torch.bfloat16 if native_bfloat16(device) else torch.float32
    x = torch.from_numpy(rows).to(device, kind)
    weights = torch.zeros((rows.shape[1], classes), dtype=kind, device=device)
    logits = x @ weights

    def one() -> None:
        x @ weights
        float((x.T @ logits)[0, 0])  # waits for a GPU

    alone = _fastest(one)
    flops = 4e-9 * rows.size * classes
    rate, most = passes * flops / seconds, flops / alone
    print(
        f"  a pass is {flops:.2f} GFLOP: ours {rate:.0f} GFLOP/s, everything included; its products alone "
        f"{most:.0f} GFLOP/s in {str(kind).removeprefix('torch.')}: {rate / most:.2f} of that"
    )


def _adam(taught: "Any", classes: int, epochs: int) -> None:
    """CMVRA's protocol."""
    import numpy as np

    from evaluate.adam import Layer, Schedule, one_thread

    features, labels, _ = taught
    schedule = Schedule()
    layer = Layer(features, labels, classes, None, 0)
    gradient = np.empty_like(layer.parameters)
    blocks = [layer.rows[start : start + schedule.batch] for start in range(0, len(layer), schedule.batch)]
    held = np.zeros((schedule.batch, classes), np.float32)

    def products() -> None:
        for block in blocks:
            logits = held[: len(block)]
            np.dot(block, layer.parameters, out=logits)
            np.dot(block.T, logits, out=gradient)

    with one_thread():
        alone = _fastest(products, epochs)
        ours = _fastest(lambda: layer.train_epoch(schedule.batch, schedule.learning_rate), epochs)
    plain = _plain_step(features, labels, classes, schedule) * len(blocks)
    moved, flops = 2e-9 * layer.rows.nbytes, 4e-9 * layer.rows.size * classes
    print(
        f"\nCMVRA's protocol: Adam on {schedule.batch} clips a step, {len(blocks):,} steps an epoch, 1 thread"
    )
    print(f"{'':24}{'s/epoch':>9}{'s/500':>8}{'GFLOP/s':>9}{'GB/s':>7}{'of limit':>10}")
    for name, spent in (("ours", ours), ("products alone (limit)", alone), ("plain torch loop", plain)):
        rates = f"{flops / spent:>9.1f}{moved / spent:>7.2f}{alone / spent:>10.2f}"
        print(f"  {name:<22}{spent:>9.3f}{500 * spent:>8.1f}{rates}")


def _plain_step(features: "np.ndarray", labels: "np.ndarray", classes: int, schedule: "Any") -> float:
    """Seconds of a step of what one would write."""
    import torch

    layer = torch.nn.Linear(features.shape[1], classes)
    optimizer = torch.optim.Adam(layer.parameters(), lr=schedule.learning_rate)
    x, y = (torch.from_numpy(array[: STEPS * schedule.batch]) for array in (features, labels))
    batches = list(zip(x.split(schedule.batch), y.split(schedule.batch), strict=True))

    def steps() -> None:
        for rows, targets in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(rows), targets).backward()
            optimizer.step()

    return _fastest(steps, 2) / len(batches)


def _fastest(work: Callable[[], object], repeats: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def _judge(reached: str, goal: str, good: bool) -> bool:
    print(f"  ours: {reached} (goal {goal}): {'reached' if good else 'MISSED'}")
    return good


def _say(message: str) -> None:
    print(f"... {message}", file=sys.stderr, flush=True)
