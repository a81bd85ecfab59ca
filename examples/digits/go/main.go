// Command go trains the digits in Go: softmax regression to its optimum, or a small
// neural network, by as many ranks as there are.
//
//	go build -o digits ./examples/digits/go
//	launcher train -n 4 ./digits                          # four ranks
//	launcher train -n 2 ./digits -model mlp -lr 0.1       # a network, gradients all-reduced
//	./digits                                              # alone, without launcher
package main

import (
	"context"
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"launcher"
)

type options struct {
	model  string
	steps  int
	lam    float64
	lr     float64
	hidden int
	batch  int
	seed   uint64
	pause  time.Duration
	out    string
}

func main() {
	o := options{lr: 0.1, hidden: 32}
	// In a sweep the parameters come from launcher; flags win over them.
	var p struct {
		LR     *float64 `json:"lr"`
		Hidden *int     `json:"hidden"`
	}
	if err := launcher.Params(&p); err != nil {
		fail(err)
	}
	if p.LR != nil {
		o.lr = *p.LR
	}
	if p.Hidden != nil {
		o.hidden = *p.Hidden
	}
	flag.StringVar(&o.model, "model", "softmax", "softmax | mlp")
	flag.IntVar(&o.steps, "steps", 0, "Newton steps or epochs at most (0: 50 or 27)")
	flag.Float64Var(&o.lam, "lam", 1e-3, "softmax: weight of |W|^2 / 2")
	flag.Float64Var(&o.lr, "lr", o.lr, "mlp: learning rate")
	flag.IntVar(&o.hidden, "hidden", o.hidden, "mlp: hidden units")
	flag.IntVar(&o.batch, "batch", 32, "mlp: images in a global batch")
	flag.Uint64Var(&o.seed, "seed", 0, "mlp: of the weights it begins with and the order of images")
	flag.DurationVar(&o.pause, "pause", 0, "how long to wait after each step, to have time to kill a rank")
	flag.StringVar(&o.out, "out", "", "file for the weights, little-endian float64")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	g, err := join(ctx)
	if err != nil {
		fail(err)
	}
	defer g.close()
	switch o.model {
	case "softmax":
		err = softmax(ctx, g, o)
	case "mlp":
		err = mlp(ctx, g, o)
	default:
		err = fmt.Errorf("-model %q: give softmax or mlp", o.model)
	}
	if err != nil {
		fail(err)
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "digits:", err)
	os.Exit(1)
}

// tell reports a step with the weights and ends the program when it is to leave. Every
// rank reports the step, rank 0 brings the file. One rank may hear of the end of its
// node before the others do, so they agree: if one is to leave, all are.
func tell(ctx context.Context, g *group, w []float64, step int, m launcher.Metrics) error {
	opts := []launcher.ReportOption{launcher.Step(int64(step))}
	if g.rank == 0 && launcher.InRun() {
		dir, err := os.MkdirTemp(os.Getenv("LAUNCHER_CHECKPOINT_OUT"), "step-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := save(filepath.Join(dir, "weights"), w); err != nil {
			return err
		}
		opts = append(opts, launcher.WithCheckpoint(dir))
	}
	leave, err := launcher.Report(ctx, m, opts...)
	if err != nil {
		return err
	}
	vote := []float64{0}
	if leave.Now() {
		vote[0] = 1
	}
	if err := g.sum(vote); err != nil {
		return err
	}
	if vote[0] > 0 {
		os.Exit(launcher.Left)
	}
	return nil
}

// resume fills w from the checkpoint to go on from and gives its step, 0 for none.
func resume(ctx context.Context, g *group, w []float64) (int, error) {
	dir, step, err := launcher.Checkpoint(ctx)
	if err != nil || dir == "" {
		return 0, err
	}
	if g.rank == 0 {
		fmt.Printf("going on from step %d\n", step)
	}
	return int(step), load(filepath.Join(dir, "weights"), w)
}

func save(path string, w []float64) error {
	b := make([]byte, 0, 8*len(w))
	for _, v := range w {
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(v))
	}
	return os.WriteFile(path, b, 0o644)
}

func load(path string, w []float64) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(b) != 8*len(w) {
		return fmt.Errorf("%s holds %d bytes, not %d weights", path, len(b), len(w))
	}
	for i := range w {
		w[i] = math.Float64frombits(binary.LittleEndian.Uint64(b[8*i:]))
	}
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
