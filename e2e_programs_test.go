package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"launcher"
)

// The drivers that the tests run, and their tasks.

var (
	crash   = launcher.Func(crashUntil)
	recurse launcher.Function[int, int]
	sleep   = launcher.Func(sleepFor)
	mean    = launcher.Func(meanOf)
	filled  = launcher.Func2(fill)
	numbers = launcher.StreamFunc(count, launcher.Backpressure(4))
	slow    = launcher.Func(slowSquare)
	gated   = launcher.StreamFunc(count, launcher.Name("gated"), launcher.Resource("gate", 1), launcher.Backpressure(4))
	gate    = launcher.Func(meanOf, launcher.Name("gate"), launcher.Resource("gate", 1))
	whoAmI  = launcher.Func0(func(ctx context.Context) (launcher.TaskInfo, error) {
		info, _ := launcher.Task(ctx)
		return info, nil
	})
)

// seen is what a task sees of its environment.
type seen struct{ Node, Dir, Text, Colour string }

var (
	look = launcher.Func0(func(ctx context.Context) (is seen, err error) {
		info, _ := launcher.Task(ctx)
		b, _ := os.ReadFile("text")
		is = seen{Node: info.Node, Text: string(b[:min(len(b), 9)]), Colour: os.Getenv("COLOUR")}
		is.Dir, err = os.Getwd()
		return is, err
	})
	nested = launcher.Func(func(ctx context.Context, n int) (out []seen, err error) {
		for i := range n {
			is, err := look.Submit(ctx, launcher.OnNode(fmt.Sprintf("local-%d", i))).Get(ctx)
			if err != nil {
				return nil, err
			}
			out = append(out, is)
		}
		return out, nil
	})
)

func init() { recurse = launcher.Func(recursive) }

// crashUntil dies in every attempt before the nth.
func crashUntil(ctx context.Context, n int) (int, error) {
	info, _ := launcher.Task(ctx)
	if info.Attempt < n {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	}
	return info.Attempt, nil
}

func recursive(ctx context.Context, n int) (int, error) {
	if n == 0 {
		return 0, nil
	}
	v, err := recurse.Submit(ctx, n-1).Get(ctx)
	return v + 1, err
}

func sleepFor(ctx context.Context, d time.Duration) (string, error) {
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case <-time.After(d):
		return "slept", nil
	}
}

func meanOf(_ context.Context, v []float64) (float64, error) {
	s := 0.0
	for _, x := range v {
		s += x
	}
	return s / float64(len(v)), nil
}

func fill(_ context.Context, n int, x float64) ([]float64, error) {
	return slices.Repeat([]float64{x}, n), nil
}

func count(_ context.Context, n int) iter.Seq2[int, error] {
	return func(yield func(int, error) bool) {
		for i := range n {
			if !yield(i, nil) {
				return
			}
		}
	}
}

func slowSquare(_ context.Context, x int) (int, error) {
	time.Sleep(2 * time.Millisecond) // sleep: it is what takes time
	return x * x, nil
}

func program(run func(ctx context.Context) error) func() {
	return func() { launcher.Main(run) }
}

