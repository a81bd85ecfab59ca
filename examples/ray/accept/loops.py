"""joblib's loops and a grid search: the same by the backend ray as by joblib's own."""

import joblib
import numpy as np
from ray.util.joblib import register_ray
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score


def work(x, power=2):
    return x**power


def point(name, ok, evidence):
    print("PASS" if ok else "FAIL", f"apps.joblib.{name}", evidence)


register_ray()
x, y = load_iris(return_X_y=True)


def search():
    s = GridSearchCV(RandomForestClassifier(n_estimators=10, random_state=0), {"max_depth": [1, 3], "min_samples_leaf": [1, 5]}, cv=3)
    s.fit(x, y)
    return s.best_params_, s.best_score_.round(6), s.cv_results_["mean_test_score"].round(6).tolist()


want = search()
with joblib.parallel_backend("ray"):
    got = search()
point("grid", got == want, f"GridSearchCV: {got[0]} {got[1]}, alone {want[0]} {want[1]}")
with joblib.parallel_config(backend="ray", n_jobs=2):
    got = joblib.Parallel()(joblib.delayed(work)(i, power=3) for i in range(50))
    scores = cross_val_score(RandomForestClassifier(n_estimators=5, random_state=0), x, y, cv=3)
point("loop", got == [i**3 for i in range(50)], f"{len(got)} calls")
point("scores", np.allclose(scores, cross_val_score(RandomForestClassifier(n_estimators=5, random_state=0), x, y, cv=3)), f"cross_val_score: {scores.round(3).tolist()}")
with joblib.parallel_backend("ray", n_jobs=2):
    big = np.arange(300_000.0)
    sums = joblib.Parallel(batch_size="auto")(joblib.delayed(np.sum)(big[i:]) for i in range(8))
    try:
        joblib.Parallel()(joblib.delayed(int)(s) for s in "12x")
        raised = False
    except ValueError:
        raised = True
    nested = joblib.Parallel()(joblib.delayed(lambda n: sum(joblib.Parallel(n_jobs=2, backend="threading")(joblib.delayed(work)(i) for i in range(n))))(n) for n in (2, 4))
point("arrays", sums == [float(big[i:].sum()) for i in range(8)], "numpy arguments")
point("error", raised, "the error of a call is raised in the loop")
point("nested", nested == [1, 14], f"loops in loops: {nested}")
