// Command pending works through many more inputs than it wants to have in the cluster at
// a time: it keeps a bounded number of tasks pending, and submits the next when one has
// ended. So neither the inputs nor the results pile up anywhere.
//
//	go build -o pending ./examples/go/pending && ./pending -inputs 2000 -pending 50
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"

	"launcher"
)

var (
	inputs = flag.Int("inputs", 500, "how many inputs there are")
	most   = flag.Int("pending", 20, "most tasks that wait or run at a time")
)

// errSkip says that an input is none: it is known for what it is here too.
var errSkip = errors.New("nothing to do for this input")

func init() { launcher.RegisterError(errSkip) }

// Steps is steps as a task.
var Steps = launcher.Func(steps)

// steps gives how many steps of Collatz's rule lead from n to 1.
func steps(_ context.Context, n int) (int, error) {
	if n%100 == 0 {
		return 0, errSkip
	}
	count := 0
	for ; n != 1; count++ {
		if n%2 == 0 {
			n /= 2
		} else {
			n = 3*n + 1
		}
	}
	return count, nil
}

func main() {
	launcher.Main(run)
}

func run(ctx context.Context) error {
	flag.Parse()
	var pending []launcher.Ref[int]
	sum, done, skipped, peak := 0, 0, 0, 0
	// finish takes the results of tasks until at most n are pending.
	finish := func(n int) error {
		for len(pending) > n {
			ready, rest := launcher.Wait(ctx, pending, 1)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			for _, r := range ready {
				switch v, err := r.Get(ctx); {
				case errors.Is(err, errSkip):
					skipped++
				case err != nil:
					return err
				default:
					sum, done = sum+v, done+1
				}
				r.Release()
			}
			pending = rest
		}
		return nil
	}
	for i := range *inputs {
		if err := finish(*most - 1); err != nil {
			return err
		}
		pending = append(pending, Steps.Submit(ctx, i+1))
		peak = max(peak, len(pending))
	}
	if err := finish(0); err != nil {
		return err
	}
	fmt.Printf("%d inputs done, %d skipped, %d steps in all, at most %d pending\n", done, skipped, sum, peak)
	return nil
}