func init() {
	programs["many"] = program(func(ctx context.Context) error {
		const n = 20_000
		refs := make([]launcher.Ref[int], n)
		for i := range refs {
			refs[i] = Square.Submit(ctx, i)
		}
		for i, r := range refs {
			if v, err := r.Get(ctx); err != nil || v != i*i {
				return fmt.Errorf("task %d: %d, %w", i, v, err)
			}
		}
		nodes, err := launcher.Nodes(ctx)
		if err != nil || len(nodes) != 1 || !nodes[0].Alive || nodes[0].Resources["CPU"] < 1 {
			return fmt.Errorf("nodes %+v, %w", nodes, err)
		}
		free, err := launcher.Available(ctx)
		if err != nil || free["memory"] <= 0 {
			return fmt.Errorf("free %v, %w", free, err)
		}
		who, err := whoAmI.Submit(ctx, launcher.OnNode(nodes[0].ID)).Get(ctx)
		if err != nil || who.Node != nodes[0].ID {
			return fmt.Errorf("ran on %+v, %w", who, err)
		}
		// Goroutines may all submit and get.
		errs := make(chan error)
		for i := range 50 {
			go func() {
				sum := 0
				for k := range 100 {
					v, err := Square.Submit(ctx, k).Get(ctx)
					if err != nil {
						errs <- err
						return
					}
					sum += v
				}
				if sum != 328350 {
					errs <- fmt.Errorf("goroutine %d: %d", i, sum)
					return
				}
				errs <- nil
			}()
		}
		for range 50 {
			if err := <-errs; err != nil {
				return err
			}
		}
		fmt.Println("all right")
		return nil
	})
	programs["arrays"] = program(func(ctx context.Context) error {
		var refs []launcher.Ref[[]float64]
		for i := range 40 {
			refs = append(refs, filled.Submit(ctx, 200_000, float64(i)))
		}
		for i, r := range refs {
			m := mean.SubmitArg(ctx, r)
			v, err := r.View(ctx)
			if err != nil {
				return err
			}
			if len(v.Value) != 200_000 || v.Value[199_999] != float64(i) {
				return fmt.Errorf("array %d is another", i)
			}
			v.Release()
			if x, err := m.Get(ctx); err != nil || x != float64(i) {
				return fmt.Errorf("mean %d is %v, %w", i, x, err)
			}
			r.Release()
		}
		big, err := launcher.Put(ctx, make([]byte, 100<<20))
		if err != nil {
			return err
		}
		b, err := big.Get(ctx)
		fmt.Println(len(b), err)
		return nil
	})
	programs["crash"] = program(func(ctx context.Context) error {
		fmt.Println(crash.Submit(ctx, 3).Get(ctx))
		_, err := crash.Submit(ctx, 2, launcher.Retries(0)).Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrWorkerCrashed))
		_, err = Square.Submit(ctx, 1, launcher.GPU(64)).Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrUnschedulable))
		return nil
	})
	programs["recursion"] = program(func(ctx context.Context) error {
		fmt.Println(recurse.Submit(ctx, 500).Get(ctx))
		return nil
	})
	programs["cancel"] = program(func(ctx context.Context) error {
		running, killed := sleep.Submit(ctx, time.Hour), sleep.Submit(ctx, time.Hour)
		short, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		defer cancel()
		_, err := running.Get(short)
		fmt.Println(errors.Is(err, context.DeadlineExceeded))
		running.Cancel()
		_, err = running.Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrCancelled))
		killed.Kill()
		_, err = killed.Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrCancelled))
		fmt.Println(sleep.Submit(ctx, time.Millisecond).Get(ctx))
		return nil
	})
	programs["stream"] = program(func(ctx context.Context) error {
		sum := 0
		for v, err := range numbers.Submit(ctx, 1000).All(ctx) {
			if err != nil {
				return err
			}
			sum += v
		}
		for v := range numbers.Submit(ctx, 1_000_000).All(ctx) { // left early
			if v == 10 {
				break
			}
		}
		fmt.Println(sum)
		return nil
	})
	programs["left"] = program(func(ctx context.Context) error {
		for v, err := range gated.Submit(ctx, 1<<30).All(ctx) { // its task ends with the loop
			fmt.Println(v, err)
			break
		}
		func() { gated.Submit(ctx, 1<<30) }() // and this one when it is found to be forgotten
		var v float64
		err := launcher.ErrCancelled
		for left := time.Now().Add(time.Minute); err != nil && time.Now().Before(left); {
			runtime.GC()
			short, cancel := context.WithTimeout(ctx, time.Second)
			v, err = gate.Submit(ctx, []float64{1, 3}).Get(short)
			cancel()
		}
		fmt.Println(v, err)
		return nil
	})
	programs["python"] = program(func(ctx context.Context) error {
		score := launcher.Python[map[string]any]("score:score", launcher.Program(os.Getenv("TEST_PYTHON")))
		v, err := score.Submit(ctx, "a text", []float64{1, 2.5}, Square.Submit(ctx, 3), []byte("xyz")).Get(ctx)
		if err != nil {
			return err
		}
		fmt.Println(v["words"], v["sum"], v["square"], v["bytes"])
		_, err = score.Submit(ctx, nil).Get(ctx)
		task, ok := errors.AsType[*launcher.TaskError](err)
		fmt.Println(ok && task.Code == "task" && strings.Contains(task.Message, "TypeError") && strings.Contains(task.Trace, "score"))
		return nil
	})
	programs["nodes"] = program(func(ctx context.Context) error {
		if gone := os.Getenv("GONE"); gone != "" { // this program's own file
			if err := os.Remove(gone); err != nil {
				return err
			}
			if text := os.Getenv("INSTEAD"); text != "" {
				if err := os.WriteFile(gone, []byte(text), 0o755); err != nil {
					return err
				}
			}
		}
		nodes, err := launcher.Nodes(ctx)
		if err != nil {
			return err
		}
		ids := map[string]bool{}
		for _, n := range nodes {
			who, err := whoAmI.Submit(ctx, launcher.OnNode(n.ID)).Get(ctx)
			if err != nil || who.Node != n.ID {
				return fmt.Errorf("to run on %s: on %s, %w", n.ID, who.Node, err)
			}
			// A large value made there, read here and there.
			a := filled.Submit(ctx, 500_000, 2.5, launcher.OnNode(n.ID))
			for _, m := range nodes {
				if v, err := mean.SubmitArg(ctx, a, launcher.OnNode(m.ID)).Get(ctx); err != nil || v != 2.5 {
					return fmt.Errorf("mean on %s of what is on %s: %v, %w", m.ID, n.ID, v, err)
				}
			}
			if v, err := a.Get(ctx); err != nil || len(v) != 500_000 || v[499_999] != 2.5 {
				return fmt.Errorf("what is on %s: %d values, %w", n.ID, len(v), err)
			}
			ids[n.ID] = true
		}
		fmt.Println(len(ids))
		return nil
	})
	programs["dirs"] = program(func(ctx context.Context) error {
		dir := os.Getenv("TEST_DIR")
		nodes, err := launcher.Nodes(ctx)
		if err != nil {
			return err
		}
		for _, from := range nodes {
			got, err := nested.Submit(ctx, len(nodes), launcher.OnNode(from.ID), launcher.WorkingDir(dir), launcher.Env(map[string]string{"COLOUR": "blue"})).Get(ctx)
			if err != nil {
				return err
			}
			for _, is := range got {
				in := "elsewhere"
				if is.Dir == dir {
					in = "there"
				}
				fmt.Println(from.ID, "asks", is.Node+":", is.Text, is.Colour, in)
			}
		}
		if err := os.Truncate(dir+"/text", 600<<20); err != nil {
			return err
		}
		other := dir + "/../other" // the same, and its own
		if err := os.Rename(dir, other); err != nil {
			return err
		}
		for _, n := range nodes {
			is, err := look.Submit(ctx, launcher.OnNode(n.ID), launcher.WorkingDir(other)).Get(ctx)
			fmt.Println(n.ID, is.Text, err != nil && strings.Contains(err.Error(), "at most 500MiB") && strings.Contains(err.Error(), ".launcherignore"))
		}
		return nil
	})
	programs["own-dir"] = program(func(ctx context.Context) error {
		for _, id := range []string{"local-0", "local-1"} {
			if _, err := look.Submit(ctx, launcher.OnNode(id)).Get(ctx); err != nil {
				return err
			}
		}
		return nil
	})
	programs["long"] = program(func(ctx context.Context) error {
		fmt.Println("begun")
		var refs []launcher.Ref[int]
		for i := range 2000 {
			refs = append(refs, slow.Submit(ctx, i, launcher.Retries(-1)))
		}
		big, err := launcher.Put(ctx, slices.Repeat([]int{5}, 50_000))
		if err != nil {
			return err
		}
		for i, r := range refs {
			if v, err := r.Get(ctx); err != nil || v != i*i {
				return fmt.Errorf("task %d: %d, %w", i, v, err)
			}
			if i == len(refs)/2 {
				if v, err := Sum.SubmitArg(ctx, big).Get(ctx); err != nil || v != 250_000 {
					return fmt.Errorf("sum %d, %w", v, err)
				}
			}
		}
		fmt.Println("all right")
		return nil
	})
}
