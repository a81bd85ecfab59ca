package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"launcher"
)

const actorsPy = `
import sys, launcher

launcher.init(namespace="mixed")

@launcher.remote
class Model:
    def __init__(self, k):
        self.k = k
    def predict(self, text, numbers):
        return {"words": len(text.split()) * self.k, "sum": sum(numbers)}
    def pieces(self, n):
        for i in range(n):
            yield i * self.k
    def fail(self):
        raise ValueError("not this")

@launcher.remote
class Async:
    async def pieces(self, n):
        for i in range(n):
            yield [i]

if sys.argv[1] == "serve":
    m = Model.options(name="model", lifetime="detached").remote(2)
    a = Async.options(name="async", lifetime="detached").remote()
    launcher.get([m.__ray_ready__.remote(), a.__ray_ready__.remote()])
else:
    c = launcher.get_actor("c")
    print(launcher.get([c.Add.remote(1) for _ in range(3)]))
    print(launcher.get(c.Mean.remote([1.0, 2.0, 4.5])))
    print(launcher.get(c.Mean.remote(launcher.put([3.0, 4.0]))))
    print([launcher.get(r) for r in c.UpTo.remote(3)])
    print(launcher.get(c.Numbers.remote(3)))
    print(launcher.get(c.Relay.remote(launcher.get_actor("d"), 7)))
    try:
        c.Missing
    except AttributeError as e:
        print(e)
    try:
        launcher.get(c.Add.remote("x"))
    except Exception as e:
        print("not a int" in str(e))
    launcher.kill(c)
    try:
        launcher.get(c.Value.remote())
    except launcher.exceptions.RayActorError as e:
        print("killed" in str(e))
`

// Numbers is a slice that Go passes on as bytes, and other languages get as a list.
var Numbers = launcher.Method(func(_ *counter, _ context.Context, n int) ([]float64, error) {
	return slices.Repeat([]float64{0.5}, n), nil
}, launcher.Name("Numbers"))

func init() {
	programs["actors for python"] = program(func(ctx context.Context) error {
		for name, n := range map[string]int{"c": 10, "d": 0} {
			h, err := Counters.New(ctx, n, launcher.ActorName(name), launcher.Namespace("mixed"), launcher.Detached())
			if err != nil {
				return err
			}
			if err := h.Ready(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	programs["actors of python"] = program(func(ctx context.Context) error {
		m, err := launcher.FindActor[any](ctx, "model", launcher.Namespace("mixed"))
		if err != nil {
			return err
		}
		v, err := launcher.MethodNamed[map[string]float64]("predict").Submit(ctx, m, "a text", []float64{1, 2.5}).Get(ctx)
		fmt.Println(v, err)
		a, err := launcher.FindActor[any](ctx, "async", launcher.Namespace("mixed"))
		if err != nil {
			return err
		}
		for v, err := range launcher.MethodNamed[int]("pieces").Stream(ctx, m, 3).All(ctx) {
			fmt.Println(v, err)
		}
		for v, err := range launcher.MethodNamed[[]int]("pieces").Stream(ctx, a, 2).All(ctx) {
			fmt.Println(v, err)
		}
		_, err = launcher.MethodNamed[any]("fail").Submit(ctx, m).Get(ctx)
		task, ok := errors.AsType[*launcher.TaskError](err)
		fmt.Println(ok && task.Code == "task" && strings.Contains(task.Message, "not this"))
		if err := m.Kill(); err != nil {
			return err
		}
		_, err = launcher.MethodNamed[any]("fail").Submit(ctx, m).Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrActorDied))
		return a.Kill()
	})
}

// TestActorsPython: Python and Go call each other's actors.
func TestActorsPython(t *testing.T) {
	py, err := filepath.Abs(".venv/bin/python")
	if err != nil || exec.Command(py, "-c", "import cloudpickle").Run() != nil {
		t.Skip("SKIP: .venv has no Python with cloudpickle: make setup makes it")
	}
	c := up(t, "nodes = 1\n")
	if err := os.WriteFile(filepath.Join(c.h.Work, "actors.py"), []byte(actorsPy), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := c.h.Run("run", "--", py, "actors.py", "serve"); r.Code != 0 {
		t.Fatal(r)
	}
	if r := c.run("actors of python"); r.Code != 0 || r.Out != "map[sum:3.5 words:4] <nil>\n0 <nil>\n2 <nil>\n4 <nil>\n[0] <nil>\n[1] <nil>\ntrue\ntrue\n" {
		t.Error(r)
	}
	if r := c.run("actors for python"); r.Code != 0 {
		t.Fatal(r)
	}
	const want = "[11, 12, 13]\n2.5\n3.5\n[14, 15, 16]\n[0.5, 0.5, 0.5]\n7\nactor launcher_test.counter has no method 'Missing'\nTrue\nTrue\n"
	if r := c.h.Run("run", "--", py, "actors.py", "call"); r.Code != 0 || r.Out != want {
		t.Error(r)
	}
}
