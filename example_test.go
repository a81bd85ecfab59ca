package launcher_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"

	"launcher"
)

// Functions are registered in variables, where drivers and workers both find them.
var (
	Square = launcher.Func(square)
	Sum    = launcher.Func(sum)
	Words  = launcher.StreamFunc(words)
	Check  = launcher.Func(check)
)

func square(_ context.Context, x int) (int, error) { return x * x, nil }

func sum(_ context.Context, v []int) (int, error) {
	s := 0
	for _, x := range v {
		s += x
	}
	return s, nil
}

func words(_ context.Context, text string) iter.Seq2[string, error] {
	return func(yield func(string, error) bool) {
		for w := range strings.FieldsSeq(text) {
			if !yield(w, nil) {
				return
			}
		}
	}
}

// ErrEmpty is what it is in other processes too.
var ErrEmpty = errors.New("nothing to check")

func init() { launcher.RegisterError(ErrEmpty) }

func check(_ context.Context, s string) (int, error) {
	if s == "" {
		return 0, fmt.Errorf("check: %w", ErrEmpty)
	}
	return len(s), nil
}

// A Tally is what an actor has.
type Tally struct{ total int }

// The class of the actor, and its methods, are registered like functions.
var (
	Tallies = launcher.Actor(newTally)
	Count   = launcher.Method((*Tally).Count)
)

func newTally(_ context.Context, start int) (*Tally, error) { return &Tally{start}, nil }

// Count counts.
func (t *Tally) Count(_ context.Context, n int) (int, error) {
	t.total += n
	return t.total, nil
}

// An actor keeps its state between calls, which run in the order in which they were
// submitted.
func ExampleActor() {
	launcher.Main(func(ctx context.Context) error {
		tally, err := Tallies.New(ctx, 100, launcher.ActorName("tally"), launcher.MaxRestarts(3))
		if err != nil {
			return err
		}
		for i := range 9 {
			Count.Submit(ctx, tally, i)
		}
		v, err := Count.Submit(ctx, tally, 9).Get(ctx)
		fmt.Println(v, err)
		same, err := launcher.FindActor[*Tally](ctx, "tally")
		fmt.Println(same.ID() == tally.ID(), err)
		err = tally.Kill()
		fmt.Println(err)
		_, err = Count.Submit(ctx, same, 1).Get(ctx)
		fmt.Println(errors.Is(err, launcher.ErrActorDied))
		return nil
	})
	// 145 <nil>
	// true <nil>
	// <nil>
	// true
}

func ExampleMain() {
	launcher.Main(func(ctx context.Context) error {
		v, err := Square.Submit(ctx, 12).Get(ctx)
		fmt.Println(v, err)
		return nil
	})
	// 144 <nil>
}

// A task may take the results of others before they are there.
func ExampleGather() {
	launcher.Main(func(ctx context.Context) error {
		var refs []launcher.Ref[int]
		for i := range 10 {
			refs = append(refs, Square.Submit(ctx, i))
		}
		v, err := Sum.SubmitArg(ctx, launcher.Gather(refs)).Get(ctx)
		fmt.Println(v, err)
		return nil
	})
	// 285 <nil>
}

// Results are taken as they come.
func ExampleWait() {
	launcher.Main(func(ctx context.Context) error {
		var pending []launcher.Ref[int]
		for i := range 5 {
			pending = append(pending, Square.Submit(ctx, i, launcher.CPU(0.5)))
		}
		sum := 0
		for len(pending) > 0 {
			ready, rest := launcher.Wait(ctx, pending, 1)
			for _, r := range ready {
				v, err := r.Get(ctx)
				if err != nil {
					return err
				}
				sum += v
			}
			pending = rest
		}
		fmt.Println(sum)
		return nil
	})
	// 30
}

func ExamplePut() {
	launcher.Main(func(ctx context.Context) error {
		table, err := launcher.Put(ctx, []int{1, 2, 3})
		if err != nil {
			return err
		}
		a, b := Sum.SubmitArg(ctx, table), Sum.SubmitArg(ctx, table)
		v, err := launcher.Get(ctx, a, b)
		fmt.Println(v, err)
		return nil
	})
	// [6 6] <nil>
}

func ExampleStream_All() {
	launcher.Main(func(ctx context.Context) error {
		for w, err := range Words.Submit(ctx, "one by one").All(ctx) {
			fmt.Println(w, err)
		}
		return nil
	})
	// one <nil>
	// by <nil>
	// one <nil>
}

func ExampleRegisterError() {
	launcher.Main(func(ctx context.Context) error {
		_, err := Check.Submit(ctx, "").Get(ctx)
		fmt.Println(errors.Is(err, ErrEmpty), err)
		return nil
	})
	// true task launcher_test.check: check: nothing to check
}
