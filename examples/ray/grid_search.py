"""A grid search of scikit-learn over the cluster: only the backend's name is Ray's."""

import sys

try:
    import joblib
    from sklearn.datasets import load_iris
    from sklearn.model_selection import GridSearchCV
    from sklearn.svm import SVC
except ImportError:
    sys.exit("SKIP scikit-learn is not installed")

import ray
from ray.util.joblib import register_ray

ray.init()
register_ray()
x, y = load_iris(return_X_y=True)
search = GridSearchCV(SVC(random_state=0), {"C": [0.01, 1.0, 10.0], "kernel": ["linear", "rbf"]}, cv=3)

with joblib.parallel_backend("ray", n_jobs=2):
    search.fit(x, y)
far = search.best_params_, round(search.best_score_, 3)
print("best:", sorted(far[0].items()), far[1])

search.fit(x, y)
print("the same without:", far == (search.best_params_, round(search.best_score_, 3)))
print("trials:", len(search.cv_results_["params"]))
