// Command pi estimates pi by throwing darts at a square from many tasks at once, and
// shows how the estimate gets better as the tasks end.
//
//	go build -o pi ./examples/go/pi && ./pi -tasks 64 -darts 5000000
package main

import (
	"context"
	"flag"
	"fmt"
	"math"
	"math/rand/v2"

	"launcher"
)

var (
	tasks = flag.Int("tasks", 16, "number of tasks")
	darts = flag.Int("darts", 1_000_000, "darts of each task")
)

// Throw is throw as a task.
var Throw = launcher.Func2(throw)

// throw gives how many of n darts hit the circle. Each seed has darts of its own, so that
// a task that is run again gives the same.
func throw(ctx context.Context, seed uint64, n int) (int, error) {
	r := rand.New(rand.NewPCG(seed, 0))
	hits := 0
	for i := range n {
		if i%100_000 == 0 && ctx.Err() != nil {
			return 0, ctx.Err()
		}
		x, y := r.Float64(), r.Float64()
		if x*x+y*y < 1 {
			hits++
		}
	}
	return hits, nil
}

func main() {
	launcher.Main(run)
}

func run(ctx context.Context) error {
	flag.Parse()
	var waiting []launcher.Ref[int]
	for i := range *tasks {
		waiting = append(waiting, Throw.Submit(ctx, uint64(i), *darts))
	}
	hits, done := 0, 0
	for len(waiting) > 0 {
		ready, rest := launcher.Wait(ctx, waiting, max(1, len(waiting)/4))
		counts, err := launcher.Get(ctx, ready...)
		if err != nil {
			return err
		}
		for _, n := range counts {
			hits += n
		}
		done += len(ready)
		pi := 4 * float64(hits) / float64(done) / float64(*darts)
		fmt.Printf("%4d of %d tasks: pi is about %.6f, off by %.6f\n", done, *tasks, pi, math.Abs(pi-math.Pi))
		waiting = rest
	}
	return nil
}
