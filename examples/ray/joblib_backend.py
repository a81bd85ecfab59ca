"""joblib's loops over the cluster, and a grid search of scikit-learn where it is installed."""

import sys

try:
    import joblib
except ImportError:
    sys.exit("SKIP joblib is not installed")

import ray
from ray.util.joblib import register_ray


def square(x):
    return x * x


def offset(x, by=0):
    return x + by


ray.init()
register_ray()
with joblib.parallel_backend("ray", n_jobs=2):
    print(joblib.Parallel()(joblib.delayed(square)(i) for i in range(10)))
    print(joblib.Parallel()(joblib.delayed(offset)(i, by=100) for i in range(3)))
    try:
        joblib.Parallel()(joblib.delayed(int)(s) for s in ("1", "x"))
    except ValueError:
        print("an exception of a call is raised here")
