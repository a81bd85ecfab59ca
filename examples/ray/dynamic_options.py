"""remote and options at run time: functions, lambdas and classes made into tasks as needed."""

import ray


def area(width, height=1):
    return width * height


class Account:
    rate = 2

    def __init__(self, owner, balance=0):
        self.owner, self.balance = owner, balance

    def pay(self, amount):
        self.balance += amount
        return self.balance

    @staticmethod
    def currency():
        return "shells"

    @classmethod
    def with_rate(cls):
        return cls.rate

    def halves(self):
        return self.balance // 2, self.balance - self.balance // 2


ray.init()
plain = ray.remote(area)
tuned = ray.remote(num_cpus=0.5, max_retries=1)(area)
print("tasks:", ray.get([plain.remote(2), plain.remote(2, 3), tuned.remote(4, height=5)]))
print("of a lambda:", ray.get(ray.remote(lambda *a, **k: (a, sorted(k))).remote(1, 2, x=3)))
print("options:", ray.get(plain.options(num_cpus=0, name="area").remote(6, 7)))
pair = ray.remote(lambda: ("left", "right")).options(num_returns=2)
left, right = pair.remote()
print("two returns:", ray.get(right), ray.get(left))
none = ray.remote(lambda: None).options(num_returns=0).remote()
print("no return:", none)

Remote = ray.remote(Account)
ann = Remote.options(num_cpus=0).remote("ann", balance=5)
print("calls:", ray.get([ann.pay.remote(1), ann.pay.remote(amount=4)]))
print("static, of the class:", ray.get([ann.currency.remote(), ann.with_rate.remote()]))
a, b = ann.halves.options(num_returns=2).remote()
print("a method with two returns:", ray.get([a, b]))

# The plain ones are what they were.
print("plain:", area(3, 3), Account("bob", 3).pay(1))
try:
    plain(1)
except TypeError:
    print("a remote function is not called")
try:
    Remote("cy")
except TypeError:
    print("an actor class is not called")

try:
    plain.options(num_cpu=1)
except (TypeError, ValueError):
    print("an option that is none")
