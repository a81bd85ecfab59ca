"""python -m package"""

from .tasks import answer

print(answer())
